"""Convolutions that pad by replication, so that the image border is not an edge.

With zeros around it a constant image gives maps that differ at the border by up to .36 of their range;
with replication they are constant, and a colour matrix folded into the stem is exact there too.
"""

from typing import Literal

from torch import nn


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution whose output side is ``side / stride`` and whose padding repeats the border pixels.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the square kernel, odd.
        stride: Step in pixels.
        groups: Channel groups; ``inputs`` for a depthwise convolution.
        bias: Whether a bias is added (no normalisation follows).

    Raises:
        ValueError: If ``kernel`` is even: its padding would shift the map by half a pixel.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"conv.kernel must be odd and >= 1, got {kernel}; an even kernel shifts the map")
    padding = kernel // 2
    mode: Literal["replicate", "zeros"] = "replicate" if padding else "zeros"
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias, padding_mode=mode)
