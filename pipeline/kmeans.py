"""k-means that gives the same answer for any order of its rows: what enters it, its seeds, Lloyd's algorithm.

N rows, D dimensions, K centroids. Rows are put in the order of their keys first; from there on every sum has a fixed
order and is taken in float64, so equal sets of rows give equal bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_BLOCK = 32
"""Candidates for seeds that are compared with all rows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Which rows may touch a centroid, and what became of the others; every row is in exactly one of the four.

    Attributes:
        sound: rows to fit on, in the order of their keys; all different from each other.
        not_finite: rows with a NaN or an infinity, ascending.
        dead: rows that are zero throughout, ascending.
        duplicate: rows equal to a sound one with a smaller key, ascending.
    """

    sound: NDArray[np.int64]
    not_finite: NDArray[np.int64]
    dead: NDArray[np.int64]
    duplicate: NDArray[np.int64]

    def counts(self) -> dict[str, int]:
        """How many rows were set aside, by reason."""
        return {name: len(getattr(self, name)) for name in ("not_finite", "dead", "duplicate")}


def sort_out(vectors: NDArray[np.float32], keys: NDArray[np.uint64] | None = None) -> Sorted:
    """Sets dead, repeated and not finite rows aside and orders the rest.

    Args:
        vectors: (N, D) float32, anything.
        keys: (N,) a hash per row that gives the order; None = a hash of the row itself.

    Raises:
        ValueError: the shapes do not fit.
    """
    if vectors.ndim != 2 or (keys is not None and keys.shape != (len(vectors),)):
        raise ValueError(
            f"vectors must be (N, D) and keys (N,), got {vectors.shape} and {None if keys is None else keys.shape}"
        )
    finite = np.isfinite(vectors).all(axis=1)
    dead = finite & ~vectors.any(axis=1)
    alive = np.flatnonzero(finite & ~dead)
    digests = _digests(vectors, alive)
    ranks = np.unique(digests.view("V16").ravel(), return_inverse=True)[1]
    order = np.lexsort((ranks, digests[:, 0] if keys is None else keys[alive]))
    first = np.sort(np.unique(ranks[order], return_index=True)[1])
    sound = alive[order[first]]
    return Sorted(
        sound=sound,
        not_finite=np.flatnonzero(~finite),
        dead=np.flatnonzero(dead),
        duplicate=np.setdiff1d(alive, sound),
    )


def row_keys(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N,) 64-bit hashes of the rows; equal rows have equal hashes."""
    return _digests(vectors, np.arange(len(vectors)))[:, 0]


