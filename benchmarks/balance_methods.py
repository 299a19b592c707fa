"""The methods of the balance benchmark: the path of the main job, from its own public functions, and its peers.

::

    ours    thin ─ selection_key ─ the smallest keys ─ cell_count ─ fit_hierarchy ─ nearest ─ Tree.path
            ─ cell_name ─ plan_quotas ─ trim

All settings of ours are the defaults of the main job, but for two that say what the vectors are: they are not of length
1 (``spherical=False``), and 30 stand in a second of a clip, which ``THIN`` takes account of.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from benchmarks.balance_pools import Pool, Rows, Vectors
from pipeline.hierarchy import TreeConfig, cell_count, fit_hierarchy
from pipeline.kmeans import lloyd, nearest, plus_plus_seeds
from pipeline.quota import SelectConfig, plan_quotas
from pipeline.select import cell_name, selection_key, trim
from pipeline.thin import ThinConfig, thin
from pipeline.waterfill import draw, water_fill

Method = Callable[[Pool, int, int], Rows]
"""Pool, how many to take, seed: the rows taken."""
FRAME_US = 33_333
THIN = ThinConfig(gap_seconds=0.53, moved=0.0)
"""No two frames of a clip nearer than 16 frames at 30 per second, all others stay: the default of ``moved`` is in units
of another embedding."""
_RAKING = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of the same names of ``ClusterConfig``, whose module loads torch and Beam."""

    sample: int
    per_cluster: int
    most: int


def thinned(pool: Pool) -> Rows:
    """The rows that stay of every clip; all of a pool without a time."""
    if pool.clip is None or pool.frame is None:
        return np.arange(len(pool.vectors))
    order = np.lexsort((pool.frame, pool.clip))
    kept = []
    for rows in np.split(order, np.flatnonzero(np.diff(pool.clip[order])) + 1):
        times = FRAME_US * pool.frame[rows]
        stays, _ = thin(times, np.zeros(len(rows), np.int32), pool.vectors[rows], THIN)
        kept.append(rows[stays])
    return np.concatenate(kept)


def ours(recipe: Recipe, tree: TreeConfig, spread_attributes: bool, pool: Pool, budget: int, seed: int) -> Rows:
    """What the main job would choose."""
    rows = thinned(pool)
    ids = [f"{number:012d}" for number in pool.numbers[rows].tolist()]
    keys = np.array([selection_key(seed, sample_id) for sample_id in ids], np.uint64)
    vectors = pool.vectors[rows]
    sample = np.argsort(keys)[: recipe.sample]
    independent = len(sample) if pool.clip is None else len(np.unique(pool.clip[rows[sample]]))
    fit = fit_hierarchy(
        vectors[sample],
        cells=cell_count(len(sample), independent, recipe.per_cluster, min(recipe.most, tree.most), tree.sparse),
        seed=seed,
        config=tree,
        keys=keys[sample],
        independent=independent,
        spherical=False,
    )
    names = pool.names if spread_attributes else ()
    paths = fit.tree.path(nearest(vectors, fit.tree.cells)[1][:, 0])
    cells = _cells(paths, pool, rows, names)
    plan = plan_quotas(Counter(cells), budget, SelectConfig(), names)
    return np.asarray(rows[trim(cells, keys, ids, plan.quotas)])


def _cells(paths: NDArray[np.int32], pool: Pool, rows: Rows, names: tuple[str, ...]) -> list[str]:
    if pool.attributes is None or not names:
        return [cell_name(path, ()) for path in paths.tolist()]
    classes = pool.attributes[rows].tolist()
    return [
        cell_name(path, [None if value < 0 else str(value) for value in values])
        for path, values in zip(paths.tolist(), classes, strict=True)
    ]


def random_rows(pool: Pool, budget: int, seed: int) -> Rows:
    """A random sample."""
    return np.random.default_rng(seed).choice(len(pool.vectors), budget, replace=False)


def thinned_random(pool: Pool, budget: int, seed: int) -> Rows:
    """A random sample of what thinning leaves."""
    return np.random.default_rng(seed).choice(thinned(pool), budget, replace=False)


def flat(cluster: Callable[[Vectors, int, int], Rows], pool: Pool, budget: int, seed: int) -> Rows:
    """Equal quotas over a flat clustering."""
    cells = flat_cells(budget)
    cell = cluster(pool.vectors, cells, seed)
    keys = np.random.default_rng(seed).integers(0, 1 << 63, len(cell), dtype=np.uint64)
    return draw(cell, keys, water_fill(np.bincount(cell, minlength=cells), budget))


