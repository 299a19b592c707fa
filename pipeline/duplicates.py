"""Duplicates: the same content twice, or nearly the same picture in two sources.

Near-duplicates *within* a source are found by time (`pipeline.thin`); across sources the 64-bit difference hash finds
candidates and the embedding confirms them, since flat pictures share hashes without being alike. A mirrored picture is
no duplicate: mirroring is an augmentation, and its mask differs.

::

    content, hashes ──> links ──> families of candidates ──> vectors of these alone ──> who repeats whom
                                  (connected components)     (a batch at a time)        (in order, see below)

N frames, M candidates of a batch, P pairs, D values of an embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]

_BANDS: Final = tuple(sum(1 << bit for bit in range(64) if (5 * bit + bit // 8) % 6 == band) for band in range(6))
"""Masks of 6 bands. Neighbours in a row or column of the 8 × 8 bits are in different bands, so that black bars, which
hold the bits of whole rows or columns at 0, take a little from every band and all of none."""
MOST_DISTANCE: Final = 3
_BATCH: Final = 200_000
_LARGE: Final = 64
_BLOCK: Final = 512
_PAIRS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateConfig:
    """Settings of the search for duplicates across sources.

    Attributes:
        distance: largest Hamming distance of the 64-bit hashes; at most 3, so that three of 6 bands are equal.
        cosine: smallest cosine of the embeddings.
    """

    distance: int = 3
    cosine: float = 0.97

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MOST_DISTANCE:
            raise ValueError(f"duplicates.distance must be in 0..{MOST_DISTANCE}, got {self.distance}")
        if not 0 <= self.cosine <= 1:
            raise ValueError(f"duplicates.cosine must be in [0, 1], got {self.cosine}")


def find_duplicates(
    content: NDArray[np.bytes_],
    sources: Indices,
    hashes: NDArray[np.uint64],
    load: Callable[[Indices], NDArray[np.float16]],
    config: DuplicateConfig,
) -> Indices:
    """For each frame the frame it duplicates, or -1.

    Frames are taken in order. A frame is dropped if an earlier frame that is itself kept has its content, or comes from
    another source, has a hash within ``distance`` and an embedding with cosine at least ``cosine``. So no frame is
    dropped for the sake of a dropped one, and the first of every family stays.

    The cosines are exact: a product of two float16 numbers and, at unit length, any sum of such products fit a float64.
    So no order of summation, block or machine changes the result.

    Args:
        content: (N,) content hashes.
        sources: (N,) a number that frames share if they are not to be compared by their looks.
        hashes: (N,) difference hashes.
        load: gives the (M, D) embeddings, about unit length, of M frames, ascending; called for candidates alone,
            about 200,000 at a time unless a single family is larger.
        config: the thresholds.

    Returns:
        (N,) index of the kept frame that each duplicates, -1 where it is kept.
    """
    of = np.full(len(hashes), -1, np.int64)
    labels, repeated = _same(content)
    rows, family = _candidates(sources, hashes, repeated, config.distance)
    for start, stop in _batches(family):
        mine = rows[start:stop]
        order = np.argsort(mine)
        vectors = np.empty_like(loaded := load(mine[order]))
        vectors[order] = loaded
        frames = _Frames(labels[mine], sources[mine], hashes[mine], vectors, config)
        found = _resolve(frames, family[start:stop])
        of[mine] = np.where(found >= 0, mine[found], -1)
    return of


# Candidates -----------------------------------------------------------------------------------------------------------


def _same(values: NDArray[np.generic]) -> tuple[Indices, Indices]:
    """(N,) a number per different value, and the (2, L) links that chain the frames of equal value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    again = ordered[1:] == ordered[:-1]
    labels = np.zeros(len(values), np.int64)
    labels[order[1:]] = np.cumsum(~again)
    return labels, np.stack([order[:-1][again], order[1:][again]])


