"""Convolutions that pad by replication, so that the image border is not an edge.

With zeros around it a constant image gives maps that differ at the border by up to .36 of their range;
with replication they are constant, and a colour matrix folded into the stem is exact there too. Reflection
does the same, but needs a map larger than its pad. None has weights of its own: they can be exchanged freely.
"""

from typing import Literal

import torch
from torch import nn

Padding = Literal["replicate", "reflect", "zeros"]


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    padding: Padding = "replicate",
) -> nn.Conv2d:
    """A convolution whose output side is ``side / stride`` and whose padding repeats the border pixels.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the square kernel, odd.
        stride: Step in pixels.
        groups: Channel groups; ``inputs`` for a depthwise convolution.
        bias: Whether a bias is added (no normalisation follows).
        padding: What stands outside the map.

    Raises:
        ValueError: If ``kernel`` is even: its padding would shift the map by half a pixel.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"conv.kernel must be odd and >= 1, got {kernel}; an even kernel shifts the map")
    reach = kernel // 2
    mode: Padding = padding if reach else "zeros"
    return nn.Conv2d(inputs, outputs, kernel, stride, reach, groups=groups, bias=bias, padding_mode=mode)


def pad_with(model: nn.Module, padding: Padding) -> None:
    """Put in the place of every convolution in ``model`` that pads one that pads so, with the same parameters.

    Raises:
        ValueError: If a convolution cannot be replaced without moving its map: an even, oblong or dilated kernel, or
            a class with a padding rule of its own, such as timm's ``Conv2dSame``; the message names it.
    """
    for place, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1):
                setattr(parent, name, _padded(child, padding, f"{place}.{name}".lstrip(".")))


def _padded(old: nn.Conv2d, padding: Padding, name: str) -> nn.Conv2d:
    kernel, stride = old.kernel_size[0], old.stride[0]
    reach = kernel // 2
    plain = type(old) is nn.Conv2d and old.kernel_size == (kernel, kernel) and old.stride == (stride, stride)
    if not plain or kernel % 2 == 0 or old.padding != (reach, reach) or old.dilation != (1, 1):
        rule = f"must be a plain Conv2d of odd square kernel with half of it as padding to be padded with {padding}"
        raise ValueError(f"{name} {rule}, got {type(old).__name__}{old.kernel_size} padding {old.padding}")
    with torch.device("meta"):
        new = conv(
            old.in_channels, old.out_channels, kernel, stride=stride, groups=old.groups, bias=False, padding=padding
        )
    new.weight, new.bias = old.weight, old.bias
    return new.train(old.training)


def smallest_side(stages: list[tuple[int, nn.Module]]) -> int:
    """The least image side at which every pad is smaller than the map it is put around, as reflection needs.

    Args:
        stages: Parts of a network, each with the stride of the maps that enter it; in each part the convolutions are
            listed in the order in which they run.
    """
    needed = 1
    for entry, stage in stages:
        stride = entry
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                needed = max(needed, (module.kernel_size[0] // 2 + 1) * stride)
                stride *= module.stride[0]
    return needed
