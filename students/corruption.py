"""How probable it is that a label is corrupt, and whether that probability may be acted upon.

Letters: n samples, m audited samples, q the probability that a label is corrupt, ê the share of corrupt labels in a
cluster, s = √miss + √extra. Every fit sees its samples sorted and q is rounded, so the order of the samples cannot
show in the result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from evaluation.classical import beta_interval
from students.disagreement import EMPTY, FULL, Features

SLOPES = np.array([1.0, 0.3, 0.8, 0.2, 0.0, 0.5, 0.3, 0.0])
"""What is known before any audit: √miss, √extra, √largest miss, √largest extra, √doubt, disagreement, 1 - softmin and
stability, in units of their spread, as log odds; rounded from fits to seed 0 of ``benchmarks.planted_bias``. A
student that does not know a cluster fails to find parts, which is ``extra``, rather than invents them: that is weak
evidence; that it finds what the label lacks is strong."""
STIFFNESS = 4.0  # how strongly slopes are drawn to these; as if fitted to a few dozen labels before
LEANING = 0.4  # how strongly cluster intercepts are drawn to 0
PRIOR = 4.0  # pseudo-samples of the overall rate that every cluster starts with
ENOUGH = 5  # as many bad and as many good audited samples make an AUROC
SMALLEST = 8  # fewer samples tell nothing of their distribution
FITTED = 20_000  # a mixture is fitted to at most so many quantiles
COLLAPSED = 0.9  # share of the images of which a student says the same that tells that it learnt nothing
LEFT_OUT = 200  # leave-one-out runs at most so many fits; with more samples, as many folds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Outcome = Literal["passed", "failed", "uncertain"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Audit:
    """Samples whose teacher label a human has checked.

    Attributes:
        features: m features.
        bad: (m,) bool, whether the label is corrupt.
        clusters: (m,) int.
    """

    features: Sequence[Features]
    bad: Bools
    clusters: Ints

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.bad) == len(self.clusters):
            lengths = len(self.features), len(self.bad), len(self.clusters)
            raise ValueError(f"audit.features, bad and clusters must have one length, got {lengths}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Share of corrupt labels in a cluster, shrunk to the overall rate, with its 90 % Beta interval.

    ``samples`` and ``bad`` are what it rests on: audited counts, or without an audit all samples and the sum of q.
    """

    rate: float
    low: float
    high: float
    samples: int
    bad: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Corruption:
    """How probable it is that each label is corrupt.

    Attributes:
        q: (n,) float64 in [0, 1].
        calibrated: Whether q was fitted to an audit.
        method: "audit", "mixture" or "absolute" (see ``corruption``).
        rates: ê of each cluster.
        counted: Whether ê was counted by people; otherwise it is the mean of q.
    """

    q: Floats
    calibrated: bool
    method: str
    rates: Mapping[int, Rate]
    counted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Whether q may be acted upon in a cluster.

    Attributes:
        outcome: "passed"; "failed": the student is wrong here, or nobody knows who is; "uncertain": too few samples.
        reason: Why, in words.
        auroc: Leave-one-out area under the ROC curve of q on the audit; NaN without.
        lower: Its one-sided 90 % lower bound; NaN without.
        median_iou: Median IoU of student and teacher in the cluster, outside the band.
        collapsed: Whether the student says the same of nearly all images.
    """

    outcome: Outcome
    reason: str
    auroc: float
    lower: float
    median_iou: float
    collapsed: bool = False


def corruption(samples: Sequence[Features], clusters: Ints, audit: Audit | None = None) -> Corruption:
    """Estimate q of each sample and ê of each cluster.

    The samples are those that one student judges, and all features are in units of their spread over these: how much
    a student disagrees with right labels is its own.

    - "audit" (at least 8 audited samples, good and bad): logistic regression with shared slopes, drawn to ``SLOPES``,
      and cluster intercepts drawn to 0. ê = (bad + 4 ē) / (audited + 4) with a Beta interval.
    - "mixture": two Gaussians on the features weighted by ``SLOPES``. q is the logistic curve that has the odds of the
      upper one and their slope where both are even, and fades to 0 from s = .25 to .1: a trifle is no corruption. ê is
      the mean of q.
    - "absolute": fewer than 8 samples, or one Gaussian explains them as well (BIC): q rises from 0 at s = .3 to 1
      at .7.

    Args:
        samples: n features.
        clusters: (n,) int.
        audit: Audited samples, if there are; with only good or only bad ones it gives the rates but not q.
    """
    labels = np.asarray(clusters, np.int64)
    if labels.shape != (len(samples),):
        raise ValueError(f"clusters must be ({len(samples)},), got {labels.shape}")
    matrix = _matrix(samples)
    mean, spread = _scale(matrix) if len(matrix) else (0.0, 1.0)
    rows = (matrix - mean) / spread
    if audit is not None and _can_fit(audit.bad):
        order = _sorted_rows(audit)
        known = ((_matrix(audit.features) - mean) / spread)[order]
        score = _fit_logistic(known, audit.bad[order], audit.clusters[order])
        q, method = _round(_sigmoid(score(rows, labels, True))), "audit"
    else:
        q, method = _without_audit(samples, rows)
    rates = _rates(labels, q, audit)
    return Corruption(q=q, calibrated=method == "audit", method=method, rates=rates, counted=audit is not None)


def _can_fit(bad: Bools) -> bool:
    return len(bad) >= SMALLEST and 0 < int(bad.sum()) < len(bad)


def _round(values: Floats) -> Floats:
    return np.clip(np.round(values, 9), 0, 1)


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -50, 50))))


def _matrix(samples: Sequence[Features]) -> Floats:
    """(n, 8): what the regression sees, in the order of ``SLOPES``; roots, because small parts matter."""
    rows = [
        (
            *(math.sqrt(v) for v in (f.miss, f.extra, f.largest_miss, f.largest_extra, f.doubt)),
            *(f.disagreement, 1 - f.softmin, f.stability),
        )
        for f in samples
    ]
    return np.array(rows, np.float64).reshape(len(rows), len(SLOPES))


def _scale(rows: Floats) -> tuple[Floats, Floats]:
    """Mean and spread of each column, whatever the order of the rows: one student's own way of disagreeing."""
    ordered = np.sort(rows, axis=0)
    return ordered.mean(axis=0), np.maximum(ordered.std(axis=0), 0.01)


