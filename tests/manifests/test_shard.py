import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.mask import encode_mask, mask_sha256
from manifests.schema import ATTRIBUTE, SHARD, embedding_schema
from manifests.shard import (
    ASPECTS,
    PIXELS,
    ShardError,
    ShardRow,
    aspect_bucket,
    encode_parquet,
    iter_row_groups,
    read_parquet,
    shard_table,
)


def _row(number: int, **changes: Any) -> ShardRow:
    mask = np.zeros((24, 32), np.bool_)
    mask[4:20, 3 : 9 + number] = True
    image = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
    row = ShardRow(
        sample_id=f"{number:032x}",
        image_jpeg=bytes(cv2.imencode(".jpg", image)[1]),
        mask_png=encode_mask(mask),
        ignore_png=encode_mask(~mask) if number % 2 else None,
        width=32,
        height=24,
        aspect_bucket="4:3",
        weight=1.0,
        label_source="pseudo",
        label_confidence=None if number % 3 else 0.5,
        content_sha256=bytes([number]) * 32,
        mask_sha256=mask_sha256(mask),
    )
    return dataclasses.replace(row, **changes)


def _shard(rows: int = 5) -> pa.Table:
    return shard_table([_row(number) for number in range(rows)])


def _write(folder: Path, table: pa.Table, rows: int = 2) -> Path:
    path = folder / "shard.parquet"
    path.write_bytes(encode_parquet(table, row_group_rows=rows, plain=PIXELS))
    return path


def test_a_shard_comes_back_as_it_was_by_row_groups(tmp_path: Path) -> None:
    table = _shard(5)
    path = _write(tmp_path, table)
    assert read_parquet(path, "shard").equals(table, check_metadata=True)
    assert [len(group) for group in iter_row_groups(path, "shard")] == [2, 2, 1]


def test_a_shard_without_rows_comes_back(tmp_path: Path) -> None:
    assert read_parquet(_write(tmp_path, _shard(0)), "shard").equals(_shard(0))


def test_equal_tables_give_equal_bytes_however_they_are_chunked() -> None:
    table = _shard(6)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 4), table.slice(5)])
    assert encode_parquet(pieces, row_group_rows=4) == encode_parquet(table, row_group_rows=4)


def test_pixels_are_plain_and_the_rest_is_zstd_with_page_index(tmp_path: Path) -> None:
    group = pq.ParquetFile(_write(tmp_path, _shard())).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for path, column in columns.items():
        pixels = path.split(".")[0] in PIXELS
        assert column.compression == ("UNCOMPRESSED" if pixels else "ZSTD")
        assert column.has_offset_index
    for path in ("image.bytes", "mask.bytes", "content_sha256"):
        assert not any("DICTIONARY" in encoding for encoding in columns[path].encodings)


def _error_of(path: Path) -> str | None:
    try:
        read_parquet(path, "shard")
    except ShardError as error:
        return str(error)
    return None


def test_a_flipped_bit_in_the_pages_never_becomes_data(tmp_path: Path) -> None:
    table = _shard(5)
    path = _write(tmp_path, table)
    good = path.read_bytes()
    end = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    found = 0
    for place in np.random.default_rng(0).integers(4, end, 60):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        message = _error_of(path)
        if message is None:
            assert read_parquet(path, "shard").equals(table)  # the flip hit the page index, which holds no data
        else:
            assert message.startswith(f"{path}: row group ")
            found += 1
    assert found > 30


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = _write(tmp_path, _shard())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"shard\.parquet"):
        read_parquet(path, "shard")


def test_a_file_of_another_schema_or_an_absent_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="must be 'manifest', got 'shard'"):
        read_parquet(_write(tmp_path, _shard()), "manifest")
    with pytest.raises(ShardError, match="absent"):
        read_parquet(tmp_path / "absent.parquet", "shard")


