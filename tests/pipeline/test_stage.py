"""Laws of a stage: a task is committed or absent, its bytes follow from its input, its folder from all that tells."""

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import InputError, StageError, StorageError
from pipeline.stage import (
    MANIFEST,
    Done,
    Output,
    Part,
    Span,
    Task,
    collect,
    commit_name,
    committed,
    failures,
    fingerprint,
    identity,
    iter_tables,
    not_identity,
    read_manifest,
    read_span,
    run_task,
    stage_folder,
    write_manifest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rate: float = 1.0
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    name: ClassVar[str] = "example"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pyarrow")

    inner: Inner = dataclasses.field(default_factory=Inner)
    sha256: str = "0"
    uri: str = not_identity(default="/here")

    def open(self) -> Callable[[Task], Output]:
        return make


def make(task: Task) -> Output:
    rows = list(range(task.index * 10, task.index * 10 + 10))
    faults = [{"source": f"s{task.index}", "stage": "example", "error": "Odd", "message": "odd", "items": 1}]
    side = pa.table({"side": pa.array(rows[:2])})
    counts = {"read": 10, f"only{task.index}": 1}
    return Output(table=pa.table({"row": pa.array(rows)}), counts=counts, faults=faults, extra={"rows": side})


def task_of(folder: Path | str, index: int, count: int = 3) -> Task:
    return Task(index=index, count=count, folder=str(folder), spans=())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stage(folder: Path, order: Sequence[int] = (0, 1, 2)) -> Done:
    for index in order:
        run_task(make, task_of(folder, index))
    return collect("example", str(folder), 3)


# Fingerprints ---------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_all_that_changes_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(
        stage: str = "s",
        version: int = 1,
        config: Any = None,
        inputs: Sequence[str] = ("x", "y"),
        libraries: Sequence[str] = ("numpy",),
    ) -> str:
        return fingerprint(stage, version, config or Example(), inputs, libraries)

    before = name()
    assert name() == before
    assert len(before) == 20
    assert int(before, 16) >= 0
    changed = [
        name(stage="t"),
        name(version=2),
        name(config=Example(sha256="1")),
        name(config=Example(inner=Inner(rate=2.0))),
        name(config=Example(inner=Inner(names=("b", "a")))),
        name(inputs=("y", "x")),
        name(inputs=("x",)),
        name(inputs=("xy",)),
        name(libraries=("numpy", "pyarrow")),
    ]
    monkeypatch.setattr(importlib.metadata, "version", lambda library: f"{library}-next")
    changed.append(name())
    assert len({before, *changed}) == len(changed) + 1


def test_a_field_of_no_identity_changes_no_fingerprint() -> None:
    assert (
        identity(Example(uri="/there"))
        == identity(Example())
        == {"inner": {"rate": 1.0, "names": ["a", "b"]}, "sha256": "0"}
    )
    assert identity({"deep": [Example(uri="/there")]}) == identity({"deep": (Example(),)})
    assert stage_folder("/r", Example(uri="/there"), ["x"]) == stage_folder("/r", Example(), ["x"])
    assert stage_folder("/r", Example(), ["x"]).startswith("/r/example/")


def test_the_order_of_libraries_changes_no_fingerprint() -> None:
    assert fingerprint("s", 1, None, [], ["numpy", "pyarrow"]) == fingerprint("s", 1, None, [], ["pyarrow", "numpy"])


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_a_task_done_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run_task(make, task_of(tmp_path, 1))
    before = files(tmp_path)
    run_task(make, task_of(tmp_path, 1))
    after = files(tmp_path)
    assert sorted(before) == ["_commits/00001.json", "part-00001-of-00003.parquet", "rows-00001-of-00003.parquet"]
    assert {n: b for n, b in before.items() if "_commits" not in n} == {
        n: b for n, b in after.items() if "_commits" not in n
    }
    records = [json.loads(content["_commits/00001.json"]) | {"seconds": 0} for content in (before, after)]
    assert records[0] == records[1]


