"""The six losses of the instance model, as Detectron2 trains it (Faster R-CNN, Mask R-CNN and PointRend, section 3.1).

Letters: N images, A anchors, R boxes, G objects of an image, K classes, P points.

Which anchors and proposals count is drawn with a CPU generator, so that it does not depend on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from teachers import points, roi, rpn

RPN_SAMPLED, RPN_POSITIVE = 256, 0.5
RPN_LOW, RPN_HIGH = 0.3, 0.7
RPN_BEFORE, RPN_AFTER = 2000, 1000
ROI_SAMPLED, ROI_POSITIVE = 512, 0.25
ROI_IOU = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The objects of one image, in pixels of the network's input before padding.

    Attributes:
        boxes: (G, 4) float32, none of them empty.
        classes: (G,) int64 in 0..K-1.
        masks: (G, H, W) bool.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        """Check the shapes, and that no box is empty.

        Raises:
            ValueError: Naming what is wrong.
        """
        count = len(self.classes)
        if self.boxes.shape != (count, 4) or self.masks.ndim != 3 or len(self.masks) != count:
            raise ValueError(
                f"a target of {count} classes must have boxes ({count}, 4) and masks ({count}, H, W), "
                f"got {tuple(self.boxes.shape)} and {tuple(self.masks.shape)}"
            )
        empty = torch.nonzero(~rpn.not_empty(self.boxes))[:, 0].tolist()
        if empty:
            raise ValueError(
                f"a target's boxes must have width and height > 0; boxes {empty} have none: leave them out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The proposals of one image that the heads learn from.

    Attributes:
        boxes: (R, 4).
        classes: (R,) int64, K for the background.
        matched: (R,) int64, which object of the image; 0 for the background.
    """

    boxes: Tensor
    classes: Tensor
    matched: Tensor


def match(truth: Tensor, boxes: Tensor, *, low: float, high: float, keep_best: bool) -> tuple[Tensor, Tensor]:
    """The object that each box overlaps most, and whether it counts as that object.

    Args:
        truth: (G, 4).
        boxes: (A, 4).
        low: A best IoU below it makes a box negative.
        high: One of at least this makes it positive; between the two it does not count.
        keep_best: Whether the boxes with an object's best IoU are positive however small it is.

    Returns:
        Objects (A,) int64 and labels (A,) int64: 1 positive, 0 negative, -1 neither.
    """
    if len(truth) == 0:
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return nothing, nothing.clone()
    iou = box_iou(truth, boxes)
    best, index = iou.max(dim=0)
    labels = torch.full_like(index, -1)
    labels[best < low] = 0
    labels[best >= high] = 1
    if keep_best:
        of_object = iou.amax(dim=1, keepdim=True)
        labels[((iou == of_object) & (of_object > 0)).any(dim=0)] = 1
    return index, labels


