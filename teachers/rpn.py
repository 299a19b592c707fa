"""Region proposals (Ren et al., 2015) over p2..p6, with Detectron2's parameter names and order.

Letters: N images, A anchors, R boxes, G boxes of the truth. A box is (x0, y0, x1, y1) in pixels of the network's
input; sizes are those of the images before padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms

PYRAMID = ("p2", "p3", "p4", "p5", "p6")
STRIDES = (4, 8, 16, 32, 64)
#: Edge of each level's square anchor.
SIZES = (32, 64, 128, 256, 512)
#: Height over width.
RATIOS = (0.5, 1.0, 2.0)
#: A box grows at most from 16 pixels to 1000 in one step.
_MOST_GROWTH = math.log(1000.0 / 16)

Weights = tuple[float, float, float, float]
RPN_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposals:
    """What one image's objects may be, best first.

    Attributes:
        boxes: (R, 4) float32 inside the image.
        logits: (R,) float32.
    """

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What the network says of one level of the pyramid.

    Attributes:
        anchors: (A, 4), in the order of rows, columns, ratios.
        logits: (N, A), that an object is there.
        deltas: (N, A, 4), from the anchor to the object.
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor


class RPNHead(nn.Module):
    """A 3x3 convolution, and for each anchor one logit and four deltas."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, 3)
        self.objectness_logits = _conv(channels, len(RATIOS), 1)
        self.anchor_deltas = _conv(channels, 4 * len(RATIOS), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> logits (N, H * W * 3) and deltas (N, H * W * 3, 4), float32."""
        x = functional.relu(self.conv(x))
        logits = self.objectness_logits(x).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)
        return logits.float(), deltas.float()


class ProposalGenerator(nn.Module):
    """The head with its place among the parameters, `proposal_generator.rpn_head`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rpn_head = RPNHead(channels)

    def forward(self, features: dict[str, Tensor]) -> list[Level]:
        """p2..p6 -> what is said of each level."""
        out = []
        for name, stride, size in zip(PYRAMID, STRIDES, SIZES, strict=True):
            x = features[name]
            logits, deltas = self.rpn_head(x)
            grid = anchors(x.shape[2], x.shape[3], stride, size).to(x.device)
            out.append(Level(anchors=grid, logits=logits, deltas=deltas))
        return out


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def anchors(height: int, width: int, stride: int, size: int) -> Tensor:
    """Anchors (height * width * 3, 4) around (x * stride, y * stride), in the order of rows, columns, ratios."""
    widths = [math.sqrt(size * size / ratio) for ratio in RATIOS]
    halves = torch.tensor([[w / 2, w * ratio / 2] for w, ratio in zip(widths, RATIOS, strict=True)])
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).to(torch.float32)
    return torch.cat([centres - halves, centres + halves], dim=-1).reshape(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """Boxes (..., 4) moved and scaled by (dx, dy, dw, dh) (..., 4), which `weights` divide (R-CNN, appendix C)."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / torch.tensor(weights, device=deltas.device)
    moved = deltas[..., :2] * size + centre
    half = 0.5 * (deltas[..., 2:].clamp(max=_MOST_GROWTH).exp() * size)
    return torch.cat([moved - half, moved + half], dim=-1)


def encode(targets: Tensor, boxes: Tensor, weights: Weights) -> Tensor:
    """The deltas (R, 4) that `decode` turns into `targets` (R, 4) from `boxes` (R, 4), neither of them empty."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    move = (targets[:, :2] + 0.5 * wanted - boxes[:, :2] - 0.5 * size) / size
    return torch.cat([move, (wanted / size).log()], dim=1) * torch.tensor(weights, device=boxes.device)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut to an image of `size` = (height, width)."""
    height, width = size
    most = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp(min=0).minimum(most)


def not_empty(boxes: Tensor) -> Tensor:
    """Which of (R, 4) have width and height above 0: (R,) bool."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


@torch.no_grad()
def propose(
    levels: Sequence[Level], sizes: Sequence[tuple[int, int]], *, before: int, after: int, threshold: float
) -> list[Proposals]:
    """The best boxes of each image.

    Args:
        levels: What the network says.
        sizes: (height, width) of each image before padding; boxes are cut to it and empty ones left out.
        before: Anchors of a level that are kept, by logit.
        after: Boxes of an image that are kept in the end.
        threshold: Of two boxes of one level with a larger IoU, the worse one goes.

    Raises:
        FloatingPointError: The network gave values that are not finite.
    """
    boxes, logits, ids = [], [], []
    for number, level in enumerate(levels):
        top, index = level.logits.topk(min(before, level.logits.shape[1]), dim=1)
        deltas = level.deltas.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        boxes.append(decode(deltas, level.anchors[index], RPN_WEIGHTS))
        logits.append(top)
        ids.append(torch.full_like(index[0], number))
    found, scores, level_of = torch.cat(boxes, dim=1), torch.cat(logits, dim=1), torch.cat(ids)
    if not (bool(found.isfinite().all()) and bool(scores.isfinite().all())):
        raise FloatingPointError("the proposal network gave values that are not finite: check weights and input")
    out = []
    for mine, score, size in zip(found, scores, sizes, strict=True):
        inside = clip(mine, size)
        real = torch.nonzero(not_empty(inside))[:, 0]
        keep = real[batched_nms(inside[real], score[real], level_of[real], threshold)[:after]]
        out.append(Proposals(boxes=inside[keep], logits=score[keep]))
    return out
