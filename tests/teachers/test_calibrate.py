"""A temperature makes odds honest and changes no mask; a histogram measures what the pixels themselves would."""

import io
from functools import reduce
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from teachers.calibrate import (
    BINS,
    LIMIT,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    RELIABILITY_BINS,
    Histogram,
    count,
    empty,
    fit_temperature,
    reliability,
    reliability_plot,
    temper,
)

probabilities = arrays(np.float32, st.integers(1, 200), elements=st.floats(0, 1, width=32))
temperatures = st.floats(0.01, 100.0)


def drawn(
    seed: int, scale: float, size: int = 300, spread: float = 2.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pixels whose truth is drawn from honest log-odds, told with log-odds `scale` times as large."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, spread, (size, size))
    return expit(scale * z).astype(np.float32), rng.random((size, size)) < expit(z)


def direct(p: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[float, float, float]:
    """ECE, NLL and Brier score by their definitions, over pixels."""
    said = np.clip(p.astype(np.float64), expit(-LIMIT), expit(LIMIT)).ravel()
    true = truth.ravel()
    place = np.minimum((said * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    ece = sum(abs(said[place == b].mean() - true[place == b].mean()) * (place == b).mean() for b in set(place))
    nll = -np.mean(np.where(true, np.log(said), np.log1p(-said)))
    return float(ece), float(nll), float(np.mean((said - true) ** 2))


@given(p=probabilities)
def test_the_temperature_one_changes_nothing(p: NDArray[np.float32]) -> None:
    assert np.array_equal(temper(p, 1.0), p)


@given(p=probabilities, t=temperatures)
def test_tempering_keeps_order_range_and_mask(p: NDArray[np.float32], t: float) -> None:
    p = np.sort(p)
    out = temper(p, t)
    assert out.dtype == np.float32
    assert out.shape == p.shape
    assert (np.diff(out) >= 0).all()
    assert 0 <= out.min() <= out.max() <= 1
    assert np.array_equal(out >= 0.5, p >= 0.5)


@pytest.mark.parametrize("t", [0.01, 0.5, 0.999999, 1.000001, 3.0, 1e6])
def test_the_mask_stays_at_the_floats_around_one_half(t: float) -> None:
    half = np.float32(0.5)
    around = [np.nextafter(half, np.float32(0)), half, np.nextafter(half, np.float32(1))]
    assert (temper(np.array(around, np.float32), t) >= 0.5).tolist() == [False, True, True]


def test_certainty_is_moved_and_stays_a_number() -> None:
    ends = np.array([0.0, 1e-45, 1.0], np.float32)
    assert temper(ends, 4.0) == pytest.approx(expit([-4.0, -4.0, 4.0]), rel=1e-6)
    assert temper(ends, 0.1) == pytest.approx([0.0, 0.0, 1.0], abs=1e-12)


@given(p=probabilities, t=st.floats(0.6, 3.0))
def test_tempering_is_undone_by_the_inverse_temperature(p: NDArray[np.float32], t: float) -> None:
    p = np.clip(p, 0.01, 0.99)
    assert temper(temper(p, t), 1.0 / t) == pytest.approx(p, abs=1e-4)


def test_a_large_image_is_tempered_as_its_parts_are() -> None:
    p = np.random.default_rng(0).random((700, 900), dtype=np.float32)
    assert np.array_equal(temper(p, 1.7)[650:], temper(p[650:], 1.7))
    assert temper(np.zeros((0, 3), np.float32), 2.0).shape == (0, 3)


@pytest.mark.parametrize("t", [0.0, -1.0, np.inf, np.nan])
def test_a_temperature_that_is_none_is_refused(t: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        temper(np.zeros(3, np.float32), t)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        reliability(count(*drawn(0, 1.0, 5)), t)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_what_is_no_probability_is_refused(value: float) -> None:
    p = np.array([[0.5, value]], np.float32)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        temper(p, 2.0)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        count(p, np.zeros((1, 2), bool))


def test_what_does_not_fit_together_is_not_counted() -> None:
    with pytest.raises(ValueError, match="one shape"):
        count(np.zeros((2, 3), np.float32), np.zeros((3, 2), bool))
    with pytest.raises(ValueError, match="one shape"):
        count(np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="float32"):
        count(np.zeros((2, 3)), np.zeros((2, 3), bool))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"histogram\.person must be"):
        Histogram(person=np.zeros(3, np.int64), background=np.zeros(BINS, np.int64), images=0)


@settings(max_examples=20)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=5), shuffle=st.randoms(use_true_random=False))
def test_histograms_add_up_to_the_same_in_every_order(seeds: list[int], shuffle: Random) -> None:
    parts = [count(*drawn(seed, 1.5, 7 + seed % 3)) for seed in seeds]
    mixed = list(parts)
    shuffle.shuffle(mixed)
    one, other = reduce(Histogram.__add__, parts, empty()), reduce(Histogram.__add__, mixed)
    assert np.array_equal(one.person, other.person)
    assert np.array_equal(one.background, other.background)
    assert one.images == other.images == len(seeds)
    assert reliability(one) == reliability(other)
    assert fit_temperature(one) == fit_temperature(other)


def test_an_image_weighs_the_same_whatever_its_size() -> None:
    small, large = drawn(1, 2.0, 20), drawn(2, 2.0, 400)
    both = reliability(count(*small) + count(*large))
    assert both.nll == pytest.approx((direct(*small)[1] + direct(*large)[1]) / 2, abs=1e-3)
    tiled = (np.tile(large[0], (2, 3)), np.tile(large[1], (2, 3)))
    assert reliability(count(*small) + count(*tiled)).nll == pytest.approx(both.nll, abs=1e-9)


def test_ignored_pixels_do_not_count() -> None:
    p, truth = drawn(3, 2.0, 40)
    ignore = np.zeros_like(truth)
    ignore[:, 25:] = True
    some, cut = count(p, truth, ignore), count(p[:, :25], truth[:, :25])
    assert np.array_equal(some.person, cut.person)
    assert np.array_equal(some.background, cut.background)
    nothing = count(p, truth, np.ones_like(truth))
    assert nothing.images == 0
    assert not nothing.person.any()
    assert not nothing.background.any()


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.3, 4.0))
def test_a_histogram_measures_what_the_pixels_themselves_would(seed: int, scale: float) -> None:
    p, truth = drawn(seed, scale, 60)
    measured = reliability(count(p, truth))
    ece, nll, brier = direct(p, truth)
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    astray = (np.abs(p[..., None] - edges).min(axis=-1) < 2.5e-4).mean()  # may be counted on the other side of an edge
    assert measured.ece == pytest.approx(ece, abs=2.5e-4 + 2 * astray)
    assert measured.nll == pytest.approx(nll, abs=1e-3)
    assert measured.brier == pytest.approx(brier, abs=5e-4)
    assert sum(b.share for b in measured.bins) == pytest.approx(1.0)
    assert sum(b.share * (b.observed or 0.0) for b in measured.bins) == pytest.approx(truth.mean())


