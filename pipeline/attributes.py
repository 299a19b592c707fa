"""Attributes of a frame: computed from its pixels, or given by the user per source.

Names and classes are those of the evaluation taxonomy. It lacks `frame_motion`, which stands in for `subject_motion`
where frames are chosen: no mask is known yet, and without it nothing would make the choice cover motion. A value that
is not known is null with provenance ``unknown``, never a default.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import InputError
from pipeline.motion import Grid, border_weights, camera_part, speeds

COMPUTED: dict[str, tuple[str, ...]] = {
    "aspect_ratio": ("landscape_16_9", "landscape_4_3", "square", "portrait"),
    "background_complexity": ("plain", "moderate", "cluttered"),
    "camera_motion": ("static", "handheld", "moving"),
    "color_temperature": ("neutral", "warm", "cool"),
    "compression_noise": ("clean", "noisy", "blocky"),
    "frame_motion": ("still", "slow", "moderate", "fast"),
    "lighting_level": ("dim", "normal", "bright"),
    "resolution": ("le_360p", "480_720p", "ge_1080p"),
    "sharpness": ("sharp", "motion_blur", "defocus"),
}
_ASPECTS = {"landscape_16_9": 16 / 9, "landscape_4_3": 4 / 3, "square": 1.0, "portrait": 3 / 4}
_CAMERA_SPEEDS = (0.008, 0.1)  # diagonals per second, mean over the frame
_FRAME_SPEEDS = (0.02, 0.06, 0.2)
_LOG_LINEAR = (2.2 * np.log2(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)
_NORM = 6
_LIGHT_RATIOS = (-0.2, 0.35)
_BLOCKY = 2.5
_NOISY = 2.0
_MAX_ATTRIBUTES = 64
_MAX_FILE_BYTES = 1 << 30


def computed_attributes(
    pixels: NDArray[np.uint8], motion: float | None, grid: Grid | None = None
) -> dict[str, str | None]:
    """The attributes that pixels alone tell.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        motion: mean absolute luma difference to the frame before, 0..1; None for still images.
        grid: how the video moves at the frame, as `pipeline.motion` has it; None for still images and first frames.

    Returns:
        A class (or None) for every name of ``COMPUTED``.
    """
    height, width = pixels.shape[:2]
    gray = _small_gray(pixels)
    texture = float(cv2.Laplacian(gray, cv2.CV_32F, ksize=3).std())
    return {
        "aspect_ratio": min(_ASPECTS, key=lambda name: abs(math.log(width / height / _ASPECTS[name]))),
        "background_complexity": _class(_edge_density(gray), (0.05, 0.12), COMPUTED["background_complexity"]),
        "color_temperature": _color_temperature(pixels),
        "compression_noise": _compression_noise(pixels),
        "lighting_level": _class(float(np.median(gray)), (70, 160), COMPUTED["lighting_level"]),
        "resolution": _class(min(height, width), (420, 900), COMPUTED["resolution"]),
        "sharpness": "sharp" if texture >= 9 else "motion_blur" if (motion or 0.0) >= 0.02 else "defocus",
        **_motion_classes(grid, height, width),
    }


def is_dead(pixels: NDArray[np.uint8]) -> bool:
    """Whether a frame carries no picture: all pixels of nearly one value."""
    return float(_small_gray(pixels).std()) < 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Attributes that the user gave, per source.

    Attributes:
        names: the attribute columns, sorted.
        values: uri of a source -> value of each name (None = unknown).
    """

    names: tuple[str, ...]
    values: Mapping[str, tuple[str | None, ...]]

    def of(self, uri: str) -> tuple[str | None, ...]:
        """The values of a source; all unknown if it was not listed."""
        return self.values.get(uri, (None,) * len(self.names))


