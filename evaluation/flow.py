"""Optical flow of a video and its cache: OpenCV DIS, a function of two frames and of the settings alone.

H, W: height and width of a frame; h, w: those at which the flow is computed; T: frames. Frames are (H, W, 3) uint8 RGB.
A flow on the grid of frame s that points to frame t is (H, W, 2) float32, (dx, dy) in pixels: what is at x in s is at
x + flow[x] in t. Source: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Flow = NDArray[np.float32]
FlowPair = tuple[Flow, Flow]

PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_STORED = np.dtype("<f2")
_SMALLEST = 64  # pixels; below about 32 DIS refuses thin frames, or crashes
_FAILED_AFTER = 24 * 3600  # seconds after which a file that was never finished is taken for a dead process's
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """How flow is computed; stored with every result.

    Attributes:
        short_side: frames whose shorter side is above this many pixels are halved first.
        above: DIS preset for these, at half size.
        below: DIS preset for the others, at full size.
    """

    short_side: int = 480
    above: str = "medium"
    below: str = "fast"

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"flow.short_side must be >= 1 pixel, got {self.short_side}")
        for name in ("above", "below"):
            if getattr(self, name) not in PRESETS:
                raise ValueError(f"flow.{name} must be one of {', '.join(PRESETS)}, got {getattr(self, name)!r}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) at which the flow of frames of this size is computed."""
        return ((height + 1) // 2, (width + 1) // 2) if self._halves(height, width) else (height, width)

    def preset(self, height: int, width: int) -> str:
        """The DIS preset for frames of this size."""
        return self.above if self._halves(height, width) else self.below

    def _halves(self, height: int, width: int) -> bool:
        return min(height, width) > self.short_side


def flow(source: Frame, target: Frame, config: FlowConfig | None = None) -> Flow:
    """Flow on the grid of `source` that points to `target`: (H, W, 2) float32, pixels, rounded to float16 at (h, w).

    Equal for equal frames and settings: OpenCV works on one thread meanwhile (in the whole process).

    Raises:
        ValueError: not two frames of one size.
    """
    config = config or FlowConfig()
    _check_frames(source, target)
    grey = _grey(source, config), _grey(target, config)
    return _enlarge(_dis(*grey, config.preset(*source.shape[:2])), *source.shape[:2])


def flow_pair(source: Frame, target: Frame, config: FlowConfig | None = None) -> FlowPair:
    """Flow both ways: (on the grid of `source` to `target`, on the grid of `target` to `source`); see `flow`."""
    return flow(source, target, config), flow(target, source, config)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowCache:
    """Flow of whole videos, computed once: one file per video and settings, read and written a pair at a time.

    A file is named by the digest of the frames' content, the settings and OpenCV's version, so it never goes stale.
    It appears whole or not at all; one that is torn or damaged is dropped and computed again from where it fails.
    Any number of threads and processes may share a folder. Where a file cannot be written, or would by itself exceed
    the limit, flow is computed and not kept.

    Attributes:
        folder: where the files are; made when needed.
        config: how flow is computed.
        max_bytes: size of all files together; those used longest ago make room.
    """

    folder: Path
    config: FlowConfig = field(default_factory=FlowConfig)
    max_bytes: int = 20 << 30

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"flow cache max_bytes must be >= 0, got {self.max_bytes}")

    def pairs(self, frames: Iterable[Frame]) -> Iterator[FlowPair]:
        """The flow of each frame and the next, both ways, in order: T - 1 pairs (t -> t + 1, t + 1 -> t).

        Args:
            frames: all of one size; gone through once for the digest, and again where flow must be computed, so
                it must be iterable more than once (a list, or an object whose `__iter__` decodes anew).

        Raises:
            ValueError: frames that can be gone through only once, or of several sizes.
        """
        if isinstance(frames, Iterator):
            raise ValueError("frames must be iterable more than once, got an iterator; pass a list, or a decoder")
        video = _identify(frames, self.config)
        done = 0
        for stored in self._stored(video):
            yield stored
            done += 1
        if done < video.pairs:
            yield from itertools.islice(self._computed(frames, video), done, None)

    def _path(self, video: _Video) -> Path:
        return self.folder / f"{hashlib.sha256(video.header).hexdigest()[:32]}.flow"

    def _stored(self, video: _Video) -> Iterator[FlowPair]:
        """The pairs of the video's file up to the first that is damaged; none where there is no whole file."""
        with contextlib.suppress(OSError), self._path(video).open("rb") as file:
            if os.fstat(file.fileno()).st_size != video.bytes or file.read(len(video.header)) != video.header:
                return
            os.utime(self._path(video))
            for _ in range(video.pairs):
                both = _unpack(file.read(video.record), video)
                if both is None:
                    return
                yield both

    def _computed(self, frames: Iterable[Frame], video: _Video) -> Iterator[FlowPair]:
        """All pairs, computed; kept once the last is done."""
        with self._writer(video) as write:
            for forward, backward in _both_ways(frames, self.config):
                write(_pack(forward, backward))
                yield _enlarge(forward, *video.shape), _enlarge(backward, *video.shape)

    @contextlib.contextmanager
    def _writer(self, video: _Video) -> Iterator[_Part]:
        """A new file that takes the video's place when all its bytes are there, and vanishes otherwise."""
        part = _Part(None)
        try:
            if video.bytes <= self.max_bytes:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_room(video.bytes)
                part = _Part(tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False))  # noqa: SIM115
        except OSError as error:
            _LOG.warning("flow is not kept in %s: %s", self.folder, error)
        part(video.header)
        try:
            yield part
            part.commit(self._path(video), video.bytes)
        finally:
            part.drop()

    def _make_room(self, wanted: int) -> None:
        """Removes dead processes' parts, then the files used longest ago, until `wanted` bytes more fit."""
        files: list[tuple[float, int, Path]] = []
        for path in [*self.folder.glob("*.flow"), *self.folder.glob("*.part")]:
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total, now = wanted + sum(size for _, size, _ in files), time.time()
        for used, size, path in sorted(files):
            is_part = path.suffix == ".part"
            if (is_part and used < now - _FAILED_AFTER) or (not is_part and total > self.max_bytes):
                path.unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True, kw_only=True, slots=True)
