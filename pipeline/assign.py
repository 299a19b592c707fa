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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.shard import encode_parquet
from pipeline import storage
from pipeline.attributes import COMPUTED, Given, read_given
from pipeline.cluster import load_tree
from pipeline.clusterfit import ClusterFitNetwork, squares
from pipeline.errors import InputError
from pipeline.hierarchy import Tree
from pipeline.known import in_balance, with_given
from pipeline.mask_attributes import MASK_ATTRIBUTES, SENSITIVE
from pipeline.quota import LEVELS, OF_SOURCE, ClassPlan, Margin, SelectConfig, least_shortfall, plan_quotas
from pipeline.select import cell_name, first_of_each, selection_key, survives, threshold, trim, turns
from pipeline.stage import Done, Output, Span, Task, not_identity, read_span
from pipeline.step import Weights, write_json

_CELL = "cell:"
PLAN_CELLS = "cells.parquet"
"""The file of a plan's cells."""
_CLASSES = {**COMPUTED, **MASK_ATTRIBUTES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """The work of the assign stage; a task is (embed part, probe part, duplicates of the embed part)."""

    name: ClassVar[str] = "assign"
    version: ClassVar[int] = 3
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "opencv-python-headless", "pyarrow", "timm", "torch")

    network: Weights
    tree: Weights
    given: Weights | None
    sources: str = not_identity()
    balanced: tuple[str, ...]
    per_source: int
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
        table = read_span(embed_span, ["sample_id", "thumbnail", "probe_row", "stands_for"])
        gone = read_span(duplicate_span).column("embed_row").to_pylist()
        table = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), gone)))
        probed = with_given(read_span(probe_span).take(table.column("probe_row")), given)
        vectors = network(squares(table.column("thumbnail").to_pylist(), network.side))
        paths, distances = tree.assign(vectors)
        ids = table.column("sample_id").to_pylist()
        keys = np.array([selection_key(self.seed, i) for i in ids], np.uint64)
        other = np.array([selection_key(self.seed, f"turn|{i}") for i in ids], np.uint64)
        turn = turns(probed.column("source_uri").to_pylist(), other)  # by other keys: those of a cell must stay uniform
        probed = probed.append_column(OF_SOURCE, pa.array(turn, pa.string()))
        columns = [in_balance(probed, name).to_pylist() for name in self.balanced]
        classes = zip(*columns, strict=True) if columns else ((),) * len(ids)
        cells = [cell_name(path.tolist(), values) for path, values in zip(paths, classes, strict=True)]
        stays, admitted = _under_cap(probed.column("source_uri").to_pylist(), cells, keys, self.per_source)
        out = {
            **{name: probed.column(name) for name in probed.column_names},
            "stands_for": table.column("stands_for"),
            "cluster_path": pa.array(list(paths), pa.list_(pa.field("element", pa.int32(), nullable=False))),
            "cluster_distance": pa.array(distances, pa.float32()),
            "vector": _fixed(vectors),
            "key": pa.array(keys, pa.uint64()),
            "cell": pa.array(cells, pa.string()),
            "admitted": pa.array(admitted, pa.float64()),
        }
        kept = pa.table(out).filter(pa.array(stays))
        counts = {_CELL + cell: n for cell, n in sorted(Counter(kept.column("cell").to_pylist()).items())}
        return Output(table=kept, counts={**counts, "capped": int((~stays).sum())})


