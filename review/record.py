"""One sample: its row of the manifest, its evidence, its neighbours, and whether its pixels are there."""

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.release import FileEntry, Json, Release
from manifests.stats import CLUSTER_LEVELS
from review.coding import shown
from review.columns import Columns, open_table, reading
from review.query import QueryError

if TYPE_CHECKING:
    from review.catalog import Place

NEIGHBOURS = 6
"""Frames before a sample, and after it, that are told."""
MAX_EVIDENCE = 500
MAX_ITEMS = 200
"""Items of a list (persons, subjects) that are sent."""
MAX_CELL = 1000
"""Characters of a quota cell that can be asked for."""

_GROUPS: Mapping[str, Sequence[str]] = {
    "identity": (
        "content_sha256", "source_uri", "source_sha256", "media_kind", "frame_index", "frame_pts_us", "captured_at",
        "width", "height", "exif_orientation", "aspect_bucket", "dhash64", "group_id", "embedding_model",
        "cluster_path", "cluster_distance",
    ),
    "label": (
        "label_source", "n_persons", "persons", "teacher_id", "teacher_sha256", "mask_sha256", "mask_area_px",
        "mask_components", "label_confidence", "boundary_uncertainty", "student_id", "student_sha256", "student_iou",
        "student_boundary_iou", "temporal_iou",
    ),
    "decision": (
        "decision", "decision_reasons", "decision_by", "verdict", "quota_cell", "inclusion_prob", "sampling_weight",
        "sampling_round", "split", "shard", "shard_row", "run_id",
    ),
    "rights": ("licence", "consent_ref", "consent_status", "retention_until", "subject_ids"),
}  # fmt: skip
_OWN = {"sample_id", "attr", "judge", "embedding_shard", "embedding_row"}


def body(columns: Columns, row: int) -> dict[str, Any]:
    """What the manifest says of a row, in groups; columns that this version does not know stand under `more`."""
    found = columns.row(row)
    groups: dict[str, Any] = {
        group: {name: plain(found[name]) for name in names if name in found} for group, names in _GROUPS.items()
    }
    if isinstance(found.get("dhash64"), int):
        groups["identity"]["dhash64"] = f"{found['dhash64']:016x}"  # a browser's numbers end at 53 bits
    known = {name for names in _GROUPS.values() for name in names} | _OWN
    return {
        **groups,
        "judge": plain(found.get("judge")),
        "attributes": [{"name": shown(name), **plain(said)} for name, said in found["attr"].items()],
        "more": {shown(name): plain(value) for name, value in found.items() if name not in known},
    }


