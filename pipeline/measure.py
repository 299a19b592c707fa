"""The work of an evaluation: one clip is one task; decoded, predicted and measured frame by frame in one thread.

::

    clip ──> frames ──> segmenter ──> meter ──> frames (part), the video (side table), pictures of the worst frames
               └──────> flow, from the cache or computed from the same decoding
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.flow import FlowCache, FlowPair
from evaluation.temporal import cuts
from evaluation.video import EXCLUDED, FRAME_METRICS, ClipMeter, ClipRow, FrameRow
from pipeline.clip_formats import Clip, ClipConfig, ClipFrame
from pipeline.clips import read_clip
from pipeline.config import Config
from pipeline.embed import encode_jpeg, shrink
from pipeline.errors import InputError
from pipeline.evaluate_config import EvaluateConfig
from pipeline.segmenters import Probability, Segmenter, open_segmenter, segment
from pipeline.stage import Output, Span, Task, not_identity, read_span
from teachers.backend import TeacherConfig

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

_NUMBERS = pa.list_(pa.field("element", pa.float64()))
_TYPES: dict[str, pa.DataType] = {
    "video": pa.string(),
    "index": pa.int64(),
    "labelled": pa.bool_(),
    "follows": pa.bool_(),
    "band_width": pa.int32(),
}

FRAMES = pa.schema(
    [
        pa.field(column.name, _TYPES.get(column.name, pa.float64()), nullable=column.name not in _TYPES)
        for column in dataclasses.fields(FrameRow)
    ]
)
"""One row for each frame; null is a number that does not exist (NaN of `evaluation.video`)."""

VIDEOS = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("subject_id", pa.string()),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("pairs", pa.int64(), nullable=False),
        pa.field("labelled", pa.int64(), nullable=False),
        pa.field("fps", pa.float64()),
        pa.field("seconds_per_frame", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in FRAME_METRICS),
        *(pa.field(name, pa.float64()) for name in ("adjacent_excess", "warped_excess", "vc8", "vc16")),
        pa.field(
            "pairs_excluded",
            pa.struct([pa.field(reason, pa.int64(), nullable=False) for reason in EXCLUDED]),
            nullable=False,
        ),
        pa.field("worst_frames", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("lag_loss", _NUMBERS, nullable=False),
        pa.field("first_iou", _NUMBERS, nullable=False),
        pa.field("first_boundary_iou", _NUMBERS, nullable=False),
    ]
)
"""One row for each video; a name of a frame's column is its mean over the video."""

PICTURES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("jpeg", pa.binary(), nullable=False),
    ]
)
"""The worst frames of each video, worst first: hits tinted green, false person orange, missed person blue."""

HELD_BYTES = 256 << 20
"""Pixels of one clip that a worker may hold, so that they are decoded once."""

_GREEN, _ORANGE, _BLUE = (0, 158, 115), (230, 159, 0), (0, 114, 178)  # told apart by the colour-blind (Okabe, Ito)
LEGEND = (("found", _GREEN), ("no person", _ORANGE), ("missed", _BLUE), ("contour of the truth", (255, 255, 255)))
"""What the colours of the pictures mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The work; a task is a row of the table of clips.

    Attributes:
        config: how clips are read and measured.
        run: how the model is run.
        flow: whether the metrics along the flow are measured.
        model: file or folder of the model.
        model_sha256: of its content.
        settings: digest of what ``run`` only names.
        flow_folder: where flow is kept.
    """

    name: ClassVar[str] = "measure"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = (
        "av", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow", "torch", "torchvision",
    )  # fmt: skip

    config: EvaluateConfig
    run: TeacherConfig
    flow: bool
    model: str = not_identity()
    model_sha256: str
    settings: str = ""
    flow_folder: str = not_identity(default="")

    def open(self) -> Callable[[Task], Output]:
        """Loads the model, once for each thread that works at the same time, and gives the function of a task."""
        pool = _Pool(self._open)
        with pool.lent():
            pass  # a model that cannot be opened fails here, not in a task
        return functools.partial(self._task, pool)

    def _open(self) -> Segmenter:
        path = Path(self.model)
        segmenter = open_segmenter(path, Config(teacher=self.run), self.config.clips)
        if path.is_file() and segmenter.sha256 != self.model_sha256:
            raise InputError(f"{path} has changed since the run was planned (sha256 {segmenter.sha256})")
        return segmenter

    def _task(self, pool: _Pool, task: Task) -> Output:
        clip = read_clips(task.spans[0])[0]
        with pool.lent() as segmenter:
            measured = measure_clip(clip, segmenter, self.config, self._cache())
        return measured.output()

    def _cache(self) -> FlowCache | None:
        if not self.flow:
            return None
        return FlowCache(folder=Path(self.flow_folder), config=self.config.flow, max_bytes=self.config.flow_bytes)


