"""Padding by slices and concatenation, for runtimes whose fast path knows no other.

XNNPACK pads with constants only: a replicating or reflecting pad becomes index operations, which cut a network into
dozens of parts. Slices and concatenation it knows, if sizes are fixed. The values are copied, so nothing changes.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from students.fuse import fuse
from students.model import Student

Edge = Literal["replicate", "reflect"]


class EdgePad2d(nn.Module):
    """(B, C, H, W) to (B, C, H + 2 pad, W + 2 pad), as ``torch.nn.functional.pad`` does in the mode ``edge``."""

    def __init__(self, pad: int, edge: Edge) -> None:
        super().__init__()
        self.pad = pad
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self._along(self._along(x, 3), 2)

    def _along(self, x: Tensor, axis: int) -> Tensor:
        last = x.shape[axis] - 1
        if self.edge == "replicate":  # one slice, used again and again: compilers take time per operation
            before = [x.narrow(axis, 0, 1)] * self.pad
            after = [x.narrow(axis, last, 1)] * self.pad
        else:
            before = [x.narrow(axis, i, 1) for i in range(self.pad, 0, -1)]
            after = [x.narrow(axis, last - i, 1) for i in range(1, self.pad + 1)]
        return torch.cat((*before, x, *after), dim=axis)


def with_edge_pads(student: Student) -> Student:
    """A copy of a student without normalisations, whose convolutions pad nothing but zeros themselves."""
    model = fuse(student)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.padding_mode in ("replicate", "reflect"):
                setattr(parent, name, _outside(child))
    return model


def _outside(old: nn.Conv2d) -> nn.Sequential:
    """The padding, and the convolution without it."""
    assert old.padding == (old.kernel_size[0] // 2, old.kernel_size[0] // 2)
    inner = copy.deepcopy(old)
    reach, edge = old.kernel_size[0] // 2, old.padding_mode
    inner.padding, inner.padding_mode = (0, 0), "zeros"
    inner._reversed_padding_repeated_twice = [0, 0, 0, 0]
    return nn.Sequential(EdgePad2d(reach, edge), inner)  # type: ignore[arg-type]
