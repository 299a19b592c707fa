"""Whether a person has signed a release off: the parser of its review log.

The log of the release with fingerprint F lies in `reviews/F/` beside the folder `releases/` that holds the release,
always `<release folder>/../../reviews/F/`, whatever these two folders are called:

```
<root>/releases/<name>/release.json
<root>/reviews/<fingerprint>/00000000000000000000.json     event 0: 20 digits
<root>/reviews/<fingerprint>/00000000000000000001.json     event 1 …
```

An event is never edited; a correction is a new event. A file holds an object as canonical JSON (`manifests.release`):

| field | value |
|---|---|
| `seq` | the number in the file's name |
| `prev` | sha256 of the bytes of the file of event `seq` - 1, 64 hex digits; null for event 0 |
| `release` | fingerprint of the release |
| `type` | one of EVENT_TYPES |
| `reviewer` | `{"name": …, "how_known": …}`, non-empty; how_known is e.g. "not verified" |
| `tool` | what wrote the event, and its version |
| `at` | instant in UTC, e.g. "2026-03-01T12:00:00Z" |
| `verdict` | of a `signoff`, "approved" where it is not stated; any other is no sign-off |
| `target`, `reasons`, … | what the type needs; further fields are allowed |
| `expires_at` | of a `signoff`, optional: the instant from which it does not count; null for never |

What each type needs beyond this, `review.event` says; it is not asked here, so that a sign-off is read alone.

A `signoff` holds until a `withdraw_signoff` follows, or it expires. Any changed byte of the release is another
fingerprint, which has no log. The chain shows an event that was edited, removed, inserted or moved, but not that the
last events are missing, nor who wrote them: for that, keep the sha256 of the last event elsewhere. Files whose names
start with "." are unfinished writes; they and other names that no event has do not count.

The chain alone is read here: frozen lists, and the fields of other events, `curate review verify` checks, so it
may find a log broken whose sign-off counts here. Who signed with a key (`manifests.signature`) is asked where the
caller says who may.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.release import canonical_json, fingerprint, parse_release, read_release_bytes, sha256_hex
from manifests.signature import check, signature_path

EVENT_TYPES = ("sample_decision", "bulk_decision", "comment", "task", "task_result", "signoff", "withdraw_signoff")
MAX_EVENT_BYTES = 1 << 20
MAX_EVENTS = 1_000_000

_NAME = re.compile(r"[0-9]{20}\.json")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class ReviewLogError(ValueError):
    """A review log whose chain is broken; the message names the sequence number.

    Attributes:
        seq: of the first event at fault.
    """

    def __init__(self, path: Path, seq: int, what: str) -> None:
        super().__init__(f"{path}: event {seq} {what}; the log proves nothing from there on: put back the original log")
        self.seq = seq


class UnsignedError(ValueError):
    """A release without a valid sign-off; the message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signoff:
    """Who signed a release off.

    Attributes:
        reviewer: the name given.
        how_known: how the name was checked, as the event says; no signature is checked here.
        at: when, in UTC.
        seq: number of the event.
        expires_at: from when it no longer counts; None for never.
    """

    reviewer: str
    how_known: str
    at: datetime
    seq: int
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SignoffState:
    """What the events up to one say of the sign-off.

    Attributes:
        state: "none", "signed", "expired" or "withdrawn".
        signoff: the one that holds; None in every state but "signed".
        why: in words, why there is none; "" where it is signed.
    """

    state: str
    signoff: Signoff | None
    why: str

    def at(self, now: datetime | None = None) -> "SignoffState":
        """The state at an instant with a time zone; None for the clock."""
        if self.signoff and self.signoff.expires_at and self.signoff.expires_at <= (now or datetime.now(UTC)):
            why = f"that of event {self.signoff.seq} expired at {self.signoff.expires_at.isoformat()}"
            return SignoffState(state="expired", signoff=None, why=why)
        return self


def review_folder(release_folder: Path, release_fingerprint: str) -> Path:
    """Where the review log of a release lies: `<release folder>/../../reviews/<fingerprint>`."""
    return release_folder.resolve().parent.parent / "reviews" / release_fingerprint


def signoff_of(release_folder: Path, *, now: datetime | None = None) -> Signoff | None:
    """The sign-off of the release in `release_folder`; None if there is none, or it was withdrawn or has expired.

    Args:
        release_folder: holds `release.json`.
        now: an instant with a time zone, against which the expiry is held; None for the clock.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        ReviewLogError: an event is edited, missing, out of place, malformed, too large, or of another release.
    """
    return _signoff(*_log(release_folder), now)[0]