def test_a_record_tells_rows_bytes_and_sha256_of_every_table(tmp_path: Path) -> None:
    run_task(make, task_of(tmp_path, 2))
    content = files(tmp_path)
    record = json.loads(content["_commits/00002.json"])
    assert [part["rows"] for part in record["parts"]] == [10, 2]
    for part in record["parts"]:
        data = content[part["name"]]
        assert (part["bytes"], part["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_commit_is_written_after_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = storage.write_bytes

    def spy(uri: str, data: bytes | memoryview) -> None:
        written.append(Path(uri).name)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", spy)
    run_task(make, task_of(tmp_path, 0))
    assert written == ["part-00000-of-00003.parquet", "rows-00000-of-00003.parquet", "00000.json"]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_write_that_fails_leaves_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    calls, write = [0], storage.write_bytes

    def fail(uri: str, data: bytes | memoryview) -> None:
        calls[0] += 1
        if calls[0] == nth:
            raise StorageError(f"cannot write {uri}: No space left on device")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        with pytest.raises(StorageError, match="No space left"):
            run_task(make, task_of(tmp_path, 0))
    assert committed(str(tmp_path)) == set()
    run_task(make, task_of(tmp_path, 0))
    assert committed(str(tmp_path)) == {0}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("labels are odd; repair them"), "labels are odd; repair them"),
        (ValueError("odd"), "ValueError: odd"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_task_that_fails_leaves_no_commit_and_says_why(tmp_path: Path, error: Exception, message: str) -> None:
    def fail(_: Task) -> Output:
        raise error

    with pytest.raises(type(error)):
        run_task(fail, task_of(tmp_path, 1))
    assert list(files(tmp_path)) == ["_failed/00001.json"]
    assert failures(str(tmp_path)) == [message]
    run_task(make, task_of(tmp_path, 1))
    assert committed(str(tmp_path)) == {1}
    assert failures(str(tmp_path)) == []


def test_a_full_disk_does_not_hide_why_a_task_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"part-00000-of-00003.parquet: No space left on device \(\d+ bytes needed"):
        run_task(make, task_of(tmp_path, 0))
    assert files(tmp_path) == {}


# Finished stages ------------------------------------------------------------------------------------------------------


def test_a_stage_is_the_sum_of_its_tasks(tmp_path: Path) -> None:
    done = stage(tmp_path)
    assert done == read_manifest(str(tmp_path))
    assert done.counts == {"read": 30, "only0": 1, "only1": 1, "only2": 1}
    assert [fault["source"] for fault in done.faults] == ["s0", "s1", "s2"]
    assert done.rows == 30
    assert [Path(uri).name for uri in done.uris()] == [f"part-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [Path(uri).name for uri in done.uris("rows")] == [f"rows-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [p.name[:4] for p in done.parts] == ["part"] * 3 + ["rows"] * 3
    rows = [row for table in iter_tables(done.uris(), ["row"]) for row in table.column("row").to_pylist()]
    assert rows == list(range(30))


def test_the_digest_depends_on_content_and_not_on_place_order_or_time(tmp_path: Path) -> None:
    one = stage(tmp_path / "one")
    other = stage(tmp_path / "elsewhere" / "other", (2, 0, 1))
    assert one.digest == other.digest
    assert (one.parts, one.counts, one.faults) == (other.parts, other.counts, other.faults)
    parts = (*one.parts[:-1], dataclasses.replace(one.parts[-1], sha256="0" * 64))
    assert write_manifest("example", str(tmp_path / "x"), parts, one.counts, ()).digest != one.digest
    assert write_manifest("example", str(tmp_path / "y"), one.parts, {"read": 31}, ()).digest != one.digest
    assert write_manifest("another", str(tmp_path / "z"), one.parts, one.counts, ()).digest != one.digest


@pytest.mark.parametrize(("order", "message"), [((0, 2), "1 of 3 shards did not finish (first: 1)"), ((), "3 of 3")])
def test_a_stage_with_a_missing_task_is_not_finished(tmp_path: Path, order: Sequence[int], message: str) -> None:
    with pytest.raises(StageError) as caught:
        stage(tmp_path, order)
    assert message in str(caught.value)
    assert not (tmp_path / MANIFEST).exists()
    assert read_manifest(str(tmp_path)) is None


def test_parts_stay_in_task_order_beyond_five_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 100_002
    names = [commit_name(index) for index in range(count)]
    written: dict[str, bytes] = {}

    def record(uri: str) -> bytes:
        part = {"name": task_of("/s", int(Path(uri).stem), count).name(), "rows": 1, "bytes": 1, "sha256": "0"}
        return json.dumps({"parts": [part], "counts": {}, "faults": []}).encode()

    monkeypatch.setattr(storage, "list_names", lambda *_: names)
    monkeypatch.setattr(storage, "read_bytes", record)
    monkeypatch.setattr(storage, "write_bytes", written.__setitem__)
    done = collect("example", "/s", count)
    assert [p.name for p in done.parts] == [task_of("/s", index, count).name() for index in range(count)]


WRONG = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"stage": 1}',
    b"\xff",
    b'{"stage":"s","parts":[{}],"counts":{},"faults":[],"digest":""}',
]


