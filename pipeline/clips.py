"""Clips for an evaluation: found below a folder, read frame by frame, named by their content.

find_clips ──> Clip, Clip, …            what a folder holds, whatever its layout
read_clip(clip) ──> ClipFrame, …        image, truth, void, and whether the frame follows the one before
digest(clip)                            for resuming, and for the cache of flow
read_videos_table                       people and attributes of the clips
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.attributes import check_names, clean_class, read_table
from pipeline.clip_coco import coco_sha256, coco_stills, read_coco_clip
from pipeline.clip_formats import (
    Clip,
    ClipConfig,
    ClipFrame,
    Layout,
    checked,
    file_sha256,
    read_folders,
    stills_of,
)
from pipeline.clip_release import read_release_clip, release_digest
from pipeline.clip_search import Search
from pipeline.clip_video import read_video
from pipeline.errors import InputError

__all__ = [
    "Clip",
    "ClipConfig",
    "ClipFrame",
    "VideosTable",
    "digest",
    "find_clips",
    "read_clip",
    "read_videos_table",
]

_READERS: Final[dict[Layout, Callable[[Clip, ClipConfig], Iterator[ClipFrame]]]] = {
    "frames": read_folders,
    "davis": read_folders,
    "video": read_video,
    "coco": read_coco_clip,
    "release": read_release_clip,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VideosTable:
    """People and attributes of clips, as columns in the order of the clips.

    Attributes:
        subjects: person of each clip, None where not known; or None: the table has no such column.
        attributes: name -> class of each clip, None where not known.
    """

    subjects: tuple[str | None, ...] | None
    attributes: Mapping[str, tuple[str | None, ...]]


def find_clips(folder: Path, config: ClipConfig | None = None) -> tuple[Clip, ...]:
    """The clips below a folder, sorted by name; `pipeline.clip_search` draws the layouts.

    Layouts may stand side by side. Names and numbers of files are checked here, pixels by `read_clip`. Hidden files
    are not looked at; links are followed, to each folder once.

    Raises:
        InputError: no clip; an image that belongs to none; a clip with two shapes, or two of one name (both named);
            frames and masks that do not pair; names that give no order; a video, COCO file or release that is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} must be a folder of clips; check the path")
    return Search(folder, config or ClipConfig()).run()


def read_clip(clip: Clip, config: ClipConfig | None = None) -> Iterator[ClipFrame]:
    """The frames of a clip in order, one in memory at a time; `config` must be that of `find_clips`.

    Raises:
        InputError: a file is broken, missing, or beyond the limits; a mask has another size than its frame, or values
            between; mask and frame videos differ in length; a listed person occurs nowhere. Names file and remedy.
    """
    config = config or ClipConfig()
    return checked(clip, _READERS[clip.layout](clip, config), config)


def digest(clip: Clip, config: ClipConfig | None = None, *, truth: bool = True) -> str:
    """Hex digest of what a clip holds: names of its frames and bytes of its files, wherever they lie.

    Args:
        clip: of `find_clips`.
        config: that of `find_clips`.
        truth: whether masks count; without them it names the frames alone, as a cache of flow needs. A release has
            one digest for both.

    Raises:
        InputError: a file cannot be read.
    """
    config = config or ClipConfig()
    total = hashlib.sha256(clip.layout.encode())
    if clip.layout == "release":
        total.update(release_digest(clip, config).encode())
        return total.hexdigest()
    for part, path in _parts(clip, config, truth=truth):
        content = b"-" if path is None else file_sha256(path)
        total.update(f"|{part}|{'' if path is None else path.name}|".encode("utf-8", "surrogateescape") + content)
    if truth and clip.layout == "coco":
        total.update(f"|{clip.key}|{config.category}|{coco_sha256(clip)}".encode())
    if truth and clip.layout == "davis":
        total.update(f"|{clip.persons}|{config.others}".encode())
    return total.hexdigest()


def _parts(clip: Clip, config: ClipConfig, *, truth: bool) -> Iterator[tuple[str, Path | None]]:
    if clip.layout == "video":
        yield "frames", Path(clip.frames)
        if truth:
            yield "masks", None if clip.masks is None else Path(clip.masks)
        return
    for still in coco_stills(clip, config) if clip.layout == "coco" else stills_of(clip):
        yield "frame", still.image
        if truth:
            yield "mask", still.mask
            yield "ignore", still.ignore


def read_videos_table(path: Path, names: Sequence[str]) -> VideosTable:
    """Reads people and attributes from a CSV (UTF-8) or Parquet table with a column ``video``.

    A column ``subject_id`` names the person; every other column is an attribute. Clips without a row, and empty cells,
    are not known.

    Args:
        path: the table.
        names: of the clips.

    Raises:
        InputError: no table, no column ``video``, a column that stands twice or whose name is no identifier, a row
            without a video, of an unknown one, or a second row of one.
        StorageError: the file cannot be read.
    """
    table = read_table(str(path))
    columns = table.column_names
    if "video" not in columns:
        raise InputError(f"{path} needs a column 'video' with names of clips; it has {', '.join(columns) or 'none'}")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise InputError(f"{path} has more than one column {twice[0]!r}; remove or rename one")
    attributes = sorted(set(columns) - {"video", "subject_id"})
    check_names(str(path), attributes)
    rows = _rows_of(path, [clean_class(value) for value in table.column("video").to_pylist()], names)
    cells = {name: [clean_class(value) for value in table.column(name).to_pylist()] for name in columns}
    known = {name: tuple(None if row is None else cells[name][row] for row in rows) for name in columns}
    return VideosTable(subjects=known.get("subject_id"), attributes={name: known[name] for name in attributes})


def _rows_of(path: Path, videos: Sequence[str | None], names: Sequence[str]) -> list[int | None]:
    """The row of each clip."""
    rows: dict[str, int] = {}
    wanted = frozenset(names)
    for row, video in enumerate(videos):
        if video is None:
            raise InputError(f"{path} row {row + 1}: 'video' must not be empty; write the name of a clip")
        if video not in wanted:
            near = difflib.get_close_matches(video, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove the row"
            raise InputError(f"{path} row {row + 1}: {video!r} is no clip; {hint}")
        if video in rows:
            raise InputError(f"{path} row {row + 1}: {video!r} has row {rows[video] + 1} already; remove one")
        rows[video] = row
    return [rows.get(name) for name in names]
