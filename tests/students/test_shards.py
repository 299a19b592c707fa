import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import students.shards
from manifests.release import Counts, FileEntry, Release, canonical_json, fingerprint, render_release, sha256_hex
from manifests.schema import SHARD
from manifests.shard import ShardError, ShardRow, aspect_bucket, shard_table
from manifests.signature import SignatureError, sign
from manifests.signoff import UnsignedError, review_folder
from manifests.units import Unit, file_state
from students.data import bucket_sizes, nearest_bucket
from students.shards import Shards, open_shards
from students.views import Encoded
from tests.manifests.test_signature import allow, make_key

SHAPES = ((24, 32), (32, 24), (30, 30), (36, 64))
SIZES = bucket_sizes(64)
ROWS, GROUP, FILES = 19, 4, 3


def _row(number: int, **changes: Any) -> ShardRow:
    height, width = SHAPES[number % 7 % 4]
    row = ShardRow(
        sample_id=f"{number:032x}",
        image_jpeg=np.random.default_rng(number).bytes(900 + number),
        mask_png=bytes([number]) * 20,
        ignore_png=bytes([number]) * 9 if number % 2 else None,
        width=width,
        height=height,
        aspect_bucket=aspect_bucket(width, height),
        weight=number % 3 / 2,
        label_source=("pseudo", "human", "human_corrected", "none")[number % 4],
        label_confidence=None,
        content_sha256=bytes(32),
        mask_sha256=bytes(32),
    )
    return dataclasses.replace(row, **changes)


def _publish(folder: Path, tables: Sequence[pa.Table], **ends: str) -> Path:
    entries = []
    for number, table in enumerate(tables):
        path = f"shards/train/{number:05d}-of-{len(tables):05d}.parquet"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(_encode(table))
        data, ids = (folder / path).read_bytes(), table.column("sample_id").to_pylist()
        entry = FileEntry(
            path=path,
            bytes=len(data),
            sha256=sha256_hex(data),
            rows=len(ids),
            min_id=min(ids, default=None),
            max_id=max(ids, default=None),
            schema="shard",
        )
        entries.append(dataclasses.replace(entry, **ends))
    rows = sum(map(len, tables))
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
        splits={"train": rows},
        cells={},
        files=tuple(entries),
        erasures=(),
    )
    (folder / "release.json").write_bytes(render_release(release))
    return folder


def _encode(table: pa.Table) -> bytes:
    """As the writer does, but without its checks: what it would refuse must be refused by the reader too."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=GROUP, write_page_checksum=True, compression="none")
    return bytes(sink.getvalue().to_pybytes())


def _table(numbers: Sequence[int], **changes: Any) -> pa.Table:
    return shard_table([_row(number, **changes) for number in numbers])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of 57 samples in three shards, each in row groups of 4, 4, 4, 4 and 3."""
    place = tmp_path_factory.mktemp("shards") / "releases" / "people"
    return _publish(place, [_table(range(ROWS * file, ROWS * (file + 1))) for file in range(FILES)])


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return open_shards(folder)


def _expected(number: int) -> dict[str, Any]:
    row = _row(number)
    return {
        "name": row.sample_id,
        "image": row.image_jpeg,
        "mask": row.mask_png,
        "ignore": row.ignore_png,
        "height": row.height,
        "width": row.width,
        "weight": row.weight,
        "gold": row.label_source in ("human", "human_corrected"),
    }


def _names(batch: Sequence[Encoded]) -> list[int]:
    return [int(sample.name, 16) for sample in batch]


def test_the_index_says_what_the_rows_say(folder: Path, shards: Shards) -> None:
    rows = [_row(number) for number in range(len(shards))]
    assert len(shards) == ROWS * FILES == shards.rows.sum()
    assert shards.fingerprint == fingerprint((folder / "release.json").read_bytes())
    assert shards.names.to_pylist() == [row.sample_id for row in rows]
    assert shards.heights.tolist() == [row.height for row in rows]
    assert shards.widths.tolist() == [row.width for row in rows]
    assert shards.weights.tolist() == [row.weight for row in rows]
    assert shards.gold.tolist() == [row.label_source in ("human", "human_corrected") for row in rows]
    found = shards.buckets(SIZES)
    assert [SIZES[bucket] for bucket in found] == [nearest_bucket(row.height, row.width, SIZES) for row in rows]


