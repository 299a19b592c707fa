"""What is measured: anything that gives a probability of person for each frame of a clip, in order.

A student, a teacher, an ONNX model, or a folder of masks that another program predicted. A segmenter is told which
clip begins, sees its frames one after the other, as it would live, and is told when the clip ends.
Letters: H and W rows and columns of a frame.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from manifests.image import upright_size
from manifests.mask import MaskError, decode_soft
from pipeline.clip_formats import Clip, ClipConfig, ClipFrame, file_sha256, refused
from pipeline.clip_search import VIDEOS
from pipeline.clip_video import luma_frames
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.threads import one_thread
from students.data import canonical_sizes, fit_image, nearest_bucket, resize
from students.model import METADATA
from students.runtime import Network, open_network
from students.tracker import Start, Tracker, TrackerConfig
from teachers.backend import load_teacher
from teachers.checkpoint import CheckpointError
from teachers.teacher import Teacher, TeacherError

Probability = NDArray[np.float32]

_NAMED = 3
_EXPORTED: Final = (".pte", ".pt2", ".ptl")  # what only students are exported to


class Segmenter(Protocol):
    """A model, or what it predicted; used by `segment`."""

    @property
    def id(self) -> str:
        """A short name, for records."""

    @property
    def sha256(self) -> str:
        """The digest of its files."""

    def reset(self, clip: Clip) -> None:
        """Forget the clip before; this one begins."""

    def __call__(self, frame: ClipFrame) -> Probability:
        """Person probabilities (H, W) float32 in [0, 1] of the clip's next frame; its truth is not looked at."""

    def finish(self) -> None:
        """The clip has ended; predictions that are left over are an error."""


def open_segmenter(path: Path, config: Config, clips: ClipConfig | None = None) -> Segmenter:
    """The segmenter of a path; this process runs in one thread from here on, so that bits depend on no machine.

    Args:
        path: a student (``.safetensors``, or as exported: ``.onnx``, ``.pte``), a file of weights of a teacher, any
            other ``.onnx`` model, or a folder of masks: ``<clip>/<frame>.png`` (0 and 255, or 8-bit probabilities) or a
            video ``<clip>.mp4`` of its luma. A student as ``.pt2`` or ``.ptl`` is refused: loading it can run code.
        config: `config.teacher` says how teachers and ONNX models are run.
        clips: limits of predicted masks.

    Raises:
        InputError: there is nothing, it is no good, or it cannot be run here.
    """
    one_thread()
    if path.is_dir():
        return PredictedMasks(path, clips or ClipConfig())
    if not path.is_file():
        raise InputError(f"--model {path} must be a checkpoint, an ONNX model or a folder of masks; check the path")
    if _is_student(path):
        return StudentSegmenter(_opened(path))
    settings = replace(config.teacher, backend="onnx") if path.suffix == ".onnx" else config.teacher
    try:
        return TeacherSegmenter(load_teacher(path, settings))
    except (CheckpointError, TeacherError, ValueError) as error:
        raise InputError(f"--model {path}: {error}") from error


def segment(segmenter: Segmenter, clip: Clip, frames: Iterable[ClipFrame]) -> Iterator[tuple[ClipFrame, Probability]]:
    """Each frame of a clip with its person probabilities (H, W) float32 in [0, 1].

    Raises:
        InputError: the segmenter fails, gives another size or what is no probability, or predictions are missing or
            left over.
    """
    segmenter.reset(clip)
    for frame in frames:
        probability = segmenter(frame)
        size = frame.image.shape[:2]
        if probability.shape != size or probability.dtype != np.float32:
            found = f"{probability.shape} {probability.dtype}"
            raise InputError(f"{segmenter.id}: {clip.name} frame {frame.name} must give {size} float32, gave {found}")
        if not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails both
            rule = "must give probabilities in [0, 1], gave others or some that are not finite"
            raise InputError(f"{segmenter.id}: {clip.name} frame {frame.name} {rule}; mend the model")
        yield frame, probability
    segmenter.finish()


# Models ---------------------------------------------------------------------------------------------------------------


