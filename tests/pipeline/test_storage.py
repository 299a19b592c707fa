"""Laws of storage: a file is old or new, never half; a failure names the path, the reason and the remedy."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import StorageError

NAMES = ["plain", "with space", "*?[a].bin", "#1 %20", "-dash", ".hidden", "фото 人 ñ.jpg", "人" * 80, "x" * 255]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    uri = storage.join(str(tmp_path), name)
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, memoryview(b"new"))
    assert storage.read_bytes(uri) == b"new"
    assert storage.exists(uri)
    assert names_in(tmp_path) == storage.list_names(str(tmp_path)) == [name]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b" / "c"), b"")
    assert storage.read_bytes(str(tmp_path / "a" / "b" / "c")) == b""


FAILURES = {
    errno.ENOSPC: ("No space left on device (3 bytes needed, ", "free some space or choose another --output"),
    errno.EDQUOT: ("(3 bytes needed, ", "the quota is used up"),
    errno.EIO: ("Input/output error", "check the path and the disk"),
    errno.EACCES: ("Permission denied", "check the permissions"),
    errno.EROFS: ("Read-only file system", "choose another --output"),
}


@pytest.mark.parametrize("code", list(FAILURES))
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str, before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, fail)
        with pytest.raises(StorageError) as caught:
            storage.write_bytes(str(path), b"new")
    reason, remedy = FAILURES[code]
    assert str(caught.value).startswith(f"cannot write {path}: {os.strerror(code)}")
    assert reason in str(caught.value)
    assert remedy in str(caught.value)
    assert names_in(tmp_path) == ([] if before is None else ["file"])
    if before is not None:
        assert path.read_bytes() == before


@given(st.integers(0, 3))
def test_whichever_flush_fails_the_file_is_old_or_new(tmp_path_factory: pytest.TempPathFactory, failing: int) -> None:
    folder = tmp_path_factory.mktemp("flush")
    path, calls, fsync = folder / "file", [0], os.fsync
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.EIO, "broken")
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        try:
            storage.write_bytes(str(path), b"new")
        except StorageError:
            assert failing in (1, 2)
        else:
            assert failing in (0, 3)
    assert calls[0] >= 1
    assert path.read_bytes() == (b"old" if failing == 1 else b"new")
    assert names_in(folder) == ["file"]


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        said.append("flush folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "flush file")  # noqa: PTH112
        fsync(descriptor)

    def spy_replace(path: Path, target: Path) -> Path:
        said.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    storage.write_bytes(str(tmp_path / "file"), b"new")
    assert said == ["flush file", "rename", "flush folder"]


def test_a_path_through_a_file_or_onto_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    for uri in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(StorageError, match="cannot write"):
            storage.write_bytes(str(uri), b"new")
    for uri in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="cannot write"):
            storage.make_folder(str(uri))
    with pytest.raises(StorageError, match="cannot write"):
        storage.copy(str(tmp_path / "file"), str(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_loop_of_links_is_refused_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="a link that leads nowhere; choose another path"):
        storage.write_bytes(str(tmp_path / "loop" / "file"), b"")


# Reading --------------------------------------------------------------------------------------------------------------


def make_absent(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize("make", [make_absent, Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.mp4")
    with pytest.raises(StorageError, match=r"cannot read .*x\.mp4: \S+"):
        storage.read_bytes(str(tmp_path / "x.mp4"))


def test_listing_gives_files_only_sorted_by_suffix(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.tmp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.json").mkdir()
    assert storage.list_names(str(tmp_path), ".json") == ["a.json", "b.json"]
    assert storage.list_names(str(tmp_path / "absent")) == []


def test_a_pattern_finds_files_with_their_sizes(tmp_path: Path) -> None:
    for size, name in enumerate(("b.mp4", "a.mp4", "c.txt"), 1):
        (tmp_path / name).write_bytes(bytes(size))
    found = storage.match(str(tmp_path / "*.mp4"))
    assert [(Path(f.uri).name, f.bytes) for f in found] == [("a.mp4", 2), ("b.mp4", 1)]
    with pytest.raises(StorageError, match="cannot list nosuch://b/"):
        storage.match("nosuch://b/*")


def test_an_unknown_scheme_is_no_path() -> None:
    assert storage.is_local("/a/b:c")
    assert not storage.is_local("gs://b/a")
    assert storage.free_bytes("gs://b/a") is None
    with pytest.raises(StorageError, match="cannot read nosuch://b/a: ValueError"):
        storage.read_bytes("nosuch://b/a")
    with pytest.raises(StorageError, match=r"cannot write nosuch://b/a: ValueError.*check the bucket"):
        storage.write_bytes("nosuch://b/a", b"")


@pytest.mark.parametrize(
    ("root", "parts", "joined"), [("/a/", ("b", "c"), "/a/b/c"), ("/", ("b",), "/b"), ("a", ("b",), "a/b")]
)
def test_joining_puts_one_slash_between(root: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(root, *parts) == joined


# Copying --------------------------------------------------------------------------------------------------------------


def test_a_copy_shares_the_bytes_where_it_can(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    storage.copy(str(tmp_path / "a"), str(tmp_path / "deep" / "b"))
    assert (tmp_path / "a").samefile(tmp_path / "deep" / "b")


def test_a_copy_is_made_where_no_link_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "other disk")

    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"old")
    monkeypatch.setattr(os, "link", fail)
    storage.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"content"
    assert not (tmp_path / "a").samefile(tmp_path / "b")
    assert names_in(tmp_path) == ["a", "b"]


def test_a_copy_of_a_link_holds_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    storage.copy(str(tmp_path / "link"), str(tmp_path / "deep" / "b"))
    assert not (tmp_path / "deep" / "b").is_symlink()
    assert (tmp_path / "deep" / "b").read_bytes() == b"content"


def test_replacing_a_copy_leaves_the_original(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    storage.copy(str(tmp_path / "a"), str(tmp_path / "b"))
    storage.write_bytes(str(tmp_path / "b"), b"new")
    assert (tmp_path / "a").read_bytes() == b"content"


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_sweep_takes_what_killed_writers_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    storage.write_bytes(str(tmp_path / "kept.tmp"), b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process runs no `finally`
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(str(tmp_path / "file"), b"half")
    assert len(names_in(tmp_path)) == 2
    storage.sweep(str(tmp_path))
    assert names_in(tmp_path) == ["kept.tmp"]
    storage.sweep(str(tmp_path / "absent"))


def test_a_writable_folder_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path))
    storage.check_writable(str(tmp_path / "new"))
    assert names_in(tmp_path) == ["new"]
    assert names_in(tmp_path / "new") == []


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"--output .*file is a file; give a folder"):
        storage.check_writable(str(tmp_path / "file"))


def test_a_local_working_folder_keeps_what_a_failed_step_wrote(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "state").write_bytes(b"half")
        raise RuntimeError("killed")

    uri = str(tmp_path / "step")
    with pytest.raises(RuntimeError), storage.working_folder(uri) as folder:
        half(folder)
    with storage.working_folder(uri) as folder:
        assert (folder / "state").read_bytes() == b"half"


def test_local_files_are_their_own_copies(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with storage.local_copy(str(tmp_path / "a")) as path:
        assert path == tmp_path / "a"


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    free = storage.free_bytes(str(tmp_path / "not" / "yet"))
    assert free is not None
    assert free > 0


def test_a_reason_is_words() -> None:
    assert storage.reason(OSError(errno.EIO, "Input/output error", "/secret")) == "Input/output error"
    assert storage.reason(ValueError("bad")) == "ValueError: bad"
    assert storage.reason(ValueError()) == "ValueError"


# One run at a time ----------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with storage.lock(str(tmp_path)):
        with pytest.raises(StorageError, match=str(tmp_path)), storage.lock(str(tmp_path)):
            raise AssertionError("held twice")
        with storage.lock(str(tmp_path.parent)):
            pass
    with storage.lock(str(tmp_path)):
        pass


def test_a_run_that_fails_gives_its_folder_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), storage.lock(str(tmp_path)):
        raise RuntimeError("failed")
    with storage.lock(str(tmp_path)):
        pass


def test_a_block_that_fails_in_its_folder_says_so(tmp_path: Path) -> None:
    remedy = r"cannot write .*: No space left on device.*free some space"
    with pytest.raises(StorageError, match=remedy), storage.working_folder(str(tmp_path / "step")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
