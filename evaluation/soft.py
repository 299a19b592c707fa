"""Metrics of soft masks (alpha mattes): MAD, MSE, gradient error, dtSSD.

H, W: height and width in pixels. Every soft mask is (H, W) float32 in [0, 1]. Lower is better; 0 is equal.
Scales are those of the matting papers: MAD and MSE times 1000, dtSSD times 100, gradient error divided by 1000.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

Soft = NDArray[np.float32]


def mad(prediction: Soft, truth: Soft) -> float:
    """Mean absolute difference of two soft masks, times 1000.

    Raises:
        ValueError: not soft masks of one image.
    """
    _check(prediction=prediction, truth=truth)
    return float(np.abs(prediction - truth).mean() * 1e3)


def mse(prediction: Soft, truth: Soft) -> float:
    """Mean squared difference of two soft masks, times 1000.

    Raises:
        ValueError: not soft masks of one image.
    """
    _check(prediction=prediction, truth=truth)
    return float(((prediction - truth) ** 2).mean() * 1e3)


def gradient_error(prediction: Soft, truth: Soft) -> float:
    """Summed squared difference of gradient magnitudes, divided by 1000 (Rhemann et al., CVPR 2009); sigma 1.4.

    Raises:
        ValueError: not soft masks of one image.
    """
    _check(prediction=prediction, truth=truth)
    return float(((_gradient(prediction) - _gradient(truth)) ** 2).sum() / 1000)


def dtssd(previous: Soft, current: Soft, previous_truth: Soft, current_truth: Soft) -> float:
    """Root mean squared difference of the changes in time, times 100 (Erofeev et al., "dtSSD", BMVC 2015).

    The truth's own change is taken off, so motion as such costs nothing, and no optical flow is needed. A constant
    error costs nothing either: show it beside MAD.

    Raises:
        ValueError: not soft masks of one image.
    """
    _check(previous=previous, current=current, previous_truth=previous_truth, current_truth=current_truth)
    change = (current - previous) - (current_truth - previous_truth)
    return math.sqrt(float((change**2).sum(dtype=np.float64)) / change.size) * 100


def _check(**masks: Soft) -> None:
    shapes = {mask.shape for mask in masks.values()}
    for name, mask in masks.items():
        if mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"soft mask {name} must have shape (H, W) with H, W >= 1, got {mask.shape}")
        if mask.dtype != np.float32:
            raise ValueError(f"soft mask {name} must be float32 in [0, 1], got {mask.dtype}; convert it (uint8 / 255)")
        low, high = float(mask.min()), float(mask.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"soft mask {name} must be in [0, 1], got {low} to {high}")
    if len(shapes) > 1:
        raise ValueError(f"soft masks must have one shape, got {sorted(shapes)}; resize before")


def _gradient(mask: Soft) -> Soft:
    across, down = (
        cv2.filter2D(mask, -1, kernel, borderType=cv2.BORDER_REPLICATE) for kernel in (_kernel(), _kernel().T)
    )
    magnitude: Soft = np.sqrt(across**2 + down**2)
    return magnitude


@functools.cache
def _kernel(sigma: float = 1.4, smallest: float = 1e-2) -> NDArray[np.float64]:
    """A Gaussian along y times the derivative of one along x, of unit norm, cut where the Gaussian is `smallest`."""
    scale = math.sqrt(2 * math.pi) * sigma
    half = math.ceil(sigma * math.sqrt(-2 * math.log(scale * smallest)))
    x = np.arange(-half, half + 1)
    bell = np.exp(-(x**2) / (2 * sigma**2)) / scale
    kernel = np.outer(bell, -x * bell / sigma**2)
    kernel /= math.sqrt((kernel**2).sum())
    kernel.flags.writeable = False
    return kernel