def _sorted_rows(audit: Audit) -> Ints:
    return np.lexsort((*_matrix(audit.features).T, audit.bad, audit.clusters))


Score = Callable[[Floats, Ints, bool], Floats]


def _fit_logistic(rows: Floats, bad: Bools, clusters: Ints) -> Score:
    """Log odds of being corrupt as a function of (rows, clusters, whether to add the cluster's intercept).

    The maximum a posteriori of a logistic regression whose slopes come from N(``SLOPES``, 1 / ``STIFFNESS``) and whose
    cluster intercepts from N(0, 1 / ``LEANING``): a few audited labels bend what is known, not replace it.
    """
    known = np.unique(clusters)
    prior = np.concatenate((SLOPES, np.zeros(len(known) + 1)))
    precision = np.concatenate((np.full(len(SLOPES), STIFFNESS), np.full(len(known), LEANING), [0.1]))

    def design(x: Floats, labels: Ints) -> Floats:
        return np.hstack((x, labels[:, None] == known[None], np.ones((len(x), 1))))

    matrix, target = design(rows, clusters), bad.astype(np.float64)

    def loss(w: Floats) -> tuple[float, Floats]:
        odds, away = matrix @ w, precision * (w - prior)
        value = np.logaddexp(0, odds).sum() - odds[bad].sum() + 0.5 * away @ (w - prior)
        return float(value), matrix.T @ (_sigmoid(odds) - target) + away

    found = minimize(loss, prior, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7}).x

    def score(x: Floats, labels: Ints, with_clusters: bool) -> Floats:
        used = found.copy()
        used[len(SLOPES) : -1] *= with_clusters
        return np.asarray((design(x, labels) * used).sum(axis=1))

    return score


def _without_audit(samples: Sequence[Features], rows: Floats) -> tuple[Floats, str]:
    s = np.array([math.sqrt(f.miss) + math.sqrt(f.extra) for f in samples], np.float64)
    if len(s) >= SMALLEST:
        upper = _upper_odds((rows * SLOPES).sum(axis=1))
        if upper is not None:
            return _round(_sigmoid(upper) * np.clip((s - 0.1) / 0.15, 0, 1)), "mixture"
    return _round(np.clip((s - 0.3) / 0.4, 0, 1)), "absolute"


