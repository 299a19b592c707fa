"""From the decisions of a review to the release that follows from them; the reviewed release and its log stay.

| state of a sample | becomes |
|---|---|
| approve | keep, in the split of its group |
| reject | drop; its pixels go to shards/audit, so it can be taken back |
| hold, redraw | hold; a redraw waits until somebody has drawn the mask again |
| disputed | nothing is written, or, where the caller says so, hold |
| undecided | what it was |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manifests.release import Json
from manifests.successor import Edit, write_successor
from review.decisions import fold
from review.event import Event, Head
from review.ids import AnyIds, IdIndex, hex_ids, id_array, sorted_unique
from review.log import ReviewLog

BY = "review"
"""The `decision_by` of a sample that was reviewed."""
PREFIX = "review: "
"""How the reasons of a reviewer begin in `decision_reasons`; the verdict is the first."""
BECOMES = {"approve": "keep", "reject": "drop", "hold": "hold", "redraw": "hold", "disputed": "hold"}
_NAMED = 10


class ApplyError(ValueError):
    """A review that cannot be applied; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What was written.

    Attributes:
        folder: of the new release.
        fingerprint: of the new release.
        head: of the review log that was applied: keep it, it is in the new `release.json` too.
        decisions: state -> samples.
    """

    folder: Path
    fingerprint: str
    head: Head
    decisions: Mapping[str, int]


def apply_reviews(folder: Path, *, disputed: Literal["refuse", "hold"] = "refuse", at: datetime) -> Applied:
    """Write the successor of the release in `folder` that its review log asks for; a run twice gives one release.

    Args:
        folder: holds `release.json`.
        disputed: what becomes of samples on which reviewers disagree: "refuse" to write anything, or "hold" them.
        at: when, an instant with a time zone.

    Raises:
        ApplyError: nothing was decided, or samples are disputed.
        SuccessorError: a decision does not fit its sample, nothing changes, or the release cannot be written.
        ReleaseError: no release, or one that breaks a rule.
        ReviewLogError: the log is broken.
    """
    log = ReviewLog.open(folder)
    events = log.events()
    decisions = fold(events, log.frozen_ids)
    found = {state: hex_ids(decisions.ids_in(state)) for state in BECOMES}
    counts = {state: len(ids) for state, ids in found.items() if ids}
    if not counts:
        raise ApplyError(f"{folder}: nobody has decided on a sample yet; review it first (curate review)")
    if found["disputed"] and disputed != "hold":
        ids = found["disputed"]
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        raise ApplyError(
            f"{folder}: reviewers disagree on {len(ids)} samples: {', '.join(ids[:_NAMED])}{more}; settle them in the "
            f"queue of disputes, or hold them (--disputed hold); nothing was changed"
        )
    edits = _edits(found, events, log.frozen_ids)
    cause: dict[str, Json] = {
        "by": "apply-reviews",
        "log_head": decisions.head.sha256,
        "events": decisions.head.seq + 1,
        "decisions": dict(counts),
    }
    new, digest = write_successor(folder, edits=edits, cause=cause, at=at)
    return Applied(folder=new, fingerprint=digest, head=decisions.head, decisions=counts)


def _edits(
    found: Mapping[str, Sequence[str]], events: Sequence[Event], frozen: Callable[[str], AnyIds]
) -> dict[str, Edit]:
    """The edit of each sample; those of one state that one event decided on share theirs.

    Args:
        found: state -> samples, each in one.
        events: of the log.
        frozen: gives the ids of a frozen list.
    """
    index = IdIndex(sorted_unique(id_array([one for ids in found.values() for one in ids])))
    last = _last(index, events, frozen)
    edits: dict[str, Edit] = {}
    for state, ids in found.items():
        shared: dict[int, Edit] = {}
        for one, seq in zip(ids, last[index.find(id_array(ids))].tolist(), strict=True):
            if seq not in shared:
                said = () if state == "disputed" else events[seq].fields.get("reasons", ())
                reasons = tuple(PREFIX + text for text in (state, *said))
                shared[seq] = Edit(decision=BECOMES[state], reasons=reasons, by=BY)
            edits[one] = shared[seq]
    return edits


def _last(index: IdIndex, events: Sequence[Event], frozen: Callable[[str], AnyIds]) -> NDArray[np.int64]:
    """(M,) the last event that decides on each of M samples; all are decided on."""
    last = np.full(len(index), -1, np.int64)
    single = [(event.seq, event.ids) for event in events if event.kind == "sample_decision"]
    seqs = np.repeat(np.array([seq for seq, _ in single], np.int64), [len(ids) for _, ids in single])
    places = index.find(id_array([one for _, ids in single for one in ids]))
    np.maximum.at(last, places[places >= 0], seqs[places >= 0])
    for event in events:
        if event.kind == "bulk_decision" and event.frozen is not None:
            places = index.find(id_array(frozen(event.frozen[0])))
            last[places[places >= 0]] = np.maximum(last[places[places >= 0]], event.seq)
    return last
