"""The parts of the report that compare: cells with their targets, classes with all, labels with their judge, clusters.

A body is what the review page gets from its server by the same name; every text in it is hostile until it is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from evaluation.charts import Axis, axis_of, bar_legend, bars, hundredfold, scale, strip
from evaluation.measures import NONE, counted
from evaluation.page import Child, Html, absent, chip, details, items, join, note, section, shortened, table, tag
from review.report_marks import (
    KINDS,
    histogram,
    interval,
    key_of,
    name_of,
    part_of,
    percent,
    share_bar,
    state_chip,
    value_of,
)

Body = Mapping[str, Any]

_SHORT = 12  # cells below their target that are listed
_CLASSES = 12  # of an attribute
_ATTRIBUTES = 80
_ROWS = 40
_FLAGS = 24
_REASONS = 4
_OPEN = 4  # attributes unfolded where none is flagged
_KNOWN = ("human", "source", "model", "unknown")
_PROVENANCE = {
    "human": "a person said so",
    "source": "stated with the source",
    "model": "inferred by a model",
    "unknown": "unknown",
}
_COLUMNS = {
    "label_confidence": "Label confidence",
    "boundary_uncertainty": "Uncertainty at the outline",
    "student_iou": "Student: IoU with the label",
    "student_boundary_iou": "Student: boundary IoU",
    "temporal_iou": "IoU over time",
    "q": "q: probability of a bad label",
    "miss": "miss: only the student sees a person",
    "extra": "extra: only the label has a person",
    "stability": "stability: how far the student wavers",
    "mask_area_share": "Area of the mask, share of the frame",
}
QUALITY = tuple(_COLUMNS)
"""Columns whose distribution is drawn."""
SERIES = {"keep": "kept", "hold": "held", "drop": "dropped"}
"""Decision -> its colour."""


def coverage_section(title: str, body: Body) -> Html:
    """Cells beside their targets, and where each attribute's values come from.

    Args:
        title: of the section.
        body: of the coverage.
    """
    cells = body["cells"]
    short = sorted((c for c in cells if c["actual"] < c["target"]), key=lambda c: (_filled(c), -c["target"], _cell(c)))
    grouped = [(name, list(mine)) for name, mine in groupby(cells, key=lambda c: c["attribute"])]
    panels = [_panel(str(name), mine) for name, mine in grouped[:_ATTRIBUTES]]
    return section(
        "coverage",
        title,
        _missing(short, len(cells)),
        tag("h3", "Target and actual of each cell"),
        bar_legend(["target: chosen for the cell", "actual: kept"]) if panels else None,
        tag("div", *panels, class_="panels") if panels else absent("this release has no quota cells."),
        tag("h3", "Where the values come from"),
        note("Of how many rows a person, the source or a model told the value; the rest is unknown."),
        key_of(_PROVENANCE),
        _provenance(body),
    )


def _cell(cell: Body) -> str:
    return f"{cell['attribute']}={cell['value']}"


def _filled(cell: Body) -> float:
    return float(cell["actual"] / cell["target"]) if cell["target"] else 1.0


def _missing(short: Sequence[Body], cells: int) -> Html:
    if not short:
        return tag("p", f"All {counted(cells, 'cell')} reached the target." if cells else None)
    rows: list[list[Child]] = [
        [
            join(name_of(cell["attribute"]), " = ", value_of(cell["value"])),
            f"{cell['target']:,}",
            f"{cell['actual']:,}",
            part_of(cell["actual"], cell["target"]),
            tag("span", shortened(str(cell.get("judged_unfillable") or NONE), 300), class_="why"),
        ]
        for cell in short[:_SHORT]
    ]
    more = len(short) - len(rows)
    told = f"{len(short):,} of {counted(cells, 'cell')} below the target" + (f"; {more:,} more" if more > 0 else "")
    return table(["Cell", "Target", "Actual", "Filled", "Why"], rows, caption=told, text=(0, 4))


def _panel(name: str, cells: Sequence[Body]) -> Html:
    shown = sorted(sorted(cells, key=lambda c: -c["target"])[:_CLASSES], key=lambda c: _order(c["value"]))
    top = max([1, *(max(c["target"], c["actual"]) for c in shown)])
    head = tag("tr", *(tag("th", text, scope="col") for text in ("Class", "Rows", "Actual of target")))
    body = (
        tag(
            "tr",
            tag("th", value_of(cell["value"]), scope="row"),
            tag("td", bars((cell["target"] / top, cell["actual"] / top), 1.0)),
            tag(
                "td",
                f"{cell['actual']:,} of {cell['target']:,}",
                tag("span", part_of(cell["actual"], cell["target"]), class_="meta"),
            ),
        )
        for cell in shown
    )
    inner = tag("table", tag("caption", name_of(name)), tag("thead", head), tag("tbody", *body))
    more = len(cells) - len(shown)
    remark = tag("span", f"{more:,} smaller classes are not shown", class_="meta") if more > 0 else None
    return tag("section", inner, remark, class_="forest", aria_label=f"Cells of {shortened(name, 60)}")


def _order(value: object) -> tuple[int, int, str]:
    """Unknown last, numbers by size."""
    text = str(value)
    unknown = value is None or text == "unknown"
    return (int(unknown), int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0, text)


def _provenance(body: Body) -> Html:
    values = {one["name"]: one["values"] for one in body["attributes"]}
    rows: list[list[Child]] = []
    for one in body["provenance"][:_ATTRIBUTES]:
        parts = {kind: int(one[kind]) for kind in _KNOWN}
        whole = sum(parts.values())
        mine = [found for found in values.get(one["attribute"], []) if found["value"] is not None]
        most = max(mine, key=lambda found: (found["kept"], str(found["value"])), default=None)
        rows.append(
            [
                name_of(one["attribute"]),
                tag("div", share_bar(parts, height=14), class_="track"),
                *(part_of(parts[kind], whole) for kind in _KNOWN),
                NONE if most is None else join(value_of(most["value"]), f" ({most['kept']:,} kept)"),
            ]
        )
    more = len(body["provenance"]) - len(rows)
    told = "Provenance of each attribute" + (f"; {more:,} more" if more > 0 else "")
    head: list[Child] = ["Attribute", "", "Human", "Source", "Model", "Unknown", "Most common"]
    return table(head, rows, caption=told, text=(0, 1, -1))


# Filter bias ----------------------------------------------------------------------------------------------------------


def bias_section(title: str, body: Body) -> Html:
    """How often rows of each class were held or dropped, beside all.

    Args:
        title: of the section.
        body: of the filter bias, of all attributes.
    """
    overall, floor = body["overall"], body["floor"]
    rate = overall["removed"] / overall["n"] if overall["n"] else 0.0
    rows = [row for row in body["rows"] if row["n"]]
    if not rows:
        return section("bias", title, absent("no attribute is known."))
    ends = (end for row in rows for end in (row["interval"] if row["claim"] else [row["rate"]]))
    axis = axis_of([0.0, rate, *ends], (0.0, 1.0))
    flagged = [row for row in rows if row["flagged"] and row["claim"]]
    grouped = [(str(name), list(mine)) for name, mine in groupby(rows, key=lambda row: row["attribute"])]
    return section(
        "bias",
        title,
        tag(
            "p",
            tag("strong", f"{percent(rate)} of all {overall['n']:,} rows"),
            f" were held ({overall['held']:,}) or dropped ({overall['dropped']:,}); 95 % interval "
            f"{100 * overall['interval'][0]:.1f}–{100 * overall['interval'][1]:.1f} %.",
        ),
        _flags(flagged, rate),
        note(
            "Removed: held or dropped. Line: 95 % interval (Wilson), as if every row were independent. Dashed: the "
            "rate of all rows. A class is flagged where its interval excludes that; of many classes some are flagged "
            f"by chance. Below {floor:,} rows no claim is made (a cross). A class inferred by a model may be wrong "
            "itself, and wrong just where labels are bad."
        ),
        *(_attribute(name, mine, axis, rate, at) for at, (name, mine) in enumerate(_first(grouped)[:_ATTRIBUTES])),
    )


def _first(grouped: Sequence[tuple[str, list[Body]]]) -> list[tuple[str, list[Body]]]:
    """Attributes with a flagged class first."""
    return sorted(grouped, key=lambda one: (-sum(bool(row["flagged"] and row["claim"]) for row in one[1]), one[0]))


def _flags(flagged: Sequence[Body], rate: float) -> Html:
    if not flagged:
        return tag("p", "No class with enough rows differs from all rows by more than chance allows.")
    lines: list[Child] = [
        join(
            tag("strong", name_of(row["attribute"]), " = ", value_of(row["value"])),
            f": {interval(row['rate'], row['interval'])} of {row['n']:,} rows",
            chip("more often" if row["rate"] > rate else "less often", "bad" if row["rate"] > rate else ""),
            _model(row),
        )
        for row in sorted(flagged, key=lambda row: -abs(row["rate"] - rate))[:_FLAGS]
    ]
    more = len(flagged) - len(lines)
    return join(
        tag("p", tag("strong", "Classes that were removed more or less often than all")),
        items([*lines, *([f"{more:,} more are flagged in the tables."] if more > 0 else [])]),
    )


def _model(row: Body) -> Html | None:
    kinds = {"model": "inferred by a model", "mixed": "in part inferred by a model"}
    return chip(kinds[row["provenance"]]) if row["provenance"] in kinds else None


def _attribute(name: str, rows: Sequence[Body], axis: Axis, rate: float, at: int) -> Html:
    flags = sum(bool(row["flagged"] and row["claim"]) for row in rows)
    shown = sorted(sorted(rows, key=lambda row: -row["n"])[:_CLASSES], key=lambda row: _order(row["value"]))
    head: list[Child] = [
        "Class",
        tag("div", "Removed, %", scale(hundredfold(axis)), class_="strip"),
        "Rate, 95 % interval",
        "Rows",
        "Removed",
        "Reasons",
    ]
    more = len(rows) - len(shown)
    told = f"{len(rows):,} class{'es' * (len(rows) != 1)}" + (f", {more:,} smaller not shown" if more > 0 else "")
    known = next((mark for row in rows if (mark := _model(row)) is not None), None)
    return details(
        join(
            tag("h3", name_of(name)),
            tag("span", f" {told}", class_="note"),
            chip(f"{flags} flagged", "bad") if flags else None,
            known,
        ),
        table(
            head,
            [_class_row(row, axis, rate) for row in shown],
            caption=f"Classes of {shortened(name, 60)}",
            text=(0, 1, 5),
        ),
        unfolded=bool(flags) or at < _OPEN,
    )


def _class_row(row: Body, axis: Axis, rate: float) -> list[Child]:
    claim, flagged = row["claim"], row["flagged"] and row["claim"]
    drawn = strip(
        row["rate"], row["interval"] if claim else None, axis, rate, "tested" if claim else "insufficient", bad=flagged
    )
    reasons = sorted(row["reasons"].items(), key=lambda one: (-one[1], one[0]))
    told = ", ".join(f"{shortened(str(reason), 60)} {count:,}" for reason, count in reasons[:_REASONS])
    more = len(reasons) - _REASONS
    return [
        join(value_of(row["value"]), chip("flagged", "bad") if flagged else None),
        tag("div", drawn, class_="strip"),
        interval(row["rate"], row["interval"]) if claim else chip("too few"),
        f"{row['n']:,}",
        f"{row['removed']:,}",
        tag("span", told + (f" and {more:,} more" if more > 0 else "") or NONE, class_="why"),
    ]


# Label quality --------------------------------------------------------------------------------------------------------


def quality_section(title: str, bodies: Sequence[Body]) -> Html:
    """The distribution of what teacher, student and judge measured.

    Args:
        title: of the section.
        bodies: of a histogram by decision each.
    """
    known = [body for body in bodies if body["n"] > body["missing"]]
    lacking = [_COLUMNS.get(body["column"], str(body["column"])) for body in bodies if body["n"] == body["missing"]]
    told = {kind: kind for kind in KINDS}
    return section(
        "quality",
        title,
        key_of(told) if known else absent("nothing was measured on these labels."),
        tag("div", *map(_histogram, known), class_="panels") if known else None,
        note("Measured for no row: ", "; ".join(lacking), ".") if lacking and known else None,
    )


def _histogram(body: Body) -> Html:
    name = _COLUMNS.get(body["column"], str(body["column"]))
    missing = f"{body['n']:,} rows" + (f", {body['missing']:,} of them without a value" if body["missing"] else "")
    parts = ", ".join(f"{one['n']:,} {SERIES.get(str(one['value']), str(one['value']))}" for one in body["series"])
    label = f"{name} of {missing}: {shortened(parts, 200)}."
    most = max(map(sum, zip(*(one["counts"] for one in body["series"]), strict=True)), default=0)
    told = f"{missing}; highest bar {most:,}"
    caption = tag("figcaption", tag("strong", name), tag("span", told, class_="meta"))
    return tag("figure", caption, histogram(body, SERIES, label))


# Clusters and leakage -------------------------------------------------------------------------------------------------


def clusters_section(title: str, clusters: Body, leakage: Body) -> Html:
    """The groups of clusters, and what could have leaked from one split into another.

    Args:
        title: of the section.
        clusters: of the clusters, the coarsest level.
        leakage: of the leakage.
    """
    found = clusters["clusters"]
    order = sorted(found, key=lambda one: (-(one["held"] + one["dropped"]) / max(1, one["n"]), one["path"] or []))
    rows = [_cluster(one) for one in order[:_ROWS]]
    more = len(order) - len(rows)
    head: list[Child] = ["Cluster", "", "Rows", "Kept", "Held", "Dropped", "Bad labels (90 %)", "Gate", "Splits"]
    told = "Those that lost most rows first" + (f"; {more:,} more" if more > 0 else "")
    return section(
        "clusters",
        title,
        table(head, rows, caption=told, text=(0, 1, 7, 8)) if rows else absent("no row has a cluster."),
        tag("h3", "Leakage between splits"),
        *_leakage(leakage),
    )


def _cluster(one: Body) -> list[Child]:
    noise = one.get("noise")
    counts = {kind: int(one[kind]) for kind in KINDS}
    return [
        "/".join(str(step) for step in one["path"]) if one["path"] else tag("em", "none"),
        tag("div", share_bar(counts, height=14), class_="track"),
        f"{one['n']:,}",
        *(f"{count:,}" for count in counts.values()),
        NONE if noise is None or any(_none(value) for value in noise) else interval(noise[0], noise[1:]),
        chip(str(one["gate"]), {"failed": "bad", "passed": "good"}.get(one["gate"], "")) if one.get("gate") else NONE,
        ", ".join(f"{name} {count:,}" for name, count in one["splits"].items() if count) or NONE,
    ]


def _none(value: object) -> bool:
    return not isinstance(value, int | float) or not math.isfinite(value)


def _leakage(body: Body) -> Iterator[Html]:
    across, near = body["across_splits"], body["near_duplicates"]
    yield tag(
        "p",
        f"{body['groups']:,} groups of samples that belong together; ",
        f"{len(across):,} of them in more than one split",
        state_chip("fail" if across else "pass"),
        ". ",
        shortened(str(body.get("told") or ""), 400),
    )
    if across:
        rows: list[list[Child]] = [
            [tag("span", shortened(str(one["group"]), 40), class_="id"), _splits(one["splits"])]
            for one in across[:_ROWS]
        ]
        yield table(["Group", "Splits"], rows, caption="Groups in more than one split", text=(0, 1))
    if near:
        pairs: list[list[Child]] = [
            [*(tag("span", one[key], class_="id") for key in "ab"), _both(one), str(one["distance"])]
            for one in near[:_ROWS]
        ]
        more = len(near) - len(pairs)
        told = "Pictures alike in different splits" + (f"; {more:,} more" if more > 0 else "")
        yield table(["Sample", "Sample", "Splits", "Bits apart"], pairs, caption=told, text=(0, 1, 2))


def _splits(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _both(pair: Body) -> str:
    return " and ".join(str(split) for split in pair["splits"])
