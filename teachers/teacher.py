"""What a teacher is: a thing with a name and a digest that turns images into person probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.boundary import band, band_width
from teachers import checkpoint
from teachers.semantic import (
    SemanticConfig,
    SemanticPointRend,
    network_size,
    normalise,
    pad,
    resize,
    restore,
)

_RIDER = 12
_CITYSCAPES = 19


class TeacherError(RuntimeError):
    """A teacher was given, or gave, something that is no image or no probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a teacher says of one image.

    Attributes:
        probability: (H, W) float32 in [0, 1], that of a person at each pixel, at the image's own size.
        label_confidence: In [0.5, 1]. Mean of max(p, 1 - p) over the person (p >= 0.5) and a band around its
            contour; over the whole image where there is no person.
        boundary_uncertainty: In [0, 1]. Mean of 1 - |2p - 1| over a band around the contour of p = 0.5; 0 where
            there is no contour.
    """

    probability: NDArray[np.float32]
    label_confidence: float
    boundary_uncertainty: float


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


def summarise(probability: NDArray[np.float32]) -> Prediction:
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
    )


def _band(person: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels near the contour, on both sides (2 % of the diagonal); none where the mask is empty or full."""
    height, width = person.shape
    return band(person, band_width(height, width))


class PointRendTeacher:
    """A semantic PointRend behind the `Teacher` protocol.

    Args:
        model: The network; put into evaluation mode.
        sha256: Digest of its file.
        device: Where it runs.
    """

    def __init__(self, model: SemanticPointRend, sha256: str, device: str = "cpu") -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self.config: SemanticConfig = model.config
        self.device = device
        self.sha256 = sha256
        self.id = f"pointrend-semantic-r{model.config.depth}-{sha256[:12]}"

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Label images, each (H, W, 3) uint8 RGB.

        The network's group normalisation sees the padding, and rounding differs with the batch; so on a CPU, where
        a batch saves little, images go through one by one, and elsewhere only with others of exactly their size.

        Raises:
            TeacherError: An image is not (H, W, 3) uint8 or is empty, or the network's output is not finite; the
                message names the image's index.
        """
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise TeacherError(f"image {index} must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        batches = [[i] for i in range(len(images))] if self.device == "cpu" else same_size(images)
        out: dict[int, Prediction] = {}
        for batch in batches:
            for index, probability in zip(batch, self._probabilities([images[i] for i in batch]), strict=True):
                if not np.isfinite(probability).all():
                    raise TeacherError(f"image {index}: the network of {self.id} gave a value that is not finite")
                out[index] = summarise(probability)
        return [out[i] for i in range(len(images))]

    def _probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return probabilities(self.model, images, self.device)


def probabilities(
    model: SemanticPointRend, images: Sequence[NDArray[np.uint8]], device: str = "cpu"
) -> list[NDArray[np.float32]]:
    """Person probabilities (H, W) float32 of images (H, W, 3) uint8 RGB that share one network input.

    As Detectron2 does it: resize, normalise, pad to the largest of the batch, refine, cut, resize back, softmax.
    """
    config = model.config
    sizes = [_network_size(x, config) for x in images]
    inputs = pad([normalise(resize(x, s), config) for x, s in zip(images, sizes, strict=True)])
    with torch.inference_mode():
        logits = model(inputs.to(device).contiguous(memory_format=torch.channels_last))
        return [_person(restore(y, s, x.shape[:2]), config) for y, s, x in zip(logits, sizes, images, strict=True)]


def _person(logits: Tensor, config: SemanticConfig) -> NDArray[np.float32]:
    share = logits.softmax(dim=0)[list(config.person_classes)].sum(dim=0)
    out: NDArray[np.float32] = share.clamp(max=1.0).cpu().numpy()  # a sum of classes may round above 1
    return out


def _network_size(image: NDArray[np.uint8], config: SemanticConfig) -> tuple[int, int]:
    height, width = image.shape[:2]
    return network_size(height, width, shortest=config.min_size_test, longest=config.max_size_test)


def same_size(images: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
    """Indices of images, those of one size together."""
    order = sorted(range(len(images)), key=lambda i: images[i].shape)
    return [list(group) for _, group in groupby(order, key=lambda i: images[i].shape)]


def load_teacher(path: Path, *, riders: bool = False, device: str = "cpu") -> Teacher:
    """A teacher from a safetensors that `teach` wrote, or from a zoo `.pkl` or `.pth` of a semantic PointRend.

    Args:
        path: The file.
        riders: With the 19 classes of Cityscapes, whether a rider (12) counts as a person (11).
        device: Where it runs.

    Raises:
        CheckpointError: The file is broken, hostile, or does not fit the network it names.
    """
    sha256 = checkpoint.sha256_file(path) if path.is_file() else ""
    state = checkpoint.load_state(path)
    config = _stored_config(path) or checkpoint.infer_config(state)
    if riders and config.num_classes == _CITYSCAPES and _RIDER not in config.person_classes:
        config = replace(config, person_classes=(*config.person_classes, _RIDER))
    with torch.device("meta"):  # no memory is taken for what a file only claims to hold
        model = SemanticPointRend(config)
    try:
        checkpoint.match(state, model)
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"{path}: {error}") from error
    return PointRendTeacher(model, sha256, device)


def _stored_config(path: Path) -> SemanticConfig | None:
    stored = checkpoint.read_metadata(path) if path.suffix == ".safetensors" else None
    if stored is None:
        return None
    try:
        return SemanticConfig.from_dict(stored["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path}: its stored configuration is unusable: {error!r}") from error