def check_signed(
    release_folder: Path,
    *,
    now: datetime | None = None,
    fingerprint: str | None = None,
    allowed_signers: Path | None = None,
) -> Signoff:
    """The sign-off of the release in `release_folder`; arguments as of `signoff_of`.

    Args:
        release_folder: holds `release.json`.
        now: as of `signoff_of`.
        fingerprint: that the release must have; None for any.
        allowed_signers: who may sign as whom (ssh-keygen(1), ALLOWED SIGNERS): the sign-off must then bear a good
            signature of the reviewer that it names. None where a name is believed.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        UnsignedError: there is no sign-off, it was withdrawn or has expired, its signature is missing or bad, or the
            log is broken.
        SignatureError: there is no file of allowed signers, or no `ssh-keygen`.
    """
    folder, digest = _log(release_folder)
    if fingerprint is not None and digest != fingerprint:
        raise UnsignedError(f"{release_folder}: the release was exchanged while it was read; start again")
    try:
        signoff, why = _signoff(folder, digest, now)
    except ReviewLogError as error:
        signoff, why = None, str(error)
    if signoff is not None and allowed_signers is not None:
        wrong = _wrong_signature(folder, signoff, allowed_signers)
        signoff, why = (None, wrong) if wrong else (signoff, "")
    if signoff is None:
        raise UnsignedError(
            f"{release_folder}: the release with fingerprint {digest} has no sign-off: {why}; "
            f"let a person review this release and sign it off, or do not require a sign-off"
        )
    return signoff


def _wrong_signature(folder: Path, signoff: Signoff, allowed_signers: Path) -> str:
    """What is wrong with the signature of a sign-off in the log in `folder`; "" where its reviewer signed it.

    Raises:
        SignatureError: there is no file of allowed signers, or no `ssh-keygen`.
    """
    path = folder / event_name(signoff.seq)
    wrong = check(path, signature_path(path), allowed_signers, signoff.reviewer, at=signoff.at)
    return f"event {signoff.seq}, by {signoff.reviewer!r:.80}: {wrong}" if wrong else ""


def _log(release_folder: Path) -> tuple[Path, str]:
    data = read_release_bytes(release_folder)
    parse_release(data)
    digest = fingerprint(data)
    return review_folder(release_folder, digest), digest


def _signoff(folder: Path, release: str, now: datetime | None) -> tuple[Signoff | None, str]:
    """The sign-off that holds, or None and why there is none."""
    state, prev = unsigned(folder), None
    for seq in range(count_events(folder)):
        data = read_event(folder, seq)
        if data is None:
            raise ReviewLogError(folder, seq, "is missing: it was removed while the log was read")
        event = parse_event(folder, seq, data, prev=prev, release=release)
        prev = sha256_hex(data)
        state = next_signoff(folder, state, event)
    state = state.at(now)
    return state.signoff, state.why


def unsigned(folder: Path) -> SignoffState:
    """The state before the first event of the log in `folder`."""
    return SignoffState(state="none", signoff=None, why=f"no event signs it off in {folder}")


def next_signoff(folder: Path, state: SignoffState, event: Mapping[str, Any]) -> SignoffState:
    """The state after an event, as `parse_event` gives it, without regard to the time.

    Raises:
        ReviewLogError: a sign-off whose `expires_at` is no instant.
    """
    seq = event["seq"]
    if event["type"] == "withdraw_signoff":
        return SignoffState(state="withdrawn", signoff=None, why=f"event {seq} withdrew it")
    if event["type"] != "signoff":
        return state
    signoff = _signed(folder, seq, event)
    if event.get("verdict", "approved") != "approved":
        why = f"event {seq} has the verdict {event['verdict']!r:.40}, and not 'approved'"
        return SignoffState(state="none", signoff=None, why=why)
    return SignoffState(state="signed", signoff=signoff, why="")


def event_name(seq: int) -> str:
    """The name of the file of an event."""
    return f"{seq:020d}.json"


def count_events(folder: Path) -> int:
    """How many events the log in `folder` has; 0 where there is no such folder.

    Raises:
        ReviewLogError: their numbers are not 0, 1, 2 and so on, are more than MAX_EVENTS, or cannot be listed.
    """
    expected = 0
    for number in sorted(_numbers(folder)):
        while expected < number:
            if not os.path.lexists(folder / event_name(expected)):  # a listing may miss what is written meanwhile
                raise ReviewLogError(folder, expected, f"is missing, though event {number} is there")
            expected += 1
        expected += 1
    return expected


