"""Feature pyramid (Lin et al., 2017) over res2..res5, with Detectron2's parameter names."""

from torch import Tensor, nn
from torch.nn import functional

from teachers.resnet import Conv, ResNet

LEVELS = (2, 3, 4, 5)


class FPN(nn.Module):
    """Top-down pyramid p2..p5 of equal width; p6 is left out, as the semantic model never reads it.

    Args:
        bottom_up: The network below, giving res2..res5.
        inputs: Channels of res2..res5.
        outputs: Channels of every level.
    """

    def __init__(self, bottom_up: ResNet, inputs: tuple[int, int, int, int], outputs: int) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        for level, channels in zip(LEVELS, inputs, strict=True):
            self.add_module(f"fpn_lateral{level}", _init(Conv(channels, outputs, 1)))
            self.add_module(f"fpn_output{level}", _init(Conv(outputs, outputs, 3)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> p2..p5, each (N, C, H / 2^i, W / 2^i)."""
        stages = self.bottom_up(x)
        out: dict[str, Tensor] = {}
        above: Tensor | None = None
        for level in reversed(LEVELS):
            here = self.get_submodule(f"fpn_lateral{level}")(stages[f"res{level}"])
            if above is not None:
                here += functional.interpolate(above, scale_factor=2.0, mode="nearest")
            out[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(here)
            above = here
        return {f"p{level}": out[f"p{level}"] for level in LEVELS}


def _init(conv: Conv) -> Conv:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv
