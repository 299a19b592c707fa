"""Laws of thinning: what stays says why, and every frame that is left out has one that stands for it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.thin import ThinConfig, thin

OFF = ThinConfig(gap_seconds=0, still_seconds=0)


class Source:
    """Frames of a drawn source: uneven times, scenes, and a picture that stands, drifts or jumps."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.pts = np.cumsum(rng.choice([20_000, 200_000, 500_000, 3_000_000], count, p=[0.2, 0.6, 0.15, 0.05]))
        self.scenes = np.cumsum(rng.random(count) < 0.05).astype(np.int32)
        steps = rng.choice([0.0, 0.02, 0.1, 1.0], (count, 1)) * rng.normal(size=(count, 6))
        self.vectors: NDArray[np.floating] = 1 + np.cumsum(steps, axis=0)

    def thin(self, config: ThinConfig) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        return thin(self.pts, self.scenes, self.vectors, config)


SOURCES = st.builds(Source, st.integers(0, 1 << 32), st.integers(0, 60))
CONFIGS = st.builds(
    ThinConfig,
    gap_seconds=st.sampled_from([0, 0.2, 0.5, 2]),
    moved=st.sampled_from([0, 0.001, 0.01, 0.5, 2]),
    still_seconds=st.sampled_from([0, 0.5, 2, 10]),
)


def distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return max(0.0, 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)))


@given(SOURCES, CONFIGS)
def test_the_first_frame_of_a_source_and_of_a_scene_stays(source: Source, config: ThinConfig) -> None:
    kept, _ = source.thin(config)
    begins = np.flatnonzero(np.diff(source.scenes, prepend=-1))
    assert kept[begins].all()


@given(SOURCES, CONFIGS)
def test_every_frame_has_the_fate_that_the_rule_gives_it(source: Source, config: ThinConfig) -> None:
    kept, _ = source.thin(config)
    for frame in range(1, len(kept)):
        last = np.flatnonzero(kept[:frame])[-1]
        if source.scenes[frame] != source.scenes[last]:
            continue
        seconds = (source.pts[frame] - source.pts[last]) / 1e6
        moved = distance(source.vectors[frame], source.vectors[last])
        if abs(moved - config.moved) < 1e-9:
            continue  # decided by the last bit
        due = seconds >= config.still_seconds or moved >= config.moved
        assert kept[frame] == (seconds >= config.gap_seconds and due)


@given(SOURCES, CONFIGS)
def test_no_two_of_a_scene_are_nearer_than_the_gap_and_none_is_farther_than_the_longest_wait(
    source: Source, config: ThinConfig
) -> None:
    kept, _ = source.thin(config)
    seconds = source.pts / 1e6
    stays = np.flatnonzero(kept)
    for a, b in itertools.pairwise(stays):
        assert source.scenes[a] != source.scenes[b] or seconds[b] - seconds[a] >= config.gap_seconds - 1e-9
    for frame in np.flatnonzero(~kept):
        last = stays[stays < frame][-1]
        assert seconds[frame] - seconds[last] < max(config.gap_seconds, config.still_seconds) + 1e-9
        assert source.scenes[frame] == source.scenes[last]


@given(SOURCES, CONFIGS)
def test_every_frame_is_represented_once(source: Source, config: ThinConfig) -> None:
    kept, stands_for = source.thin(config)
    assert stands_for.sum() == len(kept)
    assert ((stands_for > 0) == kept).all()
    stays = np.flatnonzero(kept)
    assert stands_for[stays].tolist() == np.diff(stays, append=len(kept)).tolist()


@given(SOURCES, CONFIGS)
def test_thinning_what_is_thinned_changes_nothing(source: Source, config: ThinConfig) -> None:
    kept, _ = source.thin(config)
    again, stands_for = thin(source.pts[kept], source.scenes[kept], source.vectors[kept], config)
    assert again.all()
    assert (stands_for == 1).all()


@given(SOURCES, CONFIGS, st.integers(-20, 20), st.integers(-(10**12), 10**12))
def test_the_length_of_vectors_and_the_start_of_time_do_not_matter(
    source: Source, config: ThinConfig, power: int, start: int
) -> None:
    kept, _ = source.thin(config)
    rescaled = source.vectors * 2.0**power
    assert (thin(source.pts + start, source.scenes, rescaled, config)[0] == kept).all()


@given(SOURCES, CONFIGS, st.integers(0, 60))
def test_what_comes_later_does_not_change_what_stayed(source: Source, config: ThinConfig, cut: int) -> None:
    whole = source.thin(config)[0]
    part = thin(source.pts[:cut], source.scenes[:cut], source.vectors[:cut], config)[0]
    assert (part == whole[:cut]).all()


@given(SOURCES)
def test_switched_off_every_frame_stays(source: Source) -> None:
    kept, stands_for = source.thin(OFF)
    assert kept.all()
    assert (stands_for == 1).all()


@given(SOURCES, CONFIGS)
def test_frames_without_a_time_all_stay(source: Source, config: ThinConfig) -> None:
    kept, stands_for = thin(None, source.scenes, source.vectors, config)
    assert kept.all()
    assert (stands_for == 1).all()
    assert kept.dtype == np.bool_
    assert stands_for.dtype == np.int32


def test_a_table_of_cases() -> None:
    pts = np.array([0, 0.4, 0.6, 1.0, 1.2, 1.3, 2.6, 3.2, 4.6]) * 1e6
    scenes = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    angles = np.array([0, 1, 1, 1, 1, 1, 1, 1.5, 1.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    config = ThinConfig(gap_seconds=0.5, moved=0.1, still_seconds=3)
    # too soon, moved, too soon, alike, new scene, alike, moved, alike
    kept, stands_for = thin(pts.astype(np.int64), scenes, vectors, config)
    assert kept.tolist() == [True, False, True, False, False, True, False, True, False]
    assert stands_for.tolist() == [2, 0, 3, 0, 0, 2, 0, 2, 0]
    still = ThinConfig(gap_seconds=0.5, moved=0.1, still_seconds=1.3)
    assert thin(pts.astype(np.int64), scenes, vectors, still)[0].tolist() == [*kept[:6], True, True, True]


def test_the_order_of_summation_decides_nothing() -> None:
    """Frames exactly at the threshold stay, in whatever order their values stand."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 96)) + 1)
        pair = np.stack([a, b]).astype(np.float16)
        moved = min(2.0, distance(*pair.astype(np.float64)))
        found = set()
        for order in (np.arange(96), np.arange(96)[::-1], rng.permutation(96)):
            config = ThinConfig(gap_seconds=0.5, moved=moved, still_seconds=9)
            found.add(bool(thin(np.array([0, 600_000]), np.zeros(2, np.int32), pair[:, order], config)[0][1]))
        assert len(found) == 1


def test_times_that_do_not_grow_are_refused() -> None:
    with pytest.raises(ValueError, match="times of the frames of a source must grow"):
        thin(np.array([0, 5, 5]), np.zeros(3, np.int32), np.ones((3, 2)), OFF)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gap_seconds": -0.1}, r"thin.gap_seconds must be >= 0 and finite, got -0.1"),
        ({"still_seconds": float("inf")}, r"thin.still_seconds must be >= 0 and finite, got inf"),
        ({"still_seconds": float("nan")}, r"thin.still_seconds must be >= 0 and finite, got nan"),
        ({"moved": 2.1}, r"thin.moved must be in \[0, 2\], got 2.1"),
        ({"moved": float("nan")}, r"thin.moved must be in \[0, 2\], got nan"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThinConfig(**values)
