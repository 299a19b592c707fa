r"""A drawn person: shapes with soft volume, painted on a canvas that carries the person mask as its fourth channel.

Figure space has its origin between the shoulders, x to the viewer's right, y down, and the height of the head as its
unit; a whole standing figure is about 7.5 units tall::

        ( o )      crown -1.35, chin -0.35
      /|     |\    shoulders 0.2
     / |_____| \   hips 2.7
        |   |
        |   |      soles 6.2

Everything is painted back to front. A pixel belongs to the mask where person paint covers at least half of it.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.brush import RGB, THIN, TURNS, Brush, Points, blend, box, ellipse, shade, smooth

_SKULL: Final = np.linspace(np.pi - 0.15, 2 * np.pi + 0.15, 41)
# outline of the hair by texture: (amplitude, waves per turn)
_TEXTURES: Final = {"straight": (0.006, 5), "wavy": (0.03, 7), "curly": (0.05, 13), "coily": (0.045, 21)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How one arm is held.

    Attributes:
        raise_: angle of the upper arm in radians: 0 hangs down, pi points up, outward between.
        tuck: length of the upper arm as seen, 1 in the image plane, less where it points at the camera.
        bend: angle that the forearm adds to it.
        reach: length of the forearm as seen.
        hand: `open`, `fist`, `flat` or `point`.
        holds: `nothing`, `phone` or `cup`; the thing held is no part of the person.
    """

    raise_: float
    tuck: float
    bend: float
    reach: float
    hand: str
    holds: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """All that is drawn of one person; colours are RGB, classes are the names of the attribute taxonomy.

    Attributes:
        head_x: centre of the head as a share of the frame's width.
        head_y: centre of the head as a share of the frame's height.
        unit: height of the head as a share of the frame's height.
        turn: of the head, -1 (viewer's left) to 1.
        tilt: of the head, radians.
        lean: of the whole body, radians.
        pitch: of the head, 0 upright to 1 looking down.
        build: half width of the shoulders, in heads.
        legs: `stand`, `sit`, `walk` or `none` (out of the frame).
        sway: how far the figure moves, 0 (frozen) to 1.
        pace: cycles of its motion per second.
        phase: where in its motion it starts, radians.
        grain: seed of its irregularities (strands, prints).
    """

    head_x: float
    head_y: float
    unit: float
    turn: float
    tilt: float
    lean: float
    pitch: float
    build: float
    legs: str
    arms: tuple[Arm, Arm]
    sway: float
    pace: float
    phase: float
    grain: int
    skin: RGB
    skin_tone: str
    gender: str
    age_group: str
    hair: RGB
    hair_length: str
    hair_texture: str
    hair_color: str
    hair_silhouette: str
    facial_hair: str
    headwear: str
    headwear_paint: RGB
    eyewear: str
    top: RGB
    print_: RGB
    pattern: str
    sleeve: str
    bottom: RGB


def draw_figure(brush: Brush, figure: Figure, time: float) -> None:
    """Paint `figure` as it is at `time` seconds with `brush`, whose space is figure space with the head upright.

    The brush's origin is the middle of the head; see `camera.render` for how it is placed in a frame.
    """
    beat = figure.sway * math.sin(2 * math.pi * figure.pace * time + figure.phase)
    off_beat = figure.sway * math.sin(2 * math.pi * figure.pace * 0.63 * time + 2 * figure.phase)
    body = brush.moved(0.55 * beat, 0.06 * off_beat, figure.lean + 0.05 * beat).moved(0.0, 0.85 - 0.55 * figure.pitch)
    head = body.moved(0.0, -0.35 + 0.55 * figure.pitch, figure.tilt + 0.14 * off_beat).moved(0.0, -0.5)
    turn = min(1.0, max(-1.0, figure.turn + 0.25 * off_beat))
    rng = np.random.Generator(np.random.PCG64(figure.grain))
    _draw_back_hair(head, figure, rng)
    _draw_legs(body, figure, beat)
    _draw_torso(body, figure)
    _draw_neck(body, head, figure)
    _draw_head(head, figure, turn, time)
    _draw_front_hair(head, figure, turn, rng)
    _draw_headwear(head, figure, turn)
    _draw_eyewear(head, figure, turn)
    for side, arm in zip((-1, 1), figure.arms, strict=True):
        _draw_arm(body, figure, arm, side, beat if side > 0 else off_beat)


def _wavy(figure: Figure, turns: Points) -> Points:
    amplitude, waves = _TEXTURES[figure.hair_texture]
    wave: Points = amplitude * np.abs(np.sin(waves * turns / 2 + figure.phase)) + 0.4 * amplitude * np.sin(3 * turns)
    return wave


