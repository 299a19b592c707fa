"""Resampling of people, all videos of a person together: bootstrap-t intervals and family-wise tests.

B resamples, G subjects, K classes. A class is a set of videos; "the others" are all videos that are not in it.
One set of resamples serves every class and category, so that their errors keep their dependence.

Sources: Liang & Zeger 1986 (the cluster-robust error); Cameron, Gelbach & Miller 2008 (bootstrap-t over clusters);
Romano & Wolf 2005 (max-t step-down); Schuirmann 1987 (two one-sided tests).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_CHUNK = 1 << 22  # numbers of one working array: 32 MiB
_ROUNDING = 1e-12  # a variance below this part of its terms is rounding: the scores are all alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the statistics need of every subject.

    Attributes:
        sizes: (G, K), videos of a class of a subject.
        totals: (G, K), sum of their scores, less a constant near the mean of all (so that squares do not cancel).
        all_sizes: (G,), videos of a subject, >= 1.
        all_totals: (G,), sum of their scores less the constant.
    """

    sizes: Floats
    totals: Floats
    all_sizes: Floats
    all_totals: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Means, gaps and their errors; each (B, K), NaN where a class or the others are empty or of one subject.

    Attributes:
        mean: of the class, less the constant.
        mean_error: sqrt(g/(g-1) Σ_g (Σ residuals)²) / videos, g the subjects of the class.
        gap: mean of the class less that of the others.
        gap_error: sqrt(Σ_g (Σ residuals / videos of the class - Σ residuals of the others / videos of the others)²):
            right also where a person has videos on both sides.
    """

    mean: Floats
    mean_error: Floats
    gap: Floats
    gap_error: Floats


def subject_resamples(subjects: int, replicates: int, seed: int) -> NDArray[np.int16]:
    """How often each subject is drawn in each resample, with replacement: (B, G) int16, each row sums to G.

    Raises:
        ValueError: less than one subject or replicate.
    """
    if subjects < 1 or replicates < 1:
        raise ValueError(f"subjects and replicates must be >= 1, got {subjects} and {replicates}")
    rng = np.random.default_rng([seed, 1])
    out = np.empty((replicates, subjects), np.int16)
    for rows in _chunks(replicates, subjects):
        count = rows.stop - rows.start
        drawn = rng.integers(subjects, size=(count, subjects)) + subjects * np.arange(count)[:, None]
        out[rows] = np.bincount(drawn.ravel(), minlength=count * subjects).reshape(count, subjects)
    return out


def statistics(weights: NDArray[np.int16], sums: Sums) -> Statistics:
    """The statistics of every class where subject g counts ``weights[b, g]`` times.

    Args:
        weights: (B, G), whole numbers >= 0; one row of ones gives the statistics of the sample itself.
        sums: of G subjects and K classes.
    """
    shape = (len(weights), sums.sizes.shape[1])
    out = Statistics(mean=np.empty(shape), mean_error=np.empty(shape), gap=np.empty(shape), gap_error=np.empty(shape))
    for columns in _chunks(shape[1], 10 * len(sums.sizes)):
        part = Sums(
            sizes=sums.sizes[:, columns],
            totals=sums.totals[:, columns],
            all_sizes=sums.all_sizes,
            all_totals=sums.all_totals,
        )
        terms, ends = _products(part), _products_of_all(part)
        for rows in _chunks(shape[0], max(len(sums.sizes), terms.shape[1])):
            drawn = weights[rows].astype(np.float64)
            found = _from_products((drawn @ terms).reshape(len(drawn), 10, -1), (drawn @ ends)[:, :, None])
            for name, values in zip(("mean", "mean_error", "gap", "gap_error"), found, strict=True):
                getattr(out, name)[rows, columns] = values
    return out


def _products(sums: Sums) -> Floats:
    n, s, all_n, all_s = sums.sizes, sums.totals, sums.all_sizes[:, None], sums.all_totals[:, None]
    return np.concatenate(
        [n, s, s * s, s * n, n * n, (n > 0).astype(np.float64), s * all_s, s * all_n, n * all_s, n * all_n], axis=1
    )


def _products_of_all(sums: Sums) -> Floats:
    n, s = sums.all_sizes, sums.all_totals
    return np.stack([n, s, s * s, s * n, n * n], axis=1)


def _from_products(terms: Floats, ends: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, its error, gap, its error from sums over the drawn subjects; see `_products` for their order."""
    n, s, ss, sn, nn, g, s_all_s, s_all_n, n_all_s, n_all_n = terms.transpose(1, 0, 2)
    all_n, all_s, all_ss, all_sn, all_nn = ends.transpose(1, 0, 2)
    rest_ss, rest_nn = all_ss - 2 * s_all_s + ss, all_nn - 2 * n_all_n + nn
    rest_sn = all_sn - s_all_n - n_all_s + sn
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, rest = s / n, (all_s - s) / (all_n - n)
        own = _square_of_residuals(ss, sn, nn, mean)
        others = _square_of_residuals(rest_ss, rest_sn, rest_nn, rest)
        both = (s_all_s - ss) - rest * (s_all_n - sn) - mean * (n_all_s - sn) + mean * rest * (n_all_n - nn)
        mean_error = np.where(g > 1, np.sqrt(g / (g - 1) * own) / n, np.nan)
        scale = (ss + mean**2 * nn) / n**2 + (rest_ss + rest**2 * rest_nn) / (all_n - n) ** 2
        square = own / n**2 + others / (all_n - n) ** 2 - 2 * both / (n * (all_n - n))
        gap_error = np.sqrt(np.where(square > _ROUNDING * scale, square, 0.0 * square))
    return mean, mean_error, mean - rest, gap_error


