import pytest
import torch

from students.fuse import fuse
from students.hoist import hoist_padding
from students.model import Student, StudentConfig, build_student
from students.padding import Padding

SHALLOW = {"depths": (1, 1, 2, 2, 2), "in_channels": 4}


def grown(config: StudentConfig) -> Student:
    """A student whose normalisations have seen something, so that biases are not 0."""
    student = build_student(config, 0).eval()
    generator = torch.Generator().manual_seed(1)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, spread in ((module.running_mean, 0.1), (module.bias.data, 0.1)):
                value.normal_(0, spread, generator=generator)  # type: ignore[union-attr]
    return student


@pytest.mark.parametrize("padding", ["replicate", "reflect"])
@pytest.mark.parametrize("encoder", ["table", "fbnetv3_b"])
def test_moved_padding_is_the_same_function(padding: Padding, encoder: str) -> None:
    shape = SHALLOW if encoder == "table" else {"in_channels": 4, "width": 0.25}
    student = grown(StudentConfig(encoder=encoder, padding=padding, **shape))  # type: ignore[arg-type]
    fused, moved = fuse(student), fuse(student)
    assert isinstance(moved, Student)
    assert hoist_padding(moved) > 0
    images = torch.rand(1, 4, 96, 160, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(moved(images), fused(images), rtol=1e-5, atol=1e-5)


def test_every_expanded_block_above_stride_32_is_changed_once() -> None:
    fused = fuse(build_student(StudentConfig(), 0))
    assert isinstance(fused, Student)
    assert hoist_padding(fused) == 2 + 2 + 4
    assert hoist_padding(fused) == 0


def test_zeros_stay_where_they_are() -> None:
    fused = fuse(build_student(StudentConfig(padding="zeros"), 0))
    assert isinstance(fused, Student)
    assert hoist_padding(fused) == 0


def test_a_student_with_normalisations_is_refused() -> None:
    with pytest.raises(ValueError, match="must be folded before padding is moved"):
        hoist_padding(build_student(StudentConfig(), 0).eval())
