"""Whether a review log can be believed, and whether it signs its release off: `curate review verify`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from manifests.signature import SignatureError, check, sign, signature_path
from manifests.signoff import ReviewLogError, SignoffState, event_name, next_signoff, unsigned
from review.log import Event, EventError, Head, ReviewLog

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What is known of the signature of an event.

    Attributes:
        seq: of the event.
        kind: its type.
        reviewer: the name in it.
        state: "good"; "bad": the event counts as if it bore none; "unchecked" where no allowed signers were given;
            "missing", told of sign-offs alone.
        told: in words.
    """

    seq: int
    kind: str
    reviewer: str
    state: str
    told: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a check of a review log found.

    Attributes:
        fingerprint: of the release.
        folder: of the log.
        events: how many it has.
        head: the last one; keep its sha256 elsewhere.
        since: how many events follow the one whose sha256 was kept elsewhere; None where none was given, or found.
        problems: in words; empty where the log is sound.
        warnings: what a person should look at, though the log is sound.
        signatures: of all signed events, and of all sign-offs.
        signoff: the sign-off; its state is "broken" where there are problems.
    """

    fingerprint: str
    folder: Path
    events: int
    head: Head
    since: int | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    signatures: tuple[Signature, ...]
    signoff: SignoffState

    @property
    def good(self) -> bool:
        """Whether the log is sound; that says nothing of whether the release is signed off."""
        return not self.problems


def verify_review(
    release_folder: Path, *, allowed_signers: Path | None = None, head: str | None = None, now: datetime | None = None
) -> Verification:
    """Check the review log of a release from its first byte to its last.

    Args:
        release_folder: holds `release.json`.
        allowed_signers: who may sign as whom. Where it is given, the sign-off that holds must bear a good signature;
            a bad one elsewhere counts for nothing, and is told.
        head: sha256 of an event, kept elsewhere since it was the last: the log must contain it.
        now: an instant with a time zone, against which expiry is held; None for the clock.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        EventError: `head` is no sha256.
        SignatureError: there is no file of allowed signers, or no `ssh-keygen`.
    """
    if head is not None and not _SHA256.fullmatch(head):
        raise EventError(f"head must be the sha256 of an event, 64 hex digits, got {head!r:.80}")
    log = ReviewLog.open(release_folder)
    events: Sequence[Event] = ()
    try:
        events, problems = log.looked_through()
        signoff = _signoff(log.folder, events).at(now)  # of these events: others may append meanwhile
    except ReviewLogError as error:
        problems, signoff = [str(error)], SignoffState(state="broken", signoff=None, why=str(error))
    last = Head(seq=len(events) - 1, sha256=events[-1].sha256 if events else None)
    signatures = _signatures(log.folder, events, allowed_signers)
    if allowed_signers is not None and signoff.signoff is not None:
        holds = signoff.signoff.seq
        problems += [one.told for one in signatures if one.seq == holds and one.state in ("bad", "missing")]
    since = next((last.seq - event.seq for event in events if event.sha256 == head), None)
    if head is not None and since is None:
        problems.append(
            f"{log.folder}: no event has the sha256 {head}, which was the last one when it was noted: the last events "
            f"were removed, or the log was written anew: put back the original log"
        )
    if problems and signoff.state != "broken":
        signoff = SignoffState(state="broken", signoff=None, why=f"the log is not sound: {problems[0]}")
    return Verification(
        fingerprint=log.fingerprint,
        folder=log.folder,
        events=len(events),
        head=last,
        since=since,
        problems=tuple(problems),
        warnings=(*_back_dated(log.folder, events, signatures),),
        signatures=tuple(signatures),
        signoff=signoff,
    )


def sign_signoff(release_folder: Path, key: Path, *, reviewer: str | None = None) -> Event:
    """Sign the sign-off that holds, with an SSH key; see `manifests.signature.sign`.

    Args:
        release_folder: holds `release.json`.
        key: as of `manifests.signature.sign`.
        reviewer: whose sign-off it must be; None for anybody's.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        ReviewLogError: the log is broken.
        SignatureError: there is no sign-off, it is another reviewer's, or it cannot be signed.
        WriteError: the signature cannot be written.
    """
    log = ReviewLog.open(release_folder)
    state = log.signoff()
    if state.signoff is None:
        raise SignatureError(f"{release_folder}: there is no sign-off to be signed: {state.why}; sign off first")
    event = log.events()[state.signoff.seq]
    if reviewer is not None and event.reviewer.name != reviewer:
        raise SignatureError(
            f"{release_folder}: event {event.seq} is a sign-off by {event.reviewer.name!r}, not by {reviewer!r}: "
            f"sign only your own"
        )
    sign(log.folder / event_name(event.seq), key)
    return event


def told(found: Verification) -> list[str]:
    """A verification in lines, for a terminal."""
    head = f"head: {found.head.sha256 or 'none'}"
    since = (
        "" if found.since is None else f"; the head that was kept elsewhere is there, {found.since} events before it"
    )
    who = found.signoff.signoff
    signed = f"signed off by {who.reviewer} in event {who.seq} at {who.at.isoformat()}" if who else found.signoff.why
    lines = [
        f"release {found.fingerprint}: {found.events} events in {found.folder}",
        f"{head} (keep it elsewhere: without it nobody sees that the last events were removed){since}",
        f"sign-off: {found.signoff.state}: {signed}",
        *(f"signature of event {one.seq} ({one.kind} by {one.reviewer}): {one.state}" for one in found.signatures),
        *(f"WARNING {warning}" for warning in found.warnings),
        *(f"PROBLEM {problem}" for problem in found.problems),
    ]
    return [_printable(line) for line in lines]


def _printable(text: str) -> str:
    """A text for a terminal: what others wrote must not move its cursor or begin a line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _signoff(folder: Path, events: Sequence[Event]) -> SignoffState:
    state = unsigned(folder)
    for event in events:
        if event.kind in ("signoff", "withdraw_signoff"):
            state = next_signoff(folder, state, event.to_log())
    return state


