"""Textbook intervals against published values and their defining equations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from evaluation.classical import beta_interval, wilson_interval

COUNTS = st.integers(1, 2000).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole)))


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_has_the_values_of_newcombe_1998(part: int, whole: int, low: float, high: float) -> None:
    assert wilson_interval(part, whole, 0.95) == pytest.approx((low, high), abs=6e-5)


@given(COUNTS, st.sampled_from([0.5, 0.9, 0.95]))
def test_the_score_test_is_just_significant_at_the_ends_of_a_wilson_interval(
    counts: tuple[int, int], level: float
) -> None:
    part, whole = counts
    share, z = part / whole, special.ndtri(0.5 + level / 2)
    low, high = wilson_interval(part, whole, level)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / whole), rel=1e-6)


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, 0, 0.9) == (0, 1)


@given(st.floats(0.1, 500), st.floats(0.1, 500), st.sampled_from([0.5, 0.9, 0.95]))
def test_a_beta_interval_leaves_half_of_the_rest_on_each_side(a: float, b: float, level: float) -> None:
    low, high = beta_interval(a, b, level)
    assert low <= high
    assert special.betainc(a, b, low) == pytest.approx((1 - level) / 2, abs=1e-6)
    assert special.betainc(a, b, high) == pytest.approx((1 + level) / 2, abs=1e-6)
