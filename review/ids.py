"""Sample ids as arrays: 16 bytes each, compared as two 64-bit numbers.

N is the number of ids.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 16
Ids: TypeAlias = NDArray[np.bytes_]
AnyIds: TypeAlias = Sequence[str] | NDArray[np.bytes_] | NDArray[np.uint8]


def id_array(ids: AnyIds) -> Ids:
    """Ids as an (N,) array of dtype S16.

    Args:
        ids: (N,) texts of 32 hex digits, (N,) S16, or (N, 16) uint8.

    Raises:
        ValueError: they are none of these.
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype == np.uint8 and ids.ndim == 2 and ids.shape[1] == ID_BYTES:
            return np.ascontiguousarray(ids).view(f"S{ID_BYTES}").reshape(-1)
        if ids.dtype == f"S{ID_BYTES}" and ids.ndim == 1:
            return np.ascontiguousarray(ids)
        raise ValueError(f"ids must have dtype S16 and shape (N,), or uint8 and (N, 16), got {ids.dtype} {ids.shape}")
    if any(len(one) != 2 * ID_BYTES for one in ids):
        wrong = next(one for one in ids if len(one) != 2 * ID_BYTES)
        raise ValueError(f"a sample id has 32 hex digits, got {wrong!r:.80}")
    data = bytes.fromhex("".join(ids))
    if len(data) != ID_BYTES * len(ids):  # spaces are skipped
        raise ValueError("a sample id has 32 hex digits and nothing else, got one with a space")
    return np.frombuffer(data, dtype=f"S{ID_BYTES}")


def hex_ids(ids: Ids) -> list[str]:
    """Ids of dtype S16 as texts of 32 hex digits."""
    text = ids.tobytes().hex()
    return [text[at : at + 2 * ID_BYTES] for at in range(0, len(text), 2 * ID_BYTES)]


def sorted_unique(ids: Ids) -> Ids:
    """The different ones of (N,) ids, ascending."""
    high, low = _halves(ids)
    order = np.argsort(high)
    high, low = high[order], low[order]
    same = high[1:] == high[:-1]
    if np.any(low[1:][same] != low[:-1][same]):  # never for hashes, but ids may be anything
        return np.unique(ids)
    first: Ids = ids[order[np.concatenate([[True], ~same])[: len(ids)]]]
    return first


def is_ascending(ids: Ids) -> bool:
    """Whether (N,) ids are sorted and all different."""
    high, low = _halves(ids)
    higher = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(higher.all())


def holds(ids: Ids, one: str) -> bool:
    """Whether ascending (N,) ids hold one, given as 32 hex digits."""
    wanted = id_array([one])[0]
    at = int(np.searchsorted(ids, wanted))
    return at < len(ids) and bool(ids[at] == wanted)


class IdIndex:
    """Where an id stands in a sorted array.

    Attributes:
        ids: (N,) S16, ascending, all different.
    """

    __slots__ = ("_high", "_low", "_plain", "ids")

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self._high, self._low = _halves(ids)
        self._plain = bool((self._high[1:] > self._high[:-1]).all())

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The place of each of (M,) ids, -1 where it is not there."""
        if not len(self.ids):
            return np.full(len(ids), -1, np.int64)
        if not self._plain:
            places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
            return np.where(self.ids[places] == ids, places, -1)
        high, low = _halves(ids)
        places = np.minimum(np.searchsorted(self._high, high), len(self.ids) - 1)
        return np.where((self._high[places] == high) & (self._low[places] == low), places, -1)


def _halves(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The upper and the lower 64 bits of each id, whose order is that of the bytes."""
    halves = np.ascontiguousarray(ids).view(">u8").astype(np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()
