"""Laws of the search for traces: what is there is found, however the file is written, and nothing else."""

import bz2
import gzip
import hashlib
import html
import json
import lzma
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.traces import Traces, search

ID, DIGEST = "ab" * 16, hashlib.sha256(b"frame").digest()
SOURCE, RELEASE = hashlib.sha256(b"file").digest(), "cd" * 32
URI = '/videos/a "b" <c> & ü.mp4'
TRACES = Traces(
    samples=frozenset({ID}),
    contents=frozenset({DIGEST}),
    sources=frozenset({SOURCE}),
    uris=frozenset({URI}),
    subjects=frozenset({"7"}),
    releases=frozenset({RELEASE}),
)


def found(folder: Path, data: bytes, name: str = "file") -> set[str]:
    (folder / name).write_bytes(data)
    return set(search(folder / name, TRACES))


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"nothing of it, 7 and all", set()),
        (f'{{"id":"{ID}"}}'.encode(), {"sample"}),
        (f"<td>{ID}</td>".encode(), {"sample"}),
        (DIGEST.hex().encode(), {"content"}),
        (b"x" + SOURCE.hex().encode() + b"x", {"source"}),
        (RELEASE.encode(), {"release"}),
        (json.dumps({"uri": URI}).encode(), {"uri"}),
        (json.dumps({"uri": URI}, ensure_ascii=False).encode(), {"uri"}),
        (html.escape(URI).encode(), {"uri"}),
        (URI.encode(), {"uri"}),
        (URI.replace('"', '""').encode(), {"uri"}),
        (ID[:31].encode(), set()),
        ((ID[:31] + "x").encode(), set()),
    ],
)
def test_text_is_searched(tmp_path: Path, data: bytes, kinds: set[str]) -> None:
    assert found(tmp_path, data) == kinds


@given(before=st.binary(max_size=80), after=st.binary(max_size=80))
def test_a_name_is_found_wherever_it_stands(before: bytes, after: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert "sample" in found(Path(folder), b"-" + before + ID.encode() + after)


def test_a_name_across_two_chunks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = 4096
    monkeypatch.setattr("manifests.traces.CHUNK", chunk)
    for at in (chunk - 40, chunk - 16, chunk - 1, chunk):
        assert found(tmp_path, b" " * at + ID.encode() + b" " * 9) == {"sample"}
        assert found(tmp_path, b" " * at + URI.encode() + b" " * 9) == {"uri"}


def test_a_file_name_counts(tmp_path: Path) -> None:
    assert found(tmp_path, b"", f"{ID}.png") == {"sample"}


@pytest.mark.parametrize("codec", ["none", "zstd", "snappy"])
def test_parquet_is_decoded(tmp_path: Path, codec: str) -> None:
    def kinds(name: str, values: list[object], kind: pa.DataType) -> set[str]:
        table = pa.table({name: pa.array([*values, None], kind)})
        pq.write_table(table, tmp_path / "t.parquet", compression=codec)
        return set(search(tmp_path / "t.parquet", TRACES))

    assert kinds("sample_id", [ID], pa.string()) == {"sample"}
    assert kinds("duplicate_of", ["x", ID], pa.string()) == {"sample"}
    assert kinds("content_sha256", [DIGEST], pa.binary(32)) == {"content"}
    assert kinds("source_sha256", [SOURCE], pa.binary(32)) == {"source"}
    assert kinds("content_sha256", [DIGEST.hex()], pa.string()) == {"content"}
    assert kinds("frames", [URI], pa.string()) == {"uri"}
    assert kinds("subject_ids", [["1", "7"]], pa.list_(pa.string())) == {"subject"}
    assert kinds("subject_id", ["7"], pa.string()) == {"subject"}
    assert kinds("n", ["7"], pa.string()) == set()
    assert kinds("vector", [7], pa.int32()) == set()
    assert kinds("image", [b"\xff\xd8"], pa.binary()) == set()


def test_a_broken_parquet_file_is_told(tmp_path: Path) -> None:
    assert found(tmp_path, b"PAR1 and then nothing") == {"unreadable"}


def test_what_is_compressed_is_told_and_a_zip_that_only_stores_is_searched(tmp_path: Path) -> None:
    data = ID.encode() * 9
    for number, packed in enumerate((gzip.compress(data), bz2.compress(data), lzma.compress(data))):
        assert found(tmp_path, packed, f"{number}.bin") == {"closed"}
    for method, kinds in ((zipfile.ZIP_DEFLATED, {"closed"}), (zipfile.ZIP_STORED, {"sample"})):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("list.csv", ID * 9)
        assert search(tmp_path / "a.zip", TRACES) == kinds
    assert found(tmp_path, b"PK\x03\x04 and then nothing") == {"closed"}


def test_a_text_is_named_by_its_parts_and_held_as_a_whole() -> None:
    texts = [ID, DIGEST.hex(), SOURCE.hex(), URI, RELEASE, "7", "", None]
    assert TRACES.held_by([*texts, f"of {ID}"]) == sorted([ID, DIGEST.hex(), SOURCE.hex(), URI])
    assert [TRACES.named_by(f"of {text}!") for text in texts] == [True] * 4 + [False] * 4


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, b"") == set()
