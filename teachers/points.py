"""Points of PointRend (Kirillov et al., 2020): sampling at points, choosing them, and the head that labels them.

Letters: N images, C channels or classes, H and W rows and columns, P points, R boxes (of all images, in their order).
A point is (x, y) in [0, 1]^2; (0, 0) is the outer corner of the first pixel, so the centre of column i is at
(i + 0.5) / W. A box is (x0, y0, x1, y1) in pixels of the network's input.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE = 255


def point_sample(features: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of (N, C, H, W) at points (N, P, 2) -> (N, C, P), or (N, A, B, 2) -> (N, C, A, B); 0 outside.

    Args:
        features: The maps.
        points: Where, as (x, y) in [0, 1]^2.
        mode: "bilinear" or "nearest".
    """
    grid = points if points.dim() == 4 else points.unsqueeze(2)
    out = functional.grid_sample(features, 2.0 * grid - 1.0, mode=mode, padding_mode="zeros", align_corners=False)
    return out if points.dim() == 4 else out.squeeze(3)


def regular_grid(side: int) -> Tensor:
    """The centres of a side x side grid over [0, 1]^2, row by row: (side * side, 2) float32."""
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def uncertainty(logits: Tensor) -> Tensor:
    """Second largest minus largest logit: (N, C, ...) with C >= 2 -> (N, 1, ...), at most 0, 0 most uncertain."""
    first, second = logits[:, :1].maximum(logits[:, 1:2]), logits[:, :1].minimum(logits[:, 1:2])
    for index in range(2, logits.shape[1]):  # on a CPU many times faster than topk
        here = logits[:, index : index + 1]
        second = second.maximum(first.minimum(here))
        first = first.maximum(here)
    return second - first


def class_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Each box's logits of its class: (R, C, ...) and (R,) int64 -> (R, 1, ...); C = 1 stands for all classes."""
    if logits.shape[1] == 1:
        return logits
    return logits[torch.arange(len(logits), device=logits.device), classes].unsqueeze(1)


