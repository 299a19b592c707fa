"""Crops keep image and label together, whatever is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers.augment import AugmentConfig, draw_crop, paste, shrink

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


def test_pasting_moves_people_and_nothing_else() -> None:
    base, base_label = np.full((32, 32, 3), 10, np.uint8), np.zeros((32, 32), np.uint8)
    other, other_label = np.full((32, 32, 3), 200, np.uint8), np.zeros((32, 32), np.uint8)
    other_label[8:16, 8:16] = 1
    other_label[20:] = 255
    image, label = paste(base, base_label, other, other_label)
    assert np.array_equal(label == 1, other_label == 1)
    assert not (label == 255).any()
    assert (image[9:15, 9:15] == 200).all()
    assert (image[18:] == 10).all()


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
