"""Parquet files written so that equal tables give equal bytes, and read so that a flipped bit is an error.

A shard holds JPEG images and 1-bit PNG masks in Hugging Face `Image` structs: the trainer, a browser and
`datasets.load_dataset("parquet", ...)` open the same file.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.schema import IMAGE, LABEL_SOURCES, SHARD, SchemaError, check_schema

ROW_GROUP_ROWS = 64
"""Rows of a shard's row group: about 5 MB, one unit of reading (measured fastest per CPU second)."""

PIXELS = ("image", "mask", "ignore", "teacher_mask")
"""Columns of a shard that are compressed already."""

ASPECTS = {"9:16": 9 / 16, "3:4": 3 / 4, "1:1": 1.0, "4:3": 4 / 3, "16:9": 16 / 9}


class ShardError(ValueError):
    """A table that cannot be written, or a file that cannot be read as what it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """One sample as the trainer reads it.

    Attributes:
        sample_id: 32 hex digits.
        image_jpeg: upright JPEG file.
        mask_png: 1-bit PNG file of the same size.
        ignore_png: 1-bit PNG file of the pixels that no loss may use, or None.
        teacher_mask_png: 1-bit PNG file of what the teacher had said, or None where the mask says the same.
        width: pixels, >= 1.
        height: pixels, >= 1.
        aspect_bucket: a key of ASPECTS.
        weight: of the sample in the loss, finite and >= 0.
        label_source: one of LABEL_SOURCES.
        label_confidence: in [0, 1], or None.
        content_sha256: 32 bytes.
        mask_sha256: 32 bytes, `manifests.mask.mask_sha256` of the mask.
    """

    sample_id: str
    image_jpeg: bytes
    mask_png: bytes
    ignore_png: bytes | None
    width: int
    height: int
    aspect_bucket: str
    weight: float
    label_source: str
    label_confidence: float | None
    content_sha256: bytes
    mask_sha256: bytes
    teacher_mask_png: bytes | None = None

    def __post_init__(self) -> None:
        """Check what a trainer takes for granted."""
        if self.width < 1 or self.height < 1:
            raise ShardError(f"sample {self.sample_id}: width and height must be >= 1, got {self.width}x{self.height}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ShardError(f"sample {self.sample_id}: weight must be finite and >= 0, got {self.weight}")
        if self.aspect_bucket not in ASPECTS:
            raise ShardError(
                f"sample {self.sample_id}: aspect_bucket must be one of {list(ASPECTS)}, got {self.aspect_bucket!r}"
            )
        if self.label_source not in LABEL_SOURCES:
            raise ShardError(
                f"sample {self.sample_id}: label_source must be one of {LABEL_SOURCES}, got {self.label_source!r}"
            )
        if len(self.content_sha256) != 32 or len(self.mask_sha256) != 32:
            raise ShardError(f"sample {self.sample_id}: content_sha256 and mask_sha256 must have 32 bytes")


def aspect_bucket(width: int, height: int) -> str:
    """The key of ASPECTS nearest to width / height on a logarithmic scale; the first (narrower) of two equally near.

    Raises:
        ShardError: width or height below 1.
    """
    if width < 1 or height < 1:
        raise ShardError(f"width and height must be >= 1, got {width}x{height}")
    return min(ASPECTS, key=lambda name: abs(math.log(width / height / ASPECTS[name])))


def shard_table(rows: Sequence[ShardRow]) -> pa.Table:
    """The rows as a table of schema SHARD, with the metadata that lets `datasets` show images.

    Raises:
        ShardError: the sample ids are not strictly ascending.
    """
    for before, after in itertools.pairwise(rows):
        if before.sample_id >= after.sample_id:
            raise ShardError(
                f"sample ids must ascend within a shard, got {before.sample_id!r} then {after.sample_id!r}"
            )
    columns = {
        "image": [{"bytes": row.image_jpeg, "path": f"{row.sample_id}.jpg"} for row in rows],
        "mask": [{"bytes": row.mask_png, "path": f"{row.sample_id}.png"} for row in rows],
        "ignore": [_png(row.sample_id, row.ignore_png) for row in rows],
        "teacher_mask": [_png(row.sample_id, row.teacher_mask_png) for row in rows],
    }
    for field in SHARD:
        if field.name not in columns:
            columns[field.name] = [getattr(row, field.name) for row in rows]
    metadata = {**SHARD.metadata, b"huggingface": _huggingface_features()}
    return pa.table([pa.array(columns[f.name], f.type) for f in SHARD], schema=SHARD.with_metadata(metadata))


def _png(sample_id: str, data: bytes | None) -> dict[str, object] | None:
    return None if data is None else {"bytes": data, "path": f"{sample_id}.png"}


def _huggingface_features() -> bytes:
    features: dict[str, dict[str, str]] = {}
    for field in SHARD:
        if field.type == IMAGE:
            features[field.name] = {"_type": "Image"}
        else:
            dtype = "float32" if field.type == pa.float32() else str(field.type)
            features[field.name] = {"dtype": dtype, "_type": "Value"}
    return json.dumps({"info": {"features": features}}, sort_keys=True, separators=(",", ":")).encode()


def encode_parquet(table: pa.Table, *, row_group_rows: int, plain: Sequence[str] = ()) -> bytes:
    """Encode a table as a Parquet file; equal tables and options give equal bytes.

    Args:
        table: its schema is written as it is, metadata included.
        row_group_rows: rows of a row group, >= 1.
        plain: top-level columns left uncompressed (pixels are compressed already); all others use zstd.

    Raises:
        ShardError: a null in a non-nullable column, a float that is not finite, a malformed column (all by name).
    """
    if row_group_rows < 1:
        raise ShardError(f"row_group_rows must be >= 1, got {row_group_rows}")
    unknown = sorted(set(plain) - set(table.column_names))
    if unknown:
        raise ShardError(f"plain names columns that the table lacks: {unknown}; it has {table.column_names}")
    table = table.combine_chunks()  # where chunks meet, a page would end
    check_table(table)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **_write_options(table.schema, plain)) as writer:
        writer.write_table(table, row_group_size=row_group_rows)
    return bytes(sink.getvalue().to_pybytes())


def _write_options(schema: pa.Schema, plain: Sequence[str]) -> dict[str, object]:
    leaves = _leaves(schema)
    packed = [leaf.path for leaf in leaves if leaf.path.split(".")[0] not in plain]
    return {
        "compression": {leaf.path: "zstd" if leaf.path in packed else "none" for leaf in leaves},
        "use_dictionary": [leaf.path for leaf in leaves if _repeats(leaf)],
        "write_statistics": packed,
        "write_page_checksum": True,
        "write_page_index": True,
        "version": "2.6",
        "data_page_version": "1.0",
    }


def _leaves(schema: pa.Schema) -> list[pq.ColumnSchema]:
    """The columns of the Parquet file, e.g. `image.bytes`: only Parquet knows their paths."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(sink.getvalue()).schema
    return [parquet.column(index) for index in range(len(parquet))]


