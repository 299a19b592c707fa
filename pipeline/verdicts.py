"""The verdict on every label: q, gates, budgets and floors inside each fold, and what people drew before all of it.

A fold is judged by itself, so what happens in one changes nothing in another but through its students.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.judge import FEATURES, VERDICTS, JudgeConfig
from pipeline.judge_summary import KEPT, Basis, JudgedFold, Outcome, summary_of
from students.agreement import Audit, Decision, Features, corruption, decide, gate
from students.corruption import SMALLEST

AUDIT_REASON, DRAWN_REASON, WRONG_REASON = "audited", "drawn", "teacher-wrong"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Docket:
    """The N chosen rows; ``audited`` (at random), ``drawn`` (from a list) and ``bad`` are what people found."""

    ids: NDArray[np.str_]
    clusters: Ints
    fold: Ints
    faults: Sequence[str | None]
    labelled: Bools
    judged: Bools
    audited: Bools
    drawn: Bools
    bad: Bools
    groups: Mapping[str, NDArray[np.str_]]


def verdicts(
    scores: pa.Table,
    labels: pa.Table,
    folds: pa.Table,
    groups: Mapping[str, NDArray[np.str_]],
    config: JudgeConfig,
    *,
    audited: pa.Table | None = None,
    basis: Basis | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """The verdict on every chosen row, and the content of ``judge.json``.

    Args:
        scores: (N rows, schema ``SCORED`` without pictures).
        labels: (N rows) with ``fault``.
        folds: (N rows, schema ``FOLDS``).
        groups: attribute -> (N,) classes; no class may be emptied.
        config: policy, gate and rules.
        audited: row, used, sampled and bad of the rows that people masked (of schema ``AUDITED``); None without an
            audit. Those that are not sampled are settled as the others are, and change no q, rate or gate.
        basis: what the judgement rests on.

    Returns:
        The table of verdicts (schema ``VERDICTS``) and the summary.
    """
    docket = _docket(scores, labels, folds, groups, audited)
    rows = [_unjudged(docket, row) for row in range(len(docket.ids))]
    found = []
    for fold in np.unique(docket.fold[docket.judged]).tolist():
        members = np.flatnonzero(docket.judged & (docket.fold == fold))
        samples = [Features(**row) for row in scores.take(pa.array(members)).select(FEATURES).to_pylist()]
        part, decisions = _judge_fold(docket, fold, members, samples, config)
        found.append(part)
        for row, decision in zip(members.tolist(), decisions, strict=True):
            gate_of = part.gates[int(docket.clusters[row])].outcome
            rows[row] |= _judged(decision, gate_of, part.rated.calibrated)
    table = pa.Table.from_pylist(rows, schema=VERDICTS)
    outcome = _outcome(docket, rows)
    summary = summary_of(outcome, found, groups, basis or Basis(), policy=config.policy, cap=config.rules.cap)
    return table, summary


def _docket(
    scores: pa.Table,
    labels: pa.Table,
    folds: pa.Table,
    groups: Mapping[str, NDArray[np.str_]],
    audited: pa.Table | None,
) -> _Docket:
    faults = labels.column("fault").to_pylist()
    labelled = np.array([fault is None for fault in faults], np.bool_)
    fold = folds.column("fold").to_numpy().astype(np.int64)
    known, drawn, bad = (np.zeros(len(faults), np.bool_) for _ in range(3))
    for row in [] if audited is None else audited.select(["row", "used", "sampled", "bad"]).to_pylist():
        if row["used"] and labelled[row["row"]]:
            (known if row["sampled"] else drawn)[row["row"]] = True
            bad[row["row"]] = row["bad"]
    return _Docket(
        ids=np.array(scores.column("sample_id").to_pylist(), dtype=np.str_),
        clusters=folds.column("cluster").to_numpy().astype(np.int64),
        fold=fold,
        faults=faults,
        labelled=labelled,
        judged=labelled & (fold >= 0),
        audited=known,
        drawn=drawn,
        bad=bad,
        groups=groups,
    )


def _judge_fold(
    docket: _Docket, fold: int, members: Ints, samples: Sequence[Features], config: JudgeConfig
) -> tuple[JudgedFold, list[Decision]]:
    """What is found in one fold, and the decisions on its members in order.

    Budgets and floors are of the labels that nobody has checked: one that a person masked is settled.
    """
    clusters, checked = docket.clusters[members], docket.audited[members]
    settled = checked | docket.drawn[members]
    audit = _audit(samples, clusters, checked, docket.bad[members])
    rated = corruption(samples, clusters, audit)
    gates = gate(samples, clusters, rated, audit, iou=config.gate_iou)
    rest = np.flatnonzero(~settled)
    decided = decide(
        [samples[i] for i in rest.tolist()],
        clusters[rest],
        replace(rated, q=rated.q[rest]),
        gates,
        ids=docket.ids[members][rest].tolist(),
        groups={name: values[members][rest] for name, values in docket.groups.items()},
        policy=config.policy,
        rules=config.rules,
    )
    decisions = dict(zip(rest.tolist(), decided, strict=True))
    for i in np.flatnonzero(settled).tolist():
        reasons = _human_reasons(docket, int(members[i]))
        decisions[i] = Decision(verdict="keep", reasons=reasons, weight=1.0, q=float(rated.q[i]))
    part = JudgedFold(
        fold=fold,
        labels=len(members),
        audited=int(checked.sum()),
        bad=int((checked & docket.bad[members]).sum()),
        rated=rated,
        gates=gates,
    )
    return part, [decisions[i] for i in range(len(members))]


def _audit(samples: Sequence[Features], clusters: Ints, checked: Bools, bad: Bools) -> Audit | None:
    """The labels of a fold that were audited at random; None where they are too few to tell even a rate."""
    mine = np.flatnonzero(checked)
    if len(mine) < SMALLEST:
        return None
    return Audit(features=[samples[i] for i in mine.tolist()], bad=bad[mine], clusters=clusters[mine])


def _human_reasons(docket: _Docket, row: int) -> tuple[str, ...]:
    reason = AUDIT_REASON if docket.audited[row] else DRAWN_REASON
    return (reason, WRONG_REASON) if docket.bad[row] else (reason,)


def _unjudged(docket: _Docket, row: int) -> dict[str, Any]:
    """A frame without a label is dropped, one that a person masked is kept, and so is a label that nobody can judge."""
    fault, human = docket.faults[row], bool(docket.audited[row] or docket.drawn[row])
    verdict, reasons = "keep", ["not judged: no student without its cluster"]
    if fault:
        verdict, reasons = "drop", [f"no label: {fault}"]
    elif human:
        reasons = list(_human_reasons(docket, row))
    facts = {"q": None, "gate": None, "calibrated": None, "weight": 0.0 if fault else 1.0, "audited": human}
    return {"sample_id": str(docket.ids[row]), "verdict": verdict, "decision": verdict, "reasons": reasons, **facts}


def _judged(decision: Decision, outcome: str, calibrated: bool) -> dict[str, Any]:
    return {
        "verdict": decision.verdict,
        "decision": "keep" if decision.verdict in KEPT else decision.verdict,
        "reasons": list(decision.reasons),
        "weight": decision.weight,
        "q": decision.q,
        "gate": outcome,
        "calibrated": calibrated,
    }


def _outcome(docket: _Docket, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    return Outcome(
        ids=docket.ids,
        clusters=docket.clusters,
        fold=docket.fold,
        labelled=docket.labelled,
        judged=docket.judged,
        audited=docket.audited,
        drawn=docket.drawn,
        bad=docket.bad,
        q=np.array([row["q"] for row in rows], np.float64),
        verdict=np.array([row["verdict"] for row in rows], dtype=np.str_),
        reasons=[row["reasons"] for row in rows],
    )
