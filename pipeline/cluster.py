"""The cluster step: ClusterFit and the tree, fitted on a hash sample of the frames.

``report.json`` tells how the clusters were before and after ClusterFit; ``REPORT`` says what each of its keys means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from pipeline.hierarchy import (
    Hierarchy,
    Tree,
    TreeConfig,
    agreement,
    cell_count,
    cluster_count,
    fit_hierarchy,
    size_entropy,
)
from pipeline.kmeans import fit_kmeans, nearest, sort_out, unit_rows
from pipeline.select import selection_key
from pipeline.stage import Done, Span, read_span
from pipeline.step import write_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Settings of the cluster step.

    Attributes:
        sample: most frames that centroids and network are fitted on (the smallest hashes).
        fit_per_cluster: frames per pseudo-class of ClusterFit; gives K of the first k-means.
        per_cluster: frames per cluster of the final tree; small pools have finer ones, see ``hierarchy.cell_count``.
        most: most clusters of the first k-means, and of the tree.
        tree: how the final clusters are found and grouped.
        fit: the second network.
        duplicates: what counts as a duplicate across sources.
    """

    sample: int = 100_000
    fit_per_cluster: int = 12
    per_cluster: int = 50
    most: int = 4096
    tree: TreeConfig = field(default_factory=TreeConfig)
    fit: ClusterFitConfig = field(default_factory=ClusterFitConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)

    def __post_init__(self) -> None:
        for name in ("sample", "fit_per_cluster", "per_cluster", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"cluster.{name} must be >= 1, got {getattr(self, name)}")


_CLUSTERING = {
    "clusters": "how many",
    "size_entropy": "entropy of their sizes over its largest value: 1 = all of one size, 0 = all frames in one",
    "set_aside.dead": "frames whose vector is zero; fitted on by nobody, and in no cluster of the tree",
    "set_aside.duplicate": "frames whose vector repeats another's; not fitted on, but in its cluster",
    "set_aside.not_finite": "frames whose vector has a NaN or an infinity; treated as dead",
}
_ATTRIBUTE = {
    "known": "frames whose value is known; the figures are of these",
    "unknown": "frames whose value is not known, or that are in no cluster; left out",
    "classes": "different values",
    "commonest": "share of the commonest value: the purity of a single cluster; null where nothing is known",
    "purity": "share of frames whose value is the commonest of their cluster; grows with the number of clusters",
    "nmi": "mutual information of value and cluster over the mean of their entropies; grows with clusters by chance",
    "ami": "the same less what random clusters of equal sizes have, 1 = equal, 0 = chance",
}

REPORT: dict[str, str] = {
    "frames": "frames of the hash sample",
    "sources": "sources they are from: as many are independent of each other",
    **{f"first.{key}": f"first embedding, k-means: {text}" for key, text in _CLUSTERING.items()},
    **{f"second.{key}": f"ClusterFit's features, cells of the tree: {text}" for key, text in _CLUSTERING.items()},
    "second.joined": "clusters that the cells are joined to",
    "second.joined_entropy": "entropy of those clusters' sizes over its largest value",
    "second.groups": "groups of these clusters",
    "second.group_entropy": "entropy of the groups' sizes over its largest value",
    "second.grouping": "how cells were joined: valley, ward or resampled",
    "second.vectors_per_cell": "different vectors per cell; cluster.tree.sparse sources per cell show a density",
    **{
        f"{level}.attributes.*.{key}": f"{name} and an attribute: {text}"
        for level, name in (("first", "first clusters"), ("second", "cells"), ("second.by_cluster", "joined clusters"))
        for key, text in _ATTRIBUTE.items()
    },
    "agreement.purity": "share of frames whose first cluster is the commonest of their cell",
    "agreement.nmi": "mutual information of first cluster and cell over the mean of their entropies",
    "agreement.ami": "the same less what random clusters of equal sizes have: how much of the first clustering is kept",
    "training.trained_on": "frames that the second network is trained on",
    "training.held_out": "frames held out of the training, by hash",
    "training.early_stop": "whether held-out frames may end the training; false for fewer than 20 frames",
    "training.steps": "steps taken",
    "training.stopped_by": "steps (all were taken) or patience (the held-out loss no longer fell)",
    "training.kept_step": "the step whose weights are kept",
    "training.device": "cpu or cuda",
    "training.precision": "32 or bf16",
    "training.curve.step": "steps taken at this measurement",
    "training.curve.loss": "mean training loss since the measurement before, nats",
    "training.curve.held_out_loss": "mean cross-entropy of the held-out frames, nats; null if not finite",
    "training.curve.held_out_accuracy": "share of held-out frames whose first cluster is told, 0..1",
}
"""What the keys of ``report.json`` mean; ``*`` is the name of an attribute, lists have the keys of their items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    ids: list[str]
    sources: list[str]
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
    sources: dict[str, str] = {}
    for index, part in enumerate(embedded.uris()):
        rows = sorted(k[3] for k in keyed if k[2] == index)
        if not rows:
            continue
        table = read_span(Span(uri=part), ["sample_id", "source_uri", "vector", "thumbnail"]).take(pa.array(rows))
        names = table.column("sample_id").to_pylist()
        vectors.update(zip(names, vectors_of(table), strict=True))
        thumbnails.update(zip(names, table.column("thumbnail").to_pylist(), strict=True))
        sources.update(zip(names, table.column("source_uri").to_pylist(), strict=True))
    ordered = [k[1] for k in keyed]
    stacked = np.stack([vectors[i] for i in ordered]) if ordered else np.zeros((0, 1), np.float32)
    return _Sample(
        ids=ordered,
        sources=[sources[i] for i in ordered],
        vectors=unit_rows(stacked),
        thumbnails=[thumbnails[i] for i in ordered],
    )


def cluster(
    embedded: Done,
    deduped: Done,
    config: ClusterConfig,
    *,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
) -> list[str]:
    """ClusterFit and the tree, fitted on a hash sample; writes its artefacts into ``folder``.

    Args:
        embedded: the embed stage.
        deduped: the dedupe step.
        config: the recipe.
        seed: of every random choice.
        folder: gets the files; holds the state of an unfinished training.
        report: shows a line of progress.

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
    vectors, keys = sample.vectors[alive], keys[alive]
    first_k = cluster_count(n, config.fit_per_cluster, config.most)
    centroids = fit_kmeans(vectors, first_k, seed=seed, keys=keys, memory_mb=config.tree.memory_mb)
    first = nearest(vectors, centroids)[1][:, 0]
    report(f"ClusterFit: {config.fit.network} on {len(centroids)} clusters of {n} frames")
    pictures = squares([sample.thumbnails[row] for row in alive], config.fit.side)
    network = ClusterFitNetwork(train(pictures, first, config.fit, seed=seed, folder=folder, keys=keys))
    features = network(pictures)
    sources = len({sample.sources[row] for row in alive})
    most = min(config.most, config.tree.most)
    cells = cell_count(n, sources, config.per_cluster, most, config.tree.sparse)
    fit = fit_hierarchy(features, cells=cells, seed=seed, config=config.tree, keys=keys, independent=sources)
    tree = fit.tree
    arrays = {"cells": tree.cells, "clusters": tree.clusters, "groups": tree.groups}
    storage.write_bytes(str(folder / "tree.safetensors"), save(arrays))
    paths = tree.assign(features)[0].astype(np.int64)
    sampled = pa.table({"sample_id": [sample.ids[row] for row in alive], "first": first, "path": list(paths)})
    names = write_tables(folder, [sampled])
    facts = {
        "frames": len(sample.ids),
        "sources": sources,
        "first": {
            "clusters": len(centroids),
            "size_entropy": size_entropy(first, len(centroids)),
            "set_aside": rows.counts(),
        },
        "second": _facts(fit, paths),
        "agreement": agreement(paths[paths[:, 2] >= 0, 2], first[paths[:, 2] >= 0]),
        "training": network.training,
    }
    storage.write_bytes(str(folder / "report.json"), json.dumps(facts, indent=1, sort_keys=True).encode())
    return ["clusterfit.safetensors", "tree.safetensors", "report.json", *names]


