"""Sources to frames: sniff, scan, fetch. Hostile and odd input is met here and becomes a counted fault.

    opener ──> scan ──> Frame, Frame, …      what it did not yield is in the Tally
                 │
    opener ──> fetch(indices) ──> the same pixels again

Bytes come through an opener alone, so a source may lie anywhere. Stills are decoded by `manifests.image`, videos by
PyAV (`pipeline.video`), Parquet files by pyarrow. Storage errors of the opener itself pass through: they are no fault
of the source. One law holds at any time: read == undecodable + duplicate + not_sampled + frames yielded.

H, W: height and width of the upright frame. Thumbnail: 36 x 64 uint8 gray, not rotated.
"""

import contextlib
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import BinaryIO, Final

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.image import DEFAULT_LIMITS, DecodedImage, ImageLimits, decode_image, image_format
from pipeline.motion import Grid, Motion
from pipeline.video import BrokenError, Video, container_format, native

Opener = Callable[[], BinaryIO]
Pixels = NDArray[np.uint8]

_SUFFIXES = """
    jpg jpeg jpe jfif png webp gif bmp tif tiff heic heif avif jp2 parquet
    mp4 m4v mov qt avi webm mkv mpg mpeg wmv flv 3gp mts m2ts ogv
"""
MEDIA_SUFFIXES: Final = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "bytes")
_ROW_GROUP_BYTES = 2 << 30
_TIME_RANGE = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanConfig:
    """How frames are taken from sources.

    Attributes:
        rate_hz: video frames per second of its own time; a video slower than that gives every frame.
        scene_cut: a frame starts a scene if its thumbnail differs from the one before by at least this, both in mean
            absolute luma (0..1) and in half the L1 distance of the 16-bin histograms (0..1). At 0.1, 99.9 % of pairs
            of unrelated photographs are told apart, and fast motion (a skater filling the frame: 0.05) is not.
        still: a sampled frame is a duplicate if its thumbnail differs from the last one yielded by less than this, in
            mean absolute luma (0..1). At 0.0015 a frozen picture and an empty corridor go, a talking head stays.
        blank: a frame is blank if the standard deviation of its luma, in gray levels of 255, is below this.
        limits: what a still image may be; sides and aspect also bind videos.
        video_pixels: largest width times height of a video frame; a decoder may hold about 20 of them, of 1.5 bytes
            per pixel.
        max_frames: most frames that are decoded of one video.
    """

    rate_hz: float = 5.0
    scene_cut: float = 0.1
    still: float = 0.0015
    blank: float = 2.0
    limits: ImageLimits = DEFAULT_LIMITS
    video_pixels: int = 8192 * 4320
    max_frames: int = 2_000_000

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise ValueError(f"scan.rate_hz must be in (0, 1000], got {self.rate_hz}")
        for name, least, most in (("scene_cut", 0.0, 1.0), ("still", 0.0, 1.0), ("blank", 0.0, 128.0)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"scan.{name} must be in [{least:g}, {most:g}], got {getattr(self, name)}")
        for name in ("video_pixels", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"scan.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Fault:
    """Items of a source that gave no frame.

    Attributes:
        error: one word, to count by: a kind of `ImageError`, or NoVideoStream, NoDecoder, NoFrames, TooLong,
            NoImageColumn, NoBytes, BlankFrame.
        message: rule and value.
        items: how many items.
    """

    error: str
    message: str
    items: int


@dataclass(kw_only=True, slots=True)
class Tally:
    """What became of the items of one source (a still, a row, a decoded video frame); filled while scanning.

    Attributes:
        read: items met; a source or a rest of it that cannot be read counts as one.
        undecodable: items that gave no pixels; each is in a fault.
        duplicate: frames nearly equal to the one yielded before.
        not_sampled: frames between the sampled ones, and blank ones (those are in a fault).
        faults: what was wrong.
        notes: what was odd, with no frame lost.
    """

    read: int = 0
    undecodable: int = 0
    duplicate: int = 0
    not_sampled: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def broken(self, fault: Fault) -> None:
        """Count items that gave no pixels."""
        self.read += fault.items
        self.undecodable += fault.items
        self.faults.append(fault)

    def blank(self) -> None:
        """Count a blank frame; all of a source share one fault."""
        self.read += 1
        self.not_sampled += 1
        items = 1 + sum(fault.items for fault in self.faults if fault.error == "BlankFrame")
        self.faults[:] = [fault for fault in self.faults if fault.error != "BlankFrame"]
        self.faults.append(Fault("BlankFrame", "the frame is uniform: its luma varies less than scan.blank", items))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One image of a source.

    Attributes:
        index: 0 for a still, the row of a Parquet file, or the number of the decoded video frame.
        pts_us: time within the video, in microseconds, growing; None for stills.
        pixels: (H, W, 3) uint8 RGB, upright.
        orientation: EXIF orientation 1..8 that was applied; clockwise turns of a video by 0/90/180/270 are 1/6/3/8.
        scene: number of the scene within the source, from 0.
        motion: mean absolute luma difference (0..1) to the frame decoded just before; None for stills and first frames.
        motion_grid: velocities since the frame decoded just before, as `pipeline.motion` has them; None for stills,
            first frames of a video or scene, and where the size of the frames changes.
    """

    index: int
    pts_us: int | None
    pixels: Pixels
    orientation: int
    scene: int
    motion: float | None
    motion_grid: Grid | None = None


class FetchError(ValueError):
    """A frame that was asked for cannot be decoded (any more)."""


def sniff(head: bytes) -> str | None:
    """What a file is, by its first bytes (32 are enough): "image", "video", "parquet", or None."""
    if image_format(head):
        return "image"
    if container_format(head):
        return "video"
    return "parquet" if head.startswith(b"PAR1") else None


def scan(opener: Opener, uri: str, kind: str, config: ScanConfig, tally: Tally) -> Iterator[Frame]:
    """Yield the sampled frames of a source, in order; everything else is counted in `tally`.

    Args:
        opener: opens the source, seekable, at its start; called once.
        uri: names the source in notes.
        kind: "image", "video" or "parquet", as `sniff` found.
        config: rates, thresholds and limits.
        tally: counters to fill; broken input ends up there and is never raised.
    """
    if kind not in ("image", "video", "parquet"):
        raise ValueError(f"kind must be image, video or parquet, got {kind!r}")
    return _scan(opener, uri, kind, config, tally)


def fetch(opener: Opener, kind: str, indices: Sequence[int], config: ScanConfig) -> Iterator[tuple[int, Pixels]]:
    """Decode frames again by their index; the pixels equal those of `scan`. Decoding stops after the last one.

    Videos are decoded from the start: that is cheaper than seeking unless fewer than about 1 in 7 frames is wanted, and
    the numbers cannot slip.

    Args:
        opener: opens the source, seekable, at its start; called once.
        kind: as for `scan`.
        indices: strictly ascending.
        config: as for `scan`; only the limits matter.

    Raises:
        FetchError: a frame is not there or broken; those before it have been yielded.
        ValueError: indices that do not ascend.
    """
    wanted = list(indices)
    if any(later <= earlier for earlier, later in zip([-1, *wanted], wanted, strict=False)):
        raise ValueError(f"indices must be >= 0 and strictly ascending, got {wanted[:8]}…")
    if not wanted:
        return
    with opener() as handle:
        left = set(wanted)
        try:
            for index, pixels in _FETCHES[kind](handle, wanted, config):
                left.remove(index)
                yield index, pixels
        except BrokenError as error:
            raise FetchError(f"frame {min(left)} cannot be decoded: {error.error}: {error}") from error
    if left:
        raise FetchError(f"frame {min(left)} is not there; the source holds fewer than when it was scanned")


def content_sha256(pixels: Pixels) -> bytes:
    """The 32-byte name of a frame's content: sha256 over ``HxW``, a newline and the RGB bytes."""
    height, width = pixels.shape[:2]
    return hashlib.sha256(b"%dx%d\n" % (height, width) + pixels.tobytes()).digest()


def dhash64(pixels: Pixels) -> int:
    """Difference hash in [0, 2**64): is each cell of an 8 x 9 gray picture darker than its right neighbour?

    Source: N. Krawetz, "Kind of Like That", 2013. It withstands scaling and compression, not mirroring.
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def hamming(a: int, b: int) -> int:
    """Number of differing bits, 0..64, of two hashes."""
    return (a ^ b).bit_count()


def _scan(opener: Opener, uri: str, kind: str, config: ScanConfig, tally: Tally) -> Iterator[Frame]:
    with opener() as handle:
        try:
            if kind == "image":
                yield from _still_frames([_read(handle, config.limits)], 0, config, tally)
            elif kind == "parquet":
                yield from _table_frames(handle, config, tally)
            else:
                yield from _video_frames(handle, uri, config, tally)
        except BrokenError as error:
            tally.broken(Fault(error.error, str(error), 1))


# Stills ---------------------------------------------------------------------------------------------------------------


def _read(handle: BinaryIO, limits: ImageLimits) -> bytes:
    size = handle.seek(0, io.SEEK_END)
    if size > limits.bytes:
        raise BrokenError("TooLarge", f"a still image must have at most {limits.bytes} bytes, has {size}")
    handle.seek(0)
    return handle.read()


def _decoded_still(data: bytes | None, limits: ImageLimits) -> DecodedImage:
    if data is None:
        raise BrokenError("NoBytes", "the row must hold the bytes of an image, is null")
    with native("the image"):
        return decode_image(data, limits)


def _still_frames(
    items: Iterable[bytes | None], start: int, config: ScanConfig, tally: Tally, label: str = ""
) -> Iterator[Frame]:
    for index, data in enumerate(items, start):
        try:
            image = _decoded_still(data, config.limits)
        except BrokenError as error:
            tally.broken(Fault(error.error, f"{label.format(index)}{error}", 1))
            continue
        if _is_blank(image.pixels, config):
            tally.blank()
            continue
        tally.read += 1
        yield Frame(index=index, pts_us=None, pixels=image.pixels, orientation=image.orientation, scene=0, motion=None)


def _is_blank(pixels: Pixels, config: ScanConfig) -> bool:
    _, deviation = cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    return bool(deviation.item() < config.blank)


def _fetch_still(handle: BinaryIO, wanted: list[int], config: ScanConfig) -> Iterator[tuple[int, Pixels]]:
    if wanted[0] == 0:
        yield 0, _decoded_still(_read(handle, config.limits), config.limits).pixels


# Parquet --------------------------------------------------------------------------------------------------------------


class _Table:
    """The image column of an untrusted Parquet file, read a few rows at a time."""

    def __init__(self, handle: BinaryIO) -> None:
        with native("the Parquet footer cannot be read"):
            self._file = pq.ParquetFile(handle, pre_buffer=False)
            self._column = _image_column(self._file.schema_arrow)
            footer = self._file.metadata
            self.rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def read(self, group: int) -> Iterator[bytes | None]:
        """The cells of a row group; breaks with an error where it cannot be read further."""
        size = self._file.metadata.row_group(group).total_byte_size
        if size > _ROW_GROUP_BYTES:
            raise BrokenError("TooLarge", f"a row group must have at most {_ROW_GROUP_BYTES} bytes, has {size}")
        with native("the row group cannot be read"):
            batches = self._file.iter_batches(16, row_groups=[group], columns=[self._column], use_threads=False)
        while True:
            with native("the row group cannot be read"):
                batch = next(batches, None)
                cells = [] if batch is None else batch.column(0).to_pylist()
            if batch is None:
                return
            yield from (cell["bytes"] if isinstance(cell, dict) else cell for cell in cells)


def _image_column(schema: pa.Schema) -> str:
    """Name of the column of image bytes, down to the leaf: a column named like an image, else the first binary one."""
    leaves: dict[str, str] = {}
    for column in schema:
        if _is_binary(column.type):
            leaves[column.name] = column.name
        elif pa.types.is_struct(column.type) and any(_is_binary(f.type) for f in column.type if f.name == "bytes"):
            leaves[column.name] = f"{column.name}.bytes"
    if not leaves:
        raise BrokenError("NoImageColumn", f"a column must be binary or struct<bytes>, got {schema.names[:8]}")
    return next((leaves[name] for name in _IMAGE_COLUMNS if name in leaves), next(iter(leaves.values())))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _table_frames(handle: BinaryIO, config: ScanConfig, tally: Tally) -> Iterator[Frame]:
    table = _Table(handle)
    start = 0
    for group, rows in enumerate(table.rows):
        met = tally.read
        try:
            yield from _still_frames(table.read(group), start, config, tally, "row {}: ")
        except BrokenError as error:
            rest = max(1, rows - (tally.read - met))
            tally.broken(Fault(error.error, f"row group {group}: {error}", rest))
        start += rows


def _fetch_table(handle: BinaryIO, wanted: list[int], config: ScanConfig) -> Iterator[tuple[int, Pixels]]:
    table = _Table(handle)
    start = 0
    for group, rows in enumerate(table.rows):
        here = {index for index in wanted if start <= index < start + rows}
        if here:
            for index, data in enumerate(itertools.islice(table.read(group), max(here) - start + 1), start):
                if index in here:
                    yield index, _decoded_still(data, config.limits).pixels
        start += rows


# Video ----------------------------------------------------------------------------------------------------------------


def _video(handle: BinaryIO, config: ScanConfig) -> Video:
    return Video(handle, replace(config.limits, pixels=config.video_pixels), config.max_frames)


class _Clock:
    """Times that grow: those of the frames, or the last one and a period where a frame has none or steps back."""

    def __init__(self, rate: Fraction) -> None:
        self._period = max(1, round(1_000_000 / rate))
        self._last: int | None = None

    def tell(self, frame: av.VideoFrame) -> int:
        least = 0 if self._last is None else self._last + self._period
        time = least if frame.pts is None or not frame.time_base else round(frame.pts * frame.time_base * 1_000_000)
        if abs(time) > _TIME_RANGE or (self._last is not None and time <= self._last):
            time = least
        self._last = time
        return time


class _Sampler:
    """Decides on each frame of a video from its time and thumbnail."""

    def __init__(self, config: ScanConfig) -> None:
        self._config = config
        self._start: int | None = None
        self._slot = -1
        self._before: Pixels | None = None
        self._kept: Pixels | None = None
        self.scene = 0
        self.motion: float | None = None

    def takes(self, time_us: int, thumbnail: Pixels) -> bool:
        """Whether the frame is the first one of its slot of 1 / rate_hz seconds, or of a scene."""
        self._start = time_us if self._start is None else self._start
        # A thousandth of a slot covers times rounded to microseconds or to a container's milliseconds.
        slot = int((time_us - self._start) * self._config.rate_hz / 1e6 + 1e-3)
        cut = self._cuts(thumbnail)
        self.scene += cut
        due = slot > self._slot
        self._slot = max(slot, self._slot)
        return due or cut

    def repeats(self, thumbnail: Pixels) -> bool:
        """Whether a taken frame is nearly equal to the one kept last; it is kept itself if not."""
        if self._kept is not None and _difference(thumbnail, self._kept) < self._config.still:
            return True
        self._kept = thumbnail
        return False

    def _cuts(self, thumbnail: Pixels) -> bool:
        before, self._before = self._before, thumbnail
        self.motion = None if before is None else _difference(thumbnail, before)
        if before is None or self.motion is None or self.motion < self._config.scene_cut:
            return False
        return _histogram_distance(thumbnail, before) >= self._config.scene_cut


def _difference(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference of two thumbnails, 0..1."""
    return float(cv2.norm(a, b, cv2.NORM_L1)) / (255 * a.size)


def _histogram_distance(a: Pixels, b: Pixels) -> float:
    """Half the L1 distance of the 16-bin histograms of two thumbnails, 0..1."""
    counts = [np.bincount(thumbnail.ravel() >> 4, minlength=16) for thumbnail in (a, b)]
    return float(np.abs(counts[0] - counts[1]).sum()) / (2 * a.size)


def _video_frames(handle: BinaryIO, uri: str, config: ScanConfig, tally: Tally) -> Iterator[Frame]:
    with contextlib.closing(_video(handle, config)) as video:
        clock, sampler, motion = _Clock(video.rate), _Sampler(config), Motion(video)
        for index, picture in enumerate(video.frames()):
            thumbnail = video.thumbnail(picture)
            time = clock.tell(picture)
            taken = sampler.takes(time, thumbnail)
            motion.see(picture, time, sampler.scene)
            if not taken:
                tally.read += 1
                tally.not_sampled += 1
                continue
            pixels, orientation = video.pixels(picture)
            if _is_blank(pixels, config):
                tally.blank()
                continue
            tally.read += 1
            if sampler.repeats(thumbnail):
                tally.duplicate += 1
                continue
            yield Frame(
                index=index,
                pts_us=time,
                pixels=pixels,
                orientation=orientation,
                scene=sampler.scene,
                motion=sampler.motion,
                motion_grid=motion.grid(),
            )
        if video.promised not in (0, video.decoded):
            tally.notes.append(f"{uri}: the container promises {video.promised} frames and holds {video.decoded}")


def _fetch_video(handle: BinaryIO, wanted: list[int], config: ScanConfig) -> Iterator[tuple[int, Pixels]]:
    chosen = frozenset(wanted)
    with contextlib.closing(_video(handle, config)) as video:
        for index, picture in enumerate(itertools.islice(video.frames(), wanted[-1] + 1)):
            if index in chosen:
                yield index, video.pixels(picture)[0]


_FETCHES: Final = {"image": _fetch_still, "video": _fetch_video, "parquet": _fetch_table}
