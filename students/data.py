"""Training pixels: examples in buckets of similar aspect, and batches that are a function of (seed, step).

An image is resized once, keeping its aspect, to fit the nearest of five canonical sizes; the few missing
pixels at the right or below repeat the border and have no say in the loss. Never stretched.

```
side 128:   160×96   128×96   128×128   96×128   96×160      (height × width)
```
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 32
ASPECTS = (9 / 16, 3 / 4, 1.0, 4 / 3, 16 / 9)

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
Fit = Literal["aspect", "square"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """One labelled image of any size.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        target: (h, w) uint8 of 0 and 1, or float in [0, 1].
        ignore: (h, w) bool, pixels without a say; None for none.
        weight: Factor of its loss, >= 0.
        gold: Whether a human drew the label; gold is oversampled.
    """

    image: Pixels
    target: NDArray[np.generic]
    ignore: NDArray[np.bool_] | None = None
    weight: float = 1.0
    gold: bool = False

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or 0 in self.image.shape:
            raise ValueError(f"example.image must be (h, w, 3) uint8, got {self.image.shape} {self.image.dtype}")
        size = self.image.shape[:2]
        if self.target.shape != size or (self.ignore is not None and self.ignore.shape != size):
            shapes = self.target.shape, None if self.ignore is None else self.ignore.shape
            raise ValueError(f"example.target and ignore must have the image's shape {size}, got {shapes}")
        if not (float(self.target.min()) >= 0 and float(self.target.max()) <= 1):
            raise ValueError("example.target must lie in [0, 1]; divide masks of 0 and 255 by 255")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"example.weight must be finite and >= 0, got {self.weight}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Samples of one bucket.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1].
        target: (B, 1, H, W) float32 in [0, 1].
        ignore: (B, 1, H, W) bool.
        weight: (B,) float32; a partial batch carries B / batch in it, so each sample counts the same.
    """

    images: NDArray[np.float32]
    target: NDArray[np.float32]
    ignore: NDArray[np.bool_]
    weight: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Fitted:
    """An example at its bucket's size: (H, W, 3), (H, W) 0..255 and (H, W) uint8 0/1."""

    image: Pixels
    target: Pixels
    ignore: Pixels
    weight: float


def bucket_sizes(side: int) -> tuple[Size, ...]:
    """Five sizes (H, W), multiples of 32, of about ``side``² pixels, from portrait to landscape.

    Each minimises |log(aspect / wanted)| + |log(area / side²)|; among equals the smaller area wins.

    Raises:
        ValueError: If ``side`` is below 64: five sizes of 32-pixel cells would not be near five aspects.
    """
    if side < 2 * CELL:
        raise ValueError(f"side must be >= {2 * CELL}, got {side}")
    sides = range(CELL, 4 * side, CELL)
    sizes = []
    for aspect in ASPECTS:
        wide = max(aspect, 1 / aspect)
        costs = {
            (h, w): round(abs(math.log(w / h / wide)) + abs(math.log(h * w / side**2)), 9)
            for h in sides
            for w in sides
            if w >= h
        }
        short, long = min(costs, key=lambda size: (costs[size], size[0] * size[1], size))
        sizes.append((short, long) if aspect >= 1 else (long, short))
    return tuple(sizes)


def canonical_sizes(side: int, fit: Fit = "aspect") -> tuple[Size, ...]:
    """The sizes (H, W) that images are seen at: those of ``bucket_sizes``, or one square for all, to compare.

    Raises:
        ValueError: As ``bucket_sizes``; or if ``fit`` is unknown, or "square" and the side is no multiple of 32.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {get_args(Fit)}, got {fit!r}")
    if fit == "aspect":
        return bucket_sizes(side)
    if side < 2 * CELL or side % CELL:
        raise ValueError(f"side must be a multiple of {CELL} and >= {2 * CELL} with fit = square, got {side}")
    return ((side, side),)


def nearest_bucket(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The size whose log aspect is nearest to the image's; the first among equals."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: abs(aspect - math.log(size[1] / size[0])))


def fitted_size(height: int, width: int, size: Size) -> Size:
    """The largest (h, w) inside ``size`` with the image's aspect, each at least 1."""
    scale = min(size[0] / height, size[1] / width)
    return min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))


def resize(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """(h, w, …) to ``size`` (H, W): area averages where it shrinks, bilinear where it grows."""
    shrinks = values.shape[0] > size[0] or values.shape[1] > size[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (size[1], size[0]), interpolation=interpolation))


def fit_image(image: Pixels, size: Size) -> tuple[Pixels, Size]:
    """(h, w, 3) to (H, W, 3), top left, border repeated; and the (h', w') that are the image."""
    inside = fitted_size(image.shape[0], image.shape[1], size)
    missing = ((0, size[0] - inside[0]), (0, size[1] - inside[1]), (0, 0))
    return np.pad(resize(image, inside).astype(np.uint8), missing, mode="edge"), inside


def _fit(example: Example, size: Size) -> _Fitted:
    image, (height, width) = fit_image(example.image, size)
    target = np.zeros(size, np.uint8)
    ignore = np.ones(size, np.uint8)
    soft = resize(example.target.astype(np.float32), (height, width))
    target[:height, :width] = np.rint(np.clip(soft, 0, 1) * 255)
    ignore[:height, :width] = 0
    if example.ignore is not None:
        ignore[:height, :width] = resize(example.ignore.astype(np.float32), (height, width)) > 0.25
    return _Fitted(image=image, target=target, ignore=ignore, weight=example.weight)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


