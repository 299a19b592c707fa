"""What the events of a log come to: the state of each sample, its history, the tasks, the sign-off.

The state of a sample follows from the latest verdict of each reviewer: equal ones are its state, different ones make it
disputed. A decision that adjudicates settles what came before it: of that, nothing counts any more, and it counts as
the verdict of its reviewer. Who decides later may agree, or dispute again.

So a verdict counts if its event is the latest of its reviewer on this sample, and not earlier than the latest
adjudication. Both are maxima of sequence numbers, which is why bulk decisions of a million samples fold as arrays.
M is the number of samples decided on, E that of events.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.signoff import ReviewLogError, Signoff, SignoffState, next_signoff
from review.event import VERDICTS, Event, Head, Reviewer
from review.ids import AnyIds, IdIndex, Ids, id_array, sorted_unique
from review.log import FrozenListError, ReviewLog
from review.query import STATES

__all__ = ["STATES", "Decisions", "Folding", "LiveDecisions", "Result", "TaskState", "fold"]

DISPUTED = STATES.index("disputed")
MAX_RECENT = 4096
"""How many samples may be decided on one by one before the arrays are made anew."""

_CODES = {verdict: STATES.index(verdict) for verdict in VERDICTS}
Frozen = Callable[[str], AnyIds]
_Numbers = NDArray[np.int64]
_Bits = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a reviewer said of a sample in a task.

    Attributes:
        seq: number of the event.
        id: of the sample.
        reviewer: who says so.
        verdict: "good" or "defect".
        reasons: of the verdict.
    """

    seq: int
    id: str
    reviewer: str
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskState:
    """A review task, and what came of it so far.

    Attributes:
        seq: number of its event.
        title: of the task.
        kind: "audit" or "overlap".
        seed: of the draw.
        of_task: of an overlap, the audit whose samples are judged again; None for an audit.
        population: of how many samples they were drawn; None where it is not told.
        query: what was asked for.
        reviewer: who made it.
        ids: (N,) S16, ascending: the samples drawn.
        results: in order; several of one reviewer on one sample where they changed their mind.
        strays: numbers of the results on samples that were not drawn; they do not count.
    """

    seq: int
    title: str
    kind: str
    seed: int
    of_task: int | None
    population: int | None
    query: Mapping[str, Any]
    reviewer: Reviewer
    ids: Ids
    results: tuple[Result, ...]
    strays: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many samples were drawn."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Base:
    """The events up to some time, as arrays.

    Attributes:
        index: the M samples decided on.
        states: (M,) int8.
        places: (R,) int64 ascending, the samples of the R single decisions.
        seqs: (R,) int64, their events; ascending within a sample.
        bulks: event of each bulk decision, and ceil(M/8) bytes: a bit for each sample, set where it decides on it.
    """

    index: IdIndex
    states: NDArray[np.int8]
    places: _Numbers
    seqs: _Numbers
    bulks: tuple[tuple[int, _Bits], ...]


