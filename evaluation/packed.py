"""Masks as packed bits: erosion by squares, dilation by disks and contours, eight pixels a byte.

H, W: height and width in pixels; B = ceil(W / 8) bytes a row; d, r: reach in pixels.
A plane is the (H, B) uint8 form of an (H, W) bool mask: pixel x of a row is bit x % 8, lowest first, of byte x // 8,
and the bits beyond W are 0. Neighbours along a row are shifts of the whole plane, read as one stream of 64-bit words;
neighbours along a column are shifts by whole rows. Between two rows of the stream lies a gap that is wider than the
reach, so a shift never brings in pixels of another row.

    row 0 ........ gap | row 1 ........ gap | row 2 ........ gap

A window grows by AND with a shifted copy of itself: windows 1, 2, 4, ... take log2(2d + 1) steps (van Droogenbroeck and
Buckley, "Morphological Erosions and Openings: Fast Algorithms Based on Anchors", 2005, call it logarithmic
decomposition). A step along a row costs four passes where it is a part of a byte, and one where it is whole bytes.

The functions check nothing: `evaluation.masks` and `evaluation.boundary` do. None of them changes its arguments or
keeps anything between calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]
_Words = NDArray[np.uint64]

_WORD = np.dtype("<u8")  # so that pixels of rising x are bits of rising value on every machine
_FEW = {1: ((1,), (1,)), 2: ((1, 1), (2,)), 3: ((1, 2), (3,))}


def pack(mask: NDArray[np.bool_]) -> Plane:
    """The plane of a mask: (H, W) bool, any memory order, to (H, B) uint8."""
    return np.packbits(mask, axis=1, bitorder="little")


def unpack(plane: Plane, width: int) -> NDArray[np.bool_]:
    """The mask of a plane: (H, B) uint8 to (H, `width`) bool."""
    return np.unpackbits(plane, axis=1, count=width, bitorder="little").view(np.bool_)


def count(plane: Plane) -> int:
    """How many pixels are set."""
    return int(cv2.norm(plane, cv2.NORM_HAMMING))


def count_common(a: Plane, b: Plane, in_a: int, in_b: int) -> int:
    """How many pixels are set in both, where `a` has `in_a` and `b` has `in_b`: one pass, no array."""
    return (in_a + in_b - int(cv2.norm(a, b, cv2.NORM_HAMMING))) // 2


def invert(plane: Plane, width: int) -> Plane:
    """The plane of the complement."""
    return _cut(~plane, width)


@functools.lru_cache(maxsize=8)
def frame(height: int, width: int, d: int) -> Plane:
    """The pixels at most `d` from the outside of the image: what a border that is background erodes. Read-only."""
    mask = np.ones((height, width), np.bool_)
    mask[d : max(height - d, d), d : max(width - d, d)] = False
    plane = pack(mask)
    plane.flags.writeable = False
    return plane


def erode(plane: Plane, width: int, d: int) -> Plane:
    """The pixels whose square of 2d + 1 pixels is set wherever it lies in the image (outside is foreground).

    Where outside is background, `erode(plane, width, d) & ~frame(height, width, d)`.
    """
    eroded = np.zeros_like(plane)
    box = _box(plane)
    if box is None:
        return eroded
    # A ring of background around what is set tells inside the box from the outside of the image, which is foreground.
    reach = min(d, max(plane.shape[0], width))  # a longer reach leaves the image on both sides: nothing more to find
    part = plane[box]
    if box[1].stop == plane.shape[1] and width % 8:
        part = part.copy()
        part[:, -1] |= 0xFF & (0xFF << width % 8)
    eroded[box] = _erode_row(_erode_column(part, reach), reach)[:, : part.shape[1]]
    return _cut(eroded, width)


def contour(plane: Plane, width: int) -> Plane:
    """The pixels that differ from the one to the right, below, or below to the right; the image border is no contour.

    The rule of the Berkeley benchmark (seg2bmap), which DAVIS uses: one pixel wide, half a pixel to the upper left.
    """
    words = _stream(plane, 0, 0)
    across = (words[:-1] ^ _beside(words, 1)).view(np.uint8)[: plane.size].reshape(plane.shape)
    across = _cut(across, width - 1)
    edge = across.copy()
    edge[:-1] |= (plane[:-1] ^ plane[1:]) | across[1:]
    return edge


def dilate(plane: Plane, width: int, r: int) -> Plane:
    """The pixels at most `r` (Euclidean) from a set one: dilation by the disk x² + y² <= r²."""
    spread = np.zeros_like(plane)
    reach = min(r, math.isqrt(plane.shape[0] ** 2 + width**2) + 1)
    box = _box(plane, reach, -(-reach // 8))
    if box is not None:
        spread[box] = _spread(plane[box], reach)
    return _cut(spread, width)


def _spread(part: Plane, r: int) -> Plane:
    """Dilates by a disk: the rows spread by each half width of the disk, laid over one another."""
    height, gap = part.shape[0], -(-r // 8)
    rows = _padded(part, 0, gap, 0)
    stride, start = rows.shape[1], _lead(gap)
    spread = np.zeros((height + 2 * r) * stride, np.uint8)
    for run, lines in _runs(_stream(rows, gap, 0), r):
        run_bytes = run.view(np.uint8)[start : start + rows.size]
        for line in lines:
            under = spread[(r + line) * stride : (r + line) * stride + rows.size]
            np.bitwise_or(under, run_bytes, out=under)
    return spread.reshape(-1, stride)[r : r + height, : part.shape[1]]


def _cut(plane: Plane, width: int) -> Plane:
    """Clears, in place, what lies beyond `width`; `plane` must be our own."""
    first = width // 8
    if first < plane.shape[1]:
        plane[:, first] &= (1 << width % 8) - 1
        plane[:, first + 1 :] = 0
    return plane


def _box(plane: Plane, rows: int = 1, columns: int = 1) -> tuple[slice, slice] | None:
    """The rows and bytes that hold all set pixels, and up to `rows` and `columns` more; None where none is set."""
    x, y, across, down = cv2.boundingRect(plane)
    if not across:
        return None
    height, stride = plane.shape
    return (
        slice(max(0, y - rows), min(height, y + down + rows)),
        slice(max(0, x - columns), min(stride, x + across + columns)),
    )


def _padded(part: Plane, rows: int, gap: int, fill: int) -> Plane:
    """The part between `rows` rows of `fill`, each row with `gap` bytes of `fill` at its end."""
    return np.asarray(cv2.copyMakeBorder(part, rows, rows, 0, gap, cv2.BORDER_CONSTANT, value=[fill]), np.uint8)


def _erode_column(part: Plane, d: int) -> Plane:
    """Erodes along columns; the rows that come back end in a gap of ones, at least d pixels wide."""
    gap = -(-d // 8)
    stride, now = part.shape[1] + gap, _padded(part, d, gap, 255).reshape(-1)
    spare = np.empty_like(now)
    size, window = now.size, 1
    while window < 2 * d + 1:
        step = min(window, 2 * d + 1 - window)
        size -= step * stride
        np.bitwise_and(now[:size], now[step * stride : step * stride + size], out=spare[:size])
        now, spare, window = spare, now, window + step
    return now[:size].reshape(-1, stride)


def _erode_row(rows: Plane, d: int) -> Plane:
    """Erodes rows that end in a gap of ones along the rows."""
    gap = -(-d // 8)
    words = _stream(rows, gap, 255)
    left, right = _bit_steps(d)
    for step in left:
        words[1:] &= _beside(words, -step)
    for step in right:
        words[:-1] &= _beside(words, step)
    now = words.view(np.uint8)
    window = (1 + sum(left) + sum(right)) // 8
    for to_left, to_right in _byte_steps((d - sum(left)) // 8, (d - sum(right)) // 8, window):
        wider = now.copy()
        wider[to_left:] &= now[: now.size - to_left]
        wider[: now.size - to_right] &= now[to_right:]
        now = wider
    start = _lead(gap)
    return now[start : start + rows.size].reshape(rows.shape)


def _bit_steps(d: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Steps to the left and to the right, in pixels, that leave whole bytes to go on both sides.

    From 4 pixels on the window becomes 8 to 15 pixels, so it can go on by bytes: 1, 2 and 4 to the left where they are
    bits of d mod 8 and to the right otherwise, and the rest to the right.
    """
    if d in _FEW:
        return _FEW[d]
    part = d % 8
    left = tuple(step for step in (1, 2, 4) if part & step)
    right = tuple(step for step in (1, 2, 4) if not part & step)
    return left, (*right, 2 * part + (0 if part >= 4 else 8) - 7)


