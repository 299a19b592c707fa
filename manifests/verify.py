"""Verify a release: every byte against `release.json`, every row against its shard, every mask against its hash.

Nothing here trusts what it reads: a damaged or hostile file becomes a `Problem` with its path, and the next file
follows.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.mask import MaskError, decode_mask, mask_sha256
from manifests.release import RELEASE_FILE, FileEntry, Release, ReleaseError, read_release
from manifests.schema import (
    EVIDENCE,
    LABEL_SOURCES,
    MASK_SPLITS,
    PROVENANCES,
    SHARD,
    SPLITS,
    VERDICTS,
    SchemaError,
    check_columns,
    embedding_schema,
    manifest_schema,
)
from manifests.shard import check_table, iter_row_groups

FOLDERS = {
    "manifest": "manifest",
    "dropped": "manifest",
    "shards": "shard",
    "evidence": "attribute_evidence",
    "embeddings": "embedding",
}
"""The schema of the Parquet files of each folder."""

_SHARD_PATH = re.compile(rf"shards/({'|'.join(MASK_SPLITS)})/([0-9]{{5}})-of-[0-9]{{5}}\.parquet")
MAX_PIXELS = 1 << 26
"""Limit of one image, checked before it is decoded: 8192 x 8192."""
MAX_DOCUMENT_BYTES = 1 << 28
"""Limit of a JSON file of a release."""
_BESIDE = (RELEASE_FILE, "croissant.json", "datacard.md")
"""Files that `release.json` does not list: itself, and descriptions that readers look for beside it."""
_SHOWN = 20
"""Problems told of one file; the rest are counted."""

_INDEX = [
    "sample_id",
    "content_sha256",
    "mask_sha256",
    "width",
    "height",
    "label_source",
    "label_confidence",
    "group_id",
    "decision",
    "split",
    "shard",
    "shard_row",
]

_Places: TypeAlias = dict[tuple[str, int], pa.Table]
"""Of each shard, by its folder and number: the rows of the index that say they are in it, by shard_row."""


class VerifyError(ValueError):
    """There is no release to verify; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with one file of a release.

    Attributes:
        path: relative to the release folder.
        message: the rule and the value found.
        changed: whether the file has not the bytes that `release.json` lists.
    """

    path: str
    message: str
    changed: bool = False


def find_releases(path: Path) -> list[Path]:
    """The release folders of `path`: itself, or each folder below its `releases/`, sorted by name.

    Raises:
        VerifyError: none is there.
    """
    if (path / RELEASE_FILE).is_file():
        return [path]
    found = sorted(file.parent for file in (path / "releases").glob(f"*/{RELEASE_FILE}"))
    if not found:
        raise VerifyError(
            f"{path}: no {RELEASE_FILE} here or in releases/*/; give the folder of a release, or the root of a run; "
            f"a release without {RELEASE_FILE} was never committed: publish again"
        )
    return found


def verify_release(folder: Path, *, pixels: bool = True, today: date | None = None) -> list[Problem]:
    """Verify the release in `folder` and return all problems found; an empty list says that it is good.

    Files come first (size, sha256, schema, rows, ids), then rows against each other, then each sound shard against the
    manifest, down to the pixels. A damaged file is named once and not read further.

    Args:
        folder: holds `release.json`.
        pixels: whether to decode every image and mask (about 500 samples a second and core); the sha256 of every file
            is checked in any case.
        today: rows whose retention ended before this day are a problem of their file; None does not ask.
    """
    try:
        release = read_release(folder)
    except ReleaseError as error:
        return [Problem(path=RELEASE_FILE, message=str(error), changed=True)]
    problems = [*_caught(".", _surplus(folder, release)), *_sums(release)]
    damaged = set()
    for entry in release.files:
        found = _caught(entry.path, _check_file(folder, entry))
        damaged |= {entry.path for _ in found}
        problems += found
    places: _Places | None = None
    if not any(entry.path in damaged for entry in _tables(release)):
        index = _read_index(folder, release)
        places = _places(index)
        problems += [*_check_rows(release, index), *_check_places(release, places)]
    for entry in _tables(release):
        if today is not None and entry.path not in damaged:
            problems += _caught(entry.path, _check_retention(folder, entry, today))
    for entry in _entries(release, "shards"):
        if entry.path not in damaged:
            problems += _caught(entry.path, _check_shard(folder, entry, places, pixels=pixels))
    return problems


def _caught(path: str, problems: Iterator[Problem]) -> list[Problem]:
    found: list[Problem] = []
    try:
        found.extend(problems)
    except (OSError, ValueError, KeyError, pa.ArrowException, cv2.error) as error:
        found.append(Problem(path=path, message=f"cannot be read: {error}"))
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], Problem(path=path, message=f"and {more} more problems")] if more > 0 else found


def _entries(release: Release, folder: str) -> list[FileEntry]:
    return [entry for entry in release.files if entry.schema and entry.path.startswith(f"{folder}/")]


def _surplus(folder: Path, release: Release) -> Iterator[Problem]:
    listed = {entry.path for entry in release.files}
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if path not in listed and path not in _BESIDE:
                yield Problem(path=path, message=f"surplus: not listed in {RELEASE_FILE}; readers ignore it, remove it")


def _sums(release: Release) -> Iterator[Problem]:
    """Compare the sums that `release.json` states with the files that it lists."""
    counts = release.counts
    stated = {
        "rows of manifest/": (_rows(release, "manifest"), counts.kept + counts.held, "kept + held"),
        "rows of dropped/": (_rows(release, "dropped"), counts.dropped, "dropped"),
    }
    for split in sorted({*MASK_SPLITS, *release.splits}):
        stated[f"rows of shards/{split}/"] = (
            _rows(release, f"shards/{split}"),
            release.splits.get(split, 0),
            f"splits: {split}",
        )
    for what, (found, expected, name) in stated.items():
        if found != expected:
            yield Problem(path=RELEASE_FILE, message=f"{what} are {found}, but {name} is {expected}")


def _rows(release: Release, folder: str) -> int:
    return sum(entry.rows or 0 for entry in _entries(release, folder))


def _check_file(folder: Path, entry: FileEntry) -> Iterator[Problem]:
    path = folder / entry.path
    if not path.resolve().is_relative_to(folder.resolve()):
        yield Problem(path=entry.path, message="is a link that leaves the release", changed=True)
    elif not path.is_file():
        yield Problem(path=entry.path, message="is missing", changed=True)
    elif path.stat().st_size != entry.bytes:
        told = f"has {path.stat().st_size} bytes, expected {entry.bytes}"
        yield Problem(path=entry.path, message=told, changed=True)
    elif (found := _file_sha256(path)) != entry.sha256:
        told = f"sha256 is {found}, expected {entry.sha256}: the bytes have changed"
        yield Problem(path=entry.path, message=told, changed=True)
    elif entry.schema or entry.path.endswith(".parquet"):
        yield from _check_parquet(path, entry)
    elif entry.path.endswith(".json"):
        yield from _check_document(path, entry)


def _check_document(path: Path, entry: FileEntry) -> Iterator[Problem]:
    if entry.bytes > MAX_DOCUMENT_BYTES:
        yield Problem(path=entry.path, message=f"has {entry.bytes} bytes, the limit is {MAX_DOCUMENT_BYTES}")
        return
    try:
        parse_document(path.read_bytes())
    except ValueError as error:
        yield Problem(path=entry.path, message=f"is no JSON that every reader takes: {error}")


def parse_document(data: str | bytes) -> Any:
    """JSON from outside: finite numbers, texts that have an encoding, and no more levels than can be read.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(data, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # 1e999 is infinite, "\ud800" has no encoding
    except RecursionError as error:
        raise ValueError("it has too many levels") from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_parquet(path: Path, entry: FileEntry) -> Iterator[Problem]:
    place = entry.path.split("/")[0]
    if entry.schema is None or FOLDERS.get(place) != entry.schema:
        yield Problem(path=entry.path, message=f"schema {entry.schema!r} does not belong in {place}/")
        return
    if place == "shards" and not _SHARD_PATH.fullmatch(entry.path):
        yield Problem(path=entry.path, message=f"a shard must be named {_SHARD_PATH.pattern}")
        return
    ids: list[str] = []
    for table in iter_row_groups(path, entry.schema):
        try:
            check_columns(table.schema, _expected_schema(table.schema, entry.schema))
        except SchemaError as error:
            yield Problem(path=entry.path, message=str(error))
            return
        check_table(table)
        ids += table.column("sample_id").to_pylist()
        if entry.schema == "manifest":
            yield from _check_values(table, entry.path, place)
    yield from _check_ids(ids, entry)


def _expected_schema(found: pa.Schema, name: str) -> pa.Schema:
    """The schema `name`, with the attributes, or the dimension, of the one found."""
    if name == "manifest":
        attr = found.field("attr").type
        return manifest_schema([field.name for field in attr] if pa.types.is_struct(attr) else [])
    if name == "embedding":
        vector = found.field("vector").type
        return embedding_schema(vector.list_size if pa.types.is_fixed_size_list(vector) else 1)
    return SHARD if name == "shard" else EVIDENCE


def _check_ids(ids: list[str], entry: FileEntry) -> Iterator[Problem]:
    if len(ids) != entry.rows:
        yield Problem(path=entry.path, message=f"has {len(ids)} rows, expected {entry.rows}")
    repeats = entry.schema == "attribute_evidence"  # many assertions on one sample
    for before, after in pairwise(ids):
        if before > after or (before == after and not repeats):
            yield Problem(path=entry.path, message=f"sample ids must ascend, got {before!r} then {after!r}")
            return
    if ids and (ids[0], ids[-1]) != (entry.min_id, entry.max_id):
        yield Problem(
            path=entry.path,
            message=f"holds ids {ids[0]!r} to {ids[-1]!r}, expected {entry.min_id!r} to {entry.max_id!r}",
        )


def _check_values(table: pa.Table, path: str, place: str) -> Iterator[Problem]:
    """Check the rows of a manifest file one by one: known words, and a decision that fits the table it is in."""
    decision, shard, row = (table.column(name) for name in ("decision", "shard", "shard_row"))
    kept = pc.equal(decision, "keep")
    placed = pc.is_valid(shard)
    in_split = pc.is_in(table.column("split"), pa.array(SPLITS))
    held = pc.and_(pc.equal(decision, "hold"), pc.equal(table.column("split"), "hold"))
    dropped = pc.and_(pc.equal(decision, "drop"), pc.equal(table.column("split"), "dropped"))
    fits = pc.or_(pc.and_(kept, in_split), held) if place == "manifest" else dropped
    rules = {
        f"decision and split do not belong in {place}/": fits,
        f"verdict must be one of {VERDICTS}": pc.is_in(table.column("verdict"), pa.array(VERDICTS)),
        f"label_source must be one of {LABEL_SOURCES}": pc.is_in(table.column("label_source"), pa.array(LABEL_SOURCES)),
        "shard and shard_row must be set together, and always for a kept or held row": pc.and_(
            pc.equal(placed, pc.is_valid(row)), pc.or_(placed, pc.equal(decision, "drop"))
        ),
        "a kept row must have mask_sha256": pc.or_(pc.invert(kept), pc.is_valid(table.column("mask_sha256"))),
    }
    for name in [field.name for field in table.schema.field("attr").type]:
        provenance = pc.struct_field(table.column("attr"), [name, "provenance"])
        rules[f"attr.{name}.provenance must be one of {PROVENANCES}"] = pc.is_in(provenance, pa.array(PROVENANCES))
    for rule, good in rules.items():
        for number in np.flatnonzero(~good.to_numpy()):
            yield Problem(path=path, message=f"sample {table.column('sample_id')[int(number)].as_py()}: {rule}")


def _tables(release: Release) -> list[FileEntry]:
    return [*_entries(release, "manifest"), *_entries(release, "dropped")]


def _check_retention(folder: Path, entry: FileEntry, today: date) -> Iterator[Problem]:
    epoch = date(1970, 1, 1).toordinal()
    ended: list[int] = []  # ordinals, for a column may hold days that no calendar has
    for table in iter_row_groups(folder / entry.path, "manifest"):
        days = table.column("retention_until").drop_null().cast(pa.int32()).to_numpy().astype(np.int64) + epoch
        ended += days[days < today.toordinal()].tolist()
    if ended:
        first = date.fromordinal(max(1, min(ended)))
        later = "" if min(ended) == max(ended) else " and later"
        told = f"retention of {len(ended)} samples ended on {first}{later}: forget them or renew"
        yield Problem(path=entry.path, message=told)


def _read_index(folder: Path, release: Release) -> pa.Table:
    """Of every row of manifest/ and dropped/ what places and names it, and the `file` that it is in."""
    fields = [pa.field(field.name, field.type) for field in manifest_schema(["none"]) if field.name in _INDEX]
    schema = pa.schema([*fields, pa.field("file", pa.string())])
    tables = [schema.empty_table()]
    for entry in _tables(release):
        for table in iter_row_groups(folder / entry.path, "manifest"):
            columns = table.select(schema.names[:-1]).columns
            tables.append(pa.table([*columns, pa.repeat(entry.path, len(table))], schema=schema))
    return pa.concat_tables(tables)


def _check_rows(release: Release, index: pa.Table) -> Iterator[Problem]:
    """Compare the rows with each other: order of files, unique ids, decisions counted, groups in one split."""
    for folder in ("manifest", "dropped"):
        filled = [entry for entry in _entries(release, folder) if entry.rows]
        for before, after in pairwise(filled):
            if str(before.max_id) >= str(after.min_id):
                yield Problem(path=after.path, message=f"ids must follow those of {before.path}, which end later")
    counts = pc.value_counts(index.column("sample_id"))
    for twice in counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()[:_SHOWN]:
        files = index.filter(pc.equal(index.column("sample_id"), twice)).column("file").to_pylist()
        yield Problem(path=files[-1], message=f"sample {twice} is there twice: in {', '.join(files)}")
    for decision, stated in (("keep", release.counts.kept), ("hold", release.counts.held)):
        found = pc.sum(pc.equal(index.column("decision"), decision)).as_py() or 0
        if found != stated:
            yield Problem(path=RELEASE_FILE, message=f"rows with decision {decision} are {found}, expected {stated}")
    yield from _check_leakage(index)


def _check_leakage(index: pa.Table) -> Iterator[Problem]:
    kept = index.filter(pc.equal(index.column("decision"), "keep"))
    groups = kept.group_by("group_id").aggregate([("split", "count_distinct"), ("file", "max"), ("split", "distinct")])
    leaks = groups.filter(pc.greater(groups.column("split_count_distinct"), 1)).sort_by("group_id")
    for leak in leaks.slice(0, _SHOWN).to_pylist():
        splits = " and ".join(sorted(leak["split_distinct"]))
        yield Problem(path=leak["file_max"], message=f"group {leak['group_id']} is in {splits}: the splits leak")


def _places(index: pa.Table) -> _Places:
    placed = index.filter(pc.is_valid(index.column("shard")))
    split = placed.column("split")
    folder = pc.if_else(pc.equal(split, "dropped"), "audit", split)
    placed = placed.append_column("folder", folder).sort_by([(name, "ascending") for name in _ORDER])
    folders, shards = placed.column("folder").to_numpy(), placed.column("shard").to_numpy()
    starts = np.flatnonzero((folders[1:] != folders[:-1]) | (shards[1:] != shards[:-1])) + 1
    ends = [0, *starts.tolist(), len(placed)]
    slices = [placed.slice(start, end - start) for start, end in pairwise(ends) if end > start]
    return {(rows.column("folder")[0].as_py(), rows.column("shard")[0].as_py()): rows for rows in slices}


_ORDER = ("folder", "shard", "shard_row")


def _shard_key(path: str) -> tuple[str, int] | None:
    match = _SHARD_PATH.fullmatch(path)
    return (match[1], int(match[2])) if match else None


def _check_places(release: Release, places: _Places) -> Iterator[Problem]:
    listed = {_shard_key(entry.path) for entry in _entries(release, "shards")}
    for (split, number), rows in sorted(places.items()):
        if (split, number) not in listed:
            file = rows.column("file")[0].as_py()
            yield Problem(
                path=file, message=f"places {len(rows)} rows in shard {number} of {split}, which is not listed"
            )
    if len(listed) != len(_entries(release, "shards")):
        yield Problem(path=RELEASE_FILE, message="two shards of one split have the same number")


def _check_shard(folder: Path, entry: FileEntry, places: _Places | None, *, pixels: bool) -> Iterator[Problem]:
    """Compare a shard with the rows of the manifest that say they are in it, and with its own pixels."""
    light = []
    for table in iter_row_groups(folder / entry.path, "shard"):
        light.append(table.select(_COMPARED))
        for row in table.to_pylist() if pixels else ():
            for message in _pixel_problems(row):
                yield Problem(path=entry.path, message=f"sample {row['sample_id']}: {message}")
    if places is not None:
        key = _shard_key(entry.path)
        found = pa.concat_tables(light) if light else SHARD.empty_table().select(_COMPARED)
        for message in _differences(found, places.get(key) if key else None):
            yield Problem(path=entry.path, message=message)


_COMPARED = ["sample_id", "content_sha256", "mask_sha256", "width", "height", "label_source", "label_confidence"]


def _differences(found: pa.Table, expected: pa.Table | None) -> Iterator[str]:
    rows = [] if expected is None else expected.column("shard_row").to_pylist()
    if expected is None or rows != list(range(len(found))):
        yield f"holds {len(found)} rows, but the manifest places {len(rows)} rows here, or not each in one row"
        return
    for name in _COMPARED:
        differs = pc.not_equal(found.column(name), expected.column(name))
        gone = pc.and_(pc.is_null(found.column(name)), pc.is_valid(expected.column(name)))
        differs = pc.or_(differs.fill_null(False), gone)
        for number in np.flatnonzero(differs.to_numpy()):
            sample = expected.column("sample_id")[int(number)].as_py()
            yield f"row {number}, sample {sample}: {name} differs from the manifest's"


def _pixel_problems(row: dict[str, object]) -> Iterator[str]:
    height, width = int(str(row["height"])), int(str(row["width"]))
    if height * width > MAX_PIXELS:
        yield f"image of {width}x{height} is over the limit of {MAX_PIXELS} pixels"
        return
    yield from _image_problems(_bytes(row, "image"), height, width)
    try:
        mask = decode_mask(_bytes(row, "mask"), height * width)
        if mask.shape != (height, width):
            yield f"mask is {mask.shape[1]}x{mask.shape[0]}, expected {width}x{height}"
        elif mask_sha256(mask) != row["mask_sha256"]:
            yield "mask has another hash than mask_sha256: it was exchanged"
        ignore, teacher = _bytes(row, "ignore"), _bytes(row, "teacher_mask")
        if ignore and decode_mask(ignore, height * width).shape != (height, width):
            yield f"ignore mask is not {width}x{height}"
        if teacher:
            yield from _teacher_problems(decode_mask(teacher, height * width), mask)
    except MaskError as error:
        yield str(error)


def _teacher_problems(teacher: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Iterator[str]:
    if teacher.shape != mask.shape:
        yield f"teacher_mask is {teacher.shape[1]}x{teacher.shape[0]}, the mask {mask.shape[1]}x{mask.shape[0]}"
    elif np.array_equal(teacher, mask):
        yield "teacher_mask is the mask: it must be null where both say the same"


def _bytes(row: dict[str, object], name: str) -> bytes:
    value = row.get(name)  # shards of an older minor version lack columns
    data = value.get("bytes") if isinstance(value, dict) else None
    return data if isinstance(data, bytes) else b""


def _image_problems(data: bytes, height: int, width: int) -> Iterator[str]:
    stated = _jpeg_shape(data)
    if stated != (height, width):
        yield f"image must be a JPEG of {width}x{height}, its header says {stated and f'{stated[1]}x{stated[0]}'}"
        return
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape != (height, width, 3) or not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        yield "image is a damaged JPEG: it does not decode to its end"


def _jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a JPEG, before anything is decoded; None if `data` is no JPEG."""
    if not data.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, place + 1)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        place += 2 + length
    return None
