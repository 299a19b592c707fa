"""One method of the balance benchmark in a process of its own: what it chooses, how long it takes, what it holds.

Usage: python -m benchmarks.balance_process TASK; called by ``benchmarks.balance``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.balance_methods import Method, Recipe, methods
from benchmarks.balance_pools import Pool, Rows, read_pool, shared

Record = dict[str, Any]


def memory_mb(field: str) -> float:
    """Memory of this process in MiB: "VmRSS" = held now, "VmHWM" = the most held; the most where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1024


def figures(pool: Pool, chosen: Rows) -> dict[str, float]:
    """How evenly a selection covers the components of its pool, and the attributes and clips if there are any."""
    metrics = shared("balance")
    even = metrics.balance(pool.components, chosen)
    found = {
        "eff": even["eff_shannon"],
        "coverage": even["coverage"],
        "tail_share": even["tail_share"],
        "kl": even["kl_to_target"],
    }
    if pool.attributes is not None:
        told = metrics.attribute_report(pool.attributes, chosen, list(pool.names))
        found |= {
            "attr_kl": told["attr_kl_mean"],
            "worst": told["worst_value_share_of_uniform"],
            "pair_coverage": told["pair_coverage"],
            "unknown": told["unknown_mean"],
        }
    if pool.clip is not None:
        found["redundant"] = metrics.clip_report(pool.clip, pool.frame, chosen)["temporal_redundant"]
    return found


def measure(draws: Sequence[str], name: str, budget: int, seeds: int, recipe: Recipe) -> Record:
    """Means over draws and seeds of one method, and what it cost; this process should do nothing else."""
    faiss.omp_set_num_threads(1)
    pools = [read_pool(Path(folder)) for folder in draws]
    method = methods(pools[0], budget, recipe, slow=True)[name]
    before = memory_mb("VmRSS")
    with threadpool_limits(1):
        start = time.process_time()
        runs = [
            (pool, method(pool, budget, seed + number)) for number, pool in enumerate(pools) for seed in range(seeds)
        ]
        seconds = time.process_time() - start
        most = memory_mb("VmHWM")
        kept = laws(method, pools[0], budget, runs[0][1]) if name == "ours" else {}
    for _, chosen in runs:
        if len(np.unique(chosen)) != budget:
            raise ValueError(f"{name} chose {len(np.unique(chosen))} different rows, {budget} were asked for")
    every = [figures(pool, chosen) for pool, chosen in runs]
    means = {key: float(np.mean([found[key] for found in every])) for key in every[0]}
    cost = {"cpu_s": seconds / len(runs), "rss_mb": most, "own_mb": max(0.0, most - before)}
    return {**means, "eff_least": min(found["eff"] for found in every), **cost, **kept}


def laws(method: Method, pool: Pool, budget: int, chosen: Rows) -> Record:
    """Share of a selection (of seed 0) that is in one of twice the size; whether other orders of rows give the same."""
    larger = method(pool, min(2 * budget, len(pool.numbers)), 0)
    order = np.random.default_rng(1).permutation(len(pool.numbers))
    shuffled = pool.take(order)
    again = shuffled.numbers[method(shuffled, budget, 0)]
    return {
        "grown": float(np.isin(chosen, larger).mean()),
        "same_for_any_order": bool(np.array_equal(np.sort(again), np.sort(chosen))),
    }


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(measure(**{**task, "recipe": Recipe(**task["recipe"])})))
