"""One size of the scale benchmark in a process of its own: seconds and memory of every step, and what was chosen.

Usage: python -m benchmarks.scale_process TASK; called by ``benchmarks.scale``.

Tasks are run one after another by the function that Beam's workers call (``run_task``: read, work, encode, write,
commit), so what is missing is Beam itself (see ``benchmarks.overhead``) and the network that makes the vectors.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.balance_process import memory_mb
from pipeline import storage
from pipeline.assign import PLAN_CELLS, Select, choose, plan_of, plan_selection, write_plan
from pipeline.cluster import ClusterConfig
from pipeline.embed import vectors_of
from pipeline.hierarchy import Tree, cell_count, fit_hierarchy
from pipeline.known import GIVEN, effective
from pipeline.quota import SelectConfig
from pipeline.select import cell_name, first_of_each, selection_key
from pipeline.stage import Done, Output, Span, Task, collect, identity, read_span, run_task
from pipeline.step import run_step, weights_of, write_tables

PROBE_ROWS = 16_384
"""Rows of the blocks that the speed of the assignment is measured on."""


class Clock:
    """CPU and wall seconds of steps, and the most memory held until the end of each."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the block."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.steps[name] = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "rss_mb": memory_mb("VmHWM"),
        }


def fitted(spans: Sequence[Span], config: ClusterConfig, seed: int) -> Tree:
    """The tree of the frames with the smallest hashes, as the cluster step fits it; bounded memory."""
    keyed: list[tuple[int, int, int]] = []
    for number, span in enumerate(spans):
        ids = read_span(span, ["sample_id"]).column("sample_id").to_pylist()
        keyed = sorted([*keyed, *((selection_key(seed, i), number, row) for row, i in enumerate(ids))])[: config.sample]
    parts: dict[tuple[int, int], NDArray[np.float32]] = {}
    sources = 0
    for number, span in enumerate(spans):
        rows = [row for _, part, row in keyed if part == number]
        table = read_span(span, ["source_uri", "vector"]).take(pa.array(rows, pa.int64()))
        taken, sources = vectors_of(table), sources + len(set(table.column("source_uri").to_pylist()))
        parts.update({(number, row): vector for row, vector in zip(rows, taken, strict=True)})
    vectors = np.stack([parts.pop((number, row)) for _, number, row in keyed])
    keys = np.array([key for key, _, _ in keyed], np.uint64)
    most = min(config.most, config.tree.most)
    cells = cell_count(len(vectors), sources, config.per_cluster, most, config.tree.sparse)
    return fit_hierarchy(vectors, cells=cells, seed=seed, config=config.tree, keys=keys).tree


def assign_part(tree: Tree, balanced: Sequence[str], per_source: int, seed: int, task: Task) -> Output:
    """What the assign stage does with a part once it has the vectors of its frames."""
    table = read_span(task.spans[0])
    vectors = vectors_of(table)
    paths, distances = tree.assign(vectors)
    columns = [effective(table, name).to_pylist() for name in balanced]
    cells = [cell_name(path.tolist(), values) for path, values in zip(paths, zip(*columns, strict=True), strict=True)]
    keys = np.array([selection_key(seed, i) for i in table.column("sample_id").to_pylist()], np.uint64)
    stays, admitted = _under_cap(table.column("source_uri").to_pylist(), cells, keys, per_source)
    out = {
        **{name: table.column(name) for name in table.column_names},
        "cluster_path": pa.array(list(paths), pa.list_(pa.field("element", pa.int32(), nullable=False))),
        "cluster_distance": pa.array(distances, pa.float32()),
        "key": pa.array(keys, pa.uint64()),
        "cell": pa.array(cells, pa.string()),
        "admitted": pa.array(admitted, pa.float64()),
    }
    kept = pa.table(out).filter(pa.array(stays))
    counts = {"cell:" + cell: n for cell, n in sorted(Counter(kept.column("cell").to_pylist()).items())}
    return Output(table=kept, counts={**counts, "capped": int((~stays).sum())})


