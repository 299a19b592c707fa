"""How accuracy differs between groups of people and scenes, and how sure one can be of it.

One row per metric and class: mean, intervals, gap to the other videos of the category, family-wise test, equivalence.
One row per metric and category: the gap between its best and worst class, beside what chance alone would give.
What could not be computed is None, and `reason` says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from evaluation import classical
from evaluation.estimates import (
    INTERSECTIONS,
    Estimates,
    Family,
    Flag,
    Inference,
    Settings,
    between,
    estimate,
    infer,
    number,
    people_text,
)
from evaluation.groups import CROSSING, Floats, Grouping, Videos, crossings, groupings, listed
from evaluation.resample import Interval
from evaluation.taxonomy import Level, Taxonomy
from evaluation.worst import WorstGap, worst_gaps

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Cell = str | int | float | bool | None

ALL = "all"
"""Category and class of the row of all videos."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One class of one category in one metric; every mean is over videos.

    Attributes:
        metric: name of the score.
        family: the tests that are adjusted together; `overall` is tested against nothing.
        category: of the taxonomy, or two joined by " x ".
        group: the class.
        level: whether the category belongs to the person or to the video.
        sensitive: whether the category is sensitive.
        videos: number of videos.
        subjects: number of people.
        flag: "empty", "insufficient" (point only), "indicative" (interval), "sufficient" (interval and test).
        mean: of the class.
        deviation: sample standard deviation over videos.
        error: cluster-robust standard error of the mean.
        interval: bootstrap-t over people.
        t_interval: mean ± t · error, people - 1 degrees of freedom.
        video_interval: plain t interval that takes each video for a person: too narrow where people repeat.
        gap: mean less the mean of the other videos.
        gap_error: its standard error.
        gap_interval: bootstrap-t over people.
        p: two-sided bootstrap-t test of no gap, unadjusted.
        p_adjusted: Romano-Wolf over all tested classes of the family.
        equivalence_p: of the claim that the gap is within the margin (two one-sided tests), unadjusted.
        equivalent: whether that claim holds at the level; None where it was not tested.
        detectable: the smallest gap that would have been found with the power of the settings.
        welch_p: plain test that takes each video for a person. `welch_p_holm`, `welch_q`: adjusted over all classes of
            the family for the family-wise error (Holm) and the false discovery rate (Benjamini-Hochberg).
        reason: why something is None; empty where nothing is.
    """

    metric: str
    family: Family
    category: str
    group: str
    level: Level
    sensitive: bool
    videos: int
    subjects: int
    flag: Flag
    mean: float | None
    deviation: float | None
    error: float | None
    interval: Interval | None
    t_interval: Interval | None
    video_interval: Interval | None
    gap: float | None
    gap_error: float | None
    gap_interval: Interval | None
    p: float | None
    p_adjusted: float | None
    equivalence_p: float | None
    equivalent: bool | None
    detectable: float | None
    welch_p: float | None
    welch_p_holm: float | None
    welch_q: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """The tables of `analyse`.

    Attributes:
        rows: per metric the overall row, then all classes of all categories, then all intersections.
        worst: per metric and category two rows: every class, and the classes that are large enough for a test.
        excluded: (metric, video) whose score is NaN.
        not_given: categories of the taxonomy, and intersections of the settings, that the videos do not have.
        notes: what a reader must know before the numbers.
        settings: as used.
    """

    rows: tuple[Row, ...]
    worst: tuple[WorstGap, ...]
    excluded: tuple[tuple[str, str], ...]
    not_given: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Which classes there are: the overall one, those of the categories, those of the intersections."""

    groupings: tuple[Grouping, ...]
    families: tuple[Family, ...]
    not_given: tuple[str, ...]
    notes: tuple[str, ...]

    def slices(self, starts: Sequence[int]) -> list[slice]:
        """Where the classes of each tested family stand."""
        first = self.families.index("intersections") if "intersections" in self.families else len(self.families)
        return [slice(1, starts[first]), slice(starts[first], starts[-1])]