def _is_student(path: Path) -> bool:
    """Whether a file names itself a student, of whatever version, or can be nothing else."""
    if path.suffix in _EXPORTED:
        return True
    try:
        values = _stored(path)
    except (SafetensorError, DecodeError, OSError, ValueError, RecursionError):
        return False  # whoever loads it says what is wrong
    return isinstance(values, dict) and str(values.get("format", "")).startswith("curate-student")


def _stored(path: Path) -> Any:
    """What a file says of itself."""
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as handle:
        return json.loads((handle.metadata() or {}).get(METADATA, "{}"))


def _opened(path: Path) -> Network:
    try:
        return open_network(path)
    except (ValueError, OSError) as error:
        raise InputError(f"--model {path}: {str(error).removeprefix(f'{path}: ')}") from error


class StudentSegmenter:
    """A student as it is shipped: one view of each frame at the size it was trained on, no mirror image.

    One that is fed its previous mask is run through ``students.tracker.Tracker``, anew in each clip.

    Args:
        network: of a checkpoint or an export.

    Attributes:
        id: a short name, for records.
        sha256: the digest of its file.
    """

    def __init__(self, network: Network) -> None:
        self.id = network.id
        self.sha256 = network.sha256
        self._network = network
        self._sizes = canonical_sizes(network.side, network.fit)
        tracks = network.in_channels == 4
        self._tracker = Tracker(network, TrackerConfig(side=network.side, fit=network.fit)) if tracks else None

    @property
    def started(self) -> Start | None:
        """Why the last frame was seen without a mask of the one before; None if it had one, or a student has none."""
        return None if self._tracker is None else self._tracker.started

    def reset(self, clip: Clip) -> None:  # noqa: ARG002 (the protocol's)
        """See `Segmenter`."""
        if self._tracker is not None:
            self._tracker.reset()

    def __call__(self, frame: ClipFrame) -> Probability:
        """See `Segmenter`."""
        try:
            return self._alone(frame) if self._tracker is None else self._tracked(frame, self._tracker)
        except ValueError as error:
            raise InputError(f"{self.id}: frame {frame.name}: {error}") from error

    def _alone(self, frame: ClipFrame) -> Probability:
        height, width = frame.image.shape[:2]
        padded, (inner_height, inner_width) = fit_image(frame.image, nearest_bucket(height, width, self._sizes))
        with torch.inference_mode():
            images = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
            seen = torch.sigmoid(self._network(images))[0, 0, :inner_height, :inner_width].numpy()
        if not np.isfinite(seen).all():
            raise ValueError("its probabilities must be finite, they are not; mend the model")
        return np.asarray(np.clip(resize(seen, (height, width)), 0, 1), np.float32)

    def _tracked(self, frame: ClipFrame, tracker: Tracker) -> Probability:
        if frame.seconds is None and not frame.follows:
            tracker.reset()  # frames are missing in between, and no times say how long
        return tracker.update(frame.image, None if frame.seconds is None else round(frame.seconds * 1e6))

    def finish(self) -> None:
        """Nothing is left over."""


