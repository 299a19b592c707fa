"""Tables of a release, changed without being made anew: rows found, columns patched, older schemas brought up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.release import FileEntry, sha256_hex
from manifests.schema import EVIDENCE, MINOR, check_schema, embedding_schema, manifest_schema
from manifests.shard import PIXELS, ROW_GROUP_ROWS, ShardError, encode_parquet, read_parquet, shard_table

FILE_GROUP_ROWS = 50_000
"""Rows of a row group of every table but the shards."""


def minor_of(schema: pa.Schema, name: str) -> int:
    """The minor version of a table's schema.

    Raises:
        SchemaError: it is not the schema `name` in a version that this code reads.
    """
    check_schema(schema, name)
    return int(schema.metadata[b"curate.schema_version"].decode().split(".")[1])


def present_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema in which a table is written again: the present minor version, unknown columns kept at the end.

    A table of a higher minor version stays as it is: what it has beyond ours is not ours to lose.
    """
    if minor_of(schema, name) > MINOR:
        return schema
    expected = _expected(schema, name)
    surplus = [field for field in schema if field.name not in expected.names]
    return pa.schema([*expected, *surplus], metadata={**schema.metadata, **expected.metadata})


def _expected(schema: pa.Schema, name: str) -> pa.Schema:
    if name == "manifest":
        return manifest_schema([field.name for field in schema.field("attr").type])
    if name == "embedding":
        return embedding_schema(schema.field("vector").type.list_size)
    return shard_table([]).schema if name == "shard" else EVIDENCE


def present(table: pa.Table, name: str) -> pa.Table:
    """A table in the schema of `present_schema`; columns that came later are null."""
    return widened(table, present_schema(table.schema, name))


def widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of a schema, null where it has none of them."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def read_present(path: Path, name: str) -> pa.Table:
    """A whole file, page checksums verified, as `present` gives it.

    Raises:
        ShardError: the file cannot be read (named with its row group), or its schema is not `name`.
    """
    return present(read_parquet(path, name), name)


def read_rows(path: Path, name: str, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows of a file, as `present` gives them; only their row groups are read, page checksums verified.

    Args:
        path: of the Parquet file.
        name: of its schema.
        rows: numbers in the file, ascending, none twice.

    Raises:
        ShardError: names the file, and the row group or the row that is not there.
    """
    parts = []
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, name)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            if len(rows) and (rows[0] < 0 or rows[-1] >= starts[-1]):
                raise ShardError(f"{path}: has {starts[-1]} rows, the manifest names row {rows[-1]}")
            for group in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
                inside = rows[(rows >= starts[group]) & (rows < starts[group + 1])] - starts[group]
                parts.append(file.read_row_group(group).take(pa.array(inside)))
            empty = file.schema_arrow.empty_table()
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path}: {error}") from error
    return present(pa.concat_tables(parts) if parts else empty, name)


def patched(table: pa.Table, patches: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """The table with some values exchanged.

    Args:
        table: any.
        patches: row -> column -> its new value.
    """
    for name in sorted({name for patch in patches.values() for name in patch}):
        rows = [row for row, patch in patches.items() if name in patch]
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        fresh = pa.array([patches[row][name] for row in rows], field.type)
        index = np.arange(len(table))
        index[rows] = len(table) + np.arange(len(rows))
        column = pa.chunked_array([*table.column(place).chunks, fresh]).take(pa.array(index))
        table = table.set_column(place, field, column)
    return table


def with_numbers(table: pa.Table, name: str, values: NDArray[np.int64], known: NDArray[np.bool_]) -> pa.Table:
    """The table with an integer column exchanged; null where it is not known."""
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, mask=~known).cast(field.type))


def numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """An integer column; -1 where it is null."""
    column = pc.fill_null(table.column(name).cast(pa.int64()), -1)
    return np.array(column.to_numpy(), np.int64)


def encode(path: str, table: pa.Table, name: str) -> tuple[FileEntry, bytes]:
    """The bytes of a file of a release, and its entry in `release.json`.

    Raises:
        ShardError: see `manifests.shard.encode_parquet`.
    """
    shard = name == "shard"
    plain = [column for column in PIXELS if shard and column in table.column_names]
    data = encode_parquet(table, row_group_rows=ROW_GROUP_ROWS if shard else FILE_GROUP_ROWS, plain=plain)
    limits = pc.min_max(table.column("sample_id")).as_py()
    entry = FileEntry(
        path=path,
        bytes=len(data),
        sha256=sha256_hex(data),
        rows=len(table),
        min_id=limits["min"],
        max_id=limits["max"],
        schema=name,
    )
    return entry, data
