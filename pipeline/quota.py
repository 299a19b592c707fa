"""How many frames each cell gives: targets for clusters and attributes, one greedy choice, and what cannot be met.

::

    cell   (group, cluster, prototype, class of attribute 1, class of attribute 2, …) with a count of frames
    margin one way to split all cells: by a level of the tree, by an attribute, by a pair; each of its classes has a
           share τ of the target, and the shares sum to 1

The plan makes Σ_m w_m log Multinomial(n_m; N, τ_m) large: the counts n_m of every margin shall be those that its
targets make likeliest (to first order, the weighted sum of KL(n_m / N ‖ τ_m) is least). One frame more in a class of n
frames adds log τ - log(n + 1), whatever N is, so the greedy choice takes the same frames in the same order for every N:
a smaller selection is part of a larger one. For one margin, and for margins nested in each other, greedy is exact;
with τ equal it is water-filling (D'Hondt's divisors). What a class cannot give goes where the shares are short next.

C cells, M margins, V classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from manifests.stats import CLUSTER_LEVELS
from pipeline.errors import InputError

LEVELS = CLUSTER_LEVELS
"""The levels of the tree, coarse to fine."""
OF_SOURCE = "frame_of_source"
"""The attribute that spreads the choice over sources: "1" for one frame of each, "2-3" for the next two, "4-7", …"""
UNKNOWN, OTHERS = "unknown", "*"
Kind = Literal["uniform", "proportional", "table"]
Reason = Literal["absent", "scarce", "conflict"]
Targets = Mapping[str, str | Mapping[str, float]]
_NEVER = 1e-9
_WORKING, _WORKING_OF_MANY = 512, 2048
_EXACT_CELLS, _STALE = 20_000, 128
_WHOLE_CELLS, _MOST_CELLS = 200, 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectConfig:
    """Settings of the selection.

    Attributes:
        attributes: which attributes to balance; empty = all that are computed or given.
        pairs: attributes whose pairs of classes are balanced as well.
        targets: per attribute, or per pair as "one+other": "uniform", "proportional" (as in the pool), or a table of
            weights per class. In a table "*" stands for the classes that are not listed (0 without it).
        unknown: weight of the frames of which an attribute is not known, where a known class weighs 1.
        group_weight: weight of the spread over the groups of clusters.
        cluster_weight: weight of the spread over clusters.
        prototype_weight: weight of the spread over the prototypes of clusters.
        attribute_weight: weight of all attributes together, shared equally.
        pair_weight: weight of all pairs together, shared equally.
        source_weight: weight of the spread over sources: three of four frames shall be the first of their sources, in
            the order of their hashes, three of four others the second or third, and so on.
        per_source: most frames of one source; 0 = no limit.
        rounds: 1, or 2: label a larger first choice, and choose from it by what the masks tell as well.
        oversample: size of the first of two choices, in multiples of the target.
    """

    attributes: tuple[str, ...] = field(default=())
    pairs: tuple[tuple[str, str], ...] = field(default=())
    targets: Targets = field(default_factory=dict)
    unknown: float = 0.25
    group_weight: float = 0.5
    cluster_weight: float = 1.0
    prototype_weight: float = 0.2
    attribute_weight: float = 15.0
    pair_weight: float = 4.0
    source_weight: float = 2.0
    per_source: int = 1000
    rounds: int = 1
    oversample: float = 3.0

    def __post_init__(self) -> None:
        weights = (*(f"{level}_weight" for level in LEVELS), "attribute_weight")
        for name in (*weights, "pair_weight", "source_weight", "unknown"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"select.{name} must be finite and >= 0, got {getattr(self, name)}")
        if sum(getattr(self, name) for name in weights) <= 0:
            raise ValueError(f"select: at least one of {', '.join(weights)} must be > 0")
        if self.per_source < 0:
            raise ValueError(f"select.per_source must be >= 0 (0 = no limit), got {self.per_source}")
        if self.rounds not in (1, 2):
            raise ValueError(f"select.rounds must be 1 or 2, got {self.rounds}")
        if not 1 < self.oversample <= 100:
            raise ValueError(f"select.oversample must be above 1 and at most 100, got {self.oversample}")
        _check_pairs(self.pairs)
        for name, target in self.targets.items():
            _check_target(name, target)


def _check_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    if any(one == other for one, other in pairs) or len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise ValueError(f"select.pairs must be distinct pairs of two attributes, got {list(pairs)}")


def _check_target(name: str, target: str | Mapping[str, float]) -> None:
    if name == OF_SOURCE:
        raise ValueError(f"select.targets cannot set '{OF_SOURCE}'; use select.source_weight and select.per_source")
    if isinstance(target, str):
        if target not in ("uniform", "proportional"):
            raise ValueError(f"select.targets.{name} must be 'uniform', 'proportional' or a table, got {target!r}")
        return
    bad = [key for key, weight in target.items() if not (math.isfinite(weight) and weight >= 0)]
    if bad:
        raise ValueError(f"select.targets.{name}.{bad[0]} must be finite and >= 0, got {target[bad[0]]}")
    if not sum(target.values()) > 0:
        raise ValueError(f"select.targets.{name} must give some class a weight above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """One way to split the cells.

    Attributes:
        name: a level of the tree, an attribute, or "one+other" for a pair.
        kind: where its shares come from.
        weight: of the margin in the plan.
        classes: V names; a number for clusters, None for unknown; a pair of names for pairs.
        member: (C,) int64, the class of each cell.
        share: (V,) float64, sums to 1.
    """

    name: str
    kind: Kind
    weight: float
    classes: tuple[Any, ...]
    member: NDArray[np.int64]
    share: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPlan:
    """What a class of a margin should, can and will give, in frames.

    Attributes:
        name: of the class.
        target: share times N.
        exists: in the pool.
        chosen: by the plan.
        reason: why fewer than the target are chosen: none exists; fewer exist; or other targets stand against it.
    """

    name: Any
    target: float
    exists: int
    chosen: int
    reason: Reason | None

    @property
    def missing(self) -> float:
        """Frames short of the target; 0 where the target is met to within a frame and 2 %."""
        return self.target - self.chosen if self.reason else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaPlan:
    """Quotas, and how far the targets are met.

    Attributes:
        quotas: frames per cell; they sum to N.
        margins: the margins with their classes.
        shortfall: frames missing, summed over the known classes of all attributes and pairs.
    """

    quotas: dict[str, int]
    margins: tuple[tuple[Margin, tuple[ClassPlan, ...]], ...]
    shortfall: float


def plan_quotas(
    counts: Mapping[str, int],
    target: int,
    config: SelectConfig,
    attributes: Sequence[str] = (),
    classes: Mapping[str, Sequence[str]] | None = None,
) -> QuotaPlan:
    """How many frames to take from each cell: exactly ``target`` in sum, from no cell more than it holds.

    Equal for any order of ``counts``. With uniform targets, frames added to a cell that is not taken whole change no
    quota; frames added to one that is taken whole only move what that cell takes more away from others.

    Args:
        counts: frames per cell (names by ``select.cell_name``, all of one shape).
        target: N, >= 0.
        config: weights and targets.
        attributes: names of the classes of a cell, in their order.
        classes: classes that an attribute may have, whether they occur or not; others are taken as found.

    Raises:
        InputError: fewer frames exist than ``target``, or a target names an attribute or class that is not there.
    """
    if target > sum(counts.values()):
        raise InputError(shortfall_text(counts, target))
    cells = sorted(
        ((json.loads(name), name) for name, count in counts.items() if count > 0), key=lambda c: _order(c[0])
    )
    capacity = np.array([counts[name] for _, name in cells], np.int64)
    margins = _margins([values for values, _ in cells], capacity, config, attributes, classes or {})
    taken = _greedy(margins, capacity, target)
    checked = [margin for margin in margins if margin.name not in (*LEVELS, OF_SOURCE)]
    return QuotaPlan(
        quotas={name: int(n) for (_, name), n in zip(cells, taken, strict=True)},
        margins=tuple((margin, _class_plans(margin, capacity, taken, target)) for margin in margins),
        shortfall=sum(_missing(margin, taken, target) for margin in checked),
    )


def least_shortfall(counts: Mapping[str, int], plan: QuotaPlan) -> float | None:
    """The least ``shortfall`` that any N frames of the pool have: what no other plan could better.

    A mixed-integer program over frames per cell and what each class lacks. Beyond 200 cells its relaxation, a lower
    bound; beyond 20,000 cells None.
    """
    margins = [margin for margin, _ in plan.margins if margin.name not in (*LEVELS, OF_SOURCE)]
    return _least(margins, np.array([counts[name] for name in plan.quotas], np.int64), sum(plan.quotas.values()))


def shortfall_text(counts: Mapping[str, int], target: int) -> str:
    """The message for a target above what exists: how many frames each group of clusters holds."""
    groups: dict[int, int] = {}
    for name, count in counts.items():
        group = json.loads(name)[0]
        groups[group] = groups.get(group, 0) + count
    listed = ", ".join(f"group {k}: {v}" for k, v in sorted(groups.items(), key=lambda kv: (-kv[1], kv[0]))[:12])
    return (
        f"--target-size {target} is above what exists: {sum(counts.values())} different frames after decoding, "
        f"sampling, thinning in time and removal of duplicates ({listed or 'none'}); give more input, raise "
        "probe.scan.rate_hz or select.per_source, lower embed.thin.still_seconds, or lower the target"
    )


def _order(values: Sequence[Any]) -> tuple[Any, ...]:
    return (*values[: len(LEVELS)], *((value is None, value or "") for value in values[len(LEVELS) :]))


def _margins(
    cells: Sequence[Sequence[Any]],
    capacity: NDArray[np.int64],
    config: SelectConfig,
    attributes: Sequence[str],
    classes: Mapping[str, Sequence[str]],
) -> list[Margin]:
    """All margins of weight above 0."""
    _check_names(config, attributes)
    columns = {name: [cell[len(LEVELS) + i] for cell in cells] for i, name in enumerate(attributes)}
    made = _tree_margins(np.array([cell[: len(LEVELS)] for cell in cells], np.int64).reshape(-1, len(LEVELS)), config)
    for name, values in columns.items():
        known = _known(values, classes.get(name, ()))
        if name == OF_SOURCE:
            made.append(_source_margin(values, config.source_weight))
            continue
        weight = config.attribute_weight / sum(other != OF_SOURCE for other in columns)
        made.append(_margin(name, [*known, None], values, capacity, weight, config))
    for one, other in config.pairs:
        parts = [_known(columns[name], classes.get(name, ())) for name in (one, other)]
        values = [None if None in pair else pair for pair in zip(columns[one], columns[other], strict=True)]
        every = [(a, b) for a in parts[0] for b in parts[1]]
        weight = config.pair_weight / len(config.pairs)
        made.append(_margin(f"{one}+{other}", [*every, None], values, capacity, weight, config))
    return [margin for margin in made if margin.weight > 0]


def _check_names(config: SelectConfig, attributes: Sequence[str]) -> None:
    pairs = [f"{one}+{other}" for one, other in config.pairs]
    for name in (name for pair in config.pairs for name in pair):
        if name not in attributes:
            raise InputError(
                f"select.pairs names '{name}', which is not balanced; balanced are {', '.join(attributes)}"
            )
    for name in config.targets:
        if name not in attributes and name not in pairs:
            known = ", ".join([*attributes, *pairs])
            raise InputError(f"select.targets names '{name}', which is not balanced; balanced are {known}")


def _known(values: Sequence[str | None], listed: Sequence[str]) -> list[str]:
    return [*listed, *sorted({value for value in values if value is not None} - set(listed))]


def _tree_margins(paths: NDArray[np.int64], config: SelectConfig) -> list[Margin]:
    """The levels of the tree: a group's share is as the root of the number of its clusters, shared equally below.

    That is in between an equal share for every group, which starves the clusters of a rich one, and for every cluster.
    """
    made: list[Margin] = []
    share, parents = np.ones(1), np.zeros(len(paths), np.int64)
    for level, name in enumerate(LEVELS):
        names, first, member = np.unique(paths[:, level], return_index=True, return_inverse=True)
        parent = parents[first]
        if level:
            share = share[parent] / np.bincount(parent, minlength=len(share))[parent]
        else:
            root = np.sqrt(np.bincount(member[np.unique(paths[:, 1], return_index=True)[1]]))
            share = root / max(root.sum(), _NEVER)
        weight = getattr(config, f"{name}_weight")
        classes = tuple(names.tolist())
        made.append(Margin(name=name, kind="uniform", weight=weight, classes=classes, member=member, share=share))
        parents = member
    return made


def _source_margin(values: Sequence[str], weight: float) -> Margin:
    classes = sorted(set(values), key=lambda value: int(value.split("-")[0]))
    number = {value: i for i, value in enumerate(classes)}
    member = np.array([number[value] for value in values], np.int64)
    share = 0.25 ** np.array([int(value.split("-")[0]).bit_length() for value in classes], np.float64)
    share = share / max(share.sum(), _NEVER)
    return Margin(name=OF_SOURCE, kind="table", weight=weight, classes=tuple(classes), member=member, share=share)


def _margin(
    name: str,
    classes: Sequence[Any],
    values: Sequence[Any],
    capacity: NDArray[np.int64],
    weight: float,
    config: SelectConfig,
) -> Margin:
    """The margin of an attribute or a pair; its last class is "unknown"."""
    number = {value: i for i, value in enumerate(classes)}
    member = np.array([number[value] for value in values], np.int64)
    target = config.targets.get(name, "uniform")
    if target == "proportional":
        share = np.bincount(member, capacity, len(classes)).astype(np.float64)
    elif isinstance(target, str):
        share = np.array([1.0] * (len(classes) - 1) + [config.unknown], np.float64)
    else:
        share = _table_shares(name, classes, target, config.unknown)
    if len(classes) == 1:  # nothing is known of any frame
        share = np.ones(1, np.float64)
    kind: Kind = "table" if not isinstance(target, str) else "proportional" if target == "proportional" else "uniform"
    share = share / max(share.sum(), _NEVER)
    return Margin(name=name, kind=kind, weight=weight, classes=tuple(classes), member=member, share=share)


def _table_shares(name: str, classes: Sequence[Any], table: Mapping[str, float], unknown: float) -> NDArray[np.float64]:
    names = ["+".join(c) if isinstance(c, tuple) else c for c in classes[:-1]]
    strange = sorted(set(table) - {*names, OTHERS, UNKNOWN})
    if strange:
        raise InputError(
            f"select.targets.{name} names '{strange[0]}', which is no class; classes are {', '.join(names)}"
        )
    share = [table.get(known, table.get(OTHERS, 0.0)) for known in names]
    mean = sum(share) / max(1, len(share))
    return np.array([*share, table.get(UNKNOWN, unknown * mean)])


def _greedy(margins: Sequence[Margin], capacity: NDArray[np.int64], target: int) -> NDArray[np.int64]:
    """(C,) frames per cell, one after another where the gain is largest; of equal gains the first cell.

    Gains only fall. So between two looks at all cells only those are compared whose gain was among the best at the last
    look, until the best of them falls below that mark: the same choice as from all cells. In balance nearly all gains
    are equal, and of very many cells the mark is reached at once; then the same few cells give up to 1/128 of what is
    taken before all are looked at again: an approximation, close to the greedy choice. How far a look reaches is a
    function of what is taken already, never of N.
    """
    left, many = capacity.copy(), len(capacity) > _EXACT_CELLS
    starts = np.cumsum([0, *(len(margin.share) for margin in margins)])
    shifted = [m.member + start for m, start in zip(margins, starts, strict=False)]
    member = np.array(shifted, np.int64).reshape(len(margins), len(capacity))
    weight = np.repeat(np.array([m.weight for m in margins], np.float64), np.diff(starts))
    base = np.concatenate([np.zeros(0), *(m.weight * np.log(np.maximum(m.share, _NEVER)) for m in margins)])
    filled = np.zeros(len(base), np.int64)
    score = base.copy()
    done, working = 0, _WORKING_OF_MANY if many else _WORKING
    while done < target:
        gains = _gains(score, member, left)
        mark = np.partition(gains, -working)[-working] if len(gains) > working else -np.inf
        near = np.flatnonzero((gains >= mark) & (left > 0))
        part, room = np.ascontiguousarray(member[:, near]), left[near]
        before, until = done, min(target, done + done // _STALE) if many else done
        while done < target:
            gain = _gains(score, part, room)
            best = int(gain.argmax())
            if not room[best] or (gain[best] < mark and done >= until):
                break
            room[best] -= 1
            done += 1
            touched = part[:, best]
            filled[touched] += 1
            score[touched] = base[touched] - weight[touched] * np.log1p(filled[touched])
        left[near] = room
        if not many and done - before < working // 8:
            working = min(2 * working, 1 << 16)
    return capacity - left


def _gains(score: NDArray[np.float64], member: NDArray[np.int64], left: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C,) gain of one frame more of each cell, from the (M, C) classes of the cells; -inf where none is left."""
    gains = np.where(left > 0, 0.0, -np.inf)
    for classes in member:
        gains += score[classes]
    return gains


