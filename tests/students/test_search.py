import itertools
import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from students.cost import summary
from students.model import StudentConfig
from students.presets import NANO, SMALL
from students.recipe import TrainConfig
from students.search import (
    FEATURES,
    Candidate,
    Point,
    Space,
    capacity,
    dominates,
    draw,
    features,
    fit_latency,
    front,
    promising,
    rungs,
    survivors,
    to_toml,
    work,
)

TINY = StudentConfig(channels=(8, 8, 8, 8, 8, 8), depths=(1, 1, 1, 1, 1), decoder=(8, 8, 8, 8))
FEW = Space(tables=(TINY,), widths=(1.0, 2.0), deeper=(0,), kernels=(0,), decoders=(1.0,), sides=(64, 96))
# a coarse grid, so that equal latencies and equal scores occur
POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), max_size=14).map(
    lambda pairs: [Point(name=str(i), latency=float(a), score=float(b)) for i, (a, b) in enumerate(pairs)]
)


@given(POINTS, st.sampled_from((math.inf, 3.0, 0.5)))
def test_on_the_front_is_who_is_within_the_budget_and_dominated_by_nobody_there(
    points: list[Point], budget: float
) -> None:
    within = [point for point in points if point.latency <= budget]
    wanted = {p.name for p in within if not any(dominates(q, p) for q in within)}
    assert {p.name for p in front(points, budget)} == wanted


@given(POINTS, st.randoms())
def test_the_front_ascends_and_does_not_depend_on_the_order(points: list[Point], random: object) -> None:
    shuffled = points.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = front(points)
    assert found == front(shuffled)
    assert all(a.latency <= b.latency and a.score <= b.score for a, b in itertools.pairwise(found))


@given(POINTS, POINTS)
def test_nothing_dominates_itself_and_no_two_dominate_each_other(some: list[Point], others: list[Point]) -> None:
    for a, b in itertools.product(some, others):
        assert not dominates(a, a)
        assert not (dominates(a, b) and dominates(b, a))


@given(POINTS, st.integers(1, 15))
def test_a_survivor_is_never_dominated_by_one_who_went(points: list[Point], count: int) -> None:
    kept = survivors(points, count)
    gone = [point for point in points if point not in kept]
    assert len(kept) == min(count, len(points)) == len(set(kept))
    assert not any(dominates(out, stays) for out in gone for stays in kept)


@given(st.integers(1, 60), st.integers(1, 500))
def test_rungs_train_fewer_for_longer_and_the_last_for_all_steps(candidates: int, steps: int) -> None:
    levels = rungs(candidates, steps)
    assert levels[-1][0] == steps
    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in itertools.pairwise(levels))
    assert all(1 <= count <= candidates for _, count in levels)
    assert len({min(3, candidates)} & {count for _, count in levels[-1:]}) or levels[-1][1] > 3


def test_candidates_are_a_function_of_the_seed_and_grow_without_change() -> None:
    space = Space()
    some = draw(space, 6, 3)
    assert some == draw(space, 6, 3)
    assert some != draw(space, 6, 4)
    assert set(draw(space, 3, 3)) < set(some)
    assert len({candidate.key for candidate in some}) == len(some) == 8 * len(space.sides)


def test_the_tables_themselves_come_first_at_every_side() -> None:
    space = Space()
    first = draw(space, 0, 0)
    assert [c.config for c in first[:: len(space.sides)]] == [replace(t, in_channels=4) for t in (NANO, SMALL)]
    assert [c.side for c in first[: len(space.sides)]] == list(space.sides)


def test_a_whole_space_can_be_drawn_and_holds_every_shape_once() -> None:
    everyone = draw(FEW, 1000, 0)
    shapes = {FEW.shape(i) for i in range(len(FEW))}
    assert {c.config for c in everyone} == shapes
    assert len(everyone) == len(shapes) * 2
    with pytest.raises(IndexError, match="must be in"):
        FEW.shape(len(FEW))


@given(st.integers(0, len(Space()) - 1))
@settings(max_examples=60)
def test_every_shape_of_the_space_is_a_valid_student(index: int) -> None:
    shape = Space().shape(index)
    assert shape.in_channels == 4
    assert min(shape.depths) >= 1


def test_work_counts_what_the_summary_counts() -> None:
    for config, side in ((replace(NANO, in_channels=4), 256), (replace(TINY, in_channels=4), 96)):
        found, wanted = work(Candidate(config=config, side=side)), summary(config, side, side)
        assert (found.macs, found.parameters) == (wanted.macs, wanted.parameters)


def test_more_pixels_are_more_work_and_more_capacity() -> None:
    small, large = (Candidate(config=replace(TINY, in_channels=4), side=side) for side in (64, 128))
    assert work(large).macs == 4 * work(small).macs
    assert capacity(large) == pytest.approx(16 * capacity(small))
    assert small.key != large.key


def test_a_fit_finds_the_weights_that_made_the_times() -> None:
    rows = features(draw(Space(sides=(128, 256)), 3, 0))
    weights = np.array([0.02, 0.1, 0.3, 0.01, 0.2])
    np.testing.assert_allclose(rows @ fit_latency(rows, rows @ weights), rows @ weights, rtol=1e-6)


@given(st.lists(st.floats(0.1, 50), min_size=4, max_size=4))
@settings(max_examples=20)
def test_a_fit_never_says_that_more_work_takes_less_time(times: list[float]) -> None:
    weights = fit_latency(features(draw(FEW, 1, 0)), times)
    assert weights.shape == (len(FEATURES),)
    assert (weights >= 0).all()


def test_promising_ones_are_within_the_budget_and_of_several_sides() -> None:
    pool = draw(Space(), 4, 0)
    predicted = [work(candidate).macs / 1e7 for candidate in pool]
    chosen = promising(pool, predicted, 12.0, count=9)
    latency = dict(zip(pool, predicted, strict=True))
    assert len(chosen) == len(set(chosen)) == 9
    assert all(latency[candidate] <= 12 for candidate in chosen)
    assert len({candidate.side for candidate in chosen}) >= 5
    assert promising(pool, predicted, 12.0, count=9) == chosen
    assert promising(pool, predicted, 0.001, count=9) == ()


@given(st.integers(0, len(Space()) - 1), st.sampled_from(Space().sides))
@settings(max_examples=30)
def test_the_snippet_is_the_candidate(index: int, side: int) -> None:
    candidate = Candidate(config=Space().shape(index), side=side)
    train = tomllib.loads(to_toml(candidate))["train"]
    shape = {key: tuple(value) if isinstance(value, list) else value for key, value in train.pop("model").items()}
    recipe = TrainConfig(model=StudentConfig(**shape), **train)
    assert Candidate(config=recipe.network(), side=recipe.side) == candidate


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sides": (100,)}, "multiples of 32"),
        ({"sides": (32,)}, "from 64 on"),
        ({"widths": ()}, "must have values"),
        ({"deeper": (0, 0)}, "each once"),
        ({"tables": (StudentConfig(encoder="fbnetv3_b"),)}, "encoder = table"),
    ],
)
def test_a_space_without_sense_is_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        replace(Space(), **change)  # type: ignore[arg-type]


def test_nonsense_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="count and seed"):
        draw(FEW, -1, 0)
    with pytest.raises(ValueError, match="candidates and steps"):
        rungs(0, 5)
    with pytest.raises(ValueError, match="N >= 1 times above 0"):
        fit_latency(features(draw(FEW, 0, 0)), [1.0, 0.0])
