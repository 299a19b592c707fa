"""From encoded samples to training tensors: decoding, one geometric warp, light, damage, priors, batches.

Letters: B batch, K samples whose prior is the network's own, H and W the sides of a view, h and w an image's own.

```
JPEG ─ decode (1/1, 1/2, 1/4, 1/8) ─ area average ─┐
                                                   ├─ warp ─ light ─ damage ─ erase ─▶ image
mask ─ decode ──────────────────────── area average ┘    └──────▶ target, ignore ─▶ prior
```

Places are (x, y) in continuous pixels: the first pixel of an image covers [0, 1], whatever its resolution. So an image
that was decoded at a part of its size, and its mask that was not, still move together.
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.image import ImageError, decode_mask_file, upright_size
from manifests.labelled import Labelled, LabelledError
from manifests.mask import encode_mask
from students.data import Pixels, Size, fitted_size
from students.decoding import LIMITS, decode_plane, decode_reduced
from students.prior import (
    Kind,
    Network,
    PriorConfig,
    Soft,
    draw_prior,
    moved,
    nearest_valid,
    network_input,
    own_prior,
    still_motion,
)
from students.yuv import RGB_TO_YUV

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class SampleError(ValueError):
    """A sample that cannot be decoded, or whose parts differ in size; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A labelled image as it lies in a shard or a labelled folder.

    Attributes:
        name: What errors call it.
        image: A file of a JPEG, PNG, WebP or GIF; its EXIF orientation is applied, as everywhere in the house.
        mask: A gray PNG of 1 or 8 bits, 0 background and 1 or 255 person, of the upright image.
        ignore: Likewise, 1 or 255 where pixels have no say; None for none.
        height: Of the upright image and of both masks.
        width: Likewise.
        weight: Factor of its loss, >= 0.
        gold: Whether a human drew the label.
    """

    name: str
    image: bytes
    mask: bytes
    ignore: bytes | None
    height: int
    width: int
    weight: float = 1.0
    gold: bool = False

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"sample {self.name!r}: height and width must be >= 1, got {self.height}x{self.width}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"sample {self.name!r}: weight must be finite and >= 0, got {self.weight}")

    @classmethod
    def from_labelled(cls, labelled: Labelled, *, weight: float = 1.0, gold: bool = False) -> "Encoded":
        """The sample of a labelled folder; its masks of any kind (palette, soft, turned) become plain ones here.

        Raises:
            LabelledError: If a mask or the image's header is broken, or sizes differ. The image itself is decoded, and
                a broken one refused, by the views.
        """
        current = labelled.image
        try:
            image = current.read_bytes()
            size = upright_size(io.BytesIO(image), LIMITS)
            planes = []
            for current in (labelled.mask, labelled.ignore or labelled.mask):
                planes.append(decode_mask_file(current.read_bytes(), LIMITS).mask)
        except ImageError as error:
            raise LabelledError(f"{str(current)!r}: {error.kind}: {error}; replace or remove the file") from error
        if any(plane.shape != size for plane in planes):
            sizes = ", ".join(str(plane.shape) for plane in planes)
            raise LabelledError(f"{labelled.name!r}: masks must have the image's upright size {size}, got {sizes}")
        mask, ignore = (encode_mask(plane) for plane in planes)
        return cls(
            name=labelled.name, image=image, mask=mask, ignore=ignore if labelled.ignore else None,
            height=size[0], width=size[1], weight=weight, gold=gold,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """How far a view may differ from its image. ``ViewConfig.plain()`` changes nothing.

    Strengths of light are greatest values of |log| or of the difference; draws are uniform, so their middle is the
    image itself. Levels are shares of full white.

    Attributes:
        zoom_low: Smallest scale against the fitted image; scales are drawn log-uniformly.
        zoom_high: Largest scale.
        aspect: |log| of how much wider than high it becomes.
        turn: Angle, in degrees.
        shift: Share of each side, besides the room that a scale leaves or takes.
        flip: Probability of a mirror image.
        gain: |log| of the exposure.
        contrast: |log| of the contrast about the image's mean level.
        gamma: |log| of the exponent.
        brightness: Level added.
        cast: |log| of each colour's own gain.
        saturation: Difference of the saturation from 1.
        grey: Probability of no colour at all.
        low_light: Probability of little light: darker, and noisier.
        darkest: Smallest factor of little light; the largest is .6.
        noise: Probability of noise.
        noise_level: Its greatest standard deviation, as a level.
        blur: Probability of a Gaussian blur.
        blur_sigma: Its greatest sigma, in pixels of the view.
        jpeg: Probability of a JPEG's artefacts.
        jpeg_quality: Its lowest quality; the highest is 90.
        strong: In a strong view, what the strengths of light and the probabilities of damage are multiplied by.
        erase: In a strong view, probability that parts are erased.
        erase_parts: Most such parts, rectangles and ellipses of a colour or of noise.
        erase_side: Their largest extent, as a share of each side.
    """

    zoom_low: float = 0.6
    zoom_high: float = 1.6
    aspect: float = 0.1
    turn: float = 10.0
    shift: float = 0.08
    flip: float = 0.5
    gain: float = 0.35
    contrast: float = 0.25
    gamma: float = 0.35
    brightness: float = 0.08
    cast: float = 0.12
    saturation: float = 0.4
    grey: float = 0.04
    low_light: float = 0.08
    darkest: float = 0.15
    noise: float = 0.15
    noise_level: float = 0.06
    blur: float = 0.1
    blur_sigma: float = 1.5
    jpeg: float = 0.15
    jpeg_quality: int = 25
    strong: float = 1.8
    erase: float = 0.7
    erase_parts: int = 3
    erase_side: float = 0.35

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("flip", "grey", "low_light", "noise", "blur", "jpeg", "erase"), (0.0, 1.0))
        ranges |= dict.fromkeys(("aspect", "shift", "brightness", "saturation", "cast", "noise_level"), (0.0, 1.0))
        ranges |= dict.fromkeys(("gain", "contrast", "gamma"), (0.0, 2.0))
        ranges |= {"turn": (0.0, 180.0), "darkest": (0.01, 0.6), "blur_sigma": (0.0, 10.0), "jpeg_quality": (1, 90)}
        ranges |= {"zoom_low": (0.1, self.zoom_high), "zoom_high": (self.zoom_low, 10.0), "strong": (1.0, 10.0)}
        ranges |= {"erase_parts": (1, 100), "erase_side": (0.0, 1.0)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"view.{name} must be in [{low:g}, {high:g}], got {getattr(self, name)}")

    @classmethod
    def plain(cls) -> "ViewConfig":
        """A config that changes nothing: scale 1, strengths and probabilities 0."""
        still = dict.fromkeys(("aspect", "turn", "shift", "gain", "contrast", "gamma", "brightness", "cast"), 0.0)
        still |= dict.fromkeys(("flip", "saturation", "grey", "low_light", "noise", "blur", "jpeg", "erase"), 0.0)
        return cls(zoom_low=1.0, zoom_high=1.0, **still)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """A sample at a bucket's size.

    Attributes:
        image: (H, W, 3) uint8 RGB; what lies outside of the image repeats its border.
        target: (H, W) uint8, 255 times the share of person; it repeats its border too.
        ignore: (H, W) bool: outside, ignored or erased.
        prior: (H, W) float32 in [0, 1], the previous mask; None where none was asked for. Of kind "own" it is the one
            that the network gets with ``previous``.
        kind: Of the prior, or None.
        previous: (H, W, 3) uint8, the supposed earlier frame; of kind "own" alone.
        sources: (H, W) int64, ``nearest_valid`` of what lies inside of the image; of kind "own" alone.
    """

    image: Pixels
    target: Pixels
    ignore: Bools
    prior: Soft | None = None
    kind: Kind | None = None
    previous: Pixels | None = None
    sources: NDArray[np.int64] | None = None


def draw_view(
    sample: Encoded,
    size: Size,
    config: ViewConfig,
    rng: np.random.Generator,
    *,
    strong: bool = False,
    prior: PriorConfig | None = None,
) -> View:
    """A view of a sample with a random place, look and previous mask; a function of the arguments.

    The prior is drawn last: the image is the same without one. Erased parts stay in the target, but have no say (strong
    views: Sohn et al., FixMatch, 2020; erasing: DeVries and Taylor, Cutout, 2017).

    Args:
        sample: What is seen.
        size: (H, W).
        config: Strengths.
        rng: Random numbers.
        strong: Whether light and damage are stronger, and parts erased: for pseudo labels.
        prior: Of a network that is given the previous mask; None for others.

    Raises:
        SampleError: If the sample cannot be decoded, or its parts have other sizes than it states.
    """
    view, outside = _placed(sample, size, _draw_geometry(sample, size, config, rng))
    factor = config.strong if strong else 1.0
    image = _damaged(_relit(view.image, config, factor, rng), config, factor, rng)
    ignore = view.ignore
    if strong and rng.random() < config.erase:
        image, erased = _erased(image, config, rng)
        ignore = ignore | erased
    view = replace(view, image=image, ignore=ignore)
    return view if prior is None else _with_prior(view, ~outside, prior, rng)


def plain_view(sample: Encoded, size: Size) -> View:
    """The sample fitted to (H, W) as ``students.data.fit_image`` does, without a prior.

    Raises:
        SampleError: As ``draw_view``.
    """
    return _placed(sample, size, _fitted(sample, size))[0]


# ── geometry ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Geometry:
    """Where a place (x, y) of the upright image goes: linear · (x, y) + offset; (2, 2) and (2,) float64."""

    linear: Floats
    offset: Floats

    @property
    def scale(self) -> tuple[float, float]:
        """How much longer the image's columns and rows become."""
        return float(np.hypot(*self.linear[:, 1])), float(np.hypot(*self.linear[:, 0]))


