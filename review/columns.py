"""The columns of a release's manifest that the screens ask about, coded small: a million rows in some 250 MB.

N: rows of manifest/ and dropped/ together, in the order of their sample ids. Texts become numbers (`Codes`), ids 16
bytes, numbers float32. What is asked of one sample alone (its URI, its hashes) is not held: `Columns.row` reads it.
A column is read when it is first asked for, once, whichever thread asks.
"""

import bisect
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.release import FileEntry, Release
from manifests.schema import check_columns, check_schema, manifest_schema
from manifests.stats import CLUSTER_LEVELS
from review.coding import REST, Coder, Codes, Lists, Mask, array_of, digests, floats, matrix, packed
from review.query import NUMBERS

T = TypeVar("T")


WORDS = ("decision", "split", "verdict", "label_source", "media_kind", "licence", "consent_status")
"""Columns of few words."""
_FEW = ("aspect_bucket", "embedding_model", "teacher_id", "student_id", "decision_by", "run_id", "judge.gate")
_JUDGED = ("q", "miss", "extra", "stability")


class CatalogError(ValueError):
    """A release that cannot be read for review; the message names the file and what to do."""


class Once:
    """Values that are made when they are first asked for, once, whichever thread asks."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._made: dict[str, Any] = {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of `key`; another thread that is making it is waited for."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            return cast("T", self._made[key])

    def has(self, key: str) -> bool:
        """Whether the value is there."""
        return key in self._made


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _File:
    """A Parquet file: path, footer, and (groups + 1,) where its row groups begin."""

    path: Path
    metadata: pq.FileMetaData
    starts: tuple[int, ...]


class Columns:
    """The columns of one release; threads share it.

    Attributes:
        rows: N.
        attributes: names, in the order of the manifest.
    """

    def __init__(self, folder: Path, release: Release) -> None:
        entries = [
            e for e in release.files if e.schema == "manifest" and e.path.split("/")[0] in ("manifest", "dropped")
        ]
        with reading(folder, "manifest/"):
            opened = [open_table(folder, entry, "manifest") for entry in entries]
            schemas = [file.schema_arrow for file in opened]
            self.attributes = _attributes(schemas)
        self._folder = folder
        self._files = [_file(file, folder / entry.path) for file, entry in zip(opened, entries, strict=True)]
        self._schema = schemas[0] if schemas else manifest_schema(["none"])
        self._words = [*WORDS, *_FEW, "decision_reasons.list.element"]
        self._words += [
            f"attr.{name}.{leaf}" for name in self.attributes for leaf in ("value", "provenance", "source_id")
        ]
        self._bases = [0, *accumulate(file.starts[-1] for file in self._files)]
        self.once = Once()
        self.rows = self._bases[-1]

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """(N,) S16 sample ids, ascending. NumPy hides zero bytes at the end of an item: `hex_of` gives the text."""
        return self._ordered()[0]

    @property
    def warm(self) -> bool:
        """Whether all columns have been read."""
        return self.once.has("warm")

    def load(self) -> None:
        """Read all columns."""
        self.once.get("warm", self._load)

    def words(self, name: str) -> Codes:
        """A column of WORDS."""
        return self.once.get(f"words {name}", partial(self._coded, [name]))

    def attribute(self, name: str) -> Codes:
        """The values of an attribute; KeyError where there is none of this name."""
        return self.once.get(f"attr {name}", partial(self._coded, ["attr", self._known(name), "value"]))

    def provenance(self, name: str) -> Codes:
        """Who says the values of an attribute."""
        return self.once.get(f"provenance {name}", partial(self._coded, ["attr", self._known(name), "provenance"]))

    def number(self, name: str) -> NDArray[np.float32]:
        """(N,) one of `query.NUMBERS`; NaN where it is missing."""
        return self.once.get(f"number {name}", partial(self._number, name))

    def integers(self, name: str) -> NDArray[np.int64]:
        """(N,) a column of integers or dates (days since 1970) in its own type; its smallest number where missing."""
        return self.once.get(f"integers {name}", partial(self._integers, name))

    def bits(self, name: str) -> NDArray[np.uint64]:
        """(N,) uint64: `dhash64` (0 where missing), or the first 8 bytes of the hash `source_sha256`."""
        return self.once.get(f"bits {name}", partial(self._bits, name))

    def groups(self) -> NDArray[np.int32]:
        """(N,) a number for each `group_id`."""
        return self.once.get("groups", self._groups)

    def clusters(self) -> NDArray[np.int32]:
        """(N, levels) the cluster path, up to LEVELS; -1 where a path is shorter."""
        return self.once.get("clusters", self._clusters)

    def reasons(self) -> Lists:
        """The reasons of the decisions."""
        return self.once.get("reasons", self._reasons)

    def subjects(self) -> int:
        """Distinct subject ids."""
        return self.once.get("subjects", self._subjects)

    def mask_sha256(self, row: int) -> bytes | None:
        """The hash of the mask of one row; None where the manifest states none."""
        found = bytes(self.once.get("mask_sha256", self._masks)[row].tobytes())
        return found if any(found) else None

    def cells(self, names: int) -> Mapping[int, Codes] | None:
        """The items of the quota cells as JSON, by their place; None where a text holds a comma, or too many differ.

        Args:
            names: balanced attributes, the items behind the levels of the tree.
        """
        return self.once.get(f"cells {names}", partial(self._cells, names))

    def scan(self, name: str, test: Callable[[pa.Array], pa.Array]) -> Mask:
        """(N,) where a column of texts that is not held passes a test of Arrow's."""
        parts = [array_of(pc.fill_null(test(column), False), np.bool_) for column in self._parts([name], words=False)]
        return self._arranged(parts, np.bool_)

    def find(self, sample_id: str) -> int | None:
        """The row of a sample; None where there is none."""
        if len(sample_id) != 32 or not set(sample_id) <= set("0123456789abcdef"):
            return None
        wanted = np.array([bytes.fromhex(sample_id)], "S16")
        row = int(np.searchsorted(self.ids, wanted)[0])
        return row if row < self.rows and bool(self.ids[row] == wanted[0]) else None

    def row(self, row: int) -> dict[str, Any]:
        """All that the manifest says of one row, as Arrow gives it to Python."""
        origin = int(self._ordered()[1][row])
        number = bisect.bisect_right(self._bases, origin) - 1
        file, local = self._files[number], origin - self._bases[number]
        group = bisect.bisect_right(file.starts, local) - 1
        with reading(self._folder, file.path.name):
            table = self._open(file, words=True).read_row_group(group)
            found: dict[str, Any] = table.slice(local - file.starts[group], 1).to_pylist()[0]
            return found

    def _load(self) -> bool:
        for name in WORDS:
            self.words(name)
        for name in ("width", "height", "shard", "shard_row", "frame_pts_us", "retention_until"):
            self.integers(name)
        for name in self.attributes:
            self.provenance(name)
        for name in NUMBERS:
            self.number(name)
        for name in self.attributes:
            self.attribute(name)
        for name in ("dhash64", "source_sha256"):
            self.bits(name)
        for make in (self.groups, self.clusters, self.reasons, self.subjects):
            make()
        pa.default_memory_pool().release_unused()
        return True

    def _known(self, name: str) -> str:
        if name not in self.attributes:
            raise KeyError(name)
        return name

    def _parts(self, path: Sequence[str], *, words: bool = True) -> Iterator[pa.Array]:
        """A column, or a leaf below it, row group by row group; with `words` as a dictionary, where it is of words."""
        for file in self._files:
            with reading(self._folder, f"{file.path.parent.name}/{file.path.name}"):
                opened = self._open(file, words=words)
                for group in range(opened.num_row_groups):
                    yield _leaf(opened, group, path)

    def _open(self, file: _File, *, words: bool = False) -> pq.ParquetFile:
        return pq.ParquetFile(
            file.path,
            metadata=file.metadata,
            page_checksum_verification=True,
            read_dictionary=self._words if words else None,
        )

    def _arranged(self, parts: Sequence[NDArray[Any]], kind: type[np.generic] | str) -> NDArray[Any]:
        """The values of all files in the order of the ids."""
        whole = np.concatenate(parts) if parts else np.empty(0, kind)
        order = self._ordered()[1]
        return whole[order] if len(self._files) > 1 else whole

    def _ordered(self) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
        return self.once.get("ids", self._order)

    def _order(self) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
        with reading(self._folder, "manifest/"):
            found = [packed(column) for column in self._parts(["sample_id"], words=False)]
            ids = np.concatenate(found) if found else np.empty(0, "S16")
            order = np.argsort(ids, kind="stable").astype(np.int32)  # few ascending runs: merged in linear time
            ids = ids[order]
            if (ids[1:] == ids[:-1]).any():
                raise ValueError(f"sample {hex_of(ids, int(np.flatnonzero(ids[1:] == ids[:-1])[0]))} is there twice")
        return ids, order

    def _coded(self, path: Sequence[str]) -> Codes:
        coder = Coder()
        parts = []
        for column in self._parts(path):
            with reading(self._folder, ".".join(path)[:100]):
                parts.append(coder.codes(column))
        codes = self._arranged(parts, np.int16)
        return Codes(codes=codes.astype(np.int8) if len(coder.values) < 128 else codes, values=tuple(coder.values))

    def _number(self, name: str) -> NDArray[np.float32]:
        if name == "mask_area_share":
            area = self._number("mask_area_px")
            share = area / (self.integers("width").astype(np.float32) * self.integers("height"))
            return cast("NDArray[np.float32]", np.where(np.isfinite(share), share, np.nan).astype(np.float32))
        path = ["judge", name] if name in _JUDGED else [name]
        parts = [floats(column) for column in self._parts(path)]
        return self._arranged(parts, np.float32)

    def _integers(self, name: str) -> NDArray[np.int64]:
        kind = self._schema.field(name).type
        stored = np.int64 if pa.types.is_int64(kind) else np.int32
        to = pa.int64() if stored is np.int64 else pa.int32()
        parts = [array_of(pc.fill_null(c.cast(to), int(np.iinfo(stored).min)), stored) for c in self._parts([name])]
        return self._arranged(parts, stored)

    def _bits(self, name: str) -> NDArray[np.uint64]:
        if name == "source_sha256":
            parts = [digests(column)[:, :8].copy().view(np.uint64).ravel() for column in self._parts([name])]
        else:
            parts = [array_of(pc.fill_null(column, 0), np.uint64) for column in self._parts([name])]
        return self._arranged(parts, np.uint64)

    def _masks(self) -> NDArray[np.uint8]:
        """(N, 32) the hashes; zeros where there is none."""
        parts = [digests(pc.fill_null(column, bytes(32))) for column in self._parts(["mask_sha256"])]
        return self._arranged(parts, np.uint8).reshape(-1, 32)

    def _groups(self) -> NDArray[np.int32]:
        parts = list(self._parts(["group_id"], words=False))
        coded = pa.chunked_array(parts, pa.string()).dictionary_encode()
        codes = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int32) for chunk in coded.chunks]
        return self._arranged(codes, np.int32)

    def _clusters(self) -> NDArray[np.int32]:
        parts = [matrix(column) for column in self._parts(["cluster_path"])]
        levels = max((part.shape[1] for part in parts), default=0)
        whole = np.full((self.rows, levels), -1, np.int32)
        at = 0
        for part in parts:
            whole[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return self._arranged([whole], np.int32)

    def _reasons(self) -> Lists:
        coder = Coder()
        lengths, items = [], []
        for column in self._parts(["decision_reasons"]):
            with reading(self._folder, "decision_reasons"):
                lengths.append(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
                items.append(coder.codes(column.flatten()))
        counts = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
        flat = np.concatenate(items) if items else np.empty(0, np.int16)
        before = np.concatenate([[0], np.cumsum(counts)])
        order = self._ordered()[1]
        counts = counts[order]
        starts = np.concatenate([[0], np.cumsum(counts)])
        shift = np.repeat(before[order] - starts[:-1], counts)
        return Lists(starts=starts, codes=flat[np.arange(len(flat)) + shift], values=tuple(coder.values))

    def _cells(self, names: int) -> Mapping[int, Codes] | None:
        size = len(CLUSTER_LEVELS) + names
        coders = {place: Coder() for place in (0, *range(len(CLUSTER_LEVELS), size))}
        parts: dict[int, list[NDArray[np.int16]]] = {place: [] for place in coders}
        for column in self._parts(["quota_cell"], words=False):
            items = pc.split_pattern(pc.utf8_trim(column, "[]"), ",")
            if len(items) and (items.value_lengths().to_numpy() != size).any():
                return None
            coded = items.flatten().dictionary_encode()
            for place, coder in coders.items():
                chosen = coded.indices.to_numpy()[place::size]
                used = np.flatnonzero(np.bincount(chosen, minlength=len(coded.dictionary)))
                table = np.zeros(len(coded.dictionary), np.int16)
                table[used] = coder.codes(coded.dictionary.take(pa.array(used)))
                parts[place].append(table[chosen])
        if any(REST in coder.values for coder in coders.values()):
            return None
        return {
            place: Codes(codes=self._arranged(parts[place], np.int16), values=tuple(coder.values))
            for place, coder in coders.items()
        }

    def _subjects(self) -> int:
        found = pa.array([], pa.string())
        for column in self._parts(["subject_ids"], words=False):
            found = pc.unique(pa.chunked_array([found, pc.unique(column.flatten())], pa.string()))
        return len(found)


def _leaf(opened: pq.ParquetFile, group: int, path: Sequence[str]) -> pa.Array:
    """A column of a row group, or a leaf below it, as one array.

    Arrow gives nested words as dictionaries for one row group at a time alone.
    """
    column = opened.read_row_group(group, columns=[".".join(path)]).column(path[0]).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    for step in path[1:]:
        column = pc.struct_field(column, [column.type.get_field_index(step)])
    return column


def hex_of(ids: NDArray[np.bytes_], row: int) -> str:
    """The sample id of one item of `Columns.ids` as 32 hex digits."""
    return bytes(ids[row : row + 1].tobytes()).hex()


@contextlib.contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile file raises into a CatalogError that names it."""
    try:
        yield
    except CatalogError:
        raise
    except (OSError, ValueError, KeyError, IndexError, OverflowError, pa.ArrowException, json.JSONDecodeError) as error:
        raise CatalogError(
            f"{folder}: {what} cannot be read: {str(error)[:300]}; `curate verify {folder}` lists all that is broken"
        ) from error


def open_table(folder: Path, entry: FileEntry, name: str) -> pq.ParquetFile:
    """Open a Parquet file that release.json lists, its size, place, schema and rows checked.

    Raises:
        ValueError: one of them is not as listed; pyarrow's and the system's own errors stay as they are.
    """
    path = folder / entry.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{entry.path} is a link that leaves the release")
    if path.stat().st_size != entry.bytes:
        raise ValueError(f"{entry.path} has {path.stat().st_size} bytes, expected {entry.bytes}")
    file = pq.ParquetFile(path, page_checksum_verification=True)
    check_schema(file.schema_arrow, name)
    if file.metadata.num_rows != entry.rows:
        raise ValueError(f"{entry.path} has {file.metadata.num_rows} rows, expected {entry.rows}")
    return file


def _file(opened: pq.ParquetFile, path: Path) -> _File:
    groups = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    return _File(path=path, metadata=opened.metadata, starts=(0, *accumulate(groups)))


def _attributes(schemas: Sequence[pa.Schema]) -> tuple[str, ...]:
    if not schemas:
        return ()
    kind = schemas[0].field("attr").type
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    for schema in schemas:
        check_columns(schema, manifest_schema(names))
    return tuple(names)