def _numbers(folder: Path) -> list[int]:
    numbers: list[int] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if _NAME.fullmatch(entry.name):
                    numbers.append(int(entry.name[:20]))
                    if len(numbers) > MAX_EVENTS:
                        raise ReviewLogError(folder, MAX_EVENTS, f"is beyond the limit of {MAX_EVENTS} events")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReviewLogError(folder, 0, f"cannot be listed: {error}") from error
    return numbers


def read_event(folder: Path, seq: int) -> bytes | None:
    """The bytes of an event; None where there is no such event (yet).

    Raises:
        ReviewLogError: it is no regular file, too large, or cannot be read.
    """
    path = f"{folder}/{event_name(seq)}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise ReviewLogError(folder, seq, "is no regular file")
            data = b""
            while len(data) <= MAX_EVENT_BYTES and (more := os.read(handle, min(found.st_size, MAX_EVENT_BYTES) + 1)):
                data += more
        finally:
            os.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReviewLogError(folder, seq, f"cannot be read: {error}") from error
    if len(data) > MAX_EVENT_BYTES:
        raise ReviewLogError(folder, seq, f"is larger than the limit of {MAX_EVENT_BYTES} bytes")
    return data


def parse_event(folder: Path, seq: int, data: bytes, *, prev: str | None, release: str) -> dict[str, Any]:
    """The event that `data` holds, checked to be in its place in the log in `folder`.

    Args:
        folder: of the log, for the message.
        seq: the number in the file's name.
        data: the bytes of the file.
        prev: sha256 of the bytes of the event before; None for event 0.
        release: fingerprint of the release.

    Raises:
        ReviewLogError: it breaks a rule of the module's table.
    """
    try:
        event = json.loads(data.decode())
        same = canonical_json(event) == data  # so no key is there twice, no number is NaN, no space was put in
    except (UnicodeError, ValueError, RecursionError) as error:
        raise ReviewLogError(folder, seq, f"is not valid JSON: {error}") from error
    if not isinstance(event, dict) or not same:
        raise ReviewLogError(folder, seq, "is no JSON object in canonical form: was it edited?")
    _check_chain(folder, seq, event, prev, release)
    return event


def _check_chain(folder: Path, seq: int, event: dict[str, Any], prev: str | None, release: str) -> None:
    """Check that the event is in its place: number, event before, release; and that its type is known."""
    for field, expected in (("seq", seq), ("prev", prev), ("release", release)):
        found = event.get(field, "nothing")
        if found != expected or type(found) is not type(expected):
            raise ReviewLogError(folder, seq, f"must have {field} {expected!r}, got {found!r:.80}")
    if event.get("type") not in EVENT_TYPES:
        raise ReviewLogError(folder, seq, f"must have a type of {EVENT_TYPES}, got {event.get('type')!r:.80}")
    if not isinstance(event.get("tool"), str) or not event["tool"]:
        raise ReviewLogError(folder, seq, f"must name its tool, got {event.get('tool')!r:.80}")
    _reviewer(folder, seq, event)
    _instant(folder, seq, event, "at")


def _reviewer(folder: Path, seq: int, event: Mapping[str, Any]) -> tuple[str, str]:
    found = event.get("reviewer")
    values = [found.get(key) for key in ("name", "how_known")] if isinstance(found, dict) else []
    name, how_known = [*values, None, None][:2]
    if not (isinstance(name, str) and name and isinstance(how_known, str) and how_known):
        raise ReviewLogError(folder, seq, f"must name its reviewer and how they are known, got {found!r:.80}")
    return name, how_known


def _instant(folder: Path, seq: int, event: Mapping[str, Any], field: str) -> datetime:
    try:
        return parse_instant(event.get(field))
    except ValueError as error:
        raise ReviewLogError(folder, seq, f"must have {field} {error}") from error


def parse_instant(text: object) -> datetime:
    """The instant of an event, as `render_instant` writes it.

    Raises:
        ValueError: it is no such instant.
    """
    try:
        if isinstance(text, str) and _INSTANT.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError(f"in UTC like 2026-03-01T12:00:00Z, got {text!r:.80}")


def render_instant(instant: datetime) -> str:
    """An instant in UTC like 2026-03-01T12:00:00Z, with up to six digits of the second.

    Raises:
        ValueError: it has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError(f"an instant needs a time zone, got {instant.isoformat()}: say which, e.g. UTC")
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _signed(folder: Path, seq: int, event: Mapping[str, Any]) -> Signoff:
    name, how_known = _reviewer(folder, seq, event)
    return Signoff(
        reviewer=name,
        how_known=how_known,
        at=_instant(folder, seq, event, "at"),
        seq=seq,
        expires_at=None if event.get("expires_at") is None else _instant(folder, seq, event, "expires_at"),
    )
