"""The Arrow schemas of a data set: manifest, shard, evidence, embedding; and the rule of their versions.

Strings are plain (dictionaries that differ between files cannot be grouped), a column that must be known is declared
non-nullable, and "not known" is a null with provenance `unknown`, never a default.
A minor version adds nullable columns; a major version changes or removes one.
"""

from collections.abc import Sequence

import pyarrow as pa

MAJOR = 1
MINOR = 2
SCHEMA_VERSION = f"{MAJOR}.{MINOR}"
SCHEMA_NAMES = ("manifest", "shard", "attribute_evidence", "embedding")
SINCE = {"persons": 1, "teacher_mask": 2}
"""The minor version that brought a column, where it was not 0: tables of lower versions lack it."""

DECISIONS = ("keep", "drop", "hold")
VERDICTS = ("keep", "drop", "hold", "correct", "weight", "none")
LABEL_SOURCES = ("pseudo", "human", "human_corrected", "none")
PROVENANCES = ("human", "model", "source", "unknown")
SPLITS = ("train", "val", "test")
MASK_SPLITS = (*SPLITS, "hold", "audit")
"""Folders below `shards/`: the three splits, the held rows, and a sample of the dropped rows."""


class SchemaError(ValueError):
    """A table whose schema this version cannot read or write; the message says which and what to do."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_required("element", kind))


def _metadata(name: str) -> dict[bytes, bytes]:
    return {b"curate.schema": name.encode(), b"curate.schema_version": SCHEMA_VERSION.encode()}


_TEXT = pa.string()
_SHA256 = pa.binary(32)
_INSTANT = pa.timestamp("us", tz="UTC")

ATTRIBUTE = pa.struct(
    [
        pa.field("value", _TEXT),
        _required("provenance", _TEXT),
        pa.field("confidence", pa.float32()),
        pa.field("source_id", _TEXT),
    ]
)
"""One attribute of one sample: the winning value and where it comes from (one of PROVENANCES)."""

JUDGE = pa.struct(
    [
        pa.field("q", pa.float32()),
        pa.field("miss", pa.float32()),
        pa.field("extra", pa.float32()),
        pa.field("stability", pa.float32()),
        pa.field("fold", pa.int16()),
        pa.field("cluster", _TEXT),
        pa.field("gate", _TEXT),
        pa.field("calibrated", pa.bool_()),
        pa.field("student_area", pa.float32()),
    ]
)
"""What the students of the other folds say of a pseudo label; null where no judge looked."""

PERSON = pa.struct([_required(name, pa.float32()) for name in ("x0", "y0", "x1", "y1", "score")])
"""A person that the teacher detected: a box in pixels of the frame, and its score."""

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", _TEXT)])
"""An encoded image as Hugging Face `Image` stores it; `path` may be null."""


def manifest_schema(attributes: Sequence[str]) -> pa.Schema:
    """The schema of `manifest/` and `dropped/`: one row per sample, without pixels.

    Args:
        attributes: names of the attributes, in the order of the `attr` struct; at least one, none twice.

    Raises:
        SchemaError: no attribute (Parquet has no empty struct), an empty name, or a name twice.
    """
    if not attributes:
        raise SchemaError(
            "attributes must name at least one attribute (Parquet cannot store an empty struct), got none"
        )
    if "" in attributes or len(set(attributes)) != len(attributes):
        raise SchemaError(f"attributes must be distinct non-empty names, got {list(attributes)}")
    attr = pa.struct([_required(name, ATTRIBUTE) for name in attributes])
    fields = [*_IDENTITY, _required("attr", attr), *_LABEL, *_DECISION]
    return pa.schema(fields, metadata=_metadata("manifest"))


_IDENTITY = [
    _required("sample_id", _TEXT),  # 32 hex: blake2b-128 of content hash and frame time
    _required("content_sha256", _SHA256),
    _required("source_uri", _TEXT),
    _required("source_sha256", _SHA256),
    _required("media_kind", _TEXT),
    pa.field("frame_index", pa.int32()),
    pa.field("frame_pts_us", pa.int64()),
    pa.field("captured_at", _INSTANT),
    _required("width", pa.int32()),
    _required("height", pa.int32()),
    _required("exif_orientation", pa.int8()),
    _required("aspect_bucket", _TEXT),
    pa.field("dhash64", pa.uint64()),
    _required("group_id", _TEXT),  # what must stay in one split
    _required("embedding_model", _TEXT),
    pa.field("embedding_shard", pa.int32()),
    pa.field("embedding_row", pa.int32()),
    _required("cluster_path", _list(pa.int32())),
    pa.field("cluster_distance", pa.float32()),
]

_LABEL = [
    pa.field("n_persons", pa.int16()),
    pa.field("persons", _list(PERSON)),  # null where the teacher knows no instances; by falling score
    _required("label_source", _TEXT),  # one of LABEL_SOURCES
    pa.field("teacher_id", _TEXT),
    pa.field("teacher_sha256", _SHA256),
    pa.field("mask_sha256", _SHA256),  # of the bitmap, not of its file: see manifests.mask
    pa.field("mask_area_px", pa.int32()),
    pa.field("mask_components", pa.int16()),
    pa.field("label_confidence", pa.float32()),
    pa.field("boundary_uncertainty", pa.float32()),
    pa.field("student_id", _TEXT),
    pa.field("student_sha256", _SHA256),
    pa.field("student_iou", pa.float32()),
    pa.field("student_boundary_iou", pa.float32()),
    pa.field("temporal_iou", pa.float32()),
]

_DECISION = [
    _required("decision", _TEXT),  # one of DECISIONS
    _required("decision_reasons", _list(_TEXT)),
    pa.field("decision_by", _TEXT),
    _required("verdict", _TEXT),  # one of VERDICTS
    pa.field("judge", JUDGE),
    _required("quota_cell", _TEXT),
    pa.field("inclusion_prob", pa.float64()),
    pa.field("sampling_weight", pa.float64()),
    _required("sampling_round", pa.int16()),
    _required("split", _TEXT),  # train, val or test; "hold" for held and "dropped" for dropped rows
    _required("licence", _TEXT),
    pa.field("consent_ref", _TEXT),
    _required("consent_status", _TEXT),
    pa.field("retention_until", pa.date32()),
    _required("subject_ids", _list(_TEXT)),
    pa.field("shard", pa.int32()),
    pa.field("shard_row", pa.int32()),
    _required("run_id", _TEXT),
]

SHARD = pa.schema(
    [
        _required("sample_id", _TEXT),
        # Never null (manifests.shard checks it), yet declared nullable: `datasets` decodes no non-nullable column.
        pa.field("image", IMAGE),
        pa.field("mask", IMAGE),
        pa.field("ignore", IMAGE),
        pa.field("teacher_mask", IMAGE),  # what the teacher had said, where `mask` says something else
        _required("width", pa.int32()),
        _required("height", pa.int32()),
        _required("aspect_bucket", _TEXT),
        _required("weight", pa.float32()),
        _required("label_source", _TEXT),
        pa.field("label_confidence", pa.float32()),
        _required("content_sha256", _SHA256),
        _required("mask_sha256", _SHA256),
    ],
    metadata=_metadata("shard"),
)
"""What the trainer reads: pixels and masks, and no attribute of a person."""

EVIDENCE = pa.schema(
    [
        _required("sample_id", _TEXT),
        _required("name", _TEXT),
        pa.field("value", _TEXT),
        _required("provenance", _TEXT),
        _required("source_id", _TEXT),
        pa.field("source_sha256", _SHA256),
        pa.field("confidence", pa.float32()),
        _required("recorded_at", _INSTANT),
    ],
    metadata=_metadata("attribute_evidence"),
)
"""Every assertion on an attribute, one row each; the manifest holds only the winners."""


def embedding_schema(dimension: int) -> pa.Schema:
    """The schema of `embeddings/`: one float16 vector of `dimension` numbers per sample."""
    if dimension < 1:
        raise SchemaError(f"embedding dimension must be >= 1, got {dimension}")
    vector = pa.list_(_required("element", pa.float16()), dimension)
    return pa.schema([_required("sample_id", _TEXT), _required("vector", vector)], metadata=_metadata("embedding"))


def check_schema(schema: pa.Schema, name: str) -> None:
    """Check that `schema` says it is `name` in a version this code reads (the same major version).

    Raises:
        SchemaError: the metadata is missing or malformed, names another schema, or has another major version.
    """
    metadata = schema.metadata or {}
    found = metadata.get(b"curate.schema", b"").decode(errors="replace")
    version = metadata.get(b"curate.schema_version", b"").decode(errors="replace")
    if not found or not version:
        raise SchemaError(
            f"not a curate table: metadata curate.schema is {found!r} and curate.schema_version {version!r}; "
            f"expected {name!r} {SCHEMA_VERSION}"
        )
    if found != name:
        raise SchemaError(f"curate.schema must be {name!r}, got {found!r}; was another file put in its place?")
    check_version(version, name)


def check_version(version: str, name: str) -> None:
    """Check that this code reads `version`, a MAJOR.MINOR string, of the schema `name`.

    Raises:
        SchemaError: `version` is malformed, or its major version is not MAJOR.
    """
    parts = version.split(".")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise SchemaError(f"version of {name!r} must be MAJOR.MINOR, got {version!r}")
    major = int(parts[0])
    if major > MAJOR:
        raise SchemaError(f"{name!r} has version {version}, this curate reads {SCHEMA_VERSION}; use a newer curate")
    if major < MAJOR:
        raise SchemaError(f"{name!r} has version {version}, this curate reads {SCHEMA_VERSION}; publish it again")


def check_columns(schema: pa.Schema, expected: pa.Schema) -> None:
    """Check that every field of `expected` is in `schema` with its type; columns beyond those are welcome.

    A table of a lower minor version may lack the columns that came later.

    Raises:
        SchemaError: names the first missing or differing column.
    """
    minor = _minor(schema)
    for field in expected:
        index = schema.get_field_index(field.name)
        if field.name not in schema.names and SINCE.get(field.name, 0) > minor:
            continue
        if index < 0:
            raise SchemaError(f"column {field.name!r} is missing, or there twice")
        if not schema.field(index).equals(field):
            raise SchemaError(f"column {field.name!r} must be {_shown(field)}, got {_shown(schema.field(index))}")


def _minor(schema: pa.Schema) -> int:
    """The minor version that a schema states; this one's where it states none."""
    parts = (schema.metadata or {}).get(b"curate.schema_version", SCHEMA_VERSION.encode()).decode().split(".")
    return int(parts[1])


def _shown(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"
