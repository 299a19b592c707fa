from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from evaluation.boundary import (
    Match,
    Overlap,
    band,
    band_width,
    boundary,
    boundary_f,
    boundary_iou,
    contour_tolerance,
    contour_truth,
    iou_and_boundary_iou,
    match,
    overlap,
    region_truth,
)
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


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask, Mask]:
    """Two masks and void, wide enough for several words."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 140))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    densities = [draw(st.sampled_from([0.0, 0.5, 0.97, 1.0])) for _ in range(2)]
    a, b = (rng.random((height, width)) < density for density in densities)
    return a, b, rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 1.0]))


def _counts(a: Mask, b: Mask) -> tuple[int, int]:
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))


@given(pairs(), st.sampled_from([0.005, 0.02, 0.3, 5.0]))
def test_one_pass_counts_what_the_parts_count(masks: tuple[Mask, Mask, Mask], ratio: float) -> None:
    a, b, void = masks
    found = iou_and_boundary_iou(a, b, ratio, void=void)
    a, b = a & ~void, b & ~void
    d = band_width(a.shape[0], a.shape[1], ratio)
    assert (found.ratio, found.d) == (ratio, d)
    assert found.mask == _counts(a, b)
    assert found.band == _counts(boundary(a, d), boundary(b, d))
    assert found.interior == _counts(boundary(a, d, border=False), boundary(b, d, border=False))


@given(pairs())
def test_void_pixels_do_not_count(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, void = masks
    for border in (True, False):
        score = boundary_iou(a, b, void=void, border=border)
        assert score == boundary_iou(a | void, b & ~void, void=void, border=border)
        assert score == boundary_iou(a & ~void, b & ~void, border=border)
    assert boundary_f(a, b, void=void) == boundary_f(a | void, b & ~void, void=void)


@given(pairs())
def test_a_truth_packed_once_gives_the_same(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, void = masks
    regions, contours = region_truth(b, 0.1, void=void), contour_truth(b, 2, void=void)
    for prediction in (a, b, ~a):
        assert overlap(prediction, regions) == iou_and_boundary_iou(prediction, b, 0.1, void=void)
        assert match(prediction, contours).f == boundary_f(prediction, b, 2, void=void)


@given(pairs(), st.integers(1, 9))
def test_f_counts_the_contour_pixels_with_another_nearby(masks: tuple[Mask, Mask, Mask], tolerance: int) -> None:
    a, b, _ = masks
    found = match(a, contour_truth(b, tolerance))
    edges = [np.argwhere(_contour(mask)) for mask in (a, b)]
    assert (found.predicted, found.true, found.tolerance) == (len(edges[0]), len(edges[1]), tolerance)
    if len(edges[0]) and len(edges[1]) and len(edges[0]) * len(edges[1]) < 10**6:
        far = ((edges[0][:, None] - edges[1][None]) ** 2).sum(2) <= tolerance**2
        assert (found.predicted_near, found.true_near) == (far.any(1).sum(), far.any(0).sum())


def _contour(mask: Mask) -> Mask:
    edged = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return np.asarray((mask != edged[:-1, 1:]) | (mask != edged[1:, :-1]) | (mask != edged[1:, 1:]), np.bool_)


@given(pairs())
def test_f_is_symmetric_1_for_equal_contours_and_0_where_one_is_empty(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, _ = masks
    assert 0 <= boundary_f(a, b) == boundary_f(b, a) <= 1
    assert boundary_f(a, a) == 1
    empty = np.zeros_like(a)
    assert boundary_f(a, empty) == boundary_f(empty, a) == (0 if _contour(a).any() else 1)


def test_f_rewards_what_lies_within_the_tolerance_and_no_more() -> None:
    a, b = np.zeros((60, 60), np.bool_), np.zeros((60, 60), np.bool_)
    a[:, 20:], b[:, 23:] = True, True
    assert boundary_f(a, b, 3) == 1
    assert boundary_f(a, b, 2) == 0


def test_where_nothing_is_to_be_compared_the_raw_value_is_kept() -> None:
    empty, full = np.zeros((9, 9), np.bool_), np.ones((9, 9), np.bool_)
    nothing = iou_and_boundary_iou(empty, empty)
    assert (nothing.iou, nothing.boundary_iou, nothing.boundary_iou_interior) == (1, 1, 1)
    assert np.isnan([nothing.boundary_iou_raw, nothing.boundary_iou_interior_raw]).all()
    assert np.isnan(match(empty, contour_truth(empty)).f_raw)
    assert match(empty, contour_truth(empty)).f == 1
    filled = iou_and_boundary_iou(full, full)
    assert filled.boundary_iou_raw == filled.boundary_iou == 1
    assert np.isnan(filled.boundary_iou_interior_raw), "a full image has no interior band"


def test_precision_and_recall_are_their_parts() -> None:
    found = Match(tolerance=1, predicted=4, predicted_near=3, true=10, true_near=5)
    assert (found.precision, found.recall, found.f) == (0.75, 0.5, 0.6)
    assert Match(tolerance=1, predicted=4, predicted_near=0, true=4, true_near=0).f == 0
    part = Overlap(ratio=0.02, d=1, mask=(1, 2), band=(1, 4), interior=(1, 8))
    assert (part.iou, part.boundary_iou, part.boundary_iou_interior) == (0.5, 0.25, 0.125)


def test_the_tolerance_is_a_part_of_the_diagonal_or_a_number_of_pixels() -> None:
    assert contour_tolerance(720, 1280) == 12
    assert contour_tolerance(1, 1) == 1
    assert contour_tolerance(720, 1280, 3) == 3
    for bound in (0.0, -1.0, 1.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="bound must be"):
            contour_tolerance(720, 1280, bound)
    with pytest.raises(ValueError, match="height and width must be >= 1"):
        contour_tolerance(0, 1)


def test_a_prediction_of_another_image_is_refused() -> None:
    mask = np.zeros((4, 8), np.bool_)
    for call in (lambda m: overlap(m, region_truth(mask)), lambda m: match(m, contour_truth(mask))):
        with pytest.raises(ValueError, match="must have one shape"):
            call(mask[:, :7])
    with pytest.raises(ValueError, match="must have one shape"):
        region_truth(mask, void=mask.T)
    with pytest.raises(ValueError, match="void must be bool"):
        contour_truth(mask, void=mask.astype(np.uint8))  # type: ignore[arg-type]


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
