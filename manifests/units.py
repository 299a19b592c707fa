"""The units in which a release's shards are read: one row group of one file, found through `release.json` alone.

No folder is ever listed. Whatever is wrong with a file is told before its first row is used, and a damaged page when it
is read: `ShardError` names the file, the row group and what to do.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.release import RELEASE_FILE, FileEntry, Release, parse_release, read_release_bytes
from manifests.schema import MASK_SPLITS, SHARD, SchemaError, check_columns, check_schema
from manifests.shard import ShardError

KEPT_FOOTERS = 64
"""Footers that stay parsed: about 0.4 MB each for a shard of 2,048 rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A row group of a shard, what is read at once.

    Attributes:
        path: of the Parquet file.
        group: number of the row group in its file, from 0.
        rows: of the row group, >= 0.
        bytes: of the row group, uncompressed.
        state: size and modification time (ns) that its file had when it was looked at.
    """

    path: Path
    group: int
    rows: int
    bytes: int
    state: tuple[int, int]


def file_state(path: Path) -> tuple[int, int]:
    """Size and modification time, in nanoseconds, of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class Footers:
    """The footers of the files read last: parsing one costs a quarter as much as reading a row group of 64."""

    def __init__(self, limit: int = KEPT_FOOTERS) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[Path, int, int], pq.FileMetaData] = OrderedDict()

    def open(self, path: Path, expected: tuple[int, int] | None = None) -> pq.ParquetFile:
        """Open a Parquet file, page checksums verified; a file that has changed since is parsed again.

        Raises:
            OSError: it cannot be opened, or its state is not the expected one.
        """
        state = file_state(path)
        if expected is not None and state != expected:
            raise OSError("the file was exchanged while it was in use")
        key = (path, *state)
        known = self._kept.pop(key, None)
        file = pq.ParquetFile(path, metadata=known, page_checksum_verification=True)
        self._kept[key] = file.metadata
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return file


def read_listing(folder: Path) -> tuple[Release, str]:
    """The release that is committed in `folder`, and its fingerprint: both of the same bytes.

    Raises:
        ReleaseError: see `manifests.release.read_release`.
    """
    data = read_release_bytes(folder)
    return parse_release(data), hashlib.sha256(data).hexdigest()


def shard_entries(release: Release, split: str) -> tuple[FileEntry, ...]:
    """The files of one split, in the order of their paths, which is that of their numbers.

    Raises:
        ShardError: `split` is none of MASK_SPLITS, or its files do not hold the rows that the release states.
    """
    if split not in MASK_SPLITS:
        raise ShardError(f"split must be one of {MASK_SPLITS}, got {split!r}")
    entries = tuple(entry for entry in release.files if entry.path.startswith(f"shards/{split}/"))
    for entry in entries:
        if entry.schema != "shard":
            raise ShardError(f"{RELEASE_FILE}: {entry.path} must have schema 'shard', got {entry.schema!r}")
    rows, stated = sum(entry.rows or 0 for entry in entries), release.splits.get(split, 0)
    if rows != stated:
        raise ShardError(f"{RELEASE_FILE}: the shards of {split} hold {rows} rows, but splits says {stated}")
    return entries


def units(folder: Path, split: str, *, verify: bool = True) -> tuple[Unit, ...]:
    """The units of one split of the release in `folder`, in the order of files and row groups; all files are checked.

    Args:
        folder: holds `release.json`.
        split: one of MASK_SPLITS; a split without rows has no units.
        verify: whether to compare the sha256 of every file, about a second per gigabyte; sizes, row counts and schemas
            are compared in any case.

    Raises:
        ReleaseError: see `read_listing`.
        ShardError: a file is missing, truncated, exchanged, changed or of another schema: the first is named.
    """
    release, _ = read_listing(folder)
    return tuple(unit for entry in shard_entries(release, split) for unit in units_of(folder, entry, verify=verify))


