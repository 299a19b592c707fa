"""From clusters to a selection: the assign and select stages, and the exact trim.

::

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
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.attributes import COMPUTED, Given, read_given
from pipeline.cluster import load_tree
from pipeline.clusterfit import ClusterFitNetwork, squares
from pipeline.errors import InputError
from pipeline.hierarchy import Tree
from pipeline.select import SelectConfig, cell_name, quotas, selection_key, survives, threshold, trim
from pipeline.stage import Done, Output, Span, Task, not_identity, read_span

_CELL = "cell:"
GIVEN = "given."
"""Prefix of the columns that hold what the user gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of weights and its content.

    Attributes:
        uri: where it is (no identity: the content is).
        sha256: of its bytes.
    """

    uri: str = not_identity()
    sha256: str


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
