"""A scene of a video call to draw: every choice from a seed, and what an annotator would say of it.

The classes of each attribute stand common first. A skew of s draws the k-th class with a weight of k^(-1.5 s): 0 is
uniform; at 1 two of three people are of the first class and dark skin in dim light is two scenes of a hundred, a tail
as long as that of real footage.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.brush import RGB, blend
from pipeline.figure import Arm, Figure
from pipeline.room import STYLES_OF, Room

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "apparent_skin_tone": ("light", "medium", "dark"),
    "apparent_gender": ("masculine", "feminine"),
    "apparent_age_group": ("30_44", "18_29", "45_64", "65_plus", "under_18"),
    "hair_length": ("short", "long", "medium", "bald_shaved"),
    "hair_texture": ("straight", "wavy", "curly", "coily"),
    "hair_color": ("brown", "black", "blond", "grey_white", "red", "dyed_other"),
    "hair_silhouette": ("loose", "tied", "flyaway_fringe", "voluminous_afro", "braids_locs"),
    "facial_hair": ("none", "stubble_moustache", "full_beard"),
    "headwear": ("none", "cap_hat", "headscarf_hijab", "hood", "turban_other_religious"),
    "eyewear": ("none", "glasses", "sunglasses"),
    "clothing_background_similarity": ("distinct", "similar"),
    "num_people": ("one", "two", "three_plus"),
    "furniture_occlusion": ("none", "desk_table", "sofa_bed", "other"),
    "body_coverage": ("head_shoulders", "half_body", "face_closeup", "full_body"),
    "body_pose": ("sitting", "standing", "turning_walking", "arms_raised_stretch", "bending_forward", "reclining"),
    "head_pose": ("frontal", "half_profile"),
    "subject_motion": ("slow", "still", "moderate", "fast"),
    "aspect_ratio": ("landscape_16_9", "portrait", "landscape_4_3", "square"),
    "camera_motion": ("static", "handheld", "moving"),
    "compression_noise": ("clean", "noisy", "blocky"),
    "sharpness": ("sharp", "defocus", "motion_blur"),
    "lighting_level": ("bright", "normal", "dim"),
    "lighting_direction": ("frontal", "side", "backlit", "overhead"),
    "color_temperature": ("neutral", "warm", "cool"),
    "background_complexity": ("plain", "moderate", "cluttered"),
    "person_like_distractor": ("none", "poster_statue"),
}
EMPTY_SHARE: Final = 0.06

_SKINS: Final = {
    "light": ((246, 214, 192), (222, 176, 148)),
    "medium": ((206, 158, 122), (164, 116, 84)),
    "dark": ((128, 86, 62), (62, 42, 33)),
}
_HAIRS: Final = {
    "brown": ((104, 70, 46), (62, 42, 30)),
    "black": ((42, 36, 34), (20, 18, 20)),
    "blond": ((222, 190, 130), (176, 138, 86)),
    "grey_white": ((220, 218, 214), (136, 134, 134)),
    "red": ((176, 88, 44), (126, 56, 32)),
    "dyed_other": ((196, 70, 140), (50, 110, 170)),
}
_CLOTHES: Final[tuple[RGB, ...]] = (
    (44, 58, 96), (214, 214, 210), (38, 38, 42), (120, 124, 128), (146, 44, 50), (64, 96, 70), (196, 164, 104),
    (210, 166, 138), (92, 66, 120), (60, 130, 140), (232, 198, 84), (150, 108, 80),
)  # fmt: skip
_WALLS: Final[tuple[RGB, ...]] = (
    (222, 218, 210), (196, 200, 204), (178, 192, 186), (206, 180, 156), (140, 156, 176), (92, 100, 112),
    (188, 150, 128),
)  # fmt: skip
# unit (height of the head) and top of the head, as shares of the frame's height
_FRAMING: Final = {
    "face_closeup": ((0.60, 0.80), (-0.06, 0.08)),
    "head_shoulders": ((0.34, 0.46), (0.07, 0.17)),
    "half_body": ((0.22, 0.29), (0.07, 0.14)),
    "full_body": ((0.110, 0.122), (0.05, 0.09)),
}
# sway of the body and cycles per second
_MOTIONS: Final = {"still": (0.01, 0.15), "slow": (0.08, 0.25), "moderate": (0.25, 0.45), "fast": (0.7, 0.9)}
_GAINS: Final = {"bright": (1.08, 1.25), "normal": (0.68, 0.86), "dim": (0.24, 0.42)}
# how an arm may be held: raise, tuck, bend, reach (low and high of each), hand, what it holds
_Held = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float], str, str]
_ARMS: Final[dict[str, _Held]] = {
    "rest": ((0.06, 0.25), (1.0, 1.0), (-0.25, 0.1), (0.95, 1.0), "flat", "nothing"),
    "lap": ((0.15, 0.3), (0.9, 1.0), (-1.3, -0.8), (0.65, 0.9), "flat", "nothing"),
    "desk": ((0.25, 0.45), (0.8, 1.0), (-1.9, -1.5), (0.7, 0.9), "flat", "nothing"),
    "chin": ((0.05, 0.2), (0.5, 0.6), (3.25, 3.5), (0.75, 0.9), "fist", "nothing"),
    "wave": ((0.5, 1.0), (0.7, 0.9), (1.6, 2.2), (0.8, 1.0), "open", "nothing"),
    "point": ((0.6, 0.9), (0.7, 0.9), (0.9, 1.6), (0.8, 1.0), "point", "nothing"),
    "phone": ((0.1, 0.3), (0.6, 0.7), (2.8, 3.1), (0.7, 0.9), "fist", "phone"),
    "cup": ((0.1, 0.3), (0.6, 0.8), (3.0, 3.4), (0.5, 0.7), "fist", "cup"),
    "hips": ((0.65, 0.85), (0.9, 1.0), (-1.8, -1.5), (0.7, 0.85), "fist", "nothing"),
    "up": ((2.45, 2.9), (0.9, 1.0), (-0.3, 0.4), (0.9, 1.0), "open", "nothing"),
}
_ARMS_OF: Final = {
    "sitting": ("lap", "rest", "desk", "chin", "wave", "point", "phone", "cup", "wave"),
    "standing": ("rest", "hips", "wave", "cup", "phone", "rest", "point"),
    "turning_walking": ("rest", "rest", "wave", "phone"),
    "arms_raised_stretch": ("up",),
    "bending_forward": ("rest", "lap", "desk"),
    "reclining": ("rest", "lap", "chin", "phone"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """Attributes: `level`, `direction`, `temperature` as classes; `gain` of the exposure; `side` it is from (-1, 1)."""

    level: str
    gain: float
    direction: str
    side: float
    temperature: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """How the scene is taken.

    Attributes:
        aspect: class of the aspect ratio.
        motion: `static`, `handheld` or `moving`.
        phase: where in its motion it starts, radians.
        noise: standard deviation of the sensor's noise in grey levels.
        blur: standard deviation of the lens's blur as a share of the frame's height.
        streak: length of the motion blur as a share of the frame's height, 0 for none.
        quality: of a JPEG round trip, 1 to 100, or 0 for none.
        compression: class of noise and compression.
        sharpness: class of the blur.
    """

    aspect: str
    motion: str
    phase: float
    noise: float
    blur: float
    streak: float
    quality: int
    compression: str
    sharpness: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All that is drawn of one video call; the figures stand nearest first, and the first is the subject.

    Attributes:
        seed: of the world.
        index: of the scene in its world.
        figures: the people, none to three.
        coverage: how much of the subject's body the frame holds.
        pose: of the subject.
        motion: of the subject.
    """

    seed: int
    index: int
    figures: tuple[Figure, ...]
    room: Room
    light: Light
    camera: Camera
    coverage: str
    pose: str
    motion: str


