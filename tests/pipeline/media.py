"""Drawn sources: small videos, stills and tables, and a scan that checks the laws of every source."""

import io
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.frames import (
    Frame,
    ScanConfig,
    Tally,
    scan,
    sniff,
)

Pixels = NDArray[np.uint8]
CODING = {"libx264": {"crf": "10", "bf": "0", "g": "5", "threads": "1"}}
EVERY = ScanConfig(rate_hz=1000, still=0.0, blank=0.0)


class Source:
    """An opener of bytes that remembers its handles."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.handles: list[io.BytesIO] = []

    def __call__(self) -> BinaryIO:
        self.handles.append(io.BytesIO(self.content))
        return self.handles[-1]


def scanned(content: bytes, config: ScanConfig | None = None, kind: str | None = None) -> tuple[list[Frame], Tally]:
    """Scan and check the laws that hold for every source."""
    config = config or ScanConfig()
    source, tally, frames = Source(content), Tally(), []
    kind = kind or sniff(content[:32])
    assert kind is not None
    for frame in scan(source, "memory", kind, config, tally):
        frames.append(frame)
        assert tally.read == tally.undecodable + tally.duplicate + tally.not_sampled + len(frames)
    assert tally.read == tally.undecodable + tally.duplicate + tally.not_sampled + len(frames)
    assert tally.undecodable == sum(fault.items for fault in tally.faults if fault.error != "BlankFrame")
    assert all(handle.closed for handle in source.handles)
    for fault in tally.faults:
        assert fault.items >= 1
        assert fault.message.isprintable()
    for frame in frames:
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.shape[2] == 3
        assert frame.pixels.flags.c_contiguous
    times = [frame.pts_us for frame in frames if frame.pts_us is not None]
    assert len(times) == (len(frames) if kind == "video" else 0)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    return frames, tally


def texture(seed: int, height: int = 64, width: int = 96) -> Pixels:
    """A smooth random picture, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def video(
    pictures: Sequence[Pixels],
    times: Sequence[int] | None = None,
    container: str = "mp4",
    codec: str = "libx264",
    to: Path | None = None,
    **options: str,
) -> bytes:
    """Encode pictures at 30 Hz; `times` in ticks of 1/30 s. To a path: an MP4 with its index in front."""
    stream = io.BytesIO()
    muxing = {"movflags": "faststart"} if to else {}
    with av.open(str(to) if to else stream, "w", format=container, options=muxing) as output:
        track: Any = output.add_stream(codec, rate=30, options=options or CODING.get(codec, {}))
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track.time_base = track.codec_context.time_base = Fraction(1, 30)
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 30)
            output.mux(track.encode(frame))
        output.mux(track.encode(None))
    return to.read_bytes() if to else stream.getvalue()


def moving(count: int, seed: int = 0, shift: int = 3) -> list[Pixels]:
    """A picture that moves sideways a little, frame by frame."""
    return [np.ascontiguousarray(np.roll(texture(seed), shift * number, axis=1)) for number in range(count)]


def jpeg(seed: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(texture(seed)).save(stream, "JPEG", **options)
    return stream.getvalue()


def table(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def faults(tally: Tally) -> list[tuple[str, int]]:
    return [(fault.error, fault.items) for fault in tally.faults]
