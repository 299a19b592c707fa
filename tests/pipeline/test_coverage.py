"""Coverage: laws of its figures, and sums that agree with the cells."""

import itertools
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.release import canonical_json
from pipeline.assign import plan_cells
from pipeline.coverage import bounds, coverage, divergence, effective, entropy
from pipeline.quota import SelectConfig
from pipeline.selection_report import as_json
from pipeline.waterfill import water_fill
from tests.pipeline.selections import plan_of, plans, target_of

counts = st.lists(st.integers(0, 1000), min_size=1, max_size=20).map(lambda values: np.array(values, np.int64))
some = counts.filter(lambda values: values.sum() > 0)


@given(some)
def test_effective_classes_lie_between_one_and_the_classes_that_exist(values: Any) -> None:
    assert 1 - 1e-12 <= effective(values) <= (values > 0).sum() * (1 + 1e-12)


@given(st.integers(1, 50), st.integers(1, 1000))
def test_classes_of_one_size_are_all_effective(count: int, size: int) -> None:
    assert effective(np.full(count, size)) == pytest.approx(count)


@given(some, st.randoms(use_true_random=False))
def test_the_order_of_classes_changes_no_bit(values: Any, random: Any) -> None:
    order = random.sample(range(len(values)), len(values))
    assert entropy(values[order]) == entropy(values)
    assert divergence(values[order], (values + 1)[order]) == divergence(values, values + 1)


@given(some.filter(lambda values: len(values) > 1))
def test_merging_two_classes_never_adds_entropy(values: Any) -> None:
    merged = np.concatenate([[values[0] + values[1]], values[2:]])
    assert entropy(merged) <= entropy(values) + 1e-12


@given(some.filter(lambda values: len(values) > 1), st.data())
def test_merging_two_classes_never_adds_divergence(values: Any, data: st.DataObject) -> None:
    goal = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(values), max_size=len(values))))
    merged = [np.concatenate([[each[0] + each[1]], each[2:]]) for each in (values, goal)]
    whole, part = divergence(values, goal), divergence(*merged)
    assert whole is not None
    assert part is not None
    assert 0 <= part <= whole + 1e-12


@given(some, st.integers(1, 9))
def test_the_divergence_from_the_target_is_zero_at_the_target_alone(values: Any, factor: int) -> None:
    assert divergence(values, factor * values) == pytest.approx(0, abs=1e-12)
    other = values + np.eye(1, len(values), dtype=np.int64)[0] * max(1, values.sum() // 10)
    if (values > 0).sum() > 1 or not values[0]:
        assert (divergence(values, other) or 0) > 0


def test_a_frame_where_the_target_wants_none_diverges_without_end() -> None:
    assert divergence(np.array([3, 1]), np.array([1.0, 0.0])) == math.inf
    assert divergence(np.array([3, 0]), np.array([1.0, 0.0])) == 0
    assert divergence(np.array([0, 0]), np.array([1.0, 0.0])) is None


def test_divergence_is_what_its_definition_says() -> None:
    assert divergence(np.array([3, 1]), np.array([1.0, 1.0])) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )


@given(counts, st.integers(0, 100), st.data())
def test_no_way_to_fill_in_the_unknown_leaves_the_bounds(values: Any, unknown: int, data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=unknown, max_size=unknown))
    truth = values + np.bincount(np.array(classes, np.int64), minlength=len(values))
    low, high = bounds(values, unknown)
    if truth.sum():
        assert (low <= truth / truth.sum() + 1e-12).all()
        assert (truth / truth.sum() <= high + 1e-12).all()
    if not unknown and truth.sum():
        assert (low == high).all()


@given(plans())
def test_every_margin_counts_every_frame_once(plan: dict[str, Any]) -> None:
    found = coverage(plan)
    assert found.candidates == sum(plan["counts"].values())
    assert found.chosen == sum(plan["quotas"].values())
    for margin in found.margins:
        assert margin.before.sum() + margin.unknown[0] == found.candidates
        assert margin.after.sum() + margin.unknown[1] == found.chosen


