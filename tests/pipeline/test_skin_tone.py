"""Laws of skin tone: the angle orders skin from dark to light, and too little or unsure skin has no class."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.skin_tone import CLASSES, EDGES, LEAST_CONFIDENCE, LEAST_PIXELS, Tone, skin, tone_class, tone_of

# The ten tones of the Monk scale (Monk 2019), from light to dark.
MONK = ("f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420")


def lab_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(pixels.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB), np.float32)


def patch(colour: str, side: int = 40) -> NDArray[np.uint8]:
    return np.full((side, side, 3), tuple(bytes.fromhex(colour)), np.uint8)


def said(pixels: NDArray[np.uint8]) -> tuple[str | None, float | None]:
    return tone_class(tone_of(lab_of(pixels), np.ones(pixels.shape[:2], np.bool_)))


def test_the_monk_scale_falls_from_light_to_dark() -> None:
    names = [said(patch(colour))[0] for colour in MONK]
    assert names[0] == "light"
    assert names[-1] == "dark"
    order = [CLASSES.index(name) for name in names if name]
    assert order == sorted(order)
    assert set(names) >= {"light", "dark"}


def test_the_angle_is_that_of_the_paper() -> None:
    lab = np.full((10, 10, 3), (70.0, 10.0, 20.0), np.float32)
    tone = tone_of(lab, np.ones((10, 10), np.bool_))
    assert tone is not None
    assert tone.ita == pytest.approx(math.degrees(math.atan(20 / 20)))
    assert tone.spread == 0


@given(st.floats(-90, 90), st.floats(0, 40), st.integers(LEAST_PIXELS, 10**6))
def test_a_class_is_the_likeliest_and_never_unsure(ita: float, spread: float, pixels: int) -> None:
    name, confidence = tone_class(Tone(ita=ita, spread=spread, pixels=pixels))
    assert (name is None) == (confidence is None)
    if name is not None and confidence is not None:
        assert LEAST_CONFIDENCE <= confidence <= 1
        assert name in CLASSES
        if spread == 0 and ita > EDGES[0] + 5:
            assert name == "light"
        if spread == 0 and ita < EDGES[1] - 5:
            assert name == "dark"


@given(st.floats(-90, 90), st.floats(0, 20))
def test_more_pixels_or_less_spread_make_no_class_less_sure(ita: float, spread: float) -> None:
    few, many = (tone_class(Tone(ita=ita, spread=spread, pixels=n))[1] or 0.0 for n in (50, 500))
    assert few <= many


@pytest.mark.parametrize("edge", EDGES)
def test_confidence_is_least_at_the_edge_of_a_class(edge: float) -> None:
    near, far = (tone_class(Tone(ita=edge + side, spread=0, pixels=10**6))[1] or 0.0 for side in (1.0, 12.0))
    assert near < far


def test_too_few_pixels_tell_nothing() -> None:
    lab = lab_of(patch(MONK[3]))
    where = np.zeros(lab.shape[:2], np.bool_)
    where.flat[: LEAST_PIXELS - 1] = True
    assert tone_of(lab, where) is None
    where.flat[LEAST_PIXELS - 1] = True
    assert tone_of(lab, where) is not None
    assert tone_class(None) == (None, None)


def test_brown_hair_around_a_light_face_does_not_darken_it() -> None:
    face = patch(MONK[3], 40)
    haired = face.copy()
    haired[:20] = (70, 48, 36)
    plain, mixed = (tone_of(lab_of(p), np.ones((40, 40), np.bool_)) for p in (face, haired))
    assert plain is not None
    assert mixed is not None
    assert mixed.ita == pytest.approx(plain.ita, abs=1)


@pytest.mark.parametrize("colour", ["808080", "ffffff", "000000", "2040c0", "20a040", "101008"])
def test_gray_blue_green_clipped_and_black_are_no_skin(colour: str) -> None:
    assert not skin(patch(colour), lab_of(patch(colour))).any()


@pytest.mark.parametrize("colour", ["c68642", "8d5524", "e0ac69", "f1c27d", "5c3a2a", "d8a890", "4a2c20"])
def test_skin_of_every_tone_is_skin(colour: str) -> None:
    assert skin(patch(colour), lab_of(patch(colour))).all()


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 20))
def test_any_pixels_are_finite(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    tone = tone_of(lab_of(pixels), np.ones((height, width), np.bool_))
    assert tone is None or (math.isfinite(tone.ita) and math.isfinite(tone.spread))
