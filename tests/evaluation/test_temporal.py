import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evaluation.flow import FlowCache
from evaluation.masks import iou
from evaluation.temporal import (
    adjacent,
    curve,
    cuts,
    excess,
    is_cut,
    lag_test,
    lagged,
    look,
    mean,
    paired_frames,
    statistics,
    steadiness,
    video_consistency,
)
from evaluation.warp import WarpConfig, believed, warped_pair

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
ALL = np.ones(7, np.bool_)


def _walk(frames: int = 8, step: int = 3) -> list[Mask]:
    """A square that moves to the right."""
    masks = []
    for t in range(frames):
        mask = np.zeros((40, 90), np.bool_)
        mask[10:30, 10 + step * t : 30 + step * t] = True
        masks.append(mask)
    return masks


def _flows(masks: list[Mask], step: int = 3) -> list[tuple[Field, Field]]:
    there = np.zeros((*masks[0].shape, 2), np.float32)
    there[..., 0] = step
    return [(there, -there)] * (len(masks) - 1)


def test_adjacent_is_the_iou_of_neighbours() -> None:
    masks = _walk()
    assert adjacent(masks, ALL).tolist() == [iou(a, b) for a, b in itertools.pairwise(masks)]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9), st.integers(1, 3), st.sets(st.integers(0, 30)))
def test_a_pair_never_spans_a_gap_or_a_cut(steps: list[int], step: int, starts: set[int]) -> None:
    indices = np.cumsum([2, *steps])
    paired = paired_frames(indices, step=step, cuts=starts)
    for a, b, use in zip(indices[:-1], indices[1:], paired, strict=True):
        assert use == (b - a == step and not any(a < start <= b for start in starts))


def test_what_is_not_paired_has_no_value_and_is_in_no_mean() -> None:
    masks = _walk()
    masks[4] = ~masks[4]
    paired = paired_frames([0, 1, 2, 3, 9, 20, 21, 22])
    values = adjacent(masks, paired)
    assert np.isnan(values).tolist() == [False, False, False, True, True, False, False]
    scored = steadiness({"a": masks}, _flows(masks), paired)["a"]
    for name in ("adjacent", "raw", "masked", "valid_share"):
        assert np.isnan(getattr(scored, name)).tolist() == (~paired).tolist()
    assert scored.means["masked"] == 1
    assert scored.excluded == 0


def test_steadiness_is_that_of_each_pair() -> None:
    masks, rng = _walk(), np.random.default_rng(0)
    noisy = [mask ^ (rng.random(mask.shape) < 0.05) for mask in masks]
    flows = [(f + rng.normal(0, 0.5, f.shape).astype(np.float32), b) for f, b in _flows(masks)]
    config = WarpConfig(absolute=0.3)
    both = steadiness({"truth": iter(masks), "noisy": iter(noisy)}, iter(flows), ALL, config)
    for t, (forward, backward) in enumerate(flows):
        pair = warped_pair(noisy[t], noisy[t + 1], backward, believed(forward, backward, config), config)
        assert both["noisy"].raw[t] == pair.raw_iou
        assert both["noisy"].masked[t] == pair.masked_iou
        assert both["noisy"].valid_share[t] == both["truth"].valid_share[t] == pair.valid_share
    assert both["truth"].raw.tolist() == [1.0] * 7
    apart = excess(both["noisy"], both["truth"])
    assert apart.raw == pytest.approx(1 - both["noisy"].means["raw"])
    assert apart.raw > 0.1
    assert apart.adjacent == pytest.approx(both["truth"].means["adjacent"] - both["noisy"].means["adjacent"])


def test_the_truth_is_in_excess_of_itself_by_nothing() -> None:
    masks = _walk()
    truth = steadiness({"truth": masks}, _flows(masks), ALL)["truth"]
    found = excess(truth, truth)
    assert (found.adjacent, found.raw, found.masked) == (0, 0, 0)


