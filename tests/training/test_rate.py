"""Laws of the learning rate: up in a line, down in half a cosine, never outside of [floor, 1] times the peak."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rate import warm_cosine


@st.composite
def courses(draw: st.DrawFn) -> tuple[int, int]:
    """Steps in all, and of the warm-up; either may be the longer."""
    return draw(st.integers(1, 3000)), draw(st.integers(0, 3000))


@given(courses(), st.floats(1e-6, 10), st.floats(0, 1), st.data())
def test_the_rate_is_above_zero_rises_then_falls(
    course: tuple[int, int], peak: float, floor: float, data: st.DataObject
) -> None:
    steps, warm_up = course
    step = data.draw(st.integers(0, steps - 1))
    rate, following = (warm_cosine(at, steps, peak=peak, warm_up=warm_up, floor=floor) for at in (step, step + 1))
    assert 0 < rate <= peak * (1 + 1e-12)
    if step + 1 < warm_up:
        assert following > rate
    elif step >= warm_up:
        assert following <= rate * (1 + 1e-12)
        assert rate >= peak * floor * (1 - 1e-12)


@given(st.integers(1, 100), st.integers(1, 1000), st.floats(1e-6, 10))
def test_the_warm_up_is_linear_and_ends_at_the_peak(warm_up: int, more: int, peak: float) -> None:
    steps = warm_up + more
    for step in range(warm_up):
        found = warm_cosine(step, steps, peak=peak, warm_up=warm_up)
        assert found == pytest.approx(peak * (step + 1) / warm_up)
    assert warm_cosine(warm_up, steps, peak=peak, warm_up=warm_up) == pytest.approx(peak)


def test_the_cosine_passes_its_middle_and_ends_at_the_floor() -> None:
    assert warm_cosine(60, 110, peak=2.0, warm_up=10) == pytest.approx(1.0)
    assert warm_cosine(35, 110, peak=1.0, warm_up=10) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert warm_cosine(110, 110, peak=2.0, warm_up=10, floor=0.1) == pytest.approx(0.2)
    assert warm_cosine(0, 1, peak=3.0, warm_up=0) == 3.0
