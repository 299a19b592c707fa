"""Small releases and labelled folders of drawn ellipses, written as the house writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from manifests.mask import encode_mask, mask_sha256
from manifests.release import Counts, FileEntry, Release, canonical_json, render_release, sha256_hex, write_release
from manifests.schema import MASK_SPLITS, SCHEMA_VERSION
from manifests.shard import PIXELS, ShardRow, aspect_bucket, encode_parquet, shard_table

SHAPES = ((48, 48), (48, 80), (80, 48))
"""Heights and widths of drawn images, one after the other."""
PER_SHARD, PER_GROUP = 6, 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """An image (h, w, 3) uint8 RGB with its mask and, or None, the pixels to ignore, (h, w) bool."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    ignore: NDArray[np.bool_] | None = None
    weight: float = 1.0
    label_source: str = "pseudo"


def draw(seed: int, *, shape: tuple[int, int] | None = None, person: bool | None = None) -> Drawn:
    """A bright ellipse on a noisy slope; ``person`` False is all background, True all person."""
    rng = np.random.default_rng(seed)
    height, width = shape or SHAPES[seed % len(SHAPES)]
    mask = np.zeros((height, width), np.uint8)
    centre = (int(rng.uniform(0.3, 0.7) * width), int(rng.uniform(0.3, 0.7) * height))
    axes = (int(rng.uniform(0.15, 0.3) * width), int(rng.uniform(0.2, 0.4) * height))
    cv2.ellipse(mask, centre, axes, float(rng.uniform(-30, 30)), 0, 360, (1,), -1)
    if person is not None:
        mask[:] = person
    slope = np.linspace(rng.uniform(20, 60), rng.uniform(40, 110), width)[None, :, None]
    image = np.where(mask[..., None] > 0, rng.uniform(150, 250, 3), slope) + rng.normal(0, 10, (height, width, 3))
    return Drawn(image=np.clip(image, 0, 255).astype(np.uint8), mask=mask > 0)


def write_drawn(folder: Path, train: Sequence[Drawn], val: Sequence[Drawn] = ()) -> Path:
    """A release with drawn samples, numbered from 0 within their split; returns the folder."""
    splits = {"train": train, "val": val}
    files = [entry for split, drawn in splits.items() for entry in _write_split(folder, split, drawn)]
    commit(folder, files, {split: len(splits.get(split, ())) for split in MASK_SPLITS})
    return folder


def commit(folder: Path, files: Sequence[FileEntry], splits: Mapping[str, int], schema: str = "shard") -> None:
    """Write ``release.json`` over what is there."""
    kept = sum(splits.values())
    release = Release(
        name="drawn",
        schemas={"release": "1.0", schema: SCHEMA_VERSION},
        config_fingerprint=sha256_hex(b""),
        parents=(),
        run_id="drawn",
        tool={"version": "0"},
        packages={},
        seed=0,
        inputs={},
        models=(),
        counts=Counts(read=kept, undecodable=0, duplicate=0, not_sampled=0, dropped=0, held=0, kept=kept),
        splits=dict(splits),
        cells={},
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        erasures=(),
    )
    (folder / "release.json").unlink(missing_ok=True)
    write_release(folder, render_release(release))


def entry_of(folder: Path, path: str, ids: Sequence[str]) -> FileEntry:
    """What a release says of one of its shards as it lies there."""
    data = (folder / path).read_bytes()
    ends = {"min_id": min(ids), "max_id": max(ids)}
    return FileEntry(path=path, bytes=len(data), sha256=sha256_hex(data), rows=len(ids), schema="shard", **ends)


def _write_split(folder: Path, split: str, drawn: Sequence[Drawn]) -> list[FileEntry]:
    rows = [_row(number, one) for number, one in enumerate(drawn)]
    parts = [rows[start : start + PER_SHARD] for start in range(0, len(rows), PER_SHARD)]
    entries = []
    for number, part in enumerate(parts):
        path = f"shards/{split}/{split}-{number:05}-of-{len(parts):05}.parquet"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode_parquet(shard_table(part), row_group_rows=PER_GROUP, plain=PIXELS))
        entries.append(entry_of(folder, path, [row.sample_id for row in part]))
    return entries


def _row(number: int, drawn: Drawn) -> ShardRow:
    height, width = drawn.mask.shape
    good, jpeg = cv2.imencode(".jpg", drawn.image[:, :, ::-1])
    assert good
    return ShardRow(
        sample_id=f"{number:032x}",
        image_jpeg=jpeg.tobytes(),
        mask_png=encode_mask(drawn.mask),
        ignore_png=None if drawn.ignore is None else encode_mask(drawn.ignore),
        width=width,
        height=height,
        aspect_bucket=aspect_bucket(width, height),
        weight=drawn.weight,
        label_source=drawn.label_source,
        label_confidence=None,
        content_sha256=bytes(32),
        mask_sha256=mask_sha256(drawn.mask),
    )


def write_labelled(folder: Path, drawn: Sequence[Drawn]) -> Path:
    """A labelled folder of drawn images s00, s01, ..; returns it."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, one in enumerate(drawn):
        assert cv2.imwrite(str(folder / "images" / f"s{number:02}.png"), one.image[:, :, ::-1])
        assert cv2.imwrite(str(folder / "masks" / f"s{number:02}.png"), one.mask.astype(np.uint8) * 255)
        if one.ignore is not None:
            (folder / "ignore").mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / "ignore" / f"s{number:02}.png"), one.ignore.astype(np.uint8) * 255)
    return folder


def sign_off(folder: Path) -> None:
    """Sign the release in ``<root>/releases/<name>`` off, in its review log."""
    digest = sha256_hex((folder / "release.json").read_bytes())
    log = folder.parent.parent / "reviews" / digest
    log.mkdir(parents=True)
    event = {
        "seq": 0,
        "prev": None,
        "release": digest,
        "type": "signoff",
        "reviewer": {"name": "A. Reviewer", "how_known": "not verified"},
        "tool": "test 0",
        "at": "2026-01-02T03:04:05Z",
    }
    (log / f"{0:020}.json").write_bytes(canonical_json(event))