def _upper_odds(z: Floats) -> Floats | None:
    """Log odds of the upper of two Gaussians, made a line where they are even; None where one explains z as well."""
    ordered = np.sort(z)
    fitted = ordered[np.linspace(0, len(z) - 1, min(len(z), FITTED)).astype(np.int64)][:, None]
    if float(np.ptp(fitted)) < 1e-6:
        return None
    start = np.quantile(fitted, (0.25, 0.95))[:, None]
    start[1] = max(start[1, 0], start[0, 0] + 1e-3)
    two = GaussianMixture(2, means_init=start, random_state=0, reg_covar=1e-3, max_iter=500).fit(fitted)
    one = GaussianMixture(1, random_state=0, reg_covar=1e-3).fit(fitted)
    if two.bic(fitted) >= one.bic(fitted):
        return None
    low, high = sorted(range(2), key=lambda i: float(two.means_[i, 0]))

    def odds(at: float) -> float:
        parts = [
            math.log(two.weights_[i]) + float(norm.logpdf(at, two.means_[i, 0], math.sqrt(two.covariances_[i, 0, 0])))
            for i in (low, high)
        ]
        return parts[1] - parts[0]

    ends = float(two.means_[low, 0]), float(two.means_[high, 0])
    if not odds(ends[0]) < 0 < odds(ends[1]):
        return None
    even = float(brentq(odds, *ends))
    slope = (odds(even + 1e-4) - odds(even - 1e-4)) / 2e-4
    return np.asarray(slope * (z - even))


def _rates(labels: Ints, q: Floats, audit: Audit | None) -> dict[int, Rate]:
    source, amount = (labels, q) if audit is None else (np.asarray(audit.clusters), audit.bad.astype(np.float64))
    overall = (math.fsum(amount) + 0.5) / (len(amount) + 1)
    return {
        int(c): shrunk_rate(math.fsum(amount[source == c]), int((source == c).sum()), overall)
        for c in np.unique(labels)
    }


def shrunk_rate(bad: float, count: int, overall: float) -> Rate:
    """The share of bad ones among ``count``, shrunk to ``overall`` by ``PRIOR`` pseudo-samples of it."""
    a, b = bad + PRIOR * overall, count - bad + PRIOR * (1 - overall)
    low, high = beta_interval(a, b, 0.9)
    return Rate(rate=a / (a + b), low=low, high=high, samples=count, bad=bad)


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────


def gate(
    samples: Sequence[Features], clusters: Ints, rated: Corruption, audit: Audit | None = None, *, iou: float = 0.6
) -> dict[int, Gate]:
    """Whether q may be acted upon, for each cluster.

    With a fitted audit: the leave-one-out AUROC of q over the cluster's audited samples, without cluster intercepts
    (they would lean against the left-out sample). A cluster with fewer than 5 bad or 5 good ones is judged by the pool
    of all such clusters, or by the whole audit. Lower 90 % bound (Hanley and McNeil, 1982) ≤ .5: "failed".
    Without, or where only a pool speaks, or too few speak: "failed" where the median IoU of the student with the labels
    (with those that people found right, where they are 5 or more) is below ``iou``: it does not know such images.
    Without an audit: "uncertain" below 8 samples. A student that has collapsed is trusted nowhere: the samples are
    those that one student judges.
    """
    labels = np.asarray(clusters, np.int64)
    agreement = np.array([1 - f.disagreement for f in samples], np.float64)
    medians = {int(c): float(np.median(agreement[labels == c])) for c in np.unique(labels)}
    if reason := _collapse(samples):
        return {
            c: Gate(outcome="failed", reason=reason, auroc=math.nan, lower=math.nan, median_iou=m, collapsed=True)
            for c, m in medians.items()
        }
    if audit is None or not rated.calibrated:
        return {c: _gate_without_audit(int((labels == c).sum()), m, iou) for c, m in medians.items()}
    order = _sorted_rows(audit)
    audited, bad = np.asarray(audit.clusters)[order], audit.bad[order]
    mean, spread = _scale(_matrix(samples))
    scores = _left_out(((_matrix(audit.features) - mean) / spread)[order], bad, audited)
    right = np.array([1 - f.disagreement for f in audit.features], np.float64)[order]
    gates = {}
    for c, median in medians.items():
        good = right[(audited == c) & ~bad]
        known = float(np.median(good)) if len(good) >= ENOUGH else median
        alone = _gate_without_audit(SMALLEST, known, iou, "right labels" if len(good) >= ENOUGH else "labels")
        chosen, own = _pool(c, audited, bad)
        found = _gate_with_audit(scores, bad, chosen, median)
        gates[c] = alone if found is None or (alone.outcome == "failed" and not own) else found
    return gates


