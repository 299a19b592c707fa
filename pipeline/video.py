"""One untrusted video: its frames in order, until it ends or breaks.

Decoded by PyAV in one thread, so that bits and CPU seconds do not depend on the machine's cores. The demuxer is chosen
by content, sizes are checked before decoding, and every native error becomes a `BrokenError`.

H, W: height and width of the upright frame.
"""

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO, Final

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from manifests.image import ImageError, ImageLimits, check_size, upright

_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_ORIENTATIONS: Final = {0: 1, 90: 8, 180: 3, 270: 6}  # counterclockwise turn that makes the frame upright -> EXIF
_MESSAGE = 500  # characters of a message that may hold text of the file
# Bit-exact, so that what is sampled does not depend on the processor's instruction set.
_SCALING = Interpolation.AREA | Interpolation.BITEXACT | Interpolation.ACCURATE_RND


class BrokenError(Exception):
    """A source cannot be read, or not further."""

    def __init__(self, error: str, message: str) -> None:
        printable = "".join(letter if letter.isprintable() else " " for letter in message[:_MESSAGE])
        super().__init__(printable.strip())
        self.error = error


@contextlib.contextmanager
def native(doing: str) -> Iterator[None]:
    """Native libraries raise what they like on broken input; here it becomes one error."""
    try:
        yield
    except BrokenError:
        raise
    except ImageError as cause:
        raise BrokenError(cause.kind, str(cause)) from cause
    except Exception as cause:
        # The text of a native error holds the file's name; its strerror does not.
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise BrokenError("Corrupt", f"{doing}: {reason}") from cause


def container_format(head: bytes) -> str | None:
    """Name of the demuxer; it is given and not guessed, for guessing would admit playlists that open other files."""
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    box, brand = head[4:8], head[8:12]
    if box in _MOV_BOXES and head[0] < 0x20 and not (box == b"ftyp" and brand in _STILL_BRANDS):
        return "mov"  # the size in front of the name is below 512 MiB; words of a text are not
    return None


def open_container(handle: BinaryIO, options: dict[str, str] | None = None) -> InputContainer:
    """The container of a file, opened by the demuxer that its content names; close it, and the handle.

    Raises:
        BrokenError: no such container.
    """
    handle.seek(0)
    name = container_format(handle.read(32))
    handle.seek(0)
    if name is None:
        raise BrokenError("UnsupportedFormat", "must be MP4, MOV, Matroska, WebM or AVI by content")
    with native("the container cannot be opened"):
        return av.open(handle, mode="r", format=name, options=options, metadata_errors="replace")


class Video:
    """An open container with its first video stream; close it.

    Args:
        handle: seekable; stays open.
        limits: what a frame may be; `bytes` does not matter.
        max_frames: most frames that are decoded.

    Raises:
        BrokenError: no such container, no video stream, no decoder, or a size beyond the limits.

    Attributes:
        decoded: number of frames decoded so far.
    """

    def __init__(self, handle: BinaryIO, limits: ImageLimits, max_frames: int) -> None:
        self._limits = limits
        self._most = max_frames
        self._bytes = handle.seek(0, io.SEEK_END)
        self._small, self._reduced, self._full = VideoReformatter(), VideoReformatter(), VideoReformatter()
        self.decoded = 0
        limit = {"max_pixels": str(limits.pixels)}  # binds also frames that grow later
        self._container = open_container(handle, limit)
        try:
            self._stream = self._chosen()
            with native("the decoder cannot be opened"):
                self._stream.codec_context.options = limit
                self._stream.codec_context.thread_count = 1
                self._stream.codec_context.thread_type = "NONE"
        except BrokenError:
            self.close()
            raise

    def close(self) -> None:
        """Close the container, not the handle."""
        self._container.close()

    def _chosen(self) -> av.VideoStream:
        """The first video stream that is no cover picture."""
        with native("the streams cannot be read"):
            streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                kinds = sorted({stream.type for stream in self._container.streams})
                raise BrokenError("NoVideoStream", f"the file must hold a video stream, holds {kinds}")
            stream = streams[0]
            if stream.codec_context is None:
                raise BrokenError("NoDecoder", "no decoder here knows the codec of the video stream")
            if stream.width and stream.height:
                check_size(stream.height, stream.width, self._limits)
            return stream

    @property
    def rate(self) -> Fraction:
        """Frames per second on average; 25 where the container does not say."""
        return self._stream.average_rate or self._stream.guessed_rate or Fraction(25)

    @property
    def promised(self) -> int:
        """Number of frames that the container states; 0 where it does not."""
        return self._stream.frames

    def frames(self) -> Iterator[av.VideoFrame]:
        """Every frame, in order of showing.

        Raises:
            BrokenError: where the stream breaks, with what was decoded until there.
        """
        try:
            yield from self._frames()
        except BrokenError as error:
            promised = f" of {self.promised} promised" if self.promised else ""
            raise BrokenError(error.error, f"decoded {self.decoded}{promised} frames: {error}") from error

    def _frames(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            with native("the stream breaks"):
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.is_corrupt:
                    raise BrokenError("Truncated", "the file ends within a frame")
                frames = packet.decode()
            for frame in frames:
                self._check(frame)
                self.decoded += 1
                yield frame
        if self.decoded < self.promised and self._ends_early():
            raise BrokenError("Truncated", "the file ends before its last frame")
        if self.decoded == 0:
            raise BrokenError("NoFrames", "the video stream must hold a frame")

    def _check(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            raise BrokenError("Corrupt", "the next frame is damaged")
        if self.decoded >= self._most:
            raise BrokenError("TooLong", f"a video must have at most {self._most} frames (scan.max_frames)")
        with native("the frame"):
            check_size(frame.height, frame.width, self._limits)

    def _ends_early(self) -> bool:
        """Whether the index names bytes behind the end of the file."""
        with native("the index cannot be read"):
            return any(entry.pos + entry.size > self._bytes for entry in self._stream.index_entries)

    def thumbnail(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """(36, 64) uint8 gray, not rotated; without making the full picture."""
        with native("the frame cannot be converted"):
            small = self._small.reformat(frame, 64, 36, "gray", interpolation=_SCALING, threads=1)
            return _bytes(small)

    def reduced(self, frame: av.VideoFrame, long_side: int) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB upright, with the longer side at most `long_side`; without making the full picture."""
        scale = min(1.0, long_side / max(frame.width, frame.height))
        width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
        with native("the frame cannot be converted"):
            small = self._reduced.reformat(frame, width, height, "rgb24", interpolation=_SCALING, threads=1)
            return upright(_bytes(small), _orientation(frame))

    def pixels(self, frame: av.VideoFrame) -> tuple[NDArray[np.uint8], int]:
        """(H, W, 3) uint8 RGB upright, and the orientation applied."""
        with native("the frame cannot be converted"):
            orientation = _orientation(frame)
            return upright(_bytes(self._full.reformat(frame, format="rgb24", threads=1)), orientation), orientation


def _orientation(frame: av.VideoFrame) -> int:
    return _ORIENTATIONS[round(frame.rotation / 90) * 90 % 360]


def _bytes(frame: av.VideoFrame) -> NDArray[np.uint8]:
    pixels: NDArray[Any] = frame.to_ndarray()
    assert pixels.dtype == np.uint8
    return pixels
