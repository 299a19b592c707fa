"""Laws of the fourth channel: an empty mask gives the RGB network."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from students.fold import fold_yuv
from students.model import Student, StudentConfig, build_student
from students.padding import Padding
from students.presets import PRESETS
from students.prior import network_input
from tests.students.weights import fill

EMPTY = torch.zeros(1, 1, 96, 128)
TINY = StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5)


def _images(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed))


def _folded(rgb: Student) -> Student:
    config = replace(rgb.config, in_channels=4)
    yuv = build_student(config, 99).to(next(rgb.parameters()).dtype)
    yuv.load_state_dict(fold_yuv(rgb.state_dict(), rgb.config.normalisation))
    return yuv.train(rgb.training)


def _difference(rgb: Student, images: Tensor) -> float:
    with torch.inference_mode():
        return float((rgb(images) - _folded(rgb)(network_input(images, EMPTY))).abs().max())


def _awake(config: StudentConfig) -> Student:
    """A student whose normalisations have seen pictures, and whose shortcut blocks have a say."""
    student = build_student(config, 1)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.constant_(module.weight, 0.5)
    with torch.no_grad():
        student.train()(torch.cat([_images(seed) for seed in range(4)]))
    return student.eval()


@pytest.mark.parametrize("padding", ["replicate", "reflect"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_an_empty_mask_gives_the_rgb_network(name: str, padding: Padding) -> None:
    assert _difference(_awake(replace(PRESETS[name], padding=padding)), _images()) < 1e-4


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_fold_is_exact_whatever_the_weights_where_rounding_has_no_say(name: str) -> None:
    rgb = build_student(PRESETS[name], 0).eval()
    fill(rgb, 2)
    assert _difference(rgb.double(), _images().double()) < 1e-9


def test_zeros_at_the_border_are_another_colour() -> None:
    rgb = _awake(replace(TINY, padding="zeros"))
    yuv, images = _folded(rgb), _images()
    with torch.inference_mode():
        apart = (rgb.stem(rgb._normalised(images)) - yuv.stem(network_input(images, EMPTY))).abs().amax(dim=(0, 1))
    assert float(apart[1:, 1:].max()) < 1e-5
    assert float(apart[0].max()) > 0.1
    assert float(apart[:, 0].max()) > 0.1


def test_the_mask_has_no_say_before_training_and_can_get_one() -> None:
    student = build_student(replace(TINY, in_channels=4), 3)
    images, mask = _images(), torch.ones(1, 1, 96, 128)
    with torch.inference_mode():
        student.eval()
        assert torch.equal(student(network_input(images, EMPTY)), student(network_input(images, mask)))
    student.train()(network_input(images, mask)).square().sum().backward()
    gradient = student.stem[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert float(gradient[:, 3].abs().max()) > 0


def test_a_fresh_student_of_four_channels_is_the_fresh_rgb_student_of_its_seed() -> None:
    for name in ("nano", "base"):
        rgb = build_student(PRESETS[name], 5).eval()
        yuv = build_student(replace(PRESETS[name], in_channels=4), 5).eval()
        with torch.inference_mode():
            assert float((rgb(_images()) - yuv(network_input(_images(), EMPTY))).abs().max()) < 1e-4
        assert all(parameter.requires_grad for parameter in yuv.parameters())


def test_folding_leaves_its_input_alone() -> None:
    state = build_student(TINY, 0).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    folded = fold_yuv(state, TINY.normalisation)
    assert folded.keys() == state.keys()
    assert all(torch.equal(before[key], state[key]) for key in state)
    changed = {key for key in state if folded[key] is not state[key]}
    assert changed == {"stem.0.weight", "stem.1.running_mean"}


def test_folding_twice_is_refused() -> None:
    state = build_student(replace(TINY, in_channels=4), 0).state_dict()
    with pytest.raises(ValueError, match=r"must have shape \(C, 3, k, k\)"):
        fold_yuv(state, TINY.normalisation)
