"""Laws of the next selection's targets: more of what is wrong or lost, as a config that the planner takes as it is."""

import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config import Config, build
from pipeline.errors import InputError
from pipeline.next_targets import (
    AUDITED,
    LEAST,
    MOST,
    ClassNeed,
    JudgedLabels,
    class_needs,
    next_targets,
    render_toml,
)
from pipeline.quota import SelectConfig, plan_quotas
from pipeline.select import cell_name

CLASSES = ("bright", "dim", "normal")


def draw_labels(seed: int, count: int, audited: float = 0.0) -> tuple[JudgedLabels, np.ndarray]:
    """Judged labels and their classes, some unknown."""
    rng = np.random.default_rng(seed)
    seen = rng.random(count) < audited
    labels = JudgedLabels(
        q=rng.beta(0.5, 2, count), lost=rng.random(count) < 0.2, audited=seen, bad=seen & (rng.random(count) < 0.3)
    )
    return labels, rng.integers(-1, len(CLASSES), count)


def weights(labels: JudgedLabels, member: np.ndarray) -> dict[str, float]:
    return {need.name: need.weight for need in class_needs(labels, {"lighting_level": (CLASSES, member)})}


def need(name: str, weight: float, attribute: str = "lighting_level") -> ClassNeed:
    return ClassNeed(attribute=attribute, name=name, labels=50, audited=0, noise=0.1, lost=0.1, weight=weight)


SEEDS, COUNTS = st.integers(0, 9999), st.integers(1, 80)


# Weights --------------------------------------------------------------------------------------------------------------


@given(SEEDS, COUNTS, st.integers(0, 2), st.floats(0, 1))
def test_a_class_weighs_no_less_if_its_labels_are_more_doubtful(seed: int, count: int, chosen: int, to: float) -> None:
    labels, member = draw_labels(seed, count)
    assume((member == chosen).any())
    more = np.where(member == chosen, labels.q + (1 - labels.q) * to, labels.q)
    worse = JudgedLabels(q=more, lost=labels.lost, audited=labels.audited, bad=labels.bad)
    assert weights(worse, member)[CLASSES[chosen]] >= weights(labels, member)[CLASSES[chosen]] - 1e-9


@given(SEEDS, COUNTS, st.integers(0, 2), SEEDS)
def test_a_class_weighs_no_less_if_more_of_it_is_lost(seed: int, count: int, chosen: int, other: int) -> None:
    labels, member = draw_labels(seed, count)
    assume((member == chosen).any())
    gone = labels.lost | ((member == chosen) & (np.random.default_rng(other).random(count) < 0.5))
    worse = JudgedLabels(q=labels.q, lost=gone, audited=labels.audited, bad=labels.bad)
    assert weights(worse, member)[CLASSES[chosen]] >= weights(labels, member)[CLASSES[chosen]] - 1e-9


@given(SEEDS, st.integers(30, 90), st.integers(0, 2), SEEDS)
def test_a_class_weighs_no_less_if_a_person_finds_more_of_it_wrong(
    seed: int, count: int, chosen: int, other: int
) -> None:
    labels, member = draw_labels(seed, count, audited=0.8)
    assume((member == chosen).any())
    found = np.random.default_rng(other).random(count) < 0.5
    bad = labels.bad | (labels.audited & (member == chosen) & found)
    worse = JudgedLabels(q=labels.q, lost=labels.lost, audited=labels.audited, bad=bad)
    assert weights(worse, member)[CLASSES[chosen]] >= weights(labels, member)[CLASSES[chosen]] - 1e-9


@given(SEEDS, COUNTS, st.floats(0, 1))
def test_weights_stay_within_their_bounds(seed: int, count: int, audited: float) -> None:
    labels, member = draw_labels(seed, count, audited)
    assert all(LEAST <= weight <= MOST for weight in weights(labels, member).values())


