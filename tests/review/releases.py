"""Small whole releases, written as the house writes them: drawn figures or real photographs, with every decision."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.mask import components, encode_mask, mask_sha256
from manifests.release import (
    Counts,
    FileEntry,
    Model,
    Release,
    canonical_json,
    fingerprint,
    render_release,
    sha256_hex,
    write_release,
)
from manifests.schema import EVIDENCE, MASK_SPLITS, SCHEMA_NAMES, SCHEMA_VERSION, embedding_schema, manifest_schema
from manifests.shard import PIXELS, ShardRow, aspect_bucket, encode_parquet, shard_table
from manifests.split import split_of
from manifests.stats import rows_by_class, statistics

Mask = NDArray[np.bool_]
ATTRIBUTES = ("apparent_skin_tone", "lighting_level", "num_people")
BALANCED = ("apparent_skin_tone", "lighting_level")
SEED, VAL, TEST = 5, 0.2, 0.2
PER_SHARD, PER_GROUP = 12, 4
DIMENSION = 4
TEACHER = hashlib.sha256(b"teacher").digest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """A frame of a release.

    Attributes:
        number: makes its id.
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool.
        teacher_mask: what the teacher had said, where the mask says something else.
        decision: keep, hold or drop.
        reasons: of the decision.
        group: what stays in one split.
        attributes: class of each of ATTRIBUTES; None where unknown.
        cluster: path.
        audit: whether the pixels of a dropped sample are kept.
        row: further columns of the manifest, as they are.
    """

    number: int
    image: NDArray[np.uint8]
    mask: Mask
    teacher_mask: Mask | None = None
    decision: str = "keep"
    reasons: tuple[str, ...] = ()
    group: str = "video-0"
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    cluster: tuple[int, ...] = (0, 0, 0)
    audit: bool = True
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The id: a hash, so that samples of one source lie far apart."""
        return hashlib.blake2b(f"{self.number}".encode(), digest_size=16).hexdigest()

    @property
    def split(self) -> str:
        """Where the manifest says that it is."""
        return {"hold": "hold", "drop": "dropped"}.get(self.decision) or split_of(self.group, SEED, val=VAL, test=TEST)


def figure(seed: int, shape: tuple[int, int] = (90, 120)) -> tuple[NDArray[np.uint8], Mask]:
    """A head and shoulders before a noisy slope."""
    rng = np.random.default_rng(seed)
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    x, y = int(width * rng.uniform(0.35, 0.65)), int(height * rng.uniform(0.3, 0.45))
    head = max(3, int(height * rng.uniform(0.1, 0.2)))
    cv2.circle(mask, (x, y), head, 1, -1)
    cv2.ellipse(mask, (x, height), (int(head * 2.2), max(2, height - y - head)), 0, 180, 360, (1,), -1)
    image = np.linspace(30, rng.uniform(60, 150), width)[None, :, None] + rng.normal(0, 8, (height, width, 3))
    image = np.where(mask[..., None] > 0, rng.uniform(120, 240, 3) + rng.normal(0, 6, (height, width, 3)), image)
    return np.clip(image, 0, 255).astype(np.uint8), mask > 0


def figures(count: int, seed: int = 0) -> list[Sample]:
    """Drawn samples of every kind: one in five held, one in six dropped (with every other one's pixels kept)."""
    return [_varied(number, *figure(seed * 100_000 + number)) for number in range(count)]


