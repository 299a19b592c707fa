"""Pictures of a release as the screens need them: small, made anew from decoded pixels, never the bytes of a shard.

A shard is read in row groups with the page checksums on, and only the column that is asked for. What was read stays
encoded in a cache of fixed size, for neighbouring tiles lie in one row group.

H, W: height and width in pixels of what is sent: the longer side is `side`, or that of the sample where that is less.
"""

import contextlib
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from manifests.image import ImageError, ImageLimits, upright_size
from manifests.mask import MaskError, decode_mask
from manifests.release import FileEntry
from manifests.shard import ShardError
from manifests.units import Footers, Unit, damaged_file, damaged_unit, encoded_bytes, read_unit, units_of
from manifests.verify import MAX_PIXELS
from review.catalog import Catalog, Place

Kind = Literal["mask", "teacher", "ignore"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES = (32, 2048)
"""Least and greatest `side`."""
CACHE_BYTES = 64 << 20
"""Encoded images that stay in memory."""
MAX_UNIT_BYTES = 256 << 20
"""Limit of a row group as its footer states it; one of 64 photographs has about 5 MB."""
LARGE_UNIT_BYTES = 32 << 20
"""Row groups above this are read one at a time: a read takes some twice their size, and four threads ask."""

_COLUMNS: Mapping[str, str] = {"image": "image", "mask": "mask", "teacher": "teacher_mask", "ignore": "ignore"}
_LIMITS = ImageLimits(pixels=MAX_PIXELS, min_side=1, max_aspect=float(1 << 16))
_MOST_SCANS = 100
_QUALITY = 85
_FOOTERS = 8


class PixelsError(ValueError):
    """A picture that is not there to be shown, or a size that is not made; the message says which and why."""


def shown_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(W, H) of what is sent of a sample of width x height: within a square of `side`, never enlarged.

    Raises:
        PixelsError: `side` is not within SIDES.
    """
    if not SIDES[0] <= side <= SIDES[1]:
        raise PixelsError(f"side must be within {SIDES[0]} and {SIDES[1]}, got {side}")
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


_Column = tuple[str, int, str]
"""Path of a shard, row group, kind."""
_Key = tuple[str, int, str, int]
_Found = tuple[str, bytes | None]


class Pixels:
    """The pixels of one release; threads share it."""

    def __init__(self, catalog: Catalog, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder = catalog.folder
        self._units: dict[str, list[Unit]] = {}
        self._reading: dict[_Column, threading.Lock] = {}
        self._lock, self._large = threading.Lock(), threading.Lock()
        self._footers = threading.local()
        self._cache = _Cache(cache_bytes)

    @property
    def cached_bytes(self) -> int:
        """Size of the encoded images that are held."""
        return self._cache.bytes

    def thumb(self, place: Place, side: int) -> bytes:
        """The image of a sample as a JPEG of (H, W), decoded and encoded anew: no metadata of the original is left.

        Raises:
            PixelsError: `side` is not within SIDES, or the image is not what the manifest says.
            ShardError: the shard is damaged or was exchanged.
        """
        size = shown_size(place.width, place.height, side)
        data = self._encoded(place, "image")
        if data is None:
            raise self._damaged(place, "image is null")
        try:
            image = _reduced(data, place, size)
        except ImageError as error:
            raise self._damaged(place, f"image: {error}") from error
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=_QUALITY)
        return sink.getvalue()

    def mask(self, place: Place, kind: Kind, side: int) -> bytes:
        """A mask of a sample as a gray PNG of (H, W) with values 0 and 255; what covers half a pixel or more is 255.

        Raises:
            PixelsError: `side` is not within SIDES, the sample has no mask of this kind, or it is not what the
                manifest says.
            ShardError: the shard is damaged or was exchanged.
        """
        size = shown_size(place.width, place.height, side)
        data = self._encoded(place, kind)
        if data is None:
            raise PixelsError(
                f"sample {place.sample_id} has no {_COLUMNS[kind]}; the screens ask only for what is there"
            )
        try:
            mask = decode_mask(data, MAX_PIXELS)
        except MaskError as error:
            raise self._damaged(place, f"{_COLUMNS[kind]}: {error}") from error
        if mask.shape != (place.height, place.width):
            found = f"{mask.shape[1]}x{mask.shape[0]}, the manifest says {place.width}x{place.height}"
            raise self._damaged(place, f"{_COLUMNS[kind]} is {found}")
        return _gray_png(mask, size)

    def _encoded(self, place: Place, kind: str) -> bytes | None:
        """The encoded column of the sample; the first of many that ask for one row group reads it for all."""
        unit, row = self._unit(place)
        key = (place.entry.path, unit.group, kind)
        found = self._cache.get((*key, row))
        if found is None:
            with self._lock:
                lock = self._reading.setdefault(key, threading.Lock())
            with lock:
                found = self._cache.get((*key, row)) or self._read(unit, key, row)
        sample_id, data = found
        if sample_id != place.sample_id:
            raise damaged_unit(unit, f"row {row} must be sample {place.sample_id}, is another: the shard was exchanged")
        return data

    def _read(self, unit: Unit, key: _Column, row: int) -> tuple[str, bytes | None]:
        if unit.bytes > MAX_UNIT_BYTES:
            raise damaged_unit(unit, f"has {unit.bytes} bytes, the limit is {MAX_UNIT_BYTES}")
        with self._large if unit.bytes > LARGE_UNIT_BYTES else contextlib.nullcontext():
            return self._taken(unit, key, row)

    def _taken(self, unit: Unit, key: _Column, row: int) -> tuple[str, bytes | None]:
        name = _COLUMNS[key[2]]
        table = read_unit(unit, ["sample_id", f"{name}.bytes"], footers=self._own_footers())
        ids = table.column("sample_id").to_pylist()
        rows = np.arange(len(table))
        # shards of an older minor version lack columns
        values = encoded_bytes(table, name, rows) if name in table.column_names else [None] * len(table)
        for number, found in enumerate(zip(ids, values, strict=True)):
            if number != row:
                self._cache.put((*key, number), found)
        self._cache.put((*key, row), (ids[row], values[row]))  # last, so that it stays longest
        return ids[row], values[row]

    def _unit(self, place: Place) -> tuple[Unit, int]:
        """The row group that the sample lies in, and its row there."""
        row = place.row
        for unit in self._units_of(place.entry):
            if row < unit.rows:
                return unit, row
            row -= unit.rows
        raise damaged_file(
            self._folder / place.entry.path, f"has no row {place.row}, sample {place.sample_id} is there"
        )

    def _units_of(self, entry: FileEntry) -> list[Unit]:
        with self._lock:
            known = self._units.get(entry.path)
        if known is None:
            known = units_of(self._folder, entry, verify=False, footers=self._own_footers())
            with self._lock:
                self._units[entry.path] = known
        return known

    def _own_footers(self) -> Footers:
        if not hasattr(self._footers, "kept"):
            self._footers.kept = Footers(_FOOTERS)  # of each thread its own: they are not made to be shared
        kept: Footers = self._footers.kept
        return kept

    def _damaged(self, place: Place, what: str) -> ShardError:
        return damaged_unit(self._unit(place)[0], f"sample {place.sample_id}: {what}")


class _Cache:
    """The encoded images used last, at most so many bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0
        self._kept: OrderedDict[_Key, _Found] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> _Found | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: _Key, found: _Found) -> None:
        with self._lock:
            if key in self._kept:
                self.bytes -= _weight(self._kept.pop(key))
            self._kept[key] = found
            self.bytes += _weight(found)
            while self.bytes > self._limit and self._kept:
                self.bytes -= _weight(self._kept.popitem(last=False)[1])


