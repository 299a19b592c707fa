"""Laws of the mixture: whole steps follow the share's integral, and each source's own are counted through."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from students.mixture import Mixture

shares = st.floats(0, 1)
mixtures = st.builds(Mixture, first=shares, last=shares, ramp=st.floats(0, 1e5))
steps = st.integers(0, 10**6)


def integral(mixture: Mixture, start: int, stop: int) -> float:
    """Of the share over [start, stop]: the trapezoids left and right of the end of the ramp."""

    def share(at: float) -> float:
        if at >= mixture.ramp:
            return mixture.last
        return mixture.first + (mixture.last - mixture.first) * at / mixture.ramp

    end = min(max(mixture.ramp, start), stop)
    before = (share(start) + share(end)) / 2 if end > start else 0.0
    return before * (end - start) + mixture.last * (stop - end)


@given(mixtures, steps)
def test_each_step_adds_none_or_one(mixture: Mixture, step: int) -> None:
    assert mixture.labelled_before(step + 1) - mixture.labelled_before(step) in (0, 1)
    assert 0 <= mixture.labelled_before(step) <= step


@given(mixtures, steps, st.integers(1, 10**4))
def test_any_window_holds_the_integral_of_the_share_within_one_step(mixture: Mixture, start: int, length: int) -> None:
    found = mixture.labelled_before(start + length) - mixture.labelled_before(start)
    assert abs(found - integral(mixture, start, start + length)) <= 1 + 1e-6


@given(mixtures, st.integers(0, 10**5))
def test_the_numbers_of_each_source_are_consecutive(mixture: Mixture, start: int) -> None:
    following = {True: mixture.labelled_before(start), False: start - mixture.labelled_before(start)}
    for step in range(start, start + 60):
        labelled, number = mixture.source(step)
        assert number == following[labelled]
        following[labelled] += 1


@pytest.mark.parametrize("ramp", [0.0, 10.0])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_none_or_all_is_none_or_all(share: float, ramp: float) -> None:
    mixture = Mixture(first=share, last=share, ramp=ramp)
    assert [mixture.source(step) for step in range(50)] == [(share == 1, step) for step in range(50)]


def test_without_a_ramp_the_last_share_holds_from_the_start() -> None:
    mixture = Mixture(first=1.0, last=0.0, ramp=0.0)
    assert not any(mixture.source(step)[0] for step in range(20))
    assert Mixture(first=0.0, last=0.25, ramp=0.0).labelled_before(1000) == 250


def test_a_ramp_moves_from_the_first_share_to_the_last() -> None:
    mixture = Mixture(first=1.0, last=0.0, ramp=1000.0)
    assert mixture.labelled_before(10) == 10
    assert mixture.labelled_before(500) == 375
    assert mixture.labelled_before(1000) == mixture.labelled_before(5000) == 500


@pytest.mark.parametrize(
    "broken", [{"first": -0.1}, {"first": 1.1}, {"last": math.nan}, {"ramp": -1.0}, {"ramp": math.inf}]
)
def test_an_impossible_mixture_is_refused(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"shares in \[0, 1\] and ramp >= 0"):
        Mixture(**{"first": 0.5, "last": 0.5, "ramp": 1.0} | broken)
