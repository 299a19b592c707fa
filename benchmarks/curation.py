"""How evenly a balanced sample covers hidden components: our hierarchy beside its peers, on long-tailed pools.

Usage: python -m benchmarks.curation [plain50k] [plain200k] [digits] [--large] [--pool-seed P] [--seeds S] [--slow]

Reads the generator and the metrics in ``$CURATE_SHARED/bench/curation``. One table per pool: effective number of
components (exp of the entropy), coverage, share of the rarer half, KL to the most even reachable target, CPU seconds of
one thread, and the ratios to ours. ``--large`` adds plain500k, ``--pool-seed`` draws other mixtures than
those that the settings were chosen on (0), ``--slow`` adds the peers and alternatives that take minutes.
Rows marked "quoted" were measured elsewhere, most of them for peers that cannot be run here; compare their CPU seconds
with the quoted row of flat faiss k-means, which is measured here as well.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from benchmarks.shared import SHARED
from pipeline.hierarchy import Hierarchy, TreeConfig, fit_hierarchy
from pipeline.kmeans import farthest_seeds, lloyd, nearest, plus_plus_seeds, row_keys
from pipeline.waterfill import draw, nested_water_fill, water_fill

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Sampler = Callable[[Vectors, int], Rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Pools of one kind to draw from.

    Attributes:
        draws: vectors and hidden components; means over them are printed.
        budget: how many to take.
        cells: K of ours.
        flat: K of the flat peers.
        goal: effective components and CPU seconds to reach.
    """

    draws: list[tuple[Vectors, NDArray[np.int64]]]
    budget: int
    cells: int
    flat: int
    goal: tuple[float, float]


MIXTURES = {
    "plain50k": {"budget": 1000, "cells": 1000, "flat": 500, "goal": (190.0, 12.0)},
    "plain200k": {"budget": 2000, "cells": 2000, "flat": 1000, "goal": (240.0, 45.0)},
    "plain500k": {"budget": 5000, "cells": 2000, "flat": 1000, "goal": (200.0, float("inf"))},
}
QUOTED: dict[str, list[tuple[str, float, float | None, float | None, float | None, float | None]]] = {
    "plain50k": [
        ("reference hierarchical k-means, r", 155.6, 0.924, 0.322, 0.474, 579.0),
        ("reference hierarchical k-means, c", 158.3, 0.944, 0.326, 0.457, 579.0),
        ("diversity (mundig)", 68.9, 0.708, 0.364, 1.29, 1.7),
        ("flat faiss k-means, K=500", 58.1, 0.756, 0.134, 1.46, 7.2),
    ],
    "plain200k": [
        ("diversity (mundig)", 25.9, 0.43, None, None, 15.5),
        ("flat faiss k-means, K=1000", 52.6, 0.61, None, None, 26.8),
    ],
    "plain500k": [("flat faiss k-means, K=1000", 65.3, None, None, None, 42.9)],
    "digits": [
        ("reference hierarchical k-means", 8.5, None, None, None, None),
        ("k-centre", 9.2, None, None, None, None),
    ],
}


