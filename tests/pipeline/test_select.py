"""Laws of the selection: exactly N, spread evenly, the same frames for any split and order."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.select import SelectConfig, cell_name, quotas, selection_key, shortfall, survives, threshold, trim

CONFIG = SelectConfig()


@st.composite
def pools(draw: st.DrawFn) -> dict[str, int]:
    """Counts of a few cells: a path of two numbers, two attributes of which some values are unknown."""
    values = st.tuples(
        st.integers(0, 2),
        st.integers(0, 5),
        st.sampled_from(["a", "b", None, "null"]),
        st.sampled_from(["x", "ß\n", None]),
    )
    paths = draw(st.lists(values, max_size=12, unique=True))
    return {cell_name(value[:2], value[2:]): draw(st.integers(0, 30)) for value in paths}


def objective(taken: Mapping[str, int], config: SelectConfig) -> float:
    """The formula of the module's docstring, said once more."""
    filled: Counter[tuple[int, str]] = Counter()
    for cell, amount in taken.items():
        for margin, value in enumerate(json.loads(cell)):
            filled[margin, json.dumps(value)] += amount
    weight = {0: config.group_weight, 1: config.cluster_weight}
    return sum(weight.get(m, config.attribute_weight) * math.log(1 + n) for (m, _), n in filled.items())


# Quotas ---------------------------------------------------------------------------------------------------------------


@given(pools(), st.data())
def test_quotas_sum_to_the_target_and_exceed_no_cell(counts: dict[str, int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    wanted = quotas(counts, target, CONFIG)
    assert sum(wanted.values()) == target
    assert set(wanted) == {cell for cell, count in counts.items() if count}
    assert all(0 <= wanted[cell] <= counts[cell] for cell in wanted)


@given(pools(), st.data())
def test_quotas_do_not_depend_on_the_order_of_the_counts(counts: dict[str, int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    shuffled = dict(data.draw(st.permutations(list(counts.items()))))
    assert quotas(shuffled, target, CONFIG) == quotas(counts, target, CONFIG)


@given(pools(), st.data())
def test_one_frame_more_takes_none_away(counts: dict[str, int], data: st.DataObject) -> None:
    total = sum(counts.values())
    if total:
        target = data.draw(st.integers(0, total - 1))
        fewer, more = quotas(counts, target, CONFIG), quotas(counts, target + 1, CONFIG)
        assert all(more[cell] >= fewer[cell] for cell in fewer)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.randoms(use_true_random=False), st.data())
def test_greedy_is_near_the_best_of_all_choices(sizes: list[int], random: Random, data: st.DataObject) -> None:
    names = [cell_name((i % 2, i), (str(random.choice("ab")), str(random.choice("xyz")))) for i in range(len(sizes))]
    counts = dict(zip(names, sizes, strict=True))
    target = data.draw(st.integers(1, sum(sizes)))
    choices = itertools.product(*(range(size + 1) for size in sizes))
    best = max(objective(dict(zip(names, c, strict=True)), CONFIG) for c in choices if sum(c) == target)
    assert objective(quotas(counts, target, CONFIG), CONFIG) >= (1 - 1 / math.e) * best - 1e-9


@pytest.mark.parametrize("target", [6, 60, 600])
def test_a_symmetric_pool_is_taken_evenly(target: int) -> None:
    counts = {cell_name((g, 2 * g + c), (a,)): 1000 for g in range(2) for c in range(2) for a in ("x", "y", "z")}
    wanted = quotas(counts, target, CONFIG)
    for margin in range(3):
        sums: Counter[str] = Counter()
        for cell, amount in wanted.items():
            sums[str(json.loads(cell)[margin])] += amount
        assert max(sums.values()) - min(sums.values()) <= 1


def test_rare_classes_are_taken_whole_before_common_ones_fill_up() -> None:
    counts = {cell_name((0, 0), ("common",)): 100_000, cell_name((1, 1), ("rare",)): 50}
    wanted = quotas(counts, 120, CONFIG)
    assert wanted[cell_name((1, 1), ("rare",))] == 50


def test_a_margin_without_weight_is_not_balanced() -> None:
    counts = {cell_name((0, 0), (c,)): 100 for c in "abcd"} | {cell_name((1, 1), ("a",)): 100}
    wanted = quotas(counts, 100, SelectConfig(group_weight=1, cluster_weight=0, attribute_weight=0))
    assert wanted[cell_name((1, 1), ("a",))] == 50


def test_large_targets_stay_exact() -> None:
    counts = {cell_name((0, i), ()): 98_765 * (i + 1) for i in range(3)}
    target = 512_345
    wanted = quotas(counts, target, CONFIG)
    assert sum(wanted.values()) == target
    assert all(wanted[cell] <= counts[cell] for cell in counts)


@pytest.mark.parametrize("counts", [{}, {cell_name((0, 0), ()): 3}, {cell_name((0, 0), ()): 0}])
def test_target_zero_takes_nothing(counts: dict[str, int]) -> None:
    assert set(quotas(counts, 0, CONFIG).values()) <= {0}


def test_a_target_above_what_exists_says_what_each_group_holds() -> None:
    counts = {cell_name((0, 0), ("a",)): 3, cell_name((0, 1), ("a",)): 4, cell_name((1, 2), ("b",)): 1}
    with pytest.raises(
        InputError, match=r"--target-size 9 is above .* 8 different frames .*\(group 0: 7, group 1: 1\)"
    ):
        quotas(counts, 9, CONFIG)
    with pytest.raises(InputError, match=r"\(none\)"):
        quotas({}, 1, CONFIG)
    assert "lower the target" in shortfall(counts, 9)


@pytest.mark.parametrize("name", ["group_weight", "cluster_weight", "attribute_weight"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"select.{name} must be finite and >= 0"):
        SelectConfig(**{name: value})  # type: ignore[arg-type]


def test_some_weight_must_be_left() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SelectConfig(group_weight=0, cluster_weight=0, attribute_weight=0)


# Cells and keys -------------------------------------------------------------------------------------------------------


@given(st.tuples(st.integers(0, 99), st.integers(0, 99)), st.lists(st.one_of(st.none(), st.text()), max_size=4))
def test_a_cell_name_tells_its_path_and_classes(path: tuple[int, int], classes: list[str | None]) -> None:
    assert json.loads(cell_name(path, classes)) == [*path, *classes]


def test_keys_are_even_and_change_with_seed_and_id() -> None:
    keys = np.array([selection_key(0, str(i)) for i in range(4000)], np.uint64)
    assert len(np.unique(keys)) == 4000
    deciles = np.bincount((keys >> np.uint64(60)).astype(np.int64), minlength=16)
    assert np.all(np.abs(deciles - 250) < 90)
    assert selection_key(0, "a") != selection_key(1, "a")
    assert selection_key(1, "0|a") != selection_key(10, "|a")
    assert selection_key(7, "a") == selection_key(7, "a")


# The map-only pass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quota", "count"), [(1, 1000), (5, 20), (50, 60), (300, 1000), (999, 1000)])
def test_a_threshold_is_enough_over_many_seeds(quota: int, count: int) -> None:
    share = threshold(quota, count)
    rng = np.random.default_rng(quota)
    survivors = [survives(rng.integers(0, 1 << 64, count, np.uint64), np.full(count, share)).sum() for _ in range(400)]
    assert min(survivors) >= quota
    assert np.mean(survivors) <= min(count, quota + 7 * math.sqrt(quota) + 20)


def test_a_whole_cell_survives_and_an_unwanted_one_does_not() -> None:
    keys = np.array([0, 1, (1 << 64) - 1], np.uint64)
    assert survives(keys, np.full(3, threshold(3, 3))).all()
    assert not survives(keys, np.full(3, threshold(0, 3))).any()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8)), max_size=40), st.data())
