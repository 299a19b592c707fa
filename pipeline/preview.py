"""``curate preview``: a video with the background effect that a model's masks are for, and what each frame costs.

video ──> frames ──> segmenter ──> effect ──> H.264 under a temporary name ──> renamed when whole
                                        sound, as it is ──┘

One frame is in memory at a time. A video that breaks in its middle is shown until there. Letters: H and W rows and
columns of the upright frame.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ImageColor
from rich.console import Console
from rich.status import Status

from manifests.image import ImageLimits
from pipeline.clip_formats import Clip, ClipConfig, ClipFrame, Pixels, still_image
from pipeline.clip_video import opened
from pipeline.config import Config
from pipeline.errors import InputError, UsageError
from pipeline.film import Film, Sound, suffixes, writing
from pipeline.segmenters import Segmenter, StudentSegmenter, open_segmenter, segment
from pipeline.video import BrokenError, Video
from students.data import Size
from students.preview import EFFECTS, Effect, EffectConfig, apply, checkerboard, cover, plain
from students.tracker import Start

PARTS: Final = ("decode", "network", "effect", "encode")
GREEN: Final = "#00b140"
CHECKER: Final = "checker"

Backdrop = Callable[[Size], Pixels]

_ON_BACKDROP: Final = ("replace", "cutout")
_REFRESH = 0.5  # seconds between two looks of the progress line
_TURNED = (6, 8)  # EXIF orientations that swap rows and columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """A frame that was seen without a mask of the one before: its number in the output, its time, and why."""

    frame: int
    seconds: float
    reason: Start


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Milliseconds per frame: the median, and what 95 % of the frames do not exceed."""

    median: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewResult:
    """What was rendered.

    Attributes:
        output: the video.
        model: id of the model.
        frames: number of frames in it.
        size: (height, width) of its frames, even.
        resets: where a student that is fed its previous mask began anew, the first frame among them; empty for others.
        milliseconds: per frame, for each of `PARTS` and their "total".
        stopped: why it ends before the video does; empty where it does not.
        sound: "copied", "none", or "left out: …".
    """

    output: Path
    model: str
    frames: int
    size: Size
    resets: tuple[Reset, ...]
    milliseconds: Mapping[str, Timing]
    stopped: str
    sound: str


def preview(
    video: Path,
    model: Path,
    output: Path,
    *,
    effect: Effect = "blur",
    background: str = "",
    compare: bool = False,
    start: float = 0.0,
    seconds: float | None = None,
    config: Config | None = None,
    look: EffectConfig | None = None,
    clips: ClipConfig | None = None,
    console: Console | None = None,
) -> PreviewResult:
    """Renders an effect into a video.

    Frame times stay what they are; rotation is applied; a side that is odd grows by its last row or column, for H.264
    wants even ones. Sound is copied where the output's container takes it.

    Args:
        video: any that ``pipeline.video`` reads.
        model: anything that ``open_segmenter`` opens.
        output: a file that does not exist, of a suffix in ``pipeline.film.suffixes()``.
        effect: "blur" the background, "replace" it, "cutout" the person onto a plain colour, or the "mask" in gray.
        background: for "replace" and "cutout": a picture, a colour (#rrggbb or a name), or "checker"; a cutout is on
            green where it is empty.
        compare: whether the frame stands to the left of the effect.
        start: seconds of the video that are left out at its beginning.
        seconds: length of what is rendered; None for all.
        config: how teachers and ONNX models are run.
        look: how masks are refined and frames are composed.
        clips: limits of the video.
        console: where progress is shown, if it is a terminal.

    Raises:
        UsageError: effect, background, start and seconds do not belong together.
        InputError: video, model or background cannot be used, or the output exists.
        StorageError: the output cannot be written; nothing is left under its name.
    """
    clips = clips or ClipConfig()
    _check_span(start, seconds, model)
    _check_output(output)
    backdrop = read_backdrop(effect, background, clips.limits)
    with _temporary(output) as temporary:
        segmenter = open_segmenter(model, config or Config(), clips)
        screen = _Screen(effect=effect, look=look or EffectConfig(), backdrop=backdrop, compare=compare)
        with opened(str(video), clips) as source, _progress(console) as status:
            reader = _Reader(source, start, seconds)
            run = _Run(video, temporary, output, segmenter, screen, reader, status)
            stopped = run.all_frames()
            result = run.finish(stopped)
        _publish(temporary, output)
    return result


def describe(result: PreviewResult) -> list[str]:
    """A result as lines of text."""
    height, width = result.size
    parts = [f"{name} {t.median:.1f} ({t.most:.1f})" for name, t in result.milliseconds.items()]
    lines = [
        f"{result.output}: {result.frames} frames of {width}x{height} by {result.model}; sound: {result.sound}",
        f"ms per frame, median (95 %): {', '.join(parts)}",
    ]
    if result.resets:
        starts = ", ".join(f"{r.frame} at {r.seconds:.2f} s ({r.reason})" for r in result.resets)
        lines.append(f"the mask of the frame before was not used in {len(result.resets)} frames: {starts}")
    if result.stopped:
        lines.append(f"ends early, the video is broken: {result.stopped}")
    return lines


