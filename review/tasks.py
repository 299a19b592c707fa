"""Review tasks: which samples are drawn, what share is defective, and how far two reviewers agree.

A task is a blind random sample, drawn in proportion from strata. N is the number of samples to draw from.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.classical import wilson_interval
from review.decisions import Decisions, Result, TaskState
from review.ids import ID_BYTES, AnyIds, Ids, hex_ids, holds, id_array

LEVEL = 0.95
"""Confidence of all intervals."""

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def draw(ids: AnyIds, strata: NDArray[np.integer[Any]], size: int, seed: int) -> NDArray[np.int64]:
    """Draw a stratified random sample, in proportion to the strata.

    Each stratum gets its share of ``size`` rounded down; what is left goes to those with the largest remainders, of
    equal ones to that with the smallest key. Of a stratum, the samples with the smallest keys are drawn, so the order
    of the ids does not matter, and a larger size holds nearly all that a smaller one did.

    Args:
        ids: (N,) sample ids, all different.
        strata: (N,) the stratum of each, any whole numbers.
        size: how many to draw, >= 1; all where there are no more.
        seed: of the draw.

    Returns:
        (min(size, N),) places of those drawn, ascending.

    Raises:
        ValueError: the size is below 1, or the strata are not as many as the ids.
    """
    found = id_array(ids)
    if size < 1:
        raise ValueError(f"a task draws at least 1 sample, got {size}")
    if strata.shape != found.shape:
        raise ValueError(f"strata must have the shape of the ids, {found.shape}, got {strata.shape}")
    if size >= len(found):
        return np.arange(len(found), dtype=np.int64)
    order = np.lexsort((found, keys(found, seed), strata))
    starts = np.flatnonzero(np.diff(strata[order], prepend=strata[order[0]] - 1))
    counts = np.diff(np.append(starts, len(order)))
    quota, rest = np.divmod(counts * size, len(order))
    first = keys(found, seed)[order[starts]]
    favoured = np.lexsort((first, -rest))[: size - int(quota.sum())]
    quota[favoured] += 1
    return np.sort(np.concatenate([order[s : s + q] for s, q in zip(starts, quota, strict=True)]))


def keys(ids: AnyIds, seed: int) -> NDArray[np.uint64]:
    """A random-looking 64-bit number per (N,) ids, which depends on the id and the seed alone: (N,).

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over the two halves of the id, which is a hash itself.
    """
    salt = np.frombuffer(hashlib.blake2b(f"task|{seed}".encode(), digest_size=8).digest(), ">u8").astype(np.uint64)
    halves = id_array(ids).view(">u8").astype(np.uint64).reshape(-1, ID_BYTES // 8)
    return _mixed(_mixed(halves[:, 0] ^ salt) ^ halves[:, 1])


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = numbers + _STEP
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class DefectRate:
    """What share of a population is defective, by a random sample of it.

    Attributes:
        looked_at: how many samples were judged.
        defects: how many of them are defective.
        rate: their share; None where none was judged.
        interval: at 95 %.
        told: in words.
    """

    looked_at: int
    defects: int
    rate: float | None
    interval: tuple[float, float]
    told: str


def defect_rate(defects: int, looked_at: int) -> DefectRate:
    """The share of defects with its interval at 95 %.

    Without a defect the upper end is 3/n, the rule of three (Hanley and Lippman-Hand 1983); else it is Wilson's.

    Raises:
        ValueError: not 0 <= defects <= looked_at.
    """
    if not 0 <= defects <= looked_at:
        raise ValueError(f"defects must be 0..{looked_at}, of those looked at, got {defects}")
    if not looked_at:
        told = "nothing looked at yet, so nothing known"
        return DefectRate(looked_at=0, defects=0, rate=None, interval=(0.0, 1.0), told=told)
    interval = wilson_interval(defects, looked_at, LEVEL) if defects else (0.0, min(1.0, 3 / looked_at))
    return DefectRate(
        looked_at=looked_at,
        defects=defects,
        rate=defects / looked_at,
        interval=interval,
        told=f"{defects} of {looked_at} defective: between {interval[0]:.1%} and {interval[1]:.1%} (95 %)"
        if defects
        else f"no defect in {looked_at}: at most {interval[1]:.1%} (95 %, rule of three)",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far two judges agree on the same samples.

    Attributes:
        both: samples that both judged.
        equal: of them, with equal verdicts.
        share: equal / both; None where both is 0.
        interval: of the share, at 95 %.
        kappa: Cohen's kappa, the agreement beyond chance; None where chance alone would agree always, or both is 0.
        told: in words.
        differ: ids of the samples with different verdicts, in order of their ids.
    """

    both: int
    equal: int
    share: float | None
    interval: tuple[float, float]
    kappa: float | None
    told: str
    differ: tuple[str, ...]


