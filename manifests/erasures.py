"""What a root remembers of erasures: tombstones without content, and the list of what must not come back.

```
<root>/erasures/key                    32 random bytes, mode 0600: without them the keyed hashes say nothing
<root>/erasures/suppressed             what ingest refuses: keyed hashes of sources and frames, and difference hashes
<root>/erasures/e-0123456789abcdef.json  one erasure
```

An erasure is *planned* (its journal names what is to go, successors are being written and checked; it can still be
withdrawn), *rewritten* (all successors are
committed, the old bytes are being removed) or *done*: then its file names nothing any more but a date, a reason, a
number, keyed hashes of what was asked for, and the fingerprints of the releases that were replaced.

A keyed hash is HMAC-SHA256 (RFC 2104). Who holds the key can tell whether a file, a frame or a person was erased; who
does not can tell nothing. A difference hash must be compared by distance, so it is stored as it is: 64 bits that say
how an 8 x 8 picture changes from left to right.
"""

import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.disk import put, sync
from manifests.release import Json, canonical_json

FOLDER = "erasures"
KEY = "key"
SUPPRESSED = "suppressed"
STATES = ("planned", "rewritten", "done")
MAX_REASON = 500

_ID = re.compile(r"e-[0-9a-f]{16}")
_FORMAT = 1
_INSTANT = "%Y-%m-%dT%H:%M:%SZ"


class ErasureError(ValueError):
    """A record of erasures that breaks a rule; the message names the file and what to do."""


def keyed_hash(key: bytes, kind: str, value: bytes) -> str:
    """HMAC-SHA256 of a value of one kind, 64 hex digits; equal values of two kinds differ."""
    return hmac.digest(key, kind.encode() + b"\0" + value, "sha256").hex()


# The list of what must not come back ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Suppression:
    """Sources and frames that were erased, for those who hold the key.

    Attributes:
        key: of the keyed hashes.
        sources: keyed hashes of the sha256 of source files.
        contents: keyed hashes of the content hashes of frames.
        dhashes: (N,) uint64, ascending, each once: difference hashes of erased frames.
    """

    key: bytes = field(repr=False)
    sources: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    dhashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def has_source(self, sha256: bytes) -> bool:
        """Whether a file with this sha256 (32 bytes) was erased."""
        return bool(self.sources) and keyed_hash(self.key, "source", sha256) in self.sources

    def has_frame(self, content_sha256: bytes, dhash64: int, distance: int) -> bool:
        """Whether a frame was erased, or looks like one that was.

        Args:
            content_sha256: 32 bytes, of its pixels.
            dhash64: its difference hash.
            distance: largest Hamming distance at which it counts as the same picture.
        """
        if not self.contents and not self.dhashes.size:
            return False
        if keyed_hash(self.key, "content", content_sha256) in self.contents:
            return True
        return bool((np.bitwise_count(self.dhashes ^ np.uint64(dhash64)) <= distance).any())

    def joined(self, sources: Iterable[bytes], contents: Iterable[bytes], dhashes: Iterable[int]) -> "Suppression":
        """This list and more of each, all unkeyed."""
        more = np.array(sorted(set(dhashes)), np.uint64)
        return Suppression(
            key=self.key,
            sources=self.sources | {keyed_hash(self.key, "source", value) for value in sources},
            contents=self.contents | {keyed_hash(self.key, "content", value) for value in contents},
            dhashes=np.unique(np.concatenate([self.dhashes, more])),
        )

    def more(self, other: "Suppression") -> "Suppression":
        """This list and what the other holds, of the same key."""
        return Suppression(
            key=self.key,
            sources=self.sources | other.sources,
            contents=self.contents | other.contents,
            dhashes=np.union1d(self.dhashes, other.dhashes),
        )

    def less(self, other: "Suppression") -> "Suppression":
        """This list without what the other holds, of the same key."""
        return Suppression(
            key=self.key,
            sources=self.sources - other.sources,
            contents=self.contents - other.contents,
            dhashes=np.setdiff1d(self.dhashes, other.dhashes),
        )

    @property
    def empty(self) -> bool:
        """Whether nothing is on the list."""
        return not (self.sources or self.contents or self.dhashes.size)

    def render(self) -> bytes:
        """The bytes of the list: equal lists give equal bytes."""
        return canonical_json(
            {
                "format": _FORMAT,
                "check": keyed_hash(self.key, "check", b""),
                "sources": sorted(self.sources),
                "contents": sorted(self.contents),
                "dhashes": [f"{value:016x}" for value in self.dhashes.tolist()],
            }
        )


