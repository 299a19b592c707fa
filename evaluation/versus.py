"""Two models on the same videos: what changed, for every group, by the differences of each video.

Pairing takes away what makes a video easy or hard for both models, so that smaller changes can be told from chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation import classical
from evaluation.estimates import Estimates, Family, Flag, Inference, Settings, between, estimate, infer, number
from evaluation.fairness import Plan, missing_reason, plan
from evaluation.groups import Floats, Grouping, Videos, listed
from evaluation.resample import Interval
from evaluation.taxonomy import Level, Taxonomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One class of one category in one metric: the first model less the second, paired by video.

    Attributes:
        metric: name of the score.
        family: the tests that are adjusted together; the overall row is adjusted alone.
        category: of the taxonomy, or two joined by " x ".
        group: the class.
        level: whether the category belongs to the person or to the video.
        sensitive: whether the category is sensitive.
        videos: number of videos.
        subjects: number of people.
        flag: as in `fairness.Row`.
        first: mean of the first model; `second` of the other.
        change: first less second.
        error: cluster-robust standard error of the change.
        interval: of the change, bootstrap-t over people.
        t_interval: change ± t · error, people - 1 degrees of freedom.
        p: two-sided bootstrap-t test of no change, unadjusted.
        p_adjusted: Romano-Wolf over all tested classes of the family.
        equivalence_p: of the claim that the change is within the margin, unadjusted.
        equivalent: whether that claim holds at the level; None where it was not tested.
        detectable: the smallest change that would have been found with the power of the settings.
        gap_change: gap of the class to the others under the first model, less that under the second.
        gap_change_interval: bootstrap-t over people.
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
    first: float | None
    second: float | None
    change: float | None
    error: float | None
    interval: Interval | None
    t_interval: Interval | None
    p: float | None
    p_adjusted: float | None
    equivalence_p: float | None
    equivalent: bool | None
    detectable: float | None
    gap_change: float | None
    gap_change_interval: Interval | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The tables of `compare`; the fields are those of `fairness.Fairness`."""

    rows: tuple[Change, ...]
    excluded: tuple[tuple[str, str], ...]
    not_given: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Settings


def compare(first: Videos, second: Videos, taxonomy: Taxonomy, settings: Settings | None = None) -> Comparison:
    """Compares two models on the videos that both scored, in every metric that both have.

    Args:
        first: scores of the first model.
        second: scores of the other, of the same videos in any order; its people and attributes must agree.
        taxonomy: of both.
        settings: resampling, sizes, margin.

    Raises:
        ValueError: other videos, metrics, people or attributes, or what `fairness.plan` refuses.
    """
    settings = settings or Settings()
    order = _order(first, second)
    both = _differences(first, second, order)
    chosen = plan(both, taxonomy, settings)
    rows: list[Change] = []
    excluded: list[tuple[str, str]] = []
    for metric in both.scores:
        found, missing = estimate(both, metric, chosen.groupings, settings)
        scored = ~np.isnan(both.scores[metric])
        pair = first.scores[metric][scored], second.scores[metric][order][scored]
        rows += _changes(metric, found, chosen, pair, settings)
        excluded += [(metric, name) for name in missing]
    return Comparison(
        rows=tuple(rows),
        excluded=tuple(excluded),
        not_given=chosen.not_given,
        notes=chosen.notes,
        settings=settings,
    )


def _order(first: Videos, second: Videos) -> list[int]:
    """Where each video of the first stands in the second."""
    places = {name: at for at, name in enumerate(second.names)}
    lone = [name for name in first.names if name not in places]
    lone += sorted(set(second.names) - set(first.names))
    if lone:
        raise ValueError(f"both models must have scored the same videos; only one scored {listed(lone)}")
    if set(first.scores) != set(second.scores):
        raise ValueError(f"metrics must be the same, got {sorted(first.scores)} and {sorted(second.scores)}")
    order = [places[name] for name in first.names]
    _check_same("subjects", first, first.subjects, second.subjects, order)
    if set(first.attributes) != set(second.attributes):
        raise ValueError(f"attributes must be the same, got {sorted(first.attributes)} and {sorted(second.attributes)}")
    for name, values in first.attributes.items():
        _check_same(f"attribute {name}", first, values, second.attributes[name], order)
    return order


