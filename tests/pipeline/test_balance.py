"""Laws of the balance benchmark: samplers draw what is asked for, and its command sees a goal that is missed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.balance import verdicts
from benchmarks.balance_methods import Recipe, k_centre, marginals_and_diversity, methods, rake, thinned
from benchmarks.balance_pools import GOALS, Pool, folders, long_tailed_digits, read_pool
from benchmarks.shared import SHARED

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(sample=50_000, per_cluster=32, most=4096)


def _require_shared() -> None:
    if not (SHARED / "bench" / "curation").is_dir():
        pytest.skip(f"{SHARED}/bench/curation is absent (set CURATE_SHARED)")


def clips(seed: int = 0, count: int = 40, length: int = 50) -> Pool:
    """Clips that stand still, each with two attributes of unequal classes; a tenth is not known."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.arange(count), length)
    centres = rng.normal(size=(count, 8))
    classes = np.stack([rng.choice(3, count, p=[0.7, 0.2, 0.1]), rng.choice(2, count, p=[0.8, 0.2])], axis=1)[clip]
    classes[rng.random(classes.shape) < 0.1] = -1
    return Pool(
        vectors=(centres[clip] + 0.01 * rng.normal(size=(len(clip), 8))).astype(np.float32),
        components=clip,
        numbers=np.arange(len(clip)),
        clip=clip,
        frame=np.tile(np.arange(length), count),
        attributes=classes.astype(np.int8),
        names=("one", "other"),
    )


def test_every_method_draws_as_many_different_rows_as_it_is_asked_for() -> None:
    pool = clips()
    table = methods(pool, 60, RECIPE, slow=True)
    assert next(iter(table)) == "ours"
    for name, method in table.items():
        chosen = method(pool, 60, 0)
        assert len(np.unique(chosen)) == 60, name
        assert 0 <= chosen.min() <= chosen.max() < len(pool.numbers), name


def test_no_two_frames_of_a_clip_that_thinning_leaves_are_nearer_than_16_and_none_is_lost_beyond() -> None:
    pool = clips(length=70)
    assert pool.frame is not None
    frames = pool.frame[thinned(pool)]
    assert np.unique(frames).tolist() == [0, 16, 32, 48, 64]
    assert len(frames) == 5 * 40


@pytest.mark.parametrize("name", ["ours", "thinning + groups"])
def test_ours_is_the_same_for_any_order_of_the_rows_and_part_of_a_larger_one(name: str) -> None:
    pool = clips()
    method = methods(pool, 40, RECIPE, slow=False)[name]
    chosen = method(pool, 40, 3)
    order = np.random.default_rng(1).permutation(len(pool.numbers))
    again = order[method(pool.take(order), 40, 3)]
    assert sorted(again.tolist()) == sorted(chosen.tolist())
    assert set(chosen.tolist()) <= set(method(pool, 80, 3).tolist())


def test_raking_makes_the_known_classes_of_every_attribute_even() -> None:
    pool = clips()
    assert pool.attributes is not None
    chosen = pool.attributes[rake(pool, 200, 0)]
    for column in chosen.T:
        shares = np.bincount(column[column >= 0]) / (column >= 0).sum()
        assert np.abs(shares - 1 / len(shares)).max() < 0.06


def test_balancing_marginals_is_more_even_than_diversity_alone() -> None:
    pool = clips()
    assert pool.attributes is not None
    worst = []
    for rows in (k_centre(pool, 60, 0), marginals_and_diversity(pool, 60, 0)):
        column = pool.attributes[rows, 0]
        worst.append(np.bincount(column[column >= 0], minlength=3).min())
    assert worst[1] > worst[0]


def test_the_first_rows_of_k_centre_are_of_different_clips() -> None:
    pool = clips()
    assert len(np.unique(pool.components[k_centre(pool, 40, 0)])) == 40


def test_a_folder_and_its_preset_are_the_same_pool(tmp_path: Path) -> None:
    _require_shared()
    (tmp_path / "a").mkdir()
    preset, (folder,) = folders("tiny", 1, tmp_path / "a")
    assert preset == "tiny"
    again, (same,) = folders(str(folder), 7, tmp_path)
    assert (again, same) == ("tiny", folder)
    assert read_pool(same).vectors.shape == (10_000, 32)


def test_digits_have_a_long_tail_that_follows_from_the_seed() -> None:
    vectors, labels = long_tailed_digits(4)
    assert np.array_equal(vectors, long_tailed_digits(4)[0])
    sizes = sorted(np.bincount(labels).tolist(), reverse=True)
    assert sizes[1:] == [180 // rank for rank in range(2, 11)]
    assert sizes[0] == pytest.approx(180, abs=6)  # a class may have fewer than 180 pictures
    assert not np.array_equal(labels, long_tailed_digits(5)[1])


def test_a_goal_is_met_at_its_bound_and_not_beyond() -> None:
    least, most = GOALS["plain50k"]
    assert least.met(190, 0)
    assert not least.met(189.9, 0)
    assert most.met(12, 0)
    assert not most.met(12.1, 0)
    unknown = next(goal for goal in GOALS["video50k"] if goal.bound is None)
    assert unknown.met(0.1, 0.1)
    assert not unknown.met(0.11, 0.1)


def test_a_missed_goal_and_a_broken_law_are_named() -> None:
    record = {"eff": 180.0, "cpu_s": 3.0, "grown": 0.5, "same_for_any_order": True}
    assert [line[:7].strip() for line in verdicts(record, "plain50k", 0.0)] == ["NOT MET", "met", "NOT MET", "met"]


@pytest.mark.slow
def test_the_command_writes_a_line_per_method_and_says_which_goals_are_met(tmp_path: Path) -> None:
    _require_shared()
    lines = tmp_path / "lines.jsonl"
    command = [
        sys.executable,
        "-m",
        "benchmarks.balance",
        "digits",
        "--methods",
        "ours",
        "random",
        "--json",
        str(lines),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours, other = (json.loads(line) for line in lines.read_text().splitlines())
    assert (ours["method"], other["method"]) == ("ours", "random")
    assert ours["grown"] == 1
    assert ours["same_for_any_order"]
    assert ours["m"] == other["m"] == 60
    assert 1 <= other["eff"] < ours["eff"] <= 10
    assert other["eff_to_ours"] == pytest.approx(other["eff"] / ours["eff"], abs=1e-3)
    assert 0 <= ours["own_mb"] <= ours["rss_mb"]
    assert "k-centre (quoted)" in done.stdout
    assert f"eff >= 9.2: {ours['eff']:.4g}" in done.stdout
