"""Crops keep image and label together, whatever is drawn."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers.augment import AugmentConfig, draw_crop, shrink

PLAIN = AugmentConfig(crop=64, short_side=48, light=0.0, damage=0.0)


def scene(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A white person on black with a grey part to ignore."""
    label = np.zeros((height, width), np.uint8)
    label[height // 4 : 3 * height // 4, width // 3 : 2 * width // 3] = 1
    label[: height // 6] = 255
    value = np.select([label == 1, label == 255], [255, 128], default=0).astype(np.uint8)
    return np.repeat(value[:, :, None], 3, axis=2), label


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    light=st.floats(0, 1),
    damage=st.floats(0, 1),
)
def test_a_crop_has_its_size_and_follows_from_its_seed(
    seed: int, height: int, width: int, light: float, damage: float
) -> None:
    config = replace(PLAIN, light=light, damage=damage)
    image, label = scene(height, width)
    kept = image.copy(), label.copy()
    a, b = (draw_crop(image, label, config, np.random.default_rng(seed)) for _ in range(2))
    assert a[0].shape == (64, 64, 3)
    assert a[1].shape == (64, 64)
    assert a[0].dtype == a[1].dtype == np.uint8
    assert set(np.unique(a[1])) <= {0, 1, 255}
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])
    assert np.array_equal(image, kept[0])
    assert np.array_equal(label, kept[1])


@given(seed=st.integers(0, 10**6))
def test_a_label_stays_on_its_pixels(seed: int) -> None:
    image, label = draw_crop(*scene(90, 120), PLAIN, np.random.default_rng(seed))
    known = label != 255
    agrees = (image[:, :, 0] > 127) == (label == 1)
    assert agrees[known].mean() > 0.97  # all but pixels on an edge


def test_what_lies_outside_the_image_is_ignored() -> None:
    small = replace(PLAIN, scale_low=0.5, scale_high=0.5, degrees=0.0, aspect=1.0)
    label = np.ones((40, 40), np.uint8)
    _, found = draw_crop(np.zeros((40, 40, 3), np.uint8), label, small, np.random.default_rng(0))
    assert np.count_nonzero(found == 1) == pytest.approx(24 * 24, rel=0.1)
    assert np.count_nonzero(found == 255) == found.size - np.count_nonzero(found == 1)


STILL = replace(PLAIN, crop=64, short_side=64, scale_low=1.0, scale_high=1.0, aspect=1.0, degrees=0.0)


def photograph(seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colour with some grain, 64x64."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(60, 200, (6, 6, 3)), (64, 64), interpolation=cv2.INTER_CUBIC)
    grained: NDArray[np.uint8] = np.clip(smooth + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)
    return grained


def test_half_of_the_crops_are_mirrored_and_nothing_else_happens_to_them() -> None:
    image, label = photograph(), np.zeros((64, 64), np.uint8)
    label[:, :20] = 1
    mirrored = 0
    for seed in range(200):
        found, truth = draw_crop(image, label, STILL, np.random.default_rng(seed))
        turned = bool(truth[0, -1])
        mirrored += turned
        assert np.array_equal(found, image[:, ::-1] if turned else image)
        assert np.array_equal(truth, label[:, ::-1] if turned else label)
    assert 75 <= mirrored <= 125


def test_scales_and_places_vary_within_their_limits() -> None:
    label = np.zeros((128, 128), np.uint8)
    label[44:84, 44:84] = 1
    config = replace(STILL, short_side=64, scale_low=0.5, scale_high=1.0)
    sides, lefts = [], set()
    for seed in range(100):
        _, truth = draw_crop(np.zeros((128, 128, 3), np.uint8), label, config, np.random.default_rng(seed))
        sides.append(np.count_nonzero(truth == 1) ** 0.5)
        lefts.add(int(np.flatnonzero((truth == 1).any(axis=0))[0]))
    assert min(sides) == pytest.approx(10, abs=1.5)
    assert max(sides) == pytest.approx(20, abs=1.5)
    assert len(lefts) > 10


def test_light_and_colour_vary_and_leave_the_label() -> None:
    image, label = photograph(), np.ones((64, 64), np.uint8)
    shades = np.array(
        [
            draw_crop(image, label, replace(STILL, light=0.5), np.random.default_rng(s))[0].mean((0, 1))
            for s in range(50)
        ]
    )
    assert np.ptp(shades.mean(axis=1)) > 40  # brightness
    assert np.ptp(shades[:, 0] - shades[:, 2]) > 8  # colour
    same = draw_crop(image, label, STILL, np.random.default_rng(0))[0]
    assert np.array_equal(np.sort(same, axis=1), np.sort(image, axis=1))


def test_damage_is_low_light_blur_and_jpeg_each_by_itself() -> None:
    """Told apart by what they do: light falls; grain and edges fade; blocks of 8 pixels part from their neighbours."""
    image, label = photograph(), np.zeros((64, 64), np.uint8)

    def grain(picture: NDArray[np.uint8]) -> float:
        return float(np.abs(np.diff(picture.astype(float), axis=1)).mean())

    def blocks(picture: NDArray[np.uint8]) -> float:
        steps = np.abs(np.diff(picture.astype(float), axis=1)).mean(axis=(0, 2))
        return float(steps[7::8].mean() / np.delete(steps, np.s_[7::8]).mean())

    dark = blurred = blocky = whole = 0
    for seed in range(300):
        found, truth = draw_crop(image, label, replace(STILL, damage=0.15), np.random.default_rng(seed))
        assert not truth.any()
        darker = found.mean() < 0.7 * image.mean()
        dark += darker
        blurred += not darker and grain(found) < 0.6 * grain(image) and blocks(found) < 1.2
        blocky += not darker and blocks(found) > 1.3
        whole += np.array_equal(found, image) or np.array_equal(found, image[:, ::-1])
    assert 25 <= dark <= 65
    assert blurred >= 10
    assert blocky >= 10
    assert whole == pytest.approx(300 * 0.85**3, abs=35)


def test_shrinking_averages_and_never_enlarges() -> None:
    image, label = scene(120, 80)
    small, small_label = shrink(image, label, 20)
    assert small.shape == (30, 20, 3)
    assert small_label.shape == (30, 20)
    assert (small_label == 1).mean() == pytest.approx((label == 1).mean(), abs=0.05)
    assert shrink(image, label, 200)[0] is image


@pytest.mark.parametrize(
    "change", [{"crop": 100}, {"crop": 0}, {"scale_low": 0.0}, {"scale_low": 9.0}, {"aspect": 0.5}, {"damage": 1.5},
               {"short_side": 4}]
)  # fmt: skip
def test_an_impossible_configuration_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"augment\."):
        replace(PLAIN, **change)  # type: ignore[arg-type]
