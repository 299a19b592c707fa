"""A folder of labelled images, as people have them: pairs of files with the same stem.

    folder/
    ├── images/   a.jpg  b.png  …     JPEG, PNG, WebP or GIF by content
    ├── masks/    a.png  b.png  …     0 background, 255 (or 1) person
    └── ignore/   a.png               optional, per image: pixels that no metric may count

A set that does not fit together is refused as a whole, with the first files at fault: a mask of the wrong size or a
missing one would train or measure something else in silence.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.image import DEFAULT_LIMITS, ImageError, ImageLimits, decode_image, decode_mask_file, upright_size

_NAMED = 10


class LabelledError(ValueError):
    """A labelled set breaks a rule; the message names rule, files and remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One labelled image; the three files have the same stem, `name`.

    Attributes:
        name: the stem.
        image: path of the image.
        mask: path of the mask.
        ignore: path of the pixels to leave out, or None.
    """

    name: str
    image: Path
    mask: Path
    ignore: Path | None


def read_labelled(folder: Path, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[Labelled, ...]:
    """List the labelled images of a folder, sorted by name; hidden files are skipped.

    Headers alone are read: each file must be an image within the limits and upright as large as its partners. A file
    broken further on is found by `load_labelled`.

    Raises:
        LabelledError: no such folder, no pair, a file without partner, two files with one stem, sizes that differ,
            or files that are no images; names the first ten.
    """
    images, masks = _files(folder / "images"), _files(folder / "masks")
    ignores = _files(folder / "ignore") if (folder / "ignore").exists() else {}
    _refuse("an image must have a mask of the same stem in masks/", images.keys() - masks, "add the mask or remove it")
    _refuse(
        "a mask must have an image of the same stem in images/", masks.keys() - images, "add the image or remove it"
    )
    _refuse("a file in ignore/ must have an image of its stem", ignores.keys() - images, "rename or remove it")
    if not images:
        raise LabelledError(f"{str(folder)!r}: images/ must hold at least one image, is empty; add images and masks")
    samples = tuple(
        Labelled(name=name, image=images[name], mask=masks[name], ignore=ignores.get(name)) for name in sorted(images)
    )
    _check_sizes(samples, limits)
    return samples


def load_labelled(
    sample: Labelled, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Decode one labelled image.

    Returns:
        image (H, W, 3) uint8 RGB upright, mask (H, W) bool, ignore (H, W) bool (all False without a file). Soft
        masks are cut at 128, as `decode_mask_file` states.

    Raises:
        LabelledError: a file is broken or the sizes differ; names the file.
    """
    try:
        current = sample.image
        image = decode_image(current.read_bytes(), limits).pixels
        current = sample.mask
        mask = decode_mask_file(current.read_bytes(), limits).mask
        ignore = np.zeros_like(mask)
        if sample.ignore is not None:
            current = sample.ignore
            ignore = decode_mask_file(current.read_bytes(), limits).mask
    except ImageError as error:
        raise LabelledError(f"{str(current)!r}: {error.kind}: {error}; replace or remove the file") from error
    if not image.shape[:2] == mask.shape == ignore.shape:
        sizes = f"image {image.shape[:2]}, mask {mask.shape}, ignore {ignore.shape}"
        raise LabelledError(f"{sample.name!r}: image and masks must have one upright size, got {sizes}")
    return image, mask, ignore


def labelled_sha256(samples: Iterable[Labelled]) -> str:
    """Hex digest over names and file contents, whatever the order of the samples and the folder they lie in."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.name):
        for path in (sample.image, sample.mask, sample.ignore):
            name = b"-" if path is None else os.fsencode(path.name)
            content = b"" if path is None else path.read_bytes()
            digest.update(b"%d:%s%d:" % (len(name), name, len(content)))
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def held_out(names: Sequence[str], one_in: int) -> frozenset[str]:
    """Of at least two names about one in so many, by a hash of each name alone; never none and never all.

    Args:
        names: Distinct.
        one_in: At least 2.
    """
    digest = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names}
    held = {name for name in names if digest[name] % one_in == 0} or {min(names, key=lambda name: digest[name])}
    if len(held) == len(digest):
        held.remove(max(names, key=lambda name: digest[name]))
    return frozenset(held)


def _files(folder: Path) -> dict[str, Path]:
    """Stem -> path of the files that are not hidden."""
    if not folder.is_dir():
        raise LabelledError(f"{str(folder)!r} must be a folder; a labelled set has images/ and masks/ (same stems)")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    _refuse(f"{folder.name}/ must hold files only", (path.name for path in paths if not path.is_file()), "move it away")
    files = {path.stem: path for path in paths}
    double = (path.name for path in paths if files[path.stem] != path)
    _refuse(f"{folder.name}/ must have one file per stem", double, "rename or remove one of the two")
    return files


def _check_sizes(samples: tuple[Labelled, ...], limits: ImageLimits) -> None:
    broken: list[str] = []
    differing: list[str] = []
    for sample in samples:
        sizes = []
        for path in (sample.image, sample.mask, sample.ignore):
            if path is None:
                continue
            try:
                with path.open("rb") as stream:
                    sizes.append(upright_size(stream, limits))
            except ImageError as error:
                broken.append(f"{path.parent.name}/{path.name} ({error.kind}: {error})")
        if len(set(sizes)) > 1:
            found = " and ".join(f"{width}x{height}" for height, width in sizes)
            differing.append(f"{sample.name} ({found})")
    _refuse("every file must be an image within the limits", broken, "replace or remove it")
    _refuse("image and masks must have one upright size", differing, "export the mask at the image's size")


def _refuse(rule: str, names: Iterable[str], remedy: str) -> None:
    """Raise if there are files at fault; names are quoted, for a file name may hold anything."""
    found = sorted(names)
    if not found:
        return
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    listed = ", ".join(repr(name) for name in found[:_NAMED])
    raise LabelledError(f"{rule}: {len(found)} at fault: {listed}{more}; {remedy}")