def _check_same(
    what: str, first: Videos, a: Sequence[str | None] | None, b: Sequence[str | None] | None, order: Sequence[int]
) -> None:
    if a is None and b is None:
        return
    if a is None or b is None:
        raise ValueError(f"{what} must be given with both models or with neither")
    unlike = [name for name, value, at in zip(first.names, a, order, strict=True) if value != b[at]]
    if unlike:
        raise ValueError(f"{what} must be the same with both models; they differ in {listed(unlike)}")


def _differences(first: Videos, second: Videos, order: Sequence[int]) -> Videos:
    """First less second; NaN where either is."""
    ranges: dict[str, Interval] = {}
    for metric in first.scores:
        low, high = first.span(metric)
        if (low, high) != second.span(metric):
            raise ValueError(f"{metric} must have one range, got {(low, high)} and {second.span(metric)}")
        ranges[metric] = (low - high, high - low)
    return Videos(
        names=first.names,
        scores={metric: values - second.scores[metric][order] for metric, values in first.scores.items()},
        attributes=first.attributes,
        subjects=first.subjects,
        ranges=ranges,
    )


def _changes(
    metric: str, found: Estimates, chosen: Plan, pair: tuple[Floats, Floats], settings: Settings
) -> list[Change]:
    low, high = found.span
    families = [slice(0, 1), *chosen.slices(found.starts)]
    value = found.mean + found.centre
    smaller = np.minimum(found.subjects, found.others)
    means = infer(value, found.mean_error, found.mean_t, found.subjects, families, (low, high), settings)
    gaps = infer(found.gap, found.gap_error, found.gap_t, smaller, (), (2 * low, 2 * high), settings)
    return [
        _change(metric, family, grouping, at, start + at, found, means, gaps, pair, settings)
        for grouping, family, start in zip(found.groupings, chosen.families, found.starts, strict=False)
        for at in range(len(grouping.classes))
    ]


def _change(
    metric: str,
    family: Family,
    grouping: Grouping,
    at: int,
    k: int,
    found: Estimates,
    means: Inference,
    gaps: Inference,
    pair: tuple[Floats, Floats],
    settings: Settings,
) -> Change:
    inside, subjects = grouping.codes == at, int(found.subjects[k])
    first, second = (float(scores[inside].mean()) if inside.any() else None for scores in pair)
    change, error = number(found.mean[k] + found.centre), number(found.mean_error[k])
    interval, equivalence = between(means.low[k], means.high[k]), number(means.equivalence_p[k])
    gap_change = between(gaps.low[k], gaps.high[k])
    t_interval = None
    if interval is not None and change is not None and error is not None:
        t_interval = classical.t_interval(change, error, subjects - 1, settings.confidence)
    return Change(
        metric=metric,
        family=family,
        category=grouping.category,
        group=grouping.classes[at],
        level=grouping.level,
        sensitive=grouping.sensitive,
        videos=int(found.videos[k]),
        subjects=subjects,
        flag=found.flag(k, settings),
        first=first,
        second=second,
        change=change,
        error=error,
        interval=interval,
        t_interval=t_interval,
        p=number(means.p[k]),
        p_adjusted=number(means.p_adjusted[k]),
        equivalence_p=equivalence,
        equivalent=None if equivalence is None else equivalence <= 1 - settings.confidence,
        detectable=number(means.detectable[k]),
        gap_change=number(found.gap[k]),
        gap_change_interval=gap_change,
        reason=missing_reason(found, k, settings, tested=None not in (interval, equivalence, gap_change)),
    )
