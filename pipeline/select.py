"""Which frames are taken: exactly N, spread over the cluster tree and over attributes. Pure functions, no Beam.

::

    cell = (group, cluster, class of attribute 1, class of attribute 2, …)      counted by the assign stage
    quotas(cells, counts, N)      how many from each cell                       greedy on a concave objective
    threshold(quota, count)       which hashes survive in a shard               map-only, a little too many
    trim(cells, keys, quotas)     the smallest hashes of each cell              exactly the quotas

The objective is Σ over margins m of w_m Σ_v log(1 + n_mv), over the two levels of the tree and every attribute. It is
monotone and submodular, so greedy choice is within 1 - 1/e of the best (Nemhauser, Wolsey & Fisher 1978), and each
frame goes where the least has been taken so far. (Beyond 2,000 frames, 0.5 % are taken at once, for speed.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

_WHOLE = float(1 << 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectConfig:
    """Settings of the selection.

    Attributes:
        attributes: which attributes to balance; empty = all that are computed or given.
        group_weight: weight of an even spread over the groups of clusters.
        cluster_weight: weight of an even spread over the clusters.
        attribute_weight: weight of an even spread over the classes of each attribute.
    """

    attributes: tuple[str, ...] = field(default=())
    group_weight: float = 4.0
    cluster_weight: float = 4.0
    attribute_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("group_weight", "cluster_weight", "attribute_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"select.{name} must be finite and >= 0, got {getattr(self, name)}")
        if self.group_weight + self.cluster_weight + self.attribute_weight <= 0:
            raise ValueError("select: at least one of group_weight, cluster_weight, attribute_weight must be > 0")


def selection_key(seed: int, sample_id: str) -> int:
    """A 64-bit hash that orders the frames of a cell; independent of runner, shard and order."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{sample_id}".encode(), digest_size=8).digest(), "big")


def cell_name(path: Sequence[int], classes: Sequence[str | None]) -> str:
    """The canonical name of a cell: a JSON list of its path and its attribute classes."""
    return json.dumps([*path, *classes], ensure_ascii=False, separators=(",", ":"))


def quotas(counts: Mapping[str, int], target: int, config: SelectConfig) -> dict[str, int]:
    """How many frames to take from each cell; they sum to ``target`` exactly and exceed no cell.

    Args:
        counts: frames per cell (names by ``cell_name``; all of one shape).
        target: how many to take, >= 0.
        config: the weights.

    Returns:
        The quota of every cell; equal for any order of ``counts``.

    Raises:
        InputError: fewer frames exist than ``target``; the message says what the largest groups hold.
    """
    total = sum(counts.values())
    if target > total:
        raise InputError(shortfall(counts, target))
    names = sorted(name for name, count in counts.items() if count > 0)
    margins, weights = _margins(names, config)
    capacity = np.array([counts[name] for name in names], np.int64)
    return dict(zip(names, _greedy(margins, weights, capacity, target).tolist(), strict=True))


def shortfall(counts: Mapping[str, int], target: int) -> str:
    """The message for a target above what exists: how many frames each group of clusters and each class holds."""
    groups: dict[str, int] = {}
    for name, count in counts.items():
        key = f"group {json.loads(name)[0]}"
        groups[key] = groups.get(key, 0) + count
    listed = ", ".join(f"{k}: {v}" for k, v in sorted(groups.items(), key=lambda kv: (-kv[1], kv[0]))[:12])
    return (
        f"--target-size {target} is above what exists: {sum(counts.values())} different frames after decoding, "
        f"sampling and removal of duplicates ({listed or 'none'}); give more input, raise probe.scan.rate_hz, or "
        "lower the target"
    )


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
    order = sorted(range(len(cells)), key=lambda i: (cells[i], int(keys[i]), ids[i]))
    taken: dict[str, int] = {}
    chosen: list[int] = []
    for index in order:
        cell = cells[index]
        if taken.get(cell, 0) < wanted.get(cell, 0):
            taken[cell] = taken.get(cell, 0) + 1
            chosen.append(index)
    for cell, quota in wanted.items():
        if taken.get(cell, 0) < quota:
            raise ValueError(f"cell {cell}: {taken.get(cell, 0)} of {quota} frames survived the map-only pass")
    return np.array(sorted(chosen), np.int64)


def _margins(names: Sequence[str], config: SelectConfig) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(C, M) number of each cell's value in each margin (numbered over all margins), and (M,) weights."""
    parsed = [json.loads(name) for name in names]
    width = len(parsed[0]) if parsed else 0
    numbers: dict[tuple[int, str], int] = {}
    table = np.zeros((len(parsed), width), np.int64)
    for row, values in enumerate(parsed):
        for margin, value in enumerate(values):
            table[row, margin] = numbers.setdefault((margin, json.dumps(value)), len(numbers))
    weights = [config.group_weight, config.cluster_weight] + [config.attribute_weight] * (width - 2)
    return table, np.array(weights[:width], np.float64)


def _greedy(
    margins: NDArray[np.int64], weights: NDArray[np.float64], capacity: NDArray[np.int64], target: int
) -> NDArray[np.int64]:
    """Greedy: one frame at a time, from the 2,000th on one from each of the best cells, 0.5 % of what is taken at once.

    The picks do not depend on the target, so a smaller selection is
    part of a larger one.
    """
    taken = np.zeros(len(capacity), np.int64)
    filled = np.zeros(int(margins.max()) + 1 if margins.size else 0, np.int64)
    done = 0
    while done < target:
        gains = np.log1p(1.0 / (1.0 + filled[margins])) @ weights
        gains[taken >= capacity] = -1.0
        best = np.argsort(-np.round(gains, 12), kind="stable")[: 1 if done < 2000 else done // 200]
        best = best[gains[best] >= 0][: target - done]
        taken[best] += 1
        np.add.at(filled, margins[best].ravel(), 1)
        done += len(best)
    return taken