def _square_of_residuals(ss: Floats, sn: Floats, nn: Floats, mean: Floats) -> Floats:
    """Σ_g (s_g - mean n_g)², from the sums of s², s n and n²."""
    square = ss - 2 * mean * sn + mean**2 * nn
    return np.where(square > _ROUNDING * (ss + mean**2 * nn), square, 0.0 * square)


def studentised(drawn: Floats, drawn_error: Floats, value: Floats) -> Floats:
    """The t of every resample: (drawn - value) / its own error, (B, K).

    Infinite where the error is 0 and the value moved, 0 where neither; NaN where the class is not in the resample.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (drawn - value) / drawn_error
    return np.where((drawn_error == 0) & (np.abs(drawn - value) <= _ROUNDING), 0.0, t)


def t_quantiles(t: Floats, level: float) -> tuple[Floats, Floats]:
    """The lower and upper quantile of each column that leave `level` between them: order statistics, NaN left out.

    Args:
        t: (B, K); a column without numbers gives NaN.
        level: of confidence, in (0, 1).
    """
    ordered = np.sort(t, axis=0)  # NaN last
    count = np.count_nonzero(~np.isnan(t), axis=0)
    below = np.clip(np.floor((count + 1) * (1 - level) / 2).astype(np.int64) - 1, 0, len(t) - 1)
    columns = np.arange(t.shape[1])
    return ordered[below, columns], ordered[np.clip(count - 1 - below, 0, len(t) - 1), columns]


def p_values(t: Floats, drawn: Floats) -> Floats:
    """Two-sided: (1 + resamples with |t*| >= |t|) / (B + 1), (K,). A NaN of a resample counts against the claim."""
    return np.asarray((1 + np.count_nonzero(~(np.abs(drawn) < np.abs(t)), axis=0)) / (len(drawn) + 1))


def max_t(drawn: Floats) -> Floats:
    """The largest |t*| of each resample, (B,); NaN counts as infinite."""
    return np.asarray(np.nan_to_num(np.abs(drawn), nan=np.inf).max(axis=1, initial=0.0))


def single_step(t: Floats, drawn: Floats) -> Floats:
    """Family-wise p-values by the maximum over the whole family (Westfall & Young 1993), (K,)."""
    return np.asarray((1 + (max_t(drawn)[:, None] >= np.abs(t)).sum(axis=0)) / (len(drawn) + 1))


def step_down(t: Floats, drawn: Floats) -> Floats:
    """Family-wise p-values by Romano and Wolf's step-down: each against the maximum over itself and all smaller.

    Args:
        t: (K,), statistics of the sample.
        drawn: (B, K), those of the resamples, centred at the sample: the law of `t` without any gap.

    Returns:
        (K,), never above `single_step` and never below `p_values`.
    """
    order = np.argsort(-np.abs(t), kind="stable")
    size = np.nan_to_num(np.abs(drawn), nan=np.inf)[:, order]
    tops = np.maximum.accumulate(size[:, ::-1], axis=1)[:, ::-1]
    steps = (1 + (tops >= np.abs(t)[order]).sum(axis=0)) / (len(drawn) + 1)
    out = np.empty(len(t))
    out[order] = np.maximum.accumulate(steps)
    return out


def equivalence_p(value: Floats, error: Floats, drawn: Floats, margin: float) -> Floats:
    """p-value of "the value is within ±margin", (K,): the larger of two one-sided bootstrap-t tests.

    Args:
        value: (K,).
        error: (K,), > 0.
        drawn: (B, K), studentised resamples.
        margin: in units of the value, > 0.
    """
    above = 1 + np.count_nonzero(~(drawn < (value + margin) / error), axis=0)
    below = 1 + np.count_nonzero(~(drawn > (value - margin) / error), axis=0)
    return np.asarray(np.maximum(above, below) / (len(drawn) + 1))


def _chunks(length: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, width))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
