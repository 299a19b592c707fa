import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from evaluation.classical import wilson_interval
from review.decisions import fold
from review.event import Reviewer
from review.ids import hex_ids, id_array, sorted_unique
from review.log import ReviewLog
from review.tasks import agreement, barred, cohen_kappa, defect_rate, draw, in_order, keys, task_json
from tests.review.test_log import FINGERPRINT, sample, task


def population(count: int, seed: int = 0) -> np.ndarray:
    return sorted_unique(np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8).view("S16")[:, 0])


# Drawing

STRATA = st.lists(st.integers(-2, 4), min_size=1, max_size=60)


@given(STRATA, st.integers(1, 80), st.integers(0, 2**40))
def test_each_stratum_gets_its_share_to_within_one(strata: list[int], size: int, seed: int) -> None:
    of = np.array(strata)
    drawn = draw(population(len(of)), of, size, seed)
    assert len(drawn) == min(size, len(of))
    assert np.all(np.diff(drawn) > 0)
    for stratum in set(strata):
        share = min(size, len(of)) * np.mean(of == stratum)
        assert abs(np.sum(of[drawn] == stratum) - share) < 1


@given(STRATA, st.integers(1, 40), st.integers(0, 99), st.randoms())
def test_a_draw_does_not_depend_on_the_order(strata: list[int], size: int, seed: int, rng: object) -> None:
    of, ids = np.array(strata), population(len(strata))
    turned = list(range(len(of)))
    rng.shuffle(turned)  # type: ignore[attr-defined]
    one = hex_ids(ids[draw(ids, of, size, seed)])
    assert sorted(hex_ids(ids[turned][draw(ids[turned], of[turned], size, seed)])) == one


def test_another_seed_draws_others_and_each_sample_has_the_same_chance() -> None:
    ids, of = population(50), np.repeat([0, 1], 25)
    hits = np.zeros(50)
    for seed in range(2000):
        hits[draw(ids, of, 10, seed)] += 1
    # Binomial with 2000 draws at 0.2: standard deviation 18; of 50, none is beyond 5 of them.
    assert abs(hits - 400).max() < 90
    assert (hits[:25].sum(), hits[25:].sum()) == (10_000, 10_000)


def test_a_larger_draw_of_one_stratum_holds_the_smaller() -> None:
    ids, of = population(100), np.zeros(100, np.int64)
    drawn = [set(draw(ids, of, size, 3).tolist()) for size in (5, 20, 60, 100)]
    assert all(small < large for small, large in pairwise(drawn))


def test_a_draw_needs_a_size_and_a_stratum_per_id() -> None:
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        draw(population(3), np.zeros(3, int), 0, 0)
    with pytest.raises(ValueError, match="strata must have the shape"):
        draw(population(3), np.zeros(2, int), 1, 0)
    assert draw([], np.zeros(0, int), 5, 0).tolist() == []


def test_keys_are_those_of_the_documented_mix() -> None:
    found = keys([sample(1), sample(2**100)], 7)
    assert found.dtype == np.uint64
    assert [hex(n) for n in found.tolist()] == [hex(_key(1, 7)), hex(_key(2**100, 7))]


def _key(number: int, seed: int) -> int:
    """The same in integers of Python."""
    import hashlib

    def mixed(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    salt = int.from_bytes(hashlib.blake2b(f"task|{seed}".encode(), digest_size=8).digest(), "big")
    return mixed(mixed(number >> 64 ^ salt) ^ number % 2**64)


# Defects


@given(st.integers(1, 10_000))
def test_no_defect_in_n_is_at_most_three_in_n(n: int) -> None:
    found = defect_rate(0, n)
    assert (found.rate, found.interval) == (0.0, (0.0, min(1.0, 3 / n)))
    if n >= 30:  # the exact bound, 1 - 0.05^(1/n), is not above it
        assert 0.9 * found.interval[1] < 1 - 0.05 ** (1 / n) <= found.interval[1]


@given(st.integers(1, 500), st.integers(0, 500))
def test_defects_have_the_interval_of_wilson(defects: int, good: int) -> None:
    found = defect_rate(defects, defects + good)
    assert found.interval == wilson_interval(defects, defects + good, 0.95)
    assert found.rate is not None
    assert found.interval[0] <= found.rate <= found.interval[1]


def test_nothing_looked_at_tells_nothing() -> None:
    found = defect_rate(0, 0)
    assert (found.rate, found.interval) == (None, (0.0, 1.0))
    for wrong in ((1, 0), (-1, 5)):
        with pytest.raises(ValueError, match="defects must be"):
            defect_rate(*wrong)


# Agreement

VERDICT = st.sampled_from(["good", "defect"])


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=2, max_size=50))
@settings(deadline=None)
def test_kappa_is_that_of_another_implementation(pairs: list[tuple[str, str]]) -> None:
    ours = cohen_kappa(pairs)
    if len({value for pair in pairs for value in pair}) == 1:
        assert ours is None
    else:
        assert ours is not None
        assert math.isclose(ours, cohen_kappa_score(*zip(*pairs, strict=True)), abs_tol=1e-12)


def test_agreement_of_all_is_one_and_that_of_chance_is_zero() -> None:
    assert cohen_kappa([("good", "good"), ("defect", "defect")]) == 1
    assert cohen_kappa([(a, b) for a in ("good", "defect") for b in ("good", "defect")]) == 0
    found = agreement({"b": ("good", "defect"), "a": ("good", "good"), "c": ("good", "defect")})
    assert (found.both, found.equal, found.share, found.differ) == (3, 1, 1 / 3, ("b", "c"))
    assert agreement({}).share is None