def parse_suppression(data: bytes, key: bytes, path: str) -> Suppression:
    """The list of a file's bytes.

    Args:
        data: of the file.
        key: that made it.
        path: for the message.

    Raises:
        ErasureError: malformed, or made with another key.
    """
    try:
        value = json.loads(data)
        if value["format"] != _FORMAT:
            raise ErasureError(f"{path} has format {value['format']!r}, this curate reads {_FORMAT}; use a newer one")
        found = Suppression(
            key=key,
            sources=frozenset(map(str, value["sources"])),
            contents=frozenset(map(str, value["contents"])),
            dhashes=np.array(sorted(int(text, 16) for text in value["dhashes"]), np.uint64),
        )
        check = value["check"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        if isinstance(error, ErasureError):
            raise
        raise ErasureError(f"{path} is damaged ({error}); put back the copy of a backup") from error
    if check != keyed_hash(key, "check", b""):
        raise ErasureError(f"{path} was made with another key than {KEY} beside it; put both back from one backup")
    return found


def read_suppression(root: Path) -> Suppression | None:
    """The list of a root; None where nothing was ever erased.

    Raises:
        ErasureError: it is damaged, or its key is missing or another.
    """
    folder = root / FOLDER
    if not (folder / SUPPRESSED).exists():
        return None
    return parse_suppression(_read(folder / SUPPRESSED), read_key(root), str(folder / SUPPRESSED))


def write_suppression(root: Path, suppression: Suppression) -> None:
    """Write the list of a root, whole and durable, or leave the old one; an empty list is no file."""
    if suppression.empty:
        _remove(root / FOLDER / SUPPRESSED)
    else:
        _write(root / FOLDER / SUPPRESSED, suppression.render())


def read_key(root: Path) -> bytes:
    """The key of a root.

    Raises:
        ErasureError: it is missing or has another length.
    """
    path = root / FOLDER / KEY
    if not path.exists():
        raise ErasureError(f"{path} is missing: without it nobody can tell what was erased; put it back from a backup")
    key = _read(path)
    if len(key) != 32:
        raise ErasureError(f"{path} must have 32 bytes, has {len(key)}; put it back from a backup")
    return key


def make_key(root: Path) -> bytes:
    """The key of a root, made where nothing was ever erased.

    Raises:
        ErasureError: see `read_key`; a key is made only where there is no list.
    """
    folder = root / FOLDER
    if (folder / KEY).exists() or (folder / SUPPRESSED).exists():
        return read_key(root)
    _write(folder / KEY, secrets.token_bytes(32))
    return read_key(root)


# Erasures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Replaced:
    """A release that an erasure removed.

    Attributes:
        name: of its folder.
        fingerprint: of its `release.json`.
        parents: fingerprints of the releases that it was made from.
        successor: fingerprint of the release in its place; None while there is none, or where no row was left.
    """

    name: str
    fingerprint: str
    parents: tuple[str, ...]
    successor: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasure:
    """One erasure.

    Attributes:
        id: "e-" and 16 hex digits.
        state: one of STATES.
        at: when it was asked for, in UTC, whole seconds.
        reason: in the words of who asked; must name nobody.
        count: samples that were erased; 0 of a source that never gave one.
        keyed: keyed hashes of what was asked for: subjects, consents, sources, samples.
        replaced: the releases that it removed.
        target: what is to go, for a run that goes on after a kill; empty when done.
    """

    id: str
    state: str
    at: datetime
    reason: str
    count: int
    keyed: tuple[str, ...]
    replaced: tuple[Replaced, ...] = ()
    target: Mapping[str, Json] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check each field."""
        if not _ID.fullmatch(self.id):
            raise ErasureError(f"erasure: id must match {_ID.pattern}, got {self.id!r:.40}")
        if self.state not in STATES:
            raise ErasureError(f"erasure {self.id}: state must be one of {STATES}, got {self.state!r:.40}")
        if self.at.utcoffset() is None or self.at.microsecond:
            raise ErasureError(f"erasure {self.id}: at must have a time zone and whole seconds, got {self.at!r}")
        check_reason(self.reason)
        if type(self.count) is not int or self.count < 0:
            raise ErasureError(f"erasure {self.id}: count must be an integer >= 0, got {self.count!r}")
        if (self.state == "done") == bool(self.target):
            raise ErasureError(f"erasure {self.id}: what is to go must be named until it is done, and not after")


def check_reason(reason: str) -> None:
    """Check that a reason is one line.

    Raises:
        ErasureError: it is empty, too long, or has a character that cannot be shown.
    """
    if not 0 < len(reason) <= MAX_REASON or not reason.isprintable():
        raise ErasureError(f"reason must be one line of 1..{MAX_REASON} characters, got {reason!r:.80}")


def render_erasure(erasure: Erasure) -> bytes:
    """The bytes of an erasure's file, canonical JSON."""
    replaced = [
        {"name": r.name, "fingerprint": r.fingerprint, "parents": list(r.parents), "successor": r.successor}
        for r in erasure.replaced
    ]
    value: dict[str, Any] = {
        "format": _FORMAT,
        "id": erasure.id,
        "state": erasure.state,
        "at": erasure.at.astimezone(UTC).strftime(_INSTANT),
        "reason": erasure.reason,
        "count": erasure.count,
        "keyed": list(erasure.keyed),
        "replaced": replaced,
    }
    return canonical_json(value | ({"target": dict(erasure.target)} if erasure.target else {}))


def parse_erasure(data: bytes, path: str) -> Erasure:
    """The erasure of a file's bytes.

    Raises:
        ErasureError: it is malformed; names the file.
    """
    try:
        value = json.loads(data)
        if value.pop("format") != _FORMAT:
            raise ErasureError(f"must have format {_FORMAT}")
        at = datetime.strptime(value.pop("at"), _INSTANT).replace(tzinfo=UTC)
        replaced = tuple(Replaced(**{**one, "parents": tuple(one["parents"])}) for one in value.pop("replaced"))
        return Erasure(**{**value, "at": at, "keyed": tuple(value["keyed"]), "replaced": replaced})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ErasureError(f"{path} is damaged ({error}); put back the copy of a backup") from error


def read_erasures(root: Path) -> tuple[Erasure, ...]:
    """All erasures of a root, done or not, by time; none where there is no folder.

    Raises:
        ErasureError: a file is malformed; names it.
    """
    paths = sorted(path for path in (root / FOLDER).glob("e-*.json") if _ID.fullmatch(path.stem))
    found = [parse_erasure(_read(path), str(path)) for path in paths]
    return tuple(sorted(found, key=lambda erasure: (erasure.at, erasure.id)))


def write_erasure(root: Path, erasure: Erasure) -> None:
    """Write the file of an erasure, whole and durable, in place of the one of its state before."""
    _write(root / FOLDER / f"{erasure.id}.json", render_erasure(erasure))


def withdraw_erasure(root: Path, erasure: Erasure) -> None:
    """Remove the file of an erasure that was planned and of which nothing has been done, durably.

    Raises:
        ErasureError: something of it has been done.
    """
    if erasure.state != "planned":
        raise ErasureError(f"erasure {erasure.id} is {erasure.state}: only a planned one can be withdrawn")
    _remove(root / FOLDER / f"{erasure.id}.json")


def replacements(root: Path) -> dict[str, Replaced]:
    """Every release that was removed by an erasure, by its fingerprint; so a chain of parents can be followed."""
    return {one.fingerprint: one for erasure in read_erasures(root) for one in erasure.replaced}


def forebears(parents: Iterable[str], replaced: Mapping[str, Replaced]) -> frozenset[str]:
    """The parents of a release, and what stands behind those that were erased: their parents, and what became of them.

    Without it the chain of releases would end at an erased one. The release itself may be among them.

    Args:
        parents: fingerprints, as its `release.json` has them.
        replaced: as `replacements` gives it.
    """
    found: set[str] = set()
    waiting = list(parents)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            gone = replaced.get(one)
            waiting += [] if gone is None else [*gone.parents, *([gone.successor] if gone.successor else [])]
    return frozenset(found)


def sweep(root: Path) -> None:
    """Remove what writers that were killed left unfinished; the caller holds the root for itself."""
    for path in (root / FOLDER).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ErasureError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync(path.parent)


def _write(path: Path, data: bytes) -> None:
    """Write in place of what was there, readable for the owner alone."""
    put(path, data, mode=0o600)
