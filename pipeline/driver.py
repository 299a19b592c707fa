"""The main job: the stages in order, each a folder that is finished or resumed.

::

    sources ─ probe ─ embed ─ dedupe ─ cluster ─ assign ─ plan ─ select ─ chosen     what is taken
    teach ─ label ─ gold ─ folds ─ fold ─ score ─ verdict ─ placed ─ publish         what becomes of it
    release                                                                          what is handed over
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from rich.console import Console

from manifests.labelled import LabelledError
from manifests.release import Model
from manifests.verify import verify_release
from pipeline import storage
from pipeline.assign import (
    Assign,
    Select,
    Weights,
    balanced_attributes,
    cell_counts,
    choose,
    effective,
    given_names,
    group_column,
    plan_selection,
)
from pipeline.attributes import COMPUTED, Given, read_given
from pipeline.cluster import cluster
from pipeline.clusterfit import train
from pipeline.config import Config
from pipeline.dedupe import dedupe, families
from pipeline.embed import Embed, weights_digest
from pipeline.errors import InputError, StageError, StorageError
from pipeline.job import Job, Result
from pipeline.judge import Fold, Score, fold_tables, gold_examples, gold_table, labelled_digest, verdicts
from pipeline.label import Label, label_spans
from pipeline.plan import Line, Plan, measure, sample_sources, strata, training, with_gpu
from pipeline.probe import Probe, probe_spans
from pipeline.publish import Publish, Shard, publish_plan, publish_spans
from pipeline.release import Run, count_items, write
from pipeline.select import shortfall
from pipeline.sources import list_sources
from pipeline.stage import Done, Span, Work, identity, iter_tables, read_span
from pipeline.step import digest_of, write_json, write_tables
from pipeline.teacher import open_teacher, settings_digest
from pipeline.threads import torch_threads
from students.train import train_student
from teachers.backend import load_teacher
from teachers.checkpoint import sha256_file
from teachers.train import FILES, TeachError, TeachResult, input_digests, teach


def curate(job: Job) -> Result:
    """Runs the main job to its end, or what is left of it.

    Raises:
        CurateError: see its tree; what was committed stays and is not redone.
    """
    started = time.monotonic()
    storage.check_writable(job.output)
    _check_apart(job)
    with storage.lock(job.output):
        labelled = labelled_digest(job.labelled)
        _check_teacher(job)
        taken = _take(job)
        teacher = _teacher(job, labelled)
        judged = _label(job, taken, teacher, labelled)
        judged |= _judge(job, taken["chosen"], judged)
        judged |= _publish(job, taken["chosen"], judged)
        return _release(job, {**taken, **judged}, teacher, labelled, started)


def estimate(job: Job) -> Plan:
    """What a run would cost, measured on about 24 of the sources; nothing is written to the output.

    Raises:
        InputError: nothing can be read, or the labelled set or teacher is no good.
    """
    labelled_digest(job.labelled)
    _check_teacher(job)
    sources, _ = list_sources(job.inputs)
    scan, config = job.config.probe.scan, job.config
    works: list[tuple[Work, int]] = [(Probe(config=scan), 0), (_embed_work(config), 0)]
    if job.teacher is not None:
        works.append((_label_work(job, Weights(uri=str(job.teacher), sha256=sha256_file(job.teacher))), 8))
    parts = [(part, sample_sources(part, 12, job.seed)) for part in strata(sources)]
    plan = measure(parts, works, shards=config.probe.shards, target=job.target, label_rows=config.label.rows)
    return with_gpu(replace(plan, lines=(*plan.lines, *_training_plan(job))), config.price)


def _training_plan(job: Job) -> list[Line]:
    """The plan of every training, measured on a few steps of the real ones."""
    config, student = job.config, job.config.judge.student
    rng = np.random.default_rng(job.seed)
    squares = rng.integers(0, 256, (64, config.cluster.fit.side, config.cluster.fit.side, 3), np.uint8)
    examples = gold_examples(gold_table(job.labelled, config.label.student_side).slice(0, 16))

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
        with torch_threads(config.driver.threads):
            return teach(labelled, output, config.teach, seed=seed, report=report)
    except LabelledError as error:
        raise InputError(f"--labelled: {error}") from error
    except TeachError as error:
        raise StageError(f"teach: {error}") from error


def survey(job: Job) -> dict[str, Done]:
    """Lists and probes the inputs.

    Raises:
        InputError: nothing can be read, or more than ``max_bad`` of the sources are broken.
    """
    table, hidden = list_sources(job.inputs)
    digest = digest_of([table.column(name).to_pylist() for name in table.column_names])
    sources = job.step("sources", None, [digest], [], lambda folder: write_tables(folder, [table]))
    _given(job, sources)  # a bad table is refused before anything is decoded
    spans = probe_spans(sources.uris()[0], table.column("bytes").to_pylist(), job.config.probe)
    probe = job.stage(Probe(config=job.config.probe.scan), spans, sources)
    _quarantine(job, {"probe": probe})
    if probe.counts["not_media"] or hidden:
        job.say("probe", f"{probe.counts['not_media']} files that are no media and {hidden} hidden ones passed over")
    if probe.faults:
        job.say("probe", f"{len(probe.faults)} faults set aside, see {job.output}/quarantine.json")
    _check_bad(job, probe)
    return {"sources": sources, "probe": probe}


def _check_bad(job: Job, probe: Done) -> None:
    bad, total = probe.counts["bad"], probe.counts["sources"]
    errors = [fault for fault in probe.faults if fault["error"] != "BlankFrame"]
    first = "; ".join(f"{fault['source']}: {fault['message']}" for fault in errors[:10])
    if probe.rows == 0:
        raise InputError(f"no readable input: {total} media files, {bad} of them broken{': ' + first if first else ''}")
    if bad > job.max_bad * total:
        raise InputError(
            f"{bad} of {total} sources are broken, more than --max-bad-fraction {job.max_bad:g} allows; the first: "
            f"{first}. Repair or remove them, or raise the limit; what was probed is kept"
        )


def _take(job: Job) -> dict[str, Done]:
    """From the inputs to exactly ``target`` chosen frames."""
    config = job.config
    stages = survey(job)
    sources, probe = stages["sources"], stages["probe"]
    given = _given(job, sources)
    embed = job.stage(_embed_work(config), [(Span(uri=uri),) for uri in probe.uris()], probe)
    deduped = job.step(
        "dedupe",
        config.cluster.duplicates,
        [embed, probe],
        ["numpy"],
        lambda folder: write_tables(folder, dedupe(embed, probe, config.cluster.duplicates)),
    )
    clustered = job.step(
        "cluster",
        [identity(config.cluster), job.seed],
        [embed, deduped],
        ["faiss-cpu", "numpy", "scikit-learn", "timm", "torch", "opencv-python-headless"],
        lambda to: cluster(embed, deduped, config.cluster, seed=job.seed, folder=to, report=job.reporter("cluster")),
    )
    work = Assign(
        network=_weights(clustered, "clusterfit.safetensors"),
        tree=_weights(clustered, "tree.safetensors"),
        given=None if job.attributes is None else _brought(job, "given", job.attributes),
        sources=sources.uris()[0],
        balanced=balanced_attributes(config.select, given),
        seed=job.seed,
    )
    triples = zip(embed.uris(), probe.uris(), deduped.uris(), strict=True)
    assign = job.stage(work, [tuple(Span(uri=uri) for uri in triple) for triple in triples], embed, probe, deduped)
    stages |= {"embed": embed, "dedupe": deduped, "cluster": clustered, "assign": assign}
    return stages | _choose(job, stages)


def _choose(job: Job, stages: Mapping[str, Done]) -> dict[str, Done]:
    assign, embed, probe, deduped = (stages[name] for name in ("assign", "embed", "probe", "dedupe"))
    counts = cell_counts(assign)
    if job.target > sum(counts.values()):
        listed = storage.join(job.output, "cells.json")
        storage.write_bytes(listed, json.dumps(counts, indent=1, sort_keys=True, ensure_ascii=False).encode())
        raise InputError(f"{shortfall(counts, job.target)}; frames per cell are listed in {listed}")
    planned = job.step(
        "plan",
        [identity(job.config.select), job.target],
        [assign],
        [],
        lambda folder: [write_json(folder, "plan.json", plan_selection(assign, job.target, job.config.select))],
    )
    select = job.stage(
        Select(plan=_weights(planned, "plan.json")), [(Span(uri=uri),) for uri in assign.uris()], assign, planned
    )
    plan = json.loads(storage.read_bytes(planned.uri("plan.json")))
    chosen = job.step(
        "chosen",
        job.config.label.rows,
        [select, planned, embed, deduped],
        [],
        lambda to: write_tables(to, [choose(select, plan, families(embed, probe, deduped))], job.config.label.rows),
    )
    _check_room(job, chosen)
    return {"plan": planned, "select": select, "chosen": chosen}


def _label(job: Job, taken: Mapping[str, Done], teacher: Weights, labelled: str) -> dict[str, Done]:
    config, chosen = job.config.label, taken["chosen"]
    label = job.stage(_label_work(job, teacher), label_spans(chosen.uris()[0], chosen.rows, config), chosen)
    gold = job.step(
        "gold",
        config.student_side,
        [labelled],
        ["opencv-python-headless", "pillow"],
        lambda folder: write_tables(folder, [gold_table(job.labelled, config.student_side)], 64),
    )
    return {"label": label, "gold": gold}


def _judge(job: Job, chosen: Done, labels: Mapping[str, Done]) -> dict[str, Done]:
    """Folds, students, scores and verdicts."""
    config, rows = job.config.judge, job.config.label.rows
    label, gold = labels["label"], labels["gold"]
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
    verdict = job.step(
        "verdict",
        config,
        [score, folds, label, chosen],
        ["scikit-learn", "scipy"],
        lambda folder: _write_verdicts(folder, job, chosen, label, folds, score),
    )
    return {"folds": folds, "fold": fold, "score": score, "verdict": verdict}


def _write_verdicts(folder: Path, job: Job, chosen: Done, label: Done, folds: Done, score: Done) -> list[str]:
    names = read_span(Span(uri=score.uris()[0], stop=0)).column_names
    scores = pa.concat_tables(iter_tables(score.uris(), [name for name in names if name != "student"]))
    labels = pa.concat_tables(iter_tables(label.uris(), ["fault"]))
    rows = read_span(Span(uri=chosen.uris()[0]))
    attributes = sorted({*COMPUTED, *given_names(rows)})
    groups = {n: np.array([v or "unknown" for v in effective(rows, n).to_pylist()], dtype=np.str_) for n in attributes}
    table, summary = verdicts(scores, labels, read_span(Span(uri=folds.uris()[0])), groups, job.config.judge)
    return [*write_tables(folder, [table]), write_json(folder, "judge.json", summary)]


def _publish(job: Job, chosen: Done, judged: Mapping[str, Done]) -> dict[str, Done]:
    label, score, verdict = judged["label"], judged["score"], judged["verdict"]
    plan, shards = _placement(job, chosen, label, verdict)
    config, rows = job.config.publish, job.config.label.rows
    placed = job.step(
        "placed", [identity(config), job.seed], [chosen, verdict], [], lambda folder: write_tables(folder, [plan])
    )
    where = plan.column("row").to_pylist()
    spans = [publish_spans(placed.uris()[0], s, where, label.uris(), score.uris(), rows) for s in shards]
    work = Publish(config=config, scan=job.config.probe.scan, label_rows=rows)
    return {"placed": placed, "publish": job.stage(work, spans, placed, label, score)}


def _placement(job: Job, chosen: Done, label: Done, verdict: Done) -> tuple[pa.Table, list[Shard]]:
    labels = pa.concat_tables(iter_tables(label.uris(), ["label_confidence", "fault"]))
    rows = read_span(Span(uri=chosen.uris()[0]))
    return publish_plan(rows, labels, read_span(Span(uri=verdict.uris()[0])), job.config.publish, job.seed)


def _release(job: Job, stages: Mapping[str, Done], teacher: Weights, labelled: str, started: float) -> Result:
    verdict = read_span(Span(uri=stages["verdict"].uris()[0]))
    sources = read_span(Span(uri=stages["sources"].uris()[0]))
    chosen = read_span(Span(uri=stages["chosen"].uris()[0]))
    run = Run(
        config=job.config,
        seed=job.seed,
        target=job.target,
        run_id=digest_of([identity(job.config), job.seed, job.target, stages["sources"].digest, labelled])[:16],
        counts=count_items(stages, verdict.column("decision").to_pylist()),
        inputs={
            "sources": sources.num_rows,
            "bytes": sum(sources.column("bytes").to_pylist()),
            "digest": stages["probe"].digest,
            "labelled_sha256": labelled,
        },
        recorded=max(sources.column("modified_ns").to_pylist()),
        given=tuple(given_names(chosen)),
        embedder=f"clusterfit:{job.config.cluster.fit.network}",
        models=_models(job, stages, teacher),
        stages=stages,
        judge=json.loads(storage.read_bytes(stages["verdict"].uri("judge.json"))),
        plan=json.loads(storage.read_bytes(stages["plan"].uri("plan.json"))),
        faults=_quarantine(job, stages),
    )
    _, shards = _placement(job, stages["chosen"], stages["label"], stages["verdict"])
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
    )


def _embed_work(config: Config) -> Embed:
    return Embed(config=config.embed, scan=config.probe.scan, weights_sha256=weights_digest(config.embed))


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


def _brought(job: Job, name: str, given: str) -> Weights:
    """A file that the user gave, copied to where workers can read it."""
    file = name + PurePosixPath(given).suffix
    digest = _sha256(given)

    def make(folder: Path) -> Sequence[str]:
        storage.write_bytes(str(folder / file), storage.read_bytes(given))
        return [file]

    return _weights(job.step(name, None, [digest], [], make), file)


def _teacher(job: Job, labelled: str) -> Weights:
    """The checkpoint that was given, or one trained on the labelled set."""
    if job.teacher is not None:
        return _brought(job, "teacher", str(job.teacher))
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
    return _weights(done, "teacher.safetensors")


def _check_teacher(job: Job) -> None:
    if job.teacher is not None:
        open_teacher(job.teacher, job.config)


def _given(job: Job, sources: Done) -> Given | None:
    if job.attributes is None:
        return None
    return read_given(job.attributes, read_span(Span(uri=sources.uris()[0]), ["uri"]).column("uri").to_pylist())


def _weights(done: Done, name: str) -> Weights:
    return Weights(uri=done.uri(name), sha256=next(part.sha256 for part in done.parts if part.name == name))


def _sha256(uri: str) -> str:
    with storage.local_copy(uri) as path:
        return sha256_file(path)


def _models(job: Job, stages: Mapping[str, Done], teacher: Weights) -> tuple[Model, ...]:
    with storage.local_copy(teacher.uri) as path:
        name = load_teacher(Path(path), job.config.teacher).id
    source = "given with --teacher" if job.teacher else "trained on the labelled set"
    made = {"source": "trained in this run", "licence": "unknown"}
    students = [row for table in iter_tables(stages["fold"].uris()) for row in table.to_pylist()]
    network = _weights(stages["cluster"], "clusterfit.safetensors")
    return (
        Model(role="teacher", id=name, sha256=teacher.sha256, source=source, licence="unknown"),
        Model(role="embedder", id="clusterfit", sha256=network.sha256, **made),
        *(Model(role="student", id=row["file"], sha256=row["sha256"], **made) for row in students),
    )


def _quarantine(job: Job, stages: Mapping[str, Done]) -> list[dict[str, object]]:
    """Writes ``quarantine.json``: every input that was set aside, with source, stage, error class and message."""
    faults = [dict(fault) for name in ("probe", "embed", "label") if name in stages for fault in stages[name].faults]
    data = json.dumps(faults, indent=1, sort_keys=True, ensure_ascii=False)
    storage.write_bytes(storage.join(job.output, "quarantine.json"), data.encode())
    return faults


def _check_apart(job: Job) -> None:
    """Refuses an output below an input: the next run would take its own shards for sources."""
    output = Path(job.output).resolve()
    for given in job.inputs:
        if storage.is_local(given) and storage.is_local(job.output) and output.is_relative_to(Path(given).resolve()):
            raise InputError(f"--output {job.output} is inside --input {given}; choose an output elsewhere")


def _check_room(job: Job, chosen: Done) -> None:
    """Refuses to go on where the disk cannot hold the release, before hours are spent on it."""
    sizes = read_span(Span(uri=chosen.uris()[0]), ["width", "height"])
    pixels = np.dot(*(sizes.column(name).to_numpy().astype(np.int64) for name in ("width", "height")))
    needed = int(pixels * 0.4) + chosen.rows * 40_000
    free = storage.free_bytes(job.output)
    if free is not None and free < needed:
        raise StorageError(
            f"{job.output} has {free} bytes free, but labels and shards of {chosen.rows} frames take about {needed}; "
            "free some space or choose another --output"
        )
