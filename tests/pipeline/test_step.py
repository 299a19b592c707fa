"""Laws of a driver step: done once, resumed in its own folder, named by all that tells."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.stage import Done, Span, read_span
from pipeline.step import digest_of, run_step, write_json, write_tables


def step(
    root: Path, make: Callable[[Path], Sequence[str]], config: object = None, inputs: Sequence[str] = ("x",)
) -> Done:
    return run_step(str(root), "fit", 1, config, inputs, ["numpy"], make)


def two_files(folder: Path) -> list[str]:
    table = pa.table({"a": list(range(5))})
    return [*write_tables(folder, [table, table.slice(0, 0)], 2), write_json(folder, "facts.json", {"b": 1, "a": 2})]


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    done = step(tmp_path, two_files)

    def never(_: Path) -> list[str]:
        raise AssertionError("done before")

    assert step(tmp_path, never) == done
    assert [(p.name, p.rows) for p in done.parts] == [
        ("part-00000-of-00002.parquet", 5),
        ("part-00001-of-00002.parquet", 0),
        ("facts.json", 0),
    ]
    for part in done.parts:
        data = Path(done.uri(part.name)).read_bytes()
        assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert Path(done.uri("facts.json")).read_bytes() == b'{"a":2,"b":1}'
    assert [read_span(Span(uri=uri)).num_rows for uri in done.uris()] == [5, 0]


def test_a_step_told_otherwise_is_another_step(tmp_path: Path) -> None:
    folders = {
        step(tmp_path, two_files).folder,
        step(tmp_path, two_files, config={"k": 2}).folder,
        step(tmp_path, two_files, inputs=("y",)).folder,
    }
    assert len(folders) == 3


def test_a_killed_step_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    def half(folder: Path) -> list[str]:
        (folder / "state").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(tmp_path, half)

    def rest(folder: Path) -> list[str]:
        assert (folder / "state").read_bytes() == b"half"
        (folder / "state").unlink()
        (folder / ".left.tmp").write_bytes(b"of a killed writer")
        return two_files(folder)

    done = step(tmp_path, rest)
    assert sorted(p.name for p in Path(done.folder).iterdir()) == sorted(
        ["_MANIFEST.json", *(p.name for p in done.parts)]
    )


def test_the_digest_depends_on_content_and_not_on_the_place(tmp_path: Path) -> None:
    one, other = step(tmp_path / "a", two_files), step(tmp_path / "b", two_files)
    assert one.digest == other.digest
    assert step(tmp_path / "c", lambda folder: [write_json(folder, "facts.json", 1)]).digest != one.digest


def test_a_step_that_names_what_it_did_not_write_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        step(tmp_path, lambda _: ["absent.json"])
    assert [path.name for path in tmp_path.rglob("_MANIFEST.json")] == []


def test_a_digest_knows_values_and_not_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert len({digest_of(v) for v in ([1, 2], [2, 1], "12", 12, None, {"a": [1, 2]})}) == 6
