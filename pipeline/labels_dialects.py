"""Files of annotation tools, each by its own rules: which images they name, and which regions are drawn there.

| dialect | what | masks |
|---|---|---|
| coco | COCO JSON, as CVAT ("COCO 1.0") and Label Studio export it | polygons; run lengths down the columns |
| cvat | XML of "CVAT for images 1.1" | polygons; run lengths along the rows of the region's own box |
| label-studio | JSON export of Label Studio | polygons in percent; brush run lengths over RGBA |
| masks | a folder of PNG masks, masks/NAME.png or NAME.png | 0 background, 255 (or 1) person |

All else is refused by its name. Nothing is decoded here before the size of the image is known: a region is a function
that is given the size that the release states. H, W: rows and columns.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote
from xml.parsers import expat

import numpy as np

from manifests.image import ImageError, decode_mask_file
from pipeline.brush_rle import decode_brush
from pipeline.coco import MAX_BYTES, CocoError, Mask, decode_segmentation, fill_polygons, is_coco, parse_json

PERSON, IGNORE = "person", "ignore"
TOOLS = {
    "coco": ("coco",),
    "cvat": ("cvat", "coco"),
    "label-studio": ("label-studio", "coco"),
    "masks": ("masks",),
}
"""Name of a tool -> the dialects that it writes."""
STATED = ("sample_id", "content_sha256")
"""Facts of an image that an export states, and that a tool may give back."""
_MAX_PNG = 64 << 20

Paint: TypeAlias = Callable[[int, int], Mask]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region that somebody drew.

    Attributes:
        where: how the file calls it.
        paint: (H, W) -> (H, W) bool; raises CocoError.
        ignore: whether its pixels must not count, rather than being a person.
    """

    where: str
    paint: Paint
    ignore: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image that a file names.

    Attributes:
        name: as the tool has it, with its folders.
        size: (H, W) as the tool states it; None where it does not.
        stated: further facts that the file has of it: sample_id, content_sha256.
        regions: drawn there.
        faults: what is wrong with it already.
    """

    name: str
    size: tuple[int, int] | None
    stated: Mapping[str, Any]
    regions: tuple[Region, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a tool wrote.

    Attributes:
        dialect: a key of TOOLS.
        images: in the order of the file.
        sha256: of the file, 32 bytes; of a folder, of the names and contents of its masks.
        release: fingerprint of the release, where the file states it.
        faults: what belongs to no image.
    """

    dialect: str
    images: tuple[Image, ...]
    sha256: bytes = b""
    release: Any = None
    faults: tuple[str, ...] = ()


def read_labels(source: Path, tool: str | None = None) -> Labels:
    """What a file or folder of a tool holds.

    Args:
        source: file, or folder of masks.
        tool: a key of TOOLS; None to tell it from the content.

    Raises:
        CocoError: it cannot be read, is of another tool, or of a dialect that is not read (named).
    """
    if source.is_dir():
        labels = _masks(source)
    else:
        data = _bytes(source)
        labels = _cvat(data) if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else _json(data)
        labels = replace(labels, sha256=hashlib.sha256(data).digest())
    if tool is not None and labels.dialect not in TOOLS[tool]:
        raise CocoError(f"it is of the dialect {labels.dialect!r}, which {tool!r} does not write: leave out the tool")
    return labels


def _bytes(source: Path) -> bytes:
    if source.suffix.lower() == ".zip":
        raise CocoError("it is a zip file: unpack it and give the file with the annotations")
    try:
        with source.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise CocoError(
            f"it cannot be read: {error.strerror or error}; name the file that the tool exported"
        ) from error
    if len(data) > MAX_BYTES:
        raise CocoError(f"it must have at most {MAX_BYTES} bytes")
    return data


