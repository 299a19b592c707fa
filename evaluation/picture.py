"""Masks on photographs, and contact sheets of them, to be judged by eye.

Colours are Okabe and Ito's, told apart with every common colour vision, and differ in lightness too.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evaluation.masks import check_mask, check_pair

Colour = tuple[int, int, int]

#: A person found, and one where there is no truth to compare with.
FOUND: Colour = (86, 180, 233)
#: A person in truth, found as background.
MISSED: Colour = (213, 94, 0)
#: Background in truth, found as a person.
EXTRA: Colour = (240, 228, 66)
#: Hatching of pixels that count nowhere.
IGNORED: Colour = (150, 150, 150)
#: What the colours of an overlay with a truth mean.
LEGEND = (
    ("found, rightly", FOUND),
    ("missed", MISSED),
    ("extra", EXTRA),
    ("ignored", IGNORED),
)

_TINT, _ERROR, _HATCH = 0.3, 0.75, 0.8  # how much of a pixel's colour is taken
_PERIOD = 6  # of the hatching, in pixels
_TEXT = 13  # size in pixels
_LINE = 16
_LINES = 3
_GAP = 4
_QUALITY = 85


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        caption: Up to three lines; a line too long loses its middle, and what cannot be printed becomes a dot.
    """

    picture: NDArray[np.uint8]
    caption: str


def overlay(
    image: NDArray[np.uint8],
    found: NDArray[np.float32] | NDArray[np.bool_],
    truth: NDArray[np.bool_] | None = None,
    ignore: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """An image with its mask tinted and outlined, and its mistakes painted where there is a truth.

    Args:
        image: (H, W, 3) uint8 RGB; with a truth it is shown in grey, so that colour means mistakes alone.
        found: (H, W) float32 probability in [0, 1], a person from 0.5 on, or (H, W) bool.
        truth: (H, W) bool, or None.
        ignore: (H, W) bool, hatched and no mistakes shown there; or None.

    Returns:
        (H, W, 3) uint8 RGB; outlines are one pixel wide, so shrink before, with `shrink`.

    Raises:
        ValueError: The shapes differ or a mask is no mask.
    """
    mask: NDArray[np.bool_] = found.astype(np.bool_) if found.dtype == np.bool_ else found >= 0.5
    check_mask(mask, "found")
    for name, other in (("truth", truth), ("ignore", ignore)):
        if other is not None:
            check_mask(other, name)
            check_pair(mask, other)
    if image.dtype != np.uint8 or image.shape != (*mask.shape, 3):
        raise ValueError(f"image must be {(*mask.shape, 3)} uint8 as its mask is, got {image.shape} {image.dtype}")
    out = image.copy() if truth is None else _grey(image)
    if truth is None:
        _paint(out, mask, FOUND, _TINT)
    else:
        _paint(out, mask & truth, FOUND, _TINT)
        _paint(out, truth & ~mask, MISSED, _ERROR)
        _paint(out, mask & ~truth, EXTRA, _ERROR)
    if ignore is not None:
        _restore(out, image if truth is None else _grey(image), ignore)
    _outline(out, mask)
    return out


def shrink(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], side: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """An image and its masks with the longer side at most `side`, never enlarged; a mask's pixel by its majority.

    Args:
        image: (H, W, 3) uint8.
        masks: (H, W) bool each.
        side: In pixels, at least 1.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1.0:
        return image, list(masks)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    shares = [cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA) for m in masks]
    return small, [share >= 0.5 for share in shares]


def sheet(tiles: Sequence[Tile], *, columns: int, side: int, legend: Sequence[tuple[str, Colour]] = ()) -> bytes:
    """A JPEG of pictures with captions, row by row; two dozen at 256 pixels take about half a megabyte.

    Args:
        tiles: At least one; each is shrunk to fit a square of `side` pixels, never enlarged.
        columns: At least 1.
        side: Of a picture, in pixels, at least 16.
        legend: Words and their colours, shown on top.

    Raises:
        ValueError: No tile, a column or side below its limit, or a picture that is none.
    """
    if not tiles or columns < 1 or side < 16:
        raise ValueError(f"a sheet needs >= 1 tile, >= 1 column, side >= 16, got {len(tiles)}, {columns}, {side}")
    columns = min(columns, len(tiles))
    head = _LINE + 2 * _GAP if legend else 0
    cell = (side + _GAP, side + _LINES * _LINE + 2 * _GAP)
    size = (columns * cell[0] + _GAP, head + math.ceil(len(tiles) / columns) * cell[1] + _GAP)
    canvas = Image.new("RGB", size, (24, 24, 24))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT)
    _draw_legend(draw, font, legend)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = _GAP + column * cell[0], head + _GAP + row * cell[1]
        _draw_tile(canvas, draw, font, tile, (left, top), side)
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _draw_tile(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, font: Font, tile: Tile, corner: tuple[int, int], side: int
) -> None:
    """A picture in the middle of its square, and the caption below it."""
    picture = tile.picture
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"a picture must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}: {tile.caption!r}")
    small, _ = shrink(picture, [], side)
    left, top = corner
    canvas.paste(Image.fromarray(small), (left + (side - small.shape[1]) // 2, top + (side - small.shape[0]) // 2))
    for number, line in enumerate(tile.caption.split("\n")[:_LINES]):
        draw.text((left, top + side + 2 + number * _LINE), _fitted(line, font, side), fill=(240, 240, 240), font=font)


def _draw_legend(draw: ImageDraw.ImageDraw, font: Font, legend: Sequence[tuple[str, Colour]]) -> None:
    left = _GAP
    for words, colour in legend:
        draw.rectangle((left, _GAP, left + _LINE - 3, _GAP + _LINE - 3), fill=colour)
        draw.text((left + _LINE + 2, _GAP), words, fill=(240, 240, 240), font=font)
        left += _LINE + 18 + round(font.getlength(words))


def _fitted(line: str, font: Font, width: int) -> str:
    """The line, or as much of its two ends as fits."""
    line = "".join(c if c.isprintable() else "·" for c in line[:512])
    kept = len(line)
    shown = line
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{line[: (kept + 1) // 2]}…{line[len(line) - kept // 2 :]}"
    return shown


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2).astype(np.uint8)


def _paint(out: NDArray[np.uint8], where: NDArray[np.bool_], colour: Colour, share: float) -> None:
    out[where] = np.rint((1.0 - share) * out[where] + share * np.array(colour)).astype(np.uint8)


def _restore(out: NDArray[np.uint8], plain: NDArray[np.uint8], ignore: NDArray[np.bool_]) -> None:
    """The plain picture, hatched, where nothing counts."""
    out[ignore] = plain[ignore]
    rows, columns = np.indices(ignore.shape)
    _paint(out, ignore & ((rows + columns) % _PERIOD < _PERIOD // 3), IGNORED, _HATCH)


def _outline(out: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, (255, 255, 255), 1)