@given(plans())
def test_a_margin_is_what_counting_frame_by_frame_gives(plan: dict[str, Any]) -> None:
    heads = ["group", "cluster", *plan["attributes"]]
    pairs = [(a, b) for a, b in itertools.combinations(range(2, len(heads)), 2)]
    wanted = [(at,) for at in range(len(heads))] + pairs
    found = coverage(plan)
    assert [margin.names for margin in found.margins] == [tuple(heads[at] for at in places) for places in wanted]
    for margin, places in zip(found.margins, wanted, strict=True):
        for counted, frames in ((margin.before, plan["counts"]), (margin.after, plan["quotas"])):
            slow: Counter[Any] = Counter()
            for name, n in frames.items():
                cell = json.loads(name)
                key = [[*cell[:2], *cell[3:]][at] for at in places]
                slow[None if any(v is None or v == -1 for v in key) else tuple(map(str, key))] += n
            del slow[None]
            assert dict(zip(margin.classes, counted.tolist(), strict=True)) == {k: slow[k] for k in margin.classes}
            assert set(slow) <= set(margin.classes)


@given(plans(), st.randoms(use_true_random=False))
def test_the_order_of_cells_changes_no_byte(plan: dict[str, Any], random: Any) -> None:
    names = random.sample(sorted(plan["counts"]), len(plan["counts"]))
    other = plan | {key: {n: plan[key][n] for n in names if n in plan[key]} for key in ("counts", "quotas")}
    assert canonical_json(as_json(coverage(other))) == canonical_json(as_json(coverage(plan)))


@given(plans())
def test_what_is_possible_bounds_what_was_reached(plan: dict[str, Any]) -> None:
    for margin in coverage(plan).margins:
        f = margin.figures
        assert f.effective[1] <= f.effective[2] + 1e-9
        assert 0 <= f.evenness <= 1 + 1e-9
        assert 0 <= f.covered <= f.existing <= len(margin.classes)
        assert (margin.even == water_fill(margin.before, int(margin.after.sum()))).all()


@given(plans())
def test_choosing_everything_covers_everything(plan: dict[str, Any]) -> None:
    alive = {n: count for n, count in plan["counts"].items() if json.loads(n)[1] >= 0}
    for margin in coverage(plan | {"counts": alive, "quotas": alive}).margins:
        f = margin.figures
        assert f.covered == f.existing
        assert f.entropy[0] == f.entropy[1]
        assert f.unknown[0] == f.unknown[1]
        assert f.effective[1] == f.effective[2]


CELLS = {
    (0, 0, "x", "dim"): (100, 4),
    (0, 1, "x", "bright"): (50, 4),
    (1, 2, "y", "dim"): (3, 3),
    (1, 2, "y", None): (20, 2),
    (1, 10, None, "bright"): (12, 1),
    (-1, -1, "y", "dim"): (7, 0),
}
ONE = {"x": (150, 8), "y": (30, 5), "z": (0, 0)}
TWO = {("x", "dim"): (100, 4), ("y", "dim"): (10, 3), ("y", "bright"): (0, 0)}
TARGETS = [
    target_of("one", {"x": 7, "y": 7, "z": 2}, ONE.__getitem__),
    target_of("one × light", {("x", "dim"): 4, ("y", "dim"): 4, ("y", "bright"): 4}, TWO.__getitem__),
    target_of("cluster", {"2": 9, "10": 1}, {"2": (23, 5), "10": (12, 1)}.__getitem__),
]


def test_a_target_reaches_its_margin_with_classes_that_do_not_exist() -> None:
    found = {margin.name: margin for margin in coverage(plan_of(CELLS, ["one", "light"], TARGETS)).margins}
    one = found["one"]
    assert one.classes == (("x",), ("y",), ("z",))
    assert one.wanted is not None
    assert one.wanted.tolist() == [7, 7, 2]
    assert one.figures.divergence[1] == divergence(np.array([8, 5, 0]), np.array([7, 7, 2]))
    assert found["one × light"].before.tolist() == [50, 100, 0, 10]
    assert found["light"].target is None
    assert found["cluster"].classes == (("0",), ("1",), ("2",), ("10",))


def test_dead_vectors_have_no_group_but_attributes() -> None:
    found = coverage(plan_of(CELLS, ["one", "light"]))
    assert found.dead == 7
    assert found.of("group")[0].unknown == (7, 0)
    assert found.of("attribute")[0].unknown == (12, 1)
    assert found.of("pair")[0].unknown == (32, 3)