def _repeats(leaf: pq.ColumnSchema) -> bool:
    """Whether a dictionary can pay: numbers and strings, but not hashes, pixels or float16 vectors."""
    return "BYTE_ARRAY" not in leaf.physical_type or leaf.logical_type.type == "STRING"


def check_table(table: pa.Table) -> None:
    """Check what Arrow leaves to the writer: nulls where none may be, and floats that are not finite.

    Raises:
        ShardError: names the column, and the row where one value is at fault.
    """
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ShardError(f"table is malformed: {error}") from error
    images = PIXELS[:2] if (table.schema.metadata or {}).get(b"curate.schema") == b"shard" else ()
    for field in table.schema:
        required = field.with_nullable(False) if field.name in images else field
        _check_column(table.column(field.name), required)


def _check_column(column: pa.ChunkedArray, field: pa.Field) -> None:
    start = 0
    for chunk in column.chunks:
        rows = np.arange(start, start + len(chunk))
        _check_values(chunk, field, field.name, np.ones(len(chunk), np.bool_), rows)
        start += len(chunk)


def _check_values(
    values: pa.Array, field: pa.Field, path: str, present: NDArray[np.bool_], rows: NDArray[np.int64]
) -> None:
    """Check one (nested) column: `present` says which parents are there, `rows` of which row each value is."""
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    if not field.nullable and (present & ~valid).any():
        row = int(rows[np.argmax(present & ~valid)])
        raise ShardError(f"column {path!r} may not be null, but is in row {row}")
    kind = field.type
    if pa.types.is_struct(kind):
        for child, part in zip(values.flatten(), kind, strict=True):
            required = part.with_nullable(False) if kind == IMAGE and part.name == "bytes" else part
            _check_values(child, required, f"{path}.{part.name}", valid, rows)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        parents = rows[pc.list_parent_indices(values).to_numpy(zero_copy_only=False)]
        elements = values.flatten()
        _check_values(elements, kind.value_field, f"{path}.element", np.ones(len(elements), np.bool_), parents)
    elif pa.types.is_floating(kind):
        _check_finite(values, path, valid, rows)


def _check_finite(values: pa.Array, path: str, valid: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    broken = valid & ~np.isfinite(numbers)
    if broken.any():
        first = int(np.argmax(broken))
        raise ShardError(
            f"column {path!r} must be finite (unknown is null), got {numbers[first]} in row {int(rows[first])}"
        )


def iter_row_groups(path: Path, schema_name: str) -> Iterator[pa.Table]:
    """Read a Parquet file row group by row group, page checksums verified.

    Raises:
        ShardError: names the file and the row group that cannot be read, or the schema that is not `schema_name`.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        check_schema(file.schema_arrow, schema_name)
    except (OSError, pa.ArrowException, SchemaError) as error:
        raise ShardError(f"{path}: {error}") from error
    with file:
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group)
                table.validate(full=True)
            except (OSError, pa.ArrowException) as error:
                raise ShardError(f"{path}: row group {group}: {error}") from error
            yield table


def read_parquet(path: Path, schema_name: str) -> pa.Table:
    """Read a whole Parquet file, page checksums verified.

    Raises:
        ShardError: the file cannot be read (named with its row group), or its schema is not `schema_name`.
    """
    tables = list(iter_row_groups(path, schema_name))
    return pa.concat_tables(tables) if tables else pq.read_schema(path).empty_table()