def _fitted(sample: Encoded, size: Size) -> _Geometry:
    height, width = fitted_size(sample.height, sample.width, size)
    return _Geometry(linear=np.diag([width / sample.width, height / sample.height]), offset=np.zeros(2))


def _draw_geometry(sample: Encoded, size: Size, config: ViewConfig, rng: np.random.Generator) -> _Geometry:
    """The fitted image, mirrored, scaled and turned about its middle, and shifted."""
    zoom = math.exp(rng.uniform(math.log(config.zoom_low), math.log(config.zoom_high)))
    stretch = math.exp(rng.uniform(-1, 1) * config.aspect / 2)
    angle = math.radians(rng.uniform(-1, 1) * config.turn)
    way = rng.uniform(-1, 1, 2)
    mirror = -1 if rng.random() < config.flip else 1
    fitted = _fitted(sample, size)
    inside = fitted.linear @ (sample.width, sample.height)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    change = turn @ np.diag([mirror * zoom * stretch, zoom / stretch])
    shift = way * (config.shift * np.array(size[::-1]) + abs(zoom - 1) / 2 * inside)
    return _Geometry(linear=change @ fitted.linear, offset=inside / 2 - change @ inside / 2 + shift)


@contextmanager
def naming(sample: Encoded) -> Iterator[None]:
    """Makes what cannot be decoded inside a `SampleError` that names the sample."""
    try:
        yield
    except ValueError as error:
        raise SampleError(f"sample {sample.name!r}: {error}; make its shard or folder anew") from error


