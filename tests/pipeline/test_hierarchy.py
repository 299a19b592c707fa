"""Laws of the cluster tree: unit centroids, the nearest one wins, equal seeds give equal bits."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.hierarchy import Tree, cluster_count, fit_kmeans, fit_tree, purity, size_entropy, unit_rows

Vectors = NDArray[np.float32]


def blobs(
    seed: int, centres: int, each: int, dimension: int = 8, spread: float = 0.05
) -> tuple[Vectors, NDArray[np.int64]]:
    """Unit vectors around a few random directions, shuffled, with the number of each one's blob."""
    rng = np.random.default_rng(seed)
    middle = unit_rows(rng.normal(size=(centres, dimension)).astype(np.float32))
    labels = rng.permutation(np.repeat(np.arange(centres), each))
    noise = rng.normal(scale=spread, size=(len(labels), dimension))
    return unit_rows((middle[labels] + noise).astype(np.float32)), labels


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.data())
def test_centroids_are_unit_and_as_many_as_asked(seed: int, count: int, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 1)
    k = data.draw(st.integers(1, count))
    centroids = fit_kmeans(vectors, k, seed=seed)
    assert centroids.shape == (k, 8)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


def test_equal_seeds_give_equal_bits() -> None:
    vectors, _ = blobs(1, 12, 50)
    one, other = fit_tree(vectors, cells=30, seed=7), fit_tree(vectors.copy(), cells=30, seed=7)
    for name in ("cells", "parents", "groups"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert fit_tree(vectors, cells=30, seed=8).cells.tobytes() != one.cells.tobytes()


def test_as_many_clusters_as_vectors_gives_each_its_own() -> None:
    vectors, _ = blobs(2, 17, 1, spread=0)
    centroids = fit_kmeans(vectors, 17, seed=0)
    assert sorted((vectors @ centroids.T).argmax(axis=1)) == list(range(17))


@pytest.mark.parametrize("k", [1, 2, 3, 20])
def test_repeated_vectors_are_clustered_without_complaint(k: int) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32)[:2], 10, axis=0)
    centroids = fit_kmeans(vectors, k, seed=3)
    assert np.isfinite(centroids).all()
    if k >= 2:
        assert (vectors @ centroids.T).max(axis=1) == pytest.approx(np.ones(20), abs=1e-6)


def test_separate_blobs_become_separate_clusters() -> None:
    vectors, labels = blobs(3, 10, 60)
    clusters = (vectors @ fit_kmeans(vectors, 10, seed=0).T).argmax(axis=1)
    assert purity(clusters, labels) > 0.9


@pytest.mark.parametrize("k", [0, -1, 6])
def test_an_impossible_number_of_clusters_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must be in 1..5, got {k}"):
        fit_kmeans(np.eye(5, dtype=np.float32), k, seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(value: float) -> None:
    vectors = np.eye(5, dtype=np.float32)
    vectors[2, 2] = value
    with pytest.raises(ValueError, match="finite"):
        fit_kmeans(vectors, 2, seed=0)


# The tree -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.data())
def test_assignment_is_the_nearest_cell_and_its_group(seed: int, count: int, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 2, spread=0.3)
    tree = fit_tree(vectors, cells=data.draw(st.integers(1, count)), seed=seed)
    paths, distances = tree.assign(vectors)
    assert paths.shape == (2 * count, 2)
    assert paths.dtype == np.int32
    assert distances.dtype == np.float32
    assert ((distances >= 0) & (distances <= 2)).all()
    assert set(range(len(tree.groups))) == set(tree.parents.tolist())
    for vector, (group, cell), distance in zip(vectors, paths, distances, strict=True):
        similarities = [float(vector @ centroid) for centroid in tree.cells]
        assert similarities[cell] >= max(similarities) - 1e-6
        assert distance == pytest.approx(max(0, 1 - max(similarities)), abs=1e-6)
        assert group == tree.parents[cell]
        nearest = tree.groups @ tree.cells[cell]
        assert nearest[group] >= nearest.max() - 1e-6


def test_nothing_to_assign_gives_nothing() -> None:
    tree = Tree(
        cells=np.eye(3, dtype=np.float32), parents=np.zeros(3, np.int32), groups=np.eye(3, dtype=np.float32)[:1]
    )
    paths, distances = tree.assign(np.zeros((0, 3), np.float32))
    assert (paths.shape, distances.shape) == ((0, 2), (0,))


def test_a_tree_of_wrong_shapes_is_refused() -> None:
    cells = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="a tree needs cells"):
        Tree(cells=cells, parents=np.zeros(2, np.int32), groups=cells)


# Figures --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 100), st.integers(1, 5000))
def test_the_number_of_clusters_keeps_its_limits(samples: int, per_cluster: int, most: int) -> None:
    k = cluster_count(samples, per_cluster, most)
    assert 1 <= k <= min(samples, most)
    if 1 < k < min(samples, most):
        assert abs(k * per_cluster - samples) <= per_cluster / 2


LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=50)


@given(LABELS)
def test_purity_is_the_share_of_the_commonest_label(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = np.array(pairs, np.int64).T
    right = sum(
        Counter(label for cluster, label in pairs if cluster == c).most_common(1)[0][1] for c in {c for c, _ in pairs}
    )
    assert purity(clusters, labels) == pytest.approx(right / len(pairs))
    assert purity(clusters, clusters) == 1


def test_no_samples_have_no_purity() -> None:
    assert purity(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.permutations(range(6)))
def test_entropy_of_the_sizes_does_not_depend_on_the_names(clusters: list[int], names: list[int]) -> None:
    shares = [n / len(clusters) for n in Counter(clusters).values()]
    expected = -sum(p * np.log(p) for p in shares) / np.log(6)
    assert size_entropy(np.array(clusters), 6) == pytest.approx(expected, abs=1e-12)
    assert size_entropy(np.array([names[c] for c in clusters]), 6) == pytest.approx(expected, abs=1e-12)


def test_entropy_is_one_for_equal_sizes_and_zero_for_all_in_one() -> None:
    assert size_entropy(np.array([0, 1, 2, 3, 3, 2, 1, 0]), 4) == pytest.approx(1)
    assert size_entropy(np.zeros(9, np.int64), 4) == 0
    assert size_entropy(np.zeros(9, np.int64), 1) == 1


def test_unit_rows_leave_zero_rows_zero() -> None:
    rows = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.tolist() == [pytest.approx([0.6, 0.8]), [0, 0]]
