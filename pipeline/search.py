"""Find students that fit a latency: measured as they are shipped, scored on held-out labels where there are any.

::

    output/
      search.csv     one row per candidate measured; written after each, so that a killed search goes on
      search.json    which search this is, and once it is done its result: each member of the front with the config
                     that trains it
      search.png     latency and score of all, the front, the budget
      trainings/     short trainings for the scores; may be deleted

Latency is that of the exported ONNX file in ONNX Runtime on one thread of this machine. Each batch of candidates takes
turns with one reference; a candidate's milliseconds are its quotient times the least time the reference ever took, so a
machine that was busy for a while does not bend the order.

Scores rank: each training is short, on RGB, with the recipe of the judge's students. Without labels the score is
compute times pixels, which says nothing of people.
"""

from __future__ import annotations

import hashlib
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import onnxruntime  # type: ignore[import-untyped]
import torch
from rich.console import Console
from rich.table import Table

from pipeline import storage
from pipeline.errors import CurateError, UsageError
from pipeline.search_data import ScoringSet, read_scoring_set, train_and_score
from pipeline.search_ledger import Ledger, Row, ScoredBy, SearchResult, Trial
from pipeline.search_plot import plot
from students.data import ASPECTS, bucket_sizes, nearest_bucket
from students.export_onnx import export_onnx
from students.latency import Call, onnx_call, take_turns
from students.model import build_student, config_to_json
from students.presets import PRESETS
from students.search import (
    Candidate,
    Point,
    Space,
    capacity,
    draw,
    features,
    fit_latency,
    front,
    promising,
    rungs,
    survivors,
    to_toml,
    work,
)
from training.files import write_atomically

VERSION: Final = 1
LEAST_TRIALS: Final = 4
SHAPES: Final = 32  # drawn from the space, each at every side
ROUNDS: Final = 30
REFERENCE_SIDE: Final = 256
_BATCH = 4

Report = Callable[[str], None]
Measure = Callable[[Sequence[Candidate]], tuple[list[float], float]]


def search(
    latency_ms: float,
    output: Path,
    *,
    labelled: Path | None = None,
    release: Path | None = None,
    aspect: float = 1.0,
    trials: int = 20,
    steps: int = 120,
    seed: int = 0,
    space: Space | None = None,
    shapes: int = SHAPES,
    measure: Measure | None = None,
    report: Report = lambda _: None,
) -> SearchResult:
    """Search for the students that fit a latency.

    A search that was killed goes on from ``search.csv``; one that is called again with another budget, more trials or
    more steps uses what was measured.

    Args:
        latency_ms: the budget, CPU milliseconds per image on one thread of this machine.
        output: a folder of this machine.
        labelled: a labelled set to score on, or None.
        release: a release to score on, its train and val splits, or None; not both.
        aspect: width / height of the images, which are measured in the nearest of the student's sizes.
        trials: candidates to measure in all, those of earlier calls included.
        steps: of the longest trainings; most candidates get a quarter.
        seed: of the candidates, the split and the trainings.
        space: what is searched; None: around the presets nano and small.
        shapes: drawn from it beside its tables.
        measure: how candidates are measured; None: exported, in ONNX Runtime.
        report: called with a line of progress.

    Raises:
        UsageError: a number without sense, or both kinds of labels.
        InputError: labels that are no good, or the folder holds another search.
        CurateError: nothing that was measured fits the budget; names the fastest.
    """
    _check(latency_ms, labelled, release, aspect=aspect, trials=trials, steps=steps, seed=seed)
    space = space or Space()
    storage.check_writable(str(output))
    with storage.lock(str(output)):
        data = read_scoring_set(labelled, release, seed) if labelled or release else None
        ledger = Ledger(output, _identity(space, aspect, seed, data))
        pool = draw(space, shapes, seed)
        with tempfile.TemporaryDirectory(prefix="curate-search-") as folder:
            found = measure or _measured(space, aspect, seed, Path(folder))
            _measure_trials(ledger, space, pool, latency_ms, trials, found, report)
        _check_reached(ledger, pool, latency_ms)
        if data is not None:
            _score(ledger, data, latency_ms, steps, seed, report)
        return _finish(ledger, latency_ms, space, steps, scored=data is not None)


def _check(latency_ms: float, labelled: Path | None, release: Path | None, **numbers: float) -> None:
    if not 0 < latency_ms < math.inf:
        raise UsageError(f"--latency-ms must be above 0 and finite, got {latency_ms}")
    if labelled and release:
        raise UsageError("--labelled and --release are two ways to score; give one of them, or none")
    if not min(ASPECTS) / 2 <= numbers["aspect"] <= 2 * max(ASPECTS):
        raise UsageError(f"--aspect must be a width / height such as 0.5625, 1 or 1.78, got {numbers['aspect']}")
    for name, least in (("trials", LEAST_TRIALS), ("steps", 1), ("seed", 0)):
        if numbers[name] < least:
            raise UsageError(f"--{name} must be >= {least}, got {numbers[name]}")


