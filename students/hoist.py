"""Padding moved to where a network is narrow: faster to run, and the same function.

```
x ─▶ 1×1, expand ─▶ activation ─▶ pad ─▶ depthwise       wide maps are padded
x ─▶ pad ─▶ 1×1, expand ─▶ activation ─▶ depthwise       narrow maps are padded
```

What works on each pixel alone does the same to a pixel that a pad has repeated or mirrored, so the two are equal. Zeros
are another matter: a 1×1 convolution has a bias. Normalisations must be folded before (``students.fuse``), and only a
network that is no longer trained may be changed so: batch statistics would count the border twice.

A runtime pays for a pad by the channel, and ONNX Runtime leaves its blocked layout for it as well. The stage at stride
32 stays: its maps are so small that the border would more than double the pixels which are expanded.
"""

from torch import nn

from students.encoder import norms
from students.model import Student

_PADS = {"replicate": nn.ReplicationPad2d, "reflect": nn.ReflectionPad2d}
# Which modules of a block are the 1×1 convolution and the depthwise one: ours after the table, and timm's.
_PLACES = (("body.0.0", "body.1.0"), ("conv_pw", "conv_dw"))


def hoist_padding(fused: Student) -> int:
    """Change the inverted residuals of a student in place, and return how many.

    Args:
        fused: A student without normalisations, as ``students.fuse.fuse`` makes it.

    Raises:
        ValueError: If it has normalisations left.
    """
    if left := len(norms(fused)):
        raise ValueError(f"normalisations must be folded before padding is moved, {left} are left; fuse the student")
    blocks = [module for stage in fused.stages[:-1] for module in stage.modules()]
    return sum(_hoisted(block, *places) for block in blocks for places in _PLACES)


def _hoisted(block: nn.Module, wide: str, depthwise: str) -> bool:
    expand, inner = _found(block, wide), _found(block, depthwise)
    if expand is None or inner is None or not _movable(expand, inner):
        return False
    pad = _PADS[inner.padding_mode](inner.kernel_size[0] // 2)
    bare = nn.Conv2d(
        inner.in_channels,
        inner.out_channels,
        inner.kernel_size,  # type: ignore[arg-type]
        inner.stride,  # type: ignore[arg-type]
        groups=inner.groups,
        bias=False,
        device="meta",
    )
    bare.weight, bare.bias = inner.weight, inner.bias
    block.set_submodule(wide, nn.Sequential(pad, expand))
    block.set_submodule(depthwise, bare.eval())
    return True


def _found(block: nn.Module, place: str) -> nn.Conv2d | None:
    try:
        module = block.get_submodule(place)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Conv2d) else None


def _movable(expand: nn.Conv2d, inner: nn.Conv2d) -> bool:
    """Whether the one is narrower than the other, works on each pixel alone, and the other pads by repetition."""
    pointwise = expand.kernel_size == (1, 1) and expand.stride == (1, 1)
    fits = expand.out_channels == inner.in_channels == inner.groups
    return pointwise and fits and expand.in_channels < expand.out_channels and inner.padding_mode in _PADS
