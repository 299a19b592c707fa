"""Where a teacher's label and a student's prediction differ on one image, and the label mended by the student.

Letters: H and W sides, T the teacher's mask (probability ≥ .5), P the student's probability.
"""

import math
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SURE = 0.7  # the student is sure of a person above this and of background below 1 - SURE
UNSURE = 0.3  # a label is corrected only where |P - .5| is at least this
BAND = 0.005  # half-width of the band around the label's outline that is not judged, share of the diagonal
EMPTY = 0.0005  # a mask below this share of the image shows nobody
FULL = 0.995  # a mask above this share is the whole image
SOFT = 0.02  # half-width of the student's own soft outline, where being unsure is no doubt, share of the diagonal

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """How teacher and student differ on one image, outside a narrow band around the label's outline; all finite.

    Attributes:
        miss: Area where T is background and P > .7, as a share of |T ∪ P|; in [0, 1] like all shares.
        extra: Area where T is person and P < .3, share of |T ∪ P|.
        largest_miss: The largest connected part of ``miss``.
        largest_extra: The largest connected part of ``extra``.
        doubt: The largest connected part where they differ and |P − .5| < .3, away from the student's own outline
            (which is soft): no correction can mend it.
        disagreement: 1 − IoU outside the band; 0 where both are empty there.
        softmin: Soft minimum (temperature .1) of the student's probability of the given label; 1 is agreement
            everywhere (Lad and Mueller, arXiv 2307.05080).
        stability: Spread of the student's checkpoints, as given.
        entropy: Mean binary entropy of the teacher, in bits.
        teacher_area: |T| as a share of the image.
        student_area: |P > .5| as a share of the image.
    """

    miss: float
    extra: float
    largest_miss: float
    largest_extra: float
    doubt: float
    disagreement: float
    softmin: float
    stability: float
    entropy: float
    teacher_area: float
    student_area: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in astuple(self)):
            raise ValueError(f"features must be finite, got {self}")


def features(teacher: NDArray[np.floating], student: NDArray[np.floating], stability: float) -> Features:
    """Compare a teacher's and a student's probabilities (H, W) in [0, 1]; see ``Features``.

    Raises:
        ValueError: If the shapes differ, are empty, or a value lies outside [0, 1].
    """
    _check_maps(teacher, student)
    label, person = teacher >= 0.5, student >= 0.5
    judged = ~_band(label)
    union = max(1, int((label | person).sum()))
    miss, extra = judged & ~label & (student > SURE), judged & label & (student < 1 - SURE)
    doubt = judged & (label != person) & (np.abs(student - 0.5) < UNSURE) & ~_band(person, SOFT)
    either = int((judged & (label | person)).sum())
    return Features(
        miss=int(miss.sum()) / union,
        extra=int(extra.sum()) / union,
        largest_miss=_largest(miss) / union,
        largest_extra=_largest(extra) / union,
        doubt=_largest(doubt) / union,
        disagreement=1 - int((judged & label & person).sum()) / either if either else 0.0,
        softmin=_softmin(np.where(label, student, 1 - student)[judged]),
        stability=float(stability),
        entropy=_entropy(teacher),
        teacher_area=float(label.mean()),
        student_area=float(person.mean()),
    )


def correct(teacher: Bools, student: NDArray[np.floating]) -> tuple[Bools, Bools]:
    """The mended label and the pixels to ignore, both (H, W) bool.

    Where they differ outside the band around the teacher's outline, a sure student (|P − .5| ≥ .3) sets the label and
    an unsure one leaves it and has the pixel ignored.

    Raises:
        ValueError: If the shapes differ, are empty, or a probability lies outside [0, 1].
    """
    _check_maps(teacher, student)
    label = np.asarray(teacher, np.bool_)
    person = np.asarray(student >= 0.5, np.bool_)
    differ = ~_band(label) & (label != person)
    sure = np.abs(student - 0.5) >= UNSURE
    return np.where(differ & sure, person, label), differ & ~sure


def _check_maps(teacher: NDArray[np.generic], student: NDArray[np.floating]) -> None:
    if teacher.shape != student.shape or teacher.ndim != 2 or teacher.size == 0:
        raise ValueError(f"teacher and student must share one shape (H, W), got {teacher.shape} and {student.shape}")
    for name, values in (("teacher", teacher), ("student", student)):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} probabilities must lie in [0, 1], got {low}..{high}")


def _band(label: Bools, share: float = BAND) -> Bools:
    """Pixels within k of the other side of the outline; the image border is no outline."""
    reach = max(1, round(share * math.hypot(*label.shape)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    pixels = label.astype(np.uint8)
    return np.asarray(cv2.dilate(pixels, kernel) != cv2.erode(pixels, kernel))


def _largest(mask: Bools) -> int:
    if not mask.any():
        return 0
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    return int(stats[1:, cv2.CC_STAT_AREA].max())


def _softmin(scores: NDArray[np.floating], temperature: float = 0.1) -> float:
    if scores.size == 0:
        return 1.0
    values = scores.astype(np.float64)
    weights = np.exp((values.min() - values) / temperature)
    return float((weights * values).sum() / weights.sum())


def _entropy(probability: NDArray[np.floating]) -> float:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean())
