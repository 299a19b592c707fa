"""Instance PointRend: Faster R-CNN over an FPN, and masks that are refined where they are unsure.

Follows Kirillov et al., "PointRend: Image Segmentation as Rendering" (2020), in the version of Detectron2, whose
parameter names it keeps. Letters as in `teachers.points`; K classes, S the side of a mask.

    image -> ResNet -> FPN -> p2 .. p6 -> proposals -> RoIAlign -> boxes, scores, classes
                               └─ p2 at 14 x 14 points of a box ──> coarse mask (7 x 7)
                               └─ p2 at uncertain points ─────────> 28 x 28 -> 56 -> 112 -> mask (224 x 224)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers import instance_loss, points, roi, rpn
from teachers.backbone import BackboneConfig, build_backbone, check_config
from teachers.instance_loss import Target

Size = tuple[int, int]
#: Pixels of the network's input for each of p2.
_FINE_STRIDE = 4
_LARGEST_MASK = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceConfig(BackboneConfig):
    """All that weights and shapes alone do not say; stored as JSON beside the weights. Defaults: the zoo's R50, COCO.

    Attributes:
        num_classes: Classes, without the background.
        box_fc_dim: Hidden channels of the box head.
        mask_conv_dim: Channels of the coarse mask head; an FPN wider than that is narrowed first.
        mask_fc_dim: Its hidden channels.
        mask_num_fc: Its hidden layers.
        mask_pooler_resolution: Side of the grid it reads of a box, a multiple of `coarse_resolution`.
        coarse_resolution: Side of the coarse mask.
        point_fc_dim: Hidden channels of the point head.
        point_num_fc: Hidden layers of the point head.
        coarse_pred_each_layer: Whether the point head sees the coarse logits again in every layer.
        subdivision_steps: Doublings from the coarse mask to the final one.
        subdivision_num_points: Points relabelled in each; those that a whole mask has no more of become one step.
        rpn_pre_nms_topk: Anchors kept of each level.
        rpn_post_nms_topk: Proposals kept of each image.
        rpn_nms_thresh: Largest IoU of two proposals.
        score_thresh_test: A detection is more probable than this.
        nms_thresh_test: Largest IoU of two detections of one class.
        detections_per_image: At most.
        person_classes: Classes that are persons.
    """

    architecture: ClassVar[str] = "instance"

    min_size_test: int = 800
    max_size_test: int = 1333
    num_classes: int = 80
    box_fc_dim: int = 1024
    mask_conv_dim: int = 256
    mask_fc_dim: int = 1024
    mask_num_fc: int = 2
    mask_pooler_resolution: int = 14
    coarse_resolution: int = 7
    point_fc_dim: int = 256
    point_num_fc: int = 3
    coarse_pred_each_layer: bool = True
    subdivision_steps: int = 5
    subdivision_num_points: int = 784
    rpn_pre_nms_topk: int = 1000
    rpn_post_nms_topk: int = 1000
    rpn_nms_thresh: float = 0.7
    score_thresh_test: float = 0.05
    nms_thresh_test: float = 0.5
    detections_per_image: int = 100
    person_classes: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Check every value."""
        check_config(self)
        for name in ("rpn_nms_thresh", "score_thresh_test", "nms_thresh_test"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"teacher.{name} must be in 0..1, got {getattr(self, name)}")
        self._check_masks()
        inside = all(type(c) is int and 0 <= c < self.num_classes for c in self.person_classes)
        if not inside or not self.person_classes or len(set(self.person_classes)) != len(self.person_classes):
            raise ValueError(
                f"teacher.person_classes must be distinct classes below {self.num_classes}, got {self.person_classes}"
            )

    def _check_masks(self) -> None:
        if not 1 <= self.mask_num_fc <= 16:
            raise ValueError(f"teacher.mask_num_fc must be in 1..16, got {self.mask_num_fc}")
        if self.mask_pooler_resolution % self.coarse_resolution:
            raise ValueError(
                f"teacher.mask_pooler_resolution must be a multiple of coarse_resolution, {self.coarse_resolution}, "
                f"got {self.mask_pooler_resolution}"
            )
        if self.subdivision_steps > 11 or mask_side(self) > _LARGEST_MASK:
            raise ValueError(
                f"teacher.subdivision_steps must double coarse_resolution to at most {_LARGEST_MASK}, "
                f"got {self.subdivision_steps} from {self.coarse_resolution}"
            )
        if first_side(self) > mask_side(self):
            raise ValueError(
                f"teacher.subdivision_num_points must be below {4 * mask_side(self) ** 2}, four whole masks of "
                f"{mask_side(self)} x {mask_side(self)}, got {self.subdivision_num_points}"
            )


