"""The main job: the stages in order, each a folder that is finished or resumed.

::

    sources ─ probe ─ embed ─ dedupe ─ cluster ─ assign ─ plan ─ select ─ chosen     what is taken
    teach ─ label ─ gold ─ audit ─ folds ─ fold ─ score ─ verdict ─ placed ─ publish what becomes of it
    release                                                                          what is handed over
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from manifests.labelled import LabelledError
from manifests.release import Model
from manifests.verify import verify_release
from pipeline import storage
from pipeline.again import choose_again
from pipeline.assign import plan_of
from pipeline.attributes import COMPUTED
from pipeline.choice import brought, embed_work, given_of, quarantine, take
from pipeline.cluster import with_attributes
from pipeline.clusterfit import train
from pipeline.config import Config
from pipeline.errors import InputError, StageError
from pipeline.gold import Human, gold_table, labelled_digest, read_human
from pipeline.job import Job, Result
from pipeline.judge import gold_examples
from pipeline.judge_summary import calibration_text, closed_gates
from pipeline.judging import PAGE, audited_rows, judge, summary_of
from pipeline.known import effective, given_names
from pipeline.label import Label, label_spans
from pipeline.plan import Line, Plan, measure, sample_sources, strata, training, with_gpu
from pipeline.probe import Probe
from pipeline.publish import Publish, Shard, publish_plan, publish_spans
from pipeline.release import Run, count_items, write
from pipeline.selection_report import write_selection_report
from pipeline.sources import list_sources
from pipeline.stage import Done, Span, Work, identity, iter_tables, read_span
from pipeline.step import Weights, digest_of, weights_of, write_tables
from pipeline.teacher import open_teacher, settings_digest
from pipeline.threads import torch_threads
from students.train import train_student
from teachers.backend import load_teacher
from teachers.train import FILES, TeachError, TeachResult, input_digests, teach
from training.files import sha256_file


def curate(job: Job) -> Result:
    """Runs the main job to its end, or what is left of it.

    Raises:
        CurateError: see its tree; what was committed stays and is not redone.
    """
    started = time.monotonic()
    storage.check_writable(job.output)
    _check_apart(job)
    with storage.lock(job.output):
        human = read_human(job.labelled, job.gold, job.audits)
        _check_teacher(job)
        taken = take(job)
        teacher = _teacher(job, human.digests["labelled"])
        judged = _label(job, taken, teacher)
        if job.config.select.rounds == 2:
            again = choose_again(job, taken["chosen"], judged["label"], given_of(job, taken["sources"]))
            taken, judged = {**taken, **again}, {"label": again["label"]}
        _report(job, taken)
        judged |= judge(job, human, taken["chosen"], judged["label"])
        judged |= _publish(job, taken["chosen"], judged)
        return _release(job, {**taken, **judged}, teacher, human, started)


def estimate(job: Job) -> Plan:
    """What a run would cost, measured on about 24 of the sources; nothing is written to the output.

    Raises:
        InputError: nothing can be read, or the human masks or the teacher are no good.
    """
    human = read_human(job.labelled, job.gold, job.audits)
    _check_teacher(job)
    sources, _ = list_sources(job.inputs)
    scan, config = job.config.probe.scan, job.config
    works: list[tuple[Work, int]] = [(Probe(config=scan), 0), (embed_work(config), 0)]
    if job.teacher is not None:
        works.append((_label_work(job, Weights(uri=str(job.teacher), sha256=sha256_file(job.teacher))), 8))
    parts = [(part, sample_sources(part, 12, job.seed)) for part in strata(sources)]
    plan = measure(parts, works, shards=config.probe.shards, target=job.target, label_rows=config.label.rows)
    return with_gpu(replace(plan, lines=(*plan.lines, *_training_plan(job, human))), config.price)


def _training_plan(job: Job, human: Human) -> list[Line]:
    """The plan of every training, measured on a few steps of the real ones."""
    config, student = job.config, job.config.judge.student
    rng = np.random.default_rng(job.seed)
    squares = rng.integers(0, 256, (64, config.cluster.fit.side, config.cluster.fit.side, 3), np.uint8)
    examples = gold_examples(gold_table(human.folders, config.label.student_side).slice(0, 16))

    def fit(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(squares, np.arange(64) % 8, replace(config.cluster.fit, steps=steps), seed=0, folder=Path(folder))

    def judge(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_student(examples, replace(student, steps=steps), seed=0, folder=Path(folder))

    def teacher(steps: int) -> None:
        few = replace(config.teach, steps=steps, warm_up=1, validate_every=steps, report_every=steps)
        with tempfile.TemporaryDirectory() as folder, torch_threads(config.driver.threads):
            teach(job.labelled, Path(folder), few, seed=0, report=lambda _: None)

    lines = [
        training("cluster", 1, config.cluster.fit.steps, fit),
        training(
            "fold", config.judge.folds, student.steps, judge, (student.late_checkpoints, student.late_checkpoints + 8)
        ),
    ]
    return lines if job.teacher else [*lines, training("teach", 1, config.teach.steps, teacher)]


def train_teacher(labelled: Path, output: Path, config: Config, seed: int, console: Console) -> TeachResult:
    """Trains a teacher outside a run (``curate teach``).

    Raises:
        InputError: the labelled set cannot be used.
        StageError: the training cannot go on.
    """
    labelled_digest(labelled)
    storage.check_writable(str(output))

    def report(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    try:
        with storage.lock(str(output)), torch_threads(config.driver.threads):
            return teach(labelled, output, config.teach, seed=seed, report=report)
    except LabelledError as error:
        raise InputError(f"--labelled: {error}") from error
    except TeachError as error:
        raise StageError(f"teach: {error}") from error


def _label(job: Job, taken: Mapping[str, Done], teacher: Weights) -> dict[str, Done]:
    spans = label_spans(taken["chosen"].uris()[0], taken["chosen"].rows, job.config.label)
    return {"label": job.stage(_label_work(job, teacher), spans, taken["chosen"])}


def _report(job: Job, taken: Mapping[str, Done]) -> None:
    """Writes ``selection.html``: what was there and what was taken."""
    chosen, plan, assign, embed = (taken[name] for name in ("chosen", "plan", "assign", "embed"))

    def make(folder: Path) -> list[str]:
        return write_selection_report(
            folder,
            plan=plan_of(plan),
            assigned=assign,
            embedded=embed,
            chosen=read_span(Span(uri=chosen.uris()[0])),
            clusterfit=_clusterfit(taken["cluster"], assign),
            title=f"What was chosen: {job.target:,} frames",
        )

    libraries = ["opencv-python-headless", "scikit-learn", "threadpoolctl"]
    done = job.step("report", None, [chosen, plan, assign, embed, taken["cluster"]], libraries, make)
    for name in ("selection.html", "selection.json"):
        storage.copy(done.uri(name), storage.join(job.output, name))
    job.say("report", f"what was chosen, and from what: {storage.join(job.output, 'selection.html')}")


def _clusterfit(clustered: Done, assigned: Done) -> dict[str, Any]:
    """The report of the cluster step, with what its clusters tell of the attributes known so far."""
    sampled = read_span(Span(uri=clustered.uris()[0]))
    ids = sampled.column("sample_id").combine_chunks()
    values: dict[str, dict[str, str | None]] = {}
    for table in iter_tables(assigned.uris()):
        rows = table.filter(pc.is_in(table.column("sample_id"), value_set=ids))
        names = rows.column("sample_id").to_pylist()
        for name in sorted({*COMPUTED, *given_names(rows)}):
            values.setdefault(name, {}).update(zip(names, effective(rows, name).to_pylist(), strict=True))
    return with_attributes(json.loads(storage.read_bytes(clustered.uri("report.json"))), sampled, values)


def _publish(job: Job, chosen: Done, judged: Mapping[str, Done]) -> dict[str, Done]:
    label, score, verdict = judged["label"], judged["score"], judged["verdict"]
    plan, shards = _placement(job, chosen, judged)
    config, rows = job.config.publish, job.config.label.rows
    inputs = [chosen, verdict, *(judged[name] for name in ("audit",) if name in judged)]
    placed = job.step("placed", [identity(config), job.seed], inputs, [], lambda folder: write_tables(folder, [plan]))
    where = plan.column("row").to_pylist()
    spans = [publish_spans(placed.uris()[0], s, where, label.uris(), score.uris(), rows) for s in shards]
    work = Publish(config=config, scan=job.config.probe.scan, label_rows=rows)
    return {"placed": placed, "publish": job.stage(work, spans, placed, label, score)}


def _placement(job: Job, chosen: Done, judged: Mapping[str, Done]) -> tuple[pa.Table, list[Shard]]:
    labels = pa.concat_tables(iter_tables(judged["label"].uris(), ["label_confidence", "fault"]))
    rows, verdict = (read_span(Span(uri=done.uris()[0])) for done in (chosen, judged["verdict"]))
    audited = audited_rows(judged.get("audit"), ["row", "used", "mask", "ignore"])
    return publish_plan(rows, labels, verdict, job.config.publish, job.seed, audited)


def _release(job: Job, stages: Mapping[str, Done], teacher: Weights, human: Human, started: float) -> Result:
    verdict, judgement = read_span(Span(uri=stages["verdict"].uris()[0])), summary_of(stages["verdict"])
    sources = read_span(Span(uri=stages["sources"].uris()[0]))
    chosen = read_span(Span(uri=stages["chosen"].uris()[0]))
    run = Run(
        config=job.config,
        seed=job.seed,
        target=job.target,
        run_id=digest_of([identity(job.config), job.seed, job.target, stages["sources"].digest, *_named(human)])[:16],
        counts=count_items(stages, verdict.column("decision").to_pylist()),
        inputs={
            "sources": sources.num_rows,
            "bytes": sum(sources.column("bytes").to_pylist()),
            "digest": stages["probe"].digest,
            **{f"{role}_sha256": digest for role, digest in human.digests.items()},
            **({"audit_sha256": list(human.audit_digests)} if human.audits else {}),
        },
        recorded=max(sources.column("modified_ns").to_pylist()),
        given=tuple(given_names(chosen)),
        embedder=f"clusterfit:{job.config.cluster.fit.network}",
        models=_models(job, stages, teacher),
        stages=stages,
        judge=judgement,
        plan=plan_of(stages["plan"]),
        faults=quarantine(job, stages),
    )
    _, shards = _placement(job, stages["chosen"], stages)
    folder, fingerprint = write(job.output, run, shards)
    problems = verify_release(Path(folder)) if storage.is_local(folder) else []
    if problems:
        raise StageError(f"{folder}/{problems[0].path}: {problems[0].message} ({len(problems)} problems); run again")
    kinds = verdict.column("verdict").to_pylist()
    return Result(
        release=folder,
        verified=storage.is_local(folder),
        fingerprint=fingerprint,
        counts=run.counts,
        verdicts={kind: kinds.count(kind) for kind in ("keep", "weight", "correct", "hold", "drop")},
        sources=len(set(chosen.column("source_uri").to_pylist())),
        seconds=time.monotonic() - started,
        calibrated=calibration_text(judgement),
        gates=closed_gates(judgement),
        judge_page=storage.join(job.output, PAGE),
    )


def _named(human: Human) -> list[str]:
    """What people drew, for the name of the run; the labelled set alone is named as it always was."""
    gold = [f"{role} {digest}" for role, digest in human.digests.items() if role != "labelled"]
    return [human.digests["labelled"], *gold, *(f"audit {digest}" for digest in human.audit_digests)]


def _label_work(job: Job, teacher: Weights) -> Label:
    config = job.config
    return Label(
        config=config.label,
        scan=config.probe.scan,
        run=config.teacher,
        teacher=teacher.uri,
        teacher_sha256=teacher.sha256,
        settings=settings_digest(config),
    )


def _teacher(job: Job, labelled: str) -> Weights:
    """The checkpoint that was given, or one trained on the labelled set."""
    if job.teacher is not None:
        return brought(job, "teacher", str(job.teacher))
    config, threads = job.config.teach, job.config.driver.threads

    def make(folder: Path) -> Sequence[str]:
        with torch_threads(threads):
            result = teach(job.labelled, folder, config, seed=job.seed, report=job.reporter("teach"))
        job.say("teach", f"held-out IoU {result.held_out_iou:.3f}")
        return FILES

    libraries = ["lightning-fabric", "opencv-python-headless", "pillow", "torch"]
    try:
        named = input_digests(config)
        done = job.step("teach", [identity(config), named, threads, job.seed], [labelled], libraries, make)
    except LabelledError as error:
        raise InputError(f"--labelled: {error}") from error
    except TeachError as error:
        raise StageError(f"stage teach: {error}") from error
    return weights_of(done, "teacher.safetensors")


def _check_teacher(job: Job) -> None:
    if job.teacher is not None:
        open_teacher(job.teacher, job.config)


def _models(job: Job, stages: Mapping[str, Done], teacher: Weights) -> tuple[Model, ...]:
    with storage.local_copy(teacher.uri) as path:
        name = load_teacher(Path(path), job.config.teacher).id
    source = "given with --teacher" if job.teacher else "trained on the labelled set"
    made = {"source": "trained in this run", "licence": "unknown"}
    students = [row for table in iter_tables(stages["fold"].uris()) for row in table.to_pylist()]
    network = weights_of(stages["cluster"], "clusterfit.safetensors")
    return (
        Model(role="teacher", id=name, sha256=teacher.sha256, source=source, licence="unknown"),
        Model(role="embedder", id="clusterfit", sha256=network.sha256, **made),
        *(Model(role="student", id=row["file"], sha256=row["sha256"], **made) for row in students),
    )


def _check_apart(job: Job) -> None:
    """Refuses an output below an input: the next run would take its own shards for sources."""
    output = Path(job.output).resolve()
    for given in job.inputs:
        if storage.is_local(given) and storage.is_local(job.output) and output.is_relative_to(Path(given).resolve()):
            raise InputError(f"--output {job.output} is inside --input {given}; choose an output elsewhere")
