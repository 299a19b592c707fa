"""Laws of motion grids: known shifts are measured per second and per diagonal, and the camera's part is told apart."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.frames import ScanConfig
from pipeline.motion import (
    FLOW_SIDE,
    GRID,
    GRID_BYTES,
    border_weights,
    camera_part,
    decode_grid,
    encode_grid,
    motion_grid,
    speeds,
)
from tests.pipeline.media import EVERY, jpeg, scanned, texture, video

EVEN = np.ones(GRID)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def grid_of(function: Any, height: int = 120, width: int = 160) -> NDArray[np.float16]:
    """A grid with the velocity that a function gives to each place, in diagonals from the centre."""
    diagonal = math.hypot(height, width)
    y, x = np.meshgrid(
        ((np.arange(16) + 0.5) / 16 - 0.5) * height / diagonal,
        ((np.arange(16) + 0.5) / 16 - 0.5) * width / diagonal,
        indexing="ij",
    )
    return np.stack(function(x, y), axis=-1).astype(np.float16)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-2, 1), (0, -4)])
def test_a_shift_is_measured_in_diagonals_per_second(dx: int, dy: int) -> None:
    whole = noise(200, 260)
    before, after = whole[40:160, 40:200], whole[40 - dy : 160 - dy, 40 - dx : 200 - dx]
    inner = motion_grid(before, after, 0.5)[3:-3, 3:-3].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(inner * 0.5 * math.hypot(120, 160), (dx, dy), atol=0.3)


def test_half_the_time_is_twice_the_speed() -> None:
    before, after = noise(90, 160, 1), np.roll(noise(90, 160, 1), 2, axis=1)
    slow, fast = (motion_grid(before, after, s).astype(float) for s in (0.1, 0.05))
    np.testing.assert_allclose(fast, 2 * slow, rtol=2e-3, atol=1e-3)


def test_a_mirrored_pair_has_the_mirrored_grid() -> None:
    before, after = noise(96, 160, 2), np.roll(noise(96, 160, 2), 3, axis=1)
    ours, mirrored = motion_grid(before, after, 1.0), motion_grid(before[:, ::-1], after[:, ::-1], 1.0)
    difference = mirrored[:, ::-1].astype(float) * (-1, 1) - ours
    assert np.median(np.abs(difference)) < 0.002


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.sampled_from([1e-6, 0.04, 3600.0]))
def test_a_grid_is_finite_for_any_size_and_time(height: int, width: int, seed: int, seconds: float) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    grid = motion_grid(before, after, seconds)
    assert (grid.shape, grid.dtype) == ((16, 16, 2), np.float16)
    assert np.isfinite(grid).all()
    np.testing.assert_array_equal(decode_grid(encode_grid(grid)), grid)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_between_two_frames_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds between two frames must be > 0"):
        motion_grid(noise(32, 32), noise(32, 32), seconds)


@pytest.mark.parametrize("data", [b"", b"0" * (GRID_BYTES - 1), b"\xff" * GRID_BYTES])
def test_bytes_that_are_no_grid_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a motion grid must"):
        decode_grid(data)


# The camera -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(*(st.floats(-1, 1) for _ in range(4)))
def test_pan_zoom_and_roll_are_all_the_cameras(a: float, b: float, zoom: float, roll: float) -> None:
    grid = grid_of(lambda x, y: (a + zoom * x - roll * y, b + zoom * y + roll * x))
    left = speeds(grid - camera_part(grid, EVEN, 120, 160))
    assert left.max() < 0.03


@settings(max_examples=25)
@given(st.floats(-0.5, 0.5), st.floats(0.2, 2), st.integers(2, 8), st.integers(2, 8))
def test_what_moves_in_less_than_half_of_the_frame_is_not_the_cameras(
    pan: float, own: float, top: int, left: int
) -> None:
    grid = grid_of(lambda x, y: (pan + 0 * x, 0 * y))
    grid[top : top + 6, left : left + 6] += np.float16(own)
    camera = camera_part(grid, EVEN, 120, 160)
    np.testing.assert_allclose(camera[..., 0], pan, atol=0.02)
    beside = speeds(grid - camera)
    assert beside[top : top + 6, left : left + 6].min() > own
    assert np.delete(beside, np.s_[top : top + 6], axis=0).max() < 0.03


def test_cells_without_weight_do_not_count() -> None:
    grid = grid_of(lambda x, y: (0 * x + 1, 0 * y))
    grid[:2] = 0
    weights = np.zeros(GRID)
    weights[:2] = 1
    assert speeds(camera_part(grid, weights, 90, 160)).max() < 1e-6
    assert speeds(camera_part(grid, np.zeros(GRID), 90, 160)).max() == 0
    assert border_weights().min() > 0
    np.testing.assert_array_equal(border_weights(), border_weights()[:, ::-1])


# In a scan ------------------------------------------------------------------------------------------------------------


def pan_speed(step: int, ticks: int, scale: int = 1) -> float:
    """Median speed of the camera in a video that pans by so many pixels every so many thirtieths of a second."""
    wide = noise(96 * scale, 800 * scale, 5)
    wide = np.asarray(cv2.resize(noise(96, 800, 5), (800 * scale, 96 * scale)), np.uint8) if scale > 1 else wide
    pictures = [wide[:, i * step * scale :][:, : 160 * scale] for i in range(12)]
    frames, _ = scanned(video(pictures, times=[i * ticks for i in range(12)]), EVERY)
    grids = [frame.motion_grid for frame in frames if frame.motion_grid is not None]
    return float(np.median([speeds(camera_part(grid, EVEN, 96, 160)).mean() for grid in grids]))


def test_neither_frame_rate_nor_resolution_changes_the_speed() -> None:
    speed = 2 * 30 / math.hypot(96, 160)
    for measured in (pan_speed(2, 1), pan_speed(4, 2), pan_speed(2, 1, scale=3)):
        assert measured == pytest.approx(speed, rel=0.1)


def test_stills_first_frames_and_first_frames_of_scenes_have_no_grid() -> None:
    assert scanned(jpeg(1))[0][0].motion_grid is None
    pictures = [np.roll(texture(seed), step, axis=1) for seed in (1, 2) for step in range(5)]
    frames, _ = scanned(video(pictures), EVERY)
    assert [frame.scene for frame in frames] == [0] * 5 + [1] * 5
    assert [frame.motion_grid is None for frame in frames] == ([True] + [False] * 4) * 2


def test_only_taken_frames_cost_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("pipeline.motion.motion_grid", lambda *a: calls.append(a))
    frames, tally = scanned(video([np.roll(texture(3), 2 * i, axis=1) for i in range(31)]), ScanConfig(still=0.0))
    assert (len(frames), tally.read) == (6, 31)
    assert len(calls) == 5
    assert all(max(before.shape) <= FLOW_SIDE for before, _, _ in calls)
    assert [seconds for _, _, seconds in calls] == pytest.approx([1 / 30] * 5, abs=1e-5)
