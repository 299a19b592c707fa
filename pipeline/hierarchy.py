"""Hierarchical clusters: cells, clusters of cells and groups of clusters, so that a frame has a path of three numbers.

::

    vectors ─ sort_out ─ seeds ─ Lloyd ─ cells ─┬─ density valleys between neighbours, where cells are well filled ─┐
                                                └─ Ward on the centroids, where they are not                       ─┤
                                                                               groups ─ Ward on the clusters ───────┘

The fit is a driver step on a hash sample; assignment is a pure function that any worker can do for itself.
K cells, N vectors, D dimensions. A path is (group, cluster, cell).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from pipeline.kmeans import (
    Sorted,
    block_rows,
    farthest_seeds,
    greedy_seeds,
    lloyd,
    nearest,
    plus_plus_seeds,
    require_sound,
    sort_out,
)

_ASSIGN_ROWS = 4096
_WARD_SHARE = 0.3  # of the cells; finer than concepts, so that none is left out
_Levels = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
_BORDER, _MIDDLE = 1 / 3, 2 / 3
_DENSE_CELLS, _FINE_CELLS, _FINE_FRAMES = 256, 1000, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeConfig:
    """How cells are found and grouped.

    Attributes:
        method: "valley" = k-means++ cells, joined where no density valley parts them, or farthest-first cells where
            none can be seen; "resampled" = hierarchical k-means with resampling (Vo et al., arXiv 2405.15613).
        most: most cells.
        iterations: of Lloyd's algorithm, at most.
        sparse: independent vectors per cell below which densities say too little: seeds are spread farthest first
            instead of by k-means++, and Ward's method on the centroids makes groups.
        border: share of the points between two cells that must lie at their border, not before it, to join the cells.
        evidence: points that must lie at a border to join two cells.
        resamples: rounds of resampling of each level ("resampled" only).
        memory_mb: most memory of a temporary array of the fit, MiB; the sample itself is held twice.
    """

    method: Literal["valley", "resampled"] = "valley"
    most: int = 1000
    iterations: int = 10
    sparse: int = 12
    border: float = 0.6
    evidence: int = 3
    resamples: int = 10
    memory_mb: int = 256

    def __post_init__(self) -> None:
        if self.method not in ("valley", "resampled"):
            raise ValueError(f"cluster.tree.method must be 'valley' or 'resampled', got {self.method!r}")
        for name in ("most", "iterations", "sparse", "evidence", "resamples", "memory_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.tree.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.border < 1:
            raise ValueError(f"cluster.tree.border must be between 0 and 1, got {self.border}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Three levels of clusters.

    Attributes:
        cells: (K, D) float32 centroids of the finest level; of length 1 where vectors are.
        clusters: (K,) int32 cluster of each cell, numbered by their first cells.
        groups: (K,) int32 group of each cell, all cells of a cluster alike, numbered by their first cells.
    """

    cells: NDArray[np.float32]
    clusters: NDArray[np.int32]
    groups: NDArray[np.int32]

    def __post_init__(self) -> None:
        k = len(self.cells)
        if self.cells.ndim != 2 or self.clusters.shape != (k,) or self.groups.shape != (k,):
            raise ValueError(
                f"a tree needs cells (K, D), clusters (K,), groups (K,); got {self.cells.shape}, "
                f"{self.clusters.shape}, {self.groups.shape}"
            )

    def path(self, cells: NDArray[np.int64]) -> NDArray[np.int32]:
        """(N, 3) int32 paths of cell numbers (N,); (-1, -1, -1) for -1."""
        paths = np.stack([self.groups[cells], self.clusters[cells], cells], axis=1).astype(np.int32)
        return np.where(cells[:, None] < 0, np.int32(-1), paths)

    def assign(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Paths (N, 3) int32 and cosine distances (N,) float32 in [0, 2] of (N, D) L2-normalised vectors.

        A vector that is zero or not finite belongs nowhere: path (-1, -1, -1), distance 2.
        """
        cell = np.full(len(vectors), -1, np.int64)
        distance = np.full(len(vectors), 2, np.float32)
        alive = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
        for start in range(0, len(alive), _ASSIGN_ROWS):
            rows = alive[start : start + _ASSIGN_ROWS]
            similarity = vectors[rows] @ self.cells.T
            cell[rows] = similarity.argmax(axis=1)
            distance[rows] = np.clip(1 - similarity[np.arange(len(rows)), cell[rows]], 0, 2)
        return self.path(cell), distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """What a fit gives.

    Attributes:
        tree: the levels.
        grouping: how cells became clusters: "valley", "ward" or "resampled".
        rows: which rows were fitted on, and which were set aside.
    """

    tree: Tree
    grouping: str
    rows: Sorted


def cluster_count(samples: int, per_cluster: int, most: int) -> int:
    """K by rule: about ``per_cluster`` samples in each, at least 1, at most ``most`` and at most one per sample."""
    return max(1, min(most, samples, round(samples / per_cluster)))


def cell_count(samples: int, independent: int, per_cluster: int, most: int, sparse: int) -> int:
    """K of the tree by rule: cells that show a density where the pool has one to show, else fine ones.

    A density is a matter of independent samples: frames of one video lie close because they are of one video. With at
    least ``sparse`` independent samples per cell there is a cell per ``per_cluster`` samples, at least 256. Other pools
    are drawn farthest first, a frame per cell, which needs more cells than frames are drawn: one per 4 samples, up to
    1,000, or one per ``per_cluster`` where that is more.

    Args:
        samples: different vectors.
        independent: how many of them are independent of each other.
        per_cluster: samples per cell.
        most: most cells.
        sparse: see ``TreeConfig``.
    """
    dense = max(_DENSE_CELLS, round(samples / per_cluster))
    if min(samples, independent) >= sparse * min(most, dense):
        return min(most, dense)
    return max(1, min(most, max(round(samples / per_cluster), min(_FINE_CELLS, round(samples / _FINE_FRAMES)))))


def fit_hierarchy(
    vectors: NDArray[np.float32],
    *,
    cells: int,
    seed: int,
    config: TreeConfig | None = None,
    keys: NDArray[np.uint64] | None = None,
    independent: int | None = None,
    spherical: bool = True,
) -> Hierarchy:
    """Fits cells and groups; equal bits for any order of the rows.

    Args:
        vectors: (N, D) float32; of length 1 where ``spherical``. Rows that are zero, not finite or repeat another are
            set aside and named.
        cells: K wanted, >= 1; where fewer rows are sound, each of them is a cell.
        seed: of the choice of first centroids.
        config: the recipe.
        keys: (N,) a hash per row, that orders them; None = a hash of the row itself.
        independent: how many of the rows are independent of each other, such as their sources; None = all.
        spherical: cells are of length 1.

    Raises:
        ValueError: ``cells`` is below 1, or no row is sound.
    """
    if cells < 1:
        raise ValueError(f"cells must be >= 1, got {cells}")
    config = config or TreeConfig()
    rows = require_sound(sort_out(vectors, keys))
    sound = np.ascontiguousarray(vectors[rows.sound], np.float32)
    with threadpool_limits(1):
        k, rng = min(cells, len(sound)), np.random.default_rng(seed)
        if config.method == "resampled":
            levels, grouping = _fit_resampled(sound, k, rng, config, spherical)
        else:
            dense = min(len(sound), independent or len(sound)) >= config.sparse * k
            levels, grouping = _fit_valley(sound, k, rng, config, spherical, dense)
    centroids, clusters, groups = levels
    tree = Tree(cells=centroids, clusters=_by_first(clusters), groups=_by_first(groups))
    return Hierarchy(tree=tree, grouping=grouping, rows=rows)


def _by_first(numbers: NDArray[np.int64]) -> NDArray[np.int32]:
    """The same partition, its parts numbered by their first members."""
    _, index, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(index))[inverse].astype(np.int32)


def ward_groups(centroids: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """(K,) group of each centroid by Ward's method, every centroid of weight one; at most ``count`` groups."""
    if len(centroids) < 2:
        return np.zeros(len(centroids), np.int64)
    return np.asarray(fcluster(linkage(centroids.astype(np.float64), "ward"), count, "maxclust"), np.int64) - 1


def valley_groups(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32], config: TreeConfig
) -> NDArray[np.int64]:
    """(K,) group of each centroid: two are joined unless the density between them has a valley.

    A point's place between its two nearest centroids a, b is s = (d_b² - d_a²) / |a - b|²: 0 at the border, 1 at a. If
    the two parts belong together, the border (s < 1/3) holds more of the points than the middle (s < 2/3). A centroid
    is drawn towards its own few points, so d_a is taken to the mean of the others: times n / (n - 1). Alone in its
    cell, a point is at the border.
    """
    k = len(centroids)
    if k < 2:
        return np.zeros(k, np.int64)
    distances, numbers = nearest(vectors, centroids, 2)
    own, other = numbers.T
    size = np.bincount(own, minlength=k).astype(np.float64)[own]
    left_out = np.where(size > 1, (size / np.maximum(size - 1, 1)) ** 2, np.inf)
    pairs, pair = np.unique(np.minimum(own, other) * k + np.maximum(own, other), return_inverse=True)
    apart = ((centroids[pairs // k] - centroids[pairs % k]) ** 2).sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        place = (distances[:, 1] - distances[:, 0] * left_out) / np.maximum(apart, 1e-12)[pair]
    place = np.where(size > 1, place, 0.0)
    border = np.bincount(pair, place < _BORDER, len(pairs))
    middle = np.bincount(pair, (place >= _BORDER) & (place < _MIDDLE), len(pairs))
    joined = pairs[(border >= config.evidence) & (border >= config.border * (border + middle))]
    graph = sparse.csr_matrix((np.ones(len(joined)), (joined // k, joined % k)), shape=(k, k))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def farthest_first(cells: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the cells in which those of each group are farthest first; (K,) cells by their new numbers.

    Each group keeps the numbers that its cells have, so the order of the groups' first cells stays.
    """
    order = np.empty(len(cells), np.int64)
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        order[mine] = mine[farthest_seeds(cells[mine], len(mine))]
    return order


def _fit_valley(
    vectors: NDArray[np.float32], k: int, rng: np.random.Generator, config: TreeConfig, spherical: bool, dense: bool
) -> tuple[_Levels, str]:
    rows = block_rows(vectors.shape[1], config.memory_mb)

    def fit(start: NDArray[np.int64]) -> NDArray[np.float32]:
        return lloyd(vectors, vectors[start], iterations=config.iterations, spherical=spherical, rows=rows)

    if dense:
        cells = fit(plus_plus_seeds(vectors, k, rng=rng, rows=rows))
        clusters = valley_groups(vectors, cells, config)
        if 2 * (clusters.max() + 1) >= math.sqrt(k):  # else it is one mass with a few fragments: no valley parts it
            return (cells, clusters, _groups_of(cells, clusters)), "valley"
    cells = fit(farthest_seeds(vectors, k, rows=rows))
    few = round(math.sqrt(2 * k))
    clusters, groups = (ward_groups(cells, count) for count in (max(few, round(_WARD_SHARE * k)), few))
    order = farthest_first(cells, groups)
    return (cells[order], clusters[order], groups[order]), "ward"


def _fit_resampled(
    vectors: NDArray[np.float32], k: int, rng: np.random.Generator, config: TreeConfig, spherical: bool
) -> tuple[_Levels, str]:
    """Cells, and a quarter as many clusters of their centroids, each re-fitted on points near the centroids."""
    cells = _resample(vectors, k, max(1, len(vectors) // (2 * k)), rng, config, spherical)
    clusters = nearest(cells, _resample(cells, max(1, k // 4), 2, rng, config, spherical))[1][:, 0]
    return (cells, clusters, _groups_of(cells, clusters)), "resampled"


def _groups_of(cells: NDArray[np.float32], clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) group of each cell: Ward's method on the mean cells of the clusters, about √(2C) groups of C clusters."""
    _, cluster, size = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = np.zeros((len(size), cells.shape[1]), np.float64)
    np.add.at(sums, cluster, cells)
    means = (sums / size[:, None]).astype(np.float32)
    return ward_groups(means, max(1, round(math.sqrt(2 * len(size)))))[cluster]


def _resample(
    vectors: NDArray[np.float32], k: int, each: int, rng: np.random.Generator, config: TreeConfig, spherical: bool
) -> NDArray[np.float32]:
    """K centroids: k-means, then again and again on the ``each`` points of every cluster nearest to its centroid.

    Seeds are greedy: with plain k-means++ the same rounds reach a quarter fewer effective components of a long tail.
    """
    rows = block_rows(vectors.shape[1], config.memory_mb)

    def fit(part: NDArray[np.float32]) -> NDArray[np.float32]:
        start = part[greedy_seeds(part, k, rng=rng, rows=rows)]
        return lloyd(part, start, iterations=config.iterations, spherical=spherical, rows=rows)

    centroids = fit(vectors)
    for _ in range(config.resamples):
        distances, own = nearest(vectors, centroids)
        order = np.lexsort((distances[:, 0], own[:, 0]))
        sizes = np.bincount(own[:, 0], minlength=k)
        rank = np.arange(len(vectors)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        part = vectors[np.sort(order[rank < each])]
        if len(part) <= k:  # nothing to choose from
            break
        centroids = fit(part)
    return centroids


def purity(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of samples whose label is the commonest of their cluster; 0..1."""
    if not len(clusters):
        return 0.0
    table = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return float(table.max(axis=1).sum() / len(clusters))


def agreement(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """How much clusters and labels (both (N,) int64 >= 0, N >= 1) tell of each other.

    Returns:
        ``purity``; ``nmi``, the mutual information over the mean of the two entropies, 0..1, which grows with the
        number of clusters also by chance; ``ami``, the same less what random clusters of the same sizes have: 1 =
        equal, about 0 = chance (Vinh, Epps & Bailey, JMLR 2010).
    """
    return {
        "purity": purity(clusters, labels),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ami": float(adjusted_mutual_info_score(labels, clusters)),
    }


def size_entropy(clusters: NDArray[np.int64], count: int) -> float:
    """Entropy of the sizes of ``count`` clusters over its largest value; 1 = all of one size, 0 = all in one."""
    sizes = np.bincount(clusters, minlength=count)
    p = sizes[sizes > 0] / len(clusters)
    return 1.0 if count <= 1 else float(-(p * np.log(p)).sum() / math.log(count))
