"""The publish stage: shards with pixels and final masks, each written by one task that fetches its own frames.

A shard holds sources in a mixed order, the frames of each together: few shards decode a video, and each is a mixture;
inside a shard rows are sorted by sample id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.mask import components, decode_mask, decode_soft, encode_mask, mask_sha256
from manifests.shard import PIXELS, ROW_GROUP_ROWS, ShardRow, aspect_bucket, shard_table
from manifests.split import split_of
from pipeline.embed import encode_jpeg, frames_of
from pipeline.errors import StageError
from pipeline.frames import ScanConfig
from pipeline.label import resize_soft
from pipeline.stage import Output, Span, Task, read_span
from students.agreement import correct

SPLITS = ("train", "val", "test", "hold", "audit")
MAX_PIXELS = 1 << 28
SHARD_PIXELS = 1 << 30
"""Most pixels of a shard: about half a gigabyte of JPEG."""

PLAN = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("content_sha256", pa.binary(32), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("media_kind", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("label_confidence", pa.float32()),
        pa.field("human", pa.binary()),
        pa.field("human_ignore", pa.binary()),
    ]
)
"""What goes where; ``human`` is the mask that a person drew of an audited row."""
PUBLISHED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("shard_row", pa.int32(), nullable=False),
        pa.field("mask_sha256", pa.binary(32), nullable=False),
        pa.field("mask_area_px", pa.int32(), nullable=False),
        pa.field("mask_components", pa.int16(), nullable=False),
    ]
)


class Shard(NamedTuple):
    """One shard of a release.

    Attributes:
        split: its folder below ``shards/``.
        number: of the shard within its split.
        shards: of the split.
        start: its first row in the plan.
        stop: behind its last row in the plan.
    """

    split: str
    number: int
    shards: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    """Settings of the release.

    Attributes:
        rows: samples per shard.
        val: share of the groups (sources) in the validation split.
        test: share of the groups in the test split.
        audit: most dropped samples per group of clusters whose pixels are kept for review.
        quality: JPEG quality of the images.
        licence: of the images, as the manifest states it.
        consent: of the people shown, as the manifest states it.
    """

    rows: int = 2048
    val: float = 0.05
    test: float = 0.05
    audit: int = 50
    quality: int = 95
    licence: str = "unknown"
    consent: str = "unknown"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.audit < 0 or not 1 <= self.quality <= 100:
            raise ValueError(
                "publish needs rows >= 1, audit >= 0 and quality in 1..100; "
                f"got {self.rows}, {self.audit}, {self.quality}"
            )
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ValueError(
                f"publish.val and publish.test must be >= 0 and leave a train split; got {self.val}, {self.test}"
            )
        if not self.licence or not self.consent:
            raise ValueError("publish.licence and publish.consent must not be empty; say 'unknown' where they are")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """The work of the publish stage; a task is (its rows of the plan, label parts…, score parts…)."""

    name: ClassVar[str] = "publish"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "opencv-python-headless", "pillow", "pyarrow")

    config: PublishConfig
    scan: ScanConfig
    label_rows: int

    def open(self) -> Callable[[Task], Output]:
        """The function that writes a shard."""
        return self._run

    def _run(self, task: Task) -> Output:
        plan = read_span(task.spans[0])
        rows = plan.column("row").to_pylist()
        masks = _Masks(task.spans[1:], rows, self.label_rows)
        faults: list[dict[str, Any]] = []
        done: list[tuple[int, ShardRow, dict[str, Any]]] = []
        for index, pixels in frames_of(plan, self.scan, faults, "publish"):
            facts = plan.slice(index, 1).to_pylist()[0]
            done.append((rows[index], *self._sample(pixels, facts, masks)))
        if faults:
            first = faults[0]
            raise StageError(
                f"{first['source']}: {first['message']}; put the source back, or remove it from the input and run again"
            )
        done.sort(key=lambda item: item[1].sample_id)
        published = [{**facts, "row": row, "shard_row": i} for i, (row, _, facts) in enumerate(done)]
        return Output(
            table=shard_table([sample for _, sample, _ in done]),
            extra={"rows": pa.Table.from_pylist(published, schema=PUBLISHED)},
            row_group_rows=ROW_GROUP_ROWS,
            plain=PIXELS,
        )

    def _sample(
        self, pixels: NDArray[np.uint8], facts: Mapping[str, Any], masks: _Masks
    ) -> tuple[ShardRow, dict[str, Any]]:
        height, width = pixels.shape[:2]
        teacher_png, student_png = masks.of(facts["row"])
        human = facts["human"]
        if human is None:
            mask, ignore = final_mask(facts["verdict"], teacher_png, student_png, height, width)
        else:
            mask, ignore = human_mask(human, facts["human_ignore"], height, width)
        teacher, digest = decode_mask(teacher_png, MAX_PIXELS), mask_sha256(mask)
        sample = ShardRow(
            sample_id=facts["sample_id"],
            image_jpeg=encode_jpeg(pixels, self.config.quality),
            mask_png=encode_mask(mask),
            ignore_png=encode_mask(ignore) if ignore is not None else None,
            width=width,
            height=height,
            aspect_bucket=aspect_bucket(width, height),
            weight=facts["weight"],
            label_source="pseudo" if human is None else "human",
            label_confidence=facts["label_confidence"] if human is None else None,
            content_sha256=facts["content_sha256"],
            mask_sha256=digest,
            teacher_mask_png=None if np.array_equal(teacher, mask) else encode_mask(teacher),
        )
        out = {"sample_id": facts["sample_id"], "split": facts["split"], "shard": facts["shard"], "mask_sha256": digest}
        return sample, out | {"mask_area_px": int(mask.sum()), "mask_components": min(components(mask), 32767)}


def final_mask(
    verdict: str, teacher_png: bytes, student_png: bytes | None, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """The mask that is published, (H, W) bool, and the pixels no loss may use (None where there are none).

    The teacher's, except where the verdict is ``correct``: there the student's confident disagreement replaces it.
    """
    mask = decode_mask(teacher_png, MAX_PIXELS)
    if mask.shape != (height, width):
        raise StageError(f"a pseudo label has shape {mask.shape}, its frame {(height, width)}; remove the label folder")
    if verdict != "correct" or student_png is None:
        return mask, None
    student = resize_soft(decode_soft(student_png, MAX_PIXELS), height, width)
    corrected, ignore = correct(mask, student)
    return corrected, ignore if ignore.any() else None


def human_mask(
    human_png: bytes, ignore_png: bytes | None, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """The mask that a person drew, (H, W) bool, and the pixels they left out (None where there are none)."""
    mask = decode_mask(human_png, MAX_PIXELS)
    ignore = None if ignore_png is None else decode_mask(ignore_png, MAX_PIXELS)
    if mask.shape != (height, width) or (ignore is not None and ignore.shape != mask.shape):
        raise StageError(f"a human mask has shape {mask.shape}, its frame {(height, width)}; remove the audit folder")
    return mask, ignore


def publish_plan(
    chosen: pa.Table,
    labels: pa.Table,
    verdicts: pa.Table,
    config: PublishConfig,
    seed: int,
    audited: pa.Table | None = None,
) -> tuple[pa.Table, list[Shard]]:
    """Which row goes into which shard.

    Args:
        chosen: the chosen frames.
        labels: their label rows (row-aligned).
        verdicts: their verdict rows (row-aligned).
        config: shard size and splits.
        seed: of the splits.
        audited: row, used, mask and ignore of the audited rows; None without an audit.

    Returns:
        The plan (schema ``PLAN``), and the shards in its order.
    """
    related = chosen.column("group_id").to_pylist()
    decisions = verdicts.column("decision").to_pylist()
    audit = _audit_rows(chosen, labels, decisions, config)
    placed: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, decision in enumerate(decisions):
        if decision == "keep":
            placed[split_of(related[row], seed, val=config.val, test=config.test)].append(row)
        elif decision == "hold":
            placed["hold"].append(row)
        elif row in audit:
            placed["audit"].append(row)
    sizes = (chosen.column(name).to_numpy().astype(np.int64) for name in ("width", "height"))
    pixels = np.multiply(*sizes)
    shards: list[Shard] = []
    order: list[tuple[str, int, int]] = []
    for split in SPLITS:
        rows = placed[split]
        parts = _cut(rows, pixels, config.rows)
        for shard, part in enumerate(parts):
            shards.append(Shard(split, shard, len(parts), len(order), len(order) + len(part)))
            order += [(split, shard, row) for row in part]
    take = pa.array([row for _, _, row in order], pa.int64())
    columns = {name: chosen.column(name).take(take) for name in PLAN.names if name in chosen.column_names}
    columns |= {
        "row": take,
        "split": pa.array([split for split, _, _ in order], pa.string()),
        "shard": pa.array([shard for _, shard, _ in order], pa.int32()),
        "verdict": verdicts.column("verdict").take(take),
        "weight": verdicts.column("weight").take(take),
        "label_confidence": labels.column("label_confidence").take(take),
        **_human(take.to_pylist(), audited),
    }
    return pa.table({name: columns[name] for name in PLAN.names}).cast(PLAN), shards


def _human(rows: Sequence[int], audited: pa.Table | None) -> dict[str, pa.Array]:
    """The human masks of the rows of a plan."""
    drawn = {row["row"]: row for row in (audited.to_pylist() if audited is not None else ()) if row["used"]}
    masks = {"human": "mask", "human_ignore": "ignore"}
    return {
        name: pa.array([drawn[row][column] if row in drawn else None for row in rows], pa.binary())
        for name, column in masks.items()
    }


def publish_spans(
    plan_uri: str,
    shard: Shard,
    rows: Sequence[int],
    labels: Sequence[str],
    scores: Sequence[str],
    label_rows: int,
) -> tuple[Span, ...]:
    """What the task of one shard reads: its rows of the plan, then pairs of the label and score parts of these."""
    parts = sorted({row // label_rows for row in rows[shard.start : shard.stop]})
    pairs = [Span(uri=uris[part]) for part in parts for uris in (labels, scores)]
    return (Span(uri=plan_uri, start=shard.start, stop=shard.stop), *pairs)


def _cut(rows: Sequence[int], pixels: NDArray[np.int64], most: int) -> list[list[int]]:
    """Rows in runs of at most ``most`` rows and, unless one alone has more, ``SHARD_PIXELS`` pixels."""
    parts: list[list[int]] = []
    held = 0
    for row in rows:
        if not parts or len(parts[-1]) >= most or held + pixels[row] > SHARD_PIXELS:
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += int(pixels[row])
    return parts


class _Masks:
    """Masks of label parts and student masks of score parts, one pair of parts in memory at a time."""

    def __init__(self, spans: Sequence[Span], rows: Sequence[int], label_rows: int) -> None:
        parts = sorted({row // label_rows for row in rows})
        self._spans = dict(zip(parts, zip(spans[::2], spans[1::2], strict=True), strict=True))
        self._label_rows = label_rows
        self._part = -1
        self._pair: list[list[Any]] = []

    def of(self, row: int) -> tuple[bytes, bytes | None]:
        """The teacher's mask and the student's soft mask (None where no judge looked) of a chosen row."""
        part, offset = divmod(row, self._label_rows)
        if part != self._part:
            labels, scores = self._spans[part]
            masks = read_span(labels, ["mask"]).column("mask").to_pylist()
            self._pair = [masks, read_span(scores, ["student"]).column("student").to_pylist()]
            self._part = part
        return self._pair[0][offset], self._pair[1][offset]


def _audit_rows(chosen: pa.Table, labels: pa.Table, decisions: Sequence[str], config: PublishConfig) -> set[int]:
    """Up to ``audit`` dropped rows of each group of clusters: of smallest hashes, as far as they have a label."""
    cells = [str(path[0]) for path in chosen.column("cluster_path").to_pylist()]
    keys = chosen.column("key").to_pylist()
    faults = labels.column("fault").to_pylist()
    dropped = [row for row, decision in enumerate(decisions) if decision == "drop" and faults[row] is None]
    taken: dict[str, int] = {}
    audit: set[int] = set()
    for row in sorted(dropped, key=lambda row: keys[row]):
        if taken.get(cells[row], 0) < config.audit:
            taken[cells[row]] = taken.get(cells[row], 0) + 1
            audit.add(row)
    return audit
