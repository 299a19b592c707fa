"""Laws of k-means: every row is sound or named, any order gives equal bits, no centroid stays empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.kmeans import (
    block_rows,
    farthest_seeds,
    fit_kmeans,
    greedy_seeds,
    lloyd,
    nearest,
    plus_plus_seeds,
    row_keys,
    sort_out,
    unit_rows,
)
from tests.pipeline.test_hierarchy import blobs

FEW = st.sampled_from([0.0, -0.0, 1.0, 2.0, float("nan"), float("inf")])
ANYTHING = st.integers(0, 25).flatmap(lambda n: arrays(np.float32, (n, 2), elements=FEW))


@settings(max_examples=100)
@given(ANYTHING, st.booleans(), st.data())
def test_every_row_is_sound_or_set_aside_for_one_reason(
    vectors: NDArray[np.float32], keyed: bool, data: st.DataObject
) -> None:
    keys = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(vectors), max_size=len(vectors))), np.uint64)
    rows = sort_out(vectors, keys if keyed else None)
    everything = np.concatenate([rows.sound, rows.not_finite, rows.dead, rows.duplicate])
    assert sorted(everything.tolist()) == list(range(len(vectors)))
    assert all(not np.isfinite(vectors[row]).all() for row in rows.not_finite)
    assert all((vectors[row] == 0).all() for row in rows.dead)
    kept = [tuple(vectors[row].tolist()) for row in rows.sound]
    assert len(set(kept)) == len(kept)
    assert all(tuple(vectors[row].tolist()) in kept for row in rows.duplicate)
    if keyed:
        assert (np.diff(keys[rows.sound].astype(np.int64)) >= 0).all()
        for row in rows.duplicate:
            original = rows.sound[kept.index(tuple(vectors[row].tolist()))]
            assert keys[original] <= keys[row]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors must be"):
        sort_out(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="keys"):
        sort_out(np.zeros((3, 2), np.float32), np.zeros(2, np.uint64))


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.data())
def test_centroids_are_unit_as_many_as_asked_and_equal_for_any_order(
    seed: int, count: int, data: st.DataObject
) -> None:
    vectors, _ = blobs(seed, count, 1)
    k = data.draw(st.integers(1, count))
    centroids = fit_kmeans(vectors, k, seed=seed)
    assert centroids.shape == (k, 8)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(seed).permutation(count)
    assert fit_kmeans(vectors[order], k, seed=seed).tobytes() == centroids.tobytes()


def test_the_memory_bound_changes_no_more_than_rounding() -> None:
    vectors, _ = blobs(3, 10, 200)
    one, other = (fit_kmeans(vectors, 10, seed=0, memory_mb=mb) for mb in (1, 256))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert block_rows(1 << 20, 1) == 64
    assert block_rows(64, 256) * 64 * 8 == 256 << 20


@pytest.mark.parametrize("k", [1, 2, 3, 20])
def test_repeated_vectors_count_once(k: int) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32)[:2], 10, axis=0)
    centroids = fit_kmeans(vectors, k, seed=3)
    assert len(centroids) == min(k, 2)
    if k >= 2:
        assert (vectors @ centroids.T).max(axis=1) == pytest.approx(np.ones(20), abs=1e-6)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_an_impossible_number_of_clusters_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must be in 1..5, got {k}"):
        fit_kmeans(np.eye(5, dtype=np.float32), k, seed=0)


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 120), st.data())
def test_seeds_are_different_rows(seed: int, count: int, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 1)
    k = data.draw(st.integers(1, count))
    drawn = plus_plus_seeds(vectors, k, rng=np.random.default_rng(seed), rows=50)
    spread = farthest_seeds(vectors, k, rows=50)
    greedy = greedy_seeds(vectors, k, rng=np.random.default_rng(seed), rows=50)
    assert len(set(drawn.tolist())) == len(set(spread.tolist())) == len(set(greedy.tolist())) == k


def test_seeds_that_float32_cannot_tell_apart_are_still_different_rows() -> None:
    vectors = np.full((40, 2), 1e6, np.float32)
    vectors[:, 0] += np.arange(40, dtype=np.float32) / 16
    assert len(set(plus_plus_seeds(vectors, 40, rng=np.random.default_rng(0)).tolist())) == 40
    assert len(set(farthest_seeds(vectors, 40).tolist())) == 40
    assert len(set(greedy_seeds(vectors, 40, rng=np.random.default_rng(0)).tolist())) == 40


def test_greedy_seeds_find_small_blobs_that_plain_ones_miss() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(11), [4000] + [20] * 10)
    middle = np.concatenate([np.zeros((1, 8)), 12 * np.eye(8), -12 * np.eye(8)])[:11]
    vectors = (middle[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32)
    found = {greedy_seeds: 0, plus_plus_seeds: 0}
    for seeds in found:
        for seed in range(10):
            found[seeds] += len(set(labels[seeds(vectors, 11, rng=np.random.default_rng(seed))].tolist()))
    assert found[greedy_seeds] > found[plus_plus_seeds] + 5


@pytest.mark.parametrize("rows", [7, 64, 1000])
def test_greedy_seeds_do_not_depend_on_how_many_rows_are_worked_on(rows: int) -> None:
    vectors, _ = blobs(3, 10, 30, spread=0.3)
    one = greedy_seeds(vectors, 20, rng=np.random.default_rng(0))
    assert greedy_seeds(vectors, 20, rng=np.random.default_rng(0), rows=rows).tolist() == one.tolist()


def test_blocked_seeds_are_drawn_as_one_by_one() -> None:
    """The chance that the second and third seed leave the first blob, against the exact one of k-means++."""
    points = np.array([[0, 0], [1, 0], [5, 0], [0, 7]], np.float32)
    squared = ((points[:, None] - points) ** 2).sum(axis=2)
    expected = np.zeros(4)
    for a in range(4):
        for b in range(4):
            left = np.minimum(squared[a], squared[b])
            expected += 0.25 * squared[a, b] / squared[a].sum() * left / left.sum()
    rng = np.random.default_rng(0)
    third = np.bincount([plus_plus_seeds(points, 3, rng=rng)[2] for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(third, expected, atol=4 * np.sqrt(0.25 / 4000))


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(2, 60), st.data())
def test_a_centroid_far_from_everything_is_put_on_a_row(seed: int, count: int, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 2, spread=0.3)
    k = data.draw(st.integers(2, count))
    start = np.concatenate([vectors[: k - 1], np.full((1, 8), 100, np.float32)])
    centroids = lloyd(vectors, start, iterations=3)
    distances, own = nearest(vectors, centroids)
    assert np.isfinite(centroids).all()
    assert np.linalg.norm(centroids, axis=1).max() < 2
    assert distances.sum() <= nearest(vectors, start)[0].sum() * (1 + 1e-5)
    assert own.max() < k


def test_lloyd_stops_at_the_means_of_its_clusters() -> None:
    vectors, _ = blobs(4, 6, 50)
    centroids = lloyd(vectors, vectors[:6], iterations=200)
    own = nearest(vectors, centroids)[1][:, 0]
    for number in range(6):
        np.testing.assert_allclose(centroids[number], vectors[own == number].mean(axis=0), atol=1e-5)


def test_row_keys_follow_the_content() -> None:
    vectors, _ = blobs(0, 20, 1)
    keys = row_keys(vectors)
    assert len(set(keys.tolist())) == 20
    assert row_keys(vectors[::-1]).tolist() == keys[::-1].tolist()


def test_unit_rows_leave_zero_rows_zero() -> None:
    rows = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.tolist() == [pytest.approx([0.6, 0.8]), [0, 0]]
