"""The part of the selection report on how the clusters were made.

It shows what ``report.json`` of the cluster step tells; each key may be missing, and those it does not know are left to
the file of numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.charts import Axis, axis_of, legend, timeline
from evaluation.measures import NONE, finite
from evaluation.page import Child, Html, absent, join, note, section, table, tag, words
from pipeline.coverage import Floats
from pipeline.coverage_page import NUMBERS, ROWS, number_text, percent, short

TITLE = "How the clusters were made"
_LEVELS = (
    ("First embedding: k-means", "first.clusters", "first.size_entropy", "first.set_aside"),
    ("Second embedding: prototypes", "second.clusters", "second.size_entropy", "second.set_aside"),
    ("Second embedding: clusters", "second.joined", "second.joined_entropy", ""),
    ("Second embedding: groups", "second.groups", "second.group_entropy", ""),
)
_ATTRIBUTES = (
    ("first", "first.attributes"),
    ("prototypes", "second.attributes"),
    ("clusters", "second.by_cluster.attributes"),
)
_SCORES = {"purity": "Purity", "nmi": "NMI", "ami": "AMI"}
_STOPPED = {"steps": "all were taken", "patience": "the held-out loss no longer fell"}
_PRECISION = {"32": "32-bit floats", "bf16": "bfloat16"}
_CURVE = ("loss", "held_out_loss", "held_out_accuracy")
_PLACES = 200  # of a line at most
_CLIP = 1.25  # times the largest training loss: held-out losses may be far above at first


def made_section(facts: Mapping[str, Any]) -> Html:
    """How many clusters there are, what they tell of attributes, and how the second network was trained.

    Args:
        facts: the report of the cluster step (``pipeline.cluster.REPORT``, ``with_attributes``).
    """
    tables = [made for made in (_clusterings(facts), _fitting(facts)) if made is not None]
    parts = [
        tag("div", *tables, class_="panels wide") if tables else None,
        _attributes(facts),
        _training(facts),
    ]
    if all(part is None for part in parts):
        reason = f"what the cluster step reported is in {NUMBERS}." if facts else "the cluster step reported nothing."
        return section("clusterfit", TITLE, absent(reason))
    return section("clusterfit", TITLE, *parts, note(f"Everything the cluster step reported is in {NUMBERS}."))


def _at(facts: object, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    return facts


def _number(value: object) -> str:
    number = finite(value)
    return NONE if number is None else number_text(number)


def _score(value: object) -> str:
    number = finite(value)
    return NONE if number is None else f"{number:.2f}".replace("-", "−")


def _text(value: object, known: Mapping[str, str]) -> str | None:
    """A word of the report as it is read; None where it is none."""
    if not isinstance(value, (str, int)):
        return None
    return known.get(str(value), short(str(value)))


def _clusterings(facts: Mapping[str, Any]) -> Html | None:
    rows = [
        [name, _number(_at(facts, count)), _score(_at(facts, entropy)), _set_aside(_at(facts, aside))]
        for name, count, entropy, aside in _LEVELS
        if any(_at(facts, path) is not None for path in (count, entropy))
    ]
    if not rows:
        return None
    head = ["Clustering", "Clusters", "Size entropy", "Set aside"]
    return table(head, rows, caption="Size entropy: 1 = all of one size, 0 = all frames in one", text=(0, -1))


def _set_aside(found: object) -> str:
    if not isinstance(found, Mapping):
        return NONE
    told = {str(key).replace("_", " "): finite(found[key]) for key in sorted(found, key=str)}
    return ", ".join(f"{number_text(n)} {short(key)}" for key, n in told.items() if n) or "none"


def _fitting(facts: Mapping[str, Any]) -> Html | None:
    trained, held = (finite(_at(facts, f"training.{key}")) for key in ("trained_on", "held_out"))
    agreement = [finite(_at(facts, f"agreement.{key}")) for key in ("nmi", "ami")]
    rows: list[tuple[str, str | None]] = [
        ("Frames of the hash sample", _known(_at(facts, "frames"))),
        ("Sources they are from", _known(_at(facts, "sources"))),
        ("Frames per prototype", _known(_at(facts, "second.vectors_per_cell"))),
        ("Prototypes joined by", _text(_at(facts, "second.grouping"), {})),
        ("First clusters and prototypes agree: NMI, AMI", _listed(map(_score, agreement), agreement)),
        ("Frames trained on, held out", _listed(map(_number, (trained, held)), (trained, held))),
        ("Steps taken", _steps(_at(facts, "training"))),
        ("Device", _text(_at(facts, "training.device"), {})),
        ("Precision", _text(_at(facts, "training.precision"), _PRECISION)),
    ]
    told: list[list[Child]] = [[name, value] for name, value in rows if value is not None]
    if not told:
        return None
    return table(["What", "Value"], told, caption="How clusters and second network were fitted", text=(0, 1))


def _known(value: object) -> str | None:
    return None if finite(value) is None else _number(value)


def _listed(texts: Any, values: Sequence[object]) -> str | None:
    """Texts side by side; None where no value is known."""
    return None if all(value is None for value in values) else ", ".join(texts)


def _steps(training: object) -> str | None:
    taken, kept = _known(_at(training, "steps")), _known(_at(training, "kept_step"))
    why = _text(_at(training, "stopped_by"), _STOPPED)
    parts = [taken, why, None if kept is None else f"the weights of step {kept} are kept"]
    return "; ".join(part for part in parts if part is not None) or None


def _attributes(facts: Mapping[str, Any]) -> Html | None:
    """A line for each attribute of which something is known."""
    levels = [(name, held) for name, path in _ATTRIBUTES if isinstance(held := _at(facts, path), Mapping) and held]
    names = sorted({str(name) for _, held in levels for name in held})
    told = {name: [found if isinstance(found := _at_name(held, name), Mapping) else {} for _, held in levels]
            for name in names}  # fmt: skip
    known = [name for name in names if any(finite(found.get("purity")) is not None for found in told[name])]
    if not known:
        return None
    known.sort(key=lambda name: (-(finite(told[name][-1].get("ami")) or 0.0), name))
    order = " → ".join(name for name, _ in levels)
    blank = [short(name) for name in names if name not in known]
    more = len(known) - ROWS
    return join(
        tag("h3", "What the clusters tell of attributes"),
        note(
            "Nothing was fitted to these attributes. Purity: share of the frames whose class is the commonest of their "
            "cluster; at least the share of the commonest class, and it grows with the number of clusters. NMI: mutual "
            "information of class and cluster over the mean of their entropies; grows with clusters by chance. AMI: "
            "the same less what random clusters of the same sizes have, 1 = equal, 0 = chance."
        ),
        table(
            ["Attribute", "Known frames", "Classes", "Commonest class", *_SCORES.values()],
            [_attribute_row(name, told[name]) for name in known[:ROWS]],
            caption=f"Each score: {order}. The highest AMI of the {levels[-1][0]} stands first",
        ),
        note(f"{more:,} more are in {NUMBERS}.") if more > 0 else None,
        note(f"Of the sampled frames nothing is known of: {', '.join(blank[:ROWS])}.") if blank else None,
    )


def _at_name(held: Mapping[str, Any], name: str) -> object:
    return next((value for key, value in held.items() if str(key) == name), None)


def _attribute_row(name: str, levels: Sequence[Mapping[str, Any]]) -> list[Child]:
    facts = next(found for found in levels if finite(found.get("purity")) is not None)
    commonest = finite(facts.get("commonest"))
    return [
        words(short(name)),
        _number(facts.get("known")),
        _number(facts.get("classes")),
        NONE if commonest is None else percent(commonest),
        *(" → ".join(_score(found.get(key)) for found in levels) for key in _SCORES),
    ]


def _training(facts: Mapping[str, Any]) -> Html | None:
    """The losses and the accuracy over the steps of the training."""
    curve = _at(facts, "training.curve")
    given = [one for one in curve if isinstance(one, Mapping)] if isinstance(curve, (list, tuple)) else []
    found = {step: one for one in given if (step := finite(one.get("step"))) is not None}
    steps = np.array(sorted(found), np.float64)
    lines = {key: _column([found[step].get(key) for step in steps.tolist()]) for key in _CURVE}
    losses, accuracy = [lines["loss"], lines["held_out_loss"]], lines["held_out_accuracy"]
    if not any(np.isfinite(line).any() for line in lines.values()):
        return None
    ends = (f"step {number_text(steps[0])}", f"step {number_text(steps[-1])}")
    kept = finite(_at(facts, "training.kept_step"))
    y, most = _loss_axis(losses)
    above = f" Losses go up to {number_text(most)}; those above {y.text(y.high)} lie on the upper edge."
    dashed = " Dashed: the step whose weights are kept." if kept is not None else ""
    told = f"{_change('training loss', losses[0])}; {_change('held-out loss', losses[1])}, in nats"
    right = _change("held-out accuracy", accuracy, shares=True)
    unit = Axis(low=0.0, high=1.0, ticks=(0.0, 1.0), decimals=1)
    return join(
        tag("h3", "Training of the second network"),
        note(f"From {ends[0]} to {ends[1]}: {told}; {right}.{dashed}{above if most > y.high else ''}"),
        tag(
            "div",
            tag("div", legend(["training loss", "held-out loss"]), _chart(steps, losses, y, ends, kept, told)),
            tag("div", legend(["held-out accuracy"]), _chart(steps, [accuracy], unit, ends, kept, right)),
            class_="panels wide",
        ),
    )


def _column(values: Sequence[object]) -> Floats:
    """(N,) values; NaN where there is none that a loss or a share could be."""
    numbers = (finite(value) for value in values)
    return np.array([math.nan if number is None or number < 0 else number for number in numbers], np.float64)


def _loss_axis(losses: Sequence[Floats]) -> tuple[Axis, float]:
    """A range from 0 to somewhat above the largest training loss, and the largest loss of all."""
    training, held = (line[np.isfinite(line)].tolist() for line in losses)
    top = _CLIP * max(training) if training and max(training) > 0 else math.inf
    return axis_of([0.0, *(min(value, top) for value in (*training, *held))], (0.0, math.inf), 4), max(
        (*training, *held), default=0.0
    )


def _change(name: str, line: Floats, *, shares: bool = False) -> str:
    known = line[np.isfinite(line)].tolist()
    if not known:
        return f"{name} not measured"
    text = percent if shares else number_text
    return f"{name} {text(known[0])} → {text(known[-1])}"


def _chart(
    steps: Floats, lines: Sequence[Floats], y: Axis, ends: tuple[str, str], kept: float | None, label: str
) -> Html:
    """Lines over the steps, which may be unevenly spaced; NaN breaks a line."""
    gaps = [int(b - a) for a, b in itertools.pairwise(steps.tolist())]
    places = min(_PLACES, int(steps[-1] - steps[0]) // max(1, math.gcd(*gaps))) + 1
    even = np.linspace(steps[0], steps[-1], places)
    drawn = [np.asarray(np.interp(even, steps, line), np.float64) for line in lines]
    width = float(steps[-1] - steps[0])
    inside = kept is not None and width > 0 and steps[0] <= kept <= steps[-1]
    mark = [(kept - float(steps[0])) / width * (places - 1) + 0.5] if inside and kept is not None else []
    return timeline(drawn, y, ends, f"{label}, {ends[0]} to {ends[1]}.", cuts=mark, worst=())
