"""What is measured of one image, and of many: pure formulas.

Of truth T and found mask F (p >= 0.5), both without the ignored pixels:

    score          definition                      T and F empty    T empty    F empty
    iou            |T & F| / |T | F|               1                0          0
    boundary_iou   the same of their bands         1                0          0
    precision      |T & F| / |F|                   none             0          none
    recall         |T & F| / |T|                   none             none       0

An image all of whose pixels are ignored has no score at all. What is none is in no mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.boundary import band_width, boundary
from evaluation.masks import confusion, iou
from teachers.teacher import Prediction

#: What is averaged over images.
METRICS = ("iou", "boundary_iou", "precision", "recall")
#: Width of the band of the Boundary IoU, as a part of the diagonal.
BOUNDARY_RATIO = 0.02
#: The class of images whose class is not known.
UNKNOWN = "unknown"
#: A mean over fewer images gets no interval.
LEAST_IMAGES = 10
#: Of the bootstrap.
RESAMPLES, LEVEL, SEED = 2000, 0.95, 0

Attributes = Mapping[str, Mapping[str, str | None]]
"""Image -> attribute -> class; what is missing or None is not known."""

_DRAWS = 2**20  # random numbers at a time
_FAR = 10.0  # beyond any end of an interval of scores in [0, 1] that says something


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScore:
    """One image, as a row of `images.parquet`; areas are shares of the pixels that count.

    Attributes:
        name: That of the sample.
        iou: In [0, 1], like all that follow but `persons`; None without a counted pixel.
        boundary_iou: Of the official band, 2 % of the diagonal wide, the image border being boundary. Where ignored,
            the found mask is taken to be the truth and no band counts: a mask cut there would get a border of its own.
        precision: None where nothing is found.
        recall: None where there is nothing to find.
        label_confidence: The teacher's, of the whole image.
        boundary_uncertainty: Likewise.
        persons: How many the teacher detected; None where it knows no instances.
        area_truth: The person's; None without a counted pixel.
        area_found: Likewise.
        ignored: Share of the image's pixels that do not count.
    """

    name: str
    iou: float | None
    boundary_iou: float | None
    precision: float | None
    recall: float | None
    label_confidence: float
    boundary_uncertainty: float
    persons: int | None
    area_truth: float | None
    area_found: float | None
    ignored: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The mean of a score over images, and how sure it is.

    Attributes:
        mean: None over no image.
        low: Lower end of the 95 % interval; None below `LEAST_IMAGES` images.
        high: Upper end.
        images: How many have the score.
    """

    mean: float | None
    low: float | None
    high: float | None
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """The images of one class of one attribute, as a row of `classes.csv`.

    Attributes:
        attribute: Its name, or "overall".
        name: Of the class, or "all".
        images: How many.
        scores: An estimate of each of `METRICS`.
    """

    attribute: str
    name: str
    images: int
    scores: Mapping[str, Estimate]


def score(name: str, prediction: Prediction, truth: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> ImageScore:
    """Measure what a teacher said of one image against its truth (H, W) bool, without the pixels of `ignore`.

    Raises:
        ValueError: The shapes differ.
    """
    keep = ~ignore
    found = prediction.probability >= 0.5
    both, extra, missed, _ = confusion(found & keep, truth & keep)
    counted = int(np.count_nonzero(keep))
    persons = prediction.persons
    return ImageScore(
        name=name,
        iou=float(iou(found, truth, ignore)) if counted else None,
        boundary_iou=_boundary_iou(found, truth, ignore) if counted else None,
        precision=_share(both, both + extra),
        recall=_share(both, both + missed),
        label_confidence=prediction.label_confidence,
        boundary_uncertainty=prediction.boundary_uncertainty,
        persons=None if persons is None else len(persons),
        area_truth=_share(both + missed, counted),
        area_found=_share(both + extra, counted),
        ignored=(keep.size - counted) / keep.size,
    )


def estimate(values: NDArray[np.float64]) -> Estimate:
    """The mean of scores in [0, 1] and its 95 % interval, by a bootstrap-t over images with a fixed seed.

    Scores are skewed, and a bootstrap of the mean itself is too narrow then. A side that has no end, as many resamples
    are of one value (nearly all scores are), is that of the means. Images are taken to be independent; of several from
    one video or of one person, the interval is too narrow.

    Args:
        values: (N,) float64.
    """
    if values.size == 0:
        return Estimate(mean=None, low=None, high=None, images=0)
    mean = float(values.mean())
    if values.size < LEAST_IMAGES:
        return Estimate(mean=mean, low=None, high=None, images=values.size)
    means, errors = _resampled(values)
    difference = means - mean
    # A resample of one value is infinitely far from any other mean, and no way from its own.
    t = np.where(difference == 0.0, 0.0, difference / np.maximum(errors, np.finfo(np.float64).tiny))
    sides = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    ends = mean - _error(values) * np.quantile(t, sides[::-1], method="nearest")
    plain = np.quantile(means, sides)
    low, high = np.clip(np.where(np.abs(ends) < _FAR, ends, plain), 0.0, 1.0)
    return Estimate(mean=mean, low=float(low), high=float(high), images=values.size)


def by_class(images: Sequence[ImageScore], attributes: Attributes, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """All images, then those of each class of the attributes `names`, by name and "unknown" last."""
    rows = [_class_score("overall", "all", images)]
    for attribute in names:
        groups: dict[str, list[ImageScore]] = {}
        for image in images:
            groups.setdefault(attributes.get(image.name, {}).get(attribute) or UNKNOWN, []).append(image)
        ordered = sorted(groups, key=lambda name: (name == UNKNOWN, name))
        rows += [_class_score(attribute, name, groups[name]) for name in ordered]
    return tuple(rows)


def _boundary_iou(found: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> float:
    """See `ImageScore`; without an ignored pixel the same as `evaluation.boundary.boundary_iou`."""
    height, width = truth.shape
    d = band_width(height, width, BOUNDARY_RATIO)
    return float(iou(boundary(np.where(ignore, truth, found), d), boundary(truth, d), ignore))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _resampled(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard errors (`RESAMPLES`,) of images drawn with replacement."""
    rng = np.random.default_rng(SEED)
    at_once = max(1, _DRAWS // values.size)
    means, errors = [], []
    for start in range(0, RESAMPLES, at_once):
        drawn = values[rng.integers(values.size, size=(min(at_once, RESAMPLES - start), values.size))]
        means.append(drawn.mean(axis=1))
        errors.append(_error(drawn))
    return np.concatenate(means), np.concatenate(errors)


def _error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the last axis."""
    error: NDArray[np.float64] = values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])
    return error


def _class_score(attribute: str, name: str, images: Sequence[ImageScore]) -> ClassScore:
    scores = {}
    for metric in METRICS:
        values = [getattr(image, metric) for image in images]
        scores[metric] = estimate(np.array([value for value in values if value is not None], np.float64))
    return ClassScore(attribute=attribute, name=name, images=len(images), scores=scores)