class _Video:
    """What is known of a video's file before it is opened.

    Attributes:
        shape: (H, W) of its frames.
        size: (h, w) of its flow.
        pairs: T - 1, or 0.
        header: the file's first bytes.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    pairs: int
    header: bytes

    @property
    def record(self) -> int:
        """Bytes of a pair: both flows and a checksum."""
        return 2 * self.size[0] * self.size[1] * 2 * _STORED.itemsize + 4

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.pairs * self.record


class _Part:
    """A file that is being written; an error of the disk ends the writing, not the caller's work."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file

    def __call__(self, data: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError as error:
                _LOG.warning("flow is not kept in %s: %s", self._file.name, error)
                self.drop()

    def commit(self, path: Path, size: int) -> None:
        """Gives the file its name if it is whole."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._file.tell() == size:
                Path(self._file.name).replace(path)
        except OSError as error:
            _LOG.warning("flow is not kept in %s: %s", path, error)

    def drop(self) -> None:
        """Closes the file and removes it, where it still has its temporary name."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()
            Path(file.name).unlink(missing_ok=True)


class _OneThread:
    """Keeps OpenCV on one thread while anybody is inside: DIS divides a frame by the number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = cv2.getNumThreads()
            self._inside += 1
            cv2.setNumThreads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                cv2.setNumThreads(self._before)


_ONE_THREAD = _OneThread()


def _check_frames(*frames: Frame) -> None:
    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or frame.dtype != np.uint8:
            raise ValueError(f"frames must be (H, W, 3) uint8 with H, W >= 1, got {frame.shape} {frame.dtype}")
        if frame.shape != frames[0].shape:
            raise ValueError(f"frames must have one shape, got {frames[0].shape} and {frame.shape}; resize one before")


def _grey(frame: Frame, config: FlowConfig) -> Frame:
    """Luma at the size where flow is computed."""
    height, width = config.size(*frame.shape[:2])
    with _ONE_THREAD:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def _dis(source: Frame, target: Frame, preset: str) -> NDArray[np.float16]:
    height, width = source.shape
    more = max(0, _SMALLEST - height), max(0, _SMALLEST - width)
    if any(more):
        source, target = (np.pad(grey, ((0, more[0]), (0, more[1])), mode="edge") for grey in (source, target))
    with _ONE_THREAD:
        found = cv2.DISOpticalFlow.create(PRESETS[preset]).calc(source, target, None)  # type: ignore[call-overload]
    return np.asarray(found[:height, :width], _STORED)


def _enlarge(small: NDArray[np.float16], height: int, width: int) -> Flow:
    """Flow of (h, w) as flow of (H, W): larger, and its vectors longer by as much."""
    whole = small.astype(np.float32)
    if small.shape[:2] == (height, width):
        return whole
    with _ONE_THREAD:
        whole = np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    whole *= np.array([width / small.shape[1], height / small.shape[0]], np.float32)
    return whole


def _both_ways(
    frames: Iterable[Frame], config: FlowConfig
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float16]]]:
    preset, before = "", None
    for frame in frames:
        now = _grey(frame, config)
        preset = preset or config.preset(*frame.shape[:2])
        if before is not None:
            yield _dis(before, now, preset), _dis(now, before, preset)
        before = now


def _identify(frames: Iterable[Frame], config: FlowConfig) -> _Video:
    """The digest of a video's content, and what follows from it."""
    digest, count = hashlib.sha256(), 0
    shape = height, width = (0, 0)
    for frame in frames:
        _check_frames(frame)
        height, width = frame.shape[:2]
        if count and (height, width) != shape:
            raise ValueError(f"frames must have one size, got {shape} and, as frame {count}, {(height, width)}")
        shape = height, width
        digest.update(np.ascontiguousarray(frame).data)
        count += 1
    about = {
        "format": "optical flow, (T - 1, 2, h, w, 2) float16 little-endian, each pair with its CRC-32",
        "opencv": cv2.__version__,
        "config": asdict(config),
        "frames": [count, *shape],
        "sha256": digest.hexdigest(),
    }
    header = json.dumps(about, sort_keys=True).encode() + b"\n"
    return _Video(shape=shape, size=config.size(*shape), pairs=max(0, count - 1), header=header)


def _pack(forward: NDArray[np.float16], backward: NDArray[np.float16]) -> bytes:
    data = forward.tobytes() + backward.tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def _unpack(record: bytes, video: _Video) -> FlowPair | None:
    """Both flows of a record, or None where it is damaged."""
    data, checksum = record[:-4], record[-4:]
    if len(record) != video.record or zlib.crc32(data).to_bytes(4, "little") != checksum:
        return None
    forward, backward = np.frombuffer(data, _STORED).reshape(2, *video.size, 2)
    return _enlarge(forward, *video.shape), _enlarge(backward, *video.shape)
