"""Clips of a release: the samples of one video in the order of its time, with their final masks.

A release keeps a few frames of each video. Which of them are neighbours in time is told by their numbers in the video,
so nothing is paired across a gap; a still image, or a row of a table, is a clip of one frame. Each file is held
against its size and digest in ``release.json`` before it is read, once per process.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.image import ImageLimits, decode_image, upright_size
from manifests.mask import MaskError, decode_mask
from manifests.release import FileEntry, ReleaseError, fingerprint, parse_release, read_release_bytes
from manifests.schema import SchemaError, check_schema
from pipeline.clip_formats import Clip, ClipConfig, ClipFrame, file_sha256, refused
from pipeline.errors import InputError

_COLUMNS = ("sample_id", "source_uri", "media_kind", "frame_index", "frame_pts_us", "split", "shard", "shard_row")
_KEPT_GROUPS = 4


class _Row(NamedTuple):
    """One sample: its number and microseconds in the source, and where it lies."""

    number: int
    pts_us: int | None
    sample_id: str
    split: str
    shard: int
    shard_row: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Index:
    """The clips of a release.

    Attributes:
        fingerprint: of the release.
        rows: key of a clip -> its samples in order.
        shards: split and number -> the shard's entry.
    """

    fingerprint: str
    rows: Mapping[str, tuple[_Row, ...]]
    shards: Mapping[tuple[str, int], FileEntry]


def release_clips(folder: Path, prefix: str, config: ClipConfig) -> list[Clip]:
    """The clips of a release, by name: one for each video, still and row of a table.

    Args:
        folder: holds ``release.json``.
        prefix: put before each name; empty, or with a closing slash.
        config: which splits are read.

    Raises:
        InputError: the release or its manifest is damaged, or it holds nothing in the splits.
    """
    index = _index(str(folder), config.splits)
    if not index.rows:
        splits = ", ".join(config.splits)
        raise InputError(f"{folder} must hold a sample in {splits} (clips.splits), it holds none; choose other splits")
    names = _names(list(index.rows))
    clips = []
    for key, rows in index.rows.items():
        clips.append(
            Clip(
                name=prefix + names[key],
                layout="release",
                frames=str(folder),
                key=key,
                count=len(rows),
                labelled=True,
                bytes=round(sum(_bytes_per_row(index, row) for row in rows)),
            )
        )
    return sorted(clips, key=lambda clip: clip.name)


def read_release_clip(clip: Clip, config: ClipConfig) -> Iterator[ClipFrame]:
    """The frames of a clip of a release."""
    index = _index(clip.frames, config.splits)
    if clip.key not in index.rows:
        raise InputError(f"{clip.frames} holds no clip {clip.name!r} any more; find the clips again")
    shards = _Shards(clip.frames, index)
    rows = index.rows[clip.key]
    for position, row in enumerate(rows):
        sample = shards.sample(row)
        where = f"{clip.frames} sample {row.sample_id}"
        limits = config.limits
        with refused(where):
            image = decode_image(sample["image"]["bytes"] or b"", limits).pixels
        yield ClipFrame(
            index=position,
            name=f"{row.number:05d}",
            seconds=None if row.pts_us is None else row.pts_us / 1e6,
            image=image,
            truth=_mask(sample["mask"]["bytes"] or b"", limits, where),
            void=None if sample["ignore"] is None else _mask(sample["ignore"]["bytes"] or b"", limits, where),
            follows=position > 0 and _follows(rows[position - 1], row, config),
        )


def release_digest(clip: Clip, config: ClipConfig) -> str:
    """What decides the frames of the clip: the release's fingerprint (it covers every byte), and which are read."""
    return json.dumps([_index(clip.frames, config.splits).fingerprint, clip.key, sorted(config.splits)])


def _follows(before: _Row, now: _Row, config: ClipConfig) -> bool:
    if now.number == before.number + 1:
        return True
    if before.pts_us is None or now.pts_us is None:
        return False
    return now.pts_us - before.pts_us <= config.gap_seconds * 1e6 + 1


def _mask(data: bytes, limits: ImageLimits, where: str) -> NDArray[np.bool_]:
    """(H, W) bool of a mask's PNG."""
    with refused(where):
        upright_size(io.BytesIO(data), limits)
    try:
        return decode_mask(data, limits.pixels)
    except MaskError as error:
        raise InputError(f"{where}: {error}; run curate verify") from error


def _bytes_per_row(index: _Index, row: _Row) -> float:
    entry = index.shards[row.split, row.shard]
    return entry.bytes / (entry.rows or 1)


# The index ------------------------------------------------------------------------------------------------------------


def _index(folder: str, splits: Sequence[str]) -> _Index:
    """The index of a release, remembered as long as ``release.json`` stays as it is."""
    try:
        data = read_release_bytes(Path(folder))
        release = parse_release(data)
    except ReleaseError as error:
        raise InputError(f"{folder}: {error}; run curate verify") from error
    return _cached_index(folder, fingerprint(data), tuple(sorted(splits)), release.files)


