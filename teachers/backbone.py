"""What both models have in common: the config of a ResNet-FPN, and the way from an image to its input and back.

As Detectron2 does it: resize (Pillow's bilinear), BGR, subtract the mean, divide, pad right and below to a multiple
of 32. Letters as in `teachers.points`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from teachers.fpn import FPN
from teachers.resnet import BLOCKS, Norm, ResNet

STRIDE = 32
MSRA_MEAN = (103.53, 116.28, 123.675)
IMAGENET_STD = (57.375, 57.12, 58.395)
"""Deviation of blue, green, red in 0..255, by which torchvision, timm and X-101 divide."""

#: Largest edge of a network's input.
MAX_SIDE = 8192
#: What a file of weights may ask for at most.
_MOST = {"point_num_fc": 16, "max_size_test": MAX_SIDE, "subdivision_num_points": 2**20}

C = TypeVar("C", bound="BackboneConfig")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """What weights and shapes alone do not say of backbone and input; abstract.

    Attributes:
        architecture: "semantic" or "instance", by which a stored configuration is told.
        depth: ResNet depth: 18, 34, 50, 101 or 152.
        stem_out: Channels of the stem.
        res2_out: Channels of res2, doubled by each later stage.
        num_groups: Groups of the bottleneck's 3x3 convolution.
        width_per_group: Bottleneck channels of a group in res2.
        stride_in_1x1: Stride in the bottleneck's first 1x1 (True, MSRA) or its 3x3.
        norm: Normalisation of the backbone.
        fpn_out: Channels of p2..p5.
        min_size_test: Shorter edge of the network's input.
        max_size_test: Upper bound of its longer edge.
        pixel_mean: Mean of blue, green, red in 0..255.
        pixel_std: What the difference is divided by.
    """

    architecture: ClassVar[str]

    depth: int = 50
    stem_out: int = 64
    res2_out: int = 256
    num_groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = True
    norm: Norm = "FrozenBN"
    fpn_out: int = 256
    min_size_test: int = 1024
    max_size_test: int = 2048
    pixel_mean: tuple[float, float, float] = MSRA_MEAN
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def check_config(config: BackboneConfig) -> None:
    """Check the values that both models share: every whole number >= 1 and none beyond what a machine can hold.

    Raises:
        ValueError: Naming the value.
    """
    for name in (f.name for f in fields(config) if type(getattr(config, f.name)) is int):
        least = 0 if name == "subdivision_steps" else 1
        if getattr(config, name) < least:
            raise ValueError(f"teacher.{name} must be >= {least}, got {getattr(config, name)}")
        if getattr(config, name) > _MOST.get(name, 2**16):
            raise ValueError(f"teacher.{name} must be <= {_MOST.get(name, 2**16)}, got {getattr(config, name)}")
    if config.depth not in BLOCKS:
        raise ValueError(f"teacher.depth must be one of {sorted(BLOCKS)}, got {config.depth}")
    if config.norm not in get_args(Norm):
        raise ValueError(f"teacher.norm must be one of {get_args(Norm)}, got {config.norm!r}")
    if config.min_size_test > config.max_size_test:
        raise ValueError(f"teacher.min_size_test must be <= {config.max_size_test}, got {config.min_size_test}")
    _check_pixels(config)


def _check_pixels(config: BackboneConfig) -> None:
    pixels = (*config.pixel_mean, *config.pixel_std)
    if len(config.pixel_mean) != 3 or len(config.pixel_std) != 3:
        counts = f"{len(config.pixel_mean)} and {len(config.pixel_std)}"
        raise ValueError(f"teacher.pixel_mean and pixel_std need three values each, got {counts}")
    if not all(map(math.isfinite, pixels)) or min(config.pixel_std) <= 0:
        raise ValueError(
            f"teacher.pixel_mean and pixel_std must be finite, std > 0, got {config.pixel_mean}, {config.pixel_std}"
        )


def config_json(config: BackboneConfig) -> str:
    """A configuration as JSON with sorted keys."""
    return json.dumps(asdict(config), sort_keys=True)


def parse_config(kind: type[C], values: dict[str, Any]) -> C:
    """The configuration of `config_json`, parsed.

    Raises:
        ValueError: An unknown key, a wrong type, or an impossible value.
    """
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"unknown keys in a teacher's configuration: {', '.join(unknown)}")
    default = kind()
    clean: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in clean.items():
        wanted = type(getattr(default, name))
        if type(value) is not wanted:
            raise ValueError(f"teacher.{name} must be {wanted.__name__}, got {value!r}")
    return kind(**clean)


def build_backbone(config: BackboneConfig) -> FPN:
    """ResNet and FPN, with first weights from torch's global generator."""
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
    return FPN(bottom_up, (r, 2 * r, 4 * r, 8 * r), config.fpn_out)


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


def normalise(image: NDArray[np.uint8], config: BackboneConfig) -> Tensor:
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
