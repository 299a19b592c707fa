"""Forest plots of classes, and what may be said of a class.

A class is marked as different only where the family-wise test says so, and as similar only where the equivalence test
does; everything else is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.charts import Axis, Kind, axis_of, hundredfold, scale, strip
from evaluation.estimates import Settings
from evaluation.fairness import Row
from evaluation.measures import NONE, Measure, measure_of
from evaluation.page import Html, chip, tag, words
from evaluation.versus import Change

FLAGS = {"sufficient": "tested", "indicative": "indicative", "insufficient": "insufficient", "empty": "no video"}
"""How the flags of a class are written."""
_KINDS: dict[str, Kind] = {"sufficient": "tested", "indicative": "indicative", "insufficient": "insufficient"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What a test is judged by.

    Attributes:
        alpha: family-wise level of the tests.
        margin: largest gap that counts as similar.
    """

    alpha: float
    margin: float

    @property
    def confidence(self) -> str:
        """Of the intervals, as it is written."""
        return f"{100 * (1 - self.alpha):.4g} %"


def level_of(settings: Settings) -> Level:
    """The level and the margin of an audit or a comparison."""
    return Level(alpha=1 - settings.confidence, margin=settings.margin)


def difference(row: Row | Change) -> float | None:
    """What was tested: the gap of a class to the others, or its change between two models."""
    return row.gap if isinstance(row, Row) else row.change


def differs(row: Row | Change, level: Level) -> bool:
    """Whether the family-wise test finds a difference."""
    return row.p_adjusted is not None and row.p_adjusted <= level.alpha


def verdict(row: Row | Change, level: Level) -> Html:
    """What the two tests say of a class, or why there was no test."""
    measure, found = measure_of(row.metric), differs(row, level)
    margin = measure.gap(level.margin, signed=False)
    if row.p_adjusted is None and row.equivalent is None:
        return tag("span", row.reason or "not tested", class_="why")
    if found and row.equivalent:
        return chip(f"differs, within ±{margin}")
    if found:
        return _direction(difference(row) or 0.0, measure)
    if row.equivalent:
        return chip(f"similar, within ±{margin}", "good")
    return chip("undecided")


def _direction(value: float, measure: Measure) -> Html:
    if measure.better not in ("higher", "lower"):
        return chip("differs", "bad")
    return chip("better", "good") if (value > 0) == (measure.better == "higher") else chip("worse", "bad")


def forest_axis(rows: Sequence[Row | Change]) -> Axis:
    """A range for the forest plots of one metric: every mean, and the intervals of the classes that are tested."""
    ends = [end for row in rows if row.flag == "sufficient" for end in row.interval or ()]
    span = measure_of(rows[0].metric).span
    if isinstance(rows[0], Change):
        ends, span = [*ends, 0.0], (span[0] - span[1], span[1] - span[0])
    return axis_of([*map(value_of, rows), *ends], span, ticks=4)


def value_of(row: Row | Change) -> float | None:
    """What a forest plot shows: the mean of a class, or its change between two models."""
    return row.mean if isinstance(row, Row) else row.change


def forest_panel(rows: Sequence[Row | Change], axis: Axis, reference: float | None, level: Level, title: str) -> Html:
    """A forest plot of one category in one metric: a line for each class with its sizes, interval and verdict.

    Args:
        rows: of one metric and category, at least one.
        axis: of the metric.
        reference: where the dashed line stands.
        level: of the tests.
        title: what the panel is headed with.
    """
    measure = measure_of(rows[0].metric)
    body = [_forest_row(row, axis, reference, level) for row in rows]
    written = hundredfold(axis) if isinstance(rows[0], Change) and measure.in_points else axis
    foot = tag("tr", tag("td"), tag("td", scale(written)), tag("td"))
    names = (words(title), None, f"Change, {measure.unit}" if isinstance(rows[0], Change) else "Mean")
    head = tag("tr", *(tag("th", text, scope="col") for text in names))
    inner = tag("table", tag("thead", head), tag("tbody", *body), tag("tfoot", foot))
    return tag("section", inner, class_="forest", aria_label=f"{measure.label}: {rows[0].category}")


def _forest_row(row: Row | Change, axis: Axis, reference: float | None, level: Level) -> Html:
    measure, value = measure_of(row.metric), value_of(row)
    size = f"{row.subjects} subj · {row.videos} vid · {FLAGS[row.flag]}"
    head = tag("th", words(row.group), tag("span", size, class_="meta"), scope="row")
    if value is None:
        return tag("tr", head, tag("td"), tag("td", NONE))
    plot = strip(value, row.interval, axis, reference, _KINDS[row.flag], bad=differs(row, level))
    if isinstance(row, Row):
        text, interval = measure.score(value), measure.score_interval(row.interval)
    else:
        text, interval = measure.gap(value), measure.gap_interval(row.interval)
    below = tag("span", interval, class_="meta") if row.interval else None
    return tag("tr", head, tag("td", plot), tag("td", text, below, _mark(row, level)))


def _mark(row: Row | Change, level: Level) -> Html | None:
    """The verdict in a word; nothing where it is open."""
    if differs(row, level):
        return _direction(difference(row) or 0.0, measure_of(row.metric))
    return chip("similar", "good") if row.equivalent else None
