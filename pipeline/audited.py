"""The audit step: what people drew of frames of this pool, joined to the chosen rows and held against the teacher.

::

    audit folders ─ by sample id ─▶ chosen row ─ masks of one frame against each other ─▶ contradicted?
                                               └ the first of them against the label ──▶ bad?

Frames that were chosen from a list (``sampled`` is false) are no random sample: their masks become labels, and what
they say of the teacher counts in no rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.masks import iou
from manifests.audit import AuditedMask, AuditError, load_mask
from manifests.mask import decode_mask, encode_mask
from pipeline.errors import InputError
from pipeline.gold import Human
from pipeline.publish import MAX_PIXELS
from pipeline.stage import iter_tables
from students.agreement import features

AUDITED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("used", pa.bool_(), nullable=False),
        pa.field("sampled", pa.bool_(), nullable=False),
        pa.field("contradicted", pa.bool_(), nullable=False),
        pa.field("bad", pa.bool_(), nullable=False),
        pa.field("iou", pa.float64(), nullable=False),
        pa.field("miss", pa.float64(), nullable=False),
        pa.field("extra", pa.float64(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("ignore", pa.binary()),
    ]
)
"""Rows that people masked and that have a label, by row; ``mask`` and ``ignore`` at full size, as they were drawn.

``sampled`` rows are in an audit that was drawn at random; only they calibrate. ``used`` ones get the mask as label.
"""

SIDE = 512
"""Long side, in pixels, at which a label and a human mask are compared."""
CONTRADICTED = 0.2
"""Share of the frames masked twice that may contradict each other before an audit is not trusted."""

FEWEST = 8
"""Frames masked twice below which contradictions say nothing of the whole audit."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRules:
    """What an audit finds bad.

    Attributes:
        iou: a label whose IoU with the human mask, outside the band around its outline, is below this is bad.
        part: so is one that lacks, or has too much, a connected part of more than this share of both together.
        agree: two people whose masks of one frame have a lower IoU contradict each other.
    """

    iou: float = 0.8
    part: float = 0.05
    agree: float = 0.8

    def __post_init__(self) -> None:
        for name in ("iou", "part", "agree"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"judge.audit_{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A label against a human mask: whether it is bad, their IoU, and the shares it lacks and has too much."""

    bad: bool
    iou: float
    miss: float
    extra: float


NO_AUDIT: dict[str, Any] = {
    "folders": 0,
    "masks": 0,
    "unfinished": 0,
    "not_in_run": 0,
    "unlabelled": 0,
    "used": 0,
    "bad": 0,
    "chosen": 0,
    "chosen_bad": 0,
    "chosen_reason": "",
    "contradictions": [],
    "twice": 0,
    "trusted": False,
    "reason": "no audit was given",
}
"""The facts of a run without an audit.

``used`` and ``bad`` are of frames drawn at random, ``chosen`` and ``chosen_bad`` of the others whose masks are used;
``trusted`` and ``reason`` of the random audit, ``chosen_reason`` says why no chosen frame is used. All else is of both.
"""


def compare(teacher: Bools, human: Bools, ignore: Bools, rules: AuditRules) -> Compared:
    """Holds a label against a human mask, (H, W) bool each, at a long side of at most ``SIDE``.

    Pixels to ignore say nothing. Outside the band around the label's outline that ``students.disagreement`` leaves out.
    """
    label, person = _small(teacher, 0.5), _small(human, 0.5)
    void = _small(ignore, 1e-6)
    found = features(label.astype(np.float32), np.where(void, label, person).astype(np.float32), 0.0)
    parts = max(found.largest_miss, found.largest_extra)
    return Compared(
        bad=found.disagreement > 1 - rules.iou + 1e-9 or parts > rules.part,
        iou=iou(label, person, void),
        miss=found.miss,
        extra=found.extra,
    )


def _small(mask: Bools, least: float) -> Bools:
    """A mask at a long side of at most ``SIDE``: True where at least ``least`` of a pixel is."""
    longest = max(mask.shape)
    if longest <= SIDE:
        return mask
    height, width = (max(1, round(side * SIDE / longest)) for side in mask.shape)
    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= least)


