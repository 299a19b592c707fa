"""Which frames are taken: keys that order the frames of a cell, and a pass over all shards that needs no shuffle.

::

    cell = (group, cluster, prototype, class of attribute 1, …)     counted by the assign stage
    plan_quotas(cells, counts, N)    how many from each cell        see ``quota``
    threshold(quota, count)          which keys survive in a shard  map-only, a little too many
    trim(cells, keys, ids, quotas)   the smallest keys of each cell exactly the quotas
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_WHOLE = float(1 << 64)


def selection_key(seed: int, sample_id: str) -> int:
    """A 64-bit hash that orders the frames of a cell; independent of runner, shard and order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{sample_id}".encode(), digest_size=8).digest(), "big")


def cell_name(path: Sequence[int], classes: Sequence[str | None]) -> str:
    """The canonical name of a cell: a JSON list of its path and its attribute classes."""
    return json.dumps([*path, *classes], ensure_ascii=False, separators=(",", ":"))


def threshold(quota: int, count: int) -> float:
    """The share of the hash range that holds the ``quota`` smallest of ``count`` hashes, except once in 10^9 draws."""
    if quota >= count:
        return 1.0
    if quota == 0:
        return 0.0
    share = quota / count
    return min(1.0, share + 6 * math.sqrt(share / count) + 18 / count)


def survives(keys: NDArray[np.uint64], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which frames stay in the map-only pass: (N,) keys against (N,) thresholds of their cells."""
    return (keys.astype(np.float64) / _WHOLE < thresholds) | (thresholds >= 1)


def trim(
    cells: Sequence[str], keys: NDArray[np.uint64], ids: Sequence[str], wanted: Mapping[str, int]
) -> NDArray[np.int64]:
    """Indices of the survivors to take: in each cell the ``wanted`` many with the smallest keys (ties: smaller id).

    Raises:
        ValueError: a cell has fewer survivors than wanted; its threshold was too low.
    """
    names, cell, held = np.unique(np.array(cells, dtype=object), return_inverse=True, return_counts=True)
    found = dict(zip(names.tolist(), held.tolist(), strict=True))
    for name, number in wanted.items():
        if found.get(name, 0) < number:
            raise ValueError(f"cell {name}: {found.get(name, 0)} of {number} frames survived the map-only pass")
    quota = np.array([wanted.get(name, 0) for name in names], np.int64)
    order = np.lexsort((np.array(ids, dtype=np.str_), keys, cell))
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(held) - held, held)
    return np.sort(order[rank < quota[cell[order]]])


def first_of_each(
    cells: NDArray[np.int64], keys: NDArray[np.uint64], most: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The frames of one source that stay under a cap: in turn the next smallest key of every cell.

    Args:
        cells: (N,) number of the cell of each frame.
        keys: (N,) their selection keys.
        most: the cap; 0 = none.

    Returns:
        (N,) which stay, and (N,) the share of its cell's frames that stays, 0..1.
    """
    if most == 0 or len(cells) <= most:
        return np.ones(len(cells), bool), np.ones(len(cells))
    _, cell, held = np.unique(cells, return_inverse=True, return_counts=True)
    order = np.lexsort((keys, cell))
    rank = np.empty(len(cells), np.int64)
    rank[order] = np.arange(len(cells)) - np.repeat(np.cumsum(held) - held, held)
    stays = np.zeros(len(cells), bool)
    stays[np.lexsort((keys, rank))[:most]] = True
    return stays, (np.bincount(cell[stays], minlength=len(held)) / held)[cell]


def turns(sources: Sequence[str], keys: NDArray[np.uint64]) -> list[str]:
    """For each frame which of its source it is in the order of keys: "1", "2-3", "4-7", …; (N,) sources and keys."""
    _, source, held = np.unique(np.array(sources, dtype=object), return_inverse=True, return_counts=True)
    order = np.lexsort((keys, source))
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(np.cumsum(held) - held, held)
    names = ["1", *(f"{1 << n}-{(2 << n) - 1}" for n in range(1, 62))]
    return [names[int(r + 1).bit_length() - 1] for r in rank]
