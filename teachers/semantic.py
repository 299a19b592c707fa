"""Semantic PointRend: ResNet, FPN, a coarse head at stride 4, and a point head that refines where it is unsure.

Follows Kirillov et al., "PointRend: Image Segmentation as Rendering" (2020), in the version of Detectron2, whose
parameter names it keeps. Letters as in `teachers.points`.

    image -> ResNet -> FPN -> p2 .. p5 -> coarse logits (stride 4) -> x2, refine -> x2, refine -> logits (stride 1)
                               └────── fine features at points ────────────┴─────────────┘
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from teachers import points
from teachers.fpn import FPN, LEVELS
from teachers.resnet import BLOCKS, Conv, Norm, ResNet

STRIDE = 32
MSRA_MEAN = (103.53, 116.28, 123.675)
_POSITIVE = (
    "stem_out", "res2_out", "num_groups", "width_per_group", "fpn_out", "sem_convs_dim", "point_fc_dim",
    "point_num_fc", "subdivision_num_points", "min_size_test", "max_size_test",
)  # fmt: skip

#: What a file of weights may ask for at most.
_MOST = {"point_num_fc": 16, "max_size_test": 8192, "subdivision_num_points": 2**20}


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticConfig:
    """All that weights and shapes alone do not say; stored as JSON beside the weights.

    Attributes:
        depth: ResNet depth: 18, 34, 50, 101 or 152.
        stem_out: Channels of the stem.
        res2_out: Channels of res2, doubled by each later stage.
        num_groups: Groups of the bottleneck's 3x3 convolution.
        width_per_group: Bottleneck channels of a group in res2.
        stride_in_1x1: Stride in the bottleneck's first 1x1 (True, MSRA) or its 3x3.
        norm: Normalisation of the backbone.
        fpn_out: Channels of p2..p5.
        sem_convs_dim: Channels of the coarse head, a multiple of 32 (its GroupNorm has 32 groups).
        point_fc_dim: Hidden channels of the point head.
        point_num_fc: Hidden layers of the point head.
        num_classes: Classes, at least 2 (background counts).
        coarse_pred_each_layer: Whether the point head sees the coarse logits again in every layer.
        subdivision_steps: Refinements; each doubles the resolution, starting from stride 4.
        subdivision_num_points: Points relabelled in each refinement of each image.
        min_size_test: Shorter edge of the network's input.
        max_size_test: Upper bound of its longer edge.
        pixel_mean: Mean of blue, green, red in 0..255.
        pixel_std: What the difference is divided by.
        person_classes: Classes whose probabilities add up to that of a person.
    """

    depth: int = 50
    stem_out: int = 64
    res2_out: int = 256
    num_groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = True
    norm: Norm = "FrozenBN"
    fpn_out: int = 256
    sem_convs_dim: int = 128
    point_fc_dim: int = 256
    point_num_fc: int = 3
    num_classes: int = 2
    coarse_pred_each_layer: bool = False
    subdivision_steps: int = 2
    subdivision_num_points: int = 8192
    min_size_test: int = 1024
    max_size_test: int = 2048
    pixel_mean: tuple[float, float, float] = MSRA_MEAN
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    person_classes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        """Check every value."""
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.{name} must be >= 1, got {getattr(self, name)}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"teacher.{name} must be <= {most}, got {getattr(self, name)}")
        self._check_choices()
        self._check_classes()
        finite = all(math.isfinite(x) for x in (*self.pixel_mean, *self.pixel_std))
        if not finite or len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError(
                f"teacher.pixel_mean and pixel_std need three values, std > 0, got {self.pixel_mean}, {self.pixel_std}"
            )

    def _check_choices(self) -> None:
        if self.depth not in BLOCKS:
            raise ValueError(f"teacher.depth must be one of {sorted(BLOCKS)}, got {self.depth}")
        if self.norm not in get_args(Norm):
            raise ValueError(f"teacher.norm must be one of {get_args(Norm)}, got {self.norm!r}")
        if self.sem_convs_dim % 32:
            raise ValueError(f"teacher.sem_convs_dim must be a multiple of 32, got {self.sem_convs_dim}")
        if not 0 <= self.subdivision_steps <= 6:
            raise ValueError(f"teacher.subdivision_steps must be in 0..6, got {self.subdivision_steps}")
        if self.min_size_test > self.max_size_test:
            raise ValueError(f"teacher.min_size_test must be <= {self.max_size_test}, got {self.min_size_test}")

    def _check_classes(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"teacher.num_classes must be >= 2 (background counts), got {self.num_classes}")
        inside = all(isinstance(c, int) and 0 <= c < self.num_classes for c in self.person_classes)
        if not inside or not self.person_classes or len(set(self.person_classes)) != len(self.person_classes):
            raise ValueError(
                f"teacher.person_classes must be distinct classes below {self.num_classes}, got {self.person_classes}"
            )

    def to_json(self) -> str:
        """The configuration as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "SemanticConfig":
        """The configuration of `to_json`, parsed; raises ValueError on an unknown key or a wrong type."""
        known = {f.name: f for f in fields(SemanticConfig)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown keys in a teacher's configuration: {', '.join(unknown)}")
        default = SemanticConfig()
        clean: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, value in clean.items():
            wanted = type(getattr(default, name))
            if type(value) is not wanted:
                raise ValueError(f"teacher.{name} must be {wanted.__name__}, got {value!r}")
        return SemanticConfig(**clean)


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
        bottom_up = ResNet(
            depth=config.depth,
            stem_out=config.stem_out,
            res2_out=config.res2_out,
            num_groups=config.num_groups,
            width_per_group=config.width_per_group,
            stride_in_1x1=config.stride_in_1x1,
            norm=config.norm,
        )
        r = config.res2_out
        self.backbone = FPN(bottom_up, (r, 2 * r, 4 * r, 8 * r), config.fpn_out)
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
        """Logits (N, C, H, W) of a padded batch (N, 3, H, W); H and W are those of stride 4 / 2^steps."""
        features = self.features(images)
        logits = coarse = self.coarse(features)
        for step in self.refine(coarse, features["p2"]):
            logits = step.logits
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
        logits = self.point_logits(coarse, features["p2"], where)
        full = functional.interpolate(coarse, scale_factor=4.0, mode="bilinear", align_corners=False)
        return {
            "loss_sem_seg": points.cross_entropy(full, labels.to(torch.int64)),
            "loss_sem_seg_point": points.point_loss(logits, labels, where),
        }


def build(config: SemanticConfig, seed: int) -> SemanticPointRend:
    """A network whose first weights follow from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SemanticPointRend(config)


def network_size(height: int, width: int, *, shortest: int, longest: int) -> tuple[int, int]:
    """The size an image is resized to: shorter edge `shortest` unless the longer one would exceed `longest`."""
    scale = shortest / min(height, width)
    h, w = (float(shortest), scale * width) if height < width else (scale * height, float(shortest))
    if max(h, w) > longest:
        shrink = longest / max(h, w)
        h, w = h * shrink, w * shrink
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to `size` = (height, width), bilinear with anti-aliasing (Pillow's, as in Detectron2)."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalise(image: NDArray[np.uint8], config: SemanticConfig) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32 BGR, mean subtracted and divided by the deviation."""
    bgr = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))).to(torch.float32)
    mean = torch.tensor(config.pixel_mean).view(3, 1, 1)
    return (bgr - mean) / torch.tensor(config.pixel_std).view(3, 1, 1)


def pad(images: Sequence[Tensor]) -> Tensor:
    """(3, h, w) each -> (N, 3, H, W): zeros right and below up to the largest, rounded up to a multiple of 32."""
    height = -(-max(x.shape[1] for x in images) // STRIDE) * STRIDE
    width = -(-max(x.shape[2] for x in images) // STRIDE) * STRIDE
    return torch.stack([functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])


def restore(logits: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    """(C, H, W) of the padded input -> cut to the resized image `inner`, then bilinear to the image's own `outer`."""
    cut = logits[None, :, : inner[0], : inner[1]]
    return functional.interpolate(cut, size=outer, mode="bilinear", align_corners=False)[0]
