"""A composition shows the donor's people and nothing else of the donor; ignored pixels stay out of every truth."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers.compose import compose, paint_out

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(seed: int, *, people: int = 2, ignored: bool = True) -> Pair:
    """Noise with rectangles of people, some reaching over the frame, and one ignored rectangle over all of it."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(24, 90, 2))
    label = np.zeros((height, width), np.uint8)
    for value in [1] * people + [255] * ignored:
        y, x = int(rng.integers(-5, height - 4)), int(rng.integers(-5, width - 4))
        h, w = (int(n) for n in rng.integers(6, 40, 2))
        label[max(0, y) : y + h, max(0, x) : x + w] = value
    return noise(rng, height, width), label


def well_inside(truth: NDArray[np.uint8]) -> NDArray[np.bool_]:
    person = (truth == 1).astype(np.uint8)
    square = np.ones((7, 7), np.uint8)
    return np.asarray(cv2.erode(person, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)) > 0


seeds = st.integers(0, 10**6)


@settings(max_examples=80)
@given(a=seeds, b=seeds, seed=seeds)
def test_a_composition_has_the_backgrounds_size_and_follows_from_its_seed(a: int, b: int, seed: int) -> None:
    background, donor = scene(a), scene(b)
    kept = [x.copy() for x in (*background, *donor)]
    first, second = (compose(*background, *donor, np.random.default_rng(seed)) for _ in range(2))
    assert first[0].shape == background[0].shape
    assert first[1].shape == background[1].shape
    assert first[0].dtype == first[1].dtype == np.uint8
    assert set(np.unique(first[1])) <= {0, 1, 255}
    assert all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(kept, (*background, *donor), strict=True))


@settings(max_examples=80)
@given(a=seeds, b=seeds, seed=seeds)
def test_what_the_background_ignores_stays_ignored(a: int, b: int, seed: int) -> None:
    background = scene(a)
    _, label = compose(*background, *scene(b), np.random.default_rng(seed))
    assert (label[background[1] == 255] == 255).all()


@settings(max_examples=80)
@given(a=seeds, b=seeds, seed=seeds, other=seeds)
def test_no_pixel_that_counts_depends_on_what_the_donor_ignores(a: int, b: int, seed: int, other: int) -> None:
    background, (image, label) = scene(a), scene(b)
    changed = np.where((label == 255)[:, :, None], noise(np.random.default_rng(other), *label.shape), image)
    first, truth = compose(*background, image, label, np.random.default_rng(seed))
    second, same = compose(*background, changed, label, np.random.default_rng(seed))
    assert np.array_equal(truth, same)
    assert np.array_equal(first[truth != 255], second[truth != 255])


@settings(max_examples=60)
@given(seed=seeds)
def test_a_pixel_is_a_person_where_at_least_half_of_it_shows_one(seed: int) -> None:
    """Plain people on a plain background: each pixel's value tells its share of a person."""
    _, label = scene(seed, people=1, ignored=False)
    label[label.shape[0] // 2 - 6 :, 8:16] = 1
    back = np.full((50, 70, 3), 100, np.uint8), np.zeros((50, 70), np.uint8)
    image, truth = compose(*back, np.full((*label.shape, 3), 220, np.uint8), label, np.random.default_rng(seed))
    assume(well_inside(truth).any())  # so that some pixel shows nothing but a person
    assert image.max() >= 134  # at the least light
    share = (image[:, :, 0].astype(float) - 100) / (image.max() - 100.0)
    assert (truth[share > 0.55] == 1).all()
    assert (truth[share < 0.45] == 0).all()


def test_people_are_people_and_their_colours_are_the_donors() -> None:
    """Grey surroundings on both sides: no light to match."""
    background = np.full((60, 80, 3), 100, np.uint8), np.zeros((60, 80), np.uint8)
    donor, label = np.full((60, 80, 3), 100, np.uint8), np.zeros((60, 80), np.uint8)
    donor[15:45, 30:50], label[15:45, 30:50] = (220, 30, 60), 1
    for seed in range(20):
        image, truth = compose(*background, donor, label, np.random.default_rng(seed))
        inside = well_inside(truth)
        assert inside.any()
        assert (np.abs(image[inside].astype(int) - (220, 30, 60)) <= 4).all()
        outside = cv2.dilate(truth, np.ones((9, 9), np.uint8)) == 0
        assert (image[outside] == 100).all()


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right", "width"])
def test_people_whom_the_donors_frame_cuts_stay_at_that_side(side: str) -> None:
    label = np.zeros((60, 80), np.uint8)
    cuts: dict[str, Any] = {
        "top": np.s_[:30, 30:50], "bottom": np.s_[30:, 30:50], "left": np.s_[20:40, :30], "right": np.s_[20:40, 50:],
        "width": np.s_[20:40],
    }  # fmt: skip
    label[cuts[side]] = 1
    image = np.full((60, 80, 3), 100, np.uint8)
    for seed in range(30):
        _, truth = compose(np.zeros((70, 50, 3), np.uint8), np.zeros((70, 50), np.uint8), image, label,
                           np.random.default_rng(seed))  # fmt: skip
        touched = {
            "top": truth[0].any(), "bottom": truth[-1].any(), "left": truth[:, 0].any(), "right": truth[:, -1].any()
        }  # fmt: skip
        if side == "width":
            assert touched["left"]
            assert touched["right"]
        elif side in ("left", "right"):  # mirrored half of the time
            assert touched["left"] or touched["right"]
        else:
            assert touched[side]


def test_scale_side_and_place_vary_and_the_lower_edge_cuts_some() -> None:
    _, label = scene(0, people=0, ignored=False)
    label = np.zeros((80, 80), np.uint8)
    label[20:70, 30:40], label[60:70, 30:60] = 1, 1  # an L: mirrored it is another
    image = np.full((80, 80, 3), 90, np.uint8)
    areas, cut, mirrored = set(), 0, 0
    for seed in range(60):
        _, truth = compose(np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.uint8), image, label,
                           np.random.default_rng(seed))  # fmt: skip
        areas.add(np.count_nonzero(truth))
        cut += bool(truth[-1].any())
        columns = np.flatnonzero(truth.any(axis=0))
        top = truth[np.flatnonzero(truth.any(axis=1))[0]]
        mirrored += bool(np.flatnonzero(top).mean() > columns.mean())
    assert len(areas) > 30
    assert 10 <= cut <= 50
    assert 15 <= mirrored <= 50