def _digests(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(len(rows), 2) 128-bit hashes of the given rows, by which two are told to be equal; -0 counts as 0."""
    joined = b"".join(hashlib.blake2b((vectors[row] + 0.0).tobytes(), digest_size=16).digest() for row in rows)
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1 (zero rows stay zero)."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, 1e-8), np.float32)


def nearest(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32], count: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, count) squared distances to the nearest centroids, ascending, and (N, count) their numbers."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    distances, numbers = index.search(np.ascontiguousarray(vectors), count)
    return distances, numbers


def block_rows(dimension: int, memory_mb: int) -> int:
    """How many rows may be worked on at a time so that no temporary array is above ``memory_mb`` MiB (at least 64)."""
    return max(64, (memory_mb << 20) // (8 * max(dimension, _BLOCK)))


def plus_plus_seeds(
    vectors: NDArray[np.float32], k: int, *, rng: np.random.Generator, rows: int = 1 << 16
) -> NDArray[np.int64]:
    """k-means++ (Arthur & Vassilvitskii 2007): each seed drawn with chance proportional to its squared distance.

    Candidates are drawn in blocks from the distances at hand; one is refused with the chance by which the seeds of its
    own block have lowered its distance. So seeds are distributed as if drawn one by one, at one pass over the rows per
    block.

    Args:
        vectors: (N, D), all different.
        k: number of seeds, <= N.
        rng: draws them.
        rows: most rows worked on at a time.

    Returns:
        (k,) different row numbers.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    chosen = [int(rng.integers(len(vectors)))]
    left = np.full(len(vectors), np.inf, np.float32)
    _lower(left, vectors, squares, chosen, rows)
    while len(chosen) < k:
        total = np.cumsum(left, dtype=np.float64)
        if total[-1] <= 0:  # what is left differs by less than float32 tells
            return _fill(chosen, k, len(vectors))
        drawn = np.searchsorted(total, rng.random(_BLOCK) * total[-1], side="right").clip(max=len(vectors) - 1)
        new = _accept(vectors[drawn], squares[drawn], left[drawn], rng.random(_BLOCK), k - len(chosen))
        new = [int(drawn[j]) for j in new]
        _lower(left, vectors, squares, new, rows)
        chosen += new
    return np.array(chosen, np.int64)


def greedy_seeds(
    vectors: NDArray[np.float32], k: int, *, rng: np.random.Generator, rows: int = 1 << 16
) -> NDArray[np.int64]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007, section 7): of 2 + ln k candidates the one that lowers most stays.

    It costs as many times more than ``plus_plus_seeds``, and leaves dense regions with fewer seeds: candidates in a
    region that holds none lower the sum of squared distances most.

    Args:
        vectors: (N, D), all different.
        k: number of seeds, <= N.
        rng: draws the candidates.
        rows: most rows worked on at a time.

    Returns:
        (k,) different row numbers.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    chosen = [int(rng.integers(len(vectors)))]
    left = np.full(len(vectors), np.inf, np.float32)
    _lower(left, vectors, squares, chosen, rows)
    while len(chosen) < k and left.max() > 0:
        total = np.cumsum(left, dtype=np.float64)
        drawn = np.searchsorted(total, rng.random(2 + int(np.log(k))) * total[-1], side="right")
        drawn = np.minimum(drawn, np.flatnonzero(left)[-1])
        sums = np.zeros(len(drawn), np.float64)
        for start in range(0, len(vectors), rows):
            part = slice(start, start + rows)
            distance = vectors[drawn] @ vectors[part].T
            distance *= -2
            distance += squares[part]
            distance += squares[drawn, None]
            np.clip(distance, 0, left[part], out=distance)
            sums += distance.sum(axis=1, dtype=np.float64)
        chosen.append(int(drawn[sums.argmin()]))
        _lower(left, vectors, squares, chosen[-1:], rows)
    return _fill(chosen, k, len(vectors))


def farthest_seeds(vectors: NDArray[np.float32], k: int, *, rows: int = 1 << 16) -> NDArray[np.int64]:
    """Farthest first (Gonzalez 1985), from the row nearest to the mean; (k,) different row numbers."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    chosen = [int((squares - 2 * (vectors @ mean)).argmin())]
    left = np.full(len(vectors), np.inf, np.float32)
    _lower(left, vectors, squares, chosen, rows)
    while len(chosen) < k and left.max() > 0:
        chosen.append(int(left.argmax()))
        _lower(left, vectors, squares, chosen[-1:], rows)
    return _fill(chosen, k, len(vectors))


def lloyd(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    *,
    iterations: int,
    spherical: bool = False,
    rows: int = 1 << 16,
) -> NDArray[np.float32]:
    """Lloyd's algorithm; stops early when nothing moves.

    A centroid without rows is put on the row that is farthest from its own centroid (ties: the earlier row), in every
    iteration and once after the last.

    Args:
        vectors: (N, D) float32, finite.
        centroids: (K, D) to start from, K <= N.
        iterations: most of them, >= 1.
        spherical: centroids are scaled to length 1.
        rows: most rows summed at a time.

    Returns:
        (K, D) float32 centroids.
    """
    before = np.zeros(0, np.int64)
    for _ in range(iterations):
        distances, own = nearest(vectors, centroids)
        if np.array_equal(own[:, 0], before):
            break
        before = own[:, 0]
        centroids = _reseed(_means(vectors, before, len(centroids), spherical, rows), vectors, distances[:, 0])
    distances, own = nearest(vectors, centroids)
    empty = np.bincount(own[:, 0], minlength=len(centroids)) == 0
    centroids = np.where(empty[:, None], np.float32(np.nan), centroids)
    return _reseed(centroids, vectors, distances[:, 0])


def fit_kmeans(
    vectors: NDArray[np.float32],
    k: int,
    *,
    seed: int,
    iterations: int = 25,
    keys: NDArray[np.uint64] | None = None,
    memory_mb: int = 256,
) -> NDArray[np.float32]:
    """Spherical k-means: k-means++ seeds, then Lloyd; rows that are dead, repeated or not finite do not take part.

    Args:
        vectors: (N, D) float32, L2-normalised.
        k: number of centroids, <= N.
        seed: of the choice of first centroids.
        iterations: of Lloyd's algorithm, at most.
        keys: (N,) a hash per row (see ``sort_out``).
        memory_mb: most memory of a temporary array, MiB.

    Returns:
        (K, D) float32 L2-normalised centroids, equal for any order of the rows; K is k, or the number of sound rows if
        that is smaller.

    Raises:
        ValueError: k is not in 1..N, or no row is sound.
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must be in 1..{len(vectors)}, got {k}")
    sound = vectors[require_sound(sort_out(vectors, keys)).sound]
    rows = block_rows(vectors.shape[1], memory_mb)
    start = plus_plus_seeds(sound, min(k, len(sound)), rng=np.random.default_rng(seed), rows=rows)
    return lloyd(sound, unit_rows(sound[start]), iterations=iterations, spherical=True, rows=rows)


