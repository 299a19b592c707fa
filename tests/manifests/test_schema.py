import pyarrow as pa
import pytest

from manifests.schema import (
    EVIDENCE,
    MAJOR,
    SCHEMA_VERSION,
    SHARD,
    SINCE,
    SchemaError,
    check_columns,
    check_schema,
    embedding_schema,
    manifest_schema,
)

SCHEMAS = {
    "manifest": manifest_schema(["lighting"]),
    "shard": SHARD,
    "attribute_evidence": EVIDENCE,
    "embedding": embedding_schema(8),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_names_itself_in_the_current_version(name: str) -> None:
    check_schema(SCHEMAS[name], name)
    check_columns(SCHEMAS[name], SCHEMAS[name])


def test_the_manifest_has_53_columns_and_the_verdict_after_the_decision() -> None:
    schema = manifest_schema(["lighting", "indoor"])
    assert len(schema) == len(set(schema.names)) == 53
    place = schema.names.index("decision_by")
    assert schema.names[place + 1 : place + 3] == ["verdict", "judge"]
    assert not schema.field("verdict").nullable
    assert schema.field("judge").nullable
    assert all(part.nullable for part in schema.field("judge").type)
    assert [part.name for part in schema.field("attr").type] == ["lighting", "indoor"]


def test_no_schema_holds_a_dictionary_type() -> None:
    assert not [f for schema in SCHEMAS.values() for f in schema if pa.types.is_dictionary(f.type)]


def test_a_shard_holds_no_attribute_of_a_person() -> None:
    assert not {"attr", "subject_ids", "quota_cell", "group_id"} & set(SHARD.names)


@pytest.mark.parametrize("attributes", [[], ["a", "a"], [""]])
def test_attributes_must_be_distinct_and_at_least_one(attributes: list[str]) -> None:
    with pytest.raises(SchemaError, match="attributes must"):
        manifest_schema(attributes)


@pytest.mark.parametrize("dimension", [0, -1])
def test_an_embedding_has_a_dimension(dimension: int) -> None:
    with pytest.raises(SchemaError, match="dimension must be >= 1"):
        embedding_schema(dimension)


def _versioned(version: str) -> pa.Schema:
    return SHARD.with_metadata({b"curate.schema": b"shard", b"curate.schema_version": version.encode()})


def test_a_greater_minor_version_is_read() -> None:
    check_schema(_versioned(f"{MAJOR}.99"), "shard")


@pytest.mark.parametrize("version", [f"{MAJOR + 1}.0", f"{MAJOR - 1}.7"])
def test_another_major_version_is_refused_naming_both(version: str) -> None:
    with pytest.raises(SchemaError) as caught:
        check_schema(_versioned(version), "shard")
    assert version in str(caught.value)
    assert SCHEMA_VERSION in str(caught.value)


@pytest.mark.parametrize("version", ["1", "1.0.0", "x.y", "-1.0", "1.", "１.０", "9" * 6 + ".0"])
def test_a_malformed_version_is_refused(version: str) -> None:
    with pytest.raises(SchemaError, match=r"MAJOR\.MINOR"):
        check_schema(_versioned(version), "shard")


@pytest.mark.parametrize("metadata", [None, {}, {b"curate.schema": b"shard"}, {b"curate.schema_version": b"1.0"}])
def test_a_table_without_schema_metadata_is_refused(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(SchemaError, match="not a curate table"):
        check_schema(SHARD.with_metadata(metadata), "shard")


def test_a_table_of_another_schema_is_refused() -> None:
    with pytest.raises(SchemaError, match="must be 'manifest', got 'shard'"):
        check_schema(SHARD, "manifest")


def test_a_table_of_a_lower_minor_version_may_lack_the_columns_that_came_later() -> None:
    for name, since in SINCE.items():
        (schema,) = (schema for schema in SCHEMAS.values() if name in schema.names)
        assert schema.field(name).nullable
        without = schema.remove(schema.get_field_index(name))
        older = {**schema.metadata, b"curate.schema_version": f"{MAJOR}.{since - 1}".encode()}
        check_columns(without.with_metadata(older), schema)
        for minor in (since, since + 1):
            metadata = {**older, b"curate.schema_version": f"{MAJOR}.{minor}".encode()}
            with pytest.raises(SchemaError, match=f"'{name}' is missing"):
                check_columns(without.with_metadata(metadata), schema)
        retyped = schema.set(schema.get_field_index(name), pa.field(name, pa.int8())).with_metadata(older)
        with pytest.raises(SchemaError, match=f"'{name}' must be"):
            check_columns(retyped, schema)


def test_a_missing_retyped_or_relaxed_column_is_named_and_a_further_one_is_welcome() -> None:
    check_columns(SHARD.append(pa.field("later", pa.int8())), SHARD)
    place = SHARD.get_field_index("width")
    with pytest.raises(SchemaError, match="'width' is missing"):
        check_columns(SHARD.remove(place), SHARD)
    for field in (pa.field("width", pa.int64(), nullable=False), pa.field("width", pa.int32())):
        with pytest.raises(SchemaError, match="'width' must be int32 not null"):
            check_columns(SHARD.set(place, field), SHARD)