def test_opening_reads_no_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def read(unit: Unit, columns: Sequence[str], **more: Any) -> pa.Table:
        seen.update(columns)
        return _read_unit(unit, columns, **more)

    _read_unit = students.shards.read_unit
    monkeypatch.setattr(students.shards, "read_unit", read)
    open_shards(folder)
    assert seen == {"sample_id", "width", "height", "weight", "label_source"}


@given(batches=st.lists(st.lists(st.integers(0, ROWS * FILES - 1), max_size=6), max_size=12), held=st.integers(0, 60))
def test_any_batches_come_back_in_order_whatever_is_held(shards: Shards, batches: list[list[int]], held: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(students.shards, "HELD_BYTES", held * 1000)
        patch.setattr(students.shards, "HORIZON", 1 + held)
        found = list(shards.read(batches))
    assert [_names(batch) for batch in found] == batches
    for sample in itertools.chain(*found):
        assert {name: getattr(sample, name) for name in Encoded.__slots__} == _expected(int(sample.name, 16))


@given(batch=st.integers(1, 9), seed=st.integers(0, 9), data=st.data())
def test_a_resume_anywhere_gives_each_sample_exactly_once(
    shards: Shards, batch: int, seed: int, data: st.DataObject
) -> None:
    schedule = shards.schedule(sizes=SIZES, batch=batch, seed=seed)
    stop = data.draw(st.integers(0, schedule.steps))
    before = shards.read(schedule.batch(step)[1] for step in range(schedule.steps))
    again = open_shards(shards.folder, verify=False)
    resumed = again.schedule(sizes=SIZES, batch=batch, seed=seed)
    after = again.read(resumed.batch(step)[1] for step in range(stop, resumed.steps))
    read = [number for one in (*itertools.islice(before, stop), *after) for number in _names(one)]
    assert sorted(read) == list(range(len(shards)))


class _Counted:
    """Counts the reads of units with pixels."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.units: list[tuple[str, int]] = []
        self._read = students.shards.read_unit
        patch.setattr(students.shards, "read_unit", self)

    def __call__(self, unit: Unit, columns: Sequence[str], **more: Any) -> pa.Table:
        self.units.append((unit.path.name, unit.group))
        return self._read(unit, columns, **more)


def test_an_epoch_of_a_schedule_reads_every_unit_once(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    schedule = shards.schedule(sizes=SIZES, batch=5, seed=1)
    assert len(list(shards.read(schedule.batch(step)[1] for step in range(schedule.steps)))) == schedule.steps
    assert len(counted.units) == len(set(counted.units)) == len(shards.units)


def test_a_start_late_in_an_epoch_reads_only_what_is_needed(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    schedule = shards.schedule(sizes=SIZES, batch=1, seed=1)
    needed = [schedule.batch(step)[1].item() for step in range(schedule.steps - 3, schedule.steps)]
    starts = np.cumsum(shards.rows)
    list(shards.read([[number] for number in needed]))
    assert len(counted.units) == len({int(np.searchsorted(starts, number, "right")) for number in needed})


def test_what_is_held_stays_below_the_limit(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students.shards, "HELD_BYTES", 9000)
    most, order = 0, np.random.default_rng(0).permutation(len(shards)).reshape(-1, 3)
    reading = students.shards._Reading(shards=shards)
    for batch in reading.run(order):
        held = sum(len(sample.image) + len(sample.mask) + len(sample.ignore or b"") for sample in reading.held.values())
        assert reading.taken == held
        most = max(most, held)
        assert len(batch) == 3
    assert 0 < most <= 9000
    assert not reading.held


def test_endless_batches_are_drawn_no_further_than_the_horizon(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students.shards, "HORIZON", 20)
    drawn = itertools.count()
    found = shards.read([next(drawn) % len(shards)] for _ in itertools.repeat(0))
    assert [_names(next(found)) for _ in range(100)] == [[number % len(shards)] for number in range(100)]
    assert next(drawn) <= 120


@pytest.mark.slow
def test_the_real_reader_stays_below_300_mb_above_its_imports(tmp_path: Path) -> None:
    large = [_row(number, image_jpeg=bytes(500_000)) for number in range(100)]
    tables = [
        shard_table([dataclasses.replace(row, sample_id=f"{n}{row.sample_id}") for row in large]) for n in "01234567"
    ]
    place = _publish(tmp_path, tables)
    code = (
        "import sys, pathlib; from students.shards import open_shards; from students.data import bucket_sizes\n"
        "peak = lambda: int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); shards = open_shards(pathlib.Path(sys.argv[1]))\n"
        "schedule = shards.schedule(sizes=bucket_sizes(64), batch=16, seed=0)\n"
        "steps = range(2 * schedule.steps)\n"
        "print(sum(len(batch) for batch in shards.read(schedule.batch(step)[1] for step in steps)))\n"
        "print((peak() - before) // 1024)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    samples, peak = (int(line) for line in done.stdout.split())
    assert samples == 1600
    assert peak < 300  # the data has 400 MB


def test_an_empty_split_opens_and_cannot_be_trained_on(folder: Path) -> None:
    empty = open_shards(folder, "val")
    assert len(empty) == 0
    assert empty.heights.dtype == np.int32
    assert list(empty.read([])) == []
    with pytest.raises(ValueError, match=r"split 'val' of .* holds no sample"):
        empty.schedule(sizes=SIZES, batch=2, seed=0)


def test_a_release_of_one_image_gives_one_batch_per_epoch(tmp_path: Path) -> None:
    one = open_shards(_publish(tmp_path, [_table([5])]))
    schedule = one.schedule(sizes=SIZES, batch=16, seed=0)
    assert schedule.steps == 1
    assert [_names(batch) for batch in one.read(schedule.batch(step)[1] for step in range(3))] == [[5]] * 3


def test_a_sample_that_is_not_there_is_refused(shards: Shards) -> None:
    for number in (-1, len(shards)):
        with pytest.raises(IndexError, match=f"got {number}"):
            list(shards.read([[number]]))


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_row_without_pixels_names_sample_file_and_row_group(tmp_path: Path, column: str) -> None:
    table = _table(range(6))
    place = table.column_names.index(column)
    values = table.column(column).to_pylist()
    values[5] = None
    table = table.set_column(place, SHARD.field(column), pa.array(values, SHARD.field(column).type))
    shards = open_shards(_publish(tmp_path, [table]))
    assert len(next(shards.read([[4]]))) == 1
    with pytest.raises(ShardError, match=rf"00000-of-00001.parquet: row group 1: sample 0*5 has no {column}"):
        list(shards.read([[5]]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("height", 0, "width and height must be >= 1"),
        ("width", -3, "width and height must be >= 1"),
        ("weight", -1.0, "weight must be finite"),
        ("weight", float("nan"), "weight must be finite"),
        ("label_source", "magic", "label_source must be one of"),
    ],
)
def test_a_value_out_of_range_is_refused_when_opened(tmp_path: Path, name: str, value: object, message: str) -> None:
    table = _table(range(6))
    field = SHARD.field(name)
    values = [*table.column(name).to_pylist()[:-1], value]
    table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    with pytest.raises(ShardError, match=f"row group 1: {message}.*sample_id.*{5:032x}"):
        open_shards(_publish(tmp_path, [table]))


def test_another_file_is_told_by_its_ids_without_any_hash(tmp_path: Path) -> None:
    _publish(tmp_path, [_table([1, 2])], max_id=f"{4:032x}")
    with pytest.raises(ShardError, match=r"holds ids .*another file; copy the file again"):
        open_shards(tmp_path, verify=False)


@pytest.mark.parametrize("rows", [[1, 3], [1, 2]], ids=["other samples", "the same names"])
def test_a_file_exchanged_while_training_is_an_error(tmp_path: Path, rows: list[int]) -> None:
    shards = open_shards(_publish(tmp_path, [_table([1, 2])]))
    path = tmp_path / "shards/train/00000-of-00001.parquet"
    path.write_bytes(_encode(_table(rows)))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ShardError, match="row group 0: the file was exchanged while it was in use"):
        list(shards.read([[0]]))


def test_a_file_exchanged_in_silence_is_told_by_its_samples(tmp_path: Path) -> None:
    shards = open_shards(_publish(tmp_path, [_table([1, 2])]))
    path = tmp_path / "shards/train/00000-of-00001.parquet"
    path.write_bytes(_encode(_table([1, 3])))
    units = tuple(dataclasses.replace(unit, state=file_state(path)) for unit in shards.units)
    shards = dataclasses.replace(shards, units=units)
    with pytest.raises(ShardError, match="row group 0: holds other samples than when it was opened"):
        list(shards.read([[0]]))


def test_a_flipped_bit_is_an_error_when_its_batch_is_read(tmp_path: Path) -> None:
    shards = open_shards(_publish(tmp_path, [_table(range(8))]))
    path = tmp_path / "shards/train/00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    place = data.index(_row(6).image_jpeg)
    data[place + 100] ^= 4
    state = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # bits that rot leave no date
    found = shards.read([[0], [6]])
    assert _names(next(found)) == [0]
    with pytest.raises(ShardError, match=r"row group 1: .*checksum.*curate verify"):
        next(found)
    with pytest.raises(ShardError, match="the bytes have changed"):
        open_shards(tmp_path)


def _sign_off(folder: Path, name: str) -> Path:
    """The first event of the log of a release: somebody signs it off."""
    digest = fingerprint((folder / "release.json").read_bytes())
    event = {"seq": 0, "prev": None, "release": digest, "type": "signoff", "tool": "test", "at": "2026-01-01T00:00:00Z"}
    log = review_folder(folder, digest)
    log.mkdir(parents=True)
    path = log / f"{0:020d}.json"
    path.write_bytes(canonical_json({**event, "reviewer": {"name": name, "how_known": "seen"}}))
    return path


def test_require_signoff_refuses_until_a_person_has_signed(tmp_path: Path) -> None:
    folder = _publish(tmp_path / "releases" / "people", [_table([1])])
    assert len(open_shards(folder)) == 1
    with pytest.raises(UnsignedError, match="has no sign-off"):
        open_shards(folder, require_signoff=True)
    _sign_off(folder, "A")
    assert len(open_shards(folder, require_signoff=True)) == 1


def test_allowed_signers_refuse_a_sign_off_that_none_of_them_signed(tmp_path: Path) -> None:
    folder = _publish(tmp_path / "releases" / "people", [_table([1])])
    known, unknown = make_key(tmp_path), make_key(tmp_path, "unknown")
    allowed = allow(tmp_path, known)
    with pytest.raises(UnsignedError, match="no event signs it off"):
        open_shards(folder, allowed_signers=allowed)
    event = _sign_off(folder, "Ada Lovelace")
    assert len(open_shards(folder, require_signoff=True)) == 1
    with pytest.raises(UnsignedError, match="the signature is missing"):
        open_shards(folder, allowed_signers=allowed)
    path = sign(event, unknown)
    with pytest.raises(UnsignedError, match="event 0, by 'Ada Lovelace': the signature is not one of 'Ada Lovelace'"):
        open_shards(folder, require_signoff=True, allowed_signers=allowed)
    path.unlink()
    sign(event, known)
    assert len(open_shards(folder, allowed_signers=allowed)) == 1
    with pytest.raises(UnsignedError, match="not one of 'Ada Lovelace'"):
        open_shards(folder, allowed_signers=allow(tmp_path, known, who="Eve"))
    with pytest.raises(SignatureError, match="no file of allowed signers"):
        open_shards(folder, allowed_signers=tmp_path / "absent")
