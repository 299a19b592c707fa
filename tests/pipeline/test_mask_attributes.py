"""Laws of attributes told from masks: mirrors, backgrounds and sizes change only what they should; unknown is told."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.taxonomy import default_taxonomy
from manifests.image import decode_image
from pipeline.mask_attributes import MASK_ATTRIBUTES, SENSITIVE, mask_attributes
from teachers.teacher import Person
from tests.pipeline.media import texture
from tests.pipeline.test_silhouette import draw_person

Pixels = NDArray[np.uint8]
Soft = NDArray[np.float32]
TONES = {"light": (236, 200, 176), "medium": (176, 128, 92), "dark": (84, 54, 38)}


def scene(
    tone: tuple[int, int, int] = TONES["medium"],
    behind: int = 200,
    shirt: tuple[int, int, int] = (110, 140, 220),
    size: tuple[int, int] = (240, 320),
) -> tuple[Pixels, Soft]:
    """A drawn person with a face and a shirt before a gray wall, and the mask."""
    height, width = size
    mask = draw_person(height, width, 0.08 * height, 0.28 * height)
    pixels = np.full((height, width, 3), behind, np.uint8)
    pixels[mask] = shirt
    face = mask.copy()
    face[round(0.37 * height) :] = False
    pixels[face] = tone
    return pixels, mask.astype(np.float32)


def still_grid() -> NDArray[np.float16]:
    return np.zeros((16, 16, 2), np.float16)


def check(told: dict[str, Any]) -> None:
    """Every name is told, with a class of its own and a finite confidence, or with neither."""
    assert list(told) == list(MASK_ATTRIBUTES)
    for name, (value, confidence) in told.items():
        assert (value is None) == (confidence is None)
        if value is not None:
            assert value in MASK_ATTRIBUTES[name]
            assert math.isfinite(confidence)
            assert 0 <= confidence <= 1


def classes(told: dict[str, Any]) -> dict[str, str | None]:
    return {name: value for name, (value, _) in told.items()}


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_and_classes_are_the_taxonomys() -> None:
    theirs = {category.name: category for category in default_taxonomy().categories}
    assert set(MASK_ATTRIBUTES) - set(theirs) == {"truncation"}
    for name in set(MASK_ATTRIBUTES) & set(theirs):
        assert set(MASK_ATTRIBUTES[name]) <= set(theirs[name].classes), name
    assert {name for name in MASK_ATTRIBUTES if name in theirs and theirs[name].sensitive} == SENSITIVE


# Any input ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["noise", "empty", "full", "pixel", "half"]),
    st.booleans(),
)
def test_any_mask_of_any_size_has_classes_or_none(seed: int, height: int, width: int, kind: str, moves: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    soft = {
        "noise": lambda: rng.random((height, width)).astype(np.float32),
        "empty": lambda: np.zeros((height, width), np.float32),
        "full": lambda: np.ones((height, width), np.float32),
        "pixel": lambda: np.eye(1, height * width, dtype=np.float32).reshape(height, width),
        "half": lambda: (np.arange(width)[None] < width / 2).astype(np.float32).repeat(height, axis=0),
    }[kind]()
    grid = (rng.standard_normal((16, 16, 2)) * 0.1).astype(np.float16) if moves else None
    persons = (Person(box=(-3.0, -3.0, width + 3.0, height + 3.0), score=0.9),) if seed % 2 else None
    told = mask_attributes(pixels, soft, persons, grid)
    check(told)
    assert mask_attributes(pixels, soft, persons, grid) == told


def test_an_empty_mask_leaves_all_unknown_but_the_background() -> None:
    pixels, soft = scene()
    persons = (Person(box=(0.0, 0.0, 9.0, 9.0), score=0.9),)
    told = classes(mask_attributes(pixels, soft * 0, persons, still_grid()))
    assert told.pop("background_dynamics") == "static"
    assert set(told.values()) == {None}
    assert set(classes(mask_attributes(pixels, soft * 0, persons, None)).values()) == {None}


def test_a_full_mask_has_nothing_behind_it() -> None:
    pixels, soft = scene()
    told = classes(mask_attributes(pixels, soft * 0 + 1, None, still_grid()))
    assert (told["subject_scale"], told["truncation"], told["num_people"]) == ("large", "several", "one")
    assert told["background_dynamics"] is None
    assert told["skin_background_similarity"] is told["clothing_background_similarity"] is None


def test_a_gray_frame_shows_no_skin() -> None:
    pixels, soft = scene()
    gray = np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    told = classes(mask_attributes(gray, soft, None, None))
    assert told["apparent_skin_tone"] is told["skin_background_similarity"] is None
    assert told["clothing_background_similarity"] == "distinct"


def test_a_picture_and_a_mask_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="picture and mask must have one size"):
        mask_attributes(scene()[0], np.zeros((3, 3), np.float32), None, None)


@pytest.mark.parametrize("tone", list(TONES))
@pytest.mark.parametrize("size", [(240, 320), (241, 317), (720, 1280), (480, 270)])
def test_a_mirrored_frame_has_the_same_classes(tone: str, size: tuple[int, int]) -> None:
    pixels, soft = scene(TONES[tone], size=size)
    grid = np.zeros((16, 16, 2), np.float16)
    grid[4:12, 5:11] = 0.1
    told = mask_attributes(pixels, soft, None, grid)
    turned = grid[:, ::-1] * np.array([-1, 1], np.float16)
    mirrored = mask_attributes(pixels[:, ::-1].copy(), soft[:, ::-1].copy(), None, turned)
    assert classes(told) == classes(mirrored)


# Skin and colours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", list(TONES))
def test_a_face_has_its_tone(tone: str) -> None:
    assert mask_attributes(*scene(TONES[tone]), None, None)["apparent_skin_tone"][0] == tone


@settings(max_examples=30)
@given(st.sampled_from(list(TONES)), st.floats(0, 1.25), st.integers(0, 99))
def test_the_background_does_not_change_the_tone(tone: str, gain: float, seed: int) -> None:
    pixels, soft = scene(TONES[tone])
    other = np.where(soft[..., None] > 0.5, pixels, np.clip(texture(seed, *soft.shape) * gain, 0, 255)).astype(np.uint8)
    told, before = (mask_attributes(p, soft, None, None)["apparent_skin_tone"] for p in (other, pixels))
    assert told == before
    assert told[0] == tone


def test_too_little_light_tells_no_tone() -> None:
    pixels, soft = scene()
    assert mask_attributes((pixels * 0.2).astype(np.uint8), soft, None, None)["apparent_skin_tone"] == (None, None)


def test_dark_skin_and_dark_clothes_cannot_be_told_from_shade() -> None:
    assert mask_attributes(*scene(TONES["dark"], shirt=(20, 20, 60)), None, None)["apparent_skin_tone"][0] is None


def test_the_back_of_a_head_tells_no_tone() -> None:
    assert mask_attributes(*scene((30, 30, 32), shirt=(220, 220, 220)), None, None)["apparent_skin_tone"][0] is None


def test_skin_and_clothes_are_compared_with_what_is_behind_them() -> None:
    pixels, soft = scene(behind=200)
    told = classes(mask_attributes(pixels, soft, None, None))
    assert (told["skin_background_similarity"], told["clothing_background_similarity"]) == ("distinct", "distinct")
    white = classes(mask_attributes(*scene(behind=200, shirt=(206, 206, 204)), None, None))
    assert (white["skin_background_similarity"], white["clothing_background_similarity"]) == ("distinct", "similar")
    pixels[soft < 0.5] = TONES["medium"]
    tan = classes(mask_attributes(pixels, soft, None, None))
    assert (tan["skin_background_similarity"], tan["clothing_background_similarity"]) == ("similar", "distinct")


# Scale, people, motion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "name"), [(0.05, "small"), (0.099, "small"), (0.1, "medium"), (0.349, "medium"), (0.36, "large")]
)
def test_scale_has_the_taxonomys_edges(share: float, name: str) -> None:
    soft = (np.arange(10_000) < round(share * 10_000)).astype(np.float32).reshape(100, 100)
    value, confidence = mask_attributes(np.zeros((100, 100, 3), np.uint8), soft, None, None)["subject_scale"]
    assert value == name
    assert confidence is not None
    assert confidence >= 0.5


def test_a_person_whose_box_holds_no_mask_does_not_count() -> None:
    pixels, soft = scene()
    there, away = Person(box=(100.0, 10.0, 220.0, 230.0), score=0.95), Person(box=(0.0, 0.0, 20.0, 20.0), score=0.9)
    assert mask_attributes(pixels, soft, (there, away), None)["num_people"][0] == "one"
    assert mask_attributes(pixels, soft, (there, there), None)["num_people"][0] == "two"


@pytest.mark.parametrize(("speed", "name"), [(0.0, "still"), (0.04, "slow"), (0.1, "moderate"), (0.5, "fast")])
@pytest.mark.parametrize("pan", [0.0, 0.3])
def test_motion_of_people_is_told_beside_that_of_the_camera(speed: float, name: str, pan: float) -> None:
    pixels, soft = scene()
    cells = cv2.resize(soft, (16, 16), interpolation=cv2.INTER_AREA)
    grid = np.zeros((16, 16, 2), np.float16)
    grid[..., 0] = pan
    grid[cells > 0.05, 1] = speed
    told = classes(mask_attributes(pixels, soft, None, grid))
    assert (told["subject_motion"], told["background_dynamics"]) == (name, "static")


def test_what_moves_behind_people_is_the_backgrounds() -> None:
    pixels, soft = scene()
    grid = still_grid()
    grid[2:14, :4] = 0.3
    told = classes(mask_attributes(pixels, soft, None, grid))
    assert (told["subject_motion"], told["background_dynamics"]) == ("still", "moving")


def test_a_still_tells_no_motion() -> None:
    told = classes(mask_attributes(*scene(), None, None))
    assert told["subject_motion"] is told["background_dynamics"] is None


# Real photographs -----------------------------------------------------------------------------------------------------


def test_street_photographs_show_one_whole_body(data: Any) -> None:
    found = []
    for path in sorted((data / "images").glob("ccp_*"))[::6]:
        pixels = decode_image(path.read_bytes()).pixels
        mask = cv2.imread(str(data / "masks" / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        found.append(mask_attributes(pixels, (mask > 127).astype(np.float32), None, None))
        check(found[-1])
    assert sum(told["num_people"][0] == "one" for told in found) >= 0.9 * len(found)
    assert sum(told["body_coverage"][0] == "full_body" for told in found) >= 0.9 * len(found)