def test_a_frozen_mask_is_steadier_than_the_truth_of_a_moving_person() -> None:
    masks = _walk()
    scored = steadiness({"frozen": [masks[0]] * 8, "truth": masks}, _flows(masks), ALL)
    assert scored["frozen"].means["adjacent"] == 1
    assert excess(scored["frozen"], scored["truth"]).adjacent < 0
    assert excess(scored["frozen"], scored["truth"]).masked > 0, "the flow shows that it did not follow"


def test_pairs_whose_flow_is_believed_nowhere_are_counted_and_excluded() -> None:
    masks = _walk()
    flows = _flows(masks)
    flows[2] = (flows[2][0] + 50, flows[2][1])
    scored = steadiness({"a": masks}, flows, ALL)["a"]
    assert scored.excluded == 1
    assert np.isnan(scored.masked[2])
    assert scored.means["masked"] == 1
    assert excess(scored, scored).masked == 0


def test_a_lag_costs_accuracy_that_steadiness_does_not_show() -> None:
    tests = [lag_test(_walk(), ALL, lag) for lag in range(4)]
    assert tests[0].iou == 1
    losses = [1 - test.iou for test in tests]
    assert losses == sorted(losses)
    assert len(set(losses)) == 4
    for test in tests:
        assert test.adjacent >= test.truth_adjacent - 1e-12
    masks = _walk()
    assert all(a is b for a, b in zip(lagged(masks, 2), [masks[0], masks[0], *masks[:-2]], strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.lists(st.booleans(), min_size=7, max_size=7))
def test_video_consistency_is_the_share_of_still_truth_that_stays_still(
    seed: int, length: int, use: list[bool]
) -> None:
    rng = np.random.default_rng(seed)
    masks, truths = (np.cumsum(rng.random((8, 5, 6)) < 0.1, axis=0) % 2 == 1 for _ in range(2))
    expected = []
    for start in range(8 - length):
        if all(use[start : start + length]):
            clip = slice(start, start + length)
            still = (truths[clip] == truths[start]).all(0)
            kept = still & (masks[clip] == masks[start]).all(0)
            expected.append(kept.sum() / still.sum() if still.any() else np.nan)
    np.testing.assert_array_equal(video_consistency(masks, truths, np.array(use), length), expected)


def test_the_curve_shows_the_first_frames_of_all_videos_that_have_them() -> None:
    found = curve([np.array([0.0, 0.5, 1.0]), np.array([np.nan, 1.0])], frames=4)
    np.testing.assert_array_equal(found.means, [0.0, 0.75, 1.0, np.nan])
    assert found.counts.tolist() == [1, 2, 1, 0]
    assert curve([], frames=2).counts.tolist() == [0, 0]


def test_statistics_of_long_videos_have_a_decay() -> None:
    values = np.linspace(0.9, 0.4, 1000)
    found = statistics(values)
    assert found.mean == pytest.approx(0.65)
    assert found.recall == pytest.approx(0.8)
    assert found.decay == pytest.approx(values[:251].mean() - values[749:].mean(), abs=1e-3)


def test_statistics_pass_over_frames_without_a_value_but_for_recall() -> None:
    found = statistics(np.array([1.0, np.nan, 1.0, 1.0]))
    assert (found.mean, found.recall) == (1, 0.75)
    with pytest.raises(ValueError, match="T >= 1"):
        statistics(np.array([]))


def test_the_mean_of_nothing_is_nan() -> None:
    assert np.isnan(mean(np.array([np.nan])))
    assert np.isnan(mean(np.array([])))


def test_cuts_are_found_where_the_scene_changes_and_not_where_people_move() -> None:
    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8) for _ in range(3)]
    frames = [np.roll(scene, t, 1) for scene in scenes for t in range(5)]
    assert cuts(frames) == [5, 10]
    assert cuts(frames, histogram=1.0, thumbnail=1.0) == []
    assert cuts(frames[:1]) == cuts([]) == []
    with pytest.raises(ValueError, match="frames must be"):
        cuts([np.zeros((4, 4), np.uint8)])


