"""Laws of effects: the person is untouched, nothing of it leaks, backgrounds cover without being stretched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from students.preview import (
    EFFECTS,
    Effect,
    EffectConfig,
    apply,
    blurred,
    checkerboard,
    cover,
    foreground,
    guided,
    plain,
    refine,
)

CONFIG = EffectConfig()
SIDES = st.integers(1, 90)
SEEDS = st.integers(0, 2**32)
Pixels = NDArray[np.uint8]
Soft = NDArray[np.float32]


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def disk(height: int, width: int, radius: float, soft: float = 0.0) -> Soft:
    """1 within the radius of the middle, falling to 0 over `soft` pixels."""
    y, x = np.mgrid[:height, :width]
    far = np.hypot(y - height / 2, x - width / 2) - radius
    return np.clip(0.5 - far / max(soft, 1e-9), 0, 1).astype(np.float32)


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES, effect=st.sampled_from(["blur", "replace", "cutout"]))
def test_where_all_is_person_the_frame_is_unchanged_bit_for_bit(
    seed: int, height: int, width: int, effect: Effect
) -> None:
    frame = noise(seed, height, width)
    shown = apply(frame, np.ones((height, width), np.float32), effect, background=plain((1, 2, 3), (height, width)))
    np.testing.assert_array_equal(shown, frame)


@settings(max_examples=25)
@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_where_nothing_is_person_the_background_stands_alone(seed: int, height: int, width: int) -> None:
    frame, new, mask = noise(seed, height, width), noise(seed + 1, height, width), np.zeros((height, width), np.float32)
    for effect in ("replace", "cutout"):
        np.testing.assert_array_equal(apply(frame, mask, effect, background=new), new)  # type: ignore[arg-type]
    np.testing.assert_array_equal(apply(frame, mask, "mask"), np.zeros_like(frame))
    pure = apply(frame, mask, "blur").astype(np.int16)
    assert np.abs(pure - blurred(frame, mask, CONFIG)).max() <= 0.51


@settings(max_examples=40)
@given(
    seed=SEEDS,
    height=SIDES,
    width=SIDES,
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    blur=st.floats(0.001, 0.5),
    margin=st.floats(0, 0.1),
)
def test_one_colour_stays_one_colour_whatever_the_mask(
    seed: int, height: int, width: int, colour: tuple[int, int, int], blur: float, margin: float
) -> None:
    frame = plain(colour, (height, width))
    rng = np.random.default_rng(seed)
    mask = np.clip(rng.normal(rng.random(), rng.random(), (height, width)), 0, 1).astype(np.float32)
    np.testing.assert_array_equal(apply(frame, mask, "blur", EffectConfig(blur=blur, margin=margin)), frame)
    np.testing.assert_allclose(foreground(frame, mask, CONFIG), frame, atol=0.01)


@pytest.mark.parametrize("soft", [0.0, 6.0])
def test_no_colour_of_the_person_bleeds_into_the_blurred_background(soft: float) -> None:
    mask = disk(240, 320, 60, soft)
    gray = np.random.default_rng(0).integers(60, 120, (240, 320, 1)).repeat(3, axis=2)
    person = (mask > 0)[:, :, None]
    frame = np.where(person, np.array([255, 0, 0]), gray).astype(np.uint8)
    config = EffectConfig(guide=0)
    behind = blurred(frame, refine(frame, mask, config), config)
    np.testing.assert_allclose(behind[:, :, 0], behind[:, :, 1], atol=0.01)
    outside = ~person[:, :, 0]
    shown = apply(frame, mask, "blur", config).astype(np.int16)
    assert np.abs(shown[outside][:, 0] - shown[outside][:, 1]).max() <= 1
    plainly = blurred(frame, np.zeros_like(mask), config)  # what a blur of everything would do
    assert (plainly[outside][:, 0] - plainly[outside][:, 1]).max() > 50


def test_a_blur_leaves_the_mean_and_takes_the_detail() -> None:
    frame = noise(3, 120, 160)
    made = blurred(frame, np.zeros((120, 160), np.float32), CONFIG)
    assert abs(made.mean() - frame.mean()) < 1.5
    assert made.std() < 0.25 * frame.std()
    stronger = blurred(frame, np.zeros((120, 160), np.float32), EffectConfig(blur=0.05))
    assert stronger.std() < made.std()


def test_an_outline_between_two_colours_takes_the_new_background_not_a_rim_of_the_old() -> None:
    person, old, new = np.array([40.0, 40, 40]), np.array([230.0, 230, 230]), (0, 120, 0)
    kept, mask = EffectConfig(guide=0, low=0, high=1), disk(160, 160, 40, 4)
    alpha = refine(plain((0, 0, 0), (160, 160)), mask, kept)
    frame = np.rint(old + alpha[:, :, None] * (person - old)).astype(np.uint8)
    ideal = np.array(new) + alpha[:, :, None] * (person - np.array(new))
    background = plain(new, (160, 160))
    rim = (alpha > 0.05) & (alpha < 0.95)
    mixed = EffectConfig(guide=0, low=0, high=1, spread=0)
    with_rim = np.abs(apply(frame, mask, "replace", mixed, background) - ideal)
    without = np.abs(apply(frame, mask, "replace", kept, background) - ideal)
    assert without[rim].mean() < 0.4 * with_rim[rim].mean()


def test_a_guided_mask_moves_its_outline_to_that_of_the_frame() -> None:
    truth = disk(200, 200, 60)
    frame = (60 + 120 * truth[:, :, None].repeat(3, axis=2)).astype(np.uint8)
    drawn = disk(200, 200, 62, 10)  # of a small network: soft, and a little too large
    refined = refine(frame, drawn, EffectConfig(guide=0.02))
    before, after = (((mask >= 0.5) != (truth >= 0.5)).sum() for mask in (drawn, refined))
    assert after < 0.5 * before
    assert refined.min() == 0
    assert refined.max() == 1


def test_a_guided_filter_is_a_local_linear_model_of_its_guide() -> None:
    rng = np.random.default_rng(0)
    guide = rng.random((30, 40)).astype(np.float32)
    np.testing.assert_allclose(guided(guide, 2 * guide - 0.3, 3, 1e-8), 2 * guide - 0.3, atol=1e-3)
    flat = guided(np.zeros_like(guide), guide, 2, 1e-3)  # nothing guides: means of means
    assert flat.std() < 0.3 * guide.std()
    values = rng.random((30, 40)).astype(np.float32)
    r, eps = 2, 0.01
    slope, offset = np.zeros((30, 40)), np.zeros((30, 40))
    padded, seen = (np.pad(v.astype(np.float64), r, mode="edge") for v in (guide, values))
    for y in range(30):  # the paper's equations, window by window
        for x in range(40):
            i, p = (v[y : y + 2 * r + 1, x : x + 2 * r + 1] for v in (padded, seen))
            slope[y, x] = ((i * p).mean() - i.mean() * p.mean()) / (i.var() + eps)
            offset[y, x] = p.mean() - slope[y, x] * i.mean()
    a, b = (np.pad(v, r, mode="edge") for v in (slope, offset))
    windows = np.lib.stride_tricks.sliding_window_view
    a, b = (windows(v, (2 * r + 1, 2 * r + 1)).mean(axis=(2, 3)) for v in (a, b))
    np.testing.assert_allclose(guided(guide, values, r, eps), a * guide + b, atol=1e-4)


@settings(max_examples=60)
@given(rows=st.integers(1, 200), columns=st.integers(1, 200), height=SIDES, width=SIDES)
def test_a_cover_has_the_size_asked_for(rows: int, columns: int, height: int, width: int) -> None:
    assert cover(np.zeros((rows, columns, 3), np.uint8), (height, width)).shape == (height, width, 3)


@pytest.mark.parametrize(("rows", "columns"), [(100, 300), (300, 100), (40, 160), (600, 1800)])
def test_a_cover_is_the_middle_and_is_never_stretched(rows: int, columns: int) -> None:
    y, x = np.mgrid[:rows, :columns]
    round_picture = (np.hypot(y - rows / 2, x - columns / 2) < 0.3 * min(rows, columns)).astype(np.uint8)
    made = cover(np.repeat(round_picture[:, :, None] * 255, 3, axis=2), (120, 120))[:, :, 0] > 127
    across, down = made.any(axis=0).sum(), made.any(axis=1).sum()
    assert abs(int(across) - int(down)) <= 2
    assert abs(across - 72) <= 3
    centre = np.argwhere(made).mean(axis=0)
    np.testing.assert_allclose(centre, 59.5, atol=1.5)


def test_a_checkerboard_has_two_grays_and_square_fields() -> None:
    board = checkerboard((96, 128))
    side = 5
    assert np.unique(board).size == 2
    assert (board[0, 0] == board[side - 1, side - 1]).all()
    assert (board[0, 0] != board[0, side]).all()
    assert (board[0, 0] == board[side, side]).all()


def test_what_does_not_belong_together_is_refused() -> None:
    frame, mask = noise(0, 8, 9), np.zeros((8, 9), np.float32)
    with pytest.raises(ValueError, match=r"frame must be"):
        apply(frame[:, :, :2], mask, "blur")
    with pytest.raises(ValueError, match=r"mask must be \(8, 9\) float32, got \(9, 8\)"):
        apply(frame, mask.T, "blur")
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]"):
        apply(frame, mask + np.float32(np.nan), "blur")
    for effect in EFFECTS[1:3]:
        with pytest.raises(ValueError, match="needs a background"):
            apply(frame, mask, effect, background=noise(0, 9, 8))
    with pytest.raises(ValueError, match="effect must be one of"):
        apply(frame, mask, "wipe")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"blur": 0}, {"guide": 0.2}, {"low": 0.8}, {"high": 1.1}, {"edge": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"preview\."):
        EffectConfig(**wrong)
