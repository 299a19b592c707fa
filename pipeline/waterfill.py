"""Water-filling: a budget spread over clusters as evenly as their sizes allow, level by level. Pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def water_fill(sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """The most even whole quotas that exceed no size.

    All vessels fill to one level; those with room left take one more each, the earlier first, until the budget is
    spent. So quotas never fall as the budget grows.

    Args:
        sizes: (C,) how much each holds, >= 0.
        budget: how much to spend, >= 0.

    Returns:
        (C,) quotas whose sum is the budget, or the sum of the sizes if that is smaller.

    Raises:
        ValueError: a size or the budget is negative.
    """
    if budget < 0 or (sizes < 0).any():
        raise ValueError(f"sizes and budget must be >= 0, got {sizes.min(initial=0)} and {budget}")
    if sizes.sum() <= budget:
        return np.array(sizes, np.int64)
    ascending = np.sort(sizes).astype(np.int64)
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    full = below + ascending * np.arange(len(ascending), 0, -1)  # spent when the level is at the i-th size
    i = int(np.searchsorted(full, budget, side="right"))
    level = (budget - below[i]) // (len(ascending) - i)
    quotas = np.minimum(sizes, level).astype(np.int64)
    quotas[np.flatnonzero(sizes > level)[: budget - quotas.sum()]] += 1
    return np.asarray(quotas, np.int64)


def nested_water_fill(paths: NDArray[np.int64], sizes: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """Water-filling down a tree: over the nodes of the first level, then each node's quota over its children.

    Args:
        paths: (C, L) the node of each leaf at each of L levels, coarse to fine; leaves with equal paths share a node.
        sizes: (C,) how much each leaf holds, >= 0.
        budget: how much to spend, >= 0.

    Returns:
        (C,) quotas of the leaves; sum and growth as in ``water_fill``.
    """
    if paths.shape[1] == 0 or not len(sizes):
        return water_fill(sizes, budget)
    nodes, node = np.unique(paths[:, 0], return_inverse=True)
    held = np.zeros(len(nodes), np.int64)
    np.add.at(held, node, sizes)
    out = np.zeros(len(sizes), np.int64)
    for number, quota in enumerate(water_fill(held, budget)):
        leaves = np.flatnonzero(node == number)
        out[leaves] = nested_water_fill(paths[leaves, 1:], sizes[leaves], int(quota))
    return out


def draw(cells: NDArray[np.int64], keys: NDArray[np.uint64], quotas: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows to take: in each cell the quota smallest keys (ties: the earlier row), ascending.

    Args:
        cells: (N,) cell of each row, 0..C-1.
        keys: (N,) a hash per row.
        quotas: (C,) how many of each cell, at most what it holds.
    """
    order = np.lexsort((keys, cells))
    sizes = np.bincount(cells, minlength=len(quotas))
    rank = np.arange(len(cells)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < quotas[cells[order]]])
