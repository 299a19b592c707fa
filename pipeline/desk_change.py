"""Commands that make the release that follows: from decisions of reviewers, or from masks that people drew."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from evaluation.measures import counted
from manifests.text import clean
from manifests.verify import parse_document
from pipeline import storage
from pipeline.errors import InputError, UsageError
from pipeline.labels_coco import LabelsError
from pipeline.labels_coco import export_labels as export
from pipeline.labels_coco import import_labels as import_
from pipeline.released import one_release
from review.apply import apply_reviews
from review.log import ReviewLog
from review.query import Query, parse_query


def apply(values: argparse.Namespace, _: Console) -> int:
    """Makes the next release from the decisions of the reviewers."""
    folder = one_release(values.release)
    with storage.lock(str(folder.parent.parent)):
        events = ReviewLog.open(folder).events()
        at = events[-1].at if events else datetime.now(UTC)  # of the log and not of now: killed, the same release again
        made = apply_reviews(folder, disputed=values.disputed, at=at)
    counts = ", ".join(f"{name} {number}" for name, number in made.decisions.items())
    print(f"{made.folder}: {counts}; nobody has signed it off yet")  # noqa: T201
    return 0


def export_labels(values: argparse.Namespace, console: Console) -> int:
    """Writes images and masks of some samples."""
    made = export(
        one_release(values.release),
        Path(values.output),
        ids=values.id,
        redraw=values.redraw,
        query=None if values.query is None else _query(values.query),
    )
    if made.without_pixels:
        told = f"left out, for they have no pixels in the release: {counted(len(made.without_pixels), 'sample')}"
        console.print(told, highlight=False)
    print(f"{made.folder}: {counted(made.samples, 'image')}; bring them back with 'curate import-labels'")  # noqa: T201
    return 0


def _query(text: str) -> Query:
    try:
        return parse_query(parse_document(text))
    except ValueError as error:
        raise UsageError(f"--query: {error}") from error


def import_labels(values: argparse.Namespace, console: Console) -> int:
    """Makes the next release with masks that people drew; the file's date is that of the assertions."""
    folder = one_release(values.release)
    try:
        with storage.lock(str(folder.parent.parent)):
            made = import_(folder, values.source, at=_modified(values.source), tool=values.tool, empty=values.empty)
    except LabelsError as error:
        for fault in error.faults:
            told = clean(f"{fault.row or values.source}: {fault.message}")
            console.print(told, markup=False, highlight=False)
        faults = counted(len(error.faults), "fault")
        raise InputError(f"{values.source}: {faults}, so nothing was imported") from error
    same = f", {len(made.same)} as they were" if made.same else ""
    print(f"{made.folder}: {counted(len(made.changed), 'mask')} corrected{same}; nobody has signed it off yet")  # noqa: T201
    return 0


def _modified(source: Path) -> datetime:
    """When a file, or the newest of a folder, was written: equal files give equal releases."""
    try:
        files = [source, *source.rglob("*")] if source.is_dir() else [source]
        return datetime.fromtimestamp(int(max(file.stat().st_mtime for file in files)), UTC)
    except OSError as error:
        told = f"{source} cannot be read: {storage.reason(error)}; name a file or folder of an annotation tool"
        raise InputError(told) from error
