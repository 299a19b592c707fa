"""Laws of RGB and YUV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch.nn import functional

from students.yuv import RGB_TO_YUV, YUV_TO_RGB, rgb_to_yuv, yuv_from_bytes, yuv_to_bytes, yuv_to_rgb

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))
RGB = arrays(np.float64, SHAPES, elements=st.floats(0, 1))
BYTES = arrays(np.uint8, SHAPES)


@given(RGB)
def test_there_and_back_is_the_same_colour(rgb: NDArray[np.float64]) -> None:
    assert np.abs(yuv_to_rgb(rgb_to_yuv(rgb)) - rgb).max() < 4e-15
    assert np.abs(rgb_to_yuv(yuv_to_rgb(rgb)) - rgb).max() < 4e-15
    single = rgb.astype(np.float32)
    back = yuv_to_rgb(rgb_to_yuv(single))
    assert back.dtype == np.float32
    assert np.abs(back - single).max() < 1e-6


def test_the_matrices_are_inverse_and_cannot_be_changed() -> None:
    assert np.abs(RGB_TO_YUV @ YUV_TO_RGB - np.eye(3)).max() < 1e-15
    assert np.abs(YUV_TO_RGB - np.linalg.inv(RGB_TO_YUV)).max() < 1e-14
    for matrix in (RGB_TO_YUV, YUV_TO_RGB):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 0


def test_every_byte_of_rgb_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    for blue in range(0, 256, 15):
        rgb = np.stack(np.broadcast_arrays(levels[:, None], levels[None], np.uint8(blue)), axis=-1)
        assert np.array_equal(np.rint(yuv_to_rgb(rgb_to_yuv(rgb)) * 255), rgb)


@given(BYTES)
def test_arrays_and_tensors_agree_to_the_bit(rgb: NDArray[np.uint8]) -> None:
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    there = rgb_to_yuv(tensor)
    assert there.dtype == torch.float32
    assert np.array_equal(there[0].permute(1, 2, 0).numpy(), rgb_to_yuv(rgb))
    assert torch.equal(there, rgb_to_yuv(tensor.float() / 255))
    assert np.array_equal(yuv_to_rgb(there)[0].permute(1, 2, 0).numpy(), yuv_to_rgb(rgb_to_yuv(rgb)))


@given(BYTES)
def test_a_pixel_depends_on_itself_alone(rgb: NDArray[np.uint8]) -> None:
    assert np.array_equal(rgb_to_yuv(rgb)[0, 0], rgb_to_yuv(rgb[0, 0]))


@given(BYTES)
def test_luma_and_chroma_have_their_ranges_and_grey_has_no_chroma(rgb: NDArray[np.uint8]) -> None:
    yuv = rgb_to_yuv(rgb)
    assert -1e-6 <= yuv[..., 0].min() <= yuv[..., 0].max() <= 1 + 1e-6
    assert np.abs(yuv[..., 1:]).max() <= 0.5 + 1e-6
    grey = rgb_to_yuv(np.repeat(rgb[..., :1], 3, axis=-1))
    assert np.abs(grey[..., 1:]).max() < 1e-7
    assert np.abs(grey[..., 0] - rgb[..., 0] / 255).max() < 1e-6


def test_the_primaries_are_those_of_bt_601() -> None:
    yuv = rgb_to_yuv(np.eye(3))
    assert yuv[:, 0].tolist() == [0.299, 0.587, 0.114]
    assert yuv[0] == pytest.approx([0.299, -0.168736, 0.5], abs=1e-6)
    assert yuv[1] == pytest.approx([0.587, -0.331264, -0.418688], abs=1e-6)
    assert yuv[2] == pytest.approx([0.114, 0.5, -0.081312], abs=1e-6)


@given(BYTES)
def test_bytes_are_those_of_opencv_within_a_level(rgb: NDArray[np.uint8]) -> None:
    ours = yuv_to_bytes(rgb_to_yuv(rgb)).astype(int)
    theirs = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]].astype(int)
    assert np.abs(ours - theirs).max() <= 1


@given(BYTES)
def test_bytes_come_back_and_neutral_chroma_is_zero(levels: NDArray[np.uint8]) -> None:
    assert np.array_equal(yuv_to_bytes(yuv_from_bytes(levels)), levels)
    neutral = np.full((1, 3), 128, np.uint8)
    assert yuv_from_bytes(neutral)[0, 1:].tolist() == [0, 0]


@given(BYTES)
def test_bytes_of_rgb_lose_at_most_their_rounding(rgb: NDArray[np.uint8]) -> None:
    yuv = rgb_to_yuv(rgb)
    inside = np.rint(yuv * 255)[..., 1:].max() < 128  # 127.5 of pure blue or red has no byte
    if inside:
        assert np.abs(yuv_from_bytes(yuv_to_bytes(yuv)) - yuv).max() <= 0.5 / 255 + 1e-6


def test_a_convolution_takes_the_matrix_into_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((2, 3, 9, 11), generator=generator)
    weight = torch.randn((5, 3, 3, 3), generator=generator)
    folded = torch.einsum("oikl,ij->ojkl", weight, torch.tensor(YUV_TO_RGB, dtype=torch.float32))

    def convolved(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)

    assert (convolved(image, weight) - convolved(rgb_to_yuv(image), folded)).abs().max() < 1e-5


def test_other_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rgb must have shape \(\.\.\., 3\), got \(3, 4\)"):
        rgb_to_yuv(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"a tensor of rgb must have shape \(B, 3, H, W\)"):
        rgb_to_yuv(torch.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="rgb must be uint8, or floating"):
        rgb_to_yuv(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="rgb must be uint8, or floating"):
        rgb_to_yuv(torch.zeros((1, 3, 2, 2), dtype=torch.int32))
    with pytest.raises(ValueError, match="read a camera's bytes with yuv_from_bytes"):
        yuv_to_rgb(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="levels must be uint8"):
        yuv_from_bytes(np.zeros((2, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="yuv must have shape"):
        yuv_to_bytes(np.zeros((2, 4)))
