"""Whether a file speaks of certain samples: by their ids, content hashes, sources or the release they were in.

Parquet files are decoded, for their pages are compressed; of any other file the bytes are searched. Other compressed
files are not opened, only told apart. Pixels and vectors carry no name: files that hold those alone are found by the
table they belong to.
"""

import html
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 8 << 20
_HEX = re.compile(rb"[0-9a-f]{32,}")
_PARQUET = b"PAR1"
_ZIP = b"PK\x03\x04"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")
"""How files of gzip, bzip2, xz, zstd, 7z and rar begin."""
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

    def named_by(self, text: str) -> bool:
        """Whether a text holds an id, a content hash, or the sha256 or uri of a source."""
        return bool(_in_bytes(text.encode(errors="surrogateescape"), self) & NAMES)

    def held_by(self, values: Iterable[str | None]) -> list[str]:
        """The texts that are, as a whole, an id, a hash or a uri; each once, sorted."""
        hashes = {digest.hex() for digest in (*self.contents, *self.sources)}
        return sorted(one for one in set(values) if one and (one in self.samples or one in self.uris or one in hashes))


NAMES = frozenset({"sample", "content", "source", "uri"})
"""Kinds that a release may not hold of what was erased."""
KINDS = ("sample", "content", "source", "uri", "subject", "release", "unreadable", "closed")
"""What `search` can find; "unreadable" is a Parquet file that cannot be decoded, "closed" any other compressed file."""


def search(path: Path, traces: Traces) -> frozenset[str]:
    """What a file speaks of: a subset of KINDS. Its name counts too.

    Raises:
        OSError: it cannot be read.
    """
    found = set(_in_bytes(path.name.encode(errors="surrogateescape"), traces))
    with path.open("rb") as file:
        head = file.read(6)
    found |= _in_parquet(path, traces) if head[:4] == _PARQUET else _in_file(path, traces)
    return frozenset(found | ({"closed"} if _is_closed(path, head) else set()))


def _is_closed(path: Path, head: bytes) -> bool:
    """Whether names in a file cannot be seen; those in a zip that only stores its files can."""
    if not head.startswith(_ZIP):
        return head.startswith(_COMPRESSED)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return True


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
