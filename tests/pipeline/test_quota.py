"""Laws of the plan: exactly N, near its targets, the same for any order, and an honest word on what cannot be met."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import quota
from pipeline.errors import InputError
from pipeline.quota import LEVELS, QuotaPlan, SelectConfig, least_shortfall, plan_quotas, shortfall_text
from pipeline.select import cell_name
from pipeline.waterfill import nested_water_fill, water_fill

CONFIG = SelectConfig()
NAMES = ("place", "tone")
TREE_ONLY = SelectConfig(attribute_weight=0)
ATTRIBUTE_ONLY = SelectConfig(group_weight=0, cluster_weight=0, prototype_weight=0, unknown=0)


@st.composite
def pools(draw: st.DrawFn, most: int = 30) -> dict[str, int]:
    """Counts of a few cells: a path of three numbers, two attributes of which some values are unknown."""
    prototypes = draw(st.lists(st.integers(0, 11), max_size=8, unique=True))
    cells: dict[str, int] = {}
    for prototype in prototypes:
        for _ in range(draw(st.integers(1, 3))):
            classes = draw(st.tuples(st.sampled_from(["a", "b", None, "null"]), st.sampled_from(["x", "ß\n", None])))
            cells[cell_name((prototype % 2, prototype % 6, prototype), classes)] = draw(st.integers(0, most))
    return cells


def plan(counts: Mapping[str, int], target: int, config: SelectConfig = CONFIG) -> QuotaPlan:
    return plan_quotas(counts, target, config, NAMES)


def of_class(quotas: Mapping[str, int], place: int) -> Counter[object]:
    """Frames per value that stands at a place of the cells' names."""
    sums: Counter[object] = Counter()
    for cell, amount in quotas.items():
        sums[json.loads(cell)[place]] += amount
    return sums