def _class_plans(
    margin: Margin, capacity: NDArray[np.int64], taken: NDArray[np.int64], target: int
) -> tuple[ClassPlan, ...]:
    exists, chosen = (np.bincount(margin.member, n, len(margin.share)) for n in (capacity, taken))
    return tuple(
        ClassPlan(
            name=name,
            target=wanted,
            exists=int(held),
            chosen=int(got),
            reason=None if name is None else _reason(wanted, held, got),
        )
        for name, wanted, held, got in zip(
            margin.classes, (margin.share * target).tolist(), exists, chosen, strict=True
        )
    )


def _reason(target: float, exists: float, chosen: float) -> Reason | None:
    if target - chosen < max(1.0, 0.02 * target):
        return None
    return "absent" if exists == 0 else "scarce" if exists < target else "conflict"


def _wanted(margin: Margin, target: int) -> NDArray[np.float64]:
    """(V,) frames that shall be there; frames of which nothing is known are missed by nobody."""
    return np.where([name is None for name in margin.classes], 0.0, margin.share * target)


def _missing(margin: Margin, taken: NDArray[np.int64], target: int) -> float:
    chosen = np.bincount(margin.member, taken, len(margin.share))
    return float(np.maximum(_wanted(margin, target) - chosen, 0).sum())