def _json(data: bytes) -> Labels:
    value = parse_json(data)
    if is_coco(value):
        return _coco(value)
    if isinstance(value, list) and value and all(isinstance(task, dict) and "data" in task for task in value):
        return _label_studio(value)
    raise CocoError(
        f"it is {_foreign(value)}; export COCO 1.0 or 'CVAT for images 1.1' from CVAT, JSON from Label Studio"
    )


_FOREIGN: Mapping[str, tuple[str, ...]] = {
    "a LabelMe file": ("shapes", "imagePath"),
    "a VGG Image Annotator project": ("_via_img_metadata",),
    "a Datumaro file": ("items", "categories"),
    "annotations of a CVAT job (its own run lengths)": ("shapes", "tracks"),
    "a Supervisely file": ("objects", "size"),
}
"""What a file is -> keys that its object has."""


def _foreign(value: Any) -> str:
    """Which dialect, of those that are not read, a JSON file is of."""
    if isinstance(value, dict):
        return next((what for what, keys in _FOREIGN.items() if set(keys) <= set(value)), "JSON of no known dialect")
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict):
        if {"image_id", "segmentation"} <= set(first):
            return "a list of COCO results, without images"
        if "annotation_id" in first:
            return "JSON-MIN of Label Studio, which leaves out the regions' kinds"
    return "JSON of no known dialect"


# COCO -----------------------------------------------------------------------------------------------------------------


def _coco(value: dict[str, Any]) -> Labels:
    entries, annotations, categories = (value.get(name) for name in ("images", "annotations", "categories"))
    lists = {"images": entries, "annotations": annotations, "categories": categories}
    for name, found in lists.items():
        if _objects(found) != found:
            raise CocoError(f"{name!r} must be a list of objects")
    names = {entry["id"]: entry.get("name") for entry in _objects(categories) if type(entry.get("id")) is int}
    ids = [entry.get("id") for entry in _objects(entries)]
    if any(type(number) is not int for number in ids) or len(set(ids)) != len(ids):
        raise CocoError("ids of images must be distinct integers")
    drawn: dict[Any, list[tuple[Region | None, str]]] = {number: [] for number in ids}
    stray: list[str] = []
    for entry in _objects(annotations):
        where, image = f"annotation {entry.get('id')!r:.40}", entry.get("image_id")
        if type(image) is not int or image not in drawn:
            stray.append(f"{where}: must name an image of the file, names {image!r:.40}")
        else:
            drawn[image].append(_coco_region(entry, where, names))
    images = tuple(_coco_image(entry, drawn[entry["id"]]) for entry in _objects(entries))
    block = value.get("curate")
    release = block.get("release") if isinstance(block, dict) else None
    return Labels(dialect="coco", images=images, release=release, faults=tuple(stray))


