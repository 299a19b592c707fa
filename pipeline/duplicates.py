"""Duplicates across sources: the same content twice, or nearly the same picture in two files.

Near-duplicates *within* a source are the probe's business (time tells); across sources the 64-bit difference hash
finds candidates and the embedding confirms them, since flat pictures share hashes without being alike. A mirrored
picture is no duplicate: mirroring is an augmentation, and its mask differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BANDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateConfig:
    """Settings of the search for duplicates across sources.

    Attributes:
        distance: largest Hamming distance of the 64-bit hashes; at most 3, so that one of 4 bands is equal.
        cosine: smallest cosine of the embeddings.
    """

    distance: int = 3
    cosine: float = 0.97

    def __post_init__(self) -> None:
        if not 0 <= self.distance < BANDS:
            raise ValueError(f"duplicates.distance must be in 0..{BANDS - 1}, got {self.distance}")
        if not 0 <= self.cosine <= 1:
            raise ValueError(f"duplicates.cosine must be in [0, 1], got {self.cosine}")


def find_duplicates(
    ids: NDArray[np.str_],
    content: NDArray[np.bytes_],
    sources: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    config: DuplicateConfig,
) -> NDArray[np.int64]:
    """For each frame the frame it duplicates, or -1.

    A frame is dropped if an earlier frame that is itself kept has its id or its content, or comes from another source,
    has a hash within ``distance`` and an embedding with cosine at least ``cosine``. So no frame is dropped for the
    sake of a dropped one, and the first of every family stays.

    Args:
        ids: (N,) sample ids.
        content: (N,) content hashes.
        sources: (N,) number of the source of each frame.
        hashes: (N,) difference hashes.
        vectors: (N, D) L2-normalised embeddings.
        config: the thresholds.

    Returns:
        (N,) index of the kept frame that each duplicates, -1 where it is kept.
    """
    of = np.full(len(ids), -1, np.int64)
    first: dict[str | bytes, int] = {}  # id or content -> the kept frame that has it
    seen = _Kept(hashes, sources, vectors, config)
    for frame, keys in enumerate(zip(ids.tolist(), content.tolist(), strict=True)):
        kept = [first[key] for key in keys if key in first]
        near = seen.nearest(frame)
        if kept or near is not None:
            of[frame] = min([*kept, *([] if near is None else [near])])
        else:
            first.update(dict.fromkeys(keys, frame))
            seen.add(frame)
    return of


class _Kept:
    """The frames kept so far, found by the bands of their hashes.

    Hashes within a Hamming distance below 4 share one of 4 bands of 16 bits (pigeonhole principle).
    """

    def __init__(
        self,
        hashes: NDArray[np.uint64],
        sources: NDArray[np.int64],
        vectors: NDArray[np.float32],
        config: DuplicateConfig,
    ) -> None:
        self._hashes, self._sources, self._vectors, self._config = hashes, sources, vectors, config
        self._bands = hashes.view(np.uint16).reshape(-1, BANDS).tolist()
        self._buckets: dict[tuple[int, int], list[int]] = {}

    def add(self, frame: int) -> None:
        """Remembers a frame."""
        for key in enumerate(self._bands[frame]):
            self._buckets.setdefault(key, []).append(frame)

    def nearest(self, frame: int) -> int | None:
        """The first kept frame of another source that looks the same, or None."""
        found = [other for key in enumerate(self._bands[frame]) for other in self._buckets.get(key, ())]
        if not found:
            return None
        others = np.unique(np.array(found, np.int64))
        apart = np.bitwise_count(self._hashes[others] ^ self._hashes[frame])
        others = others[(apart <= self._config.distance) & (self._sources[others] != self._sources[frame])]
        alike = others[self._vectors[others] @ self._vectors[frame] >= self._config.cosine]
        return int(alike[0]) if len(alike) else None
