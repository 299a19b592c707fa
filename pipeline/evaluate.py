"""``curate evaluate``: any model over any videos, measured per frame, per video and per class of people; a report.

::

    <output>/stages/…                      the clips, and what each gave: one commit per clip, so a killed run resumes
    <output>/flow/…                        optical flow, for every model that is measured into this output
    <output>/<model>-<fingerprint>/        an evaluation:
        frames.parquet videos.parquet      one row per frame, per video
        classes.parquet worst.parquet      one row per metric and class, per metric and category
        attributes.parquet                 people and attributes as they were given
        pictures.parquet                   the worst frames
        report.html
        evaluation.json                    last: settings, digests, versions; the evaluation is whole
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from evaluation import fairness
from evaluation.estimates import Settings
from evaluation.groups import Videos
from evaluation.taxonomy import default_taxonomy
from evaluation.video import EXCLUDED
from pipeline import storage
from pipeline.audit import Evaluated, Tables, compare, finish
from pipeline.clip_formats import Clip
from pipeline.clips import VideosTable, digest, find_clips, read_videos_table
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.evaluate_config import EvaluateConfig
from pipeline.measure import Measure, clips_table
from pipeline.runner import Runner
from pipeline.segmenters import check_predictions, open_segmenter
from pipeline.stage import Done, Span, iter_tables
from pipeline.step import digest_of, run_step, write_tables
from pipeline.teacher import settings_digest
from teachers.backend import TeacherConfig

__all__ = ["Evaluated", "compare", "evaluate", "read_coverage"]

_LIBRARIES = ("av", "curate", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow", "scipy", "torch")


def evaluate(
    model: Path,
    videos: Path,
    attributes: Path | None,
    output: str,
    config: EvaluateConfig | None = None,
    *,
    teacher: TeacherConfig | None = None,
    workers: int = 1,
    flow: bool = True,
    flow_cache: Path | None = None,
    trained: Path | None = None,
    console: Console | None = None,
) -> Evaluated:
    """Measures a model on videos, or what is left of it, and writes tables and report.

    Args:
        model: a student, a teacher, an ONNX file or a folder of predicted masks.
        videos: a folder of clips; see ``pipeline.clips.find_clips``.
        attributes: a table of people and attributes with a column ``video``, or None.
        output: a folder on this machine; results of other models in it stay.
        config: how to measure and compare.
        teacher: how teachers and ONNX models are run.
        workers: threads; never change the result, but for the seconds per frame.
        flow: whether to measure along optical flow.
        flow_cache: where flow is kept; ``<output>/flow`` by default.
        trained: a release whose coverage is shown beside that of the videos, or None.
        console: where progress is shown.

    Raises:
        InputError: model, videos or attributes cannot be used.
        StageError: a clip or the model is no good; the message names clip and frame. What was measured is kept.
    """
    config, teacher = config or EvaluateConfig(), teacher or TeacherConfig()
    _check_output(output, videos, model)
    with storage.lock(output):
        clips = find_clips(videos, config.clips)
        given = _given(attributes, clips)
        covered = None if trained is None else read_coverage(trained)
        check_predictions(model, clips)
        digests = {clip.name: digest(clip, config.clips) for clip in clips}
        work = _work(model, output, config, teacher, flow=flow, flow_cache=flow_cache)
        runner = Runner(workers=workers) if console is None else Runner(workers=workers, console=console)
        done = _measure(runner, output, work, clips, digests)
        tables = _tables(done, given)
        return finish(Path(output), _record(work, videos, digests, done, tables), tables, config.settings, covered)


def _check_output(output: str, videos: Path, model: Path) -> None:
    if not storage.is_local(output):
        raise InputError(f"--output {output} must be a folder of this machine; copy the evaluation from there")
    for flag, read in (("--videos", videos), ("--model", model)):
        if Path(output).resolve().is_relative_to(read.resolve()):
            raise InputError(f"--output {output} is inside {flag} {read}; choose an output elsewhere")
    storage.check_writable(output)


def _given(attributes: Path | None, clips: Sequence[Clip]) -> VideosTable:
    """People and attributes, checked against the taxonomy before anything is decoded."""
    names = [clip.name for clip in clips]
    if attributes is None:
        return VideosTable(subjects=None, attributes={})
    given = read_videos_table(attributes, names)
    try:
        blank = Videos(
            names=names,
            scores={"iou": np.zeros(len(names))},
            attributes=given.attributes,
            subjects=given.subjects,
        )
        fairness.plan(blank, default_taxonomy(), Settings())
    except ValueError as error:
        raise InputError(f"--attributes {attributes}: {error}") from error
    return given


def _work(
    model: Path, output: str, config: EvaluateConfig, teacher: TeacherConfig, *, flow: bool, flow_cache: Path | None
) -> Measure:
    """The work, with a model that was opened once, so that a bad one is refused here."""
    whole = Config(teacher=teacher)
    return Measure(
        config=config,
        run=teacher,
        flow=flow,
        model=str(model),
        model_sha256=open_segmenter(model, whole, config.clips).sha256,
        settings="" if model.is_dir() else settings_digest(whole),
        flow_folder=str(flow_cache or Path(output) / "flow"),
    )


def _measure(runner: Runner, output: str, work: Measure, clips: Sequence[Clip], digests: Mapping[str, str]) -> Done:
    """One task per clip."""
    stages, table = storage.join(output, "stages"), clips_table(clips)
    content = [[name, digests[name]] for name in digests]
    listed = run_step(stages, "clips", 1, table.to_pylist(), [], [], lambda folder: write_tables(folder, [table]))
    spans = [(Span(uri=listed.uris()[0], start=row, stop=row + 1),) for row in range(len(clips))]
    return runner.run(stages, work, spans, [digest_of(content)])


def _tables(done: Done, given: VideosTable) -> Tables:
    """What all tasks measured, with the people."""
    videos = pa.concat_tables(iter_tables(done.uris("video")))
    at = videos.column_names.index("subject_id")
    subjects = pa.array(given.subjects or [None] * len(videos), pa.string())
    return Tables(
        frames=pa.concat_tables(iter_tables(done.uris())),
        videos=videos.set_column(at, videos.schema.field(at), subjects),
        pictures=pa.concat_tables(iter_tables(done.uris("pictures"))),
        given=given,
    )


def read_coverage(release: Path) -> dict[str, dict[str, float]]:
    """Share of the kept samples of a release in each class: category -> class -> share.

    Raises:
        InputError: it is no release.
    """
    try:
        table = json.loads((release / "stats.json").read_bytes())["attributes"]
        kept = {name: {group: int(row["keep"]) for group, row in groups.items()} for name, groups in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{release} must be a release with its stats.json: {storage.reason(error)}") from error
    return {
        name: {group: count / max(1, sum(groups.values())) for group, count in groups.items()}
        for name, groups in kept.items()
    }


def _record(work: Measure, videos: Path, digests: Mapping[str, str], done: Done, tables: Tables) -> dict[str, Any]:
    """What says what the numbers are."""
    path = Path(work.model)
    name = path.stem if path.is_file() else path.resolve().name
    excluded = tables.videos.column("pairs_excluded").to_pylist()
    return {
        "model": {"id": f"{name}-{work.model_sha256[:12]}", "path": work.model, "sha256": work.model_sha256},
        "videos": {"path": str(videos), "digests": dict(digests)},
        "flow": work.flow,
        "settings": dataclasses.asdict(work.config),
        "run": dataclasses.asdict(work.run),
        "measured": done.folder.rsplit("/", 1)[1],
        "counts": {"videos": len(digests)} | {name: done.counts[name] for name in ("frames", "labelled", "pairs")},
        "pairs_excluded": {reason: sum(row[reason] for row in excluded) for reason in EXCLUDED},
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
