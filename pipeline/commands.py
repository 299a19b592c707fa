"""The commands that make things: a run, a teacher, a student, measurements, exports. They load torch and Beam."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.fairness import Row
from manifests.audit import is_audit
from pipeline import demo, flags, storage
from pipeline.audit_coco import check_audit, import_coco
from pipeline.audit_draw import draw_audit
from pipeline.audit_list import list_audit, read_list
from pipeline.audit_pool import open_pool
from pipeline.config import read_config
from pipeline.driver import curate, estimate, train_teacher
from pipeline.errors import CurateError, InputError, UsageError, did_you_mean
from pipeline.evaluate import Evaluated, compare, evaluate
from pipeline.export import export_student
from pipeline.job import Job, Result
from pipeline.next_round import next_round
from pipeline.next_round import show as show_next
from pipeline.plan import Plan, PriceConfig
from pipeline.preview import describe, preview
from pipeline.released import one_release
from pipeline.runner import REMOTE, Runner, beam_flags, quiet_beam, unknown_beam_flags
from pipeline.search import search, show
from pipeline.teacher import convert_teacher, fetch_teacher, measure_teacher
from pipeline.threads import one_thread
from pipeline.train import train_student
from teachers.score import METRICS, Estimate


def run(argv: Sequence[str], console: Console) -> int:
    """Parses the command line and runs its command; returns the exit code."""
    with quiet_beam():
        values = flags.parse(argv)
        one_thread()
        return COMMANDS[values.command](values, console)


def _run(values: argparse.Namespace, console: Console) -> int:
    unknown = unknown_beam_flags(values.beam)
    if unknown:
        raise UsageError(f"Beam does not know '--{unknown[0]}'{did_you_mean(unknown[0], beam_flags())}")
    if values.runner in REMOTE and storage.is_local(values.output):
        raise UsageError(f"--runner {values.runner} has workers elsewhere; give an --output they can reach, as gs://…")
    job = Job(
        inputs=tuple(values.input),
        labelled=values.labelled,
        output=values.output,
        target=values.target_size,
        config=read_config(values.config),
        runner=Runner(name=values.runner, workers=values.workers, flags=values.beam, console=console),
        seed=values.seed,
        teacher=values.teacher,
        attributes=values.attributes,
        gold=values.gold,
        audits=tuple(values.audit),
        max_bad=values.max_bad_fraction,
    )
    if values.plan:
        plan = estimate(job)
        _print_plan(plan, job.config.price)
        free = storage.free_bytes(job.output)
        if free is not None and free < plan.bytes:
            raise CurateError(f"{job.output} has {free} bytes free, the plan needs {plan.bytes}; free some space")
        return 0
    _print_result(curate(job))
    return 0


def _demo(values: argparse.Namespace, console: Console) -> int:
    runner = Runner(workers=values.workers, console=console)
    config = read_config(values.config) if values.config else None
    _print_result(demo.run(Path(values.output), values.target_size, values.seed, runner, config))
    return 0


def _teach(values: argparse.Namespace, console: Console) -> int:
    result = train_teacher(values.labelled, Path(values.output), read_config(values.config), values.seed, console)
    print(f"{result.checkpoint}  held-out IoU {result.held_out_iou:.4f}  sha256 {result.sha256}")  # noqa: T201
    return 0


def _evaluate(values: argparse.Namespace, console: Console) -> int:
    config = read_config(values.config)
    _check_evaluate(values)
    if values.compare:
        first, second = values.compare
        done = compare(first, second, Path(values.output), config.evaluate)
    else:
        done = evaluate(
            values.model,
            values.videos,
            values.attributes,
            values.output,
            config.evaluate,
            teacher=config.teacher,
            workers=values.workers,
            flow=not values.no_flow,
            flow_cache=values.flow_cache,
            trained=values.trained_on,
            console=console,
        )
    _print_overall(done, 100 * config.evaluate.confidence)
    return 0


def _check_evaluate(values: argparse.Namespace) -> None:
    own = {"--model": values.model, "--videos": values.videos}
    lacking = [flag for flag, value in own.items() if value is None]
    if values.compare is None and lacking:
        raise UsageError(f"{' and '.join(lacking)} must be given, or --compare A B")
    own |= {"--attributes": values.attributes, "--flow-cache": values.flow_cache, "--trained-on": values.trained_on}
    surplus = [flag for flag, value in own.items() if value is not None]
    if values.compare is not None and (surplus or values.no_flow):
        raise UsageError(f"--compare reads finished evaluations; remove {', '.join(surplus or ['--no-flow'])}")
    if not storage.is_local(values.output):
        raise UsageError(f"--output {values.output} must be a folder of this machine; copy it from there")


def _print_overall(done: Evaluated, confidence: float) -> None:
    table = Table(title="all videos" if done.record.get("model") else "first less second", title_justify="left")
    for name in ("metric", "videos", "mean", f"{confidence:.4g} % interval"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in done.overall:
        span = "–" if row.interval is None else f"{row.interval[0]:.4f} … {row.interval[1]:.4f}"
        mean = row.mean if isinstance(row, Row) else row.change
        table.add_row(row.metric.replace("_", " "), str(row.videos), "–" if mean is None else f"{mean:.4f}", span)
    out = Console(soft_wrap=True)
    out.print(table)
    for reason in dict.fromkeys(row.reason for row in done.overall if row.interval is None):
        out.print(reason, highlight=False, markup=False)
    out.print(f"{done.report}", highlight=False, markup=False)


def _evaluate_teacher(values: argparse.Namespace, console: Console) -> int:
    config, output = read_config(values.config), Path(values.output)
    measured = measure_teacher(
        values.teacher, values.labelled, values.attributes, output, config, functools.partial(_say, console)
    )
    table = Table(title=f"{measured.teacher_id} on {len(measured.images)} images", title_justify="left")
    for name in ("attribute", "class", "images", *METRICS):
        table.add_column(name.replace("_", " "), justify="left" if name in ("attribute", "class") else "right")
    for row in measured.classes:
        scores = [_with_interval(row.scores[name]) for name in METRICS]
        table.add_row(
            Text(row.attribute), Text(row.name), str(row.images), *scores, end_section=row is measured.overall
        )
    out = Console(soft_wrap=True)
    out.print(table)
    ece, temperature = measured.before.ece, measured.after.temperature
    out.print(f"expected calibration error {ece:.4f}; {measured.after.ece:.4f} at temperature {temperature:.3f}")
    out.print(f"{measured.seconds_per_image:.3f} s per image; tables and pictures are in {output}", markup=False)
    return 0


def _fetch_teacher(values: argparse.Namespace, console: Console) -> int:
    path = fetch_teacher(values.name, values.sha256, values.cache, functools.partial(_say, console))
    print(path)  # noqa: T201
    return 0


def _convert_teacher(values: argparse.Namespace, _: Console) -> int:
    print(f"{values.target}  sha256 {convert_teacher(values.source, values.target, values.person_classes)}")  # noqa: T201
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _with_interval(score: Estimate) -> str:
    if score.mean is None:
        return "–"
    return f"{score.mean:.3f}" if score.low is None else f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _export(values: argparse.Namespace, _: Console) -> int:
    config = read_config(values.config).export
    export_student(values.model, values.output, values.format, values.frames, config, console=Console(soft_wrap=True))
    return 0


def _search(values: argparse.Namespace, console: Console) -> int:
    release = None if values.release is None else one_release(values.release)
    result = search(
        values.latency_ms,
        Path(values.output),
        labelled=values.labelled,
        release=release,
        aspect=values.aspect,
        trials=values.trials,
        steps=values.steps,
        seed=values.seed,
        report=functools.partial(_say, console),
    )
    show(result, Console(soft_wrap=True))
    return 0


def _preview(values: argparse.Namespace, console: Console) -> int:
    config = read_config(values.config)
    result = preview(
        values.video,
        values.model,
        values.output,
        effect=values.effect,
        background=values.background,
        compare=values.compare,
        start=values.start,
        seconds=values.seconds,
        config=config,
        look=config.preview,
        clips=config.evaluate.clips,
        console=console,
    )
    for line in describe(result):
        print(line)  # noqa: T201
    return 0


def _train(values: argparse.Namespace, console: Console) -> int:
    result = train_student(
        values.release,
        values.labelled,
        values.output,
        read_config(values.config),
        seed=values.seed,
        preset=values.preset,
        require_signoff=values.require_signoff,
        allowed_signers=values.allowed_signers,
        console=console,
    )
    scored = "" if result.held_out_iou is None else f"  held-out IoU {result.held_out_iou:.4f}"
    print(f"{result.checkpoint}{scored}  sha256 {result.sha256}")  # noqa: T201
    return 0


def _audit(values: argparse.Namespace, console: Console) -> int:
    if values.empty and values.import_coco is None:
        raise UsageError("--empty is about --import-coco; give both, or leave it out")
    if is_audit(values.path) or values.import_coco is not None:
        return _read_audit(values)
    if not values.path.exists():
        raise InputError(f"{values.path} does not exist; name a release, the --output of a run, or an audit folder")
    return _draw_audit(values, console)


def _draw_audit(values: argparse.Namespace, console: Console) -> int:
    if values.output is None:
        raise UsageError(f"{values.path} holds no audit.json, so frames are drawn from it: give --output DIR")
    if not storage.is_local(values.output):
        raise UsageError(f"--output {values.output} must be a folder of this machine; copy it from there")
    listed = None if values.list is None else read_list(values.list)
    pool = open_pool(values.path, None if values.config is None else read_config(values.config))
    output, seed, without = Path(values.output), values.seed or 0, values.without or ()
    if listed is None:
        size = 200 if values.size is None else values.size
        audit, notes = draw_audit(pool, output, size=size, seed=seed, coco=values.coco, without=without)
    else:
        audit, notes = list_audit(
            pool, output, listed=listed, size=values.size, seed=seed, coco=values.coco, without=without
        )
    for note in notes:
        _say(console, note)
    clusters = sum(stratum.drawn > 0 for stratum in audit.strata.values())
    frames = "frames" if audit.sampled else "listed frames"
    print(f"{values.output}: {len(audit.samples)} {frames} of {clusters} clusters; draw masks/0001.png and so on")  # noqa: T201
    return 0


def _read_audit(values: argparse.Namespace) -> int:
    drawing = ("--size", "--list", "--output", "--seed", "--coco", "--without", "--config")
    told = [flag for flag in drawing if (value := getattr(values, flag[2:])) is not None and value is not False]
    if told:
        raise UsageError(f"{', '.join(told)} is about drawing, {values.path} is read; leave it out")
    if values.import_coco is not None:
        made = import_coco(values.path, values.import_coco, empty=values.empty)
        shown = f"; {made.empty} of {made.frames} show nobody" if values.empty else ""
        print(f"{values.path}: {made.frames} masks imported{shown}")  # noqa: T201
    progress = check_audit(values.path)
    print(f"{values.path}: {progress.done} of {progress.done + progress.unfinished} masks are done and good")  # noqa: T201
    return 0


def _next_round(values: argparse.Namespace, _: Console) -> int:
    result = next_round(values.release, values.output, labels=values.labels, config=values.config)
    show_next(result, Console(soft_wrap=True))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "run": _run,
    "demo": _demo,
    "audit": _audit,
    "evaluate": _evaluate,
    "export": _export,
    "next-round": _next_round,
    "preview": _preview,
    "search": _search,
    "teach": _teach,
    "teacher evaluate": _evaluate_teacher,
    "teacher fetch": _fetch_teacher,
    "teacher convert": _convert_teacher,
    "train": _train,
}


def _print_result(result: Result) -> None:
    counts = result.counts
    table = Table(title="what became of every frame read", title_justify="left")
    table.add_column("")
    table.add_column("frames", justify="right")
    for name in ("read", "undecodable", "duplicate", "not_sampled", "dropped", "held", "kept"):
        table.add_row(name.replace("_", " "), str(getattr(counts, name)), end_section=name == "read")
    out = Console(soft_wrap=True)
    out.print(table)
    said = ", ".join(f"{name} {n}" for name, n in result.verdicts.items())
    chosen = counts.dropped + counts.held + counts.kept
    out.print(f"{chosen} chosen from {result.sources} sources; verdicts: {said}", highlight=False)
    closed, gates = result.gates
    told = f"judge: {result.calibrated}; {closed} of {gates} gates closed; see {result.judge_page}"
    out.print(told, highlight=False, markup=False)
    state = "verified" if result.verified else "copy it here and run 'curate verify' on it"
    out.print(f"release {result.release} ({state}; {result.seconds:.0f} s)", highlight=False, markup=False)


def _print_plan(plan: Plan, prices: PriceConfig) -> None:
    table = Table(title=f"plan, from {plan.sampled} of {plan.sources} sources", title_justify="left")
    for name in ("stage", "tasks", "items", "CPU hours", "GPU hours", "bytes"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for line in plan.lines:
        hours = (f"{line.cpu_hours:.3f}", f"{line.gpu_hours:.3f}")
        table.add_row(line.stage, str(line.tasks), str(line.items), *hours, f"{line.bytes:,}")
    out = Console(soft_wrap=True)
    out.print(table)
    out.print(f"memory of one worker: {plan.memory_bytes:,} bytes; output: {plan.bytes:,} bytes", highlight=False)
    if prices.cpu_hour or prices.gpu_hour:
        out.print(f"price: {plan.money(prices):.2f} {prices.currency}", highlight=False)