def class_uncertainty(logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the size of the class's logit: (R, C, ...) -> (R, 1, ...), at most 0, 0 (the contour) most uncertain."""
    return -class_logits(logits, classes).abs()


def box_points(boxes: Tensor, points: Tensor) -> Tensor:
    """Points (R, P, 2) of boxes (R, 4), brought from each box's [0, 1]^2 to pixels of the image."""
    corner, opposite = boxes[:, None, :2], boxes[:, None, 2:]
    return points * (opposite - corner) + corner


def sample_in_boxes(features: Tensor, stride: int, boxes: Sequence[Tensor], points: Tensor) -> Tensor:
    """Values of (N, C, H, W) at points of boxes -> (R, C, P).

    Args:
        features: The maps.
        stride: Pixels of the image for each of theirs.
        boxes: (R_i, 4) of each image.
        points: (R, P, 2) in [0, 1]^2 of its box.
    """
    height, width = features.shape[2:]
    size = torch.tensor([width * stride, height * stride], dtype=points.dtype, device=points.device)
    where = torch.split(box_points(torch.cat(list(boxes)), points) / size, [len(b) for b in boxes])
    parts = [point_sample(features[i : i + 1], w[None])[0].transpose(0, 1) for i, w in enumerate(where)]
    return torch.cat(parts)


def most_uncertain(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The pixels of (N, 1, H, W) with the largest scores, min(count, H * W) of each map.

    Returns:
        Indices (N, P) int64 into the flattened map, and the pixel centres (N, P, 2) float32.
    """
    n, _, height, width = scores.shape
    index = scores.reshape(n, height * width).topk(min(count, height * width), dim=1).indices
    x = 0.5 / width + (index % width).to(torch.float32) / width
    y = 0.5 / height + torch.div(index, width, rounding_mode="floor").to(torch.float32) / height
    return index, torch.stack([x, y], dim=-1)


def uncertain_points(
    logits: Tensor,
    scores: Callable[[Tensor], Tensor],
    count: int,
    *,
    oversample: int,
    importance: float,
    generator: torch.Generator,
) -> Tensor:
    """Points for training: the most uncertain of many random ones, and some uniform ones (section 3.1 of the paper).

    Args:
        logits: (N, C, H, W); sampled first and scored after, as a score is not linear in the logits.
        scores: Maps (N, C, P) to (N, 1, P).
        count: Points of each image.
        oversample: Random points drawn for each one wanted.
        importance: Share of `count` that is chosen by score, in [0, 1].
        generator: A CPU generator, so that the points do not depend on the device.

    Returns:
        (N, count, 2) float32.
    """
    n, device = len(logits), logits.device
    drawn = torch.rand(n, int(count * oversample), 2, generator=generator).to(device)
    chosen = int(importance * count)
    best = scores(point_sample(logits, drawn))[:, 0].topk(chosen, dim=1).indices
    points = drawn.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    if count > chosen:
        uniform = torch.rand(n, count - chosen, 2, generator=generator).to(device)
        points = torch.cat([points, uniform], dim=1)
    return points


class PointHead(nn.Module):
    """A small network shared by all points (`fc1..fcK`, `predictor`).

    Args:
        fine: Channels of the fine features.
        classes: Number of classes, C.
        width: Channels of the hidden layers.
        layers: Number of hidden layers.
        coarse_each_layer: Whether the coarse logits are appended again after every hidden layer.
    """

    def __init__(self, *, fine: int, classes: int, width: int, layers: int, coarse_each_layer: bool) -> None:
        super().__init__()
        self.coarse_each_layer = coarse_each_layer
        self.layers = [f"fc{i}" for i in range(1, layers + 1)]
        inputs = fine + classes
        for name in self.layers:
            layer = nn.Conv1d(inputs, width, kernel_size=1)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.add_module(name, layer)
            inputs = width + (classes if coarse_each_layer else 0)
        self.predictor = nn.Conv1d(inputs, classes, kernel_size=1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Fine features (N, F, P) and coarse logits (N, C, P) at the same points -> logits (N, C, P)."""
        x = torch.cat([fine, coarse], dim=1)
        for name in self.layers:
            x = functional.relu(self.get_submodule(name)(x))
            if self.coarse_each_layer:
                x = torch.cat([x, coarse], dim=1)
        out: Tensor = self.predictor(x)
        return out


def point_loss(logits: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """Mean cross-entropy at points (section 3.3 of the paper); points on `IGNORE` do not count.

    Args:
        logits: (N, C, P).
        labels: (N, H, W) integer classes, or `IGNORE`.
        points: (N, P, 2); the label is that of the nearest pixel.
    """
    targets = point_sample(labels.unsqueeze(1).to(torch.float32), points, mode="nearest").squeeze(1).to(torch.int64)
    return cross_entropy(logits, targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32 over targets that are not `IGNORE`; 0 (with gradient 0) where there is none."""
    total = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def mask_labels(masks: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Soft labels (R, P) float32 of points (R, P, 2) of boxes (R, 4), read from masks (R, H, W) between the pixels."""
    size = torch.tensor([masks.shape[2], masks.shape[1]], dtype=points.dtype, device=points.device)
    return point_sample(masks.unsqueeze(1).to(torch.float32), box_points(boxes, points) / size)[:, 0]


def mask_loss(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Mean binary cross-entropy in float32 of the class's logits; 0 (with gradient 0) where there is no box.

    Args:
        logits: (R, C, ...).
        labels: (R, ...) in [0, 1].
        classes: (R,) int64.
    """
    own = class_logits(logits, classes)[:, 0].float()
    if own.numel() == 0:
        return logits.float().sum() * 0.0
    return functional.binary_cross_entropy_with_logits(own, labels.float())