class Decisions:
    """What the events up to `head` come to. It does not change.

    Attributes:
        head: the last event.
    """

    def __init__(self, *, head: Head, folding: "Folding", signoff: SignoffState, recent: Mapping[str, int]) -> None:
        self.head = head
        self._folding = folding
        self._base = folding.base
        self._touched = folding.touched
        self._signoff = signoff
        self._recent = recent

    @property
    def signoff(self) -> Signoff | None:
        """The sign-off that holds now; None where there is none, or it was withdrawn or has expired."""
        return self._signoff.at().signoff

    @property
    def signoff_state(self) -> SignoffState:
        """The sign-off at the last event; ask it with `at` whether it has expired."""
        return self._signoff

    def states(self, ids: AnyIds) -> NDArray[np.int8]:
        """The state of each of (N,) samples: (N,) int8, indices into STATES.

        Args:
            ids: (N,) texts, (N,) S16 or (N, 16) uint8; in any order, of any samples.
        """
        wanted = id_array(ids)
        states = _at(self._base.index, self._base.states, wanted)
        if not self._recent:
            return states
        recent, codes = self._recent_arrays
        return np.where(recent.find(wanted) >= 0, _at(recent, codes, wanted), states)

    def state(self, sample_id: str) -> str:
        """The state of one sample."""
        return STATES[int(self.states([sample_id])[0])]

    def ids_in(self, state: str) -> Ids:
        """The samples in a state: (N,) S16, ascending; for "undecided" none, for the log does not know them."""
        code = STATES.index(state)
        found: Ids = self._base.index.ids[self._base.states == code]
        if not self._recent:
            return found
        recent, codes = self._recent_arrays
        return sorted_unique(np.concatenate([found[recent.find(found) < 0], recent.ids[codes == code]]))

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many samples are in each state but "undecided", in which are all that no event names."""
        counts = np.bincount(self._base.states, minlength=len(STATES))
        if self._recent:
            recent, codes = self._recent_arrays
            places = self._base.index.find(recent.ids)
            counts -= np.bincount(self._base.states[places[places >= 0]], minlength=len(STATES))
            counts += np.bincount(codes, minlength=len(STATES))
        return {state: int(counts[code]) for code, state in enumerate(STATES) if code}

    def history(self, sample_id: str) -> list[Event]:
        """The decisions on a sample, single and bulk, in order."""
        return [self._folding.events[seq] for seq in self._decided(sample_id)]

    def comments(self, sample_id: str) -> list[Event]:
        """The comments on a sample, in order."""
        seqs = self._folding.comments.get(sample_id, ())
        return [self._folding.events[seq] for seq in seqs if seq <= self.head.seq]

    @cached_property
    def tasks(self) -> Sequence[TaskState]:
        """All tasks, in order."""
        return tuple(self._task(seq) for seq in list(self._folding.tasks) if seq <= self.head.seq)

    def task(self, seq: int) -> TaskState:
        """The task of an event.

        Raises:
            KeyError: it is no task.
        """
        if seq > self.head.seq or seq not in self._folding.tasks:
            raise KeyError(f"event {seq} is no task of this log: ask for the tasks first")
        return self._task(seq)

    @cached_property
    def _recent_arrays(self) -> tuple[IdIndex, NDArray[np.int8]]:
        ordered = sorted(self._recent)
        return IdIndex(id_array(ordered)), np.array([self._recent[one] for one in ordered], np.int8)

    def _decided(self, sample_id: str) -> list[int]:
        return [seq for seq in decided(self._base, self._touched, sample_id) if seq <= self.head.seq]

    def _task(self, seq: int) -> TaskState:
        event, index = self._folding.events[seq], self._folding.tasks[seq]
        seqs = [one for one in self._folding.results.get(seq, ()) if one <= self.head.seq]
        found = [self._folding.events[one] for one in seqs]
        drawn = index.find(id_array([one.ids[0] for one in found])) >= 0
        return TaskState(
            seq=seq,
            title=event.fields["title"],
            kind=event.fields["task"]["kind"],
            seed=event.fields["task"]["seed"],
            of_task=event.fields["task"].get("of_task"),
            population=event.fields["task"].get("population"),
            query=event.fields["target"]["query"],
            reviewer=event.reviewer,
            ids=index.ids,
            results=tuple(_result(one) for one, known in zip(found, drawn, strict=True) if known),
            strays=tuple(one.seq for one, known in zip(found, drawn, strict=True) if not known),
        )


class Folding:
    """Folds events as they come; `Decisions` that were handed out before stay as they are.

    Attributes:
        events: all that were added.
        base: those up to some time, as arrays.
        touched: the single decisions since then, by sample.
        comments: by sample.
        tasks: the samples drawn for each.
        results: by task.
    """

    def __init__(self, frozen: Frozen) -> None:
        self.events: list[Event] = []
        self.base = _empty()
        self.touched: dict[str, list[int]] = {}
        self.comments: dict[str, list[int]] = {}
        self.tasks: dict[int, IdIndex] = {}
        self.results: dict[int, list[int]] = {}
        self._frozen = frozen
        self._facts = _Facts()
        self._recent: dict[str, int] = {}
        self._signoff = SignoffState(state="none", signoff=None, why="no event signs it off")

    def add(self, events: Sequence[Event]) -> Decisions:
        """Fold the events that follow those added before.

        Raises:
            ReviewLogError: a frozen list is missing, or is not what the event says; then nothing is added.
            ValueError: they do not follow.
        """
        if events and events[0].seq != len(self.events):
            raise ValueError(f"event {len(self.events)} comes next, got {events[0].seq}: fold the log from its start")
        lists = {event.seq: _listed(event, self._frozen) for event in events if event.frozen is not None}
        changed: set[str] = set()
        for event in events:
            self.events.append(event)
            self._facts.add(event)
            self._note(event, changed)
        self.tasks |= {seq: IdIndex(ids) for seq, ids in lists.items() if self.events[seq].kind == "task"}
        bulks = [(seq, ids) for seq, ids in lists.items() if self.events[seq].kind == "bulk_decision"]
        if bulks or len(self.touched) > MAX_RECENT:
            self.base = _rebased(self.base, bulks, self.touched, self._facts)
            self.touched, self._recent = {}, {}
        elif changed:
            states = {one: self._facts.state(decided(self.base, self.touched, one)) for one in changed}
            self._recent = self._recent | states
        head = Head(seq=len(self.events) - 1, sha256=self.events[-1].sha256 if self.events else None)
        return Decisions(head=head, folding=self, signoff=self._signoff, recent=self._recent)

    def _note(self, event: Event, changed: set[str]) -> None:
        if event.kind == "sample_decision":
            changed.update(event.ids)
        for one in event.ids if event.kind in ("sample_decision", "comment") else ():
            by_sample = self.comments if event.kind == "comment" else self.touched
            by_sample.setdefault(one, []).append(event.seq)
        if event.kind == "task_result":
            self.results.setdefault(event.fields["task"], []).append(event.seq)
        if event.kind in ("signoff", "withdraw_signoff"):
            self._signoff = next_signoff(Path(), self._signoff, event.to_log())


class LiveDecisions:
    """The decisions of a log that others write too; threads share it."""

    def __init__(self, log: ReviewLog) -> None:
        self.log = log
        self._lock = threading.Lock()
        self._folding = Folding(log.frozen_ids)
        self._last: Decisions | None = None

    def now(self) -> Decisions:
        """What all events up to now come to; only the new ones are read and folded.

        Raises:
            ReviewLogError: the log is broken, or a frozen list is.
        """
        return self.of(self.log.events())  # read before the lock is taken: whoever appends holds them the other way

    def of(self, events: Sequence[Event]) -> Decisions:
        """What the events of the log come to, from its first to its last that this process has read.

        Raises:
            ReviewLogError: a frozen list is no good.
        """
        with self._lock:
            new = events[len(self._folding.events) :]
            if new or self._last is None:
                self._last = self._folding.add(new)
            return self._last


def fold(events: Sequence[Event], frozen: Frozen) -> Decisions:
    """What the events of a log, from its first, come to.

    Args:
        events: in order.
        frozen: gives the ids of a frozen list, such as `ReviewLog.frozen_ids`.

    Raises:
        ReviewLogError: a frozen list is missing, or is not what the event says.
        ValueError: the events do not begin with number 0.
    """
    return Folding(frozen).add(events)


def decided(base: "_Base", touched: Mapping[str, Sequence[int]], sample_id: str) -> list[int]:
    """The events that decide on a sample, in order."""
    seqs = list(touched.get(sample_id, ()))
    place = int(base.index.find(id_array([sample_id]))[0])
    if place >= 0:
        low, high = np.searchsorted(base.places, [place, place + 1])
        seqs += base.seqs[low:high].tolist()
        seqs += [seq for seq, bits in base.bulks if bits[place >> 3] >> (7 - (place & 7)) & 1]
    return sorted(seqs)


class _Facts:
    """Of each event what the state of a sample needs: verdict, reviewer, whether it adjudicates."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.who: list[int] = []
        self.adjudicates: list[bool] = []
        self._names: dict[str, int] = {}

    def add(self, event: Event) -> None:
        decides = event.kind in ("sample_decision", "bulk_decision")
        self.codes.append(_CODES[event.fields["verdict"]] if decides else 0)
        self.who.append(self._names.setdefault(event.reviewer.name, len(self._names)))
        # A bulk decision settles nothing, whatever further field another tool gave it.
        self.adjudicates.append(event.kind == "sample_decision" and event.fields.get("adjudicates") is True)

    def state(self, seqs: Sequence[int]) -> int:
        """The state that decisions on one sample, in order, come to."""
        verdicts: dict[int, int] = {}
        for seq in seqs:
            if self.adjudicates[seq]:
                verdicts.clear()
            verdicts[self.who[seq]] = self.codes[seq]
        found = set(verdicts.values())
        return DISPUTED if len(found) > 1 else next(iter(found), 0)


