"""An overlay paints mistakes and nothing else; a sheet is small, legible and repeats."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evaluation.picture import EXTRA, FOUND, IGNORED, LEGEND, MISSED, Tile, overlay, sheet, shrink
from manifests.labelled import load_labelled, read_labelled

WHITE = (255, 255, 255)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def block(rows: slice, columns: slice, size: tuple[int, int] = (40, 50)) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def painted(grey: int, colour: tuple[int, int, int], share: float) -> list[int]:
    return [round((1 - share) * grey + share * c) for c in colour]


def test_without_a_truth_only_the_mask_is_tinted_and_outlined() -> None:
    image, mask = photo(40, 50), block(slice(10, 30), slice(10, 40))
    before = image.copy()
    out = overlay(image, mask)
    assert np.array_equal(image, before)
    assert out.dtype == np.uint8
    assert np.array_equal(out[~mask], image[~mask])
    assert (out[10, 10:40] == 255).all()  # its contour
    inside = block(slice(11, 29), slice(11, 39))
    expected = np.rint(0.7 * image[inside] + 0.3 * np.array(FOUND))
    assert np.array_equal(out[inside], expected)


def test_a_probability_is_drawn_as_its_mask() -> None:
    image, p = photo(40, 50), np.random.default_rng(1).random((40, 50), dtype=np.float32)
    p[0, 0] = 0.5
    assert np.array_equal(overlay(image, p), overlay(image, p >= 0.5))


def test_mistakes_have_their_colours_and_the_rest_is_grey() -> None:
    image = np.full((40, 50, 3), 100, np.uint8)
    found, truth = block(slice(0, 40), slice(0, 30)), block(slice(0, 40), slice(15, 45))
    out = overlay(image, found, truth)
    assert out[20, 7].tolist() == painted(100, EXTRA, 0.75)
    assert out[20, 22].tolist() == painted(100, FOUND, 0.3)
    assert out[20, 37].tolist() == painted(100, MISSED, 0.75)
    assert out[20, 48].tolist() == [100, 100, 100]
    colourful = overlay(photo(40, 50), found, truth)[20, 48]
    assert colourful[0] == colourful[1] == colourful[2]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_no_mistake_is_shown_where_pixels_are_ignored(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth, ignore = rng.random((3, 12, 14)) < 0.5
    image = np.full((12, 14, 3), 100, np.uint8)
    colours = {tuple(c) for c in overlay(image, found, truth, ignore)[ignore].tolist()}
    assert colours <= {(100, 100, 100), tuple(painted(100, IGNORED, 0.8)), WHITE}


def test_the_colours_differ_in_lightness_so_that_no_eye_needs_their_hue() -> None:
    lightness = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (FOUND, MISSED, EXTRA)]
    assert min(abs(a - b) for a, b in combinations(lightness, 2)) > 30


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1)])
def test_images_of_one_row_or_pixel_are_drawn(size: tuple[int, int]) -> None:
    full = np.ones(size, bool)
    assert overlay(photo(*size), full, ~full, full).shape == (*size, 3)
    assert overlay(photo(*size), ~full).shape == (*size, 3)


def test_what_does_not_fit_together_is_refused() -> None:
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match=r"image must be \(4, 5, 3\) uint8"):
        overlay(photo(5, 4), mask)
    with pytest.raises(ValueError, match="one shape"):
        overlay(photo(4, 5), mask, np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="one shape"):
        overlay(photo(4, 5), mask, ignore=np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="must be bool"):
        overlay(photo(4, 5), mask, np.zeros((4, 5), np.uint8))  # type: ignore[arg-type]


@settings(max_examples=30)
@given(height=st.integers(1, 300), width=st.integers(1, 300), side=st.integers(16, 128))
def test_shrinking_keeps_proportions_and_never_enlarges(height: int, width: int, side: int) -> None:
    small, (mask,) = shrink(photo(height, width), [np.ones((height, width), bool)], side)
    assert small.shape[:2] == mask.shape
    assert mask.all()
    assert max(mask.shape) == min(side, max(height, width))
    scale = min(1.0, side / max(height, width))
    assert mask.shape == (max(1, round(height * scale)), max(1, round(width * scale)))


def test_a_shrunken_mask_keeps_its_area() -> None:
    mask = block(slice(31, 190), slice(44, 251), (240, 320))
    _, (small,) = shrink(photo(240, 320), [mask], 80)
    assert small.mean() == pytest.approx(mask.mean(), rel=0.03)


@pytest.mark.parametrize(("tiles", "columns", "cells"), [(1, 6, (1, 1)), (5, 3, (3, 2)), (24, 6, (6, 4))])
def test_a_sheet_holds_its_tiles_row_by_row(tiles: int, columns: int, cells: tuple[int, int]) -> None:
    shades = [10 * i for i in range(tiles)]
    pictures = [Tile(picture=np.full((40, 40, 3), shade, np.uint8), caption=f"image {shade}") for shade in shades]
    with Image.open(io.BytesIO(sheet(pictures, columns=columns, side=40))) as image:
        assert image.format == "JPEG"
        width, height = image.size
        pixels = np.asarray(image)
    wide, high = width // cells[0], height // cells[1]
    assert 40 <= wide <= 50
    assert 80 <= high <= 110
    for index, shade in enumerate(shades):
        row, column = divmod(index, columns)
        centre = pixels[4 + row * (height - 4) // cells[1] + 20, 4 + column * (width - 4) // cells[0] + 20]
        assert abs(int(centre[0]) - shade) <= 3


def test_two_dozen_photographs_take_less_than_a_megabyte_and_repeat_byte_for_byte(data: Path) -> None:
    tiles = []
    for sample in read_labelled(data)[::12][:24]:
        image, truth, ignore = load_labelled(sample)
        small, (mask, void) = shrink(image, [truth, ignore], 256)
        tiles.append(Tile(picture=overlay(small, np.roll(mask, 5, 1), mask, void), caption=f"{sample.name}\nIoU 0.9"))
    assert len(tiles) == 24
    found = sheet(tiles, columns=6, side=256, legend=LEGEND)
    assert len(found) < 10**6
    assert sheet(tiles, columns=6, side=256, legend=LEGEND) == found


@pytest.mark.parametrize("caption", ["x" * 5000, "a\nb\nc\nd\ne", "\x00\x1b[31m\t\u202e", "", "人物\U0001f600"])
def test_any_caption_stays_within_its_tile(caption: str) -> None:
    plain, captioned = (
        np.asarray(Image.open(io.BytesIO(sheet([Tile(picture=photo(60, 60), caption=c)], columns=1, side=60))))
        for c in ("", caption)
    )
    assert plain.shape == captioned.shape
    margin = captioned[70:, -3:].astype(int)  # right of the caption
    assert np.abs(margin - 24).max() <= 16


def test_a_legend_adds_a_line_on_top() -> None:
    tiles = [Tile(picture=photo(400, 400), caption="a")]
    plain, named = (
        np.asarray(Image.open(io.BytesIO(sheet(tiles, columns=1, side=400, legend=legend)))) for legend in ((), LEGEND)
    )
    assert named.shape[0] > plain.shape[0]
    head = named[: named.shape[0] - plain.shape[0]].astype(int)
    for _, colour in LEGEND:
        assert (np.abs(head - np.array(colour)).max(axis=2) < 25).sum() > 50


def test_a_sheet_of_nothing_or_of_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=">= 1 tile"):
        sheet([], columns=1, side=64)
    with pytest.raises(ValueError, match=">= 1 column"):
        sheet([Tile(picture=photo(4, 4), caption="")], columns=0, side=64)
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8.*'grey'"):
        sheet([Tile(picture=np.zeros((4, 4), np.uint8), caption="grey")], columns=1, side=64)
