"""Semantic PointRend: ResNet, FPN, a coarse head at stride 4, and a point head that refines where it is unsure.

Follows Kirillov et al., "PointRend: Image Segmentation as Rendering" (2020), in the version of Detectron2, whose
parameter names it keeps. Letters as in `teachers.points`.

    image -> ResNet -> FPN -> p2 .. p5 -> coarse logits (stride 4) -> x2, refine -> x2, refine -> logits (stride 1)
                               └────── fine features at points ────────────┴─────────────┘
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers import points
from teachers.backbone import BackboneConfig, build_backbone, check_config
from teachers.fpn import LEVELS
from teachers.resnet import Conv


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticConfig(BackboneConfig):
    """All that weights and shapes alone do not say; stored as JSON beside the weights.

    Attributes:
        sem_convs_dim: Channels of the coarse head, a multiple of 32 (its GroupNorm has 32 groups).
        point_fc_dim: Hidden channels of the point head.
        point_num_fc: Hidden layers of the point head.
        num_classes: Classes, at least 2 (background counts).
        coarse_pred_each_layer: Whether the point head sees the coarse logits again in every layer.
        subdivision_steps: Refinements; each doubles the resolution, starting from stride 4.
        subdivision_num_points: Points relabelled in each refinement of each image.
        person_classes: Classes whose probabilities add up to that of a person.
    """

    architecture: ClassVar[str] = "semantic"

    sem_convs_dim: int = 128
    point_fc_dim: int = 256
    point_num_fc: int = 3
    num_classes: int = 2
    coarse_pred_each_layer: bool = False
    subdivision_steps: int = 2
    subdivision_num_points: int = 8192
    person_classes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        """Check every value."""
        check_config(self)
        if self.sem_convs_dim % 32:
            raise ValueError(f"teacher.sem_convs_dim must be a multiple of 32, got {self.sem_convs_dim}")
        if self.subdivision_steps > 6:
            raise ValueError(f"teacher.subdivision_steps must be in 0..6, got {self.subdivision_steps}")
        if self.num_classes < 2:
            raise ValueError(f"teacher.num_classes must be >= 2 (background counts), got {self.num_classes}")
        inside = all(type(c) is int and 0 <= c < self.num_classes for c in self.person_classes)
        if not inside or not self.person_classes or len(set(self.person_classes)) != len(self.person_classes):
            raise ValueError(
                f"teacher.person_classes must be distinct classes below {self.num_classes}, got {self.person_classes}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One refinement.

    Attributes:
        index: (N, P) int64 into the flattened map.
        points: (N, P, 2) float32.
        point_logits: (N, C, P).
        logits: (N, C, H, W) after the points were written.
    """

    index: Tensor
    points: Tensor
    point_logits: Tensor
    logits: Tensor


