"""Textbook intervals and tests.

Beside the resampled ones they take every video for a person of its own; the judge's counts have no people.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]


def t_quantile(level: float, freedom: float) -> float:
    """The quantile of Student's t at probability `level`, with `freedom` degrees of freedom > 0."""
    return float(special.stdtrit(freedom, level))


def t_interval(mean: float, error: float, freedom: float, level: float) -> tuple[float, float]:
    """The interval mean ± t · error, at confidence `level`."""
    half = t_quantile(0.5 + level / 2, freedom) * error
    return mean - half, mean + half


def wilson_interval(part: int, whole: int, level: float) -> tuple[float, float]:
    """The interval of a share `part / whole` at confidence `level` (Wilson 1927); (0, 1) where the whole is 0."""
    if not whole:
        return 0.0, 1.0
    z = float(special.ndtri(0.5 + level / 2))
    share = part / whole
    middle, spread = share + z**2 / (2 * whole), z * math.sqrt(share * (1 - share) / whole + z**2 / (4 * whole**2))
    low, high = ((middle + side * spread) / (1 + z**2 / whole) for side in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def beta_interval(a: float, b: float, level: float) -> tuple[float, float]:
    """The central interval of the Beta distribution with parameters a, b > 0 that has probability `level`."""
    low, high = (float(special.betaincinv(a, b, 0.5 + side * level / 2)) for side in (-1, 1))
    return low, high


def welch_p(a: Floats, b: Floats) -> float | None:
    """Two-sided p-value of equal means (Welch 1947); None where a side has below two values or neither has spread.

    Args:
        a: (n,) values.
        b: (m,) values.
    """
    if min(len(a), len(b)) < 2:
        return None
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if u + v <= 0:
        return None
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return float(2 * special.stdtr(freedom, -abs(a.mean() - b.mean()) / math.sqrt(u + v)))


def holm(p: Floats) -> Floats:
    """p-values adjusted for the family-wise error rate (Holm 1979), (K,)."""
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return out


def benjamini_hochberg(p: Floats) -> Floats:
    """p-values adjusted for the false discovery rate (Benjamini & Hochberg 1995), (K,)."""
    order = np.argsort(-p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)))
    return out