def shared(name: str) -> ModuleType:
    """A module of the shared benchmark folder."""
    path = SHARED / "bench" / "curation" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is missing; set CURATE_SHARED to the shared folder")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def long_tailed_digits(seed: int) -> tuple[Vectors, NDArray[np.int64]]:
    """The digits of scikit-learn with 180 / rank per class; which class has which rank follows from the seed."""
    rng = np.random.default_rng(seed)
    pictures, labels = load_digits(return_X_y=True)
    rows = [
        rng.choice(np.flatnonzero(labels == c), min(180 // (rank + 1), int((labels == c).sum())), replace=False)
        for rank, c in enumerate(rng.permutation(10))
    ]
    order = rng.permutation(np.concatenate(rows))
    return pictures[order].astype(np.float32), labels[order].astype(np.int64)


def pool(name: str, seed: int) -> Pool:
    """A pool by name."""
    if name == "digits":
        draws = [long_tailed_digits(10 * seed + number) for number in range(10)]
        return Pool(draws=draws, budget=60, cells=120, flat=60, goal=(9.2, float("inf")))
    vectors, components, *_ = shared("gen_mixture").generate(name, seed)
    return Pool(draws=[(vectors, components.astype(np.int64))], **MIXTURES[name])  # type: ignore[arg-type]


def ours(cells: int, method: str, budget: int, vectors: Vectors, seed: int) -> Rows:
    """The hierarchy, water-filled down; where its cells are sparse, each group gives its farthest-first rows."""
    config = TreeConfig(method=method, most=cells)  # type: ignore[arg-type]
    keys = row_keys(vectors)
    fit = fit_hierarchy(vectors, cells=cells, seed=seed, config=config, keys=keys, spherical=False)
    cell = nearest(vectors, fit.cells)[1][:, 0]
    if method == "valley" and len(vectors) < config.sparse * len(fit.cells):
        return spread(vectors, fit, cell, budget)
    sizes = np.bincount(cell, minlength=len(fit.cells))
    paths = np.stack([fit.parents, np.arange(len(fit.cells))], axis=1).astype(np.int64)
    return draw(cell, keys, nested_water_fill(paths, sizes, budget))


def spread(vectors: Vectors, fit: Hierarchy, cell: Rows, budget: int) -> Rows:
    """Water-filled over the groups; in each, farthest first."""
    group = fit.parents[cell]
    quotas = water_fill(np.bincount(group, minlength=int(fit.parents.max()) + 1), budget)
    parts = []
    for number, quota in enumerate(quotas):
        rows = np.flatnonzero(group == number)
        if quota:
            parts.append(rows[farthest_seeds(vectors[rows], int(quota))])
    return np.concatenate(parts)


def flat(cluster: Callable[[Vectors, int, int], Rows], k: int, budget: int, vectors: Vectors, seed: int) -> Rows:
    """Equal quotas over a flat clustering."""
    cell = cluster(vectors, k, seed)
    keys = np.random.default_rng(seed).integers(0, 1 << 63, len(vectors), dtype=np.uint64)
    return draw(cell, keys, water_fill(np.bincount(cell, minlength=k), budget))


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


def random_rows(budget: int, vectors: Vectors, seed: int) -> Rows:
    """A random sample."""
    return np.random.default_rng(seed).choice(len(vectors), budget, replace=False)


def k_centre(budget: int, vectors: Vectors, seed: int) -> Rows:
    """Farthest first, from a random row as its users run it."""
    first = int(np.random.default_rng(seed).integers(len(vectors)))
    left = ((vectors - vectors[first]) ** 2).sum(axis=1)
    chosen = [first]
    while len(chosen) < budget:
        chosen.append(int(left.argmax()))
        left = np.minimum(left, ((vectors - vectors[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def methods(case: Pool, slow: bool) -> dict[str, Callable[[Vectors, int], Rows]]:
    """Ours first, then the peers that run here."""
    part = functools.partial
    table: dict[str, Callable[[Vectors, int], Rows]] = {
        f"ours, valley, K={case.cells}": part(ours, case.cells, "valley", case.budget),
        "random": part(random_rows, case.budget),
        f"flat faiss k-means, K={case.flat}": part(flat, by_faiss, case.flat, case.budget),
        f"flat k-means++, K={case.flat}": part(flat, by_plus_plus, case.flat, case.budget),
        f"MiniBatchKMeans, K={case.flat}": part(flat, by_mini_batch, case.flat, case.budget),
    }
    if slow or len(case.draws[0][0]) <= 200_000:
        table["k-centre"] = part(k_centre, case.budget)
    if slow or len(case.draws[0][0]) < 10_000:
        table[f"ours, resampled, K={case.flat}"] = part(ours, case.flat, "resampled", case.budget)
    return table


def measure(sampler: Callable[[Vectors, int], Rows], case: Pool, seeds: int) -> dict[str, float]:
    """Means over pools and seeds."""
    balance = shared("balance").balance
    runs: list[dict[str, Any]] = []
    for number, (vectors, components) in enumerate(case.draws):
        for seed in range(seeds):
            start = time.process_time()
            chosen = sampler(vectors, seed + number)
            seconds = time.process_time() - start
            if len(np.unique(chosen)) != case.budget:
                raise SystemExit(f"{len(np.unique(chosen))} different rows were chosen, {case.budget} asked")
            runs.append({**balance(components, chosen), "cpu": seconds})
    names = {"eff": "eff_shannon", "coverage": "coverage", "tail": "tail_share", "kl": "kl_to_target", "cpu": "cpu"}
    means = {name: float(np.mean([run[key] for run in runs])) for name, key in names.items()}
    return {**means, "least": min(run["eff_shannon"] for run in runs)}


def show(console: Console, name: str, case: Pool, seeds: int, slow: bool) -> None:
    """Prints the table of one pool, row by row as they are measured."""
    table = Table(
        title=f"{name}: {case.budget} of {len(case.draws[0][0]):,}, {len(case.draws)} pool(s), {seeds} seed(s)"
    )
    for column in ("method", "eff", "least", "coverage", "tail", "KL", "CPU s", "eff / ours", "CPU / ours"):
        table.add_column(column, justify="left" if column == "method" else "right")
    first: dict[str, float] = {}
    for method, sampler in methods(case, slow).items():
        found = measure(sampler, case, seeds)
        first = first or found
        table.add_row(method, *_cells(found, first))
    for method, eff, *rest in QUOTED[name]:
        names = ("coverage", "tail", "kl", "cpu")
        quoted = {"eff": eff, **{k: v for k, v in zip(names, rest, strict=True) if v is not None}}
        table.add_row(f"{method} (quoted)", *_cells(quoted, first))
    console.print(table)
    met = first["eff"] >= case.goal[0] and first["cpu"] <= case.goal[1]
    console.print(f"goal: eff >= {case.goal[0]:g} in <= {case.goal[1]:g} CPU s: {'met' if met else 'not met'}\n")


def _cells(found: dict[str, float], first: dict[str, float]) -> list[str]:
    digits = {"eff": 2, "least": 2, "coverage": 3, "tail": 3, "kl": 3, "cpu": 2}
    plain = [f"{found[key]:.{n}f}" if key in found else "-" for key, n in digits.items()]
    return plain + [f"{found[key] / first[key]:.2f}" if key in found else "-" for key in ("eff", "cpu")]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", default=["plain50k", "plain200k", "digits"])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--pool-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--slow", action="store_true")
    flags = parser.parse_args()
    faiss.omp_set_num_threads(1)
    console = Console(width=150)
    with threadpool_limits(1):
        for name in [*flags.pools, *(["plain500k"] if flags.large else [])]:
            show(console, name, pool(name, flags.pool_seed), flags.seeds, flags.slow)


if __name__ == "__main__":
    main()