# What is asked for ----------------------------------------------------------------------------------------------------


def _check_span(start: float, seconds: float | None, model: Path) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"--start must be a number of seconds >= 0, got {start}")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds must be a number of seconds > 0, got {seconds}")
    if model.is_dir() and (start or seconds is not None):
        raise UsageError(
            f"--model {model} is a folder of masks, which fit the whole video; leave out --start, --seconds"
        )


def _check_output(output: Path) -> None:
    if output.suffix.lower() not in suffixes():
        raise UsageError(f"--output must end in {' or '.join(suffixes())}, got {str(output)!r}")
    if output.exists() or output.is_symlink():
        raise InputError(f"--output {output} exists; remove it, or give another name")
    if not output.parent.is_dir():
        raise InputError(f"--output {output} must be in a folder that exists; make {output.parent}")


def read_backdrop(effect: Effect, background: str, limits: ImageLimits) -> Backdrop | None:
    """What makes the new background at a frame's size; None for effects without one.

    Args:
        effect: which.
        background: a picture, a colour, or "checker"; see `preview`.
        limits: of the picture.

    Raises:
        UsageError: the effect is unknown, or takes no background, or lacks one.
        InputError: it is neither picture nor colour, or the picture is broken.
    """
    if effect not in EFFECTS:
        raise UsageError(f"--effect must be one of {', '.join(EFFECTS)}, got {effect!r}")
    if effect not in _ON_BACKDROP:
        if background:
            raise UsageError(f"--background is for {' and '.join(_ON_BACKDROP)}, not for {effect}; leave it out")
        return None
    background = background or (GREEN if effect == "cutout" else "")
    if not background:
        raise UsageError("--effect replace needs --background: a picture, a colour as #206040, or checker")
    if background == CHECKER:
        return checkerboard
    if Path(background).is_file():
        picture = still_image(Path(background), limits)
        return lambda size: cover(picture, size)
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except ValueError as error:
        rule = "must be a picture that exists, a colour as #206040 or green, or checker"
        raise InputError(f"--background {background} {rule}; check the path") from error
    return lambda size: plain((red, green, blue), size)


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    """A file beside the output that is gone in the end, unless it was renamed; proves that there can be one."""
    path = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with writing(output):
            path.touch()
        yield path
    finally:
        path.unlink(missing_ok=True)


def _publish(temporary: Path, output: Path) -> None:
    """Gives a whole video its name, unless another has taken it meanwhile."""
    with writing(output):
        try:
            os.link(temporary, output)  # unlike a rename, fails where the name is taken
        except FileExistsError:
            _check_output(output)
            raise
        except OSError:  # no links there
            _check_output(output)
            temporary.replace(output)


@contextlib.contextmanager
def _progress(console: Console | None) -> Iterator[Status | None]:
    if console is None or not console.is_terminal:
        yield None
        return
    with console.status(" preview  starting") as status:
        yield status


# Frame by frame -------------------------------------------------------------------------------------------------------


class _Reader:
    """The frames of a video within a span of time.

    Attributes:
        first: time of the video's first frame, in seconds of its own clock.
        promised: number of frames that the container states; 0 where it does not, or the span is not the whole video.
        spent: seconds that the last frame took to be decoded.
        turned: whether rows and columns of the frames were swapped to make them upright.
    """

    def __init__(self, video: Video, start: float, seconds: float | None) -> None:
        self._video = video
        self._start = start
        self._end = math.inf if seconds is None else start + seconds
        self.rate = video.rate
        self.promised = video.promised if start == 0 and seconds is None else 0
        self.first = 0.0
        self.spent = 0.0
        self.turned = False

    def frames(self) -> Iterator[ClipFrame]:
        """Frames with the seconds since the video's first, which rise.

        A frame without a time, or with one that steps back, comes a period after the last.

        Raises:
            BrokenError: the video breaks, or its frames change their size.
        """
        period, index = float(1 / self.rate), 0
        before, size = -math.inf, (0, 0)
        began = time.perf_counter()
        for picture in self._video.frames():
            found = picture.time
            if before < 0:
                self.first = found or 0.0
            seconds = -math.inf if found is None else found - self.first
            seconds = max(0.0, before + period) if seconds <= before else seconds
            before = seconds
            if seconds >= self._end:
                return
            if seconds < self._start:
                began = time.perf_counter()
                continue
            image, orientation = self._video.pixels(picture)
            if index and image.shape[:2] != size:
                was, now = (f"{shape[1]}x{shape[0]}" for shape in (size, image.shape))
                raise BrokenError("Resized", f"frame {index} is {now}, those before are {was}; split the video there")
            size, self.turned = (image.shape[0], image.shape[1]), orientation in _TURNED
            self.spent = time.perf_counter() - began
            yield ClipFrame(index=index, name=f"{index:05d}", seconds=seconds, image=image, follows=index > 0)
            began = time.perf_counter()
            index += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Screen:
    """What is made of a frame and its mask."""

    effect: Effect
    look: EffectConfig
    backdrop: Backdrop | None
    compare: bool
    _made: dict[Size, Pixels] = field(default_factory=dict)

    def show(self, frame: Pixels, mask: np.ndarray) -> Pixels:
        """(H, W, 3) or, with the frame beside it, (H, 2 W, 3) uint8 RGB."""
        shown = apply(frame, mask, self.effect, self.look, self._background((frame.shape[0], frame.shape[1])))
        return np.hstack([frame, shown]) if self.compare else shown

    def _background(self, size: Size) -> Pixels | None:
        if self.backdrop is None:
            return None
        if size not in self._made:
            self._made[size] = self.backdrop(size)
        return self._made[size]