def photographs(data: Path, count: int, side: int = 320) -> list[Sample]:
    """Real photographs of the shared folder with their masks, the longer side reduced to ``side`` pixels."""
    samples = []
    for number, path in enumerate(sorted((data / "images").glob("*.jpg"))[:count]):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(data / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        size = tuple(max(32, round(n * side / max(image.shape[:2]))) for n in image.shape[1::-1])
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        samples.append(_varied(number, small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 127))
    return samples


def _varied(number: int, image: NDArray[np.uint8], mask: Mask) -> Sample:
    decision = "hold" if number % 5 == 4 else "drop" if number % 6 == 3 else "keep"
    reasons = {"hold": ("gate failed",), "drop": ("probably wrong",)}.get(decision, ())
    corrected = decision == "keep" and number % 7 == 0
    light, people = (("dark", "normal", "bright")[number % 3], ("one", "two", None)[number % 3])
    tone = (None, "dark", "medium", "light")[number % 4]
    return Sample(
        number=number,
        image=image,
        mask=mask,
        teacher_mask=np.roll(mask, 3, 1) if corrected else None,
        decision=decision,
        reasons=reasons,
        group=f"video-{number // 3}",
        attributes={"apparent_skin_tone": tone, "lighting_level": light, "num_people": people},
        cluster=(number % 3, number % 6, number % 12),
        audit=number % 12 == 3,
    )


def manifest_row(sample: Sample, place: tuple[int, int] | None) -> dict[str, Any]:
    """The row of a sample in the manifest; ``place`` is the number of its shard and its row there."""
    known = {
        name: {"value": value, "provenance": "unknown" if value is None else "model", "source_id": value and "pixels"}
        for name, value in ((name, sample.attributes.get(name)) for name in ATTRIBUTES)
    }
    height, width = sample.mask.shape
    share = (sample.number % 10) / 10
    judge = {"q": share, "miss": 0.01, "extra": 0.02, "stability": 0.01, "fold": 0, "gate": "passed"}
    return {
        "sample_id": sample.id,
        "content_sha256": hashlib.sha256(sample.image.tobytes()).digest(),
        "source_uri": f"/videos/{sample.group}.mp4",
        "source_sha256": hashlib.sha256(sample.group.encode()).digest(),
        "media_kind": "video",
        "frame_index": sample.number,
        "frame_pts_us": sample.number * 100_000,
        "width": width,
        "height": height,
        "exif_orientation": 1,
        "aspect_bucket": aspect_bucket(width, height),
        "dhash64": int.from_bytes(hashlib.blake2b(sample.id.encode(), digest_size=8).digest(), "big"),
        "group_id": sample.group,
        "embedding_model": "test",
        "cluster_path": list(sample.cluster),
        "cluster_distance": share,
        "attr": known,
        "n_persons": None,
        "label_source": "pseudo",
        "teacher_id": "teacher-1",
        "teacher_sha256": TEACHER,
        "mask_sha256": None if place is None else mask_sha256(sample.mask),
        "mask_area_px": int(sample.mask.sum()),
        "mask_components": components(sample.mask),
        "label_confidence": round(0.5 + share / 2, 3),
        "boundary_uncertainty": round(share / 3, 3),
        "student_id": "fold-0",
        "student_sha256": hashlib.sha256(b"student").digest(),
        "student_iou": round(1 - share / 2, 3),
        "student_boundary_iou": round(0.9 - share / 2, 3),
        "decision": sample.decision,
        "decision_reasons": list(sample.reasons),
        "decision_by": "judge",
        "verdict": "correct" if sample.teacher_mask is not None else sample.decision,
        "judge": {**judge, "cluster": str(sample.cluster[0]), "calibrated": True, "student_area": 0.3},
        "quota_cell": canonical_json([*sample.cluster, *(sample.attributes.get(n) for n in BALANCED)]).decode(),
        "inclusion_prob": 0.5,
        "sampling_weight": 2.0,
        "sampling_round": 1,
        "split": sample.split,
        "licence": "CC-BY-4.0",
        "consent_status": "granted",
        "retention_until": date(2099, 1, 1),
        "subject_ids": [f"person-{sample.group}"],
        "shard": None if place is None else place[0],
        "shard_row": None if place is None else place[1],
        "run_id": "0123456789abcdef",
        **sample.row,
    }


def shard_row(sample: Sample) -> ShardRow:
    """The row of a sample in its shard."""
    height, width = sample.mask.shape
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    row = manifest_row(sample, (0, 0))
    return ShardRow(
        sample_id=sample.id,
        image_jpeg=bytes(jpeg),
        mask_png=encode_mask(sample.mask),
        ignore_png=None,
        teacher_mask_png=None if sample.teacher_mask is None else encode_mask(sample.teacher_mask),
        width=width,
        height=height,
        aspect_bucket=aspect_bucket(width, height),
        weight=1.0,
        label_source=row["label_source"],
        label_confidence=row["label_confidence"],
        content_sha256=row["content_sha256"],
        mask_sha256=mask_sha256(sample.mask),
    )


def write(root: Path, samples: Sequence[Sample], *, parents: tuple[str, ...] = (), seed: int = SEED) -> Path:
    """Write a release of the samples below ``root/releases`` and return its folder; equal samples, equal bytes."""
    ordered = sorted(samples, key=lambda sample: sample.id)
    files, places = _shards(ordered)
    rows = [manifest_row(sample, places.get(sample.id)) for sample in ordered]
    kept = [row for row in rows if row["decision"] != "drop"]
    for at, row in enumerate(kept):
        row |= {"embedding_shard": 0, "embedding_row": at}
    schema = manifest_schema(ATTRIBUTES)
    table = pa.Table.from_pylist(rows, schema)
    dropped = [row for row in rows if row["decision"] == "drop"]
    vectors = [{"sample_id": row["sample_id"], "vector": [0.5, 0.25, 0.0, 1.0]} for row in kept]
    for kind, content in (
        ("manifest", pa.Table.from_pylist(kept, schema)),
        ("dropped", pa.Table.from_pylist(dropped, schema)),
        ("evidence", pa.Table.from_pylist(_evidence(rows), EVIDENCE)),
        ("embeddings", pa.Table.from_pylist(vectors, embedding_schema(DIMENSION))),
    ):
        files[f"{kind}/part-00000-of-00001.parquet"] = (content, 6)
    quotas = Counter(row["quota_cell"] for row in rows)
    actual = rows_by_class(BALANCED, Counter(row["quota_cell"] for row in rows if row["decision"] == "keep"))
    config = {"select": {"attributes": list(BALANCED)}, "publish": {"val": VAL, "test": TEST, "audit": 50}}
    lineage = {"run_id": "0123456789abcdef", "stages": {}, "set_aside": {}, "first_set_aside": []}
    judge = {"format": 2, "judged": len(rows), "calibrated": True, "method": "audit", "folds": [], "clusters": {}}
    documents = {
        "stats.json": statistics(table, judge, BALANCED),
        "config.json": {"config": config, "seed": seed, "target_size": len(rows)},
        "lineage.json": lineage,
    }
    entries = {name: _encoded(name, *content) for name, content in files.items()}
    entries |= {name: _document(name, canonical_json(value)) for name, value in documents.items()}
    counts = Counter(row["decision"] for row in rows)
    release = Release(
        name="people",
        schemas={**dict.fromkeys(SCHEMA_NAMES, SCHEMA_VERSION), "release": "1.0"},
        config_fingerprint=sha256_hex(canonical_json(config)),
        parents=parents,
        run_id="0123456789abcdef",
        tool={"name": "curate", "version": "0"},
        packages={"pyarrow": pa.__version__},
        seed=seed,
        inputs={"sources": len({row["source_uri"] for row in rows})},
        models=(Model(role="teacher", id="teacher-1", sha256=TEACHER.hex(), source="test", licence="unknown"),),
        counts=Counts(
            read=len(rows) + 6,
            undecodable=1,
            duplicate=2,
            not_sampled=3,
            dropped=counts["drop"],
            held=counts["hold"],
            kept=counts["keep"],
        ),
        splits={split: sum(1 for s in ordered if s.id in places and _folder(s) == split) for split in MASK_SPLITS},
        cells={n: {"target": t, "actual": actual[n]} for n, t in rows_by_class(BALANCED, quotas).items()},
        files=tuple(entry for _, (entry, _) in sorted(entries.items())),
        erasures=(),
    )
    folder = root / "releases" / f"r-{fingerprint(render_release(release))[:12]}"
    for name, (_, data) in entries.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_release(folder, render_release(release))
    return folder


def _folder(sample: Sample) -> str:
    return "audit" if sample.split == "dropped" else sample.split


def _shards(ordered: Sequence[Sample]) -> tuple[dict[str, tuple[pa.Table, int]], dict[str, tuple[int, int]]]:
    files: dict[str, tuple[pa.Table, int]] = {}
    places: dict[str, tuple[int, int]] = {}
    for split in MASK_SPLITS:
        mine = [s for s in ordered if _folder(s) == split and (split != "audit" or s.audit)]
        count = -(-len(mine) // PER_SHARD)
        for shard in range(count):
            part = mine[shard * PER_SHARD : (shard + 1) * PER_SHARD]
            places |= {sample.id: (shard, row) for row, sample in enumerate(part)}
            table = shard_table([shard_row(sample) for sample in part])
            files[f"shards/{split}/{shard:05d}-of-{count:05d}.parquet"] = (table, PER_GROUP)
    return files, places


def _evidence(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": row["sample_id"],
            "name": name,
            "value": said["value"],
            "provenance": said["provenance"],
            "source_id": said["source_id"],
            "source_sha256": row["source_sha256"],
            "recorded_at": datetime(2026, 1, 2, tzinfo=UTC),
        }
        for row in rows
        for name, said in sorted(row["attr"].items())
        if said["value"] is not None
    ]


def _encoded(name: str, table: pa.Table, group: int) -> tuple[FileEntry, bytes]:
    plain = [column for column in PIXELS if column in table.column_names]
    data = encode_parquet(table, row_group_rows=group, plain=plain)
    ids = table.column("sample_id").to_pylist()
    schema = table.schema.metadata[b"curate.schema"].decode()
    entry = FileEntry(
        path=name,
        bytes=len(data),
        sha256=sha256_hex(data),
        rows=len(ids),
        min_id=min(ids, default=None),
        max_id=max(ids, default=None),
        schema=schema,
    )
    return entry, data


def _document(name: str, data: bytes) -> tuple[FileEntry, bytes]:
    return FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data)), data
