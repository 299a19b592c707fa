"""Laws of the map-only pass: the same frames for any split and order, and one source under its cap."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quota import OF_SOURCE, SelectConfig, plan_quotas
from pipeline.select import cell_name, first_of_each, selection_key, survives, threshold, trim, turns

CONFIG = SelectConfig()

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
    names = [cell_name((i % 2, i, i), ("x" if i % 3 else None,)) for i in range(5)]
    frames = [(f"{i:032x}", names[data.draw(st.integers(0, 4))]) for i in range(data.draw(st.integers(1, 60)))]
    target = data.draw(st.integers(0, len(frames)))
    counts = Counter(cell for _, cell in frames)
    wanted = plan_quotas(counts, target, CONFIG, ("tone",)).quotas
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


# One source -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 40)), max_size=60, unique_by=lambda f: f[1]), st.data()
)
def test_a_source_stays_under_its_cap_and_shows_every_cell_it_has_room_for(
    frames: list[tuple[int, int]], data: st.DataObject
) -> None:
    most = data.draw(st.integers(1, 70))
    cells, keys = np.array([c for c, _ in frames], np.int64), np.array([k for _, k in frames], np.uint64)
    stays, share = first_of_each(cells, keys, most)
    assert stays.sum() == min(most, len(frames))
    kept = Counter(cells[stays].tolist())
    assert len(kept) == min(len(set(cells.tolist())), int(stays.sum()))
    room = [n for c, n in kept.items() if n < (cells == c).sum()]
    assert not room or max(kept.values()) - min(room) <= 1
    for cell in kept:
        ranked = np.sort(keys[cells == cell])
        assert np.sort(keys[stays & (cells == cell)]).tolist() == ranked[: kept[cell]].tolist()
        assert np.allclose(share[cells == cell], kept[cell] / (cells == cell).sum())
    order = np.array(data.draw(st.permutations(range(len(frames)))), np.int64)
    assert first_of_each(cells[order], keys[order], most)[0].tolist() == stays[order].tolist()
    assert first_of_each(cells, keys, 0)[0].all()


def test_turns_count_the_frames_of_each_source_in_octaves() -> None:
    keys = np.array([5, 1, 9, 3, 2, 8, 7, 6, 4], np.uint64)
    sources = ["a"] * 7 + ["b"] * 2
    assert turns(sources, keys) == ["4-7", "1", "4-7", "2-3", "2-3", "4-7", "4-7", "2-3", "1"]
    assert turns([], np.zeros(0, np.uint64)) == []


@pytest.mark.parametrize(
    ("sources", "each", "target"), [(50, 60, 1000), (200, 30, 1000), (100, 100, 3000), (1, 1000, 300)]
)
def test_turns_leave_the_keys_of_a_cell_uniform_so_that_enough_survive(sources: int, each: int, target: int) -> None:
    ids = [f"{s}/{f}" for s in range(sources) for f in range(each)]
    keys = np.array([selection_key(0, i) for i in ids], np.uint64)
    other = np.array([selection_key(0, f"turn|{i}") for i in ids], np.uint64)
    turn = turns([i.split("/")[0] for i in ids], other)
    cells = [cell_name((0, 0, 0), (t, "ab"[n % 3 == 0])) for n, t in enumerate(turn)]
    counts = Counter(cells)
    wanted = plan_quotas(counts, target, CONFIG, (OF_SOURCE, "light")).quotas
    limits = {cell: threshold(quota, counts[cell]) for cell, quota in wanted.items()}
    stays = np.flatnonzero(survives(keys, np.array([limits[cell] for cell in cells])))
    assert len(trim([cells[i] for i in stays], keys[stays], [ids[i] for i in stays], wanted)) == target
