"""Charts as inline SVG that follow the width and the colours of the page.

Positions along x are shares of the width, so lines stay sharp and text keeps its size on every screen. What a chart
shows always stands beside it as text too, or in its label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.page import Html, join, shortened, tag
from evaluation.resample import Interval
from manifests.text import clean

Floats = NDArray[np.float64]
Kind = Literal["tested", "indicative", "insufficient"]

_APART = 0.35  # least distance of two ticks below a forest plot, as a share of its width
_LABEL = 15  # least distance of two labels, in pixels
_MARK = "stroke:var(--ink);stroke-width:2"
_NAME = "font-size:26px;font-weight:600;stroke-width:7px"
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A range with its ticks.

    Attributes:
        low: first value shown.
        high: last value shown, > low.
        ticks: values that are written, rising.
        decimals: they are written with.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int

    def share(self, value: float) -> float:
        """Where a value lies, 0 at `low` and 1 at `high`; one outside lies on the nearer end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def text(self, tick: float) -> str:
        """A tick as it is written."""
        return f"{tick + 0.0:.{self.decimals}f}".replace("-", "−")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One dot of a scatter plot; `marked` ones bear their name."""

    name: str
    x: float
    y: float
    marked: bool = False


def axis_of(values: Iterable[float | None], span: Interval = (-math.inf, math.inf), ticks: int = 5) -> Axis:
    """A range of round numbers around the values, within the span of what is possible.

    Args:
        values: what must be inside; None and NaN are left out.
        span: least and greatest possible value.
        ticks: about how many.
    """
    known = [value for value in values if value is not None and math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low < 1e-6:
        low, high = low - 0.01, high + 0.01
    step = _step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = next((n for n in range(9) if abs(round(step, n) - step) < 1e-12), 9)
    low, high = (max(span[0], round(first * step, 10)), min(span[1], round(last * step, 10)))
    marks = (round(n * step, 10) for n in range(first, last + 1))
    return Axis(low=low, high=high, ticks=tuple(m for m in marks if low <= m <= high), decimals=decimals)


def hundredfold(axis: Axis) -> Axis:
    """The same range in points: hundredths."""
    ticks = tuple(round(100 * tick, 8) for tick in axis.ticks)
    return Axis(low=100 * axis.low, high=100 * axis.high, ticks=ticks, decimals=max(0, axis.decimals - 2))


def scatter(points: Sequence[Point], x: tuple[str, Axis], y: tuple[str, Axis], *, diagonal: bool = False) -> Html:
    """A dot for each point, names beside the marked ones, and the line x = y where it is wanted.

    Args:
        points: any number.
        x: name and range of the horizontal axis.
        y: of the vertical axis.
        diagonal: whether to draw x = y; both axes must then have one range.
    """
    height = 320
    dots = (
        tag(
            "circle",
            tag("title", f"{shortened(clean(p.name), 80)}: {p.x:.3f}, {p.y:.3f}"),
            cx=_percent(x[1].share(p.x)),
            cy=f"{height * (1 - y[1].share(p.y)):.1f}",
            r="4.5",
            class_="v bad" if p.marked else "v",
        )
        for p in sorted(points, key=lambda p: p.marked)
    )
    named = ", ".join(f"{p.name} ({p.x:.3f}, {p.y:.3f})" for p in points if p.marked)
    line = tag("line", x1="0", y1="100%", x2="100%", y2="0", class_="r") if diagonal else None
    label = f"{len(points)} videos: {y[0]} against {x[0]}." + (f" Named: {named}." if named else "")
    return _plot(
        height, label, _grid_y(y[1], height), _ticks_x(x[1], height), line, *dots, *_names(points, x[1], y[1], height),
        _titles(x[0], y[0]),
    )  # fmt: skip


def curves(series: Sequence[Floats], y: tuple[str, Axis], label: str, x_title: str) -> Html:
    """Lines over the indices 0, 1, … N - 1, with a dot at each; NaN breaks a line.

    Args:
        series: (N,) each, at most 4.
        y: name and range of the vertical axis.
        label: what is shown, for those who do not see it.
        x_title: of the horizontal axis.
    """
    height, length = 240, max(len(values) for values in series)
    width = max(1, length - 1)
    dots = (
        tag(
            "circle",
            cx=_percent(at / width),
            cy=f"{height * (1 - y[1].share(value)):.1f}",
            r="3.5",
            class_=f"b s{number}",
        )
        for number, values in enumerate(series)
        for at, value in enumerate(values.tolist())
        if math.isfinite(value)
    )
    ticks = (
        tag("text", str(at), x=_percent(at / width), y=str(height + 18), text_anchor="middle", class_="t")
        for at in range(length)
    )
    lines = _stretched(_path(values, y[1], number) for number, values in enumerate(series))
    return _plot(height, label, _grid_y(y[1], height), *ticks, lines, *dots, _titles(x_title, y[0]), kind="plot broad")


def timeline(
    series: Sequence[Floats],
    y: Axis,
    ends: tuple[str, str],
    label: str,
    *,
    cuts: Sequence[float],
    worst: Sequence[float],
) -> Html:
    """A low strip of lines over the frames of a video.

    Args:
        series: (T,) each, at most 4; NaN breaks a line. Values below the range lie on its lower edge.
        y: range of the vertical axis.
        ends: what stands below the first and the last frame.
        label: what is shown, for those who do not see it.
        cuts: positions before which the video is cut.
        worst: positions of the worst frames.
    """
    height, length = 84, max(len(values) for values in series)
    width = max(1, length - 1)
    rules = [
        tag("line", x1=_percent(at / width), x2=_percent(at / width), y1="0", y2="100%", class_=kind)
        for kind, places in (("cut", [max(0.0, at - 0.5) for at in cuts]), ("worst", worst))
        for at in places
    ]
    edges = Axis(low=y.low, high=y.high, ticks=(y.low, y.high), decimals=y.decimals)
    lines = _stretched(_path(values, y, number) for number, values in enumerate(series))
    times = (
        tag("text", text, x=at, y=str(height), dy="18", text_anchor=anchor, class_="t")
        for text, at, anchor in zip(ends, ("0", "100%"), ("start", "end"), strict=True)
    )
    return _plot(height, label, _grid_y(edges, height), *rules, lines, *times, kind="plot small")


def strip(
    mean: float, interval: Interval | None, axis: Axis, reference: float | None, kind: Kind, *, bad: bool
) -> Html:
    """One line of a forest plot: the interval, the mean, and a dashed line at what it is compared with.

    A full dot is a tested class, a ring an indicative one, a cross a point without interval. What goes beyond the axis
    ends in an arrow.
    """
    parts: list[Html] = []
    if reference is not None:
        at = _percent(axis.share(reference))
        parts.append(tag("line", x1=at, x2=at, y1="0", y2="100%", class_="r"))
    if interval is not None:
        low, high = (_percent(axis.share(end)) for end in interval)
        parts.append(tag("line", x1=low, x2=high, y1="11", y2="11", class_="c bad" if bad else "c"))
        parts += [
            tag("text", sign, x=_percent(at), y="15", text_anchor="middle", class_="x")
            for sign, at, beyond in (("‹", 0.0, interval[0] < axis.low), ("›", 1.0, interval[1] > axis.high))
            if beyond
        ]
    where = _percent(axis.share(mean))
    if kind == "insufficient":
        parts.append(tag("text", "×", x=where, y="16", text_anchor="middle", class_="x"))
    else:
        shape = "d" if kind == "tested" else "o"
        parts.append(tag("circle", cx=where, cy="11", r="4.5", class_=f"{shape} bad" if bad else shape))
    return tag("svg", *parts, width="100%", height="22", aria_hidden="true")


def scale(axis: Axis) -> Html:
    """The axis below the strips of a forest plot: its first and last tick, and one between."""
    marks = [tag("line", x1="0", x2="100%", y1="0.5", y2="0.5", class_="l")]
    for tick in _sparse(axis):
        at = _percent(axis.share(tick))
        marks.append(tag("line", x1=at, x2=at, y1="0", y2="5", class_="l"))
        marks.append(tag("text", axis.text(tick), x=at, y="18", text_anchor="middle", class_="t"))
    return tag("svg", *marks, width="100%", height="20", aria_hidden="true")


def _sparse(axis: Axis) -> list[float]:
    """The first and the last tick, and the one nearest to their middle if it is far enough from both."""
    ends = [axis.ticks[0], axis.ticks[-1]] if axis.ticks[1:] else list(axis.ticks)
    middle = min(axis.ticks, key=lambda tick: abs(axis.share(tick) - sum(map(axis.share, ends)) / 2), default=None)
    if middle is None or any(abs(axis.share(middle) - axis.share(end)) < _APART for end in ends):
        return ends
    return [*ends, middle]


def bars(shares: Sequence[float | None], top: float, mark: float | None = None) -> Html:
    """Horizontal bars one below the other; none for None.

    Args:
        shares: at most two, >= 0.
        top: the share that fills the width, > 0.
        mark: the share at which a line crosses the bars, or None.
    """
    parts = [
        tag("rect", x="0", y=str(2 + 9 * at), width=_percent(min(1.0, share / top)), height="7", class_=f"b{at}")
        for at, share in enumerate(shares)
        if share is not None
    ]
    if mark is not None:
        at = _percent(min(1.0, mark / top))
        parts.append(tag("line", x1=at, x2=at, y1="0", y2="100%", style=_MARK))
    return tag("svg", *parts, width="100%", height=str(4 + 9 * len(shares)), aria_hidden="true")


def cumulative(series: Sequence[Floats], label: str, titles: tuple[str, str]) -> Html:
    """Lines from (0, 0) to (1, 1) over the diagonal, on which all steps are equal.

    Args:
        series: (N,) each, at most 4, values in [0, 1] at evenly spaced places of the horizontal axis, 0 and 1 included.
        label: what is shown, for those who do not see it.
        titles: of the horizontal and the vertical axis.
    """
    height, unit = 260, Axis(low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0), decimals=2)
    line = tag("line", x1="0", y1="100%", x2="100%", y2="0", class_="r")
    lines = _stretched(_path(values, unit, number) for number, values in enumerate(series))
    return _plot(height, label, _grid_y(unit, height), _ticks_x(unit, height), line, lines, _titles(*titles))


def hue(number: int) -> str:
    """A colour for one of many groups, far from those of the numbers beside it (golden angle)."""
    return f"hsl({number * 137.508 % 360:.0f} 62% 50%)"


def cloud(back: Floats, layers: Sequence[tuple[str, int, Floats]], label: str, named: int = 24) -> Html:
    """Grey points, and over them coloured ones in layers with a name at the middle of each.

    Args:
        back: (N, 2) in [0, 1], the second upwards.
        layers: name, number of its colour, and (N, 2) points of each.
        label: what is shown, for those who do not see it.
        named: how many layers bear their name: the first.
    """
    parts = [_dots(back, "stroke:var(--muted);opacity:.45")]
    parts += [_dots(points, f"stroke:{hue(colour)}") for _, colour, points in layers]
    parts += [_middle(name, points) for name, _, points in layers[:named] if len(points)]
    svg = tag("svg", *parts, width="100%", viewBox="-20 -20 1040 1040", role="img", aria_label=label)
    return tag("div", svg, style="max-width:760px")


def _dots(points: Floats, style: str) -> Html:
    """Dots of one size on every screen: strokes of no length with round ends."""
    places = "".join(f"M{1000 * x:.0f} {1000 * (1 - y):.0f}h0" for x, y in points.tolist())
    shape = f"{style};stroke-width:6px;stroke-linecap:round"
    return tag("path", d=places, vector_effect="non-scaling-stroke", style=shape)


def _middle(name: str, points: Floats) -> Html:
    """A name at the point that is nearest to the median of all."""
    x, y = points[np.square(points - np.median(points, axis=0)).sum(axis=1).argmin()].tolist()
    place = {"x": f"{1000 * x:.0f}", "y": f"{1000 * (1 - y) - 12:.0f}"}
    return tag("text", shortened(clean(name), 24), **place, text_anchor="middle", class_="name", style=_NAME)


def legend(names: Sequence[str], *, worst: bool = False) -> Html:
    """The names of the lines of `curves` and `timeline`, beside samples of them."""
    samples = [(name, f"s{at}") for at, name in enumerate(names)] + ([("worst frames", "worst")] if worst else [])
    return tag("ul", *(_entry(_sample(kind), name) for name, kind in samples), class_="legend")


def colours(names: Iterable[tuple[str, tuple[int, int, int]]]) -> Html:
    """What the colours of a picture mean; each colour is 8-bit RGB."""
    entries = (
        _entry(tag("span", class_="swatch", style=f"background:#{r:02x}{g:02x}{b:02x}"), name)
        for name, (r, g, b) in names
    )
    return tag("ul", *entries, class_="legend")


def bar_legend(names: Sequence[str]) -> Html:
    """The names of the bars, beside samples of them."""
    entries = (
        _entry(
            tag(
                "svg",
                tag("rect", x="0", y="2", width="26", height="8", class_=f"b{at}"),
                width="26",
                height="12",
                aria_hidden="true",
            ),
            name,
        )
        for at, name in enumerate(names)
    )
    return tag("ul", *entries, class_="legend")


def thinned(values: Floats, length: int) -> Floats:
    """At most `length` values, each the least of its stretch, so that no dip is lost; NaN where all are."""
    if len(values) <= length:
        return values
    stretches = np.array_split(np.where(np.isnan(values), np.inf, values), length)
    least = np.array([stretch.min() for stretch in stretches])
    return np.where(np.isinf(least), np.nan, least)


def _step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * step for step in _STEPS if power * step >= rough * (1 - 1e-9))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _plot(height: int, label: str, *parts: Html | None, kind: str = "plot") -> Html:
    svg = tag("svg", *parts, width="100%", height=str(height), role="img", aria_label=label)
    return tag("div", svg, class_=kind)


def _titles(x: str, y: str) -> Html:
    across = tag("text", x, x="100%", y="100%", dy="36", text_anchor="end")
    return join(across, tag("text", y, x="-44", y="-14"))


def _grid_y(axis: Axis, height: int) -> Html:
    parts: list[Html] = []
    for tick in axis.ticks:
        at = f"{height * (1 - axis.share(tick)):.1f}"
        parts.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_="g"))
        parts.append(tag("text", axis.text(tick), x="-7", y=at, dy="4", text_anchor="end", class_="t"))
    return join(*parts)


def _ticks_x(axis: Axis, height: int) -> Html:
    parts: list[Html] = []
    for tick in axis.ticks:
        at = _percent(axis.share(tick))
        parts.append(tag("line", x1=at, x2=at, y1="0", y2="100%", class_="g"))
        parts.append(tag("text", axis.text(tick), x=at, y=str(height), dy="18", text_anchor="middle", class_="t"))
    return join(*parts)


def _stretched(paths: Iterable[Html]) -> Html:
    """Paths in units of a thousandth of the width and of the height."""
    return tag("svg", *paths, width="100%", height="100%", viewBox="0 0 1000 1000", preserveAspectRatio="none")


def _path(values: Floats, axis: Axis, number: int) -> Html:
    width = max(1, len(values) - 1)
    steps: list[str] = []
    pen = False
    for at, value in enumerate(values.tolist()):
        if math.isfinite(value):
            place = f"{1000 * at / width:.0f} {1000 * (1 - axis.share(value)):.0f}"
            steps.append(f"L{place}" if pen else f"M{place}h0")
        pen = math.isfinite(value)
    return tag("path", d="".join(steps), vector_effect="non-scaling-stroke", class_=f"s{number}")


def _names(points: Sequence[Point], x: Axis, y: Axis, height: int) -> Iterator[Html]:
    """Names of the marked points, moved apart, each joined to its dot by a thin line."""
    marked = sorted((p for p in points if p.marked), key=lambda p: -y.share(p.y))
    heights = _apart([height * (1 - y.share(p.y)) for p in marked], height)
    for point, at in zip(marked, heights, strict=True):
        share, dot = x.share(point.x), height * (1 - y.share(point.y))
        left = share > 0.5
        side, anchor = (-14, "end") if left else (14, "start")
        parts = (
            tag("path", d=f"M0 0L{side} {at - dot:.1f}", class_="l"),
            tag(
                "text",
                shortened(clean(point.name), 26),
                x=str(side),
                y=f"{at - dot:.1f}",
                dy="4",
                text_anchor=anchor,
                class_="name",
            ),
        )
        yield tag("svg", *parts, x=_percent(share), y=f"{dot:.1f}")


def _apart(heights: Sequence[float], height: float) -> list[float]:
    """Rising heights moved so that neighbours are at least a line apart and the last is inside, if they fit."""
    out: list[float] = []
    for at in heights:
        out.append(max(at, out[-1] + _LABEL) if out else at)
    limit = height
    for number in range(len(out) - 1, -1, -1):
        out[number] = min(out[number], limit)
        limit = out[number] - _LABEL
    return out


def _entry(sample: Html, name: str) -> Html:
    return tag("li", sample, name)


def _sample(kind: str) -> Html:
    line = tag("line", x1="0", x2="30", y1="6", y2="6", class_=kind)
    return tag("svg", line, width="30", height="12", aria_hidden="true")
