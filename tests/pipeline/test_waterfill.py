"""Laws of water-filling: exact, within the sizes, as even as can be, growing, and level by level."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.waterfill import draw, nested_water_fill, water_fill

SIZES = st.lists(st.integers(0, 12), max_size=12).map(lambda sizes: np.array(sizes, np.int64))


@given(SIZES, st.integers(0, 150))
def test_quotas_spend_the_budget_and_exceed_no_size(sizes: NDArray[np.int64], budget: int) -> None:
    quotas = water_fill(sizes, budget)
    assert quotas.sum() == min(budget, sizes.sum())
    assert ((quotas >= 0) & (quotas <= sizes)).all()


@given(SIZES, st.integers(0, 150))
def test_they_are_what_giving_one_at_a_time_to_the_emptiest_gives(sizes: NDArray[np.int64], budget: int) -> None:
    given_out = np.zeros(len(sizes), np.int64)
    for _ in range(min(budget, int(sizes.sum()))):
        room = np.flatnonzero(given_out < sizes)
        given_out[room[given_out[room].argmin()]] += 1
    assert water_fill(sizes, budget).tolist() == given_out.tolist()


TREES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9)), max_size=14)


@given(TREES, st.integers(0, 140))
def test_every_level_of_the_tree_is_water_filled(leaves: list[tuple[int, int, int]], budget: int) -> None:
    table = np.array(leaves, np.int64).reshape(-1, 3)
    quotas = nested_water_fill(table[:, :2], table[:, 2], budget)
    assert (quotas <= table[:, 2]).all()
    nodes = sorted(set(table[:, 0].tolist()))
    held, got = (
        np.array([column[table[:, 0] == n].sum() for n in nodes], np.int64) for column in (table[:, 2], quotas)
    )
    assert got.tolist() == water_fill(held, budget).tolist()
    for node, quota in zip(nodes, got, strict=True):
        inside = table[:, 0] == node
        below = nested_water_fill(table[inside, 1:2], table[inside, 2], int(quota))
        assert quotas[inside].tolist() == below.tolist()


@given(TREES, st.integers(0, 140))
def test_a_smaller_budget_is_contained_in_a_larger(leaves: list[tuple[int, int, int]], budget: int) -> None:
    table = np.array(leaves, np.int64).reshape(-1, 3)
    one, more = (nested_water_fill(table[:, :2], table[:, 2], b) for b in (budget, budget + 1))
    assert (one <= more).all()


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 40), st.integers(0, 1 << 32))
def test_the_smallest_keys_of_each_cell_are_drawn(cells: list[int], budget: int, seed: int) -> None:
    own = np.array(cells, np.int64)
    keys = np.random.default_rng(seed).integers(0, 20, len(cells), np.uint64)
    quotas = water_fill(np.bincount(own, minlength=5), budget)
    rows = draw(own, keys, quotas)
    assert (np.diff(rows) > 0).all()
    for cell, quota in enumerate(quotas):
        mine = np.flatnonzero(own == cell)
        best = sorted(mine.tolist(), key=lambda row: (keys[row], row))[:quota]
        assert sorted(best) == [row for row in rows.tolist() if own[row] == cell]


def test_negative_amounts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and -1"):
        water_fill(np.array([2], np.int64), -1)
    with pytest.raises(ValueError, match="got -2 and 1"):
        water_fill(np.array([-2], np.int64), 1)