def _placed(sample: Encoded, size: Size, geometry: _Geometry) -> tuple[View, Bools]:
    """The view in its own light, and (H, W) bool: what lies outside of the image."""
    own = sample.height, sample.width
    with naming(sample):
        image, cover = decode_reduced(sample.image, own, max(geometry.scale))
        mask = decode_plane(sample.mask, own)
        ignored = None if sample.ignore is None else decode_plane(sample.ignore, own)
    outside = _outside(own, size, geometry)
    ignore = outside
    if ignored is not None:
        ignore = outside | (_warped(ignored.astype(np.float32), own, size, geometry) > 0)
    image, target = _warped(image, cover, size, geometry), _warped(mask * np.uint8(255), own, size, geometry)
    return View(image=image, target=target, ignore=ignore), outside


def _warped(plane: NDArray[Any], cover: Size, size: Size, geometry: _Geometry) -> NDArray[Any]:
    """A plane that covers (h, w) of the upright image, on the canvas: averaged where it shrinks, then one warp."""
    # No larger than it will be, so that the warp skips no pixel.
    shrunk = tuple(min(plane.shape[i], max(1, round(cover[i] * geometry.scale[i]))) for i in range(2))
    if shrunk != plane.shape[:2]:
        plane = cv2.resize(plane, shrunk[::-1], interpolation=cv2.INTER_AREA)
    linear = geometry.linear @ np.diag([cover[1] / shrunk[1], cover[0] / shrunk[0]])
    # OpenCV counts from the middle of the first pixel.
    matrix = np.column_stack([linear, linear @ (0.5, 0.5) + geometry.offset - 0.5])
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(plane, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=border))


