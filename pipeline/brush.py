"""Soft shapes and the brush that paints them on a canvas whose fourth channel is the mask of people."""

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]
Points = NDArray[np.float64]
Bone = tuple[Points, Points, float, float]  # start, end and the radius at each

# OpenCV's fixed point: sixteenths of a pixel, counted from the middle of the first pixel
_SHIFT: Final = 4
_FINE: Final = 16.0
_CENTRE: Final = 7.5
TURNS: Final = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
_CIRCLE: Final = np.stack([np.cos(TURNS), np.sin(TURNS)], axis=1)
_HALF: Final = np.linspace(-np.pi / 2, np.pi / 2, 7)
_ARC: Final = np.stack([np.cos(_HALF), np.sin(_HALF)], axis=1)
# (share of the size, brightness) from the rim of a part to its middle: what makes a flat shape look round
_ROUND: Final = ((1.0, 0.80), (0.88, 0.92), (0.66, 1.03))
THIN: Final = ((1.0, 0.80), (0.68, 1.0))


def ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    """`(24, 2)` points of an ellipse."""
    return _CIRCLE * (rx, ry) + (x, y)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """`(4, 2)` corners of an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def capsule(start: Points, end: Points, radius: float, end_radius: float) -> Points:
    """`(14, 2)` outline of a limb from `start` to `end` that tapers from `radius` to `end_radius`."""
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    cos, sin = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    far = _ARC @ np.array([(cos, sin), (-sin, cos)])
    return np.concatenate([end + far * end_radius, start - far * radius])


def smooth(points: Points) -> Points:
    """Round the corners of a closed polygon `(N, 2)` to `(4N, 2)`: two rounds of corner cutting (Chaikin 1974)."""
    for _ in range(2):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def shade(paint: RGB, gain: float) -> RGB:
    """`paint` made darker (`gain` below 1) or lighter."""
    red, green, blue = (min(255, round(c * gain)) for c in paint)
    return red, green, blue


def blend(first: RGB, second: RGB, share: float) -> RGB:
    """The colour `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@dataclass(frozen=True, kw_only=True, slots=True)
class Brush:
    """Paints shapes given in a space of its own.

    Attributes:
        canvas: `(H, W, 4) uint8`, RGB and the person mask (255 person, 0 not), painted in place.
        axes: `(2, 2)` linear part of the way from that space to pixels.
        origin: `(2,)` pixels of its origin.
        mark: 255 where this paint is a person, else 0.
        light: where volumes are brightest, -1 (left) to 1.
    """

    canvas: NDArray[np.uint8]
    axes: Points
    origin: Points
    mark: int = 0
    light: float = 0.0

    @property
    def scale(self) -> float:
        """Pixels per unit."""
        return math.hypot(float(self.axes[0, 0]), float(self.axes[1, 0]))

    def moved(self, x: float, y: float, angle: float = 0.0, scale: float = 1.0) -> "Brush":
        """A brush whose origin is this one's `(x, y)`, turned by `angle` radians and enlarged by `scale`."""
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        axes = self.axes @ np.array([(cos, -sin), (sin, cos)])
        origin = self.axes @ np.array((x, y)) + self.origin
        return Brush(canvas=self.canvas, axes=axes, origin=origin, mark=self.mark, light=self.light)

    def as_thing(self) -> "Brush":
        """The same brush for what is no person, so that it takes pixels from the mask."""
        return Brush(canvas=self.canvas, axes=self.axes, origin=self.origin, mark=0, light=self.light)

    def _pixels(self, points: Points) -> Points:
        pixels: Points = points @ self.axes.T + self.origin
        return pixels

    def _paint(self, pixels: Points, paint: RGB) -> None:
        fixed = (pixels * _FINE - _CENTRE).astype(np.int32)
        cv2.fillPoly(self.canvas, [fixed], (*paint, self.mark), cv2.LINE_AA, _SHIFT)

    def fill(self, points: Points, paint: RGB) -> None:
        """Fill the closed polygon `points` `(N, 2)`."""
        self._paint(self._pixels(points), paint)

    def solid(self, points: Points, paint: RGB, bands: tuple[tuple[float, float], ...] = _ROUND) -> None:
        """Fill a roughly convex polygon as a rounded volume: darker at the rim, brightest towards the light."""
        pixels = self._pixels(points)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        if (high < 0).any() or low[0] > self.canvas.shape[1] or low[1] > self.canvas.shape[0]:
            return
        small = float(np.min(high - low)) < 5.0
        middle = (low + high) / 2
        for size, gain in bands[-1:] if small else bands:
            centre = middle + (high - low) * (self.light * (1 - size) * 0.35, (size - 1) * 0.1)
            self._paint(pixels if small else (pixels - middle) * size + centre, shade(paint, gain))

    def limb(self, paint: RGB, *parts: Bone) -> None:
        """Paint the parts of one limb as one rounded volume, with no rim where they meet."""
        small = min(part[3] for part in parts) * self.scale < 2.2
        for size, gain in THIN[1:] if small else THIN:
            for start, end, radius, end_radius in parts:
                share = 1.0 if small else size
                self._paint(self._pixels(capsule(start, end, radius * share, end_radius * share)), shade(paint, gain))

    def stroke(self, points: Points, paint: RGB, width: float, *, closed: bool = False) -> None:
        """Draw a line of `width` units, at least one pixel, through `points` `(N, 2)`."""
        fixed = (self._pixels(points) * _FINE - _CENTRE).astype(np.int32)
        thick = max(1, round(width * self.scale))
        cv2.polylines(self.canvas, [fixed], closed, (*paint, self.mark), thick, cv2.LINE_AA, _SHIFT)
