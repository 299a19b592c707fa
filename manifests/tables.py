"""The tables of a successor: rows changed and moved between manifest/ and dropped/, evidence added, samples removed.

Every file keeps its range of ids: a row that moves goes into the file of the other table whose ids surround its own.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.placing import GONE, TABLES, Index, Ints, Places, entries_of
from manifests.release import Release
from manifests.rewrite import numbers, patched, read_present, read_rows, widened, with_numbers
from manifests.shard import ShardError

COUNTED = ("decision", "verdict", "split", "source_uri", "quota_cell")
"""Columns from which the statistics of a release are made, besides the values of the attributes."""

Renumbered = Mapping[int, Ints]
"""Number of an embedding file -> for each of its rows the row in the successor, -1 for a removed one."""


def retable(
    parent: Path,
    index: Index,
    table: Ints,
    places: Places,
    patches: Mapping[int, Mapping[str, Any]],
    vectors: Renumbered,
    *,
    anew: bool,
) -> Iterator[tuple[str, pa.Table | None]]:
    """The files of manifest/ and dropped/ with their rows; None where a file is the parent's.

    Args:
        parent: folder of the release.
        index: of the parent.
        table: (N,) number in TABLES where each row is to be, GONE for nowhere.
        places: of the successor.
        patches: row of the index -> column -> new value.
        vectors: where the embeddings go; empty where they stay.
        anew: whether every file is written anew, in the present schema.

    Raises:
        ShardError: a file cannot be read (named with its row group).
    """
    goal, paths = _goals(index, table)
    movers, where = _movers(parent, index, goal)
    edited = np.zeros(len(table), np.bool_)
    edited[list(patches)] = True
    changed = edited | (goal != index.file) | (places.shard != index.shard) | (places.shard_row != index.shard_row)
    for number, path in enumerate(paths):
        mine = index.file == number
        enters = np.flatnonzero((goal == number) & ~mine)
        known = number < len(index.files)
        if known and not (anew or vectors or len(enters) or changed[mine].any()):
            yield path, None
            continue
        parts, rows = [], np.flatnonzero(mine & (goal == number))
        if known:
            parts.append(read_present(parent / path, "manifest").take(pa.array(index.row[rows])))
        if movers is not None and len(enters):
            parts.append(movers.take(pa.array(where[enters])))
        rows = np.concatenate([rows, enters])
        order = np.argsort(index.rank[rows])
        rows, made = rows[order], pa.concat_tables(parts).take(pa.array(order))
        at = np.flatnonzero(edited[rows]).tolist()
        made = patched(made, {place: patches[int(rows[place])] for place in at})
        made = with_numbers(made, "shard", places.shard[rows], places.shard[rows] >= 0)
        made = with_numbers(made, "shard_row", places.shard_row[rows], places.shard_row[rows] >= 0)
        yield path, _with_vectors(made, vectors)


def _goals(index: Index, table: Ints) -> tuple[Ints, list[str]]:
    """(N,) number of the file into which each row goes, GONE for nowhere; and the paths of the files by number."""
    paths = [entry.path for entry in index.files]
    kinds = np.array([TABLES.index(path.split("/")[0]) for path in paths], np.int64)
    goal = np.where(table == GONE, GONE, index.file)
    for kind, name in enumerate(TABLES):
        enters = np.flatnonzero((table == kind) & (kinds[index.file] != kind)) if len(kinds) else np.zeros(0, np.int64)
        if not len(enters):
            continue
        files = [number for number in np.flatnonzero(kinds == kind).tolist() if index.files[number].rows]
        if files:
            starts = [str(index.files[number].min_id) for number in files]
            ids = index.ids.take(pa.array(enters)).to_pylist()
            goal[enters] = [files[max(0, bisect_right(starts, sample) - 1)] for sample in ids]
        else:
            goal[enters] = int(np.argmax(kinds == kind)) if kind in kinds else len(paths)
            if kind not in kinds:
                paths.append(f"{name}/part-00000-of-00001.parquet")
    return goal, paths


def _movers(parent: Path, index: Index, goal: Ints) -> tuple[pa.Table | None, Ints]:
    """The rows that go into another file, and (N,) which of them each row is."""
    leaves = (goal != GONE) & (goal != index.file)
    where, parts, done = np.full(len(goal), -1, np.int64), [], 0
    for number, entry in enumerate(index.files):
        rows = np.flatnonzero(leaves & (index.file == number))
        if len(rows):
            parts.append(read_rows(parent / entry.path, "manifest", index.row[rows]))
            where[rows] = done + np.arange(len(rows))
            done += len(rows)
    return (pa.concat_tables(parts) if parts else None), where


def _with_vectors(table: pa.Table, vectors: Renumbered) -> pa.Table:
    """The table with the rows of its embeddings as they are in the successor."""
    if not vectors:
        return table
    part, row = numbers(table, "embedding_shard"), numbers(table, "embedding_row")
    for number, fresh in vectors.items():
        mine = part == number
        if mine.any() and row[mine].max() >= len(fresh):
            raise ShardError(f"embedding file {number} has {len(fresh)} rows, the manifest names row {row[mine].max()}")
        row[mine] = fresh[row[mine]]
    return with_numbers(table, "embedding_row", row, row >= 0)


def renumber(parent: Path, release: Release, gone: pa.Array) -> Renumbered:
    """Where the vectors go when those of some samples are removed; empty where none is.

    Args:
        parent: folder of the release.
        release: the parent.
        gone: ids of the removed samples.
    """
    vectors: dict[int, Ints] = {}
    for number, entry in enumerate(entries_of(release, "embeddings")):
        ids = _ids(parent / entry.path)
        stays = pc.invert(pc.is_in(ids, value_set=gone)).to_numpy(zero_copy_only=False)
        vectors[number] = np.where(stays, np.cumsum(stays) - 1, -1)
    return vectors if any((fresh < 0).any() for fresh in vectors.values()) else {}


def reembed(
    parent: Path, release: Release, vectors: Renumbered, *, anew: bool
) -> Iterator[tuple[str, pa.Table | None]]:
    """The files of embeddings/ without the removed samples; None where a file is the parent's."""
    for number, entry in enumerate(entries_of(release, "embeddings")):
        stays = vectors[number] >= 0 if vectors else np.ones(0, np.bool_)
        if not anew and bool(stays.all()):
            yield entry.path, None
            continue
        table = read_present(parent / entry.path, "embedding")
        yield entry.path, table.filter(pa.array(stays)) if vectors else table