def _shows_hair(figure: Figure) -> bool:
    return figure.hair_length != "bald_shaved" and figure.headwear not in {"headscarf_hijab", "turban_other_religious"}


def _draw_back_hair(head: Brush, figure: Figure, rng: np.random.Generator) -> None:
    if not _shows_hair(figure) or figure.hair_length == "short":
        return
    if figure.hair_silhouette == "voluminous_afro":
        size = 0.62 + 0.22 * rng.random()
        rim = 1 + 1.3 * _wavy(figure, TURNS)[:, None]
        head.solid(ellipse(0.0, -0.2, size, size * 0.95) * rim, figure.hair)
        return
    if figure.hair_silhouette == "tied":
        _draw_tail(head, figure, rng)
        return
    drop = (1.25 if figure.hair_length == "long" else 0.52) + 0.2 * rng.random()
    if figure.hair_silhouette == "braids_locs":
        for x in np.linspace(-0.46, 0.46, 9):
            end = np.array((x * 1.25, drop * (0.9 + 0.1 * rng.random())))
            head.limb(figure.hair, (np.array((x * 0.8, -0.2)), end, 0.075, 0.05))
        return
    down = np.linspace(-0.2, drop, 14)
    side = 0.43 + 0.13 * np.clip((down + 0.2) / 0.6, 0, 1) + 1.4 * _wavy(figure, 4 * down)
    left, right = np.stack([-side, down], axis=1), np.stack([side, down], axis=1)
    head.fill(np.concatenate([left, right[::-1]]), shade(figure.hair, 0.82))


def _draw_tail(head: Brush, figure: Figure, rng: np.random.Generator) -> None:
    side = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.5:
        head.solid(ellipse(0.1 * side, -0.6, 0.21, 0.19), figure.hair)
        return
    end = np.array((0.62 * side, 0.75 if figure.hair_length == "long" else 0.3))
    head.limb(figure.hair, (np.array((0.3 * side, -0.35)), end, 0.17, 0.07))


def _draw_front_hair(head: Brush, figure: Figure, turn: float, rng: np.random.Generator) -> None:
    if not _shows_hair(figure):
        return
    afro = figure.hair_silhouette == "voluminous_afro"
    lift = {"short": 0.045, "medium": 0.075, "long": 0.07}[figure.hair_length] + (0.1 if afro else 0.0)
    reach = 1 + _wavy(figure, _SKULL)
    rim = np.stack([np.cos(_SKULL) * (0.365 + lift) * reach, np.sin(_SKULL) * (0.49 + lift) * reach], axis=1)
    across = np.linspace(0.36, -0.36, 13)
    part = rng.uniform(-0.2, 0.2)
    line = -0.25 - 0.1 * np.exp(-(((across - part - 0.12 * turn) / 0.16) ** 2)) + 0.55 * across**2 + 0.1 * figure.pitch
    head.fill(
        np.concatenate([rim, np.stack([across + 0.07 * turn, line + _wavy(figure, 9 * across)], axis=1)]), figure.hair
    )
    if figure.hair_length == "long" and figure.hair_silhouette in {"loose", "flyaway_fringe"}:
        _draw_locks(head, figure)
    if head.scale > 36:
        _draw_strands(head, figure, rng, lift)


def _draw_locks(head: Brush, figure: Figure) -> None:
    down = np.linspace(-0.15, 0.95, 10)
    inner = 0.36 - 0.03 * down
    outer = 0.44 + 0.12 * np.clip(down, 0, 0.5) + 1.4 * _wavy(figure, 4 * down)
    tip = np.linspace(1.0, 0.9, 10)
    for side in (-1, 1):
        rim = np.stack([side * outer * tip, down], axis=1)
        head.fill(np.concatenate([rim, np.stack([side * inner, down], axis=1)[::-1]]), figure.hair)


def _draw_strands(head: Brush, figure: Figure, rng: np.random.Generator, lift: float) -> None:
    flying = figure.hair_silhouette == "flyaway_fringe"
    for _ in range(14 if flying else 8):
        turn = rng.uniform(np.pi + 0.25, 2 * np.pi - 0.25)
        low, high = 0.85 + 0.1 * rng.random(), (1.22 if flying else 1.0) + 0.1 * rng.random() * flying
        rays = np.array([(low, turn - 0.12), ((low + high) / 2, turn - 0.03), (high, turn + 0.12)])
        rim = np.stack([np.cos(rays[:, 1]) * (0.36 + lift), np.sin(rays[:, 1]) * (0.49 + lift)], axis=1)
        head.stroke(rim * rays[:, :1], shade(figure.hair, rng.uniform(0.7, 1.45)), 0.012)


