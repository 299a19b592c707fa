"""One release of two that are compared: its ids as numbers, and its columns, coded small.

N: rows of manifest/ and then dropped/, in the order of their files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.placing import TABLES, entries_of
from manifests.release import FileEntry, Release, fingerprint, parse_release, read_release_bytes
from manifests.schema import SchemaError, check_schema
from manifests.shard import ShardError

MISSING = "(missing)"
"""In place of a value that is null."""
_ID_DIGITS = 32

Codes = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Words:
    """A column of texts of two releases.

    Attributes:
        codes: of each release (N,) number in `values`, -1 for null.
        values: the texts.
    """

    codes: tuple[Codes, Codes]
    values: tuple[str, ...]

    def code(self, value: str) -> int:
        """The number of a value; -2, which no row has, where there is none."""
        return self.values.index(value) if value in self.values else -2

    def differ(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(M,) whether the values of (M, 2) rows differ."""
        before, after = self.codes
        differs: NDArray[np.bool_] = before[pairs[:, 0]] != after[pairs[:, 1]]
        return differs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """A release that is compared.

    Attributes:
        folder: holds `release.json`.
        release: what is committed there.
        fingerprint: of it.
        attributes: names, in the order of the manifest.
        high: (N,) uint64, the first half of each sample id.
        low: (N,) uint64, the second half.
    """

    folder: Path
    release: Release
    fingerprint: str
    attributes: tuple[str, ...]
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.high)

    def numbers(self, columns: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """(N,) values of each column of numbers, NaN for null."""
        values = {column: np.full(self.rows, np.nan, np.float32) for column in columns}
        for start, table, there in _groups(self, columns, words=False):
            for column in there:
                found = _leaf(table, column)
                values[column][start : start + len(found)] = found.cast(pa.float32()).to_numpy()
        return values

    def digests(self, column: str) -> NDArray[np.uint64]:
        """(N, 4) a column of sha256; zeros for null."""
        values = np.zeros((self.rows, 4), np.uint64)
        for start, table, _ in _groups(self, [column], words=False):
            found = table.column(column).combine_chunks()
            data = np.frombuffer(found.buffers()[1], np.uint64).reshape(-1, 4)
            valid = found.is_valid().to_numpy(zero_copy_only=False)[:, None]
            values[start : start + len(found)] = np.where(valid, data[found.offset : found.offset + len(found)], 0)
        return values

    def fetch(self, rows: NDArray[np.int64], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows, in the order asked; only their row groups are read."""
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for entry in _files(self.release):
            stop = start + (entry.rows or 0)
            if ((rows >= start) & (rows < stop)).any():
                with _opened(self.folder, entry) as file:
                    found |= _rows_of(file, rows - start, start, columns)
            start = stop
        return [found[row] for row in rows.tolist()]


def _rows_of(
    file: pq.ParquetFile, rows: NDArray[np.int64], start: int, columns: Sequence[str]
) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    at = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        mine = np.unique(rows[(rows >= at) & (rows < at + size)])
        if len(mine):
            table = file.read_row_group(group, list(columns)).take(pa.array(mine - at))
            found |= zip((mine + start).tolist(), table.to_pylist(), strict=True)
        at += size
    return found


def open_side(folder: Path) -> Side:
    """Read what joins a release to another.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        ShardError: a table cannot be read, or an id is no 32 hex digits.
    """
    data = read_release_bytes(folder)
    release = parse_release(data)
    halves, attributes = [np.zeros((0, 2), np.uint64)], []
    for entry in _files(release):
        with _opened(folder, entry) as file:
            attributes += [item.name for item in file.schema_arrow.field("attr").type]
            for table in _read(file, folder / entry.path, ["sample_id"]):
                halves += [_parsed(ids, folder / entry.path) for ids in table.column(0).chunks]
    both = np.concatenate(halves)
    return Side(
        folder=folder,
        release=release,
        fingerprint=fingerprint(data),
        attributes=tuple(dict.fromkeys(attributes)),
        high=both[:, 0].copy(),
        low=both[:, 1].copy(),
    )


def read_words(a: Side, b: Side, columns: Sequence[str]) -> dict[str, Words]:
    """Columns of texts of both releases; null where a release lacks one. Each file is read once."""
    known: dict[str, dict[str, int]] = {column: {} for column in columns}
    one, two = _coded(a, known), _coded(b, known)
    return {name: Words(codes=(one[name], two[name]), values=tuple(values)) for name, values in known.items()}


def _coded(side: Side, known: Mapping[str, dict[str, int]]) -> dict[str, Codes]:
    """(N,) codes of each column; `known` gives each text its number, and grows."""
    codes: dict[str, Codes] = {column: np.full(side.rows, -1, np.int8) for column in known}
    for start, table, there in _groups(side, list(known), words=True):
        for column in there:
            at, values = start, known[column]
            for chunk in _encoded(_leaf(table, column)):
                numbers = [values.setdefault(value, len(values)) for value in chunk.dictionary.to_pylist()]
                kind = np.min_scalar_type(-len(values) - 1)
                if kind.itemsize > codes[column].itemsize:
                    codes[column] = codes[column].astype(kind)
                fresh = np.array([*numbers, -1], codes[column].dtype)
                indices = chunk.indices.fill_null(len(numbers)) if chunk.null_count else chunk.indices
                codes[column][at : at + len(chunk)] = fresh[indices.to_numpy()]
                at += len(chunk)
    return codes


def _encoded(column: pa.ChunkedArray) -> list[pa.DictionaryArray]:
    return [chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode() for chunk in column.chunks]


def _groups(side: Side, columns: Sequence[str], *, words: bool) -> Iterator[tuple[int, pa.Table, list[str]]]:
    """The row groups of all files: the row at which each begins, the columns, and which of these it has."""
    start = 0
    for entry in _files(side.release):
        with _opened(side.folder, entry) as file:
            schema = file.schema_arrow
        there = [column for column in columns if _has(schema, _parts(column))]
        with _opened(side.folder, entry, there if words else ()) as file:
            for table in _read(file, side.folder / entry.path, there):
                yield start, table, there
                start += len(table)


def _parts(column: str) -> list[str]:
    """The path of a column; the name of an attribute may hold dots."""
    if not column.startswith("attr."):
        return column.split(".")
    name, _, part = column.removeprefix("attr.").rpartition(".")
    return ["attr", name, part]


def _has(schema: pa.Schema, parts: Sequence[str]) -> bool:
    kind = pa.struct(list(schema))
    for part in parts:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def _read(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    for group in range(file.num_row_groups):
        try:
            yield file.read_row_group(group, list(columns))
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{path}: row group {group}: {error}") from error


def _files(release: Release) -> tuple[FileEntry, ...]:
    return tuple(entry for table in TABLES for entry in entries_of(release, table))


def _opened(folder: Path, entry: FileEntry, words: Sequence[str] = ()) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(folder / entry.path, page_checksum_verification=True, read_dictionary=list(words))
        check_schema(file.schema_arrow, "manifest")
    except (OSError, pa.ArrowException, SchemaError) as error:
        raise ShardError(f"{folder / entry.path}: {error}") from error
    if file.metadata.num_rows != entry.rows:
        raise ShardError(f"{folder / entry.path}: has {file.metadata.num_rows} rows, expected {entry.rows}")
    return file


def _leaf(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field of a struct by its path."""
    top, *rest = _parts(column)
    return pc.struct_field(table.column(top), rest) if rest else table.column(top)


def _parsed(ids: pa.Array, path: Path) -> NDArray[np.uint64]:
    """(n, 2) the halves of ids of 32 hex digits, as numbers."""
    if not len(ids):
        return np.zeros((0, 2), np.uint64)
    if pc.any(pc.not_equal(pc.binary_length(ids), _ID_DIGITS)).as_py():
        raise ShardError(f"{path}: a sample id must be {_ID_DIGITS} hex digits; verify the release")
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    text = memoryview(ids.buffers()[2])[int(offsets[0]) : int(offsets[-1])]
    try:
        data = bytes.fromhex(str(text, "ascii"))
    except ValueError as error:
        raise ShardError(f"{path}: a sample id must be {_ID_DIGITS} hex digits: {error}") from error
    if 2 * len(data) != len(text):  # spaces are skipped
        raise ShardError(f"{path}: a sample id must be {_ID_DIGITS} hex digits, got one with a space")
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