# A task of a log


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    return ReviewLog(tmp_path / "reviews" / FINGERPRINT, FINGERPRINT)


def say(log: ReviewLog, seq: int, who: str, verdict: str, number: int) -> None:
    target = {"ids": [sample(number)]}
    log.append("task_result", reviewer=Reviewer(name=who), target=target, task=seq, verdict=verdict, reasons=[])


def test_a_task_tells_what_is_done_and_what_comes_next(log: ReviewLog) -> None:
    audit = task(log, [sample(number) for number in range(10)], population=40)
    order = in_order(id_array([sample(number) for number in range(10)]), 3)
    assert sorted(order) == [sample(number) for number in range(10)]
    assert order != sorted(order)
    body = task_json(fold(log.events(), log.frozen_ids), audit, "Ada", limit=4)
    assert (body["done"], body["mine"], body["rate"], body["size"], body["population"]) == (0, 0, None, 10, 40)
    assert body["next"] == order[:4]

    say(log, audit, "Ada", "good", int(order[0], 16))
    say(log, audit, "Bea", "defect", int(order[1], 16))
    say(log, audit, "Bea", "defect", int(order[0], 16))
    body = task_json(fold(log.events(), log.frozen_ids), audit)
    assert (body["done"], body["mine"], body["defects"], body["rate"]) == (2, 0, 2, 1.0)
    body = task_json(fold(log.events(), log.frozen_ids), audit, "Ada")
    assert (body["done"], body["mine"]) == (2, 1)
    assert body["next"] == order[1:]
    assert "next" not in task_json(fold(log.events(), log.frozen_ids), audit, "Ada", limit=None)
    say(log, audit, "Bea", "good", int(order[0], 16))  # she changed her mind
    body = task_json(fold(log.events(), log.frozen_ids), audit)
    assert (body["done"], body["defects"], body["next"]) == (2, 1, [])
    assert body["interval"] == list(wilson_interval(1, 2, 0.95))
    assert "agreement" not in body


def test_an_overlap_compares_a_second_reviewer_with_the_first(log: ReviewLog) -> None:
    audit = task(log, [sample(number) for number in range(6)])
    for number, verdict in enumerate(("good", "good", "defect", "defect", "good")):
        say(log, audit, "Ada", verdict, number)
    again = task(log, [sample(number) for number in range(6)], "overlap", of_task=audit)
    for number, verdict in enumerate(("good", "defect", "defect", "defect", "good", "good")):
        say(log, again, "Bea", verdict, number)
    say(log, again, "Ada", "defect", 0)  # of the first reviewer: does not count
    say(log, again, "Cyd", "defect", 2)  # a third: the second counts
    body = task_json(fold(log.events(), log.frozen_ids), again, "Bea")
    assert body["of_task"] == audit
    assert (body["agreement"]["both"], body["agreement"]["equal"]) == (5, 4)
    assert body["differ"] == [sample(1)]
    first, second = ["good", "good", "defect", "defect", "good"], ["good", "defect", "defect", "defect", "good"]
    assert body["agreement"]["kappa"] == pytest.approx(cohen_kappa_score(first, second))


def test_who_still_judges_is_told_nothing_of_what_others_found(log: ReviewLog) -> None:
    ids = [sample(number) for number in range(4)]
    audit = task(log, ids)
    for number in range(4):
        say(log, audit, "Ada", "defect", number)

    def told(seq: int, who: str) -> dict[str, Any]:
        body = task_json(fold(log.events(), log.frozen_ids), seq, who)
        secret = [body.get(name) for name in ("defects", "rate", "interval", "differ", "agreement")]
        assert body["hidden"] is all(value is None for value in secret)
        assert not body["hidden"] or "%" not in body["told"]
        return body

    assert told(audit, "Ada")["defects"] == 4
    assert told(audit, "Bea")["hidden"]
    again = task(log, ids, "overlap", of_task=audit)
    for number in range(4):
        assert told(again, "Bea")["hidden"]
        say(log, again, "Bea", "good", number)
    assert told(again, "Bea")["differ"] == ids
    assert told(audit, "Bea")["hidden"]
    for number in range(4):
        say(log, audit, "Bea", "good", number)
    assert not told(audit, "Bea")["hidden"]
    task(log, [sample(7), *ids], "overlap", of_task=audit)
    assert told(audit, "Bea")["hidden"]  # the one sample that she has not judged


def test_an_overlap_is_not_for_who_judged_its_samples_in_the_audit(log: ReviewLog) -> None:
    ids = [sample(number) for number in range(4)]
    audit = task(log, ids)
    for number in range(3):
        say(log, audit, "Ada", "good", number)
    again = task(log, ids, "overlap", of_task=audit)
    decisions = fold(log.events(), log.frozen_ids)
    assert task_json(decisions, again, "Ada")["next"] == [sample(3)]
    assert set(task_json(decisions, again, "Bea")["next"]) == set(ids)
    assert barred(decisions, decisions.task(again), "Ada") == set(ids[:3])
    say(log, again, "Ada", "good", 3)
    body = task_json(fold(log.events(), log.frozen_ids), again, "Ada")
    assert (body["next"], body["hidden"]) == ([], False)
