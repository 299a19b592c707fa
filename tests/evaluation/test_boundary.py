from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from evaluation.boundary import band, band_width, boundary, boundary_iou
from evaluation.masks import iou

Mask = NDArray[np.bool_]
MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9))


def _cases(goldens: Path) -> Iterator[dict[str, Any]]:
    """The official cases: the inputs unpacked, and the expected numbers at each ratio."""
    file = np.load(goldens / "evaluation" / "masks_boundary_davis.npz")
    arrays_of = {key: file[key] for key in file.files}
    for case, name in enumerate(arrays_of["names"]):
        height, width = int(arrays_of["h"][case]), int(arrays_of["w"][case])
        part = slice(*arrays_of["bits_offset"][case : case + 2])
        values: dict[str, Any] = {"name": str(name)}
        for key, column in arrays_of.items():
            if "_bits" in key:
                bits = np.unpackbits(column[part])[: height * width]
                values[key.replace("_bits", "")] = bits.reshape(height, width).astype(np.bool_)
            elif len(column) == len(arrays_of["names"]):
                values[key] = column[case]
        yield {**values, "ratios": arrays_of["ratios"].tolist()}


def test_every_number_equals_the_official_one(goldens: Path) -> None:
    cases = 0
    for case in _cases(goldens):
        a, b = case["gt"], case["pred"]
        height, width = a.shape
        raw = case["boundary_iou_raw"]
        expected = np.where(np.isnan(raw), 1.0, raw).tolist()
        assert [boundary_iou(a, b, ratio) for ratio in case["ratios"]] == expected, case["name"]
        assert [band_width(height, width, ratio) for ratio in case["ratios"]] == case["dilation_px"].tolist(), case[
            "name"
        ]
        np.testing.assert_array_equal(boundary(a, band_width(height, width)), case["gt_boundary_r002"])
        np.testing.assert_array_equal(boundary(b, band_width(height, width)), case["pred_boundary_r002"])
        assert iou(a, b) == case["davis_J"], case["name"]
        assert iou(a, b, case["void"]) == case["davis_J_void"], case["name"]
        cases += 1
    assert cases == 684


def _square(mask: Mask, y: int, x: int, d: int) -> tuple[list[bool], bool]:
    """The pixels of the image at most `d` from (y, x), and whether the square leaves the image."""
    height, width = mask.shape
    inside = mask[max(0, y - d) : y + d + 1, max(0, x - d) : x + d + 1]
    return inside.ravel().tolist(), y < d or x < d or y + d >= height or x + d >= width


@given(MASKS, st.integers(1, 12), st.booleans())
def test_the_boundary_is_what_is_near_the_background(mask: Mask, d: int, border: bool) -> None:
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask).tolist():
        near, leaves = _square(mask, y, x, d)
        expected[y, x] = not all(near) or (border and leaves)
    np.testing.assert_array_equal(boundary(mask, d, border=border), expected)


@given(MASKS, st.integers(1, 12))
def test_the_band_is_what_has_both_sides_near(mask: Mask, d: int) -> None:
    expected = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        expected[y, x] = len(set(_square(mask, y, x, d)[0])) == 2
    np.testing.assert_array_equal(band(mask, d), expected)
    np.testing.assert_array_equal(band(~mask, d), expected)


@given(MASKS, st.integers(1, 12))
def test_the_inner_half_of_the_band_is_the_interior_boundary(mask: Mask, d: int) -> None:
    np.testing.assert_array_equal(band(mask, d) & mask, boundary(mask, d, border=False))
    assert not (boundary(mask, d, border=False) & ~boundary(mask, d)).any()


@given(MASKS, st.integers(1, 11))
def test_a_wider_band_holds_the_narrower(mask: Mask, d: int) -> None:
    for border in (False, True):
        assert not (boundary(mask, d, border=border) & ~boundary(mask, d + 1, border=border)).any()


@given(st.data(), st.booleans())
def test_boundary_iou_is_symmetric_and_1_for_equal_masks(data: st.DataObject, border: bool) -> None:
    a = data.draw(MASKS)
    b = data.draw(arrays(np.bool_, a.shape))
    assert 0 <= boundary_iou(a, b, border=border) == boundary_iou(b, a, border=border) <= 1
    assert boundary_iou(a, a, border=border) == 1


def test_a_person_cut_by_the_frame_has_no_interior_band_along_it() -> None:
    mask = np.zeros((60, 40), np.bool_)
    mask[20:, 10:30] = True
    assert boundary(mask, 2)[-1, 20]
    assert not boundary(mask, 2, border=False)[-1, 20]
    other = np.zeros_like(mask)
    other[24:, 10:30] = True
    assert boundary_iou(mask, other, 0.03, border=False) < boundary_iou(mask, other, 0.03)


def test_views_and_other_memory_orders_give_the_same() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.9
    for view in (np.asfortranarray(mask), np.repeat(mask, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(boundary(view, 2), boundary(mask, 2))


def test_the_band_width_rounds_half_to_even_and_is_at_least_1() -> None:
    assert band_width(1, 1) == 1
    assert band_width(720, 1280) == 29
    assert band_width(3, 4, 0.5) == 2
    assert band_width(3, 4, 0.7) == 4


def test_bad_arguments_are_named() -> None:
    mask = np.zeros((2, 2), np.bool_)
    for ratio in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="ratio must be finite and > 0"):
            boundary_iou(mask, mask, ratio)
    for function in (boundary, band):
        with pytest.raises(ValueError, match="d must be >= 1"):
            function(mask, 0)
        with pytest.raises(ValueError, match="must be bool"):
            function(mask.astype(np.uint8), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="height and width must be >= 1"):
        band_width(0, 5)