@given(SEEDS, COUNTS, st.floats(0, 1), SEEDS)
def test_the_order_of_the_labels_changes_no_weight(seed: int, count: int, audited: float, other: int) -> None:
    labels, member = draw_labels(seed, count, audited)
    order = np.random.default_rng(other).permutation(count)
    moved = JudgedLabels(
        q=labels.q[order], lost=labels.lost[order], audited=labels.audited[order], bad=labels.bad[order]
    )
    assert weights(moved, member[order]) == pytest.approx(weights(labels, member), abs=1e-12)


@given(st.integers(1, 60), st.floats(0, 1), SEEDS)
def test_where_all_labels_are_alike_every_class_weighs_one(count: int, q: float, seed: int) -> None:
    member = np.random.default_rng(seed).integers(-1, 3, count)
    nothing = np.zeros(count, np.bool_)
    found = weights(JudgedLabels(q=np.full(count, q), lost=nothing, audited=nothing, bad=nothing), member)
    assert all(weight == pytest.approx(1) for weight in found.values())


def test_the_weights_are_those_of_the_formulas() -> None:
    """20 labels: r = (8 × .5 + 12 × 0) / 20 = .2, l = 4 / 20 = .2; the 8 dim ones hold all that is wrong or lost."""
    member = np.array([1] * 8 + [2] * 12)
    nothing = np.zeros(20, np.bool_)
    labels = JudgedLabels(
        q=np.where(member == 1, 0.5, 0.0), lost=np.array([True] * 4 + [False] * 16), audited=nothing, bad=nothing
    )
    dim, normal = class_needs(labels, {"lighting_level": (CLASSES, member)})
    assert (dim.name, dim.labels, normal.name, normal.labels) == ("dim", 8, "normal", 12)
    assert (dim.noise, dim.lost) == pytest.approx((4.8 / 12, 4.8 / 12))
    assert (normal.noise, normal.lost) == pytest.approx((0.8 / 16, 0.8 / 16))
    assert (dim.weight, normal.weight) == pytest.approx((0.85 / 0.45, 0.5))


def test_eight_audited_labels_of_a_class_speak_instead_of_q() -> None:
    for audited in (AUDITED - 1, AUDITED):
        seen = np.arange(20) < audited
        labels = JudgedLabels(q=np.full(20, 0.5), lost=np.zeros(20, np.bool_), audited=seen, bad=np.arange(20) < 2)
        (found,) = class_needs(labels, {"lighting_level": (CLASSES, np.zeros(20, np.int64))})
        expected = (2 + 4 * 0.5) / (AUDITED + 4) if audited == AUDITED else 0.5
        assert found.audited == audited
        assert found.noise == pytest.approx(expected)


def test_what_is_unknown_is_no_class() -> None:
    labels, _ = draw_labels(1, 40)
    names = ("*", "dim", "unknown")
    member = np.arange(40) % 4 - 1
    assert [found.name for found in class_needs(labels, {"lighting_level": (names, member)})] == ["dim"]


def test_of_no_labels_there_is_no_need() -> None:
    labels, member = draw_labels(0, 0)
    assert class_needs(labels, {"lighting_level": (CLASSES, member)}) == []


def test_a_q_that_is_no_probability_is_refused() -> None:
    nothing = np.zeros(1, np.bool_)
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\]"):
        JudgedLabels(q=np.array([np.nan]), lost=nothing, audited=nothing, bad=nothing)


# Targets --------------------------------------------------------------------------------------------------------------


NEEDS = [need("bright", 0.8), need("dim", 2.5), need("normal", 1.0)]


def test_an_attribute_whose_classes_weigh_about_one_is_left_out() -> None:
    even = [need("bright", 0.95), need("dim", 1.09), need("small", 1.5, "subject_scale")]
    found = next_targets(even, SelectConfig(rounds=2), [])
    assert found.targets == {"subject_scale": {"*": 1.0, "small": 1.5}}
    assert (found.changed, found.notes) == (("subject_scale",), ())