def _listed(event: Event, frozen: Frozen) -> Ids:
    assert event.frozen is not None
    sha256, count = event.frozen
    try:
        ids = id_array(frozen(sha256))
    except FrozenListError as error:
        raise ReviewLogError(error.path, event.seq, f"refers to a frozen list that is no good: {error}") from error
    if len(ids) != count:
        raise ReviewLogError(Path(f"ids-{sha256}.bin"), event.seq, f"counts {count} ids, its frozen list {len(ids)}")
    return ids


def _result(event: Event) -> Result:
    return Result(
        seq=event.seq,
        id=event.ids[0],
        reviewer=event.reviewer.name,
        verdict=event.fields["verdict"],
        reasons=tuple(event.fields.get("reasons", ())),
    )


def _at(index: IdIndex, codes: NDArray[np.int8], ids: Ids) -> NDArray[np.int8]:
    """The code of each id; 0 where the index does not have it."""
    if not len(index):
        return np.zeros(len(ids), np.int8)
    places = index.find(ids)
    return np.where(places >= 0, codes[places], 0).astype(np.int8)


def _empty() -> _Base:
    none = np.zeros(0, np.int64)
    index = IdIndex(np.zeros(0, "S16"))
    return _Base(index=index, states=np.zeros(0, np.int8), places=none, seqs=none, bulks=())


