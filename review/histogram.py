"""How a column of numbers is spread: bins whose ranges, asked for again, find the very rows that they counted."""

import math

import numpy as np
from numpy.typing import NDArray

from manifests.release import Json
from review.coding import Codes

WHOLE = ("mask_components", "n_persons")
"""Columns of whole numbers."""
OPEN = (*WHOLE, "sampling_weight", "cluster_distance")
"""Columns that are not shares: their bins follow the values, without the last half percent, which has its own bin."""
SLICES = 12
"""Series that are drawn side by side; the smaller slices are added up to one more."""


def edges_of(name: str, values: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    """(bins' + 1,) ascending float64 edges, bins' <= bins: of the whole column, so that no filter moves them.

    Args:
        name: of the column.
        values: (N,) all of it, NaN where missing.
        bins: at most this many, >= 2.
    """
    found = values[~np.isnan(values)].astype(np.float64)
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    if name not in OPEN:
        return np.linspace(min(0.0, low), max(1.0, high), bins + 1)
    top = float(np.quantile(found, 0.995)) if len(found) else 1.0
    if name in WHOLE:
        step = max(1, math.ceil((top + 1 - low) / bins))
        inner = np.arange(low, max(top, low) + 1, step)
        return np.append(inner, max(high, inner[-1] + step))
    if high == low:
        return np.array([low, np.nextafter(low, math.inf) + 1.0])
    if top > low and high - low > 2 * (top - low):
        return np.append(np.linspace(low, top, bins), high)
    return np.linspace(low, high, bins + 1)


def in_range(values: NDArray[np.float32], low: float | None, high: float | None, top: float) -> NDArray[np.bool_]:
    """(N,) low <= x < high; x = high too where `high` reaches `top`, the last edge: the highest bin is closed."""
    inside = ~np.isnan(values)
    if low is not None:
        inside &= values >= np.float64(low)  # in double precision, as the edges are
    if high is not None:
        inside &= values <= np.float64(high) if high >= top else values < np.float64(high)
    return inside


def counts_of(
    name: str,
    values: NDArray[np.float32],
    edges: NDArray[np.float64],
    by: Codes | None,
) -> dict[str, Json]:
    """Rows per bin, for all values or for each value of `by`; every row is in one bin of one series, or missing.

    Args:
        name: of the column.
        values: (R,) of the rows asked for.
        edges: (bins + 1,) of `edges_of`.
        by: (R,) how to slice them; None for one series.
    """
    bins = len(edges) - 1
    missing = np.isnan(values)
    place = np.clip(np.searchsorted(edges, values.astype(np.float64), side="right") - 1, 0, bins - 1)
    place[missing] = bins
    codes = np.zeros(len(values), np.int64) if by is None else by.codes.astype(np.int64) + 1
    kinds: tuple[str | None, ...] = (None,) if by is None else (None, *by.values)
    table = np.bincount(codes * (bins + 1) + place, minlength=len(kinds) * (bins + 1)).reshape(len(kinds), bins + 1)
    return {
        "column": name,
        "edges": edges.tolist(),
        "series": _series(kinds, table, whole=by is None),
        "n": len(values),
        "missing": int(missing.sum()),
    }


def _series(kinds: tuple[str | None, ...], table: NDArray[np.int64], *, whole: bool) -> list[Json]:
    sizes = table.sum(1)
    order = [int(kind) for kind in np.argsort(-sizes, kind="stable") if sizes[kind] or whole]
    series = [_one(kinds[kind], table[kind]) for kind in order[:SLICES]]
    if more := order[SLICES:]:
        series.append({**_one(f"{len(more):,} more", table[more].sum(0)), "rest": True})
    return list(series)


def _one(value: str | None, counts: NDArray[np.int64]) -> dict[str, Json]:
    return {
        "value": value,
        "counts": counts[:-1].tolist(),
        "n": int(counts.sum()),
        "missing": int(counts[-1]),
    }
