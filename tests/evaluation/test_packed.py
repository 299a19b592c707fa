"""Planes of bits beside the plain way on whole masks: every size, reach and place of the border."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation import packed

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Masks of up to 200 pixels a side, of any density, some with all that is set in one part of the image."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.01, 0.5, 0.95, 0.995, 1.0]))
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    if draw(st.booleans()):
        mask[:top] = False
        mask[:, left:] = False
    return mask


def _eroded(mask: Mask, d: int) -> Mask:
    """Minimum over the square, row by row and column by column; outside is foreground."""
    padded = np.pad(mask, d, constant_values=True)
    height, width = mask.shape
    tall = np.logical_and.reduce([padded[step : step + height] for step in range(2 * d + 1)])
    return np.asarray(np.logical_and.reduce([tall[:, step : step + width] for step in range(2 * d + 1)]), np.bool_)


def _dilated(mask: Mask, r: int) -> Mask:
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disk = (x**2 + y**2 <= r**2).astype(np.uint8)
    return np.asarray(cv2.dilate(mask.view(np.uint8), disk, borderType=cv2.BORDER_CONSTANT, borderValue=[0])) > 0


def _contour(mask: Mask) -> Mask:
    edged = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = edged[:-1, 1:], edged[1:, :-1], edged[1:, 1:]
    return np.asarray((mask != right) | (mask != below) | (mask != both), np.bool_)


@given(masks())
def test_packing_keeps_every_pixel_and_sets_none_beyond(mask: Mask) -> None:
    plane = packed.pack(mask)
    np.testing.assert_array_equal(packed.unpack(plane, mask.shape[1]), mask)
    assert int(np.bitwise_count(plane).sum()) == packed.count(plane) == np.count_nonzero(mask)


@given(masks(), st.integers(1, 90))
@example(np.ones((1, 64), np.bool_), 64)
@example(np.ones((64, 1), np.bool_), 200)
@example(np.ones((3, 65), np.bool_), 10**9)
def test_erosion_is_the_minimum_over_the_square(mask: Mask, d: int) -> None:
    plane = packed.erode(packed.pack(mask), mask.shape[1], d)
    expected = _eroded(mask, min(d, max(mask.shape)))
    np.testing.assert_array_equal(packed.unpack(plane, mask.shape[1]), expected)
    assert packed.count(plane) == np.count_nonzero(expected), "bits beyond the width"


@pytest.mark.parametrize("d", range(1, 70))
def test_every_reach_erodes_a_hole_to_its_square(d: int) -> None:
    mask = np.ones((150, 161), np.bool_)
    mask[74, 79] = False
    expected = np.ones_like(mask)
    expected[74 - d : 75 + d, 79 - d : 80 + d] = False
    np.testing.assert_array_equal(packed.unpack(packed.erode(packed.pack(mask), 161, d), 161), expected)


@given(masks(), st.integers(1, 90))
def test_a_border_that_is_background_erodes_the_frame_too(mask: Mask, d: int) -> None:
    height, width = mask.shape
    plane = packed.erode(packed.pack(mask), width, d) & ~packed.frame(height, width, d)
    reach = min(d, max(mask.shape))
    expected = _eroded(np.pad(mask, reach), reach)[reach:-reach, reach:-reach]
    np.testing.assert_array_equal(packed.unpack(plane, width), expected)


@given(masks())
def test_the_contour_is_where_the_lower_right_differs(mask: Mask) -> None:
    plane = packed.contour(packed.pack(mask), mask.shape[1])
    np.testing.assert_array_equal(packed.unpack(plane, mask.shape[1]), _contour(mask))
    assert packed.count(plane) == np.count_nonzero(_contour(mask)), "bits beyond the width"


@given(masks(), st.integers(0, 30))
def test_dilation_is_the_maximum_over_the_disk(mask: Mask, r: int) -> None:
    plane = packed.dilate(packed.pack(mask), mask.shape[1], r)
    np.testing.assert_array_equal(packed.unpack(plane, mask.shape[1]), _dilated(mask, r))
    assert packed.count(plane) == np.count_nonzero(_dilated(mask, r)), "bits beyond the width"


def test_a_disk_larger_than_the_image_fills_it() -> None:
    mask = np.zeros((5, 70), np.bool_)
    mask[0, 0] = True
    assert packed.unpack(packed.dilate(packed.pack(mask), 70, 10**9), 70).all()


@given(masks(), st.integers(0, 2**32 - 1))
def test_common_pixels_and_complements_are_counted(mask: Mask, seed: int) -> None:
    other = np.random.default_rng(seed).random(mask.shape) < 0.5
    a, b = packed.pack(mask), packed.pack(other)
    common = packed.count_common(a, b, packed.count(a), packed.count(b))
    assert common == np.count_nonzero(mask & other)
    np.testing.assert_array_equal(packed.unpack(packed.invert(a, mask.shape[1]), mask.shape[1]), ~mask)
    assert packed.count(packed.invert(a, mask.shape[1])) == np.count_nonzero(~mask)


@given(masks(), st.integers(1, 20))
def test_nothing_given_is_changed(mask: Mask, d: int) -> None:
    plane = packed.pack(mask)
    plane.flags.writeable = False
    width = mask.shape[1]
    before = plane.copy()
    for result in (packed.erode(plane, width, d), packed.dilate(plane, width, d), packed.contour(plane, width)):
        assert not np.shares_memory(result, plane)
    np.testing.assert_array_equal(plane, before)


def test_threads_do_not_meet() -> None:
    rng = np.random.default_rng(0)
    planes = [(packed.pack(rng.random((60, width)) < 0.97), width) for width in range(1, 129)]

    def work(item: tuple[packed.Plane, int]) -> tuple[bytes, bytes]:
        return packed.erode(*item, 9).tobytes(), packed.dilate(*item, 9).tobytes()

    alone = [work(item) for item in planes]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, planes * 3)) == alone * 3


def test_the_lowest_bit_of_a_byte_is_its_first_pixel() -> None:
    assert packed.pack(np.arange(70)[None] == 9).tolist() == [[0, 2, 0, 0, 0, 0, 0, 0, 0]]