def flat_cells(budget: int) -> int:
    """K of the flat peers: half of what is drawn, between 60 and 1000."""
    return min(1000, max(60, budget // 2))


def by_faiss(vectors: Vectors, k: int, seed: int) -> Rows:
    """Flat k-means of faiss as it comes, 25 iterations."""
    model = faiss.Kmeans(vectors.shape[1], k, niter=25, seed=seed, min_points_per_centroid=1)
    model.train(vectors)
    return nearest(vectors, np.asarray(model.centroids, np.float32))[1][:, 0]


def by_plus_plus(vectors: Vectors, k: int, seed: int) -> Rows:
    """Flat k-means from k-means++ seeds, 25 iterations."""
    start = plus_plus_seeds(vectors, k, rng=np.random.default_rng(seed))
    return nearest(vectors, lloyd(vectors, vectors[start], iterations=25))[1][:, 0]


def by_mini_batch(vectors: Vectors, k: int, seed: int) -> Rows:
    """MiniBatchKMeans of scikit-learn."""
    return np.asarray(MiniBatchKMeans(k, random_state=seed, n_init=1, batch_size=4096).fit_predict(vectors), np.int64)


def k_centre(pool: Pool, budget: int, seed: int) -> Rows:
    """Farthest first, from a random row as its users run it."""
    vectors, squares = pool.vectors, np.einsum("nd,nd->n", pool.vectors, pool.vectors)
    chosen = [int(np.random.default_rng(seed).integers(len(vectors)))]
    left = _squares_to(vectors, squares, chosen[0])
    while len(chosen) < budget:
        left[chosen[-1]] = -1
        chosen.append(int(left.argmax()))
        np.minimum(left, _squares_to(vectors, squares, chosen[-1]), out=left)
        left[chosen] = -1
    return np.array(chosen)


def _squares_to(vectors: Vectors, squares: NDArray[np.float32], row: int) -> NDArray[np.float32]:
    return np.asarray(np.maximum(squares + squares[row] - 2 * (vectors @ vectors[row]), 0))


def rake(pool: Pool, budget: int, seed: int) -> Rows:
    """Iterative proportional fitting (Deming & Stephan 1940) of inclusion probabilities, then a systematic draw.

    Known classes of an attribute get equal sums; unknown keeps its share of the pool. No probability is above 1.
    """
    values = _attributes(pool)
    chance = np.full(len(values), budget / len(values))
    for _ in range(_RAKING):
        for column in values.T:
            known = column >= 0
            sums = np.bincount(column[known], chance[known])
            wanted = np.full(len(sums), known.mean() * budget / len(sums))
            factor = wanted / np.maximum(sums, 1e-12)
            chance[known] *= factor[column[known]]
            chance[~known] *= (1 - known.mean()) * budget / max(chance[~known].sum(), 1e-12)
            np.minimum(chance, 1, out=chance)
    return _systematic(chance, budget, np.random.default_rng(seed))


def _systematic(chance: NDArray[np.float64], budget: int, rng: np.random.Generator) -> Rows:
    """A draw without replacement that takes each row with its chance, scaled to the budget with none above 1."""
    sure = np.zeros(len(chance), np.bool_)
    while True:
        scaled = np.where(sure, 1.0, chance * (budget - sure.sum()) / chance[~sure].sum())
        if (scaled <= 1).all():
            break
        sure |= scaled >= 1
    order = rng.permutation(len(chance))
    ends = np.cumsum(scaled[order])
    steps = (np.arange(budget) + rng.random()) * (ends[-1] / budget)
    return np.asarray(order[np.searchsorted(ends, steps, side="right").clip(max=len(order) - 1)])


def marginals_and_diversity(pool: Pool, budget: int, seed: int) -> Rows:
    """One by one: how far a frame is from those taken, plus how far its classes are below equal shares.

    Both parts are scaled to 0..1 and count alike, as the selection strategies of LightlyStudio do; there is no time
    axis and no pair in it. Unknown values gain nothing.
    """
    values = _attributes(pool)
    vectors, squares = pool.vectors, np.einsum("nd,nd->n", pool.vectors, pool.vectors)
    sizes = values.max(axis=0) + 1
    starts = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])  # the last of each attribute is unknown
    member = np.where(values < 0, sizes, values) + starts
    unknown = starts + sizes
    share = np.repeat(1 / sizes, sizes + 1)
    held = np.zeros(len(share))
    chosen = [int(np.random.default_rng(seed).integers(len(vectors)))]
    left = np.full(len(vectors), np.inf, np.float32)
    while True:
        np.minimum(left, _squares_to(vectors, squares, chosen[-1]), out=left)
        held[member[chosen[-1]]] += 1
        if len(chosen) == budget:
            return np.array(chosen)
        lack = np.maximum(share - held / len(chosen), 0) / share
        lack[unknown] = 0
        far = np.sqrt(left)
        gain = far / max(float(far.max()), 1e-12) + lack[member].mean(axis=1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))


def _attributes(pool: Pool) -> Rows:
    assert pool.attributes is not None, "only video pools are drawn by their attributes"
    return pool.attributes.astype(np.int64)


def methods(pool: Pool, budget: int, recipe: Recipe, *, slow: bool) -> dict[str, Method]:
    """Ours first, then the peers that run on the pool; with ``slow`` also those that take minutes."""
    cells = flat_cells(budget)
    part = functools.partial
    table: dict[str, Method] = {
        "ours": part(ours, recipe, TreeConfig(), True),
        "random": random_rows,
        f"flat faiss k-means, K={cells}": part(flat, by_faiss),
        f"flat k-means++, K={cells}": part(flat, by_plus_plus),
        f"MiniBatchKMeans, K={cells}": part(flat, by_mini_batch),
    }
    if slow or len(pool.vectors) <= 200_000:
        table["k-centre"] = k_centre
    if slow or len(pool.vectors) <= 10_000 or pool.clip is not None:
        table["ours, resampled"] = part(ours, recipe, TreeConfig(method="resampled"), True)
    if pool.attributes is not None:
        table |= {
            "thinning + random": thinned_random,
            "thinning + groups": part(ours, recipe, TreeConfig(), False),
            "raking": rake,
            "marginals + diversity": marginals_and_diversity,
        }
    return table
