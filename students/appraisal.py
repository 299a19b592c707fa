"""The held-out images of a training: scored while it goes on, and looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import picture
from evaluation.boundary import iou_and_boundary_iou
from evaluation.picture import Tile
from students.data import Pixels, Size, fit_image, nearest_bucket, resize
from students.decoding import decode_plane, decode_reduced
from students.model import Student
from students.prior import network_input
from students.views import Encoded, View, naming

SHOWN = 24
_SIDE, _COLUMNS = 256, 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well one image was segmented, at its own size.

    Attributes:
        name: Of the image.
        iou: In [0, 1]; 1 where neither has a person.
        boundary_iou: In [0, 1]; likewise.
    """

    name: str
    iou: float
    boundary_iou: float


def predict(student: Student, image: Pixels, sizes: Sequence[Size]) -> NDArray[np.float32]:
    """Probabilities (h, w) float32 in [0, 1] of one image alone, with an empty previous mask.

    Args:
        student: In evaluation mode.
        image: (h, w, 3) uint8 RGB of any size.
        sizes: The sizes that the student sees.
    """
    device = next(student.parameters()).device
    fitted, (height, width) = fit_image(image, nearest_bucket(image.shape[0], image.shape[1], sizes))
    with torch.inference_mode():
        images = torch.from_numpy(fitted).permute(2, 0, 1)[None].to(device)
        empty = torch.zeros((1, 1, *fitted.shape[:2]), device=device)
        seen = images.float() / 255 if student.config.in_channels == 3 else network_input(images, empty)
        mask = torch.sigmoid(student(seen).float())[0, 0, :height, :width].cpu().numpy()
    return np.asarray(np.clip(resize(mask, (image.shape[0], image.shape[1])), 0, 1), np.float32)


def check(samples: Sequence[Encoded]) -> None:
    """Decode every image and mask once.

    Raises:
        SampleError: One is broken, or of another size; the message names the sample.
    """
    for sample in samples:
        _pixels(sample)
        _planes(sample)


def scores(student: Student, samples: Sequence[Encoded], sizes: Sequence[Size]) -> list[Score]:
    """The score of each image that has a pixel that counts, in order."""
    found = []
    for sample in samples:
        truth, ignore = _planes(sample)
        if not ignore.all():
            mask = predict(student, _pixels(sample), sizes) >= 0.5
            both = iou_and_boundary_iou(mask, truth, void=ignore)
            found.append(Score(name=sample.name, iou=both.iou, boundary_iou=both.boundary_iou))
    return found


def overlays(student: Student, samples: Sequence[Encoded], sizes: Sequence[Size], found: Sequence[Score]) -> bytes:
    """A JPEG of up to SHOWN images with their mistakes, from the worst IoU to the best, evenly spaced."""
    named = {sample.name: sample for sample in samples}
    ranked = sorted(found, key=lambda score: (score.iou, score.name))
    places = sorted({round(i) for i in np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked)))})
    tiles = []
    for score in (ranked[place] for place in places):
        image, (truth, ignore) = _pixels(named[score.name]), _planes(named[score.name])
        small, masks = picture.shrink(image, [predict(student, image, sizes) >= 0.5, truth, ignore], _SIDE)
        caption = f"{score.name}\nIoU {score.iou:.2f}  boundary {score.boundary_iou:.2f}"
        tiles.append(Tile(picture=picture.overlay(small, *masks), caption=caption))
    return picture.sheet(tiles, columns=_COLUMNS, side=_SIDE, legend=picture.LEGEND)


def views_sheet(views: Sequence[View], names: Sequence[str]) -> bytes:
    """A JPEG of what a network is trained on: each view with its target, and beside it the previous mask it is shown.

    Small views are enlarged, each pixel as it is.
    """
    tiles = []
    for view, name in zip(views, names, strict=True):
        wide = view.image.shape[1] >= view.image.shape[0]
        sides = np.array(view.image.shape[:2]) * (1 if view.prior is None else (2, 1) if wide else (1, 2))
        factor = max(1.0, _SIDE / int(sides.max()))
        image, target, ignore = (_enlarged(plane, factor) for plane in (view.image, view.target, view.ignore))
        shown = picture.overlay(image, (target >= 128) & ~ignore, None, ignore)
        if view.prior is not None:
            prior = np.rint(255 * _enlarged(view.prior, factor)).astype(np.uint8)
            shown = np.concatenate([shown, np.repeat(prior[:, :, None], 3, axis=2)], axis=0 if wide else 1)
        tiles.append(Tile(picture=shown, caption=name if view.kind is None else f"{name}\nprevious mask: {view.kind}"))
    legend = (("person", picture.FOUND), ("without a say", picture.IGNORED))
    return picture.sheet(tiles, columns=_COLUMNS, side=_SIDE, legend=legend)


def _enlarged(plane: NDArray[Any], factor: float) -> NDArray[Any]:
    """(H, W, ..) to about (factor H, factor W, ..), the nearest pixel each."""
    rows, columns = ((np.arange(int(side * factor)) / factor).astype(int) for side in plane.shape[:2])
    return np.asarray(plane[rows][:, columns])


def _pixels(sample: Encoded) -> Pixels:
    with naming(sample):
        return decode_reduced(sample.image, (sample.height, sample.width), 1.0)[0]


def _planes(sample: Encoded) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    size = (sample.height, sample.width)
    with naming(sample):
        truth = decode_plane(sample.mask, size)
        return truth, np.zeros_like(truth) if sample.ignore is None else decode_plane(sample.ignore, size)