class _Pool:
    """Segmenters remember the clip they are in, so each is lent to one task at a time."""

    def __init__(self, make: Callable[[], Segmenter]) -> None:
        self._make = make
        self._idle: deque[Segmenter] = deque()

    @contextlib.contextmanager
    def lent(self) -> Iterator[Segmenter]:
        """An idle segmenter, or a new one."""
        try:
            segmenter = self._idle.pop()
        except IndexError:
            segmenter = self._make()
        yield segmenter
        self._idle.append(segmenter)  # after an error it is not used again


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What one clip gave.

    Attributes:
        rows: its frames.
        video: its means.
        fps: frames per second, NaN where not known.
        seconds_per_frame: of the model.
        pictures: index and JPEG of the worst frames, worst first.
    """

    rows: Sequence[FrameRow]
    video: ClipRow
    fps: float
    seconds_per_frame: float
    pictures: Sequence[tuple[int, bytes]]

    def output(self) -> Output:
        """The tables of a task."""
        columns = {name: [_known(getattr(row, name)) for row in self.rows] for name in FRAMES.names}
        pictures = [{"video": self.video.video, "index": index, "jpeg": jpeg} for index, jpeg in self.pictures]
        return Output(
            table=pa.table(columns, schema=FRAMES),
            counts={"frames": self.video.frames, "labelled": self.video.labelled, "pairs": self.video.pairs},
            extra={
                "video": pa.Table.from_pylist([self._video()], schema=VIDEOS),
                "pictures": pa.Table.from_pylist(pictures, schema=PICTURES),
            },
            plain=["jpeg"],
        )

    def _video(self) -> dict[str, Any]:
        row = {name: getattr(self.video, name) for name in VIDEOS.names if hasattr(self.video, name)}
        row |= {**self.video.means, "fps": self.fps, "seconds_per_frame": self.seconds_per_frame}
        return {name: _known(value) for name, value in row.items()}


def _known(value: Any) -> Any:
    """None for NaN, also within a tuple: Parquet has null for what is not known."""
    if isinstance(value, tuple):
        return [_known(element) for element in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def measure_clip(clip: Clip, segmenter: Segmenter, config: EvaluateConfig, cache: FlowCache | None = None) -> Measured:
    """Runs a model over a clip, in order, and measures every frame.

    Args:
        clip: of `pipeline.clips.find_clips`.
        segmenter: forgets the clip before.
        config: how.
        cache: where flow is kept; None measures nothing along the flow.

    Raises:
        InputError: clip or prediction cannot be used; names video and frame.
    """
    meter, timed = ClipMeter(clip.name, config.meter), _Timed(segmenter)
    worst, before = _Worst(), None
    film = Film(clip, config.clips, cache)
    for frame, soft in segment(timed, clip, film.frames()):
        cut = before is not None and frame.follows and _cut(before, frame, config)
        try:
            meter.add(
                frame.image,
                soft,
                frame.truth,
                frame.void,
                index=frame.index,
                seconds=_seconds(clip, frame),
                follows=frame.follows,
                cut=cut,
                flow=film.flow,
            )
        except ValueError as error:
            raise InputError(f"{segmenter.id}: {error}") from error
        worst.keep(meter.worst, frame, soft >= config.meter.threshold)
        before = frame
    return Measured(
        rows=meter.rows,
        video=meter.finish(),
        fps=math.nan if clip.fps is None else clip.fps,
        seconds_per_frame=timed.seconds / len(meter.rows),
        pictures=worst.pictures(meter.worst, config.picture_side),
    )


def _cut(before: ClipFrame, frame: ClipFrame, config: EvaluateConfig) -> bool:
    return bool(
        cuts((before.image, frame.image), histogram=config.cut_histogram, thumbnail=config.cut_thumbnail),
    )


def _seconds(clip: Clip, frame: ClipFrame) -> float:
    if frame.seconds is not None:
        return frame.seconds
    return frame.index / clip.fps if clip.fps else math.nan


class _Timed:
    """A segmenter, and the seconds that it took."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.seconds = 0.0

    @property
    def id(self) -> str:
        """The segmenter's."""
        return self._segmenter.id

    @property
    def sha256(self) -> str:
        """The segmenter's."""
        return self._segmenter.sha256

    def reset(self, clip: Clip) -> None:
        """The segmenter's."""
        self._segmenter.reset(clip)

    def __call__(self, frame: ClipFrame) -> Probability:
        """The segmenter's."""
        started = time.perf_counter()
        soft = self._segmenter(frame)
        self.seconds += time.perf_counter() - started
        return soft

    def finish(self) -> None:
        """The segmenter's."""
        self._segmenter.finish()


