"""What a selection covers, in numbers: every margin of the cells before and after the choice. No Beam, no pictures.

::

    cell = (group, cluster, prototype, class of attribute 1, …)                counts: candidates, quotas: chosen
    margin = a sum over all but one or two of these                            group, cluster, attribute, two attributes

C cells, K classes of a margin. Both the candidates and the chosen frames are counted, every one of them: no share here
is an estimate, so none has an interval. What is not known of a frame is counted as unknown and enters no distribution;
`bounds` says how far a share could lie from the truth, whatever the unknown frames show.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.taxonomy import default_taxonomy
from pipeline.quota import LEVELS
from pipeline.waterfill import water_fill

Kind = Literal["group", "cluster", "attribute", "pair"]
Class = tuple[str, ...]
"""A class of a margin: one name, or two of a pair."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CROSS = " × "
"""Stands between the attributes of a pair."""
_LEAST = 10  # frames of a pair of classes that a selection ought to cover


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked for in one margin.

    Attributes:
        kind: uniform, proportional or table.
        weight: of the margin in the plan.
        wanted: class -> frames, >= 0; unknown ones are left out.
    """

    kind: str
    weight: float
    wanted: Mapping[Class, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A class that did not get what was asked for.

    Attributes:
        margin: its name.
        kind: of the margin.
        names: "group", "cluster", or the attributes.
        classes: one for each name; None = unknown.
        wanted: frames.
        exists: candidate frames.
        chosen: frames.
        missing: whole frames that are still wanted.
        reason: absent, scarce or conflict; empty where none was given.
    """

    margin: str
    kind: Kind
    names: tuple[str, ...]
    classes: tuple[str | None, ...]
    wanted: float
    exists: int
    chosen: int
    missing: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Margin:
    """Frames by class, before and after the choice.

    Attributes:
        name: "group", "cluster", an attribute, or two joined by " × ".
        kind: which of these it is.
        names: "group", "cluster", or the attributes.
        classes: K classes that exist or are wanted, sorted.
        before: (K,) int64 candidate frames.
        after: (K,) int64 chosen frames.
        unknown: candidate and chosen frames whose class is not known.
        target: what was asked for, or None.
    """

    name: str
    kind: Kind
    names: tuple[str, ...]
    classes: tuple[Class, ...]
    before: Ints
    after: Ints
    unknown: tuple[int, int]
    target: Target | None

    def __post_init__(self) -> None:
        count = len(self.classes)
        if self.before.shape != (count,) or self.after.shape != (count,):
            shapes = f"{self.before.shape} and {self.after.shape}"
            raise ValueError(f"margin {self.name!r}: before and after must be ({count},), got {shapes}")
        if (self.after < 0).any() or (self.after > self.before).any():
            raise ValueError(f"margin {self.name!r}: chosen frames must be between 0 and the candidates of their class")

    @property
    def wanted(self) -> Floats | None:
        """(K,) frames asked for, or None."""
        if self.target is None:
            return None
        return np.array([self.target.wanted.get(key, 0.0) for key in self.classes], np.float64)

    @property
    def even(self) -> Ints:
        """(K,) the most even spread of the chosen known frames that the candidates allow, were this margin alone."""
        return water_fill(self.before, int(self.after.sum()))

    @property
    def least(self) -> int:
        """Candidates from which on a class ought to be covered: 1; for a pair of classes 10, or half their mean."""
        existing = int((self.before > 0).sum())
        if self.kind != "pair" or not existing:
            return 1
        return max(1, min(_LEAST, int(self.before.sum()) // (2 * existing)))

    def unknown_shares(self) -> tuple[float | None, float | None]:
        """Unknown candidates over all candidates, unknown chosen frames over all chosen; None where there are none."""
        totals = (int(self.before.sum()) + self.unknown[0], int(self.after.sum()) + self.unknown[1])
        first, second = (u / n if n else None for u, n in zip(self.unknown, totals, strict=True))
        return first, second

    @property
    def figures(self) -> Figures:
        """Its numbers."""
        goal = self.wanted
        called = self.before >= self.least
        return Figures(
            entropy=(entropy(self.before), entropy(self.after)),
            effective=(effective(self.before), effective(self.after), effective(self.even)),
            divergence=(None, None) if goal is None else (divergence(self.before, goal), divergence(self.after, goal)),
            unknown=self.unknown_shares(),
            existing=int(called.sum()),
            covered=int((self.after[called] > 0).sum()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The numbers of a margin; pairs of numbers are of the candidates and of the chosen frames.

    Attributes:
        entropy: nats, over the known classes.
        effective: exp of the entropy (Hill number of order 1; Jost 2006, doi:10.1111/j.2006.0030-1299.14714.x); the
            third is the largest that the candidates allow for as many frames.
        divergence: Kullback-Leibler divergence from the target, nats; infinite where a frame lies in a class that the
            target gives nothing, None without a target or without frames.
        unknown: share of the frames whose class is not known.
        existing: classes with at least `Margin.least` candidates.
        covered: those of them with a chosen frame.
    """

    entropy: tuple[float, float]
    effective: tuple[float, float, float]
    divergence: tuple[float | None, float | None]
    unknown: tuple[float | None, float | None]
    existing: int
    covered: int

    @property
    def covered_share(self) -> float | None:
        """Covered over existing classes; None where none exists."""
        return self.covered / self.existing if self.existing else None

    @property
    def evenness(self) -> float:
        """Effective classes over what is possible, 0..1; 1 where nothing is chosen."""
        return self.effective[1] / self.effective[2] if self.effective[2] else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """A selection in numbers.

    Attributes:
        attributes: in the order of the classes of a cell.
        rounds: 1, or 2: the candidates are then the frames of the first of two choices.
        candidates: frames that could be chosen or were set aside for a dead vector.
        chosen: frames.
        dead: candidates whose vector is dead (path -1, -1); they have no group and no cluster.
        margins: group, cluster, each attribute, each pair of attributes.
        shortfalls: classes that did not get what was asked for: those of people first, then the largest shares.
        total: what the plan says of all targets together ("ours", "least"), where it does.
    """

    attributes: tuple[str, ...]
    rounds: int
    candidates: int
    chosen: int
    dead: int
    margins: tuple[Margin, ...]
    shortfalls: tuple[Shortfall, ...]
    total: Mapping[str, float]

    def of(self, kind: Kind) -> list[Margin]:
        """The margins of one kind."""
        return [margin for margin in self.margins if margin.kind == kind]


def entropy(counts: NDArray[Any]) -> float:
    """Shannon entropy of (K,) counts >= 0 as shares, nats; 0 where all are 0."""
    total = float(counts.sum())
    shares = np.sort(counts[counts > 0]) / total if total else np.zeros(0)
    return max(0.0, -float((shares * np.log(shares)).sum()))


def effective(counts: NDArray[Any]) -> float:
    """Effective number of classes: exp of the entropy; 0 where all counts are 0."""
    return math.exp(entropy(counts)) if counts.sum() else 0.0


def divergence(counts: NDArray[Any], target: NDArray[Any]) -> float | None:
    """Kullback-Leibler divergence of counts from a target, nats, both as shares.

    Args:
        counts: (K,) >= 0.
        target: (K,) >= 0.

    Returns:
        >= 0; infinite where counts lie in a class of target 0; None where the counts or the target are 0 throughout.
    """
    if not counts.sum() or not target.sum():
        return None
    found, goal = counts / counts.sum(), target / target.sum()
    held = found > 0
    if (goal[held] <= 0).any():
        return math.inf
    return max(0.0, float(np.sort(found[held] * np.log(found[held] / goal[held])).sum()))


def bounds(counts: Ints, unknown: int) -> tuple[Floats, Floats]:
    """Least and largest share of each class among all frames, whatever the unknown ones show.

    No assumption is made on the unknown frames (Manski 1989, "Anatomy of the selection problem").

    Args:
        counts: (K,) frames of each known class.
        unknown: frames whose class is not known.

    Returns:
        (K,) and (K,) in [0, 1]; 0 and 1 where there are no frames.
    """
    total = int(counts.sum()) + unknown
    if not total:
        return np.zeros(len(counts)), np.ones(len(counts))
    return counts / total, (counts + unknown) / total


def coverage(plan: Mapping[str, Any], *, rounds: int = 1) -> Coverage:
    """All numbers of a selection.

    Args:
        plan: "attributes", "counts" and "quotas" per cell; "targets" and "shortfall" where there are any.
        rounds: in how many rounds the frames were chosen; the plan is that of the last.

    Raises:
        ValueError: ``rounds`` is neither 1 nor 2, a cell is not of the shape the attributes ask for, a quota exceeds
            its cell, or a target names a margin that does not exist.
    """
    if rounds not in (1, 2):
        raise ValueError(f"rounds must be 1 or 2, got {rounds}")
    attributes = tuple(plan["attributes"])
    names = sorted(plan["counts"])
    before = np.array([plan["counts"][name] for name in names], np.int64)
    after = _after(names, before, plan)
    columns = _columns(names, attributes)
    targets, shortfalls = _targets(plan.get("targets", ()), attributes)
    margins = tuple(_margins(columns, before, after, targets))
    return Coverage(
        attributes=attributes,
        rounds=rounds,
        candidates=int(before.sum()),
        chosen=int(after.sum()),
        dead=margins[0].unknown[0],
        margins=margins,
        shortfalls=tuple(sorted(shortfalls, key=_severity)),
        total={key: float(value) for key, value in dict(plan.get("shortfall") or {}).items() if value is not None},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One place of the cells: (C,) numbers of the labels, -1 where unknown."""

    kind: Kind
    name: str
    codes: Ints
    labels: list[str]


def _after(names: Sequence[str], before: Ints, plan: Mapping[str, Any]) -> Ints:
    strange = sorted(set(plan["quotas"]) - set(plan["counts"]))
    if strange:
        raise ValueError(f"plan: the quota of cell {strange[0]} has no count; plan again")
    after = np.array([plan["quotas"].get(name, 0) for name in names], np.int64)
    wrong = np.flatnonzero((after < 0) | (after > before))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"plan: the quota of cell {names[at]} must be 0 to {before[at]}, got {after[at]}; plan again")
    return after


def _columns(names: Sequence[str], attributes: Sequence[str]) -> list[_Column]:
    cells = [_parsed(name, len(LEVELS) + len(attributes)) for name in names]
    heads: list[tuple[Kind, str]] = [
        ("group", "group"),
        ("cluster", "cluster"),
        *(("attribute", n) for n in attributes),
    ]
    out = []
    for (kind, name), at in zip(heads, (0, 1, *range(len(LEVELS), len(LEVELS) + len(attributes))), strict=True):
        values = [cell[at] for cell in cells]
        if kind != "attribute":
            values = [None if value < 0 else value for value in values]
        labels = sorted({value for value in values if value is not None})
        numbers = {value: number for number, value in enumerate(labels)}
        codes = np.array([-1 if value is None else numbers[value] for value in values], np.int64)
        out.append(_Column(kind=kind, name=name, codes=codes, labels=[str(label) for label in labels]))
    return out


def _parsed(name: str, width: int) -> list[Any]:
    cell: list[Any] = json.loads(name)
    whole = isinstance(cell, list) and len(cell) == width and all(type(v) is int for v in cell[: len(LEVELS)])
    if not whole or not all(value is None or isinstance(value, str) for value in cell[len(LEVELS) :]):
        wanted = f"[{', '.join(LEVELS)}, {width - len(LEVELS)} classes]"
        raise ValueError(f"plan: a cell must be {wanted}, got {name}; plan again")
    return cell


def _margins(
    columns: Sequence[_Column], before: Ints, after: Ints, targets: Mapping[tuple[str, bool], Target]
) -> Iterator[Margin]:
    for column in columns:
        kind = column.kind
        # a target named "group" or "cluster" is the tree's, also where an attribute bears that name
        taken = kind == "attribute" and column.name in ("group", "cluster")
        target = None if taken else targets.get((column.name, False))
        numbers, known = np.unique(column.codes, return_inverse=True)
        classes: list[Class | None] = [None if n < 0 else (column.labels[n],) for n in numbers.tolist()]
        yield _margin(kind, (column.name,), classes, known, (before, after), target)
    for one, two in itertools.combinations([c for c in columns if c.kind == "attribute"], 2):
        joint = np.where((one.codes < 0) | (two.codes < 0), -1, one.codes * len(two.labels) + two.codes)
        numbers, known = np.unique(joint, return_inverse=True)
        names = (divmod(n, len(two.labels)) if n >= 0 else None for n in numbers.tolist())
        classes = [None if p is None else (one.labels[p[0]], two.labels[p[1]]) for p in names]
        target = targets.get((one.name + CROSS + two.name, True))
        yield _margin("pair", (one.name, two.name), classes, known, (before, after), target)


def _margin(
    kind: Kind,
    names: tuple[str, ...],
    classes: Sequence[Class | None],
    codes: NDArray[np.intp],
    frames: tuple[Ints, Ints],
    target: Target | None,
) -> Margin:
    sums = [np.bincount(codes, weights=each, minlength=len(classes)).astype(np.int64).tolist() for each in frames]
    counted = {key: (b, a) for key, b, a in zip(classes, *sums, strict=True)}
    unknown = counted.pop(None, (0, 0))
    known: dict[Class, tuple[int, int]] = {key: pair for key, pair in counted.items() if key is not None}
    every = sorted({*known, *(target.wanted if target else ())}, key=_rank if kind in ("group", "cluster") else None)
    pairs = np.array([known.get(key, (0, 0)) for key in every], np.int64).reshape(-1, 2)
    return Margin(
        name=CROSS.join(names),
        kind=kind,
        names=names,
        classes=tuple(every),
        before=pairs[:, 0].copy(),
        after=pairs[:, 1].copy(),
        unknown=unknown,
        target=target,
    )


def _rank(key: Class) -> tuple[int, str]:
    """Numbers in their order."""
    return (int(key[0]) if key[0].isdecimal() else -1, key[0])


def _targets(
    given: Sequence[Mapping[str, Any]], attributes: Sequence[str]
) -> tuple[dict[tuple[str, bool], Target], list[Shortfall]]:
    """What was asked for by (name of the margin, whether it is a pair), and what of it is missing."""
    known: dict[tuple[str, bool], tuple[Kind, tuple[str, ...]]] = {}
    known |= {(a + CROSS + b, True): ("pair", (a, b)) for a, b in itertools.combinations(attributes, 2)}
    known |= {(name, False): ("attribute", (name,)) for name in attributes}
    known |= {("group", False): ("group", ("group",)), ("cluster", False): ("cluster", ("cluster",))}
    out: dict[tuple[str, bool], Target] = {}
    missing: list[Shortfall] = []
    for raw in given:
        classes = [(_class(entry["class"]), entry) for entry in raw["classes"]]
        is_pair = any(len(key) > 1 for key, _ in classes) or (raw["margin"], False) not in known
        place = (raw["margin"], is_pair)
        if place not in known or place in out:
            what = "twice" if place in out else "for a margin that no cell has"
            raise ValueError(f"plan: a target is given {what}: {raw['margin']!r}; plan again")
        kind, names = known[place]
        wanted = {key: float(entry["target"]) for key, entry in classes if None not in key}
        out[place] = Target(kind=str(raw["kind"]), weight=float(raw["weight"]), wanted=wanted)  # type: ignore[arg-type]
        missing += [_shortfall(raw["margin"], kind, names, key, e) for key, e in classes if e.get("missing")]
    return out, missing


def _class(value: object) -> tuple[str | None, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(None if one is None else str(one) for one in values)


def _shortfall(
    margin: str, kind: Kind, names: tuple[str, ...], classes: tuple[str | None, ...], entry: Mapping[str, Any]
) -> Shortfall:
    return Shortfall(
        margin=margin,
        kind=kind,
        names=names,
        classes=classes,
        wanted=float(entry["target"]),
        exists=int(entry["exists"]),
        chosen=int(entry["chosen"]),
        missing=int(entry["missing"]),
        reason=str(entry.get("reason") or ""),
    )


def _severity(one: Shortfall) -> tuple[int, float, int, str, tuple[str, ...]]:
    """Attributes of people first, then others, then clusters, which nobody can film; in each the largest share missing.

    A class that asks for more frames than another is not the worse served for it, so shares are compared, not frames.
    """
    rank = 2 if one.kind in ("group", "cluster") else 0 if _people().intersection(one.names) else 1
    share = one.missing / one.wanted if one.wanted > 0 else 0.0
    return (rank, -round(share, 9), -one.missing, one.margin, tuple(c or "" for c in one.classes))


def _people() -> set[str]:
    """Names of the attributes of people: those that stay with a person or are sensitive."""
    return {c.name for c in default_taxonomy().categories if c.level == "subject" or c.sensitive}
