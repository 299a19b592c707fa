"""A student as it is run: each normalisation folded into the convolution before it.

With γ, β, μ, σ² those of the normalisation, a convolution W x + b followed by it is (γ/σ) W x + (γ/σ)(b − μ) + β: the
same function up to rounding, with half the passes over memory.
"""

import copy
import itertools
from typing import TypeVar

from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from students.encoder import norms

_Model = TypeVar("_Model", bound=nn.Module)


def fuse(model: _Model) -> _Model:
    """A copy of a network in evaluation mode without normalisations; the network itself stays as it is.

    A normalisation belongs to the convolution that its module lists just before it, as our units and timm's blocks do.

    Raises:
        ValueError: If a normalisation does not follow a convolution of as many channels.
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        names = [name for name, child in parent.named_children() if child is not None]
        for before, name in itertools.pairwise(names):
            first, second = getattr(parent, before), getattr(parent, name)
            if _belong(first, second):
                setattr(parent, before, fuse_conv_bn_eval(first, second))
                setattr(parent, name, _rest(second))
    if left := len(norms(fused)):
        raise ValueError(f"every normalisation must follow its convolution to be folded, {left} do not")
    return fused


def _belong(first: nn.Module, second: nn.Module) -> bool:
    both = isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
    return both and first.out_channels == second.num_features  # type: ignore[union-attr, no-any-return]


def _rest(norm: nn.Module) -> nn.Module:
    """What a normalisation of timm does besides."""
    return norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()  # type: ignore[return-value]
