"""The crops of every step: which picture, composed with what, cut how; each follows from (seed, step, slot) alone."""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.image import ImageError, decode_image, upright_size
from manifests.labelled import Labelled, load_labelled
from teachers.augment import draw_crop, shrink
from teachers.backbone import normalise
from teachers.compose import compose, paint_out
from teachers.points import IGNORE
from teachers.recipe import TeachConfig, TeachError

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]

_SHUFFLE, _CROP = 1, 2
_AHEAD = 3  # steps drawn before they are asked for, with loaders
_ALONE = 0.07  # share of compositions that show a background alone, so that nobody is learnt too
_KEPT = 0.75  # share of labelled backgrounds that keep their people; with 1/3 short trainings ended 5 points lower
_PAINTABLE = 0.4  # largest share of people in a picture that is painted out: beyond it too much is invented
_TRIES = 8
_NAMED = 10


def read_backgrounds(folder: str) -> tuple[Path, ...]:
    """The pictures of a folder, sorted by name; hidden files are skipped, headers alone are read; none for "".

    Raises:
        TeachError: No such folder, an empty one, or files that are no images within the limits; names the first ten.
    """
    if not folder:
        return ()
    try:
        paths = tuple(sorted(p for p in Path(folder).iterdir() if not p.name.startswith(".")))
    except OSError as error:
        raise TeachError(f"teach.backgrounds {folder!r} cannot be read: {error.strerror}") from error
    faults = [fault for fault in map(_fault, paths) if fault]
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise TeachError(
            f"teach.backgrounds {folder!r} must hold images only: {'; '.join(faults[:_NAMED])}{more}; remove them"
        )
    if not paths:
        raise TeachError(f"teach.backgrounds {folder!r} is empty: add pictures without people, or leave it out")
    return paths


def _fault(path: Path) -> str:
    if not path.is_file():
        return f"{path.name!r} (no file)"
    try:
        with path.open("rb") as stream:
            upright_size(stream)
    except ImageError as error:
        return f"{path.name!r} ({error.kind}: {error})"
    except OSError as error:
        return f"{path.name!r} ({error.strerror or error})"
    return ""


def backgrounds_sha256(paths: Sequence[Path]) -> str:
    """Hex digest over the contents in the order of names, wherever the folder lies; "" for none."""
    if not paths:
        return ""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Scenes:
    """Decoded pictures: shrunken ones for training, whole ones of the held-out fold; kept while there is room.

    Args:
        samples: The labelled images.
        names: Those trained on, the only ones that compositions are made of.
        backgrounds: Pictures without people.
        config: Sizes, and how often to compose.
    """

    def __init__(
        self, samples: Sequence[Labelled], names: Sequence[str], backgrounds: Sequence[Path], config: TeachConfig
    ) -> None:
        self.samples = {s.name: s for s in samples}
        self.names = names
        self.backgrounds = backgrounds
        self.config = config
        self.side = math.ceil(config.augment.short_side * config.augment.scale_high)
        self.left = config.cache_bytes
        self.cache: dict[tuple[str, str], Pair] = {}

    def whole(self, name: str) -> Pair:
        """Image (H, W, 3) uint8 and label (H, W) uint8 of 0, 1, 255, at its own size."""
        return self._kept("whole", name) or self._keep("whole", name, self._decoded(name))

    def shrunken(self, name: str) -> Pair:
        """The same, no larger than training needs."""
        return self._kept("shrunken", name) or self._keep("shrunken", name, shrink(*self._decoded(name), self.side))

    def painted(self, name: str) -> Pair:
        """The shrunken one with its people painted out."""
        return self._kept("painted", name) or self._keep("painted", name, paint_out(*self.shrunken(name)))

    def draw(self, name: str, rng: np.random.Generator) -> Pair:
        """A labelled picture as it is or, with probability `compose`, a composition with its people or without any."""
        scene = self.shrunken(name)
        if self.config.compose == 0 or rng.random() >= self.config.compose:
            return scene
        alone = rng.random() < _ALONE
        background = self._background(rng, empty=alone)
        if background is None:
            return scene
        return background if alone else compose(*background, *scene, rng)

    def _background(self, rng: np.random.Generator, *, empty: bool) -> Pair | None:
        """From the folder half of the time, where there is one; else of the labelled pictures, None if none will do."""
        if self.backgrounds and rng.random() < 0.5:
            return self._picture(self.backgrounds[int(rng.integers(len(self.backgrounds)))])
        for _ in range(_TRIES):
            name = self.names[int(rng.integers(len(self.names)))]
            label = self.shrunken(name)[1]
            if not empty and rng.random() < _KEPT:
                return self.shrunken(name)
            if np.count_nonzero(label == 1) <= _PAINTABLE * label.size:
                return self.painted(name)
        return None

    def _picture(self, path: Path) -> Pair:
        """A picture without people, shrunken."""
        kept = self._kept("background", path.name)
        if kept is not None:
            return kept
        try:
            image = decode_image(path.read_bytes()).pixels
        except (ImageError, OSError) as error:
            raise TeachError(f"teach.backgrounds: {str(path)!r} cannot be read: {error}; remove it") from error
        return self._keep("background", path.name, shrink(image, np.zeros(image.shape[:2], np.uint8), self.side))

    def _decoded(self, name: str) -> Pair:
        image, mask, ignore = load_labelled(self.samples[name])
        return image, np.where(ignore, np.uint8(IGNORE), mask.astype(np.uint8))

    def _kept(self, kind: str, name: str) -> Pair | None:
        return self.cache.get((kind, name))

    def _keep(self, kind: str, name: str, pair: Pair) -> Pair:
        size = pair[0].nbytes + pair[1].nbytes
        if size <= self.left:
            self.left -= size
            self.cache[kind, name] = pair
        return pair