def _candidates(
    sources: Indices, hashes: NDArray[np.uint64], same_content: Indices, distance: int
) -> tuple[Indices, Indices]:
    """Frames that may repeat one another, and the (M,) family of each, sorted by family and frame.

    Equal hashes are one node of the search, however many frames have them.
    """
    count = len(hashes)
    _, same_hash = _same(hashes)
    unique, first = np.unique(hashes, return_index=True)
    links = np.concatenate([same_content, same_hash, first[near_hashes(unique, distance)]], axis=1)
    graph = sparse.coo_array((np.ones(links.shape[1], np.bool_), (links[0], links[1])), shape=(count, count))
    family = connected_components(graph, directed=False)[1].astype(np.int64)
    rows = np.flatnonzero(np.bincount(family, minlength=1)[family] > 1)
    rows = rows[np.argsort(family[rows], kind="stable")]
    return _comparable(rows, family[rows], sources, same_content)


def _comparable(rows: Indices, family: Indices, sources: Indices, same_content: Indices) -> tuple[Indices, Indices]:
    """Without the families of a single source in which no content repeats: nothing there can be dropped."""
    if not rows.size:
        return rows, family
    repeated = np.zeros(len(sources), np.bool_)
    repeated[same_content.ravel()] = True
    starts = _starts(family)
    sizes = np.diff(starts, append=len(rows))
    mine = sources[rows]
    mixed = np.minimum.reduceat(mine, starts) != np.maximum.reduceat(mine, starts)
    stays = np.repeat(mixed | np.logical_or.reduceat(repeated[rows], starts), sizes)
    return rows[stays], family[stays]


def near_hashes(hashes: NDArray[np.uint64], distance: int) -> Indices:
    """(2, L) every pair of different hashes within a Hamming distance of at most 3, some of them several times.

    Hashes that differ in 3 bits agree in three of 6 bands of 9 to 12 bits (pigeonhole principle), so sorting by each
    of the 20 choices of three bands brings them together (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
    crawling", WWW 2007). Of a million random hashes only some hundred pairs share the 31 to 33 bits of a choice by
    chance; four bands of 16 bits would give 30 million.

    Args:
        hashes: (U,) different hashes.
        distance: at most 3.
    """
    found = [np.zeros((2, 0), np.int64)]
    if distance == 0:
        return found[0]
    for bands in itertools.combinations(_BANDS, 3):
        keys = hashes & np.uint64(sum(bands))
        order = np.argsort(keys, kind="stable")
        found += _runs(keys[order], order, hashes[order], distance)
    return np.concatenate(found, axis=1)


def _runs(keys: NDArray[np.uint64], order: Indices, hashes: NDArray[np.uint64], distance: int) -> Iterator[Indices]:
    """Pairs within the distance among sorted hashes of equal key: neighbours, next but one, and so on."""
    at = np.arange(len(keys))
    for lag in itertools.count(1):
        at = at[: np.searchsorted(at, len(keys) - lag)]
        at = at[keys[at] == keys[at + lag]]
        if not at.size:
            return
        near = at[np.bitwise_count(hashes[at] ^ hashes[at + lag]) <= distance]
        yield np.stack([order[near], order[near + lag]])


def _starts(family: Indices) -> Indices:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(family, prepend=-1))


def _batches(family: Indices) -> Iterator[tuple[int, int]]:
    """Spans of whole families, each the fewest that hold at least ``_BATCH`` frames."""
    start = 0
    for stop in [*_starts(family)[1:].tolist(), len(family)] if len(family) else []:
        end = stop
        if end - start >= _BATCH or end == len(family):
            yield start, end
            start = end


# Who repeats whom -----------------------------------------------------------------------------------------------------


