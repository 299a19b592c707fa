"""One labelled or unlabelled clip: what it is, and its frames from folders of images.

A clip is read one frame at a time. Whatever does not fit together (a missing mask, another size, values between
background and person, a broken file) is an error that names the file: a frame that went missing in silence would be
measured as a jump of the person. Letters: H and W rows and columns of the upright frame.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from manifests.image import (
    DEFAULT_LIMITS,
    ImageError,
    ImageLimits,
    decode_image,
    decode_mask_file,
    image_format,
    upright_size,
)
from manifests.schema import SPLITS
from pipeline.errors import InputError
from pipeline.video import BrokenError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Layout = Literal["frames", "davis", "video", "coco", "release"]

VOID_ID: Final = 255  # in a palette, as PASCAL VOC has it
_NUMBERED = re.compile(r"(.*?)(?<![0-9])([0-9]{1,18})")
_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """How clips are found and read.

    Attributes:
        limits: what a frame or mask may be, checked before decoding.
        video_pixels: largest width times height of a video's frame.
        max_frames: most frames of one clip.
        persons: which objects of DAVIS annotations are persons: a JSON or TOML file that maps the clip to a list of
            ids or "all" ("*" stands for every clip not named), or "all"; empty takes ``persons.json`` or
            ``persons.toml`` beside ``JPEGImages``.
        others: what the other objects of DAVIS are: "background", or "void" (pixels that no metric counts).
        resolution: which folder below ``JPEGImages`` is read where there are several.
        category: name of the person's category in COCO files.
        grey: largest share of a mask video's pixels that may be neither dark (luma < 64) nor bright (>= 192).
        splits: folders of a release whose samples are read.
        gap_seconds: frames of a release are neighbours if they were in the source, or at most so many seconds apart.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    video_pixels: int = 8192 * 4320
    max_frames: int = 200_000
    persons: str = ""
    others: Literal["background", "void"] = "background"
    resolution: str = ""
    category: str = "person"
    grey: float = 0.02
    splits: tuple[str, ...] = ("train", "val", "test")
    gap_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("video_pixels", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"clips.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.grey <= 1:
            raise ValueError(f"clips.grey must be in [0, 1], got {self.grey}")
        if not 0 <= self.gap_seconds < 1e6:
            raise ValueError(f"clips.gap_seconds must be in [0, 1e6), got {self.gap_seconds}")
        if self.others not in ("background", "void"):
            raise ValueError(f"clips.others must be background or void, got {self.others!r}")
        if not self.splits or not set(self.splits) <= {*SPLITS, "hold"}:
            raise ValueError(f"clips.splits must be some of {', '.join((*SPLITS, 'hold'))}, got {self.splits}")
        if not self.category:
            raise ValueError("clips.category must name a category, got an empty text")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A clip that was found; small, and all that `read_clip` needs.

    Attributes:
        name: path below the folder that was searched, without suffix; distinct.
        layout: its shape.
        frames: the folder of images, the video, the COCO file or the folder of the release.
        masks: the folder of masks or the mask video; None where the truth is in `frames`, or there is none.
        ignore: the folder of pixels that no metric counts, or None.
        key: which clip of the COCO file or the release.
        persons: DAVIS ids of persons; None for all.
        count: number of frames, of a video as its container states it; None where only decoding tells.
        fps: frames per second, or None.
        labelled: whether it has truth.
        bytes: what is read for it, about.
    """

    name: str
    layout: Layout
    frames: str
    masks: str | None = None
    ignore: str | None = None
    key: str = ""
    persons: tuple[int, ...] | None = None
    count: int | None = None
    fps: float | None = None
    labelled: bool
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipFrame:
    """One frame of a clip.

    Attributes:
        index: 0, 1, 2 … within the clip.
        name: stem of the frame's file; of a video the index, with five digits.
        seconds: time within the clip, None where it is not known.
        image: (H, W, 3) uint8 RGB, upright.
        truth: (H, W) bool, True is person; None in a clip without labels.
        void: (H, W) bool, pixels that no metric counts; None for none.
        follows: whether the frame before this one is its direct neighbour in time.
    """

    index: int
    name: str
    seconds: float | None = None
    image: Pixels
    truth: Mask | None = None
    void: Mask | None = None
    follows: bool = False


class Still(NamedTuple):
    """One frame of a clip of images: its number in the clip's own counting, and its files."""

    number: int
    image: Path
    mask: Path | None = None
    ignore: Path | None = None


# Folders --------------------------------------------------------------------------------------------------------------


def stills_of(clip: Clip) -> list[Still]:
    """The frames of a clip of folders in order of their numbers, each with its mask.

    Raises:
        InputError: no frame, files that are not numbered, or a mask too few or too many.
    """
    frames = _files(Path(clip.frames))
    numbers = numbers_of([path.stem for path in frames.values()], clip.frames)
    masks = _partners(clip.masks, frames, clip.frames, needed=True)
    ignores = _partners(clip.ignore, frames, clip.frames, needed=False)
    numbered = zip(numbers, frames.values(), strict=True)
    return sorted(Still(number, path, masks.get(path.stem), ignores.get(path.stem)) for number, path in numbered)


def numbers_of(stems: Sequence[str], where: str) -> list[int]:
    """The number in each frame's name: one prefix for all, then digits.

    Raises:
        InputError: no frame, a name without a number, several prefixes, or a number that occurs twice.
    """
    if not stems:
        raise InputError(f"{where} must hold at least one frame, it is empty; remove the folder or add frames")
    found = [_NUMBERED.fullmatch(stem) for stem in stems]
    rule = "names of frames must be one prefix and a number, such as 00000.jpg, so that order and gaps are certain"
    for stem, match in zip(stems, found, strict=True):
        if match is None:
            raise InputError(f"{where}: {rule}; got {stem!r}; rename or remove it")
    parts = [match.groups() for match in found if match is not None]
    for stem, (prefix, _) in zip(stems, parts, strict=True):
        if prefix != parts[0][0]:
            raise InputError(f"{where}: {rule}; got {stems[0]!r} and {stem!r}; rename or remove one")
    numbers = [int(digits) for _, digits in parts]
    number, most = Counter(numbers).most_common(1)[0]
    if most > 1:
        raise InputError(f"{where}: a frame's number must occur once, {number} occurs {most} times; remove one")
    return numbers


def neighbours(numbers: Sequence[int]) -> list[bool]:
    """Whether each frame follows the one before: at most the most frequent distance apart (the least of several)."""
    apart = [after - before for before, after in itertools.pairwise(numbers)]
    counts = Counter(apart)
    usual = min(counts, key=lambda step: (-counts[step], step), default=0)
    return [False, *(step <= usual for step in apart)]


def read_folders(clip: Clip, config: ClipConfig) -> Iterator[ClipFrame]:
    """The frames of a clip of folders, with binary masks or with the objects of DAVIS."""
    objects = _Objects(clip, config) if clip.layout == "davis" else None
    stills = stills_of(clip)
    follows = neighbours([still.number for still in stills])
    for index, still in enumerate(stills):
        truth, void = None, None
        if objects is not None and still.mask is not None:
            truth, void = objects.read(still.mask)
        elif still.mask is not None:
            truth = binary_mask(still.mask, config.limits)
        if still.ignore is not None:
            void = binary_mask(still.ignore, config.limits)
        yield ClipFrame(
            index=index,
            name=still.image.stem,
            image=still_image(still.image, config.limits),
            truth=truth,
            void=void,
            follows=follows[index],
        )
    if objects is not None:
        objects.finish()


def still_image(path: Path, limits: ImageLimits) -> Pixels:
    """(H, W, 3) uint8 RGB of an image file.

    Raises:
        InputError: it is broken, or beyond the limits.
    """
    with refused(str(path)):
        return decode_image(path.read_bytes(), limits).pixels


def binary_mask(path: Path, limits: ImageLimits) -> Mask:
    """(H, W) bool of a PNG of 0 and 255, or 0 and 1.

    Raises:
        InputError: it is broken, beyond the limits, or has other values.
    """
    with refused(str(path)):
        decoded = decode_mask_file(path.read_bytes(), limits)
    if decoded.soft:
        raise InputError(f"{path}: a mask must hold 0 and 255 (or 0 and 1) alone, it has other values; make it binary")
    return decoded.mask


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """What goes wrong with a file becomes an `InputError` that names it."""
    try:
        yield
    except ImageError as error:
        raise InputError(f"{name}: {error.kind}: {error}; replace or remove it") from error
    except BrokenError as error:
        raise InputError(f"{name}: {error.error}: {error}; replace or remove it") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; check the file") from error


def file_sha256(path: Path) -> bytes:
    """Digest of a file.

    Raises:
        InputError: it cannot be read.
    """
    with refused(str(path)), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files(folder: Path) -> dict[str, Path]:
    """Stem -> path of the files that are not hidden, by name."""
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{folder} must hold files alone, found {path.name!r}; move it away")
        if files.setdefault(path.stem, path) != path:
            raise InputError(f"{folder} holds {files[path.stem].name} and {path.name}; remove one")
    return files


def _partners(folder: str | None, frames: Mapping[str, Path], where: str, *, needed: bool) -> dict[str, Path]:
    if folder is None:
        return {}
    found = _files(Path(folder))
    surplus = sorted(found.keys() - frames.keys())
    if surplus:
        raise InputError(
            f"{folder}: {_listed(surplus)} must have a frame of the same name in {where}; remove or add it"
        )
    missing = sorted(frames.keys() - found.keys())
    if needed and missing:
        raise InputError(f"{where}: {_listed(missing)} must have a mask of the same name in {folder}; add or remove it")
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


# DAVIS ----------------------------------------------------------------------------------------------------------------


def davis_ids(path: Path, limits: ImageLimits) -> Pixels:
    """(H, W) uint8 ids of the objects of a DAVIS annotation: palette indices; a gray one of 0 and 255 is object 1.

    Raises:
        InputError: no PNG with a palette, beyond the limits, or broken.
    """
    with refused(str(path)):
        data = path.read_bytes()
        upright_size(io.BytesIO(data), limits)
        if image_format(data) != "PNG":
            raise ImageError("UnsupportedFormat", "an annotation must be a PNG")
        try:
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
            image.load()
        except Exception as error:  # the decoder raises what it likes on broken input
            raise ImageError("Corrupt", f"the picture cannot be read: {error}") from error
        values = np.asarray(image)
        if image.mode == "P":
            return values.astype(np.uint8, copy=False)
        if not (image.mode == "1" or (image.mode == "L" and _present(values) <= {0, 255})):
            rule = "an annotation must have a palette, or be gray with 0 and 255 alone"
            raise ImageError("UnsupportedFormat", f"{rule}, this one is of mode {image.mode}")
        return (values > 0).astype(np.uint8)


def _present(values: NDArray[np.uint8]) -> set[int]:
    return set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())