def audited_table(
    human: Human, chosen: pa.Table, labels: Sequence[str], rules: AuditRules
) -> tuple[pa.Table, dict[str, Any]]:
    """Joins the audits of a run to its chosen rows.

    Of several masks of one frame that agree, that of the folder given first is used, audits before lists; a frame
    masked in both counts as random. Frames whose masks contradict each other are left out. An audit in which more than
    a fifth of at least 8 frames masked twice do is not trusted: nothing of any folder is used. Chosen frames are the
    doubtful ones, so contradictions among them say nothing of the audit: where they are more than a fifth, likewise of
    8 at least, the chosen frames alone go unused.

    Args:
        human: the audits.
        chosen: the chosen frames: sample_id, content_sha256, width, height.
        labels: uris of the label parts.
        rules: what is bad.

    Returns:
        The table (schema ``AUDITED``) and the facts that judge.json states of the audit.

    Raises:
        InputError: a mask is gone or broken, or is of a frame whose content or size is another.
    """
    masks = [mask for folder in human.audits for mask in folder]
    joined = _joined(masks, chosen)
    teachers = _teachers(labels, sorted(joined))
    rows = []
    for row in sorted(row for row in joined if teachers[row] is not None):
        teacher = decode_mask(teachers[row] or b"", MAX_PIXELS)
        rows.append({"row": row, "sample_id": joined[row][0].drawn.sample_id, **_facts(joined[row], teacher, rules)})
    twice = {row for row, several in joined.items() if len(several) > 1}
    sampled, chosen_ones = ([row for row in rows if row["sampled"] == kind] for kind in (True, False))
    reason = _distrust(sampled, twice, "frames")
    chosen_reason = (reason or _distrust(chosen_ones, twice, "chosen frames")) if chosen_ones else ""
    for found in rows:
        trusted = not (reason if found["sampled"] else chosen_reason)
        found["used"] = trusted and not found["contradicted"]
    used, also = ([row for row in part if row["used"]] for part in (sampled, chosen_ones))
    facts = {
        "folders": len(human.audits),
        "masks": len(masks),
        "unfinished": sum(human.unfinished),
        "not_in_run": len(masks) - sum(map(len, joined.values())),
        "unlabelled": len(joined) - len(rows),
        "used": len(used),
        "bad": sum(row["bad"] for row in used),
        "chosen": len(also),
        "chosen_bad": sum(row["bad"] for row in also),
        "chosen_reason": chosen_reason,
        "contradictions": sorted(row["sample_id"] for row in rows if row["contradicted"]),
        "twice": sum(row["row"] in twice for row in rows),
        "trusted": not reason,
        "reason": reason,
    }
    return pa.Table.from_pylist(rows, schema=AUDITED), facts


def _distrust(rows: Sequence[Mapping[str, Any]], twice: Set[int], name: str) -> str:
    """Why people contradict each other too often to be trusted, or nothing."""
    against, both = sum(row["contradicted"] for row in rows), sum(row["row"] in twice for row in rows)
    if both < FEWEST or against <= CONTRADICTED * both:
        return ""
    return f"{against} of {both} {name} that two people masked contradict each other, more than a fifth"


def _joined(masks: Sequence[AuditedMask], chosen: pa.Table) -> dict[int, list[AuditedMask]]:
    """Chosen row -> its masks, in the order of the folders."""
    rows = {name: row for row, name in enumerate(chosen.column("sample_id").to_pylist())}
    found: dict[int, list[AuditedMask]] = {}
    for one in masks:
        row = rows.get(one.drawn.sample_id)
        if row is not None:
            _check_same(one, chosen, row)
            found.setdefault(row, []).append(one)
    return found


def _check_same(one: AuditedMask, chosen: pa.Table, row: int) -> None:
    drawn = one.drawn
    content, width, height = (chosen.column(name)[row].as_py() for name in ("content_sha256", "width", "height"))
    if content.hex() != drawn.content_sha256:
        raise InputError(
            f"--audit: {one.mask} is of a frame whose content was {drawn.content_sha256[:12]}…, in this run sample "
            f"{drawn.sample_id} is {content.hex()[:12]}…; put the original audit.json back"
        )
    if (drawn.width, drawn.height) != (width, height):
        raise InputError(
            f"--audit: {one.mask} is of a frame of {drawn.width}x{drawn.height} pixels, in this run sample "
            f"{drawn.sample_id} has {width}x{height}; put the original audit.json back"
        )


def _teachers(labels: Sequence[str], rows: Sequence[int]) -> dict[int, bytes | None]:
    """Row -> its label's mask; None where the frame has no label."""
    wanted = pa.array(rows, pa.int64())
    found: dict[int, bytes | None] = {}
    for part in iter_tables(labels, ["row", "mask"]) if rows else ():
        mine = part.filter(pc.is_in(part.column("row"), value_set=wanted))
        found |= dict(zip(mine.column("row").to_pylist(), mine.column("mask").to_pylist(), strict=True))
    return found


def _facts(masks: Sequence[AuditedMask], teacher: Bools, rules: AuditRules) -> Mapping[str, Any]:
    masks = sorted(masks, key=lambda one: not one.sampled)
    try:
        drawn = [load_mask(one) for one in masks]
    except AuditError as error:
        raise InputError(f"--audit: {error}") from error
    mask, ignore = drawn[0]
    if teacher.shape != mask.shape:
        raise InputError(f"--audit: {masks[0].mask} has shape {mask.shape}, its label {teacher.shape}")
    pairs = itertools.combinations(drawn, 2)
    found = compare(teacher, mask, ignore, rules)
    return {
        "sampled": masks[0].sampled,
        "contradicted": any(iou(a, b, void_a | void_b) < rules.agree for (a, void_a), (b, void_b) in pairs),
        "bad": found.bad,
        "iou": found.iou,
        "miss": found.miss,
        "extra": found.extra,
        "mask": encode_mask(mask),
        "ignore": encode_mask(ignore) if ignore.any() else None,
    }
