import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.release import Counts, FileEntry, Release, ReleaseError, fingerprint, render_release, sha256_hex
from manifests.schema import EVIDENCE, SHARD
from manifests.shard import PIXELS, ShardError, ShardRow, encode_parquet, shard_table
from manifests.units import Footers, encoded_bytes, file_state, read_listing, read_unit, units

FILES = ("shards/train/00000-of-00002.parquet", "shards/train/00001-of-00002.parquet")


def _row(number: int) -> ShardRow:
    return ShardRow(
        sample_id=f"{number:032x}",
        image_jpeg=np.random.default_rng(number).bytes(700),
        mask_png=bytes([number]) * 20,
        ignore_png=bytes([number]) * 9 if number % 2 else None,
        width=32,
        height=24,
        aspect_bucket="4:3",
        weight=1.0,
        label_source="pseudo",
        label_confidence=None,
        content_sha256=bytes(32),
        mask_sha256=bytes(32),
    )


def _entry(folder: Path, path: str, schema: str = "shard") -> FileEntry:
    data = (folder / path).read_bytes()
    ids = pq.read_table(folder / path, columns=["sample_id"]).column(0).to_pylist()
    ends = (min(ids), max(ids)) if ids else (None, None)
    digest = sha256_hex(data)
    return FileEntry(
        path=path, bytes=len(data), sha256=digest, rows=len(ids), min_id=ends[0], max_id=ends[1], schema=schema
    )


def _commit(folder: Path, *entries: FileEntry, train: int | None = None) -> None:
    rows = sum(entry.rows or 0 for entry in entries)
    release = Release(
        name="people",
        schemas={"release": "1.0"},
        config_fingerprint="0" * 64,
        parents=(),
        run_id="run",
        tool={"version": "0"},
        packages={},
        seed=0,
        inputs={},
        models=(),
        counts=Counts(read=rows, undecodable=0, duplicate=0, not_sampled=0, dropped=0, held=0, kept=rows),
        splits={"train": rows if train is None else train},
        cells={},
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        erasures=(),
    )
    (folder / "release.json").write_bytes(render_release(release))


