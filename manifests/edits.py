"""What is to change in a release, and what follows from it for every row: decision, split, mask, weight, evidence."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.mask import components, encode_mask, mask_sha256
from manifests.placing import GONE, Index, Ints
from manifests.release import Release
from manifests.reshard import PixelChange
from manifests.schema import DECISIONS, EVIDENCE, LABEL_SOURCES, MASK_SPLITS, PROVENANCES
from manifests.split import split_of
from manifests.tables import source_uris
from manifests.traces import Traces

Mask: TypeAlias = NDArray[np.bool_]

HUMAN = ("human", "human_corrected")
"""Label sources of masks that a person vouches for: their weight in training is 1, their confidence is unknown."""
_MANIFEST, _DROPPED = 0, 1
_HOLD, _AUDIT = MASK_SPLITS.index("hold"), MASK_SPLITS.index("audit")
_SHARD_ROWS = 2048
_NAMED = 10


class SuccessorError(ValueError):
    """A successor that cannot be written; the message names the samples or the file, the rule, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assertion:
    """Something that is said of a sample: a row of evidence.

    Attributes:
        name: of what is said; not an attribute of the manifest, whose value it would contradict.
        value: what is said, None for "not known".
        provenance: one of PROVENANCES.
        source_id: who or what says it.
        source_sha256: of the file that says it, 32 bytes; None without one.
        confidence: finite, or None.
    """

    name: str
    value: str | None
    provenance: str
    source_id: str
    source_sha256: bytes | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        """Check each field."""
        if not self.name or not self.source_id:
            raise SuccessorError(f"an assertion needs a name and a source_id, got {self.name!r} and {self.source_id!r}")
        if self.provenance not in PROVENANCES:
            raise SuccessorError(f"provenance must be one of {PROVENANCES}, got {self.provenance!r}")
        if self.source_sha256 is not None and (
            not isinstance(self.source_sha256, bytes) or len(self.source_sha256) != 32
        ):
            raise SuccessorError(f"source_sha256 must be 32 bytes, got {self.source_sha256!r:.80}")
        if self.confidence is not None and not math.isfinite(self.confidence):
            raise SuccessorError(f"confidence must be finite, got {self.confidence}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Edit:
    """What changes in one sample; None leaves it as it is.

    Attributes:
        decision: keep, hold or drop.
        reasons: of the decision; without them a changed decision has none.
        by: who decided, needed with a decision or reasons.
        mask: (H, W) bool of the frame's size; needs a label_source.
        ignore: (H, W) bool, the pixels of the new mask that no loss may use; None for none.
        label_source: where the mask comes from, one of LABEL_SOURCES.
        evidence: assertions to add.
    """

    decision: str | None = None
    reasons: tuple[str, ...] | None = None
    by: str | None = None
    mask: Mask | None = None
    ignore: Mask | None = None
    label_source: str | None = None
    evidence: tuple[Assertion, ...] = ()

    def __post_init__(self) -> None:
        """Check each field and what must stand together."""
        if self.decision is not None and self.decision not in DECISIONS:
            raise SuccessorError(f"decision must be one of {DECISIONS}, got {self.decision!r}")
        if (self.decision is not None or self.reasons is not None) and not self.by:
            raise SuccessorError("an edit with a decision or reasons must say by whom")
        if self.label_source is not None and self.label_source not in LABEL_SOURCES:
            raise SuccessorError(f"label_source must be one of {LABEL_SOURCES}, got {self.label_source!r}")
        if self.mask is not None and self.label_source is None:
            raise SuccessorError("an edit with a mask must say its label_source")
        for name, mask in (("mask", self.mask), ("ignore", self.ignore)):
            if mask is not None and (mask.ndim != 2 or mask.dtype != np.bool_ or 0 in mask.shape):
                raise SuccessorError(f"{name} must be (H, W) bool with H, W >= 1, got {mask.shape} {mask.dtype}")
        if self.ignore is not None and (self.mask is None or self.mask.shape != self.ignore.shape):
            raise SuccessorError("ignore needs a mask of its size")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """What follows from the edits, by row of the index of N rows.

    Attributes:
        table: (N,) 0 for manifest/, 1 for dropped/, GONE for a removed sample.
        folder: (N,) number in MASK_SPLITS where the pixels go, GONE for nowhere.
        rows: row -> column of the manifest -> its new value.
        pixels: row -> what changes in its shard.
        evidence: new rows, of schema EVIDENCE, by sample id.
        gone: ids of the removed samples.
        traces: what no file of the successor may name: the removed samples, their sources, and what was given.
        quiet: whether only the tables can tell that anything changes.
        shard_rows: most rows of a shard that samples enter.
    """

    table: Ints
    folder: Ints
    rows: Mapping[int, Mapping[str, Any]]
    pixels: Mapping[int, PixelChange]
    evidence: pa.Table
    gone: pa.Array
    traces: Traces
    quiet: bool
    shard_rows: int


def resolve(
    parent: Path,
    release: Release,
    index: Index,
    edits: Mapping[str, Edit],
    remove: frozenset[str],
    at: datetime,
    traces: Traces,
    groups: Mapping[str, str],
) -> Plan:
    """What follows from the edits; `traces` and `groups` as `manifests.successor.write_successor` has them.

    Raises:
        SuccessorError: an unknown sample, one that is edited and removed, a sample without pixels that would need
            them, a mask of another size, or a group that would be in two splits; the samples are named.
    """
    both = sorted(set(edits) & remove)
    _refuse(both, "cannot be edited and removed at once", "leave out one of the two")
    names, gone = sorted(edits), sorted(remove)
    rows, lost = index.find(names), index.find(gone)
    unknown = [name for name, row in zip([*names, *gone], [*rows, *lost], strict=True) if row < 0]
    _refuse(unknown, f"are not in the release {parent}", "is it the release that the ids come from?")
    drafts = _drafts(index, names, rows, edits)
    _check(drafts)
    config = _config(parent)
    table, folder = _homes(release, index, drafts, lost, config)
    rows_of: dict[int, dict[str, Any]] = _renamed(index, groups, lost)
    for draft in drafts:
        rows_of[draft.row] = rows_of.get(draft.row, {}) | _row_patch(draft, _name(int(folder[draft.row])))
    pixels = {draft.row: change for draft in drafts if (change := _pixel_change(draft)) is not None}
    return Plan(
        table=table,
        folder=folder,
        rows={row: patch for row, patch in rows_of.items() if patch},
        pixels=pixels,
        evidence=_evidence(parent, release, drafts, at),
        gone=pa.array(gone, pa.string()),
        traces=replace(
            traces,
            samples=traces.samples | frozenset(gone),
            uris=traces.uris | (source_uris(parent, index, lost) if gone else frozenset()),
        ),
        quiet=not gone and traces == Traces() and all(draft.edit.ignore is None for draft in drafts),
        shard_rows=int(config.get("rows", _SHARD_ROWS)),
    )


def _renamed(index: Index, groups: Mapping[str, str], lost: Ints) -> dict[int, dict[str, Any]]:
    """Row of the index -> its new group, of the rows that stay."""
    if not groups:
        return {}
    rows = np.flatnonzero(pc.is_in(index.groups, value_set=pa.array(list(groups))).to_numpy(zero_copy_only=False))
    rows = np.setdiff1d(rows, lost)
    named = index.groups.take(pa.array(rows)).to_pylist()
    return {row: {"group_id": groups[name]} for row, name in zip(rows.tolist(), named, strict=True)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Draft:
    """One edited sample: its row, the edit, and what it was and will be."""

    id: str
    row: int
    edit: Edit
    before: str
    after: str
    group: str
    shape: tuple[int, int]
    pixels: bool

    @property
    def human(self) -> bool:
        return self.edit.label_source in HUMAN


def _drafts(index: Index, names: Sequence[str], rows: Ints, edits: Mapping[str, Edit]) -> list[_Draft]:
    take = pa.array(rows)
    decisions, groups = index.decisions.take(take).to_pylist(), index.groups.take(take).to_pylist()
    return [
        _Draft(
            id=name,
            row=row,
            edit=edits[name],
            before=before,
            after=edits[name].decision or before,
            group=group,
            shape=(int(index.height[row]), int(index.width[row])),
            pixels=bool(index.folder[row] != GONE),
        )
        for name, row, before, group in zip(names, rows.tolist(), decisions, groups, strict=True)
    ]


def _check(drafts: Sequence[_Draft]) -> None:
    bare = [d.id for d in drafts if not d.pixels and d.after != "drop"]
    _refuse(bare, "were dropped and their pixels are not in shards/audit", "only a new run can bring them back")
    blind = [d.id for d in drafts if not d.pixels and (d.edit.mask is not None or d.edit.label_source is not None)]
    _refuse(blind, "have no pixels in the release, so no mask", "leave them out")
    wrong = [
        f"{d.id} ({d.edit.mask.shape[1]}x{d.edit.mask.shape[0]}, frame {d.shape[1]}x{d.shape[0]})"
        for d in drafts
        if d.edit.mask is not None and d.edit.mask.shape != d.shape
    ]
    _refuse(wrong, "have a new mask of another size than the frame", "draw it on the frame as it was exported")


def _refuse(ids: Sequence[str], what: str, remedy: str) -> None:
    if ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        raise SuccessorError(
            f"{len(ids)} samples {what}: {', '.join(ids[:_NAMED])}{more}; {remedy}; nothing was changed"
        )


def _config(parent: Path) -> Mapping[str, Any]:
    """What config.json says of publishing, and the seed; empty where there is none."""
    try:
        told = json.loads((parent / "config.json").read_bytes())
        publish: dict[str, Any] = dict(told["config"]["publish"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return publish


def _homes(
    release: Release, index: Index, drafts: Sequence[_Draft], lost: Ints, config: Mapping[str, Any]
) -> tuple[Ints, Ints]:
    """(N,) table and (N,) folder of each row in the successor."""
    table = np.where(pc.equal(index.decisions, "drop").to_numpy(zero_copy_only=False), _DROPPED, _MANIFEST)
    table, folder = table.astype(np.int64), index.folder.copy()
    table[lost], folder[lost] = GONE, GONE
    entering = [draft for draft in drafts if draft.after == "keep" and draft.before != "keep"]
    if entering and not {"val", "test"} <= set(config):
        raise SuccessorError(
            "config.json states no publish.val and publish.test, so no split can be told; publish again"
        )
    for draft in drafts:
        if draft.after == draft.before:
            continue
        table[draft.row] = _DROPPED if draft.after == "drop" else _MANIFEST
        if draft.after == "keep":
            split = split_of(draft.group, release.seed, val=config["val"], test=config["test"])
            folder[draft.row] = MASK_SPLITS.index(split)
        elif draft.pixels:
            folder[draft.row] = _AUDIT if draft.after == "drop" else _HOLD
    _check_groups(index, entering, folder)
    return table, folder


def _check_groups(index: Index, entering: Sequence[_Draft], folder: Ints) -> None:
    """Refuse a group that would be in two splits."""
    if not entering:
        return
    wanted = {draft.group: int(folder[draft.row]) for draft in entering}
    places = np.flatnonzero(pc.is_in(index.groups, value_set=pa.array(list(wanted))).to_numpy(zero_copy_only=False))
    places = places[(folder[places] >= 0) & (folder[places] < _HOLD)]
    for row, group in zip(places.tolist(), index.groups.take(pa.array(places)).to_pylist(), strict=True):
        if folder[row] != wanted[group]:
            raise SuccessorError(
                f"group {group} is in split {_name(int(folder[row]))}, but config.json puts it in "
                f"{_name(wanted[group])}: the splits would leak; is config.json that of the release?"
            )


def _name(folder: int) -> str:
    return "" if folder == GONE else MASK_SPLITS[folder]


def _row_patch(draft: _Draft, folder: str) -> dict[str, Any]:
    """New values of a row of the manifest; `folder` is where its pixels go."""
    edit = draft.edit
    patch: dict[str, Any] = {}
    moved = draft.after != draft.before
    if edit.reasons is not None or moved:
        patch["decision_reasons"] = list(edit.reasons or ())
    if edit.by is not None:
        patch["decision_by"] = edit.by
    if moved:
        patch |= {"decision": draft.after, "split": "dropped" if draft.after == "drop" else folder}
    if moved or (draft.human and draft.after == "keep"):
        patch["verdict"] = draft.after
    if edit.label_source is not None:
        patch["label_source"] = edit.label_source
    if draft.human or edit.mask is not None:
        patch |= {"label_confidence": None, "boundary_uncertainty": None}
    if edit.mask is not None:
        patch |= {
            "mask_sha256": mask_sha256(edit.mask),
            "mask_area_px": int(edit.mask.sum()),
            "mask_components": min(components(edit.mask), 32767),
        }
    return patch


def _pixel_change(draft: _Draft) -> PixelChange | None:
    edit, moved = draft.edit, draft.after != draft.before
    weight = None
    if draft.after == "keep" and (moved or draft.human):
        weight = 1.0
    elif moved:
        weight = 0.0
    if not draft.pixels or (weight is None and edit.label_source is None):
        return None
    return PixelChange(
        mask_png=None if edit.mask is None else encode_mask(edit.mask),
        mask_sha256=None if edit.mask is None else mask_sha256(edit.mask),
        ignore_png=None if edit.ignore is None or not edit.ignore.any() else encode_mask(edit.ignore),
        label_source=edit.label_source,
        unsure=draft.human or edit.mask is not None,
        weight=weight,
    )


def _evidence(parent: Path, release: Release, drafts: Sequence[_Draft], at: datetime) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "sample_id": draft.id,
            "name": said.name,
            "value": said.value,
            "provenance": said.provenance,
            "source_id": said.source_id,
            "source_sha256": said.source_sha256,
            "confidence": said.confidence,
            "recorded_at": at.astimezone(UTC),
        }
        for draft in drafts
        for said in draft.edit.evidence
    ]
    names = {row["name"] for row in rows}
    manifest = next((entry.path for entry in release.files if entry.schema == "manifest"), None)
    if names and manifest:
        attributes = {item.name for item in pq.read_schema(parent / manifest).field("attr").type}
        if names & attributes:
            raise SuccessorError(
                f"evidence on {sorted(names & attributes)} would contradict the attribute in the manifest; "
                f"give it in the attributes file of a new run"
            )
    return pa.Table.from_pylist(rows, EVIDENCE)