def mask_side(config: InstanceConfig) -> int:
    """Side of a final mask, S."""
    return config.coarse_resolution << config.subdivision_steps


def first_side(config: InstanceConfig) -> int:
    """Side of the first mask, the largest that the points of one step cover whole."""
    side = config.coarse_resolution
    while 4 * side * side <= config.subdivision_num_points:
        side *= 2
    return side


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The objects of one image, best first.

    Attributes:
        boxes: (R, 4) float32.
        scores: (R,) float32 in [0, 1].
        classes: (R,) int64.
        masks: (R, S, S) float32 in [0, 1], each over its box.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor

    def at(self, index: Tensor) -> "Detections":
        """Those that (R,) bool or (R',) int64 chooses."""
        return Detections(
            boxes=self.boxes[index], scores=self.scores[index], classes=self.classes[index], masks=self.masks[index]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The boxes of one image before they have masks, best first.

    Attributes:
        boxes: (R, 4) float32 inside the image.
        scores: (R,) float32.
        classes: (R,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskStep:
    """One refinement of the masks of all boxes; the first labels every point.

    Attributes:
        index: (R, P) int64 into the flattened mask.
        points: (R, P, 2) float32 in [0, 1]^2 of the box.
        logits: (R, side, side) float32 of the predicted class, after the points were written.
    """

    index: Tensor
    points: Tensor
    logits: Tensor


class CoarseMaskHead(nn.Module):
    """Features of a box on a regular grid -> K masks of 7 x 7, through fully connected layers."""

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.side, self.classes = config.coarse_resolution, config.num_classes
        narrow, width = config.mask_conv_dim, config.mask_fc_dim
        self.reduce_channel_dim_conv = _conv(config.fpn_out, narrow, 1) if config.fpn_out > narrow else None
        channels = min(config.fpn_out, narrow)
        self.reduce_spatial_dim_conv = _conv(channels, narrow, config.mask_pooler_resolution // self.side)
        self.layers = [f"fc{i}" for i in range(1, config.mask_num_fc + 1)]
        inputs = narrow * self.side**2
        for name in self.layers:
            self.add_module(name, roi.linear(inputs, width))
            inputs = width
        self.prediction = nn.Linear(inputs, self.classes * self.side**2)
        nn.init.normal_(self.prediction.weight, std=0.001)
        nn.init.zeros_(self.prediction.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) -> logits (R, K, 7, 7)."""
        if self.reduce_channel_dim_conv is not None:
            x = functional.relu(self.reduce_channel_dim_conv(x))
        x = functional.relu(self.reduce_spatial_dim_conv(x)).flatten(1)
        for name in self.layers:
            x = functional.relu(self.get_submodule(name)(x))
        out: Tensor = self.prediction(x)
        return out.reshape(len(out), self.classes, self.side, self.side)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=kernel)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class _MaskHead(nn.Module):
    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.coarse_head = CoarseMaskHead(config)
        self.point_head = points.PointHead(
            fine=config.fpn_out,
            classes=config.num_classes,
            width=config.point_fc_dim,
            layers=config.point_num_fc,
            coarse_each_layer=config.coarse_pred_each_layer,
        )


class _RoIHeads(nn.Module):
    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.box_head = roi.BoxHead(config.fpn_out, config.box_fc_dim)
        self.box_predictor = roi.BoxPredictor(config.box_fc_dim, config.num_classes)
        self.mask_head = _MaskHead(config)


class InstancePointRend(nn.Module):
    """The network, from a normalised and padded batch to boxes and masks at the network's scale.

    Initialised as the original from torch's global generator; use `build_instance` for weights that follow from a
    seed.
    """

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.proposal_generator = rpn.ProposalGenerator(config.fpn_out)
        self.roi_heads = _RoIHeads(config)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """p2..p6 of (N, 3, H, W) float32; p6 is every other pixel of p5."""
        out = {k: v.float() for k, v in self.backbone(images).items()}
        return out | {"p6": out["p5"][:, :, ::2, ::2]}

    def proposals(self, features: dict[str, Tensor], sizes: Sequence[Size]) -> list[rpn.Proposals]:
        """Where each image's objects may be; `sizes` are (height, width) before padding."""
        config = self.config
        return rpn.propose(
            self.proposal_generator(features), sizes,
            before=config.rpn_pre_nms_topk, after=config.rpn_post_nms_topk, threshold=config.rpn_nms_thresh,
        )  # fmt: skip

    def box_features(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """What the box head makes of boxes (R_i, 4) of each image: (R, F)."""
        out: Tensor = self.roi_heads.box_head(roi.pool(features, boxes))
        return out

    def detect(
        self, logits: Tensor, deltas: Tensor, proposals: Sequence[rpn.Proposals], sizes: Sequence[Size]
    ) -> list[Found]:
        """Each image's detections, of the predictor's logits (R, K + 1) and deltas (R, 4 K)."""
        config, counts = self.config, [len(p.boxes) for p in proposals]
        out = []
        for x, d, p, size in zip(
            torch.split(logits, counts), torch.split(deltas, counts), proposals, sizes, strict=True
        ):
            boxes, scores, classes = roi.detect(
                x, roi.class_boxes(d, p.boxes), size,
                least=config.score_thresh_test, threshold=config.nms_thresh_test, most=config.detections_per_image,
            )  # fmt: skip
            out.append(Found(boxes=boxes, scores=scores, classes=classes))
        return out

    def coarse(self, fine: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Coarse mask logits (R, K, 7, 7) float32 of boxes (R_i, 4) of each image, read from p2."""
        side = self.config.mask_pooler_resolution
        grid = points.regular_grid(side).to(fine.device).expand(sum(map(len, boxes)), -1, -1)
        x = points.sample_in_boxes(fine, _FINE_STRIDE, boxes, grid)
        out: Tensor = self.roi_heads.mask_head.coarse_head(x.reshape(*x.shape[:2], side, side))
        return out.float()

    def point_logits(self, coarse: Tensor, fine: Tensor, boxes: Sequence[Tensor], where: Tensor) -> Tensor:
        """Logits (R, K, P) float32 of the point head at points (R, P, 2) of the boxes."""
        x = points.sample_in_boxes(fine, _FINE_STRIDE, boxes, where)
        out: Tensor = self.roi_heads.mask_head.point_head(x, points.point_sample(coarse, where))
        return out.float()

    def refine(self, coarse: Tensor, fine: Tensor, boxes: Sequence[Tensor], classes: Tensor) -> Iterator[MaskStep]:
        """Adaptive subdivision of all masks at once: every point of a small mask, then the uncertain of its doubles.

        Only the predicted class's logits are kept: no other class is ever read from the refined mask.

        Args:
            coarse: (R, K, 7, 7); what the point head reads in every step.
            fine: p2, (N, C, h, w).
            boxes: (R_i, 4) of each image.
            classes: (R,) int64.
        """
        side, count = first_side(self.config), len(classes)
        where = points.regular_grid(side).to(fine.device).expand(count, -1, -1)
        index = torch.arange(side * side, device=fine.device).expand(count, -1)
        logits = points.class_logits(self.point_logits(coarse, fine, boxes, where), classes).reshape(
            count, 1, side, side
        )
        yield MaskStep(index=index, points=where, logits=logits[:, 0])
        while side < mask_side(self.config):
            side *= 2
            logits = functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
            index, where = points.most_uncertain(-logits.abs(), self.config.subdivision_num_points)
            new = points.class_logits(self.point_logits(coarse, fine, boxes, where), classes)
            logits = logits.flatten(2).scatter(2, index[:, None], new).reshape(count, 1, side, side)
            yield MaskStep(index=index, points=where, logits=logits[:, 0])

    def masks(self, fine: Tensor, found: Sequence[Found]) -> list[Tensor]:
        """Probabilities (R_i, S, S) float32 of the detections of each image."""
        counts, side = [len(f.boxes) for f in found], mask_side(self.config)
        if sum(counts) == 0:
            return [fine.new_zeros((0, side, side)) for _ in found]
        boxes = [f.boxes for f in found]
        coarse = self.coarse(fine, boxes)
        logits = coarse
        for step in self.refine(coarse, fine, boxes, torch.cat([f.classes for f in found])):
            logits = step.logits
        return list(torch.split(logits.sigmoid(), counts))

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[Size],
        *,
        only: Sequence[int] | None = None,
        least_score: float = 0.0,
    ) -> list[Detections]:
        """The objects of each image of a padded batch.

        Masks are most of the work and do not depend on each other, so who needs some of them should say which.

        Args:
            images: (N, 3, H, W) normalised and padded.
            sizes: (height, width) of each before padding.
            only: Classes to report; None for all.
            least_score: Least score to report.

        Raises:
            FloatingPointError: The network gave values that are not finite.
        """
        features = self.features(images)
        proposals = self.proposals(features, sizes)
        x = self.box_features(features, [p.boxes for p in proposals])
        logits, deltas = self.roi_heads.box_predictor(x)
        found = [_chosen(f, only, least_score) for f in self.detect(logits, deltas, proposals, sizes)]
        masks = self.masks(features["p2"], found)
        return [
            Detections(boxes=f.boxes, scores=f.scores, classes=f.classes, masks=m)
            for f, m in zip(found, masks, strict=True)
        ]

    def losses(
        self,
        images: Tensor,
        sizes: Sequence[Size],
        targets: Sequence[Target],
        generator: torch.Generator,
        *,
        num_points: int = 196,
        oversample: int = 3,
        importance: float = 0.75,
    ) -> dict[str, Tensor]:
        """The six training losses under Detectron2's names.

        Args:
            images: (N, 3, H, W) normalised and padded.
            sizes: (height, width) of each before padding.
            targets: The objects of each.
            generator: A CPU generator; draws anchors, proposals and points.
            num_points: Points of each object's mask.
            oversample: As in `points.uncertain_points`.
            importance: As there.
        """
        features = self.features(images)
        levels = self.proposal_generator(features)
        losses = instance_loss.rpn_losses(levels, targets, generator)
        proposals = rpn.propose(
            levels, sizes,
            before=instance_loss.RPN_BEFORE, after=instance_loss.RPN_AFTER, threshold=self.config.rpn_nms_thresh,
        )  # fmt: skip
        sampled = instance_loss.sample_proposals(proposals, targets, self.config.num_classes, generator)
        x = self.box_features(features, [s.boxes for s in sampled])
        logits, deltas = self.roi_heads.box_predictor(x)
        losses |= instance_loss.box_losses(logits, deltas, sampled, targets)
        objects = instance_loss.predicted_objects(deltas, sampled)
        boxes, classes = [s.boxes for s in objects], torch.cat([s.classes for s in objects])
        coarse = self.coarse(features["p2"], boxes)
        with torch.no_grad():
            where = points.uncertain_points(
                coarse, lambda x: points.class_uncertainty(x, classes), num_points,
                oversample=oversample, importance=importance, generator=generator,
            )  # fmt: skip
        at_points = self.point_logits(coarse, features["p2"], boxes, where)
        return losses | instance_loss.mask_losses(coarse, at_points, objects, targets, where)


def _chosen(found: Found, only: Sequence[int] | None, least_score: float) -> Found:
    keep = found.scores >= least_score
    if only is not None:
        keep &= torch.isin(found.classes, torch.tensor(list(only), device=keep.device))
    return Found(boxes=found.boxes[keep], scores=found.scores[keep], classes=found.classes[keep])


def build_instance(config: InstanceConfig, seed: int) -> InstancePointRend:
    """A network whose first weights follow from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InstancePointRend(config)


# --- From the network's scale to the image -----------------------------------------------------------------------


def rescale(detections: Detections, inner: Size, outer: Size) -> Detections:
    """Detections of a network's input of `inner` = (height, width) -> those of the image, `outer`.

    Boxes are scaled by each axis and cut to the image; those left without area are dropped.
    """
    y, x = outer[0] / inner[0], outer[1] / inner[1]
    boxes = rpn.clip(detections.boxes * torch.tensor([x, y, x, y], device=detections.boxes.device), outer)
    moved = Detections(boxes=boxes, scores=detections.scores, classes=detections.classes, masks=detections.masks)
    return moved.at(rpn.not_empty(boxes))


def patches(detections: Detections, size: Size) -> Iterator[tuple[slice, slice, Tensor]]:
    """Each mask on the pixels it reaches: rows, columns, and probabilities (h, w) float32 in [0, 1].

    A mask is read bilinearly at pixel centres, with zeros around it, so it fades out within half of one of its own
    cells outside its box. Elsewhere it is 0.
    """
    for box, mask in zip(detections.boxes.tolist(), detections.masks, strict=True):
        rows, y = _axis(box[1], box[3], mask.shape[0], size[0])
        columns, x = _axis(box[0], box[2], mask.shape[1], size[1])
        if not len(y) or not len(x):
            yield rows, columns, mask.new_zeros((len(y), len(x)))
            continue
        grid = torch.stack(torch.meshgrid(x.to(mask.device), y.to(mask.device), indexing="xy"), dim=-1)
        yield rows, columns, points.point_sample(mask[None, None], grid[None])[0, 0]


def _axis(low: float, high: float, cells: int, pixels: int) -> tuple[slice, Tensor]:
    """The pixels that [low, high) and half a cell around it reach, and where their centres are in it, 0..1."""
    fade = 0.5 * (high - low) / cells
    start = min(max(math.floor(low - fade), 0), pixels)
    stop = max(min(math.ceil(high + fade), pixels), start) if high > low else start
    centres = torch.arange(start, stop, dtype=torch.float32) + 0.5
    return slice(start, stop), (centres - low) / (high - low) if high > low else centres


def paste(detections: Detections, size: Size) -> Tensor:
    """Every mask over the whole image, (R, H, W) float32 in [0, 1]; `>= 0.5` gives Detectron2's masks.

    It takes R x H x W floats; `person` needs only one map.
    """
    out = detections.masks.new_zeros((len(detections.boxes), *size))
    for i, (rows, columns, values) in enumerate(patches(detections, size)):
        out[i, rows, columns] = values
    return out


def person(
    detections: Detections, size: Size, classes: Sequence[int], least_score: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Who is in an image.

    Args:
        detections: At the image's own scale (`rescale`).
        size: (height, width) of the image.
        classes: Those that are persons.
        least_score: Of a person that counts.

    Returns:
        Probability (H, W) float32, the largest of the persons' masks at each pixel (0 without any); their boxes
        (R, 4) and scores (R,).
    """
    wanted = torch.tensor(list(classes), device=detections.classes.device)
    kept = detections.at(torch.isin(detections.classes, wanted) & (detections.scores >= least_score))
    out = detections.masks.new_zeros(size)
    for rows, columns, values in patches(kept, size):
        torch.maximum(out[rows, columns], values, out=out[rows, columns])
    return out, kept.boxes, kept.scores