class Buckets:
    """Examples at their canonical sizes; ``batch(step)`` is a pure function of (examples, seed, step).

    An epoch holds every example once (gold ``gold_oversampling`` times) in batches of one bucket each; a bucket's last
    batch may be partial. Augmentation is a function of (seed, step, slot).
    """

    def __init__(
        self, examples: Sequence[Example], *, side: int, batch: int, seed: int, gold_oversampling: int = 3
    ) -> None:
        """Resize all examples once.

        Raises:
            ValueError: If there is no example, or a number is out of range.
        """
        if not examples:
            raise ValueError("a training needs at least 1 example, got 0")
        if batch < 1 or gold_oversampling < 1 or seed < 0:
            raise ValueError(f"batch, gold_oversampling >= 1 and seed >= 0, got {batch}, {gold_oversampling}, {seed}")
        sizes = bucket_sizes(side)
        self._seed, self._batch = seed, batch
        self._fitted: list[_Fitted] = []
        self._members: dict[Size, list[int]] = {}
        for index, example in enumerate(examples):
            size = nearest_bucket(example.image.shape[0], example.image.shape[1], sizes)
            self._fitted.append(_fit(example, size))
            self._members.setdefault(size, []).extend([index] * (gold_oversampling if example.gold else 1))
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def epoch_steps(self) -> int:
        """Batches of one epoch."""
        return sum(math.ceil(len(members) / self._batch) for members in self._members.values())

    def digest(self) -> str:
        """SHA-256 over all pixels, labels and weights in order: the identity of the training data."""
        total = hashlib.sha256()
        for item in self._fitted:
            total.update(f"{item.image.shape}{item.weight!r}".encode())
            for values in (item.image, item.target, item.ignore):
                total.update(values.tobytes())
        total.update(repr(sorted(self._members.items())).encode())
        return total.hexdigest()

    def indices(self, step: int) -> list[int]:
        """Which examples make up the batch of this step."""
        epoch, position = divmod(step, self.epoch_steps)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._schedule(epoch))
        return self._epoch[1][position]

    def _schedule(self, epoch: int) -> list[list[int]]:
        rng = _generator(self._seed, epoch)
        batches: list[list[int]] = []
        for _, members in sorted(self._members.items()):
            order = [members[i] for i in rng.permutation(len(members))]
            batches += [order[i : i + self._batch] for i in range(0, len(order), self._batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, step: int) -> Batch:
        """The augmented batch of this step."""
        indices = self.indices(step)
        items = [_augment(self._fitted[i], _generator(self._seed, step, slot)) for slot, i in enumerate(indices)]
        share = len(indices) / self._batch
        return Batch(
            images=np.stack([image.transpose(2, 0, 1) for image, _, _ in items]),
            target=np.stack([target[None] for _, target, _ in items]).astype(np.float32) / np.float32(255),
            ignore=np.stack([ignore[None] for _, _, ignore in items]) > 0,
            weight=np.array([self._fitted[i].weight * share for i in indices], np.float32),
        )


def _augment(item: _Fitted, rng: np.random.Generator) -> tuple[NDArray[np.float32], Pixels, Pixels]:
    image, target, ignore = _move(item, rng)
    # every other image keeps its light: a short training that never sees plain ones learns too slowly
    lit = _relight(image, rng) if rng.random() < 0.5 else image.astype(np.float32) / np.float32(255)
    return lit, target, ignore


def _move(item: _Fitted, rng: np.random.Generator) -> tuple[Pixels, Pixels, Pixels]:
    """Flip, rotation ±10°, scale .8–1.25, shift ±8 %; what comes from outside is ignored."""
    height, width = item.target.shape
    angle, scale = rng.uniform(-10, 10), math.exp(rng.uniform(-0.22, 0.22))
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale), np.float64)
    matrix[:, 2] += rng.uniform(-0.08, 0.08, 2) * np.array([width, height])
    if rng.random() < 0.5:
        matrix[0] = -matrix[0] + (0, 0, width - 1)
    shape = (width, height)
    image = cv2.warpAffine(item.image, matrix, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    target = cv2.warpAffine(item.target, matrix, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    ignore = cv2.warpAffine(item.ignore, matrix, shape, flags=cv2.INTER_NEAREST, borderValue=1)  # type: ignore[call-overload]
    return image.astype(np.uint8), target.astype(np.uint8), ignore.astype(np.uint8)


def _relight(image: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gamma, gain .15–1.15, colour cast, less saturation, blur and noise; (H, W, 3) float32 in [0, 1]."""
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    cast = rng.uniform(0.88, 1.12, 3).astype(np.float32)
    table = ramp ** np.float32(math.exp(rng.uniform(-0.4, 0.4))) * np.float32(rng.uniform(0.15, 1.15)) * cast
    lit = cv2.LUT(image, table.reshape(1, 256, 3))
    if rng.random() < 0.3:
        keep = np.float32(rng.random())
        lit = keep * lit + (1 - keep) * lit.mean(axis=2, keepdims=True)
    if rng.random() < 0.2:
        lit = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.4, 1.4))
    strength = np.float32(rng.uniform(0, 0.05))
    noisy = lit + strength * rng.standard_normal(lit.shape, dtype=np.float32)
    return np.asarray(np.clip(noisy, 0, 1), np.float32)