class Feed:
    """The batches of one process.

    Args:
        scenes: The pictures.
        seed: Of all that is drawn.
        slots: Places of the batch that this process fills.
        loaders: Threads that draw crops ahead; 0 draws them when they are asked for. The crops are the same.
    """

    def __init__(self, scenes: Scenes, seed: int, slots: range, loaders: int) -> None:
        self.scenes = scenes
        self.seed = seed
        self.slots = slots
        self.threads = ThreadPoolExecutor(loaders) if loaders else None
        self.coming: dict[int, list[Future[Pair]]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, 3, S, S) float32, channels last, and labels (N, S, S) uint8 of step 0, 1, .."""
        pairs = self._pairs(step)
        inputs = torch.stack([normalise(image, self.scenes.config.model) for image, _ in pairs])
        labels = torch.from_numpy(np.stack([label for _, label in pairs]))
        return inputs.contiguous(memory_format=torch.channels_last), labels

    def close(self) -> None:
        """Stop drawing ahead."""
        if self.threads is not None:
            self.threads.shutdown(cancel_futures=True)

    def _pairs(self, step: int) -> list[Pair]:
        if self.threads is None:
            return [self.crop(step, slot) for slot in self.slots]
        for ahead in range(step, min(step + _AHEAD, self.scenes.config.steps)):
            if ahead not in self.coming:
                self.coming[ahead] = [self.threads.submit(self.crop, ahead, slot) for slot in self.slots]
        return [future.result() for future in self.coming.pop(step)]

    def crop(self, step: int, slot: int) -> Pair:
        """Image (S, S, 3) uint8 and label (S, S) uint8; every epoch shows every picture once, in another order."""
        scenes, config = self.scenes, self.scenes.config
        epoch, place = divmod(step * config.batch + slot, len(scenes.names))
        order = np.random.default_rng([self.seed, _SHUFFLE, epoch]).permutation(len(scenes.names))
        rng = np.random.default_rng([self.seed, _CROP, step, slot])
        return draw_crop(*scenes.draw(scenes.names[order[place]], rng), config.augment, rng)


def loaders(device: torch.device) -> int:
    """Threads that pay: a CPU that computes has none to spare, a GPU waits for crops."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
