"""``judge.json``: what the judge found, in numbers that add up, and in plain sentences what a reader must know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.classical import wilson_interval
from pipeline.audited import NO_AUDIT
from pipeline.judge_notes import notes_of
from students.agreement import MOSTLY_WRONG, Corruption, Gate, Policy
from students.corruption import SMALLEST, shrunk_rate

FORMAT = 2
KINDS = ("keep", "weight", "correct", "hold", "drop")
KEPT = KINDS[:3]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a judgement rests on.

    Attributes:
        gold_images: human masks that never taught this run's teacher and train the students.
        gold_role: "given" (--gold), "labelled" (--labelled, where the teacher was given), or "none".
        labelled: images of the labelled set.
        audit: the facts of the audit step.
        students: fold -> sha256 of its student.
        similar: pairs of clusters that look alike and lie in different folds.
        reason: why there are no folds.
    """

    gold_images: int = 0
    gold_role: str = "none"
    labelled: int = 0
    audit: Mapping[str, Any] = field(default_factory=lambda: NO_AUDIT)
    students: Mapping[int, str] = field(default_factory=dict)
    similar: Sequence[tuple[int, int]] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedFold:
    """What was found in one fold.

    Attributes:
        fold: its number.
        labels: labels that its student judged.
        audited: of these, audited ones.
        bad: of those, bad ones.
        rated: q and the rates of its clusters.
        gates: of its clusters.
    """

    fold: int
    labels: int
    audited: int
    bad: int
    rated: Corruption
    gates: Mapping[int, Gate]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What became of the N chosen rows; each (N,).

    Attributes:
        ids: sample ids.
        clusters: int64.
        fold: int64, -1 where none judges.
        labelled: whether there is a label.
        judged: whether a student judged it.
        audited: whether a person's mask is used that was drawn for an audit, so of a random sample.
        drawn: whether one is used that was drawn from a list; it counts in no rate.
        bad: whether either says the label is bad.
        q: float64, NaN where not judged.
        verdict: text.
        reasons: of each row.
    """

    ids: NDArray[np.str_]
    clusters: Ints
    fold: Ints
    labelled: Bools
    judged: Bools
    audited: Bools
    drawn: Bools
    bad: Bools
    q: NDArray[np.float64]
    verdict: NDArray[np.str_]
    reasons: Sequence[Sequence[str]]

    def with_reason(self, reason: str) -> Bools:
        """(N,) which rows have a reason."""
        return np.fromiter((reason in found for found in self.reasons), np.bool_, len(self.reasons))


def summary_of(
    outcome: Outcome,
    folds: Sequence[JudgedFold],
    groups: Mapping[str, NDArray[np.str_]],
    basis: Basis,
    *,
    policy: Policy,
    cap: float,
) -> dict[str, Any]:
    """The content of ``judge.json``; all counts of clusters and classes are of judged labels, so they add up to them.

    Args:
        outcome: what became of the rows.
        folds: what was found in each fold.
        groups: attribute -> (N,) classes.
        basis: what it rests on.
        policy: what was allowed.
        cap: at most this share of a cluster was acted upon.
    """
    methods = sorted({found.rated.method for found in folds})
    clusters = _clusters(outcome, folds)
    summary: dict[str, Any] = {
        "format": FORMAT,
        "labels": int(outcome.labelled.sum()),
        "unlabelled": int((~outcome.labelled).sum()),
        "judged": int(outcome.judged.sum()),
        "calibrated": any(found.rated.calibrated for found in folds),
        "method": methods[0] if len(methods) == 1 else "mixed" if methods else "none",
        "reason": "" if outcome.judged.any() else basis.reason or "no chosen frame has a label that a student judges",
        "policy": policy,
        "gold": {"images": basis.gold_images, "role": basis.gold_role},
        "labelled": basis.labelled,
        "audit": dict(basis.audit),
        "folds": [_fold(found, basis) for found in folds],
        "clusters": {str(cluster): facts for cluster, facts in clusters.items()},
        "groups": _groups(outcome, groups),
    }
    return summary | {"notes": notes_of(summary, outcome.fold[outcome.judged], _stated(outcome), basis.similar, cap)}


def calibration_text(summary: Mapping[str, Any]) -> str:
    """In a few words whether q is calibrated, and why not."""
    audit = summary["audit"]
    if summary["calibrated"]:
        some = "" if all(fold["calibrated"] for fold in summary["folds"]) else " in some folds"
        return f"calibrated by {audit['used']} audited masks{some}"
    why = summary["reason"] or audit["reason"] or f"{audit['used']} audited masks are too few or all alike"
    return f"not calibrated ({why})"


def closed_gates(summary: Mapping[str, Any]) -> tuple[int, int]:
    """Clusters whose gate is closed, and clusters that were judged."""
    gates = [facts["gate"] for facts in summary["clusters"].values()]
    return gates.count("failed"), len(gates)


def _stated(outcome: Outcome) -> dict[str, int]:
    reasons = ("nobody-labelled-but-seen", "whole-image-labelled", MOSTLY_WRONG)
    return {reason: int(outcome.with_reason(reason).sum()) for reason in reasons}


def _fold(found: JudgedFold, basis: Basis) -> dict[str, Any]:
    return {
        "fold": found.fold,
        "clusters": sorted(found.gates),
        "labels": found.labels,
        "method": found.rated.method,
        "calibrated": found.rated.calibrated,
        "audited": found.audited,
        "bad": found.bad,
        "student_sha256": basis.students.get(found.fold, ""),
    }


def _counts(outcome: Outcome, mine: Bools) -> dict[str, int]:
    verdicts = outcome.verdict[mine]
    return {kind: int((verdicts == kind).sum()) for kind in KINDS}


def _clusters(outcome: Outcome, folds: Sequence[JudgedFold]) -> dict[int, dict[str, Any]]:
    """Per cluster; where sources carried labels of one into several folds, the gate is that of the most labels."""
    spared = outcome.with_reason("floor")
    found = {}
    for cluster in np.unique(outcome.clusters[outcome.judged]).tolist():
        mine = outcome.judged & (outcome.clusters == cluster)
        parts = [(int((outcome.fold[mine] == part.fold).sum()), part) for part in folds if cluster in part.gates]
        most = max(parts, key=lambda part: (part[0], -part[1].fold))[1]
        rates = [(count, part.rated.rates[cluster]) for count, part in parts]
        gate = most.gates[cluster]
        found[cluster] = {
            "fold": most.fold,
            "labels": int(mine.sum()),
            "elsewhere": int(mine.sum()) - max(count for count, _ in parts),
            "audited": int((mine & outcome.audited).sum()),
            "bad": int((mine & outcome.audited & outcome.bad).sum()),
            "gate": gate.outcome,
            "gate_reason": gate.reason,
            "auroc": None if math.isnan(gate.auroc) else round(gate.auroc, 4),
            "noise": [
                round(math.fsum(n * getattr(rate, name) for n, rate in rates) / sum(n for n, _ in rates), 4)
                for name in ("rate", "low", "high")
            ],
            **_counts(outcome, mine),
            "spared": int((mine & spared).sum()),
        }
    return found


def _groups(outcome: Outcome, groups: Mapping[str, NDArray[np.str_]]) -> dict[str, dict[str, Any]]:
    if not outcome.judged.any():
        return {}
    audited = outcome.judged & outcome.audited
    overall = {
        True: (int((audited & outcome.bad).sum()) + 0.5) / (int(audited.sum()) + 1),
        False: (math.fsum(outcome.q[outcome.judged]) + 0.5) / (int(outcome.judged.sum()) + 1),
    }
    refused = one_threshold(outcome)
    return {
        name: {
            str(value): _class(outcome, outcome.judged & (values == value), refused, overall)
            for value in np.unique(values[outcome.judged]).tolist()
        }
        for name, values in sorted(groups.items())
    }


def _class(outcome: Outcome, mine: Bools, refused: Bools, overall: Mapping[bool, float]) -> dict[str, Any]:
    counts, labels = _counts(outcome, mine), int(mine.sum())
    kept = sum(counts[kind] for kind in KEPT)
    seen = mine & outcome.audited
    trusted = int(seen.sum()) >= SMALLEST
    amount, of = (int((seen & outcome.bad).sum()), int(seen.sum())) if trusted else (math.fsum(outcome.q[mine]), labels)
    noise = shrunk_rate(amount, of, overall[trusted])
    return {
        "labels": labels,
        **counts,
        "audited": int(seen.sum()),
        "noise": _rounded((noise.rate, noise.low, noise.high)),
        "kept": _rounded((kept / labels, *wilson_interval(kept, labels, 0.95))),
        "kept_by_one_threshold": round(1 - int((mine & refused).sum()) / labels, 4),
    }


def one_threshold(outcome: Outcome) -> Bools:
    """(N,) the rows that one global threshold on q would refuse, were it to refuse as many as were dropped or held.

    Rows that people masked are no more refused by it than by the judge; ties go by sample id.
    """
    lost = outcome.judged & np.isin(outcome.verdict, ("hold", "drop"))
    rows = np.flatnonzero(outcome.judged & ~(outcome.audited | outcome.drawn))
    ranked = rows[np.lexsort((outcome.ids[rows], -outcome.q[rows]))]
    refused = np.zeros(len(outcome.ids), np.bool_)
    refused[ranked[: int(lost.sum())]] = True
    return refused


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 4) for value in values]