def _weight(found: _Found) -> int:
    return 256 + len(found[1] or b"")  # of the key, the id and the entry: measured about 400 less what is shared


def _reduced(data: bytes, place: Place, size: tuple[int, int]) -> Image.Image:
    """The image at `size`, RGB. The header is held against the manifest before anything is decoded.

    The EXIF orientation is not applied: an image of a shard is upright, as its mask, whatever its metadata say.
    """
    upright_size(io.BytesIO(data), _LIMITS)
    scans = data.count(b"\xff\xda")
    if scans > _MOST_SCANS:
        raise ImageError("TooLarge", f"a JPEG must have at most {_MOST_SCANS} scans, has {scans}")
    try:
        image: Image.Image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        if image.size != (place.width, place.height):
            found = f"{image.size[0]}x{image.size[1]}, the manifest says {place.width}x{place.height}"
            raise ImageError("Corrupt", f"the JPEG is {found}")
        image.draft("RGB", size)  # libjpeg decodes at 1/2, 1/4 or 1/8, the least that is not below `size`
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        return Image.fromarray(np.asarray(small))  # pixels alone: the first would take its comment along
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("Corrupt", f"the picture cannot be read: {error}") from error


def _gray_png(mask: NDArray[np.bool_], size: tuple[int, int]) -> bytes:
    gray = mask.astype(np.uint8) * np.uint8(255)
    if gray.shape[::-1] != size:
        gray = np.where(cv2.resize(gray, size, interpolation=cv2.INTER_AREA) >= 128, 255, 0).astype(np.uint8)
    good, data = cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert good
    return bytes(data)
