"""What every metric of an evaluation is called, how it is read, and how its numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from evaluation.resample import Interval

Better = Literal["higher", "lower", "zero", "neither"]

NONE = "–"
"""Written where there is no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric of a video.

    Attributes:
        key: name of its column.
        label: its name for readers.
        better: which way is better; "zero": 0 is as good as the truth.
        span: least and greatest possible value.
        truth: column of the same metric of the truth, empty where it has none.
        note: what it means, one sentence.
    """

    key: str
    label: str
    better: Better = "higher"
    span: Interval = (0.0, 1.0)
    truth: str = ""
    note: str = ""

    @property
    def in_points(self) -> bool:
        """Whether differences are written in points: hundredths of a score that cannot exceed 1."""
        return self.span[1] <= 1

    def score(self, value: object) -> str:
        """A value: three decimals in points, else two; a signed one of an excess."""
        number = finite(value)
        if number is None:
            return NONE
        return _minus(f"{number:{'+' if self.better == 'zero' else ''}.{3 if self.in_points else 2}f}")

    def gap(self, value: object, *, signed: bool = True) -> str:
        """A difference of two values, in points where the metric is, signed."""
        number = finite(value)
        if number is None:
            return NONE
        sign = "+" if signed else ""
        return _minus(f"{100 * number:{sign}.1f}" if self.in_points else f"{number:{sign}.2f}")

    def score_interval(self, interval: Interval | None) -> str:
        """An interval of values."""
        return NONE if interval is None else f"[{self.score(interval[0])}, {self.score(interval[1])}]"

    def gap_interval(self, interval: Interval | None, *, signed: bool = True) -> str:
        """An interval of differences."""
        if interval is None:
            return NONE
        return f"[{self.gap(interval[0], signed=signed)}, {self.gap(interval[1], signed=signed)}]"

    @property
    def unit(self) -> str:
        """Unit of a difference."""
        return "points" if self.in_points else "units of the metric"


REGION = (
    Measure(key="iou", label="IoU", note="overlap of prediction and truth; saturates near 0.9 and hides the boundary"),
    Measure(
        key="boundary_iou",
        label="Boundary IoU",
        note="overlap within a band along the contours (Cheng et al., CVPR 2021); the image border counts as boundary",
    ),
    Measure(
        key="boundary_iou_interior",
        label="Boundary IoU, interior",
        note="the same without a band along the image border, which is trivially right where the frame cuts a person",
    ),
    Measure(
        key="boundary_f", label="Boundary F", note="DAVIS F: contours matched within a tolerance of 0.8 % diagonal"
    ),
)
STEADY = (
    Measure(
        key="adjacent",
        label="Adjacent consistency",
        truth="adjacent_truth",
        note="IoU of each mask and the next; motion lowers it, so read it against the truth's",
    ),
    Measure(
        key="warped",
        label="Flow-warped consistency",
        truth="warped_truth",
        note="IoU of each mask, moved along optical flow, and the next",
    ),
    Measure(
        key="warped_masked",
        label="Flow-warped, occlusion-masked",
        truth="warped_masked_truth",
        note="the same where forward and backward flow agree",
    ),
    Measure(
        key="adjacent_excess",
        label="Excess flicker, adjacent",
        better="zero",
        span=(-1.0, 1.0),
        note="truth less prediction: 0 is as steady as the truth, above 0 flickers more, below 0 is stiffer",
    ),
    Measure(
        key="warped_excess",
        label="Excess flicker, flow-warped",
        better="zero",
        span=(-1.0, 1.0),
        note="the same along optical flow",
    ),
    Measure(
        key="dtssd",
        label="dtSSD",
        better="lower",
        span=(0.0, 200.0),
        note="change of the soft mask less the change of the truth, times 100; needs no flow",
    ),
    Measure(key="vc8", label="VC8", note="VSPW: of the pixels constant over 8 frames in the truth, the share constant"),
    Measure(key="vc16", label="VC16", note="the same over 16 frames"),
)
CONTEXT = (
    Measure(key="valid_share", label="Share of valid flow", better="neither", note="of the pixels of a pair"),
    Measure(
        key="lag_loss",
        label="Cost of lateness",
        better="neither",
        span=(-1.0, 1.0),
        note="IoU that the truth itself would lose if it came late: what consistency alone does not show",
    ),
)
_TRUTHS = tuple(
    Measure(key=measure.truth, label=f"{measure.label} of the truth", better="neither")
    for measure in STEADY
    if measure.truth
)
_KNOWN = {measure.key: measure for measure in (*REGION, *STEADY, *CONTEXT, *_TRUTHS)}


def measure_of(key: str) -> Measure:
    """The metric of a column; one that is not known bears the name of its column."""
    return _KNOWN.get(key) or Measure(key=key, label=key, better="neither")


def finite(value: object) -> float | None:
    """A finite float; None where it is missing, NaN, infinite or no number."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def p_text(p: float | None) -> str:
    """A p-value in three decimals, never 0."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(count: int, noun: str) -> str:
    """The count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _minus(text: str) -> str:
    """A true minus sign, and none before zero."""
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")
