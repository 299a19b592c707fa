"""The review log of one release: written here, by any number of people at once; never edited.

The format is that of `manifests.signoff`, the fields of each type that of `review.event`. Beside the events lie

```
reviews/<fingerprint>/ids-<sha256>.bin               a frozen list of sample ids: 16 bytes each, ascending, no two
                                                     equal; <sha256> is that of the file
reviews/<fingerprint>/00000000000000000007.sig       signature of event 7, see `manifests.signature`
reviews/<fingerprint>/.….tmp                         an unfinished write; swept when it is an hour old
```

Who appends reads the newest event, puts its sha256 into the own one, and writes it under the next number if that is
absent; of two who want one number, one reads the other's event and takes the next. No lock, so nothing to be left
behind by a killed process. The order is that of the numbers: no clock decides anything.
"""

import functools
import importlib.metadata
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from manifests.disk import WriteError, put_if_absent, sweep
from manifests.release import canonical_json, fingerprint, parse_release, read_release_bytes, sha256_hex
from manifests.signoff import (
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    ReviewLogError,
    SignoffState,
    count_events,
    event_name,
    next_signoff,
    parse_event,
    parse_instant,
    read_event,
    render_instant,
    review_folder,
    unsigned,
)
from review.event import VERDICTS, Event, EventError, Head, Reviewer, check_fields, check_written
from review.ids import ID_BYTES, AnyIds, Ids, hex_ids, holds, id_array, is_ascending, sorted_unique

__all__ = [
    "VERDICTS",
    "Event",
    "EventError",
    "FrozenListError",
    "Head",
    "ReviewLog",
    "ReviewLogError",
    "Reviewer",
    "WriteError",
]

MAX_FROZEN_BYTES = 1 << 30
ATTEMPTS = 1000
"""How many numbers in a row may be lost to other writers before one gives up."""

_ENVELOPE = ("seq", "prev", "release", "type", "reviewer", "tool", "at")
_SIGNATURE = re.compile(r"([0-9]{20})\.sig")