def test_targets_that_are_there_are_multiplied_and_the_others_kept() -> None:
    old: dict[str, Any] = {
        "lighting_level": {"dim": 2.0, "unknown": 0.5, "*": 3.0},
        "sharpness": "proportional",
        "lighting_level+sharpness": {"dim+sharp": 2.0, "*": 1.0},
    }
    select = SelectConfig(targets=old, pairs=(("lighting_level", "sharpness"),))
    found = next_targets([*NEEDS, need("sharp", 2.0, "sharpness")], select, [])
    assert found.changed == ("lighting_level",)
    assert found.targets == {
        **old,
        "lighting_level": {"dim": 5.0, "unknown": 0.5, "*": 3.0, "bright": 2.4, "normal": 3.0},
    }
    assert len(found.notes) == 1
    assert "sharpness stays proportional to the pool" in found.notes[0]


def test_a_class_that_was_not_wanted_stays_unwanted() -> None:
    select = SelectConfig(targets={"lighting_level": {"normal": 1.0}})
    assert next_targets(NEEDS, select, []).targets == {"lighting_level": {"normal": 1.0, "bright": 0.0, "dim": 0.0}}


@pytest.mark.parametrize(
    ("select", "attribute", "note"),
    [
        (SelectConfig(), "subject_scale", "masks tell it: it needs select.rounds = 2"),
        (SelectConfig(rounds=2), "apparent_skin_tone", "name it in select.attributes"),
        (SelectConfig(attributes=("sharpness",)), "lighting_level", "name it in select.attributes"),
    ],
)
def test_what_would_not_be_balanced_gets_a_note_and_no_target(select: SelectConfig, attribute: str, note: str) -> None:
    found = next_targets([need("x", 2.0, attribute)], select, [])
    assert (found.targets, found.changed) == ({}, ())
    assert found.notes == (f"{attribute} wants another target and is not balanced ({note})",)


def test_an_attribute_of_the_users_is_balanced_and_so_is_one_that_only_the_config_names() -> None:
    select = SelectConfig(targets={"weather": {"rain": 2.0, "*": 1.0}})
    found = next_targets([need("indoor", 2.0, "place")], select, ["place"])
    assert found.targets == {"weather": {"rain": 2.0, "*": 1.0}, "place": {"*": 1.0, "indoor": 2.0}}


def test_settings_that_no_run_could_use_are_refused() -> None:
    with pytest.raises(InputError, match="'subject_scale', which is not known; it is told by masks"):
        next_targets(NEEDS, SelectConfig(attributes=("subject_scale", "lighting_level")), [])


@given(st.dictionaries(st.sampled_from(CLASSES), st.floats(LEAST, MOST), min_size=1), st.integers(30, 90))
def test_the_planner_takes_the_targets_and_no_less_of_what_weighs_more(found: dict[str, float], target: int) -> None:
    listed = [need(name, weight) for name, weight in found.items()]
    targets = next_targets(listed, SelectConfig(), []).targets
    select = build(Config, tomllib.loads(render_toml({"select": {"targets": targets}})), "next.toml").select
    assert select.targets == targets
    counts = {cell_name((0, 0, 0), (value,)): 100 for value in CLASSES}
    plan = plan_quotas(counts, target, select, ["lighting_level"], {"lighting_level": ("dim", "normal", "bright")})
    taken = {name: plan.quotas[cell_name((0, 0, 0), (name,))] for name in CLASSES}
    assert sum(taken.values()) == target
    weight = {name: (found.get(name, 1.0) if targets else 1.0) for name in CLASSES}
    total = sum(weight.values())
    for name in CLASSES:
        assert abs(taken[name] - target * weight[name] / total) <= 1.5


# TOML -----------------------------------------------------------------------------------------------------------------


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = (
    TEXTS | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(PLAIN, lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3))


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_written_as_toml_is_read_back_equal(table: dict[str, Any]) -> None:
    assert tomllib.loads(render_toml(table)) == table


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="TOML cannot hold NoneType None"):
        render_toml({"a": None})
