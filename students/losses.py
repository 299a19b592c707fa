"""Cross entropy of a mask, once over all pixels and once over the bands of both boundaries; and Dice.

Letters: B batch, H and W sides. ``M`` a boolean mask, ``d`` a band width in pixels.
inner(M) is what an erosion by ``d`` takes away, outer(M) what a dilation by ``d`` adds; distances are Chebyshev.
The truth's band alone (a trimap) never sees a false island far away; the prediction's band does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

RATIO = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """The valid part of one padded image: its bounding box, as slices, and its diagonal in pixels."""

    rows: slice
    columns: slice
    diagonal: float


def sliding_minimum(values: Tensor, window: int, dim: int) -> Tensor:
    """Minimum of each ``window`` consecutive entries along ``dim``, by doubling: log2(window) steps.

    The result is ``window - 1`` entries shorter than ``values`` along ``dim``.
    """
    reach = 1
    while reach < window:
        step = min(reach, window - reach)
        length = values.shape[dim] - step
        values = torch.minimum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        reach += step
    return values


def erode(mask: Tensor, distance: int) -> Tensor:
    """(..., H, W) bool: pixels whose Chebyshev distance to background or to the outside exceeds ``distance``."""
    return _shrink(mask, distance, outside=0)


def dilate(mask: Tensor, distance: int) -> Tensor:
    """(..., H, W) bool: pixels within a Chebyshev distance of the mask; the outside adds nothing."""
    return ~_shrink(~mask, distance, outside=1)


def _shrink(mask: Tensor, distance: int, *, outside: int) -> Tensor:
    padded = functional.pad(mask.to(torch.uint8), (distance,) * 4, value=outside)
    window = 2 * distance + 1
    return sliding_minimum(sliding_minimum(padded, window, -1), window, -2).bool()


def inner(mask: Tensor, distance: int) -> Tensor:
    """(..., H, W) bool: the part of the mask within ``distance`` of background or of the image border."""
    return mask & ~erode(mask, distance)


def band(truth: Tensor, prediction: Tensor, distance: int, *, two_sided: bool = True) -> Tensor:
    """(..., H, W) bool: the union of both masks' bands.

    Two-sided: all pixels within ``distance`` of the other side of a mask's outline; the image border is no outline, so
    a person cut by the frame gets no band along it. Else the inner bands alone, along the image border too.
    """
    if two_sided:
        return _both_sides(truth, distance) | _both_sides(prediction, distance)
    return inner(truth, distance) | inner(prediction, distance)


def _both_sides(mask: Tensor, distance: int) -> Tensor:
    return dilate(mask, distance) & ~_shrink(mask, distance, outside=1)


def band_width(height: int, width: int, ratio: float = RATIO) -> int:
    """Pixels of a band in an image of this size: ``ratio`` of the diagonal, rounded half to even, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_band(logits: Tensor, target: Tensor, ignore: Tensor, *, two_sided: bool = True) -> Tensor:
    """(B, 1, H, W) bool: the pixels of the boundary term of ``segmentation_loss``; arguments as there.

    Pixels outside the bounding box of the valid ones are padding: neither mask reaches there and the width of the band
    follows from the valid box. Ignored pixels inside the box keep the target's value in both masks.
    """
    bands = torch.zeros_like(ignore)
    with torch.no_grad():
        for i in range(len(logits)):
            frame = _frame(~ignore[i, 0])
            if frame is None:
                continue
            window = (i, 0, frame.rows, frame.columns)
            truth = target[window] > 0.5
            prediction = torch.where(ignore[window], truth, logits[window] > 0)
            distance = max(1, round(RATIO * frame.diagonal))
            bands[window] = band(truth, prediction, distance, two_sided=two_sided) & ~ignore[window]
    return bands


def _frame(valid: Tensor) -> _Frame | None:
    rows, columns = valid.any(dim=1).nonzero(), valid.any(dim=0).nonzero()
    if len(rows) == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    return _Frame(rows=slice(top, bottom), columns=slice(left, right), diagonal=math.hypot(bottom - top, right - left))


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    ignore: Tensor,
    weight: Tensor,
    boundary: float,
    *,
    two_sided: bool = True,
    dice: float = 0.0,
) -> Tensor:
    """Mean cross entropy of valid pixels plus ``boundary`` times that of the band plus ``dice`` times soft Dice.

    A float32 scalar. Each image contributes its own mean times its weight; the sum is divided by the number of images
    that have such pixels, so padding an image (with ``ignore``) changes nothing. No gradient flows through the choice
    of the band.

    Args:
        logits: (B, 1, H, W), any floating dtype; computed in float32.
        target: (B, 1, H, W) float in [0, 1].
        ignore: (B, 1, H, W) bool, pixels without a say.
        weight: (B,) float >= 0.
        boundary: Factor of the boundary term, >= 0; 0 leaves it out.
        two_sided: Whether bands also reach outwards; without it a hole deep inside gets no boundary gradient.
        dice: Factor of ``soft_dice``, >= 0; 0 leaves it out.

    Raises:
        ValueError: If shapes differ, or ``boundary`` or ``dice`` is negative.
    """
    if not logits.shape == target.shape == ignore.shape or logits.ndim != 4 or logits.shape[1] != 1:
        shapes = f"{tuple(logits.shape)}, {tuple(target.shape)}, {tuple(ignore.shape)}"
        raise ValueError(f"logits, target and ignore must share one shape (B, 1, H, W), got {shapes}")
    if weight.shape != logits.shape[:1] or not (boundary >= 0 and dice >= 0):
        found = f"{tuple(weight.shape)}, {boundary} and {dice}"
        raise ValueError(f"weight must be (B,), boundary >= 0 and dice >= 0, got {found}")
    entropy = functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    total = _weighted_mean(entropy, ~ignore, weight)
    if boundary:
        pixels = boundary_band(logits.detach(), target, ignore, two_sided=two_sided)
        total = total + boundary * _weighted_mean(entropy, pixels, weight)
    if dice:
        losses = soft_dice(logits, target, ignore)
        total = total + dice * (losses * weight.float()).sum() / _images_with(~ignore)
    return total


def soft_dice(logits: Tensor, target: Tensor, ignore: Tensor) -> Tensor:
    """1 − (2 Σ p g + 1) / (Σ p² + Σ g² + 1) of each image, p = sigmoid(logits), g the target; (B,) float32 in [0, 1].

    The sums run over valid pixels. The 1, a pixel, makes it 0 where neither holds a person; without valid pixels it
    is 0. It weighs a small person as much as a large one (Milletari et al., V-Net, 2016, section 3).

    Args:
        logits: (B, 1, H, W), any floating dtype; computed in float32.
        target: (B, 1, H, W) float in [0, 1].
        ignore: (B, 1, H, W) bool.
    """
    predicted = torch.where(ignore, 0.0, torch.sigmoid(logits.float()))
    true = torch.where(ignore, 0.0, target.float())
    both = (predicted * true).sum(dim=(1, 2, 3))
    squares = (predicted.square() + true.square()).sum(dim=(1, 2, 3))
    return 1 - (2 * both + 1) / (squares + 1)


def _weighted_mean(entropy: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Mean over the images that have pixels of weight × (mean over the image's pixels)."""
    counts = pixels.sum(dim=(1, 2, 3))
    means = torch.where(pixels, entropy, 0.0).sum(dim=(1, 2, 3)) / counts.clamp(min=1)
    return (means * weight.float()).sum() / _images_with(pixels)


def _images_with(pixels: Tensor) -> Tensor:
    """How many images have such pixels, at least 1."""
    return pixels.any(dim=(1, 2, 3)).sum().clamp(min=1)