class _Dice:
    """Draws from one generator, classes with a skew."""

    def __init__(self, rng: np.random.Generator, skew: float) -> None:
        self.rng = rng
        self._skew = skew

    def drawn(self, attribute: str, *, drop: frozenset[str] = frozenset()) -> str:
        classes = [name for name in CLASSES[attribute] if name not in drop]
        weights = np.arange(1, len(classes) + 1, dtype=np.float64) ** (-1.5 * self._skew)
        return classes[int(self.rng.choice(len(classes), p=weights / weights.sum()))]

    def between(self, ends: tuple[float, float]) -> float:
        return float(self.rng.uniform(*ends))

    def one_of(self, paints: tuple[RGB, ...]) -> RGB:
        return self.near(paints[int(self.rng.integers(len(paints)))])

    def near(self, paint: RGB, spread: int = 14) -> RGB:
        red, green, blue = (int(np.clip(c + self.rng.integers(-spread, spread + 1), 8, 250)) for c in paint)
        return red, green, blue

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def grain(self) -> int:
        return int(self.rng.integers(1 << 31))


def draw_scene(seed: int, index: int, *, skew: float = 1.0) -> Scene:
    """The scene `index` of the world `seed`; every choice from `PCG64(SeedSequence([seed, index]))`.

    Args:
        seed: of the world, at least 0.
        index: of the scene, at least 0.
        skew: how long-tailed the classes are; 0 is uniform.

    Raises:
        ValueError: if an argument is negative.
    """
    for name, value in (("seed", seed), ("index", index), ("skew", skew)):
        if not value >= 0:
            raise ValueError(f"draw_scene: {name} must be >= 0, got {value}")
    dice = _Dice(np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index]))), skew)
    camera, light, room = _draw_camera(dice), _draw_light(dice), _draw_place(dice)
    people = 0 if dice.chance(EMPTY_SHARE) else 1 + CLASSES["num_people"].index(dice.drawn("num_people"))
    coverage = dice.drawn("body_coverage", drop=frozenset({"face_closeup"} if people > 1 else ()))
    wide = camera.aspect in {"landscape_16_9", "landscape_4_3"}
    cramped = coverage == "full_body" and not wide
    pose = dice.drawn("body_pose", drop=frozenset({"reclining"} if cramped or people > 1 else ()))
    motion = dice.drawn("subject_motion")
    figures = _draw_people(dice, people, coverage=coverage, pose=pose, motion=motion, camera=camera, room=room)
    room = _furnish(dice, room, figures, coverage, pose)
    return Scene(
        seed=seed, index=index, figures=figures, room=room, light=light, camera=camera,
        coverage=coverage, pose=pose, motion=motion,
    )  # fmt: skip


