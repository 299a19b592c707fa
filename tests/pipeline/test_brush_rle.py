"""The run lengths of Label Studio's brush, against streams written by hand from the format's description."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.brush_rle import decode_brush, encode_brush
from pipeline.coco import CocoError, Mask

HEAD = "{:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"


def packed(bits: str) -> list[int]:
    return list(int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big"))


def stream(count: int, runs: Sequence[tuple[int, int]]) -> list[int]:
    """Runs of (length, value), each in the largest size."""
    return packed(HEAD.format(count) + "".join(f"111{length - 1:016b}{value:08b}" for length, value in runs))


masks = arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 60)), elements=st.booleans())


@given(masks)
def test_a_mask_that_is_encoded_decodes_to_itself(mask: Mask) -> None:
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)


def test_a_run_longer_than_the_largest_size_is_cut() -> None:
    mask = np.ones((200, 300), np.bool_)
    assert len(encode_brush(mask)) < 40
    assert np.array_equal(decode_brush(encode_brush(mask), 200, 300), mask)


def test_painted_is_where_alpha_is_not_zero_row_after_row() -> None:
    values = [9, 9, 9, 0, 0, 0, 0, 1, 7, 7, 7, 0, 0, 0, 0, 255]
    literal = packed(HEAD.format(16) + "010" + f"{15:08b}" + "".join(f"{value:08b}" for value in values))
    assert decode_brush(literal, 2, 2).tolist() == [[False, True], [False, True]]


def test_runs_and_single_values_may_follow_each_other() -> None:
    bits = (
        HEAD.format(12)
        + "101"
        + f"{7:04b}"
        + f"{0:08b}"
        + "000"
        + f"{3:03b}"
        + "".join(f"{value:08b}" for value in (1, 2, 3, 128))
    )
    assert decode_brush(packed(bits), 1, 3).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("rle", "what"),
    [
        ([], "ends after 0 bytes"),
        ("AAAA", "list of bytes"),
        ([256], "list of bytes"),
        ([1.0], "list of bytes"),
        ([True], "list of bytes"),
        (stream(4 * 6 + 4, [(28, 0)]), "must have 24 values"),
        (stream(1 << 31, [(24, 0)]), "must have 24 values"),
        (stream(24, [(20, 0)]), "ends after"),
        (stream(24, [(25, 0)]), "beyond its 24 values"),
        (stream(24, [(24, 0)])[:-1], "ends after"),
        ([*stream(24, [(24, 0)]), 0, 0, 0], "bytes behind"),
        (packed(HEAD.format(24).replace("00111", "01111", 1) + "111" + f"{23:016b}" + "0" * 16), "8 bits"),
    ],
)
def test_a_stream_that_breaks_the_format_is_refused(rle: object, what: str) -> None:
    with pytest.raises(CocoError, match=what):
        decode_brush(rle, 2, 3)
