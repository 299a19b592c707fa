"""Laws of one video, frame by frame: it agrees with the metrics of whole videos, and says what steadiness hides."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.boundary import boundary_f, iou_and_boundary_iou
from evaluation.flow import FlowPair
from evaluation.masks import iou
from evaluation.soft import dtssd
from evaluation.temporal import excess, lag_test, lagged, mean, paired_frames, steadiness, video_consistency
from evaluation.video import FRAME_METRICS, ClipMeter, ClipRow, FrameRow, MeterConfig
from evaluation.warp import WarpConfig

Mask = NDArray[np.bool_]
Soft = NDArray[np.float32]

HEIGHT, WIDTH, STEP = 40, 90, 3
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PERFECT = (
    "iou",
    "boundary_iou",
    "boundary_iou_interior",
    "boundary_f",
)


def walk(frames: int = 20, step: int = STEP) -> list[Mask]:
    """A person that walks to the right."""
    masks = []
    for t in range(frames):
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask[8:34, 5 + step * t : 23 + step * t] = True
        masks.append(mask)
    return masks


def flows(frames: int, step: int = STEP) -> list[FlowPair]:
    """The walk's own flow."""
    there = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    there[..., 0] = step
    return [(there, -there)] * (frames - 1)


def noisy(masks: Sequence[Mask], seed: int = 0, rate: float = 0.05) -> list[Soft]:
    """Soft masks near the truth."""
    rng = np.random.default_rng(seed)
    return [
        np.clip((mask ^ (rng.random(mask.shape) < rate)) * 0.8 + rng.random(mask.shape) * 0.19, 0, 1).astype(np.float32)
        for mask in masks
    ]


def soft(masks: Sequence[Mask]) -> list[Soft]:
    return [mask.astype(np.float32) for mask in masks]


def measured(
    predictions: Sequence[Soft],
    truths: Sequence[Mask | None],
    *,
    follows: Sequence[bool] | None = None,
    cuts: Sequence[int] = (),
    voids: Sequence[Mask | None] | None = None,
    moves: Sequence[FlowPair] | None = None,
    config: MeterConfig | None = None,
) -> tuple[list[FrameRow], ClipRow]:
    meter = ClipMeter("walk", config)
    for t, (predicted, truth) in enumerate(zip(predictions, truths, strict=True)):
        meter.add(
            np.zeros((*predicted.shape, 3), np.uint8),
            predicted,
            truth,
            None if voids is None else voids[t],
            index=t,
            seconds=t / 15,
            follows=t > 0 if follows is None else follows[t],
            cut=t in cuts,
            flow=None if moves is None or t == 0 else moves[t - 1],
        )
    return list(meter.rows), meter.finish()


def column(rows: Sequence[FrameRow], name: str) -> NDArray[np.float64]:
    return np.array([getattr(row, name) for row in rows], np.float64)


def same(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-12, equal_nan=True)


# Oracles --------------------------------------------------------------------------------------------------------------


def test_frames_agree_with_the_metrics_of_single_images() -> None:
    truths = walk()
    predictions = noisy(truths)
    rows, clip = measured(predictions, truths)
    for row, predicted, truth in zip(rows, predictions, truths, strict=True):
        both = iou_and_boundary_iou(predicted >= 0.5, truth)
        assert (row.iou, row.boundary_iou, row.boundary_iou_interior, row.band_width) == (
            both.iou, both.boundary_iou, both.boundary_iou_interior, both.d,
        )  # fmt: skip
        assert row.boundary_f == boundary_f(predicted >= 0.5, truth)
        assert row.area_truth == truth.mean()
        assert row.area_found == (predicted >= 0.5).mean()
    assert clip.means == {name: mean(column(rows, name)) for name in FRAME_METRICS}


@given(st.integers(0, 9), st.sets(st.integers(1, 29), max_size=3), st.sets(st.integers(1, 29), max_size=2))
def test_pairs_agree_with_the_metrics_of_whole_videos(seed: int, gaps: set[int], shots: set[int]) -> None:
    truths = walk(30, step=2)
    predictions, moves = noisy(truths, seed), flows(30, step=2)
    masks = [predicted >= 0.5 for predicted in predictions]
    follows = [t > 0 and t not in gaps for t in range(30)]
    rows, clip = measured(predictions, truths, follows=follows, cuts=sorted(shots), moves=moves)

    indices = np.cumsum([1 if t not in gaps else 2 for t in range(30)])
    paired = paired_frames(indices, cuts=[int(indices[t]) for t in shots])
    found = steadiness({"prediction": masks, "truth": truths}, moves, paired)
    names = {"adjacent": "adjacent", "raw": "warped", "masked": "warped_masked"}
    for theirs, ours in names.items():
        same(column(rows, ours)[1:], getattr(found["prediction"], theirs))
        same(column(rows, f"{ours}_truth")[1:], getattr(found["truth"], theirs))
    same(column(rows, "valid_share")[1:], found["truth"].valid_share)
    steady = excess(found["prediction"], found["truth"])
    same([clip.adjacent_excess, clip.warped_excess], [steady.adjacent, steady.masked])
    same([clip.vc8, clip.vc16], [mean(video_consistency(masks, truths, paired, n)) for n in (8, 16)])
    assert clip.pairs == paired.sum()
    assert clip.pairs_excluded == {"gap": len(gaps), "cut": len(shots - gaps), "no_flow": 0, "not_believed": 0}