def _draw_camera(dice: _Dice) -> Camera:
    compression, sharpness = dice.drawn("compression_noise"), dice.drawn("sharpness")
    return Camera(
        aspect=dice.drawn("aspect_ratio"),
        motion=dice.drawn("camera_motion"),
        phase=dice.between((0, 2 * math.pi)),
        noise=dice.between((6, 11) if compression == "noisy" else (1, 3)),
        blur=dice.between((0.007, 0.014) if sharpness == "defocus" else (0.002, 0.0035)),
        streak=dice.between((0.03, 0.06)) if sharpness == "motion_blur" else 0.0,
        quality=round(dice.between((12, 30))) if compression == "blocky" else 0,
        compression=compression,
        sharpness=sharpness,
    )


def _draw_light(dice: _Dice) -> Light:
    level = dice.drawn("lighting_level")
    return Light(
        level=level,
        gain=dice.between(_GAINS[level]),
        direction=dice.drawn("lighting_direction"),
        side=-1.0 if dice.chance(0.5) else 1.0,
        temperature=dice.drawn("color_temperature"),
    )


def _draw_place(dice: _Dice) -> Room:
    complexity = dice.drawn("background_complexity")
    styles = STYLES_OF[complexity]
    low, high = {"plain": (0, 1), "moderate": (1, 3), "cluttered": (4, 8)}[complexity]
    poster = None
    if dice.drawn("person_like_distractor") != "none":
        poster = _draw_person(dice, pose="standing", motion="still", unit=0.24, at=(0.0, 0.0), legs="none")
    return Room(
        style=styles[int(dice.rng.integers(len(styles)))],
        complexity=complexity,
        wall=dice.one_of(_WALLS),
        accent=dice.one_of(_CLOTHES),
        props=int(dice.rng.integers(low, high + 1)),
        poster=poster,
        seat="none",
        furniture="none",
        furniture_top=1.0,
        grain=dice.grain(),
    )