def _back_dated(folder: Path, events: Sequence[Event], signatures: Sequence[Signature]) -> Iterator[str]:
    """Signed events that are dated before one they follow: the validity of a key is held against their date."""
    signed = {one.seq for one in signatures if one.state in ("good", "unchecked")}
    latest = events[0].at if events else None
    for event in events:
        if latest and event.at < latest and event.seq in signed:
            yield (
                f"{folder}: event {event.seq}, which is signed, says {event.at.isoformat()}, and follows one of "
                f"{latest.isoformat()}: was it dated back to when its key was valid, or is a clock wrong?"
            )
        latest = max(latest or event.at, event.at)


def _signatures(folder: Path, events: Sequence[Event], allowed_signers: Path | None) -> list[Signature]:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = []
    for event in events:
        path = folder / event_name(event.seq)
        if signature_path(path).name in names:
            found.append(_signature(event, path, allowed_signers))
        elif event.kind == "signoff":
            what = f"{path}: event {event.seq}, a sign-off by {event.reviewer.name!r}, bears no signature"
            found.append(_of(event, "missing", f"{what}: identity not verified; sign it (curate review sign)"))
    return found


def _signature(event: Event, path: Path, allowed_signers: Path | None) -> Signature:
    if allowed_signers is None:
        return _of(event, "unchecked", "identity not verified: give the file of allowed signers")
    wrong = check(path, signature_path(path), allowed_signers, event.reviewer.name, at=event.at)
    if wrong is None:
        return _of(event, "good", f"signed by {event.reviewer.name}")
    return _of(event, "bad", f"{path}: event {event.seq}: {wrong}")


def _of(event: Event, state: str, told: str) -> Signature:
    return Signature(seq=event.seq, kind=event.kind, reviewer=event.reviewer.name, state=state, told=told)