def _draw_neck(body: Brush, head: Brush, figure: Figure) -> None:
    throat = (head.origin - body.origin) / body.scale
    if figure.pitch < 0.5:
        cos, sin = math.cos(-figure.lean), math.sin(-figure.lean)
        top = np.array((cos * throat[0] - sin * throat[1], sin * throat[0] + cos * throat[1])) * 0.55
        body.limb(shade(figure.skin, 0.84), (top, np.array((0.0, 0.06)), 0.185, 0.24))


def _half_width(figure: Figure, y: Points) -> Points:
    wide: Points = np.interp(y, [-0.14, 0.0, 0.22, 0.8, 1.8, 2.75], [0.24, 0.56, 1.0, 0.88, 0.74, 0.80])
    return wide * figure.build


def _draw_torso(body: Brush, figure: Figure) -> None:
    down = np.array([-0.14, 0.0, 0.16, 0.4, 0.8, 1.8, 2.75])
    wide = _half_width(figure, down)
    outline = np.concatenate([np.stack([wide, down], axis=1), np.stack([-wide, down], axis=1)[::-1]])
    bare = figure.sleeve == "sleeveless"
    body.solid(smooth(outline), figure.skin if bare else figure.top)
    if bare:
        body.solid(smooth(_bodice(figure)), figure.top)
    _draw_print(body, figure)
    depth = 0.2 + 0.35 * (figure.grain % 7) / 7
    body.fill(np.array([(-0.24, -0.12), (0.24, -0.12), (0.09, depth), (-0.09, depth)]), shade(figure.skin, 0.96))
    if figure.pattern == "shirt":
        for side in (-1, 1):
            collar = np.array([(0.22, -0.16), (0.36, 0.0), (0.14, depth + 0.08), (0.02, depth)]) * (side, 1)
            body.fill(collar, shade(figure.top, 1.12))
        body.stroke(np.array([(0.0, depth), (0.02, 2.7)]), shade(figure.top, 0.7), 0.02)
    for x, lean in ((-0.45, 0.1), (0.4, -0.14), (0.1, 0.08)):
        fold = np.array([(x, 0.9), (x + lean, 1.5), (x + 1.6 * lean, 2.2)]) * (figure.build, 1)
        body.stroke(fold, shade(figure.top, 0.84), 0.03)


def _bodice(figure: Figure) -> Points:
    half = np.array([(0.42, 0.02), (0.5, 0.35), (0.78, 0.72), (0.68, 1.8), (0.8, 2.8)]) * (figure.build, 1)
    return np.concatenate([half, (half * (-1, 1))[::-1], np.array([(-0.25, 0.4), (0.25, 0.4)])])


def _draw_print(body: Brush, figure: Figure) -> None:
    if figure.pattern == "stripes":
        for top in np.arange(0.5, 2.6, 0.36):
            down = np.array([top, top + 0.15])
            wide = _half_width(figure, down) * 0.9
            corners = [(-wide[0], down[0]), (wide[0], down[0]), (wide[1], down[1]), (-wide[1], down[1])]
            body.fill(np.array(corners), figure.print_)
    elif figure.pattern == "logo":
        body.fill(ellipse(0.0, 1.05, 0.34, 0.28), figure.print_)
        body.fill(box(-0.2, 1.0, 0.2, 1.12), figure.top)
    elif figure.pattern == "open_jacket":
        body.fill(np.array([(-0.2, -0.08), (0.2, -0.08), (0.34, 2.7), (-0.34, 2.7)]), figure.print_)


def _draw_legs(body: Brush, figure: Figure, beat: float) -> None:
    if figure.legs == "none":
        return
    for side in (-1, 1):
        hip = np.array((0.36 * side, 2.6))
        stride = 0.55 * side * math.cos(3 * beat) if figure.legs == "walk" else 0.0
        if figure.legs == "sit":
            knee, ankle = np.array((0.55 * side, 3.25)), np.array((0.5 * side, 4.85))
        else:
            knee, ankle = np.array((0.4 * side + 0.6 * stride, 4.3)), np.array((0.4 * side + stride, 5.95))
        body.limb(shade(figure.bottom, 0.4), (ankle, ankle + np.array((0.16 * side, 0.14)), 0.15, 0.12))
        if figure.pattern == "plain" and figure.sleeve == "sleeveless":
            body.limb(figure.skin, (knee, ankle, 0.22, 0.13))
            body.limb(figure.bottom, (hip, knee, 0.4, 0.3))
        else:
            body.limb(figure.bottom, (knee, ankle, 0.27, 0.16), (hip, knee, 0.4, 0.28))


