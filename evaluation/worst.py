"""The gap between the best and the worst class by chance alone: class means after people have changed places.

The largest of many means less the smallest is above 0 even where all classes are alike, the more so the smaller the
classes: such a gap means nothing without its null distribution. B permutations, G people, K classes, n videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.estimates import Estimates, Family, Settings, people_text
from evaluation.groups import Codes, Floats, Grouping
from evaluation.resample import Interval

_CHUNK = 1 << 22  # numbers of one working array: 32 MiB
_BIN = 25  # people of about as many videos, who change places with each other


def null_means(
    scores: Floats, people: Codes, codes: Sequence[Codes], classes: Sequence[int], replicates: int, seed: int
) -> list[Floats]:
    """Means of the classes after people have changed places at random: what would be if no class mattered.

    Where all videos of every person are in one class, classes are dealt to people anew, each with all their videos.
    Else the videos of a person take the places of those of others with about as many videos, so that both the
    likeness of scores and the likeness of classes within a person stay.

    Args:
        scores: (n,).
        people: (n,), the person of each video, every number of 0..G-1 at least once.
        codes: for every category the class of each video, (n,) in 0..K-1.
        classes: for every category the number of its classes K.
        replicates: B.
        seed: of the permutations.

    Returns:
        For every category (B, K), NaN for a class that no video fell into.
    """
    rng = np.random.default_rng([seed, 2])
    size, total = np.bincount(people).astype(np.float64), np.bincount(people, weights=scores).astype(np.float64)
    whole = [_of_people(of, people) for of in codes]
    bins, order = _places(size, people)
    of_people = _members([(of, count) for of, count in zip(whole, classes, strict=True) if of is not None], len(size))
    mixed = [(of[order], count) for of, count, no in zip(codes, classes, whole, strict=True) if no is None]
    of_videos = _members(mixed, len(scores))
    dealt, moved = np.empty((replicates, of_people.shape[1])), np.empty((replicates, of_videos.shape[1]))
    step = max(1, _CHUNK // len(scores))
    for start in range(0, replicates, step):
        rows = slice(start, min(start + step, replicates))
        places = np.argsort(rng.random((rows.stop - start, len(size))), axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            dealt[rows] = (total[places] @ of_people) / (size[places] @ of_people)
        if mixed:
            with np.errstate(divide="ignore", invalid="ignore"):
                sums = scores[_moved(rng, rows.stop - start, bins, people)] @ of_videos
                moved[rows] = sums / of_videos.sum(axis=0)
    return _split(dealt, moved, [of is not None for of in whole], classes)


def _split(dealt: Floats, moved: Floats, whole: Sequence[bool], classes: Sequence[int]) -> list[Floats]:
    """The columns of each category: of `dealt` where people are in one class, else of `moved`."""
    out, used = [], {True: 0, False: 0}
    for kind, count in zip(whole, classes, strict=True):
        out.append((dealt if kind else moved)[:, used[kind] : used[kind] + count])
        used[kind] += count
    return out


def _of_people(codes: Codes, people: Codes) -> Codes | None:
    """The class of each person, (G,); None where somebody has videos in two classes."""
    found = np.zeros(people.max() + 1, np.intp)
    found[people] = codes
    return found if np.array_equal(found[people], codes) else None


def _places(size: Floats, people: Codes) -> tuple[Codes, Codes]:
    """The bin of each person, by number of videos (G,), and the videos in the order of that number (n,)."""
    rank = np.empty(len(size), np.intp)
    rank[np.argsort(size, kind="stable")] = np.arange(len(size))
    return np.minimum(rank // _BIN, max(0, len(size) // _BIN - 1)), np.argsort(rank[people], kind="stable")


def _moved(rng: np.random.Generator, replicates: int, bins: Codes, people: Codes) -> Codes:
    """Which video stands at each place, (B, n): people in random order within their bin, their videos together."""
    order = np.argsort(bins + rng.random((replicates, len(bins))), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(bins))[None], axis=1)
    return np.argsort(rank[:, people] + 0.5 * rng.random((replicates, len(people))), axis=1)


def _members(codes: Sequence[tuple[Codes, int]], units: int) -> Floats:
    """Which unit is in which class, (units, ΣK): 1 or 0, the classes of all categories one behind the other."""
    blocks = [(of[:, None] == np.arange(count)).astype(np.float64) for of, count in codes]
    return np.concatenate([np.empty((units, 0)), *blocks], axis=1)


def spread(means: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Largest less smallest of the chosen classes, (B,); NaN means are left out.

    Args:
        means: (B, K).
        chosen: (K,), at least one of them a number in every row.
    """
    part = means[:, chosen]
    return np.asarray(np.nanmax(part, axis=1) - np.nanmin(part, axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstGap:
    """Best less worst class of one category in one metric; videos of unknown class are no class.

    Attributes:
        at_least: people a class needs to take part: 1 (every class with a video), or enough for a test.
        groups: number of classes that take part.
        best: class of the largest mean; `worst` of the smallest.
        gap: difference of the two means; biased up, the more so the smaller the classes.
        null_95: the gap that chance alone exceeds in 5 % of permutations of people (1 - confidence of the settings).
        p: (1 + permutations with as large a gap) / (B + 1).
        interval: bootstrap over people, covers at least at the confidence; only where every class has people enough.
        reason: why something is None; empty where nothing is.
    """

    metric: str
    family: Family
    category: str
    sensitive: bool
    at_least: int
    groups: int
    best: str | None
    worst: str | None
    gap: float | None
    null_95: float | None
    p: float | None
    interval: Interval | None
    reason: str


def worst_gaps(metric: str, found: Estimates, families: Sequence[Family], settings: Settings) -> list[WorstGap]:
    """Two rows for every grouping but the overall one: every class, and the classes large enough for a test."""
    parts = found.groupings[1:]
    null = null_means(
        found.scores,
        found.people,
        [grouping.codes for grouping in parts],
        [len(grouping.classes) for grouping in parts],
        settings.replicates,
        settings.seed,
    )
    rows = []
    for grouping, family, start, means in zip(parts, families[1:], found.starts[1:], null, strict=False):
        for least in (1, settings.sufficient_subjects):
            columns = slice(start, start + len(grouping.classes))
            part = np.array(grouping.known) & (found.subjects[columns] >= least)
            rows.append(_worst_gap(metric, family, grouping, least, part, found, columns, means, settings))
    return rows


def _worst_gap(
    metric: str,
    family: Family,
    grouping: Grouping,
    least: int,
    part: NDArray[np.bool_],
    found: Estimates,
    columns: slice,
    null: Floats,
    settings: Settings,
) -> WorstGap:
    where = np.flatnonzero(part)
    best = worst = None
    gap = null_high = p = None
    interval, reason = None, f"{len(where)} classes of at least {people_text(least)}: nothing to compare"
    if len(where) > 1:
        means = found.mean[columns]
        best, worst = where[np.argmax(means[where])], where[np.argmin(means[where])]
        gap, chance = float(means[best] - means[worst]), np.sort(spread(null, part))
        null_high = float(chance[math.ceil(settings.confidence * (len(chance) + 1)) - 1])
        p = float((1 + np.count_nonzero(chance >= gap - 1e-12)) / (len(chance) + 1))
        interval, reason = _gap_interval(gap, grouping, part, found, columns, settings)
    return WorstGap(
        metric=metric,
        family=family,
        category=grouping.category,
        sensitive=grouping.sensitive,
        at_least=least,
        groups=len(where),
        best=None if best is None else grouping.classes[best],
        worst=None if worst is None else grouping.classes[worst],
        gap=gap,
        null_95=null_high,
        p=p,
        interval=interval,
        reason=reason,
    )


def _gap_interval(
    gap: float, grouping: Grouping, part: NDArray[np.bool_], found: Estimates, columns: slice, settings: Settings
) -> tuple[Interval | None, str]:
    """The gap ± the quantile of the range of the errors that resampling gives the means.

    No error of the gap is larger than the range of the errors of the means, also where the best and the worst class
    are alike and the gap is a maximum of noise; the percentile and the basic bootstrap fail there.
    """
    small = np.flatnonzero(part & (found.subjects[columns] < settings.indicative_subjects))
    if len(small):
        name, count = grouping.classes[small[0]], int(found.subjects[columns][small[0]])
        return None, f"{name} has {people_text(count)}: too few for an interval"
    errors = np.sort(spread(found.means[:, columns] - found.mean[columns], part))
    half = errors[math.ceil(settings.confidence * (len(errors) + 1)) - 1]
    low, high = found.span
    return (max(0.0, float(gap - half)), min(high - low, float(gap + half))), ""
