"""Laws of the folds: a student never trains on what it judges, nor on its kin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from students.folds import Folds, assign_folds

Case = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    c = draw(st.integers(1, 7))
    n = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    sources = rng.integers(0, draw(st.integers(1, 15)), n)
    home = rng.integers(0, c, 15)
    stray = rng.random(n) < 0.2
    clusters = np.where(stray, rng.integers(0, c, n), home[sources])
    return clusters, sources, rng.standard_normal((c, 3))


@given(cases(), st.integers(2, 5), st.floats(-1, 1))
def test_a_student_trains_on_no_cluster_and_no_source_that_it_judges(case: Case, folds: int, similar: float) -> None:
    clusters, sources, centroids = case
    result = assign_folds(clusters, sources, centroids, folds, similar)
    for f in range(result.count):
        judged, trained = result.fold == f, ~result.purged(f)
        assert judged.any()
        assert not set(clusters[judged]) & set(clusters[trained])
        assert not set(sources[judged]) & set(sources[trained])


@given(cases(), st.integers(2, 5), st.floats(-1, 1))
def test_all_are_judged_once_or_a_reason_is_given(case: Case, folds: int, similar: float) -> None:
    clusters, sources, centroids = case
    result = assign_folds(clusters, sources, centroids, folds, similar)
    if result.reason:
        assert result.count == 0
        assert bool((result.fold == -1).all())
    else:
        assert 2 <= result.count <= folds
        assert set(result.fold.tolist()) == set(range(result.count))
        assert all(len(set(result.fold[sources == s])) == 1 for s in set(sources.tolist()))


@given(cases(), st.integers(2, 5), st.floats(-1, 1), st.integers(0, 1000))
def test_the_order_of_the_samples_does_not_matter(case: Case, folds: int, similar: float, seed: int) -> None:
    clusters, sources, centroids = case
    order = np.random.default_rng(seed).permutation(len(clusters))
    one = assign_folds(clusters, sources, centroids, folds, similar)
    other = assign_folds(clusters[order], sources[order], centroids, folds, similar)
    assert np.array_equal(one.fold[order], other.fold)
    assert (one.held_clusters, one.leaks, one.reason) == (other.held_clusters, other.leaks, other.reason)


@given(cases(), st.integers(2, 5), st.floats(-1, 1))
def test_similar_clusters_share_a_fold_or_are_named_as_a_leak(case: Case, folds: int, similar: float) -> None:
    clusters, _, centroids = case
    sources = clusters.copy()  # a source per cluster: every cluster is a home
    result = assign_folds(clusters, sources, centroids, folds, similar)
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    fold = {int(c): int(f) for c, f in zip(clusters, result.fold, strict=True)}
    apart = {(i, j) for i in fold for j in fold if i < j and fold[i] != fold[j] and unit[i] @ unit[j] > similar + 1e-9}
    if not result.leaks:
        assert not apart
    else:
        assert result.count == 2


def test_similar_clusters_are_held_out_together() -> None:
    centroids = np.array([[1, 0.0], [0, 1], [1, 0.05], [-1, 0]])
    clusters = np.repeat([0, 1, 2, 3], [5, 5, 5, 5])
    result = assign_folds(clusters, np.arange(20), centroids, 3, 0.95)
    fold = result.fold[::5]
    assert fold[0] == fold[2]
    assert len(set(fold.tolist())) == 3
    assert result.leaks == ()


def test_folds_are_balanced_greedily_by_size() -> None:
    clusters = np.repeat(np.arange(5), [50, 30, 20, 10, 10])
    result = assign_folds(clusters, np.arange(120), np.eye(5), 2, 0.9)
    assert np.bincount(result.fold).tolist() == [60, 60]
    assert result.held_clusters == ((0, 3), (1, 2, 4))


def test_a_source_follows_its_majority_and_takes_its_stray_cluster_out_of_the_training_set() -> None:
    clusters = np.array([0, 0, 1, 1, 1, 1])
    sources = np.array(["a", "a", "a", "b", "b", "c"])
    result = assign_folds(clusters, sources, np.eye(2), 2, 0.9)
    assert len(set(result.fold[:3].tolist())) == 1
    f = int(result.fold[0])
    assert result.purged(f).all()  # the stray frame bars all of cluster 1


def test_a_tie_between_clusters_goes_to_the_lower_id() -> None:
    result = assign_folds(np.array([1, 0, 2, 0]), np.array([7, 7, 8, 9]), np.eye(3), 2, 0.9)
    assert result.fold[0] == result.fold[3]
    assert result.fold[0] != result.fold[2]


@pytest.mark.parametrize(
    ("clusters", "sources", "words"),
    [
        ([], [], "no samples"),
        ([0, 0, 0], [1, 2, 3], "one cluster"),
        ([0, 1, 0], [1, 1, 1], "one source"),
        ([0, 0, 1, 0, 0], [1, 1, 1, 2, 2], "mostly in cluster 0"),
    ],
)
def test_too_little_variety_is_a_stated_outcome(clusters: list[int], sources: list[int], words: str) -> None:
    result = assign_folds(np.array(clusters, np.int64), np.array(sources, np.int64), np.eye(2), 4, 0.9)
    assert words in result.reason
    assert result.count == 0
    with pytest.raises(ValueError, match=r"fold must be in \[0, 0\)"):
        result.purged(0)


@pytest.mark.parametrize(
    ("clusters", "folds", "words"), [([0, 2], 2, "centroid"), ([-1, 0], 2, "centroid"), ([0, 1], 1, ">= 2")]
)
def test_impossible_arguments_are_refused(clusters: list[int], folds: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        assign_folds(np.array(clusters), np.array([0, 1]), np.eye(2), folds, 0.9)


def test_purged_is_a_union_of_the_fold_and_its_clusters() -> None:
    folds = Folds(clusters=np.array([0, 1, 2, 1]), fold=np.array([0, 0, 1, 1]), held_clusters=((0, 1), (1, 2)))
    assert folds.purged(0).tolist() == [True, True, False, True]
    assert folds.purged(1).tolist() == [False, True, True, True]
