"""The part of the selection report on coverage: what is missing, and every margin before and after the choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from evaluation.charts import bar_legend, bars, cumulative, legend
from evaluation.measures import NONE
from evaluation.page import Child, Html, absent, chip, join, note, section, shortened, table, tag, words
from pipeline.coverage import CROSS, Coverage, Floats, Ints, Margin, Shortfall

NUMBERS = "selection.json"
"""The file with every number of the page."""
ROWS = 60
"""Rows of a table at most."""
SECTIONS = {
    "shortfall": "What is missing",
    "figures": "Every margin in figures",
    "attributes": "Classes before and after",
    "pairs": "Pairs of attributes",
    "clusters": "Sizes of the clusters",
}
"""Key and title of each section."""
_PAIRS, _CLASSES, _SIDE = 12, 30, 12  # pairs shown; bars of a margin; rows and columns of a heat map
_NAME = 60  # characters of a name
_REASONS = {"absent": "no frame", "scarce": "too few frames", "conflict": "at odds with other targets"}
_POOL = {1: "all candidates", 2: "the first choice"}
_STEPS = (("h4", "< 0.5"), ("h2", "0.5–0.8"), ("", "0.8–1.25"), ("u2", "1.25–2"), ("u4", "> 2"))


def sentence(one: Shortfall, where: Mapping[str, str], rounds: int) -> Html:
    """A shortfall as a sentence with its remedy.

    Args:
        one: what is missing.
        where: links groups to their contact sheets.
        rounds: in how many the frames were chosen.
    """
    head = tag("strong", _who(one, where))
    there = "exist" if rounds == 1 else "in the first choice"
    counts = f": {number_text(one.wanted)} wanted, {one.exists:,} {there}, {one.chosen:,} chosen. "
    return join(head, counts, _remedy(one, rounds))


def _who(one: Shortfall, where: Mapping[str, str]) -> Html:
    """The class in words, linked to its contact sheet if it is a group that has one."""
    values = [short(value) if value is not None else "unknown" for value in one.classes]
    if one.kind in ("group", "cluster"):
        text = f"{one.kind} {values[0]}"
        anchor = where.get(values[0]) if one.kind == "group" else None
        return tag("a", text, href=anchor) if anchor else Html(tag("span", text))
    return join(
        *_joined([join(words(short(name)), " = ", words(v)) for name, v in zip(one.names, values, strict=True)])
    )


def _joined(parts: Sequence[Html]) -> Iterator[Child]:
    for number, part in enumerate(parts):
        yield " and " if number else None
        yield part


def _remedy(one: Shortfall, rounds: int) -> str:
    """What would fill a class, in a sentence."""
    what = f"frames that look like this {one.kind}" if one.kind in ("group", "cluster") else "such frames"
    how = "film or collect" if rounds == 1 else "raise select.oversample, or film or collect"
    if one.reason == "absent":
        return f"None exist{'' if rounds == 1 else ' there'}: {how} at least {_lack(one):,} {what}."
    if one.reason == "scarce":
        return f"Too few exist{'' if rounds == 1 else ' there'}: {how} at least {_lack(one):,} more {what}."
    if one.reason == "conflict":
        return (
            f"Enough exist, but {one.missing:,} more would cost other targets as much: choose more frames in all, or "
            "raise the weight of this target."
        )
    return f"{one.missing:,} missing."


def _lack(one: Shortfall) -> int:
    """Whole frames that do not exist, however the choice is made."""
    return max(1, math.floor(one.wanted - one.exists))


def _in_short(one: Shortfall) -> str:
    """The same for a table."""
    if one.reason in ("absent", "scarce"):
        return f"collect {_lack(one):,}{' more' if one.exists else ''}"
    return "choose more frames, or raise its weight" if one.reason == "conflict" else NONE


def shortfall_section(found: Coverage, where: Mapping[str, str]) -> Html:
    """The classes that did not get what was asked for."""
    if not found.shortfalls:
        return section("shortfall", SECTIONS["shortfall"], absent("no class lacks a frame that was asked for."))
    rows = [
        [
            _who(one, where),
            number_text(one.wanted),
            f"{one.exists:,}",
            f"{one.chosen:,}",
            tag("strong", f"{one.missing:,}"),
            tag("span", _REASONS.get(one.reason, one.reason or NONE), class_="nowrap"),
            tag("span", _in_short(one), class_="nowrap"),
        ]
        for one in found.shortfalls[:ROWS]
    ]
    more = len(found.shortfalls) - len(rows)
    return section(
        "shortfall",
        SECTIONS["shortfall"],
        note(
            "Attributes of people stand first, then other attributes, then groups and clusters, which nobody can film; "
            "in each the largest share missing on top."
        ),
        _total(found.total),
        table(
            [
                "Class",
                "Wanted",
                "Exist" if found.rounds == 1 else "In the first choice",
                "Chosen",
                "Missing",
                "Why",
                "Remedy",
            ],
            rows,
            caption="Classes that did not get what was asked for",
            text=(0, -2, -1),
        ),
        note(f"{more:,} more are in {NUMBERS}.") if more > 0 else None,
    )


def _total(total: Mapping[str, float]) -> Html | None:
    ours, least = (total.get(key) for key in ("ours", "least"))
    if ours is None:
        return None
    bound = "" if least is None else f"; no selection of this size misses fewer than {number_text(least)}"
    return tag("p", f"Summed over the classes of all attributes, {number_text(ours)} frames are missing{bound}.")


def figures_section(found: Coverage) -> Html:
    """A line of figures for each margin."""
    pairs = worst_pairs(found.of("pair"))
    shown = [*found.of("group"), *found.of("cluster"), *found.of("attribute"), *pairs[:_PAIRS]]
    more = len(pairs) - _PAIRS
    head = [
        "Margin",
        "Covered",
        "Effective classes: before → after",
        "Possible",
        "Unknown: before → after",
        "KL to target, nats: before → after",
        "Target",
    ]
    return section(
        "figures",
        SECTIONS["figures"],
        note(
            f"Before: {_POOL[found.rounds]}. After: the chosen frames. Both were counted in full, so no number is an "
            "estimate and none has an interval. What was chosen stands for the chosen frames, not for a population: "
            "their chances differ, and each has its own as inclusion_prob."
        ),
        table(
            head,
            [_figures_row(m) for m in shown],
            caption=f"Group, cluster, attributes; then the {_PAIRS} worst pairs" if more > 0 else "Every margin",
            text=(0, -1),
        ),
        note(f"{more:,} more pairs are in {NUMBERS}.") if more > 0 else None,
    )


def _figures_row(margin: Margin) -> list[Child]:
    f = margin.figures
    before, after, possible = f.effective
    goal = margin.target
    return [
        _title(margin),
        f"{f.covered:,} of {f.existing:,}",
        f"{number_text(before)} → {number_text(after)}",
        number_text(possible),
        " → ".join(NONE if share is None else percent(share) for share in f.unknown),
        NONE if goal is None else " → ".join(map(_nats, f.divergence)),
        tag(
            "span", NONE if goal is None else f"{short(goal.kind)}, weight {number_text(goal.weight)}", class_="nowrap"
        ),
    ]


def _title(margin: Margin) -> Html:
    return words(CROSS.join(short(name) for name in margin.names))


def worst_pairs(pairs: Sequence[Margin]) -> list[Margin]:
    """Pairs that cover the least share of their classes first, then the least even ones; those without a class last."""
    figures = {margin.name: margin.figures for margin in pairs}

    def rank(margin: Margin) -> tuple[float, float, str]:
        f = figures[margin.name]
        return (2.0 if f.covered_share is None else round(f.covered_share, 9), round(f.evenness, 9), margin.name)

    return sorted(pairs, key=rank)


def attributes_section(found: Coverage) -> Html:
    """A bar for each class of each attribute, and of the groups."""
    panels = [_panel(margin, found.rounds) for margin in (*found.of("attribute"), *found.of("group"))]
    return section(
        "attributes",
        SECTIONS["attributes"],
        note(
            "Shares are of the frames whose class is known. The line across the bars is the target, where there is one."
        ),
        bar_legend(_sides(found)),
        tag("div", *panels, class_="panels"),
    )


def _sides(found: Coverage) -> list[str]:
    return [f"before: {_POOL[found.rounds]}", "after: the chosen frames"]


def _panel(margin: Margin, rounds: int) -> Html:
    before, after = _shares(margin.before), _shares(margin.after)
    goal = None if margin.wanted is None else _shares(margin.wanted)
    order = np.argsort(-margin.before, kind="stable") if len(margin.classes) > _CLASSES else np.arange(len(before))
    shown = np.sort(order[:_CLASSES]).tolist()
    top = max([float(values[at]) for values in (before, after, goal) if values is not None for at in shown] + [1e-9])
    body = [
        _bar_row(margin, at, (float(before[at]), float(after[at])), None if goal is None else float(goal[at]), top)
        for at in shown
    ]
    more = len(before) - len(shown)
    whose = ("candidates" if rounds == 1 else "of the first choice", "chosen")
    unknown = ", ".join(f"{n:,} {what}" for n, what in zip(margin.unknown, whose, strict=True) if n)
    remark = "; ".join(
        [f"{more:,} smaller classes are in {NUMBERS}"] * (more > 0) + [f"unknown: {unknown}"] * bool(unknown)
    )
    if not body:
        return tag("section", tag("h3", _title(margin)), absent("no frame has a known class."), class_="forest")
    head = tag("tr", *(tag("th", text, scope="col") for text in ("Class", "Share", "Before → after")))
    inner = tag("table", tag("caption", _title(margin)), tag("thead", head), tag("tbody", *body))
    remark_ = tag("span", remark, class_="meta") if remark else None
    return tag("section", inner, remark_, class_="forest", aria_label=f"Classes of {short(margin.name)}")


def _bar_row(margin: Margin, at: int, shares: tuple[float, float], goal: float | None, top: float) -> Html:
    lost = margin.before[at] > 0 and margin.after[at] == 0
    mark = chip("none exist", "bad") if not margin.before[at] else chip("none chosen", "bad") if lost else None
    counts = f"{margin.after[at]:,} of {margin.before[at]:,}"
    head = tag("th", words(short(margin.classes[at][0])), tag("span", counts, class_="meta"), scope="row")
    below = None if goal is None else tag("span", f"target {percent(goal)}", class_="meta")
    text = f"{_hundredths(shares[0])} → {percent(shares[1])}"
    return tag("tr", head, tag("td", bars(shares, top, goal)), tag("td", text, below, mark))


def pairs_section(found: Coverage) -> Html:
    """Heat maps of the pairs of attributes that are covered worst."""
    pairs = [margin for margin in worst_pairs(found.of("pair")) if _is_table(margin)]
    if not pairs:
        return section("pairs", SECTIONS["pairs"], absent("no two attributes have two classes or more together."))
    keys = (tag("span", text, class_=f"key {kind}".strip()) for kind, text in _STEPS)
    which = f"The worst {_PAIRS} of {len(pairs)} pairs. " if len(pairs) > _PAIRS else ""
    return section(
        "pairs",
        SECTIONS["pairs"],
        note(
            f"{which}A cell says how many frames were chosen, and of how many. Its colour is that number over the "
            "target, or, without one, over the most even spread that the candidates allow. Bold: none was chosen, "
            "though enough exist."
        ),
        tag("p", *keys),
        tag("div", *(_heat(margin) for margin in pairs[:_PAIRS]), class_="panels wide"),
    )


def _is_table(margin: Margin) -> bool:
    """Whether frames or a target are in at least two classes of either attribute."""
    return all(len({key[side] for key in margin.classes}) > 1 for side in (0, 1))


def _heat(margin: Margin) -> Html:
    place = {key: at for at, key in enumerate(margin.classes)}
    sides = [_largest(margin, side) for side in (0, 1)]
    goal = margin.wanted if margin.wanted is not None else margin.even.astype(np.float64)
    goal = goal * (margin.after.sum() / goal.sum()) if goal.sum() else goal
    head = tag("tr", tag("th", None, scope="col"), *(tag("th", words(short(name)), scope="col") for name in sides[1]))
    body = (
        tag(
            "tr",
            tag("th", words(short(row)), scope="row"),
            *(_heat_cell(margin, place.get((row, column)), goal) for column in sides[1]),
        )
        for row in sides[0]
    )
    f = margin.figures
    caption = f"{f.covered:,} of {f.existing:,} pairs of classes covered"
    if any(len({key[side] for key in margin.classes}) > _SIDE for side in (0, 1)):
        caption += f"; the {_SIDE} largest classes of each are shown"
    inner = tag("table", tag("thead", head), tag("tbody", *body))
    frame = tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=short(margin.name))
    return tag("section", tag("h3", _title(margin)), note(caption), frame, class_="heat")


def _largest(margin: Margin, side: int) -> list[str]:
    """The classes of one attribute of a pair, sorted; the largest where there are many."""
    sizes: Counter[str] = Counter()
    for key, count in zip(margin.classes, margin.before.tolist(), strict=True):
        sizes[key[side]] += count
    return sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:_SIDE])


def _heat_cell(margin: Margin, at: int | None, goal: Floats) -> Html:
    if at is None or not margin.before[at]:
        wanted = at is not None and goal[at] > 0
        return tag("td", NONE, **({"class_": "h4"} if wanted else {}))
    taken, held = int(margin.after[at]), int(margin.before[at])
    ratio = taken / goal[at] if goal[at] > 0 else math.inf if taken else 1.0
    kind = next(k for k, low in (("h4", 0.5), ("h2", 0.8), ("", 1.25), ("u2", 2.0), ("u4", math.inf)) if ratio <= low)
    number = tag("strong", "0") if not taken and held >= margin.least else f"{taken:,}"
    return tag("td", number, tag("span", f"of {held:,}", class_="meta"), **({"class_": kind} if kind else {}))


def clusters_section(found: Coverage) -> Html:
    """How evenly the frames are spread over the clusters."""
    margin = found.of("cluster")[0]
    if not margin.after.sum():
        return section("clusters", SECTIONS["clusters"], absent("no chosen frame has a cluster."))
    sizes = [np.sort(each)[::-1] for each in (margin.before, margin.after)]
    names = _sides(found)
    rows = [
        [
            name,
            *(f"{n:,}" for n in (int((s > 0).sum()), int(s.max()))),
            number_text(float(np.median(s))),
            f"{s.min():,}",
        ]
        for name, s in zip(names, sizes, strict=True)
    ]
    label = "Share of the frames in the largest clusters, before and after; the sizes are in the table below."
    axes = ("share of the clusters, largest first", "share of the frames")
    return section(
        "clusters",
        SECTIONS["clusters"],
        note("Clusters of one size lie on the dashed diagonal; the higher a line bends, the more a few clusters hold."),
        legend(names),
        cumulative([_lorenz(each) for each in sizes], label, axes),
        table(
            ["Frames", "Clusters with a frame", "Largest", "Median", "Smallest"], rows, caption="Frames in a cluster"
        ),
    )


def _lorenz(sizes: Ints, steps: int = 200) -> Floats:
    """(K,) sizes, falling -> (steps + 1,) share of the frames in the largest shares 0, 1/steps, … 1 of the clusters."""
    held = np.concatenate([[0.0], np.cumsum(sizes) / sizes.sum()])
    return np.asarray(np.interp(np.linspace(0, len(sizes), steps + 1), np.arange(len(sizes) + 1), held), np.float64)


def _shares(counts: Ints | Floats) -> Floats:
    total = float(counts.sum())
    return np.asarray(counts / total if total else np.zeros(len(counts)), np.float64)


def short(name: str, length: int = _NAME) -> str:
    """A name that may be of any length."""
    return shortened(name, length)


def percent(share: float) -> str:
    """A share as it is written: 100.0 % only where nothing is missing, 0.0 % only where there is nothing."""
    return f"{_hundredths(share)} %"


def _hundredths(share: float) -> str:
    if 0 < share < 0.0005:
        return "< 0.1"
    return "> 99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def _nats(value: float | None) -> str:
    if value is None:
        return NONE
    return "∞" if math.isinf(value) else f"{value:.3f}"


def number_text(value: float) -> str:
    """A whole number as it is, others with two decimals below 10 and one from there on."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"
