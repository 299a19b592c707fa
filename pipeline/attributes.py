"""Attributes of a frame: computed from its pixels, or given by the user per source.

Names and classes are those of the evaluation taxonomy where it has them. A value that is not known is null with
provenance ``unknown``, never a default.
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

COMPUTED: dict[str, tuple[str, ...]] = {
    "aspect_ratio": ("landscape_16_9", "landscape_4_3", "square", "portrait"),
    "background_complexity": ("plain", "moderate", "cluttered"),
    "frame_motion": ("still", "slow", "moderate", "fast"),
    "lighting_level": ("dim", "normal", "bright"),
    "resolution": ("le_360p", "480_720p", "ge_1080p"),
    "sharpness": ("sharp", "motion_blur", "defocus"),
}
_ASPECTS = {"landscape_16_9": 16 / 9, "landscape_4_3": 4 / 3, "square": 1.0, "portrait": 3 / 4}
_MAX_ATTRIBUTES = 64
_MAX_FILE_BYTES = 1 << 30


def computed_attributes(pixels: NDArray[np.uint8], motion: float | None) -> dict[str, str | None]:
    """The attributes that pixels alone tell.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        motion: mean absolute luma difference to the frame before, 0..1; None for still images.

    Returns:
        A class (or None) for every name of ``COMPUTED``.
    """
    height, width = pixels.shape[:2]
    gray = _small_gray(pixels)
    texture = float(cv2.Laplacian(gray, cv2.CV_32F, ksize=3).std())
    return {
        "aspect_ratio": min(_ASPECTS, key=lambda name: abs(math.log(width / height / _ASPECTS[name]))),
        "background_complexity": _class(_edge_density(gray), (0.05, 0.12), COMPUTED["background_complexity"]),
        "frame_motion": None if motion is None else _class(motion, (0.004, 0.012, 0.035), COMPUTED["frame_motion"]),
        "lighting_level": _class(float(np.median(gray)), (70, 160), COMPUTED["lighting_level"]),
        "resolution": _class(min(height, width), (420, 900), COMPUTED["resolution"]),
        "sharpness": "sharp" if texture >= 9 else "motion_blur" if (motion or 0.0) >= 0.02 else "defocus",
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
    """A class as a table has it, without blanks around it; None where the cell is empty."""
    text = "" if value is None else str(value).strip()
    return text[:256] or None


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


def _class(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[int(np.searchsorted(np.asarray(edges), value, side="right"))]
