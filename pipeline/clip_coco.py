"""Clips of a COCO file: its images by video, and their persons drawn from the annotations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.clip_formats import (
    Clip,
    ClipConfig,
    ClipFrame,
    Still,
    file_sha256,
    neighbours,
    numbers_of,
    refused,
    still_image,
)
from pipeline.coco import MAX_BYTES, Coco, CocoError, CocoImage, draw, is_coco, parse_json, read_coco
from pipeline.errors import InputError

ANNOTATIONS = "annotations"
"""A folder of COCO files whose images lie beside it."""


def coco_clips(path: Path, prefix: str, config: ClipConfig) -> list[Clip]:
    """The clips of a COCO file.

    Args:
        path: the file; its images lie beside it or its folder, there or in ``images`` or ``JPEGImages``.
        prefix: put before each name; empty, or with a closing slash.
        config: category and limits.

    Raises:
        InputError: the file breaks a rule of `pipeline.coco`, has no image, or one that is missing.
    """
    coco = _coco(path, config.category)
    if not coco.videos:
        raise InputError(f"{path} must list at least one image; add images or remove it")
    clips = []
    for key in sorted(coco.videos):
        clip = Clip(name=prefix + key, layout="coco", frames=str(path), key=key, labelled=True, bytes=0)
        stills = coco_stills(clip, config)
        clips.append(replace(clip, count=len(stills), bytes=sum(still.image.stat().st_size for still in stills)))
    return clips


def coco_stills(clip: Clip, config: ClipConfig) -> list[Still]:
    """The images of a clip in order.

    Raises:
        InputError: the file changed since it was found, or an image is missing or not numbered.
    """
    return [still for still, _ in _ordered(clip, _coco(Path(clip.frames), config.category))]


def read_coco_clip(clip: Clip, config: ClipConfig) -> Iterator[ClipFrame]:
    """The frames of a clip of a COCO file; crowds are void."""
    coco = _coco(Path(clip.frames), config.category)
    ordered = _ordered(clip, coco)
    follows = neighbours([still.number for still, _ in ordered])
    for index, (still, image) in enumerate(ordered):
        pixels = still_image(still.image, config.limits)
        if pixels.shape[:2] != (image.height, image.width):
            found = f"{pixels.shape[1]}x{pixels.shape[0]}"
            rule = f"is {found}, {clip.frames} says {image.width}x{image.height}"
            raise InputError(f"{still.image} {rule}; export the annotations at the size of the images")
        try:
            truth, crowd = draw(coco.regions.get(image.id, ()), image.height, image.width)
        except CocoError as error:
            raise InputError(f"{clip.frames}: {error}; correct the annotation") from error
        void = crowd if crowd.any() else None
        name = still.image.stem
        yield ClipFrame(index=index, name=name, image=pixels, truth=truth, void=void, follows=follows[index])


def coco_sha256(clip: Clip) -> str:
    """Digest of the COCO file."""
    return file_sha256(Path(clip.frames)).hex()


def parsed_coco(path: Path, category: str) -> Coco | None:
    """What a JSON file says of persons; None where it is no COCO file.

    Raises:
        InputError: it is no JSON, or breaks a rule.
    """
    with refused(str(path)):
        status = path.stat()
        try:
            return _parsed(str(path), status.st_size, status.st_mtime_ns, category)
        except CocoError as error:
            raise InputError(f"{path}: {error}; correct or remove it") from error


def _coco(path: Path, category: str) -> Coco:
    coco = parsed_coco(path, category)
    if coco is None:
        raise InputError(f"{path} is no COCO file any more; find the clips again")
    return coco


@functools.lru_cache(maxsize=2)
def _parsed(path: str, size: int, changed_ns: int, category: str) -> Coco | None:
    """The parsed file; its size and time only keep a changed file from being taken for the one remembered."""
    del changed_ns
    if size > MAX_BYTES:
        raise CocoError(f"it must have at most {MAX_BYTES} bytes, has {size}")
    value = parse_json(Path(path).read_bytes())
    if isinstance(value, dict) and {"videos", "annotations"} <= set(value) and "images" not in value:
        raise CocoError("a file of YouTube-VIS (videos without images) is not read: list each frame in 'images'")
    return read_coco(value, category) if is_coco(value) else None


def _ordered(clip: Clip, coco: Coco) -> list[tuple[Still, CocoImage]]:
    path = Path(clip.frames)
    images = coco.videos.get(clip.key)
    if images is None:
        raise InputError(f"{path} holds no video {clip.key!r} any more; find the clips again")
    folder = _folder(path, images[0])
    stated = [image.frame for image in images if image.frame is not None]
    stems = [PurePosixPath(image.file_name).stem for image in images]
    numbers = stated if len(stated) == len(images) else numbers_of(stems, f"{path} video {clip.key!r}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{path} video {clip.key!r}: a frame_id must occur once; correct the images")
    ordered = []
    for number, image in zip(numbers, images, strict=True):
        file = folder / image.file_name
        if not file.is_file():
            raise InputError(f"{path}: image {image.file_name!r} must lie in {folder}; add it, or remove it there")
        ordered.append((Still(number, file), image))
    return sorted(ordered, key=lambda pair: pair[0].number)


def _folder(path: Path, image: CocoImage) -> Path:
    """Where the images lie: the first of the usual places that has this one."""
    roots = [path.parent, path.parent.parent] if path.parent.name == ANNOTATIONS else [path.parent]
    places = [root / name for root in roots for name in ("", "images", "JPEGImages")]
    for folder in places:
        if (folder / image.file_name).is_file():
            return folder
    listed = ", ".join(map(str, places))
    raise InputError(f"{path}: image {image.file_name!r} must lie in one of {listed}; put it there")
