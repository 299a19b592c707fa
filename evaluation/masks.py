"""Region metrics of two masks of one image: intersection over union, and the confusion counts.

H, W: height and width in pixels. Every mask is (H, W) bool; binarise before.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation import packed


def check_pair(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    """Check that `a` and `b` are masks of one image.

    Raises:
        ValueError: one is not (H, W) bool with H, W >= 1, or the shapes differ.
    """
    check_mask(a, "a")
    check_mask(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"masks must have one shape, got {a.shape} and {b.shape}; resize one before")


def check_mask(mask: NDArray[np.bool_], name: str) -> None:
    """Check that `mask`, called `name` in the message, is (H, W) bool with H, W >= 1; else ValueError."""
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"mask {name} must have shape (H, W) with H, W >= 1, got {mask.shape}")
    if mask.dtype != np.bool_:
        raise ValueError(f"mask {name} must be bool, got {mask.dtype}; binarise it first (mask > 0.5 or mask != 0)")


def ratio_of(part: int, whole: int, *, empty: float) -> float:
    """`part / whole`, or `empty` where the whole is 0."""
    return part / whole if whole else empty


def overlap_counts(
    a: NDArray[np.bool_], b: NDArray[np.bool_], void: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """Pixels in both masks, and in either; those of `void` are taken out of both.

    Raises:
        ValueError: not masks of one image.
    """
    check_pair(a, b)
    plane_a, plane_b = packed.pack(a), packed.pack(b)
    if void is not None:
        check_pair(a, void)
        shown = ~packed.pack(void)
        plane_a, plane_b = plane_a & shown, plane_b & shown
    in_a, in_b = packed.count(plane_a), packed.count(plane_b)
    common = packed.count_common(plane_a, plane_b, in_a, in_b)
    return common, in_a + in_b - common


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_], void: NDArray[np.bool_] | None = None) -> float:
    """Intersection over union (Jaccard, DAVIS J) of two masks, in [0, 1]; 1 where both are empty.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.
        void: (H, W) bool, pixels taken out of both masks, or None.

    Raises:
        ValueError: not masks of one image.
    """
    return ratio_of(*overlap_counts(a, b, void), empty=1.0)


def confusion(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Pixels that are (true positive, false positive, false negative, true negative), `a` predicted and `b` the truth.

    Raises:
        ValueError: not masks of one image.
    """
    check_pair(a, b)
    both = int(np.count_nonzero(a & b))
    predicted, true = int(np.count_nonzero(a)), int(np.count_nonzero(b))
    return both, predicted - both, true - both, a.size - predicted - true + both
