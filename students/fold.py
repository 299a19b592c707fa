"""A student that takes luma, chroma and its previous mask, made of one that takes RGB without losing its weights.

Cameras and video decoders give Y, U, V; a tracker feeds back the mask of the frame before. With W the stem's weights,
m and s the normalisation's mean and deviation and A the matrix from YUV to RGB, the stem sees

    W ((A yuv − m) / s) = (W/s A) yuv − Σ W m / s

so W/s A are the new weights, and the constant is moved into the running mean of the normalisation that follows. The
mask's weights start at 0: an empty mask gives the RGB network. This is exact up to the border where padding repeats or
reflects pixels; zero is not the same colour in YUV as in normalised RGB.

Values as in ``yuv``; the mask lies in [0, 1].
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from students.yuv import YUV_TO_RGB

STEM_WEIGHT, STEM_MEAN = "stem.0.weight", "stem.1.running_mean"

Triple = tuple[float, float, float]


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
    matrix = torch.tensor(YUV_TO_RGB.tolist(), dtype=torch.float64, device=old.device)
    scaled = old.double() / deviation
    turned = torch.einsum("orij,rc->ocij", scaled, matrix)
    weight = torch.cat((turned, torch.zeros_like(turned[:, :1])), dim=1)
    shifted = running.double() + (scaled * mean).sum(dim=(1, 2, 3))
    return {**state, STEM_WEIGHT: weight.to(old.dtype).contiguous(), STEM_MEAN: shifted.to(running.dtype)}
