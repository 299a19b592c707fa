"""Laws of the list of labels to draw first: best first, and no source that fills it."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.next_labels import Candidates, label_first


def draw_candidates(seed: int, count: int, sources: int, steps: int = 5) -> Candidates:
    """Random labels on a coarse grid of q and distance, so that many gains are equal."""
    rng = np.random.default_rng(seed)
    q, distance = (rng.integers(0, steps + 1, count) / steps for _ in range(2))
    return Candidates(q=q, distance=distance, source=rng.integers(0, sources, count))


def candidates(q: Sequence[float], *, source: Sequence[int] | None = None, distance: float = 1.0) -> Candidates:
    return Candidates(
        q=np.array(q, np.float64),
        distance=np.full(len(q), distance),
        source=np.arange(len(q)) if source is None else np.array(source, np.int64),
    )


DRAWN = st.builds(draw_candidates, st.integers(0, 9999), st.integers(0, 60), st.integers(1, 12), st.integers(1, 9))
LABELS = st.integers(1, 80)


# The gains ------------------------------------------------------------------------------------------------------------


@given(DRAWN, LABELS)
def test_each_gain_is_q_times_distance_and_never_rises_along_the_list(drawn: Candidates, labels: int) -> None:
    first = label_first(drawn, labels)
    np.testing.assert_array_equal(first.gain, (drawn.q * drawn.distance)[first.rows])
    assert (np.diff(first.gain) <= 0).all()


@given(DRAWN, LABELS)
def test_a_list_holds_as_many_different_labels_as_were_asked_for_or_all(drawn: Candidates, labels: int) -> None:
    rows = label_first(drawn, labels).rows
    assert len(rows) == len(set(rows.tolist())) == min(labels, len(drawn.q))


@given(DRAWN, LABELS)
def test_where_no_source_is_large_the_list_is_that_of_the_largest_gains(drawn: Candidates, labels: int) -> None:
    """Equal gains go by row."""
    assume(labels >= 3)
    spread = Candidates(q=drawn.q, distance=drawn.distance, source=np.arange(len(drawn.q)))
    gain = (drawn.q * drawn.distance).tolist()
    expected = sorted(range(len(gain)), key=lambda i: (-gain[i], i))[:labels]
    assert label_first(spread, labels).rows.tolist() == expected


@given(DRAWN, LABELS, st.integers(0, 99))
def test_equal_labels_in_another_order_have_equal_gains(drawn: Candidates, labels: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(drawn.q))
    spread = np.arange(len(drawn.q))
    one = Candidates(q=drawn.q, distance=drawn.distance, source=spread)
    other = Candidates(q=drawn.q[order], distance=drawn.distance[order], source=spread[order])
    np.testing.assert_array_equal(label_first(one, labels).gain, label_first(other, labels).gain)


# Sources --------------------------------------------------------------------------------------------------------------


@given(DRAWN, LABELS)
def test_no_source_has_more_than_a_third_as_long_as_others_are_left(drawn: Candidates, labels: int) -> None:
    rows = label_first(drawn, labels).rows
    cap = max(1, min(labels, len(drawn.q)) // 3)
    held = Counter(drawn.source[rows].tolist())
    if max(held.values(), default=0) > cap:
        rest = set(range(len(drawn.q))) - set(rows.tolist())
        assert all(held[int(drawn.source[i])] >= cap for i in rest)


def test_a_rich_source_gives_a_third_and_the_rest_only_where_no_other_is_left() -> None:
    drawn = candidates([0.9] * 20 + [0.1] * 4, source=[0] * 20 + [1, 2, 3, 4])
    sources = drawn.source[label_first(drawn, 6).rows].tolist()
    assert sources == [0, 0, 1, 2, 3, 4]
    assert Counter(drawn.source[label_first(drawn, 12).rows].tolist()) == {0: 8, 1: 1, 2: 1, 3: 1, 4: 1}


# What is no list ------------------------------------------------------------------------------------------------------


def test_of_no_labels_there_is_an_empty_list() -> None:
    first = label_first(candidates([]), 5)
    assert len(first.rows) == len(first.gain) == 0


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be >= 1, got 0"):
        label_first(candidates([0.5]), 0)
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\]"):
        candidates([math.nan])
    with pytest.raises(ValueError, match=r"distance must be in \[0, 1\]"):
        candidates([0.5], distance=1.5)
    with pytest.raises(ValueError, match=r"must have one shape \(N,\)"):
        Candidates(q=np.zeros(2), distance=np.zeros(2), source=np.zeros(1, np.int64))
