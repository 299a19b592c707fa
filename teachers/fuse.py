"""Networks for inference only: batch normalisation folded, weights in one type and layout, fewer multiplications.

What is made here gives no gradients, and training never sees it.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from teachers import winograd
from teachers.points import PointHead
from teachers.resnet import BatchNorm, Conv

M = TypeVar("M", bound=nn.Module)

#: Least channels in and out for which Winograd's transforms are worth their while.
_WIDE = 128
#: Layers whose answers are logits or boxes: a rounding there is a rounding of the result.
_EXACT = ("predictor", "prediction", "objectness_logits", "anchor_deltas", "cls_score", "bbox_pred")


def fold(model: M) -> M:
    """A copy in which each convolution does the work of the batch normalisation behind it; computed in float64.

    The copy is in evaluation mode, and its parameters want no gradient. Group normalisation stays.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for module in folded.modules():
        if isinstance(module, Conv) and isinstance(module.norm, BatchNorm):
            _fold(module, module.norm)
    return folded


def _fold(conv: Conv, norm: BatchNorm) -> None:
    scale = norm.weight.double() / (norm.running_var.double() + 1e-5).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.norm = None


def quicken(model: M, *, precision: torch.dtype = torch.float32, tile: int = 0) -> M:
    """A folded copy for channels-last input whose convolutions and linear layers run in `precision`.

    Layers that give logits or boxes stay in float32.

    Args:
        model: A PointRend, or a network of the same kinds of layers; left as it was.
        precision: Type of the weights; inputs are cast to it.
        tile: Outputs per side of a Winograd tile (2 or 4) for wide 3x3 convolutions, or 0 for none.
    """
    quick = fold(model)
    for name, module in list(quick.named_modules()):
        kind = torch.float32 if name.rpartition(".")[2] in _EXACT else precision
        if isinstance(module, Conv):
            module.quick = _convolution(module, kind, tile)
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
            module.norm = None if module.norm is None else module.norm.to(kind)
        elif isinstance(module, nn.Conv2d):
            quick.set_submodule(name, _convolution(module, kind, tile))
        elif isinstance(module, nn.Linear):
            quick.set_submodule(name, QuickLinear(module.weight, module.bias, kind))
        elif isinstance(module, PointHead):
            quick.set_submodule(name, QuickPointHead(module, kind))
    return quick


def _convolution(conv: nn.Conv2d, precision: torch.dtype, tile: int) -> nn.Module:
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1) and conv.groups == 1
    wide = min(conv.in_channels, conv.out_channels) >= _WIDE
    return WinogradConv(conv, precision, tile) if tile and plain and wide else DirectConv(conv, precision)


class _Weights(nn.Module):
    """Holds a layer's weights in one type, as no parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: torch.dtype) -> None:
        super().__init__()
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.register_buffer("weight", weight.detach().to(precision), persistent=False)
        self.register_buffer("bias", bias.detach().to(precision), persistent=False)


class DirectConv(_Weights):
    """A convolution in the type of its weights, to which its input is cast.

    On one CPU thread torch leaves 1x1 convolutions of few images to a slower path that forgets channels-last memory,
    unless they are dilated; a dilation changes nothing there.
    """

    def __init__(self, conv: nn.Conv2d, precision: torch.dtype) -> None:
        super().__init__(conv.weight.contiguous(memory_format=torch.channels_last), conv.bias, precision)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.point = conv.kernel_size == (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        x, dilation = x.to(self.weight.dtype), 2 if self.point and x.device.type == "cpu" else 1
        assert not isinstance(self.padding, str)
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, dilation, self.groups)


class WinogradConv(_Weights):
    """A 3x3 convolution of stride 1 by `winograd.convolve`."""

    def __init__(self, conv: nn.Conv2d, precision: torch.dtype, tile: int) -> None:
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        super().__init__(winograd.transform_filter(conv.weight, tile), bias, precision)
        self.tile, self.back = (x.to(precision) for x in winograd.transform_matrices(tile))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        return winograd.convolve(x.to(self.weight.dtype), self.weight, self.bias, self.tile, self.back)


class QuickLinear(_Weights):
    """A linear layer in the type of its weights, to which its input is cast."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class QuickPointHead(nn.Module):
    """A `PointHead` as matrix products, its hidden layers in `precision` and its logits in float32."""

    def __init__(self, head: PointHead, precision: torch.dtype) -> None:
        super().__init__()
        self.coarse_each_layer = head.coarse_each_layer
        self.fcs = nn.ModuleList(_point_layer(head.get_submodule(name), precision) for name in head.layers)
        self.last = _point_layer(head.predictor, torch.float32)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """As `PointHead`: (N, F, P) and (N, C, P) -> (N, C, P) float32."""
        rows = coarse.transpose(1, 2)
        x = torch.cat([fine.transpose(1, 2), rows], dim=2)
        for layer in self.fcs:
            x = functional.relu_(layer(x))
            if self.coarse_each_layer:
                x = torch.cat([x, rows.to(x.dtype)], dim=2)
        logits: Tensor = self.last(x)
        return logits.transpose(1, 2)


def _point_layer(conv: nn.Module, precision: torch.dtype) -> QuickLinear:
    assert isinstance(conv, nn.Conv1d)
    return QuickLinear(conv.weight.squeeze(2), conv.bias, precision)