def _furnish(dice: _Dice, room: Room, figures: tuple[Figure, ...], coverage: str, pose: str) -> Room:
    """`room` with a seat and with the furniture in front, where they do not hide the face."""
    furniture = dice.drawn("furniture_occlusion")
    top = dice.between((0.76, 0.9))
    seated = pose == "sitting" and coverage != "face_closeup"
    seat = "none"
    if figures and seated and (coverage == "full_body" or dice.chance(0.45)):
        seat = "sofa" if len(figures) == 1 and dice.chance(0.3) else "chair"
    if figures:
        low = max(person.head_y + 0.8 * person.unit for person in figures)
        top = max(top, low) if coverage != "full_body" else low + dice.between((3.2, 4.4)) * figures[0].unit
    if figures and (coverage == "face_closeup" or top > 0.94):
        furniture = "none"
    kept = {name: getattr(room, name) for name in ("style", "complexity", "wall", "accent", "props", "poster", "grain")}
    return Room(**kept, seat=seat, furniture=furniture, furniture_top=top)


def _draw_people(
    dice: _Dice, people: int, *, coverage: str, pose: str, motion: str, camera: Camera, room: Room
) -> tuple[Figure, ...]:
    sizes, tops = _FRAMING[coverage]
    tall = camera.aspect == "portrait" and coverage != "full_body"
    fit = (1.0, 0.84, 0.7)[max(people, 1) - 1] if coverage != "full_body" else 1.0
    slots = dice.rng.permutation({0: [0.5], 1: [0.5], 2: [0.3, 0.7], 3: [0.2, 0.5, 0.8]}[people])
    figures: list[Figure] = []
    for place in range(people):
        unit = dice.between(sizes) * fit * (0.72 if tall else 1.0) * (1.0 if place == 0 else dice.between((0.75, 0.95)))
        top = dice.between(tops) + (0.12 if tall else 0.0) + (0.0 if place == 0 else dice.between((0.0, 0.1)))
        at = (float(slots[place]) + dice.between((-0.09, 0.09)) / people, top + unit / 2)
        own = pose if place == 0 else dice.drawn("body_pose", drop=frozenset({"reclining", "arms_raised_stretch"}))
        legs = "none"
        if coverage in {"half_body", "full_body"}:
            legs = {"sitting": "sit", "turning_walking": "walk"}.get(own, "stand")
        person = _draw_person(dice, pose=own, motion=motion, unit=unit, at=at, legs=legs, room=room)
        figures.append(person)
    return tuple(figures)


def _draw_person(
    dice: _Dice, *, pose: str, motion: str, unit: float, at: tuple[float, float], legs: str, room: Room | None = None
) -> Figure:
    gender, age = dice.drawn("apparent_gender"), dice.drawn("apparent_age_group")
    skin_tone, head_pose = dice.drawn("apparent_skin_tone"), dice.drawn("head_pose")
    length, silhouette, texture, color = _draw_hair(dice, gender, age)
    lean, pitch, (x, y) = dice.between((-0.08, 0.08)), dice.between((0.0, 0.15)), at
    if pose == "reclining":
        side = -1.0 if dice.chance(0.5) else 1.0
        lean, x, y = side * dice.between((0.7, 1.3)), x + 0.25 * side, max(y, 0.42)
    elif pose == "bending_forward":
        lean, pitch, y = dice.between((-0.5, 0.5)), dice.between((0.6, 1.0)), y + 0.4 * unit
    elif pose == "arms_raised_stretch":
        y += 0.35 * unit
    swing = 1.0 if dice.chance(0.5) else -1.0
    turn = swing * dice.between((0.5, 1.0) if head_pose == "half_profile" else (0.0, 0.3))
    sway, pace = _MOTIONS[motion]
    similar = room is not None and room.style in {"wall", "curtain"} and dice.chance(0.15)
    top = dice.near(room.wall, 6) if room is not None and similar else dice.one_of(_CLOTHES)
    plain_face = gender == "feminine" or age == "under_18"
    return Figure(
        head_x=x, head_y=y, unit=unit, turn=turn, tilt=dice.between((-0.18, 0.18)), lean=lean, pitch=pitch,
        build=dice.between((0.92, 1.08) if gender == "masculine" else (0.82, 0.96)), legs=legs,
        arms=(_draw_arm(dice, pose), _draw_arm(dice, pose)),
        sway=sway * dice.between((0.8, 1.2)), pace=pace * dice.between((0.8, 1.2)),
        phase=dice.between((0, 2 * math.pi)), grain=dice.grain(),
        skin=dice.near(blend(*_SKINS[skin_tone], dice.between((0, 1))), 5), skin_tone=skin_tone,
        gender=gender, age_group=age,
        hair=dice.near(blend(*_HAIRS[color], dice.between((0, 1))), 6), hair_length=length, hair_texture=texture,
        hair_color=color, hair_silhouette=silhouette,
        facial_hair="none" if plain_face else dice.drawn("facial_hair"),
        headwear=dice.drawn("headwear", drop=frozenset({"headscarf_hijab"} if gender == "masculine" else ())),
        headwear_paint=dice.one_of(_CLOTHES), eyewear=dice.drawn("eyewear"),
        top=top, print_=dice.one_of(_CLOTHES),
        pattern=str(dice.rng.choice(["plain", "plain", "shirt", "stripes", "logo", "open_jacket"])),
        sleeve=str(dice.rng.choice(["long", "long", "short", "sleeveless"])), bottom=dice.one_of(_CLOTHES),
    )  # fmt: skip


