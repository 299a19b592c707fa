"""Boundary metrics: Boundary IoU (Cheng et al., CVPR 2021) and the boundary F-measure (Perazzi et al., CVPR 2016).

H, W: height and width in pixels; d: width of the band in pixels. Every mask is (H, W) bool.

    mask        boundary, d = 1      band, d = 1          contour
    . . . . .   . . . . .            x x x x x            x x x x .
    . # # # .   . x x x .            x x x x x            x . . x .
    . # # # .   . x . x .            x x . x x            x . . x .
    . # # # .   . x x x .            x x x x x            x x x x .
    . . . . .   . . . . .            x x x x x            . . . . .

Void pixels are background in both masks before anything is derived from them, as in the DAVIS evaluation: where void
cuts through a person, its edge is boundary of both masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation import packed
from evaluation.masks import check_mask, check_pair, ratio_of
from evaluation.packed import Plane

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What two masks of one image have in common: pixels of the masks, of their bands and of their interior bands.

    Scores are 1 where there is nothing to compare (empty and empty); the `raw` ones are NaN there.

    Attributes:
        ratio: band width as a part of the image diagonal.
        d: band width in pixels.
        mask: pixels in both masks, and in either.
        band: pixels in both bands, and in either; the image border is boundary (the paper's rule).
        interior: the same for interior bands; the image border is no boundary.
    """

    ratio: float
    d: int
    mask: tuple[int, int]
    band: tuple[int, int]
    interior: tuple[int, int]

    @property
    def iou(self) -> float:
        """Intersection over union, in [0, 1]."""
        return ratio_of(*self.mask, empty=1.0)

    @property
    def boundary_iou(self) -> float:
        """Boundary IoU, in [0, 1]."""
        return ratio_of(*self.band, empty=1.0)

    @property
    def boundary_iou_raw(self) -> float:
        """Boundary IoU; NaN where both bands are empty, as the authors' code has it."""
        return ratio_of(*self.band, empty=math.nan)

    @property
    def boundary_iou_interior(self) -> float:
        """Boundary IoU of the interior bands, in [0, 1]."""
        return ratio_of(*self.interior, empty=1.0)

    @property
    def boundary_iou_interior_raw(self) -> float:
        """Boundary IoU of the interior bands; NaN where both are empty (both masks empty, or both full)."""
        return ratio_of(*self.interior, empty=math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Contour pixels of two masks, and how many of each lie near the contour of the other.

    Attributes:
        tolerance: how far "near" is, in pixels (Euclidean).
        predicted: contour pixels of the prediction.
        predicted_near: those near the contour of the truth.
        true: contour pixels of the truth.
        true_near: those near the contour of the prediction.
    """

    tolerance: int
    predicted: int
    predicted_near: int
    true: int
    true_near: int

    @property
    def precision(self) -> float:
        """Share of the predicted contour that is near the true one; 1 where nothing is predicted."""
        return ratio_of(self.predicted_near, self.predicted, empty=1.0)

    @property
    def recall(self) -> float:
        """Share of the true contour that is near the predicted one; 1 where the truth has none."""
        return ratio_of(self.true_near, self.true, empty=1.0)

    @property
    def f(self) -> float:
        """Boundary F-measure, in [0, 1]: 1 where both contours are empty, 0 where one is."""
        precision, recall = self.precision, self.recall
        if precision + recall == 0:
            return 0.0
        return 2 * precision * recall / (precision + recall)

    @property
    def f_raw(self) -> float:
        """Boundary F-measure; NaN where both contours are empty."""
        return self.f if self.predicted or self.true else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionTruth:
    """A truth made ready for `overlap` with many predictions; made by `region_truth`. Planes as in `evaluation.packed`.

    Attributes:
        shape: (H, W).
        ratio: band width as a part of the image diagonal.
        void: pixels that do not count, or None.
        mask: the truth without void.
        interior: its interior band.
        band: its band.
        counts: pixels of the last three.
    """

    shape: tuple[int, int]
    ratio: float
    void: Plane | None
    mask: Plane
    interior: Plane
    band: Plane
    counts: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContourTruth:
    """A truth made ready for `match` with many predictions; made by `contour_truth`. Planes as in `evaluation.packed`.

    Attributes:
        shape: (H, W).
        tolerance: in pixels.
        void: pixels that do not count, or None.
        contour: of the truth without void.
        near: the pixels near it.
        count: pixels of the contour.
    """

    shape: tuple[int, int]
    tolerance: int
    void: Plane | None
    contour: Plane
    near: Plane
    count: int


def band_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Band width in pixels of an image: max(1, round(ratio * diagonal)), half to even, as the official code has it.

    Raises:
        ValueError: a side below 1, or a ratio that is not finite and > 0.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be >= 1, got {height} and {width}")
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"ratio must be finite and > 0, got {ratio}")
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def contour_tolerance(height: int, width: int, bound: float = 0.008) -> int:
    """Tolerance of the boundary F-measure in pixels: ceil(bound * diagonal) where bound < 1, else `bound` pixels.

    Raises:
        ValueError: a side below 1, a bound that is not finite and > 0, or above 1 and no whole number.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be >= 1, got {height} and {width}")
    if not (math.isfinite(bound) and bound > 0) or (bound > 1 and bound != int(bound)):
        raise ValueError(f"bound must be a part of the diagonal in (0, 1) or a whole number of pixels, got {bound}")
    return int(bound) if bound >= 1 else math.ceil(bound * float(np.linalg.norm((height, width))))


def boundary(mask: Mask, d: int, *, border: bool = True) -> Mask:
    """The pixels of a mask within Chebyshev distance `d` of the background.

    Args:
        mask: (H, W) bool.
        d: pixels, >= 1.
        border: True as in the paper: outside the image is background, so the image border is boundary.
            False (the interior variant): outside is foreground, so a person cut by the frame has no band along it.

    Returns:
        (H, W) bool, a subset of `mask`.

    Raises:
        ValueError: no mask, or d < 1.
    """
    _check(mask, d)
    plane = packed.pack(mask)
    interior = _interior(plane, mask.shape[1], d)
    return packed.unpack(_bordered(plane, interior, mask.shape, d) if border else interior, mask.shape[1])


def band(mask: Mask, d: int) -> Mask:
    """The pixels within Chebyshev distance `d` of the contour, on both sides: dilation minus erosion.

    The image border is no contour. Returns (H, W) bool, equal for a mask and its complement.

    Raises:
        ValueError: no mask, or d < 1.
    """
    _check(mask, d)
    width = mask.shape[1]
    plane = packed.pack(mask)
    outer = packed.invert(plane, width)
    return packed.unpack(_interior(plane, width, d) | _interior(outer, width, d), width)


def region_truth(mask: Mask, ratio: float = 0.02, *, void: Mask | None = None) -> RegionTruth:
    """Packs the truth of an image, to be compared with any number of predictions.

    Args:
        mask: (H, W) bool.
        ratio: band width as a part of the image diagonal.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image, or a bad ratio.
    """
    plane, hidden = _packed(mask, void)
    height, width = mask.shape
    d = band_width(height, width, ratio)
    interior = _interior(plane, width, d)
    border = _bordered(plane, interior, mask.shape, d)
    counts = packed.count(plane), packed.count(interior), packed.count(border)
    return RegionTruth(
        shape=mask.shape, ratio=ratio, void=hidden, mask=plane, interior=interior, band=border, counts=counts
    )


def overlap(prediction: Mask, truth: RegionTruth) -> Overlap:
    """IoU, Boundary IoU and its interior variant of a prediction, in one pass over packed bits.

    Raises:
        ValueError: the prediction is no mask of the truth's image.
    """
    plane = _pack_as(prediction, truth.shape, truth.void)
    d = band_width(*truth.shape, truth.ratio)
    interior = _interior(plane, truth.shape[1], d)
    planes = plane, interior, _bordered(plane, interior, truth.shape, d)
    sides = zip(planes, (truth.mask, truth.interior, truth.band), truth.counts, strict=True)
    mask, inner, border = (_common(mine, theirs, count) for mine, theirs, count in sides)
    return Overlap(ratio=truth.ratio, d=d, mask=mask, interior=inner, band=border)


def iou_and_boundary_iou(a: Mask, b: Mask, ratio: float = 0.02, *, void: Mask | None = None) -> Overlap:
    """IoU, Boundary IoU and its interior variant of two masks; symmetric.

    For one truth and many predictions use `region_truth` and `overlap`.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        ratio: band width as a part of the image diagonal.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image, or a bad ratio.
    """
    check_pair(a, b)
    return overlap(a, region_truth(b, ratio, void=void))


def boundary_iou(a: Mask, b: Mask, ratio: float = 0.02, *, border: bool = True, void: Mask | None = None) -> float:
    """IoU of the boundary bands of two masks of one image, in [0, 1]; 1 where both bands are empty.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        ratio: band width as a part of the image diagonal.
        border: see `boundary`.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image, or a bad ratio.
    """
    both = iou_and_boundary_iou(a, b, ratio, void=void)
    return both.boundary_iou if border else both.boundary_iou_interior


def contour_truth(mask: Mask, bound: float = 0.008, *, void: Mask | None = None) -> ContourTruth:
    """Prepares the contour of a truth, to be matched with any number of predictions.

    Args:
        mask: (H, W) bool.
        bound: see `contour_tolerance`.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image, or a bad bound.
    """
    plane, hidden = _packed(mask, void)
    height, width = mask.shape
    tolerance = contour_tolerance(height, width, bound)
    edge = packed.contour(plane, width)
    near = packed.dilate(edge, width, tolerance)
    return ContourTruth(
        shape=mask.shape, tolerance=tolerance, void=hidden, contour=edge, near=near, count=packed.count(edge)
    )


def match(prediction: Mask, truth: ContourTruth) -> Match:
    """Matches the contour of a prediction with that of the truth, both ways.

    Raises:
        ValueError: the prediction is no mask of the truth's image.
    """
    width = truth.shape[1]
    edge = packed.contour(_pack_as(prediction, truth.shape, truth.void), width)
    near = packed.dilate(edge, width, truth.tolerance)
    return Match(
        tolerance=truth.tolerance,
        predicted=packed.count(edge),
        predicted_near=packed.count(edge & truth.near),
        true=truth.count,
        true_near=packed.count(truth.contour & near),
    )


def boundary_f(prediction: Mask, truth: Mask, bound: float = 0.008, *, void: Mask | None = None) -> float:
    """Boundary F-measure (DAVIS F), in [0, 1]: 1 where both contours are empty, 0 where one is; symmetric.

    The parts, and the tolerance, are in `match(prediction, contour_truth(truth, bound, void=void))`.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.
        bound: see `contour_tolerance`.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image, or a bad bound.
    """
    check_pair(prediction, truth)
    return match(prediction, contour_truth(truth, bound, void=void)).f


def _check(mask: Mask, d: int) -> None:
    check_mask(mask, "of a boundary")
    if d < 1:
        raise ValueError(f"d must be >= 1 pixel, got {d}")


def _packed(mask: Mask, void: Mask | None) -> tuple[Plane, Plane | None]:
    """The plane of a mask without void, and that of void."""
    check_mask(mask, "of the truth")
    if void is None:
        return packed.pack(mask), None
    check_mask(void, "void")
    hidden = packed.pack(void)
    return _pack_as(mask, void.shape, hidden), hidden


def _pack_as(mask: Mask, shape: tuple[int, int], void: Plane | None) -> Plane:
    """The plane of a mask without void, which is of an image of this shape."""
    check_mask(mask, "of the prediction")
    if mask.shape != shape:
        raise ValueError(f"masks must have one shape, got {mask.shape} and {shape}; resize one before")
    plane = packed.pack(mask)
    return plane if void is None else plane & ~void


def _interior(plane: Plane, width: int, d: int) -> Plane:
    return plane ^ packed.erode(plane, width, d)


def _bordered(plane: Plane, interior: Plane, shape: tuple[int, int], d: int) -> Plane:
    """The band where outside is background: the interior band, and what is near the image border."""
    return interior | (plane & packed.frame(*shape, d))


def _common(a: Plane, b: Plane, in_b: int) -> tuple[int, int]:
    """Pixels in both and pixels in either."""
    in_a = packed.count(a)
    common = packed.count_common(a, b, in_a, in_b)
    return common, in_a + in_b - common
