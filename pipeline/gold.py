"""Human masks that a run is given: their roles, and that no image has two.

============  ==================  ====================  =====================  ==========================
role          trains the teacher  trains the students   calibrates the judge   becomes a published label
============  ==================  ====================  =====================  ==========================
`--labelled`  unless --teacher    yes                   no                     no
`--gold`      no                  yes                   no                     no
`--audit`     no                  no                    if sampled             yes
============  ==================  ====================  =====================  ==========================

Frames that were chosen from a list (``curate audit --list``) are not sampled: they calibrate nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from manifests.audit import AuditedMask, AuditError, audit_sha256, read_audit
from manifests.image import ImageError, decode_image
from manifests.labelled import Labelled, LabelledError, labelled_sha256, load_labelled, read_labelled
from manifests.mask import encode_mask
from pipeline.embed import encode_jpeg, shrink
from pipeline.errors import InputError
from pipeline.frames import content_sha256

GOLD = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
        pa.field("ignore", pa.binary(), nullable=False),
    ]
)
_NAMED = 10
_CHANGED = "has changed since the run began; run again when nobody works on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Human:
    """The human masks of a run, checked.

    Attributes:
        folders: role ("labelled", "gold") -> folder of the masks that students train on.
        digests: role -> digest of that folder's content.
        audits: the masks of each audit folder, in the order given.
        unfinished: of each audit folder, frames without a mask.
        audit_digests: of each audit folder's masks.
    """

    folders: Mapping[str, Path]
    digests: Mapping[str, str]
    audits: tuple[tuple[AuditedMask, ...], ...]
    unfinished: tuple[int, ...]
    audit_digests: tuple[str, ...]


def read_human(labelled: Path, gold: Path | None, audits: Sequence[Path]) -> Human:
    """Reads and checks all that people drew.

    Raises:
        InputError: a folder is no labelled set or no audit, an audit is given twice, or an image has two roles; names
            the files and the remedy.
    """
    folders = {"labelled": labelled} | ({} if gold is None else {"gold": gold})
    digests = {role: labelled_digest(folder, f"--{role}") for role, folder in folders.items()}
    resolved = [folder.resolve() for folder in audits]
    if twice := [str(folder) for folder, place in zip(audits, resolved, strict=True) if resolved.count(place) > 1]:
        raise InputError(f"--audit {twice[0]} is given twice; a second annotator works on a copy of the folder")
    try:
        read = [read_audit(folder) for folder in audits]
        named = tuple(audit_sha256(masks) for masks, _ in read)
    except AuditError as error:
        raise InputError(f"--audit: {error}") from error
    human = Human(
        folders=folders,
        digests=digests,
        audits=tuple(masks for masks, _ in read),
        unfinished=tuple(count for _, count in read),
        audit_digests=named,
    )
    _check_roles(human, audits)
    return human


def labelled_digest(folder: Path, flag: str = "--labelled") -> str:
    """The digest of a labelled set.

    Raises:
        InputError: the folder is no labelled set.
    """
    try:
        return labelled_sha256(read_labelled(folder))
    except LabelledError as error:
        raise InputError(f"{flag}: {error}") from error


def check_sets(human: Human) -> None:
    """Refuses folders of masks that are not what they were when the run began.

    Raises:
        InputError: one of them has changed; names it and the remedy.
    """
    for role, folder in human.folders.items():
        if labelled_digest(folder, f"--{role}") != human.digests[role]:
            raise InputError(f"--{role} {folder} {_CHANGED}")


def check_audits(human: Human) -> None:
    """Refuses masks of audits that are not what they were when the run began.

    Raises:
        InputError: one of them has changed or is gone; names its folder and the remedy.
    """
    for masks, digest in zip(human.audits, human.audit_digests, strict=True):
        try:
            same = audit_sha256(masks) == digest
        except AuditError as error:
            raise InputError(f"--audit: {error}; it {_CHANGED}") from error
        if not same:
            raise InputError(f"--audit {masks[0].mask.parent.parent} {_CHANGED}")


def gold_table(folders: Mapping[str, Path], side: int) -> pa.Table:
    """The images that students train on at student size (schema ``GOLD``), role by role, each sorted by name.

    Raises:
        InputError: a folder is no labelled set; names the files and the remedy.
    """
    try:
        rows = [
            {"role": role, **_small(sample, side)}
            for role, folder in folders.items()
            for sample in read_labelled(folder)
        ]
    except LabelledError as error:
        raise InputError(str(error)) from error
    return pa.Table.from_pylist(rows, schema=GOLD)


def _small(sample: Labelled, side: int) -> dict[str, object]:
    image, mask, ignore = load_labelled(sample)
    picture = shrink(image, side)
    size = (picture.shape[1], picture.shape[0])
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    void = cv2.resize(ignore.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    packed = {"mask": encode_mask(np.asarray(small)), "ignore": encode_mask(np.asarray(void))}
    return {"name": sample.name, "picture": encode_jpeg(picture, 92), **packed}


def _check_roles(human: Human, audits: Sequence[Path]) -> None:
    """Refuses an image that two roles share: what trains the teacher or a student cannot measure it."""
    if len(human.folders) == 1 and not audits:
        return
    seen = {role: _contents(folder) for role, folder in human.folders.items()}
    gold = seen.get("gold", {})
    both = [f"{gold[content]} is {name}" for content, name in seen["labelled"].items() if content in gold]
    _refuse(
        "an image of --gold must not be in --labelled, which teaches the teacher", both, "remove it from one of them"
    )
    for masks, folder in zip(human.audits, audits, strict=True):
        frames = [pair for one in masks for pair in _audited(one, folder)]
        for role, known in seen.items():
            trained = [f"{name} is {known[content]}" for content, name in frames if content in known]
            rule = f"a frame of --audit {folder} must not be in --{role}: it would measure what was trained on it"
            _refuse(rule, dict.fromkeys(trained), f"remove it from --{role}, or its mask from the audit")


def _contents(folder: Path) -> dict[bytes, str]:
    """Content hash -> name of the images of a labelled set."""
    return {content: str(path) for path in _images(folder) if (content := _content(path)) is not None}


def _images(folder: Path) -> Iterator[Path]:
    return (sample.image for sample in read_labelled(folder))


def _audited(one: AuditedMask, folder: Path) -> Iterator[tuple[bytes, str]]:
    """The content of an audited frame in its source, and as the audit shows it (a JPEG, which people copy)."""
    shown = folder / "images" / f"{one.drawn.name}.jpg"
    yield bytes.fromhex(one.drawn.content_sha256), str(shown)
    if shown.is_file() and (content := _content(shown)) is not None:
        yield content, str(shown)


def _content(path: Path) -> bytes | None:
    """The hash of an image's pixels; None where it is broken or gone, which is told when it is used."""
    try:
        return content_sha256(decode_image(path.read_bytes()).pixels)
    except (ImageError, OSError):
        return None


def _refuse(rule: str, faults: Iterable[str], remedy: str) -> None:
    found = list(faults)
    if not found:
        return
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise InputError(f"{rule}: {'; '.join(found[:_NAMED])}{more}; {remedy}")
