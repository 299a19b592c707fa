"""RGB and YUV of BT.601 (ITU-R BT.601-7, full range), the colours of a phone's camera; the one owner of the matrix.

Y = .299 R + .587 G + .114 B,  U = (B − Y) / 1.772,  V = (R − Y) / 1.402

With R, G, B in [0, 1], Y lies in [0, 1] and U and V in [−.5, .5]: grey has U = V = 0, so both ways are linear, without
an offset, and a stem that was trained on RGB takes YUV by a product with ``YUV_TO_RGB`` alone. A camera's bytes are
Y = 255 Y, U = 255 U + 128, V = 255 V + 128, rounded.

Arrays hold the channels last, (..., 3); tensors second, (B, 3, H, W).
"""

from typing import Any, Final, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_U, _V = 2 * (1 - _BLUE), 2 * (1 - _RED)
_NEUTRAL = 128

Floats = NDArray[np.float32] | NDArray[np.float64]
Matrix = NDArray[np.float64]
_Plane = TypeVar("_Plane", NDArray[Any], Tensor)


def _constant(rows: list[list[float]]) -> Matrix:
    matrix = np.array(rows, np.float64)
    matrix.setflags(write=False)
    return matrix


RGB_TO_YUV: Final = _constant(
    [
        [_RED, _GREEN, _BLUE],
        [-_RED / _U, -_GREEN / _U, (1 - _BLUE) / _U],
        [(1 - _RED) / _V, -_GREEN / _V, -_BLUE / _V],
    ]
)
"""(3, 3) float64: yuv = RGB_TO_YUV · rgb."""

YUV_TO_RGB: Final = _constant([[1, 0, _V], [1, -_BLUE * _U / _GREEN, -_RED * _V / _GREEN], [1, _U, 0]])
"""(3, 3) float64: its inverse, in closed form."""


@overload
def rgb_to_yuv(rgb: Tensor) -> Tensor: ...
@overload
def rgb_to_yuv(rgb: NDArray[Any]) -> Floats: ...
def rgb_to_yuv(rgb: Any) -> Any:
    """YUV of RGB: Y in [0, 1], U and V in [−.5, .5].

    Args:
        rgb: (..., 3) array or (B, 3, H, W) tensor; uint8, or floating in [0, 1] (what lies outside is not clipped).

    Returns:
        The same shape; float32 of uint8, else the dtype of ``rgb``. The bits of a pixel depend on it alone.

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    return _turned(_unit(rgb, "rgb"), RGB_TO_YUV)


@overload
def yuv_to_rgb(yuv: Tensor) -> Tensor: ...
@overload
def yuv_to_rgb(yuv: NDArray[Any]) -> Floats: ...
def yuv_to_rgb(yuv: Any) -> Any:
    """RGB of YUV, the inverse of ``rgb_to_yuv``; not clipped, for YUV has colours that no RGB has.

    Args:
        yuv: (..., 3) array or (B, 3, H, W) tensor, floating; Y in [0, 1], U and V in [−.5, .5].

    Raises:
        ValueError: If the shape or the dtype is another (bytes are read by ``yuv_from_bytes``).
    """
    floating = yuv.is_floating_point() if isinstance(yuv, Tensor) else np.issubdtype(yuv.dtype, np.floating)
    if not floating:
        raise ValueError(f"yuv must be floating, got {yuv.dtype}; read a camera's bytes with yuv_from_bytes")
    return _turned(_unit(yuv, "yuv"), YUV_TO_RGB)


def yuv_to_bytes(yuv: Floats) -> NDArray[np.uint8]:
    """A camera's bytes of YUV: (..., 3) floating to uint8, rounded half to even and clipped.

    Raises:
        ValueError: If the shape is another.
    """
    _check_last(yuv, "yuv")
    levels = np.rint(np.asarray(yuv, np.float64) * 255) + np.array((0, _NEUTRAL, _NEUTRAL))
    return np.asarray(np.clip(levels, 0, 255), np.uint8)


def yuv_from_bytes(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """YUV of a camera's bytes: (..., 3) uint8 to float32; neutral chroma, 128, is exactly 0.

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    _check_last(levels, "levels")
    if levels.dtype != np.uint8:
        raise ValueError(f"levels must be uint8, got {levels.dtype}")
    centred = levels.astype(np.int16) - np.array((0, _NEUTRAL, _NEUTRAL), np.int16)
    return centred.astype(np.float32) / np.float32(255)


def _check_last(values: NDArray[Any], name: str) -> None:
    if values.ndim < 1 or values.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (..., 3), got {values.shape}")


def _unit(values: _Plane, name: str) -> _Plane:
    """Floating values with a scale of 1, of a valid shape."""
    if isinstance(values, Tensor):
        if values.ndim != 4 or values.shape[1] != 3:
            raise ValueError(f"a tensor of {name} must have shape (B, 3, H, W), got {tuple(values.shape)}")
        if values.dtype == torch.uint8:
            return values.float() / 255
        known = values.is_floating_point()
    else:
        _check_last(values, name)
        if values.dtype == np.uint8:
            return values.astype(np.float32) / np.float32(255)
        known = np.issubdtype(values.dtype, np.floating)
    if not known:
        raise ValueError(f"{name} must be uint8, or floating in [0, 1], got {values.dtype}")
    return values


def _turned(values: _Plane, matrix: Matrix) -> _Plane:
    """The matrix times each pixel, written out: a product by BLAS would round by the shape of the whole."""
    if isinstance(values, Tensor):
        return torch.stack(_mixed([values[:, i] for i in range(3)], matrix), dim=1)
    return np.stack(_mixed([values[..., i] for i in range(3)], matrix), axis=-1)


def _mixed(planes: list[_Plane], matrix: Matrix) -> list[_Plane]:
    return [planes[0] * a + planes[1] * b + planes[2] * c for a, b, c in matrix.tolist()]