class FrozenListError(ValueError):
    """A frozen list that is missing, or is not what its name says.

    Attributes:
        path: of the list.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: the frozen list {what}: put back the original list")
        self.path = path


class ReviewLog:
    """One log of one release; threads share it, processes each have their own.

    Attributes:
        fingerprint: of the release.
        folder: of the log; it may not be there yet.
    """

    def __init__(self, folder: Path, release_fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = release_fingerprint
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._view: tuple[Event, ...] = ()
        self._signoff = unsigned(folder)
        self._counted = self._swept = False

    @classmethod
    def open(cls, release_folder: Path) -> "ReviewLog":
        """The log of the release in a folder; nothing but `release.json` is read.

        Raises:
            ReleaseError: no release, or one that breaks a rule.
        """
        data = read_release_bytes(release_folder)
        parse_release(data)
        digest = fingerprint(data)
        return cls(review_folder(release_folder, digest), digest)

    def append(
        self,
        kind: str,
        *,
        reviewer: Reviewer,
        at: datetime | None = None,
        freeze: AnyIds | None = None,
        check: Callable[[Sequence[Event]], None] | None = None,
        **fields: Any,
    ) -> Event:
        """Write the next event; it is durable when this returns.

        Args:
            kind: one of `manifests.signoff.EVENT_TYPES`.
            reviewer: who says so.
            at: an instant with a time zone; None for the clock.
            freeze: samples that the event is about; they are frozen once nothing else stands against it, and `target`
                gets their list and their number.
            check: called with all events that come before this one, those of others too; what it raises is raised, and
                nothing is written. It must not ask this log for anything but frozen lists.
            fields: of the type, see `review.event`.

        Raises:
            EventError: a field breaks a rule, or refers to an event or a frozen list that is not there.
            FrozenListError: a damaged list is in the way of `freeze`.
            ReviewLogError: the log is broken.
            WriteError: the disk is full, the folder is read-only, or the like; nothing was written.
        """
        reviewer.check()
        listed = None if freeze is None else _listed(freeze)
        if listed is not None:
            found = {"ids_sha256": sha256_hex(listed), "count": len(listed) // ID_BYTES}
            fields["target"] = {**fields["target"], **found}
        check_written(kind, fields)
        check_fields(kind, fields)
        envelope: dict[str, Any] = {
            "release": self.fingerprint,
            "type": kind,
            "reviewer": {"name": reviewer.name, "how_known": reviewer.how_known},
            "tool": f"curate {importlib.metadata.version('curate')}",
            "at": _rendered(at or datetime.now(UTC)),
        }
        with self._lock:
            self._sweep()
            for _ in range(ATTEMPTS):
                self._catch_up()
                if check is not None:
                    check(self._seen())
                own = None if listed is None else np.frombuffer(listed, dtype=f"S{ID_BYTES}")
                self._check_references(kind, fields, self.frozen_ids, own)
                data = self._encoded({**fields, **envelope})
                if listed is not None:
                    self._keep(listed)
                if put_if_absent(self.folder, event_name(len(self._events)), data):
                    return self._take(data)
        raise WriteError(None, f"{self.folder}: others wrote {ATTEMPTS} events while this one waited: try again")

    def events(self) -> Sequence[Event]:
        """All events in order; only those that are new since the last call are read.

        Raises:
            ReviewLogError: the log is broken; what was read before is checked in full by `verify` alone.
        """
        with self._lock:
            self._catch_up()
            return self._seen()

    def head(self) -> Head:
        """The last event.

        Raises:
            ReviewLogError: the log is broken.
        """
        with self._lock:
            self._catch_up()
            return Head(seq=len(self._events) - 1, sha256=self._events[-1].sha256 if self._events else None)

    def signoff(self, now: datetime | None = None) -> SignoffState:
        """Whether the release is signed off at an instant with a time zone; None for the clock.

        Raises:
            ReviewLogError: the log is broken.
        """
        with self._lock:
            self._catch_up()
            return self._signoff.at(now)

    def freeze(self, ids: AnyIds) -> str:
        """Keep a list of sample ids, for events that refer to it; it is durable when this returns.

        Args:
            ids: sample ids, texts or (N,) S16; repeated ones count once.

        Returns:
            The sha256 of the list, 64 hex digits: equal for equal sets of ids.

        Raises:
            EventError: there is none, or one is no sample id.
            FrozenListError: a damaged list is in the way.
            WriteError: it cannot be written; nothing was.
        """
        return self._keep(_listed(ids))

    def frozen(self, sha256: str) -> list[str]:
        """The ids of a frozen list, ascending; see `frozen_ids`."""
        return hex_ids(self.frozen_ids(sha256))

    def frozen_ids(self, sha256: str) -> Ids:
        """A frozen list as (N,) S16, ascending, all different; checked against its name.

        Raises:
            FrozenListError: it is missing, cannot be read, or is not what its name says.
        """
        path = self.folder / _frozen_name(sha256)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(handle, "rb") as file:
                data = file.read(min(os.fstat(handle).st_size, MAX_FROZEN_BYTES) + 1)
        except OSError as error:
            raise FrozenListError(path, f"cannot be read ({error})") from error
        if sha256_hex(data) != sha256:
            raise FrozenListError(path, "was changed, its sha256 is no longer its name")
        ids: Ids = np.frombuffer(data[: len(data) // ID_BYTES * ID_BYTES], dtype=f"S{ID_BYTES}")
        if len(data) % ID_BYTES or not is_ascending(ids):
            raise FrozenListError(path, f"must hold ascending ids of {ID_BYTES} bytes, and does not")
        return ids

    def verify(self) -> list[str]:
        """Read everything again, and say what is wrong: each problem names its event.

        Chain, fields, frozen lists, results of tasks, names of signatures; and whether what this log has read before
        is still there. Whether a signature is good, `review.verify` says.
        """
        with self._lock:
            known = list(self._events)
        fresh = ReviewLog(self.folder, self.fingerprint)
        try:
            events, problems = fresh.looked_through()
        except ReviewLogError as error:
            return [str(error)]
        return [*_lost(self.folder, known, events), *problems]

    def looked_through(self) -> tuple[Sequence[Event], list[str]]:
        """All events, and what is wrong with these beside their chain: each problem names its event.

        Frozen lists and tasks that events refer to, and signatures of events that are not there.

        Raises:
            ReviewLogError: the log is broken.
        """
        problems = []
        signed = _signatures(self.folder)  # first, for others may write an event and sign it meanwhile
        frozen = functools.lru_cache(maxsize=8)(self.frozen_ids)  # the results of a task share its list
        events = self.events()
        for event in events:
            try:
                self._check_references(event.kind, event.fields, frozen)
            except EventError as error:
                problems.append(f"{self.folder}: event {event.seq}: {error}")
        strays = [seq for seq in signed if seq >= len(events)]
        told = [f"{self.folder}: event {seq} is missing, though its signature is there" for seq in strays]
        return events, [*problems, *told]

    def _seen(self) -> tuple[Event, ...]:
        if len(self._view) < len(self._events):
            self._view = tuple(self._events)
        return self._view

    def _keep(self, listed: bytes) -> str:
        digest = sha256_hex(listed)
        if not put_if_absent(self.folder, _frozen_name(digest), listed):
            self.frozen_ids(digest)
        return digest

    def _sweep(self) -> None:
        if not self._swept:
            sweep(self.folder)
            self._swept = True

    def _catch_up(self) -> None:
        """Read the events that are new; by their numbers, for to list a folder takes as long as it has files."""
        if not self._counted:
            count_events(self.folder)  # once, to see a gap
        if self._events:
            last = self._events[-1]
            data = read_event(self.folder, last.seq)
            if data is None or sha256_hex(data) != last.sha256:
                raise ReviewLogError(self.folder, last.seq, "was edited or removed after it had been read")
        while (data := read_event(self.folder, len(self._events))) is not None:
            self._take(data)
        self._counted = True

    def _take(self, data: bytes) -> Event:
        seq = len(self._events)
        prev = self._events[-1].sha256 if self._events else None
        found = parse_event(self.folder, seq, data, prev=prev, release=self.fingerprint)
        fields = {name: value for name, value in found.items() if name not in _ENVELOPE}
        try:
            check_fields(found["type"], fields)
        except EventError as error:
            raise ReviewLogError(self.folder, seq, f"is no {found['type']}: {error}") from error
        event = Event(
            seq=seq,
            kind=found["type"],
            reviewer=Reviewer(name=found["reviewer"]["name"], how_known=found["reviewer"]["how_known"]),
            at=parse_instant(found["at"]),
            sha256=sha256_hex(data),
            fields=fields,
        )
        self._signoff = next_signoff(self.folder, self._signoff, found)
        self._events.append(event)
        return event

    def _encoded(self, event: dict[str, Any]) -> bytes:
        seq = len(self._events)
        if seq >= MAX_EVENTS:
            raise EventError(f"a log has at most {MAX_EVENTS} events: apply the reviews, and review the next release")
        prev = self._events[-1].sha256 if self._events else None
        try:
            data = canonical_json({**event, "seq": seq, "prev": prev})
        except ValueError as error:
            raise EventError(f"the {event['type']} cannot be written: {error}") from error
        if len(data) > MAX_EVENT_BYTES:
            raise EventError(f"an event has at most {MAX_EVENT_BYTES} bytes, got {len(data)}: write two")
        return data

    def _check_references(
        self, kind: str, fields: Mapping[str, Any], frozen: Callable[[str], Ids], own: Ids | None = None
    ) -> None:
        """Check that the frozen list of an event, and the task that it is about, are there and what it says.

        `own` is the event's list where it is still to be written.
        """
        if "ids_sha256" in fields.get("target", {}):
            target = fields["target"]
            try:
                found = len(frozen(target["ids_sha256"]) if own is None else own)
            except FrozenListError as error:
                raise EventError(f"target.ids_sha256 of a {kind}: {error}") from error
            if found != target["count"]:
                raise EventError(
                    f"target.count of a {kind} must be that of its frozen list, {found}, got {target['count']}"
                )
        if kind == "task" and fields["task"]["kind"] == "overlap":
            audit = self._task(fields["task"]["of_task"], "task.of_task")
            if audit.fields["task"]["kind"] != "audit":
                raise EventError(f"task.of_task must be the seq of an audit, got {audit.seq}")
        if kind == "task_result":
            drawn = self._task(fields["task"], "task").frozen
            if drawn is None or not holds(frozen(drawn[0]), fields["target"]["ids"][0]):
                raise EventError(f"target.ids: {fields['target']['ids'][0]} was not drawn for task {fields['task']}")

    def _task(self, seq: int, name: str) -> Event:
        if seq >= len(self._events) or self._events[seq].kind != "task":
            raise EventError(f"{name} must be the seq of a task in this log, got {seq}")
        return self._events[seq]


def _rendered(at: datetime) -> str:
    try:
        return render_instant(at)
    except ValueError as error:
        raise EventError(f"at: {error}") from error


def _frozen_name(sha256: str) -> str:
    return f"ids-{sha256}.bin"


def _lost(folder: Path, known: Sequence[Event], events: Sequence[Event]) -> list[str]:
    """What had been read and is no longer so: the chain alone does not show the loss of the last events."""
    for event in known:
        if event.seq >= len(events) or events[event.seq].sha256 != event.sha256:
            return [str(ReviewLogError(folder, event.seq, "was edited or removed after it had been read"))]
    return []


def _signatures(folder: Path) -> list[int]:
    """The numbers of the events that have a signature."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := _SIGNATURE.fullmatch(name))]


def _listed(ids: AnyIds) -> bytes:
    """The bytes of a frozen list."""
    try:
        data = sorted_unique(id_array(ids)).tobytes()
    except ValueError as error:
        raise EventError(f"the list to be frozen holds what is no sample id: {error}") from error
    if not data:
        raise EventError("the list to be frozen must hold a sample id, got none: choose samples first")
    return data