@pytest.mark.parametrize("t", [0.9, 2.0])
def test_a_temperature_on_the_histogram_is_that_on_the_pixels(t: float) -> None:
    p, truth = drawn(4, 2.0, 100)
    measured, again = reliability(count(p, truth), t), reliability(count(temper(p, t), truth))
    assert measured.nll == pytest.approx(again.nll, abs=1e-3)
    assert measured.brier == pytest.approx(again.brier, abs=1e-3)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.0, 3.0])
def test_a_planted_temperature_is_found(planted: float) -> None:
    parts = [count(*drawn(seed, planted, spread=1.5)) for seed in range(3)]
    assert fit_temperature(reduce(Histogram.__add__, parts)) == pytest.approx(planted, rel=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.2, 6.0))
def test_the_fitted_temperature_has_the_smallest_likelihood_loss(seed: int, scale: float) -> None:
    p, truth = drawn(seed, scale, 40)
    histogram = count(p, truth)
    found = fit_temperature(histogram)
    assert reliability(histogram, found).nll <= reliability(histogram).nll + 1e-12
    z = logit(np.clip(p.astype(np.float64), expit(-LIMIT), expit(LIMIT)))
    sign = np.where(truth, -1.0, 1.0)
    oracle = minimize_scalar(lambda a: np.logaddexp(0, sign * a * z).mean(), bounds=(0.1, 10), method="bounded")
    assert 1.0 / found == pytest.approx(oracle.x, rel=5e-3, abs=1e-3)


@pytest.mark.parametrize("truth", [np.zeros((9, 9), bool), np.ones((9, 9), bool)])
def test_one_kind_of_pixel_or_none_or_pixels_of_no_opinion_fit_no_temperature(truth: NDArray[np.bool_]) -> None:
    p = np.random.default_rng(0).random((9, 9), dtype=np.float32)
    assert fit_temperature(count(p, truth)) == 1.0
    assert fit_temperature(empty()) == 1.0
    truth[:3] = ~truth[:3]
    assert fit_temperature(count(np.full((9, 9), 0.5, np.float32), truth)) == 1.0


def test_a_teacher_that_is_always_right_or_always_wrong_gets_the_end_of_the_range() -> None:
    truth = np.eye(9, dtype=bool)
    right = np.where(truth, 0.9, 0.1).astype(np.float32)
    assert fit_temperature(count(right, truth)) == MIN_TEMPERATURE
    assert fit_temperature(count(right, ~truth)) == MAX_TEMPERATURE


def test_an_honest_teacher_has_nearly_no_calibration_error_and_a_boastful_one_has() -> None:
    assert reliability(count(*drawn(5, 1.0, 700))).ece < 0.003
    boastful = count(*drawn(5, 3.0, 700))
    assert reliability(boastful).ece > 0.05
    assert reliability(boastful, fit_temperature(boastful)).ece < 0.003


def test_bins_without_pixels_have_no_mean() -> None:
    measured = reliability(count(np.array([[0.0, 0.99]], np.float32), np.array([[False, True]])))
    assert [b.mean is None for b in measured.bins] == [False, *[True] * (RELIABILITY_BINS - 2), False]
    assert measured.bins[-1].high == 1.0
    with pytest.raises(ValueError, match="at least one pixel"):
        reliability(empty())


def test_the_plot_is_a_png_that_repeats_byte_for_byte() -> None:
    histogram = count(*drawn(6, 2.0, 50))
    before, after = reliability(histogram), reliability(histogram, 2.0)
    png = reliability_plot(before, after)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 500
    assert reliability_plot(before, after) == png
    assert reliability_plot(after, before) != png