@given(pools(), st.data())
def test_quotas_sum_to_the_target_and_exceed_no_cell(counts: dict[str, int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    wanted = plan(counts, target).quotas
    assert sum(wanted.values()) == target
    assert set(wanted) == {cell for cell, count in counts.items() if count}
    assert all(0 <= wanted[cell] <= counts[cell] for cell in wanted)


@given(pools(), st.data())
def test_the_plan_does_not_depend_on_the_order_of_the_counts(counts: dict[str, int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    shuffled = dict(data.draw(st.permutations(list(counts.items()))))
    one, other = plan(shuffled, target), plan(counts, target)
    assert one.quotas == other.quotas
    assert [rows for _, rows in one.margins] == [rows for _, rows in other.margins]


@given(pools(), st.data())
def test_a_smaller_selection_is_part_of_a_larger_one(counts: dict[str, int], data: st.DataObject) -> None:
    targets = sorted(data.draw(st.integers(0, sum(counts.values()))) for _ in range(2))
    fewer, more = (plan(counts, target).quotas for target in targets)
    assert all(more[cell] >= fewer[cell] for cell in fewer)


@given(pools(), st.data())
def test_frames_added_to_a_cell_that_is_not_taken_whole_change_nothing(
    counts: dict[str, int], data: st.DataObject
) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    before = plan(counts, target).quotas
    for cell in [cell for cell, taken in before.items() if taken < counts[cell]][:3]:
        assert plan({**counts, cell: counts[cell] + 7}, target).quotas == before


@given(pools(), st.data())
def test_frames_added_to_a_cell_taken_whole_come_out_of_the_others(counts: dict[str, int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, sum(counts.values())))
    before = plan(counts, target).quotas
    for cell in [cell for cell, taken in before.items() if taken == counts[cell]][:2]:
        after = plan({**counts, cell: counts[cell] + 5}, target).quotas
        assert after[cell] >= before[cell]
        moved = sum(before[other] - after[other] for other in before if other != cell)
        assert moved == after[cell] - before[cell]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.data())
def test_one_margin_of_equal_shares_is_water_filling(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(sizes)))
    counts = {cell_name((0, i, i), ()): n for i, n in enumerate(sizes)}
    config = SelectConfig(group_weight=0, prototype_weight=0)
    wanted = plan_quotas(counts, budget, config).quotas
    assert [wanted.get(cell, 0) for cell in counts] == water_fill(np.array(sizes), budget).tolist()


@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_down_a_tree_of_equal_groups_the_quotas_are_those_of_nested_water_filling(
    groups: int, each: int, data: st.DataObject
) -> None:
    """To within a frame per node, and with the finer level so light that it only breaks ties of the coarser."""
    count = groups * each
    sizes = np.array(data.draw(st.lists(st.integers(1, 30), min_size=count, max_size=count)))
    budget = data.draw(st.integers(0, int(sizes.sum())))
    paths = np.stack([np.arange(count) // each, np.arange(count)], axis=1)
    counts = {cell_name((*path, path[1]), ()): int(n) for path, n in zip(paths.tolist(), sizes, strict=True)}
    config = SelectConfig(group_weight=1, cluster_weight=1e-6, prototype_weight=0)
    wanted = np.array([plan_quotas(counts, budget, config).quotas[cell] for cell in counts])
    expected = nested_water_fill(paths, sizes, budget)
    assert np.abs(wanted - expected).max() <= 1
    for group in range(groups):
        assert abs(wanted[paths[:, 0] == group].sum() - expected[paths[:, 0] == group].sum()) <= 1


def test_a_group_is_wanted_by_the_root_of_the_number_of_its_clusters() -> None:
    counts = {cell_name((int(c >= 4), c, c), ()): 1000 for c in range(5)}
    found = plan_quotas(counts, 300, SelectConfig())
    assert of_class(found.quotas, 0) == {0: 200, 1: 100}
    assert of_class(found.quotas, 1) == {0: 50, 1: 50, 2: 50, 3: 50, 4: 100}


@settings(max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_for_nested_margins_no_other_choice_is_likelier(sizes: list[int], data: st.DataObject) -> None:
    names = [cell_name((i % 2, i, i), ()) for i in range(len(sizes))]
    target = data.draw(st.integers(1, sum(sizes)))
    config = SelectConfig(group_weight=0.7, cluster_weight=1, prototype_weight=0)
    found = plan_quotas(dict(zip(names, sizes, strict=True)), target, config)

    def likelihood(taken: Mapping[str, int]) -> float:
        total = 0.0
        for margin, rows in found.margins:
            counted = of_class(taken, LEVELS.index(margin.name))
            terms = zip(rows, margin.share, strict=True)
            total += margin.weight * sum(
                counted[row.name] * math.log(share) - math.lgamma(counted[row.name] + 1) for row, share in terms
            )
        return total

    choices = (dict(zip(names, c, strict=True)) for c in itertools.product(*(range(size + 1) for size in sizes)))
    best = max(likelihood(choice) for choice in choices if sum(choice.values()) == target)
    assert likelihood(found.quotas) == pytest.approx(best)


@settings(max_examples=50)
@given(pools(most=3), st.data())
def test_the_least_shortfall_is_that_of_the_best_of_all_choices(counts: dict[str, int], data: st.DataObject) -> None:
    counts = dict(list({cell: n for cell, n in counts.items() if n}.items())[:5])
    target = data.draw(st.integers(0, sum(counts.values())))
    found = plan_quotas(counts, target, CONFIG, NAMES, {"place": ("a", "b", "c"), "tone": ("x",)})

    def missing(taken: Mapping[str, int]) -> float:
        total = 0.0
        for margin, rows in found.margins:
            if margin.name in NAMES:
                counted = of_class(taken, len(LEVELS) + NAMES.index(margin.name))
                total += sum(max(0.0, row.target - counted[row.name]) for row in rows if row.name is not None)
        return total

    choices = itertools.product(*(range(n + 1) for n in counts.values()))
    best = min(missing(dict(zip(counts, c, strict=True))) for c in choices if sum(c) == target)
    assert least_shortfall(counts, found) == pytest.approx(best, abs=1e-6)
    assert found.shortfall == pytest.approx(missing(found.quotas))
    assert found.shortfall >= best - 1e-9


def test_looking_at_the_best_cells_only_is_the_same_as_looking_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    counts: Counter[str] = Counter()
    for _ in range(3000):
        c = int(rng.integers(200))
        classes = (str(rng.choice(["a", "b", "c"], p=[0.9, 0.08, 0.02])), str(rng.integers(5)))
        counts[cell_name((c % 10, c % 50, c), classes)] += int(rng.integers(1, 4))
    expected = plan(counts, 1500).quotas
    for working in (1, 7, 10_000):
        monkeypatch.setattr(quota, "_WORKING", working)
        assert plan(counts, 1500).quotas == expected


@pytest.mark.parametrize("target", [12, 60, 600])
def test_a_symmetric_pool_is_taken_evenly(target: int) -> None:
    cells = itertools.product(range(2), range(2), ("x", "y", "z"))
    counts = {cell_name((g, 2 * g + c, 2 * g + c), (a, "t")): 1000 for g, c, a in cells}
    wanted = plan(counts, target).quotas
    for place in (0, 1, 2, 3):
        sums = of_class(wanted, place).values()
        assert max(sums) - min(sums) <= 1


def test_rare_classes_are_taken_whole_before_common_ones_fill_up() -> None:
    counts = {cell_name((0, 0, 0), ("common", None)): 100_000, cell_name((1, 1, 1), ("rare", None)): 50}
    assert plan(counts, 120).quotas[cell_name((1, 1, 1), ("rare", None))] == 50


def test_large_targets_stay_exact() -> None:
    counts = {cell_name((0, 0, i), ()): 9_876 * (i + 1) for i in range(3)}
    wanted = plan_quotas(counts, 51_234, CONFIG).quotas
    assert sum(wanted.values()) == 51_234
    assert sorted(wanted.values()) == [9_876, 19_752, 21_606]


# Targets --------------------------------------------------------------------------------------------------------------


def place_counts(**counts: int) -> dict[str, int]:
    return {cell_name((0, 0, 0), (None if name == "none" else name, "t")): n for name, n in counts.items()}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("uniform", {"a": 100, "b": 100, "c": 100}),
        ("proportional", {"a": 180, "b": 90, "c": 30}),
        ({"a": 1, "b": 2}, {"a": 100, "b": 200, "c": 0}),
        ({"c": 2, "*": 1}, {"a": 75, "b": 75, "c": 150}),
    ],
)
def test_where_frames_are_plenty_the_targets_are_met(
    target: str | dict[str, float], expected: Mapping[str, int]
) -> None:
    config = SelectConfig(group_weight=0, cluster_weight=0, prototype_weight=0, unknown=0, targets={"place": target})
    found = plan(place_counts(a=6000, b=3000, c=1000), 300, config)
    got = of_class(found.quotas, len(LEVELS))
    assert all(abs(got[name] - n) <= 1 for name, n in expected.items())
    assert found.shortfall <= 2
    assert all(row.reason is None for _, rows in found.margins for row in rows)


def test_frames_of_which_a_class_is_not_known_are_a_class_of_their_own() -> None:
    counts = place_counts(a=1000, b=1000, none=1000)
    config = SelectConfig(group_weight=0, cluster_weight=0, prototype_weight=0, unknown=0.5)
    got = of_class(plan(counts, 250, config).quotas, len(LEVELS))
    assert got == {"a": 100, "b": 100, None: 50}
    table = SelectConfig(
        group_weight=0, cluster_weight=0, prototype_weight=0, targets={"place": {"a": 1, "b": 1, "unknown": 3}}
    )
    assert of_class(plan(counts, 250, table).quotas, len(LEVELS)) == {"a": 50, "b": 50, None: 150}


def test_what_a_class_cannot_give_is_said_with_its_reason_and_goes_to_the_others() -> None:
    counts = place_counts(a=1000, b=20)
    found = plan_quotas(counts, 150, ATTRIBUTE_ONLY, NAMES, {"place": ("a", "b", "c"), "tone": ("t",)})
    rows = {row.name: row for margin, rows in found.margins if margin.name == "place" for row in rows}
    assert (rows["b"].reason, rows["b"].exists, rows["b"].chosen, rows["b"].missing) == ("scarce", 20, 20, 30)
    assert (rows["c"].reason, rows["c"].exists, rows["c"].missing) == ("absent", 0, 50)
    assert rows["a"].reason is None
    assert rows["a"].chosen == 130
    assert found.shortfall == pytest.approx(80)
    assert least_shortfall(counts, found) == pytest.approx(80)


def test_targets_that_stand_against_each_other_are_a_conflict() -> None:
    counts = {cell_name((0, 0, 0), ("a", "x")): 100, cell_name((0, 0, 0), ("b", "y")): 100}
    config = SelectConfig(
        group_weight=0, cluster_weight=0, prototype_weight=0,
        unknown=0, targets={"place": {"a": 1, "b": 0}, "tone": {"x": 0, "y": 1}},
    )  # fmt: skip
    found = plan(counts, 100, config)
    reasons = {(m.name, row.name): row.reason for m, rows in found.margins for row in rows if row.reason}
    assert reasons == {("place", "a"): "conflict", ("tone", "y"): "conflict"}
    assert least_shortfall(counts, found) == pytest.approx(100)


def test_an_attribute_that_no_frame_has_changes_nothing_and_is_said() -> None:
    counts = {cell_name((0, 0, i), (None, "xy"[i % 2])): 50 for i in range(6)}
    with_it = plan_quotas(counts, 60, CONFIG, NAMES, {"place": ("a", "b")})
    rows = [row for margin, rows in with_it.margins if margin.name == "place" for row in rows]
    assert [(row.name, row.reason) for row in rows] == [("a", "absent"), ("b", "absent"), (None, None)]
    assert least_shortfall(counts, with_it) == pytest.approx(with_it.shortfall)
    assert of_class(with_it.quotas, len(LEVELS) + 1) == {"x": 30, "y": 30}
    bare = plan_quotas(counts, 60, CONFIG, NAMES)
    assert bare.quotas == with_it.quotas


def test_pairs_spread_over_the_classes_of_both() -> None:
    sizes = {("a", "x"): 4000, ("a", "y"): 400, ("b", "x"): 400, ("b", "y"): 400}
    counts = {cell_name((0, 0, 0), pair): n for pair, n in sizes.items()}
    config = SelectConfig(group_weight=0, cluster_weight=0, prototype_weight=0, unknown=0, pairs=(("place", "tone"),))
    found = plan(counts, 400, config)
    assert set(found.quotas.values()) == {100}
    weighted = SelectConfig(
        group_weight=0, cluster_weight=0, prototype_weight=0, attribute_weight=1e-9, unknown=0,
        pairs=(("place", "tone"),), targets={"place+tone": {"b+y": 3, "*": 1}},
    )  # fmt: skip
    assert plan(counts, 300, weighted).quotas[cell_name((0, 0, 0), ("b", "y"))] == 150


def test_first_frames_of_sources_go_before_second_ones() -> None:
    counts = {cell_name((0, 0, 0), (turn,)): n for turn, n in (("1", 60), ("2-3", 90), ("4-7", 150))}
    config = SelectConfig(group_weight=0, cluster_weight=0, prototype_weight=0)
    found = plan_quotas(counts, 40, config, (quota.OF_SOURCE,))
    assert all(abs(found.quotas[cell] - n) <= 1 for cell, n in zip(counts, (30, 8, 2), strict=True))
    assert plan_quotas(counts, 100, config, (quota.OF_SOURCE,)).quotas[cell_name((0, 0, 0), ("1",))] == 60


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [{}, {cell_name((0, 0, 0), (None, None)): 3}, {cell_name((0, 0, 0), ("a", "x")): 0}])
def test_target_zero_takes_nothing(counts: dict[str, int]) -> None:
    assert set(plan(counts, 0).quotas.values()) <= {0}


def test_a_target_above_what_exists_says_what_each_group_holds() -> None:
    counts = {cell_name((0, 0, 0), ("a", "x")): 3, cell_name((0, 1, 1), ("a", "x")): 4}
    counts[cell_name((1, 2, 2), ("b", "x"))] = 1
    with pytest.raises(
        InputError, match=r"--target-size 9 is above .* 8 different frames .*\(group 0: 7, group 1: 1\)"
    ):
        plan(counts, 9)
    with pytest.raises(InputError, match=r"\(none\)"):
        plan({}, 1)
    assert "lower the target" in shortfall_text(counts, 9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SelectConfig(targets={"plase": "uniform"}), "names 'plase', which is not balanced; balanced are place, tone"),
        (SelectConfig(targets={"place": {"z": 1}}), "names 'z', which is no class; classes are a"),
        (SelectConfig(pairs=(("place", "shape"),)), "select.pairs names 'shape'"),
    ],
)
def test_a_target_for_what_is_not_there_is_refused(config: SelectConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(place_counts(a=5), 2, config)


@pytest.mark.parametrize(
    "name", [*(f"{level}_weight" for level in LEVELS), "attribute_weight", "pair_weight", "unknown"]
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"select.{name} must be finite and >= 0"):
        SelectConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"group_weight": 0, "cluster_weight": 0, "prototype_weight": 0, "attribute_weight": 0}, "at least one"),
        ({"per_source": -1}, "select.per_source must be >= 0"),
        ({"rounds": 3}, "select.rounds must be 1 or 2, got 3"),
        ({"oversample": 1.0}, "select.oversample must be above 1"),
        ({"pairs": (("a", "a"),)}, "distinct pairs"),
        ({"pairs": (("a", "b"), ("b", "a"))}, "distinct pairs"),
        ({"targets": {"a": "even"}}, "select.targets.a must be 'uniform', 'proportional' or a table, got 'even'"),
        ({"targets": {"a": {"x": -1.0}}}, "select.targets.a.x must be finite and >= 0"),
        ({"targets": {"a": {"x": 0.0}}}, "must give some class a weight above 0"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectConfig(**settings_)  # type: ignore[arg-type]


def many_cells(seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    paths = rng.integers(0, 60, 6000)
    classes = rng.zipf(1.7, (6000, 2)).clip(max=6)
    names = [
        cell_name((int(p) // 20, int(p) // 4, int(p)), (f"a{a}", f"b{b}"))
        for p, (a, b) in zip(paths, classes, strict=True)
    ]
    return dict(Counter(names))


@pytest.mark.parametrize("seed", [0, 1])
def test_of_very_many_cells_a_smaller_choice_is_part_of_a_larger_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "_EXACT_CELLS", 0)
    monkeypatch.setattr(quota, "_WORKING_OF_MANY", 40)
    counts = many_cells(seed)
    plans = [plan(counts, target).quotas for target in (200, 777, 3000)]
    for fewer, more in itertools.pairwise(plans):
        assert all(number <= more[cell] for cell, number in fewer.items())
    assert all(number <= counts[cell] for cell, number in plans[-1].items())


@pytest.mark.parametrize("seed", [0, 1])
def test_of_very_many_cells_no_class_strays_from_the_greedy_choice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = many_cells(seed)
    exact = plan(counts, 3000).quotas
    monkeypatch.setattr(quota, "_EXACT_CELLS", 0)
    monkeypatch.setattr(quota, "_WORKING_OF_MANY", 40)
    found = plan(counts, 3000).quotas
    for place in range(len(LEVELS), len(LEVELS) + 2):
        before, after = of_class(exact, place), of_class(found, place)
        assert all(abs(before[name] - after[name]) <= 3000 / 128 for name in before | after)
