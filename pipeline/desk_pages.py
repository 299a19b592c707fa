"""Commands that read releases and write nothing into them: verify, diff, report, croissant, data card."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.classical import wilson_interval
from manifests.croissant import write_croissant
from manifests.datacard import open_questions, read_answers, write_datacard
from manifests.diff import KINDS, Difference, compare
from manifests.release import canonical_json
from manifests.verify import find_releases, verify_release
from pipeline.errors import CurateError
from pipeline.released import one_release
from review.report import write_report

_LISTED = 12  # lines of a table


def verify(values: argparse.Namespace, console: Console) -> int:
    """Checks every release of a folder."""
    wrong = 0
    for folder in find_releases(values.release):
        problems = verify_release(folder)
        wrong += len(problems)
        for problem in problems:
            console.print(f"{folder / problem.path}: {problem.message}", markup=False, highlight=False)
        state = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "good"
        print(f"{folder}: {state}")  # noqa: T201
    return 1 if wrong else 0


def report(values: argparse.Namespace, _: Console) -> int:
    """Writes the static report."""
    made = write_report(
        one_release(values.release),
        values.output,
        samples=values.samples,
        images=not values.no_images,
        seed=values.seed,
    )
    shown = "no pictures" if not made.pictures else f"{made.pictures} with pictures: personal data, handle it as such"
    print(f"{made.path}: {made.samples} samples, {shown}; {made.bytes / 1e6:.2f} MB")  # noqa: T201
    return 0


def croissant(values: argparse.Namespace, _: Console) -> int:
    """Writes the Croissant description."""
    answers = None if values.answers is None else read_answers(values.answers)
    print(write_croissant(one_release(values.release), values.output, answers=answers))  # noqa: T201
    return 0


def datacard(values: argparse.Namespace, _: Console) -> int:
    """Writes the data card."""
    answers: dict[str, Any] = {} if values.answers is None else read_answers(values.answers)
    interval = functools.partial(wilson_interval, level=0.95)
    path = write_datacard(one_release(values.release), values.output, answers=answers, interval=interval)
    left = open_questions(answers)
    print(f"{path}: {len(left)} question{'s' * (len(left) != 1)} open{_keys([q.key for q in left])}")  # noqa: T201
    return 0


def _keys(keys: list[str]) -> str:
    return f": {', '.join(keys)}" if keys else ""


def diff(values: argparse.Namespace, _: Console) -> int:
    """Says what differs between two releases; exit code 0 whether or not something does."""
    found = compare(one_release(values.a), one_release(values.b))
    told = found.to_json()
    if values.json is not None:
        _write(values.json, canonical_json(told))
    out = Console(soft_wrap=True)
    _show(out, told)
    _list(out, found, values.rows)
    return 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CurateError(f"--json {path}: {error}") from error


def _show(out: Console, told: Any) -> None:
    a, b = told["a"], told["b"]
    out.print(f"A {a['name']} {a['fingerprint']}\nB {b['name']} {b['fingerprint']}", highlight=False, markup=False)
    relation = {"same": "A and B are the same release", "successor": "B was made from A", "parent": "A was made from B"}
    relation |= {"siblings": "both were made from one release", "unrelated": "neither was made from the other"}
    out.print(relation[told["relation"]], highlight=False)
    rows = [(row["name"], row["a"], row["b"], row["b"] - row["a"]) for row in told["counts"] + told["splits"]]
    _table(out, "counts", ("", "A", "B", "change"), [row for row in rows if row[1] or row[2]])
    samples = told["samples"]
    _table(out, "samples", ("", "samples"), [(name, samples[name]) for name in ("common", "changed", *KINDS)])
    moves = [
        (f"{kind}: {row['before']} → {row['after']}", row["count"]) for kind, m in told["moves"].items() for row in m
    ]
    _table(out, "moves", ("", "samples"), moves)
    cells = [row for row in told["cells"] if row["delta"]]
    cells.sort(key=lambda row: -abs(row["delta"]))
    _table(
        out, "kept rows per class", ("class", "change"), [(f"{c['attribute']}={c['value']}", c["delta"]) for c in cells]
    )
    drift = [(d["column"], d["of"], f"{d['linf']:.4f}", f"{d['js']:.4f}") for d in told["drift"] if d["js"] > 0]
    _table(out, "drift of columns", ("column", "of", "L-infinity", "Jensen-Shannon"), drift)
    config = [(row["path"], _short(row["a"]), _short(row["b"])) for row in told["config"]]
    _table(out, "config", ("key", "A", "B"), config)


def _table(out: Console, title: str, head: tuple[str, ...], rows: list[Any]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows[:_LISTED]:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)
    if len(rows) > _LISTED:
        out.print(f"… and {len(rows) - _LISTED} more; --json has all of them", highlight=False)


def _short(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"


def _list(out: Console, found: Difference, most: int) -> None:
    for kind in KINDS:
        if not most or not len(found.places[kind]):
            continue
        page: Any = found.rows(kind, 0, min(most, 100))
        rows = [(s["id"], *(_place(s[side]) for side in ("before", "after"))) for s in page["samples"]]
        _table(out, f"{kind}: {page['total']} samples", ("sample", "A", "B"), rows)


def _place(row: Any) -> str:
    if row is None:
        return "–"
    values = "".join(f" {name}={said['value']}" for name, said in row["attributes"].items())
    return f"{row['decision']} {row['split']} {row['label_source']}{values}"
