"""Charts: what they show lies where it belongs, and nothing in them is lost or becomes markup."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.charts import (
    Axis,
    Point,
    axis_of,
    bars,
    cloud,
    cumulative,
    curves,
    hue,
    hundredfold,
    legend,
    scale,
    scatter,
    strip,
    thinned,
    timeline,
)
from evaluation.page import Html

UNIT = Axis(low=0.0, high=1.0, ticks=(0.0, 0.5, 1.0), decimals=1)
numbers = st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-3)


def _parsed(chart: Html) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_an_axis_holds_its_values_and_its_ticks(values: list[float]) -> None:
    axis = axis_of(values)
    assert axis.low < axis.high
    assert axis.low <= min(values) + 1e-6
    assert max(values) - 1e-6 <= axis.high
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_axis_stays_within_what_is_possible(values: list[float]) -> None:
    axis = axis_of(values, (0.0, 1.0))
    assert 0 <= axis.low < axis.high <= 1


def test_an_axis_without_values_is_the_unit() -> None:
    assert axis_of([None, math.nan]).ticks[0] == 0.0


def test_the_first_round_number_is_a_tick() -> None:
    assert axis_of([0.604, 0.93], (0.0, 1.0)).ticks == (0.6, 0.7, 0.8, 0.9, 1.0)


def test_ticks_are_written_as_far_as_they_differ() -> None:
    axis = axis_of([0.9501, 0.9532])
    assert len({axis.text(tick) for tick in axis.ticks}) == len(axis.ticks)
    assert axis_of([-0.2, 0.1]).text(-0.2).startswith("−")


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=400), st.integers(1, 100))
def test_thinning_keeps_the_least_value_and_the_length(values: list[float], length: int) -> None:
    array = np.array(values)
    out = thinned(array, length)
    assert len(out) == min(len(values), length)
    if np.isfinite(array).any():
        assert np.nanmin(out) == np.nanmin(array)
    else:
        assert np.isnan(out).all()


def test_every_point_is_a_dot_and_the_marked_are_named() -> None:
    points = [Point(name=f"v{at}", x=at / 10, y=at / 20, marked=at < 3) for at in range(10)]
    root = _parsed(scatter(points, ("x", UNIT), ("y", UNIT), diagonal=True))
    dots = root.findall(".//circle")
    assert len(dots) == 10
    assert {text.text for text in root.findall(".//text[@class='name']")} == {"v0", "v1", "v2"}
    assert sorted(float(dot.get("cx", "").rstrip("%")) for dot in dots) == [at * 10 for at in range(10)]
    assert "v2 (0.200, 0.100)" in (root.find(".//svg") or root).get("aria-label", "")


def test_names_of_near_points_do_not_overlap() -> None:
    points = [Point(name=f"v{at}", x=0.5, y=0.001 * at, marked=True) for at in range(6)]
    root = _parsed(scatter(points, ("x", UNIT), ("y", UNIT)))
    groups = [svg for svg in root.findall(".//svg") if svg.find("text[@class='name']") is not None]
    heights = sorted(
        float(svg.get("y", "0")) + float(text.get("y", "0")) for svg in groups for text in svg.findall("text")
    )
    assert min(np.diff(heights)) >= 14


def test_a_chart_escapes_names() -> None:
    chart = scatter([Point(name="<script>x</script>\"'&", x=0.5, y=0.5, marked=True)], ("<b>", UNIT), ("y", UNIT))
    assert "<script" not in chart
    assert "<b>" not in chart
    _parsed(chart)


def test_a_missing_value_breaks_a_line_and_a_lone_one_is_drawn() -> None:
    values = np.array([0.1, 0.2, math.nan, 0.3, math.nan, 0.4, 0.5])
    path = _parsed(curves([values], ("y", UNIT), "label", "x")).find(".//path")
    assert path is not None
    assert path.get("d", "").count("M") == 3
    assert "h0" in path.get("d", "")


def test_a_timeline_marks_cuts_and_worst_frames() -> None:
    root = _parsed(timeline([np.full(11, 0.5)], UNIT, ("first", "last"), "label", cuts=[5], worst=[0, 10]))
    lines = {kind: [e.get("x1") for e in root.findall(f".//line[@class='{kind}']")] for kind in ("cut", "worst")}
    assert lines == {"cut": ["45%"], "worst": ["0%", "100%"]}
    assert {"first", "last", "0.0", "1.0"} == {text.text for text in root.findall(".//text")}


@pytest.mark.parametrize(("kind", "shape"), [("tested", "d"), ("indicative", "o"), ("insufficient", None)])
def test_the_mark_says_how_far_the_group_carries(kind: str, shape: str | None) -> None:
    root = _parsed(strip(0.4, (0.2, 0.6), UNIT, 0.5, kind, bad=False))  # type: ignore[arg-type]
    circle = root.find("circle")
    assert (None if circle is None else circle.get("class")) == shape
    interval = root.find("line[@class='c']")
    assert interval is not None
    assert (interval.get("x1"), interval.get("x2")) == ("20%", "60%")


def test_an_interval_beyond_the_axis_ends_in_an_arrow() -> None:
    texts = [t.text for t in _parsed(strip(0.5, (-1.0, 2.0), UNIT, None, "tested", bad=True)).findall("text")]
    assert texts == ["‹", "›"]


def test_ticks_of_a_forest_plot_have_room() -> None:
    places = [float(t.get("x", "").rstrip("%")) for t in _parsed(scale(axis_of([0.8, 0.97]))).findall("text")]
    assert min(np.diff(sorted(places))) >= 35


def test_points_are_hundredths_in_the_same_places() -> None:
    axis = axis_of([-0.013, 0.03])
    points = hundredfold(axis)
    assert [points.text(tick) for tick in points.ticks] == ["−2", "−1", "0", "1", "2", "3"]
    assert [points.share(t) for t in points.ticks] == pytest.approx([axis.share(t) for t in axis.ticks])


def test_bars_are_shares_of_the_longest() -> None:
    widths = [rect.get("width") for rect in _parsed(bars([0.25, 0.5], 0.5)).findall("rect")]
    assert widths == ["50%", "100%"]
    assert len(_parsed(bars([None, 0.5], 0.5)).findall("rect")) == 1


def test_a_mark_crosses_the_bars_at_its_share() -> None:
    line = _parsed(bars([0.25, 0.5], 0.5, 0.125)).find("line")
    assert line is not None
    assert (line.get("x1"), line.get("x2")) == ("25%", "25%")
    assert _parsed(bars([0.25, 0.5], 0.5)).find("line") is None


def test_a_cumulative_line_of_equal_steps_is_the_diagonal() -> None:
    root = _parsed(cumulative([np.linspace(0, 1, 5)], "label", ("x", "y")))
    path, line = root.find(".//path"), root.find(".//line[@class='r']")
    assert path is not None
    assert path.get("d") == "M0 1000h0L250 750L500 500L750 250L1000 0"
    assert line is not None
    assert [line.get(key) for key in ("x1", "y1", "x2", "y2")] == ["0", "100%", "100%", "0"]


def test_a_cloud_shows_every_point_and_names_the_first_layers() -> None:
    rng = np.random.default_rng(0)
    layers = [(f"<g{at}>", at, rng.random((at, 2))) for at in range(4)]
    text = cloud(rng.random((7, 2)), layers, "label", named=2)
    root = _parsed(text)
    assert [path.get("d", "").count("M") for path in root.findall(".//path")] == [7, 0, 1, 2, 3]
    assert [name.text for name in root.findall(".//text")] == ["<g1>"]
    assert "<g1>" not in text


def test_the_second_coordinate_of_a_cloud_points_upwards() -> None:
    path = _parsed(cloud(np.array([[0.25, 1.0]]), [], "label")).find(".//path")
    assert path is not None
    assert path.get("d") == "M250 0h0"


def test_neighbouring_hues_are_far_apart() -> None:
    angles = [float(re.findall(r"[\d.]+", hue(at))[0]) for at in range(40)]
    gaps = np.abs(np.diff(angles))
    assert min(np.minimum(gaps, 360 - gaps)) > 100
    assert len(set(angles)) == 40


def test_a_legend_tells_lines_apart_without_colour() -> None:
    kinds = re.findall(r'class="(s\d)"', legend(["a", "b", "c", "d"]))
    assert kinds == ["s0", "s1", "s2", "s3"]
