"""Laws of silhouettes: drawn people have the coverage, the number and the cuts that they were drawn with."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.silhouette import (
    COVERAGES,
    body_coverage,
    face_window,
    head_depth,
    largest,
    num_people,
    truncation,
)

Mask = NDArray[np.bool_]


def draw_person(height: int, width: int, top: float, head: float, middle: float | None = None) -> Mask:
    """A standing person 7.5 heads high, upright; `head` is the height of the head. The frame cuts what is outside."""
    canvas = np.zeros((height, width), np.uint8)
    x = width / 2 if middle is None else middle
    radii = round(0.37 * head), round(0.5 * head)
    cv2.ellipse(canvas, (round(x), round(top + 0.5 * head)), radii, 0, 0, 360, 1, -1)
    for half, start, stop in ((0.18, 0.8, 1.3), (0.95, 1.25, 3.6), (0.55, 3.0, 4.4), (0.45, 4.0, 7.5)):
        first, last = (
            (round(x - half * head), round(top + start * head)),
            (round(x + half * head), round(top + stop * head)),
        )
        cv2.rectangle(canvas, first, last, 1, -1)
    return np.asarray(canvas, np.bool_)


def coverage(mask: Mask) -> str | None:
    return body_coverage(largest(mask), head_depth(largest(mask)), truncation(mask)[0])[0]


@pytest.mark.parametrize(
    ("head", "expected"),
    [(24, "full_body"), (18, "full_body"), (55, "half_body"), (48, "half_body"), (90, "head_shoulders")],
)
def test_a_person_is_covered_as_far_as_the_frame_goes(head: int, expected: str) -> None:
    assert coverage(draw_person(200, 260, 5, head)) == expected


def test_coverage_grows_as_a_person_walks_away() -> None:
    found = [coverage(draw_person(200, 400, 4, head)) for head in range(180, 20, -8)]
    order = [COVERAGES.index(name) for name in found if name]
    assert order == sorted(order)
    assert order[0] < order[-1]


@given(st.integers(12, 120), st.integers(0, 40), st.integers(60, 200))
def test_a_mirrored_silhouette_has_the_same_classes(head: int, top: int, middle: int) -> None:
    mask = draw_person(200, 260, top, head, middle)
    mirrored = np.ascontiguousarray(mask[:, ::-1])
    assert coverage(mask) == coverage(mirrored)
    assert truncation(mask)[1] == truncation(mirrored)[1]
    assert num_people(mask, None) == num_people(mirrored, None)
    depth = head_depth(mask)
    assert depth == head_depth(mirrored)
    if depth is not None:
        top_, bottom, left, right = face_window(mask, depth)
        assert face_window(mirrored, depth) == pytest.approx((top_, bottom, 260 - right, 260 - left))


def test_a_face_lies_within_its_head() -> None:
    mask = draw_person(300, 200, 20, 60)
    depth = head_depth(mask)
    assert depth is not None
    top, bottom, left, right = face_window(mask, depth)
    assert 20 < top < bottom <= 82
    assert 100 - 25 < left < right < 100 + 25


def test_a_group_or_one_who_lies_has_no_head() -> None:
    lying = np.zeros((100, 200), np.bool_)
    lying[40:70, 20:180] = True
    assert head_depth(lying) is None
    assert body_coverage(lying, None, frozenset()) == (None, None)


# Cuts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((10, 90), (10, 90), "none"),
        ((10, 100), (10, 90), "bottom"),
        ((0, 90), (10, 90), "top"),
        ((10, 90), (0, 50), "side"),
        ((10, 90), (50, 100), "side"),
        ((10, 90), (0, 100), "several"),
        ((10, 100), (0, 50), "several"),
        ((0, 100), (0, 100), "several"),
    ],
)
def test_a_cut_is_named_by_its_border(rows: tuple[int, int], columns: tuple[int, int], expected: str) -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[slice(*rows), slice(*columns)] = True
    cut, (name, confidence) = truncation(mask)
    assert name == expected
    assert confidence is not None
    assert 0.5 <= confidence <= 1
    assert (not cut) == (expected == "none")


# People ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        ([0.9], "one"),
        ([0.3], "one"),
        ([0.9, 0.2], "one"),
        ([0.9, 0.8], "two"),
        ([0.9, 0.8, 0.75], "three_plus"),
        ([0.9] * 9, "three_plus"),
    ],
)
def test_instances_count_people(scores: list[float], name: str) -> None:
    mask = np.ones((10, 10), np.bool_)
    assert num_people(mask, scores)[0] == name


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_count_is_as_sure_as_its_least_sure_decision(scores: list[float]) -> None:
    _, confidence = num_people(np.ones((4, 4), np.bool_), scores)
    assert confidence is not None
    assert 0 <= confidence <= 1
    assert confidence <= max(scores)


def test_components_count_people_and_hands_do_not() -> None:
    mask = np.zeros((100, 300), np.bool_)
    mask[20:80, 20:50] = True
    names = [num_people(mask, None)[0]]
    mask[20:30, 70:80] = True
    names.append(num_people(mask, ())[0])
    for left in (100, 200):
        mask[20:80, left : left + 30] = True
        names.append(num_people(mask, None)[0])
    assert names == ["one", "one", "two", "three_plus"]


def test_the_largest_component_of_nothing_is_nothing() -> None:
    assert not largest(np.zeros((5, 5), np.bool_)).any()
    assert head_depth(np.zeros((5, 5), np.bool_)) is None
