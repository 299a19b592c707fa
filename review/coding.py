"""Columns as small numbers: words by their place in a list, ids and hashes by their bytes, lists side by side.

N: rows of a column; a chunk is the part of it that one row group holds.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

MAX_SHOWN = 200
"""Characters of a value that are shown; a longer one is shortened, and named by its hash."""
MAX_VALUES = 32_000
"""Distinct values of one column that are told apart."""
REST = "(other values)"
"""The value that stands for those beyond MAX_VALUES."""
LEVELS = 8
"""Levels of the cluster path that are held."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Codes:
    """A column of words.

    Attributes:
        codes: (N,) int8 or int16: place in `values`; -1 where there is none.
        values: as `shown` shows them.
    """

    codes: NDArray[np.signedinteger]
    values: tuple[str, ...]

    def chosen(self, wanted: Iterable[str | None]) -> Mask:
        """(N,) which rows hold one of the wanted values; None is a missing one."""
        asked = {None if value is None else shown(value) for value in wanted}
        table = np.array([value in asked for value in (*self.values, None)], np.bool_)
        found: Mask = table[self.codes]  # -1 finds the last item
        return found

    def counts(self, rows: Mask | NDArray[np.int64] | slice = slice(None)) -> dict[str | None, int]:
        """Rows of each value, among `rows`; None counts the missing ones."""
        found = np.bincount(self.codes[rows].astype(np.int64) + 1, minlength=len(self.values) + 1).tolist()
        return dict(zip((None, *self.values), found, strict=True))

    def at(self, row: int) -> str | None:
        """The value of one row."""
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lists:
    """A column of lists of words.

    Attributes:
        starts: (N + 1,) int64: where the items of each row begin.
        codes: (items,) place in `values`.
        values: as `shown` shows them.
    """

    starts: NDArray[np.int64]
    codes: NDArray[np.signedinteger]
    values: tuple[str, ...]

    def chosen(self, wanted: Iterable[str]) -> Mask:
        """(N,) which rows hold one of the wanted values, or more."""
        asked = {shown(value) for value in wanted}
        hits = np.array([value in asked for value in (*self.values, REST)], np.bool_)[self.codes]
        total = np.concatenate([[0], np.cumsum(hits)])
        found: Mask = total[self.starts[1:]] > total[self.starts[:-1]]
        return found

    def at(self, row: int) -> list[str]:
        """The values of one row."""
        found = self.codes[self.starts[row] : self.starts[row + 1]]
        return [self.values[code] for code in found.tolist()]


def shown(text: str) -> str:
    """`text` as it is sent: at most MAX_SHOWN characters; a longer one keeps its beginning, length and hash."""
    if len(text) <= MAX_SHOWN:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{text[:150]}… ({len(text):,} characters, {digest})"


class Coder:
    """Gives each text a number, the same in all files and row groups."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._known: dict[str, int] = {}

    def codes(self, chunk: pa.Array) -> NDArray[np.int16]:
        """(rows,) the numbers of a chunk, -1 for null."""
        if not isinstance(chunk, pa.DictionaryArray):
            chunk = chunk.dictionary_encode()
        table: NDArray[np.int16] = np.array([*(self._code(value) for value in chunk.dictionary), -1], np.int16)
        found: NDArray[np.int16] = table[chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        return found

    def _code(self, scalar: pa.Scalar) -> int:
        value = scalar.as_py()
        if value is None:
            return -1
        text = shown(value)
        if text not in self._known:
            text = text if len(self.values) < MAX_VALUES else REST
        if text not in self._known:
            self._known[text] = len(self.values)
            self.values.append(text)
        return self._known[text]


_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def packed(chunk: pa.StringArray) -> NDArray[np.bytes_]:
    """(rows,) S16 of sample ids of 32 hex digits."""
    size = len(chunk)
    ends = np.frombuffer(chunk.buffers()[1], np.int32, size + 1, chunk.offset * 4) if size else np.zeros(1, np.int32)
    if chunk.null_count or (np.diff(ends) != 32).any():
        raise ValueError("a sample_id must have 32 hex digits")
    if not size:
        return np.empty(0, "S16")
    text = np.frombuffer(chunk.buffers()[2], np.uint8, size * 32, int(ends[0]))
    digits = _NIBBLES[text].reshape(size, 16, 2)
    if digits.max() > 15:
        raise ValueError("a sample_id must have 32 lower-case hex digits")
    return cast("NDArray[np.bytes_]", (digits[..., 0] << 4 | digits[..., 1]).view("S16").ravel())


def digests(chunk: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """(rows, 32) the hashes of a chunk."""
    if not len(chunk):
        return np.empty((0, 32), np.uint8)
    return np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * 32, chunk.offset * 32).reshape(-1, 32)


def array_of(column: pa.Array, kind: type[np.generic]) -> NDArray[Any]:
    """(rows,) the values of a column without nulls, or of one of floats, whose nulls become NaN."""
    return cast("NDArray[Any]", column.to_numpy(zero_copy_only=False).astype(kind, copy=False))


def floats(column: pa.Array) -> NDArray[np.float32]:
    """(rows,) numbers; NaN where one is missing or not finite."""
    values = array_of(column.cast(pa.float32(), safe=False), np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def matrix(chunk: pa.ListArray) -> NDArray[np.int32]:
    """(rows, levels) of a chunk of lists; -1 where a list is shorter, nothing beyond LEVELS."""
    lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = chunk.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    table = np.full((len(chunk), min(LEVELS, int(lengths.max(initial=0)))), -1, np.int32)
    starts = np.cumsum(lengths) - lengths
    for level in range(table.shape[1]):
        deep = lengths > level
        table[deep, level] = flat[starts[deep] + level]
    return table
