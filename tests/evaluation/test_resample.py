"""The resampling against plain loops, and the laws of its tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from evaluation import classical
from evaluation.resample import (
    Sums,
    equivalence_p,
    p_values,
    single_step,
    statistics,
    step_down,
    studentised,
    subject_resamples,
    t_quantiles,
)

Floats = NDArray[np.float64]


def _world(seed: int, people: int = 12, videos: int = 50) -> tuple[Floats, NDArray[np.intp], NDArray[np.bool_]]:
    """Scores, person of each video, and three classes that split people: (n,), (n,), (n, 3)."""
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(people), rng.integers(people, size=videos - people)])
    scores = 0.3 * rng.random(people)[owner] + 0.5 * rng.random(videos)
    member = rng.integers(3, size=videos)[:, None] == np.arange(3)
    return scores, owner, member


def _sums(scores: Floats, owner: NDArray[np.intp], member: NDArray[np.bool_]) -> Sums:
    people = owner.max() + 1
    one_hot = (owner[:, None] == np.arange(people)).astype(np.float64).T
    return Sums(
        sizes=one_hot @ member,
        totals=one_hot @ (member * scores[:, None]),
        all_sizes=one_hot.sum(axis=1),
        all_totals=one_hot @ scores,
    )


def _by_hand(scores: Floats, owner: NDArray[np.intp], inside: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Mean, its error, gap, its error: the formulas read out over a table of videos."""
    mean, rest = scores[inside].mean(), scores[~inside].mean()
    groups = np.unique(owner[inside])
    square = sum(((scores - mean)[inside & (owner == g)].sum()) ** 2 for g in groups)
    error = np.sqrt(len(groups) / (len(groups) - 1) * square) / inside.sum()
    psi = np.where(inside, (scores - mean) / inside.sum(), -(scores - rest) / (~inside).sum())
    gap_error = np.sqrt(sum(psi[owner == g].sum() ** 2 for g in np.unique(owner)))
    return float(mean), float(error), float(mean - rest), float(gap_error)


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_a_resample_gives_what_the_table_of_its_videos_gives(seed: int) -> None:
    scores, owner, member = _world(seed)
    weights = subject_resamples(12, 3, seed)
    found = statistics(weights, _sums(scores, owner, member))
    for b, row in enumerate(weights):
        copies = [np.flatnonzero(owner == g) for g in np.repeat(np.arange(12), row)]
        videos = np.concatenate(copies)
        people = np.repeat(np.arange(len(copies)), [len(c) for c in copies])
        for k in range(3):
            inside = member[videos, k]
            if len(np.unique(people[inside])) < 2 or inside.all():
                continue
            expected = _by_hand(scores[videos], people, inside)
            ours = (found.mean[b, k], found.mean_error[b, k], found.gap[b, k], found.gap_error[b, k])
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, weights = _sums(*_world(0)), subject_resamples(12, 40, 3)
    whole = statistics(weights, sums)
    monkeypatch.setattr("evaluation.resample._CHUNK", 150)
    parts = statistics(weights, sums)
    for name in ("mean", "mean_error", "gap", "gap_error"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-12)
    np.testing.assert_array_equal(weights, subject_resamples(12, 40, 3))


def test_every_resample_draws_as_many_people_as_there_are_and_each_alike_often() -> None:
    weights = subject_resamples(50, 4000, 0)
    assert (weights.sum(axis=1) == 50).all()
    assert abs(weights.mean(axis=0) - 1).max() < 5 * np.sqrt(1 / 4000)
    assert abs(weights.astype(float).var() - (1 - 1 / 50)) < 0.02
    assert not np.array_equal(weights, subject_resamples(50, 4000, 1))
    with pytest.raises(ValueError, match="must be >= 1, got 0 and 5"):
        subject_resamples(0, 5, 0)


def test_alike_scores_have_no_error_at_all() -> None:
    scores, owner, member = _world(1)
    found = statistics(subject_resamples(12, 30, 0), _sums(np.full_like(scores, 0.123456789), owner, member))
    assert (found.mean_error[~np.isnan(found.mean_error)] == 0).all()
    assert (found.gap_error[~np.isnan(found.gap_error)] == 0).all()


