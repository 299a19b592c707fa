"""A student that takes luma, chroma and its previous mask, made of one that takes RGB without losing its weights.

Cameras and video decoders give Y, U, V; a tracker feeds back the mask of the frame before. With W the stem's weights,
m and s the normalisation's mean and deviation and A the matrix from YUV to RGB, the stem sees

    W ((A yuv − m) / s) = (W/s A) yuv − Σ W m / s

so W/s A are the new weights, and the constant is moved into the running mean of the normalisation that follows. The
mask's weights start at 0: an empty mask gives the RGB network. This is exact up to the border where padding repeats or
reflects pixels; zero is not the same colour in YUV as in normalised RGB.

Values: R, G, B and Y in [0, 1]; U and V in [−.5, .5], 0 for grey (bytes: (b − 128) / 255); mask in [0, 1].
Source: ITU-R BT.601-7, full range as in JFIF.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

RED, BLUE = 0.299, 0.114
GREEN = 1 - RED - BLUE
YUV_TO_RGB = (
    (1.0, 0.0, 2 * (1 - RED)),
    (1.0, -2 * BLUE * (1 - BLUE) / GREEN, -2 * RED * (1 - RED) / GREEN),
    (1.0, 2 * (1 - BLUE), 0.0),
)
STEM_WEIGHT, STEM_MEAN = "stem.0.weight", "stem.1.running_mean"

Triple = tuple[float, float, float]


def rgb_to_yuv(images: Tensor) -> Tensor:
    """(B, 3, H, W) float RGB in [0, 1] to Y in [0, 1], U and V in [−.5, .5], of the same shape.

    Raises:
        ValueError: If there are not 3 channels.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    red, green, blue = images.unbind(1)
    luma = RED * red + GREEN * green + BLUE * blue
    return torch.stack((luma, (blue - luma) / (2 * (1 - BLUE)), (red - luma) / (2 * (1 - RED))), dim=1)


def join_mask(images: Tensor, mask: Tensor | None) -> Tensor:
    """RGB images (B, 3, H, W) and the previous mask (B, 1, H, W), both in [0, 1], as the input (B, 4, H, W).

    Without a mask (the first frame) the fourth channel is empty.

    Raises:
        ValueError: If the shapes do not fit.
    """
    yuv = rgb_to_yuv(images)
    if mask is None:
        mask = torch.zeros_like(yuv[:, :1])
    wanted = (images.shape[0], 1, *images.shape[2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(f"mask must have shape {wanted}, got {tuple(mask.shape)}")
    return torch.cat((yuv, mask), dim=1)


def fold_yuv(state: Mapping[str, Tensor], normalisation: tuple[Triple, Triple]) -> dict[str, Tensor]:
    """Weights of an RGB student as those of a student with 4 channels: Y, U, V, previous mask.

    Args:
        state: State dict of a student with ``in_channels=3``; not changed, what is not of the stem is shared.
        normalisation: Mean and deviation per channel of that student, ``config.normalisation``.

    Raises:
        ValueError: If the state has no stem of 3 channels.
    """
    if STEM_WEIGHT not in state or STEM_MEAN not in state or state[STEM_WEIGHT].shape[1] != 3:
        found = tuple(state[STEM_WEIGHT].shape) if STEM_WEIGHT in state else "none"
        raise ValueError(f"{STEM_WEIGHT} must have shape (C, 3, k, k) to be folded, got {found}")
    old, running = state[STEM_WEIGHT], state[STEM_MEAN]
    mean, deviation = torch.tensor(normalisation, dtype=torch.float64, device=old.device)[:, :, None, None]
    matrix = torch.tensor(YUV_TO_RGB, dtype=torch.float64, device=old.device)
    scaled = old.double() / deviation
    turned = torch.einsum("orij,rc->ocij", scaled, matrix)
    weight = torch.cat((turned, torch.zeros_like(turned[:, :1])), dim=1)
    shifted = running.double() + (scaled * mean).sum(dim=(1, 2, 3))
    return {**state, STEM_WEIGHT: weight.to(old.dtype).contiguous(), STEM_MEAN: shifted.to(running.dtype)}