def read_given(uri: str, sources: Sequence[str]) -> Given:
    """Reads an attribute table (CSV or Parquet) with a column ``source`` and one column per attribute.

    ``source`` may be the uri of a source or any tail of its path that names one source only.

    Raises:
        InputError: no table, no ``source`` column, a column that stands twice or whose name is no identifier, a source
            listed twice with different values, an ambiguous source, or no row that matches any source.
    """
    table = read_table(uri)
    if "source" not in table.column_names:
        raise InputError(f"{uri} needs a column 'source'; it has {', '.join(table.column_names) or 'none'}")
    twice = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if twice:
        raise InputError(f"{uri} has more than one column {twice[0]!r}; remove or rename one")
    names = tuple(sorted(n for n in table.column_names if n != "source"))
    check_names(uri, names)
    columns = {name: [clean_class(v) for v in table.column(name).to_pylist()] for name in names}
    keys = [key.removeprefix("./") for key in map(str, table.column("source").to_pylist())]
    index = _tails(sources, set(keys))
    values: dict[str, tuple[str | None, ...]] = {}
    for row, key in enumerate(keys):
        found = index.get(key, ())
        if len(found) > 1:
            raise InputError(f"{uri} row {row + 1}: source '{key}' fits several inputs; write more of its path")
        for source in found:
            given = tuple(columns[name][row] for name in names)
            if values.setdefault(source, given) != given:
                raise InputError(f"{uri} row {row + 1}: source '{key}' is listed twice with different attributes")
    if not values and table.num_rows:
        raise InputError(f"no row of {uri} names an input; the first is '{table.column('source')[0]}'")
    return Given(names=names, values=values)


