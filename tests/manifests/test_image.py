"""Laws of the still-image decoder: one orientation, true colours, and no harm from hostile bytes."""

import contextlib
import io
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageOps

from manifests.image import (
    ImageError,
    ImageLimits,
    decode_image,
    decode_mask_file,
    exif_orientation,
    image_format,
    upright,
    upright_size,
)

SMALL = ImageLimits(min_side=1, max_aspect=100.0)
ORIENTATION = 0x0112

# file -> kind of the error, or None where it must be accepted
BAD: dict[str, str | None] = {
    "-leading-dash.jpg": None,
    ".hidden.jpg": "Truncated",
    "UPPER.JPG": None,
    "all_black.jpg": None,
    "animated.gif": None,
    "audio_only.mp4": "UnsupportedFormat",
    "bomb_20000x20000_1bit.png": "TooLarge",
    "bomb_header_100000x100000.png": "TooLarge",
    "cmyk.jpg": None,
    "corrupt_stream.mp4": "UnsupportedFormat",
    "dir with spaces/фото 人 ñ (copy) #1 %20.jpg": None,
    "dup_exact.jpg": None,
    "dup_flip.jpg": None,
    "dup_small_q30.jpg": None,
    "exif_rotated6.jpg": None,
    "extreme_aspect_4000x8.png": "TooSmall",
    "gray16.png": None,
    "gray8.jpg": None,
    "html_named.jpg": "UnsupportedFormat",
    "image.webp": None,
    "mask_01_values.png": None,
    "mask_soft.png": None,
    "no_extension": None,
    "one_pixel.png": "TooSmall",
    "pair_size_mismatch.jpg": None,
    "pair_size_mismatch_mask.png": None,
    "palette.png": None,
    "png_named.jpg": None,
    "progressive.jpg": None,
    "rgb16.png": None,
    "rgba.png": None,
    "text_named.mp4": "UnsupportedFormat",
    "trailing_garbage.jpg": None,
    "truncated_half.jpg": "Truncated",
    "truncated_header.jpg": "Truncated",
    "truncated_midstream.mp4": "UnsupportedFormat",
    "truncated_no_moov.mp4": "UnsupportedFormat",
    "zero_byte.jpg": "EmptyFile",
    "zero_byte.mp4": "EmptyFile",
}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    chunk = b"\0\0\0\r" + body + zlib.crc32(body).to_bytes(4, "big")
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk + len(data[4:]).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")