class _Frames:
    """The candidates of a batch, and whether two of them are the same or alike."""

    def __init__(
        self,
        content: Indices,
        sources: Indices,
        hashes: NDArray[np.uint64],
        vectors: NDArray[np.float16],
        config: DuplicateConfig,
    ) -> None:
        self._content, self._sources, self._hashes, self._vectors = content, sources, hashes, vectors
        self._config = config

    def alike(self, a: Indices, b: Indices) -> NDArray[np.bool_]:
        """(P,) for the pairs of (P,) frames a and b."""
        same, near = self._near(a, b)
        asked = np.flatnonzero(near)
        for start in range(0, len(asked), _PAIRS):
            some = asked[start : start + _PAIRS]
            u, v = self._float(a[some]), self._float(b[some])
            cosine = np.einsum("pd,pd->p", u, v)
            near[some] = self._agree(cosine, _squared(u), _squared(v))
        return same | near

    def alike_all(self, a: Indices, b: Indices) -> NDArray[np.bool_]:
        """(A, B) for every frame of a with every one of b; cosines are taken where rows and columns have candidates."""
        same, near = self._near(a[:, None], b[None, :])
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if rows.size:
            u, v = self._float(a[rows]), self._float(b[columns])
            near[np.ix_(rows, columns)] &= self._agree(u @ v.T, _squared(u)[:, None], _squared(v)[None, :])
        return same | near

    def _near(self, a: Indices, b: Indices) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        same = self._content[a] == self._content[b]
        near = np.bitwise_count(self._hashes[a] ^ self._hashes[b]) <= self._config.distance
        return same, near & ~same & (self._sources[a] != self._sources[b])

    def _agree(self, product: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(product >= self._config.cosine * np.sqrt(u * v))

    def _float(self, frames: Indices) -> NDArray[np.float64]:
        return self._vectors[frames].astype(np.float64)


def _squared(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("pd,pd->p", vectors, vectors))


def _resolve(frames: _Frames, family: Indices) -> Indices:
    """(M,) the kept candidate that each repeats, or -1; candidates are sorted by family, then in order."""
    starts = _starts(family)
    sizes = np.diff(starts, append=len(family))
    found = _small_families(frames, family, np.flatnonzero(np.repeat(sizes <= _LARGE, sizes)))
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        if size > _LARGE:
            found[start : start + size] = _large_family(frames, np.arange(start, start + size))
    return found


def _small_families(frames: _Frames, family: Indices, open_: Indices) -> Indices:
    """All small families at once: in each round the first open frame of every one stays, and takes those like it."""
    found = np.full(len(family), -1, np.int64)
    while open_.size:
        starts = _starts(family[open_])
        first = np.repeat(open_[starts], np.diff(starts, append=len(open_)))
        rest = open_ != first
        open_, first = open_[rest], first[rest]
        alike = frames.alike(first, open_)
        found[open_[alike]] = first[alike]
        open_ = open_[~alike]
    return found


def _large_family(frames: _Frames, members: Indices) -> Indices:
    """One family, block by block: first against all that are kept, then within the block."""
    found = np.full(len(members), -1, np.int64)
    kept = members[:0]
    for start in range(0, len(members), _BLOCK):
        block = members[start : start + _BLOCK]
        mine = np.full(len(block), -1, np.int64)
        for other in range(0, len(kept), _PAIRS):
            some = kept[other : other + _PAIRS]
            left = np.flatnonzero(mine < 0)
            alike = frames.alike_all(block[left], some)
            hit = alike.any(axis=1)
            mine[left[hit]] = some[alike.argmax(axis=1)[hit]]
        left = np.flatnonzero(mine < 0)
        mine[left] = _within(block[left], frames.alike_all(block[left], block[left]))
        found[start : start + len(block)] = mine
        kept = np.concatenate([kept, block[mine < 0]])
    return found


def _within(block: Indices, alike: NDArray[np.bool_]) -> Indices:
    """(B,) which of its own kept frames each frame of a block repeats, given the (B, B) relation."""
    found = np.full(len(block), -1, np.int64)
    for frame in range(len(block)):
        hits = alike[frame, :frame] & (found[:frame] < 0)
        if hits.any():
            found[frame] = block[hits.argmax()]
    return found
