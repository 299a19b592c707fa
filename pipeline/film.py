"""A rendered video is written: H.264 frames at their own times, and the sound of another video as it is.

H, W: height and width. Seconds count from the first frame that is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

import av
import cv2
import numpy as np
from av.stream import Disposition

from pipeline import storage
from pipeline.clip_formats import Pixels
from pipeline.errors import StorageError
from pipeline.video import BrokenError, native, open_container
from students.data import Size

_MUXERS: Final = {".mp4": "mp4", ".mkv": "matroska"}
_TICK: Final = Fraction(1, 90_000)  # divides the frame times of film, PAL, NTSC and telephones
# One thread and no look-ahead: equal bits on any machine, and no frames waiting in memory.
_CODING: Final = {"preset": "veryfast", "crf": "18", "tune": "zerolatency", "threads": "1"}
_BT601, _LIMITED = 5, 1  # what the conversion from RGB makes; players would guess otherwise by size


def suffixes() -> tuple[str, ...]:
    """The suffixes of videos that can be written."""
    return tuple(_MUXERS)


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """What goes wrong with writing becomes a `StorageError` that names the output."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        free = storage.free_bytes(str(output.parent))
        reason = getattr(error, "strerror", None) or storage.reason(error)
        raise StorageError(
            f"--output {output} cannot be written: {reason} ({free} bytes free there); "
            "check permissions and free space, or choose another folder"
        ) from error


class Sound:
    """The first audio stream of a video, packet by packet, and the shape of the video's pixels.

    Args:
        source: the video; what is broken here only ends the sound.
        zero: seconds of its own clock at which the film begins.

    Attributes:
        stream: the audio stream; None where there is none.
        state: "copied", "none", or what went wrong.
        aspect: width by height of a pixel, of a frame as it is stored; 1 where it is not known.
    """

    def __init__(self, source: Path, zero: float) -> None:
        self.stream: Any = None
        self.state = "none"
        self.aspect = Fraction(1)
        self._zero = zero
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        self._last = -1
        self._handle = source.open("rb")
        self._container: Any = None
        try:
            self._open()
        except BrokenError as error:
            self.leave(f"left out: {error}")

    def _open(self) -> None:
        self._container = open_container(self._handle)
        with native("the sound cannot be read"):
            streams = self._container.streams
            pictures = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
            if pictures and pictures[0].sample_aspect_ratio:
                self.aspect = Fraction(pictures[0].sample_aspect_ratio)
            if streams.audio and streams.audio[0].codec_context is not None:
                self.stream = streams.audio[0]
                self.state = "copied"
                self._packets = self._container.demux(self.stream)

    def until(self, seconds: float) -> Iterator[Any]:
        """The packets that begin before so many seconds of the film; its clock is theirs."""
        while (packet := self._peek()) is not None and float(packet.dts * packet.time_base) < seconds:
            self._next = None
            yield packet

    def _peek(self) -> Any:
        while self._next is None and self.stream is not None:
            try:
                with native("the sound breaks"):
                    packet = next(self._packets, None)
            except BrokenError as error:
                self.leave(f"cut: {error}")
                return None
            if packet is None or packet.is_corrupt:
                return None
            self._next = self._shifted(packet)
        return self._next

    def _shifted(self, packet: Any) -> Any:
        """The packet in the film's clock; None if it lies before the film, or has no time that rises."""
        if packet.dts is None or packet.pts is None or packet.time_base is None:
            return None
        shift = round(Fraction(self._zero) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        if packet.dts <= self._last or packet.pts < packet.dts:
            return None
        self._last = packet.dts
        return packet

    def leave(self, why: str) -> None:
        """No sound from here on."""
        self.stream, self._next, self.state = None, None, why

    def close(self) -> None:
        """Close the source."""
        if self._container is not None:
            self._container.close()
        self._handle.close()


class Film:
    """A video that is being written; `close` or `drop` it.

    Args:
        path: where it is written.
        output: its name in errors; its suffix says which container it is.
        size: (H, W) of its frames; a side that is odd grows by one.
        rate: frames per second, about.
        sound: what is heard; closed with the film.
        turned: whether the frames' rows are columns of the source.

    Attributes:
        size: (H, W) of the video, even.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path, output: Path, size: Size, *, rate: Fraction, sound: Sound, turned: bool) -> None:
        self.size = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._output = output
        self._sound = sound
        self._rate = Fraction(rate if 1 <= rate <= 240 else 25).limit_denominator(1001)
        self._aspect = 1 / sound.aspect if turned and sound.aspect else sound.aspect
        self._heard: Any = None
        self._tick = -1
        self._container: Any = None
        self._file: BinaryIO | None = None
        try:
            with writing(output):
                self._file = path.open("wb")
                self._start(self._file)
        except BaseException:
            self.drop()
            raise

    @property
    def sound(self) -> str:
        """What became of the sound."""
        return self._sound.state

    def _start(self, file: BinaryIO) -> None:
        """The header; without sound if the container cannot hold it."""
        try:
            self._header(file)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) or self._sound.stream is None:
                raise
            self._sound.leave(f"left out: {self._output.suffix} cannot hold {self._sound.stream.codec_context.name}")
            file.seek(0)
            file.truncate()
            self._header(file)

    def _header(self, file: BinaryIO) -> None:
        self._heard = None
        self._container = av.open(file, "w", format=_MUXERS[self._output.suffix.lower()])
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=dict(_CODING))
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = _TICK
        self._stream.codec_context.sample_aspect_ratio = self._aspect
        self._stream.codec_context.colorspace = _BT601
        self._stream.codec_context.color_range = _LIMITED
        if self._sound.stream is not None:
            self._heard = self._container.add_stream_from_template(self._sound.stream)
        self._container.start_encoding()

    def write(self, pixels: Pixels, seconds: float) -> None:
        """Adds a frame, (H, W, 3) uint8 RGB, and the sound before it; seconds rise.

        Raises:
            StorageError: it cannot be written.
        """
        height, width = self.size[0] - pixels.shape[0], self.size[1] - pixels.shape[1]
        if height or width:
            pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, height, 0, width, cv2.BORDER_REPLICATE), np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._tick = max(self._tick + 1, round(seconds / _TICK))
        frame.pts, frame.time_base = self._tick, _TICK
        frame.duration = round(1 / (self._rate * _TICK))
        with writing(self._output):
            self._hear(seconds)
            self._container.mux(self._stream.encode(frame))

    def _hear(self, seconds: float) -> None:
        if self._heard is None:
            return
        for packet in self._sound.until(seconds):
            packet.stream = self._heard
            try:
                self._container.mux(packet)
            except av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                self._sound.leave(f"cut: {error.strerror}")

    def close(self) -> None:
        """Writes what is left; the file is then whole and on the disk.

        Raises:
            StorageError: it cannot be written.
        """
        assert self._file is not None
        try:
            with writing(self._output):
                self._container.mux(self._stream.encode(None))
                self._hear(float(self._tick * _TICK + 1 / self._rate))
                self._container.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self.drop()

    def drop(self) -> None:
        """Closes everything, whatever was written."""
        if self._container is not None:
            with contextlib.suppress(OSError, ValueError, av.FFmpegError):
                self._container.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._sound.close()
