"""The cluster step: ClusterFit and the tree, fitted on a hash sample of the frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from pipeline import storage
from pipeline.clusterfit import ClusterFitConfig, ClusterFitNetwork, squares, train
from pipeline.duplicates import DuplicateConfig
from pipeline.embed import vectors_of
from pipeline.errors import InputError
from pipeline.hierarchy import Hierarchy, Tree, TreeConfig, cluster_count, fit_hierarchy, purity, size_entropy
from pipeline.kmeans import fit_kmeans, sort_out, unit_rows
from pipeline.select import selection_key
from pipeline.stage import Done, Span, read_span


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Settings of the cluster step.

    Attributes:
        sample: most frames that centroids and network are fitted on (the smallest hashes).
        fit_per_cluster: frames per pseudo-class of ClusterFit; gives K of the first k-means.
        per_cluster: frames per cluster of the final tree.
        most: most clusters of the first k-means, and of the tree.
        tree: how the final clusters are found and grouped.
        fit: the second network.
        duplicates: what counts as a duplicate across sources.
    """

    sample: int = 50_000
    fit_per_cluster: int = 12
    per_cluster: int = 16
    most: int = 4096
    tree: TreeConfig = field(default_factory=TreeConfig)
    fit: ClusterFitConfig = field(default_factory=ClusterFitConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)

    def __post_init__(self) -> None:
        for name in ("sample", "fit_per_cluster", "per_cluster", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    ids: list[str]
    vectors: NDArray[np.float32]
    thumbnails: list[bytes]


def _hash_sample(embedded: Done, deduped: Done, size: int, seed: int) -> _Sample:
    """The frames with the smallest hashes, in the order of their hashes; bounded memory, any order of shards."""
    keyed: list[tuple[int, str, int, int]] = []
    for index, (part, dup) in enumerate(zip(embedded.uris(), deduped.uris(), strict=True)):
        ids = read_span(Span(uri=part), ["sample_id"]).column("sample_id").to_pylist()
        gone = set(read_span(Span(uri=dup)).column("embed_row").to_pylist())
        keyed += [(selection_key(seed, i), i, index, row) for row, i in enumerate(ids) if row not in gone]
        keyed = sorted(keyed)[:size]
    vectors: dict[str, NDArray[np.float32]] = {}
    thumbnails: dict[str, bytes] = {}
    for index, part in enumerate(embedded.uris()):
        rows = sorted(k[3] for k in keyed if k[2] == index)
        if not rows:
            continue
        table = read_span(Span(uri=part), ["sample_id", "vector", "thumbnail"]).take(pa.array(rows))
        names = table.column("sample_id").to_pylist()
        vectors.update(zip(names, vectors_of(table), strict=True))
        thumbnails.update(zip(names, table.column("thumbnail").to_pylist(), strict=True))
    ordered = [k[1] for k in keyed]
    stacked = np.stack([vectors[i] for i in ordered]) if ordered else np.zeros((0, 1), np.float32)
    return _Sample(ids=ordered, vectors=unit_rows(stacked), thumbnails=[thumbnails[i] for i in ordered])


def cluster(
    embedded: Done, deduped: Done, config: ClusterConfig, *, seed: int, folder: Path, report: Callable[[str], None]
) -> list[str]:
    """ClusterFit and the tree, fitted on a hash sample; writes its artefacts into ``folder``.

    Returns:
        The names of the files written.

    Raises:
        InputError: no frame is left to cluster.
    """
    sample = _hash_sample(embedded, deduped, config.sample, seed)
    keys = np.array([selection_key(seed, i) for i in sample.ids], np.uint64)
    rows = sort_out(sample.vectors, keys)
    n = len(rows.sound) + len(rows.duplicate)
    if n == 0:
        raise InputError("no frame is left after decoding, sampling and removal of duplicates; see the quarantine list")
    alive = np.sort(np.concatenate([rows.sound, rows.duplicate]))
    vectors = sample.vectors[alive]
    first_k = cluster_count(n, config.fit_per_cluster, config.most)
    centroids = fit_kmeans(vectors, first_k, seed=seed, keys=keys[alive], memory_mb=config.tree.memory_mb)
    first = (vectors @ centroids.T).argmax(axis=1).astype(np.int64)
    report(f"ClusterFit: {config.fit.network} on {len(centroids)} clusters of {n} frames")
    pictures = squares([sample.thumbnails[row] for row in alive], config.fit.side)
    path = train(pictures, first, config.fit, seed=seed, folder=folder)
    features = ClusterFitNetwork(path)(pictures)
    cells = cluster_count(n, config.per_cluster, min(config.most, config.tree.most))
    fit = fit_hierarchy(features, cells=cells, seed=seed, config=config.tree, keys=keys[alive])
    tree = fit.tree()
    arrays = {"cells": tree.cells, "parents": tree.parents, "groups": tree.groups}
    storage.write_bytes(str(folder / "tree.safetensors"), save(arrays))
    second = tree.assign(features)[0][:, 1].astype(np.int64)
    facts = {
        "frames": len(sample.ids),
        "first": {
            "clusters": len(centroids),
            "size_entropy": size_entropy(first, len(centroids)),
            "set_aside": rows.counts(),
        },
        "second": _facts(fit, second),
        "purity_of_second_in_first": purity(second[second >= 0], first[second >= 0]),
    }
    storage.write_bytes(str(folder / "report.json"), json.dumps(facts, indent=1, sort_keys=True).encode())
    return ["clusterfit.safetensors", "tree.safetensors", "report.json"]


def _facts(fit: Hierarchy, cells: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "clusters": len(fit.cells),
        "groups": int(fit.parents.max()) + 1,
        "grouping": fit.grouping,
        "size_entropy": size_entropy(cells[cells >= 0], len(fit.cells)),
        "set_aside": fit.rows.counts(),
    }


def load_tree(uri: str) -> Tree:
    """The tree that the cluster step wrote."""
    with storage.local_copy(uri) as path:
        return Tree(**load_file(path))