def test_dtssd_is_that_of_the_soft_masks() -> None:
    truths = walk()
    predictions, exact = noisy(truths), soft(truths)
    rows, _ = measured(predictions, truths)
    expected = [dtssd(predictions[t - 1], predictions[t], exact[t - 1], exact[t]) for t in range(1, 20)]
    same(column(rows, "dtssd")[1:], expected)


def test_the_lag_is_that_of_the_lag_test() -> None:
    truths = walk()
    paired = np.ones(19, np.bool_)
    _, clip = measured(noisy(truths), truths)
    same(clip.lag_loss, [1 - lag_test(truths, paired, lag).iou for lag in range(1, 6)])


def test_the_lag_begins_anew_after_a_cut_or_a_gap() -> None:
    truths = walk()
    follows = [t not in (0, 7, 8, 15) for t in range(20)]
    _, clip = measured(soft(truths), truths, follows=follows, cuts=[11])
    indices = np.cumsum([1 if follows[t] else 2 for t in range(20)])
    paired = paired_frames(indices, cuts=[int(indices[11])])
    same(clip.lag_loss, [1 - lag_test(truths, paired, lag).iou for lag in range(1, 6)])
    runs = [truths[start:stop] for start, stop in ((0, 7), (8, 11), (11, 15), (15, 20))]  # frame 7 is alone
    late = [iou(a, b) for run in runs for a, b in zip(lagged(run, 3), run, strict=True)]
    assert clip.lag_loss[2] == pytest.approx(1 - np.mean(late))


def test_frames_that_are_all_alone_say_nothing_of_a_lag() -> None:
    truths = walk()
    _, clip = measured(soft(truths), truths, follows=[False] * 20)
    assert all(math.isnan(loss) for loss in clip.lag_loss)
    assert math.isnan(lag_test(truths, np.zeros(19, np.bool_), 2).iou)


# Laws -----------------------------------------------------------------------------------------------------------------


def test_the_truth_scores_one_everywhere_and_has_no_excess() -> None:
    truths = walk()
    rows, clip = measured(soft(truths), truths, moves=flows(20))
    assert all(getattr(row, name) == 1 for row in rows for name in PERFECT)
    assert [clip.adjacent_excess, clip.warped_excess, clip.means["dtssd"]] == [0, 0, 0]
    assert clip.means["warped_masked"] == 1
    assert [clip.vc8, clip.vc16] == [1, 1]


@pytest.mark.parametrize("lag", [1, 2, 5])
def test_a_mask_that_lags_is_as_steady_and_loses_what_the_lag_test_says(lag: int) -> None:
    truths = walk()
    _, clip = measured(soft(lagged(truths, lag)), truths)
    assert clip.means["iou"] == pytest.approx(1 - clip.lag_loss[lag - 1])
    assert clip.means["iou"] < 0.95
    assert clip.adjacent_excess <= 0
    assert list(clip.lag_loss) == sorted(clip.lag_loss)


def test_a_frozen_mask_is_perfectly_steady_and_wrong() -> None:
    truths = walk()
    _, clip = measured(soft([truths[0]] * 20), truths)
    assert clip.means["adjacent"] == 1
    assert clip.vc8 == 1
    assert clip.adjacent_excess < 0
    assert clip.means["iou"] < 0.3


def test_a_mask_that_flickers_has_an_excess() -> None:
    truths = walk()
    _, clip = measured(noisy(truths, rate=0.1), truths, moves=flows(20))
    assert clip.adjacent_excess > 0.1
    assert clip.warped_excess > 0.1


def test_without_truth_there_is_steadiness_alone() -> None:
    truths = walk()
    rows, clip = measured(noisy(truths), [None] * 20, moves=flows(20))
    known = {name for name in FRAME_METRICS if not math.isnan(clip.means[name])}
    assert known == {"area_found", "adjacent", "warped", "warped_masked", "valid_share"}
    assert clip.labelled == 0
    assert all(math.isnan(value) for value in (clip.adjacent_excess, clip.warped_excess, clip.vc8, *clip.lag_loss))
    assert rows[0].band_width == max(1, round(0.02 * math.hypot(HEIGHT, WIDTH)))
    lowest = min(rows[1:], key=lambda row: row.warped_masked)
    assert clip.worst_frames[0] == lowest.index


def test_empty_and_empty_is_one_and_raw_nothing() -> None:
    empty = np.zeros((HEIGHT, WIDTH), np.bool_)
    rows, clip = measured(soft([empty] * 3), [empty] * 3)
    assert [rows[0].iou, rows[0].boundary_iou, rows[0].boundary_f] == [1, 1, 1]
    assert math.isnan(rows[0].iou_raw)
    assert math.isnan(rows[0].boundary_iou_raw)
    assert math.isnan(clip.means["iou_raw"])


