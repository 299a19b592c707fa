"""What a teacher is: a thing with a name and a digest that turns images into person probabilities.

A `Backend` runs one network on one view of an image; `Labeller` makes a `Teacher` of it: it checks what goes in and
comes out, averages views, tempers, and scores. Letters: H and W rows and columns of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.boundary import band, band_width
from teachers.calibrate import temper


class TeacherError(RuntimeError):
    """A teacher was given, or gave, something that is no image or no probability, or it cannot run here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One detected person.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the image.
        score: In [0, 1].
    """

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Soft:
    """What a backend says of one view.

    Attributes:
        probability: (H, W) float32 in [0, 1], at the image's own size.
        persons: The detected persons, by falling score; None where the model knows no instances.
    """

    probability: NDArray[np.float32]
    persons: tuple[Person, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a teacher says of one image.

    Attributes:
        probability: (H, W) float32 in [0, 1], that of a person at each pixel, at the image's own size.
        label_confidence: In [0.5, 1]. Mean of max(p, 1 - p) over the person (p >= 0.5) and a band around its
            contour; over the whole image where there is no person.
        boundary_uncertainty: In [0, 1]. Mean of 1 - |2p - 1| over a band around the contour of p = 0.5; 0 where
            there is no contour.
        persons: The detected persons, by falling score; None where the model knows no instances.
    """

    probability: NDArray[np.float32]
    label_confidence: float
    boundary_uncertainty: float
    persons: tuple[Person, ...] | None = None


class Backend(Protocol):
    """A network and how to run it."""

    @property
    def id(self) -> str:
        """A short name, for records."""

    @property
    def sha256(self) -> str:
        """The digest of the file of weights."""

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:
        """Person probabilities of images (H, W, 3) uint8 RGB, valid and not empty.

        Args:
            images: An answer does not depend on the others of the call.
            scale: Multiplies the size that the network sees.
        """


class Teacher(Protocol):
    """Anything that labels images.

    Attributes:
        id: A short name, for records.
        sha256: The digest of the file it was read from.
    """

    @property
    def id(self) -> str:
        """A short name, for records."""

    @property
    def sha256(self) -> str:
        """The digest of the file of weights."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Label images, each (H, W, 3) uint8 RGB; an answer does not depend on the other images of the call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labeller:
    """A `Teacher` made of a backend; every answer is the mean over its views.

    Attributes:
        backend: Runs the network.
        flip: Whether each scale is seen mirrored, too.
        scales: Sizes seen, as factors of the network's own. Detected persons are those of the first, not mirrored.
        temperature: Divides the person's log-odds (see `teachers.calibrate`); moves no mask.
    """

    backend: Backend
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    temperature: float = 1.0

    @property
    def id(self) -> str:
        """The backend's."""
        return self.backend.id

    @property
    def sha256(self) -> str:
        """The backend's."""
        return self.backend.sha256

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Label images, each (H, W, 3) uint8 RGB.

        Raises:
            TeacherError: An image is not (H, W, 3) uint8 or is empty, or the network's output is not finite or no
                probability; the message names the image's index.
        """
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise TeacherError(f"image {index} must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        first = self._view(images, self.scales[0], mirrored=False)
        sums = [soft.probability for soft in first]
        for scale, mirrored in self._others():
            for index, soft in enumerate(self._view(images, scale, mirrored=mirrored)):
                sums[index] = sums[index] + (soft.probability[:, ::-1] if mirrored else soft.probability)
        views = np.float32(len(self.scales) * (1 + self.flip))
        means = [np.ascontiguousarray(total / views) if views > 1 else total for total in sums]
        return [
            summarise(temper(mean, self.temperature), soft.persons) for mean, soft in zip(means, first, strict=True)
        ]

    def _others(self) -> list[tuple[float, bool]]:
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        return views[1:]

    def _view(self, images: Sequence[NDArray[np.uint8]], scale: float, *, mirrored: bool) -> list[Soft]:
        seen = [np.ascontiguousarray(image[:, ::-1]) for image in images] if mirrored else images
        found = self.backend.soft(seen, scale)
        for index, (soft, image) in enumerate(zip(found, images, strict=True)):
            p = soft.probability
            if p.shape != image.shape[:2] or p.dtype != np.float32 or not (p.min() >= 0 and p.max() <= 1):
                raise TeacherError(
                    f"image {index}: the network of {self.id} gave no probabilities, or some that are not finite"
                )
        return found


def summarise(probability: NDArray[np.float32], persons: tuple[Person, ...] | None = None) -> Prediction:
    """The prediction with the scores that its docstring defines, from (H, W) float32 in [0, 1]."""
    person = probability >= 0.5
    edge = _band(person)
    where = person | edge
    p = probability.astype(np.float64)
    sure = np.maximum(p, 1.0 - p)
    unsure = 1.0 - np.abs(2.0 * p - 1.0)
    return Prediction(
        probability=probability,
        label_confidence=float(sure[where].mean() if person.any() else sure.mean()),
        boundary_uncertainty=float(unsure[edge].mean()) if edge.any() else 0.0,
        persons=persons,
    )


def _band(person: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels near the contour, on both sides (2 % of the diagonal); none where the mask is empty or full."""
    height, width = person.shape
    return band(person, band_width(height, width))