class Film:
    """A clip's frames in order, with the flow that leads to each.

    The cache of flow looks at all pictures first, for their name, and where it must compute flow once more. Clips of
    up to `HELD_BYTES` are held in memory from the first look on; of longer ones the frames that flow is computed from
    are handed on, and where flow is at hand they are decoded again.

    Args:
        clip: which.
        config: how it is read.
        cache: where flow is kept; None for no flow.

    Attributes:
        flow: between the frame before and the last frame given; None at the first frame and without a cache.
    """

    def __init__(self, clip: Clip, config: ClipConfig, cache: FlowCache | None) -> None:
        self.flow: FlowPair | None = None
        self._clip = clip
        self._config = config
        self._cache = cache
        self._held: list[ClipFrame] | None = None
        self._named = False
        self._next = 0
        self._shared: dict[int, ClipFrame] = {}
        self._own: Iterator[ClipFrame] | None = None

    def frames(self) -> Iterator[ClipFrame]:
        """The frames; call it once."""
        if self._cache is None:
            yield from read_clip(self._clip, self._config)
            return
        flows = self._cache.pairs(self)
        ahead = next(flows, None)
        yield self._frame()
        while ahead is not None:
            self.flow = ahead
            yield self._frame()
            ahead = next(flows, None)

    def __iter__(self) -> Iterator[Pixels]:
        """The pictures, for the flow: first for its name; then, where it must be computed."""
        if not self._named:
            yield from self._look()
        elif self._held is not None:
            yield from (frame.image for frame in self._held)
        else:
            for frame in read_clip(self._clip, self._config):
                if frame.index >= self._next:
                    self._shared[frame.index] = frame
                yield frame.image

    def _look(self) -> Iterator[Pixels]:
        """The pictures, decoded, and held as long as there is room."""
        held: list[ClipFrame] | None = []
        room = HELD_BYTES
        for frame in read_clip(self._clip, self._config):
            room -= sum(part.nbytes for part in (frame.image, frame.truth, frame.void) if part is not None)
            if room < 0:
                held = None
            elif held is not None:
                held.append(frame)
            yield frame.image
        self._held, self._named = held, True

    def _frame(self) -> ClipFrame:
        """The next frame."""
        index, self._next = self._next, self._next + 1
        if self._held is not None:
            return self._held[index]
        if index in self._shared:
            return self._shared.pop(index)
        self._own = self._own or read_clip(self._clip, self._config)
        for frame in self._own:
            if frame.index == index:
                return frame
        raise InputError(f"{self._clip.name} has changed while it was read: frame {index} is gone; run again")


class _Worst:
    """Holds the worst frames until it is known which they are."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ClipFrame, Mask]] = {}

    def keep(self, worst: Sequence[int], frame: ClipFrame, mask: Mask) -> None:
        """Takes a frame if it is one of the worst so far; lets go of those that are no more."""
        if frame.index in worst:
            self._kept[frame.index] = frame, mask
            self._kept = {index: held for index, held in self._kept.items() if index in worst}

    def pictures(self, worst: Sequence[int], side: int) -> list[tuple[int, bytes]]:
        """Index and JPEG of each, worst first."""
        return [(index, encode_jpeg(shrink(_overlay(*self._kept[index]), side), 85)) for index in worst]


def _overlay(frame: ClipFrame, mask: Mask) -> Pixels:
    """The picture with hits tinted green, false person orange, missed person blue, and the true contour in white.

    Pixels that no metric counts are left as they are.
    """
    truth = mask if frame.truth is None else frame.truth
    if frame.void is not None:
        mask, truth = mask & ~frame.void, truth & ~frame.void
    picture = frame.image.copy()
    for where, colour in ((mask & truth, _GREEN), (mask & ~truth, _ORANGE), (truth & ~mask, _BLUE)):
        picture[where] = picture[where] // 2 + np.array(colour, np.uint8) // 2
    if frame.truth is not None:
        lines, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, lines, -1, (255, 255, 255), 1)
    return picture


# The table of clips ---------------------------------------------------------------------------------------------------

CLIPS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("name", "layout", "frames")),
        *(pa.field(name, pa.string()) for name in ("masks", "ignore")),
        pa.field("key", pa.string(), nullable=False),
        pa.field("persons", pa.list_(pa.field("element", pa.int64(), nullable=False))),
        pa.field("count", pa.int64()),
        pa.field("fps", pa.float64()),
        pa.field("labelled", pa.bool_(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


def clips_table(clips: Sequence[Clip]) -> pa.Table:
    """The clips as a table that workers read their tasks from."""
    return pa.Table.from_pylist([dataclasses.asdict(clip) for clip in clips], schema=CLIPS)


def read_clips(span: Span) -> list[Clip]:
    """The clips of some rows of the table."""
    rows = read_span(span).to_pylist()
    return [Clip(**{**row, "persons": None if row["persons"] is None else tuple(row["persons"])}) for row in rows]
