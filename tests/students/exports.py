"""Small students and pictures for the tests of exporting."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from students.model import Student, StudentConfig, build_student
from students.parity import Picture, network_view
from tests.students.weights import fill

SIDE = 64
TINY = StudentConfig(channels=(8, 8, 8, 8, 16, 16), depths=(1,) * 5, expansions=(1,) * 5, decoder=(8, 8, 8, 8))


def tiny(**changes: object) -> Student:
    """A student whose masks are about half full: every layer has a say, and the threshold lies among the logits."""
    student = build_student(replace(TINY, **changes), 0)  # type: ignore[arg-type]
    fill(student)
    student.eval()
    images = network_view(pictures(1)[0].pixels[:96, :96], student.config.in_channels)
    with torch.no_grad():
        logits = student(images)
        student.head.weight.mul_(4)
        assert student.head.bias is not None
        student.head.bias.copy_(4 * (student.head.bias - logits.median()))
    return student


def pixels(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth blocks of colour."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])


def pictures(count: int) -> list[Picture]:
    """Upright and wide ones, by turns."""
    return [Picture(f"p{i}", pixels(i, *((120, 160) if i % 2 else (160, 120)))) for i in range(count)]
