"""The counts that a release carries (`stats.json`, the cells of quotas): a first look at it reads no table."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import DECISIONS

CLUSTER_LEVELS = ("group", "cluster", "prototype")
"""What the first items of a quota cell are; classes of the balanced attributes follow."""


def statistics(rows: pa.Table, judge: Mapping[str, Any], balanced: Sequence[str]) -> dict[str, Any]:
    """The content of `stats.json`: decisions, verdicts, splits, attributes by decision, and the judge's summary.

    Args:
        rows: kept, held and dropped rows, of schema manifest.
        judge: the summary of the judge of these rows.
        balanced: attributes of the quota cells, in their order.
    """
    return {
        "decisions": _counted(rows.column("decision")),
        "verdicts": _counted(rows.column("verdict")),
        "splits": _counted(rows.column("split")),
        "sources": len(pc.unique(rows.column("source_uri"))),
        "attributes": {field.name: _classes(rows, field.name) for field in rows.schema.field("attr").type},
        "balanced": list(balanced),
        "judge": dict(judge),
    }


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _classes(rows: pa.Table, name: str) -> dict[str, dict[str, int]]:
    """Rows of each value of an attribute by decision; "unknown" where there is no value."""
    value = pc.fill_null(pc.struct_field(rows.column("attr"), [name, "value"]), "unknown")
    table = pa.table({"value": value, "decision": rows.column("decision")})
    counts: dict[str, dict[str, int]] = {}
    for row in table.group_by(["value", "decision"]).aggregate([([], "count_all")]).to_pylist():
        counts.setdefault(row["value"], dict.fromkeys(DECISIONS, 0))[row["decision"]] = row["count_all"]
    return counts


def rows_by_class(balanced: Sequence[str], cells: Mapping[str, int]) -> Counter[str]:
    """Rows per group of clusters ("group=3") and per class of each balanced attribute ("lighting_level=dark").

    Args:
        balanced: attributes of the quota cells, in their order.
        cells: quota cell, a JSON list, -> rows.
    """
    sums: Counter[str] = Counter()
    for cell, number in cells.items():
        group, *rest = json.loads(cell)
        classes = [group, *rest[len(CLUSTER_LEVELS) - 1 :]]
        for head, value in zip(["group", *balanced], classes, strict=True):
            sums[f"{head}={'unknown' if value is None else value}"] += number
    return sums