def test_cuts_are_where_two_looks_say_so_and_both_ways_agree() -> None:
    rng = np.random.default_rng(1)
    frames = [np.clip(rng.integers(0, 60, (20, 30, 3)) + level, 0, 255).astype(np.uint8) for level in (0, 9, 90, 96)]
    looks = [look(frame) for frame in frames]
    found = [t for t in range(1, 4) if is_cut(looks[t - 1], looks[t])]
    assert found == cuts(frames)
    assert 2 in found
    for before, now in itertools.product(looks, looks):
        assert is_cut(before, now) == is_cut(now, before)
        assert not is_cut(before, now, histogram=1.0, thumbnail=1.0)
    assert not is_cut(looks[0], looks[0], histogram=0.0, thumbnail=0.0)


def test_labelled_clips_have_no_cut_inside_and_one_between(data: Path) -> None:
    frames = []
    for name in ("schoolgirls", "dance-twirl"):
        paths = sorted((data / "labelled_clips" / name / "frames").iterdir())[:30]
        frames += [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert cuts(frames) == [30]


def test_real_people_are_steadier_along_the_flow_and_flicker_and_lag_show(data: Path, tmp_path: Path) -> None:
    clip = data / "labelled_clips" / "schoolgirls"
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((clip / "frames").iterdir())[:12]]
    truths = [np.asarray(Image.open(path).convert("L")) > 127 for path in sorted((clip / "masks").iterdir())[:12]]
    flicker = [np.roll(mask, 2 * (t % 2), 1) for t, mask in enumerate(truths)]
    paired, cache = np.ones(11, np.bool_), FlowCache(folder=tmp_path)
    tracks = {"truth": truths, "flicker": flicker, "late": lagged(truths, 3)}
    found = steadiness(tracks, cache.pairs(frames), paired)
    again = steadiness(tracks, cache.pairs(frames), paired)
    assert all(found[name].means == again[name].means for name in tracks), "read as computed"
    truth = found["truth"].means
    assert min(truth["masked"], truth["raw"]) > truth["adjacent"] + 0.01
    assert excess(found["flicker"], found["truth"]).masked > 0.05
    late = lag_test(truths, paired, 3)
    assert late.adjacent >= late.truth_adjacent - 0.01
    assert late.iou < 0.9


MISSING: list[Callable[[list[Mask | None], NDArray[np.bool_]], object]] = [
    adjacent,
    lambda masks, paired: video_consistency(masks, _walk(), paired, 2),
    lambda masks, paired: steadiness({"masks": masks}, _flows(_walk()), paired),
]


@pytest.mark.parametrize("function", MISSING)
def test_a_missing_prediction_is_an_error(function: Callable[[list[Mask | None], NDArray[np.bool_]], object]) -> None:
    masks: list[Mask | None] = [*_walk()]
    with pytest.raises(ValueError, match="equally long"):
        function(masks[:-1], ALL)
    masks[3] = None
    with pytest.raises(ValueError, match="frame 3 has no mask"):
        function(masks, ALL)


def test_bad_arguments_are_named() -> None:
    masks = _walk()
    with pytest.raises(ValueError, match="equally long"):
        adjacent(masks, ALL[:3])
    with pytest.raises(ValueError, match="equally long"):
        steadiness({"a": masks}, _flows(masks)[:4], ALL)
    with pytest.raises(ValueError, match=r"paired must have shape \(T - 1,\) and be bool"):
        adjacent(masks, np.ones(7))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length must be >= 2"):
        video_consistency(masks, masks, ALL, 1)
    with pytest.raises(ValueError, match="lag must be >= 0"):
        lagged(masks, -1)
    with pytest.raises(ValueError, match="frames must be >= 1"):
        curve([], frames=0)
    with pytest.raises(ValueError, match="indices must rise, got 4 before 4"):
        paired_frames([1, 4, 4])
    with pytest.raises(ValueError, match="step must be >= 1"):
        paired_frames([1], step=0)
    scored = steadiness({"a": masks}, _flows(masks), ALL)["a"]
    other = steadiness({"a": masks}, _flows(masks), ALL, WarpConfig(nearest=True))["a"]
    with pytest.raises(ValueError, match="the same pairs"):
        excess(scored, other)
