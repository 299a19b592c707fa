"""The drawn rooms: what is behind a person, and the furniture in front of one.

Room space has its origin in the frame's upper left corner, y down, and the frame's height as its unit, so that x runs
from 0 to the aspect ratio. Many things are on purpose as skin, hair and clothes are in colour and shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.brush import RGB, Brush, box, ellipse, shade, smooth
from pipeline.figure import Figure, draw_figure

_WOODS: Final[tuple[RGB, ...]] = ((176, 128, 88), (122, 82, 54), (206, 170, 130), (84, 58, 42))
STYLES_OF: Final[dict[str, tuple[str, ...]]] = {
    "plain": ("wall", "curtain"),
    "moderate": ("panel", "window", "outdoor", "brick", "blurred"),
    "cluttered": ("shelf", "office", "window", "panel"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """All that is drawn of one place.

    Attributes:
        style: a name of `STYLES_OF`.
        complexity: `plain`, `moderate` or `cluttered`.
        wall: colour of the wall.
        accent: colour of what stands out.
        props: number of things put in front of the wall.
        poster: the person on a poster on the wall, no person of the mask, or None.
        seat: `none`, `chair` or `sofa`, behind the people.
        furniture: `none`, `desk_table`, `sofa_bed` or `other`, in front of the people.
        furniture_top: where that furniture begins, as a share of the frame's height.
        grain: seed of its irregularities.
    """

    style: str
    complexity: str
    wall: RGB
    accent: RGB
    props: int
    poster: Figure | None
    seat: str
    furniture: str
    furniture_top: float
    grain: int


def draw_room(canvas: NDArray[np.uint8], room: Room, frame: Brush, width: float) -> None:
    """Paint the whole background on `canvas` `(H, W, 4)`.

    Args:
        canvas: painted in place; larger than the frame by a margin for the camera's motion.
        room: what to draw.
        frame: a brush in room space on `canvas`.
        width: the frame's width in room space (its aspect ratio).
    """
    rng = np.random.Generator(np.random.PCG64(room.grain))
    _draw_wall(canvas, room, rng)
    _STYLES[room.style](frame, room, width, rng)
    for _ in range(room.props):
        _PROPS[int(rng.integers(len(_PROPS)))](frame, room, width, rng)
    if room.poster is not None:
        _draw_poster(frame, room, room.poster, width, rng)
    if room.style == "blurred":
        cv2.GaussianBlur(canvas, (0, 0), canvas.shape[0] / 30, dst=canvas)


def draw_seat(frame: Brush, room: Room, x: float, y: float, unit: float) -> None:
    """Paint the seat behind a person whose head is at `(x, y)` and `unit` high, all in room space."""
    if room.seat == "chair":
        back = box(x - 0.95 * unit, y - 0.1 * unit, x + 0.95 * unit, y + 3.9 * unit)
        frame.solid(smooth(back), shade(room.accent, 0.45))
        frame.fill(box(x - 0.1 * unit, y + 3.4 * unit, x + 0.1 * unit, y + 5.6 * unit), (40, 40, 44))
    elif room.seat == "sofa":
        for side in (-1, 1):
            cushion = box(x + side * 2.6 * unit, y + 0.9 * unit, x, y + 4.6 * unit)
            frame.solid(smooth(cushion), shade(room.accent, 0.8))
        frame.solid(box(x - 2.8 * unit, y + 3.4 * unit, x + 2.8 * unit, y + 4.9 * unit), shade(room.accent, 0.9))


def draw_furniture(frame: Brush, room: Room, width: float) -> None:
    """Paint what stands in front of the people; it takes pixels from the mask."""
    if room.furniture == "none":
        return
    rng = np.random.Generator(np.random.PCG64(room.grain + 1))
    top = room.furniture_top
    _FURNITURE[room.furniture](frame.as_thing(), room, width, top, rng)


def _pick(rng: np.random.Generator, paints: tuple[RGB, ...]) -> RGB:
    return paints[int(rng.integers(len(paints)))]


def _any_paint(rng: np.random.Generator) -> RGB:
    red, green, blue = (int(c) for c in rng.integers(30, 235, 3))
    return red, green, blue


def _clothlike(rng: np.random.Generator) -> RGB:
    return _pick(rng, ((46, 62, 104), (150, 44, 50), (70, 96, 70), (200, 196, 190), (212, 164, 132), (142, 96, 68)))


def _draw_wall(canvas: NDArray[np.uint8], room: Room, rng: np.random.Generator) -> None:
    """A soft gradient with stains, enlarged from a small grid."""
    fall = np.linspace(1.06, 0.86, 6)[:, None] + np.linspace(-0.06, 0.06, 8)[None] * rng.uniform(-1, 1)
    spots = fall + rng.normal(0.0, 0.025, (6, 8))
    small = np.clip(spots[..., None] * np.array(room.wall), 0, 255).astype(np.float32)
    wall = cv2.resize(small, (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_CUBIC)
    canvas[..., :3] = np.clip(wall, 0, 255).astype(np.uint8)
    canvas[..., 3] = 0


def _style_wall(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    if rng.random() < 0.6:
        line = rng.uniform(0.75, 0.9)
        frame.fill(box(-0.2, line, width + 0.2, 1.2), shade(room.accent, 0.8))
        frame.fill(box(-0.2, line - 0.03, width + 0.2, line), shade(room.wall, 1.15))


def _style_curtain(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    step = rng.uniform(0.09, 0.2)
    for x in np.arange(-0.2, width + 0.2, step):
        frame.fill(box(x, -0.2, x + step * 0.55, 1.2), shade(room.wall, rng.uniform(0.78, 0.95)))


def _style_blurred(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    _style_shelf(frame, room, width, rng)


def _style_panel(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    wood, step = _pick(rng, _WOODS), rng.uniform(0.1, 0.25)
    for x in np.arange(-0.2, width + 0.2, step):
        frame.fill(box(x, -0.2, x + step - 0.008, 1.2), shade(wood, rng.uniform(0.85, 1.15)))
        grain = np.array([(x + step * rng.random(), -0.2), (x + step * rng.random(), 1.2)])
        frame.stroke(grain, shade(wood, 0.8), 0.004)
    if room.complexity == "cluttered":
        _style_shelf(frame.moved(width * 0.55, 0.05, 0.0, 0.6), room, width * 0.8, rng)


def _style_brick(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    brick = (168, 98, 76) if rng.random() < 0.6 else shade(room.wall, 0.9)
    for row, y in enumerate(np.arange(-0.2, 1.2, 0.09)):
        for x in np.arange(-0.3 + 0.1 * (row % 2), width + 0.2, 0.2):
            frame.fill(box(x, y, x + 0.188, y + 0.078), shade(brick, rng.uniform(0.85, 1.12)))


def _style_window(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    left, wide = width * rng.uniform(0.05, 0.5), width * rng.uniform(0.35, 0.6)
    frame.fill(box(left - 0.03, 0.02, left + wide + 0.03, 0.73), (236, 234, 228))
    for step in range(6):
        frame.fill(
            box(left, 0.05 + 0.11 * step, left + wide, 0.16 + 0.11 * step), (170 + 9 * step, 205 + 6 * step, 240)
        )
    for x in np.linspace(left + 0.05, left + wide - 0.05, 6):
        frame.fill(ellipse(x, 0.68, 0.09, rng.uniform(0.04, 0.14)), (86, int(rng.integers(110, 150)), 74))
    frame.fill(box(left - 0.05, 0.7, left + wide + 0.05, 1.2), room.wall)
    frame.fill(box(left + wide / 2 - 0.012, 0.05, left + wide / 2 + 0.012, 0.7), (228, 226, 220))
    for x in (left - 0.06, left + wide - 0.06):
        frame.solid(box(x, -0.1, x + 0.13, 0.95), room.accent)


def _style_outdoor(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.45, 0.7)
    for step in range(8):
        top = -0.2 + (horizon + 0.2) * step / 8
        frame.fill(box(-0.2, top, width + 0.2, horizon), (126 + 12 * step, 172 + 9 * step, 226 + 2 * step))
    for x in rng.uniform(0, width, 4):
        high = rng.uniform(0.15, 0.5)
        frame.fill(box(x, horizon - high, x + rng.uniform(0.15, 0.35), horizon), shade(room.wall, rng.uniform(0.6, 1)))
    ground = (104, 132, 74) if rng.random() < 0.6 else (186, 158, 122)
    frame.fill(box(-0.2, horizon, width + 0.2, 1.2), ground)
    for x in rng.uniform(-0.1, width + 0.1, 5):
        size = rng.uniform(0.1, 0.24)
        frame.fill(box(x - 0.02, horizon - 0.2, x + 0.02, horizon + 0.08), (98, 72, 50))
        for _ in range(5):
            dx, dy = rng.normal(0, size / 2, 2)
            frame.fill(ellipse(x + dx, horizon - 0.25 + dy, size / 1.6, size / 2), (60, int(rng.integers(88, 140)), 52))


def _style_shelf(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    wood = _pick(rng, _WOODS)
    frame.fill(box(-0.2, -0.2, width + 0.2, 1.2), shade(wood, 0.5))
    for y in np.linspace(0.12, 1.1, 5):
        x = -0.15
        while x < width + 0.15:
            thick, high = rng.uniform(0.02, 0.075), rng.uniform(0.1, 0.19)
            if rng.random() < 0.8:
                paint = _clothlike(rng) if rng.random() < 0.4 else _any_paint(rng)
                frame.fill(box(x, y - high, x + thick - 0.004, y), paint)
                frame.fill(box(x, y - high * 0.8, x + thick - 0.004, y - high * 0.7), shade(paint, 1.3))
            x += thick
        frame.fill(box(-0.2, y, width + 0.2, y + 0.022), wood)
    frame.fill(box(width * 0.47, -0.2, width * 0.47 + 0.03, 1.2), wood)


def _style_office(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    frame.fill(box(-0.2, 0.62, width + 0.2, 1.2), shade(room.wall, 0.7))
    for x in np.arange(rng.uniform(-0.2, 0.1), width, 0.42):
        top = rng.uniform(0.25, 0.5)
        frame.fill(box(x, top, x + 0.36, top + 0.24), (26, 28, 34))
        frame.fill(box(x + 0.015, top + 0.015, x + 0.345, top + 0.22), _any_paint(rng))
        for line in range(4):
            y = top + 0.04 + 0.045 * line
            frame.fill(box(x + 0.04, y, x + rng.uniform(0.15, 0.32), y + 0.015), (214, 218, 224))
        frame.fill(box(x + 0.16, top + 0.24, x + 0.2, 0.64), (60, 60, 66))
    for x in np.arange(0.0, width, 0.3):
        frame.fill(box(x, -0.05, x + 0.27, rng.uniform(0.08, 0.2)), shade(room.accent, rng.uniform(0.7, 1.1)))


_STYLES: Final[dict[str, Callable[[Brush, Room, float, np.random.Generator], None]]] = {
    "wall": _style_wall,
    "curtain": _style_curtain,
    "blurred": _style_blurred,
    "panel": _style_panel,
    "brick": _style_brick,
    "window": _style_window,
    "outdoor": _style_outdoor,
    "shelf": _style_shelf,
    "office": _style_office,
}


def _prop_plant(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    x, y = rng.uniform(0, width), rng.uniform(0.5, 0.95)
    green = (int(rng.integers(30, 80)), int(rng.integers(90, 150)), int(rng.integers(40, 80)))
    for angle in np.linspace(-1.2, 1.2, 9) + rng.normal(0, 0.1, 9):
        leaf = ellipse(0.0, -0.15, 0.028, 0.13)
        frame.moved(x, y, angle).fill(leaf, shade(green, rng.uniform(0.75, 1.25)))
    frame.solid(np.array([(x - 0.07, y), (x + 0.07, y), (x + 0.05, y + 0.14), (x - 0.05, y + 0.14)]), room.accent)


def _prop_picture(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:
    x, y, wide, high = rng.uniform(0, width), rng.uniform(0.0, 0.35), rng.uniform(0.12, 0.35), rng.uniform(0.12, 0.3)
    frame.fill(box(x, y, x + wide, y + high), _pick(rng, ((30, 28, 26), (220, 214, 204), *_WOODS)))
    frame.fill(box(x + 0.015, y + 0.015, x + wide - 0.015, y + high - 0.015), shade(room.wall, 1.1))
    for _ in range(3):
        dx, dy = rng.uniform(0.25, 0.75, 2)
        frame.fill(ellipse(x + dx * wide, y + dy * high, wide / 5, high / 6), _any_paint(rng))


def _prop_coat(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    x, y = rng.uniform(0, width), rng.uniform(0.15, 0.4)
    coat = np.array([(-0.04, 0.0), (0.04, 0.0), (0.13, 0.07), (0.12, 0.5), (-0.12, 0.52), (-0.13, 0.07)])
    frame.moved(x, y).solid(smooth(coat), _clothlike(rng))
    frame.stroke(np.array([(x, y - 0.05), (x, y + 0.02)]), (60, 60, 60), 0.01)


def _prop_lamp(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    x, y = rng.uniform(0, width), rng.uniform(0.2, 0.5)
    frame.fill(box(x - 0.008, y, x + 0.008, y + 0.6), (70, 64, 58))
    shade_ = np.array([(x - 0.06, y - 0.1), (x + 0.06, y - 0.1), (x + 0.1, y + 0.05), (x - 0.1, y + 0.05)])
    frame.fill(shade_, (250, 232, 190))


def _prop_ball(frame: Brush, room: Room, width: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    """A round thing of the colour of skin or cloth: a cushion, a vase, a globe."""
    size = rng.uniform(0.05, 0.12)
    frame.solid(
        ellipse(rng.uniform(0, width), rng.uniform(0.3, 0.95), size, size * rng.uniform(0.8, 1.5)), _clothlike(rng)
    )


_PROPS: Final = (_prop_plant, _prop_picture, _prop_coat, _prop_lamp, _prop_ball)


def _draw_poster(frame: Brush, room: Room, face: Figure, width: float, rng: np.random.Generator) -> None:
    x, y = width * (0.06 if rng.random() < 0.5 else 0.72), rng.uniform(0.04, 0.2)
    wide, high = 0.3, 0.4
    whole = frame.canvas.copy()
    frame.fill(box(x, y, x + wide, y + high), shade(room.accent, 0.9))
    draw_figure(frame.moved(x + wide / 2, y + 0.18, 0.0, face.unit), face, 0.0)
    left, top = np.floor(frame.origin + frame.scale * np.array((x, y))).astype(int)
    right, low = np.ceil(frame.origin + frame.scale * np.array((x + wide, y + high))).astype(int)
    left, top = max(left, 0), max(top, 0)
    whole[top:low, left:right] = frame.canvas[top:low, left:right]
    frame.canvas[...] = whole
    frame.stroke(box(x, y, x + wide, y + high), (34, 32, 30), 0.012, closed=True)


def _desk(frame: Brush, room: Room, width: float, top: float, rng: np.random.Generator) -> None:  # noqa: ARG001
    wood = _pick(rng, _WOODS)
    frame.fill(box(-0.3, top, width + 0.3, 1.3), wood)
    frame.fill(box(-0.3, top + 0.035, width + 0.3, top + 0.05), shade(wood, 0.7))
    for _ in range(int(rng.integers(0, 4))):
        x = rng.uniform(0.05, width)
        if rng.random() < 0.5:
            frame.solid(box(x, top - 0.09, x + 0.07, top + 0.03), _any_paint(rng))
            frame.stroke(ellipse(x + 0.085, top - 0.03, 0.025, 0.03), (210, 208, 200), 0.01, closed=True)
        else:
            frame.fill(box(x, top - 0.02, x + 0.2, top + 0.02), _clothlike(rng))
    if rng.random() < 0.35:
        x = width * rng.uniform(0.25, 0.55)
        frame.solid(box(x, top - 0.14, x + 0.3, top + 0.02), (92, 94, 100))


def _sofa(frame: Brush, room: Room, width: float, top: float, rng: np.random.Generator) -> None:
    frame.solid(smooth(box(-0.5, top, width + 0.5, 1.5)), shade(room.accent, 0.85))
    x = width * rng.uniform(0.1, 0.8)
    frame.moved(x, top + 0.02, rng.uniform(-0.4, 0.4)).solid(smooth(box(-0.14, -0.12, 0.14, 0.12)), _clothlike(rng))


def _other(frame: Brush, room: Room, width: float, top: float, rng: np.random.Generator) -> None:
    """The back of a chair, or leaves, close to the camera at one side."""
    x = width * (0.14 if rng.random() < 0.5 else 0.84)
    if rng.random() < 0.5:
        frame.solid(smooth(box(x - 0.24, top - 0.2, x + 0.24, 1.6)), shade(room.accent, 0.5))
        return
    for angle in np.linspace(-1.1, 1.1, 7):
        start, end = np.array((0.0, 0.0)), np.array((0.0, -0.42))
        frame.moved(x, 1.02, angle).limb((52, int(rng.integers(90, 130)), 50), (start, end, 0.06, 0.012))


_FURNITURE: Final[dict[str, Callable[[Brush, Room, float, float, np.random.Generator], None]]] = {
    "desk_table": _desk,
    "sofa_bed": _sofa,
    "other": _other,
}
