"""Labels that a search scores students on: a deterministic split, short trainings, IoU on what was held out."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.masks import iou
from evaluation.picture import shrink
from manifests.image import ImageError, decode_image
from manifests.labelled import LabelledError, load_labelled, read_labelled
from manifests.mask import MaskError, decode_mask
from manifests.release import ReleaseError
from manifests.shard import ShardError
from pipeline.errors import InputError
from students.data import Example
from students.decoding import LIMITS
from students.search import Candidate
from students.shards import open_shards
from students.train import Ensemble, StudentTrainConfig, train_student
from students.views import Encoded

LONG_SIDE: Final = 384
"""Images are shrunk to it; above every side that is searched."""
MOST_TRAINED: Final = 600
MOST_HELD_OUT: Final = 120
HELD_OUT_ONE_IN: Final = 4
_BATCH: Final = 8

Image = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringSet:
    """Images to train on and others to score on.

    Attributes:
        trained: at least one.
        held_out: at least one.
        digest: sha256 of pixels, labels and split.
    """

    trained: tuple[Example, ...]
    held_out: tuple[Example, ...]
    digest: str


def read_scoring_set(labelled: Path | None, release: Path | None, seed: int) -> ScoringSet:
    """The images of a labelled folder, or of a release's train and val splits, at most LONG_SIDE pixels long.

    A labelled folder's images are held out one in HELD_OUT_ONE_IN by a hash of seed and name. Where there are more than
    MOST_TRAINED or MOST_HELD_OUT, those of the smallest hashes are taken.

    Raises:
        InputError: nothing to train on or to score on, or images and labels that are no good.
    """
    try:
        if labelled is not None:
            trained, held_out = _of_folder(labelled, seed)
        else:
            assert release is not None
            trained, held_out = (_of_release(release, split, seed) for split in ("train", "val"))
    except (LabelledError, ReleaseError, ShardError, ImageError, MaskError) as error:
        raise InputError(f"{labelled or release}: {error}") from error
    if not trained or not held_out:
        found = f"got {len(trained)} and {len(held_out)}"
        raise InputError(f"{labelled or release} must have images to train on and to hold out, {found}; give more")
    return ScoringSet(trained=trained, held_out=held_out, digest=_digest((*trained, None, *held_out)))


def _of_folder(folder: Path, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    samples = {sample.name: sample for sample in read_labelled(folder)}
    order = sorted(samples, key=lambda name: _hash(seed, name))
    held_out = order[: max(1, len(order) // HELD_OUT_ONE_IN)][:MOST_HELD_OUT]
    trained = order[max(1, len(order) // HELD_OUT_ONE_IN) :][:MOST_TRAINED]
    first, second = ([_example(load_labelled(samples[name])) for name in names] for names in (trained, held_out))
    return tuple(first), tuple(second)


def _of_release(folder: Path, split: str, seed: int) -> tuple[Example, ...]:
    shards = open_shards(folder, split)
    names = shards.names.to_pylist()
    most = MOST_TRAINED if split == "train" else MOST_HELD_OUT
    usable = [i for i in range(len(shards)) if shards.weights[i] > 0]
    chosen = sorted(sorted(usable, key=lambda i: _hash(seed, names[i]))[:most])
    return tuple(_encoded_examples(itertools.chain.from_iterable(shards.read([i] for i in chosen))))


def _encoded_examples(samples: Iterable[Encoded]) -> Iterator[Example]:
    for sample in samples:
        image = decode_image(sample.image, LIMITS).pixels
        mask = decode_mask(sample.mask, LIMITS.pixels)
        ignore = np.zeros_like(mask) if sample.ignore is None else decode_mask(sample.ignore, LIMITS.pixels)
        yield replace(_example((image, mask, ignore)), weight=sample.weight)


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}|{name}".encode()).digest()


def _example(image: Image) -> Example:
    pixels, (mask, ignore) = shrink(image[0], [image[1], image[2]], LONG_SIDE)
    return Example(image=pixels, target=mask.astype(np.uint8), ignore=ignore if ignore.any() else None)


def _digest(examples: Sequence[Example | None]) -> str:
    total = hashlib.sha256()
    for example in examples:
        if example is None:
            total.update(b"held out")
            continue
        total.update(f"{example.image.shape}{example.weight!r}".encode())
        for values in (example.image, example.target, example.ignore):
            total.update(b"-" if values is None else values.tobytes())
    return total.hexdigest()


def train_and_score(candidate: Candidate, data: ScoringSet, *, steps: int, seed: int, folder: Path) -> float:
    """Mean IoU on the held-out images, in [0, 1], after a short training of the candidate's shape on RGB.

    Args:
        candidate: what; its input's fourth channel is left out.
        data: images.
        steps: of the training.
        seed: of weights, order and augmentation.
        folder: where the training keeps its state, so that it goes on after a kill; removed when it is done.
    """
    config = StudentTrainConfig(
        steps=steps,
        batch=_BATCH,
        side=candidate.side,
        late_checkpoints=1,
        student=replace(candidate.config, in_channels=3),
    )
    ensemble = Ensemble.load(train_student(data.trained, config, seed=seed, folder=folder))
    scores = []
    for example in data.held_out:
        if example.ignore is not None and example.ignore.all():
            continue
        mask = ensemble.predict([example.image])[0].probability >= 0.5
        scores.append(iou(mask, example.target.astype(bool), example.ignore))
    shutil.rmtree(folder)
    return float(np.mean(scores)) if scores else 0.0
