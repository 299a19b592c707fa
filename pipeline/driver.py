"""The main job: the stages in order, each a folder that is finished or resumed.

::

    sources ─ probe ─ embed ─ dedupe ─ cluster ─ assign ─ plan ─ select ─ chosen ─ label ─ folds ─ fold ─ score ─ verdict ─ publish ─ release
                                                                            teach ┘   gold ┘
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from manifests.release import Counts, Model, canonical_json
from manifests.verify import verify_release
from pipeline import storage
from pipeline.assign import (
    Assign,
    Select,
    Weights,
    balanced_attributes,
    choose,
    cluster,
    dedupe,
    effective,
    given_names,
    group_column,
    plan_selection,
)
from pipeline.attributes import COMPUTED, Given, read_given
from pipeline.config import Config
from pipeline.embed import Embed, weights_digest
from pipeline.errors import InputError, StageError, StorageError
from pipeline.judge import Fold, Score, fold_tables, gold_table, labelled_digest, verdicts
from pipeline.label import Label, label_spans
from pipeline.plan import Plan, measure, sample_sources, with_gpu
from pipeline.probe import Probe, probe_spans
from pipeline.publish import Publish, publish_plan, publish_spans
from pipeline.release import Run, count_items, release_fingerprint, write
from pipeline.runner import Runner
from pipeline.sources import list_sources
from pipeline.stage import Done, Span, Work, identity, iter_tables, read_span
from pipeline.step import digest_of, run_step, write_json, write_tables
from pipeline.threads import torch_threads
from teachers.checkpoint import CheckpointError, sha256_file
from teachers.teacher import load_teacher
from teachers.train import TeachError, TeachResult, teach


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run is told.

    Attributes:
        inputs: files, folders, globs or patterns of Beam file systems.
        labelled: the labelled set.
        output: the folder of stages and releases.
        target: frames to choose.
        config: the resolved config.
        runner: where tasks run.
        seed: of every random choice.
        teacher: a teacher's checkpoint; None: one is trained on the labelled set.
        attributes: a table of attributes per source, or None.
        max_bad: largest share of the sources that may be broken.
    """

    inputs: tuple[str, ...]
    labelled: Path
    output: str
    target: int
    config: Config = field(default_factory=Config)
    runner: Runner = field(default_factory=Runner)
    seed: int = 0
    teacher: Path | None = None
    attributes: str | None = None
    max_bad: float = 0.05

    @property
    def stages(self) -> str:
        """The folder of all stages."""
        return storage.join(self.output, "stages")

    @property
    def console(self) -> Console:
        """Where progress is shown."""
        return self.runner.console


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run made.

    Attributes:
        release: the folder of the release.
        fingerprint: of the release.
        counts: what became of every item read.
        verdicts: samples per verdict.
        sources: sources that the chosen frames come from.
        seconds: of this call (a resumed run only counts what was left).
    """

    release: Path
    fingerprint: str
    counts: Counts
    verdicts: Mapping[str, int]
    sources: int
    seconds: float


def curate(job: Job) -> Result:
    """Runs the main job to its end, or what is left of it.

    Raises:
        CurateError: see its tree; what was committed stays and is not redone.
    """
    started = time.monotonic()
    if not storage.is_local(job.output):
        raise InputError(f"--output {job.output}: the release is written to a local folder; give one and copy it after")
    storage.check_writable(job.output)
    labelled = labelled_digest(job.labelled)
    _check_teacher(job)
    stages = _choose(job)
    stages |= _judge(job, stages, labelled)
    return _release(job, stages, started)


def estimate(job: Job) -> Plan:
    """What a run would cost, measured on about 24 of the sources; nothing is written to the output.

    Raises:
        InputError: nothing can be read, or the labelled set or teacher is no good.
    """
    labelled_digest(job.labelled)
    _check_teacher(job)
    sources, _ = list_sources(job.inputs)
    scan, config = job.config.probe.scan, job.config
    works: list[tuple[Work, int]] = [
        (Probe(config=scan), 0),
        (Embed(config=config.embed, scan=scan, weights_sha256=weights_digest(config.embed)), 0),
    ]
    if job.teacher is not None:
        digest = sha256_file(job.teacher)
        works.append((Label(config=config.label, scan=scan, teacher=str(job.teacher), teacher_sha256=digest), 16))
    plan = measure(
        sources,
        sample_sources(sources, 24, job.seed),
        works,
        shards=config.probe.shards,
        target=job.target,
        label_rows=config.label.rows,
    )
    return with_gpu(plan, config.price)


def train_teacher(labelled: Path, output: Path, config: Config, seed: int, console: Console) -> TeachResult:
    """Trains a teacher outside a run (``curate teach``).

    Raises:
        InputError: the labelled set cannot be used.
        StageError: the training cannot go on.
    """
    labelled_digest(labelled)
    storage.check_writable(str(output))
    try:
        with torch_threads(config.driver.threads):
            return teach(
                labelled, output, config.teach, seed=seed, report=lambda text: console.print(text, highlight=False)
            )
    except TeachError as error:
        raise StageError(f"teach: {error}") from error


def survey(job: Job) -> dict[str, Done]:
    """Lists and probes the inputs.

    Raises:
        InputError: nothing can be read, or more than ``max_bad`` of the sources are broken.
    """
    table, hidden = list_sources(job.inputs)
    digest = digest_of([table.column(name).to_pylist() for name in table.column_names])
    sources = run_step(job.stages, "sources", 1, None, [digest], [], lambda folder: write_tables(folder, [table]))
    sizes = table.column("bytes").to_pylist()
    work = Probe(config=job.config.probe.scan)
    probe = job.runner.run(job.stages, work, probe_spans(sources.uris()[0], sizes, job.config.probe), [sources.digest])
    _set_aside(job, {"probe": probe}, hidden)
    bad, total = probe.counts["bad"], probe.counts["sources"]
    first = "; ".join(f"{f['source']}: {f['message']}" for f in _errors(probe.faults)[:10])
    if probe.rows == 0:
        raise InputError(f"no readable input: {total} media files, {bad} of them broken{': ' + first if first else ''}")
    if bad > job.max_bad * total:
        raise InputError(
            f"{bad} of {total} sources are broken, more than --max-bad-fraction {job.max_bad:g}; the first: {first}. "
            "Repair or remove them, or raise the limit; what was probed is kept"
        )
    return {"sources": sources, "probe": probe}


def _choose(job: Job) -> dict[str, Done]:
    stages = survey(job)
    config, runner, root = job.config, job.runner, job.stages
    sources, probe = stages["sources"], stages["probe"]
    given = _given(job, sources)
    embed_work = Embed(config=config.embed, scan=config.probe.scan, weights_sha256=weights_digest(config.embed))
    embed = runner.run(root, embed_work, [(Span(uri=uri),) for uri in probe.uris()], [probe.digest])
    deduped = run_step(
        root,
        "dedupe",
        1,
        config.cluster.duplicates,
        [embed.digest, probe.digest],
        ["numpy"],
        lambda folder: write_tables(folder, dedupe(embed, probe, config.cluster.duplicates)),
    )
    clustered = run_step(
        root,
        "cluster",
        1,
        [identity(config.cluster), job.seed],
        [embed.digest, deduped.digest],
        ["faiss-cpu", "numpy", "scikit-learn", "timm", "torch", "opencv-python-headless"],
        lambda folder: cluster(
            embed, deduped, config.cluster, seed=job.seed, folder=folder, report=_reporter(job, "cluster")
        ),
    )
    assign_work = Assign(
        network=_weights(clustered, "clusterfit.safetensors"),
        tree=_weights(clustered, "tree.safetensors"),
        given=None if given is None else Weights(uri=str(job.attributes), sha256=_sha256(str(job.attributes))),
        sources=sources.uris()[0],
        balanced=balanced_attributes(config.select, given),
        seed=job.seed,
    )
    triples = zip(embed.uris(), probe.uris(), deduped.uris(), strict=True)
    assign = runner.run(
        root, assign_work, [tuple(Span(uri=u) for u in t) for t in triples], [embed.digest, deduped.digest]
    )
    planned = run_step(
        root,
        "plan",
        1,
        [identity(config.select), job.target],
        [assign.digest],
        [],
        lambda folder: [write_json(folder, "plan.json", plan_selection(assign, job.target, config.select))],
    )
    select_work = Select(plan=_weights(planned, "plan.json"))
    select = runner.run(root, select_work, [(Span(uri=uri),) for uri in assign.uris()], [assign.digest])
    plan = json.loads(storage.read_bytes(planned.uri("plan.json")))
    chosen = run_step(
        root,
        "chosen",
        1,
        None,
        [select.digest, planned.digest],
        [],
        lambda folder: write_tables(folder, [choose(select, plan)], config.label.rows),
    )
    _check_room(job, chosen, probe)
    return stages | {
        "embed": embed,
        "dedupe": deduped,
        "cluster": clustered,
        "assign": assign,
        "plan": planned,
        "select": select,
        "chosen": chosen,
    }


def _judge(job: Job, stages: Mapping[str, Done], labelled: str) -> dict[str, Done]:
    config, runner, root = job.config, job.runner, job.stages
    chosen = stages["chosen"]
    teacher = _teacher(job, labelled)
    label_work = Label(
        config=config.label, scan=config.probe.scan, teacher=str(teacher), teacher_sha256=sha256_file(teacher)
    )
    label = runner.run(root, label_work, label_spans(chosen.uris()[0], chosen.rows, config.label), [chosen.digest])
    gold = run_step(
        root,
        "gold",
        1,
        config.label.student_side,
        [labelled],
        ["opencv-python-headless", "pillow"],
        lambda folder: write_tables(folder, [gold_table(job.labelled, config.label.student_side)], 64),
    )
    table = read_span(Span(uri=chosen.uris()[0]), ["sample_id", "source_sha256", "vector", "cluster_path", "key"])
    fold_rows, facts = fold_tables(table, group_column(table), config.judge)
    folds = run_step(
        root,
        "folds",
        1,
        [config.judge.folds, config.judge.similar],
        [chosen.digest],
        ["numpy"],
        lambda folder: [*write_tables(folder, [fold_rows], config.label.rows), write_json(folder, "folds.json", facts)],
    )
    if facts["reason"]:
        job.console.print(f"   folds  labels are not judged: {facts['reason']}", highlight=False)
    pair = (Span(uri=folds.uris()[0]), Span(uri=gold.uris()[0]))
    fold_work = Fold(config=config.judge, seed=job.seed, labels=label.folder)
    fold = runner.run(root, fold_work, [pair] * facts["folds"], [label.digest, folds.digest, gold.digest])
    score_work = Score(side=config.judge.student.side, students=fold.folder)
    rows = config.label.rows
    spans = [
        (Span(uri=uri), Span(uri=folds.uris()[0], start=i * rows, stop=(i + 1) * rows))
        for i, uri in enumerate(label.uris())
    ]
    score = runner.run(root, score_work, spans, [label.digest, fold.digest, folds.digest])
    verdict = run_step(
        root,
        "verdict",
        1,
        config.judge,
        [score.digest, folds.digest, label.digest],
        ["numpy", "scikit-learn"],
        lambda folder: _write_verdicts(folder, job, chosen, label, folds, score),
    )
    plan, shards = _publish_plan(job, chosen, label, verdict)
    placed = run_step(
        root,
        "placed",
        1,
        [identity(config.publish), job.seed],
        [chosen.digest, verdict.digest],
        [],
        lambda folder: write_tables(folder, [plan]),
    )
    publish_work = Publish(config=config.publish, scan=config.probe.scan, label_rows=rows)
    where = plan.column("row").to_pylist()
    publish = runner.run(
        root,
        publish_work,
        [publish_spans(placed.uris()[0], s, where, label.uris(), score.uris(), rows) for s in shards],
        [placed.digest, label.digest, score.digest],
    )
    return {
        "label": label,
        "gold": gold,
        "folds": folds,
        "fold": fold,
        "score": score,
        "verdict": verdict,
        "placed": placed,
        "publish": publish,
    }


def _release(job: Job, stages: Mapping[str, Done], started: float) -> Result:
    verdict = read_span(Span(uri=stages["verdict"].uris()[0]))
    decisions = verdict.column("decision").to_pylist()
    chosen = read_span(Span(uri=stages["chosen"].uris()[0]), ["source_uri"])
    sources = read_span(Span(uri=stages["sources"].uris()[0]))
    faults = [fault for name in ("probe", "embed", "label") for fault in stages[name].faults]
    _set_aside(job, stages, None)
    labelled = labelled_digest(job.labelled)
    given = _given(job, stages["sources"])
    run = Run(
        config=job.config,
        seed=job.seed,
        target=job.target,
        run_id=digest_of([identity(job.config), job.seed, job.target, stages["sources"].digest, labelled])[:16],
        counts=count_items(stages, decisions),
        inputs={
            "sources": sources.num_rows,
            "bytes": sum(sources.column("bytes").to_pylist()),
            "digest": stages["probe"].digest,
            "labelled_sha256": labelled,
        },
        recorded=max(sources.column("modified_ns").to_pylist()),
        given=given.names if given else (),
        embedder=f"clusterfit:{job.config.cluster.fit.network}",
        models=_models(job, stages, labelled),
        stages=stages,
        judge=json.loads(storage.read_bytes(stages["verdict"].uri("judge.json"))),
        plan=json.loads(storage.read_bytes(stages["plan"].uri("plan.json"))),
        faults=faults,
    )
    _, shards = _publish_plan(job, stages["chosen"], stages["label"], stages["verdict"])
    folder = write(Path(job.output), run, shards)
    problems = verify_release(folder)
    if problems:
        raise StageError(f"{folder / problems[0].path}: {problems[0].message} ({len(problems)} problems); run again")
    kinds = verdict.column("verdict").to_pylist()
    return Result(
        release=folder,
        fingerprint=release_fingerprint(folder),
        counts=run.counts,
        verdicts={kind: kinds.count(kind) for kind in ("keep", "weight", "correct", "hold", "drop")},
        sources=len(set(chosen.column("source_uri").to_pylist())),
        seconds=time.monotonic() - started,
    )


def _publish_plan(
    job: Job, chosen: Done, label: Done, verdict: Done
) -> tuple[pa.Table, list[tuple[str, int, int, int, int]]]:
    labels = pa.concat_tables(iter_tables(label.uris(), ["label_confidence", "fault"]))
    rows = read_span(Span(uri=chosen.uris()[0]))
    return publish_plan(rows, labels, read_span(Span(uri=verdict.uris()[0])), job.config.publish, job.seed)


def _write_verdicts(folder: Path, job: Job, chosen: Done, label: Done, folds: Done, score: Done) -> list[str]:
    columns = [name for name in _columns_of(score) if name != "student"]
    scores = pa.concat_tables(iter_tables(score.uris(), columns))
    labels = pa.concat_tables(iter_tables(label.uris(), ["fault"]))
    rows = read_span(Span(uri=chosen.uris()[0]))
    names = sorted({*COMPUTED, *given_names(rows)})
    groups = {n: np.array([v or "unknown" for v in effective(rows, n).to_pylist()], dtype=np.str_) for n in names}
    table, summary = verdicts(scores, labels, read_span(Span(uri=folds.uris()[0])), groups, job.config.judge)
    return [*write_tables(folder, [table]), write_json(folder, "judge.json", summary)]


def _columns_of(done: Done) -> list[str]:
    return list(read_span(Span(uri=done.uris()[0], start=0, stop=0)).column_names)


def _teacher(job: Job, labelled: str) -> Path:
    if job.teacher is not None:
        return job.teacher
    config = job.config.teach

    def make(folder: Path) -> Sequence[str]:
        with torch_threads(job.config.driver.threads):
            result = teach(job.labelled, folder, config, seed=job.seed, report=_reporter(job, "teach"))
        job.console.print(f"   teach  held-out IoU {result.held_out_iou:.3f}", highlight=False)
        return [result.checkpoint.name, "curve.csv"]

    try:
        done = run_step(
            job.stages,
            "teach",
            1,
            [identity(config), job.config.driver.threads, job.seed],
            [labelled],
            ["numpy", "opencv-python-headless", "torch"],
            make,
        )
    except TeachError as error:
        raise StageError(f"stage teach: {error}") from error
    return Path(done.uri("teacher.safetensors"))


def _check_teacher(job: Job) -> None:
    if job.teacher is None:
        return
    if not job.teacher.is_file():
        raise InputError(f"--teacher {job.teacher} is no file; give a checkpoint, or leave it out to train one")
    try:
        load_teacher(job.teacher)
    except CheckpointError as error:
        raise InputError(f"--teacher {job.teacher}: {error}") from error


def _given(job: Job, sources: Done) -> Given | None:
    if job.attributes is None:
        return None
    return read_given(job.attributes, read_span(Span(uri=sources.uris()[0]), ["uri"]).column("uri").to_pylist())


def _weights(done: Done, name: str) -> Weights:
    return Weights(uri=done.uri(name), sha256=next(part.sha256 for part in done.parts if part.name == name))


def _sha256(uri: str) -> str:
    with storage.local_copy(uri) as path:
        return sha256_file(path)


def _models(job: Job, stages: Mapping[str, Done], labelled: str) -> tuple[Model, ...]:
    teacher = _teacher(job, labelled)
    made = "given with --teacher" if job.teacher else "trained on the labelled set"
    rows = [row for table in iter_tables(stages["fold"].uris()) for row in table.to_pylist()]
    students = [
        Model(role="student", id=row["file"], sha256=row["sha256"], source="trained in this run", licence="unknown")
        for row in rows
    ]
    network = _weights(stages["cluster"], "clusterfit.safetensors")
    return (
        Model(role="teacher", id=load_teacher(teacher).id, sha256=sha256_file(teacher), source=made, licence="unknown"),
        Model(role="embedder", id="clusterfit", sha256=network.sha256, source="trained in this run", licence="unknown"),
        *students,
    )


def _errors(faults: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [fault for fault in faults if fault["error"] != "BlankFrame"]


def _set_aside(job: Job, stages: Mapping[str, Done], hidden: int | None) -> None:
    """Writes ``quarantine.json``: every input that was set aside, with source, stage, error class and message."""
    faults = [dict(fault) for name in ("probe", "embed", "label") if name in stages for fault in stages[name].faults]
    data = json.dumps(json.loads(canonical_json(faults)), indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(job.output, "quarantine.json"), data.encode())
    if hidden is None:
        return
    counts = stages["probe"].counts
    passed = f"{counts['not_media']} files that are no media and {hidden} hidden files were passed over"
    if counts["not_media"] or hidden:
        job.console.print(f"   probe  {passed}", highlight=False)
    if faults:
        job.console.print(
            f"   probe  {len(faults)} faults set aside, see {job.output}/quarantine.json", highlight=False
        )


def _check_room(job: Job, chosen: Done, probe: Done) -> None:
    """Refuses to go on where the disk cannot hold the release, before hours are spent on it."""
    sizes = read_span(Span(uri=chosen.uris()[0]), ["width", "height"])
    pixels = np.dot(
        sizes.column("width").to_numpy().astype(np.int64), sizes.column("height").to_numpy().astype(np.int64)
    )
    needed = int(pixels * 0.4) + chosen.rows * 40_000
    free = storage.free_bytes(job.output)
    if free is not None and free < needed:
        raise StorageError(
            f"{job.output} has {free} bytes free, but labels and shards of {chosen.rows} frames take about {needed}; free some "
            "space or choose another --output"
        )


def _reporter(job: Job, stage: str) -> Any:
    def report(text: str) -> None:
        job.console.print(f"{stage:>8}  {text}", highlight=False)

    return report