def _outside(own: Size, size: Size, geometry: _Geometry) -> Bools:
    """(H, W) bool: pixels whose middle lies outside of the image."""
    back = np.linalg.inv(geometry.linear)
    columns, rows = np.arange(size[1]) + 0.5 - geometry.offset[0], np.arange(size[0]) + 0.5 - geometry.offset[1]
    x = (back[0, 0] * columns)[None] + (back[0, 1] * rows)[:, None]
    y = (back[1, 0] * columns)[None] + (back[1, 1] * rows)[:, None]
    return np.asarray((x < 0) | (x > own[1]) | (y < 0) | (y > own[0]), np.bool_)


# ── light and damage ──────────────────────────────────────────────────────────────────────────────────────────────


def _relit(image: Pixels, config: ViewConfig, factor: float, rng: np.random.Generator) -> Pixels:
    """Gamma, exposure and cast, contrast and brightness as one table of 256 levels; then saturation."""
    strengths = config.gamma, config.gain, config.contrast, config.brightness, config.saturation
    gamma, gain, contrast, brightness, saturation = factor * rng.uniform(-1, 1, 5) * strengths
    cast = np.exp(gain + factor * rng.uniform(-1, 1, 3) * config.cast)
    levels = np.append(np.arange(256), np.mean(cv2.mean(image)[:3]))[:, None]
    table = (levels / 255) ** math.exp(gamma) * cast
    table = (table - table[256]) * math.exp(contrast) + table[256] + brightness
    table = np.rint(255 * np.clip(table[:256], 0, 1)).astype(np.uint8)
    lit = cv2.LUT(image, table.reshape(1, 256, 3))
    keep = 0.0 if rng.random() < factor * config.grey else max(0.0, 1 + saturation)
    if keep != 1:
        lit = cv2.transform(lit, keep * np.eye(3) + (1 - keep) * RGB_TO_YUV[:1])
    return np.asarray(lit, np.uint8)


def _damaged(image: Pixels, config: ViewConfig, factor: float, rng: np.random.Generator) -> Pixels:
    """What lens, sensor and coder do, in this order."""
    chances = factor * np.array([config.blur, config.low_light, config.noise, config.jpeg])
    blur, dark, noise, jpeg = (rng.random(4) < chances).tolist()
    if blur and config.blur_sigma > 0:
        sigma = rng.uniform(0.2, 1) * config.blur_sigma
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if dark or noise:
        light = rng.uniform(config.darkest, 0.6) if dark else 1.0
        grains = rng.standard_normal(image.shape, dtype=np.float32)
        grains *= np.float32(255 * rng.random() * config.noise_level)
        grains += image * np.float32(light)
        image = np.rint(np.clip(grains, 0, 255, out=grains), out=grains).astype(np.uint8)
    if jpeg:
        quality = int(rng.integers(config.jpeg_quality, 91))
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    return image


def _erased(image: Pixels, config: ViewConfig, rng: np.random.Generator) -> tuple[Pixels, Bools]:
    """A copy with parts under a colour or noise, and (H, W) bool: where."""
    image, size = image.copy(), np.array(image.shape[1::-1])
    erased = np.zeros(image.shape[:2], np.bool_)
    for _ in range(rng.integers(1, config.erase_parts + 1)):
        middle, part = rng.integers(0, size), np.zeros(image.shape[:2], np.uint8)
        reach = np.maximum(1, rng.uniform(0.25, 1, 2) * config.erase_side * size / 2).astype(int)
        if rng.random() < 0.5:
            cv2.rectangle(part, (middle - reach).tolist(), (middle + reach - 1).tolist(), (1,), -1)
        else:
            cv2.ellipse(part, middle.tolist(), reach.tolist(), rng.uniform(0, 180), 0, 360, (1,), -1)
        where, plain = part > 0, rng.random() < 0.5
        image[where] = rng.integers(0, 256, (1 if plain else int(where.sum()), 3), np.uint8)
        erased |= where
    return image, erased


# ── priors and batches ────────────────────────────────────────────────────────────────────────────────────────────


