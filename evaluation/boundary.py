"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021).

H, W: height and width in pixels; d: width of the band in pixels. Every mask is (H, W) bool.

    mask        boundary, d = 1      band, d = 1
    . . . . .   . . . . .            x x x x x
    . # # # .   . x x x .            x x x x x
    . # # # .   . x . x .            x x . x x
    . # # # .   . x x x .            x x x x x
    . . . . .   . . . . .            x x x x x
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.masks import check_mask, check_pair


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


def boundary(mask: NDArray[np.bool_], d: int, *, border: bool = True) -> NDArray[np.bool_]:
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
    return mask & ~_erode(mask, d, border=border)


def band(mask: NDArray[np.bool_], d: int) -> NDArray[np.bool_]:
    """The pixels within Chebyshev distance `d` of the contour, on both sides: dilation minus erosion.

    The image border is no contour. Returns (H, W) bool, equal for a mask and its complement.

    Raises:
        ValueError: no mask, or d < 1.
    """
    _check(mask, d)
    return ~_erode(~mask, d, border=False) & ~_erode(mask, d, border=False)


def boundary_iou(a: NDArray[np.bool_], b: NDArray[np.bool_], ratio: float = 0.02, *, border: bool = True) -> float:
    """IoU of the boundary bands of two masks of one image, in [0, 1]; 1 where both bands are empty.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        ratio: band width as a part of the image diagonal.
        border: see `boundary`.

    Raises:
        ValueError: not masks of one image, or a bad ratio.
    """
    check_pair(a, b)
    height, width = a.shape
    d = band_width(height, width, ratio)
    band_a, band_b = boundary(a, d, border=border), boundary(b, d, border=border)
    union = np.count_nonzero(band_a | band_b)
    return np.count_nonzero(band_a & band_b) / union if union else 1.0


def _check(mask: NDArray[np.bool_], d: int) -> None:
    check_mask(mask, "of a boundary")
    if d < 1:
        raise ValueError(f"d must be >= 1 pixel, got {d}")


def _erode(mask: NDArray[np.bool_], d: int, *, border: bool) -> NDArray[np.bool_]:
    """The pixels whose square of 2d + 1 pixels lies in the mask; outside the image is background where `border`."""
    reach = min(d, max(mask.shape))  # a longer reach leaves the image on both sides: nothing more to find
    plane = np.ascontiguousarray(mask).view(np.uint8)
    square = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(
        plane, square, iterations=reach, borderType=cv2.BORDER_CONSTANT, borderValue=0 if border else 255
    )
    return np.not_equal(eroded.reshape(mask.shape), 0)
