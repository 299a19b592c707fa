"""Encoders: a stem at stride 2 and five stages, whose maps have strides 2, 4, 8, 16 and 32.

Either a table of inverted residuals (nano, small), or a FBNetV3 of timm at any width (base, large):

```
timm       conv_stem + bn1   blocks.0   blocks.1   blocks.2   blocks.3 + blocks.4   blocks.5   blocks.6, head: left out
student    stem              stages.0   stages.1   stages.2   stages.3              stages.4
stride     2                 2          4          8          16                    32
```

Source: Dai et al., FBNetV3, CVPR 2021; Wightman, PyTorch Image Models.
"""

from collections.abc import Sequence
from typing import Literal

import timm
from torch import Tensor, nn

from students.padding import conv

Encoder = Literal["table", "fbnetv3_b", "fbnetv3_d", "fbnetv3_g"]
STAGES = 5
DEEP = ("stages.3", "stages.4")
"""The stages at strides 16 and 32, with nine tenths of the weights: those that exports with integers quantise."""

# Where a stage of timm's network stands in the student's.
PLACES = {
    "conv_stem.": "stem.0.",
    "bn1.": "stem.1.",
    "blocks.0.": "stages.0.",
    "blocks.1.": "stages.1.",
    "blocks.2.": "stages.2.",
    "blocks.3.": "stages.3.0.",
    "blocks.4.": "stages.3.1.",
    "blocks.5.": "stages.4.",
}


def unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, depthwise: bool = False) -> nn.Sequential:
    """Convolution, normalisation, hard swish."""
    groups = inputs if depthwise else 1
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride=stride, groups=groups), nn.BatchNorm2d(outputs), nn.Hardswish()
    )


class InvertedResidual(nn.Module):
    """1×1 expand, depthwise k×k, 1×1 project; a shortcut where shape allows (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [unit(inputs, inner, 1)] if expansion > 1 else []
        layers += [unit(inner, inner, kernel, stride=stride, depthwise=True)]
        layers += [nn.Sequential(conv(inner, outputs, 1), nn.BatchNorm2d(outputs))]
        self.body = nn.Sequential(*layers)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.has_skip else y


def table_stages(
    widths: Sequence[int], depths: Sequence[int], expansions: Sequence[int], kernels: Sequence[int]
) -> list[nn.Sequential]:
    """Five stages of inverted residuals; ``widths`` are those of the stem and the stages, the rest one per stage."""
    return [
        _stage(widths[i], widths[i + 1], depths[i], expansions[i], kernels[i], stride=1 if i == 0 else 2)
        for i in range(STAGES)
    ]


def _stage(inputs: int, outputs: int, depth: int, expansion: int, kernel: int, *, stride: int) -> nn.Sequential:
    blocks = [
        InvertedResidual(
            inputs if block == 0 else outputs,
            outputs,
            kernel=kernel,
            stride=stride if block == 0 else 1,
            expansion=expansion,
        )
        for block in range(depth)
    ]
    return nn.Sequential(*blocks)


def fbnet_stages(variant: Encoder, width: float) -> tuple[int, list[nn.Sequential]]:
    """Width of the stem, and the five stages, of timm's FBNetV3 at a multiple of its widths, rounded as timm does."""
    model = timm.create_model(variant, pretrained=False, features_only=True, channel_multiplier=width)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    joined = nn.Sequential(blocks[3], blocks[4])
    return model.conv_stem.out_channels, [blocks[0], blocks[1], blocks[2], joined, blocks[5]]  # type: ignore[union-attr, return-value]


def out_channels(stage: nn.Module) -> int:
    """Channels of the maps a stage gives: those of its last normalisation."""
    return norms(stage)[-1].num_features


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch normalisations of a module, in the order in which they run."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def shortcuts(model: nn.Module) -> list[nn.Module]:
    """All residual blocks, our own and timm's, that add their input to their output."""
    return [part for part in model.modules() if getattr(part, "has_skip", False) is True]