def _objects(found: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is no list."""
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _coco_region(entry: dict[str, Any], where: str, names: Mapping[Any, Any]) -> tuple[Region | None, str]:
    number, segmentation = entry.get("category_id"), entry.get("segmentation")
    label = names.get(number) if type(number) is int else None
    return _labelled(label, where, lambda height, width: decode_segmentation(segmentation, height, width))


def _coco_image(entry: dict[str, Any], drawn: list[tuple[Region | None, str]]) -> Image:
    size = _size(entry.get("height"), entry.get("width"))
    return Image(
        name=str(entry.get("file_name")),
        size=size,
        stated={key: entry[key] for key in STATED if key in entry},
        regions=tuple(region for region, _ in drawn if region is not None),
        faults=(*(fault for _, fault in drawn if fault), *(() if size else ("height and width must be integers",))),
    )


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    return (height, width) if type(height) is int and type(width) is int else None


def _labelled(label: Any, where: str, paint: Paint) -> tuple[Region | None, str]:
    """A region of one of the two categories, or what is wrong with it."""
    name = label.casefold() if isinstance(label, str) else None
    if name in (PERSON, IGNORE):
        return Region(where=where, paint=paint, ignore=name == IGNORE), ""
    return None, f"{where}: must be of the category {PERSON!r} (or {IGNORE!r}), is of {label!r:.40}"


# CVAT -----------------------------------------------------------------------------------------------------------------


def _cvat(data: bytes) -> Labels:
    """`CVAT for images 1.1`: images with polygons and masks; read as a stream, and no document type is let in."""
    reader = _CvatReader()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise CocoError(f"it is no valid XML: {error}") from error
    return Labels(dialect="cvat", images=tuple(reader.images()))


class _CvatReader:
    def __init__(self) -> None:
        self._inside = False
        self._images: list[tuple[dict[str, str], list[tuple[Region | None, str]]]] = []

    def refuse(self, *_: object) -> None:
        raise CocoError("its XML must have no document type, for that may hold what is not in the file")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._inside and tag != "annotations":
            raise CocoError(f"it is XML of no known dialect (<{tag:.40}>); export 'CVAT for images 1.1' or COCO 1.0")
        self._inside = True
        if tag == "track":
            raise CocoError("it is 'CVAT for video 1.1'; export 'CVAT for images 1.1' or COCO 1.0")
        if tag == "image":
            self._images.append((attributes, []))
        elif self._images and tag in ("polygon", "mask", "box", "ellipse", "polyline", "points", "cuboid", "skeleton"):
            regions = self._images[-1][1]
            regions.append(_cvat_region(tag, attributes, f"{tag} {len(regions) + 1}"))

    def images(self) -> Iterator[Image]:
        for attributes, drawn in self._images:
            numbers = [_whole(attributes.get(side)) for side in ("height", "width")]
            height, width = numbers
            yield Image(
                name=attributes.get("name", ""),
                size=None if height is None or width is None else (height, width),
                stated={},
                regions=tuple(region for region, _ in drawn if region is not None),
                faults=tuple(fault for _, fault in drawn if fault),
            )


def _cvat_region(tag: str, attributes: dict[str, str], where: str) -> tuple[Region | None, str]:
    if tag not in ("polygon", "mask"):
        return None, f"{where}: must be a mask or a polygon, for a {tag} says nothing of pixels"

    def paint(height: int, width: int) -> Mask:
        if tag == "mask":
            return _boxed(attributes, height, width)
        return fill_polygons([_points(attributes.get("points"))], height, width)

    return _labelled(attributes.get("label"), where, paint)


def _points(text: str | None) -> list[float]:
    """`x,y;x,y` as x, y, x, y."""
    try:
        pairs = [pair.split(",") for pair in (text or "").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError
        return [float(number) for pair in pairs for number in pair]
    except ValueError:
        raise CocoError(f"points must be x,y;x,y …, got {text!r:.80}") from None


def _boxed(attributes: Mapping[str, str], height: int, width: int) -> Mask:
    """A mask whose run lengths go along the rows of its own box, background first."""
    box = [_whole(attributes.get(name)) for name in ("left", "top", "width", "height")]
    runs = [_whole(part) for part in attributes.get("rle", "").split(",")]
    if any(number is None for number in (*box, *runs)):
        raise CocoError("left, top, width, height and rle must be integers >= 0")
    left, top, wide, high = (number or 0 for number in box)
    lengths = [number or 0 for number in runs]
    if wide < 1 or high < 1 or left + wide > width or top + high > height:
        raise CocoError(f"its box of {wide}x{high} at {left},{top} must lie in the image of {width}x{height}")
    if sum(lengths) != wide * high:
        raise CocoError(f"rle must add up to its box of {wide}x{high} = {wide * high}, it adds up to {sum(lengths)}")
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + high, left : left + wide] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(
        high, wide
    )
    return mask


def _whole(text: str | None) -> int | None:
    """An integer >= 0 of at most 9 digits; None where it is none."""
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


# Label Studio ---------------------------------------------------------------------------------------------------------


def _label_studio(tasks: list[dict[str, Any]]) -> Labels:
    return Labels(dialect="label-studio", images=tuple(_task(task) for task in tasks))


def _task(task: dict[str, Any]) -> Image:
    data = task["data"] if isinstance(task["data"], dict) else {}
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
    done = [one for one in _objects(task.get("annotations")) if not one.get("was_cancelled")]
    faults: list[str] = []
    if len(done) != 1:
        faults.append(f"must have exactly one annotation that was not cancelled, has {len(done)}")
    results = _objects(done[0].get("result")) if len(done) == 1 else []
    if len(done) == 1 and results != done[0].get("result"):
        results, faults = [], [*faults, "result must be a list of objects"]
    drawn = [_result(result, f"region {number}") for number, result in enumerate(results, 1)]
    sizes = [_size(result.get("original_height"), result.get("original_width")) for result in results]
    size = sizes[0] if sizes else None
    if None in sizes or any(found != size for found in sizes):
        size, faults = None, [*faults, "original_height and original_width must be integers, the same of all regions"]
    return Image(
        name=unquote(texts[0]) if texts else "",
        size=size,
        stated={key: data[key] for key in STATED if key in data},
        regions=tuple(region for region, _ in drawn if region is not None),
        faults=(*faults, *(fault for _, fault in drawn if fault)),
    )


def _result(result: dict[str, Any], where: str) -> tuple[Region | None, str]:
    kind, value = result.get("type"), result.get("value")
    if not isinstance(value, dict) or kind not in ("brushlabels", "polygonlabels"):
        return None, f"{where}: must be painted or a polygon (brushlabels, polygonlabels), is {kind!r:.40}"
    labels = value.get(kind)
    if result.get("image_rotation", 0) != 0:
        return None, f"{where}: the image must not be turned (image_rotation 0)"
    if kind == "brushlabels" and value.get("format") != "rle":
        return None, f"{where}: format must be 'rle', is {value.get('format')!r:.40}"

    def paint(height: int, width: int) -> Mask:
        if kind == "brushlabels":
            return decode_brush(value.get("rle"), height, width)
        return fill_polygons([_percent(value.get("points"), height, width)], height, width)

    return _labelled(labels[0] if isinstance(labels, list) and len(labels) == 1 else labels, where, paint)


def _percent(points: Any, height: int, width: int) -> list[float]:
    """[[x, y], …] in percent of the sides as x, y, x, y in pixels."""
    good = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not good or any(type(number) not in (int, float) for point in points for number in point):
        raise CocoError(f"points must be [x, y] in percent, got {points!r:.80}")
    return [float(part) / 100 * side for point in points for part, side in zip(point, (width, height), strict=True)]


# Folders --------------------------------------------------------------------------------------------------------------


def _masks(folder: Path) -> Labels:
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    paths = sorted(path for path in place.iterdir() if path.suffix.lower() == ".png" and not path.name.startswith("."))
    if not paths:
        raise CocoError("it must hold PNG masks, in masks/ or itself; or give the file that the tool exported")
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).digest() if _is_file(path) else b""
        name = os.fsencode(path.name)
        digest.update(b"%d:%s" % (len(name), name) + content)
    images = tuple(
        Image(name=path.name, size=None, stated={}, regions=(Region(where="mask", paint=_png(path)),)) for path in paths
    )
    return Labels(dialect="masks", images=images, sha256=digest.digest())


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_PNG


def _png(path: Path) -> Paint:
    def paint(height: int, width: int) -> Mask:
        try:
            if not _is_file(path):
                raise CocoError(f"must be a file of at most {_MAX_PNG} bytes, and no link")
            decoded = decode_mask_file(path.read_bytes())
        except (OSError, ImageError) as error:
            raise CocoError(str(error)) from error
        if decoded.soft:
            raise CocoError("must hold the values 0 and 255 (or 1) alone; save it without smoothing")
        if decoded.mask.shape != (height, width):
            raise CocoError(f"must be {width}x{height}, is {decoded.mask.shape[1]}x{decoded.mask.shape[0]}")
        return decoded.mask

    return paint
