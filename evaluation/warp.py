"""Masks moved along optical flow: the warp, where the flow is believed, and the comparison of a pair.

H, W: height and width in pixels. Masks are (H, W) bool. A flow field is (H, W, 2) float32, (dx, dy) in pixels, as
`evaluation.flow` gives it: what is at x in its own frame is at x + flow(x) in the other.

    frame t        grid of frame t + 1     W(x) = P(x + F(x))
    . . # # .      F = (1, 0)              . # # . .
    . . # # .                              . # # . .
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.masks import check_mask, check_pair, overlap_counts, ratio_of

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]

#: Pixels worked on at a time, so that they stay in the processor's cache: of a check, and of a warp.
_CHECKED, _WARPED = 1 << 15, 1 << 17
_DOUBTFUL = 1 / 16  # OpenCV's remap is off by less, in every version since 4


@dataclass(frozen=True, kw_only=True, slots=True)
class WarpConfig:
    """How masks are warped along a flow, and where the flow is believed; stored with every result.

    A flow is believed where |Fb + Ff(x + Fb)|² < relative (|Fb|² + |Ff|²) + absolute (Sundaram et al., ECCV 2010).

    Attributes:
        relative: share of the squared motions.
        absolute: in square pixels.
        nearest: sample the nearest pixel; otherwise bilinear, set where the value is >= 0.5.
    """

    relative: float = 0.01
    absolute: float = 0.5
    nearest: bool = False

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"warp.{name} must be finite and >= 0, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Warped:
    """The mask of frame t, moved along the flow, compared with that of frame t + 1.

    Attributes:
        raw: pixels in both and in either, where the flow stays inside the image.
        masked: the same, where the flow is believed too.
        inside: pixels where the flow stays inside the image.
        valid: pixels where it is believed too.
        pixels: of the image.
    """

    raw: tuple[int, int]
    masked: tuple[int, int]
    inside: int
    valid: int
    pixels: int

    @property
    def raw_iou(self) -> float:
        """IoU inside; 1 where the union is empty, NaN where nothing is inside."""
        return ratio_of(*self.raw, empty=1.0) if self.inside else math.nan

    @property
    def masked_iou(self) -> float:
        """IoU where the flow is believed; 1 where the union is empty, NaN where it is believed nowhere."""
        return ratio_of(*self.masked, empty=1.0) if self.valid else math.nan

    @property
    def valid_share(self) -> float:
        """Share of the image where the flow is believed, in [0, 1]."""
        return self.valid / self.pixels


def warp(mask: Mask, flow: Field, *, nearest: bool = False) -> tuple[Mask, Mask]:
    """A mask pulled along a flow: W(x) = mask(x + flow(x)); outside the image is background.

    Args:
        mask: (H, W) bool, of the frame that the flow points to.
        flow: (H, W, 2), on the grid of the result.
        nearest: sample the nearest pixel; otherwise bilinear, set where the value is >= 0.5.

    Returns:
        The warped mask, and where the sampled point lies inside the image: (H, W) bool each.

    Raises:
        ValueError: no mask, or a flow of another size or that is not finite.
    """
    check_mask(mask, "to warp")
    _check_flow(flow, mask.shape)
    warped, inside = np.empty_like(mask), np.empty_like(mask)
    plane = np.ascontiguousarray(mask).astype(np.float32)
    for strip in _strips(flow, _WARPED):
        x, y = _targets((flow[strip, :, 0], flow[strip, :, 1]), strip)
        if nearest:
            x, y = np.floor(x + np.float32(0.5)), np.floor(y + np.float32(0.5))
        inside[strip] = _inside(x, y, mask.shape)
        warped[strip] = _nearest(mask, x, y, inside[strip]) if nearest else _bilinear(plane, x, y)
    return warped, inside


def believed(forward: Field, backward: Field, config: WarpConfig | None = None) -> Mask:
    """Where following `backward` and then `forward` leads back: (H, W) bool on the grid of `backward`.

    Args:
        forward: (H, W, 2), on the grid of frame t, to t + 1.
        backward: (H, W, 2), on the grid of frame t + 1, to t.
        config: the thresholds.

    Raises:
        ValueError: flows of two sizes, or that are not finite.
    """
    config = config or WarpConfig()
    _check_flow(backward, backward.shape[:2])
    _check_flow(forward, backward.shape[:2])
    found = np.empty(backward.shape[:2], np.bool_)
    ahead = np.ascontiguousarray(forward[..., 0]), np.ascontiguousarray(forward[..., 1])
    for strip in _strips(backward, _CHECKED):
        back = np.ascontiguousarray(backward[strip, :, 0]), np.ascontiguousarray(backward[strip, :, 1])
        x, y = _targets(back, strip)
        there = [cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for part in ahead]
        astray = (back[0] + there[0]) ** 2 + (back[1] + there[1]) ** 2
        motion = back[0] ** 2 + back[1] ** 2 + there[0] ** 2 + there[1] ** 2
        near = astray < config.relative * motion + config.absolute
        found[strip] = near & _inside(x, y, found.shape)
    return found


def warped_pair(
    previous: Mask, current: Mask, backward: Field, valid: Mask, config: WarpConfig | None = None
) -> Warped:
    """The mask of frame t, moved along the flow, compared with that of frame t + 1.

    Args:
        previous: (H, W) bool, of frame t.
        current: (H, W) bool, of frame t + 1.
        backward: (H, W, 2), on the grid of frame t + 1, to t.
        valid: (H, W) bool, `believed` of both flows; the same for all masks of the pair.
        config: how to sample.

    Raises:
        ValueError: masks or flow of several sizes.
    """
    check_pair(previous, current)
    check_pair(current, valid)
    moved, inside = warp(previous, backward, nearest=config is not None and config.nearest)
    valid = valid & inside
    return Warped(
        raw=overlap_counts(moved, current, ~inside),
        masked=overlap_counts(moved, current, ~valid),
        inside=int(np.count_nonzero(inside)),
        valid=int(np.count_nonzero(valid)),
        pixels=current.size,
    )


def _check_flow(flow: Field, shape: tuple[int, ...]) -> None:
    if flow.shape != (*shape, 2):
        raise ValueError(f"flow must have shape {(*shape, 2)}, got {flow.shape}; compute it at the size of the masks")
    if not np.isfinite(flow).all():
        raise ValueError("flow must be finite, got NaN or infinity")


def _strips(flow: Field, pixels: int) -> Iterator[slice]:
    """Rows to work on together."""
    height, width = flow.shape[:2]
    rows = max(1, pixels // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _targets(flow: tuple[Field, Field], strip: slice) -> tuple[Field, Field]:
    """The points x + flow(x) of some rows."""
    x = np.arange(flow[0].shape[1], dtype=np.float32) + flow[0]
    return x, np.arange(strip.start, strip.stop, dtype=np.float32)[:, None] + flow[1]


def _inside(x: Field, y: Field, shape: tuple[int, ...]) -> Mask:
    return np.asarray((x >= 0) & (x <= shape[1] - 1) & (y >= 0) & (y <= shape[0] - 1), np.bool_)


def _nearest(mask: Mask, column: Field, row: Field, inside: Mask) -> Mask:
    warped = np.zeros(inside.shape, np.bool_)
    warped[inside] = mask[row[inside].astype(np.intp), column[inside].astype(np.intp)]
    return warped


def _bilinear(plane: Field, x: Field, y: Field) -> Mask:
    """Set where the value is >= 0.5: OpenCV for all, and the formula itself where OpenCV's rounding might decide."""
    value = cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=[0])
    warped = np.asarray(value >= 0.5, np.bool_)
    near = (value > 0.5 - _DOUBTFUL) & (value < 0.5 + _DOUBTFUL)
    warped[near] = _values(plane, x[near], y[near]) >= 0.5
    return warped


def _values(plane: Field, x: Field, y: Field) -> Field:
    """Bilinear values at points, (N,) each; outside is 0."""
    height, width = plane.shape
    left, top = np.floor(x), np.floor(y)
    ax, ay = x - left, y - top

    def at(row: Field, column: Field) -> Field:
        known = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        where = np.where(known, row, 0).astype(np.intp), np.where(known, column, 0).astype(np.intp)
        return np.asarray(plane[where] * known, np.float32)

    upper = at(top, left) * (1 - ax) * (1 - ay) + at(top, left + 1) * ax * (1 - ay)
    lower = at(top + 1, left) * (1 - ax) * ay + at(top + 1, left + 1) * ax * ay
    return np.asarray(upper + lower, np.float32)