def reattest(
    parent: Path, release: Release, gone: pa.Array, added: pa.Table, *, anew: bool
) -> Iterator[tuple[str, pa.Table | None]]:
    """The files of evidence/ without the removed samples and with new rows; None where a file is the parent's.

    Args:
        parent: folder of the release.
        release: the parent.
        gone: ids of the removed samples.
        added: new rows, of schema EVIDENCE.
        anew: whether every file is written anew, in the present schema.
    """
    entries = entries_of(release, "evidence")
    filled = [number for number, entry in enumerate(entries) if entry.rows] or [0]
    starts = [str(entries[number].min_id) for number in filled] if entries else [""]
    goal = np.array([filled[max(0, bisect_right(starts, s) - 1)] for s in added.column("sample_id").to_pylist()])
    paths = [entry.path for entry in entries] or (["evidence/part-00000-of-00001.parquet"] if len(added) else [])
    for number, path in enumerate(paths):
        enters = added.filter(pa.array(goal == number)) if len(added) else added
        lost = pc.is_in(_ids(parent / path), value_set=gone) if entries else pa.array([], pa.bool_())
        if entries and not (anew or len(enters) or pc.any(lost).as_py()):
            yield path, None
            continue
        stays = [read_present(parent / path, "attribute_evidence").filter(pc.invert(lost))] if entries else []
        enters = widened(enters, stays[0].schema) if stays else enters
        table = pa.concat_tables([*stays, enters]).combine_chunks()
        keys = [("sample_id", "ascending"), ("name", "ascending")]
        yield path, table.take(pc.sort_indices(table, sort_keys=keys))


def _ids(path: Path) -> pa.ChunkedArray:
    return _read(path, ["sample_id"]).column("sample_id")


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path}: {error}") from error


def counted(path: Path) -> pa.Table:
    """What `slim` keeps of a file of manifest/ or dropped/, without reading the rest of it."""
    names = [field.name for field in pq.read_schema(path).field("attr").type]
    return slim(_read(path, [*COUNTED, *(f"attr.{name}.value" for name in names)]))


def counted_cells(path: Path) -> pa.Table:
    """Decisions and quota cells of a file of manifest/ or dropped/."""
    return _read(path, ["decision", "quota_cell"])


def source_uris(parent: Path, index: Index, lost: Ints) -> frozenset[str]:
    """URIs of sources that only the rows `lost` of the index have."""
    gone, left = [], []
    for number, entry in enumerate(index.files):
        uris = _read(parent / entry.path, ["source_uri"]).column("source_uri")
        rows = np.zeros(len(uris), np.bool_)
        rows[index.row[lost[index.file[lost] == number]]] = True
        gone.append(pc.unique(uris.filter(pa.array(rows))))
        left.append(pc.unique(uris.filter(pa.array(~rows))))
    kept = set(pa.chunked_array(left, pa.string()).to_pylist())
    return frozenset(pa.chunked_array(gone, pa.string()).to_pylist()) - kept


def slim(table: pa.Table) -> pa.Table:
    """The columns COUNTED, and `attr` with the values alone."""
    attr = table.column("attr").combine_chunks()
    values = [_only_value(attr.field(index)) for index in range(attr.type.num_fields)]
    names = [field.name for field in attr.type]
    columns = {name: table.column(name) for name in COUNTED}
    return pa.table({**columns, "attr": pa.StructArray.from_arrays(values, names)})


def _only_value(attribute: pa.StructArray) -> pa.StructArray:
    return pa.StructArray.from_arrays([pc.struct_field(attribute, "value")], ["value"])
