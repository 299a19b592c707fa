"""The camera of the drawn world: a scene and a time in, a frame and its exact mask out."""

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.brush import Brush
from pipeline.figure import Figure, draw_figure
from pipeline.room import draw_furniture, draw_room, draw_seat
from pipeline.scene import Camera, Light, Scene

_ASPECTS: Final = {
    "landscape_16_9": (9, 16), "landscape_4_3": (12, 16), "portrait": (16, 9), "square": (12, 12),
}  # fmt: skip
_TINTS: Final = {"neutral": (1.0, 1.0, 1.0), "warm": (1.12, 0.98, 0.78), "cool": (0.84, 0.97, 1.13)}


def frame_size(scene: Scene, side: int = 320) -> tuple[int, int]:
    """`(height, width)` of the scene's aspect, the longer side `side` (a square three quarters of it); both even."""
    high, wide = _ASPECTS[scene.camera.aspect]
    return 2 * round(side * high / 32), 2 * round(side * wide / 32)


def render(scene: Scene, time: float, *, height_width: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The frame at `time` seconds: `(H, W, 3) uint8` RGB, and `(H, W) bool`, true where a person is seen.

    The mask is that of the drawing before blur, noise and compression. Equal arguments give equal bits.

    Raises:
        ValueError: if a side of the frame is below 16 pixels.
    """
    height, width = height_width
    if min(height, width) < 16:
        raise ValueError(f"render: height and width must be >= 16, got {height}x{width}")
    shift = _camera_shift(scene.camera, time) * height
    canvas = _shifted(_backdrop(scene, height, width), shift, height, width)
    origin = -shift
    room_brush = Brush(canvas=canvas, axes=np.eye(2) * height, origin=origin)
    for person in reversed(scene.figures):
        draw_figure(_person_brush(canvas, person, scene.light, origin, height, width), person, time)
    draw_furniture(room_brush, scene.room, width / height)
    mask = canvas[..., 3] >= 128
    lit = _lit(canvas, scene.light)
    return _taken(lit, scene, time), mask


def _person_brush(
    canvas: NDArray[np.uint8], person: Figure, light: Light, origin: NDArray[np.float64], height: int, width: int
) -> Brush:
    at = np.array((person.head_x * width, person.head_y * height)) + origin
    lit_from = light.side if light.direction == "side" else 0.2 * light.side
    return Brush(canvas=canvas, axes=np.eye(2) * person.unit * height, origin=at, mark=255, light=lit_from)


def _camera_shift(camera: Camera, time: float) -> NDArray[np.float64]:
    if camera.motion == "static":
        return np.zeros(2)
    if camera.motion == "moving":
        return np.array((0.06 * math.sin(0.9 * time + camera.phase), 0.01 * math.sin(0.5 * time)))
    shake = [math.sin(rate * time + camera.phase * k) for k, rate in enumerate((3.1, 7.3, 4.7, 8.9), start=1)]
    return np.array((0.012 * shake[0] + 0.005 * shake[1], 0.01 * shake[2] + 0.005 * shake[3]))


def _margin(height: int) -> int:
    return math.ceil(0.08 * height)


@lru_cache(maxsize=4)
def _backdrop(scene: Scene, height: int, width: int) -> NDArray[np.uint8]:
    """`(H + 2m, W + 2m, 4) uint8`, read-only: what is behind the people, with a margin m for the camera's motion."""
    margin = _margin(height)
    canvas = np.zeros((height + 2 * margin, width + 2 * margin, 4), np.uint8)
    brush = Brush(canvas=canvas, axes=np.eye(2) * height, origin=np.array((margin, margin), np.float64))
    draw_room(canvas, scene.room, brush, width / height)
    for person in scene.figures:
        draw_seat(brush, scene.room, person.head_x * width / height, person.head_y + 0.9 * person.unit, person.unit)
    canvas.flags.writeable = False
    return canvas


def _shifted(backdrop: NDArray[np.uint8], shift: NDArray[np.float64], height: int, width: int) -> NDArray[np.uint8]:
    margin = _margin(height)
    if not shift.any():
        return np.ascontiguousarray(backdrop[margin : margin + height, margin : margin + width])
    move = np.array([[1.0, 0.0, margin + shift[0]], [0.0, 1.0, margin + shift[1]]])
    moved = cv2.warpAffine(backdrop, move, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(moved, np.uint8)


def _lit(canvas: NDArray[np.uint8], light: Light) -> NDArray[np.uint8]:
    """`(H, W, 3) uint8`: the canvas under the light, with rounded people and their soft shadow on what is behind."""
    height, width = canvas.shape[:2]
    small = (max(2, width // 4), max(2, height // 4))
    person = (
        cv2.resize(np.ascontiguousarray(canvas[..., 3]), small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )
    soft = np.asarray(cv2.GaussianBlur(person, (0, 0), max(1.0, small[1] / 30)), np.float32)
    front, back = _fields(light, soft)
    both = cv2.resize(np.dstack([front, back]), (width, height), interpolation=cv2.INTER_LINEAR)
    *planes, cover = cv2.split(canvas)
    field = both[..., 1] + cover * np.float32(1 / 255) * (both[..., 0] - both[..., 1])
    gains = [light.gain * tint for tint in _TINTS[light.temperature]]
    lit = [cv2.multiply(plane, field, scale=gain, dtype=cv2.CV_8U) for plane, gain in zip(planes, gains, strict=True)]
    return np.asarray(cv2.merge(lit), np.uint8)


def _fields(light: Light, soft: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Brightness of the people and of what is behind them, each `(h, w) float32`, from their softened cover."""
    high, wide = soft.shape
    across = np.linspace(-1, 1, wide, dtype=np.float32)[None] * np.float32(light.side)
    down = np.linspace(-1, 1, high, dtype=np.float32)[:, None]
    slope_x = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3) * np.float32(light.side)
    slope_y = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3)
    room = {
        "frontal": 1.06 - 0.12 * across**2 - 0.12 * down**2,
        "side": 1.0 + 0.42 * across + 0 * down,
        "backlit": 1.22 - 0.1 * down**2 + 0 * across,
        "overhead": 1.0 - 0.32 * down + 0 * across,
    }[light.direction].astype(np.float32)
    people = {
        "frontal": room + 0.04,
        "side": room - 0.55 * slope_x,
        "backlit": room * 0.5 + 0.3 * np.hypot(slope_x, slope_y),
        "overhead": room - 0.28 * slope_y,
    }[light.direction]
    step = 2 if light.side < 0 else -2
    shadow = np.roll(cv2.GaussianBlur(soft, (0, 0), max(1.0, high / 24)), (1, step), axis=(0, 1))
    return np.asarray(people, np.float32), room * (1 - 0.28 * shadow)


def _taken(lit: NDArray[np.uint8], scene: Scene, time: float) -> NDArray[np.uint8]:
    """What the camera makes of the light: blur, noise, compression."""
    camera, height = scene.camera, lit.shape[0]
    taken = cv2.GaussianBlur(lit, (0, 0), max(0.45, camera.blur * height)) if camera.blur else lit
    if camera.streak:
        taken = cv2.blur(taken, (1 + 2 * round(camera.streak * height / 2), 1))
    if camera.noise:
        noise = _noise(scene, time, (height, lit.shape[1])) * np.float32(camera.noise)
        taken = cv2.add(taken, noise, dtype=cv2.CV_8U)
    if camera.quality:
        _, data = cv2.imencode(".jpg", taken, [cv2.IMWRITE_JPEG_QUALITY, camera.quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(taken, np.uint8)


def _noise(scene: Scene, time: float, height_width: tuple[int, int]) -> NDArray[np.float32]:
    """A window of one sheet of noise, elsewhere for every frame: drawing new noise costs more than the picture."""
    height, width = height_width
    ticks = round(time * 1000)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([scene.seed, scene.index, ticks & 0xFFFFFFFF])))
    top, left = (int(n) for n in rng.integers(0, 48, 2))
    return _noise_sheet(height, width)[top : top + height, left : left + width]


@lru_cache(maxsize=8)
def _noise_sheet(height: int, width: int) -> NDArray[np.float32]:
    rng = np.random.Generator(np.random.PCG64(0))
    sheet = rng.standard_normal((height + 48, width + 48, 3), dtype=np.float32)
    sheet.flags.writeable = False
    return sheet
