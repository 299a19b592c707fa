"""``curate audit`` reads: how far an audit is, and masks from the COCO file of an annotation tool.

All annotations of an image in the category person are one mask. Tools mark every painted region as a crowd
(``iscrowd``), so here, other than in clips, a crowd is as much a person as any other; what must not count is drawn in
a category ``ignore``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.audit import AuditError, Drawn, load_audit, read_audit
from manifests.mask import encode_mask
from pipeline import storage
from pipeline.coco import MAX_BYTES, Coco, CocoError, CocoImage, Region, decode_segmentation, is_coco, parse_json
from pipeline.coco import read_coco as read_videos
from pipeline.errors import InputError

PERSON, IGNORE = "person", "ignore"
_NAMED = 10
_ALL = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a file holds of one frame.

    Attributes:
        mask: PNG file of the persons.
        ignore: PNG file of the pixels that must not count; None: all do.
        annotated: whether the file has any annotation of it.
    """

    mask: bytes
    ignore: bytes | None
    annotated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was taken over.

    Attributes:
        frames: that the file covers.
        empty: those of them that it shows nobody in, for it has no annotation of them.
    """

    frames: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an audit is.

    Attributes:
        done: frames with a mask.
        unfinished: frames without.
    """

    done: int
    unfinished: int


def check_audit(folder: Path) -> Progress:
    """Decodes every mask of an audit folder.

    Raises:
        InputError: it breaks a rule of `manifests.audit`; names the first ten files at fault.
    """
    try:
        masks, unfinished = read_audit(folder)
    except AuditError as error:
        raise InputError(str(error)) from error
    return Progress(done=len(masks), unfinished=unfinished)


def import_coco(folder: Path, file: Path, *, empty: bool = False) -> Imported:
    """Writes the masks that a COCO file holds into an audit folder: all of them, or none where one is at fault.

    Killed while it writes, the same command goes on: a mask that is there already may come again if it is the same.

    Args:
        folder: of the audit.
        file: of the tool.
        empty: whether an image that the file lists without an annotation shows nobody. Without it such images are
            refused, for a tool lists those that nobody has looked at as well.

    Raises:
        InputError: the folder or the file breaks a rule, or a frame has another mask already; names the first ten.
        StorageError: a mask cannot be written.
    """
    try:
        drawn = {sample.name: sample for sample in load_audit(folder).samples}
        read_audit(folder)
        made = masks_of_coco(_parsed(file), drawn)
    except AuditError as error:
        raise InputError(str(error)) from error
    except CocoError as error:
        raise InputError(f"{file}: {error}; nothing was imported") from error
    bare = [name for name, one in made.items() if not one.annotated]
    if bare and not empty:
        raise InputError(
            f"{file}: {len(bare)} of {len(made)} images have no annotation: {_named(bare)}; where people looked and "
            "saw nobody, add --empty; where nobody has looked yet, leave the images out of the file; nothing was "
            "imported"
        )
    _check_other(folder, file, made)
    for name, one in made.items():
        if one.ignore is not None:  # first: a frame with a mask is done
            storage.write_bytes(str(folder / "ignore" / f"{name}.png"), one.ignore)
        storage.write_bytes(str(folder / "masks" / f"{name}.png"), one.mask)
    return Imported(frames=len(made), empty=len(bare))