def plain(value: Any) -> Any:
    """A value of Arrow's as JSON: hashes as hex, instants in ISO 8601, numbers that are not finite as null."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, bytes):
        return value[:64].hex()
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value[:MAX_ITEMS]]
    if isinstance(value, dict):
        return {shown(str(key)): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int) else shown(str(value))


def evidence(folder: Path, release: Release, sample_id: str) -> list[Json]:
    """Every assertion on a sample, as the evidence files tell; of two parts that may hold it, both are read."""
    found: list[Json] = []
    for entry in release.files:
        if entry.schema == "attribute_evidence" and str(entry.min_id) <= sample_id <= str(entry.max_id):
            with reading(folder, entry.path):
                found += _assertions(folder, entry, sample_id)
    return found[:MAX_EVIDENCE]


def _assertions(folder: Path, entry: FileEntry, sample_id: str) -> list[Json]:
    file = open_table(folder, entry, "attribute_evidence")
    place = file.schema_arrow.get_field_index("sample_id")
    groups = [number for number in range(file.num_row_groups) if _may_hold(file, number, place, sample_id)]
    if not groups:
        return []
    ids = file.read_row_groups(groups, columns=["sample_id"]).column("sample_id")
    at = np.flatnonzero(pc.equal(ids, sample_id).to_numpy())
    if not len(at):
        return []
    rows = file.read_row_groups(groups).slice(int(at[0]), int(at[-1] - at[0]) + 1).slice(0, MAX_EVIDENCE)
    return [
        {name: plain(value) for name, value in row.items() if name != "sample_id"}
        for row in rows.to_pylist()
        if row["sample_id"] == sample_id
    ]


def _may_hold(file: pq.ParquetFile, group: int, column: int, sample_id: str) -> bool:
    told = file.metadata.row_group(group).column(column).statistics
    return told is None or not told.has_min_max or str(told.min) <= sample_id <= str(told.max)


def pixels(folder: Path, place: "Place | None") -> dict[str, Json]:
    """Which pictures of a sample its shard holds."""
    if place is None:
        return {"image": False, "mask": False, "teacher_mask": False, "ignore": False}
    with reading(folder, place.entry.path):
        file = open_table(folder, place.entry, "shard")
        starts = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        group = int(np.searchsorted(starts, place.row, side="right")) - 1
        wanted = [name for name in ("teacher_mask", "ignore") if name in file.schema_arrow.names]
        row = file.read_row_group(group, columns=wanted).slice(place.row - int(starts[group]), 1).to_pylist()[0]
    there = {name: bool((row.get(name) or {}).get("bytes")) for name in ("teacher_mask", "ignore")}
    return {"image": True, "mask": True, **there}


def neighbours(columns: Columns, row: int) -> tuple[list[int], list[int | None]]:
    """The frames of the same source around a row, in the order of time, and their times in microseconds."""
    source = columns.bits("source_sha256")
    rows = np.flatnonzero(source == source[row])
    times = columns.integers("frame_pts_us")[rows]
    order = np.argsort(times, kind="stable")
    rows, times = rows[order], times[order]
    at = int(np.flatnonzero(rows == row)[0])
    near = [place for place in range(max(0, at - NEIGHBOURS), min(len(rows), at + NEIGHBOURS + 1)) if place != at]
    missing = np.iinfo(np.int64).min
    return [int(rows[place]) for place in near], [
        None if times[place] == missing else int(times[place]) for place in near
    ]


def balanced(release: Release, stats: Mapping[str, Any]) -> list[str]:
    """The names in the quota cells, in their order; older releases do not state them: those of the cells, sorted."""
    stated = stats.get("balanced")
    if isinstance(stated, list) and all(isinstance(name, str) for name in stated):
        return list(stated)
    return sorted({name.partition("=")[0] for name in release.cells} - {CLUSTER_LEVELS[0]})


def split_cell(name: str, heads: Sequence[str]) -> tuple[str, str]:
    """A cell "name=class" as its name, one of `heads` where one fits, and its class."""
    fitting = [head for head in heads if name.startswith(f"{head}=")]
    head = max(fitting, key=len, default=name.partition("=")[0])
    return head, name[len(head) + 1 :]


def rows_of_cell(columns: Columns, cell: str, names: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) which rows are of a cell: "name=class", as release.json counts them, or a whole quota cell.

    Args:
        columns: of the release.
        cell: what is asked for.
        names: of `balanced`.

    Raises:
        QueryError: no such name, or too long a cell.
    """
    if len(cell) > MAX_CELL:
        raise QueryError(f"cell must have at most {MAX_CELL} characters, got {len(cell)}")
    if cell.startswith("["):
        return columns.scan("quota_cell", lambda column: pc.equal(column, cell))
    head, value = split_cell(cell, [CLUSTER_LEVELS[0], *names])
    if head == CLUSTER_LEVELS[0]:
        before = 0
    elif head in names:
        before = len(CLUSTER_LEVELS) + list(names).index(head)
    else:
        raise QueryError(f"cell: unknown name {head!r:.60}; there are {', '.join([CLUSTER_LEVELS[0], *names])[:300]}")
    wanted = [json.dumps(value, ensure_ascii=False), *(["null"] if value == "unknown" else [])]
    wanted += [value] if value.lstrip("-").isdecimal() else []
    items = columns.cells(len(names))
    if items is not None:
        return items[before].chosen(wanted)
    item = r'(?:null|-?[0-9]+|"(?:[^"\\]|\\.)*")'
    pattern = rf"^\[(?:{item},){{{before}}}(?:{'|'.join(map(_literal, wanted))})[,\]]"
    return columns.scan("quota_cell", lambda column: pc.match_substring_regex(column, pattern))


def _literal(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$" else char for char in text)


def rows_of_group(columns: Columns, group: str) -> NDArray[np.bool_]:
    """(N,) which rows are of a group."""
    return columns.scan("group_id", lambda column: pc.equal(column, group))