def read_table(uri: str) -> pa.Table:
    """A CSV (all text) or Parquet file that a user wrote.

    Raises:
        InputError: it is neither, too large, or a row has more fields than the header.
    """
    data = storage.read_bytes(uri)
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{uri} has {len(data)} bytes; the limit is {_MAX_FILE_BYTES}")
    try:
        if data[:4] == b"PAR1":
            return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        rows, names = list(reader), list(reader.fieldnames or ())
    except (ValueError, OSError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{uri} is neither CSV (UTF-8) nor Parquet: {error}") from error
    if any(None in row for row in rows):
        raise InputError(f"{uri}: a row has more fields than the header")
    return pa.table([pa.array([row[name] for row in rows], pa.string()) for name in names], names=names)


def check_names(uri: str, names: Sequence[str]) -> None:
    """Refuses too many attributes of a table, and names that are no identifiers (`InputError`)."""
    if len(names) > _MAX_ATTRIBUTES:
        raise InputError(f"{uri} has {len(names)} attributes; at most {_MAX_ATTRIBUTES} are read")
    for name in names:
        if not name.isidentifier() or len(name) > 64:
            raise InputError(f"{uri}: attribute name {name!r} must be letters, digits and underscores, at most 64")


def clean_class(value: object) -> str | None:
    """A class as a table has it, without blanks around it; None where the cell is empty or "unknown"."""
    text = "" if value is None else str(value).strip()
    return None if text in ("", "unknown") else text[:256]


def _tails(sources: Sequence[str], wanted: set[str]) -> dict[str, list[str]]:
    """For each wanted tail of a path, the first two sources it fits: more than one is too many."""
    index: dict[str, list[str]] = {}
    for source in sources:
        parts = PurePosixPath(source).parts
        for tail in {source, *("/".join(parts[i:]).lstrip("/") for i in range(len(parts)))} & wanted:
            if len(index.setdefault(tail, [])) < 2:
                index[tail].append(source)
    return index


def _small_gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = 192 / min(height, width)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(gray, np.uint8)


def _edge_density(gray: NDArray[np.uint8]) -> float:
    return float((cv2.Canny(gray, 60, 140) > 0).mean())


def _motion_classes(grid: Grid | None, height: int, width: int) -> dict[str, str | None]:
    """How fast the camera moves, and how fast the fastest twentieth of the frame moves beside it.

    One moment tells speed and no intent: `handheld` is a slow camera, `moving` a fast one.
    """
    if grid is None:
        return {"camera_motion": None, "frame_motion": None}
    camera = camera_part(grid, border_weights(), height, width)
    beside = float(np.percentile(speeds(grid - camera), 95))
    return {
        "camera_motion": _class(float(speeds(camera).mean()), _CAMERA_SPEEDS, COMPUTED["camera_motion"]),
        "frame_motion": _class(beside, _FRAME_SPEEDS, COMPUTED["frame_motion"]),
    }


def _color_temperature(pixels: NDArray[np.uint8]) -> str | None:
    """From the light's colour, by shades of gray (Finlayson & Trezzi, CIC 2004) over what may be gray or white.

    That is a pixel which is not clipped, as green as white under some warm or cool light, and not far from neutral;
    most things are not. The measure is log2(red / blue) of the light in linear RGB: 0 is the white of sRGB. Some
    thousand pixels of the frame are looked at. None where less than a tenth of them may be gray: then nothing tells
    the light from the things.
    """
    step = max(1, min(pixels.shape[:2]) // 96)
    some = pixels[step // 2 :: step, step // 2 :: step]
    red, green, blue = (_LOG_LINEAR[some[..., channel]] for channel in range(3))
    warmth, greenness = red - blue, 2 * green - red - blue
    seen = (some.max(axis=2) < 250) & (some.min(axis=2) > 20)
    gray = seen & (np.abs(greenness) < 0.3) & (np.abs(warmth) < 1.6)
    if gray.sum() < 0.1 * gray.size:
        return None
    power = [float(np.exp2(_NORM * channel[gray]).mean(dtype=np.float64)) for channel in (red, blue)]
    return _class(math.log2(power[0] / power[1]) / _NORM, _LIGHT_RATIOS, ("cool", "neutral", "warm"))


def _compression_noise(pixels: NDArray[np.uint8]) -> str:
    """`blocky` where steps stand on a grid of 8 pixels, else `noisy` or `clean` by the noise of smooth places.

    Both are measured at full size in the middle of the frame: scaled pictures have lost block edges, and noise.
    """
    gray = cv2.cvtColor(_middle(pixels), cv2.COLOR_RGB2GRAY).astype(np.float32)
    if min(gray.shape) < 32:
        return "clean"
    if min(_blockiness(gray[1::3]), _blockiness(np.ascontiguousarray(gray[:, 1::3].T))) >= _BLOCKY:
        return "blocky"
    return "noisy" if _noise(gray) >= _NOISY else "clean"


def _blockiness(gray: NDArray[np.float32]) -> float:
    """How much steeper steps between columns are at the steepest of 8 phases than at the median one, as a ratio.

    A step counts as far as it exceeds its two neighbours (Wang, Sheikh & Bovik, ICIP 2002, take the mean step): edges
    of things are ramps of several pixels, those of blocks are not. Any phase counts, for pictures are cropped.
    """
    step = np.abs(np.diff(gray, axis=1))
    sole = np.maximum(step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2, 0)
    sole = np.minimum(sole, 16.0).mean(axis=0)
    phases = np.array([sole[phase::8].mean() for phase in range(8)])
    return float((phases.max() + 0.02) / (np.median(phases) + 0.02))


def _noise(gray: NDArray[np.float32]) -> float:
    """Standard deviation of noise in gray levels (Immerkaer, CVIU 1996), where the picture is smoothest."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    found = np.abs(cv2.filter2D(gray, cv2.CV_32F, kernel))
    blocks = cv2.resize(found, (gray.shape[1] // 16, gray.shape[0] // 16), interpolation=cv2.INTER_AREA)
    return float(np.percentile(blocks, 25) * math.sqrt(math.pi / 2) / 6)


def _middle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a picture, at most 384 pixels a side, as far from the left as from the right."""
    rows, columns = (slice(max(0, (side - 384) // 2), side - max(0, (side - 384) // 2)) for side in pixels.shape[:2])
    return pixels[rows, columns]


def _class(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[int(np.searchsorted(np.asarray(edges), value, side="right"))]