def _with_prior(view: View, inside: Bools, config: PriorConfig, rng: np.random.Generator) -> View:
    mask = view.target.astype(np.float32) / np.float32(255)
    motion = still_motion(mask.shape[0], mask.shape[1], config, rng)
    drawn = draw_prior(mask, config, rng, earlier=moved(mask, motion))
    view = replace(view, prior=drawn.mask, kind=drawn.kind)
    if drawn.kind != "own":
        return view
    return replace(view, previous=moved(view.image, motion), sources=nearest_valid(inside))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainBatch:
    """Views of one size as tensors.

    Attributes:
        images: (B, 3, H, W) uint8 RGB.
        target: (B, 1, H, W) float32 in [0, 1].
        ignore: (B, 1, H, W) bool.
        weight: (B,) float32.
        prior: (B, 1, H, W) float32 in [0, 1], or None; in the rows ``own`` that of the previous frame.
        own: (K,) int64, rows whose prior is the network's own mask of ``previous``.
        previous: (K, 3, H, W) uint8 RGB.
        sources: (K, 1, H, W) int64, as ``own_prior`` takes them.
    """

    images: Tensor
    target: Tensor
    ignore: Tensor
    weight: Tensor
    prior: Tensor | None
    own: Tensor
    previous: Tensor
    sources: Tensor

    def to(self, device: torch.device | str) -> "TrainBatch":
        """The batch on another device; from pinned memory the copy does not wait."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        placed = {k: v.to(device, non_blocking=True) for k, v in fields.items() if v is not None}
        return TrainBatch(**(fields | placed))


def collate(views: Sequence[View], weights: Sequence[float]) -> TrainBatch:
    """The batch of views of one size; images are in the channels-last memory format.

    Args:
        views: B >= 1 views, all with a prior or all without.
        weights: B factors of their losses.

    Raises:
        ValueError: If there is no view, sizes or counts differ, or some alone have a prior.
    """
    sizes = sorted({view.target.shape for view in views})
    if len(sizes) != 1 or len(weights) != len(views):
        counts = f"{len(views)} views, {len(weights)} weights, sizes {sizes}"
        raise ValueError(f"a batch must have at least 1 view, one size and a weight for each, got {counts}")
    priors = [view.prior for view in views if view.prior is not None]
    if len(priors) not in (0, len(views)):
        raise ValueError(f"all views of a batch must have a prior, or none; got {len(priors)} of {len(views)}")
    own = [i for i, view in enumerate(views) if view.kind == "own"]
    height, width = sizes[0]
    previous = np.array([views[i].previous for i in own], np.uint8).reshape(-1, height, width, 3)
    sources = np.array([views[i].sources for i in own], np.int64).reshape(-1, 1, height, width)
    return TrainBatch(
        images=_channels_first(np.stack([view.image for view in views])),
        target=torch.from_numpy(np.stack([view.target for view in views])[:, None]).float() / 255,
        ignore=torch.from_numpy(np.stack([view.ignore for view in views])[:, None]),
        weight=torch.tensor(weights, dtype=torch.float32),
        prior=torch.from_numpy(np.stack(priors)[:, None]) if priors else None,
        own=torch.tensor(own, dtype=torch.int64),
        previous=_channels_first(previous),
        sources=torch.from_numpy(sources),
    )


def _channels_first(images: Pixels) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def network_images(batch: TrainBatch, model: Network, in_channels: int) -> Tensor:
    """What the network sees: (B, 3, H, W) float32 RGB in [0, 1], or (B, 4, H, W) as ``network_input`` makes it.

    With 4 channels the network first runs on the previous frames of the rows ``own``, as ``own_prior`` says.

    Args:
        batch: On the network's device.
        model: (K, 4, H, W) to logits (K, 1, H, W); not called with 3 channels.
        in_channels: 3 or 4.

    Raises:
        ValueError: If ``in_channels`` is another number, or 4 and the batch has no priors.
    """
    if in_channels == 3:
        return batch.images.float() / 255
    if in_channels != 4 or batch.prior is None:
        has = "no priors" if batch.prior is None else "priors"
        raise ValueError(f"in_channels must be 3, or 4 with priors in the batch; got {in_channels} and {has}")
    prior = batch.prior
    if len(batch.own):
        seen = own_prior(model, batch.previous, prior[batch.own], batch.sources)
        prior = prior.index_copy(0, batch.own, seen)
    return network_input(batch.images, prior)
