"""How a video moves around a sampled frame: a small grid of velocities, and the camera's part of it.

Velocities are (dx, dy) per second in parts of the frame's diagonal, x to the right and y down, so neither the frame
rate nor the resolution changes them. They lie on the grid of the sampled frame: a cell's velocity is that of what the
sampled frame shows there. Grid: 16 rows of 16 cells that cover the frame, whatever its aspect.

Where a surface has no texture (a blank wall) optical flow sees no motion, even of a moving camera; and a file that
shows every picture twice looks still at half of its frames.
"""

import math
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.flow import Frame, flow
from pipeline.video import Video

Grid = NDArray[np.float16]
Velocities = NDArray[np.float64]

GRID: Final = (16, 16)
GRID_BYTES: Final = GRID[0] * GRID[1] * 2 * 2
FLOW_SIDE: Final = 160
"""Long side, in pixels, of the frames that flow is computed of."""

_STORED = np.dtype("<f2")
_FASTEST = 1000.0  # diagonals per second; a file may put two frames a microsecond apart
_ROUNDS = 8
_TINY = 1e-3  # diagonals per second; below the noise of the flow


class Motion:
    """The grids of a video's frames that are asked for; of the others only the last is held, and none converted."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._last: tuple[av.VideoFrame, int, int] | None = None
        self._before: tuple[av.VideoFrame, int, int] | None = None

    def see(self, frame: av.VideoFrame, time_us: int, scene: int) -> None:
        """A decoded frame; every one, in order."""
        self._before, self._last = self._last, (frame, time_us, scene)

    def grid(self) -> Grid | None:
        """Of the frame seen last."""
        if self._before is None or self._last is None:
            return None
        before, since, scene_before = self._before
        frame, time_us, scene = self._last
        size = (frame.width, frame.height, frame.rotation)
        if scene != scene_before or size != (before.width, before.height, before.rotation):
            return None
        earlier, sampled = (self._video.reduced(picture, FLOW_SIDE) for picture in (before, frame))
        return motion_grid(earlier, sampled, (time_us - since) / 1e6)


def motion_grid(before: Frame, sampled: Frame, seconds: float) -> Grid:
    """The velocities of what a sampled frame shows, by dense inverse search (Kroeger et al., ECCV 2016).

    Args:
        before: (h, w, 3) uint8 RGB, an earlier frame.
        sampled: (h, w, 3) uint8 RGB.
        seconds: between them, > 0.

    Returns:
        (16, 16, 2) float16, diagonals per second, finite.

    Raises:
        ValueError: frames of two shapes, or no time between them.
    """
    if not seconds > 0:
        raise ValueError(f"seconds between two frames must be > 0, got {seconds}")
    height, width = sampled.shape[:2]
    back = flow(sampled, before)
    cells = np.asarray(cv2.resize(back, GRID[::-1], interpolation=cv2.INTER_AREA), np.float64)
    return np.clip(cells / (-seconds * math.hypot(height, width)), -_FASTEST, _FASTEST).astype(np.float16)


def encode_grid(grid: Grid) -> bytes:
    """A grid as the probe's column holds it: 1024 bytes, little-endian float16, row after row."""
    assert grid.shape == (*GRID, 2), grid.shape
    return grid.astype(_STORED).tobytes()


def decode_grid(data: bytes) -> Grid:
    """What `encode_grid` wrote.

    Raises:
        ValueError: another number of bytes, or values that are not finite.
    """
    if len(data) != GRID_BYTES:
        raise ValueError(f"a motion grid must have {GRID_BYTES} bytes, got {len(data)}; probe the source again")
    grid = np.frombuffer(data, _STORED).reshape(*GRID, 2).astype(np.float16)
    if not np.isfinite(grid).all():
        raise ValueError("a motion grid must be finite; probe the source again")
    return grid


def camera_part(grid: Grid, weights: NDArray[np.float64], height: int, width: int) -> Velocities:
    """The camera's part of a grid: the pan, zoom and roll that most of the weight agrees with.

    A similarity is fitted by iteratively reweighted least squares on the absolute deviation, so cells that move
    otherwise (less than half of the weight) hardly pull it.

    Args:
        grid: (16, 16, 2), diagonals per second.
        weights: (16, 16), >= 0: how far a cell is trusted to show the background. All zero: no camera motion.
        height: of the frame, in pixels.
        width: of the frame, in pixels.

    Returns:
        (16, 16, 2) float64, diagonals per second.
    """
    seen = grid.reshape(-1, 2).astype(np.float64)
    trust = weights.reshape(-1).astype(np.float64)
    if trust.sum() <= 0:
        return np.zeros((*GRID, 2))
    x, y = _places(height, width)
    zero, one = np.zeros_like(x), np.ones_like(x)
    design = np.stack([np.stack([one, zero, x, -y], 1), np.stack([zero, one, y, x], 1)], 1).reshape(-1, 4)
    start = np.array([_weighted_median(seen[:, axis], trust) for axis in (0, 1)])
    fitted = np.broadcast_to(start, seen.shape)
    for _ in range(_ROUNDS):
        pull = trust / np.maximum(np.linalg.norm(seen - fitted, axis=1), _TINY)
        fitted = (design @ _solve(design, seen.reshape(-1), np.repeat(pull, 2))).reshape(-1, 2)
    return np.asarray(fitted, np.float64).reshape(*GRID, 2)


def speeds(velocities: NDArray[np.floating]) -> Velocities:
    """(16, 16) float64 lengths of velocities (16, 16, 2)."""
    return np.asarray(np.hypot(velocities[..., 0].astype(np.float64), velocities[..., 1].astype(np.float64)))


def border_weights() -> NDArray[np.float64]:
    """(16, 16): 1 along the upper and side borders, where people are rare, 0.1 elsewhere; for want of a mask."""
    weights = np.full(GRID, 0.1)
    weights[:3] = 1
    weights[:12, :3] = 1
    weights[:12, -3:] = 1
    return weights


def _solve(design: Velocities, seen: Velocities, pull: Velocities) -> Velocities:
    """Weighted least squares; a faint ridge on zoom and roll keeps few cells solvable."""
    weighted = design * pull[:, None]
    normal = weighted.T @ design
    normal += np.diag([0.0, 0.0, 1e-4, 1e-4]) * max(normal[0, 0], 1e-12)
    return np.asarray(np.linalg.solve(normal, weighted.T @ seen))


def _places(height: int, width: int) -> tuple[Velocities, Velocities]:
    """The x and y of the cells' centres from the frame's centre, in diagonals; (256,) each."""
    diagonal = math.hypot(height, width)
    rows = ((np.arange(GRID[0]) + 0.5) / GRID[0] - 0.5) * height / diagonal
    columns = ((np.arange(GRID[1]) + 0.5) / GRID[1] - 0.5) * width / diagonal
    return np.tile(columns, GRID[0]), np.repeat(rows, GRID[1])


def _weighted_median(values: Velocities, weights: Velocities) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order[int(np.searchsorted(total, total[-1] / 2))]])