def _under_cap(
    sources: Sequence[str], cells: Sequence[str], keys: NDArray[np.uint64], most: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """``first_of_each`` for every source of a task; the frames of a source are all in one task."""
    stays, admitted = np.ones(len(cells), bool), np.ones(len(cells))
    if not len(cells):
        return stays, admitted
    _, cell = np.unique(np.array(cells, dtype=object), return_inverse=True)
    _, source = np.unique(np.array(sources, dtype=object), return_inverse=True)
    order = np.argsort(source, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(source))[:-1]):
        stays[rows], admitted[rows] = first_of_each(cell[rows], keys[rows], most)
    return stays, admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """The work of the select stage; a task is one part of the assign stage."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "pyarrow")

    plan: Weights

    def open(self) -> Callable[[Task], Output]:
        """Reads the thresholds of the plan and gives the function that keeps the survivors of a task."""
        cells = read_span(Span(uri=self.plan.uri), ["cell", "quota", "count"])
        cells = cells.filter(pc.greater(cells.column("quota"), 0))
        rows = zip(*(column.to_pylist() for column in cells.columns), strict=True)
        return functools.partial(self._run, {cell: threshold(quota, count) for cell, quota, count in rows})

    def _run(self, thresholds: Mapping[str, float], task: Task) -> Output:
        slim = read_span(task.spans[0], ["key", "cell"])
        limits = np.array([thresholds.get(cell, 0.0) for cell in slim.column("cell").to_pylist()])
        stays = survives(slim.column("key").to_numpy(), limits)
        return Output(table=read_span(task.spans[0]).filter(pa.array(stays)))


def cell_counts(assigned: Done) -> dict[str, int]:
    """Frames per cell, summed over the commit records of the assign stage."""
    return {key.removeprefix(_CELL): n for key, n in assigned.counts.items() if key.startswith(_CELL)}


def plan_selection(
    assigned: Done, target: int, config: SelectConfig, balanced: Sequence[str] = (), given: Given | None = None
) -> dict[str, Any]:
    """``plan_cells`` of what the assign stage counted."""
    return plan_cells(cell_counts(assigned), target, config, balanced, given)


def plan_cells(
    counts: Mapping[str, int], target: int, config: SelectConfig, balanced: Sequence[str], given: Given | None
) -> dict[str, Any]:
    """Counts and quotas of every cell, and how far the targets are met; see ``write_plan``.

    Frames whose vector is dead (path -1) are counted and get no quota.

    Raises:
        InputError: ``target`` is above what exists, or the config names an attribute or class that is not there.
    """
    alive = {cell: n for cell, n in counts.items() if json.loads(cell)[0] >= 0}
    own = set(given.names) if given else set()
    classes = {name: known for name, known in _CLASSES.items() if name in balanced and name not in own}
    plan = plan_quotas(alive, target, _only(config, balanced), balanced, classes)
    return {
        "attributes": list(balanced),
        "counts": dict(counts),
        "quotas": plan.quotas,
        "targets": [_margin_json(margin, rows) for margin, rows in plan.margins if margin.name != LEVELS[-1]],
        "shortfall": {"ours": plan.shortfall, "least": least_shortfall(alive, plan)},
    }


def write_plan(folder: Path, plan: Mapping[str, Any]) -> list[str]:
    """Writes a plan: its cells as a table (cell, count, quota), for there may be a million; the rest as JSON."""
    names = sorted(plan["counts"])
    columns = [plan["counts"], {cell: plan["quotas"].get(cell, 0) for cell in names}]
    table = pa.table(
        [pa.array(names, pa.string()), *(pa.array([c[n] for n in names], pa.int64()) for c in columns)],
        names=["cell", "count", "quota"],
    )
    rest = {name: value for name, value in plan.items() if name not in ("counts", "quotas")}
    storage.write_bytes(str(folder / PLAN_CELLS), encode_parquet(table, row_group_rows=1 << 16))
    return [PLAN_CELLS, write_json(folder, "plan.json", rest)]


def plan_of(planned: Done) -> dict[str, Any]:
    """The plan that ``write_plan`` wrote; frames without a vector are counted and have no quota."""
    plan: dict[str, Any] = json.loads(storage.read_bytes(planned.uri("plan.json")))
    cells = read_span(Span(uri=planned.uri(PLAN_CELLS)))
    names, counts, quotas = (cells.column(name).to_pylist() for name in ("cell", "count", "quota"))
    dead = ("[-1,", "[-1]")
    return {
        **plan,
        "counts": dict(zip(names, counts, strict=True)),
        "quotas": {name: n for name, n in zip(names, quotas, strict=True) if not name.startswith(dead)},
    }


def _margin_json(margin: Margin, rows: Sequence[ClassPlan]) -> dict[str, Any]:
    names = margin.name.split("+")
    swap = names != sorted(names)  # readers expect pairs in the order of the attributes
    classes = [
        {
            "class": row.name[::-1] if swap and row.name else row.name,
            "target": row.target,
            "exists": row.exists,
            "chosen": row.chosen,
            "reason": row.reason,
            "missing": row.missing,
        }
        for row in rows
    ]
    return {
        "margin": " × ".join(sorted(names)),
        "kind": margin.kind,
        "weight": margin.weight,
        "classes": classes,
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
    share = pa.array([plan["quotas"][cell] / plan["counts"][cell] for cell in chosen.column("cell").to_pylist()])
    chosen = chosen.append_column("inclusion_prob", pc.multiply(share.cast(pa.float64()), chosen.column("admitted")))
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


def balanced_attributes(config: SelectConfig, given: Given | None, *, masks: bool = False) -> tuple[str, ...]:
    """The attributes that enter the cells, sorted, the turn of a frame within its source among them.

    What masks tell of people's skin must be named to be balanced.

    Args:
        config: what to balance.
        given: what the user gave.
        masks: whether masks are known, as in the second round.

    Raises:
        InputError: the config names an attribute that is not known in any round.
    """
    taken = sorted({OF_SOURCE, *LEVELS} & set(given.names if given else ()))
    if taken:
        raise InputError(f"an attribute may not be called '{taken[0]}', the plan has its own; rename the column")
    known = {*COMPUTED, *(given.names if given else ())}
    later = set(MASK_ATTRIBUTES) - known if config.rounds == 2 else set()
    named = {*config.attributes, *(name for pair in config.pairs for name in pair)}
    unknown = sorted(named - known - later)
    if unknown:
        hint = "; it is told by masks, which needs select.rounds = 2" if unknown[0] in MASK_ATTRIBUTES else ""
        listed = ", ".join(sorted(known | later))
        raise InputError(f"[select] names '{unknown[0]}', which is not known{hint}; known are {listed}")
    final = (known | later) & set(config.attributes) if config.attributes else (known | later) - (later & SENSITIVE)
    _check_balanced(config, final)
    asked = final if masks else final & known
    return tuple(sorted(asked | ({OF_SOURCE} if config.source_weight > 0 else set())))


def _check_balanced(config: SelectConfig, final: Set[str]) -> None:
    """Refuses pairs and targets of what is not balanced in the end."""
    pairs = {f"{one}+{other}" for one, other in config.pairs}
    wanted = {name for pair in config.pairs for name in pair} | {name for name in config.targets if "+" not in name}
    strange = sorted(wanted - final) or sorted({name for name in config.targets if "+" in name} - pairs)
    if strange:
        raise InputError(
            f"[select] pairs or targets name '{strange[0]}', which is not balanced; balanced are "
            f"{', '.join(sorted({*final, *pairs}))} (attributes: select.attributes, pairs as select.pairs has them)"
        )


def _only(config: SelectConfig, balanced: Sequence[str]) -> SelectConfig:
    """The config without the pairs and targets of what only masks tell, as long as they are not known."""
    absent = set(MASK_ATTRIBUTES) - set(balanced) if config.rounds == 2 else set()
    pairs = tuple(pair for pair in config.pairs if not absent & set(pair))
    targets = {name: target for name, target in config.targets.items() if not absent & set(name.split("+"))}
    return replace(config, pairs=pairs, targets=targets)


def group_column(chosen: pa.Table) -> NDArray[np.int64]:
    """The coarse cluster of every chosen frame."""
    return np.asarray(pc.list_element(chosen.column("cluster_path"), 0).to_numpy(zero_copy_only=False), np.int64)


def _fixed(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), type=kind)


def _scatter(uri: str) -> bytes:
    """An order that mixes folders and videos: every shard is a mixture, and each source stays whole."""
    return hashlib.blake2b(uri.encode(), digest_size=8).digest()