def _draw_arm(body: Brush, figure: Figure, arm: Arm, side: int, beat: float) -> None:
    shoulder = np.array((side * (figure.build - 0.17), 0.33))
    upper = arm.raise_ + 0.12 * beat
    lower = upper + arm.bend + 0.45 * beat
    elbow = shoulder + 1.25 * arm.tuck * np.array((side * math.sin(upper), math.cos(upper)))
    along = np.array((side * math.sin(lower), math.cos(lower)))
    wrist = elbow + 1.1 * arm.reach * along
    cloth = shade(figure.top, 0.93)
    _draw_hand(body.moved(float(wrist[0]), float(wrist[1]), math.atan2(along[1], along[0])), figure, arm, side)
    if figure.sleeve == "long":
        body.limb(cloth, (elbow, wrist, 0.19, 0.14), (shoulder, elbow, 0.25, 0.19))
        return
    body.limb(figure.skin, (elbow, wrist, 0.17, 0.1), (shoulder, elbow, 0.21, 0.17))
    if figure.sleeve == "short":
        body.limb(cloth, (shoulder, shoulder + 0.5 * (elbow - shoulder), 0.26, 0.24))


def _draw_hand(hand: Brush, figure: Figure, arm: Arm, side: int) -> None:
    if arm.holds == "phone":
        hand.as_thing().fill(box(0.06, -0.2, 0.75, 0.2), (28, 28, 32))
    elif arm.holds == "cup":
        hand.as_thing().solid(box(0.0, -0.32, 0.34, 0.3), figure.print_)
    hand.solid(ellipse(0.16, 0.0, 0.2, 0.16), figure.skin, THIN)
    spread, length = {"open": (0.24, 0.36), "fist": (0.1, 0.09), "flat": (0.07, 0.3), "point": (0.1, 0.1)}[arm.hand]
    for finger in range(4):
        angle = (finger - 1.5) * spread
        root = np.array((0.27 - 0.02 * abs(finger - 1.5), (finger - 1.5) * 0.075))
        reach = 0.4 if arm.hand == "point" and finger == 1 else length * (1 - 0.1 * abs(finger - 1.2))
        tip = root + reach * np.array((math.cos(angle), math.sin(angle)))
        hand.limb(figure.skin, (root, tip, 0.05, 0.042))
    thumb = np.array((0.3, -side * (0.2 + 0.6 * spread)))
    hand.limb(figure.skin, (np.array((0.08, -side * 0.1)), thumb, 0.06, 0.045))


def _draw_head(head: Brush, figure: Figure, turn: float, time: float) -> None:
    for side in (-1, 1):
        if side * turn < 0.5:
            head.solid(ellipse(side * 0.37 - 0.03 * turn, 0.05, 0.06, 0.11), shade(figure.skin, 0.92), THIN)
    face = ellipse(0.0, 0.0, 0.375, 0.5)
    jaw = 0.24 if figure.gender == "masculine" else 0.32
    face[:, 0] *= 1 - jaw * np.clip(face[:, 1] / 0.5, 0, 1) ** 2
    face[:, 0] += 0.05 * turn * np.clip(face[:, 1] / 0.5, 0, 1)
    head.solid(face, figure.skin)
    _draw_facial_hair(head, figure, turn, face)
    features = head.moved(0.15 * turn, 0.1 * figure.pitch)
    _draw_features(features, figure, 1 - 0.28 * abs(turn), time)


def _draw_facial_hair(head: Brush, figure: Figure, turn: float, face: Points) -> None:
    if figure.facial_hair == "none":
        return
    full = figure.facial_hair == "full_beard"
    paint = figure.hair if full else blend(figure.skin, figure.hair, 0.28)
    low = face[face[:, 1] > 0.05]
    rim = low * (1.04, 1.12) if full else low * 0.99
    cheek = np.array([(-0.25, 0.12), (-0.13, 0.17), (0.0, 0.18), (0.13, 0.17), (0.25, 0.12)])
    cheek[:, 0] += 0.13 * turn
    head.fill(np.concatenate([rim, cheek]), paint)
    if not full:
        head.fill(ellipse(0.15 * turn, 0.215, 0.13, 0.03), figure.hair)