def marked() -> NDArray[np.uint8]:
    """40 wide, 24 high, with a red corner top left, so that each of the eight orientations looks different."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20, 2] = 90
    pixels[:12, :, 1] = 60
    pixels[:8, :8] = (255, 0, 0)
    return pixels


def test_each_bad_file_is_accepted_or_refused_with_its_kind(data: Path) -> None:
    found = {str(path.relative_to(data / "bad")) for path in (data / "bad").rglob("*") if path.is_file()}
    assert found == set(BAD)
    for name, kind in BAD.items():
        content = (data / "bad" / name).read_bytes()
        if kind is None:
            pixels = decode_image(content).pixels
            assert pixels.dtype == np.uint8, name
            assert pixels.ndim == 3, name
            assert pixels.shape[2] == 3, name
            assert pixels.flags.c_contiguous, name
            assert pixels.flags.writeable, name
        else:
            with pytest.raises(ImageError) as caught:
                decode_image(content)
            assert caught.value.kind == kind, (name, str(caught.value))


def test_files_of_one_picture_have_one_colour(data: Path) -> None:
    original = decode_image((data / "images" / "hsd_086.jpg").read_bytes()).pixels.astype(np.float64)
    mean = original.mean((0, 1))
    names = ("cmyk.jpg", "palette.png", "png_named.jpg", "progressive.jpg", "rgb16.png", "rgba.png", "image.webp")
    for name in (*names, "exif_rotated6.jpg", "animated.gif", "trailing_garbage.jpg"):
        pixels = decode_image((data / "bad" / name).read_bytes()).pixels
        assert pixels.shape[0] < pixels.shape[1], name
        assert np.abs(pixels.mean((0, 1)) - mean).max() < 2, name
        small = cv2.resize(original, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_AREA)
        assert np.abs(small - pixels).mean() < 16, name


def test_gray_of_16_bits_is_scaled_not_clipped(data: Path) -> None:
    content = (data / "bad" / "gray16.png").read_bytes()
    raw = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert raw is not None
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(
        decode_image(content).pixels, np.repeat((raw.astype(np.int64) >> 8)[:, :, None], 3, axis=2)
    )


def test_colour_and_gray_of_16_bits_agree() -> None:
    gray = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    colour = cv2.imencode(".png", np.repeat(gray[:, :, None], 3, axis=2))[1].tobytes()
    single = cv2.imencode(".png", gray)[1].tobytes()
    np.testing.assert_array_equal(decode_image(colour).pixels, decode_image(single).pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(marked())
    lossless: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "PNG": {},
        "WebP": {"lossless": True},
    }
    options = lossless[kind]
    content = encoded(stored, kind, exif=exif(orientation), **options)
    decoded = decode_image(content, SMALL)
    with Image.open(io.BytesIO(content)) as oracle:
        expected = np.asarray(ImageOps.exif_transpose(oracle).convert("RGB"))
    assert decoded.orientation == orientation
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert upright_size(io.BytesIO(content), SMALL) == decoded.pixels.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_and_image_turn_alike(orientation: int) -> None:
    mask = Image.fromarray((marked()[:, :, 0] > 0).astype(np.uint8) * 255)
    content = encoded(mask, exif=exif(orientation))
    image = decode_image(encoded(Image.fromarray(marked()), exif=exif(orientation)), SMALL).pixels
    np.testing.assert_array_equal(decode_mask_file(content, SMALL).mask, image[:, :, 0] == 255)


def test_exif_behind_the_pixels_counts() -> None:
    content = encoded(Image.fromarray(marked()))
    body = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    late = content[:-12] + chunk + content[-12:]
    assert decode_image(late, SMALL).orientation == 6
    assert upright_size(io.BytesIO(late), SMALL) == (40, 24)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5)), st.integers(1, 8))
def test_turning_four_times_or_twice_gives_back_the_picture(pixels: NDArray[np.uint8], orientation: int) -> None:
    turned = pixels
    for _ in range(4):
        turned = upright(turned, orientation)
    np.testing.assert_array_equal(turned, pixels)


@given(st.binary(max_size=80))
def test_exif_of_any_bytes_gives_an_orientation(block: bytes) -> None:
    for start in (b"", b"Exif\0\0II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        assert 1 <= exif_orientation(start + block) <= 8


@settings(max_examples=300)
@given(st.data())
def test_any_damage_gives_an_image_or_an_image_error(draw: st.DataObject) -> None:
    kind = draw.draw(st.sampled_from(["JPEG", "PNG", "WebP", "GIF"]))
    content = bytearray(encoded(Image.fromarray(marked()), kind))
    for _ in range(draw.draw(st.integers(1, 6))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    damaged = bytes(content[: draw.draw(st.integers(0, len(content)))])
    limits = ImageLimits(pixels=1_000_000, min_side=1)
    with contextlib.suppress(ImageError):
        assert decode_image(damaged, limits).pixels.shape[2] == 3
    with contextlib.suppress(ImageError):
        assert decode_mask_file(damaged, limits).mask.ndim == 2


@settings(max_examples=60)
@given(st.sampled_from(["JPEG", "PNG", "WebP", "GIF"]), st.floats(0, 0.97))
def test_a_cut_file_is_never_half_an_image(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        decode_image(content[: int(len(content) * part)])


def test_alpha_is_dropped_and_colour_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4)).astype(np.uint8)
    pixels[:16, :, 3] = 0
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels))).pixels, pixels[:, :, :3])


@pytest.mark.parametrize("transparency", [0, bytes(range(0, 256, 2))])
def test_transparent_palette_gives_its_colours_without_a_warning(transparency: int | bytes) -> None:
    image = Image.fromarray(np.tile(marked(), (2, 1, 1))).quantize(16)
    decoded = decode_image(encoded(image, transparency=transparency)).pixels
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_cmyk_ink_of_unknown_sense_is_refused() -> None:
    content = encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")
    assert decode_image(content).pixels[32, 32].tolist() == pytest.approx([254, 0, 0], abs=3)
    marker = content.index(b"\xff\xee")
    length = int.from_bytes(content[marker + 2 : marker + 4], "big")
    with pytest.raises(ImageError, match="Adobe marker") as caught:
        decode_image(content[:marker] + content[marker + 2 + length :])
    assert caught.value.kind == "UnsupportedFormat"


def test_limits_hold_at_their_edge() -> None:
    content = encoded(Image.new("RGB", (80, 40)))
    assert decode_image(content, ImageLimits(pixels=3200, min_side=40, max_aspect=2.0, bytes=len(content)))
    cases = [
        (ImageLimits(pixels=3199), "TooLarge"),
        (ImageLimits(min_side=41), "TooSmall"),
        (ImageLimits(max_aspect=1.99), "ExtremeAspect"),
        (ImageLimits(bytes=len(content) - 1), "TooLarge"),
    ]
    for limits, kind in cases:
        with pytest.raises(ImageError) as caught:
            decode_image(content, limits)
        assert caught.value.kind == kind


@pytest.mark.parametrize("field", ["pixels", "bytes", "min_side", "max_aspect"])
def test_senseless_limits_are_refused(field: str) -> None:
    values: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=f"limits.{field} must be >= 1"):
        ImageLimits(**values)


@pytest.mark.parametrize("side", [8000, 10_000, 100_000])
def test_bombs_are_refused_whatever_pillows_own_limit_says(side: int) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(png_header(side, side))
    assert caught.value.kind == "TooLarge"
    assert f"is {side}x{side}" in str(caught.value)


def test_a_large_canvas_in_a_webp_is_refused_before_its_library_opens_it() -> None:
    content = bytearray(encoded(Image.new("RGBA", (64, 64), (1, 2, 3, 4)), "WebP", exif=exif(1)))
    assert content[12:16] == b"VP8X"
    content[24:30] = b"\xfe\x3f\0\xfe\x3f\0"
    with pytest.raises(ImageError) as caught:
        decode_image(bytes(content))
    assert caught.value.kind == "TooLarge"


def test_bombs_cost_no_memory_and_no_time(data: Path) -> None:
    contents = [path.read_bytes() for path in sorted((data / "bad").glob("bomb_*.png"))]
    contents.append(png_header(16_000, 16_000))
    assert len(contents) == 3
    tracemalloc.start()
    for content in contents:
        with pytest.raises(ImageError):
            decode_image(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_bombs_do_not_grow_the_process(data: Path) -> None:
    script = """
