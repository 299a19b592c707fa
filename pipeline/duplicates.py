"""Duplicates across sources: the same content twice, or nearly the same picture in two files.

Near-duplicates *within* a source are the probe's business (time tells); across sources the 64-bit difference hash
finds candidates and the embedding confirms them, since flat pictures share hashes without being alike. A mirrored
picture is no duplicate: mirroring is an augmentation, and its mask differs.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    near: dict[int, list[int]] = {}
    for a, b in _near_pairs(hashes, sources, config.distance):
        if float(vectors[a] @ vectors[b]) >= config.cosine:
            near.setdefault(b, []).append(a)
    of = np.full(len(ids), -1, np.int64)
    first: dict[str | bytes, int] = {}  # id or content -> the kept frame that has it
    for frame, keys in enumerate(zip(ids.tolist(), content.tolist(), strict=True)):
        kept = [first[key] for key in keys if key in first] + [other for other in near.get(frame, ()) if of[other] < 0]
        if kept:
            of[frame] = min(kept)
        else:
            first.update(dict.fromkeys(keys, frame))
    return of


def _near_pairs(hashes: NDArray[np.uint64], sources: NDArray[np.int64], distance: int) -> Iterator[tuple[int, int]]:
    """Pairs of two sources, the earlier first, within a Hamming distance below 4.

    By the pigeonhole principle they share one of the 4 bands.
    """
    bands = hashes.view(np.uint16).reshape(-1, BANDS)
    seen: set[tuple[int, int]] = set()
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        edges = np.flatnonzero(np.diff(bands[order, band])) + 1
        for group in np.split(order, edges):
            for pair in _within(group, hashes, sources, distance):
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _within(
    group: NDArray[np.int64], hashes: NDArray[np.uint64], sources: NDArray[np.int64], distance: int
) -> Iterator[tuple[int, int]]:
    for i, a in enumerate(group[:-1]):
        rest = group[i + 1 :]
        close = (np.bitwise_count(hashes[rest] ^ hashes[a]) <= distance) & (sources[rest] != sources[a])
        for b in rest[close]:
            yield (int(min(a, b)), int(max(a, b)))