def _identity(space: Space, aspect: float, seed: int, data: ScoringSet | None) -> dict[str, Any]:
    """What measurements and scores belong to; budget, trials and steps may change."""
    machine = {"machine": platform.machine(), "processor": _processor()}
    libraries = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}
    reference = config_to_json(_reference(space).config)
    own = {"version": VERSION, "aspect": aspect, "seed": seed, "data": data and data.digest, "reference": reference}
    return {**own, "space": asdict(space), **machine, **libraries}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


# Latency --------------------------------------------------------------------------------------------------------------


def _reference(space: Space) -> Candidate:
    side = min(space.sides, key=lambda side: (abs(side - REFERENCE_SIDE), side))
    return Candidate(config=space.plain()[0], side=side)


def _measured(space: Space, aspect: float, seed: int, folder: Path) -> Measure:
    """Export candidates and the reference, and let them take turns; a shape is exported once for all its sides."""

    def call(candidate: Candidate) -> Call:
        shape = hashlib.sha256(config_to_json(candidate.config).encode()).hexdigest()
        path = folder / f"{shape}.onnx"
        if not path.exists():
            export_onnx(build_student(candidate.config, seed), path, side=candidate.side, metadata={})
        sizes = bucket_sizes(candidate.side)
        return onnx_call(path, nearest_bucket(1000, round(1000 * aspect), sizes), seed=seed)

    def measure(candidates: Sequence[Candidate]) -> tuple[list[float], float]:
        calls = [call(candidate) for candidate in (_reference(space), *candidates)]
        reference, *others = take_turns(calls, rounds=ROUNDS)
        return [other.ratio(reference) for other in others], reference.cpu_minimum

    return measure


def _measure_trials(
    ledger: Ledger,
    space: Space,
    pool: Sequence[Candidate],
    budget: float,
    trials: int,
    measure: Measure,
    report: Report,
) -> None:
    """Measure some of all sizes, then what a fit to all measured so far promises, until there are enough."""
    if len(ledger.trials) >= trials:
        report(
            f"{len(ledger.trials)} candidates were measured before; raise --trials to measure more for {budget:g} ms"
        )
    while len(ledger.trials) < trials:
        batch = _next_batch(ledger, space, pool, budget, min(_BATCH, trials - len(ledger.trials)))
        if not batch:
            report(f"nothing else of {len(pool)} candidates is predicted to fit {budget:g} ms")
            return
        ratios, reference_ms = measure(batch)
        ledger.add(
            [
                Trial(candidate=candidate, ratio=ratio, reference_ms=reference_ms)
                for candidate, ratio in zip(batch, ratios, strict=True)
            ]
        )
        took = ", ".join(f"{ledger.latency(ledger.trials[candidate.key]):.2f}" for candidate in batch)
        report(f"measured {len(ledger.trials)}/{trials}: {took} ms")


def _next_batch(
    ledger: Ledger, space: Space, pool: Sequence[Candidate], budget: float, count: int
) -> Sequence[Candidate]:
    left = [candidate for candidate in pool if candidate.key not in ledger.trials]
    first = [candidate for candidate in _probes(space, pool) if candidate.key not in ledger.trials]
    if first:
        return first[:count]
    if not left:
        return ()
    done = list(ledger.trials.values())
    weights = fit_latency(features([t.candidate for t in done]), [ledger.latency(t) for t in done])
    predicted = features(left) @ weights
    chosen = promising(left, predicted.tolist(), budget, count=count)
    if not chosen and not ledger.fitting(budget):
        return (left[int(predicted.argmin())],)  # the fit may be wrong: try the lightest before giving up
    return chosen


def _probes(space: Space, pool: Sequence[Candidate]) -> list[Candidate]:
    """The tables at the reference's side, and the lightest and the heaviest of all: what a first fit stands on."""
    side = _reference(space).side
    tables = [Candidate(config=config, side=side) for config in space.plain()]
    by_work = sorted(pool, key=lambda candidate: (work(candidate).macs, candidate.key))
    return list(dict.fromkeys((*tables, by_work[0], by_work[-1])))


def _check_reached(ledger: Ledger, pool: Sequence[Candidate], budget: float) -> None:
    if ledger.fitting(budget):
        return
    fastest = min(ledger.trials.values(), key=ledger.latency)
    more = any(candidate.key not in ledger.trials for candidate in pool)
    remedy = "raise --trials or the budget" if more else "raise the budget"
    what = f"width {fastest.candidate.config.width:g} at side {fastest.candidate.side}"
    raise CurateError(
        f"--latency-ms {budget:g} is met by none of {len(ledger.trials)} candidates; the fastest, {what} "
        f"({work(fastest.candidate).macs / 1e6:.1f} MMAC), took {ledger.latency(fastest):.2f} ms; {remedy}"
    )


# Scores ---------------------------------------------------------------------------------------------------------------


