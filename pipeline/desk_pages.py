"""Commands that read releases and write nothing into them: verify, diff, report, croissant, data card."""

from __future__ import annotations

import argparse
import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.classical import wilson_interval
from evaluation.measures import counted
from manifests.croissant import write_croissant
from manifests.datacard import DataCardError, open_questions, read_answers, write_datacard
from manifests.diff import KINDS, MAX_PAGE, Difference, compare
from manifests.paper import file_place, write_paper
from manifests.release import canonical_json
from manifests.text import clean
from manifests.verify import find_releases, verify_release
from pipeline.errors import UsageError
from pipeline.released import one_release
from review.report import MAX_SAMPLES, write_report

_LISTED = 12  # lines of a table


def verify(values: argparse.Namespace, console: Console) -> int:
    """Checks every release of a folder."""
    wrong = 0
    for folder in find_releases(values.release):
        problems = verify_release(folder, today=datetime.now(UTC).date())
        wrong += len(problems)
        for problem in problems:
            console.print(clean(f"{folder / problem.path}: {problem.message}"), markup=False, highlight=False)
        state = counted(len(problems), "problem") if problems else "good"
        print(f"{folder}: {state}")  # noqa: T201
    return 1 if wrong else 0


def report(values: argparse.Namespace, _: Console) -> int:
    """Writes the static report."""
    if values.samples > MAX_SAMPLES:
        raise UsageError(f"--samples must be at most {MAX_SAMPLES}, got {values.samples}")
    made = write_report(
        one_release(values.release),
        values.output,
        samples=values.samples,
        images=not values.no_images,
        seed=values.seed,
    )
    shown = "no pictures" if not made.pictures else f"{made.pictures} with pictures: personal data, handle it as such"
    print(f"{made.path}: {counted(made.samples, 'sample')}, {shown}; {made.bytes / 1e6:.2f} MB")  # noqa: T201
    return 0


def croissant(values: argparse.Namespace, _: Console) -> int:
    """Writes the Croissant description."""
    answers = _answers(values.answers)
    print(write_croissant(one_release(values.release), values.output, answers=answers))  # noqa: T201
    return 0


def datacard(values: argparse.Namespace, _: Console) -> int:
    """Writes the data card."""
    answers = _answers(values.answers)
    interval = functools.partial(wilson_interval, level=0.95)
    path = write_datacard(one_release(values.release), values.output, answers=answers, interval=interval)
    left = open_questions(answers)
    keys = f": {', '.join(question.key for question in left)}" if left else ""
    print(f"{path}: {counted(len(left), 'question')} open{keys}")  # noqa: T201
    return 0


def _answers(path: Path | None) -> dict[str, Any]:
    try:
        return {} if path is None else dict(read_answers(path))
    except DataCardError as error:
        raise UsageError(f"--answers {error}") from error


def diff(values: argparse.Namespace, _: Console) -> int:
    """Says what differs between two releases; exit code 0 whether or not something does."""
    if values.rows > MAX_PAGE:
        raise UsageError(f"--rows must be at most {MAX_PAGE}, got {values.rows}; the review page has them all")
    place = None if values.json is None else file_place(values.json)
    found = compare(one_release(values.a), one_release(values.b))
    told = found.to_json()
    if place is not None:
        write_paper(place, canonical_json(told))
    out = Console(soft_wrap=True)
    _show(out, told)
    _list(out, found, values.rows)
    return 0


def _show(out: Console, told: Any) -> None:
    a, b = told["a"], told["b"]
    out.print(f"A {a['name']} {a['fingerprint']}\nB {b['name']} {b['fingerprint']}", highlight=False, markup=False)
    relation = {"same": "A and B are the same release", "successor": "B was made from A", "parent": "A was made from B"}
    relation |= {"siblings": "both were made from one release", "unrelated": "neither was made from the other"}
    out.print(relation[told["relation"]], highlight=False)
    rows = [(row["name"], row["a"], row["b"], row["b"] - row["a"]) for row in told["counts"] + told["splits"]]
    _first(out, "counts", ("", "A", "B", "change"), [row for row in rows if row[1] or row[2]])
    samples = told["samples"]
    _first(out, "samples", ("", "samples"), [(name, samples[name]) for name in ("common", "changed", *KINDS)])
    moves = [
        (f"{kind}: {row['before']} → {row['after']}", row["count"]) for kind, m in told["moves"].items() for row in m
    ]
    _first(out, "moves", ("", "samples"), moves)
    cells = [row for row in told["cells"] if row["delta"]]
    cells.sort(key=lambda row: -abs(row["delta"]))
    _first(
        out, "kept rows per class", ("class", "change"), [(f"{c['attribute']}={c['value']}", c["delta"]) for c in cells]
    )
    drift = [(d["column"], d["of"], f"{d['linf']:.4f}", f"{d['js']:.4f}") for d in told["drift"] if d["js"] > 0]
    _first(out, "drift of columns", ("column", "of", "L-infinity", "Jensen-Shannon"), drift)
    config = [(row["path"], _short(row["a"]), _short(row["b"])) for row in told["config"]]
    _first(out, "config", ("key", "A", "B"), config)


def _first(out: Console, title: str, head: tuple[str, ...], rows: list[Any]) -> None:
    """The first rows; the JSON has all."""
    _table(out, title, head, rows[:_LISTED])
    if len(rows) > _LISTED:
        out.print(f"… and {len(rows) - _LISTED} more; --json has all of them", highlight=False)


def _table(out: Console, title: str, head: tuple[str, ...], rows: list[Any]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(str(cell))) for cell in row))
    out.print(table)


def _short(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"


def _list(out: Console, found: Difference, most: int) -> None:
    for kind in KINDS:
        if not most or not len(found.places[kind]):
            continue
        page: Any = found.rows(kind, 0, most)
        rows = [(s["id"], *(_place(s[side]) for side in ("before", "after"))) for s in page["samples"]]
        _table(out, f"{kind}: {counted(page['total'], 'sample')}", ("sample", "A", "B"), rows)
        if page["total"] > len(rows):
            out.print(
                f"… and {page['total'] - len(rows):,} more; --rows lists up to {MAX_PAGE} of a kind", highlight=False
            )


def _place(row: Any) -> str:
    if row is None:
        return "–"
    values = "".join(f" {name}={said['value']}" for name, said in row["attributes"].items())
    return f"{row['decision']} {row['split']} {row['label_source']}{values}"
