"""Cluster-held-out, audit-calibrated cleaning: what becomes of each label.

A teacher labels; a student that never saw the sample's cluster predicts; a label is suspect where both are sure and
differ. Everything is counted and decided per cluster: one global threshold would empty the hard clusters.

```
disagreement.features ─▶ corruption.corruption ─▶ corruption.gate ─▶ decide ─▶ disagreement.correct
                         q per sample, ê per      is q to be
                         cluster                  trusted here?
```

All names of the three modules can be imported from here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from students.corruption import ENOUGH, Audit, Corruption, Gate, Ints, Rate, corruption, gate
from students.disagreement import EMPTY, FULL, Features, correct, features

__all__ = [
    "MOSTLY_WRONG",
    "Audit",
    "Corruption",
    "Decision",
    "Features",
    "Gate",
    "Policy",
    "Rate",
    "Rules",
    "Verdict",
    "correct",
    "corruption",
    "decide",
    "features",
    "gate",
]

MOSTLY_WRONG = "mostly-wrong"  # the reason of a hold: people found most of the cluster wrong

Verdict = Literal["keep", "drop", "hold", "correct", "weight"]
Policy = Literal["auto", "correct", "drop", "weight"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The thresholds of ``decide``.

    Attributes:
        cap: At most this share of a cluster is acted upon.
        review: This share of a cluster whose gate failed is held for a person, at least one sample.
        floor: At least this share of each cluster and of each attribute value is neither dropped nor held.
        flag: q from which a sample within the budget is flagged: it is rather wrong than right.
        doubt: q from which an unflagged sample loses weight.
        part: Share of |T ∪ P| from which a part that no correction mends condemns a label.
        unstable: Stability above which a student's correction is not believed.
        local: Disagreement (miss + extra) up to which a label can be corrected.
    """

    cap: float = 0.6
    review: float = 0.1
    floor: float = 0.4
    flag: float = 0.5
    doubt: float = 0.2
    part: float = 0.05
    unstable: float = 0.06
    local: float = 0.5

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rules.{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What becomes of a label: the verdict, why, its weight in training (0 for drop and hold), and q."""

    verdict: Verdict
    reasons: tuple[str, ...]
    weight: float
    q: float


def decide(
    samples: Sequence[Features],
    clusters: Ints,
    rated: Corruption,
    gates: Mapping[int, Gate],
    *,
    ids: Sequence[str],
    groups: Mapping[str, NDArray[np.generic]] | None = None,
    policy: Policy = "auto",
    rules: Rules | None = None,
) -> list[Decision]:
    """One decision per sample; equal samples in another order get equal decisions (ties go by id).

    1. A label that shows nobody, or only people, against the student is held for a person to look at. So is the whole
       of a cluster of which people looked at 5 labels or more and found more than ``rules.cap`` to be wrong (lower 90 %
       bound).
    2. Each cluster acts on its worst round(ê · n), at most ``rules.cap`` of it; where the gate is uncertain these lose
       weight. Where it failed, q and ê are not trusted: the largest disagreements, ``rules.review`` of the cluster, are
       held, and nothing is dropped.
    3. Where it passed, "auto" corrects what is local and certain; what no correction mends it drops, or takes weight
       from where q is not calibrated. "correct" corrects the same and takes weight from the rest; "drop" and "weight"
       do just that.
    4. A drop or hold of 2 and 3 that would leave a cluster or an attribute value below ``rules.floor`` becomes a
       weight, or is kept where q is not trusted.
    5. An unflagged sample with q ≥ ``rules.doubt`` weighs 1 − q, at least .5, where the gate passed.

    Args:
        samples: n features.
        clusters: (n,) int.
        rated: q and ê of these samples.
        gates: The gate of each cluster.
        ids: n unique names.
        groups: Attribute columns, each (n,), whose values keep the floor too.
        policy: What may be done with flagged samples.
        rules: Thresholds.

    Raises:
        ValueError: If lengths differ, an id occurs twice, or a cluster has no gate or rate.
    """
    labels = np.asarray(clusters, np.int64)
    columns = {"cluster": labels, **(groups or {})}
    _check(samples, columns, rated, gates, ids)
    case = _Case(samples, labels, rated, gates, ids, rules or Rules(), policy)
    decisions = [case.unflagged(i) for i in range(len(samples))]
    stated = {i: reason for i in range(len(samples)) if (reason := case.stated(i) or case.condemned(i))}
    for i, reason in stated.items():
        decisions[i] = _decision("hold", (reason,), case.q[i])
    proposed = {i: case.flagged(i) for i in case.worst() if i not in stated}
    room = _Room(columns, case.rules.floor, stated)
    for i in sorted(proposed, key=case.rank):
        harsh = proposed[i].verdict in ("drop", "hold")
        decisions[i] = case.spared(proposed[i]) if harsh and not room.take(i) else proposed[i]
    return decisions


def _check(
    samples: Sequence[Features],
    columns: Mapping[str, NDArray[np.generic]],
    rated: Corruption,
    gates: Mapping[int, Gate],
    ids: Sequence[str],
) -> None:
    n = len(samples)
    for name, values in {**columns, "q": rated.q}.items():
        if values.shape != (n,):
            raise ValueError(f"{name} must be ({n},), got {values.shape}")
    if len(ids) != n or len(set(ids)) != n:
        raise ValueError(f"ids must be {n} unique names, got {len(ids)} with {len(set(ids))} different ones")
    if without := set(columns["cluster"].tolist()) - (set(gates) & set(rated.rates)):
        raise ValueError(f"clusters {sorted(without)} have no gate or no rate; pass those of the same samples")


def _decision(verdict: Verdict, reasons: tuple[str, ...], q: float) -> Decision:
    weights = {"keep": 1.0, "correct": 1.0, "weight": max(0.5, 1 - q), "drop": 0.0, "hold": 0.0}
    return Decision(verdict=verdict, reasons=reasons, weight=weights[verdict], q=q)


class _Room:
    """How many samples each cluster and attribute value can still lose."""

    def __init__(self, columns: Mapping[str, NDArray[np.generic]], floor: float, lost: Mapping[int, str]) -> None:
        self._index: list[NDArray[np.int64]] = []
        self._left: list[NDArray[np.int64]] = []
        for values in columns.values():
            _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
            gone = np.bincount(index[list(lost)], minlength=len(counts)) if lost else np.zeros_like(counts)
            self._index.append(index)
            self._left.append(counts - np.ceil(counts * floor - 1e-9).astype(np.int64) - gone)

    def take(self, i: int) -> bool:
        """Whether sample ``i`` may go; if so it is counted."""
        if any(left[index[i]] <= 0 for index, left in zip(self._index, self._left, strict=True)):
            return False
        for index, left in zip(self._index, self._left, strict=True):
            left[index[i]] -= 1
        return True


class _Case:
    """All that a decision looks at."""

    def __init__(
        self,
        samples: Sequence[Features],
        labels: Ints,
        rated: Corruption,
        gates: Mapping[int, Gate],
        ids: Sequence[str],
        rules: Rules,
        policy: Policy,
    ) -> None:
        self.samples, self.ids, self.rated, self.rules, self.policy = samples, ids, rated, rules, policy
        self.labels, self.gates = labels, gates
        self.q: list[float] = rated.q.tolist()
        self.outcomes = [gates[c].outcome for c in labels.tolist()]

    def stated(self, i: int) -> str:
        """Why a label needs a person's eyes whatever q says; empty where it does not, or the student has collapsed."""
        f = self.samples[i]
        if self.gates[int(self.labels[i])].collapsed:
            return ""
        if f.teacher_area < EMPTY and f.student_area >= EMPTY and f.miss > 0:
            return "nobody-labelled-but-seen"
        if f.teacher_area > FULL and f.student_area <= FULL:
            return "whole-image-labelled"
        return ""

    def condemned(self, i: int) -> str:
        """Why the whole cluster of a sample needs a person's eyes; empty where it does not."""
        rate = self.rated.rates[int(self.labels[i])]
        seen = self.rated.counted and rate.samples >= ENOUGH  # its own audit, not its neighbours'
        return MOSTLY_WRONG if seen and rate.low > self.rules.cap else ""

    def rank(self, i: int) -> tuple[float, float, str]:
        """Ascending from the worst: by q, or by plain disagreement where q is not trusted; then by id."""
        amount = self.samples[i].miss + self.samples[i].extra
        return (-amount if self.outcomes[i] == "failed" else -self.q[i]), -amount, self.ids[i]

    def worst(self) -> list[int]:
        """The samples within their cluster's budget and bad enough to be acted upon."""
        chosen: list[int] = []
        for cluster in np.unique(self.labels):
            members = np.flatnonzero(self.labels == cluster).tolist()
            budget = self._budget(int(cluster), len(members), self.outcomes[members[0]] == "failed")
            chosen += [i for i in sorted(members, key=self.rank)[:budget] if self._suspect(i)]
        return chosen

    def _budget(self, cluster: int, size: int, failed: bool) -> int:
        if failed:
            return max(1, math.floor(self.rules.review * size + 0.5))
        budget = math.floor(self.rated.rates[cluster].rate * size + 0.5)
        return min(budget, math.floor(self.rules.cap * size + 1e-9))

    def _suspect(self, i: int) -> bool:
        f = self.samples[i]
        return f.miss + f.extra > 0 if self.outcomes[i] == "failed" else self.q[i] >= self.rules.flag

    def unflagged(self, i: int) -> Decision:
        """Keep, or less weight where there is some doubt."""
        if self.outcomes[i] == "passed" and self.q[i] >= self.rules.doubt:
            return _decision("weight", ("doubt",), self.q[i])
        f = self.samples[i]
        nobody = f.teacher_area < EMPTY and f.student_area < EMPTY
        return _decision("keep", ("nobody",) if nobody else (), self.q[i])

    def flagged(self, i: int) -> Decision:
        """What the gate and the policy make of a flagged sample."""
        kind = "part-missing" if self.samples[i].miss >= self.samples[i].extra else "part-surplus"
        if self.outcomes[i] == "failed":
            return _decision("hold", (kind, "gate-failed"), self.q[i])
        if self.outcomes[i] == "uncertain":
            return _decision("weight", (kind, "gate-uncertain"), self.q[i])
        if self.policy in ("drop", "weight"):
            return _decision("drop" if self.policy == "drop" else "weight", (kind,), self.q[i])
        obstacles = self._obstacles(i)
        if not obstacles:
            return _decision("correct", (kind,), self.q[i])
        sure = self.policy == "auto" and self.rated.calibrated
        return _decision("drop" if sure else "weight", (kind, *obstacles), self.q[i])

    def _obstacles(self, i: int) -> tuple[str, ...]:
        """Why the student cannot mend the label."""
        f, rules = self.samples[i], self.rules
        found = {
            "not-local": f.miss + f.extra > rules.local,
            "part-in-doubt": f.doubt > rules.part,
            "unstable": f.stability > rules.unstable,
        }
        return tuple(name for name, true in found.items() if true)

    def spared(self, decision: Decision) -> Decision:
        """The milder decision where a floor forbids to lose the sample."""
        verdict: Verdict = "keep" if decision.verdict == "hold" else "weight"
        return _decision(verdict, (*decision.reasons, "floor"), decision.q)
