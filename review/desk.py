"""What lies open while a release is reviewed: its tables and pixels, its log, and the releases it is compared with.

Whatever is told must be of the release that was opened. So each question first looks whether `release.json` is still
the file that was read; `changed` looks at all others. Only `review.integrity` reads every byte.
"""

import dataclasses
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.diff import Difference, compare
from manifests.release import RELEASE_FILE, ReleaseError, fingerprint, read_release_bytes
from manifests.signoff import ReviewLogError, render_instant
from review.catalog import Catalog
from review.decisions import STATES, Decisions, LiveDecisions
from review.event import Event, EventError, Head, Reviewer
from review.guard import Refusal
from review.integrity import Integrity
from review.log import ReviewLog
from review.overview import Review
from review.pixels import Pixels
from review.shelf import Shelf, State, Volume, file_state

MAX_SIBLINGS = 4
"""Other releases that stay open."""
LOOK_SECONDS = 1.0
"""How long what was found of all files holds: a release has hundreds."""
_SHOWN = 20
NO_NAME = "give your name first: it is kept with what you decide"


def reviewer_of(name: object) -> Reviewer:
    """A reviewer by the name that a person gave, spaces at its ends taken off.

    Raises:
        Refusal: it is no text of 1..80 printable characters.
    """
    if not isinstance(name, str) or not name.strip():
        raise Refusal(400, f"a reviewer's name must be a text, got {name!r:.80}", NO_NAME)
    try:
        reviewer = Reviewer(name=name.strip())
        reviewer.check()
    except EventError as error:
        raise Refusal(400, str(error), "give a name of 1 to 80 printable characters") from error
    return reviewer


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A release whose tables are open."""

    catalog: Catalog
    pixels: Pixels


class Desk:
    """The release under review and all that belongs to it; threads share it.

    Attributes:
        folder: of the release.
        catalog: its tables.
        pixels: its pictures.
        log: its review log.
        shelf: the releases of its root.
        integrity: checks of its bytes.
        reviewer: name that decisions carry where the browser gives none; None for none.
        read_only: whether changes are refused.
    """

    def __init__(self, folder: Path, *, reviewer: Reviewer | None, read_only: bool) -> None:
        self.folder = folder
        self._state = file_state(folder / RELEASE_FILE)  # before it is read: a change in between shows
        self.catalog = Catalog.open(folder)
        self.fingerprint = self.catalog.fingerprint
        self.pixels = Pixels(self.catalog)
        self.log = ReviewLog.open(folder)
        self.shelf = Shelf(folder)
        self.integrity = Integrity(folder)
        self.reviewer = reviewer
        self.read_only = read_only
        self._live = LiveDecisions(self.log)
        self._lock = threading.Lock()
        self._opening, self._counting, self._comparing = threading.Lock(), threading.Lock(), threading.Lock()
        self._difference: tuple[tuple[Path, Path, str], Difference] | None = None
        self._states: tuple[Head | None, NDArray[np.int8] | None] = None, None
        self._siblings: OrderedDict[str, Opened] = OrderedDict()
        self._files = {entry.path: file_state(folder / entry.path) for entry in self.catalog.release.files}
        self._seen: dict[str, State | None] = {}
        self._looked: tuple[float, tuple[str, ...]] = (-math.inf, ())
        self._log_at_start: tuple[str, ...] = ()
        if self.log.fingerprint != self.fingerprint:
            raise ReleaseError(f"{folder}: the release was exchanged while it was opened; start again")

    @classmethod
    def open(cls, folder: Path, *, reviewer: str | None = None, read_only: bool = False) -> "Desk":
        """Open the release in a folder.

        Raises:
            ReleaseError: no release, or one that breaks a rule.
            CatalogError: its tables cannot be read.
            Refusal: `reviewer` is no name.
        """
        who = None if reviewer is None else reviewer_of(reviewer)
        return cls(folder, reviewer=who, read_only=read_only)

    def close(self) -> None:
        """Stop what runs beside."""
        self.integrity.stop()

    def check_fresh(self) -> None:
        """Look whether the release on disk is still the one that was opened.

        Raises:
            Refusal: 409, it is not.
        """
        why = self.stale()
        if why:
            raise Refusal(409, why, "look at what changed it; then start `curate review` again", stale=True)

    def stale(self) -> str:
        """Why the release on disk is not the one that was opened; "" where it is."""
        path = self.folder / RELEASE_FILE
        state = file_state(path)
        if state is None:
            return f"the release was removed: {RELEASE_FILE} is gone"
        with self._lock:
            same = state == self._state
        if same:
            return ""
        try:
            found = fingerprint(read_release_bytes(self.folder))
        except ReleaseError as error:
            return str(error)
        if found != self.fingerprint:
            return f"the release was exchanged: its fingerprint is now {found}, {self.fingerprint} was opened"
        with self._lock:
            self._state = state  # the same bytes, copied here again
        return ""

    def changed(self) -> tuple[str, ...]:
        """Files of the release that are not those that lay here at the start: gone, exchanged or written to."""
        now = time.monotonic()
        with self._lock:
            at, found = self._looked
        if now - at < LOOK_SECONDS:
            return found
        found = tuple(path for path, state in self._files.items() if _differs(self.folder / path, state))
        with self._lock:
            self._looked = now, found
        return found

    def decisions(self) -> Decisions:
        """What all events so far come to, those of other processes too.

        Raises:
            Refusal: 409, the log is broken.
        """
        with _log_read():
            return self._live.now()

    def decisions_of(self, events: Sequence[Event]) -> Decisions:
        """What the events that the log hands to a check of `ReviewLog.append` come to.

        Raises:
            Refusal: 409, a frozen list is no good.
        """
        with _log_read():
            return self._live.of(events)

    def sibling(self, digest: str) -> Opened:
        """Another release of this root, opened; the ones used last stay open.

        Raises:
            Refusal: 404, there is none with this fingerprint.
            CatalogError: its tables cannot be read.
        """
        if digest == self.fingerprint:
            return Opened(catalog=self.catalog, pixels=self.pixels)
        volume = self.shelf.find(digest)
        if volume is None:
            raise Refusal(404, "no release of this root has this fingerprint", "choose one of /api/releases")
        with self._opening:
            known = self._siblings.pop(digest, None)
            if known is None:
                catalog = Catalog.open(volume.folder)
                known = Opened(catalog=catalog, pixels=Pixels(catalog))
            self._siblings[digest] = known
            while len(self._siblings) > MAX_SIBLINGS:
                self._siblings.popitem(last=False)
        return known

    def difference(self, digest: str) -> Difference:
        """What differs between this release and another: the older one is A, as far as their parents tell.

        Raises:
            Refusal: 404, there is none with this fingerprint in this root.
            ReleaseError: one of both cannot be read.
            ShardError: a table of one of both cannot be read.
        """
        volume = self.shelf.find(digest)
        if volume is None:
            raise Refusal(404, "no release of this root has this fingerprint", "choose one of /api/releases")
        later = digest in {newer.fingerprint for newer in self.newer()}
        a, b = (self.folder, volume.folder) if later else (volume.folder, self.folder)
        with self._comparing:  # one at a time, and one is kept: each takes hundreds of megabytes at a million rows
            if self._difference is None or self._difference[0] != (a, b, digest):
                self._difference = None
                self._difference = (a, b, digest), compare(a, b)
            return self._difference[1]

    def newer(self) -> list[Volume]:
        """The releases of this root that were made from this one."""
        return self.shelf.newer(self.fingerprint)

    def states(self, decisions: Decisions | None = None) -> NDArray[np.int8] | None:
        """(rows,) state of each row of the catalog, by its place in STATES; None where nobody has decided.

        Args:
            decisions: what is asked; None for all up to now.

        Raises:
            Refusal: 409, the log is broken.
        """
        decisions = decisions or self.decisions()
        if not sum(decisions.counts.values()):
            return None
        with self._counting:
            head, states = self._states
            if head != decisions.head:
                states = decisions.states(self.catalog.ids)
                self._states = decisions.head, states
        return states

    def review_counts(self) -> dict[str, int]:
        """How many rows are in each of STATES.

        Raises:
            Refusal: 409, the log is broken.
        """
        decided = dict(self.decisions().counts)
        return {STATES[0]: self.catalog.rows - sum(decided.values()), **decided}

    def undecided_held(self, decisions: Decisions | None = None) -> int:
        """Held rows that nobody has decided on; arguments and errors as of `states`."""
        states = self.states(decisions)
        if states is None:
            return self.catalog.release.counts.held
        held = self.catalog.columns.words("decision").chosen(["hold"])
        return int((held & (states == 0)).sum())

    def review(self) -> Review:
        """What is known of the release beside its own files."""
        checked = self.integrity.checked()
        found = Review(
            signoff=self.signoff(),
            integrity=checked.release_state,
            problems=checked.count,
            log="good" if checked.state in ("good", "problems") else "not run",
        )
        try:
            counts, head = self.review_counts(), self.decisions().head
        except Refusal as refusal:
            return dataclasses.replace(found, log="problems", log_told=refusal.error)
        if told := self._broken_log():
            found = dataclasses.replace(found, log="problems", log_told=told)
        return dataclasses.replace(found, counts=counts, events=head.seq + 1, head=head.sha256)

    def signoff(self) -> dict[str, Any]:
        """The sign-off: state "none", "signed", "expired", "withdrawn" or "broken", the sign-off, and why."""
        broken = self.changed_bytes() or self._broken_release()
        if not broken and (wrong := self._broken_log()):
            broken = f"the review log is broken: {wrong}"
        if broken:
            return {"state": "broken", "signoff": None, "why": broken}
        found = self.decisions().signoff_state.at()
        signed = found.signoff
        if signed is None:
            return {"state": found.state, "signoff": None, "why": found.why}
        fields = self.log.events()[signed.seq].fields
        told = {
            "reviewer": signed.reviewer,
            "how_known": signed.how_known,
            "at": render_instant(signed.at),
            "seq": signed.seq,
            "expires_at": None if signed.expires_at is None else render_instant(signed.expires_at),
            "conditions": fields.get("conditions", ""),
            "checklist": fields.get("checklist", {}),
            "unmet": fields.get("unmet", []),
        }
        return {"state": found.state, "signoff": told, "why": found.why}

    def check_bytes(self) -> None:
        """Look whether what is shown can still be what lies here.

        Raises:
            Refusal: 409, bytes have changed, and no check since has found them good.
        """
        why = self.changed_bytes()
        if why:
            remedy = "put the original files back, and run the integrity check"
            raise Refusal(409, f"nothing was recorded: {why}", remedy, stale=True)

    def changed_bytes(self) -> str:
        """Which bytes of the release are known not to be those of its fingerprint; "" where none are."""
        stale = self.stale()
        if stale:
            return stale
        checked = self.integrity.checked()
        if checked.changed:
            names = ", ".join(dict.fromkeys(path for path, _ in checked.problems))
            return f"the integrity check found other bytes than were published, see {names:.400}"
        changed = self.changed()
        if changed and not self._proved():
            names = ", ".join(changed[:_SHOWN])
            return f"files were changed since the release was opened: {names}; run the integrity check"
        return ""

    def _broken_release(self) -> str:
        checked = self.integrity.checked()
        if checked.count:
            return f"the integrity check found {checked.count:,} problems of the release, the log is not at fault"
        return ""

    def _broken_log(self) -> str:
        """What is wrong with the review log; "" where nothing is known."""
        try:
            self.decisions()
        except Refusal as refusal:
            return refusal.error
        checked = self.integrity.checked()
        found = checked.log if checked.state in ("good", "problems") else self._log_at_start
        return found[0] if found else ""

    def warm(self) -> None:
        """Read what the screens need, and the log from its first byte.

        Raises:
            CatalogError: a column cannot be read.
        """
        self._log_at_start = tuple(self.log.verify())
        self.catalog.warm()

    def start_check(self) -> None:
        """Begin to check every byte.

        Raises:
            BusyError: a check is running.
        """
        seen = {path: file_state(self.folder / path) for path in self._files}
        self.integrity.start()
        with self._lock:
            self._seen = seen

    def _proved(self) -> bool:
        """Whether a check that began after the last change found every byte right."""
        if self.integrity.checked().state != "good":
            return False
        now = {path: file_state(self.folder / path) for path in self._files}
        with self._lock:
            if now == self._seen:
                self._files, self._looked = now, (-math.inf, ())
            return now == self._seen


@contextmanager
def _log_read() -> Iterator[None]:
    try:
        yield
    except ReviewLogError as error:
        raise Refusal(409, str(error), "`curate review verify` names what is wrong with the log") from error


def _differs(path: Path, state: State | None) -> bool:
    return state is None or file_state(path) != state
