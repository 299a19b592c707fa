"""Encoded images and masks to pixels for training: cheap, bounded, upright, and of the size that was promised.

Letters: h and w an upright image's sides.
"""

import io
import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from manifests.image import ImageLimits, decode_image, exif_orientation, image_format, upright, upright_size
from manifests.mask import decode_mask
from students.data import Pixels, Size

LIMITS: Final = ImageLimits(min_side=1, max_aspect=math.inf)
"""What is decoded: any shape, within the usual pixels and bytes; which shapes are of use is for who made the set."""

_REDUCED: Final = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_MOST_SCANS = 16  # of a progressive JPEG that OpenCV may decode; manifests.image judges those with more


def decode_reduced(data: bytes, size: Size, scale: float) -> tuple[Pixels, Size]:
    """An image for a use at ``scale`` of its size; a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough.

    Args:
        data: JPEG, PNG, WebP or GIF; EXIF orientation is applied, as everywhere in the house.
        size: (h, w) that the upright image must have.
        scale: Of its use, > 0.

    Returns:
        (h', w', 3) uint8 RGB, and the (rows, columns) of the upright image that it covers: of a JPEG at 1/k, k · h' and
        k · w', for its last pixel may reach over the border.

    Raises:
        ValueError: If it is broken, breaks ``LIMITS`` or has another size; header and size are seen before decoding.
    """
    _check_size("image", upright_size(io.BytesIO(data), LIMITS), size)
    orientation = _plain_jpeg(data)
    if orientation is None:
        return decode_image(data, LIMITS).pixels, size
    reduction = next(k for k in _REDUCED if k * scale <= 1 or k == 1)
    sides = size[::-1] if orientation >= 5 else size
    if orientation != 1 and (sides[0] % reduction or sides[1] % reduction):
        reduction = 1  # a turn would bring the pixel that reaches over the border to the front
    stored = _decode(data, _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = upright(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), orientation)
    return pixels, (pixels.shape[0] * reduction, pixels.shape[1] * reduction)


def decode_plane(data: bytes, size: Size) -> NDArray[np.bool_]:
    """A mask, (h, w) bool, of a gray PNG of 1 or 8 bits that holds 0 and 1, or 0 and 255.

    Raises:
        ValueError: If it is broken, no such PNG, too large, or not of this size.
    """
    mask = decode_mask(data, LIMITS.pixels)
    _check_size("mask", mask.shape, size)
    return mask


def _check_size(part: str, found: tuple[int, ...], size: Size) -> None:
    if found != size:
        raise ValueError(f"its {part} must be {size[0]}x{size[1]} (height x width), is {'x'.join(map(str, found))}")


def _decode(data: bytes, flags: int) -> Pixels:
    try:
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"its JPEG cannot be decoded: {error}") from error
    if stored is None:
        raise ValueError("its JPEG is broken, OpenCV decodes nothing of it")
    return stored.astype(np.uint8, copy=False)


def _plain_jpeg(data: bytes) -> int | None:
    """The EXIF orientation of a whole gray or YCbCr JPEG, which OpenCV decodes as PIL does; None of all else."""
    if image_format(data[:32]) != "JPEG" or not data.endswith(b"\xff\xd9") or data.count(b"\xff\xda") > _MOST_SCANS:
        return None
    at, exif, components = 2, b"", 0
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1]) != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
            exif = exif or data[at + 4 : at + 2 + length]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame (ISO 10918-1, table B.1)
            components = int.from_bytes(data[at + 9 : at + 10], "big")
        at += 2 + length
    return exif_orientation(exif) if components in (1, 3) else None
