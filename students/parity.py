"""Whether an exported student says what the student says, frame by frame.

```
each frame ─▶ cut to each of the five aspects ─▶ student, export ─▶ two masks  without a previous mask
each frame twice, in order ─▶ two trackers ─▶ two masks                        with its own previous mask, 4 channels
```

The second path lets a difference grow from frame to frame, as it would on a device. Every frame comes twice, so that
even pictures that have nothing to do with each other feed a mask back.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.masks import iou
from students.card import Precision
from students.data import Pixels, Size, bucket_sizes, fit_image, nearest_bucket
from students.prior import network_input
from students.tracker import Tracker, TrackerConfig

Run = Callable[[Tensor], Tensor]

LEAST_IOU: dict[Precision, float] = {"float32": 0.995, "int8": 0.98}
"""What the mean intersection over union must reach."""


class Picture(NamedTuple):
    """A frame to compare on: its name and (h, w, 3) uint8 RGB."""

    name: str
    pixels: Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How an export differs from its student.

    Attributes:
        masks: Pairs of masks compared.
        fed_back: Those of them that had seen a previous mask.
        iou_mean: Mean intersection over union of the two masks; two empty masks agree.
        iou_worst: The least.
        worst: Which frame that was.
        logit_difference: The greatest difference of a logit.
    """

    masks: int
    fed_back: int
    iou_mean: float
    iou_worst: float
    worst: str
    logit_difference: float

    def fault(self, precision: Precision) -> str | None:
        """Why the export must not be shipped, in a line; None if it may."""
        least = LEAST_IOU[precision]
        if self.iou_mean >= least:  # not so for NaN
            return None
        worst = f"worst {self.iou_worst:.4f} at {self.worst}, logits differ by up to {self.logit_difference:.3g}"
        return f"mean IoU with the student must be >= {least} for {precision}, got {self.iou_mean:.4f} ({worst})"


class _Pair(NamedTuple):
    name: str
    iou: float
    difference: float
    fed_back: bool


def compare(student: Run, exported: Run, pictures: Sequence[Picture], *, side: int, in_channels: int) -> Parity:
    """Compare an export with its student.

    Args:
        student: (1, C, H, W) float32 to logits (1, 1, H, W), such as a ``Student`` in evaluation mode.
        exported: The same, as exported.
        pictures: At least one.
        side: Of the buckets.
        in_channels: C, 3 or 4.

    Raises:
        ValueError: If there is no picture, or a network refuses one.
    """
    if not pictures:
        raise ValueError("a comparison needs at least 1 picture, got 0")
    pairs = list(_alone(student, exported, pictures, side, in_channels))
    if in_channels == 4:
        pairs += _chained(student, exported, pictures, side)
    worst = min(pairs, key=lambda pair: pair.iou)
    return Parity(
        masks=len(pairs),
        fed_back=sum(pair.fed_back for pair in pairs),
        iou_mean=statistics.fmean(pair.iou for pair in pairs),
        iou_worst=worst.iou,
        worst=worst.name,
        logit_difference=float(np.max([pair.difference for pair in pairs])),  # NaN stays
    )


def _alone(student: Run, exported: Run, pictures: Sequence[Picture], side: int, channels: int) -> Iterator[_Pair]:
    for picture in pictures:
        for size in bucket_sizes(side):
            images = network_view(fit_image(_cut(picture.pixels, size), size)[0], channels)
            with torch.inference_mode():
                ours, theirs = student(images), exported(images)
            name = f"{picture.name} at {size[0]}x{size[1]}"
            yield _Pair(name, iou(_mask(ours), _mask(theirs)), float((ours - theirs).abs().max()), False)


def _mask(logits: Tensor) -> NDArray[np.bool_]:
    return np.asarray(logits[0, 0].numpy() > 0, np.bool_)


def _cut(pixels: Pixels, size: Size) -> Pixels:
    """The middle of an image, as large as it can be at the aspect of ``size``."""
    height, width = pixels.shape[:2]
    h = max(1, min(height, round(width * size[0] / size[1])))
    w = max(1, min(width, round(height * size[1] / size[0])))
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(pixels[top : top + h, left : left + w])


def network_view(fitted: Pixels, in_channels: int) -> Tensor:
    """(H, W, 3) uint8 as a network sees it without a previous mask: (1, C, H, W) float32."""
    image = torch.from_numpy(np.ascontiguousarray(fitted)).permute(2, 0, 1)[None]
    if in_channels == 3:
        return image.float() / 255
    return network_input(image, torch.zeros(1, 1, *fitted.shape[:2]))


class _Heard:
    """A network that remembers what went in and what came out last."""

    def __init__(self, network: Run) -> None:
        self._network = network
        self.images = self.logits = torch.zeros(0)

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            self.images, self.logits = images, self._network(images)
        return self.logits


def _chained(student: Run, exported: Run, pictures: Sequence[Picture], side: int) -> Iterator[_Pair]:
    ours, theirs = _Heard(student), _Heard(exported)
    trackers = [Tracker(network, TrackerConfig(side=side)) for network in (ours, theirs)]
    for picture in pictures:
        for turn in (1, 2):
            masks = [tracker.update(picture.pixels) > 0.5 for tracker in trackers]
            difference = float((ours.logits - theirs.logits).abs().max())
            name = f"{picture.name}, turn {turn}"
            yield _Pair(name, iou(masks[0], masks[1]), difference, trackers[0].started is None)


def calibration_images(student: Run, pictures: Sequence[Picture], *, side: int, in_channels: int) -> list[Tensor]:
    """What the student sees of pictures, (1, C, H, W) each: with 4 channels both without and with its previous mask."""
    heard = _Heard(student)
    if in_channels == 4:
        tracker = Tracker(heard, TrackerConfig(side=side))
        seen = []
        for picture in pictures:
            for _ in range(2):
                tracker.update(picture.pixels)
                seen.append(heard.images)
        return seen
    sizes = bucket_sizes(side)
    fitted = [fit_image(p.pixels, nearest_bucket(p.pixels.shape[0], p.pixels.shape[1], sizes))[0] for p in pictures]
    return [network_view(pixels, in_channels) for pixels in fitted]


def latency_ms(network: Run, *, size: Size, in_channels: int, rounds: int) -> float:
    """Median CPU milliseconds of one image of noise (H, W), over all threads of the process, after three to warm up."""
    images = torch.rand(1, in_channels, *size, generator=torch.Generator().manual_seed(0))
    taken = []
    with torch.inference_mode():
        for _ in range(3 + rounds):
            start = time.process_time()
            network(images)
            taken.append(time.process_time() - start)
    return 1000 * statistics.median(taken[3:])
