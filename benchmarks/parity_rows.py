"""Rows of a comparison with stored arrays: the worst error beside its tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class UnusableError(ValueError):
    """A folder that holds no comparable runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        case: Which run.
        stage: Which of its arrays.
        worst: The largest error.
        tolerance: What it may be.
        ok: Whether it is inside.
        note: What else is to be said.
    """

    case: str
    stage: str
    worst: float
    tolerance: float
    ok: bool
    note: str = ""


def _shape(case: str, stage: str, wanted: NDArray[Any], ours: NDArray[Any] | None, tolerance: float) -> Row | None:
    if ours is not None and ours.shape == wanted.shape:
        return None
    note = "ours has none" if ours is None else f"shape {ours.shape} instead of {wanted.shape}"
    return Row(case=case, stage=stage, worst=np.inf, tolerance=tolerance, ok=False, note=note)


def close(
    case: str,
    stage: str,
    wanted: NDArray[Any],
    ours: NDArray[Any] | None,
    tolerance: float,
    share: float = 0.0,
    *,
    gaps: bool = False,
) -> Row:
    """Values; those stored in 16 bits are allowed their rounding.

    Args:
        case: As in `Row`.
        stage: As in `Row`.
        wanted: The original's.
        ours: Ours; None where there is none, which is wrong.
        tolerance: Of a value.
        share: Of values that may be beyond it.
        gaps: Whether NaN in ours stands for a value that cannot be compared; not all may be.
    """
    wrong = _shape(case, stage, wanted, ours, tolerance)
    if wrong or ours is None:
        return wrong or Row(case=case, stage=stage, worst=np.inf, tolerance=tolerance, ok=False)
    theirs = wanted.astype(np.float64)
    rounding = np.abs(theirs) * 2.0**-11 + 2.0**-25 if wanted.dtype == np.float16 else 0.0
    error = np.maximum(np.abs(theirs - ours.astype(np.float64)) - rounding, 0.0)
    if gaps and not np.isnan(error).all():
        error = error[~np.isnan(error)]
    if error.size == 0:
        return Row(case=case, stage=stage, worst=0.0, tolerance=tolerance, ok=True, note="empty")
    beyond = float((~(error <= tolerance)).mean())
    worst = float(error.max())
    note = f"{beyond:.3%} beyond, {share:.1%} may be" if beyond else ""
    return Row(case=case, stage=stage, worst=worst, tolerance=tolerance, ok=beyond <= share, note=note)


def same_sets(case: str, stage: str, wanted: NDArray[Any], ours: NDArray[Any] | None, allowed: int) -> Row:
    """Chosen points (N, P), each row a set: the most that any of them differs in."""
    wrong = _shape(case, stage, wanted, ours, allowed)
    if wrong or ours is None:
        return wrong or Row(case=case, stage=stage, worst=np.inf, tolerance=allowed, ok=False)
    found = [len(set(a) - set(b)) for a, b in zip(wanted.tolist(), ours.tolist(), strict=True)]
    worst = max(found, default=0)
    note = f"points of {wanted.shape[1]}"
    return Row(case=case, stage=stage, worst=worst, tolerance=allowed, ok=worst <= allowed, note=note)


def pixels(case: str, stage: str, wanted: NDArray[Any], ours: NDArray[Any] | None, share: float) -> Row:
    """Masks or classes: the share of pixels that differ."""
    wrong = _shape(case, stage, wanted, ours, share)
    if wrong or ours is None:
        return wrong or Row(case=case, stage=stage, worst=np.inf, tolerance=share, ok=False)
    differ = wanted != ours
    worst = float(differ.mean()) if differ.size else 0.0
    note = f"share, {int(differ.sum())} pixels"
    return Row(case=case, stage=stage, worst=worst, tolerance=share, ok=worst <= share, note=note)


def firm_pixels(
    case: str, key: str, wanted: NDArray[Any], ours: NDArray[Any], logit: NDArray[Any], tolerance: float
) -> Row:
    """How sure we are where a final mask differs: the largest |logit| of such a pixel, at most the tolerance."""
    stage = f"{key}, logit where it differs"
    wrong = _shape(case, stage, wanted, ours, tolerance)
    if wrong:
        return wrong
    differs = wanted.astype(bool) != ours.astype(bool)
    worst = float(logit[differs].max(initial=0.0))
    note = f"{int(differs.sum())} pixels"
    return Row(case=case, stage=stage, worst=worst, tolerance=tolerance, ok=worst <= tolerance, note=note)