def _check_other(folder: Path, file: Path, made: Mapping[str, Made]) -> None:
    """Refuses to write over, or to leave beside a new mask, what is there already and differs."""
    files: dict[Path, bytes | None] = {folder / "masks" / f"{name}.png": one.mask for name, one in made.items()}
    files |= {folder / "ignore" / f"{name}.png": one.ignore for name, one in made.items()}
    other = [path for path, data in files.items() if path.exists() and path.read_bytes() != data]
    if other:
        shown = _named([f"{path.parent.name}/{path.name}" for path in other])
        raise InputError(f"{file}: {shown} hold other masks already; remove those, or these images from the file")


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def masks_of_coco(value: Any, drawn: Mapping[str, Drawn]) -> dict[str, Made]:
    """The mask of every image that a COCO file lists, by the name of its frame.

    Args:
        value: the parsed file.
        drawn: the frames of the audit by name.

    Raises:
        CocoError: the file breaks a rule; an image is no frame of the audit, twice there or of another size; an
            annotation is of another category, has no pixel (a box is no mask), or is malformed. Names the first ten.
    """
    if not is_coco(value):
        raise CocoError("it must be a COCO file with images, annotations and categories")
    if not value["annotations"]:
        raise CocoError("it has no annotation at all; export it from the tool when the persons are drawn")
    persons, ignored = _read(value, PERSON), _read(value, IGNORE) if _has(value, IGNORE) else None
    _check_categories(value)
    faults: list[str] = []
    made: dict[str, Made] = {}
    for image in persons.videos.get(_ALL, ()):
        try:
            name = _name(image, drawn, made)
            people, void = (part.regions.get(image.id, ()) if part else () for part in (persons, ignored))
            mask, ignore = _merged(people, image), _merged(void, image)
            made[name] = Made(
                mask=encode_mask(mask),
                ignore=encode_mask(ignore) if ignore.any() else None,
                annotated=bool(people or void),
            )
        except CocoError as error:
            faults.append(str(error))
    if not made and not faults:
        raise CocoError("it must list at least one image")
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise CocoError("; ".join(faults[:_NAMED]) + more)
    return made


def _parsed(file: Path) -> Any:
    with storage.open_read(str(file)) as stream:
        return parse_json(stream.read(MAX_BYTES + 1))


def _has(value: Any, category: str) -> bool:
    entries = value.get("categories")
    return isinstance(entries, list) and any(isinstance(e, dict) and e.get("name") == category for e in entries)


def _read(value: Any, category: str) -> Coco:
    """The images and one category; for `pipeline.coco` the audit is one video, whatever folders the names have."""
    images = value["images"]
    if isinstance(images, list):
        entries = [{**e, "video_id": 0, "frame_id": 0} if isinstance(e, dict) else e for e in images]
        value = {**value, "images": entries, "videos": [{"id": 0, "name": _ALL}]}
    return read_videos(value, category)


def _check_categories(value: Any) -> None:
    known = {entry["id"] for entry in value["categories"] if entry.get("name") in (PERSON, IGNORE)}
    other = [entry["id"] for entry in value["annotations"] if entry["category_id"] not in known]
    if other:
        rule = f"must be of the category {PERSON!r} (or {IGNORE!r}: pixels that must not count)"
        raise CocoError(f"annotation {other[0]} {rule}, as all must; {len(other)} are not")


def _name(image: CocoImage, drawn: Mapping[str, Drawn], made: Mapping[str, object]) -> str:
    name = PurePosixPath(image.file_name).stem
    frame = drawn.get(name)
    if frame is None:
        raise CocoError(f"image {image.file_name!r:.80} is no frame of this audit")
    if name in made:
        raise CocoError(f"image {image.file_name!r:.80} is there twice")
    if (image.width, image.height) != (frame.width, frame.height):
        found = f"{image.width}x{image.height}"
        raise CocoError(f"image {image.file_name!r:.80} must be {frame.width}x{frame.height}, is {found}")
    return name


def _merged(regions: Iterable[Region], image: CocoImage) -> NDArray[np.bool_]:
    """The union of regions, each of which must cover a pixel."""
    merged = np.zeros((image.height, image.width), np.bool_)
    for region in regions:
        try:
            mask = decode_segmentation(region.segmentation, image.height, image.width)
        except CocoError as error:
            raise CocoError(f"image {image.file_name!r:.80}: annotation {region.id}: {error}") from error
        if not mask.any():
            raise CocoError(f"image {image.file_name!r:.80}: annotation {region.id} covers no pixel; a box is no mask")
        merged |= mask
    return merged
