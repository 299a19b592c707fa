"""Laws of the moving average: a convex sum of what was followed, counters copied, the model left alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.average import follow


def network(seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 1, device="meta"), nn.BatchNorm2d(3, device="meta")).to_empty(device="cpu")
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
        else:
            value.fill_(seed)
    return model


@given(st.floats(0, 1))
def test_floats_move_their_part_of_the_way_and_counters_are_copied(decay: float) -> None:
    average, model = network(1), network(2)
    before = {key: value.clone() for key, value in average.state_dict().items()}
    target = {key: value.clone() for key, value in model.state_dict().items()}
    follow(average, model, decay)
    for key, value in average.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, decay * before[key] + (1 - decay) * target[key], atol=1e-6)
        else:
            assert torch.equal(value, target[key])
        assert torch.equal(model.state_dict()[key], target[key])


def test_the_ends_are_a_copy_and_no_move() -> None:
    average, model = network(1), network(2)
    follow(average, model, 0.0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in average.state_dict().items())
    follow(average, network(3), 1.0)
    floats = [key for key, value in average.state_dict().items() if value.is_floating_point()]
    assert all(torch.equal(average.state_dict()[key], model.state_dict()[key]) for key in floats)


def test_no_gradient_is_recorded() -> None:
    average, model = network(1), network(2)
    follow(average, model, 0.5)
    assert all(value.grad_fn is None for value in average.parameters())
