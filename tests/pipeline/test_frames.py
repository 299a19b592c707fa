"""Laws of decoding sources: every item is counted once, fetch gives what scan gave, and broken input is a fault."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.image import ImageLimits, decode_image
from pipeline.frames import (
    MEDIA_SUFFIXES,
    FetchError,
    ScanConfig,
    Tally,
    content_sha256,
    dhash64,
    fetch,
    hamming,
    scan,
    sniff,
)
from pipeline.video import Video
from tests.pipeline.media import EVERY, Source, faults, jpeg, moving, scanned, table, texture, video

# file -> (what it sniffs to, frames yielded at 5 Hz, error of its fault)
BAD: dict[str, tuple[str | None, int, str | None]] = {
    "-leading-dash.jpg": ("image", 1, None),
    ".hidden.jpg": ("image", 0, "Truncated"),
    "UPPER.JPG": ("image", 1, None),
    "all_black.jpg": ("image", 0, "BlankFrame"),
    "animated.gif": ("image", 1, None),
    "audio_only.mp4": ("video", 0, "NoVideoStream"),
    "bomb_20000x20000_1bit.png": ("image", 0, "TooLarge"),
    "bomb_header_100000x100000.png": ("image", 0, "TooLarge"),
    "cmyk.jpg": ("image", 1, None),
    "corrupt_stream.mp4": ("video", 2, "Corrupt"),
    "dir with spaces/фото 人 ñ (copy) #1 %20.jpg": ("image", 1, None),
    "dup_exact.jpg": ("image", 1, None),
    "dup_flip.jpg": ("image", 1, None),
    "dup_small_q30.jpg": ("image", 1, None),
    "exif_rotated6.jpg": ("image", 1, None),
    "extreme_aspect_4000x8.png": ("image", 0, "TooSmall"),
    "gray16.png": ("image", 1, None),
    "gray8.jpg": ("image", 1, None),
    "html_named.jpg": (None, 0, None),
    "image.webp": ("image", 1, None),
    "mask_01_values.png": ("image", 0, "BlankFrame"),
    "mask_soft.png": ("image", 1, None),
    "no_extension": ("image", 1, None),
    "one_pixel.png": ("image", 0, "TooSmall"),
    "pair_size_mismatch.jpg": ("image", 1, None),
    "pair_size_mismatch_mask.png": ("image", 1, None),
    "palette.png": ("image", 1, None),
    "png_named.jpg": ("image", 1, None),
    "progressive.jpg": ("image", 1, None),
    "rgb16.png": ("image", 1, None),
    "rgba.png": ("image", 1, None),
    "text_named.mp4": (None, 0, None),
    "trailing_garbage.jpg": ("image", 1, None),
    "truncated_half.jpg": ("image", 0, "Truncated"),
    "truncated_header.jpg": ("image", 0, "Truncated"),
    "truncated_midstream.mp4": ("video", 10, "Truncated"),
    "truncated_no_moov.mp4": ("video", 0, "Corrupt"),
    "zero_byte.jpg": (None, 0, None),
    "zero_byte.mp4": (None, 0, None),
}


# The pack -------------------------------------------------------------------------------------------------------------


def test_each_bad_file_ends_as_its_entry_says(data: Path) -> None:
    found = {str(path.relative_to(data / "bad")) for path in (data / "bad").rglob("*") if path.is_file()}
    assert found == set(BAD)
    for name, (kind, count, error) in BAD.items():
        content = (data / "bad" / name).read_bytes()
        assert sniff(content[:32]) == kind, name
        if kind is None:
            assert Path(name).suffix in MEDIA_SUFFIXES
            continue
        frames, tally = scanned(content)
        assert len(frames) == count, name
        assert [fault.error for fault in tally.faults] == ([error] if error else []), name


def test_a_cut_video_keeps_its_frames_and_says_how_many(data: Path) -> None:
    frames, tally = scanned((data / "bad" / "truncated_midstream.mp4").read_bytes())
    assert (tally.read, tally.undecodable, len(frames)) == (58, 1, 10)
    assert tally.faults[0].message.startswith("decoded 57 of 122 promised frames: ")


def test_every_clip_is_counted_in_full(data: Path) -> None:
    read = {}
    for path in sorted((data / "clips").iterdir()):
        frames, tally = scanned(path.read_bytes())
        assert [fault.error for fault in tally.faults] in ([], ["BlankFrame"]), path.name
        assert len(frames) >= 1, path.name
        read[path.name] = tally.read
        promised = 444 if "wrong_frame_count" in path.name else None
        assert [f"promises {promised} frames and holds 68" in note for note in tally.notes] == (
            [True] if promised else []
        )
    assert sum(read.values()) == 4415
    assert read["odd_vp9.webm"] == 90


@pytest.mark.parametrize("name", ["odd_frozen.mp4", "odd_hevc10.mp4", "odd_mjpeg_421x317.avi", "odd_rotate90_meta.mp4"])
def test_odd_clips_give_upright_frames_of_their_size(data: Path, name: str) -> None:
    path = data / "clips" / name
    frames, tally = scanned(path.read_bytes())
    capture = cv2.VideoCapture(str(path))
    ok, expected = capture.read()
    capture.release()
    assert ok
    assert frames[0].pixels.shape == expected.shape
    assert np.abs(frames[0].pixels.astype(np.int16) - expected[:, :, ::-1]).mean() < 6
    assert frames[0].orientation == (8 if "rotate" in name else 1)
    if "frozen" in name:
        assert (len(frames), tally.duplicate) == (1, 15)


@pytest.mark.parametrize(
    "name", ["asl_eat.mp4", "odd_rotate90_meta.mp4", "odd_vfr.mp4", "odd_vp9.webm", "odd_hevc10.mp4"]
)
def test_fetch_gives_the_pixels_of_scan(data: Path, name: str) -> None:
    content = (data / "clips" / name).read_bytes()
    frames, _ = scanned(content)
    again = dict(fetch(Source(content), "video", [frame.index for frame in frames], ScanConfig()))
    assert list(again) == [frame.index for frame in frames]
    for frame in frames:
        np.testing.assert_array_equal(again[frame.index], frame.pixels)


def test_scanning_twice_gives_the_same(data: Path) -> None:
    content = (data / "clips" / "asl_again.mp4").read_bytes()
    one, other = scanned(content)[0], scanned(content)[0]
    assert [(f.index, f.pts_us, f.scene, f.motion) for f in one] == [
        (f.index, f.pts_us, f.scene, f.motion) for f in other
    ]
    assert [content_sha256(f.pixels) for f in one] == [content_sha256(f.pixels) for f in other]


# Sampling -------------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(st.sampled_from([2.0, 3.0, 5.0, 6.0, 7.5, 30.0]), st.integers(1, 40))
def test_a_steady_video_gives_one_frame_per_slot(rate_hz: float, count: int) -> None:
    frames, tally = scanned(video(moving(count)), ScanConfig(rate_hz=rate_hz, still=0.0))
    slots = [int(number * rate_hz / 30 + 1e-3) for number in range(count)]
    expected = [number for number in range(count) if number == 0 or slots[number] > slots[number - 1]]
    assert [frame.index for frame in frames] == expected
    assert tally.read == count


def test_a_variable_frame_rate_is_sampled_by_time() -> None:
    times = [*range(30), *range(30, 90, 10)]
    frames, _ = scanned(video(moving(36), times), ScanConfig(still=0.0))
    assert [frame.pts_us for frame in frames] == [
        round(tick * 1e6 / 30) for tick in (0, 6, 12, 18, 24, *range(30, 90, 10))
    ]


def test_times_that_step_back_or_are_missing_still_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = video(moving(8))
    given_times = [0, 512, None, 100, 5000, 4000, -7, 1 << 62]
    frames_of = Video.frames

    def odd(self: Video) -> Any:
        for frame, pts in zip(frames_of(self), given_times, strict=True):
            frame.pts = pts  # type: ignore[assignment]
            yield frame

    monkeypatch.setattr(Video, "frames", odd)
    frames, tally = scanned(content, EVERY)
    base = [0, 33333, 66666, 99999, 325521, 358854, 392187, 425520]
    assert [frame.pts_us for frame in frames] == base
    assert tally.read == 8


def test_a_scene_cut_adds_its_first_frame() -> None:
    pictures = [*moving(13, seed=1, shift=1), *moving(13, seed=2, shift=1)]
    frames, _ = scanned(video(pictures), ScanConfig(still=0.0))
    assert [(frame.index, frame.scene) for frame in frames] == [(0, 0), (6, 0), (12, 0), (13, 1), (18, 1), (24, 1)]
    assert frames[0].motion is None
    assert frames[3].motion is not None
    assert frames[3].motion > 0.1
    assert all(frame.motion is not None and frame.motion < 0.05 for frame in (*frames[1:3], *frames[4:]))


def test_a_frozen_video_gives_one_frame() -> None:
    frames, tally = scanned(video([texture(3)] * 30))
    assert (len(frames), tally.duplicate, tally.not_sampled) == (1, 4, 25)


def test_slow_drift_is_kept_once_it_adds_up() -> None:
    base = texture(4).astype(np.int16)
    pictures = [np.clip(base + number // 3, 0, 255).astype(np.uint8) for number in range(60)]
    frames, tally = scanned(video(pictures, crf="1"), ScanConfig(rate_hz=30, still=0.01))
    assert 4 <= len(frames) <= 12
    assert tally.duplicate == 60 - len(frames)


def test_blank_frames_share_one_fault() -> None:
    black = np.zeros((64, 96, 3), np.uint8)
    frames, tally = scanned(video([black] * 12 + moving(6)))
    assert [frame.index for frame in frames] == [12]
    assert faults(tally) == [("BlankFrame", 2)]
    assert (tally.read, tally.undecodable, tally.not_sampled) == (18, 0, 17)


def test_a_consumer_that_stops_early_leaves_nothing_open() -> None:
    source, tally = Source(video(moving(30))), Tally()
    frames = scan(source, "memory", "video", EVERY, tally)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert source.handles[0].closed
    assert tally.read == 1


# Stills ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stills_are_upright_and_say_their_orientation(orientation: int) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    content = jpeg(6, exif=block)
    (frame,), tally = scanned(content)
    assert (frame.index, frame.pts_us, frame.scene, frame.motion) == (0, None, 0, None)
    assert frame.orientation == orientation
    np.testing.assert_array_equal(frame.pixels, decode_image(content).pixels)
    assert (tally.read, tally.faults) == (1, [])


def test_bytes_beyond_the_limit_are_not_read() -> None:
    frames, tally = scanned(jpeg(7), ScanConfig(limits=ImageLimits(bytes=100)))
    assert (frames, faults(tally)) == ([], [("TooLarge", 1)])


def test_an_empty_still_is_a_fault() -> None:
    assert faults(scanned(b"", kind="image")[1]) == [("EmptyFile", 1)]


def test_errors_of_the_storage_pass_through() -> None:
    def gone() -> BinaryIO:
        raise ConnectionError("storage is away")

    with pytest.raises(ConnectionError):
        list(scan(gone, "memory", "image", ScanConfig(), Tally()))


# Parquet --------------------------------------------------------------------------------------------------------------


def test_rows_of_a_table_are_frames_and_bad_rows_faults() -> None:
    cells = [jpeg(0), b"<html>", None, jpeg(1), jpeg(2)[:200], b"", jpeg(3)]
    rows = [None if cell is None else {"bytes": cell, "path": f"{number}.jpg"} for number, cell in enumerate(cells)]
    content = table({"label": list(range(7)), "image": rows}, row_group_size=3)
    frames, tally = scanned(content)
    assert [frame.index for frame in frames] == [0, 3, 6]
    errors = [("UnsupportedFormat", 1), ("NoBytes", 1), ("Truncated", 1), ("EmptyFile", 1)]
    assert faults(tally) == errors
    assert [fault.message.split(":")[0] for fault in tally.faults] == ["row 1", "row 2", "row 4", "row 5"]
    again = dict(fetch(Source(content), "parquet", [3, 6], ScanConfig()))
    np.testing.assert_array_equal(again[3], decode_image(jpeg(1)).pixels)
    np.testing.assert_array_equal(again[6], frames[2].pixels)


@pytest.mark.parametrize("name", ["image", "jpg", "png", "bytes"])
def test_a_column_named_like_an_image_is_preferred(name: str) -> None:
    frames, _ = scanned(table({"sha": [b"junk"], name: [jpeg(0)]}))
    assert len(frames) == 1


def test_else_the_first_binary_column_counts() -> None:
    large = pa.array([jpeg(0), jpeg(1)], pa.large_binary())
    frames, _ = scanned(table({"text": ["a", "b"], "picture": large, "other": [b"x", b"y"]}))
    assert [frame.index for frame in frames] == [0, 1]


def test_a_table_without_images_is_a_fault() -> None:
    assert faults(scanned(table({"text": ["a"]}))[1]) == [("NoImageColumn", 1)]


def test_an_empty_table_gives_nothing() -> None:
    frames, tally = scanned(table({"image": pa.array([], pa.binary())}))
    assert (frames, tally.read) == ([], 0)


def test_a_damaged_row_group_costs_its_own_rows() -> None:
    content = bytearray(table({"image": [jpeg(n) for n in range(6)]}, row_group_size=2, use_dictionary=False))
    middle = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(0)
    content[middle.data_page_offset : middle.data_page_offset + 12] = b"\xff" * 12
    frames, tally = scanned(bytes(content))
    assert [frame.index for frame in frames] == [0, 1, 4, 5]
    assert (tally.read, faults(tally)) == (6, [("Corrupt", 2)])


@pytest.mark.parametrize("keep", [8, 60, -1])
def test_a_cut_table_is_a_fault(keep: int) -> None:
    assert faults(scanned(table({"image": [jpeg(0)]})[:keep])[1]) == [("Corrupt", 1)]


# Fetching and hashes --------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.sets(st.integers(0, 11)))
def test_fetch_gives_exactly_the_frames_asked_for(wanted: set[int]) -> None:
    content = video(moving(12), g="12", bf="2", crf="20")
    frames, _ = scanned(content, EVERY)
    found = list(fetch(Source(content), "video", sorted(wanted), EVERY))
    assert [index for index, _ in found] == sorted(wanted)
    for index, pixels in found:
        np.testing.assert_array_equal(pixels, frames[index].pixels)


def test_fetch_before_a_break_succeeds_and_behind_it_names_the_frame(tmp_path: Path) -> None:
    content = video(moving(20), to=tmp_path / "a.mp4")
    cut = content[: int(len(content) * 0.7)]
    count = len(scanned(cut, EVERY)[0])
    assert [index for index, _ in fetch(Source(cut), "video", [0, count - 1], EVERY)] == [0, count - 1]
    with pytest.raises(FetchError, match=f"frame {count} cannot be decoded: Truncated"):
        list(fetch(Source(cut), "video", [0, count], EVERY))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("video", lambda: video(moving(3))),
        ("image", lambda: jpeg(0)),
        ("parquet", lambda: table({"image": [jpeg(0)]})),
    ],
)
def test_a_frame_that_is_not_there_is_named(kind: str, make: Callable[[], bytes]) -> None:
    with pytest.raises(FetchError, match="frame 7 is not there"):
        list(fetch(Source(make()), kind, [0, 7], ScanConfig()))


@pytest.mark.parametrize("indices", [[1, 0], [2, 2], [-1]])
def test_indices_must_ascend(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly ascending"):
        list(fetch(Source(jpeg(0)), "image", indices, ScanConfig()))


def test_content_sha256_names_size_and_pixels() -> None:
    flat = np.zeros((4, 6, 3), np.uint8)
    names = {content_sha256(pixels) for pixels in (flat, flat.reshape(6, 4, 3), flat + 1, texture(0))}
    assert len(names) == 4
    assert content_sha256(flat[::-1, ::-1]) == content_sha256(flat)
    assert all(len(name) == 32 for name in names)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_is_a_distance(a: int, b: int) -> None:
    assert hamming(a, a) == 0
    assert hamming(a, b) == hamming(b, a) == sum(x != y for x, y in zip(f"{a:064b}", f"{b:064b}", strict=True))


def test_dhash_reads_left_to_right_top_to_bottom() -> None:
    ramp = np.repeat(np.arange(0, 180, 20, dtype=np.uint8)[None], 8, axis=0)
    ramp[1:] = 7
    assert dhash64(np.repeat(ramp[:, :, None], 3, axis=2)) == 0xFF << 56


def test_dhash_finds_the_small_copy_and_not_another_photograph(data: Path) -> None:
    def hashed(name: str) -> int:
        return dhash64(decode_image((data / name).read_bytes()).pixels)

    original = hashed("images/hsd_086.jpg")
    assert hamming(original, hashed("bad/dup_exact.jpg")) == 0
    assert hamming(original, hashed("bad/dup_small_q30.jpg")) <= 2
    assert hamming(original, hashed("bad/dup_flip.jpg")) > 10


# Settings and sniffing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_hz", 0),
        ("rate_hz", float("nan")),
        ("scene_cut", 1.5),
        ("still", -0.1),
        ("blank", 200),
        ("video_pixels", 0),
    ],
)
def test_senseless_settings_are_refused(field: str, value: float) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"scan.{field} must be"):
        ScanConfig(**values)


def test_unknown_kinds_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        scan(Source(b""), "memory", "audio", ScanConfig(), Tally())


@given(st.binary(max_size=40))
def test_sniff_takes_any_bytes(head: bytes) -> None:
    assert sniff(head) in {None, "image", "video", "parquet"}


@pytest.mark.parametrize(
    "head",
    [b"", b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"RIFF\0\0\0\0WAVE", b"#EXTM3U\n", b"The free software", b"BM"],
)
def test_what_we_do_not_decode_is_not_media(head: bytes) -> None:
    assert sniff(head) is None