def plan(videos: Videos, taxonomy: Taxonomy, settings: Settings) -> Plan:
    """The classes of the videos.

    Raises:
        ValueError: an attribute, class or intersection that the taxonomy does not have, people who contradict
            themselves, or NaN scores that the settings refuse.
    """
    _check_missing(videos, settings)
    for name in itertools.chain(*(pair for pair in settings.intersections if pair not in INTERSECTIONS)):
        taxonomy.category(name)
    single = groupings(videos, taxonomy)
    crossed = crossings(single, settings.intersections)
    everyone = Grouping(
        category=ALL,
        level="video",
        sensitive=False,
        classes=(ALL,),
        known=(True,),
        codes=np.zeros(len(videos.names), np.intp),
    )
    wanted = [*(c.name for c in taxonomy.categories), *(a + CROSSING + b for a, b in settings.intersections)]
    given = {grouping.category for grouping in (*single, *crossed)}
    families: list[Family] = ["overall"]
    families += ["classes"] * len(single)
    families += ["intersections"] * len(crossed)
    return Plan(
        groupings=(everyone, *single, *crossed),
        families=tuple(families),
        not_given=tuple(name for name in wanted if name not in given),
        notes=tuple(_notes(videos)),
    )


def _check_missing(videos: Videos, settings: Settings) -> None:
    for metric, scores in videos.scores.items():
        names = [videos.names[at] for at in np.flatnonzero(np.isnan(scores)).tolist()]
        if names and settings.missing == "refuse":
            raise ValueError(
                f"{metric} is NaN in {listed(names)}; score these videos again, or set missing to 'exclude' "
                "to leave them out of this metric by name"
            )


def _notes(videos: Videos) -> list[str]:
    notes, count = [], int(videos.people().max()) + 1
    lone = len(videos.names) if videos.subjects is None else sum(s is None for s in videos.subjects)
    if videos.subjects is None:
        notes.append(
            "no subjects given: each video counts as its own subject; intervals are too narrow if people repeat"
        )
    elif lone:
        notes.append(f"{lone} of {len(videos.names)} videos have no subject: each of them counts as its own subject")
    if count == 1:
        notes.append("one subject only: no interval and no test is possible")
    return notes


def analyse(videos: Videos, taxonomy: Taxonomy, settings: Settings | None = None) -> Fairness:
    """Compares the classes of every attribute in every metric.

    Raises:
        ValueError: as `plan`, or a metric without any score.
    """
    settings = settings or Settings()
    chosen = plan(videos, taxonomy, settings)
    rows: list[Row] = []
    worst: list[WorstGap] = []
    excluded: list[tuple[str, str]] = []
    for metric in videos.scores:
        found, missing = estimate(videos, metric, chosen.groupings, settings)
        rows += _rows(metric, found, chosen, settings)
        worst += worst_gaps(metric, found, chosen.families, settings)
        excluded += [(metric, name) for name in missing]
    return Fairness(
        rows=tuple(rows),
        worst=tuple(worst),
        excluded=tuple(excluded),
        not_given=chosen.not_given,
        notes=chosen.notes,
        settings=settings,
    )


def _rows(metric: str, found: Estimates, chosen: Plan, settings: Settings) -> list[Row]:
    low, high = found.span
    families = chosen.slices(found.starts)
    smaller = np.minimum(found.subjects, found.others)
    limits = (low - found.centre, high - found.centre)
    means = infer(found.mean, found.mean_error, found.mean_t, found.subjects, (), limits, settings)
    gaps = infer(found.gap, found.gap_error, found.gap_t, smaller, families, (low - high, high - low), settings)
    plain = _welch(found, families)
    return [
        _row(metric, family, grouping, at, start + at, found, means, gaps, plain, settings)
        for grouping, family, start in zip(found.groupings, chosen.families, found.starts, strict=False)
        for at in range(len(grouping.classes))
    ]


