"""The judge's steps of the main job, and its page.

::

    gold ─┐
    chosen ─ folds ─ fold ─ score ─ verdict ─ judged
    label ── audit ────────────────────┘
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.assign import group_column
from pipeline.audited import NO_AUDIT, audited_table
from pipeline.gold import Human, check_audits, check_sets, gold_table
from pipeline.job import Job
from pipeline.judge import Fold, Score, fold_tables
from pipeline.judge_report import write_judge_report
from pipeline.judge_summary import Basis
from pipeline.known import attribute_names, effective, mask_columns, with_masks
from pipeline.stage import Done, Span, iter_tables, read_span
from pipeline.step import write_json, write_tables
from pipeline.teacher import taught_with
from pipeline.verdicts import verdicts

SUMMARY, PAGE = "judge.json", "judge.html"


def judge(job: Job, human: Human, chosen: Done, label: Done) -> dict[str, Done]:
    """Gold, audit, folds, students, scores, verdicts, and ``judge.html`` in the output.

    Args:
        job: what the run is told.
        human: what people drew.
        chosen: the chosen frames.
        label: their labels.
    """
    stages = {"gold": _gold(job, human), **_audit(job, human, chosen, label)}
    stages |= _score(job, chosen, label, stages["gold"])
    stages["verdict"] = _verdict(job, gold_role(job, human), chosen, label, stages)
    _report(job, label, stages)
    return stages


def gold_role(job: Job, human: Human) -> str:
    """What anchors the students: "given" (--gold), "labelled", or "none" where those images also taught the teacher.

    A checkpoint of ``curate teach`` says what it was taught with; of another nobody knows.
    """
    if job.gold is not None:
        return "given"
    if job.teacher is None or taught_with(job.teacher) == human.digests["labelled"]:
        return "none"
    return "labelled"


def summary_of(verdict: Done) -> dict[str, Any]:
    """The content of ``judge.json``."""
    found: dict[str, Any] = json.loads(storage.read_bytes(verdict.uri(SUMMARY)))
    return found


def audited_rows(audit: Done | None, columns: list[str]) -> pa.Table | None:
    """Columns of the audited rows; None without an audit."""
    return None if audit is None else read_span(Span(uri=audit.uris()[0]), columns)


def _gold(job: Job, human: Human) -> Done:
    side = job.config.label.student_side

    def make(folder: Path) -> list[str]:
        table = gold_table(human.folders, side)
        check_sets(human)  # after it was read: hours may lie between
        return write_tables(folder, [table], 64)

    return job.step(
        "gold",
        side,
        [f"{role} {digest}" for role, digest in human.digests.items()],
        ["opencv-python-headless", "pillow"],
        make,
    )


def _audit(job: Job, human: Human, chosen: Done, label: Done) -> dict[str, Done]:
    """The audited rows; no step where no audit was given, so that a run without one is what it was."""
    if not human.audits:
        return {}
    rules = job.config.judge.audit_rules()

    def make(folder: Path) -> list[str]:
        rows = read_span(Span(uri=chosen.uris()[0]), ["sample_id", "content_sha256", "width", "height"])
        table, facts = audited_table(human, rows, label.uris(), rules)
        check_audits(human)
        return [*write_tables(folder, [table], 64), write_json(folder, "audit.json", facts)]

    named: list[Done | str] = [*human.audit_digests, *(f"unfinished {count}" for count in human.unfinished)]
    libraries = ["opencv-python-headless", "pillow"]
    done = job.step("audit", rules, [chosen, label, *named], libraries, make)
    facts = json.loads(storage.read_bytes(done.uri("audit.json")))
    listed = f", {facts['chosen']} more of chosen frames" if facts["chosen"] else ""
    job.say("audit", f"{facts['used']} of {facts['masks']} masks used, {facts['bad']} labels bad by them{listed}")
    return {"audit": done}


def _score(job: Job, chosen: Done, label: Done, gold: Done) -> dict[str, Done]:
    """Folds, a student for each, and what it says of the labels that it judges."""
    config, rows = job.config.judge, job.config.label.rows
    table = read_span(Span(uri=chosen.uris()[0]), ["sample_id", "group_id", "vector", "cluster_path", "key"])
    fold_rows, facts = fold_tables(table, group_column(table), config)
    folds = job.step(
        "folds",
        [config.folds, config.similar, rows],
        [chosen],
        ["numpy"],
        lambda folder: [*write_tables(folder, [fold_rows], rows), write_json(folder, "folds.json", facts)],
    )
    if facts["reason"]:
        job.say("folds", f"labels are not judged: {facts['reason']}")
    pair = (Span(uri=folds.uris()[0]), Span(uri=gold.uris()[0]))
    work = Fold(student=config.student, examples=config.examples, seed=job.seed, labels=label.folder)
    fold = job.stage(work, [pair] * facts["folds"], label, folds, gold)
    spans = [
        (Span(uri=uri), Span(uri=folds.uris()[0], start=i * rows, stop=(i + 1) * rows))
        for i, uri in enumerate(label.uris())
    ]
    score = job.stage(Score(students=fold.folder), spans, label, fold, folds)
    return {"folds": folds, "fold": fold, "score": score}


def _verdict(job: Job, role: str, chosen: Done, label: Done, stages: Mapping[str, Done]) -> Done:
    config = job.config.judge
    names = ("score", "fold", "folds", "gold", *(("audit",) if "audit" in stages else ()))

    def make(folder: Path) -> list[str]:
        score, folds, audit = stages["score"], stages["folds"], stages.get("audit")
        columns = [name for name in read_span(Span(uri=score.uris()[0], stop=0)).column_names if name != "student"]
        labels = pa.concat_tables(iter_tables(label.uris(), ["fault", *mask_columns()]))
        rows = with_masks(read_span(Span(uri=chosen.uris()[0])), labels)
        groups = {
            name: np.array([value or "unknown" for value in effective(rows, name).to_pylist()], dtype=np.str_)
            for name in attribute_names(rows)
        }
        table, summary = verdicts(
            pa.concat_tables(iter_tables(score.uris(), columns)),
            labels,
            read_span(Span(uri=folds.uris()[0])),
            groups,
            config,
            audited=audited_rows(audit, ["row", "used", "sampled", "bad"]),
            basis=_basis(stages, role),
        )
        return [*write_tables(folder, [table]), write_json(folder, SUMMARY, summary)]

    inputs = [*(stages[name] for name in names), label, chosen]
    return job.step("verdict", [config, role], inputs, ["scikit-learn", "scipy"], make)


def _basis(stages: Mapping[str, Done], role: str) -> Basis:
    roles = read_span(Span(uri=stages["gold"].uris()[0]), ["role"]).column("role").to_pylist()
    counts = {"given": roles.count("gold"), "labelled": roles.count("labelled"), "none": 0}
    facts = json.loads(storage.read_bytes(stages["folds"].uri("folds.json")))
    audit = stages.get("audit")
    return Basis(
        gold_images=counts[role],
        gold_role=role,
        labelled=roles.count("labelled"),
        audit=NO_AUDIT if audit is None else json.loads(storage.read_bytes(audit.uri("audit.json"))),
        students=students_of(stages["fold"]),
        similar=tuple((a, b) for a, b in facts["similar_across"]),
        reason=facts["reason"],
    )


def students_of(fold: Done) -> dict[int, str]:
    """Fold -> sha256 over the sha256 of its student's late checkpoints, in order, as hex digits."""
    named: dict[int, str] = {}
    for table in iter_tables(fold.uris()):
        for row in table.to_pylist():
            named[row["fold"]] = named.get(row["fold"], "") + row["sha256"]
    return {number: hashlib.sha256(text.encode()).hexdigest() for number, text in sorted(named.items())}


def _report(job: Job, label: Done, stages: Mapping[str, Done]) -> None:
    """Writes ``judge.html`` and ``judge.json`` into the output."""
    verdict, score, folds = (stages[name] for name in ("verdict", "score", "folds"))

    def make(folder: Path) -> list[str]:
        table = read_span(Span(uri=verdict.uris()[0]))
        return write_judge_report(
            folder,
            summary=summary_of(verdict),
            verdicts=table,
            labels=label,
            scores=score,
            folds=read_span(Span(uri=folds.uris()[0])),
            title=f"How the labels were judged: {table.num_rows:,} frames",
        )

    done = job.step("judged", None, [verdict, label, score, folds], ["opencv-python-headless"], make)
    storage.copy(done.uri(PAGE), storage.join(job.output, PAGE))
    storage.copy(verdict.uri(SUMMARY), storage.join(job.output, SUMMARY))
    job.say("judged", f"how the labels were judged: {storage.join(job.output, PAGE)}")