def test_an_empty_or_lonely_class_has_no_error_and_no_gap() -> None:
    scores, owner, member = _world(2)
    member = np.stack([np.zeros(50), np.ones(50), owner == 0], axis=1).astype(np.bool_)
    found = statistics(np.ones((1, 12), np.int16), _sums(scores, owner, member))
    assert np.isnan(found.mean[0, 0])
    assert np.isnan(found.gap[0, :2]).all()
    assert np.isnan(found.mean_error[0, [0, 2]]).all()


def test_t_of_a_resample_is_infinite_where_it_moved_without_error_and_0_where_it_did_not() -> None:
    t = studentised(np.array([[1.0, 1.0, 0.5, np.nan]]), np.array([[0.0, 0.0, 0.25, 1.0]]), np.array([1.0, 0.5, 0, 0]))
    np.testing.assert_array_equal(t, [[0.0, np.inf, 2.0, np.nan]])


def test_quantiles_leave_the_level_between_them_and_nan_out() -> None:
    t = np.arange(1.0, 2000)[:, None] * [1.0, -1.0]
    low, high = t_quantiles(np.concatenate([t, np.full((500, 2), np.nan)]), 0.95)
    np.testing.assert_array_equal(low, [50, -1950])
    np.testing.assert_array_equal(high, [1950, -50])


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=30)
def test_step_down_lies_between_the_single_test_and_the_single_step(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    t, drawn = 2 * rng.standard_normal(size), rng.standard_normal((199, size))
    p = step_down(t, drawn)
    assert (p_values(t, drawn) <= p).all()
    assert (p <= single_step(t, drawn)).all()
    order = np.argsort(-np.abs(t))
    assert (np.diff(p[order]) >= 0).all()
    assert p[order[0]] == single_step(t, drawn)[order[0]]


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_step_down_is_the_maximum_over_what_is_not_yet_rejected(seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, drawn = 2 * rng.standard_normal(5), rng.standard_normal((99, 5))
    left, last = list(np.argsort(-np.abs(t))), 0.0
    for k in list(left):
        last = max(last, (1 + int((np.abs(drawn[:, left]).max(axis=1) >= abs(t[k])).sum())) / 100)
        assert step_down(t, drawn)[k] == last
        left.remove(k)


def test_a_class_that_a_resample_lost_counts_against_every_claim() -> None:
    drawn = np.array([[np.nan], [0.0], [0.0]])
    t = np.array([9.0])
    assert p_values(t, drawn) == single_step(t, drawn) == step_down(t, drawn) == 0.5
    assert equivalence_p(np.array([0.0]), np.array([0.001]), drawn, 0.02) == 0.5


def test_equivalence_is_the_ninety_percent_interval_within_the_margin() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1999, 200))
    value, error = 0.03 * rng.standard_normal(200), 0.01 * rng.random(200)
    low, high = t_quantiles(drawn, 0.9)
    inside = (value - high * error > -0.02) & (value - low * error < 0.02)
    np.testing.assert_array_equal(equivalence_p(value, error, drawn, 0.02) <= 0.05, inside)
    assert inside.any()
    assert not inside.all()


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_plain_tests_equal_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(7), 0.2 + rng.random(12)
    assert classical.welch_p(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-12)
    p = rng.random(9) ** 3
    np.testing.assert_allclose(classical.benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)
    expected = stats.t.interval(0.95, 6, loc=a.mean(), scale=stats.sem(a))
    np.testing.assert_allclose(classical.t_interval(float(a.mean()), float(stats.sem(a)), 6, 0.95), expected, rtol=1e-9)


def test_welch_needs_two_values_a_side_and_some_spread() -> None:
    one, two = np.array([0.5]), np.array([0.5, 0.5])
    assert classical.welch_p(one, two) is None
    assert classical.welch_p(two, two) is None
    assert classical.welch_p(two, np.array([0.1, 0.2])) is not None


def test_holm_by_its_textbook_example() -> None:
    np.testing.assert_allclose(classical.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
