import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests import disk
from manifests.signoff import event_name
from review.log import ReviewLog, ReviewLogError, WriteError
from tests.review.test_log import another, comment, leftovers, sample


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    return another(tmp_path)


# A full disk, a read-only folder


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            _full()
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", opened)


def _full_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    class Full:
        def __init__(self, handle: int, mode: str) -> None:
            self.file = real(handle, mode)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            _full()

    monkeypatch.setattr(os, "fdopen", Full)


def _full_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _full)


def _full_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _full)


@pytest.mark.parametrize("break_it", [_full_open, _full_write, _full_fsync, _full_link])
def test_a_full_disk_leaves_no_event_and_says_so(
    log: ReviewLog, break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    comment(log, "before")
    with monkeypatch.context() as broken:
        break_it(broken)
        with pytest.raises(WriteError, match=r"cannot be written \(No space left on device\), and was not") as caught:
            comment(log, "lost")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(WriteError, match="No space left"):
            log.freeze([sample(1)])
    assert leftovers(log) == []
    assert [event.fields["text"] for event in log.events()] == ["before"]
    assert comment(log, "after") == 1  # with room again the log goes on
    assert log.verify() == []


def test_a_disk_that_does_not_confirm_an_event_says_that_it_may_be_there(
    log: ReviewLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    comment(log, "before")
    with monkeypatch.context() as broken:
        broken.setattr(disk, "sync", _full)
        with pytest.raises(WriteError, match="is written, but the disk does not confirm it"):
            comment(log, "perhaps")
    assert [event.fields["text"] for event in log.events()] == ["before", "perhaps"]
    assert comment(log, "after") == 2
    assert log.verify() == []


def _said_by_nobody(work: Callable[[], str]) -> str:
    """What a child process without rights says; of us, where we have none ourselves."""
    if os.getuid():
        return work()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as said:
        return said.read()


def test_on_a_disk_that_is_really_full_every_acknowledged_event_stands(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        log = another(place)
        with pytest.raises(WriteError, match="No space left"):  # noqa: PT012
            for told in range(10_000):
                comment(log, "x" * 1000, told)
        assert 10 < told < 200
        assert len(another(place).events()) == told
        assert another(place).verify() == []
        assert leftovers(log) == []
        (log.folder / event_name(told - 1)).unlink()  # room, by the loss of an event that this log has read
        with pytest.raises(ReviewLogError, match=f"event {told - 1} was edited or removed"):
            comment(log)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter."""
    folder = Path("/tmp") / f"review-{os.getpid()}-{random.SystemRandom().randrange(1 << 40)}"
    folder.mkdir(mode=0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_read_and_says_why_it_is_not_written(open_folder: Path) -> None:
    comment(another(open_folder), "before")
    another(open_folder).folder.chmod(0o555)

    def work() -> str:
        log = another(open_folder)
        found = f"{[event.fields['text'] for event in log.events()]} {log.verify()} "
        try:
            comment(log)
        except WriteError as error:
            return found + str(error)
        return "was written"

    said = _said_by_nobody(work)
    assert said.startswith("['before'] [] ")
    assert "Permission denied" in said
    assert "get the right to write to this folder" in said
    assert len(another(open_folder).events()) == 1


def test_a_disk_without_hard_links_says_what_it_needs(log: ReviewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(WriteError, match="on a disk with hard links"):
        comment(log)
