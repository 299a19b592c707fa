"""Laws of the cluster tree: any order of the rows gives equal bits, the nearest cell wins, valleys part groups."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.hierarchy import (
    Hierarchy,
    Tree,
    TreeConfig,
    agreement,
    cell_count,
    cluster_count,
    farthest_first,
    fit_hierarchy,
    purity,
    size_entropy,
    valley_groups,
    ward_groups,
)
from pipeline.kmeans import unit_rows

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


def bits(fit: Hierarchy) -> tuple[bytes, bytes, str]:
    return fit.tree.cells.tobytes(), fit.tree.clusters.tobytes(), fit.tree.groups.tobytes(), fit.grouping


METHODS = st.sampled_from(["valley", "resampled"])


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 60), METHODS, st.booleans(), st.booleans(), st.data())
def test_any_order_of_the_rows_gives_equal_bits(
    seed: int, count: int, method: str, spherical: bool, keyed: bool, data: st.DataObject
) -> None:
    vectors, _ = blobs(seed, count, 3, spread=0.3)
    cells = data.draw(st.integers(1, 2 * count))
    order = np.random.default_rng(seed + 1).permutation(len(vectors))
    keys = np.random.default_rng(seed).integers(0, 1 << 62, len(vectors), np.uint64) if keyed else None
    config = TreeConfig(method=method, sparse=1 + seed % 6, resamples=3)  # type: ignore[arg-type]
    one = fit_hierarchy(vectors, cells=cells, seed=seed, config=config, keys=keys, spherical=spherical)
    shuffled = None if keys is None else keys[order]
    other = fit_hierarchy(vectors[order], cells=cells, seed=seed, config=config, keys=shuffled, spherical=spherical)
    assert bits(one) == bits(other)
    assert (order[other.rows.sound] == one.rows.sound).all()


def test_another_seed_gives_other_cells() -> None:
    vectors, _ = blobs(1, 12, 50)
    assert bits(fit_hierarchy(vectors, cells=30, seed=7)) != bits(fit_hierarchy(vectors, cells=30, seed=8))


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 40), METHODS, st.data())
def test_what_is_set_aside_touches_no_centroid(seed: int, count: int, method: str, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 2, spread=0.3)
    bad = np.zeros((3, 8), np.float32)
    bad[1, 3], bad[2, 0] = np.nan, -np.inf
    again = data.draw(st.lists(st.integers(0, 2 * count - 1), max_size=5))
    more = np.concatenate([vectors, bad, vectors[again]])
    config = TreeConfig(method=method, resamples=2)  # type: ignore[arg-type]
    cells = data.draw(st.integers(1, 3 * count))
    clean = fit_hierarchy(vectors, cells=cells, seed=seed, config=config)
    dirty = fit_hierarchy(more, cells=cells, seed=seed, config=config)
    assert bits(clean) == bits(dirty)
    assert dirty.rows.counts() == {"not_finite": 2, "dead": 1, "duplicate": len(again)}


@pytest.mark.parametrize("method", ["valley", "resampled"])
def test_more_cells_than_vectors_gives_each_its_own(method: str) -> None:
    vectors, _ = blobs(2, 17, 1, spread=0)
    config = TreeConfig(method=method)  # type: ignore[arg-type]
    fit = fit_hierarchy(vectors, cells=1000, seed=0, config=config)
    assert sorted(fit.tree.assign(vectors)[0][:, 2]) == list(range(17))


@pytest.mark.parametrize("method", ["valley", "resampled"])
def test_equal_vectors_are_one_cell_in_one_group(method: str) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32)[:1], 50, axis=0)
    config = TreeConfig(method=method)  # type: ignore[arg-type]
    fit = fit_hierarchy(vectors, cells=9, seed=0, config=config)
    assert fit.tree.cells.tolist() == [[1, 0, 0, 0]]
    assert fit.tree.clusters.tolist() == fit.tree.groups.tolist() == [0]
    assert fit.rows.counts()["duplicate"] == 49


@pytest.mark.parametrize("value", [0, np.nan])
def test_nothing_to_fit_on_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="there is no vector to cluster"):
        fit_hierarchy(np.full((5, 3), value, np.float32), cells=2, seed=0)
    with pytest.raises(ValueError, match="there is no vector to cluster"):
        fit_hierarchy(np.zeros((0, 3), np.float32), cells=2, seed=0)


def test_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="cells must be >= 1, got 0"):
        fit_hierarchy(np.eye(3, dtype=np.float32), cells=0, seed=0)


# Groups ---------------------------------------------------------------------------------------------------------------


def long_tail(seed: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Ten blobs of 4,000 to 100 points, far from each other."""
    rng = np.random.default_rng(seed)
    sizes = np.array([4000, 2000, 1000, 700, 500, 400, 300, 200, 150, 100])
    labels = rng.permutation(np.repeat(np.arange(10), sizes))
    middle = rng.normal(size=(10, 8)) * 3
    return (middle[labels] + rng.normal(size=(len(labels), 8)) * 0.4).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
def test_valleys_part_blobs_and_join_the_many_pieces_of_a_large_one(seed: int) -> None:
    vectors, labels = long_tail(seed)
    fit = fit_hierarchy(vectors, cells=100, seed=seed, spherical=False)
    assert fit.grouping == "valley"
    groups = fit.tree.clusters[((vectors[:, None] - fit.tree.cells) ** 2).sum(axis=2).argmin(axis=1)].astype(np.int64)
    assert purity(groups, labels) > 0.99
    for label in range(3):  # 4,000, 2,000 and 1,000 points
        assert np.bincount(groups[labels == label]).max() > 0.9 * (labels == label).sum()
    assert len(set(groups.tolist())) < 30


def test_one_giant_mass_without_a_valley_is_cut_by_ward() -> None:
    vectors = np.random.default_rng(0).normal(size=(6000, 4)).astype(np.float32)
    fit = fit_hierarchy(vectors, cells=100, seed=0, spherical=False)
    assert fit.grouping == "ward"
    assert len(set(fit.tree.groups.tolist())) == round(200**0.5)
    assert len(set(fit.tree.clusters.tolist())) == 30


def test_cells_too_sparse_for_a_density_are_grouped_by_ward() -> None:
    vectors, _ = long_tail(0)
    assert fit_hierarchy(vectors[:1199], cells=100, seed=0, spherical=False).grouping == "ward"
    assert fit_hierarchy(vectors[:1200], cells=100, seed=0, spherical=False).grouping == "valley"


def assert_farthest_first(cells: Vectors) -> None:
    """Every cell is as far from those before it as any later one is."""
    apart = ((cells[:, None].astype(np.float64) - cells) ** 2).sum(axis=2)
    for number in range(1, len(cells)):
        left = apart[number:, :number].min(axis=1)
        assert left[0] >= left.max() - 1e-5


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.booleans(), st.data())
def test_in_a_sparse_pool_the_cells_of_a_group_are_numbered_farthest_first(
    seed: int, count: int, spherical: bool, data: st.DataObject
) -> None:
    vectors, _ = blobs(seed, count, 4, spread=0.3)
    cells = data.draw(st.integers(count, 4 * count))
    fit = fit_hierarchy(vectors, cells=cells, seed=seed, spherical=spherical)
    assert fit.grouping == "ward"
    for group in range(fit.tree.groups.max() + 1):
        assert_farthest_first(fit.tree.cells[fit.tree.groups == group])


def test_one_mass_without_a_valley_is_numbered_farthest_first() -> None:
    vectors = np.random.default_rng(0).normal(size=(6000, 4)).astype(np.float32)
    fit = fit_hierarchy(vectors, cells=100, seed=0, spherical=False)
    for group in range(fit.tree.groups.max() + 1):
        assert_farthest_first(fit.tree.cells[fit.tree.groups == group])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 1 << 32))
def test_reordered_cells_keep_the_numbers_of_their_groups(groups: list[int], seed: int) -> None:
    cells = np.random.default_rng(seed).normal(size=(len(groups), 3)).astype(np.float32)
    order = farthest_first(cells, np.array(groups, np.int64))
    assert sorted(order.tolist()) == list(range(len(groups)))
    assert [groups[number] for number in order] == groups


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 60))
def test_ward_makes_no_more_groups_than_asked(seed: int, count: int, most: int) -> None:
    groups = ward_groups(blobs(seed, count, 1)[0], most)
    assert groups.shape == (count,)
    assert len(set(groups.tolist())) == min(count, most)


def test_one_centroid_is_one_group() -> None:
    one = np.ones((1, 3), np.float32)
    assert valley_groups(one, one, TreeConfig()).tolist() == [0]


@settings(max_examples=30)
@given(st.integers(0, 1 << 32), st.integers(1, 40), METHODS, st.data())
def test_levels_are_nested_and_numbered_by_their_first_cells(
    seed: int, count: int, method: str, data: st.DataObject
) -> None:
    vectors, _ = blobs(seed, count, 2, spread=0.3)
    config = TreeConfig(method=method, resamples=2)  # type: ignore[arg-type]
    tree = fit_hierarchy(vectors, cells=data.draw(st.integers(1, 2 * count)), seed=seed, config=config).tree
    for level in (tree.clusters, tree.groups):
        firsts = [level.tolist().index(number) for number in range(level.max() + 1)]
        assert firsts == sorted(firsts)
    for cluster in range(tree.clusters.max() + 1):
        assert len(set(tree.groups[tree.clusters == cluster].tolist())) == 1
    assert tree.groups.max() <= tree.clusters.max() < len(tree.cells)


# The tree -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.data())
def test_assignment_is_the_nearest_cell_and_its_group(seed: int, count: int, data: st.DataObject) -> None:
    vectors, _ = blobs(seed, count, 2, spread=0.3)
    tree = fit_hierarchy(vectors, cells=data.draw(st.integers(1, count)), seed=seed).tree
    paths, distances = tree.assign(vectors)
    assert paths.shape == (2 * count, 3)
    assert paths.dtype == np.int32
    assert distances.dtype == np.float32
    assert ((distances >= 0) & (distances <= 2)).all()
    for vector, (group, cluster, cell), distance in zip(vectors, paths, distances, strict=True):
        similarities = [float(vector @ centroid) for centroid in tree.cells]
        assert similarities[cell] >= max(similarities) - 1e-6
        assert distance == pytest.approx(max(0, 1 - max(similarities)), abs=1e-6)
        assert (group, cluster) == (tree.groups[cell], tree.clusters[cell])