import resource, sys, time
from pathlib import Path
from manifests.image import ImageError, decode_image
usage = lambda: resource.getrusage(resource.RUSAGE_SELF)
before, start = usage().ru_maxrss, time.process_time()
for name in sys.argv[1:]:
    try:
        decode_image(Path(name).read_bytes())
    except ImageError as error:
        assert error.kind == "TooLarge"
print(usage().ru_maxrss - before, time.process_time() - start)
"""
    bombs = [str(path.resolve()) for path in (data / "bad").glob("bomb_*.png")]
    done = subprocess.run([sys.executable, "-c", script, *bombs], capture_output=True, text=True, check=True)
    kilobytes, seconds = done.stdout.split()
    assert int(kilobytes) < 50_000
    assert float(seconds) < 0.1


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    content = encoded(Image.fromarray(marked()), "JPEG", progressive=True)
    start = content.index(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        decode_image(content[:start] + content[start:-2] * 200 + content[-2:], SMALL)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_by_content(kind: str) -> None:
    content = encoded(Image.new("RGB", (64, 64)), kind)
    assert image_format(content) is None
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    assert caught.value.kind == "UnsupportedFormat"


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.sampled_from(["L", "P", "RGB", "1"]))
def test_binary_masks_come_back_from_every_mode(mask: NDArray[np.bool_], mode: str) -> None:
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    decoded = decode_mask_file(encoded(image), SMALL)
    np.testing.assert_array_equal(decoded.mask, mask)
    assert not decoded.soft


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_ones_are_read_as_person(mask: NDArray[np.bool_]) -> None:
    gray = Image.fromarray(mask.astype(np.uint8))
    labels = Image.fromarray(mask.astype(np.uint8), "P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    for image in (gray, labels):
        decoded = decode_mask_file(encoded(image), SMALL)
        np.testing.assert_array_equal(decoded.mask, mask)
        assert not decoded.soft


def test_soft_masks_are_cut_at_128_and_flagged() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode_mask_file(encoded(Image.fromarray(ramp)), SMALL)
    np.testing.assert_array_equal(decoded.mask, ramp >= 128)
    assert decoded.soft


def test_masks_of_the_pack_are_read_as_their_entries_say(data: Path) -> None:
    ones = decode_mask_file((data / "bad" / "mask_01_values.png").read_bytes())
    soft = decode_mask_file((data / "bad" / "mask_soft.png").read_bytes())
    assert (ones.soft, soft.soft) == (False, True)
    assert 0.25 < ones.mask.mean() < 0.3
    assert (ones.mask ^ soft.mask).mean() < 0.02


def refused_masks() -> dict[str, bytes]:
    labels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    labels.putpalette([value for index in range(256) for value in (index, 0, 0)])
    return {
        "a mask must be a PNG": encoded(Image.new("L", (8, 8)), "JPEG"),
        "8 bits per sample": cv2.imencode(".png", np.full((8, 8), 300, np.uint16))[1].tobytes(),
        "this one has colours": encoded(Image.new("RGB", (8, 8), (255, 0, 0))),
        "transparent pixels": encoded(Image.new("LA", (8, 8), (255, 10))),
        "colour palette": encoded(labels),
        "the largest is 3": encoded(Image.fromarray(np.full((8, 8), 3, np.uint8))),
    }


@pytest.mark.parametrize("rule", list(refused_masks()))
def test_masks_of_unclear_meaning_are_refused(rule: str) -> None:
    with pytest.raises(ImageError, match=rule) as caught:
        decode_mask_file(refused_masks()[rule], SMALL)
    assert caught.value.kind == "UnsupportedFormat"
