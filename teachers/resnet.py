"""The bottom-up network: ResNet with Detectron2's parameter names (He et al., 2016; Xie et al., 2017 for groups).

Letters: N images, C channels, H and W rows and columns of the padded network input.

Keys are `stem.conv1`, `res{2..5}.{block}.conv{1..3}` and `res{2..5}.0.shortcut`, each with `.weight` and `.norm.*`.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["FrozenBN", "BN", "GN"]

#: Blocks of res2..res5 by depth; below 50 the blocks are basic (two 3x3), from 50 on bottlenecks (1x1, 3x3, 1x1).
BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")


class BatchNorm(nn.Module):
    """Batch normalisation whose state holds weight, bias, running_mean and running_var and no counter.

    Frozen, all four are buffers and the running statistics are always used; otherwise weight and bias are learnt.
    A frozen state and a learnt one have the same keys, so either loads into the other.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, frozen: bool, momentum: float = 0.1) -> None:
        super().__init__()
        self.frozen = frozen
        self.momentum = momentum
        if frozen:
            self.register_buffer("weight", torch.ones(channels))
            self.register_buffer("bias", torch.zeros(channels))
        else:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) by channel; eps 1e-5."""
        learns = self.training and not self.frozen
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, learns, self.momentum, eps=1e-5
        )


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The layer named by `norm`; GN has 32 groups, or fewer where the width is not a multiple of 32."""
    if norm == "GN":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return BatchNorm(channels, frozen=norm == "FrozenBN")


class Conv(nn.Conv2d):
    """A convolution and, in its child `norm`, what follows it; padded to keep the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, norm: nn.Module | None = None
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=norm is None)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.norm = norm
        self.quick: nn.Module | None = None  # what `teachers.fuse` puts in place of the convolution

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W), then normalise."""
        x = super().forward(x) if self.quick is None else self.quick(x)
        return x if self.norm is None else self.norm(x)


class Block(nn.Module):
    """A residual block, basic (two convolutions) or bottleneck (three)."""

    def __init__(self, convs: list[Conv], shortcut: Conv | None) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.names = [f"conv{i}" for i in range(1, len(convs) + 1)]
        for name, conv in zip(self.names, convs, strict=True):
            self.add_module(name, conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = x
        for name in self.names[:-1]:
            out = functional.relu_(self.get_submodule(name)(out))
        out = self.get_submodule(self.names[-1])(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(out)


def _basic(inputs: int, outputs: int, stride: int, norm: Norm) -> Block:
    convs = [
        Conv(inputs, outputs, 3, stride=stride, norm=normalisation(norm, outputs)),
        Conv(outputs, outputs, 3, norm=normalisation(norm, outputs)),
    ]
    return Block(convs, _shortcut(inputs, outputs, stride, norm))


def _bottleneck(
    inputs: int, width: int, outputs: int, stride: int, groups: int, stride_in_1x1: bool, norm: Norm
) -> Block:
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    convs = [
        Conv(inputs, width, 1, stride=first, norm=normalisation(norm, width)),
        Conv(width, width, 3, stride=second, groups=groups, norm=normalisation(norm, width)),
        Conv(width, outputs, 1, norm=normalisation(norm, outputs)),
    ]
    return Block(convs, _shortcut(inputs, outputs, stride, norm))


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> Conv | None:
    if inputs == outputs:
        return None
    return Conv(inputs, outputs, 1, stride=stride, norm=normalisation(norm, outputs))


class Stem(nn.Module):
    """7x7 convolution of stride 2 and max pooling of stride 2: (N, 3, H, W) -> (N, C, H / 4, W / 4)."""

    def __init__(self, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv(3, outputs, 7, stride=2, norm=normalisation(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Halve twice."""
        return functional.max_pool2d(functional.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152 giving res2..res5 at strides 4, 8, 16, 32.

    Args:
        depth: A key of `BLOCKS`.
        stem_out: Channels after the stem.
        res2_out: Channels of res2; every later stage has twice its predecessor's.
        num_groups: Groups of the 3x3 convolution in bottlenecks.
        width_per_group: Bottleneck channels of a group in res2.
        stride_in_1x1: Whether the stride of a bottleneck sits in its first 1x1 (MSRA) or in its 3x3 (torchvision).
        norm: What follows each convolution.
    """

    def __init__(
        self,
        *,
        depth: int,
        stem_out: int,
        res2_out: int,
        num_groups: int,
        width_per_group: int,
        stride_in_1x1: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.stem = Stem(stem_out, norm)
        inputs, outputs, width = stem_out, res2_out, num_groups * width_per_group
        for stage, count in zip(STAGES, BLOCKS[depth], strict=True):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and stage != "res2" else 1
                if depth < 50:
                    blocks.append(_basic(inputs, outputs, stride, norm))
                else:
                    blocks.append(_bottleneck(inputs, width, outputs, stride, num_groups, stride_in_1x1, norm))
                inputs = outputs
            self.add_module(stage, nn.Sequential(*blocks))
            outputs, width = outputs * 2, width * 2

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) with H and W multiples of 32 -> res2..res5, stage i at stride 2^i."""
        out = {}
        x = self.stem(x)
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
            out[stage] = x
        return out
