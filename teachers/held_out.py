"""The held-out images: scored while training goes on, and looked at closely when it ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation import picture
from evaluation.masks import iou
from evaluation.picture import Tile
from teachers import calibrate
from teachers.calibrate import Reliability
from teachers.crops import Scenes
from teachers.pointrend import probabilities
from teachers.points import IGNORE
from teachers.recipe import TeachError
from teachers.score import ImageScore, score
from teachers.semantic import SemanticPointRend
from teachers.teacher import summarise

SHOWN = 24
_SIDE, _COLUMNS = 256, 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Appraisal:
    """What the held-out images say of a network.

    Attributes:
        images: One score per image that has a counted pixel, by name.
        before: Reliability at temperature 1.
        after: That at the temperature that fits best.
        overlays: A sheet of up to `SHOWN` images, JPEG, from the worst IoU to the best, evenly spaced.
    """

    images: tuple[ImageScore, ...]
    before: Reliability
    after: Reliability
    overlays: bytes

    def mean(self, name: str) -> float:
        """The mean over images of a score in `ImageScore` that every counted image has."""
        return float(np.mean([getattr(image, name) for image in self.images]))


def mean_iou(network: SemanticPointRend, scenes: Scenes, names: tuple[str, ...]) -> float:
    """Mean IoU over the images that have a counted pixel, at their own size.

    Raises:
        TeachError: There is none.
    """
    return float(
        np.mean([iou(p >= 0.5, label == 1, label == IGNORE) for _, p, _, label in _seen(network, scenes, names)])
    )


def appraise(network: SemanticPointRend, scenes: Scenes, names: tuple[str, ...]) -> Appraisal:
    """Score every image, fit a temperature, and draw the sheet."""
    images: list[ImageScore] = []
    histogram = calibrate.empty()
    for name, probability, _, label in _seen(network, scenes, names):
        truth, ignore = label == 1, label == IGNORE
        images.append(score(name, summarise(probability), truth, ignore))
        histogram += calibrate.count(probability, truth, ignore)
    return Appraisal(
        images=tuple(images),
        before=calibrate.reliability(histogram),
        after=calibrate.reliability(histogram, calibrate.fit_temperature(histogram)),
        overlays=_overlays(network, scenes, images),
    )


def _seen(
    network: SemanticPointRend, scenes: Scenes, names: tuple[str, ...]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Name, probability, image and label of every image that is not ignored as a whole; at least one."""
    none = True
    for name in names:
        image, label = scenes.whole(name)
        if (label != IGNORE).any():
            none = False
            yield name, probabilities(network, [image])[0], image, label
    if none:
        raise TeachError(f"all pixels of the {len(names)} held-out images are ignored: mend ignore/ or add images")


def _overlays(network: SemanticPointRend, scenes: Scenes, images: Sequence[ImageScore]) -> bytes:
    """The sheet; what it shows is labelled once more, for no mask is kept."""
    ranked = sorted(images, key=lambda one: (one.iou or 0.0, one.name))
    places = sorted({round(i) for i in np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked)))})
    chosen = [ranked[place] for place in places]
    tiles = []
    for one, (_, probability, image, label) in zip(
        chosen, _seen(network, scenes, tuple(one.name for one in chosen)), strict=True
    ):
        small, masks = picture.shrink(image, [probability >= 0.5, label == 1, label == IGNORE], _SIDE)
        caption = f"{one.name}\nIoU {one.iou:.2f}  boundary {one.boundary_iou:.2f}"
        tiles.append(Tile(picture=picture.overlay(small, *masks), caption=caption))
    return picture.sheet(tiles, columns=_COLUMNS, side=_SIDE, legend=picture.LEGEND)
