import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.warp import WarpConfig, Warped, believed, warp, warped_pair

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]


def _flow(shape: tuple[int, ...], dx: float, dy: float) -> Field:
    return np.broadcast_to(np.array([dx, dy], np.float32), (*shape[:2], 2)).copy()


def _mask(seed: int, height: int, width: int) -> Mask:
    return np.random.default_rng(seed).random((height, width)) < 0.5


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Mask, Field]:
    """A mask and a flow whose steps are whole 1/16 pixels: float32 arithmetic on them is exact."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((height, width)) < 0.5, (rng.integers(-60, 60, (height, width, 2)) / 16).astype(np.float32)


def _value(mask: Mask, x: float, y: float) -> float:
    """The bilinear value at a point; outside the image is 0."""
    total = 0.0
    for row, column in itertools.product(
        (int(np.floor(y)), int(np.floor(y)) + 1), (int(np.floor(x)), int(np.floor(x)) + 1)
    ):
        if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]:
            total += float(mask[row, column]) * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


@given(scenes())
def test_the_warp_is_the_bilinear_value_at_half(scene: tuple[Mask, Field]) -> None:
    mask, flow = scene
    warped, inside = warp(mask, flow)
    for y, x in np.ndindex(mask.shape):
        to_x, to_y = x + float(flow[y, x, 0]), y + float(flow[y, x, 1])
        assert warped[y, x] == (_value(mask, to_x, to_y) >= 0.5)
        assert inside[y, x] == (0 <= to_x <= mask.shape[1] - 1 and 0 <= to_y <= mask.shape[0] - 1)


@given(scenes())
def test_the_nearest_pixel_is_the_one_half_a_step_away(scene: tuple[Mask, Field]) -> None:
    mask, flow = scene
    warped, inside = warp(mask, flow, nearest=True)
    for y, x in np.ndindex(mask.shape):
        column, row = int(np.floor(x + float(flow[y, x, 0]) + 0.5)), int(np.floor(y + float(flow[y, x, 1]) + 0.5))
        known = 0 <= column < mask.shape[1] and 0 <= row < mask.shape[0]
        assert inside[y, x] == known
        assert warped[y, x] == (known and mask[row, column])


@given(st.integers(0, 99), st.integers(-9, 9), st.integers(-9, 9), st.booleans())
def test_a_mask_that_moves_with_the_flow_is_found_again(seed: int, dx: int, dy: int, nearest: bool) -> None:
    mask = _mask(seed, 150, 260)  # more than one strip
    moved = np.roll(mask, (dy, dx), (0, 1))
    warped, inside = warp(mask, _flow(mask.shape, -dx, -dy), nearest=nearest)
    np.testing.assert_array_equal(warped & inside, moved & inside)
    assert np.count_nonzero(inside) == (150 - abs(dy)) * (260 - abs(dx))


def test_the_warp_does_not_depend_on_how_exactly_opencv_interpolates(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, flow = _mask(5, 90, 120), np.random.default_rng(1).normal(0, 4, (90, 120, 2)).astype(np.float32)
    exact = warp(mask, flow)
    remap: Any = cv2.remap

    def coarse(plane: Field, x: Field, y: Field, *flags: int, **border: Any) -> Field:
        """As older versions do it: points are rounded to 1/32 pixel."""
        return np.asarray(remap(plane, np.round(x * 32) / 32, np.round(y * 32) / 32, *flags, **border), np.float32)

    monkeypatch.setattr("cv2.remap", coarse)
    for a, b in zip(warp(mask, flow), exact, strict=True):
        np.testing.assert_array_equal(a, b)


def test_opposite_flows_are_believed_and_others_not() -> None:
    there, back = _flow((20, 30), 3, -2), _flow((20, 30), -3, 2)
    assert believed(there, back)[2:-2, 3:-3].all()
    assert not believed(there, _flow((20, 30), 3, -2)).any()


@pytest.mark.parametrize(("error", "kept"), [(0.7, True), (0.72, False)])
def test_a_still_flow_is_believed_to_the_square_root_of_the_absolute_threshold(error: float, kept: bool) -> None:
    ahead = _flow((20, 30), error, 0)  # error² < 0.01 error² + 0.5 up to 0.7107
    assert believed(ahead, _flow((20, 30), 0, 0)).all() == kept


@pytest.mark.parametrize(("length", "kept"), [(23.1, True), (23.2, False)])
def test_a_fast_flow_may_be_off_by_a_share_of_the_motion(length: float, kept: bool) -> None:
    ahead, back = _flow((9, 99), length, 0), _flow((9, 99), -20, 0)  # 3.1² < 0.01 (20² + 23.1²) + 0.5
    assert (believed(ahead, back)[:, 20:] == kept).all()
    assert not believed(ahead, back, WarpConfig(relative=0.001))[:, 20:].any()
    assert believed(ahead, back, WarpConfig(relative=0.1))[:, 20:].all()


def test_the_forward_flow_is_read_where_the_backward_flow_leads() -> None:
    ahead = _flow((9, 40), 0, 0)
    ahead[:, 10] = (5, 0)
    found = believed(ahead, _flow((9, 40), -5, 0))
    assert found[:, 15].all()
    assert np.count_nonzero(found) == 9


def test_leaving_the_image_is_never_believed() -> None:
    assert not believed(_flow((9, 9), 0, 100), _flow((9, 9), 0, -100)).any()


def test_a_pair_is_compared_where_it_can_be() -> None:
    mask = _mask(1, 12, 70)
    moved = np.roll(mask, 4, 1)
    valid = np.ones_like(mask)
    valid[:3] = False
    pair = warped_pair(mask, moved, _flow(mask.shape, -4, 0), valid)
    assert (pair.raw_iou, pair.masked_iou) == (1, 1)
    assert (pair.inside, pair.valid, pair.pixels) == (12 * 66, 9 * 66, 12 * 70)
    assert pair.valid_share == 9 * 66 / (12 * 70)
    other = moved.copy()
    other[0] = ~other[0]
    worse = warped_pair(mask, other, _flow(mask.shape, -4, 0), valid)
    assert worse.raw_iou < 1 == worse.masked_iou


def test_an_empty_union_scores_1_and_an_empty_image_nothing() -> None:
    nothing = Warped(raw=(0, 0), masked=(0, 0), inside=5, valid=0, pixels=9)
    assert nothing.raw_iou == 1
    assert np.isnan(nothing.masked_iou)
    assert np.isnan(Warped(raw=(0, 0), masked=(0, 0), inside=0, valid=0, pixels=9).raw_iou)


def test_views_and_other_memory_orders_give_the_same() -> None:
    mask, flow = _mask(3, 40, 50), np.random.default_rng(0).normal(0, 3, (40, 50, 2)).astype(np.float32)
    other = np.asfortranarray(mask), np.asfortranarray(flow)
    for a, b in zip(warp(mask, flow), warp(*other), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(believed(flow, -flow), believed(other[1], -other[1]))


def test_bad_arguments_are_named() -> None:
    mask, flow = _mask(0, 4, 5), _flow((4, 5), 0, 0)
    with pytest.raises(ValueError, match=r"flow must have shape \(4, 5, 2\), got \(2, 2, 2\)"):
        warp(mask, flow[:2, :2])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="flow must be finite"):
            warp(mask, _flow((4, 5), bad, 0))
        with pytest.raises(ValueError, match="flow must be finite"):
            believed(flow, _flow((4, 5), bad, 0))
        with pytest.raises(ValueError, match="must be finite and >= 0"):
            WarpConfig(absolute=bad)
    with pytest.raises(ValueError, match=r"warp\.relative must be finite and >= 0, got -1"):
        WarpConfig(relative=-1)
    with pytest.raises(ValueError, match="must have one shape"):
        warped_pair(mask, mask.T, flow, mask)