def _row(
    metric: str,
    family: Family,
    grouping: Grouping,
    at: int,
    k: int,
    found: Estimates,
    means: Inference,
    gaps: Inference,
    plain: Floats,
    settings: Settings,
) -> Row:
    centre, videos, subjects = found.centre, int(found.videos[k]), int(found.subjects[k])
    flag, mean = found.flag(k, settings), number(found.mean[k] + centre)
    deviation = float(found.scores[grouping.codes == at].std(ddof=1)) if videos > 1 else None
    error = number(found.mean_error[k])
    equivalence = number(gaps.equivalence_p[k])
    interval = between(means.low[k] + centre, means.high[k] + centre)
    t_interval = video_interval = None
    if interval is not None and mean is not None and error is not None and deviation is not None:
        t_interval = classical.t_interval(mean, error, subjects - 1, settings.confidence)
        video_interval = classical.t_interval(mean, deviation / math.sqrt(videos), videos - 1, settings.confidence)
    return Row(
        metric=metric,
        family=family,
        category=grouping.category,
        group=grouping.classes[at],
        level=grouping.level,
        sensitive=grouping.sensitive,
        videos=videos,
        subjects=subjects,
        flag=flag,
        mean=mean,
        deviation=deviation,
        error=error,
        interval=interval,
        t_interval=t_interval,
        video_interval=video_interval,
        gap=number(found.gap[k]),
        gap_error=number(found.gap_error[k]),
        gap_interval=between(gaps.low[k], gaps.high[k]),
        p=number(gaps.p[k]),
        p_adjusted=number(gaps.p_adjusted[k]),
        equivalence_p=equivalence,
        equivalent=None if equivalence is None else equivalence <= 1 - settings.confidence,
        detectable=number(gaps.detectable[k]),
        welch_p=number(plain[0, k]),
        welch_p_holm=number(plain[1, k]),
        welch_q=number(plain[2, k]),
        reason=missing_reason(found, k, settings, tested=interval is not None and equivalence is not None),
    )


def missing_reason(found: Estimates, k: int, settings: Settings, *, tested: bool) -> str:
    """Why a row lacks an interval, a gap or a test; the first cause only, as the others follow from it."""
    if tested:
        return ""
    subjects, others = int(found.subjects[k]), int(found.others[k])
    causes = (
        (subjects == 0, "no video"),
        (subjects < settings.indicative_subjects, f"{people_text(subjects)}: too few for an interval"),
        (not found.mean_error[k] > 0, "all people score alike: no spread to tell an error from"),
        (k == 0, "all videos: nothing to compare with"),
        (others == 0, "all videos are in this class: nothing to compare with"),
        (subjects < settings.sufficient_subjects, f"{people_text(subjects)}: too few for a test"),
        (others < settings.sufficient_subjects, f"{people_text(others)} in the other classes: too few for a test"),
    )
    return next((text for holds, text in causes if holds), "the scores spread too little to be resampled")


def _welch(found: Estimates, families: Sequence[slice]) -> Floats:
    """Plain p-values, and those after Holm and Benjamini-Hochberg over each family, (3, K)."""
    out = np.full((3, len(found.mean)), np.nan)
    for grouping, start in zip(found.groupings[1:], found.starts[1:], strict=False):
        for at in range(len(grouping.classes)):
            inside = grouping.codes == at
            p = classical.welch_p(found.scores[inside], found.scores[~inside])
            out[0, start + at] = np.nan if p is None else p
    for family in families:
        part = out[:, family]
        has = ~np.isnan(part[0])
        part[1, has], part[2, has] = classical.holm(part[0, has]), classical.benjamini_hochberg(part[0, has])
    return out


def to_rows(rows: Iterable[DataclassInstance]) -> list[dict[str, Cell]]:
    """Rows of a table as flat records for Parquet, CSV or JSON; an interval becomes `..._low` and `..._high`."""
    return [_flat(row) for row in rows]


def _flat(row: DataclassInstance) -> dict[str, Cell]:
    out: dict[str, Cell] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name.endswith("interval"):
            out[f"{field.name}_low"], out[f"{field.name}_high"] = value or (None, None)
        else:
            out[field.name] = value
    return out


def columns(rows: Iterable[DataclassInstance]) -> dict[str, list[Cell]]:
    """The same as columns; empty where there is no row."""
    records = to_rows(rows)
    return {name: [record[name] for record in records] for name in (records[0] if records else ())}