def require_sound(rows: Sorted) -> Sorted:
    """The same, or an error if there is nothing to fit on.

    Raises:
        ValueError: no row is sound.
    """
    if not len(rows.sound):
        counts = rows.counts()
        raise ValueError(
            f"there is no vector to cluster: {counts['not_finite']} are not finite and {counts['dead']} are zero; "
            "look at the network that made them"
        )
    return rows


def _lower(
    left: NDArray[np.float32],
    vectors: NDArray[np.float32],
    squares: NDArray[np.float32],
    new: list[int],
    rows: int,
) -> None:
    """Lowers the squared distances to the nearest seed, in place, by new seeds."""
    seeds = vectors[new]
    for start in range(0, len(vectors) if new else 0, rows):
        part = slice(start, start + rows)
        distance = (squares[new] - 2 * (vectors[part] @ seeds.T)).min(axis=1) + squares[part]
        np.minimum(left[part], np.maximum(distance, 0), out=left[part])
    left[new] = 0


def _accept(
    candidates: NDArray[np.float32],
    squares: NDArray[np.float32],
    before: NDArray[np.float32],
    chance: NDArray[np.float64],
    room: int,
) -> list[int]:
    """Numbers of the candidates that stay, given how far those before them in the block have lowered their distance."""
    between = np.maximum(squares[:, None] + squares - 2 * candidates @ candidates.T, 0)
    now = before.copy()
    stay: list[int] = []
    for j in range(len(candidates)):
        if len(stay) < room and chance[j] * before[j] < now[j]:
            stay.append(j)
            now = np.minimum(now, between[j])
            now[(candidates == candidates[j]).all(axis=1)] = 0
    return stay


def _fill(chosen: list[int], k: int, count: int) -> NDArray[np.int64]:
    rest = np.setdiff1d(np.arange(count), chosen)[: max(0, k - len(chosen))]
    return np.concatenate([np.array(chosen, np.int64), rest])


def _means(
    vectors: NDArray[np.float32], own: NDArray[np.int64], k: int, spherical: bool, rows: int
) -> NDArray[np.float32]:
    """(k, D) means of the rows of each centroid, summed in float64 in their order; NaN where there is none."""
    sums = np.zeros((k, vectors.shape[1]), np.float64)
    for start in range(0, len(vectors), rows):
        part = own[start : start + rows]
        table = sparse.csr_matrix((np.ones(len(part)), (part, np.arange(len(part)))), shape=(k, len(part)))
        sums += table @ vectors[start : start + rows].astype(np.float64)
    counts = np.bincount(own, minlength=k)
    scale = np.linalg.norm(sums, axis=1) if spherical else counts.astype(np.float64)
    usable = (counts > 0) & (scale > 1e-6)
    return np.where(usable[:, None], sums / np.where(usable, scale, 1)[:, None], np.nan).astype(np.float32)


def _reseed(
    centroids: NDArray[np.float32], vectors: NDArray[np.float32], distances: NDArray[np.float32]
) -> NDArray[np.float32]:
    empty = np.flatnonzero(np.isnan(centroids[:, 0]))
    if empty.size:
        centroids[empty] = vectors[np.argsort(-distances, kind="stable")[: empty.size]]
    return centroids