def _draw_hair(dice: _Dice, gender: str, age: str) -> tuple[str, str, str, str]:
    """Length, silhouette, texture and colour that can be worn together; gender and age only nudge them."""
    length = dice.drawn("hair_length")
    if gender == "feminine" and length in {"short", "bald_shaved"} and dice.chance(0.6):
        length = "long"
    silhouette, texture, color = dice.drawn("hair_silhouette"), dice.drawn("hair_texture"), dice.drawn("hair_color")
    if silhouette == "voluminous_afro":
        texture = "coily" if dice.chance(0.6) else "curly"
    if silhouette in {"voluminous_afro", "tied", "braids_locs"} and length in {"short", "bald_shaved"}:
        length = "medium"
    if age == "65_plus" and dice.chance(0.6):
        color = "grey_white"
    return length, silhouette, texture, color


def _draw_arm(dice: _Dice, pose: str) -> Arm:
    names = _ARMS_OF[pose]
    raised, tuck, bend, reach, hand, holds = _ARMS[names[int(dice.rng.integers(len(names)))]]
    return Arm(
        raise_=dice.between(raised), tuck=dice.between(tuck), bend=dice.between(bend), reach=dice.between(reach),
        hand=hand, holds=holds,
    )  # fmt: skip


def attributes(scene: Scene) -> dict[str, str]:
    """What an annotator would say of the scene: attribute to class, of those that `CLASSES` names.

    An attribute that is not there to be seen is absent: those of people without people, those of hidden hair.
    """
    found = {
        "aspect_ratio": scene.camera.aspect,
        "camera_motion": scene.camera.motion,
        "compression_noise": scene.camera.compression,
        "sharpness": scene.camera.sharpness,
        "lighting_level": scene.light.level,
        "lighting_direction": scene.light.direction,
        "color_temperature": scene.light.temperature,
        "background_complexity": scene.room.complexity,
        "person_like_distractor": "none" if scene.room.poster is None else "poster_statue",
    }
    if scene.figures:
        found |= {
            "num_people": CLASSES["num_people"][len(scene.figures) - 1],
            "furniture_occlusion": scene.room.furniture,
            "body_coverage": scene.coverage,
            "body_pose": scene.pose,
            "subject_motion": scene.motion,
            **_of_subject(scene.figures[0], scene.room),
        }
    return {name: found[name] for name in CLASSES if name in found}


def _of_subject(person: Figure, room: Room) -> dict[str, str]:
    near = max(abs(a - b) for a, b in zip(person.top, room.wall, strict=True)) <= 12
    found = {
        "apparent_skin_tone": person.skin_tone,
        "apparent_gender": person.gender,
        "apparent_age_group": person.age_group,
        "facial_hair": person.facial_hair,
        "headwear": person.headwear,
        "eyewear": person.eyewear,
        "head_pose": "frontal" if abs(person.turn) <= 0.3 else "half_profile",
        "clothing_background_similarity": "similar" if near and room.style in {"wall", "curtain"} else "distinct",
    }
    if person.headwear in {"headscarf_hijab", "turban_other_religious"}:
        return found
    found["hair_length"] = person.hair_length
    if person.hair_length != "bald_shaved":
        found |= {"hair_texture": person.hair_texture, "hair_color": person.hair_color}
        found["hair_silhouette"] = person.hair_silhouette
    return found
