"""Small files on disk: written whole and durable, or not at all; in place of what was there, or only if absent.

A file gets a temporary name and is synced; then it is renamed, or linked to its own name, which fails where that is
taken; then the folder is synced. Killed at any time, a writer leaves what was there or the whole new file, and at most
one temporary file; of four writers that link one name exactly one gets it, without a lock. A link needs a file system
with hard links, so no object store.
"""

import contextlib
import os
import secrets
from pathlib import Path

_SUFFIX = ".tmp"
_KEPT = 48
"""Characters of its name that a temporary file bears: with them it is shorter than the 255 bytes of a name."""


class WriteError(OSError):
    """What only one may write cannot be written; the message says what was tried, what the system said, what to do."""


def put(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file in place of what is there, durable when this returns. The folder is made where it is missing.

    Args:
        path: of the file; where it is a link, the link is replaced.
        data: what it is to hold.
        mode: permissions, of which the umask of the process takes some; no other is ever on the file.

    Raises:
        OSError: it cannot be written, and what was there still is; or only the last sync of the folder failed, then
            the new file is there.
    """
    _make(path.parent)
    temporary = path.parent / _temporary(path.name)
    try:
        _write(temporary, data, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def put_if_absent(folder: Path, name: str, data: bytes) -> bool:
    """Write a file, durable when this returns; False where one of this name is there already, which stays as it is.

    The folder is made where it is missing.

    Raises:
        WriteError: the disk is full, the folder is read-only, the file system has no hard links, or the like.
            Then there is no such file; if only the last sync of the folder failed, which the message says, there is.
    """
    try:
        _make(folder)
        created = _link(folder, name, data)
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{folder / name}: cannot be written ({error.strerror or error}), and was not: make room, or get the right "
            f"to write to this folder, on a disk with hard links; nothing else was changed",
        ) from error
    try:
        sync(folder)
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{folder / name}: is written, but the disk does not confirm it ({error.strerror or error}), so it may be "
            f"lost with the power: repair the disk, and look whether it is there before you do the same again",
        ) from error
    return created


def sync(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, *, seconds_old: float = 3600.0) -> int:
    """Remove what killed writers left: temporary files older than an hour by the clock of the file system itself.

    A writer needs milliseconds, so none of a live one is that old; one that loses its file nevertheless, because it
    was stopped for an hour, writes it again.

    Returns:
        How many were removed; 0 where the folder cannot be written.
    """
    removed = 0
    with contextlib.suppress(OSError):
        now = _now(folder)
        for entry in list(os.scandir(folder)):
            if _is_temporary(entry.name) and now - entry.stat(follow_symlinks=False).st_mtime > seconds_old:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder, which on a network is another than ours."""
    probe = folder / _temporary("clock")
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink()


def _temporary(name: str) -> str:
    return f".{name[:_KEPT]}-{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_SUFFIX)


def _make(folder: Path) -> None:
    """Make a folder and those above it, each durable."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync(folder.parent)


def _link(folder: Path, name: str, data: bytes) -> bool:
    for _ in range(3):
        temporary = folder / _temporary(name)
        try:
            _write(temporary, data)
            return _take(temporary, folder / name)
        except FileNotFoundError:  # somebody swept it: write it again
            _make(folder)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    raise FileNotFoundError(2, "the temporary file was removed three times while it was written")


def _write(path: Path, data: bytes, mode: int = 0o666) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _take(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system that lost its first answer says so of our own success.
        return temporary.stat().st_nlink > 1
    return True
