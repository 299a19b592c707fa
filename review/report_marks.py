"""Small drawings of the report, coloured by class alone: its policy admits no style attribute.

A drawing says nothing that does not stand beside it in text too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.measures import NONE
from evaluation.page import Child, Html, chip, join, shortened, tag, words

KINDS = ("kept", "held", "dropped")
"""What a row of a release is, in the order of its drawings."""

_NAME = 60  # characters of a name at most
_HEIGHT = 100

STYLE = """
.wall{border-left:4px solid var(--mark);background:var(--panel);padding:8px 14px;margin:14px 0}
.wall p{margin:3px 0}
.k-kept{fill:var(--s0)}.k-held{fill:var(--s3)}.k-dropped{fill:var(--mark)}.k-gone{fill:var(--line)}
.k-human{fill:var(--s2)}.k-source{fill:var(--s0)}.k-model{fill:var(--s3)}.k-unknown{fill:var(--line)}
.k-goal{fill:var(--muted)}
svg path.fill{stroke:none}svg path.k-kept{fill:var(--s0)}svg path.k-held{fill:var(--s3)}
svg path.k-dropped{fill:var(--mark)}
.bar{margin:8px 0}
.bar svg{border-radius:4px;overflow:hidden}
.strip{min-width:180px;padding:0 16px 0 8px}
.track{min-width:110px}
.track .bar{margin:3px 0}
.hist{padding:4px 0 0}
.hist svg{border-bottom:1px solid var(--line)}
.ends{display:flex;justify-content:space-between;color:var(--muted);font-size:12px}
.id{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12.5px;overflow-wrap:anywhere}
.facts th,.facts td{overflow-wrap:anywhere}
.facts td{max-width:90ch}
dd.name{font-size:17px;overflow-wrap:anywhere}
td>.chip:first-child,th>.chip:first-child{margin-left:0}
"""
"""Rules of these drawings, beside those of the house."""


def percent(share: float) -> str:
    """A share as it is written: 100.0 % only where nothing is missing, 0.0 % only where there is nothing."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def part_of(part: int, whole: int) -> str:
    """A count as a share of a whole."""
    return percent(part / whole) if whole else NONE


def name_of(name: object) -> Html:
    """A name of any length and content, fit for a line."""
    return words(shortened(str(name), _NAME))


def value_of(value: object) -> Html:
    """A value of an attribute; null is unknown."""
    return tag("em", "unknown") if value is None or value == "unknown" else name_of(value)


def number(value: object, places: int = 3) -> str:
    """A number, or that there is none."""
    return NONE if value is None else f"{float(str(value)):.{places}f}"


def interval(rate: float, ends: Sequence[float]) -> str:
    """A rate with its interval, in one line."""
    return f"{100 * rate:.1f} % ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"


def tile(name: str, value: Child, *below: Child) -> Html:
    """One of the ``dl.tiles`` of a page."""
    return tag("div", tag("dt", name), tag("dd", value, *(tag("small", line) for line in below)))


def state_chip(state: str) -> Html:
    """What came of a check."""
    kinds = {"pass": "good", "good": "good", "signed": "good", "fail": "bad", "problems": "bad", "broken": "bad"}
    return chip(state, kinds.get(state, ""))


def share_bar(parts: Mapping[str, int], *, height: int = 22, told: str = "") -> Html:
    """All of a whole as one bar; what has none has no piece.

    Args:
        parts: kind (a colour of ``STYLE``) -> count, in the order of the bar.
        height: in pixels.
        told: what is shown, for those who do not see it; empty where the text beside it says it.
    """
    whole = sum(parts.values()) or 1
    pieces, left = [], 0
    for kind, count in parts.items():
        if count:
            title = tag("title", f"{kind}: {count:,}")
            place = {"x": f"{100 * left / whole:.3f}%", "width": f"{100 * count / whole:.3f}%"}
            pieces.append(tag("rect", title, y="0", height=str(height), class_=f"k-{kind}", **place))
        left += count
    label = {"role": "img", "aria_label": told} if told else {"aria_hidden": "true"}
    return tag("div", tag("svg", *pieces, width="100%", height=str(height), **label), class_="bar")


def key_of(kinds: Mapping[str, str]) -> Html:
    """What the colours mean: kind -> text."""
    return tag(
        "ul",
        *(
            tag(
                "li",
                tag(
                    "svg",
                    tag("rect", x="0", y="0", width="14", height="14", class_=f"k-{kind}"),
                    width="14",
                    height="14",
                    aria_hidden="true",
                ),
                text,
            )
            for kind, text in kinds.items()
        ),
        class_="legend",
    )


def histogram(body: Mapping[str, Any], kinds: Mapping[str, str], told: str) -> Html:
    """Bars that stand on each other, one series above the other.

    Args:
        body: edges, (B + 1,) rising, and series, each of a value and B counts.
        kinds: value of a series -> its colour.
        told: what is shown, for those who do not see it.
    """
    bins = len(body["edges"]) - 1
    base = [0] * bins
    stack = []
    for series in body["series"]:
        top = [below + count for below, count in zip(base, series["counts"], strict=True)]
        stack.append((kinds.get(str(series["value"]), "gone"), base, top))
        base = top
    most = max([*base, 1])
    paths = (
        tag("path", d="".join(_bars(low, high, most)), class_=f"fill k-{kind}")
        for kind, low, high in stack
        if any(high)
    )
    attributes = {"viewBox": f"0 0 {10 * bins} {_HEIGHT}", "preserveAspectRatio": "none"}
    drawn = tag("svg", *paths, width="100%", height=str(_HEIGHT), role="img", aria_label=told, **attributes)
    ends = tag("div", tag("span", _edge(body["edges"][0])), tag("span", _edge(body["edges"][-1])), class_="ends")
    return tag("div", drawn, ends, class_="hist")


def _bars(low: Sequence[int], high: Sequence[int], most: int) -> list[str]:
    return [
        f"M{10 * at} {_level(below, most)}V{_level(above, most)}h9V{_level(below, most)}z"
        for at, (below, above) in enumerate(zip(low, high, strict=True))
        if above > below
    ]


def _level(count: int, most: int) -> str:
    return f"{_HEIGHT * (1 - count / most):.1f}".rstrip("0").rstrip(".")


def _edge(value: float) -> str:
    return f"{value:.3g}"


def listed(texts: Sequence[Child], most: int) -> Html:
    """Some of many, and how many more there are."""
    more = len(texts) - most
    shown = [join(", " if at else None, text) for at, text in enumerate(texts[:most])]
    return join(*shown, f" and {more:,} more" if more > 0 else None)