def test_shortfalls_that_people_can_film_come_first_and_the_largest_shares_of_them() -> None:
    found = coverage(plan_of(CELLS, ["one", "light"], TARGETS)).shortfalls
    assert [(s.margin, s.classes, s.missing, s.reason) for s in found] == [
        ("one × light", ("y", "bright"), 4, "absent"),
        ("one", ("z",), 2, "absent"),
        ("one", ("y",), 2, "conflict"),
        ("one × light", ("y", "dim"), 1, "conflict"),
        ("cluster", ("2",), 4, "conflict"),
    ]


def test_classes_of_people_come_before_classes_that_exist_nowhere() -> None:
    cells = {(0, 0, "feminine", "small"): (50, 4), (0, 0, "masculine", "small"): (50, 6)}
    plan = plan_of(
        cells,
        ["apparent_gender", "resolution"],
        [
            target_of("resolution", {"small": 5, "large": 5}, {"small": (100, 10), "large": (0, 0)}.__getitem__),
            target_of(
                "apparent_gender", {"feminine": 5, "masculine": 5}, {"feminine": (50, 4), "masculine": (50, 6)}.get
            ),
            target_of(
                "apparent_gender × resolution",
                {("feminine", "small"): 8, ("feminine", "large"): 2},
                lambda key: (50, 4) if key[1] == "small" else (0, 0),
            ),
            target_of("group", {"0": 30}, lambda _: (100, 10)),
        ],
    )
    assert [(s.margin, s.classes) for s in coverage(plan).shortfalls] == [
        ("apparent_gender × resolution", ("feminine", "large")),
        ("apparent_gender × resolution", ("feminine", "small")),
        ("apparent_gender", ("feminine",)),
        ("resolution", ("large",)),
        ("group", ("0",)),
    ]


def test_a_pair_may_be_asked_for_in_either_order() -> None:
    config = [SelectConfig(pairs=(pair,)) for pair in (("one", "light"), ("light", "one"))]
    counts = {name: n for name, n in plan_of(CELLS, ["light", "one"])["counts"].items() if n != 7}
    plans_ = [plan_cells(counts, 40, each, ("light", "one"), None) for each in config]
    one, other = (coverage(plan).of("pair")[0] for plan in plans_)
    assert one.name == other.name == "light × one"
    assert one.classes == other.classes
    assert one.wanted is not None
    assert other.wanted is not None
    assert one.wanted.tolist() == other.wanted.tolist()
    missing = [{(s.margin, s.classes, s.missing) for s in coverage(p).shortfalls if s.kind == "pair"} for p in plans_]
    assert missing[0] == missing[1] != set()


def test_a_pair_is_called_for_from_ten_frames_or_half_the_mean() -> None:
    few = {(0, 0, a, b): (4, 1) for a in "pq" for b in "rs"}
    many = {(0, 0, a, b): (400, 1) for a in "pq" for b in "rs"} | {(0, 0, "t", "t"): (9, 0)}
    assert coverage(plan_of(few, ["a", "b"])).of("pair")[0].least == 2
    pair = coverage(plan_of(many, ["a", "b"])).of("pair")[0]
    assert (pair.least, pair.figures.existing, pair.figures.covered) == (10, 4, 4)


def test_attributes_named_like_the_tree_keep_their_own_margin() -> None:
    target = target_of("group", {"0": 1}, lambda _: (3, 1))
    found = coverage(plan_of({(0, 0, "a", "b"): (3, 1)}, ["group", "x × y"], [target]))
    assert [(m.kind, m.target is not None) for m in found.margins[:3]] == [
        ("group", True),
        ("cluster", False),
        ("attribute", False),
    ]
    assert found.margins[2].classes == (("a",),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quotas": {"[9,9,9]": 1}}, "has no count"),
        ({"quotas": {"[0,0,0]": 4}}, "must be 0 to 3, got 4"),
        ({"quotas": {"[0,0,0]": -1}}, "must be 0 to 3, got -1"),
        ({"attributes": ["a"]}, "a cell must be"),
        ({"counts": {'["x",0]': 1}, "quotas": {}}, "a cell must be"),
        ({"targets": [target_of("shoe", {"a": 1}, lambda _: (0, 0))]}, "for a margin that no cell has: 'shoe'"),
        ({"targets": [target_of("group", {"0": 1}, lambda _: (3, 1))] * 2}, "given twice"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        coverage(plan_of({(0, 0): (3, 1)}, []) | change)


def test_rounds_other_than_one_and_two_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be 1 or 2, got 3"):
        coverage(plan_of({(0, 0): (3, 1)}, []), rounds=3)
