"""Which files are read: paths, folders, globs and Beam file systems become one sorted table of sources."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from pipeline import storage
from pipeline.errors import InputError

SOURCES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64(), nullable=False),
    ]
)
_GLOB = frozenset("*?[")


def list_sources(inputs: Sequence[str]) -> tuple[pa.Table, int]:
    """Lists the files below the inputs: files, folders (read recursively), globs, patterns of Beam file systems.

    Hidden files and folders (name starts with a dot) are not inputs; they are counted.

    Returns:
        The table of sources (schema ``SOURCES``), sorted by uri, each once; and the number of hidden files passed over.

    Raises:
        InputError: an input does not exist, or nothing is to be read, or a name is no valid UTF-8.
    """
    rows: dict[str, tuple[int, int]] = {}
    hidden = 0
    for given in inputs:
        for uri, size, modified in _expand(given):
            if any(part.startswith(".") for part in uri[_fixed(given) :].split("/")):
                hidden += 1
            else:
                rows[uri] = (size, modified)
    if not rows:
        raise InputError(f"no files to read in {', '.join(inputs)}; give a file, a folder or a pattern with --input")
    names = sorted(rows)
    columns = [pa.array(names), pa.array([rows[n][0] for n in names]), pa.array([rows[n][1] for n in names])]
    return pa.Table.from_arrays(columns, schema=SOURCES), hidden


def _expand(given: str) -> Iterator[tuple[str, int, int]]:
    if not storage.is_local(given):
        pattern = given if _GLOB & set(given) else storage.join(given, "**") if given.endswith("/") else given
        found = storage.match(pattern)
        if not found:
            raise InputError(f"--input {given} matches nothing; check the path (a folder needs a closing '/')")
        yield from ((f.uri, f.bytes, f.modified_ns) for f in found)
        return
    for path in _local(given):
        try:
            status = path.stat()
        except OSError:  # a dangling link: the probe names it
            yield _utf8(str(path)), 0, 0
        else:
            yield _utf8(str(path)), status.st_size, status.st_mtime_ns


def _local(given: str) -> Iterator[Path]:
    path = Path(os.path.abspath(given))  # noqa: PTH100 - resolve() would follow links and change the names users know
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from _below(path)
    elif _GLOB & set(given):
        found = [Path(os.path.abspath(name)) for name in glob.glob(given, recursive=True)]  # noqa: PTH100, PTH207
        if not found:
            raise InputError(f"--input {given} matches nothing; check the pattern")
        for match in found:
            yield from _local(str(match)) if match.is_dir() else (match,)
    else:
        raise InputError(f"--input {given} does not exist; check the path")


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"cannot list the folder {error.filename}: {error.strerror}; check its permissions") from error


def _below(path: Path) -> Iterator[Path]:
    """The files below a folder; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder) / name for name in names)


def _fixed(given: str) -> int:
    """How many leading characters of the uris below an input are the user's own words (they may hold dots)."""
    before_glob = given[: min((given.index(c) for c in _GLOB if c in given), default=len(given))]
    if not storage.is_local(given):
        return before_glob.rfind("/") + 1
    path = os.path.abspath(given)  # noqa: PTH100
    if before_glob != given and not Path(path).exists():
        path = os.path.abspath(os.path.dirname(before_glob))  # noqa: PTH100, PTH120
    return len(path) if not Path(path).is_file() else len(str(Path(path).parent))


def _utf8(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise InputError(f"the file name {shown} is not valid UTF-8; rename the file") from None
    return name
