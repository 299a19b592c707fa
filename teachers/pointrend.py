"""PointRend behind the `Backend` protocol: from images to person probabilities, as Detectron2 does it."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teachers import instance
from teachers.backbone import STRIDE, BackboneConfig, network_size, normalise, pad, resize, restore
from teachers.fuse import quicken
from teachers.instance import InstancePointRend
from teachers.semantic import SemanticConfig, SemanticPointRend
from teachers.teacher import Person, Soft, TeacherError

PointRend = SemanticPointRend | InstancePointRend


class PointRendBackend:
    """A semantic or instance PointRend.

    Args:
        model: The network; left as it was, as what runs is a faster copy (`teachers.fuse`).
        sha256: Digest of its file.
        device: Where it runs, as torch names it.
        precision: Type of the arithmetic inside the networks; masks are assembled in float32 always.
        person_score: Least score of a detected person (instance model).
        compiled: Whether torch compiles backbone and coarse head, once for all sizes. Meant for GPUs; on a CPU it
            replaces the faster convolutions of `teachers.winograd`, which a compiler cannot see through.

    Raises:
        TeacherError: It shall be compiled, and torch has no working compiler here.
    """

    def __init__(
        self,
        model: PointRend,
        sha256: str,
        *,
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
        person_score: float = 0.5,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.model = quicken(model, precision=precision, tile=0 if compiled else _tile(self.device, precision))
        self.model.to(self.device)
        self.config: BackboneConfig = model.config
        if compiled:
            _compile(self.model, self.device)
        self.person_score = person_score
        self.sha256 = sha256
        self.id = f"pointrend-{self.config.architecture}-r{self.config.depth}-{sha256[:12]}"

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:
        """See `teachers.teacher.Backend`.

        The networks' group normalisation sees the padding, and rounding differs with the batch; so on a CPU, where a
        batch saves little, images go through one by one, and elsewhere with others of their network size only.
        """
        sizes = [_size(x, self.config, scale) for x in images]
        batches = [[i] for i in range(len(images))] if self.device.type == "cpu" else same_size(sizes)
        out: dict[int, Soft] = {}
        for batch in batches:
            found = self._batch([images[i] for i in batch], sizes[batch[0]])
            out |= dict(zip(batch, found, strict=True))
        return [out[i] for i in range(len(images))]

    def _batch(self, images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> list[Soft]:
        inputs = pad([normalise(resize(x, size), self.config) for x in images]).to(self.device)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            if isinstance(self.model, SemanticPointRend):
                logits = self.model(inputs)
                return [_semantic(y, size, x.shape[:2], self.model.config) for y, x in zip(logits, images, strict=True)]
            found = self._detect(self.model, inputs, [size] * len(images))
            return [self._instances(y, size, x.shape[:2]) for y, x in zip(found, images, strict=True)]

    def _detect(
        self, model: InstancePointRend, inputs: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[instance.Detections]:
        """Only the persons that are kept get masks."""
        try:
            return model(inputs, sizes, only=model.config.person_classes, least_score=self.person_score)  # type: ignore[no-any-return]
        except FloatingPointError as error:
            raise TeacherError(f"the network of {self.id} gave a value that is not finite: {error}") from error

    def _instances(self, found: instance.Detections, inner: tuple[int, int], outer: tuple[int, int]) -> Soft:
        assert isinstance(self.model, InstancePointRend)
        scaled = instance.rescale(found, inner, outer)
        probability, boxes, scores = instance.person(scaled, outer, self.model.config.person_classes, self.person_score)
        persons = [
            Person(box=(x0, y0, x1, y1), score=score)
            for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]
        return Soft(probability=probability.cpu().numpy(), persons=tuple(persons))


def probabilities(model: SemanticPointRend, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Person probabilities (H, W) float32 of images (H, W, 3) uint8 RGB, one by one on the model's device."""
    device = next(model.parameters()).device
    out = []
    with torch.inference_mode():
        for image in images:
            size = _size(image, model.config, 1.0)
            inputs = pad([normalise(resize(image, size), model.config)]).to(device)
            logits = model(inputs.contiguous(memory_format=torch.channels_last))[0]
            out.append(_semantic(logits, size, image.shape[:2], model.config).probability)
    return out


def _semantic(logits: Tensor, inner: tuple[int, int], outer: tuple[int, int], config: SemanticConfig) -> Soft:
    """Cut, resize back, softmax (C, H, W) -> the persons' share; a sum of classes may round above 1."""
    logits = logits[:, : inner[0], : inner[1]] if inner == outer else restore(logits, inner, outer)
    share = logits.softmax(dim=0)[list(config.person_classes)].sum(dim=0)
    return Soft(probability=share.clamp(max=1.0).cpu().numpy())


def _tile(device: torch.device, precision: torch.dtype) -> int:
    """Winograd's tile: none on a GPU, whose libraries know better, nor where the processor multiplies tiles itself.

    Its values grow by two digits, which float16 has no room for.
    """
    if device.type != "cpu" or precision == torch.float16:
        return 0
    matrices = precision == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return 0 if matrices else 4


def _compile(model: PointRend, device: torch.device) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a compiler fails in many ways
        first = str(error).strip().split("\n")[0]
        raise TeacherError(f"teacher.compile: torch has no working compiler on {device}: {first}") from error
    model.backbone.compile(dynamic=True)
    if isinstance(model, SemanticPointRend):
        model.sem_seg_head.coarse_sem_seg_head.compile(dynamic=True)


def _size(image: NDArray[np.uint8], config: BackboneConfig, scale: float) -> tuple[int, int]:
    """That of the network's input; its longer edge is above the stride, as p5 of one pixel has no deviation."""
    shortest, longest = (max(STRIDE + 1, round(x * scale)) for x in (config.min_size_test, config.max_size_test))
    return network_size(*image.shape[:2], shortest=shortest, longest=longest)


def same_size(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of (height, width), those of one size together."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    return [list(group) for _, group in groupby(order, key=lambda i: sizes[i])]
