"""Which student judges which sample, so that none judges what it could have learnt.

A bias that fills a cluster is learnt by any student trained on that cluster, and then confirmed. So whole clusters
are held out, clusters that look alike are held out together, and frames of one source stay together.

Letters: n samples, c clusters, d dimensions of a centroid, f a fold.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Folds:
    """Who is judged by which student.

    Attributes:
        clusters: (n,) int64, the cluster of each sample.
        fold: (n,) int64, the fold whose student judges the sample; -1 where nobody can.
        held_clusters: For each fold, the clusters of the samples it judges, ascending.
        leaks: Pairs of clusters that look alike and still lie in different folds, because joining them would have
            left one fold.
        reason: Why nothing is judged; empty where everything is.
    """

    clusters: Ints
    fold: Ints
    held_clusters: tuple[tuple[int, ...], ...] = ()
    leaks: tuple[tuple[int, int], ...] = ()
    reason: str = ""

    @property
    def count(self) -> int:
        """Number of folds; 0 where nothing is judged."""
        return len(self.held_clusters)

    def purged(self, f: int) -> NDArray[np.bool_]:
        """(n,) bool: samples student ``f`` may not train on: it judges them, or they share a cluster with such.

        A source lies in one fold, so nothing else shares a source with them.

        Raises:
            ValueError: If there is no such fold.
        """
        if not 0 <= f < self.count:
            raise ValueError(f"fold must be in [0, {self.count}), got {f}; {self.reason or 'see Folds.count'}")
        judged: NDArray[np.bool_] = self.fold == f
        return judged | np.isin(self.clusters, self.held_clusters[f])


def assign_folds(
    clusters: NDArray[np.integer],
    sources: NDArray[np.generic],
    centroids: NDArray[np.floating],
    folds: int,
    similar: float,
) -> Folds:
    """Assign every sample to the fold whose student judges it; deterministic, and blind to the order of the samples.

    A source goes where the majority of its samples clusters (the lower id among equals). Clusters whose centroids have
    a cosine above ``similar`` go to one fold, the most alike first, unless one fold would be left. Groups of clusters
    are dealt, the largest first, to the fold with the fewest samples.

    Args:
        clusters: (n,) integers in [0, c).
        sources: (n,) strings or integers.
        centroids: (c, d) floats.
        folds: Wanted number of folds, >= 2; fewer where there are fewer groups of clusters.
        similar: Cosine above which two clusters look alike.

    Raises:
        ValueError: If shapes do not fit, a cluster has no centroid, or ``folds`` is below 2.
    """
    labels = np.asarray(clusters, np.int64)
    _check(labels, sources, centroids, folds)
    home, source_of = _homes(labels, sources)
    homes = np.unique(home)
    if len(homes) < 2:
        return Folds(clusters=labels, fold=np.full(len(labels), -1, np.int64), reason=_why_none(labels, home))
    groups, leaks = _alike(homes, centroids, similar)
    sample_home = home[source_of]
    sizes = np.bincount(np.searchsorted(homes, sample_home), minlength=len(homes))
    fold_of_home = _deal(groups, sizes, folds)
    fold = fold_of_home[np.searchsorted(homes, sample_home)]
    held = tuple(tuple(np.unique(labels[fold == f]).tolist()) for f in range(int(fold.max()) + 1))
    across = tuple((int(homes[i]), int(homes[j])) for i, j in leaks if fold_of_home[i] != fold_of_home[j])
    return Folds(clusters=labels, fold=fold, held_clusters=held, leaks=across)


def _check(labels: Ints, sources: NDArray[np.generic], centroids: NDArray[np.floating], folds: int) -> None:
    if labels.ndim != 1 or sources.shape != labels.shape or centroids.ndim != 2:
        shapes = f"{labels.shape}, {sources.shape}, {centroids.shape}"
        raise ValueError(f"clusters and sources must be (n,) and centroids (c, d), got {shapes}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(centroids)):
        found = f"{labels.min()}..{labels.max()}"
        raise ValueError(f"clusters must lie in [0, {len(centroids)}), got {found}; give each cluster a centroid")
    if folds < 2:
        raise ValueError(f"folds must be >= 2, got {folds}: a single student would judge its own training set")


def _homes(labels: Ints, sources: NDArray[np.generic]) -> tuple[Ints, Ints]:
    """Majority cluster of each source, and the source's index of each sample."""
    _, source_of = np.unique(sources, return_inverse=True)
    if not len(labels):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs, counts = np.unique(np.stack((source_of, labels)), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    _, first = np.unique(pairs[0][order], return_index=True)
    return pairs[1][order][first], source_of


def _why_none(labels: Ints, home: Ints) -> str:
    if not len(labels):
        return "no samples"
    if len(home) == 1:
        return "one source: its frames cannot be held out from each other"
    if len(np.unique(labels)) < 2:
        return "one cluster: nothing would be left to train on"
    return f"all {len(home)} sources lie mostly in cluster {int(home[0])}: nothing would be left to train on"


def _alike(homes: Ints, centroids: NDArray[np.floating], similar: float) -> tuple[Ints, list[tuple[int, int]]]:
    """Group index of each home cluster after joining similar ones, and the pairs that were not joined."""
    group = np.arange(len(homes))
    refused = []
    for i, j in _pairs(np.asarray(centroids[homes], np.float64), similar):
        if group[i] == group[j]:
            continue
        if len(np.unique(group)) == 2:
            refused.append((i, j))
            continue
        group[group == max(group[i], group[j])] = min(group[i], group[j])
    return np.unique(group, return_inverse=True)[1], refused


def _pairs(points: NDArray[np.float64], similar: float) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of rows with a cosine above ``similar``, the most alike first."""
    lengths = np.sqrt((points**2).sum(axis=1, keepdims=True))
    unit = points / np.where(lengths > 0, lengths, 1)
    cosine = np.round(unit @ unit.T, 9)
    rows, columns = np.nonzero(np.triu(cosine > similar, 1))
    for k in np.lexsort((columns, rows, -cosine[rows, columns])):
        yield int(rows[k]), int(columns[k])


def _deal(groups: Ints, sizes: Ints, folds: int) -> Ints:
    """Fold of each home cluster: groups, the largest first, to the lightest fold."""
    weights = np.bincount(groups, weights=sizes).astype(np.int64)
    load = np.zeros(min(folds, len(weights)), np.int64)
    fold_of_group = np.zeros(len(weights), np.int64)
    for group in np.lexsort((np.arange(len(weights)), -weights)):
        fold_of_group[group] = int(load.argmin())
        load[fold_of_group[group]] += weights[group]
    return fold_of_group[groups]
