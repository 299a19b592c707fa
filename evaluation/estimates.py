"""Means and gaps of every class of videos in one metric, with what resampling people says of their errors.

B resamples, G people, K classes, n videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evaluation import classical
from evaluation.groups import Codes, Floats, Grouping, Videos
from evaluation.resample import (
    Interval,
    Statistics,
    Sums,
    equivalence_p,
    max_t,
    p_values,
    statistics,
    step_down,
    studentised,
    subject_resamples,
    t_quantiles,
)

Family = Literal["overall", "classes", "intersections"]
Flag = Literal["empty", "insufficient", "indicative", "sufficient"]
Missing = Literal["refuse", "exclude"]

INTERSECTIONS = (
    ("apparent_skin_tone", "apparent_gender"),
    ("apparent_skin_tone", "lighting_level"),
    ("apparent_skin_tone", "skin_background_similarity"),
    ("hair_texture", "background_complexity"),
)
"""The pairs of categories that are compared by default, where both are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How groups are compared.

    Attributes:
        replicates: resamples and permutations B, >= 1999.
        seed: of both, >= 0.
        confidence: of the intervals; 1 - confidence is the level of the tests.
        margin: largest gap that still counts as similar, in units of the score.
        indicative_subjects: people a class needs for an interval, >= 3.
        sufficient_subjects: people a class, and the others together, need for a test.
        power: with which the smallest detectable gap would be found.
        missing: "refuse" NaN scores, or "exclude" their videos and name them.
        intersections: pairs of categories of the second family.
    """

    replicates: int = 1999
    seed: int = 0
    confidence: float = 0.95
    margin: float = 0.02
    indicative_subjects: int = 10
    sufficient_subjects: int = 30
    power: float = 0.8
    missing: Missing = "refuse"
    intersections: tuple[tuple[str, str], ...] = INTERSECTIONS

    def __post_init__(self) -> None:
        if self.replicates < 1999 or self.seed < 0:
            raise ValueError(f"replicates must be >= 1999 and seed >= 0, got {self.replicates} and {self.seed}")
        for name in ("confidence", "margin", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if not 3 <= self.indicative_subjects <= self.sufficient_subjects:
            raise ValueError(
                "3 <= indicative_subjects <= sufficient_subjects must hold, "
                f"got {self.indicative_subjects} and {self.sufficient_subjects}"
            )
        if self.missing not in get_args(Missing):
            raise ValueError(f"missing must be one of {get_args(Missing)}, got {self.missing!r}")
        alike = [pair for pair in self.intersections if len(set(pair)) != 2]
        if alike or len(set(self.intersections)) < len(self.intersections):
            raise ValueError(f"intersections must be distinct pairs of two categories, got {self.intersections}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """What one metric says of K classes; the classes of the groupings one behind the other.

    Attributes:
        scores: (n,), less `centre`.
        people: (n,), the person of each video.
        groupings: restricted to the n videos.
        starts: the first class of each grouping, and K.
        centre: mean of all scores; `mean` and `means` are less it.
        span: least and greatest possible value of a mean.
        videos: (K,).
        subjects: (K,), people with a video in the class.
        others: (K,), people with a video in another class of the category.
        mean: (K,), NaN for a class without videos; `mean_error`, `gap`, `gap_error` likewise.
        means: (B, K), of the resamples.
        mean_t: (B, K), studentised; `gap_t` likewise.
    """

    scores: Floats
    people: Codes
    groupings: tuple[Grouping, ...]
    starts: tuple[int, ...]
    centre: float
    span: tuple[float, float]
    videos: NDArray[np.int64]
    subjects: NDArray[np.int64]
    others: NDArray[np.int64]
    mean: Floats
    mean_error: Floats
    gap: Floats
    gap_error: Floats
    means: Floats
    mean_t: Floats
    gap_t: Floats

    def enough(self, least: int) -> NDArray[np.bool_]:
        """Classes of at least so many people, whose others are as many, (K,)."""
        return np.asarray(np.minimum(self.subjects, self.others) >= least)

    def flag(self, k: int, settings: Settings) -> Flag:
        """How far the number of people of a class carries."""
        if self.videos[k] == 0:
            return "empty"
        if self.subjects[k] < settings.indicative_subjects:
            return "insufficient"
        return "indicative" if self.subjects[k] < settings.sufficient_subjects else "sufficient"


def estimate(
    videos: Videos, metric: str, groupings: Sequence[Grouping], settings: Settings
) -> tuple[Estimates, list[str]]:
    """The estimates of one metric, and the names of the videos left out because their score is NaN.

    Raises:
        ValueError: no video has a score.
    """
    scored = ~np.isnan(videos.scores[metric])
    if not scored.any():
        raise ValueError(f"{metric} is NaN in all {len(scored)} videos; leave the metric out")
    _, people = np.unique(videos.people()[scored], return_inverse=True)
    parts = tuple(_restricted(grouping, scored) for grouping in groupings)
    scores = videos.scores[metric][scored]
    centre = float(scores.mean())
    sums = _sums(scores - centre, people, parts)
    once = statistics(np.ones((1, people.max() + 1), np.int16), sums)
    drawn = statistics(subject_resamples(int(people.max()) + 1, settings.replicates, settings.seed), sums)
    found = _estimates(scores - centre, people, parts, sums, once, drawn, centre, videos.span(metric))
    return found, [name for name, has in zip(videos.names, scored.tolist(), strict=True) if not has]


def _restricted(grouping: Grouping, chosen: NDArray[np.bool_]) -> Grouping:
    return Grouping(
        category=grouping.category,
        level=grouping.level,
        sensitive=grouping.sensitive,
        classes=grouping.classes,
        known=grouping.known,
        codes=grouping.codes[chosen],
    )


def _sums(scores: Floats, people: Codes, groupings: Sequence[Grouping]) -> Sums:
    count = int(people.max()) + 1

    def table(weights: Floats) -> Floats:
        blocks = []
        for grouping in groupings:
            k = len(grouping.classes)
            flat = np.bincount(people * k + grouping.codes, weights=weights, minlength=count * k)
            blocks.append(flat.reshape(count, k))
        return np.concatenate(blocks, axis=1)

    return Sums(
        sizes=table(np.ones_like(scores)),
        totals=table(scores),
        all_sizes=np.bincount(people).astype(np.float64),
        all_totals=np.bincount(people, weights=scores).astype(np.float64),
    )


def _estimates(
    scores: Floats,
    people: Codes,
    groupings: tuple[Grouping, ...],
    sums: Sums,
    once: Statistics,
    drawn: Statistics,
    centre: float,
    span: tuple[float, float],
) -> Estimates:
    ends = np.cumsum([0, *(len(grouping.classes) for grouping in groupings)]).tolist()
    return Estimates(
        scores=scores,
        people=people,
        groupings=groupings,
        starts=tuple(ends),
        centre=centre,
        span=span,
        videos=sums.sizes.sum(axis=0).astype(np.int64),
        subjects=np.count_nonzero(sums.sizes, axis=0),
        others=np.count_nonzero(sums.all_sizes[:, None] - sums.sizes, axis=0),
        mean=once.mean[0],
        mean_error=once.mean_error[0],
        gap=once.gap[0],
        gap_error=once.gap_error[0],
        means=drawn.mean,
        mean_t=studentised(drawn.mean, drawn.mean_error, once.mean),
        gap_t=studentised(drawn.gap, drawn.gap_error, once.gap),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inference:
    """What may be said of K values: intervals, tests against 0 and against the margin.

    Attributes:
        low, high: (K,), bootstrap-t interval; NaN where the class is too small or has no spread.
        p: (K,), unadjusted; NaN where not tested. `p_adjusted`, `equivalence_p` likewise.
        p_adjusted: family-wise, Romano-Wolf over the tested classes of a family.
        detectable: (K,), the smallest value that the test would have found; NaN where the class is too small.
    """

    low: Floats
    high: Floats
    p: Floats
    p_adjusted: Floats
    equivalence_p: Floats
    detectable: Floats


def infer(
    value: Floats,
    error: Floats,
    t: Floats,
    people: NDArray[np.int64],
    families: Sequence[slice],
    limits: Interval,
    settings: Settings,
) -> Inference:
    """Intervals and tests of K values.

    Args:
        value: (K,).
        error: (K,).
        t: (B, K), studentised resamples.
        people: (K,), how many people carry the value: of the class or, for a gap, of the smaller side.
        families: the classes that are tested together.
        limits: least and greatest possible value, to which intervals are cut.
        settings: sizes, level, margin, power.
    """
    spread = error > 0
    shown = spread & (people >= settings.indicative_subjects)
    tested = spread & (people >= settings.sufficient_subjects) & np.isfinite(t).all(axis=0)
    below, above = t_quantiles(t, settings.confidence)
    out = {name: np.full(len(value), np.nan) for name in Inference.__slots__}
    with np.errstate(invalid="ignore"):
        out["low"] = np.where(shown, np.clip(value - above * error, *limits), np.nan)
        out["high"] = np.where(shown, np.clip(value - below * error, *limits), np.nan)
    out["p"][tested] = p_values((value / np.where(spread, error, 1.0))[tested], t[:, tested])
    out["equivalence_p"][tested] = equivalence_p(value[tested], error[tested], t[:, tested], settings.margin)
    for family in families:
        chosen = np.zeros(len(value), np.bool_)
        chosen[family] = True
        chosen &= tested
        critical = np.full(len(value), np.nan)
        if chosen.any():
            out["p_adjusted"][chosen] = step_down(value[chosen] / error[chosen], t[:, chosen])
            critical[chosen] = np.sort(max_t(t[:, chosen]))[int(np.ceil(settings.confidence * (len(t) + 1))) - 1]
        for k in range(*family.indices(len(value))):
            out["detectable"][k] = _detectable(float(error[k]), int(people[k]), float(critical[k]), settings)
    return Inference(**out)


def _detectable(error: float, people: int, critical: float, settings: Settings) -> float:
    """(critical t of the family + t of the power) times the error; a class that is not tested as if tested alone."""
    if people < settings.indicative_subjects or not error > 0:
        return float("nan")
    if np.isnan(critical):
        critical = classical.t_quantile(0.5 + settings.confidence / 2, people - 1)
    return (critical + classical.t_quantile(settings.power, people - 1)) * error


def number(value: float) -> float | None:
    """A Python float; None for NaN."""
    return None if math.isnan(value) else float(value)


def between(low: float, high: float) -> Interval | None:
    """An interval of Python floats; None for NaN."""
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def people_text(count: int) -> str:
    """The count with its noun."""
    return f"{count} subject" if count == 1 else f"{count} subjects"
