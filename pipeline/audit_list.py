"""``curate audit --list``: an audit folder of the very frames of a list, as ``curate next-round`` writes it.

A list puts first what is probably wrong, so it is no random sample, and ``audit.json`` says so: the masks become labels
of the next release and calibrate nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from manifests.audit import Audit, Stratum
from pipeline.audit_draw import Draw, audited_ids, shuffled, write_audit
from pipeline.audit_pool import Frame, Pool
from pipeline.errors import InputError

COLUMN = "sample_id"
MAX_BYTES = 64 << 20
"""Limit of the size of a list: about 400,000 labels."""

_SAMPLE_ID = re.compile(r"[0-9a-f]{32}")
_NAMED = 3


def read_list(file: Path) -> tuple[str, ...]:
    """The sample ids of a list, in its order.

    Args:
        file: CSV, UTF-8, with a header that names a column ``sample_id`` once; other columns are not read.

    Raises:
        InputError: it cannot be read, has no such column, holds no frame, or a line has no sample id or one that was
            there before; names the line.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"--list {file} must have at most {MAX_BYTES} bytes; give a part of it")
        ids = tuple(_ids(io.StringIO(data.decode("utf-8-sig"), newline=""), file))
    except OSError as error:
        raise InputError(f"--list {file} cannot be read: {error.strerror or type(error).__name__}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--list {file} is no CSV file in UTF-8: {error}; give the file of next-round") from error
    if not ids:
        raise InputError(f"--list {file} lists no frame, so there is nothing to draw")
    return ids


def _ids(text: io.StringIO, file: Path) -> Iterator[str]:
    rows = csv.reader(text, strict=True)
    header = next(rows, [])
    if header.count(COLUMN) != 1:
        found = ", ".join(map(repr, header[:12])) or "nothing"
        raise InputError(
            f"--list {file} must name a column {COLUMN!r} once in its first line, which has {found:.300}; give "
            "label_first.csv of next-round"
        )
    place = header.index(COLUMN)
    seen: dict[str, int] = {}
    for row in filter(None, rows):
        value = row[place] if place < len(row) else ""
        if not _SAMPLE_ID.fullmatch(value):
            raise InputError(f"--list {file}, line {rows.line_num}: {COLUMN} must be 32 hex digits, got {value!r:.80}")
        if value in seen:
            raise InputError(f"--list {file}, line {rows.line_num}: sample {value} is in line {seen[value]} already")
        seen[value] = rows.line_num
        yield value


def list_audit(
    pool: Pool,
    output: Path,
    *,
    listed: Sequence[str],
    size: int | None = None,
    seed: int = 0,
    coco: bool = False,
    without: Sequence[Path] = (),
) -> tuple[Audit, tuple[str, ...]]:
    """Writes an audit folder of the first frames of a list; equal arguments give equal bytes.

    Args:
        pool: labelled frames.
        output: a new or empty folder, or one with this very audit in which nobody has drawn yet.
        listed: distinct sample ids; the first go first.
        size: most frames; None: all.
        seed: of the order of the names.
        coco: whether to write a COCO file for annotation tools.
        without: audit folders whose frames are left out.

    Returns:
        What ``audit.json`` says, and sentences a user must know.

    Raises:
        InputError: a frame is none of the pool, none is left, a source is gone, or the output holds something else.
        StorageError: the folder cannot be written.
    """
    seen = audited_ids(without)
    wanted = [sample_id for sample_id in listed if sample_id not in seen]
    size = size or len(listed)
    drawn = take_listed(pool.frames, wanted, size, seed)
    return write_audit(pool, output, drawn, size=size, seed=seed, coco=coco), drawn.notes


def take_listed(frames: Sequence[Frame], listed: Sequence[str], size: int, seed: int) -> Draw:
    """The first frames of a list that have pixels; what has none makes room for the next.

    Args:
        frames: labelled ones, with or without pixels, of distinct sample ids.
        listed: distinct sample ids.
        size: most frames.
        seed: of the order of the names.

    Raises:
        InputError: one of the list is none of the frames, or none has pixels.
    """
    known = {frame.sample_id: frame for frame in frames}
    if strange := [sample_id for sample_id in listed if sample_id not in known]:
        raise InputError(
            f"--list: {len(strange)} of its {len(listed)} frames have no label of a teacher here: {_shown(strange)}; "
            "the list is of another release, or people have drawn them since: make it anew with 'curate next-round'"
        )
    there = [known[sample_id] for sample_id in listed if known[sample_id].shown]
    chosen = there[:size]
    if not chosen:
        why = "none of its frames has pixels here" if listed else "all its frames are in the audits of --without"
        raise InputError(f"--list: {why}; draw from the label stage, raise publish.audit, or give another list")
    population, numbers = (Counter(frame.cluster for frame in part) for part in (frames, chosen))
    return Draw(
        frames=shuffled(chosen, seed),
        strata={name: Stratum(population=population[name], drawn=numbers[name]) for name in sorted(population)},
        notes=tuple(_notes([one for one in listed if not known[one].shown], len(listed), len(chosen), size)),
        sampled=False,
    )


def _notes(hidden: Sequence[str], listed: int, chosen: int, size: int) -> Iterator[str]:
    yield "the frames are chosen and no random sample: their masks become labels, and no rate is told by them"
    if hidden:
        yield (
            f"{len(hidden)} of {listed} listed frames were dropped and have no pixels in the release: "
            f"{_shown(hidden)}; draw from the label stage, or raise publish.audit"
        )
    if chosen < size:
        yield f"{chosen} frames were taken and not {size}: the list has no more"


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (" …" if len(ids) > _NAMED else "")
