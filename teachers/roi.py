"""What is in a box: pooling from the pyramid, the box head, and its detections (Fast and Mask R-CNN over an FPN).

Letters: N images, R boxes (of all images, in their order), K classes, C channels.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, roi_align

from teachers.fpn import LEVELS
from teachers.rpn import Weights, clip, decode

POOLED = 7
BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
#: A box of this edge is read from p4 (FPN, equation 1).
_CANONICAL_EDGE, _CANONICAL_LEVEL = 224, 4


class BoxHead(nn.Module):
    """Two fully connected layers over 7 x 7 features."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = linear(channels * POOLED * POOLED, width)
        self.fc2 = linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 7, 7) -> (R, F)."""
        return functional.relu(self.fc2(functional.relu(self.fc1(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """Logits of K classes and, last, of the background; four deltas for each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, F) -> logits (R, K + 1) and deltas (R, 4 K), float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float()


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as Detectron2 starts it (uniform, variance 1 / inputs; bias 0)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def level_of(boxes: Tensor) -> Tensor:
    """Which of p2..p5 each of (R, 4) is read from: (R,) int64 in 2..5 (FPN, equation 1)."""
    edge = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(edge / _CANONICAL_EDGE + 1e-8))
    return level.clamp(min=LEVELS[0], max=LEVELS[-1]).to(torch.int64)


def pool(features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """RoIAlign (He et al., 2017; half a pixel shifted back) of boxes (R_i, 4) of each image -> (R, C, 7, 7)."""
    together = torch.cat(list(boxes))
    image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
    rois, levels = torch.cat([image, together], dim=1), level_of(together)
    p2 = features["p2"]
    out = p2.new_zeros((len(rois), p2.shape[1], POOLED, POOLED))
    for level in LEVELS:
        here = torch.nonzero(levels == level)[:, 0]
        part = align(features[f"p{level}"], rois[here], POOLED, 1 / 2**level)
        out = out.index_put((here,), part.to(out.dtype))
    return out


def align(features: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """RoIAlign of (N, C, H, W) at (R, 5) = (image, box), with as many samples as pixels -> (R, C, side, side)."""
    out = roi_align(features, rois, side, spatial_scale=scale, sampling_ratio=0, aligned=True)
    return cast("Tensor", out)


def class_boxes(deltas: Tensor, proposals: Tensor) -> Tensor:
    """Deltas (R, 4 K) of proposals (R, 4) -> the box of each class, (R, K, 4)."""
    each = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    return decode(each, proposals[:, None], BOX_WEIGHTS)


def detect(
    logits: Tensor, boxes: Tensor, size: tuple[int, int], *, least: float, threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image's detections, best first: boxes (D, 4), scores (D,) in (least, 1], classes (D,) int64.

    Args:
        logits: (R, K + 1), the background last.
        boxes: (R, K, 4), cut here to the image.
        size: (height, width) of the image before padding.
        least: A class below or at this probability is not reported.
        threshold: Of two boxes of one class with a larger IoU, the worse one goes.
        most: How many are kept.

    Raises:
        FloatingPointError: The network gave values that are not finite.
    """
    if not (bool(logits.isfinite().all()) and bool(boxes.isfinite().all())):
        raise FloatingPointError("the box head gave values that are not finite: check weights and input")
    scores = logits.softmax(dim=1)[:, :-1]
    row, cls = torch.nonzero(scores > least, as_tuple=True)
    found, best = clip(boxes[row, cls], size), scores[row, cls]
    keep = batched_nms(found, best, cls, threshold)[:most]
    return found[keep], best[keep], cls[keep]
