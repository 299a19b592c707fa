"""A folder in which a release is put together before it is committed: whole and durable, or swept away.

    <root>/releases/.successors/k3x9/manifest/…             while it is written: no reader looks so deep
    <root>/releases/.successors/k3x9/release.json           when all other files are on the disk
    <root>/releases/r-0123456789ab/                         the commit: the folder is renamed, if the name is free

A process that is killed leaves its folder; the next one sweeps it, for the lock on the folder died with the process.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from manifests.release import RELEASE_FILE, ReleaseExistsError, fingerprint, read_release_bytes, write_release

FOLDER = ".successors"
"""Below releases/: what is not committed yet."""
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}
_CHUNK = 1 << 24


class StagingError(OSError):
    """A file that could not be written; the message names it, the bytes needed and free, and what to do."""


class Staging:
    """The files of a release that is not committed yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, data: bytes) -> None:
        """Write a file and flush it to the disk.

        Raises:
            StagingError: names the file, the bytes needed and free.
        """
        target = self.folder / path
        with _told(target, len(data)):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view[:_CHUNK]) :]
                os.fsync(handle)
            finally:
                os.close(handle)

    def link(self, source: Path, path: str) -> None:
        """Give a file of another release a second name here; a copy where the file system has no hard links.

        Raises:
            StagingError: see `write`.
        """
        target = self.folder / path
        with _told(target, source.stat().st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _copy(source, target)

    def commit(self, name: str, data: bytes) -> Path:
        """Commit the folder with the bytes of `release.json` and give it its name; returns the folder of the release.

        A release that is there with the same bytes is the one: then nothing is written.

        Raises:
            ReleaseExistsError: another release has the name.
            StagingError: see `write`.
        """
        releases = self.folder.parent.parent
        folder = releases / name
        with _locked(releases), _told(folder / RELEASE_FILE, len(data)):
            if (folder / RELEASE_FILE).exists():
                found = read_release_bytes(folder)
                if found != data:
                    raise ReleaseExistsError(folder, fingerprint(found))
                return folder
            for place, _, _ in os.walk(self.folder):
                _sync(Path(place))
            write_release(self.folder, data)
            self.folder.rename(folder)
            try:
                _sync(releases)
            except OSError as error:
                why = f"{folder}: is committed, but the disk reports: {error.strerror}; run again, which checks it"
                raise StagingError(error.errno, f"{why}; the old one is as it was") from error
        return folder


@contextlib.contextmanager
def staged(releases: Path) -> Iterator[Staging]:
    """A new folder below the releases, removed at the end unless it was committed; sweeps those of the dead.

    Raises:
        StagingError: the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with _told(releases, 0):
            releases.mkdir(parents=True, exist_ok=True)
            with _locked(releases):
                _sweep(releases)
                (releases / FOLDER).mkdir(exist_ok=True)
                stack.callback(_remove_empty, releases)
                folder = Path(tempfile.mkdtemp(dir=releases / FOLDER))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                folder.chmod(0o755)
                stack.enter_context(_locked(folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # before the lock goes
        yield Staging(folder)


def sweep(releases: Path) -> None:
    """Remove what killed processes have left below the releases; what living ones write stays.

    Raises:
        StagingError: a folder cannot be removed.
    """
    if releases.is_dir():
        with _told(releases, 0), _locked(releases):
            _sweep(releases)
        _remove_empty(releases)


def _remove_empty(releases: Path) -> None:
    with contextlib.suppress(OSError), _locked(releases):
        (releases / FOLDER).rmdir()


def _sweep(releases: Path) -> None:
    """Remove the folders of processes that no longer live."""
    for folder in sorted((releases / FOLDER).glob("*")):
        handle = _open(folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass
        finally:
            _close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = _open(folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        _close(handle)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _close(handle: int) -> None:
    with contextlib.suppress(OSError):  # of a folder: nothing can be lost
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = _open(folder)
    try:
        os.fsync(handle)
    finally:
        _close(handle)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(path: Path, needed: int) -> Iterator[None]:
    """Turn a failure of the file system into one that names the file and what to do."""
    try:
        yield
    except StagingError:
        raise
    except OSError as error:
        raise StagingError(error.errno, _message(path, needed, error)) from error


def _message(path: Path, needed: int, error: OSError) -> str:
    why = error.strerror or str(error)
    remedy = "check the permissions and the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        remedy = f"needs {needed} bytes, {shutil.disk_usage(place).free} are free: free some space"
    return f"{path}: {why}; {remedy}; no release was written, and the old one is as it was"
