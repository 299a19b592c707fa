"""A search of every byte below a folder that trusts nothing of the code under test: Parquet is decoded first."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def remains(root: Path, needles: Mapping[str, bytes], *, skip: tuple[str, ...] = ()) -> list[str]:
    """Which needles are in which files: "name: path"; folders directly below the root can be skipped."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.relative_to(root).parts[0] not in skip:
            for haystack in _haystacks(path):
                found += [f"{name}: {path}" for name, needle in needles.items() if needle in haystack]
    return sorted(set(found))


def _haystacks(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield path.name.encode()
    yield data
    if data.startswith(b"PAR1"):
        for column in pq.read_table(path).columns:
            yield from _values(column.combine_chunks() if column.num_chunks else pa.array([], column.type))


def _values(array: pa.Array) -> Iterator[bytes]:
    """The values of a column as bytes, each nested one for itself."""
    if pa.types.is_struct(array.type):
        for part in array.flatten():
            yield from _values(part)
    elif pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        yield from _values(array.flatten())
    elif pa.types.is_string(array.type):
        yield "\n".join(value or "" for value in array.to_pylist()).encode()
    elif pa.types.is_binary(array.type) or pa.types.is_fixed_size_binary(array.type):
        yield b"\n".join(value or b"" for value in array.to_pylist())
    elif pa.types.is_floating(array.type):
        yield array.to_numpy(zero_copy_only=False).tobytes()


def digests(root: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
