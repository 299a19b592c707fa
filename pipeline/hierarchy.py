"""Hierarchical k-means: fine cells first, then groups of cells, so that a frame has a path (group, cell).

The fit is a driver step on a hash sample; assignment is a pure function that any worker can do for itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import kmeans_plusplus


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Two levels of clusters.

    Attributes:
        cells: (K, D) float32 centroids of the fine level, L2-normalised.
        parents: (K,) int32 group of each cell.
        groups: (G, D) float32 centroids of the coarse level, L2-normalised.
    """

    cells: NDArray[np.float32]
    parents: NDArray[np.int32]
    groups: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.cells.ndim != 2 or self.groups.ndim != 2 or self.parents.shape != (len(self.cells),):
            raise ValueError(
                f"a tree needs cells (K, D), parents (K,), groups (G, D); got {self.cells.shape}, "
                f"{self.parents.shape}, {self.groups.shape}"
            )

    def assign(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Paths (N, 2) int32 and cosine distances (N,) float32 in [0, 2] of (N, D) L2-normalised vectors."""
        if not len(vectors):
            return np.zeros((0, 2), np.int32), np.zeros(0, np.float32)
        similarity = vectors @ self.cells.T
        cell = similarity.argmax(axis=1)
        distance = 1 - similarity[np.arange(len(vectors)), cell]
        paths = np.stack([self.parents[cell], cell.astype(np.int32)], axis=1)
        return paths, np.maximum(distance, 0).astype(np.float32)


def cluster_count(samples: int, per_cluster: int, most: int) -> int:
    """K by rule: about ``per_cluster`` samples in each, at least 1, at most ``most`` and at most one per sample."""
    return max(1, min(most, samples, round(samples / per_cluster)))


def fit_kmeans(vectors: NDArray[np.float32], k: int, *, seed: int, iterations: int = 25) -> NDArray[np.float32]:
    """Spherical k-means: k-means++ seeds on a sample, then Lloyd by faiss; empty clusters are split off large ones.

    Args:
        vectors: (N, D) float32, L2-normalised, finite.
        k: number of centroids, <= N.
        seed: of the choice of first centroids.
        iterations: of Lloyd's algorithm.

    Returns:
        (k, D) float32 L2-normalised centroids; distinct where the data allow.

    Raises:
        ValueError: k is not in 1..N or a vector is not finite.
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must be in 1..{len(vectors)}, got {k}")
    if not np.isfinite(vectors).all():
        raise ValueError("k-means needs finite vectors; set aside the others first")
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(seed)
    pool = vectors if len(vectors) <= 40 * k else vectors[np.sort(rng.choice(len(vectors), 40 * k, replace=False))]
    start, _ = kmeans_plusplus(pool.astype(np.float64), k, random_state=seed % (1 << 32))
    model = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=iterations,
        seed=seed % (1 << 31),
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    model.train(np.ascontiguousarray(vectors), init_centroids=unit_rows(start.astype(np.float32)))
    return unit_rows(np.asarray(model.centroids, np.float32))


def fit_tree(vectors: NDArray[np.float32], *, cells: int, seed: int, iterations: int = 25) -> Tree:
    """Fits the fine level on vectors and the coarse level, about the square root of it, on its centroids."""
    fine = fit_kmeans(vectors, cells, seed=seed, iterations=iterations)
    groups = max(1, round(math.sqrt(cells)))
    coarse = fit_kmeans(fine, groups, seed=seed + 1, iterations=iterations)
    parents = (fine @ coarse.T).argmax(axis=1)
    used, parents = np.unique(parents, return_inverse=True)
    return Tree(cells=fine, parents=parents.astype(np.int32), groups=coarse[used])


def unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1 (zero rows stay zero)."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, 1e-8), np.float32)


def purity(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of samples whose label is the commonest of their cluster; 0..1."""
    if not len(clusters):
        return 0.0
    table = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return float(table.max(axis=1).sum() / len(clusters))


def size_entropy(clusters: NDArray[np.int64], count: int) -> float:
    """Entropy of the sizes of ``count`` clusters over its largest value; 1 = all of one size, 0 = all in one."""
    sizes = np.bincount(clusters, minlength=count)
    p = sizes[sizes > 0] / len(clusters)
    return 1.0 if count <= 1 else float(-(p * np.log(p)).sum() / math.log(count))
