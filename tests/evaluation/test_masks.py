import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from evaluation.masks import confusion, iou, overlap_counts, ratio_of

Mask = NDArray[np.bool_]


@st.composite
def triples(draw: st.DrawFn) -> tuple[Mask, Mask, Mask]:
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=12))
    return draw(arrays(np.bool_, shape)), draw(arrays(np.bool_, shape)), draw(arrays(np.bool_, shape))


@given(triples())
def test_iou_is_the_share_of_common_pixels(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, void = ({(int(y), int(x)) for y, x in np.argwhere(mask)} for mask in masks)
    assert iou(*masks[:2]) == (len(a & b) / len(a | b) if a | b else 1)
    assert iou(*masks) == (len((a & b) - void) / len((a | b) - void) if (a | b) - void else 1)


@given(triples())
def test_iou_is_symmetric_in_0_to_1_and_1_for_equal_masks(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, void = masks
    assert 0 <= iou(a, b, void) == iou(b, a, void) <= 1
    assert iou(a, a) == 1
    assert (iou(a, b) == 1) == np.array_equal(a, b)


@given(triples())
def test_confusion_counts_every_pixel_once(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, _ = masks
    expected = ((a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum())
    assert confusion(a, b) == expected
    assert sum(confusion(a, b)) == a.size


@given(triples())
def test_counts_are_those_of_both_and_either(masks: tuple[Mask, Mask, Mask]) -> None:
    a, b, void = masks
    assert overlap_counts(a, b) == ((a & b).sum(), (a | b).sum())
    assert overlap_counts(a, b, void) == ((a & b & ~void).sum(), ((a | b) & ~void).sum())


def test_a_ratio_of_nothing_is_what_is_asked_for() -> None:
    assert ratio_of(1, 4, empty=9.0) == 0.25
    assert ratio_of(0, 0, empty=1.0) == 1
    assert np.isnan(ratio_of(0, 0, empty=np.nan))


def test_the_inputs_are_left_alone() -> None:
    a, void = np.ones((2, 2), np.bool_), np.eye(2, dtype=np.bool_)
    iou(a, a, void)
    assert a.all()


@pytest.mark.parametrize("function", [iou, confusion])
def test_what_is_no_pair_of_masks_is_refused_with_what_was_found(function: object) -> None:
    assert callable(function)
    mask = np.zeros((2, 3), np.bool_)
    with pytest.raises(ValueError, match="must be bool, got uint8; binarise"):
        function(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 3\) and \(3, 2\)"):
        function(mask, mask.T)
    for shape in [(6,), (1, 2, 3), (0, 3)]:
        with pytest.raises(ValueError, match=r"must have shape \(H, W\)"):
            function(np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))


def test_void_must_be_of_the_same_image() -> None:
    with pytest.raises(ValueError, match="one shape"):
        iou(np.zeros((2, 2), np.bool_), np.zeros((2, 2), np.bool_), np.zeros((2, 3), np.bool_))