def _least(margins: Sequence[Margin], capacity: NDArray[np.int64], target: int) -> float | None:
    cells, classes = len(capacity), sum(len(margin.share) for margin in margins)
    if cells > _MOST_CELLS:
        return None
    if not classes or not cells:
        return 0.0
    starts = np.cumsum([0, *(len(margin.share) for margin in margins)])
    rows = np.concatenate([margin.member + start for margin, start in zip(margins, starts, strict=False)])
    columns = np.tile(np.arange(cells), len(margins))
    table = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(classes, cells))
    wanted = np.concatenate([_wanted(margin, target) for margin in margins])
    solved = milp(
        np.concatenate([np.zeros(cells), np.ones(classes)]),
        integrality=np.concatenate([np.full(cells, int(cells <= _WHOLE_CELLS)), np.zeros(classes)]),
        bounds=Bounds(0, np.concatenate([capacity, np.full(classes, np.inf)])),
        constraints=[
            LinearConstraint(sparse.hstack([table, sparse.eye(classes)]), wanted, np.inf),
            LinearConstraint(sparse.csr_matrix(np.concatenate([np.ones(cells), np.zeros(classes)])), target, target),
        ],
        options={"node_limit": 10_000},
    )
    return None if solved.x is None or solved.status != 0 else float(solved.fun)
