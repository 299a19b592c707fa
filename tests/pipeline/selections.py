"""Made-up plans for the tests of coverage and of the selection report."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from pipeline.select import cell_name
from pipeline.stage import Done, iter_tables
from tests.pipeline.chains import step

HOSTILE = '"><script>alert(1)</script><img src="https://x.example/p.png" onerror=\'x\'>\u202e\x00&amp; × _'


def plan_of(
    cells: Mapping[tuple[Any, ...], tuple[int, int]], attributes: Sequence[str], targets: Sequence[Any] = ()
) -> dict[str, Any]:
    """The plan of cells (group, cluster, classes …) -> (candidates, chosen), with one prototype per cluster."""
    names = {cell_name((*cell[:2], cell[1]), cell[2:]): pair for cell, pair in cells.items()}
    return {
        "attributes": list(attributes),
        "counts": {name: pair[0] for name, pair in names.items()},
        "quotas": {name: pair[1] for name, pair in names.items() if json.loads(name)[1] >= 0},
        "targets": list(targets),
        "shortfall": {"ours": 0.0, "least": 0.0},
    }


def target_of(
    margin: str, wanted: Mapping[Any, float], counted: Callable[[Any], tuple[int, int]], kind: str = "table"
) -> dict[str, Any]:
    """A target of classes (two of a pair) -> frames; ``counted`` gives candidates and chosen frames of a class."""
    classes = []
    for key, frames in wanted.items():
        exists, chosen = counted(key)
        missing = max(0, round(frames) - chosen)
        reason = "absent" if not exists else "scarce" if exists < frames else "conflict"
        classes.append(
            {
                "class": list(key) if isinstance(key, tuple) else key,
                "target": float(frames),
                "exists": exists,
                "chosen": chosen,
                "reason": reason if missing else None,
                "missing": missing,
            }
        )
    return {"margin": margin, "kind": kind, "weight": 1.0, "classes": classes}


@st.composite
def plans(draw: st.DrawFn, most: int = 3) -> dict[str, Any]:
    """Plans of up to ``most`` attributes, dead vectors and unknown classes among their cells."""
    attributes = [f"a{at}" for at in range(draw(st.integers(0, most)))]
    classes = st.tuples(*(st.sampled_from([None, "p", "q", "r"]) for _ in attributes))
    path = st.integers(-1, 5).map(lambda c: (-1 if c < 0 else c // 2, c))
    pair = st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
    found = draw(st.dictionaries(st.tuples(path, classes), pair, min_size=1, max_size=24))
    cells = {(*p, *c): (n, 0 if p[1] < 0 else k) for (p, c), (n, k) in found.items()}
    return plan_of(cells, attributes)


def halved(assigned: Done, attributes: Sequence[str]) -> tuple[dict[str, Any], pa.Table]:
    """A plan that takes every other frame of each live cell, by hash, and the rows it takes."""
    rows = pa.concat_tables(iter_tables(assigned.uris()))
    cells, keys = rows.column("cell").to_pylist(), rows.column("key").to_pylist()
    order = sorted(range(len(cells)), key=lambda row: (cells[row], keys[row]))
    taken = [row for _, group in itertools.groupby(order, key=lambda row: cells[row]) for row in list(group)[::2]]
    taken = [row for row in taken if json.loads(cells[row])[1] >= 0]
    plan = {
        "attributes": list(attributes),
        "counts": dict(Counter(cells)),
        "quotas": dict(Counter(cells[row] for row in taken)),
        "targets": [],
        "shortfall": {},
    }
    return plan, rows.take(pa.array(sorted(taken), pa.int64()))


def recut(done: Done, folder: Path, edges: Sequence[int]) -> Done:
    """The same rows in other parts, cut before the rows ``edges``."""
    rows = pa.concat_tables(iter_tables(done.uris()))
    places = [0, *edges, rows.num_rows]
    return step(done.stage, folder, [rows.slice(a, b - a) for a, b in itertools.pairwise(places)])
