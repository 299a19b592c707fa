"""A table and a picture of a training, the same for the same rows."""

import csv
import io
import math

import numpy as np
import pytest

from manifests.image import decode_image
from training.curve import columns, curve_csv, curve_png

LOSSES = ("coarse", "point")
ROWS = [[float(i), 1 / i, 2 / i, 0.01, 0.5 + i / 100 if i % 5 == 0 else math.nan] for i in range(1, 21)]


def test_the_table_holds_every_row() -> None:
    read = list(csv.DictReader(io.StringIO(curve_csv(LOSSES, ROWS).decode())))
    assert tuple(read[0]) == columns(LOSSES)
    assert [int(row["step"]) for row in read] == list(range(1, 21))
    assert [float(row["loss_point"]) for row in read] == pytest.approx([row[2] for row in ROWS], rel=1e-5)
    assert [row["held_out_iou"] for row in read if row["held_out_iou"]] == [
        "0.550000", "0.600000", "0.650000", "0.700000"
    ]  # fmt: skip


def test_the_picture_is_the_same_for_the_same_rows_and_another_for_others() -> None:
    first = curve_png(LOSSES, ROWS, 20)
    assert first == curve_png(LOSSES, [list(row) for row in ROWS], 20)
    pixels = decode_image(first).pixels
    assert pixels.shape == (660, 990, 3)
    other = decode_image(curve_png(LOSSES, [[*row[:1], 3 * row[1], *row[2:]] for row in ROWS], 20)).pixels
    assert not np.array_equal(pixels, other)


def test_one_row_can_be_drawn() -> None:
    assert decode_image(curve_png(LOSSES, [[1.0, 0.5, 0.5, 0.1, 0.0]], 1)).pixels.size