def _facts(fit: Hierarchy, paths: NDArray[np.int64]) -> dict[str, Any]:
    groups, clusters, cells = paths[paths[:, 2] >= 0].T
    joined, grouped = (int(numbers.max()) + 1 for numbers in (fit.tree.clusters, fit.tree.groups))
    return {
        "clusters": len(fit.tree.cells),
        "joined": joined,
        "groups": grouped,
        "grouping": fit.grouping,
        "size_entropy": size_entropy(cells, len(fit.tree.cells)),
        "joined_entropy": size_entropy(clusters, joined),
        "group_entropy": size_entropy(groups, grouped),
        "vectors_per_cell": len(fit.rows.sound) / len(fit.tree.cells),
        "set_aside": fit.rows.counts(),
    }


def with_attributes(
    facts: Mapping[str, Any], sampled: pa.Table, values: Mapping[str, Mapping[str, str | None]]
) -> dict[str, Any]:
    """The report with what the clusters before and after ClusterFit tell of attributes; nothing is fitted to these.

    Args:
        facts: ``report.json``.
        sampled: the table beside it: sample_id, first cluster, path.
        values: per attribute, sample_id -> class; absent or None where it is not known.
    """
    ids = sampled.column("sample_id").to_pylist()
    paths = np.array(sampled.column("path").to_pylist(), np.int64).reshape(-1, 3)
    columns = {name: [known.get(i) for i in ids] for name, known in values.items()}
    first = sampled.column("first").to_numpy().astype(np.int64)
    second = {"attributes": _told(paths[:, 2], columns), "by_cluster": {"attributes": _told(paths[:, 1], columns)}}
    return {
        **facts,
        "first": {**facts["first"], "attributes": _told(first, columns)},
        "second": {**facts["second"], **second},
    }


def _told(
    clusters: NDArray[np.int64], values: Mapping[str, Sequence[str | None]]
) -> dict[str, dict[str, float | int | None]]:
    """What (N,) clusters (-1 = in none) tell of each attribute's N values."""
    out: dict[str, dict[str, float | int | None]] = {}
    for name, column in values.items():
        rows = [row for row, value in enumerate(column) if value is not None and clusters[row] >= 0]
        classes, labels = np.unique(np.array([str(column[row]) for row in rows], np.str_), return_inverse=True)
        counts = {"known": len(rows), "unknown": len(column) - len(rows), "classes": len(classes)}
        figures: dict[str, float | None] = dict.fromkeys(("commonest", "purity", "nmi", "ami"))
        if rows:
            figures = {"commonest": float(np.bincount(labels).max() / len(labels))}
            figures |= agreement(clusters[rows], labels.astype(np.int64))
        out[name] = {**counts, **figures}
    return out


def load_tree(uri: str) -> Tree:
    """The tree that the cluster step wrote."""
    with storage.local_copy(uri) as path:
        return Tree(**load_file(path))
