"""COCO JSON of videos: which images make a video, and the masks of its persons, from polygons and run lengths.

A run-length mask is decoded here and not by a library: its runs are held against the size of the image before any
memory is taken, for a wrong sum would be read as a wrong mask. Letters: H and W rows and columns of an image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

MAX_BYTES = 1 << 29
_MAX_PIXELS = 1 << 28
_MAX_COORDINATE = 1 << 20
_MAX_CORNERS = 1 << 16
_FIRST, _LAST = 48, 111  # the characters of compressed counts, 6 bits each


class CocoError(ValueError):
    """A COCO file, or an annotation in it, breaks a rule; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """One image of a video.

    Attributes:
        id: in the file.
        file_name: relative path.
        height: rows.
        width: columns.
        frame: its number in the video where the file states one; else the file name tells.
    """

    id: int
    file_name: str
    height: int
    width: int
    frame: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """One annotated person, or a crowd; `segmentation` as the file has it, decoded by `draw`."""

    id: int
    segmentation: Any
    crowd: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coco:
    """What a file says of persons.

    Attributes:
        videos: name -> images.
        regions: image id -> persons and crowds.
    """

    videos: Mapping[str, tuple[CocoImage, ...]]
    regions: Mapping[int, tuple[Region, ...]]


def is_coco(value: object) -> bool:
    """Whether a parsed JSON file has the shape of a COCO data set."""
    return isinstance(value, dict) and {"images", "annotations"} <= set(value)


