"""From embeddings to a selection: the cluster step, the assign and select stages, and the exact trim.

::

    dedupe  (driver)  which frames repeat another                     part-i: rows of embed part i to leave out
    cluster (driver)  ClusterFit and the tree, on a hash sample       clusterfit.safetensors, tree.safetensors
    assign  (Beam)    second embedding, path, cell, hash of a frame   counts of cells in the commit records
    select  (Beam)    frames whose hash is below their cell's threshold
    chosen  (driver)  exactly N of them, in the order of their sources
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from pipeline import storage
from pipeline.attributes import COMPUTED, Given, read_given
from pipeline.clusterfit import ClusterFitConfig, ClusterFitNetwork, squares, train
from pipeline.duplicates import DuplicateConfig, find_duplicates
from pipeline.embed import vectors_of
from pipeline.errors import InputError
from pipeline.hierarchy import Hierarchy, Tree, TreeConfig, cluster_count, fit_hierarchy, purity, size_entropy
from pipeline.kmeans import fit_kmeans, sort_out, unit_rows
from pipeline.select import SelectConfig, cell_name, quotas, selection_key, survives, threshold, trim
from pipeline.stage import Done, Output, Span, Task, not_identity, read_span

_CELL = "cell:"
GIVEN = "given."
"""Prefix of the columns that hold what the user gave."""


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
class Weights:
    """A file of weights and its content.

    Attributes:
        uri: where it is (no identity: the content is).
        sha256: of its bytes.
    """

    uri: str = not_identity()
    sha256: str


def dedupe(embedded: Done, probed: Done, config: DuplicateConfig) -> list[pa.Table]:
    """Finds the frames that repeat another: one table (embed_row, duplicate_of) per embed part."""
    columns: dict[str, list[Any]] = {"id": [], "content": [], "source": [], "dhash": [], "vector": []}
    sizes: list[int] = []
    for part, described in zip(embedded.uris(), probed.uris(), strict=True):
        table = read_span(Span(uri=part), ["sample_id", "source_uri", "vector", "probe_row"])
        rows = read_span(Span(uri=described), ["content_sha256", "dhash64"]).take(table.column("probe_row"))
        sizes.append(table.num_rows)
        columns["id"] += table.column("sample_id").to_pylist()
        columns["source"] += table.column("source_uri").to_pylist()
        columns["content"] += [c.hex() for c in rows.column("content_sha256").to_pylist()]
        columns["dhash"].append(rows.column("dhash64").to_numpy())
        columns["vector"].append(vectors_of(table))
    ids = np.array(columns["id"], dtype=np.str_)
    _, sources = np.unique(np.array(columns["source"], dtype=np.str_), return_inverse=True)
    content = np.array(columns["content"], dtype=np.bytes_)
    hashes = np.concatenate([*columns["dhash"], np.zeros(0, np.uint64)]).astype(np.uint64)
    vectors = np.concatenate(columns["vector"]) if ids.size else np.zeros((0, 1), np.float32)
    of = find_duplicates(ids, content, sources, hashes, vectors, config)
    tables: list[pa.Table] = []
    start = 0
    for size in sizes:
        rows = np.flatnonzero(of[start : start + size] >= 0)
        originals = [columns["id"][of[start + row]] for row in rows]
        tables.append(
            pa.table({"embed_row": pa.array(rows, pa.int32()), "duplicate_of": pa.array(originals, pa.string())})
        )
        start += size
    return tables


def families(embedded: Done, probed: Done, deduped: Done) -> dict[str, str]:
    """Sources that share a duplicate, and so must not be torn apart by a split or a fold.

    Returns:
        Source uri -> the smallest sha256 (hex) of its family; sources without a relative are not listed.
    """
    pairs: list[tuple[str, str]] = []
    wanted: dict[str, list[str]] = {}
    for part, dup in zip(embedded.uris(), deduped.uris(), strict=True):
        gone = read_span(Span(uri=dup))
        uris = read_span(Span(uri=part), ["source_uri"]).column("source_uri").take(gone.column("embed_row")).to_pylist()
        for uri, original in zip(uris, gone.column("duplicate_of").to_pylist(), strict=True):
            wanted.setdefault(original, []).append(uri)
    digests: dict[str, str] = {}
    for part, described in zip(embedded.uris(), probed.uris(), strict=True):
        table = read_span(Span(uri=part), ["sample_id", "source_uri", "probe_row"])
        rows = read_span(Span(uri=described), ["source_sha256"]).take(table.column("probe_row"))
        for sample, uri, digest in zip(
            table.column("sample_id").to_pylist(),
            table.column("source_uri").to_pylist(),
            rows.column("source_sha256").to_pylist(),
            strict=True,
        ):
            digests[uri] = digest.hex()
            pairs += [(uri, other) for other in wanted.get(sample, ()) if other != uri]
    return _smallest_of_family(pairs, digests)


def _smallest_of_family(pairs: Sequence[tuple[str, str]], digests: Mapping[str, str]) -> dict[str, str]:
    """Union-find: each member of a pair -> the smallest digest of all it is connected with."""
    parent: dict[str, str] = {}

    def root(uri: str) -> str:
        while parent.setdefault(uri, uri) != uri:
            parent[uri] = parent[parent[uri]]
            uri = parent[uri]
        return uri

    for a, b in pairs:
        parent[root(a)] = root(b)
    smallest: dict[str, str] = {}
    for uri in parent:
        smallest[root(uri)] = min(smallest.get(root(uri), digests[uri]), digests[uri])
    return {uri: smallest[root(uri)] for uri in parent}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """The work of the assign stage; a task is (embed part, probe part, duplicates of the embed part)."""

    name: ClassVar[str] = "assign"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "opencv-python-headless", "pyarrow", "timm", "torch")

    network: Weights
    tree: Weights
    given: Weights | None
    sources: str = not_identity()
    balanced: tuple[str, ...]
    seed: int

    def open(self) -> Callable[[Task], Output]:
        """Loads network, tree and the given attributes, and gives the function that assigns a task's frames."""
        with storage.local_copy(self.network.uri) as path:
            network = ClusterFitNetwork(path)
        return functools.partial(self._run, network, load_tree(self.tree.uri), self._read_given())

    def _read_given(self) -> Given | None:
        if self.given is None:
            return None
        return read_given(self.given.uri, read_span(Span(uri=self.sources), ["uri"]).column("uri").to_pylist())

    def _run(self, network: ClusterFitNetwork, tree: Tree, given: Given | None, task: Task) -> Output:
        embed_span, probe_span, duplicate_span = task.spans
        table = read_span(embed_span, ["sample_id", "thumbnail", "probe_row"])
        gone = read_span(duplicate_span).column("embed_row").to_pylist()
        table = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), gone)))
        probed = _with_given(read_span(probe_span).take(table.column("probe_row")), given)
        vectors = network(squares(table.column("thumbnail").to_pylist(), network.side))
        paths, distances = tree.assign(vectors)
        ids = table.column("sample_id").to_pylist()
        columns = [effective(probed, name).to_pylist() for name in self.balanced]
        classes = zip(*columns, strict=True) if columns else ((),) * len(ids)
        cells = [cell_name(path.tolist(), values) for path, values in zip(paths, classes, strict=True)]
        counts = {_CELL + cell: n for cell, n in sorted(Counter(cells).items())}
        out = {
            **{name: probed.column(name) for name in probed.column_names},
            "cluster_path": pa.array(list(paths), pa.list_(pa.field("element", pa.int32(), nullable=False))),
            "cluster_distance": pa.array(distances, pa.float32()),
            "vector": _fixed(vectors),
            "key": pa.array([selection_key(self.seed, i) for i in ids], pa.uint64()),
            "cell": pa.array(cells, pa.string()),
        }
        return Output(table=pa.table(out), counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """The work of the select stage; a task is one part of the assign stage."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pyarrow")

    plan: Weights

    def open(self) -> Callable[[Task], Output]:
        """Reads the thresholds of the plan and gives the function that keeps the survivors of a task."""
        return functools.partial(self._run, json.loads(storage.read_bytes(self.plan.uri))["thresholds"])

    def _run(self, thresholds: Mapping[str, float], task: Task) -> Output:
        slim = read_span(task.spans[0], ["key", "cell"])
        limits = np.array([thresholds.get(cell, 0.0) for cell in slim.column("cell").to_pylist()])
        stays = survives(slim.column("key").to_numpy(), limits)
        return Output(table=read_span(task.spans[0]).filter(pa.array(stays)))


def cell_counts(assigned: Done) -> dict[str, int]:
    """Frames per cell, summed over the commit records of the assign stage."""
    return {key.removeprefix(_CELL): n for key, n in assigned.counts.items() if key.startswith(_CELL)}


def plan_selection(assigned: Done, target: int, config: SelectConfig) -> dict[str, Any]:
    """Quotas and thresholds of every cell, as the JSON that the select stage reads.

    Frames whose vector is dead (path -1, -1) are counted and get no quota.

    Raises:
        InputError: ``target`` is above what exists.
    """
    counts = cell_counts(assigned)
    wanted = quotas({cell: n for cell, n in counts.items() if json.loads(cell)[1] >= 0}, target, config)
    return {
        "counts": counts,
        "quotas": wanted,
        "thresholds": {cell: threshold(quota, counts[cell]) for cell, quota in wanted.items()},
    }


def choose(selected: Done, plan: Mapping[str, Any], related: Mapping[str, str]) -> pa.Table:
    """Exactly the quotas, sorted by (hash of source, source, frame), with inclusion probabilities and groups.

    Args:
        selected: the survivors of the map-only pass.
        plan: counts and quotas per cell.
        related: family of the sources that have one (see ``families``); any other is a group of its own.
    """
    slim = pa.concat_tables(read_span(Span(uri=uri), ["sample_id", "key", "cell"]) for uri in selected.uris())
    cells = slim.column("cell").to_pylist()
    rows = trim(cells, slim.column("key").to_numpy(), slim.column("sample_id").to_pylist(), plan["quotas"])
    chosen = pa.concat_tables(_rows_of(selected.uris(), rows))
    share = [plan["quotas"][cell] / plan["counts"][cell] for cell in chosen.column("cell").to_pylist()]
    chosen = chosen.append_column("inclusion_prob", pa.array(share, pa.float64()))
    uris = chosen.column("source_uri").to_pylist()
    own = [digest.hex() for digest in chosen.column("source_sha256").to_pylist()]
    groups = [related.get(uri, digest) for uri, digest in zip(uris, own, strict=True)]
    chosen = chosen.append_column("group_id", pa.array(groups, pa.string()))
    frames = chosen.column("frame_index").to_pylist()
    order = sorted(range(len(uris)), key=lambda i: (_scatter(uris[i]), uris[i], frames[i]))
    return chosen.take(pa.array(order, pa.int64()))


def _rows_of(uris: Sequence[str], rows: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The given rows, ascending, of tables that stand one behind another; one table in memory at a time."""
    start = 0
    for uri in uris:
        table = read_span(Span(uri=uri))
        mine = rows[(rows >= start) & (rows < start + table.num_rows)] - start
        start += table.num_rows
        yield table.take(pa.array(mine))


def balanced_attributes(config: SelectConfig, given: Given | None) -> tuple[str, ...]:
    """The attributes that enter the cells, sorted.

    Raises:
        InputError: the config names an attribute that is neither computed nor given.
    """
    known = sorted({*COMPUTED, *(given.names if given else ())})
    unknown = sorted(set(config.attributes) - set(known))
    if unknown:
        raise InputError(f"select.attributes names '{unknown[0]}', which is not known; known are {', '.join(known)}")
    return tuple(sorted(config.attributes or known))


def group_column(chosen: pa.Table) -> NDArray[np.int64]:
    """The coarse cluster of every chosen frame."""
    return np.asarray(pc.list_element(chosen.column("cluster_path"), 0).to_numpy(zero_copy_only=False), np.int64)


def effective(table: pa.Table, name: str) -> pa.ChunkedArray:
    """An attribute's values: what the user gave, else what was computed, else null."""
    columns = [table.column(c) for c in (GIVEN + name, name) if c in table.column_names]
    return pc.coalesce(*columns) if columns else pa.chunked_array([pa.nulls(table.num_rows, pa.string())])


def given_names(table: pa.Table) -> list[str]:
    """The attributes of chosen frames that the user gave."""
    return [name.removeprefix(GIVEN) for name in table.column_names if name.startswith(GIVEN)]


def _with_given(probed: pa.Table, given: Given | None) -> pa.Table:
    if given is None:
        return probed
    rows = [given.of(uri) for uri in probed.column("source_uri").to_pylist()]
    for i, name in enumerate(given.names):
        probed = probed.append_column(GIVEN + name, pa.array([row[i] for row in rows], pa.string()))
    return probed


def _fixed(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), type=kind)


def _scatter(uri: str) -> bytes:
    """An order that mixes folders and videos: every shard is a mixture, and each source stays whole."""
    return hashlib.blake2b(uri.encode(), digest_size=8).digest()