def draw(labels: Tensor, count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of at most share * count random positives, and of as many negatives as fill `count`."""
    positive, negative = (torch.nonzero(labels == kind)[:, 0] for kind in (1, 0))
    wanted = min(len(positive), int(count * share))
    chosen = torch.randperm(len(positive), generator=generator)[:wanted].to(labels.device)
    others = torch.randperm(len(negative), generator=generator)[: count - wanted].to(labels.device)
    return positive[chosen], negative[others]


# --- Region proposals --------------------------------------------------------------------------------------------


def rpn_losses(levels: Sequence[rpn.Level], targets: Sequence[Target], generator: torch.Generator) -> dict[str, Tensor]:
    """`loss_rpn_cls` and `loss_rpn_loc`, both sums over the drawn anchors, divided by how many may be drawn."""
    anchors = torch.cat([x.anchors for x in levels])
    logits = torch.cat([x.logits for x in levels], dim=1)
    deltas = torch.cat([x.deltas for x in levels], dim=1)
    cls, loc = logits.sum() * 0.0, deltas.sum() * 0.0
    for i, target in enumerate(targets):
        matched, labels = match(target.boxes, anchors, low=RPN_LOW, high=RPN_HIGH, keep_best=True)
        positive, negative = draw(labels, RPN_SAMPLED, RPN_POSITIVE, generator)
        index = torch.cat([positive, negative])
        wanted = (labels[index] == 1).to(torch.float32)
        cls = cls + functional.binary_cross_entropy_with_logits(logits[i, index], wanted, reduction="sum")
        if len(positive):
            goal = rpn.encode(target.boxes[matched[positive]], anchors[positive], rpn.RPN_WEIGHTS)
            loc = loc + (deltas[i, positive] - goal).abs().sum()
    total = RPN_SAMPLED * len(targets)
    return {"loss_rpn_cls": cls / total, "loss_rpn_loc": loc / total}


# --- Boxes -------------------------------------------------------------------------------------------------------


def sample_proposals(
    proposals: Sequence[rpn.Proposals], targets: Sequence[Target], classes: int, generator: torch.Generator
) -> list[Sampled]:
    """What the heads learn from: proposals and the true boxes themselves, some of them objects, the rest background."""
    out = []
    for found, target in zip(proposals, targets, strict=True):
        boxes = torch.cat([found.boxes, target.boxes])
        matched, labels = match(target.boxes, boxes, low=ROI_IOU, high=ROI_IOU, keep_best=False)
        positive, negative = draw(labels, ROI_SAMPLED, ROI_POSITIVE, generator)
        background = torch.full((len(negative),), classes, dtype=torch.int64, device=boxes.device)
        index = torch.cat([positive, negative])
        out.append(
            Sampled(
                boxes=boxes[index],
                classes=torch.cat([target.classes[matched[positive]], background]),
                matched=matched[index],
            )
        )
    return out


def box_losses(
    logits: Tensor, deltas: Tensor, sampled: Sequence[Sampled], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """`loss_cls` (mean over R) and `loss_box_reg` (sum over the objects' own four deltas, divided by R).

    Args:
        logits: (R, K + 1).
        deltas: (R, 4 K).
        sampled: Of each image.
        targets: Of each image.
    """
    classes = torch.cat([s.classes for s in sampled])
    boxes = torch.cat([s.boxes for s in sampled])
    count = max(1, len(classes))
    cls = functional.cross_entropy(logits, classes, reduction="sum") / count
    real = torch.nonzero(classes < logits.shape[1] - 1)[:, 0]
    if len(real) == 0:
        return {"loss_cls": cls, "loss_box_reg": deltas.sum() * 0.0}
    own = points.class_logits(deltas.reshape(len(deltas), -1, 4)[real], classes[real])[:, 0]
    truth = torch.cat([t.boxes[s.matched] if len(t.boxes) else s.boxes for s, t in zip(sampled, targets, strict=True)])
    goal = rpn.encode(truth[real], boxes[real], roi.BOX_WEIGHTS)
    return {"loss_cls": cls, "loss_box_reg": (own - goal).abs().sum() / count}


@torch.no_grad()
def predicted_objects(deltas: Tensor, sampled: Sequence[Sampled]) -> list[Sampled]:
    """The objects among the sampled, in the boxes predicted for their class, where masks are learnt."""
    out = []
    for own, s in zip(torch.split(deltas, [len(s.classes) for s in sampled]), sampled, strict=True):
        real = torch.nonzero(s.classes < deltas.shape[1] // 4)[:, 0]
        each = roi.class_boxes(own[real], s.boxes[real])
        boxes = points.class_logits(each, s.classes[real])[:, 0]
        out.append(Sampled(boxes=boxes, classes=s.classes[real], matched=s.matched[real]))
    return out


# --- Masks -------------------------------------------------------------------------------------------------------


def coarse_labels(objects: Sequence[Sampled], targets: Sequence[Target], side: int) -> Tensor:
    """The truth of each box at side x side: (R, side, side) float32, 0 or 1 (RoIAlign of the mask, at least 0.5)."""
    parts = []
    for found, target in zip(objects, targets, strict=True):
        rois = torch.cat([found.matched[:, None].to(found.boxes.dtype), found.boxes], dim=1)
        if len(rois):
            parts.append(roi.align(target.masks[:, None].to(torch.float32), rois, side, 1.0)[:, 0] >= 0.5)
    if not parts:
        return torch.zeros((0, side, side))
    return torch.cat(parts).to(torch.float32)


def point_labels(objects: Sequence[Sampled], targets: Sequence[Target], where: Tensor) -> Tensor:
    """Soft labels (R, P) of points (R, P, 2) in each object's box."""
    parts = []
    for found, target, mine in zip(
        objects, targets, torch.split(where, [len(s.classes) for s in objects]), strict=True
    ):  # fmt: skip
        if len(mine):
            parts.append(points.mask_labels(target.masks[found.matched], found.boxes, mine))
    return torch.cat(parts) if parts else where.new_zeros(where.shape[:2])


def mask_losses(
    coarse: Tensor, at_points: Tensor, objects: Sequence[Sampled], targets: Sequence[Target], where: Tensor
) -> dict[str, Tensor]:
    """`loss_mask` and `loss_mask_point`, means of the binary cross-entropy of each object's class.

    Args:
        coarse: Coarse logits (R, K, side, side).
        at_points: Logits of the point head (R, K, P).
        objects: Of each image.
        targets: Of each image.
        where: The points (R, P, 2), in each object's box.
    """
    classes = torch.cat([s.classes for s in objects])
    labels = coarse_labels(objects, targets, coarse.shape[2]).to(coarse.device)
    return {
        "loss_mask": points.mask_loss(coarse, labels, classes),
        "loss_mask_point": points.mask_loss(at_points, point_labels(objects, targets, where), classes),
    }