def _draw_features(face: Brush, figure: Figure, squeeze: float, time: float) -> None:
    if face.scale < 14:
        return
    dark = shade(figure.skin, 0.62)
    open_ = 0.012 if math.sin(1.7 * time + figure.phase) > 0.985 else 0.032
    brow = shade(blend(figure.hair, (40, 30, 25), 0.4), 0.9)
    for side in (-1, 1):
        x = 0.155 * side * squeeze
        face.fill(ellipse(x, -0.01, 0.078 * squeeze, 0.05), shade(figure.skin, 0.82))
        face.fill(ellipse(x, -0.01, 0.066 * squeeze, open_), (226, 222, 216))
        face.fill(ellipse(x, -0.01, 0.03, min(0.03, open_)), (44, 34, 30))
        lift = np.array([(x - 0.09 * squeeze, -0.09), (x, -0.125), (x + 0.09 * squeeze, -0.09)])
        face.stroke(lift, brow, 0.028)
        face.fill(ellipse(0.21 * side * squeeze, 0.15, 0.08, 0.06), blend(figure.skin, (214, 96, 84), 0.14))
    nose = np.array([(0.0, 0.0), (0.045 * squeeze, 0.14), (-0.03, 0.155)])
    face.stroke(nose, shade(figure.skin, 0.76), 0.02)
    talk = 0.018 + 0.022 * abs(math.sin(9 * time + figure.phase)) * min(1.0, 4 * figure.sway)
    face.fill(ellipse(0.0, 0.275, 0.115 * squeeze, 0.026 + talk), blend(shade(figure.skin, 0.75), (176, 60, 66), 0.45))
    face.fill(ellipse(0.0, 0.275, 0.1 * squeeze, talk * 0.6), shade(dark, 0.5))
    if figure.age_group == "65_plus":
        for side in (-1, 1):
            face.stroke(np.array([(0.1, 0.16), (0.155, 0.25)]) * (side, 1), shade(figure.skin, 0.8), 0.012)


def _draw_headwear(head: Brush, figure: Figure, turn: float) -> None:
    paint = figure.headwear_paint
    if figure.headwear == "cap_hat":
        dome = np.stack([np.cos(_SKULL) * 0.43, np.sin(_SKULL) * 0.53 - 0.1], axis=1)
        dome = dome[dome[:, 1] < -0.17]
        head.solid(dome, paint)
        head.solid(ellipse(0.22 * turn, -0.2, 0.42, 0.07), shade(paint, 0.8), THIN)
    elif figure.headwear == "turban_other_religious":
        for x, y, tilt in ((0.0, -0.34, 0.0), (-0.07, -0.42, 0.35), (0.07, -0.42, -0.35), (0.0, -0.5, 0.0)):
            head.moved(x, y, tilt).solid(ellipse(0.0, 0.0, 0.46, 0.2), paint)
    elif figure.headwear in {"headscarf_hijab", "hood"}:
        _draw_wrap(head, figure, paint, turn)


def _draw_wrap(head: Brush, figure: Figure, paint: RGB, turn: float) -> None:
    """A scarf or hood: a ring around the face, so it is painted as a band that leaves the face open."""
    hood = figure.headwear == "hood"
    rim = ellipse(0.0, -0.05, 0.54 if hood else 0.47, 0.62 if hood else 0.56)
    rim[:, 1] += np.where(rim[:, 1] > 0.2, 0.28, 0.0)
    opening = ellipse(0.06 * turn, 0.05 if hood else 0.04, 0.33, 0.44 if hood else 0.4)
    seam = np.concatenate([rim, rim[:1], opening[:1], opening[:0:-1], opening[:1]])
    head.fill(seam, paint)
    if not hood:
        shawl = np.array([(-0.42, 0.3), (-0.75, 0.85), (-0.3, 1.15), (0.3, 1.1), (0.75, 0.85), (0.42, 0.3), (0, 0.46)])
        head.fill(shawl, shade(paint, 0.92))
    for x in (-0.38, 0.38):
        head.stroke(np.array([(x, -0.35), (x * 1.12, 0.05), (x, 0.45)]), shade(paint, 0.8), 0.03)


def _draw_eyewear(head: Brush, figure: Figure, turn: float) -> None:
    if figure.eyewear == "none" or head.scale < 14:
        return
    frame = head.moved(0.15 * turn, 0.1 * figure.pitch)
    squeeze, paint = 1 - 0.28 * abs(turn), (30, 28, 32)
    for side in (-1, 1):
        lens = ellipse(0.16 * side * squeeze, 0.0, 0.125 * squeeze, 0.09)
        if figure.eyewear == "sunglasses":
            frame.fill(lens, (22, 20, 24))
        frame.stroke(lens, paint, 0.02, closed=True)
        frame.stroke(np.array([(0.28 * side * squeeze, -0.03), (0.38 * side, -0.02)]), paint, 0.02)
    frame.stroke(np.array([(-0.05, -0.01), (0.05, -0.01)]), paint, 0.02)
