from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.soft import dtssd, gradient_error, mad, mse

Soft = NDArray[np.float32]
PAIRS = [mad, mse, gradient_error]


def _soft(seed: int) -> Soft:
    return np.random.default_rng(seed).random((12, 15), np.float32)


@pytest.mark.parametrize("metric", PAIRS)
@given(st.integers(0, 999))
def test_equal_masks_score_0_and_others_more_both_ways(metric: Callable[[Soft, Soft], float], seed: int) -> None:
    a, b = _soft(seed), _soft(seed + 1)
    assert metric(a, a) == 0
    assert metric(a, b) == metric(b, a) > 0


def test_a_constant_error_is_seen_by_mad_and_mse_alone() -> None:
    a = np.full((9, 9), 0.25, np.float32)
    b = a + np.float32(0.5)
    assert (mad(a, b), mse(a, b)) == (500, 250)
    assert gradient_error(a, b) < 1e-12
    assert dtssd(a, a, b, b) == 0


@given(st.integers(0, 999))
def test_dtssd_takes_off_the_motion_of_the_truth(seed: int) -> None:
    a, b = _soft(seed), _soft(seed + 1)
    assert dtssd(a, b, a, b) == 0
    assert dtssd(a, b, a, a) == pytest.approx(100 * float(np.sqrt(((b - a).astype(np.float64) ** 2).mean())))


def test_a_flicker_of_a_tenth_scores_10() -> None:
    still = np.full((9, 9), 0.5, np.float32)
    assert dtssd(still, still + np.float32(0.1), still, still) == pytest.approx(10, rel=1e-6)


def test_the_gradient_error_grows_with_blur() -> None:
    edge = np.zeros((20, 20), np.float32)
    edge[:, 10:] = 1
    errors = []
    for width in (1, 3, 5, 7):
        blurred = cv2.blur(edge, (width, 1), borderType=cv2.BORDER_REPLICATE)
        errors.append(gradient_error(np.clip(blurred, 0, 1).astype(np.float32), edge))
    assert errors == sorted(errors)
    assert errors[-1] > errors[1] > errors[0] == 0


@pytest.mark.parametrize("metric", [*PAIRS, lambda a, b: dtssd(a, a, a, b)])
def test_what_is_no_soft_mask_is_named(metric: Callable[[Soft, Soft], float]) -> None:
    good = _soft(0)
    for bad, message in [
        (good[0], "must have shape"),
        (good[:0], "must have shape"),
        (good.astype(np.float64), "must be float32"),
        (good * 255, r"must be in \[0, 1\]"),
        (np.where(good > 0.5, np.float32(np.nan), good), r"must be in \[0, 1\]"),
        (good[:, :3], "must have one shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(good, bad)
