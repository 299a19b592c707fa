"""The parts of the judge's page that compare: classes of attributes before and after, and clusters with their gates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.charts import Axis, axis_of, hundredfold, scale, strip
from evaluation.measures import NONE, finite
from evaluation.page import Child, Html, absent, chip, details, items, join, note, section, table, tag, words
from evaluation.taxonomy import UNKNOWN, default_taxonomy
from pipeline.coverage_page import ROWS, percent, short
from pipeline.judge_summary import KEPT, KINDS

CLASSES = "Classes before and after"
CLUSTERS = "Clusters and their gates"
FEW = 30
"""Labels below which a class is marked as few."""

_GATES = {"failed": 0, "uncertain": 1, "passed": 2}
_STRIP = "width:200px;padding:0 12px"
_SHORT = "width:160px;padding:0 12px"
_ROUNDED = 1e-4  # the rates of judge.json have four decimals
_NAME = "min-width:min(210px,30vw)"
_MARKED = 24  # marked classes listed
_UNFOLDED = 8  # attributes shown at once; of more only those with a marked class


def classes_section(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Html:
    """What each class of each attribute had and kept.

    Args:
        groups: attribute -> class -> counts and rates, as in ``judge.json``.
    """
    several = {name: classes for name, classes in sorted(groups.items()) if len(classes) > 1}
    if not several:
        reason = "each attribute has one class." if groups else "no attribute of a judged label is known."
        return section("classes", CLASSES, absent(reason), _left_out(groups))
    values = [value for classes in several.values() for found in classes.values() for value in found["kept"]]
    axis = axis_of([*values, 1.0], (0.0, 1.0))
    told = [one for name, classes in several.items() for one in _marked(name, classes)]
    marked = [line for _, line in sorted(told, key=lambda one: one[0] != "below")]
    return section(
        "classes",
        CLASSES,
        tag("p", tag("strong", "Classes that kept less or more than all together")) if marked else None,
        items(_cut(marked)) if marked else tag("p", "No interval of a class excludes the keep rate of all."),
        note(
            "Keep rate: share of the labels that stay in training (kept, weighed down or corrected), with its 95 % "
            "interval (Wilson). Only judged labels count. Dashed: the keep rate of all of them. A class is marked "
            "where its interval excludes that; of many classes some are marked by chance. A ring instead of a dot, and "
            f"few, mark classes of fewer than {FEW} labels. One threshold: the keep rate if one limit of q for all "
            "clusters had refused as many labels in all."
        ),
        *(_attribute(name, classes, axis, len(several) <= _UNFOLDED) for name, classes in several.items()),
        _left_out(groups),
    )


def _cut(lines: Sequence[Html]) -> list[Child]:
    """As many lines as are read, and how many more there are."""
    more = len(lines) - _MARKED
    return [*lines[:_MARKED], *([f"{more:,} more are marked in the tables."] if more > 0 else [])]


def _left_out(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Html | None:
    single = [
        join(words(short(name)), f" ({short(next(iter(classes)))})" if classes else " (no label)")
        for name, classes in sorted(groups.items())
        if len(classes) < 2
    ]
    if not single:
        return None
    listed = (join(", " if at else None, one) for at, one in enumerate(single[:ROWS]))
    more = f" and {len(single) - ROWS:,} more" if len(single) > ROWS else None
    return note("Left out, for all their labels are of one class: ", *listed, more, ".")


def _attribute(name: str, classes: Mapping[str, Mapping[str, Any]], axis: Axis, unfolded: bool) -> Html:
    before, after = _sums(classes)
    overall = after / before if before else 0.0
    order = _ordered(name, classes)
    rows = [_class_row(key, classes[key], axis, overall, (before, after)) for key in order[:ROWS]]
    more = len(order) - len(rows)
    marks = Counter(mark for found in classes.values() if (mark := _mark(found, overall)))
    head = [
        tag("div", "Class", style=_NAME),
        tag("div", "Keep rate, %", scale(hundredfold(axis)), style=_STRIP),
        "Rate, 95 % interval",
        "Labels → kept",
        "Share of the data",
        "One threshold",
        "Noise, 90 % interval",
    ]
    rates = sorted(finite(found["kept"][0]) or 0.0 for found in classes.values())
    span = "" if rates[0] == rates[-1] else f" to {percent(rates[-1])}"
    told = f" {len(order)} classes, keep rate {percent(rates[0])}{span}"
    return details(
        join(
            tag("h3", words(short(name))),
            tag("span", told, class_="note"),
            *(_chip(mark, f"{count} {mark}") for mark, count in sorted(marks.items())),
        ),
        table(head, rows, caption=f"{percent(overall)} of all judged labels stay", text=(0, 1)),
        note(f"{more:,} more classes, with fewer labels, are in judge.json.") if more > 0 else None,
        unfolded=unfolded or bool(marks),
    )


def _sums(classes: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Labels before and after."""
    return sum(map(_total, classes.values())), sum(map(_kept, classes.values()))


def _mark(found: Mapping[str, Any], overall: float) -> str:
    """Whether the interval of a class lies below or above the overall rate; empty where it holds it."""
    _, low, high = found["kept"]
    return "below" if high < overall - _ROUNDED else "above" if low > overall + _ROUNDED else ""


