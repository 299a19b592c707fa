"""Files that take the place of others: whole, durable, private from the first byte, or not there at all."""

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from manifests import disk
from manifests.disk import put, put_if_absent

pytestmark = pytest.mark.usefixtures("_umask")


@pytest.fixture
def _umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_another_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    for data in (b"one", b"", b"two"):
        put(path, data)
        assert path.read_bytes() == data
    assert _names(path.parent) == ["page.html"]


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    put(tmp_path / "page.html", b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(*{"write": (disk, "_write"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[name], full)
        with pytest.raises(OSError, match="No space left"):
            put(tmp_path / "page.html", b"after")
    assert (tmp_path / "page.html").read_bytes() == b"before"
    assert _names(tmp_path) == ["page.html"]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    put(tmp_path / "page.html", b"data")
    assert done == ["file", "name", "folder"]


def test_a_private_file_is_never_open_to_others_and_the_umask_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    replace = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        seen.append(stat.S_IMODE(self.stat().st_mode))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", renamed)
    put(tmp_path / "key", b"secret", mode=0o600)
    put(tmp_path / "page", b"data")
    os.umask(0o077)
    put(tmp_path / "faces", b"data")
    assert seen == [0o600, 0o644, 0o600]
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("key", "page", "faces")] == seen


@pytest.mark.parametrize("letter", ["n", "é", "人"])
def test_the_longest_name_that_a_file_may_have_can_be_written(tmp_path: Path, letter: str) -> None:
    name = letter * (255 // len(letter.encode()))
    put(tmp_path / name, b"data")
    assert put_if_absent(tmp_path / "other", name, b"data")
    assert _names(tmp_path) == sorted([name, "other"])


def _many(path: Path, byte: int) -> None:
    for _ in range(20):
        put(path, bytes([byte]) * 100_000)


def test_readers_see_one_of_the_writers_files_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    put(path, b"\0" * 100_000)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_many, args=(path, byte)) for byte in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = path.read_bytes()
        assert found == found[:1] * 100_000
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert _names(tmp_path) == ["file"]
