"""An audit: frames of a pool, drawn blind, whose masks people draw to tell how good the labels are.

Frames may also be chosen from a list of what is worth drawing (`sampled` is false): no random sample, so their masks
become labels and tell no rate.

::

    folder/
    ├── audit.json        which frames, in canonical JSON; see `Audit`
    ├── images/0001.jpg   a full-size frame, upright; the names are numbers in an order that tells nothing
    ├── masks/0001.png    drawn by a person: 0 background, 255 (or 1) person; absent = not done yet
    └── ignore/0001.png   optional: pixels that no measure may count

Reading needs neither images nor labels, so a second annotator may send back `audit.json` and `masks/` alone. A folder
that breaks a rule is refused as a whole, with the first files at fault. H, W: rows and columns of a frame.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from manifests.image import DEFAULT_LIMITS, ImageError, ImageLimits, decode_mask_file, upright_size
from manifests.release import canonical_json

AUDIT_FILE: Final = "audit.json"
FORMAT: Final = 1
MAX_BYTES: Final = 64 << 20
"""Limit of the size of `audit.json`: about 400,000 frames."""
MAX_PIXELS: Final = 1 << 28

Origin = Literal["release", "stage"]

_NAME = re.compile(r"[0-9]{4,9}")
_SAMPLE_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED = 10


class AuditError(ValueError):
    """An audit folder breaks a rule; the message names rule, files and remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One frame of an audit.

    Attributes:
        name: of its files, without suffix: 4 to 9 digits.
        sample_id: 32 hex digits.
        content_sha256: 64 hex digits, of the decoded frame in its source.
        width: pixels, >= 1.
        height: pixels, >= 1.
    """

    name: str
    sample_id: str
    content_sha256: str
    width: int
    height: int

    def __post_init__(self) -> None:
        for field, rule in (("name", _NAME), ("sample_id", _SAMPLE_ID), ("content_sha256", _SHA256)):
            value = getattr(self, field)
            if not (isinstance(value, str) and rule.fullmatch(value)):
                raise AuditError(f"samples: {field} must match {rule.pattern}, got {value!r:.80}")
        for field in ("width", "height"):
            _check_count(getattr(self, field), f"samples: {self.name}: {field}", 1)
        if self.width * self.height > MAX_PIXELS:
            raise AuditError(f"samples: {self.name}: at most {MAX_PIXELS} pixels, got {self.width}x{self.height}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """A cluster of the pool.

    Attributes:
        population: labelled frames in it.
        drawn: of these in the audit.
    """

    population: int
    drawn: int

    def __post_init__(self) -> None:
        _check_count(self.population, "strata: population", 1)
        _check_count(self.drawn, "strata: drawn", 0)
        if self.drawn > self.population:
            raise AuditError(f"strata: drawn must be <= population, got {self.drawn} of {self.population}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What `audit.json` says.

    Attributes:
        seed: of the draw.
        size: frames that were asked for; fewer are there where the pool has fewer.
        origin: whether the pool is a release or a label stage.
        fingerprint: of the release (64 hex digits), or the digest of the stage.
        samples: the frames by ascending name.
        strata: cluster -> how many of how many; none of them is named at a frame.
        sampled: whether the frames were drawn at random; else they were chosen from a list. A file that does not say
            so was written when all were.
    """

    seed: int
    size: int
    origin: Origin
    fingerprint: str
    samples: tuple[Drawn, ...]
    strata: Mapping[str, Stratum]
    sampled: bool = True

    def __post_init__(self) -> None:
        _check_count(self.seed, "seed", 0)
        if type(self.sampled) is not bool:
            raise AuditError(f"sampled must be true or false, got {self.sampled!r:.80}")
        _check_count(self.size, "size", 1)
        if self.origin not in get_args(Origin):
            raise AuditError(f"from must be one of {get_args(Origin)}, got {self.origin!r:.80}")
        if not (isinstance(self.fingerprint, str) and _SHA256.fullmatch(self.fingerprint)):
            raise AuditError(f"fingerprint must be 64 hex digits, got {self.fingerprint!r:.80}")
        names = [sample.name for sample in self.samples]
        if not names or any(before >= after for before, after in itertools.pairwise(names)):
            raise AuditError("samples must be at least one, with ascending names, none twice")
        if len({sample.sample_id for sample in self.samples}) < len(names):
            raise AuditError("samples must have distinct sample ids")
        drawn = sum(stratum.drawn for stratum in self.strata.values())
        if drawn != len(names):
            raise AuditError(f"strata must add up to the {len(names)} samples, they add up to {drawn}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedMask:
    """A frame that a person has done.

    Attributes:
        drawn: the frame.
        mask: path of the mask.
        ignore: path of the pixels to leave out, or None.
        sampled: whether its frame was drawn at random.
    """

    drawn: Drawn
    mask: Path
    ignore: Path | None
    sampled: bool = True


def render_audit(audit: Audit) -> bytes:
    """The bytes of `audit.json`: canonical JSON, so equal audits give equal bytes."""
    samples = [{field: getattr(sample, field) for field in _SAMPLE_FIELDS} for sample in audit.samples]
    strata = {name: {"population": s.population, "drawn": s.drawn} for name, s in audit.strata.items()}
    facts = {"seed": audit.seed, "size": audit.size, "from": audit.origin, "fingerprint": audit.fingerprint}
    facts["sampled"] = audit.sampled
    return canonical_json({"format": FORMAT, **facts, "samples": samples, "strata": strata})


def parse_audit(data: bytes) -> Audit:
    """Parse and check the bytes of an `audit.json`.

    `render_audit` of the result gives the same bytes, if they state `sampled`; absent, it is true.

    Raises:
        AuditError: too large, no canonical JSON, another format, or a field that is missing, surplus or malformed.
    """
    value = _fields(data)
    for entry in value["samples"]:
        _check_fields(entry, _SAMPLE_FIELDS, "samples: an entry")
    for name, entry in value["strata"].items():
        _check_fields(entry, ("population", "drawn"), f"strata: {name!r:.40}")
    return Audit(
        seed=value["seed"],
        size=value["size"],
        origin=value["from"],
        fingerprint=value["fingerprint"],
        samples=tuple(Drawn(**entry) for entry in value["samples"]),
        strata={name: Stratum(**entry) for name, entry in value["strata"].items()},
        sampled=value["sampled"],
    )


def _fields(data: bytes) -> dict[str, Any]:
    """The fields of the bytes of an `audit.json`, none missing or surplus."""
    if len(data) > MAX_BYTES:
        raise AuditError(f"{AUDIT_FILE} must have at most {MAX_BYTES} bytes, has {len(data)} or more")
    try:
        value: dict[str, Any] = json.loads(data)
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:  # ReleaseError is a ValueError
        raise AuditError(f"{AUDIT_FILE} is no valid JSON: {error}") from error
    if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
        found = value["format"]
        raise AuditError(f"{AUDIT_FILE} has format {found!r:.20}, this curate reads {FORMAT}; use the curate it is of")
    if isinstance(value, dict):
        value.setdefault("sampled", True)
    _check_fields(value, _FIELDS, AUDIT_FILE)
    if canonical != data:
        raise AuditError(f"{AUDIT_FILE} is not in canonical form (sorted keys, no spaces); put the original back")
    if not isinstance(value["samples"], list) or not isinstance(value["strata"], dict):
        raise AuditError(f"{AUDIT_FILE}: samples must be a list and strata an object")
    return value


def is_audit(folder: Path) -> bool:
    """Whether a folder says that it is an audit."""
    return (folder / AUDIT_FILE).is_file()


def load_audit(folder: Path) -> Audit:
    """What the `audit.json` of a folder says.

    Raises:
        AuditError: it is absent, unreadable, or malformed; names the file.
    """
    path = folder / AUDIT_FILE
    try:
        if path.exists() and not path.is_file():
            raise AuditError(f"{str(path)!r} must be a file; put the original back")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AuditError(
            f"{str(path)!r} cannot be read, so no audit is here: {reason}; give a folder of 'curate audit'"
        ) from error
    try:
        return parse_audit(data)
    except AuditError as error:
        raise AuditError(f"{str(path)!r}: {error}") from error


def read_audit(folder: Path) -> tuple[tuple[AuditedMask, ...], int]:
    """The masks of an audit folder, every one decoded once and found good; and how many frames have none yet.

    Returns:
        The masks by ascending name of the frame, and the number of unfinished frames.

    Raises:
        AuditError: see `load_audit`; or a file in `masks/` or `ignore/` is no PNG of a frame's name, no mask, or of
            another size than its frame. All masks are refused then; names the first ten files at fault.
    """
    audit = load_audit(folder)
    masks, ignores = _files(folder / "masks", audit), _files(folder / "ignore", audit)
    done = tuple(
        AuditedMask(drawn=drawn, mask=masks[drawn.name], ignore=ignores.get(drawn.name), sampled=audit.sampled)
        for drawn in audit.samples
        if drawn.name in masks
    )
    faults = []
    for audited in done:
        try:
            load_mask(audited)
        except AuditError as error:
            faults.append(str(error))
    _refuse(f"{str(folder)!r}: every mask must be a PNG as large as its frame", faults, "replace or remove it")
    return done, len(audit.samples) - len(done)


def load_mask(audited: AuditedMask) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Decode one mask.

    Returns:
        mask (H, W) bool, True is person; ignore (H, W) bool, all False without a file.

    Raises:
        AuditError: a file is gone, broken or of another size; names it.
    """
    mask = _decode(audited.mask, audited.drawn)
    ignore = np.zeros_like(mask) if audited.ignore is None else _decode(audited.ignore, audited.drawn)
    return mask, ignore


def audit_sha256(audited: Iterable[AuditedMask]) -> str:
    """Hex digest over frames, whether they were sampled, and file contents, whatever order, names and folders.

    Raises:
        AuditError: a file cannot be read.
    """
    items = []
    for one in audited:
        contents = [b"-" if path is None else hashlib.sha256(_read(path)).digest() for path in (one.mask, one.ignore)]
        facts = b"%s %s " % (one.drawn.sample_id.encode(), one.drawn.content_sha256.encode())
        items.append(facts + b"".join(contents) + (b"" if one.sampled else b" chosen"))
    digest = hashlib.sha256()
    for item in sorted(items):
        digest.update(b"%d:" % len(item) + item)
    return digest.hexdigest()


_FIELDS = ("format", "seed", "size", "from", "fingerprint", "sampled", "samples", "strata")
_SAMPLE_FIELDS = ("name", "sample_id", "content_sha256", "width", "height")


def _check_fields(value: object, expected: Iterable[str], where: str) -> None:
    if not isinstance(value, dict):
        raise AuditError(f"{where} must be an object, got {type(value).__name__}")
    missing, surplus = sorted(set(expected) - set(value)), sorted(set(value) - set(expected))
    if missing or surplus:
        raise AuditError(f"{where}: missing fields {missing}, surplus fields {surplus[:8]!r:.200}")


def _check_count(value: Any, field: str, least: int) -> None:
    if type(value) is not int or value < least:
        raise AuditError(f"{field} must be an integer >= {least}, got {value!r:.80}")


def _files(folder: Path, audit: Audit) -> dict[str, Path]:
    """Name of a frame -> its file in a folder; hidden files are skipped."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise AuditError(f"{str(folder)!r} must be a folder of PNG files; move it away")
    known = {f"{drawn.name}.png": drawn.name for drawn in audit.samples}
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    strange = [path.name for path in paths if path.name not in known]
    _refuse(f"{str(folder)!r}: a file must have the name of a frame, as 0001.png", strange, "rename or remove it")
    special = [path.name for path in paths if path.is_symlink() or not path.is_file()]
    _refuse(f"{str(folder)!r} must hold regular files only, no links", special, "put the file itself there")
    return {known[path.name]: path for path in paths}


def _decode(path: Path, drawn: Drawn) -> NDArray[np.bool_]:
    """A mask file, its size read from the header and held against the frame's before it is decoded."""
    shown, expected = f"{path.parent.name}/{path.name}", (drawn.height, drawn.width)
    limits = ImageLimits(pixels=MAX_PIXELS, min_side=1, max_aspect=math.inf)
    try:
        with path.open("rb") as stream:
            found = upright_size(stream, limits)
        if found == expected:
            return decode_mask_file(_read(path), limits).mask
    except ImageError as error:
        raise AuditError(f"{shown} ({error.kind}: {error})") from error
    except OSError as error:
        raise AuditError(f"{shown} ({error.strerror or type(error).__name__})") from error
    raise AuditError(f"{shown} (is {found[1]}x{found[0]}, its frame {drawn.width}x{drawn.height})")


def _read(path: Path) -> bytes:
    """A file, of which no more is read than a mask may have."""
    try:
        with path.open("rb") as file:
            return file.read(DEFAULT_LIMITS.bytes + 1)
    except OSError as error:
        raise AuditError(f"{str(path)!r} cannot be read: {error.strerror or type(error).__name__}") from error


def _refuse(rule: str, faults: Iterable[str], remedy: str) -> None:
    """Raise if there are faults; the first ten are quoted, for a file name may hold anything."""
    found = list(faults)
    if not found:
        return
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise AuditError(f"{rule}: {len(found)} at fault: {', '.join(map(repr, found[:_NAMED]))}{more}; {remedy}")
