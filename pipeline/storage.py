"""The façade over Beam FileSystems: literal paths here, object stores there, writes that are whole or absent.

Beam's ``LocalFileSystem.create`` writes in place, so local files are written under a temporary name, flushed to the
disk and renamed. Object stores show an object only once it is closed, so there the final name is written directly.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import StorageError

_REMEDY = {
    errno.ENOSPC: "free some space or choose another --output; what was committed is kept and will not be redone",
    errno.EDQUOT: "the quota is used up; free some space; what was committed is kept and will not be redone",
    errno.EACCES: "check the permissions",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.EPERM: "check the permissions",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EEXIST: "a part of the path is a file, or a link that leads nowhere; choose another path",
    errno.ELOOP: "a symbolic link points to itself; choose another path",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a pattern matched.

    Attributes:
        uri: where it is.
        bytes: its size.
        modified_ns: when it was last changed, in nanoseconds; 0 where the file system does not tell.
    """

    uri: str
    bytes: int
    modified_ns: int


def is_local(uri: str) -> bool:
    """Whether a uri is a path of this machine (no scheme)."""
    return "://" not in uri


def join(root: str, *parts: str) -> str:
    """The uri of something below a folder."""
    return "/".join((root.rstrip("/"), *parts)) if is_local(root) else str(FileSystems.join(root, *parts))


def open_read(uri: str) -> BinaryIO:
    """Opens a file for reading; seekable.

    Raises:
        StorageError: the file cannot be opened.
    """
    try:
        if is_local(uri):
            if Path(uri).exists() and not Path(uri).is_file():
                raise OSError(errno.EINVAL, "it is no regular file")  # a pipe would be waited for without end
            return Path(uri).open("rb")
        file: BinaryIO = FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)
        return file
    except Exception as error:
        raise StorageError(f"cannot read {uri}: {reason(error)}") from error


def read_bytes(uri: str) -> bytes:
    """All bytes of a file."""
    with open_read(uri) as file:
        return file.read()


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    return Path(uri).exists() if is_local(uri) else bool(FileSystems.exists(uri))


def make_folder(uri: str) -> None:
    """Makes a folder and its parents; object stores need none.

    Raises:
        StorageError: it cannot be made.
    """
    if is_local(uri):
        try:
            Path(uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(uri, error) from error


def list_names(folder: str, suffix: str = "") -> list[str]:
    """Names (not uris) of the files directly in a folder, sorted; empty if the folder is absent."""
    if is_local(folder):
        if not Path(folder).is_dir():
            return []
        return sorted(e.name for e in os.scandir(folder) if e.is_file() and e.name.endswith(suffix))
    matches = FileSystems.match([join(folder, "*" + suffix)])
    return sorted(m.path.rsplit("/", 1)[1] for result in matches for m in result.metadata_list)


def match(pattern: str) -> list[Found]:
    """Files a Beam pattern matches, sorted by uri."""
    try:
        results = FileSystems.match([pattern])
    except Exception as error:
        raise StorageError(f"cannot list {pattern}: {reason(error)}") from error
    found = (metadata for result in results for metadata in result.metadata_list)
    return sorted(
        (Found(m.path, m.size_in_bytes, int((m.last_updated_in_seconds or 0) * 1e9)) for m in found),
        key=lambda file: file.uri,
    )


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Writes a file so that it is whole or absent, also after a power loss; replaces what was there.

    Raises:
        StorageError: it cannot be written; names the path, the bytes needed and free, and the remedy.
    """
    if not is_local(uri):
        _write_object(uri, data)
        return
    path = Path(uri)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _failure(uri, error, len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy(source: str, target: str) -> None:
    """Copies a file; a hard link where both are local and on one disk."""
    if is_local(source) and is_local(target):
        path = Path(target)
        make_folder(str(path.parent))
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            os.link(Path(source).resolve(), temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
            return
        except OSError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    write_bytes(target, read_bytes(source))


@contextlib.contextmanager
def working_folder(uri: str) -> Iterator[Path]:
    """A local folder whose files end up at ``uri``: the folder itself, or a temporary one that is uploaded at the end.

    A local folder keeps what a killed step wrote, so that it can resume.

    Raises:
        StorageError: what the block does in the folder fails for want of space or rights.
    """
    if is_local(uri):
        make_folder(uri)
        try:
            yield Path(uri)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise _failure(uri, error) from error
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                write_bytes(join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


@contextlib.contextmanager
def local_copies(uris: Sequence[str]) -> Iterator[list[Path]]:
    """Local paths with the contents of ``uris``: themselves if local, else temporary copies."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, uri in enumerate(uris):
            path = Path(uri) if is_local(uri) else Path(folder) / f"{index}-{uri.rsplit('/', 1)[1]}"
            if not is_local(uri):
                path.write_bytes(read_bytes(uri))
            paths.append(path)
        yield paths


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the content of ``uri``: itself if local, else a temporary copy."""
    with local_copies([uri]) as paths:
        yield paths[0]


def free_bytes(uri: str) -> int | None:
    """Free bytes on the disk that holds a local path (or its nearest existing parent); None for object stores."""
    if not is_local(uri):
        return None
    path = Path(uri).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_writable(folder: str) -> None:
    """Proves that a folder can be written, by doing it, before any work is done.

    Raises:
        StorageError: it cannot.
    """
    if is_local(folder) and Path(folder).exists() and not Path(folder).is_dir():
        raise StorageError(f"--output {folder} is a file; give a folder")
    probe = join(folder, f".writable-{uuid.uuid4().hex[:8]}")
    write_bytes(probe, b"curate")
    if is_local(folder):
        Path(probe).unlink(missing_ok=True)
    else:
        FileSystems.delete([probe])


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Holds a local folder for one run; the lock ends with the process, however that ends.

    Raises:
        StorageError: another run holds it.
    """
    if not is_local(folder):
        yield
        return
    path = Path(folder) / ".lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise _failure(str(path), error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"another run is using {folder}; wait for it, or choose another --output") from error
        except OSError:
            pass  # a file system without locks: two runs would do the same work twice, and write the same bytes
        yield


def sweep(folder: str) -> None:
    """Removes temporary files that killed writers left directly in a local folder."""
    if is_local(folder) and Path(folder).is_dir():
        for path in Path(folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """What went wrong, in words: the operating system's text, or the error's class and text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _failure(uri: str, error: OSError, needed: int | None = None) -> StorageError:
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and needed is not None:
        room = f" ({needed} bytes needed, {free_bytes(uri)} free)"
    remedy = _REMEDY.get(error.errno or 0, "check the path and the disk")
    return StorageError(f"cannot write {uri}: {reason(error)}{room}; {remedy}")


def _write_object(uri: str, data: bytes | memoryview) -> None:
    try:
        with FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(bytes(data))
    except Exception as error:
        raise StorageError(f"cannot write {uri}: {reason(error)}; check the bucket and its permissions") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