def units_of(folder: Path, entry: FileEntry, *, verify: bool, footers: Footers | None = None) -> list[Unit]:
    """The units of one file of the release in `folder`; arguments and errors as of `units`."""
    path = folder / entry.path
    state = file_state(path) if path.is_file() else (0, 0)
    _check_file(folder, path, entry, verify=verify)
    try:
        with (footers or Footers(0)).open(path, state) as file:
            check_schema(file.schema_arrow, "shard")
            check_columns(file.schema_arrow, SHARD)
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            found = [
                Unit(path=path, group=number, rows=group.num_rows, bytes=group.total_byte_size, state=state)
                for number, group in enumerate(groups)
            ]
    except (OSError, pa.ArrowException, SchemaError) as error:
        raise damaged_file(path, str(error)) from error
    rows = sum(unit.rows for unit in found)
    if rows != entry.rows or min((unit.rows for unit in found), default=0) < 0:
        raise damaged_file(path, f"has {rows} rows, expected {entry.rows}")
    return found


def _check_file(folder: Path, path: Path, entry: FileEntry, *, verify: bool) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise damaged_file(path, "is a link that leaves the release")
    if not path.is_file():
        raise damaged_file(path, "is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise damaged_file(path, f"has {size} bytes, expected {entry.bytes}: truncated, or another file")
    if not verify:
        return
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged_file(path, str(error)) from error
    if digest != entry.sha256:
        raise damaged_file(path, f"sha256 is {digest}, expected {entry.sha256}: the bytes have changed")


def damaged_file(path: Path, what: str) -> ShardError:
    """The error of a shard `<release>/shards/<split>/<file>` that cannot be used: it names the file and the remedy."""
    folder = path.parents[2]
    return ShardError(f"{path}: {what}; copy the file again; `curate verify {folder}` lists all that is broken")


def damaged_unit(unit: Unit, what: str) -> ShardError:
    """The error of a unit that cannot be used: it names the file, the row group and the remedy."""
    return damaged_file(unit.path, f"row group {unit.group}: {what}")


def read_unit(unit: Unit, columns: Sequence[str] | None = None, *, footers: Footers | None = None) -> pa.Table:
    """Read a unit on the calling thread, page checksums verified.

    Args:
        unit: what to read.
        columns: of the shard, e.g. "weight", or a part of one, e.g. "image.bytes"; None for all.
        footers: keeps the footers of units read before.

    Raises:
        ShardError: a flipped bit, a file that is gone or was exchanged, malformed values, another number of rows.
    """
    try:
        with (footers or Footers(0)).open(unit.path, unit.state) as file:
            if unit.group >= file.num_row_groups:
                raise damaged_unit(unit, f"is not in the file, which has {file.num_row_groups} row groups")
            table = file.read_row_group(unit.group, columns=columns, use_threads=False)
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise damaged_unit(unit, str(error)) from error
    if len(table) != unit.rows:
        raise damaged_unit(unit, f"has {len(table)} rows, expected {unit.rows}")
    return table


def encoded_bytes(table: pa.Table, name: str, rows: NDArray[np.int64]) -> list[bytes | None]:
    """The encoded images of some rows of a unit, each copied out of Arrow once; None where there is none.

    Args:
        table: of `read_unit`.
        name: a column of type IMAGE.
        rows: (K,) int64 numbers of rows, each in [0, rows of the table).
    """
    found: dict[int, bytes | None] = {}
    start = 0
    for chunk in table.column(name).chunks:
        inside = rows[(rows >= start) & (rows < start + len(chunk))]
        found.update(zip(inside.tolist(), _values(chunk, inside - start), strict=True))
        start += len(chunk)
    return [found[row] for row in rows.tolist()]


def _values(chunk: pa.StructArray, rows: NDArray[np.int64]) -> Iterator[bytes | None]:
    values = chunk.flatten()[chunk.type.get_field_index("bytes")]  # null where the struct is null
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int32, len(values) + 1, values.offset * 4)
    view = memoryview(data or b"")
    missing = values.null_count > 0
    for row, start, stop in zip(rows.tolist(), ends[rows].tolist(), ends[rows + 1].tolist(), strict=True):
        yield None if missing and not values[row].is_valid else bytes(view[start:stop])