def _rebased(
    base: _Base, bulks: Sequence[tuple[int, Ids]], touched: Mapping[str, Sequence[int]], facts: _Facts
) -> _Base:
    """The base with further bulk decisions and single ones in it."""
    single = id_array(list(touched))
    index, moved = _grown(base.index, [single, *(ids for _, ids in bulks)])
    counts = [len(seqs) for seqs in touched.values()]
    old = base.places if moved is None else moved[base.places]
    places = np.concatenate([old, np.repeat(index.find(single), counts)])
    seqs = np.concatenate([base.seqs, np.array([s for some in touched.values() for s in some], np.int64)])
    order = np.lexsort((seqs, places))
    places, seqs = places[order], seqs[order]
    kept = [
        (seq, bits if moved is None else _bits(moved[_held(bits, len(base.index))], len(index)))
        for seq, bits in base.bulks
    ]
    every = (*kept, *((seq, _bits(index.find(ids), len(index))) for seq, ids in bulks))
    states = _states(len(index), places, seqs, every, facts)
    return _Base(index=index, states=states, places=places, seqs=seqs, bulks=every)


def _grown(index: IdIndex, more: Sequence[Ids]) -> tuple[IdIndex, _Numbers | None]:
    """An index with further ids, and the new places of its own; the index itself and None where it has them all."""
    if all((index.find(ids) >= 0).all() for ids in more):
        return index, None
    grown = IdIndex(sorted_unique(np.concatenate([index.ids, *more])))
    return grown, grown.find(index.ids)


def _bits(places: _Numbers, size: int) -> _Bits:
    """Places below `size` as a set: a bit for each, the first in the highest bit of the first byte."""
    held = np.zeros(size, bool)
    held[places] = True
    return np.packbits(held)


def _held(bits: _Bits, size: int) -> NDArray[np.bool_]:
    """(size,) whether each place is in a set of `_bits`."""
    return np.unpackbits(bits, count=size).view(bool)


def _states(
    size: int, places: _Numbers, seqs: _Numbers, bulks: Sequence[tuple[int, _Bits]], facts: _Facts
) -> NDArray[np.int8]:
    """The (M,) states: verdicts of each reviewer in turn, lowest and highest of those that count."""
    codes, who = np.array(facts.codes, np.int8), np.array(facts.who, np.int64)
    settles = np.array(facts.adjudicates, bool)[seqs]
    settled = np.full(size, -1, np.int64)
    np.maximum.at(settled, places[settles], seqs[settles])
    lowest, highest = np.full(size, DISPUTED, np.int8), np.zeros(size, np.int8)
    latest = np.full(size, -1, np.int64)
    for mine, mine_bulks in _by_reviewer(who, seqs, bulks):
        np.maximum.at(latest, places[mine], seqs[mine])
        for seq, bits in mine_bulks:
            np.maximum(latest, seq, out=latest, where=_held(bits, size))
        # Of a reviewer with few decisions only these are touched.
        few = not mine_bulks and len(mine) < size // 8
        touched = np.unique(places[mine]) if few else np.flatnonzero(latest >= 0)
        counts = touched[latest[touched] >= settled[touched]]
        verdicts = codes[latest[counts]]
        lowest[counts] = np.minimum(lowest[counts], verdicts)
        highest[counts] = np.maximum(highest[counts], verdicts)
        latest[touched] = -1
    return np.where(lowest == highest, lowest, DISPUTED).astype(np.int8)


def _by_reviewer(
    who: _Numbers, seqs: _Numbers, bulks: Sequence[tuple[int, _Bits]]
) -> Iterator[tuple[_Numbers, list[tuple[int, _Bits]]]]:
    """For each reviewer the rows of their single decisions, and their bulk decisions."""
    mine = who[seqs]
    order = np.argsort(mine, kind="stable")
    cuts = np.searchsorted(mine[order], np.arange(int(who.max(initial=-1)) + 2))
    for reviewer in range(len(cuts) - 1):
        held = [(seq, bits) for seq, bits in bulks if who[seq] == reviewer]
        rows = order[cuts[reviewer] : cuts[reviewer + 1]]
        if len(rows) or held:
            yield rows, held