class _Run:
    """A video that is being rendered."""

    def __init__(
        self,
        video: Path,
        temporary: Path,
        output: Path,
        segmenter: Segmenter,
        screen: _Screen,
        reader: _Reader,
        status: Status | None,
    ) -> None:
        self._video = video
        self._temporary = temporary
        self._output = output
        self._segmenter = segmenter
        self._screen = screen
        self._reader = reader
        self._status = status
        self._film: Film | None = None
        self._resets: list[Reset] = []
        self._spent = {part: array("d") for part in PARTS}
        self._frames = 0
        self._zero = 0.0
        self._said = 0.0

    def all_frames(self) -> str:
        """Renders the frames; returns why it stopped early, or an empty text."""
        clip = Clip(name=self._video.stem, layout="video", frames=str(self._video), labelled=False, bytes=0)
        pairs = segment(self._segmenter, clip, self._reader.frames())
        try:
            while True:
                began = time.perf_counter()
                pair = next(pairs, None)
                if pair is None:
                    return ""
                self._render(*pair, time.perf_counter() - began)
        except BrokenError as error:
            if not self._frames:
                raise
            return f"{error.error}: {error}"
        except BaseException:
            self._drop()
            raise

    def _render(self, frame: ClipFrame, mask: np.ndarray, took: float) -> None:
        assert frame.seconds is not None
        started = time.perf_counter()
        shown = self._screen.show(frame.image, mask)
        composed = time.perf_counter()
        if self._film is None:
            self._film = self._begun((shown.shape[0], shown.shape[1]), frame.seconds)
        self._film.write(shown, frame.seconds - self._zero)
        spans = (self._reader.spent, took - self._reader.spent, composed - started, time.perf_counter() - composed)
        for values, span in zip(self._spent.values(), spans, strict=True):
            values.append(1000 * span)
        self._note(frame.seconds)
        self._frames += 1
        self._say()

    def _begun(self, size: Size, seconds: float) -> Film:
        self._zero = seconds
        sound = Sound(self._video, self._reader.first + seconds)
        reader = self._reader
        return Film(self._temporary, self._output, size, rate=reader.rate, sound=sound, turned=reader.turned)

    def _note(self, seconds: float) -> None:
        reason = self._segmenter.started if isinstance(self._segmenter, StudentSegmenter) else None
        if reason is not None:
            self._resets.append(Reset(frame=self._frames, seconds=seconds, reason=reason))

    def _say(self) -> None:
        now = time.monotonic()
        if self._status is None or now - self._said < _REFRESH:
            return
        self._said = now
        total = f" of {self._reader.promised}" if self._reader.promised else ""
        pace = sum(values[-1] for values in self._spent.values())
        self._status.update(f" preview  {self._frames}{total} frames, {pace:.0f} ms per frame")

    def _drop(self) -> None:
        if self._film is not None:
            self._film.drop()

    def finish(self, stopped: str) -> PreviewResult:
        """Closes the output.

        Raises:
            InputError: there is nothing in it.
            StorageError: it cannot be written.
        """
        if self._film is None:
            raise InputError(f"{self._video} has no frame from --start on; give a smaller one")
        self._film.close()
        totals = array("d", (math.fsum(spans) for spans in zip(*self._spent.values(), strict=True)))
        return PreviewResult(
            output=self._output,
            model=self._segmenter.id,
            frames=self._frames,
            size=self._film.size,
            resets=tuple(self._resets),
            milliseconds={name: _timing(values) for name, values in (self._spent | {"total": totals}).items()},
            stopped=stopped,
            sound=self._film.sound,
        )


def _timing(values: array[float]) -> Timing:
    return Timing(median=statistics.median(values), most=float(np.percentile(values, 95, method="higher")))
