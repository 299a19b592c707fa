"""Finds the clips below a folder: each is recognised by its shape, and what has two shapes is refused.

::

    a/frames/00000.jpg …   a/masks/00000.png …   (a/ignore/, a/instances/, a/a.mp4)     frames
    JPEGImages/480p/b/00000.jpg …                 Annotations/480p/b/00000.png …        DAVIS
    c.mp4                                         c.mask.mp4, c_mask.mp4, masks/c.mp4   video, with mask video
    d.mp4                                                                               video without truth
    e/0001.jpg …                                  e.json                                COCO
    f/release.json                                                                      release
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifests.release import RELEASE_FILE
from pipeline.clip_coco import ANNOTATIONS, coco_clips, coco_stills, parsed_coco
from pipeline.clip_formats import Clip, ClipConfig, stills_of
from pipeline.clip_release import release_clips
from pipeline.clip_video import opened
from pipeline.errors import InputError
from pipeline.frames import MEDIA_SUFFIXES
from pipeline.video import container_format

_STILLS = "jpg jpeg jpe jfif png webp gif bmp tif tiff heic heif avif jp2"
_IMAGES = frozenset(f".{suffix}" for suffix in _STILLS.split(" "))
VIDEOS = MEDIA_SUFFIXES - _IMAGES - {".parquet"}
"""Suffixes of videos."""
_MASK_ENDS = (".mask", "_mask")
_LAYOUTS = "frames/ and masks/, JPEGImages/ and Annotations/, videos with mask videos, a COCO file, or a release"


class Search:
    """One walk through a folder; what it found is in `clips`."""

    def __init__(self, root: Path, config: ClipConfig) -> None:
        self.clips: list[Clip] = []
        self._root = root
        self._config = config
        self._loose: dict[str, Path] = {}  # real path of an image that no layout has claimed -> as met
        self._seen: set[Path] = set()

    def run(self) -> tuple[Clip, ...]:
        """The clips, sorted by name.

        Raises:
            InputError: see `pipeline.clips.find_clips`.
        """
        self._visit(self._root)
        self._claim_coco()
        if self._loose:
            first = min(self._loose.values())
            raise InputError(f"{first} belongs to no clip; clips are {_LAYOUTS}; arrange it so, or move it away")
        if not self.clips:
            raise InputError(f"{self._root} holds no clip; clips are {_LAYOUTS}")
        clips = sorted(self.clips, key=lambda clip: clip.name)
        for clip in clips:
            _check_name(clip)
        for one, other in itertools.pairwise(clips):
            if one.name == other.name:
                raise _two_shapes(f"clip {one.name!r}", _place(one), _place(other))
        return tuple(clips)

    def _visit(self, folder: Path) -> None:
        real = folder.resolve()
        if real in self._seen:  # a link that leads back
            return
        self._seen.add(real)
        files, folders = _entries(folder)
        shapes = [name for name in (RELEASE_FILE, "frames", "JPEGImages") if name in files or name in folders]
        if "Annotations" not in folders and "JPEGImages" in shapes:
            shapes.remove("JPEGImages")  # images of a COCO file may lie in a folder of this name
        if len(shapes) > 1:
            raise _two_shapes(str(folder), *(str(folder / name) for name in shapes[:2]))
        if shapes == [RELEASE_FILE]:
            self.clips += release_clips(folder, self._prefix(folder), self._config)
            return
        if shapes == ["frames"]:
            self._frames(folder, files, folders)
        elif shapes == ["JPEGImages"]:
            self._davis(folder)
            folders = {name: f for name, f in folders.items() if name not in ("JPEGImages", "Annotations")}
        self._videos(folder, files, folders)
        self._loose |= {str(f.resolve()): f for f in files.values() if f.suffix.lower() in _IMAGES}
        self._coco(files)
        for child in folders.values():
            self._visit(child)

    def _name(self, path: Path) -> str:
        name = path.relative_to(self._root).as_posix()
        return self._root.resolve().name if name == "." else name

    def _prefix(self, folder: Path) -> str:
        return "" if folder == self._root else f"{self._name(folder)}/"

    # Shapes ---------------------------------------------------------------------------------------------------------

    def _frames(self, folder: Path, files: dict[str, Path], folders: dict[str, Path]) -> None:
        """A clip of our own layout; takes what belongs to it out of files and folders."""
        name = folder.resolve().name
        parts = {part: str(folders.pop(part)) if part in folders else None for part in ("frames", "masks", "ignore")}
        folders.pop("instances", None)
        for file in [f for f in files.values() if f.stem == name and f.suffix.lower() in VIDEOS]:
            del files[file.name]
        other = next((f for f in files.values() if f.suffix.lower() in VIDEOS | _IMAGES), None)
        if other is not None:
            raise _two_shapes(str(folder), f"{folder}/frames", str(other))
        if parts["ignore"] is not None and parts["masks"] is None:
            raise InputError(f"{folder} has ignore/, so it must have masks/; add the masks or remove ignore/")
        assert parts["frames"] is not None
        self._add_stills(
            Clip(
                name=self._name(folder),
                layout="frames",
                frames=parts["frames"],
                masks=parts["masks"],
                ignore=parts["ignore"],
                labelled=parts["masks"] is not None,
                bytes=0,
            )
        )

    def _davis(self, folder: Path) -> None:
        images, masks = (_davis_folders(folder / part, self._config) for part in ("JPEGImages", "Annotations"))
        for place in sorted(masks.keys() - images.keys()):
            raise InputError(f"{masks[place]} has no folder of frames in JPEGImages; add the frames or remove it")
        for place, frames in sorted(images.items()):
            if place not in masks:
                wanted = folder / "Annotations" / place
                raise InputError(f"{frames} must have its masks in {wanted}; add them, or choose clips.resolution")
            clip = Clip(
                name=self._name(folder / frames.name),
                layout="davis",
                frames=str(frames),
                masks=str(masks[place]),
                persons=_persons(folder, frames.name, self._config),
                labelled=True,
                bytes=0,
            )
            self._add_stills(clip)

    def _add_stills(self, clip: Clip) -> None:
        stills = stills_of(clip)
        size = sum(path.stat().st_size for still in stills for path in still[1:] if path is not None)
        self.clips.append(replace(clip, count=len(stills), bytes=size))

    def _videos(self, folder: Path, files: dict[str, Path], folders: dict[str, Path]) -> None:
        """Videos of a folder, each with its mask video; a folder of mask videos is taken out of folders."""
        videos = {name: file for name, file in files.items() if file.suffix.lower() in VIDEOS}
        masks = [file for file in videos.values() if file.stem.endswith(_MASK_ENDS)]
        if "masks" in folders:
            within, deeper = _entries(folders["masks"])
            filmed = [file for file in within.values() if file.suffix.lower() in VIDEOS]
            if filmed and (deeper or len(filmed) < len(within)):
                raise InputError(f"{folders['masks']} must hold mask videos alone, or none; sort them into folders")
            if filmed:
                masks += filmed
                del folders["masks"]
        frames = [file for file in videos.values() if not file.stem.endswith(_MASK_ENDS)]
        owners = {file.stem: file for file in frames}
        partners: dict[Path, Path] = {}
        for mask in masks:
            stem = mask.stem if mask.parent != folder else mask.stem[: -len(_MASK_ENDS[0])]
            owner = owners.get(stem)
            if owner is None:
                raise InputError(f"{mask} must have a video {stem!r} in {folder}; add it, or rename what is no mask")
            if partners.setdefault(owner, mask) != mask:
                raise _two_shapes(str(owner), str(partners[owner]), str(mask))
        self.clips += [_video(self._name(f.with_suffix("")), f, partners.get(f), self._config) for f in frames]

    # COCO -----------------------------------------------------------------------------------------------------------

    def _coco(self, files: dict[str, Path]) -> None:
        for file in files.values():
            if file.suffix.lower() == ".json" and parsed_coco(file, self._config.category) is not None:
                below = file.parent != self._root
                base = file.parent.parent if file.parent.name == ANNOTATIONS and below else file.parent
                self.clips += coco_clips(file, self._prefix(base), self._config)

    def _claim_coco(self) -> None:
        """Take the images of COCO clips from the loose ones; refuse those that another layout has."""
        folders = {str(Path(clip.frames).resolve()): clip for clip in self.clips if clip.layout in ("frames", "davis")}
        for clip in self.clips:
            if clip.layout != "coco":
                continue
            for still in coco_stills(clip, self._config):
                image = still.image.resolve()
                if str(image.parent) in folders:
                    raise _two_shapes(str(image.parent), clip.frames, folders[str(image.parent)].frames)
                self._loose.pop(str(image), None)


def _entries(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files and folders by name, in order, without hidden ones."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list the folder {folder}: {error.strerror}; check path and permissions") from error
    return {p.name: p for p in paths if not p.is_dir()}, {p.name: p for p in paths if p.is_dir()}


def _two_shapes(what: str, one: str, other: str) -> InputError:
    return InputError(f"{what} is ambiguous: both {one} and {other} claim it; rename or move one away")


def _check_name(clip: Clip) -> None:
    """Names become paths of masks and results: a COCO file must not lead them anywhere else."""
    parts = clip.name.split("/")
    printable = clip.name.isprintable()  # surrogates of a name that is no UTF-8 are not
    if not printable or "\\" in clip.name or any(part in ("", ".", "..") for part in parts):
        rule = "a clip's name must be a relative path of printable letters"
        raise InputError(f"{clip.frames}: {rule}, got {clip.name!a}; rename it")


def _place(clip: Clip) -> str:
    return f"{clip.frames} ({clip.key})" if clip.key else clip.frames


def _davis_folders(root: Path, config: ClipConfig) -> dict[str, Path]:
    """Folders of clips by their place below JPEGImages or Annotations, with or without a level of resolutions."""
    files, folders = _entries(root)
    if files:
        raise InputError(f"{root} must hold folders alone, found {min(files)!r}; move it away")
    found: dict[str, Path] = {}
    for name, folder in folders.items():
        below = _entries(folder)[1]
        if not below and name != config.resolution:
            found[name] = folder
        elif config.resolution in ("", name):
            found |= {f"{name}/{clip}": path for clip, path in below.items()}
    if config.resolution:
        found = {place: path for place, path in found.items() if place.startswith(f"{config.resolution}/")}
    return found


def _persons(folder: Path, clip: str, config: ClipConfig) -> tuple[int, ...] | None:
    """The ids of persons of a DAVIS clip; None for all."""
    if config.persons == "all":
        return None
    names = [config.persons] if config.persons else [str(folder / name) for name in ("persons.json", "persons.toml")]
    path = next((Path(name) for name in names if Path(name).is_file()), None)
    if path is None:
        raise InputError(
            f"{folder}: its objects need a table of which are persons: write {names[0]} such as "
            f'{{"{clip}": [1], "*": "all"}}, or set clips.persons to it or to "all"'
        )
    table = _table(path)
    value = table.get(clip, table.get("*"))
    if value == "all":
        return None
    if not isinstance(value, list) or any(type(i) is not int or not 0 < i < 255 for i in value):
        raise InputError(f"{path}: {clip!r} must be a list of ids in 1..254, or 'all'; got {value!r:.80}")
    return tuple(sorted(set(value)))


def _table(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable table of persons: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} must map clips to ids, got {type(table).__name__}")
    return table


def _video(name: str, path: Path, mask: Path | None, config: ClipConfig) -> Clip:
    files: Sequence[Path] = [path] if mask is None else [path, mask]
    _check_containers(files)
    with opened(str(path), config) as video:
        count, fps = video.promised or None, float(video.rate)
    return Clip(
        name=name,
        layout="video",
        frames=str(path),
        masks=None if mask is None else str(mask),
        count=count,
        fps=fps,
        labelled=mask is not None,
        bytes=sum(file.stat().st_size for file in files),
    )


def _check_containers(files: Iterable[Path]) -> None:
    for file in files:
        try:
            with file.open("rb") as handle:
                head = handle.read(32)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}; check the file") from error
        if container_format(head) is None:
            raise InputError(f"{file} must be MP4, MOV, Matroska, WebM or AVI by content; convert or remove it")
