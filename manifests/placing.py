"""Where each sample of a successor is: its table, its split, its shard and its row there.

N: rows of the parent, those of manifest/ first and then those of dropped/, each in the order of its files.
A shard of the parent that no sample enters or leaves keeps its rows. A sample that enters a split goes into a shard
that is written anew in any case, else into one with room, else into a new one: few shards are written.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.release import FileEntry, Release
from manifests.rewrite import numbers
from manifests.schema import MASK_SPLITS, check_schema
from manifests.shard import ShardError

SHARD_PIXELS = 1 << 30
"""Most pixels of a shard that samples enter: about half a gigabyte of JPEG."""
TABLES = ("manifest", "dropped")
GONE = -1
"""In place of a table or a folder: the sample is in none."""

_COLUMNS = ["sample_id", "group_id", "decision", "split", "shard", "shard_row", "width", "height"]
_SHARD = re.compile(r"shards/([a-z]+)/([0-9]{5})-of-[0-9]{5}\.parquet")

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Index:
    """What places each row of a release.

    Attributes:
        files: of manifest/ and dropped/, in order.
        ids: (N,) string array.
        groups: (N,) string array, what must stay in one split.
        decisions: (N,) string array.
        file: (N,) number in `files`.
        row: (N,) row in the file.
        folder: (N,) number in MASK_SPLITS, GONE without pixels.
        shard: (N,) number of the shard in its folder, -1 without pixels.
        shard_row: (N,) row in the shard, -1 without pixels.
        width: (N,) pixels.
        height: (N,) pixels.
        rank: (N,) place in the order of all ids.
    """

    files: tuple[FileEntry, ...]
    ids: pa.Array
    groups: pa.Array
    decisions: pa.Array
    file: Ints
    row: Ints
    folder: Ints
    shard: Ints
    shard_row: Ints
    width: Ints
    height: Ints
    rank: Ints

    def find(self, wanted: Sequence[str]) -> Ints:
        """(len(wanted),) row of each id, -1 where there is none."""
        found = pc.index_in(pa.array(wanted, pa.string()), value_set=self.ids)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def entries_of(release: Release, folder: str) -> tuple[FileEntry, ...]:
    """The Parquet files of one folder of a release, in the order of their paths."""
    return tuple(entry for entry in release.files if entry.schema and entry.path.startswith(f"{folder}/"))


def read_index(folder: Path, release: Release) -> Index:
    """Read what places the rows of the release in `folder`.

    Raises:
        ShardError: a table cannot be read, or two rows have one id.
    """
    files = tuple(entry for table in TABLES for entry in entries_of(release, table))
    tables = [_light(folder / entry.path) for entry in files]
    table = pa.concat_tables(tables) if tables else pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})
    ids = table.column("sample_id").combine_chunks()
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    if len(pc.unique(ids)) != len(ids):
        raise ShardError(f"{folder}: a sample id is there twice; verify the release")
    placed = {name: numbers(table, name) for name in _COLUMNS[4:]}
    split = table.column("split").combine_chunks()
    names = pc.if_else(pc.equal(split, "dropped"), "audit", split)
    codes = pc.fill_null(pc.index_in(names, value_set=pa.array(MASK_SPLITS)), GONE).to_numpy().astype(np.int64)
    return Index(
        files=files,
        ids=ids,
        groups=table.column("group_id").combine_chunks(),
        decisions=table.column("decision").combine_chunks(),
        file=np.repeat(np.arange(len(tables)), [len(part) for part in tables]),
        row=np.concatenate([np.zeros(0, np.int64), *(np.arange(len(part)) for part in tables)]),
        folder=np.where(placed["shard"] < 0, GONE, codes),
        rank=rank,
        **placed,
    )


def _light(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, "manifest")
            return file.read(_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shard:
    """One shard of the successor.

    Attributes:
        path: in the successor.
        source: the shard of the parent whose rows it keeps; None for a new one.
        rows: rows of the index, in the order of the ids: that of the shard.
        touched: whether a sample enters it, leaves it or changes in it.
    """

    path: str
    source: FileEntry | None
    rows: Ints
    touched: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Places:
    """Where each row of the parent is in the successor.

    Attributes:
        folder: (N,) number in MASK_SPLITS, GONE without pixels.
        shard: (N,) number of the shard in its folder, -1 without pixels.
        shard_row: (N,) row in the shard, -1 without pixels.
        shards: all shards of the successor.
    """

    folder: Ints
    shard: Ints
    shard_row: Ints
    shards: tuple[Shard, ...]

    def counted(self, splits: Mapping[str, int]) -> dict[str, int]:
        """Rows of the shards of each split; those that the parent names stay named."""
        counts = dict.fromkeys(splits, 0)
        for shard in self.shards:
            split = shard.path.split("/")[1]
            counts[split] = counts.get(split, 0) + len(shard.rows)
        return counts


def place(release: Release, index: Index, folder: Ints, changed: Collection[int], most: int) -> Places:
    """Give every sample its shard.

    Args:
        release: the parent.
        index: of the parent.
        folder: (N,) number in MASK_SPLITS where the pixels of each row go, GONE for nowhere.
        changed: rows whose pixels or weight change.
        most: rows of a shard that samples enter.

    Raises:
        ShardError: the rows of the parent's manifest and of its shards do not fit.
    """
    shard, shards = index.shard.copy(), []
    marks = np.zeros(len(shard), np.bool_)
    marks[list(changed)] = True
    pixels = index.width * index.height
    for code, split in enumerate(MASK_SPLITS):
        sources = _sources(release, split)
        stays = (folder == code) & (index.folder == code)
        enters = np.flatnonzero((folder == code) & (index.folder != code))
        touched = set(index.shard[(index.folder == code) & ((folder != code) | marks)].tolist())
        rooms = _rooms(index, stays, sources, pixels, most)
        order = sorted(rooms, key=lambda number: (number not in touched, number))
        enters = enters[np.lexsort((index.shard_row[enters], index.shard[enters], index.folder[enters]))]
        shard[enters] = _fill(pixels[enters], [(number, *rooms[number]) for number in order], most)
        mine = np.flatnonzero(folder == code)
        touched |= set(shard[enters].tolist())
        mine = mine[np.lexsort((index.rank[mine], shard[mine]))]
        parts = np.split(mine, np.flatnonzero(np.diff(shard[mine])) + 1) if len(mine) else []
        for number, part in enumerate(parts):
            old = int(shard[part[0]])
            shards.append(
                Shard(
                    path=f"shards/{split}/{number:05d}-of-{len(parts):05d}.parquet",
                    source=sources.get(old),
                    rows=part,
                    touched=old in touched,
                )
            )
    return _numbered(index, folder, tuple(shards))


def _sources(release: Release, split: str) -> Mapping[int, FileEntry]:
    found = {}
    for entry in entries_of(release, f"shards/{split}"):
        match = _SHARD.fullmatch(entry.path)
        if not match:
            raise ShardError(f"{entry.path}: a shard must be named {_SHARD.pattern}; verify the release")
        found[int(match[2])] = entry
    return found


def _rooms(
    index: Index, stays: NDArray[np.bool_], sources: Mapping[int, FileEntry], pixels: Ints, most: int
) -> dict[int, tuple[int, int]]:
    """Of each shard how many rows and pixels may still enter."""
    rooms = {}
    numbers_of = index.shard[stays]
    length = max(sources, default=-1) + 1
    if len(numbers_of) and numbers_of.max() >= length:
        raise ShardError(f"the manifest names shard {numbers_of.max()}, but {length} are listed; verify the release")
    rows = np.bincount(numbers_of, minlength=length)
    area = np.bincount(numbers_of, weights=pixels[stays], minlength=length)
    for number in sources:
        rooms[number] = (max(0, most - int(rows[number])), max(0, SHARD_PIXELS - int(area[number])))
    return rooms


def _fill(pixels: Ints, rooms: Sequence[tuple[int, int, int]], most: int) -> Ints:
    """The shard of each sample that enters: shards with room in their order, then new ones of `most` rows."""
    numbers_of = np.empty(len(pixels), np.int64)
    waiting = list(rooms)
    fresh = max((number for number, _, _ in rooms), default=-1) + 1
    number, rows, area = waiting.pop(0) if waiting else (fresh, 0, 0)
    for place_, size in enumerate(pixels.tolist()):
        while rows < 1 or area < size:
            if waiting:
                number, rows, area = waiting.pop(0)
            else:
                number, rows, area = fresh, most, max(SHARD_PIXELS, size)
                fresh += 1
        numbers_of[place_] = number
        rows, area = rows - 1, area - size
    return numbers_of


def _numbered(index: Index, folder: Ints, shards: tuple[Shard, ...]) -> Places:
    shard, shard_row = np.full(len(folder), -1, np.int64), np.full(len(folder), -1, np.int64)
    counts = dict.fromkeys(range(len(MASK_SPLITS)), 0)
    for item in shards:
        code = int(folder[item.rows[0]])
        shard[item.rows], shard_row[item.rows] = counts[code], np.arange(len(item.rows))
        counts[code] += 1
        kept = None if item.source is None else item.source.rows
        if not item.touched and (
            kept != len(item.rows) or not np.array_equal(index.shard_row[item.rows], shard_row[item.rows])
        ):
            raise ShardError(f"{item.path}: the manifest places other rows there than it has; verify the release")
    return Places(folder=folder, shard=shard, shard_row=shard_row, shards=shards)