def _score(ledger: Ledger, data: ScoringSet, budget: float, steps: int, seed: int, report: Report) -> None:
    """Successive halving: all that fit are trained for a while, the better ones again for longer."""
    alive, before = ledger.fitting(budget), 0
    for level, count in rungs(len(alive), steps):
        if before:
            alive = _best(ledger, alive, before, count)
        for trial in alive:
            if level not in trial.scores:
                folder = ledger.folder / "trainings" / f"{trial.candidate.key}-{level}"
                trial.scores[level] = train_and_score(trial.candidate, data, steps=level, seed=seed, folder=folder)
                ledger.save_csv(())
                report(f"{level} steps: {trial.candidate.key} IoU {trial.scores[level]:.3f}")
        before = level


def _best(ledger: Ledger, alive: Sequence[Trial], level: int, count: int) -> list[Trial]:
    """Those to train for longer, by what they scored at a level."""
    points = [Point(name=t.candidate.key, latency=ledger.latency(t), score=t.scores[level]) for t in alive]
    kept = {point.name for point in survivors(points, count)}
    return [trial for trial in alive if trial.candidate.key in kept]


# Result ---------------------------------------------------------------------------------------------------------------


def _finish(ledger: Ledger, budget: float, space: Space, steps: int, *, scored: bool) -> SearchResult:
    rows = rows_of(ledger, budget, steps, scored=scored)
    best = tuple(row for row in rows if row.on_front)
    result = SearchResult(
        folder=ledger.folder,
        rows=rows,
        front=best,
        scored_by="held-out IoU" if scored else "compute × pixels",
        reference_ms=ledger.reference_ms,
    )
    ledger.save_csv(rows)
    write_atomically(ledger.folder / "search.png", plot(result, budget))
    ledger.save_json(_record(result, budget, _reference(space)))
    return result


def rows_of(ledger: Ledger, budget: float, steps: int, *, scored: bool) -> tuple[Row, ...]:
    """All that was measured, by latency; the front is that of the candidates within the budget of most steps."""
    names = {config_to_json(replace(config, in_channels=4)): name for name, config in PRESETS.items()}
    rows = []
    for trial in ledger.trials.values():
        candidate, cost = trial.candidate, work(trial.candidate)
        trained = max((level for level in trial.scores if level <= steps), default=0) if scored else 0
        name = names.get(config_to_json(candidate.config))
        row = Row(
            candidate=candidate,
            name=f"{name} {candidate.side}" if name else candidate.key,
            parameters=cost.parameters,
            mmac=cost.macs / 1e6,
            latency_ms=ledger.latency(trial),
            steps=trained,
            score=trial.scores.get(trained) if scored else capacity(candidate),
            on_front=False,
        )
        rows.append(row)
    finalists = [row for row in rows if row.score is not None and (not scored or row.steps == steps)]
    points = [Point(name=r.candidate.key, latency=r.latency_ms, score=r.score or 0.0) for r in finalists]
    best = {point.name for point in front(points, budget)}
    marked = (replace(row, on_front=row.candidate.key in best) for row in rows)
    return tuple(sorted(marked, key=lambda row: (row.latency_ms, row.candidate.key)))


_NOTES: Final[dict[ScoredBy, str]] = {
    "held-out IoU": "all of the front were trained equally long; such short trainings on RGB rank, they do not promise",
    "compute × pixels": "no labels were given: the score is compute times pixels, which says nothing of people",
}


def _record(result: SearchResult, budget: float, reference: Candidate) -> dict[str, Any]:
    return {
        "latency_ms": budget,
        "reference": {"key": reference.key, "ms": round(result.reference_ms, 4)},
        "measured": len(result.rows),
        "scored_by": result.scored_by,
        "note": _NOTES[result.scored_by],
        "front": [_member(row) for row in result.front],
    }


def _member(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "side": row.candidate.side,
        "latency_ms": round(row.latency_ms, 3),
        "score": row.score,
        "steps": row.steps,
        "parameters": row.parameters,
        "mmac": round(row.mmac, 2),
        "toml": to_toml(row.candidate),
    }


def show(result: SearchResult, console: Console) -> None:
    """Print the front, and the config of its best member."""
    title = f"front by {result.scored_by}, of {len(result.rows)} measured"
    table = Table(title=title, title_justify="left")
    for name in ("candidate", "side", "parameters", "MMAC", "ms", result.scored_by):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for row in result.front:
        cells = (f"{row.parameters / 1e6:.2f} M", f"{row.mmac:.1f}", f"{row.latency_ms:.2f}", f"{row.score:.3g}")
        table.add_row(row.name, str(row.candidate.side), *cells)
    console.print(table)
    text = f"{_NOTES[result.scored_by]}\n\n{to_toml(result.front[-1].candidate)}"
    console.print(text, highlight=False, markup=False)
    console.print(f"tables and picture are in {result.folder}", highlight=False, markup=False)
