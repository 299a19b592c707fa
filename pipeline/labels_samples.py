"""The samples of a release that people may draw: where their pixels are, and the names that they carry through a tool.

Annotation tools keep the name of an image and lose whatever else an export says of it, so the name holds all that an
import is matched by::

    0123456789abcdef0123456789abcdef_0123456789abcdef_0123456789abcdef.jpg
    sample id                        content_sha256   fingerprint of the release (16 digits of each)

Tools may put folders or a prefix that ends in "-" before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.release import Release
from manifests.schema import SchemaError, check_schema
from manifests.shard import ShardError, iter_row_groups
from pipeline.errors import InputError

DIGITS = 16
_NAME = re.compile(
    rf"(?:^|[-/\\=])([0-9a-f]{{32}})_([0-9a-f]{{{DIGITS}}})_([0-9a-f]{{{DIGITS}}})(?:\.[A-Za-z]{{3,4}})?$"
)
_COLUMNS = ["sample_id", "content_sha256", "width", "height", "decision", "split", "shard", "mask_sha256"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample of a release.

    Attributes:
        id: 32 hex digits.
        content_sha256: 64 hex digits.
        width: pixels.
        height: pixels.
        decision: keep, hold or drop.
        folder: below shards/, where its pixels are.
        shard: number of the shard; None where no pixels are kept.
        mask_sha256: 32 bytes; None where no pixels are kept.
    """

    id: str
    content_sha256: str
    width: int
    height: int
    decision: str
    folder: str
    shard: int | None
    mask_sha256: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What the name of an exported image says.

    Attributes:
        sample_id: 32 hex digits.
        content: the first digits of content_sha256.
        release: the first digits of the fingerprint.
    """

    sample_id: str
    content: str
    release: str


def image_name(sample: Sample, fingerprint: str) -> str:
    """The name, without suffix, under which a sample goes to an annotation tool."""
    return f"{sample.id}_{sample.content_sha256[:DIGITS]}_{fingerprint[:DIGITS]}"


def parse_name(name: str) -> Name | None:
    """What a name says, with or without folders, prefix and suffix; None where it is no name of an export."""
    found = _NAME.search(name)
    return None if found is None else Name(sample_id=found[1], content=found[2], release=found[3])


def read_samples(folder: Path, release: Release, ids: Iterable[str]) -> dict[str, Sample]:
    """The samples of these ids, by id; an id that the release does not have is left out.

    Raises:
        InputError: a table cannot be read.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, Sample] = {}
    for entry in release.files:
        if entry.schema != "manifest":
            continue
        try:
            with pq.ParquetFile(folder / entry.path, page_checksum_verification=True) as file:
                check_schema(file.schema_arrow, "manifest")
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=_COLUMNS, use_threads=False)
                    rows = rows.filter(pc.is_in(rows.column("sample_id"), value_set=wanted))
                    found |= {sample.id: sample for sample in map(_sample, rows.to_pylist())}
        except (OSError, pa.ArrowException, SchemaError) as error:
            raise InputError(
                f"{folder / entry.path}: {error}; `curate verify {folder}` lists what is broken"
            ) from error
    return found


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        id=row["sample_id"],
        content_sha256=row["content_sha256"].hex(),
        folder={"hold": "hold", "drop": "audit"}.get(row["decision"], row["split"]),
        **{name: row[name] for name in ("width", "height", "decision", "shard", "mask_sha256")},
    )


def read_pixels(folder: Path, release: Release, samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes, bytes]]:
    """Image (JPEG) and mask (PNG) of samples that have pixels, shard by shard, one row group in memory.

    Raises:
        InputError: a shard is damaged, or lacks a sample.
    """
    by_shard: dict[tuple[str, int | None], dict[str, Sample]] = {}
    for sample in samples:
        by_shard.setdefault((sample.folder, sample.shard), {})[sample.id] = sample
    for (split, shard), members in sorted(by_shard.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        path = folder / _shard(release, split, shard)
        left = dict(members)
        try:
            for group in iter_row_groups(path, "shard"):
                mine = pc.is_in(group.column("sample_id"), value_set=pa.array(list(left), pa.string()))
                rows = group.select(["sample_id", "image", "mask"]).filter(mine)
                for row in rows.to_pylist():
                    yield left.pop(row["sample_id"]), row["image"]["bytes"], row["mask"]["bytes"]
        except ShardError as error:
            raise InputError(f"{error}; `curate verify {folder}` lists what is broken") from error
        if left:
            raise InputError(f"{path}: lacks sample {min(left)}; `curate verify {folder}` lists what is broken")


def _shard(release: Release, split: str, shard: int | None) -> str:
    start = f"shards/{split}/{shard:05d}-of-"
    found = next((entry.path for entry in release.files if entry.path.startswith(start)), None)
    if found is None:
        raise InputError(f"the release has no shard {start}…, though its manifest names it; verify it")
    return found
