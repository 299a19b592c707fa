"""A moving average of a network's weights, which is steadier than the network itself."""

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every tensor of the average, running statistics too, a little towards the model's; counters are copied."""
    mine, theirs = list(average.state_dict().values()), list(model.state_dict().values())
    pairs = list(zip(mine, theirs, strict=True))
    slow, fast = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(slow, fast, 1 - decay)
    for count, newer in pairs:
        if not count.is_floating_point():
            count.copy_(newer)