def test_trim_takes_the_smallest_hashes_of_each_cell(frames: list[tuple[str, int]], data: st.DataObject) -> None:
    cells = [cell for cell, _ in frames]
    keys = np.array([key for _, key in frames], np.uint64)
    ids = [f"{i:03d}" for i in range(len(frames))]
    have = Counter(cells)
    wanted = {cell: data.draw(st.integers(0, n)) for cell, n in have.items()}
    chosen = trim(cells, keys, ids, wanted).tolist()
    assert chosen == sorted(set(chosen))
    for cell, n in wanted.items():
        ranked = sorted((int(keys[i]), ids[i]) for i in range(len(frames)) if cells[i] == cell)
        assert sorted((int(keys[i]), ids[i]) for i in chosen if cells[i] == cell) == ranked[:n]


def test_too_few_survivors_are_an_error_that_names_the_cell() -> None:
    with pytest.raises(ValueError, match="cell a: 1 of 2 frames survived"):
        trim(["a", "b"], np.array([1, 2], np.uint64), ["x", "y"], {"a": 2})


@settings(max_examples=40)
@given(st.data())
def test_the_choice_is_the_same_for_any_split_into_shards_and_any_order(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1 << 31))
    names = [cell_name((i % 2, i), ("x" if i % 3 else None,)) for i in range(5)]
    frames = [(f"{i:032x}", names[data.draw(st.integers(0, 4))]) for i in range(data.draw(st.integers(1, 60)))]
    target = data.draw(st.integers(0, len(frames)))
    counts = Counter(cell for _, cell in frames)
    wanted = quotas(counts, target, CONFIG)
    limits = {cell: threshold(quota, counts[cell]) for cell, quota in wanted.items()}

    def choose(ordered: list[tuple[str, str]], cuts: list[int]) -> set[str]:
        survivors: list[tuple[str, str, int]] = []
        for start, stop in itertools.pairwise([0, *sorted(cuts), len(ordered)]):
            shard = ordered[start:stop]
            keys = np.array([selection_key(seed, i) for i, _ in shard], np.uint64)
            stays = survives(keys, np.array([limits[cell] for _, cell in shard]))
            survivors += [(*shard[i], int(keys[i])) for i in np.flatnonzero(stays)]
        ids, cells, kept = ([s[column] for s in survivors] for column in range(3))
        rows = trim([str(c) for c in cells], np.array(kept, np.uint64), [str(i) for i in ids], wanted)
        return {str(ids[row]) for row in rows}

    cuts = st.lists(st.integers(0, len(frames)), max_size=5)
    expected = choose(frames, [])
    assert len(expected) == target
    assert choose(data.draw(st.permutations(frames)), data.draw(cuts)) == expected


def test_a_large_selection_from_equal_cells_is_even() -> None:
    counts = {cell_name((0, c), ()): 100 for c in range(500)}
    wanted = quotas(counts, 12_500, CONFIG)
    assert set(wanted.values()) == {25}


def test_a_large_selection_contains_a_smaller_one() -> None:
    rng = np.random.default_rng(0)
    counts = {cell_name((c % 7, c), ("ab"[c % 2],)): int(n) for c, n in enumerate(rng.integers(1, 200, 300))}
    small, large = quotas(counts, 4_000, CONFIG), quotas(counts, 8_000, CONFIG)
    assert all(small[cell] <= large[cell] for cell in counts)
