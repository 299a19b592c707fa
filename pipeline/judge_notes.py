"""What a reader of a judgement must know, one plain sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.agreement import MOSTLY_WRONG
from students.corruption import SMALLEST

_NAMED = 10
_GOLD = {
    "given": "{images} gold images that did not teach the teacher anchor the students.",
    "labelled": "The teacher was given, so the {images} labelled images, which this run did not teach it with, are the "
    "gold that anchors the students; whether they taught it elsewhere is not known here.",
    "none": "No gold: the {labelled} labelled images that anchor the students also taught the teacher, so what it "
    "learnt wrong from them is confirmed rather than found. Masks that never teach it go into --gold.",
}


def notes_of(
    summary: Mapping[str, Any],
    folds: NDArray[np.int64],
    stated: Mapping[str, int],
    similar: Sequence[tuple[int, int]],
    cap: float,
) -> list[str]:
    """The notes of a judgement, in a fixed order.

    Args:
        summary: ``judge.json`` so far.
        folds: the fold of each judged label.
        stated: reason -> labels that are held for what they show.
        similar: pairs of clusters that look alike and lie in different folds.
        cap: at most this share of a cluster is acted upon.
    """
    gold = _GOLD[summary["gold"]["role"]].format(images=summary["gold"]["images"], labelled=summary["labelled"])
    return [
        gold,
        *_audit(summary["audit"]),
        *_calibration(summary),
        *_reach(summary, len(np.unique(folds))),
        *_gates(summary["clusters"]),
        *_clusters(summary["clusters"], cap),
        *_labels(stated),
        *_similar(similar),
    ]


def _audit(audit: Mapping[str, Any]) -> Iterator[str]:
    if not audit["folders"]:
        yield (
            "No audit: how probable it is that a label is wrong is estimated from disagreement alone, not calibrated "
            "by people. 'curate audit' draws the frames to look at."
        )
        return
    against = _listed(audit["contradictions"])
    told = {
        "used": "People masked {used} of these frames; by their masks {bad} of the labels are bad.",
        "chosen": "People masked {chosen} frames that were chosen from a list. Their masks are the labels there; of "
        "the teacher's {chosen_bad} were bad. They are no random sample: they count in no rate and calibrate nothing.",
        "reason": "The audit is not trusted and nothing of it is used: {reason}.",
        "chosen_reason": "No mask of a frame chosen from a list is used: {chosen_reason}.",
        "contradictions": f"Of {{twice}} audited frames masked twice, these contradict each other: {against}.",
        "unfinished": "The audit is unfinished: {unfinished} of its frames have no mask yet.",
        "not_in_run": "{not_in_run} of the audit's {masks} masks are of frames that this run did not choose.",
        "unlabelled": "{unlabelled} audited frames could not be decoded again: they have no label and stay out.",
    }
    yield from (text.format(**audit) for name, text in told.items() if audit[name])
    if not audit["used"] and not audit["reason"]:
        what = "No mask of a frame drawn at random is used" if audit["chosen"] else "Nothing of the audit is used"
        yield f"{what}, so no label is calibrated by it."


def _calibration(summary: Mapping[str, Any]) -> Iterator[str]:
    """Folds that the audit does not calibrate."""
    if not summary["audit"]["used"]:
        return
    for fold in summary["folds"]:
        if fold["calibrated"]:
            continue
        count = fold["audited"]
        few = f"{count} audited labels, fewer than {SMALLEST}"
        why = few if count < SMALLEST else f"all {count} audited labels are {'bad' if fold['bad'] else 'good'}"
        yield f"Fold {fold['fold']} is not calibrated: {why}."


def _reach(summary: Mapping[str, Any], folds: int) -> Iterator[str]:
    if summary["reason"]:
        yield f"No label was judged: {summary['reason']}. What nobody checked is kept as the teacher made it."
        return
    left = summary["labels"] - summary["judged"]
    if left:
        yield f"{left} labels have no student that never saw their cluster; they are kept."
    if folds == 2 and len(summary["clusters"]) == 2:
        yield "There are two clusters only: each student has seen one of them and judges the other."


def _gates(clusters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    closed = [(name, facts) for name, facts in clusters.items() if facts["gate"] == "failed"]
    if closed:
        told = [f"cluster {name} ({facts['gate_reason']})" for name, facts in closed]
        head = f"The gate is closed in {len(closed)} of {len(clusters)} clusters, where nothing is dropped"
        yield f"{head}: {_listed(told, '; ')}."
    unsure = [name for name, facts in clusters.items() if facts["gate"] == "uncertain"]
    if unsure:
        yield f"Too little is known of {_named(unsure)}: flagged labels lose weight there and none is dropped."


def _clusters(clusters: Mapping[str, Mapping[str, Any]], cap: float) -> Iterator[str]:
    single = [name for name, facts in clusters.items() if facts["labels"] == 1]
    if single:
        yield f"{_named(single)[0].upper()}{_named(single)[1:]} {'have' if len(single) > 1 else 'has'} a single label."
    wrong = [name for name, facts in clusters.items() if facts["noise"][0] > 0.5]
    if wrong:
        yield (
            f"Most labels of {_named(wrong)} seem to be wrong; where they are not held as a whole, at most "
            f"{100 * cap:.0f} % of a cluster is acted upon, so wrong ones stay. "
            "Another teacher, or labelled images like these, would help more than the judge."
        )
    moved = sum(facts["elsewhere"] for facts in clusters.values())
    if moved:
        yield f"{moved} labels are judged in the fold of their source and not in that of their cluster."


def _labels(stated: Mapping[str, int]) -> Iterator[str]:
    if count := stated.get("nobody-labelled-but-seen", 0):
        yield f"Labels that show nobody where the student sees somebody, held for a person: {count}."
    if count := stated.get(MOSTLY_WRONG, 0):
        yield f"People found most labels of their clusters wrong, so all that nobody checked there are held: {count}."
    if count := stated.get("whole-image-labelled", 0):
        yield f"Labels that are the whole image where the student is not so sure, held for a person: {count}."


def _similar(similar: Sequence[tuple[int, int]]) -> Iterator[str]:
    if similar:
        told = _listed([f"{a} and {b}" for a, b in similar])
        yield f"Clusters that look alike lie in different folds, or one fold would be left: {told}."


def _named(names: Sequence[str]) -> str:
    return f"cluster{'s' * (len(names) > 1)} {_listed(names)}"


def _listed(items: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return between.join(items[:_NAMED]) + more
