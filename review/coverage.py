"""Coverage: what the quotas asked for and what came of it. The counts come from release.json and stats.json alone."""

from collections.abc import Mapping
from typing import Any

from manifests.release import Json, Release
from manifests.schema import PROVENANCES
from manifests.stats import CLUSTER_LEVELS
from review.coding import shown
from review.columns import Columns
from review.record import MAX_CELL, balanced, split_cell

MAX_CELLS = 5000
"""Cells, and values of one attribute, that are sent; the rest are counted."""


def coverage(release: Release, stats: Mapping[str, Any], columns: Columns) -> dict[str, Json]:
    """Cells with target and actual rows, the values of each attribute by decision, and who says them.

    Only `provenance` needs columns. In stats.json the word "unknown" stands for no value, and so does it here.
    """
    heads = [CLUSTER_LEVELS[0], *balanced(release, stats)]
    cells = [_cell(*split_cell(name, heads), rows, stats) for name, rows in sorted(release.cells.items())]
    return {
        "cells": list(cells[:MAX_CELLS]),
        "cells_left_out": max(0, len(cells) - MAX_CELLS),
        "provenance": [_provenance(columns, name) for name in columns.attributes],
        "attributes": [_attribute(name, found) for name, found in sorted(stats["attributes"].items())],
    }


def unmet(release: Release) -> tuple[int, int]:
    """Cells with fewer rows than their target, and all cells."""
    return sum(1 for rows in release.cells.values() if rows["actual"] < rows["target"]), len(release.cells)


def unknown_share(stats: Mapping[str, Any]) -> tuple[str, float] | None:
    """The attribute that is least known, and its share of unknown values; None without attributes."""
    shares = []
    for name, values in sorted(stats["attributes"].items()):
        total = sum(sum(found.values()) for found in values.values())
        shares.append((sum(values.get("unknown", {}).values()) / total if total else 0.0, name))
    share, name = max(shares, default=(0.0, ""))
    return (name, share) if name else None


def _cell(attribute: str, value: str, rows: Mapping[str, int], stats: Mapping[str, Any]) -> dict[str, Json]:
    target, actual = rows["target"], rows["actual"]
    return {
        "cell": f"{attribute}={value}"[:MAX_CELL],
        "attribute": shown(attribute),
        "value": shown(value),
        "target": target,
        "actual": actual,
        "share": actual / target if target else None,
        "judged_unfillable": None if actual >= target else _why(attribute, value, rows, stats),
    }


def _why(attribute: str, value: str, rows: Mapping[str, int], stats: Mapping[str, Any]) -> str:
    """What can be told of a cell that is not full: too few chosen, or removed afterwards."""
    target, actual = rows["target"], rows["actual"]
    found = stats["attributes"].get(attribute, {}).get(value)
    if found is None or found.get("keep") != actual:
        return f"{target - actual:,} short; the counts of the release do not tell why"
    held, dropped = int(found.get("hold", 0)), int(found.get("drop", 0))
    chosen = actual + held + dropped
    parts = []
    if chosen < target:
        parts.append(f"only {chosen:,} of {target:,} could be chosen: the pool holds too few")
    if held or dropped:
        parts.append(f"of {chosen:,} chosen, {dropped:,} were dropped and {held:,} held")
    return "; ".join(parts) or f"{target - actual:,} short"


def _attribute(name: str, values: Mapping[str, Mapping[str, int]]) -> dict[str, Json]:
    rows = sorted(
        ((sum(found.values()), value, found) for value, found in values.items() if value != "unknown"),
        key=lambda row: (-row[0], row[1]),
    )
    listed: list[Json] = [{"value": shown(value), **_decided(found)} for _, value, found in rows[:MAX_CELLS]]
    unknown = _decided(values.get("unknown", {}))
    return {
        "name": shown(name),
        "values": listed,
        "values_left_out": max(0, len(rows) - MAX_CELLS),
        "unknown": {**unknown, "n": sum(values.get("unknown", {}).values())},
    }


def _decided(found: Mapping[str, int]) -> dict[str, Json]:
    return {"kept": found.get("keep", 0), "held": found.get("hold", 0), "dropped": found.get("drop", 0)}


def _provenance(columns: Columns, name: str) -> dict[str, Json]:
    counts = columns.provenance(name).counts()
    return {"attribute": shown(name), **{who: counts.get(who, 0) for who in PROVENANCES}}
