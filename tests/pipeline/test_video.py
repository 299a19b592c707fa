"""Laws of untrusted videos: known by content, upright, a prefix where they break, and never beyond the limits."""

import functools
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.image import ImageLimits
from pipeline.frames import (
    ScanConfig,
    content_sha256,
    sniff,
)
from pipeline.video import BrokenError, Video
from tests.pipeline.media import EVERY, faults, moving, scanned, texture, video


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("mov", "mjpeg"), ("avi", "mpeg4"), ("matroska", "libx264")]
)
def test_containers_are_known_by_content(container: str, codec: str) -> None:
    content = video(moving(9), container=container, codec=codec)
    assert sniff(content[:32]) == "video"
    frames, tally = scanned(content, EVERY)
    assert (len(frames), tally.faults, tally.notes) == (9, [], [])
    first = frames[0].pixels.astype(np.int16)
    assert np.abs(first - texture(0)).mean() < 12


@pytest.mark.parametrize(("turn", "orientation"), [(0, 1), (90, 6), (180, 3), (270, 8)])
def test_a_display_matrix_turns_the_pixels_once(turn: int, orientation: int) -> None:
    picture = texture(5)
    picture[:32, :32] = (255, 0, 0)
    content = bytearray(video([picture] * 2))
    unit, one = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    zero, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    a, b = {0: (unit, zero), 90: (zero, unit), 180: (minus, zero), 270: (zero, minus)}[turn]
    c = {zero: zero, unit: minus, minus: unit}[b]
    place = content.index(b"tkhd") + 44
    assert content[place : place + 36] == unit + zero * 3 + unit + zero * 3 + one
    content[place : place + 36] = a + b + zero + c + a + zero * 3 + one
    (frame, *_), _ = scanned(bytes(content), EVERY)
    expected = np.rot90(picture, -turn // 90)
    assert frame.orientation == orientation
    assert frame.pixels.shape == expected.shape
    assert np.abs(frame.pixels.astype(np.int16) - expected).mean() < 12


def test_a_video_cut_anywhere_keeps_a_prefix(tmp_path: Path) -> None:
    content = video(moving(20), to=tmp_path / "a.mp4")
    whole, _ = scanned(content, EVERY)
    digests = [content_sha256(frame.pixels) for frame in whole]
    start = content.index(b"mdat")
    for end in np.linspace(start + 50, len(content) - 1, 12).astype(int):
        frames, tally = scanned(content[:end], EVERY)
        assert [content_sha256(frame.pixels) for frame in frames] == digests[: len(frames)]
        assert len(frames) < len(whole)
        assert faults(tally) == [("Truncated", 1)]
        assert tally.faults[0].message.startswith(f"decoded {len(frames)} of 20 promised frames")


def test_a_file_cut_between_two_frames_is_cut(tmp_path: Path) -> None:
    content = video(moving(6), to=tmp_path / "a.mp4")
    with av.open(io.BytesIO(content), "r") as container:
        ends = [(packet.pos or 0) + packet.size for packet in container.demux(video=0) if packet.size]
    frames, tally = scanned(content[: ends[2]], EVERY)
    assert (len(frames), faults(tally)) == (3, [("Truncated", 1)])


def test_an_unknown_codec_is_a_fault() -> None:
    frames, tally = scanned(video(moving(3)).replace(b"avc1", b"zzzz"))
    assert frames == []
    assert faults(tally)[0][0] in {"NoDecoder", "Corrupt"}


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (ScanConfig(video_pixels=64 * 96 - 1), "TooLarge"),
        (ScanConfig(limits=ImageLimits(min_side=65)), "TooSmall"),
        (ScanConfig(limits=ImageLimits(max_aspect=1.4)), "ExtremeAspect"),
    ],
)
def test_limits_bind_videos_before_decoding(config: ScanConfig, error: str) -> None:
    frames, tally = scanned(video(moving(3)), config)
    assert (frames, faults(tally), tally.read) == ([], [(error, 1)], 1)


def growing(sides: Sequence[int]) -> bytes:
    """An AVI of Motion JPEG whose pictures have other sides than the header says."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as output:
        track: Any = output.add_stream("mjpeg", rate=30)
        track.height = track.width = sides[0]
        track.pix_fmt = "yuvj420p"
        for number, side in enumerate(sides):
            packet = av.Packet(cv2.imencode(".jpg", texture(number, side, side))[1].tobytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = track, number, number, Fraction(1, 30)
            packet.is_keyframe = True
            output.mux(packet)
    return stream.getvalue()


def test_frames_may_change_their_size_within_the_limit() -> None:
    frames, tally = scanned(growing([64, 64, 128, 96]), EVERY)
    assert [frame.pixels.shape[0] for frame in frames] == [64, 64, 128, 96]
    assert tally.faults == []


def test_frames_that_grow_beyond_the_limit_end_the_video() -> None:
    frames, tally = scanned(growing([64, 64, 512, 64]), ScanConfig(rate_hz=1000, still=0.0, video_pixels=128 * 128))
    assert (len(frames), tally.undecodable) == (2, 1)
    assert tally.faults[0].message.startswith("decoded 2")


def test_a_video_that_is_too_long_is_cut_with_a_fault() -> None:
    frames, tally = scanned(video(moving(9)), ScanConfig(rate_hz=1000, still=0.0, max_frames=4))
    assert (len(frames), faults(tally)) == (4, [("TooLong", 1)])


@settings(max_examples=60)
@given(st.data())
def test_any_damage_to_a_video_becomes_faults(draw: st.DataObject) -> None:
    content = bytearray(_sample(draw.draw(st.sampled_from(["mp4", "avi", "matroska"]))))
    for _ in range(draw.draw(st.integers(1, 8))):
        content[draw.draw(st.integers(16, len(content) - 1))] = draw.draw(st.integers(0, 255))
    scanned(bytes(content), ScanConfig(rate_hz=1000, limits=ImageLimits(min_side=1, max_aspect=1e6)))


@functools.cache
def _sample(container: str) -> bytes:
    return video(moving(6), container=container, codec="mpeg4" if container == "avi" else "libx264")


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile other.mp4\n", "no video at all", ""])
def test_what_is_no_container_is_refused_and_names_no_other_file_to_be_opened(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.mp4").write_bytes(video(moving(3)))
    (tmp_path / "list.mp4").write_text(text)
    with (tmp_path / "list.mp4").open("rb") as handle, pytest.raises(BrokenError, match="must be MP4") as caught:
        Video(handle, ImageLimits(), 10)
    assert caught.value.error == "UnsupportedFormat"