def parse_json(data: bytes) -> Any:
    """Parse JSON, within limits.

    Raises:
        CocoError: too large, or no JSON.
    """
    if len(data) > MAX_BYTES:
        raise CocoError(f"it must have at most {MAX_BYTES} bytes, has {len(data)}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CocoError(f"it is no valid JSON: {error}") from error


def read_coco(value: Any, category: str) -> Coco:
    """Check a COCO data set and take out one category.

    Args:
        value: the parsed file.
        category: name of the category; annotations of others are background.

    Raises:
        CocoError: a field is missing or malformed, an id stands twice or is unknown, there is no such category, or an
            image belongs to no video.
    """
    images = _images(value)
    wanted = _category_ids(value, category)
    regions: dict[int, list[Region]] = {}
    known = {image.id for _, image in images}
    for entry in _list(value, "annotations"):
        image, region = _region(entry)
        if image not in known:
            raise CocoError(f"annotation {region.id} must name an image of the file, names {image}")
        if entry.get("category_id") in wanted:
            regions.setdefault(image, []).append(region)
    videos: dict[str, list[CocoImage]] = {}
    for name, image_ in images:
        videos.setdefault(name, []).append(image_)
    return Coco(
        videos={name: tuple(members) for name, members in videos.items()},
        regions={image: tuple(members) for image, members in regions.items()},
    )


def draw(regions: Iterable[Region], height: int, width: int) -> tuple[Mask, Mask]:
    """Persons and void of an image, (H, W) bool each; void is where a crowd is and no single person.

    Raises:
        CocoError: a segmentation is malformed; the message names the annotation.
    """
    person, crowd = np.zeros((height, width), np.bool_), np.zeros((height, width), np.bool_)
    for region in regions:
        try:
            mask = decode_segmentation(region.segmentation, height, width)
        except CocoError as error:
            raise CocoError(f"annotation {region.id}: {error}") from error
        target = crowd if region.crowd else person
        target |= mask
    return person, crowd & ~person


def decode_segmentation(value: Any, height: int, width: int) -> Mask:
    """(H, W) bool of a segmentation: a list of polygons, or {"size", "counts"} of run lengths.

    Raises:
        CocoError: it is neither, or malformed.
    """
    if isinstance(value, list):
        return fill_polygons(value, height, width)
    if not isinstance(value, dict) or set(value) != {"size", "counts"}:
        raise CocoError(f"a segmentation must be polygons or an object of size and counts, got {value!r:.80}")
    if value["size"] != [height, width]:
        raise CocoError(f"size must be the image's [{height}, {width}], got {value['size']!r:.80}")
    counts = value["counts"]
    return decode_runs(decompress(counts) if isinstance(counts, str) else counts, height, width)


def decode_runs(runs: Any, height: int, width: int) -> Mask:
    """(H, W) bool of uncompressed run lengths: background first, then alternating, down the columns.

    Raises:
        CocoError: more than 2^28 pixels, a run that is no integer >= 0, or a sum that is not H times W.
    """
    if height < 1 or width < 1 or height * width > _MAX_PIXELS:
        raise CocoError(f"an image must have 1..{_MAX_PIXELS} pixels, has {width}x{height}")
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise CocoError(f"counts must be integers >= 0, got {runs!r:.80}")
    if sum(runs) != height * width:
        raise CocoError(f"counts must add up to {height * width} ({width}x{height}), they add up to {sum(runs)}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def decompress(text: str) -> list[int]:
    """Run lengths of compressed counts.

    Each number is written from its low end in groups of 5 bits, 48 added to each; bit 5 says that another group
    follows, bit 4 of the last is the sign. From the fourth on a number is the difference to the one two before
    (the format of the COCO API's ``maskApi``).

    Raises:
        CocoError: a foreign character, a number that does not end or has more than 60 bits.
    """
    numbers: list[int] = []
    value = bits = 0
    for letter in text:
        code = ord(letter) - _FIRST
        if not 0 <= code <= _LAST - _FIRST:
            raise CocoError(f"compressed counts hold characters from '0' to 'o', got {letter!r}")
        value |= (code & 31) << bits
        bits += 5
        if bits > 60:
            raise CocoError("a compressed count must have at most 60 bits")
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
        value = bits = 0
    if bits:
        raise CocoError("compressed counts end within a number")
    return numbers


def fill_polygons(polygons: Sequence[Any], height: int, width: int) -> Mask:
    """(H, W) bool of the pixels whose centre lies in a polygon (even-odd rule); several polygons are united.

    Args:
        polygons: each x0, y0, x1, y1 …; the pixel in row r and column c covers [c, c + 1) x [r, r + 1).
        height: H.
        width: W.

    Raises:
        CocoError: a polygon of fewer than 3 corners or more than 2^16, or a coordinate beyond 2^20 or not finite.
    """
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        mask |= _filled(_corners(polygon), height, width)
    return mask


def _corners(polygon: Any) -> NDArray[np.float64]:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or len(polygon) > 2 * _MAX_CORNERS:
        raise CocoError(f"a polygon must be x, y of 3..{_MAX_CORNERS} corners, got {polygon!r:.80}")
    if any(type(v) not in (int, float) or not abs(v) <= _MAX_COORDINATE for v in polygon):
        raise CocoError(f"a polygon's coordinates must be numbers within ±{_MAX_COORDINATE}, got {polygon!r:.80}")
    return np.array(polygon, np.float64).reshape(-1, 2)


def _filled(corners: NDArray[np.float64], height: int, width: int) -> Mask:
    """A pixel is inside if an odd number of edges crosses its row at or before its centre."""
    crossings = np.zeros((height, width + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # Rows whose centre r + .5 lies in [low, high): each corner belongs to one of its two edges.
        low, high = (math.ceil(min(max(y, 0.0), height) - 0.5) for y in (min(y0, y1), max(y0, y1)))
        if high <= low:
            continue
        rows = np.arange(low, high)
        x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        crossings[rows, columns] ^= 1
    return np.bitwise_xor.accumulate(crossings[:, :width], axis=1).astype(np.bool_)


# The file -------------------------------------------------------------------------------------------------------------


def _list(value: Any, name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise CocoError(f"{name!r} must be a list of objects")
    return found


def _integer(entry: dict[str, Any], name: str, what: str) -> int:
    found = entry.get(name)
    if type(found) is not int:
        raise CocoError(f"{what}: {name} must be an integer, got {found!r:.80}")
    return found


def _category_ids(value: Any, category: str) -> set[int]:
    entries = _list(value, "categories")
    wanted = {_integer(entry, "id", "a category") for entry in entries if entry.get("name") == category}
    if not wanted:
        names = sorted({str(entry.get("name")) for entry in entries})[:8]
        raise CocoError(f"categories must have {category!r} (clips.category), they have {names}")
    return wanted


def _images(value: Any) -> list[tuple[str, CocoImage]]:
    """Each image with the name of its video."""
    titles = _video_names(value)
    images: list[tuple[str, CocoImage]] = []
    seen: set[object] = set()
    for entry in _list(value, "images"):
        image = _image(entry)
        for key in (image.id, image.file_name):
            if key in seen:
                raise CocoError(f"ids and names of images must be distinct, {key!r} stands twice")
            seen.add(key)
        images.append((_video_of(entry, image, titles), image))
    return images


def _video_names(value: Any) -> dict[int, str] | None:
    """Id -> name; None where the file has no list of videos."""
    if "videos" not in value:
        return None
    entries = _list(value, "videos")
    return {_integer(e, "id", "a video"): str(e.get("name") or e["id"]) for e in entries}


def _image(entry: dict[str, Any]) -> CocoImage:
    number = _integer(entry, "id", "an image")
    what = f"image {number}"
    name = entry.get("file_name")
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not isinstance(name, str) or not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise CocoError(f"{what}: file_name must be a path below the images' folder, got {name!r:.80}")
    frame = _integer(entry, "frame_id", what) if "video_id" in entry else None
    height, width = (_integer(entry, side, what) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise CocoError(f"{what}: height and width must be >= 1, got {height} and {width}")
    return CocoImage(id=number, file_name=PurePosixPath(name).as_posix(), height=height, width=width, frame=frame)


def _video_of(entry: dict[str, Any], image: CocoImage, titles: Mapping[int, str] | None) -> str:
    if "video_id" in entry:
        number = _integer(entry, "video_id", f"image {image.id}")
        if titles is None:
            return str(number)
        if number not in titles:
            raise CocoError(f"image {image.id}: video_id must be in 'videos', got {number}")
        return titles[number]
    folder = PurePosixPath(image.file_name).parent.as_posix()
    if folder == ".":
        rule = "file_name must be video/frame, or video_id and frame_id be there"
        raise CocoError(f"image {image.id}: {rule}; got {image.file_name!r}")
    return folder


def _region(entry: dict[str, Any]) -> tuple[int, Region]:
    number = _integer(entry, "id", "an annotation")
    what = f"annotation {number}"
    _integer(entry, "category_id", what)
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise CocoError(f"{what}: iscrowd must be 0 or 1, got {crowd!r:.80}")
    region = Region(id=number, segmentation=entry.get("segmentation"), crowd=bool(crowd))
    return _integer(entry, "image_id", what), region
