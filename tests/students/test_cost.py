"""Laws of the counted cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from students.cost import summary
from students.model import StudentConfig, build_student
from students.presets import PRESETS

ONES = StudentConfig(
    channels=(4, 4, 4, 4, 8, 8),
    depths=(1, 1, 1, 1, 1),
    expansions=(1, 2, 1, 1, 1),
    kernels=(3, 5, 3, 3, 3),
    decoder=(3, 2, 2, 1),
)


def test_the_cost_is_what_a_hand_counts() -> None:
    half, quarter, eighth, sixteenth, last = ((64 // s) * (96 // s) for s in (2, 4, 8, 16, 32))
    encoder = half * 3 * 9 * 4  # stem
    encoder += half * (9 * 4 + 4 * 4)  # stage 0: depthwise, project
    encoder += half * 4 * 8 + quarter * (25 * 8 + 8 * 4)  # stage 1: expand, depthwise, project
    encoder += eighth * (9 * 4 + 4 * 4) + sixteenth * (9 * 4 + 4 * 8) + last * (9 * 8 + 8 * 8)
    decoder = last * 8 * 3 + sixteenth * ((3 + 8) * 3 + 9 * 3)
    decoder += sixteenth * 3 * 2 + eighth * ((2 + 4) * 2 + 9 * 2)
    decoder += eighth * 2 * 2 + quarter * ((2 + 4) * 2 + 9 * 2)
    decoder += quarter * 2 * 1 + half * ((1 + 4) * 1 + 9 * 1)
    decoder += half * 1  # head
    found = summary(ONES, 64, 96)
    assert found.macs == encoder + decoder
    assert found.decoder_macs == decoder
    assert found.decoder_share == decoder / (encoder + decoder)
    assert found.parameters == sum(p.numel() for p in build_student(ONES, 0).parameters())


@pytest.mark.parametrize("name", ["nano", "base"])
def test_the_cost_is_half_of_what_torch_calls_flops(name: str) -> None:
    student = build_student(PRESETS[name], 0).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        student(torch.zeros(1, 3, 64, 96))
    assert counter.get_total_flops() == 2 * summary(PRESETS[name], 64, 96).macs


def test_the_cost_of_a_network_without_squeeze_is_in_proportion_to_the_pixels() -> None:
    small, large = (summary(PRESETS["nano"], side, side) for side in (128, 256))
    assert large.macs == 4 * small.macs


@pytest.mark.parametrize(
    ("name", "parameters", "mega_macs"),
    [("nano", 0.45e6, 99), ("small", 2.07e6, 286), ("base", 3.67e6, 534), ("large", 10.74e6, 1361)],
)
def test_presets_have_the_cost_they_are_meant_to_have(name: str, parameters: float, mega_macs: float) -> None:
    found = summary(PRESETS[name], 256, 256)
    assert abs(found.parameters / parameters - 1) < 0.03
    assert abs(found.macs / (mega_macs * 1e6) - 1) < 0.03


@pytest.mark.parametrize("name", list(PRESETS))
def test_nearly_all_of_the_compute_is_in_the_encoder(name: str) -> None:
    assert summary(PRESETS[name], 256, 256).decoder_share < 0.1


def test_presets_rise_in_cost() -> None:
    costs = [summary(config, 256, 256) for config in PRESETS.values()]
    assert costs == sorted(costs, key=lambda cost: (cost.macs, cost.parameters))
    assert list(PRESETS) == ["nano", "small", "base", "large"]