@functools.lru_cache(maxsize=4)
def _cached_index(folder: str, name: str, splits: tuple[str, ...], files: tuple[FileEntry, ...]) -> _Index:
    shards = {place: entry for entry in files if (place := _place(entry.path)) is not None}
    tables = [_manifest(Path(folder), entry, splits) for entry in files if entry.path.startswith("manifest/")]
    rows: dict[str, list[_Row]] = {}
    for table in tables:
        for key, row in _rows(table):
            if (row.split, row.shard) not in shards:
                raise InputError(
                    f"{folder}: sample {row.sample_id} names a shard that is not listed; run curate verify"
                )
            rows.setdefault(key, []).append(row)
    ordered = {key: tuple(sorted(members)) for key, members in rows.items()}
    for key, members in ordered.items():
        if len({row.number for row in members}) < len(members):
            raise InputError(f"{folder}: two samples of {key} are the same frame; run curate verify")
    return _Index(fingerprint=name, rows=ordered, shards=shards)


def _place(path: str) -> tuple[str, int] | None:
    """Split and number of a shard, by its path ``shards/train/00000-of-00002.parquet``."""
    parts = PurePosixPath(path).parts
    number = parts[2].split("-")[0] if len(parts) == 3 and parts[0] == "shards" else ""
    return (parts[1], int(number)) if number.isascii() and number.isdigit() else None


def _manifest(folder: Path, entry: FileEntry, splits: Sequence[str]) -> pa.Table:
    """The samples of a manifest file that lie in a shard of the splits."""
    path = _verified(str(folder), entry)
    with _told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        check_schema(file.schema_arrow, "manifest")
        table = file.read(list(_COLUMNS))
    missing = sorted(set(_COLUMNS) - set(table.column_names))
    if missing:
        raise InputError(f"{path} lacks the columns {missing}; run curate verify")
    wanted = pc.and_(pc.is_in(table.column("split"), pa.array(splits)), pc.is_valid(table.column("shard_row")))
    return table.filter(wanted)


@functools.lru_cache(maxsize=1 << 16)
def _verified(folder: str, entry: FileEntry) -> Path:
    """The path of a file whose bytes are those that the release states."""
    path = Path(folder) / entry.path
    if not path.is_file() or path.stat().st_size != entry.bytes or file_sha256(path).hex() != entry.sha256:
        raise InputError(f"{path} is missing, or not the file that the release states; run curate verify")
    return path


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, SchemaError) as error:
        raise InputError(f"{path}: {error}; run curate verify") from error


def _rows(table: pa.Table) -> Iterator[tuple[str, _Row]]:
    """Each sample with the key of its clip: a source is one, and of a table, which has no time, each row is one."""
    columns = (table.column(name).to_pylist() for name in _COLUMNS)
    for sample_id, uri, kind, number, pts_us, split, shard, shard_row in zip(*columns, strict=True):
        key = f"{uri}#{number}" if kind == "parquet" else uri
        yield key, _Row(number or 0, pts_us, sample_id, split, shard, shard_row)


def _names(keys: Sequence[str]) -> dict[str, str]:
    """A short distinct name for each key: the last parts of its path, without suffix where that is enough."""
    longest = max(len(PurePosixPath(key).parts) for key in keys)
    for length in range(1, longest + 1):
        tails = {key: "/".join(PurePosixPath(key).parts[-length:]).lstrip("/") for key in keys}
        bare = {key: PurePosixPath(tail).with_suffix("").as_posix() for key, tail in tails.items()}
        for names in (bare, tails):
            if len(set(names.values())) == len(keys):
                return names
    return {key: key.strip("/") for key in keys}


class _Shards:
    """Samples of shards by their place; the last few row groups stay in memory."""

    def __init__(self, folder: str, index: _Index) -> None:
        self._folder = folder
        self._index = index
        self._group = functools.lru_cache(maxsize=_KEPT_GROUPS)(self._read_group)
        self._open = functools.lru_cache(maxsize=_KEPT_GROUPS)(self._read_footer)

    def sample(self, row: _Row) -> dict[str, Any]:
        """The row of the shard.

        Raises:
            InputError: it is damaged, or another sample than the manifest says.
        """
        path = _verified(self._folder, self._index.shards[row.split, row.shard])
        starts = self._open(path)
        group = next((g for g, start in enumerate(starts) if start > row.shard_row), len(starts)) - 1
        offset = row.shard_row - starts[group]
        table = self._group(path, group)
        if not 0 <= offset < table.num_rows:
            raise InputError(f"{path} has no row {row.shard_row}; run curate verify")
        found: dict[str, Any] = table.slice(offset, 1).to_pylist()[0]
        if found["sample_id"] != row.sample_id:
            raise InputError(f"{path} row {row.shard_row} must be sample {row.sample_id}; run curate verify")
        return found

    @staticmethod
    def _read_footer(path: Path) -> list[int]:
        """First row of each row group."""
        with _told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, "shard")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return [sum(sizes[:group]) for group in range(max(1, len(sizes)))]

    @staticmethod
    def _read_group(path: Path, group: int) -> pa.Table:
        with _told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read_row_group(group, ["sample_id", "image", "mask", "ignore"])
            table.validate(full=True)
        return table
