"""The shards of a successor: the parent's where nothing changes in them, else gathered from several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.mask import decode_mask, mask_sha256
from manifests.placing import Index, Places, Shard, entries_of
from manifests.release import Release
from manifests.rewrite import patched, read_rows
from manifests.schema import MASK_SPLITS
from manifests.shard import ShardError

MAX_PIXELS = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelChange:
    """What changes in the row of a shard; None leaves a value as it is.

    Attributes:
        mask_png: the new mask as a 1-bit PNG; the pixels that no loss may use are then `ignore_png`.
        mask_sha256: of the new mask, 32 bytes.
        ignore_png: of the new mask, None where there are none.
        label_source: where the mask comes from now.
        unsure: whether the confidence of the label is no longer known.
        weight: in the loss.
    """

    mask_png: bytes | None = None
    mask_sha256: bytes | None = None
    ignore_png: bytes | None = None
    label_source: str | None = None
    unsure: bool = False
    weight: float | None = None


def reshard(
    parent: Path, release: Release, index: Index, places: Places, changes: Mapping[int, PixelChange], *, anew: bool
) -> Iterator[tuple[Shard, pa.Table | None]]:
    """Each shard of the successor with its rows; None where it is the parent's file.

    Args:
        parent: folder of the release.
        release: the parent.
        index: of the parent.
        places: of the successor.
        changes: row of the index -> what changes in it.
        anew: whether every shard is written anew, in the present schema.

    Raises:
        ShardError: a shard cannot be read, or holds other samples than the manifest says.
        MaskError: a mask of the parent is damaged.
    """
    paths = {
        (code, int(entry.path.split("/")[2][:5])): parent / entry.path
        for code, split in enumerate(MASK_SPLITS)
        for entry in entries_of(release, f"shards/{split}")
    }
    for shard in places.shards:
        if shard.source is not None and not shard.touched and not anew:
            yield shard, None
        else:
            yield shard, _changed(_gathered(index, shard, paths), shard, changes)


def _gathered(index: Index, shard: Shard, paths: Mapping[tuple[int, int], Path]) -> pa.Table:
    """The rows of a shard as they are in the shards of the parent."""
    parts, taken = [], []
    keys = np.stack([index.folder[shard.rows], index.shard[shard.rows]], axis=1)
    for code, number in np.unique(keys, axis=0).tolist():
        rows = shard.rows[(keys == (code, number)).all(axis=1)]
        rows = rows[np.argsort(index.shard_row[rows])]
        if (code, number) not in paths:
            raise ShardError(f"shard {number} of {MASK_SPLITS[code]} is not listed; verify the release")
        part = read_rows(paths[code, number], "shard", index.shard_row[rows])
        if not part.column("sample_id").combine_chunks().equals(index.ids.take(pa.array(rows))):
            raise ShardError(f"{paths[code, number]}: holds other samples than the manifest says; verify the release")
        parts.append(part)
        taken.append(rows)
    order = np.argsort(index.rank[np.concatenate(taken)])
    return pa.concat_tables(parts).take(pa.array(order))


def _changed(table: pa.Table, shard: Shard, changes: Mapping[int, PixelChange]) -> pa.Table:
    patches = {}
    for place, row in enumerate(shard.rows.tolist()):
        if row in changes:
            patches[place] = _patch(table, place, changes[row])
    return patched(table, patches)


def _patch(table: pa.Table, place: int, change: PixelChange) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if change.mask_png is not None:
        name = f"{table.column('sample_id')[place].as_py()}.png"
        told = {
            column: table.column(column)[place].as_py() for column in ("mask", "teacher_mask", "label_source", "width")
        }
        teacher = told["teacher_mask"] or (None if told["label_source"] == "none" else told["mask"])
        same = teacher is not None and mask_sha256(decode_mask(teacher["bytes"], MAX_PIXELS)) == change.mask_sha256
        values |= {
            "mask": {"bytes": change.mask_png, "path": name},
            "ignore": None if change.ignore_png is None else {"bytes": change.ignore_png, "path": name},
            "teacher_mask": None if same else teacher,
            "mask_sha256": change.mask_sha256,
        }
    if change.label_source is not None:
        values["label_source"] = change.label_source
    if change.unsure:
        values["label_confidence"] = None
    if change.weight is not None:
        values["weight"] = change.weight
    return values