def test_a_donor_without_people_gives_the_background_itself() -> None:
    background, donor = scene(1), scene(2, people=0)
    image, label = compose(*background, *donor, np.random.default_rng(0))
    assert image is background[0]
    assert label is background[1]


def test_people_are_lit_towards_their_new_surroundings() -> None:
    """A grey person from a dark room is never darker in a bright one, and brighter on average."""
    label = np.zeros((60, 60), np.uint8)
    label[20:50, 20:40] = 1
    donor = np.where((label == 1)[:, :, None], np.uint8(80), np.uint8(20))
    donor = np.repeat(donor, 3, axis=2) if donor.shape[2] == 1 else donor
    levels = []
    for seed in range(20):
        image, truth = compose(np.full((60, 60, 3), 220, np.uint8), np.zeros((60, 60), np.uint8), donor, label,
                               np.random.default_rng(seed))  # fmt: skip
        levels.append(float(np.median(image[truth == 1])))
    assert min(levels) >= 80
    assert np.mean(levels) > 100


@settings(max_examples=60)
@given(seed=seeds, other=seeds)
def test_a_picture_painted_out_says_nothing_of_its_people(seed: int, other: int) -> None:
    image, label = scene(seed)
    changed = np.where((label == 1)[:, :, None], noise(np.random.default_rng(other), *label.shape), image)
    (first, truth), (second, _) = paint_out(image, label), paint_out(changed, label)
    if (truth != 255).any():
        assert np.array_equal(first, second)
        assert not (truth == 1).any()
        assert np.array_equal(truth == 255, label == 255)


@settings(max_examples=60)
@given(seed=seeds, other=seeds)
def test_what_is_ignored_is_not_spread_over_what_is_painted(seed: int, other: int) -> None:
    image, label = scene(seed)
    changed = np.where((label == 255)[:, :, None], noise(np.random.default_rng(other), *label.shape), image)
    (first, truth), (second, _) = paint_out(image, label), paint_out(changed, label)
    assert np.array_equal(first[truth != 255], second[truth != 255])


def test_painting_goes_on_with_what_is_around() -> None:
    """A person on a slope of grey leaves the slope."""
    slope = np.linspace(40, 200, 120).round().astype(np.uint8)
    image = np.repeat(np.repeat(slope[None, :, None], 90, axis=0), 3, axis=2)
    label = np.zeros((90, 120), np.uint8)
    label[30:70, 40:60] = 1
    shown = image.copy()
    shown[label == 1] = (255, 0, 0)
    painted, truth = paint_out(shown, label)
    assert not truth.any()
    assert np.abs(painted.astype(int) - image).max() < 25
    assert np.array_equal(painted[:, 90:], image[:, 90:])


def test_a_picture_of_people_alone_is_ignored_when_painted_out() -> None:
    label = np.ones((40, 40), np.uint8)
    assert (paint_out(np.zeros((40, 40, 3), np.uint8), label)[1] == 255).all()
    image, empty = scene(4, people=0)
    assert paint_out(image, empty)[0] is image
