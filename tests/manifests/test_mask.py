import hashlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from manifests.mask import MaskError, components, decode_mask, decode_soft, encode_mask, encode_soft, mask_sha256

LIMIT = 1 << 20
MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")


def _gray8(plane: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", plane)[1])


@given(MASKS)
def test_a_mask_comes_back_as_it_was_and_its_bytes_are_a_function_of_it(mask: NDArray[np.bool_]) -> None:
    data = encode_mask(mask)
    decoded = decode_mask(data, mask.size)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)
    assert data == encode_mask(np.asfortranarray(mask))


@given(MASKS)
def test_another_reader_sees_a_1_bit_image_of_the_same_pixels(mask: NDArray[np.bool_]) -> None:
    image = Image.open(io.BytesIO(encode_mask(mask)))
    assert image.mode == "1"
    np.testing.assert_array_equal(np.asarray(image), mask)


@given(MASKS, st.sampled_from([1, 255]))
def test_8_bit_masks_of_0_and_1_or_0_and_255_are_read(mask: NDArray[np.bool_], high: int) -> None:
    np.testing.assert_array_equal(decode_mask(_gray8(mask.astype(np.uint8) * np.uint8(high)), LIMIT), mask)


@given(st.sets(st.integers(0, 255), min_size=1, max_size=5))
def test_other_values_are_refused_by_name(values: set[int]) -> None:
    data = _gray8(np.array([sorted(values)], np.uint8))
    if values <= {0, 1} or values <= {0, 255}:
        decode_mask(data, LIMIT)
    else:
        with pytest.raises(MaskError) as caught:
            decode_mask(data, LIMIT)
        assert str(sorted(values)) in str(caught.value)


@given(MASKS)
def test_the_hash_is_of_shape_and_bitmap(mask: NDArray[np.bool_]) -> None:
    bits = "".join("01"[int(bit)] for bit in mask.ravel())
    packed = bytes(int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8))
    height, width = mask.shape
    assert mask_sha256(mask) == hashlib.sha256(b"%dx%d\n" % (height, width) + packed).digest()


def test_masks_of_equal_bits_and_another_shape_have_another_hash() -> None:
    assert len({mask_sha256(np.zeros(shape, np.bool_)) for shape in [(1, 8), (8, 1), (2, 4), (1, 7)]}) == 4


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(0, 1, width=32)))
def test_probabilities_come_back_within_half_a_step(probability: NDArray[np.float32]) -> None:
    decoded = decode_soft(encode_soft(probability), LIMIT)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - probability).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(decode_soft(encode_soft(decoded), LIMIT), decoded)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(MaskError, match=r"\[0, 1\]"):
        encode_soft(np.array([[0.5, value]], np.float32))


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (1, 2, 3)])
def test_a_mask_is_a_plane(shape: tuple[int, ...]) -> None:
    for function in (encode_mask, mask_sha256, components):
        with pytest.raises(MaskError, match=r"must be \(H, W\) bool"):
            function(np.zeros(shape, np.bool_))
    with pytest.raises(MaskError, match="bool"):
        encode_mask(np.zeros((2, 2), np.uint8))  # type: ignore[arg-type]


def test_the_size_limit_is_checked_before_anything_is_decoded() -> None:
    bomb = _png(100_000, 100_000, 1, 0, b"")
    with pytest.raises(MaskError, match="over the limit"):
        decode_mask(bomb, LIMIT)
    mask = np.ones((4, 5), np.bool_)
    assert decode_mask(encode_mask(mask), 20).all()
    with pytest.raises(MaskError, match="over the limit of 19 pixels"):
        decode_mask(encode_mask(mask), 19)


@pytest.mark.parametrize(("depth", "colour"), [(2, 0), (4, 0), (16, 0), (8, 2), (8, 3), (8, 4), (8, 6), (1, 3)])
def test_only_gray_png_of_1_or_8_bits_is_read(depth: int, colour: int) -> None:
    with pytest.raises(MaskError, match="gray with 1 or 8 bits"):
        decode_mask(_png(1, 1, depth, colour, b"\0" * 9), LIMIT)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(60)])
def test_what_is_no_png_is_refused(data: bytes) -> None:
    with pytest.raises(MaskError, match="PNG"):
        decode_mask(data, LIMIT)


def test_a_png_of_no_pixels_or_too_few_is_refused() -> None:
    for data in (_png(0, 5, 1, 0, b""), _png(640, 360, 1, 0, bytes(81 * 100))):
        with pytest.raises(MaskError, match="damaged"):
            decode_mask(data, LIMIT)


@given(st.data())
def test_a_flipped_bit_is_an_error_or_changes_nothing(data: st.DataObject) -> None:
    mask = np.zeros((12, 17), np.bool_)
    mask[3:9, 2:11] = True
    png = bytearray(encode_mask(mask))
    place = data.draw(st.integers(0, len(png) - 1))
    png[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = decode_mask(bytes(png), LIMIT)
    except MaskError:
        return
    np.testing.assert_array_equal(decoded, mask)


@given(MASKS)
def test_components_are_counted_with_8_neighbours(mask: NDArray[np.bool_]) -> None:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    count = 0
    while left:
        count += 1
        waiting = [left.pop()]
        while waiting:
            y, x = waiting.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
    assert components(mask) == count
