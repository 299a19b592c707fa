"""A synthetic release of a million rows for the review's benchmark: its tables are whole, its pixels those of `val`.

Frames of videos, 50 each, with 20 attributes (2 to 8 classes with long tails, unknown in 10 %), a judge, reasons and
quotas. One frame in ten is dropped and one in twenty held, more of them where the first attribute has its last class.
Only rows of `val` (half a percent) have a shard: their JPEGs (640 x 360) and masks are photographs of the shared
folder, or smooth noise where it is absent. The second version changes 1 % of the decisions, masks and classes, and
lacks 0.5 % of the rows. There are no embeddings, and evidence of two attributes alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.shared import SHARED
from manifests.mask import encode_mask, mask_sha256
from manifests.release import (
    Counts,
    FileEntry,
    Release,
    canonical_json,
    fingerprint,
    render_release,
    sha256_hex,
    write_release,
)
from manifests.schema import ATTRIBUTE, EVIDENCE, JUDGE, SCHEMA_NAMES, SCHEMA_VERSION, manifest_schema
from manifests.shard import PIXELS, ShardRow, encode_parquet, shard_table
from manifests.split import split_of
from manifests.stats import rows_by_class, statistics

CLASSES = (2, 3, 3, 4, 4, 5, 6, 8, 2, 3, 4, 5, 2, 3, 6, 4, 3, 2, 5, 8)
ATTRIBUTES = tuple(f"attribute_{number:02d}" for number in range(len(CLASSES)))
BALANCED = ATTRIBUTES[:8]
VIDEO, PART, GROUP, SHARD_ROWS = 50, 250_000, 50_000, 2048
VAL, TEST, SEED = 0.005, 0.02, 11
WIDTH, HEIGHT = 640, 360
PICTURES = 64
REASONS = ("part-missing", "part-surplus", "doubt", "unstable")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """The rows of a release before they are tables, in the order of their ids; N of them.

    Attributes:
        ids: (N, 16) uint8, ascending.
        video: (N,) number of the video.
        codes: (N, 20) class of each attribute; -1 is unknown.
        decision: (N,) 0 keep, 1 drop, 2 hold.
        numbers: (N, 8) float32 in [0, 1].
        salt: (N,) uint64: what changes a mask.
    """

    ids: NDArray[np.uint8]
    video: NDArray[np.int64]
    codes: NDArray[np.int8]
    decision: NDArray[np.int8]
    numbers: NDArray[np.float32]
    salt: NDArray[np.uint64]

    def part(self, rows: NDArray[np.int64] | slice) -> Rows:
        """Some of the rows."""
        return Rows(**{name: getattr(self, name)[rows] for name in self.__slots__})


def draw(size: int, version: int) -> Rows:
    """The rows of a version, 1 or 2; equal arguments, equal rows."""
    rng = np.random.default_rng(SEED)
    ids = np.frombuffer(np.sort(np.frombuffer(rng.bytes(size * 16), "S16")).tobytes(), np.uint8).reshape(size, 16)
    codes = np.empty((size, len(CLASSES)), np.int8)
    for at, count in enumerate(CLASSES):
        tail = np.arange(1, count + 1) ** -1.2
        codes[:, at] = rng.choice(count, size, p=tail / tail.sum())
        codes[rng.random(size) < 0.1, at] = -1
    numbers = rng.random((size, 8), np.float32)
    worse = np.where(codes[:, 0] == CLASSES[0] - 1, 1.3, 1.0)
    chance = rng.random(size) / worse
    decision = np.where(chance < 0.1, 1, np.where(chance < 0.15, 2, 0)).astype(np.int8)
    rows = Rows(
        ids=ids,
        video=rng.integers(0, size // VIDEO, size),
        codes=codes,
        decision=decision,
        numbers=numbers,
        salt=np.zeros(size, np.uint64),
    )
    return rows if version == 1 else _changed(rows, rng)


def _changed(rows: Rows, rng: np.random.Generator) -> Rows:
    size = len(rows.ids)
    for values in (rows.decision, rows.salt, rows.codes[:, 3]):
        some = rng.random(size) < 0.01
        values[some] = rng.integers(0, 3, int(some.sum()))
    return rows.part(np.flatnonzero(rng.random(size) >= 0.005))


def write(root: Path, size: int, version: int = 1, parents: Sequence[str] = ()) -> Path:
    """Write a version below ``root/releases`` and return its folder; one that is there already is not written again."""
    folder = root / "releases" / f"bench-{size}-v{version}"
    if (folder / "release.json").is_file():
        return folder
    rows = draw(size, version)
    splits = np.array([split_of(group_of(v), SEED, val=VAL, test=TEST) for v in range(size // VIDEO)])
    split = np.where(rows.decision == 1, "dropped", np.where(rows.decision == 2, "hold", splits[rows.video]))
    pictured = np.flatnonzero(split == "val")
    shard, at = np.full(len(rows.ids), -1, np.int32), np.full(len(rows.ids), -1, np.int32)
    shard[pictured], at[pictured] = np.divmod(np.arange(len(pictured)), SHARD_ROWS)
    entries = _shards(folder, rows, pictured)
    tables = []
    for name, wanted in (("manifest", rows.decision != 1), ("dropped", rows.decision == 1)):
        mine = np.flatnonzero(wanted)
        for start in range(0, len(mine), PART):
            part = mine[start : start + PART]
            table = manifest_table(rows.part(part), split[part], shard[part], at[part])
            path = f"{name}/part-{start // PART:05d}-of-{-(-len(mine) // PART):05d}.parquet"
            entries.append(_file(folder, path, table, GROUP))
            tables.append(table.select(["decision", "verdict", "split", "source_uri", "attr", "quota_cell"]))
    for start in range(0, len(rows.ids), PART):
        entries.append(_file(folder, f"evidence/part-{start // PART:05d}.parquet", _evidence(rows, start), GROUP))
    _commit(folder, pa.concat_tables(tables), entries, rows, len(pictured), parents)
    return folder


def group_of(video: int) -> str:
    """The group of a video."""
    return hashlib.sha256(f"video-{video}".encode()).hexdigest()


def hexed(ids: NDArray[np.uint8]) -> pa.StringArray:
    """(N,) the ids as text."""
    return pa.array([bytes(item).hex() for item in ids], pa.string())


def _words(codes: NDArray[np.integer], values: Sequence[str]) -> pa.StringArray:
    return pa.array(values, pa.string()).take(pa.array(codes, pa.int64(), mask=codes < 0))


def _binary(data: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(data), [None, pa.py_buffer(data.tobytes())])


def _attributes(rows: Rows) -> pa.StructArray:
    people = rows.ids[:, 0] < 13  # one in twenty
    fields = []
    for at, count in enumerate(CLASSES):
        codes = rows.codes[:, at]
        who = np.where(codes < 0, 2, people.astype(int))
        columns = [
            _words(codes, [f"class_{number}" for number in range(count)]),
            _words(who, ["model", "human", "unknown"]),
            pa.array(rows.numbers[:, at % 8], pa.float32(), mask=codes < 0),
            _words(np.where(codes < 0, -1, 0), ["pixels"]),
        ]
        fields.append(pa.StructArray.from_arrays(columns, fields=list(ATTRIBUTE)))
    kind = manifest_schema(ATTRIBUTES).field("attr").type
    return pa.StructArray.from_arrays(fields, fields=list(kind))


def _lists(lengths: NDArray[np.int64], items: pa.Array, kind: pa.DataType) -> pa.ListArray:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), items, type=kind)


def manifest_table(rows: Rows, split: NDArray[np.str_], shard: NDArray[np.int32], at: NDArray[np.int32]) -> pa.Table:
    """The rows as a table of schema manifest."""
    schema = manifest_schema(ATTRIBUTES)
    n = len(rows.ids)
    groups = pa.array([group_of(video) for video in rows.video.tolist()])
    sources = np.array([list(bytes.fromhex(group_of(video))) for video in rows.video.tolist()], np.uint8).reshape(n, 32)
    frame = rows.ids[:, 1].astype(np.int32) % VIDEO
    path = np.stack([rows.video % 40, rows.video % 400, rows.video % 2000], 1).astype(np.int32)
    word = rows.ids[:, 4:12].copy().view(np.uint64).ravel()
    masks = np.concatenate([rows.ids, rows.ids ^ rows.salt.astype(np.uint8)[:, None]], 1)
    removed = rows.decision > 0
    two = removed & (rows.ids[:, 3] < 64)
    lengths = removed.astype(np.int64) + two
    reasons = (rows.ids[np.repeat(np.arange(n), lengths), 2] + np.concatenate([np.arange(k) for k in lengths])) % 4
    cells = [
        canonical_json([*map(int, p), *(None if c < 0 else f"class_{c}" for c in codes)]).decode()
        for p, codes in zip(path.tolist(), rows.codes[:, : len(BALANCED)].tolist(), strict=True)
    ]
    q, confidence, blur, iou, boundary, distance, miss, extra = rows.numbers.T
    judge = {
        "q": pa.array(q, pa.float32()),
        "miss": pa.array(miss / 4, pa.float32()),
        "extra": pa.array(extra / 4, pa.float32()),
        "stability": pa.array(blur / 10, pa.float32()),
        "fold": pa.array(path[:, 0] % 4, pa.int16()),
        "cluster": pa.array(path[:, 0]).cast(pa.string()),
        "gate": _words((path[:, 0] % 5 == 0).astype(int), ["passed", "failed"]),
        "calibrated": pa.array(np.ones(n, np.bool_)),
        "student_area": pa.array(boundary, pa.float32()),
    }
    constant = {
        "media_kind": "video", "width": WIDTH, "height": HEIGHT, "exif_orientation": 1, "aspect_bucket": "16:9",
        "embedding_model": "none", "label_source": "pseudo", "teacher_id": "teacher", "teacher_sha256": bytes(32),
        "student_id": "student", "student_sha256": bytes(32), "inclusion_prob": 0.5, "sampling_weight": 2.0,
        "sampling_round": 1, "licence": "CC-BY-4.0", "consent_status": "granted", "retention_until": date(2099, 1, 1),
        "run_id": "0123456789abcdef", "decision_by": "judge",
    }  # fmt: skip
    columns: dict[str, pa.Array] = {
        "sample_id": hexed(rows.ids),
        "content_sha256": _binary(np.concatenate([rows.ids[:, ::-1], rows.ids], 1)),
        "source_uri": pa.array([f"/videos/{video}.mp4" for video in rows.video.tolist()]),
        "source_sha256": _binary(sources),
        "frame_index": pa.array(frame),
        "frame_pts_us": pa.array(frame.astype(np.int64) * 40_000),
        "dhash64": pa.array(word & ~np.uint64(7)),
        "group_id": groups,
        "cluster_path": _lists(np.full(n, 3), pa.array(path.ravel()), schema.field("cluster_path").type),
        "cluster_distance": pa.array(distance, pa.float32()),
        "attr": _attributes(rows),
        "n_persons": pa.array(rows.ids[:, 5].astype(np.int16) % 4),
        "mask_sha256": _binary(masks),
        "mask_area_px": pa.array((iou * WIDTH * HEIGHT / 2).astype(np.int32)),
        "mask_components": pa.array(1 + (rows.ids[:, 6].astype(np.int16) // 64)),
        "label_confidence": pa.array(0.5 + confidence / 2, pa.float32()),
        "boundary_uncertainty": pa.array(blur, pa.float32()),
        "student_iou": pa.array(iou, pa.float32(), mask=rows.ids[:, 7] < 5),
        "student_boundary_iou": pa.array(boundary, pa.float32()),
        "decision": _words(rows.decision, ["keep", "drop", "hold"]),
        "decision_reasons": _lists(lengths, _words(reasons, REASONS), schema.field("decision_reasons").type),
        "verdict": _words(rows.decision, ["keep", "drop", "hold"]),
        "judge": pa.StructArray.from_arrays(list(judge.values()), fields=list(JUDGE)),
        "quota_cell": pa.array(cells),
        "split": pa.array(split.tolist()),
        "subject_ids": _lists(np.ones(n, np.int64), groups, schema.field("subject_ids").type),
        "shard": pa.array(shard, mask=shard < 0),
        "shard_row": pa.array(at, mask=at < 0),
    }
    arrays = [_column(field, columns, constant, n) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(field: pa.Field, columns: dict[str, pa.Array], constant: dict[str, Any], n: int) -> pa.Array:
    if field.name in columns:
        return columns[field.name]
    return pa.repeat(pa.scalar(constant.get(field.name), field.type), n)


def _evidence(rows: Rows, start: int) -> pa.Table:
    part = rows.part(slice(start, start + PART))
    n = len(part.ids)
    columns = {
        "sample_id": hexed(np.repeat(part.ids, 2, 0)),
        "name": _words(np.tile([0, 1], n), ATTRIBUTES[:2]),
        "value": _words(part.codes[:, :2].ravel(), [f"class_{number}" for number in range(8)]),
        "provenance": pa.repeat(pa.scalar("model"), 2 * n),
        "source_id": pa.repeat(pa.scalar("pixels"), 2 * n),
        "recorded_at": pa.repeat(pa.scalar(datetime(2026, 1, 2, tzinfo=UTC), pa.timestamp("us", tz="UTC")), 2 * n),
    }
    return pa.Table.from_arrays([_column(field, columns, {}, 2 * n) for field in EVIDENCE], schema=EVIDENCE)


def pictures() -> list[tuple[bytes, bytes, bytes]]:
    """Some (JPEG, mask as PNG, hash of the mask)."""
    paths = sorted((SHARED / "data" / "images").glob("*.jpg"))[:PICTURES]
    made = []
    for number in range(PICTURES):
        image = cv2.imread(str(paths[number % len(paths)])) if paths else None
        if image is None:
            image = np.random.default_rng(number).integers(0, 255, (22, 40, 3), np.uint8)
        image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.ellipse(mask, (WIDTH // 2, HEIGHT), (100 + number, 300), 0, 0, 360, (1,), -1)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        made.append((bytes(jpeg), encode_mask(mask > 0), mask_sha256(mask > 0)))
    return made


def _shards(folder: Path, rows: Rows, pictured: NDArray[np.int64]) -> list[FileEntry]:
    made = pictures()
    entries = []
    for start in range(0, len(pictured), SHARD_ROWS):
        part = []
        for row in pictured[start : start + SHARD_ROWS].tolist():
            jpeg, png, digest = made[row % PICTURES]
            part.append(
                ShardRow(
                    sample_id=bytes(rows.ids[row]).hex(),
                    image_jpeg=jpeg,
                    mask_png=png,
                    ignore_png=None,
                    width=WIDTH,
                    height=HEIGHT,
                    aspect_bucket="16:9",
                    weight=1.0,
                    label_source="pseudo",
                    label_confidence=None,
                    content_sha256=bytes(32),
                    mask_sha256=digest,
                )
            )
        path = f"shards/val/{start // SHARD_ROWS:05d}-of-{-(-len(pictured) // SHARD_ROWS):05d}.parquet"
        entries.append(_file(folder, path, shard_table(part), 64, plain=PIXELS))
    return entries


def _file(folder: Path, path: str, table: pa.Table, group: int, plain: Sequence[str] = ()) -> FileEntry:
    data = encode_parquet(table, row_group_rows=group, plain=plain)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    ids = table.column("sample_id")
    return FileEntry(
        path=path,
        bytes=len(data),
        sha256=sha256_hex(data),
        rows=len(table),
        min_id=ids[0].as_py(),
        max_id=ids[-1].as_py(),
        schema=table.schema.metadata[b"curate.schema"].decode(),
    )


def _commit(
    folder: Path, table: pa.Table, entries: list[FileEntry], rows: Rows, pictured: int, parents: Sequence[str]
) -> None:
    cells = Counter(table.column("quota_cell").to_pylist())
    kept = Counter(table.filter(pc.equal(table.column("decision"), "keep")).column("quota_cell").to_pylist())
    actual = rows_by_class(BALANCED, kept)
    clusters = {str(n): {"gate": "failed" if n % 5 == 0 else "passed", "noise": [0.1, 0.05, 0.2]} for n in range(40)}
    judge = {"format": 2, "judged": len(table), "calibrated": True, "clusters": clusters}
    config = {"select": {"attributes": list(BALANCED)}, "publish": {"val": VAL, "test": TEST, "audit": 0}}
    documents = {
        "stats.json": statistics(table, judge, BALANCED),
        "config.json": {"config": config, "seed": SEED, "target_size": len(table)},
    }
    for name, value in documents.items():
        data = canonical_json(json.loads(json.dumps(value)))
        (folder / name).write_bytes(data)
        entries.append(FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data)))
    counts = Counter(rows.decision.tolist())
    release = Release(
        name=folder.name,
        schemas={**dict.fromkeys(SCHEMA_NAMES, SCHEMA_VERSION), "release": "1.0"},
        config_fingerprint=sha256_hex(canonical_json(config)),
        parents=tuple(parents),
        run_id="0123456789abcdef",
        tool={"name": "curate", "version": "0"},
        packages={"pyarrow": pa.__version__},
        seed=SEED,
        inputs={"synthetic": True},
        models=(),
        counts=Counts(
            read=len(table) + 10,
            undecodable=1,
            duplicate=2,
            not_sampled=7,
            dropped=counts[1],
            held=counts[2],
            kept=counts[0],
        ),
        splits={"train": 0, "val": pictured, "test": 0, "hold": 0, "audit": 0},
        cells={n: {"target": t, "actual": actual[n]} for n, t in rows_by_class(BALANCED, cells).items()},
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        erasures=(),
    )
    write_release(folder, render_release(release))


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of a release."""
    return fingerprint((folder / "release.json").read_bytes())