class _Objects:
    """Reads DAVIS annotations, and remembers which of the listed persons were not met yet."""

    def __init__(self, clip: Clip, config: ClipConfig) -> None:
        self._clip = clip
        self._config = config
        self._left = set(clip.persons or ())

    def read(self, path: Path) -> tuple[Mask, Mask | None]:
        """Person, and void where there is any."""
        ids = davis_ids(path, self._config.limits)
        known = self._clip.persons
        person = (ids > 0) & (ids != VOID_ID) if known is None else np.isin(ids, known)
        if self._left:
            self._left -= _present(ids)
        void = (ids > 0) & ~person if self._config.others == "void" else (ids == VOID_ID) & ~person
        return person, void if void.any() else None

    def finish(self) -> None:
        """With a wrong id the truth would be empty: refuse ids that occur nowhere."""
        if self._left:
            rule = f"has no object {min(self._left)}, which the table of persons names"
            raise InputError(f"{self._clip.masks} {rule}; correct the table")


# Every clip -----------------------------------------------------------------------------------------------------------


def checked(clip: Clip, frames: Iterable[ClipFrame], config: ClipConfig) -> Iterator[ClipFrame]:
    """The frames, held against what is true of every clip.

    Raises:
        InputError: no frame, too many, another size than the first, or a mask of another size than its frame.
    """
    size: tuple[int, ...] | None = None
    for frame in frames:
        if frame.index >= config.max_frames:
            raise InputError(f"clip {clip.name!r} must have at most {config.max_frames} frames (clips.max_frames)")
        found = frame.image.shape[:2]
        size = size or found
        if found != size:
            rule = "frames of a clip must have one size"
            raise InputError(f"clip {clip.name!r}: {rule}; {frame.name} is {_size(found)}, the first {_size(size)}")
        for what, mask in (("mask", frame.truth), ("ignore mask", frame.void)):
            if mask is not None and mask.shape != size:
                rule = f"an {what}" if what[0] == "i" else f"a {what}"
                raise InputError(
                    f"clip {clip.name!r}: {rule} must have its frame's size {_size(size)}, that of {frame.name} is "
                    f"{_size(mask.shape)}; export it at the frame's size"
                )
        yield frame


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
