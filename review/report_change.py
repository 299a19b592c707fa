"""The part of the report that tells what changed since the release that this one was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.measures import NONE, counted
from evaluation.page import Child, Html, absent, join, note, section, shortened, table, tag
from review.report_marks import name_of, number, percent, tile, value_of

Body = Mapping[str, Any]

_ROWS = 20
_KINDS = {
    "added": "Added",
    "removed": "Removed",
    "decision": "Other decision",
    "split": "Other split",
    "mask": "Other mask",
    "attribute": "Other attribute",
}
_VALUES = 3  # of a column that drifted


def comparison_section(title: str, body: Body | None, why_none: str) -> Html:
    """What changed since the parent.

    Args:
        title: of the section.
        body: of `manifests.diff.Difference.to_json`, or None.
        why_none: why there is none.
    """
    if body is None:
        return section("comparison", title, absent(why_none))
    samples = body["samples"]
    tiles = [tile(name, f"{samples[kind]:,}") for kind, name in _KINDS.items()]
    before = tag("span", str(body["a"]["fingerprint"]), class_="id")
    return section(
        "comparison",
        title,
        tag("p", "Before: ", tag("strong", name_of(body["a"]["name"])), ", fingerprint ", before),
        tag("p", f"{counted(samples['common'], 'sample')} in both, {samples['changed']:,} of them changed."),
        tag("dl", *tiles, class_="tiles"),
        tag("div", *_counted(body), class_="panels"),
        _cells(body["cells"]),
        _drift(body["drift"]),
        _settings(body["config"], body["models"]),
    )


def _counted(body: Body) -> list[Html]:
    """Counts, splits and decisions, before and after."""
    tables = [
        table(
            [name, "Before", "After"],
            [[name_of(one["name"]), _count(one["a"]), _count(one["b"])] for one in body[key]],
            caption=f"{name}s of the release",
        )
        for key, name in (("counts", "Count"), ("splits", "Split"))
    ]
    moves = [(kind, one) for kind, found in body["moves"].items() for one in found]
    rows: list[list[Child]] = [
        [name_of(kind), value_of(one["before"]), value_of(one["after"]), f"{one['count']:,}"]
        for kind, one in moves[:_ROWS]
    ]
    if rows:
        tables.append(
            table(
                ["Of", "Before", "After", "Samples"],
                rows,
                caption=_more("Samples that moved", moves),
                text=(0, 1, 2),
            )
        )
    return tables


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _more(caption: str, found: Sequence[object]) -> str:
    more = len(found) - _ROWS
    return caption + (f"; {more:,} more" if more > 0 else "")


def _cells(cells: Sequence[Body]) -> Html | None:
    changed = sorted(
        (one for one in cells if one["delta"]), key=lambda one: (-abs(one["delta"]), str(one["attribute"]))
    )
    if not changed:
        return tag("p", "No quota cell has more or fewer rows than before.") if cells else None
    rows: list[list[Child]] = [
        [
            join(name_of(one["attribute"]), " = ", value_of(one["value"])),
            _filled(one["a"]),
            _filled(one["b"]),
            f"{one['delta']:+,}".replace("-", "−"),
        ]
        for one in changed[:_ROWS]
    ]
    return table(["Cell", "Before", "After", "Rows"], rows, caption=_more("Quota cells that changed", changed))


def _filled(cell: Body | None) -> str:
    return NONE if cell is None else f"{cell['actual']:,} of {cell['target']:,}"


def _drift(drifts: Sequence[Body]) -> Html | None:
    moved = [one for one in drifts if one["linf"]]
    if not moved:
        return tag("p", "No column is spread otherwise than before.")
    rows: list[list[Child]] = [
        [name_of(one["column"]), str(one["of"]), number(one["linf"]), number(one["js"]), _most(one)]
        for one in moved[:_ROWS]
    ]
    return join(
        table(
            ["Column", "Of", "L∞", "JS", "Moved most"],
            rows,
            caption=_more("Columns by drift", moved),
            text=(0, 1, 4),
        ),
        note(
            "L∞: the largest difference of a share. JS: Jensen-Shannon divergence in bits, 0 where equal, 1 where "
            "nothing is in common (Lin 1991)."
        ),
    )


def _most(drift: Body) -> Html | str:
    """The values whose share moved most; of numbers none, for their bins say little."""
    if drift["edges"] is not None:
        return NONE
    values = sorted(drift["values"], key=lambda one: (-abs((one["b"] or 0) - (one["a"] or 0)), str(one["value"])))
    parts = (
        join(", " if at else None, value_of(one["value"]), f" {percent(one['a'] or 0)} → {percent(one['b'] or 0)}")
        for at, one in enumerate(values[:_VALUES])
        if one["a"] != one["b"]
    )
    return tag("span", *parts, class_="why")


def _settings(config: Sequence[Body], models: Sequence[Body]) -> Html:
    changed: list[list[Child]] = [[name_of(one["path"]), _value(one["a"]), _value(one["b"])] for one in config[:_ROWS]]
    other: list[list[Child]] = [
        [join(name_of(one["role"]), " ", name_of(one["id"])), _hash(one["a"]), _hash(one["b"])]
        for one in models[:_ROWS]
    ]
    return join(
        table(["Setting", "Before", "After"], changed, caption=_more("Settings that changed", config), text=(0, 1, 2))
        if changed
        else tag("p", "No setting changed."),
        table(["Model", "Before", "After"], other, caption=_more("Models that changed", models), text=(0, 1, 2))
        if other
        else tag("p", "No model changed."),
    )


def _value(value: object) -> str:
    return shortened(NONE if value is None else json.dumps(value, ensure_ascii=False), 120)


def _hash(value: str | None) -> Html | str:
    return NONE if value is None else tag("span", value[:16], class_="id nowrap")