def _write(folder: Path, path: str, table: pa.Table, plain: tuple[str, ...] = PIXELS) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(encode_parquet(table, row_group_rows=4, plain=plain))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release of two shards of equal size with ten rows each, in row groups of 4, 4 and 2."""
    place = tmp_path / "releases" / "people"
    for number, path in enumerate(FILES):
        _write(place, path, shard_table([_row(10 * number + row) for row in range(10)]))
    _commit(place, *(_entry(place, path) for path in FILES))
    return place


def test_units_are_the_row_groups_in_order(folder: Path) -> None:
    found = units(folder, "train")
    assert [(unit.path, unit.group, unit.rows) for unit in found] == [
        (folder / path, group, rows) for path in FILES for group, rows in enumerate((4, 4, 2))
    ]
    assert all(unit.bytes > 700 * unit.rows for unit in found)


def test_every_row_comes_back_with_its_bytes(folder: Path) -> None:
    footers = Footers(1)
    number = 0
    for unit in units(folder, "train"):
        table = read_unit(unit, ["sample_id", "image.bytes", "mask.bytes", "ignore.bytes"], footers=footers)
        order = np.arange(unit.rows)[::-1]
        images, masks, ignores = (encoded_bytes(table, name, order)[::-1] for name in PIXELS[:3])
        rows = [_row(number + place) for place in range(unit.rows)]
        assert images == [row.image_jpeg for row in rows]
        assert masks == [row.mask_png for row in rows]
        assert ignores == [row.ignore_png for row in rows]
        assert table.column("sample_id").to_pylist() == [row.sample_id for row in rows]
        number += unit.rows
    assert number == 20


def test_bytes_come_out_of_slices_and_chunks_alike(folder: Path) -> None:
    tables = [read_unit(unit) for unit in units(folder, "train")]
    table = pa.concat_tables([tables[0].slice(1), tables[1], tables[2].slice(1, 1)])
    wanted = [1, 2, 3, 4, 5, 6, 7, 9]
    picked = np.array([7, 0, 3, 3])
    found = encoded_bytes(table, "ignore", picked)
    assert found == [_row(wanted[place]).ignore_png for place in picked]


def test_a_null_image_and_null_bytes_are_none() -> None:
    table = pa.table({"image": pa.array([None, {"bytes": None, "path": "a"}, {"bytes": b"x", "path": None}])})
    assert encoded_bytes(table, "image", np.arange(3)) == [None, None, b"x"]
    nothing = pa.table({"image": pa.array([None], SHARD.field("image").type)})
    assert encoded_bytes(nothing, "image", np.arange(1)) == [None]


def test_a_split_without_rows_has_no_units(folder: Path) -> None:
    assert units(folder, "val") == ()
    with pytest.raises(ShardError, match=r"split must be one of .*got 'dev'"):
        units(folder, "dev")


def test_an_empty_shard_has_no_rows(tmp_path: Path) -> None:
    _write(tmp_path, FILES[0], SHARD.empty_table())
    _commit(tmp_path, _entry(tmp_path, FILES[0]))
    assert sum(unit.rows for unit in units(tmp_path, "train")) == 0


def test_files_that_are_not_listed_are_not_read(folder: Path) -> None:
    (folder / "shards/train/00002-of-00002.parquet").write_bytes(b"surplus")
    assert len(units(folder, "train")) == 6


def test_the_fingerprint_is_of_the_bytes_that_were_parsed(folder: Path) -> None:
    release, digest = read_listing(folder)
    assert digest == fingerprint(render_release(release))


def _swap(folder: Path) -> None:
    """Exchange the two files, in a release that states the sizes as they are then."""
    one, two = (folder / path for path in FILES)
    entries = [_entry(folder, path) for path in FILES]
    sizes = [entry.bytes for entry in reversed(entries)]
    _commit(folder, *(dataclasses.replace(entry, bytes=size) for entry, size in zip(entries, sizes, strict=True)))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "verify", "message"),
    [
        (lambda f: (f / FILES[0]).unlink(), False, "is missing"),
        (lambda f: (f / FILES[0]).write_bytes(b""), False, "has 0 bytes, expected"),
        (lambda f: (f / FILES[0]).write_bytes((f / FILES[0]).read_bytes()[:-1]), False, "truncated"),
        (lambda f: (f / FILES[0]).write_bytes(bytes((f / FILES[0]).stat().st_size)), True, "sha256 is"),
        (lambda f: (f / FILES[0]).write_bytes(bytes((f / FILES[0]).stat().st_size)), False, "magic bytes"),
        (lambda f: _flip(f / FILES[0], 300), True, "the bytes have changed"),
        (lambda f: _flip(f / FILES[0], -200), True, "the bytes have changed"),
        (_swap, True, "the bytes have changed"),
    ],
)
def test_a_damaged_file_is_named_before_the_first_row(
    folder: Path, damage: Callable[[Path], object], verify: bool, message: str
) -> None:
    damage(folder)
    with pytest.raises(ShardError, match=f"{FILES[0]}: .*{message}.*copy the file again; `curate verify {folder}`"):
        units(folder, "train", verify=verify)


def test_a_link_out_of_the_release_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / FILES[0]).rename(tmp_path / "elsewhere")
    (folder / FILES[0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match="is a link that leaves the release"):
        units(folder, "train")


def test_another_schema_is_refused(folder: Path) -> None:
    rows = [{"sample_id": "0", "name": "x", "provenance": "human", "source_id": "me", "recorded_at": 0}]
    _write(folder, FILES[0], pa.Table.from_pylist(rows, EVIDENCE), ())
    _commit(folder, _entry(folder, FILES[0]))
    with pytest.raises(ShardError, match=r"curate.schema must be 'shard', got 'attribute_evidence'"):
        units(folder, "train")
    _commit(folder, _entry(folder, FILES[0], "attribute_evidence"))
    with pytest.raises(ShardError, match="must have schema 'shard', got 'attribute_evidence'"):
        units(folder, "train")


def test_a_missing_column_is_refused(folder: Path) -> None:
    _write(folder, FILES[0], shard_table([_row(0)]).drop_columns(["weight"]))
    _commit(folder, _entry(folder, FILES[0]))
    with pytest.raises(ShardError, match="column 'weight' is missing"):
        units(folder, "train")


def test_rows_that_do_not_add_up_are_refused(folder: Path) -> None:
    entries = [_entry(folder, path) for path in FILES]
    _commit(folder, *entries, train=21)
    with pytest.raises(ShardError, match="hold 20 rows, but splits says 21"):
        units(folder, "train")
    _commit(folder, dataclasses.replace(entries[0], rows=11), entries[1])
    with pytest.raises(ShardError, match="has 10 rows, expected 11"):
        units(folder, "train")


def test_a_folder_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no release is here"):
        units(tmp_path, "train")


def test_a_flipped_bit_in_any_page_of_pixels_names_file_and_row_group(folder: Path) -> None:
    found = units(folder, "train")
    path = found[0].path
    good = path.read_bytes()
    file = pq.ParquetFile(path).metadata
    for group in range(3):
        column = file.row_group(group).column(1)
        assert column.path_in_schema == "image.bytes"
        last = column.data_page_offset + column.total_compressed_size - 1
        for place in range(last - 1400, last, 97):
            _flip(path, place)
            expected = re.escape(f"{path}: row group {group}: ") + ".*copy the file again"
            with pytest.raises(ShardError, match=expected):
                read_unit(found[group], ["image.bytes"])
            path.write_bytes(good)


def test_a_file_that_changes_after_it_was_opened_is_an_error(folder: Path) -> None:
    found = units(folder, "train")
    footers = Footers()
    read_unit(found[2], footers=footers)
    with pytest.raises(ShardError, match="row group 2: has 2 rows, expected 3"):
        read_unit(dataclasses.replace(found[2], rows=3))
    _write(folder, FILES[0], shard_table([_row(0), _row(1)]))
    with pytest.raises(ShardError, match="row group 2: the file was exchanged while it was in use"):
        read_unit(found[2])
    unseen = dataclasses.replace(found[2], state=file_state(found[2].path))
    with pytest.raises(ShardError, match="row group 2: is not in the file, which has 1 row groups"):
        read_unit(unseen, footers=footers)
    found[2].path.unlink()
    with pytest.raises(ShardError, match=r"row group 2: .*No such file"):
        read_unit(found[2], footers=footers)