class CoarseHead(nn.Module):
    """Semantic FPN (Kirillov et al., 2019): every level is brought to stride 4 and summed."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        for level in LEVELS:
            layers: list[nn.Module] = []
            for i in range(max(1, level - 2)):
                layers.append(_ConvNormRelu(inputs if i == 0 else width, width))
                if level > 2:
                    layers.append(nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False))
            self.add_module(f"p{level}", nn.Sequential(*layers))
        self.predictor = Conv(width, classes, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """p2..p5 -> logits (N, C, H / 4, W / 4)."""
        x: Tensor = self.get_submodule("p2")(features["p2"])
        for level in LEVELS[1:]:
            x = x + self.get_submodule(f"p{level}")(features[f"p{level}"])
        out: Tensor = self.predictor(x)
        return out


class _ConvNormRelu(Conv):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, norm=nn.GroupNorm(32, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(super().forward(x))


class _SemanticHead(nn.Module):
    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.coarse_sem_seg_head = CoarseHead(config.fpn_out, config.sem_convs_dim, config.num_classes)
        self.point_head = points.PointHead(
            fine=config.fpn_out,
            classes=config.num_classes,
            width=config.point_fc_dim,
            layers=config.point_num_fc,
            coarse_each_layer=config.coarse_pred_each_layer,
        )


class SemanticPointRend(nn.Module):
    """The network, from a normalised and padded batch to logits at stride 1.

    Initialised as the original (kaiming fan-out, FPN kaiming uniform, point predictor N(0, 0.001)) from
    torch's global generator; use `build` for weights that follow from a seed.
    """

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.sem_seg_head = _SemanticHead(config)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """p2..p5 of (N, 3, H, W) float32."""
        out: dict[str, Tensor] = self.backbone(images)
        return out

    def coarse(self, features: dict[str, Tensor]) -> Tensor:
        """Coarse logits (N, C, H / 4, W / 4) float32."""
        out: Tensor = self.sem_seg_head.coarse_sem_seg_head(features)
        return out.float()

    def refine(self, coarse: Tensor, fine: Tensor) -> Iterator[Step]:
        """Adaptive subdivision (section 3.1 of the paper): each step doubles the size and relabels some points.

        Args:
            coarse: (N, C, h, w) logits; what the point head reads in every step.
            fine: p2, (N, F, h, w).
        """
        logits = coarse
        for _ in range(self.config.subdivision_steps):
            logits = functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
            index, where = points.most_uncertain(points.uncertainty(logits), self.config.subdivision_num_points)
            new = self.point_logits(coarse, fine, where)
            n, c, height, width = logits.shape
            flat = logits.reshape(n, c, height * width)
            logits = flat.scatter(2, index.unsqueeze(1).expand(-1, c, -1), new).view(n, c, height, width)
            yield Step(index=index, points=where, point_logits=new, logits=logits)

    def point_logits(self, coarse: Tensor, fine: Tensor, where: Tensor) -> Tensor:
        """Logits (N, C, P) float32 of the point head at (N, P, 2)."""
        head = self.sem_seg_head.point_head
        out: Tensor = head(points.point_sample(fine, where), points.point_sample(coarse, where))
        return out.float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of a padded batch (N, 3, H, W); other than two refinements are resized to that."""
        features = self.features(images)
        logits = coarse = self.coarse(features)
        for step in self.refine(coarse, features["p2"].float()):
            logits = step.logits
        size = (images.shape[2], images.shape[3])
        if logits.shape[2:] != size:
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        num_points: int,
        generator: torch.Generator,
        oversample: int = 3,
        importance: float = 0.75,
    ) -> dict[str, Tensor]:
        """The two training losses, `loss_sem_seg` (coarse, at full size) and `loss_sem_seg_point`.

        Args:
            images: (N, 3, H, W) normalised and padded.
            labels: (N, H, W) integer classes; 255 is ignored.
            num_points: Points of each image.
            generator: Draws the points.
            oversample: As in `points.uncertain_points`.
            importance: As there.
        """
        features = self.features(images)
        coarse = self.coarse(features)
        with torch.no_grad():
            where = points.uncertain_points(
                coarse, points.uncertainty, num_points,
                oversample=oversample, importance=importance, generator=generator,
            )  # fmt: skip
        return self.losses_at(coarse, features["p2"], labels, where)

    def losses_at(self, coarse: Tensor, fine: Tensor, labels: Tensor, where: Tensor) -> dict[str, Tensor]:
        """The losses of `losses`, at points that are given.

        Args:
            coarse: (N, C, H / 4, W / 4) logits.
            fine: p2, (N, F, H / 4, W / 4).
            labels: (N, H, W) integer classes; 255 is ignored.
            where: (N, P, 2).
        """
        full = functional.interpolate(coarse, scale_factor=4.0, mode="bilinear", align_corners=False)
        return {
            "loss_sem_seg": points.cross_entropy(full, labels.to(torch.int64)),
            "loss_sem_seg_point": points.point_loss(self.point_logits(coarse, fine, where), labels, where),
        }


def build(config: SemanticConfig, seed: int) -> SemanticPointRend:
    """A network whose first weights follow from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SemanticPointRend(config)