@pytest.mark.parametrize("content", WRONG)
def test_a_damaged_manifest_is_named_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(StageError, match=r"_MANIFEST.json is damaged \(.*\); remove the folder .* and run again"):
        read_manifest(str(tmp_path))


@given(st.data())
def test_a_manifest_cut_anywhere_is_damaged(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write_manifest("s", str(folder), [Part(name="part-0", rows=1, bytes=2, sha256="ab")], {"read": 1}, [{"items": 1}])
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(StageError, match="is damaged"):
        read_manifest(str(folder))


# Spans ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.integers(0, 30), st.integers(1, 12), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 40)))
def test_a_span_reads_what_slicing_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, start: int, stop: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "span.parquet"
    table = pa.table(
        {"a": pa.array(range(rows), pa.int64()), "b": pa.array([str(i) for i in range(rows)], pa.string())}
    )
    pq.write_table(table, path, row_group_size=group)
    read = read_span(Span(uri=str(path), start=start, stop=stop))
    assert read.schema.equals(table.schema)
    assert read.to_pylist() == table.to_pylist()[start:stop]
    assert read_span(Span(uri=str(path), start=start, stop=stop), ["b"]).to_pylist() == [
        {"b": row["b"]} for row in table.to_pylist()[start:stop]
    ]


def test_a_span_reads_no_row_group_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "span.parquet"
    pq.write_table(pa.table({"a": [f"row-{i}" for i in range(9)]}), path, row_group_size=3, write_page_checksum=True)
    groups = pq.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    for group in (0, 2):
        column = groups.row_group(group).column(0)
        data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StageError):
        read_span(Span(uri=str(path), start=2, stop=6))
    with pytest.raises(StageError):
        read_span(Span(uri=str(path), start=3, stop=7))
    assert read_span(Span(uri=str(path), start=3, stop=6)).column("a").to_pylist() == ["row-3", "row-4", "row-5"]


def test_a_damaged_part_is_named_with_its_remedy(tmp_path: Path) -> None:
    done = stage(tmp_path)
    path = Path(done.uris()[1])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[40] ^= 0x10
    for content in (b"", whole[:-20], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(
            StageError, match=r"part-00001-of-00003.parquet is damaged \(.*remove the folder .* run again"
        ):
            read_span(Span(uri=str(path)))
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot read .*part-00001-of-00003.parquet: No such file"):
        read_span(Span(uri=str(path)))


def test_an_output_counts_nothing_unless_told() -> None:
    output = Output(table=pa.table({"a": [1]}))
    defaults: tuple[Mapping[str, int], Sequence[Any], Mapping[str, pa.Table]] = (
        output.counts,
        output.faults,
        output.extra,
    )
    assert defaults == ({}, (), {})