def test_dead_vectors_belong_nowhere() -> None:
    cells = np.eye(3, dtype=np.float32)
    tree = Tree(cells=cells, clusters=np.array([0, 1, 1], np.int32), groups=np.zeros(3, np.int32))
    paths, distances = tree.assign(np.array([[0, 0, 0], [0, 1, 0], [np.nan, 0, 1], [0, np.inf, 0]], np.float32))
    assert paths.tolist() == [[-1] * 3, [0, 1, 1], [-1] * 3, [-1] * 3]
    assert distances.tolist() == [2, 0, 2, 2]


def test_nothing_to_assign_gives_nothing() -> None:
    none = np.zeros(3, np.int32)
    tree = Tree(cells=np.eye(3, dtype=np.float32), clusters=none, groups=none)
    paths, distances = tree.assign(np.zeros((0, 3), np.float32))
    assert (paths.shape, distances.shape) == ((0, 3), (0,))


def test_a_tree_of_wrong_shapes_is_refused() -> None:
    cells = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="a tree needs cells"):
        Tree(cells=cells, clusters=np.zeros(2, np.int32), groups=np.zeros(3, np.int32))


# Figures --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 100), st.integers(1, 5000))
def test_the_number_of_clusters_keeps_its_limits(samples: int, per_cluster: int, most: int) -> None:
    k = cluster_count(samples, per_cluster, most)
    assert 1 <= k <= min(samples, most)
    if 1 < k < min(samples, most):
        assert abs(k * per_cluster - samples) <= per_cluster / 2


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(13, 100), st.integers(1, 5000))
def test_pools_without_a_density_have_finer_cells(samples: int, independent: int, per_cluster: int, most: int) -> None:
    k = cell_count(samples, independent, per_cluster, most, 12)
    assert cluster_count(samples, per_cluster, most) <= k <= min(samples, most)
    dense = max(256, round(samples / per_cluster))
    if min(samples, independent) < 12 * min(most, dense):
        fine = max(round(samples / per_cluster), min(1000, round(samples / 4)))
        assert k == max(1, min(most, fine))
    else:
        assert k == min(most, dense)


def test_frames_of_few_videos_show_no_density() -> None:
    vectors, _ = long_tail(0)
    fits = [
        fit_hierarchy(vectors, cells=100, seed=0, spherical=False, independent=count) for count in (None, 1200, 1199)
    ]
    assert [fit.grouping for fit in fits] == ["valley", "valley", "ward"]


LABELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=50)


@given(LABELS)
def test_purity_is_the_share_of_the_commonest_label(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = np.array(pairs, np.int64).T
    right = sum(
        Counter(label for cluster, label in pairs if cluster == c).most_common(1)[0][1] for c in {c for c, _ in pairs}
    )
    assert purity(clusters, labels) == pytest.approx(right / len(pairs))
    assert purity(clusters, clusters) == 1


@given(LABELS, st.permutations(range(6)))
def test_agreement_does_not_depend_on_names_or_order(pairs: list[tuple[int, int]], names: list[int]) -> None:
    clusters, labels = np.array(pairs, np.int64).T
    one = agreement(clusters, labels)
    other = agreement(np.array(names)[clusters][::-1], labels[::-1])
    assert one == pytest.approx(other, abs=1e-9)
    both = [Counter(pairs), Counter(clusters.tolist()), Counter(labels.tolist())]
    joint, a, b = (-sum(n / len(pairs) * np.log(n / len(pairs)) for n in counter.values()) for counter in both)
    if a + b > 1e-9:
        assert one["nmi"] == pytest.approx(2 * (a + b - joint) / (a + b), abs=1e-9)
    assert agreement(clusters, clusters) == pytest.approx({"purity": 1, "nmi": 1, "ami": 1})


def test_chance_has_mutual_information_that_is_adjusted_away() -> None:
    rng = np.random.default_rng(0)
    found = agreement(rng.integers(0, 200, 1000), rng.integers(0, 5, 1000))
    assert found["nmi"] > 0.1
    assert abs(found["ami"]) < 0.03


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


@pytest.mark.parametrize("name", ["most", "iterations", "sparse", "evidence", "resamples", "memory_mb"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"cluster\.tree\.{name} must be >= 1, got 0"):
        TreeConfig(**{name: 0})  # type: ignore[arg-type]


def test_an_unknown_method_and_an_impossible_border_are_refused() -> None:
    with pytest.raises(ValueError, match="must be 'valley' or 'resampled', got 'flat'"):
        TreeConfig(method="flat")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cluster\.tree\.border must be between 0 and 1, got 1"):
        TreeConfig(border=1)