def test_hugging_face_shows_images_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    path, cache = _write(tmp_path, _shard(3)), tmp_path / "cache"
    rows = datasets.load_dataset("parquet", data_files=os.fspath(path), cache_dir=os.fspath(cache), split="train")
    expected = cv2.imdecode(np.frombuffer(_row(1).image_jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(np.asarray(rows[1]["image"])[..., ::-1].astype(int) - expected).max() <= 8
    assert rows[1]["mask"].mode == "1"
    assert mask_sha256(np.asarray(rows[1]["mask"])) == rows[1]["mask_sha256"] == _row(1).mask_sha256
    assert rows[0]["ignore"] is None
    assert rows[1]["ignore"].size == (32, 24)


def test_a_null_where_none_may_be_is_named_by_column_and_row() -> None:
    for name in ("width", "image", "mask"):
        column = pa.array([*_shard(3).column(name).to_pylist()[:2], None], SHARD.field(name).type)
        table = _shard(3).set_column(SHARD.get_field_index(name), SHARD.field(name), column)
        with pytest.raises(ShardError, match=rf"'{name}' may not be null, but is in row 2"):
            encode_parquet(table, row_group_rows=2)


def test_a_null_inside_a_struct_is_found_unless_the_struct_is_null() -> None:
    good = {"value": None, "provenance": "unknown", "confidence": None, "source_id": None}
    schema = pa.schema([pa.field("light", ATTRIBUTE)])
    encode_parquet(pa.table({"light": pa.array([good, None], ATTRIBUTE)}, schema), row_group_rows=2)
    bad = pa.table({"light": pa.array([None, good, {**good, "provenance": None}], ATTRIBUTE)}, schema)
    with pytest.raises(ShardError, match=r"'light\.provenance' may not be null, but is in row 2"):
        encode_parquet(bad, row_group_rows=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_float_that_is_not_finite_is_named_by_column_and_row(value: float) -> None:
    place = SHARD.get_field_index("label_confidence")
    table = _shard(3).set_column(place, SHARD.field(place), pa.array([None, 0.5, value], pa.float32()))
    with pytest.raises(ShardError, match=r"'label_confidence' must be finite .* in row 2"):
        encode_parquet(table, row_group_rows=2)
    vectors = pa.array([[0, 1], [2, value]], embedding_schema(2).field("vector").type)
    table = pa.table([pa.array(["a", "b"]), vectors], schema=embedding_schema(2))
    with pytest.raises(ShardError, match=r"'vector\.element' must be finite .* in row 1"):
        encode_parquet(table, row_group_rows=2)


def test_options_that_name_nothing_are_refused() -> None:
    with pytest.raises(ShardError, match="row_group_rows must be >= 1"):
        encode_parquet(_shard(1), row_group_rows=0)
    with pytest.raises(ShardError, match="plain names columns"):
        encode_parquet(_shard(1), row_group_rows=1, plain=["imgae"])


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"weight": math.nan},
        {"weight": -1.0},
        {"aspect_bucket": "2:1"},
        {"label_source": "guess"},
        {"content_sha256": b""},
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_naming_the_field(changes: dict[str, Any]) -> None:
    with pytest.raises(ShardError, match=next(iter(changes))):
        _row(0, **changes)


def test_ids_ascend_within_a_shard() -> None:
    for numbers in [(1, 0), (1, 1)]:
        with pytest.raises(ShardError, match="must ascend"):
            shard_table([_row(number) for number in numbers])


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_aspect_bucket_is_nearest_in_ratio_and_turns_with_the_image(width: int, height: int) -> None:
    found = ASPECTS[aspect_bucket(width, height)]
    ratio = width / height
    distance = max(ratio / found, found / ratio)
    assert all(distance <= max(ratio / other, other / ratio) * (1 + 1e-12) for other in ASPECTS.values())
    if width != height and aspect_bucket(width, height) != aspect_bucket(height, width):
        assert ASPECTS[aspect_bucket(height, width)] == pytest.approx(1 / found)


def test_known_sizes_have_known_buckets() -> None:
    sizes = {(640, 360): "16:9", (1080, 1920): "9:16", (640, 480): "4:3", (480, 640): "3:4", (7, 7): "1:1"}
    assert {size: aspect_bucket(*size) for size in sizes} == sizes
    with pytest.raises(ShardError, match="0x5"):
        aspect_bucket(0, 5)
