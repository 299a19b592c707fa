"""Weights made of a formula of their names, so that a reference need not store them."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn


def formula(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The value of the parameter or buffer ``key``: nothing is 0 or 1, so every layer has a say."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + 1000003 * seed))
    z = rng.standard_normal(math.prod(shape)).reshape(shape)
    se = ".se." in key
    if key.endswith("running_mean"):
        z = 0.1 * z
    elif key.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif len(shape) == 4:
        z = z * math.sqrt((8 if se else 1.5) / math.prod(shape[1:]))
    elif len(shape) == 2:
        z = z * math.sqrt(1 / shape[1])
    elif key.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = (1.0 if se else 0.1) * z
    return torch.from_numpy(z.astype(np.float32))


def fill(model: nn.Module, seed: int = 0) -> None:
    """Give ``model`` the formula's weights."""
    state = model.state_dict()
    model.load_state_dict(
        {
            key: torch.zeros_like(value) if not value.is_floating_point() else formula(key, tuple(value.shape), seed)
            for key, value in state.items()
        }
    )