def agreement(pairs: Mapping[str, tuple[str, str]]) -> Agreement:
    """Agreement of the verdicts of two judges, by sample (Cohen 1960)."""
    differ = tuple(sorted(one for one, (a, b) in pairs.items() if a != b))
    both, equal = len(pairs), len(pairs) - len(differ)
    kappa = cohen_kappa(list(pairs.values()))
    said = "Cohen's kappa is not defined" if kappa is None else f"Cohen's kappa {kappa:.2f}"
    return Agreement(
        both=both,
        equal=equal,
        share=equal / both if both else None,
        interval=wilson_interval(equal, both, LEVEL),
        kappa=kappa,
        told=f"agree on {equal} of {both}; {said}" if both else "no sample that both judged yet",
        differ=differ,
    )


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa (1960) = (p_o - p_e) / (1 - p_e); None without pairs, or where p_e is 1."""
    if not pairs:
        return None
    n = len(pairs)
    values = {value for pair in pairs for value in pair}
    observed = sum(a == b for a, b in pairs) / n
    chance = math.fsum(sum(a == v for a, _ in pairs) * sum(b == v for _, b in pairs) / n**2 for v in sorted(values))
    return None if len(values) == 1 else (observed - chance) / (1 - chance)


def task_json(decisions: Decisions, seq: int, reviewer: str | None = None, *, limit: int | None = 60) -> dict[str, Any]:
    """A task for a page.

    Who is still to judge samples of a task, or of an overlap of it, must not be told what others found: then `hidden`
    is true, and what would tell it is null.

    Args:
        decisions: of the log.
        seq: of the task.
        reviewer: whose samples come next; None for who judges none, from whom nothing is hidden.
        limit: how many of them to name; None leaves `next` out.

    Returns:
        seq, title, kind, size; done: samples with a result; defects, rate, interval, told; mine: samples that this
        reviewer has judged; next: ids that they have not, in the task's random order, of an overlap without those that
        they judged in its audit; hidden; of an overlap agreement, of_task and differ. A sample is defective if the
        latest result of anybody says so.

    Raises:
        KeyError: there is no such task.
    """
    task = decisions.task(seq)
    verdicts = latest(task.results)
    said = {one for one, who in verdicts if who == reviewer}
    waits = reviewer is not None and _waits(decisions, task, reviewer)
    done = {one for one, _ in verdicts}
    rate = defect_rate(len({one for (one, _), verdict in verdicts.items() if verdict == "defect"}), len(done))
    body: dict[str, Any] = {
        "seq": seq,
        "title": task.title,
        "kind": task.kind,
        "size": task.size,
        "population": task.population,
        "by": task.reviewer.name,
        "done": len(done),
        "defects": None if waits else rate.defects,
        "rate": None if waits else rate.rate,
        "interval": None if waits else list(rate.interval),
        "told": "told when you have judged your samples" if waits else rate.told,
        "mine": len(said),
        "hidden": waits,
    }
    if limit is not None:
        body["next"] = [] if reviewer is None else waiting(decisions, task, reviewer)[:limit]
    if task.of_task is not None:
        found = overlap(decisions.task(task.of_task), task)
        body |= {
            "of_task": task.of_task,
            "agreement": None
            if waits
            else {
                "both": found.both,
                "equal": found.equal,
                "share": found.share,
                "interval": list(found.interval),
                "kappa": found.kappa,
                "told": found.told,
            },
            "differ": None if waits else list(found.differ),
        }
    return body


def waiting(decisions: Decisions, task: TaskState, reviewer: str) -> list[str]:
    """The samples of a task that a reviewer is still to judge, in its random order."""
    done = judged(task, reviewer) | barred(decisions, task, reviewer)
    return [one for one in in_order(task.ids, task.seed) if one not in done]


def barred(decisions: Decisions, task: TaskState, reviewer: str) -> set[str]:
    """The samples of an overlap that this reviewer must not judge: they did so in its audit."""
    return set() if task.of_task is None else judged(decisions.task(task.of_task), reviewer)


def judged(task: TaskState, reviewer: str) -> set[str]:
    """The samples of a task that a reviewer has judged."""
    return {one.id for one in task.results if one.reviewer == reviewer}


def _waits(decisions: Decisions, task: TaskState, reviewer: str) -> bool:
    """Whether a reviewer is still to judge samples of a task, or of an overlap of it."""
    return any(
        _left(decisions, one, reviewer) for one in decisions.tasks if one.seq == task.seq or one.of_task == task.seq
    )


def _left(decisions: Decisions, task: TaskState, reviewer: str) -> int:
    """How many samples of a task a reviewer is still to judge."""
    done = judged(task, reviewer)
    done |= {one for one in barred(decisions, task, reviewer) - done if holds(task.ids, one)}
    return task.size - len(done)


def latest(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """The latest verdict by sample and reviewer."""
    return {(one.id, one.reviewer): one.verdict for one in results}


def in_order(ids: Ids, seed: int) -> list[str]:
    """The samples of a task in the random order in which they are to be judged."""
    return hex_ids(ids[np.lexsort((ids, keys(ids, seed)))])


def overlap(audit: TaskState, again: TaskState) -> Agreement:
    """How far the second judges of samples agree with the first.

    A sample counts where the audit has a result of one reviewer, and the overlap one of another; of several, the first
    reviewer to judge it counts, with their latest verdict.
    """
    first = _first(audit.results, {})
    second = _first(again.results, {one: who for one, (who, _) in first.items()})
    return agreement({one: (first[one][1], second[one][1]) for one in sorted(first.keys() & second.keys())})


def _first(results: Sequence[Result], not_by: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Of each sample who judged it first, without the one named in `not_by`, and their latest verdict."""
    verdicts = latest(results)
    found: dict[str, tuple[str, str]] = {}
    for (one, who), verdict in verdicts.items():
        if who != not_by.get(one):
            found.setdefault(one, (who, verdict))
    return found
