"""What an audit is drawn from: the labelled frames of a release, or of a label stage that is not published yet."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.audit import Origin
from manifests.image import ImageError, ImageLimits, upright_size
from manifests.release import RELEASE_FILE, Release, ReleaseError, fingerprint, parse_release, read_release_bytes
from manifests.verify import find_releases
from pipeline import storage
from pipeline.config import Config
from pipeline.embed import encode_jpeg, frames_of
from pipeline.errors import CurateError, InputError, UsageError
from pipeline.publish import MAX_PIXELS
from pipeline.released import one_release
from pipeline.stage import MANIFEST, Done, Span, iter_tables, read_manifest, read_span

LABELS = {"relabel": "rechosen", "label": "chosen"}
"""Stages with labels, the later first, and the step whose rows they label."""

_SHARD = re.compile(r"shards/([a-z]+)/([0-9]{5})-of-[0-9]{5}\.parquet")
_IN_RELEASE = (
    "sample_id", "content_sha256", "width", "height", "group_id", "cluster_path",
    "label_source", "decision", "split", "shard", "shard_row",
)  # fmt: skip
_IN_CHOSEN = (
    "sample_id", "content_sha256", "width", "height", "group_id", "cluster_path",
    "source_uri", "media_kind", "frame_index",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame with a pseudo label.

    Attributes:
        sample_id: 32 hex digits.
        content_sha256: 64 hex digits, of the decoded frame.
        width: pixels.
        height: pixels.
        cluster: its group of clusters, the first element of its cluster path.
        group: what it shares a source, session or near-duplicates with.
        dropped: whether the judge dropped it; in a label stage nobody knows yet.
        shown: whether its pixels can be had.
        shard: file of a release with its pixels; "" where there is none.
        row: in the shard, or of the choice.
    """

    sample_id: str
    content_sha256: str
    width: int
    height: int
    cluster: str
    group: str
    dropped: bool
    shown: bool
    shard: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Labelled frames and how to get their pictures.

    Attributes:
        origin: of the frames.
        fingerprint: of the release, or digest of the stage.
        folder: of the release or stage.
        frames: with a pseudo label, in no order that matters.
        pictures: gives (sample id, JPEG file) of frames that are shown, each once, in any order.
    """

    origin: Origin
    fingerprint: str
    folder: Path
    frames: tuple[Frame, ...]
    pictures: Callable[[Sequence[Frame]], Iterator[tuple[str, bytes]]]


def open_pool(path: Path, config: Config | None = None) -> Pool:
    """The labelled frames below a path.

    Args:
        path: a release, a finished label stage, or the ``--output`` of a run that has one of either; the release goes
            first.
        config: of the run, whose settings decode the frames of a label stage; None: the default's.

    Raises:
        InputError: there is none, there are several, or it is damaged.
        UsageError: a config with a release.
    """
    if (path / MANIFEST).is_file():
        return stage_pool(path, config or Config())
    if (path / RELEASE_FILE).is_file() or next(path.glob(f"releases/*/{RELEASE_FILE}"), None):
        if config is not None:
            raise UsageError(f"--config is about a label stage, and {path} holds a release; leave it out")
        return release_pool(one_release(path))
    for name in LABELS:
        found = sorted(file.parent for file in path.glob(f"stages/{name}/*/{MANIFEST}"))
        if len(found) > 1:
            names = ", ".join(str(folder) for folder in found[:3])
            raise InputError(f"{path} holds {len(found)} finished label stages: {names}; name one of them")
        if found:
            return stage_pool(found[0], config or Config())
    raise InputError(f"{path}: no {RELEASE_FILE}, no release below releases/ and no finished label stage; run first")


# A release ------------------------------------------------------------------------------------------------------------


def release_pool(folder: Path) -> Pool:
    """The pseudo labels of a release; labels that a person drew need no audit.

    Raises:
        InputError: it cannot be read.
    """
    try:
        (folder,) = find_releases(folder)
        data = read_release_bytes(folder)
        release = parse_release(data)
    except (ReleaseError, ValueError) as error:
        raise InputError(f"{folder}: {error}") from error
    shards = _shards(release)
    frames: list[Frame] = []
    for entry in release.files:
        if entry.path.split("/")[0] in ("manifest", "dropped") and entry.rows:
            _check_sha256(folder / entry.path, entry.sha256)
            table = _read(folder / entry.path, Span(uri=str(folder / entry.path)), _IN_RELEASE)
            frames += _frames_of_release(table, shards)

    def pictures(wanted: Sequence[Frame]) -> Iterator[tuple[str, bytes]]:
        for frame in sorted(wanted, key=lambda frame: (frame.shard, frame.row)):
            yield frame.sample_id, _picture(folder / frame.shard, frame)

    return Pool(origin="release", fingerprint=fingerprint(data), folder=folder, frames=tuple(frames), pictures=pictures)


def _shards(release: Release) -> dict[tuple[str, int], str]:
    """(split, number) -> path of each shard."""
    matches = (_SHARD.fullmatch(entry.path) for entry in release.files)
    return {(match[1], int(match[2])): match[0] for match in matches if match}


def _frames_of_release(table: pa.Table, shards: dict[tuple[str, int], str]) -> Iterator[Frame]:
    for row in table.to_pylist():
        if row["label_source"] != "pseudo":
            continue
        dropped = row["decision"] == "drop"
        place = ("audit" if dropped else row["split"], row["shard"])
        yield Frame(
            **_facts(row),
            dropped=dropped,
            shown=row["shard"] is not None,
            shard="" if row["shard"] is None else shards.get(place, ""),
            row=-1 if row["shard_row"] is None else row["shard_row"],
        )


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    path, content = row["cluster_path"], row["content_sha256"]
    if not path or content is None:
        lacks = "cluster_path" if not path else "content_sha256"
        raise InputError(f"sample {row['sample_id']} has no {lacks}, so it cannot be drawn; publish or label again")
    named = {name: row[name] for name in ("sample_id", "width", "height")}
    return {**named, "content_sha256": content.hex(), "cluster": str(path[0]), "group": row["group_id"]}


def _picture(path: Path, frame: Frame) -> bytes:
    """The JPEG file of a frame, of which the row group alone is read."""
    if not frame.shard:
        raise InputError(f"{path}: the release lists no shard with sample {frame.sample_id}; curate verify names more")
    span = Span(uri=str(path), start=frame.row, stop=frame.row + 1)
    rows = _read(path, span, ("sample_id", "image")).to_pylist()
    if [row["sample_id"] for row in rows] != [frame.sample_id]:
        raise InputError(f"{path}: row {frame.row} must be sample {frame.sample_id}; the release is damaged")
    jpeg: bytes = rows[0]["image"]["bytes"]
    limits = ImageLimits(pixels=MAX_PIXELS, bytes=MAX_PIXELS, min_side=1, max_aspect=float("inf"))
    try:
        size = upright_size(io.BytesIO(jpeg), limits)
    except ImageError as error:
        raise InputError(f"{path}: row {frame.row}: {error}; the release is damaged") from error
    if size != (frame.height, frame.width):
        rule = f"must be {frame.width}x{frame.height}, is {size[1]}x{size[0]}"
        raise InputError(f"{path}: row {frame.row}: the image {rule}; the release is damaged")
    return jpeg


def _check_sha256(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with storage.open_read(str(path)) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise InputError(f"{path} is damaged (its sha256 is not {sha256}); put the release back, or publish it again")


def _read(path: Path, span: Span, columns: Sequence[str]) -> pa.Table:
    try:
        table = read_span(span, columns)
    except CurateError as error:
        reason = str(error.__cause__ or error)
        raise InputError(f"{path} cannot be read ({reason}); put the release back, or publish it again") from error
    if set(columns) - set(table.column_names):
        raise InputError(f"{path} lacks columns {sorted(set(columns) - set(table.column_names))}; publish it again")
    return table


# A label stage --------------------------------------------------------------------------------------------------------


def stage_pool(folder: Path, config: Config) -> Pool:
    """The labels of a finished label stage; their frames are decoded from the sources again.

    Args:
        folder: of the stage, below ``stages/`` of the run.
        config: of the run: its sections [probe] and [publish].

    Raises:
        InputError: it is no such stage, or the choice it labels is not beside it.
    """
    folder = folder.absolute()
    done = read_manifest(str(folder))
    if done is None or done.stage not in LABELS:
        found = "not finished" if done is None else f"a stage {done.stage!r}"
        raise InputError(f"{folder} must be a finished label stage, it is {found}")
    labels = pa.concat_tables(iter_tables(done.uris(), ["sample_id", "fault"]))
    chosen = _chosen(folder.parent.parent / LABELS[done.stage], labels.column("sample_id"), folder)
    faults = labels.column("fault").to_pylist()
    frames = tuple(
        Frame(**_facts(row), dropped=False, shown=True, shard="", row=number)
        for number, row in enumerate(chosen.to_pylist())
        if faults[number] is None
    )

    def pictures(wanted: Sequence[Frame]) -> Iterator[tuple[str, bytes]]:
        rows = chosen.take(pa.array(sorted(frame.row for frame in wanted), pa.int64()))
        yield from _decoded(rows, config)

    return Pool(origin="stage", fingerprint=done.digest, folder=folder, frames=frames, pictures=pictures)


def _chosen(root: Path, ids: pa.ChunkedArray, folder: Path) -> pa.Table:
    """The choice with these rows, of those beside a label stage."""
    found: list[tuple[Done, pa.Table]] = []
    for step in _folders(root):
        done = read_manifest(str(step))
        if done is None or done.rows != len(ids):
            continue
        table = pa.concat_tables(iter_tables(done.uris(), _IN_CHOSEN))
        if set(_IN_CHOSEN) == set(table.column_names) and table.column("sample_id").equals(ids):
            found.append((done, table))
    if not found:
        raise InputError(f"{folder}: the choice that it labels must lie in {root}, it does not; keep stages/ together")
    first = found[0][1]
    for done, table in found[1:]:
        if not table.equals(first):
            raise InputError(
                f"{folder}: {found[0][0].folder} and {done.folder} choose the same frames in other clusters; "
                "move the one away that is not of this run"
            )
    return first


def _folders(root: Path) -> list[Path]:
    """The folders of a step, sorted by name; none where it never ran."""
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _decoded(rows: pa.Table, config: Config) -> Iterator[tuple[str, bytes]]:
    ids = rows.column("sample_id").to_pylist()
    faults: list[dict[str, Any]] = []
    for row, pixels in frames_of(rows, config.probe.scan, faults, "audit"):
        yield ids[row], encode_jpeg(pixels, config.publish.quality)
    if faults:
        first = faults[0]
        raise InputError(
            f"{first['source']}: {first['message']} ({len(faults)} faults); put the source back, or give the --config "
            "of the run"
        )
