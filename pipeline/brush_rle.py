"""The run lengths of a painted mask as Label Studio keeps them: a stream of bits over the four channels of a picture.

The format is that of ``@thi.ng/rle-pack``, most significant bit first::

    32 bits  number of values, 4 H W        5 bits  bits per value - 1        4 x 4 bits  sizes of lengths - 1
    then until all values are there:
     1 bit   1: one value, repeated; 0: values one by one
     2 bits  which of the four sizes the length has
     n bits  length - 1
     8 bits  the value, or as many values as the length says

A value is a channel of a pixel, R, G, B and A, row after row; painted is where A is not 0, as Label Studio itself reads
it. The header is held against the size of the image before any memory is taken. H, W: rows and columns of the image.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coco import CocoError, Mask

_CHANNELS = 4
_BITS = 8
_SIZES = (3, 4, 8, 16)
_MAX_VALUES = (1 << 32) - 1


def decode_brush(rle: Any, height: int, width: int) -> Mask:
    """(H, W) bool of the bytes of a Label Studio brush region.

    Args:
        rle: list of integers 0..255.
        height: H, as the release knows it.
        width: W.

    Raises:
        CocoError: no list of bytes, another number of pixels, other values than bytes, an end too early, values beyond
            the last pixel, or bytes behind it.
    """
    if not isinstance(rle, list) or not all(type(value) is int and 0 <= value <= 255 for value in rle):
        raise CocoError(f"rle must be a list of bytes (0 to 255), got {rle!r:.80}")
    bits = _Bits(bytes(rle))
    total, wide = bits.read(32), bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    if total != _CHANNELS * height * width:
        raise CocoError(f"rle must have {_CHANNELS * height * width} values ({width}x{height} RGBA), has {total}")
    if wide != _BITS:
        raise CocoError(f"rle must have values of {_BITS} bits, has {wide}")
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        same = bits.read(1)
        end = at + bits.read(sizes[bits.read(2)]) + 1
        if end > total:
            raise CocoError(f"rle goes on beyond its {total} values")
        values[at:end] = bits.read(_BITS) if same else bits.bytes(end - at)
        at = end
    if bits.left >= 2 * _BITS:
        raise CocoError(f"rle has {bits.left // _BITS} bytes behind its last value")
    return np.ascontiguousarray(values.reshape(height, width, _CHANNELS)[..., -1] > 0)


def encode_brush(mask: Mask) -> list[int]:
    """The bytes of a brush region that covers a mask, (H, W) bool; all four channels are 255 there.

    Raises:
        CocoError: more pixels than the format can count.
    """
    total = _CHANNELS * mask.size
    if not 0 < total <= _MAX_VALUES:
        raise CocoError(f"an image must have 1..{_MAX_VALUES // _CHANNELS} pixels, has {mask.size}")
    parts = [f"{total:032b}", f"{_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        value = f"{255 * int(flat[start]):08b}"
        length = _CHANNELS * (end - start)
        while length:
            part = min(length, 1 << _SIZES[-1])
            which = next(i for i, size in enumerate(_SIZES) if part <= 1 << size)
            parts.append(f"1{which:02b}{part - 1:0{_SIZES[which]}b}{value}")
            length -= part
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class _Bits:
    """Numbers out of a stream of bits, most significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return 8 * len(self._data) - self._at

    def read(self, count: int) -> int:
        """A number of up to 32 bits."""
        end = self._take(count)
        part = int.from_bytes(self._data[self._at >> 3 : (end + 7) >> 3], "big")
        self._at = end
        return part >> (-end % 8) & ((1 << count) - 1)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """(count,) uint8."""
        end = self._take(8 * count)
        part = np.frombuffer(self._data, np.uint8, ((end + 7) >> 3) - (self._at >> 3), self._at >> 3)
        skip = self._at & 7
        self._at = end
        return np.packbits(np.unpackbits(part)[skip : skip + 8 * count])

    def _take(self, count: int) -> int:
        end = self._at + count
        if end > 8 * len(self._data):
            raise CocoError(f"rle ends after {len(self._data)} bytes, within a value")
        return end
