"""3x3 convolutions with a quarter of the multiplications (Lavin & Gray, "Fast Algorithms for CNNs", 2016).

The convolution of a tile of (m + 2)^2 pixels with a 3x3 filter is a product of polynomials, so it may be computed from
their values at m + 1 points and infinity: transform tile and filter, multiply value by value, transform back. Summed
over channels the middle step is (m + 2)^2 matrix products, and the first and the last are small matrix products, too:

    y = A [ (G w G') * (B d B') ] A'        for m = 4: 36 instead of 144 multiplications per 4x4 outputs

Letters: N images, C channels, H and W rows and columns, K outputs, T tiles, S = (m + 2)^2 values of a tile.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

#: Points by m. For 4, Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution" (2020): a
#: third of the error of 0, +-1, +-2.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}

#: Tiles worked on at once, about: few enough for what is between the steps to stay in the cache.
_TILES = 160


def transforms(m: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A' (m, n), G (n, 3), B' (n, n) with n = m + 2, for one axis (Toom-Cook)."""
    points, n = POINTS[m], m + 2
    back, filters, tile = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = np.poly([p for p in points if p != point])[::-1]
        back[:, i] = point ** np.arange(m)
        filters[i] = point ** np.arange(3) / (others * point ** np.arange(n - 1)).sum()
        tile[i, : n - 1] = others
    back[-1, -1] = filters[-1, -1] = 1.0
    tile[-1] = np.poly(points)[::-1]
    return back, filters, tile


def transform_filter(weight: Tensor, m: int) -> Tensor:
    """Filters (K, C, 3, 3) -> (S, C, K) float64."""
    g = torch.from_numpy(transforms(m)[1])
    outputs, inputs = weight.shape[:2]
    values = torch.einsum("ia,kcab,jb->ijck", g, weight.detach().double().cpu(), g)
    return values.reshape(-1, inputs, outputs).contiguous()


def transform_matrices(m: int) -> tuple[Tensor, Tensor]:
    """Both axes at once: of a tile (S, S), and back to its outputs (m * m, S); float64."""
    back, _, tile = transforms(m)
    return torch.from_numpy(np.kron(tile, tile)), torch.from_numpy(np.kron(back, back))


def convolve(x: Tensor, values: Tensor, bias: Tensor, tile: Tensor, back: Tensor) -> Tensor:
    """The convolution of (N, C, H, W), padded by 1, in channels-last memory and the type of the matrices.

    Args:
        x: The map.
        values: `transform_filter`, (S, C, K).
        bias: (K,).
        tile: The first of `transform_matrices`.
        back: The second.
    """
    height, width = x.shape[2:]
    n = round(len(tile) ** 0.5)
    m = n - 2
    down, across = -(-height // m), -(-width // m)
    around = (0, 0, 1, across * m + 1 - width, 1, down * m + 1 - height)
    padded = functional.pad(x.permute(0, 2, 3, 1), around)
    out = x.new_empty(len(x), down, m, across, m, values.shape[2])
    step = max(1, _TILES // across)
    for image, found in zip(padded, out, strict=True):
        for first in range(0, down, step):
            rows = min(step, down - first)
            part = image[first * m : (first + rows) * m + 2]
            tiles = _tiles(part, (n, n, rows, across))
            products = torch.bmm(torch.mm(tile, tiles).view(n * n, rows * across, -1), values)
            products[n + 1] += bias  # the values at (1, 1), which go into each output once
            outputs = torch.mm(back, products.view(n * n, -1)).view(m, m, rows, across, -1)
            found[first : first + rows] = outputs.permute(2, 0, 3, 1, 4)
    return out.view(len(x), down * m, across * m, -1)[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(part: Tensor, shape: Sequence[int]) -> Tensor:
    """(rows, columns, C) -> (S, T * C): overlapping tiles, m apart."""
    n, _, _, _ = shape
    down, across, one = part.stride()
    step = n - 2
    views = part.as_strided((*shape, part.shape[2]), (down, across, step * down, step * across, one))
    return views.reshape(n * n, -1)