def test_void_pixels_change_nothing() -> None:
    truths = walk()
    predictions = noisy(truths)
    void = np.zeros((HEIGHT, WIDTH), np.bool_)
    void[:, :30] = True
    rng = np.random.default_rng(1)
    other = [np.where(void, rng.random(void.shape), predicted).astype(np.float32) for predicted in predictions]
    moves = flows(20)
    first = measured(predictions, truths, voids=[void] * 20, moves=moves)
    second = measured(other, [truth ^ void for truth in truths], voids=[void] * 20, moves=moves)
    for name in FRAME_METRICS:
        same(column(first[0], name), column(second[0], name))
    assert first[1] == second[1]


def test_the_border_rule_chooses_the_headline() -> None:
    truth = np.zeros((HEIGHT, WIDTH), np.bool_)
    truth[20:, 20:60] = True
    predicted = np.roll(truth, 4, axis=1)
    (row,), _ = measured(soft([predicted]), [truth], config=MeterConfig(border=False))
    (paper,), _ = measured(soft([predicted]), [truth])
    assert row.boundary_iou == row.boundary_iou_interior == paper.boundary_iou_interior
    assert paper.boundary_iou > row.boundary_iou


def test_the_worst_frames_are_the_worst_of_their_stretch() -> None:
    rng = np.random.default_rng(3)
    truths = walk(60, step=1)
    predictions = [noisy([truth], t, rng.random() / 2)[0] for t, truth in enumerate(truths)]
    rows, clip = measured(predictions, truths, config=MeterConfig(worst=3, apart=10))
    least = [min(rows[start : start + 10], key=lambda row: row.boundary_iou) for start in range(0, 60, 10)]
    assert list(clip.worst_frames) == [row.index for row in sorted(least, key=lambda row: row.boundary_iou)][:3]


def test_the_first_ten_frames_are_shown_one_by_one() -> None:
    truths = walk(4)
    rows, clip = measured(noisy(truths), truths)
    same(clip.first_iou, [*column(rows, "iou"), *[math.nan] * 6])


def test_flow_that_is_believed_nowhere_is_counted() -> None:
    truths = walk(5)
    there = np.full((HEIGHT, WIDTH, 2), 20, np.float32)
    astray = [(there, there)] * 4
    rows, clip = measured(soft(truths), truths, moves=astray, config=MeterConfig(warp=WarpConfig(relative=0.0)))
    assert clip.pairs_excluded["not_believed"] == 4
    assert all(row.valid_share == 0 for row in rows[1:])
    assert math.isnan(clip.means["warped_masked"])
    _, clip = measured(soft(truths), truths)
    assert clip.pairs_excluded["no_flow"] == 4
    assert clip.pairs == 4


def test_frames_with_and_without_truth_are_told_apart() -> None:
    truths = walk(6)
    some = [truth if t != 2 else None for t, truth in enumerate(truths)]
    rows, clip = measured(soft(truths), some)
    assert clip.labelled == 5
    assert np.isnan(column(rows, "adjacent_truth")).tolist() == [True, False, True, True, False, False]
    assert clip.adjacent_excess == 0


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [(math.nan, "must be finite and in"), (1.5, "must be finite and in"), (-0.5, "must be finite and in")],
)
def test_a_value_that_is_no_probability_names_video_and_frame(value: float, said: str) -> None:
    predicted = np.zeros((HEIGHT, WIDTH), np.float32)
    predicted[3, 4] = value
    meter = ClipMeter("walk")
    with pytest.raises(ValueError, match=f"^walk, frame 7: a soft mask {said}"):
        meter.add(IMAGE, predicted, index=7, seconds=0.0, follows=False)


def test_other_sizes_and_orders_are_refused() -> None:
    meter = ClipMeter("walk")
    good = np.zeros((HEIGHT, WIDTH), np.float32)
    meter.add(IMAGE, good, index=1, seconds=0.0, follows=False)
    wrong = np.zeros((HEIGHT, WIDTH - 1), np.float32)
    with pytest.raises(ValueError, match="frame 2: a soft mask must be float32 of the image's size"):
        meter.add(IMAGE, wrong, index=2, seconds=0.0, follows=True)
    with pytest.raises(ValueError, match="frame 2: frames must have one size"):
        meter.add(IMAGE[:, 1:], wrong, index=2, seconds=0.0, follows=True)
    with pytest.raises(ValueError, match="frame 2: mask of the truth must be of the image's size"):
        meter.add(IMAGE, good, wrong > 0, index=2, seconds=0.0, follows=True)
    with pytest.raises(ValueError, match="frame 1: indices must rise, got 1 before"):
        meter.add(IMAGE, good, index=1, seconds=0.0, follows=True)
    assert len(meter.rows) == 1
    with pytest.raises(ValueError, match="empty has no frames"):
        ClipMeter("empty").finish()


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": math.nan}, {"ratio": 0.0}, {"bound": 1.5}, {"worst": -1}, {"apart": 0}]
)
def test_a_setting_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MeterConfig(**wrong)
