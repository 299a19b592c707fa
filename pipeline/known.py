"""What is known of each frame, as columns beside it: given by the user, told by the mask, or computed from pixels."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attributes import COMPUTED, Given
from pipeline.mask_attributes import MASK_ATTRIBUTES
from pipeline.quota import OF_SOURCE

GIVEN = "given."
"""Prefix of the columns that hold what the user gave."""

MASK = "mask."
"""Prefix of the columns that hold the classes of ``MASK_ATTRIBUTES``."""

MASK_CONFIDENCE = "mask_confidence."
"""Prefix of the columns that hold their confidence, in [0, 1]; null where the class is."""

_OF_VIDEO = frozenset(("background_dynamics", "camera_motion", "frame_motion", "subject_motion"))


def with_given(rows: pa.Table, given: Given | None) -> pa.Table:
    """The rows with a column for each attribute that the user gave."""
    if given is None:
        return rows
    values = [given.of(uri) for uri in rows.column("source_uri").to_pylist()]
    for i, name in enumerate(given.names):
        rows = rows.append_column(GIVEN + name, pa.array([row[i] for row in values], pa.string()))
    return rows


def with_masks(rows: pa.Table, labels: pa.Table) -> pa.Table:
    """The rows with what the label table, row for row, says of their masks."""
    for prefix in (MASK, MASK_CONFIDENCE):
        for name in MASK_ATTRIBUTES:
            rows = rows.append_column(prefix + name, labels.column(prefix + name))
    return rows


def mask_columns() -> list[str]:
    """The columns of the label table that ``with_masks`` reads."""
    return [prefix + name for prefix in (MASK, MASK_CONFIDENCE) for name in MASK_ATTRIBUTES]


def effective(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """An attribute's values: what the user gave, else what the mask tells, else what was computed, else null."""
    own = (name,) if name in COMPUTED or name == OF_SOURCE else ()  # no other column of a row is an attribute
    columns = [rows.column(c) for c in (GIVEN + name, MASK + name, *own) if c in rows.column_names]
    return pc.coalesce(*columns) if columns else pa.chunked_array([pa.nulls(rows.num_rows, pa.string())])


def in_balance(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """``effective``, as the plan sees it: of a still picture motion is not unknown, its class is "picture"."""
    values = effective(rows, name)
    if name not in _OF_VIDEO:
        return values
    still = pc.and_(pc.is_null(values), pc.is_null(rows.column("frame_pts_us")))
    return pc.if_else(still, "picture", values)


def given_names(rows: pa.Table) -> list[str]:
    """The attributes that the user gave."""
    return [name.removeprefix(GIVEN) for name in rows.column_names if name.startswith(GIVEN)]


def attribute_names(rows: pa.Table) -> list[str]:
    """All attributes that something may be known of, sorted."""
    return sorted({*COMPUTED, *MASK_ATTRIBUTES, *given_names(rows)})