def _under_cap(
    sources: Sequence[str], cells: Sequence[str], keys: NDArray[np.uint64], most: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    stays, admitted = np.ones(len(cells), bool), np.ones(len(cells))
    cell = np.unique(np.array(cells, dtype=object), return_inverse=True)[1]
    source = np.unique(np.array(sources, dtype=object), return_inverse=True)[1]
    for rows in np.split(np.argsort(source, kind="stable"), np.cumsum(np.bincount(source))[:-1]):
        stays[rows], admitted[rows] = first_of_each(cell[rows], keys[rows], most)
    return stays, admitted


def in_turn(stage: str, root: str, work: Callable[[Task], Output], spans: Sequence[Span]) -> Done:
    """Runs a stage's tasks in this process and finishes it."""
    folder = storage.join(root, stage)
    for index, span in enumerate(spans):
        run_task(work, Task(index=index, count=len(spans), folder=folder, spans=(span,)))
    return collect(stage, folder, len(spans))


def gflops(work: Callable[[], object], operations: float) -> float:
    """10^9 operations per wall second, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return operations / min(seconds) / 1e9


def speeds(tree: Tree, vectors: NDArray[np.float32], threads: int) -> dict[str, float]:
    """GFLOP/s of the assignment, of the product of the same matrices alone, and of a flat index of faiss."""
    operations = 2.0 * len(vectors) * tree.cells.size
    out = np.empty((4096, len(tree.cells)), np.float32)
    columns = tree.cells.T

    def product() -> None:
        for start in range(0, len(vectors), len(out)):
            rows = vectors[start : start + len(out)]
            np.matmul(rows, columns, out=out[: len(rows)])

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(tree.cells)
    return {
        "ours": gflops(lambda: tree.assign(vectors), operations),
        "sgemm": gflops(product, operations),
        "faiss": gflops(lambda: index.search(vectors, 1), operations),
    }


def measure(parts: Sequence[str], size: int, part_rows: int, folder: str, threads: int) -> dict[str, Any]:
    """Runs all steps on the first ``size`` rows of the parts; this process should do nothing else."""
    stops = [min(part_rows, size - start) for start in range(0, size, part_rows)]
    spans = [Span(uri=uri, stop=stop) for uri, stop in zip(parts, stops, strict=False)]
    names = read_span(Span(uri=parts[0], stop=1)).column_names
    balanced = sorted(name.removeprefix(GIVEN) for name in names if name.startswith(GIVEN))
    target, config, before, clock = min(size // 10, 100_000), SelectConfig(), memory_mb("VmRSS"), Clock()
    with threadpool_limits(threads):
        with clock.step("fit"):
            tree = fitted(spans, ClusterConfig(), 0)
        with clock.step("assign"):
            work = functools.partial(assign_part, tree, balanced, config.per_source, 0)
            assign = in_turn("assign", folder, work, spans)
        with clock.step("plan"):
            planned = run_step(
                folder,
                "plan",
                1,
                [identity(config), target],
                [assign.digest],
                ["scipy"],
                lambda to: write_plan(to, plan_selection(assign, target, config, balanced)),
            )
        with clock.step("select"):
            select = Select(plan=weights_of(planned, PLAN_CELLS))
            selected = in_turn("select", folder, select.open(), [Span(uri=uri) for uri in assign.uris()])
            chosen = choose(selected, plan_of(planned), {})
            write_tables(Path(folder), [chosen])
        fast = speeds(tree, vectors_of(read_span(Span(uri=parts[0], stop=PROBE_ROWS))), threads)
    if len(set(chosen.column("sample_id").to_pylist())) != target:
        raise ValueError(f"{chosen.num_rows} frames were chosen, {target} were asked for")
    return {
        "n": size,
        "target": target,
        "clusters": len(tree.cells),
        "cells": sum(key.startswith("cell:") for key in assign.counts),
        "survivors": selected.rows,
        "steps": clock.steps,
        "idle_mb": before,
        "gflops": fast,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