def _collapse(samples: Sequence[Features]) -> str:
    """How a student has collapsed: it says the same of nearly all images in which the teacher sees somebody."""
    seen = [f for f in samples if f.teacher_area >= EMPTY]
    if len(seen) < SMALLEST:
        return ""
    nobody, everywhere = (sum(f.student_area < EMPTY for f in seen), sum(f.student_area > FULL for f in seen))
    for count, what in ((nobody, "sees nobody"), (everywhere, "sees nothing but people")):
        if count >= COLLAPSED * len(seen):
            return f"the student has collapsed: it {what} in {count} of {len(seen)} images with a label"
    return ""


def _gate_without_audit(count: int, median: float, iou: float, labels: str = "labels") -> Gate:
    outcome: Outcome = "passed"
    reason = f"median IoU of the student with {labels} is {median:.2f}"
    if count < SMALLEST:
        outcome, reason = "uncertain", f"{count} samples, fewer than {SMALLEST}"
    elif median < iou:
        outcome, reason = "failed", f"{reason}, below {iou:.2f}: unknown who is wrong"
    return Gate(outcome=outcome, reason=reason, auroc=math.nan, lower=math.nan, median_iou=median)


def _gate_with_audit(scores: Floats, bad: Bools, chosen: Bools, median: float) -> Gate | None:
    """What the AUROC says; None where the audited samples are too few for one."""
    wrong, right = scores[chosen & bad], scores[chosen & ~bad]
    if min(len(wrong), len(right)) < ENOUGH:
        return None
    area, lower = _auroc(wrong, right)
    reason = f"AUROC {area:.2f}, at least {lower:.2f}, on {len(wrong)} bad and {len(right)} good audited samples"
    outcome: Outcome = "passed" if lower > 0.5 else "failed"
    return Gate(outcome=outcome, reason=reason, auroc=area, lower=lower, median_iou=median)


def _enough(bad: Bools) -> bool:
    return min(int(bad.sum()), int((~bad).sum())) >= ENOUGH


def _pool(cluster: int, audited: Ints, bad: Bools) -> tuple[Bools, bool]:
    """(m,) bool: the audited samples that judge the cluster, and whether they are its own."""
    own = np.asarray(audited == cluster)
    if _enough(bad[own]):
        return own, True
    poor = [c for c in np.unique(audited) if not _enough(bad[audited == c])]
    pool = np.isin(audited, poor)
    return (pool if _enough(bad[pool]) else np.ones(len(bad), np.bool_)), False


def _left_out(rows: Floats, bad: Bools, clusters: Ints) -> Floats:
    """(m,) score of each audited sample by a fit without it, free of cluster intercepts."""
    parts = np.arange(len(bad)) % min(len(bad), LEFT_OUT)
    scores = np.zeros(len(bad))
    for part in range(int(parts.max()) + 1):
        out = parts == part
        if _can_fit(bad[~out]):
            fitted = _fit_logistic(rows[~out], bad[~out], clusters[~out])
            scores[out] = np.round(fitted(rows[out], clusters[out], False), 9)
    return scores


def _auroc(wrong: Floats, right: Floats) -> tuple[float, float]:
    """Area and its one-sided 90 % lower bound."""
    m, n = len(wrong), len(right)
    above = (wrong[:, None] > right).sum() + 0.5 * (wrong[:, None] == right).sum()
    area = float(above) / (m * n)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (m - 1) * (one - area**2) + (n - 1) * (two - area**2)
    return area, area - 1.2816 * math.sqrt(max(0.0, variance) / (m * n))
