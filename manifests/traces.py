"""Whether a file speaks of certain samples: by their ids, content hashes, sources or the release they were in.

Parquet files are decoded, for their pages are compressed; of any other file the bytes are searched. Pixels and vectors
carry no name: files that hold those alone are found by the table they belong to.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 8 << 20
_HEX = re.compile(rb"[0-9a-f]{32,}")
_PARQUET = b"PAR1"
_SUBJECTS = ("subject_id", "subject_ids")
"""Columns whose values are people; elsewhere a subject, which may be as short as "7", is not looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traces:
    """What is looked for.

    Attributes:
        samples: ids, 32 hex digits.
        contents: content hashes, 32 bytes.
        sources: sha256 of source files, 32 bytes.
        uris: of source files.
        subjects: people, looked for in columns of people alone.
        releases: fingerprints, 64 hex digits.
    """

    samples: frozenset[str] = frozenset()
    contents: frozenset[bytes] = frozenset()
    sources: frozenset[bytes] = frozenset()
    uris: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()
    _spelled: frozenset[bytes] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self) -> None:
        """Spell the uris as JSON, HTML and CSV have them."""
        object.__setattr__(self, "_spelled", frozenset(spelling for uri in self.uris for spelling in _spellings(uri)))


KINDS = ("sample", "content", "source", "uri", "subject", "release", "unreadable")
"""What `search` can find; "unreadable" is a Parquet file that cannot be decoded."""


def search(path: Path, traces: Traces) -> frozenset[str]:
    """What a file speaks of: a subset of KINDS. Its name counts too.

    Raises:
        OSError: it cannot be read.
    """
    found = set(_in_bytes(path.name.encode(errors="surrogateescape"), traces))
    with path.open("rb") as file:
        parquet = file.read(4) == _PARQUET
    found |= _in_parquet(path, traces) if parquet else _in_file(path, traces)
    return frozenset(found)


def _spellings(uri: str) -> Iterator[bytes]:
    for text in (uri, html.escape(uri), uri.replace('"', '""')):
        yield text.encode(errors="surrogateescape")
    for ascii_only in (True, False):
        yield json.dumps(uri, ensure_ascii=ascii_only)[1:-1].encode(errors="surrogateescape")


def _in_file(path: Path, traces: Traces) -> set[str]:
    longest = max((len(spelling) for spelling in traces._spelled), default=0)
    overlap = max(128, longest)
    found: set[str] = set()
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found |= _in_bytes(tail + chunk, traces)
            tail = (tail + chunk)[-overlap:]
    return found


def _in_bytes(data: bytes, traces: Traces) -> set[str]:
    found = {"uri"} if any(spelling in data for spelling in traces._spelled) else set()
    for match in _HEX.finditer(data):
        found |= _in_digits(match[0].decode(), traces)
    return found


def _in_digits(digits: str, traces: Traces) -> set[str]:
    """What a run of hex digits holds at any place of it."""
    found = set()
    windows = range(len(digits) - 31)
    if any(digits[at : at + 32] in traces.samples for at in windows):
        found.add("sample")
    for at in range(len(digits) - 63):
        window = digits[at : at + 64]
        found |= {"release"} if window in traces.releases else set()
        found |= _of_hash(bytes.fromhex(window), traces)
    return found


def _of_hash(digest: bytes, traces: Traces) -> set[str]:
    kinds = {"content": digest in traces.contents, "source": digest in traces.sources}
    return {kind for kind, is_it in kinds.items() if is_it}


def _in_parquet(path: Path, traces: Traces) -> set[str]:
    try:
        with pq.ParquetFile(path) as file:
            names = [field.name for field in file.schema_arrow if _searched(field.type)]
            found: set[str] = set()
            for group in range(file.num_row_groups if names else 0):
                for name, column in zip(names, file.read_row_group(group, columns=names).columns, strict=True):
                    found |= _in_column(name, column, traces)
            return found
    except (OSError, pa.ArrowException):
        return {"unreadable"}


def _searched(kind: pa.DataType) -> bool:
    """Strings and hashes, and lists of strings; pixels and vectors carry no name."""
    if pa.types.is_list(kind):
        return bool(pa.types.is_string(kind.value_type))
    return bool(pa.types.is_string(kind) or (pa.types.is_fixed_size_binary(kind) and kind.byte_width == 32))


def _in_column(name: str, column: pa.ChunkedArray, traces: Traces) -> set[str]:
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_string(column.type):
        asked: dict[str, Iterable[object]] = {"sample": traces.samples, "uri": traces.uris, "release": traces.releases}
        asked["content"] = [digest.hex() for digest in traces.contents]
        asked["source"] = [digest.hex() for digest in traces.sources]
        asked["subject"] = traces.subjects if name in _SUBJECTS else ()
    else:
        asked = {"content": traces.contents, "source": traces.sources}
    return {kind for kind, values in asked.items() if _any_of(column, values)}


def _any_of(column: pa.ChunkedArray, values: Iterable[object]) -> bool:
    wanted = pa.array(list(values), column.type)
    return len(wanted) > 0 and bool(pc.any(pc.is_in(column, value_set=wanted), skip_nulls=True).as_py())