class TeacherSegmenter:
    """A teacher, frame by frame."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.id = teacher.id
        self.sha256 = teacher.sha256

    def reset(self, clip: Clip) -> None:
        """Nothing is remembered."""

    def __call__(self, frame: ClipFrame) -> Probability:
        """See `Segmenter`."""
        try:
            return self._teacher.predict([frame.image])[0].probability
        except (TeacherError, ValueError) as error:
            raise InputError(f"{self.id}: frame {frame.name}: {error}") from error

    def finish(self) -> None:
        """Nothing is left over."""


# Masks of another program ---------------------------------------------------------------------------------------------


class PredictedMasks:
    """A folder of predicted masks, by the names of clips and frames."""

    def __init__(self, folder: Path, config: ClipConfig) -> None:
        self._folder = folder
        self._config = config
        self._left: dict[str, Path] = {}
        self._film: Iterator[NDArray[np.uint8]] | None = None
        self._where = folder
        self._faintest, self._brightest = 1.0, 0.0

    @functools.cached_property
    def sha256(self) -> str:
        """The digest of all its files with their names."""
        total = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and not _hidden(path, self._folder):
                total.update(os.fsencode(path.relative_to(self._folder)) + b"|" + file_sha256(path))
        return total.hexdigest()

    @property
    def id(self) -> str:
        """A short name, for records."""
        return f"masks-{self.sha256[:12]}"

    def reset(self, clip: Clip) -> None:
        """Find the masks of a clip.

        Raises:
            InputError: none are there, or both a folder and a video.
        """
        self._where = predictions_of(self._folder, clip.name)
        self._left, self._film = {}, None
        self._faintest, self._brightest = 1.0, 0.0
        if self._where.is_dir():
            self._left = {path.stem: path for path in _masks_in(self._where)}
        else:
            self._film = luma_frames(str(self._where), self._config)

    def __call__(self, frame: ClipFrame) -> Probability:
        """See `Segmenter`."""
        value = self._filmed(frame) if self._film is not None else self._still(frame)
        if value.shape != frame.image.shape[:2]:
            wanted, found = (f"{s[1]}x{s[0]}" for s in (frame.image.shape, value.shape))
            rule = f"must have its frame's size {wanted}, that of {frame.name} has {found}"
            raise InputError(f"{self._where}: a mask {rule}; write it at the frame's size")
        self._brightest = max(self._brightest, float(value.max()))
        self._faintest = min(self._faintest, float(value.min(where=value > 0, initial=1)))
        return value

    def finish(self) -> None:
        """Refuse masks that no frame has, and a clip of 0 and one small value: labels, which would be read as empty."""
        if self._film is not None and next(self._film, None) is not None:
            raise InputError(f"{self._where} has more frames than its clip; cut them alike")
        if self._left:
            raise InputError(f"{self._where}: {_listed(sorted(self._left))} must have a frame of that name; remove it")
        if self._faintest == self._brightest < 0.5:
            found = f"these hold 0 and {round(self._brightest * 255)}"
            raise InputError(f"{self._where}: masks must hold 0 and 255, {found}; write 255 for person")

    def _filmed(self, frame: ClipFrame) -> Probability:
        assert self._film is not None
        luma = next(self._film, None)
        if luma is None:
            raise InputError(f"{self._where} ends before frame {frame.name}; predict every frame")
        return luma.astype(np.float32) / np.float32(255)

    def _still(self, frame: ClipFrame) -> Probability:
        path = self._left.pop(frame.name, None)
        if path is None:
            raise InputError(f"{self._where} must have {frame.name}.png, a mask of each frame; predict it")
        with refused(str(path)), path.open("rb") as stream:
            upright_size(stream, self._config.limits)
            stream.seek(0)
            data = stream.read()
        try:
            return decode_soft(data, self._config.limits.pixels)
        except MaskError as error:
            raise InputError(f"{path}: {error}; write an 8-bit gray PNG") from error


def check_predictions(path: Path, clips: Sequence[Clip]) -> None:
    """Check, before any work, that a folder of masks holds the clips and no others; a model needs no check.

    Raises:
        InputError: masks of a clip are missing, or belong to no clip.
    """
    if not path.is_dir():
        return
    owned = {predictions_of(path, clip.name) for clip in clips}
    for found in sorted(path.rglob("*")):
        if found.is_file() and not _hidden(found, path) and found not in owned and found.parent not in owned:
            raise InputError(f"{found} belongs to no clip; its folder must have a clip's name; rename or remove it")


def predictions_of(folder: Path, name: str) -> Path:
    """The folder or the video with the masks of a clip.

    Raises:
        InputError: none is there, or more than one.
    """
    place = folder / name
    films = [place.with_name(place.name + suffix) for suffix in sorted(VIDEOS)]
    found = [path for path in (place,) if path.is_dir()] + [path for path in films if path.is_file()]
    if not found:
        raise InputError(f"{folder} must have the masks of clip {name!r}, a folder {place} or {place}.mp4; predict it")
    if len(found) > 1:
        raise InputError(f"clip {name!r} is ambiguous: both {found[0]} and {found[1]} hold its masks; remove one")
    return found[0]


def _masks_in(folder: Path) -> list[Path]:
    """The masks of a clip; folders within belong to other clips."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for path in paths:
        if path.suffix.lower() != ".png":
            raise InputError(f"{path} must be a PNG mask; write it so, or move it away")
    return paths


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more