def _chip(mark: str, text: str) -> Html:
    return chip(text, "bad" if mark == "below" else "")


def _marked(name: str, classes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Html]]:
    """The marked classes of an attribute: the mark, and a line."""
    before, after = _sums(classes)
    for key in _ordered(name, classes):
        if mark := _mark(classes[key], after / before if before else 0.0):
            who = tag("strong", words(short(name)), " = ", words(short(key)))
            few = ", few labels" if _total(classes[key]) < FEW else ""
            own = f"{_interval(classes[key]['kept'])} of {_total(classes[key]):,} labels"
            told = f": {own} stay, of all {percent(after / before)}{few}"
            yield mark, join(who, told, _chip(mark, mark))


def _ordered(name: str, classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In the order of the taxonomy, others by name, unknown last; of very many those with the most labels."""
    listed = next((c.classes for c in default_taxonomy().categories if c.name == name), ())
    most = sorted(classes, key=lambda key: (key != UNKNOWN, -_total(classes[key]), key))[:ROWS]
    rank = {key: at for at, key in enumerate(listed)}
    shown = sorted(most, key=lambda key: (key == UNKNOWN, rank.get(key, len(rank)), key))
    return shown + sorted(set(classes) - set(shown))


def _class_row(key: str, found: Mapping[str, Any], axis: Axis, overall: float, totals: tuple[int, int]) -> list[Child]:
    rate, low, high = found["kept"]
    few, mark = _total(found) < FEW, _mark(found, overall)
    line = strip(rate, (low, high), axis, overall, "indicative" if few else "tested", bad=mark == "below")
    return [
        join(words(short(key)), chip("few") if few else None, _chip(mark, f"{mark} overall") if mark else None),
        tag("div", line, style=_STRIP),
        _interval(found["kept"]),
        f"{_total(found):,} → {_kept(found):,}",
        f"{_share(_total(found), totals[0])} → {_share(_kept(found), totals[1])}",
        _rate(found.get("kept_by_one_threshold")),
        _interval(found.get("noise")),
    ]


def _total(found: Mapping[str, Any]) -> int:
    return sum(int(found[verdict]) for verdict in KINDS)


def _kept(found: Mapping[str, Any]) -> int:
    return sum(int(found[verdict]) for verdict in KEPT)


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else NONE


def _rate(value: object) -> str:
    number = finite(value)
    return NONE if number is None else percent(number)


def _interval(values: Sequence[object] | None) -> str:
    """A rate with its interval, in one line."""
    if values is None or any(finite(value) is None for value in values):
        return NONE
    rate, low, high = (100 * (finite(value) or 0.0) for value in values)
    return f"{rate:.1f} % ({low:.1f}–{high:.1f})"


def clusters_section(clusters: Mapping[str, Mapping[str, Any]]) -> Html:
    """Each coarse cluster with its gate, closed ones first, then by noise.

    Args:
        clusters: number -> fold, counts, gate and noise, as in ``judge.json``.
    """
    if not clusters:
        return section("clusters", CLUSTERS, absent("no cluster was judged."))
    order = sorted(clusters, key=lambda key: (_GATES.get(clusters[key]["gate"], 0), -_noise(clusters[key]), _id(key)))
    noise = [value for found in clusters.values() for value in found["noise"]]
    axis = axis_of([0.0, *noise], (0.0, 1.0))
    more = len(order) - ROWS
    return section(
        "clusters",
        CLUSTERS,
        note(
            "A student that never saw the cluster judged it. Failed is a closed gate: its q is not acted upon, the "
            "largest differences are held for a person. Noise: estimated share of bad labels, with its 90 % interval."
        ),
        table(
            [
                "Cluster",
                "Gate",
                "Why",
                tag("div", "Noise, %", scale(hundredfold(axis)), style=_SHORT),
                "AUROC",
                "Fold",
                "Labels",
                "Audited (bad)",
                *KINDS,
                "spared",
            ],
            [_cluster_row(key, clusters[key], axis) for key in order[:ROWS]],
            caption="Closed gates first; then the noisiest",
            text=(0, 1, 2, 3),
        ),
        note(f"{more:,} more are in judge.json.") if more > 0 else None,
    )


def _id(key: str) -> tuple[int, str]:
    return (int(key), "") if key.lstrip("-").isdecimal() else (0, key)


def _noise(found: Mapping[str, Any]) -> float:
    return finite(found["noise"][0]) or 0.0


def _cluster_row(key: str, found: Mapping[str, Any], axis: Axis) -> list[Child]:
    outcome, (rate, low, high) = str(found["gate"]), found["noise"]
    line = strip(rate, (low, high), axis, None, "tested", bad=outcome == "failed")
    auroc = finite(found.get("auroc"))
    return [
        short(key),
        chip(outcome, {"failed": "bad", "passed": "good"}.get(outcome, "")),
        tag("span", short(str(found["gate_reason"]), 200), class_="why"),
        tag("div", line, tag("span", _interval(found["noise"]), class_="meta"), style=_SHORT),
        NONE if auroc is None else f"{auroc:.2f}",
        str(found["fold"]),
        f"{found['labels']:,}",
        f"{found['audited']:,} ({found['bad']:,})" if found["audited"] else "0",
        *(f"{found[verdict]:,}" for verdict in KINDS),
        f"{found.get('spared', 0):,}",
    ]