def _byte_steps(left: int, right: int, window: int) -> Iterator[tuple[int, int]]:
    """Steps in bytes of a window of `window` whole bytes until it reaches `left` and `right` further."""
    while left or right:
        to_left, to_right = min(left, window), min(right, window)
        yield to_left, to_right
        left, right, window = left - to_left, right - to_right, window + to_left + to_right


def _runs(words: _Words, r: int) -> Iterator[tuple[_Words, list[int]]]:
    """For each half width w of a disk: the pixels at most w from a set one along the row, and the disk's rows of it."""
    lines: dict[int, list[int]] = {}
    for line in range(-r, r + 1):
        lines.setdefault(math.isqrt(r * r - line * line), []).append(line)
    half = 0
    for wanted in sorted(lines):
        while half < wanted:
            step = min(wanted - half, 2 * half + 1, 63)
            wider = words.copy()
            wider[1:] |= _beside(words, -step)
            wider[:-1] |= _beside(words, step)
            words, half = wider, half + step
        yield words, lines[wanted]


def _lead(gap: int) -> int:
    """Bytes before a stream: whole words, at least `gap`."""
    return -(-gap // 8) * 8


def _stream(rows: Plane, gap: int, fill: int) -> _Words:
    """The bytes of rows as words, with at least `gap` bytes of `fill` before and `gap` bytes and a word after."""
    start = _lead(gap)
    stream = np.empty(start + _lead(rows.size + gap) + 8, np.uint8)
    stream[:start] = fill
    stream[start : start + rows.size] = rows.reshape(-1)
    stream[start + rows.size :] = fill
    return stream.view(_WORD)


def _beside(words: _Words, step: int) -> _Words:
    """The stream moved by 1 to 63 pixels, one word shorter.

    To the right (step > 0) the value at pixel x is that of x + step, and the last word is missing; to the left
    (step < 0) it is that of x - |step|, and the first word is missing.
    """
    near, far = np.uint64(abs(step)), np.uint64(64 - abs(step))
    if step > 0:
        return words[:-1] >> near | words[1:] << far
    return words[1:] << near | words[:-1] >> far
