"""Whether a person has signed a release off: the reading side of its review log.

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

A `signoff` holds until a `withdraw_signoff` follows, or it expires. Any changed byte of the release is another
fingerprint, which has no log. The chain shows an event that was edited, removed, inserted or moved, but not that the
last events are missing, nor who wrote them: for that, keep the sha256 of the last event elsewhere. Files whose names
start with "." are unfinished writes; they and other names that no event has do not count.
"""

import json
import os
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manifests.release import canonical_json, fingerprint, parse_release, read_release_bytes, sha256_hex

EVENT_TYPES = ("sample_decision", "bulk_decision", "comment", "task_result", "signoff", "withdraw_signoff")
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


def check_signed(release_folder: Path, *, now: datetime | None = None, fingerprint: str | None = None) -> Signoff:
    """The sign-off of the release in `release_folder`; arguments as of `signoff_of`.

    Args:
        release_folder: holds `release.json`.
        now: as of `signoff_of`.
        fingerprint: that the release must have; None for any.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        UnsignedError: there is no sign-off, it was withdrawn or has expired, or the log is broken.
    """
    folder, digest = _log(release_folder)
    if fingerprint is not None and digest != fingerprint:
        raise UnsignedError(f"{release_folder}: the release was exchanged while it was read; start again")
    try:
        signoff, why = _signoff(folder, digest, now)
    except ReviewLogError as error:
        signoff, why = None, str(error)
    if signoff is None:
        raise UnsignedError(
            f"{release_folder}: the release with fingerprint {digest} has no sign-off: {why}; "
            f"let a person review this release and sign it off, or do not require a sign-off"
        )
    return signoff


def _log(release_folder: Path) -> tuple[Path, str]:
    data = read_release_bytes(release_folder)
    parse_release(data)
    digest = fingerprint(data)
    return review_folder(release_folder, digest), digest


def _signoff(folder: Path, release: str, now: datetime | None) -> tuple[Signoff | None, str]:
    """The sign-off that holds, or None and why there is none."""
    signoff, why, prev = None, f"no event signs it off in {folder}", None
    for seq in range(_events(folder)):
        data = _read(folder, seq)
        event = _parse(folder, seq, data)
        _check_chain(folder, seq, event, prev, release)
        prev = sha256_hex(data)
        if event["type"] == "signoff":
            signoff, why = _signed(folder, seq, event), ""
            if event.get("verdict", "approved") != "approved":
                signoff, why = None, f"event {seq} has the verdict {event['verdict']!r:.40}, and not 'approved'"
        elif event["type"] == "withdraw_signoff":
            signoff, why = None, f"event {seq} withdrew it"
    if signoff and signoff.expires_at and signoff.expires_at <= (now or datetime.now(UTC)):
        return None, f"that of event {signoff.seq} expired at {signoff.expires_at.isoformat()}"
    return signoff, why


def _events(folder: Path) -> int:
    """How many events the log has; their numbers must be 0, 1, 2 and so on."""
    numbers: list[int] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if _NAME.fullmatch(entry.name):
                    numbers.append(int(entry.name[:20]))
                    if len(numbers) > MAX_EVENTS:
                        raise ReviewLogError(folder, MAX_EVENTS, f"is beyond the limit of {MAX_EVENTS} events")
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ReviewLogError(folder, 0, f"cannot be listed: {error}") from error
    for expected, number in enumerate(sorted(numbers)):
        if number != expected:
            raise ReviewLogError(folder, expected, f"is missing, though event {number} is there")
    return len(numbers)


def _read(folder: Path, seq: int) -> bytes:
    path = folder / f"{seq:020d}.json"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ReviewLogError(folder, seq, "is no regular file")
            data = file.read(MAX_EVENT_BYTES + 1)
    except OSError as error:
        raise ReviewLogError(folder, seq, f"cannot be read: {error}") from error
    if len(data) > MAX_EVENT_BYTES:
        raise ReviewLogError(folder, seq, f"is larger than the limit of {MAX_EVENT_BYTES} bytes")
    return data


def _parse(folder: Path, seq: int, data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data.decode())
        same = canonical_json(event) == data  # so no key is there twice, no number is NaN, no space was put in
    except (UnicodeError, ValueError, RecursionError) as error:
        raise ReviewLogError(folder, seq, f"is not valid JSON: {error}") from error
    if not isinstance(event, dict) or not same:
        raise ReviewLogError(folder, seq, "is no JSON object in canonical form: was it edited?")
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


def _reviewer(folder: Path, seq: int, event: dict[str, Any]) -> tuple[str, str]:
    found = event.get("reviewer")
    values = [found.get(key) for key in ("name", "how_known")] if isinstance(found, dict) else []
    name, how_known = [*values, None, None][:2]
    if not (isinstance(name, str) and name and isinstance(how_known, str) and how_known):
        raise ReviewLogError(folder, seq, f"must name its reviewer and how they are known, got {found!r:.80}")
    return name, how_known


def _instant(folder: Path, seq: int, event: dict[str, Any], field: str) -> datetime:
    text = event.get(field)
    try:
        if isinstance(text, str) and _INSTANT.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ReviewLogError(folder, seq, f"must have {field} in UTC like 2026-03-01T12:00:00Z, got {text!r:.80}")


def _signed(folder: Path, seq: int, event: dict[str, Any]) -> Signoff:
    name, how_known = _reviewer(folder, seq, event)
    return Signoff(
        reviewer=name,
        how_known=how_known,
        at=_instant(folder, seq, event, "at"),
        seq=seq,
        expires_at=None if event.get("expires_at") is None else _instant(folder, seq, event, "expires_at"),
    )
