"""What a mask is for: the picture behind the person blurred, replaced or cut out.

```
mask ─▶ guided by the frame's luma ─▶ contrast ─▶ alpha ─┬─▶ frame × alpha + background × (1 - alpha)
frame ─▶ pixels that are no person, spread and blurred ──┘
```

Each frame is treated alone: a mask that flickers is seen to flicker. Letters: h and w rows and columns of a frame. An
alpha is (h, w) float32 in [0, 1], 1 is person. Lengths are shares of the frame's diagonal, so that a preview looks the
same at every size.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from students.data import Pixels, Size, resize

Effect = Literal["blur", "replace", "cutout", "mask"]
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)

Soft = NDArray[np.float32]

_FEW = 4.0  # a blur of more pixels than these is made at a lower resolution
_GUIDE_SIDE = 720  # the guided filter's coefficients are found at no more pixels along the longer side
_TINY = 1e-4
_DARK, _BRIGHT = 102, 153  # of the checkerboard


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectConfig:
    """How a mask is refined and a frame is composed.

    Attributes:
        blur: Standard deviation of the background's blur.
        guide: Radius within which the mask's outline follows that of the frame; 0 leaves the outline as it is.
        edge: Deviation of the luma, in [0, 1], from which a change counts as an outline.
        low: Where the guided mask is at most this, there is no person …
        high: … and where it is at least this, nothing else; between them alpha rises smoothly.
        margin: How far around the person pixels do not enter the blurred background.
        spread: How far the colours of the person's inside reach into its outline, against a rim of the old background.
    """

    blur: float = 0.02
    guide: float = 0.008
    edge: float = 0.04
    low: float = 0.25
    high: float = 0.75
    margin: float = 0.008
    spread: float = 0.012

    def __post_init__(self) -> None:
        for name, least, most in (
            ("blur", 0.001, 0.5),
            ("guide", 0, 0.1),
            ("edge", 0.001, 1),
            ("margin", 0, 0.1),
            ("spread", 0, 0.1),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"preview.{name} must be in [{least}, {most}], got {getattr(self, name)}")
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"preview.low and high must be in [0, 1] and rise, got {self.low} and {self.high}")


def apply(
    frame: Pixels, mask: Soft, effect: Effect, config: EffectConfig | None = None, background: Pixels | None = None
) -> Pixels:
    """One frame with an effect: (h, w, 3) uint8 RGB, a new array.

    Where the refined mask is 1 the frame is unchanged, bit for bit (but for "mask", which shows the alpha itself).

    Args:
        frame: (h, w, 3) uint8 RGB.
        mask: (h, w) float32 in [0, 1].
        effect: "blur" the background, "replace" it or "cutout" the person onto one (both alike: onto ``background``),
            or the "mask" as gray.
        config: Lengths and strengths.
        background: (h, w, 3) uint8 RGB for "replace" and "cutout"; as ``cover`` and ``plain`` make it.

    Raises:
        ValueError: If shapes or types do not belong together, or a background is missing.
    """
    config = config or EffectConfig()
    _check(frame, mask)
    alpha = refine(frame, mask, config)
    if effect == "mask":
        gray = np.rint(alpha * 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if effect == "blur":
        return composed(frame.astype(np.float32), blurred(frame, alpha, config), alpha)
    if effect not in EFFECTS:
        raise ValueError(f"effect must be one of {EFFECTS}, got {effect!r}")
    if background is None or background.shape != frame.shape or background.dtype != np.uint8:
        found = None if background is None else (background.shape, str(background.dtype))
        raise ValueError(f"effect {effect!r} needs a background {frame.shape} uint8, got {found}")
    return composed(foreground(frame, alpha, config), background.astype(np.float32), alpha)


def _check(frame: Pixels, mask: Soft) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or frame.dtype != np.uint8:
        raise ValueError(f"frame must be (h, w, 3) uint8 with h, w >= 1, got {frame.shape} {frame.dtype}")
    if mask.shape != frame.shape[:2] or mask.dtype != np.float32:
        raise ValueError(f"mask must be {frame.shape[:2]} float32, got {mask.shape} {mask.dtype}")
    if not (float(mask.min()) >= 0 and float(mask.max()) <= 1):
        raise ValueError(f"mask must lie in [0, 1], got {mask.min()} to {mask.max()}")


def composed(front: Soft, back: Soft, alpha: Soft) -> Pixels:
    """(h, w, 3) uint8: ``front`` where alpha is 1, ``back`` where it is 0; both (h, w, 3) float32 in [0, 255]."""
    mixed = back + alpha[:, :, None] * (front - back)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


# ── alpha ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def refine(frame: Pixels, mask: Soft, config: EffectConfig) -> Soft:
    """The alpha of a mask: (h, w) float32, its outline drawn to that of the frame, then sharpened.

    A student's mask comes from a small picture, so its outline is blurred over several pixels of the frame; within
    that width the guided filter moves it to where the luma changes. All 0 and all 1 stay what they are.

    Args:
        frame: (h, w, 3) uint8 RGB.
        mask: (h, w) float32 in [0, 1].
        config: Lengths and limits.
    """
    radius = round(config.guide * _diagonal(mask))
    if radius >= 1:
        luma = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)
        step = max(1, math.ceil(max(mask.shape) / _GUIDE_SIDE))
        mask = guided(luma, mask, radius, config.edge**2, min(step, radius))
    share = np.clip((mask - np.float32(config.low)) / np.float32(config.high - config.low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def guided(guide: Soft, values: Soft, radius: int, eps: float, step: int = 1) -> Soft:
    """The guided filter (He, Sun & Tang, ECCV 2010, eq. 5-8); with a step, the fast one (He & Sun, arXiv 1505.00996).

    In each window the output is a linear function of the guide that is nearest to the values; so its edges are the
    guide's.

    Args:
        guide: (h, w) float32.
        values: (h, w) float32.
        radius: Of the windows, >= 1, in pixels.
        eps: Variance of the guide below which a window is flat.
        step: The coefficients are found at 1/step of the resolution.

    Returns:
        (h, w) float32; not confined to the range of the values.
    """
    size = guide.shape[0], guide.shape[1]
    small = max(1, math.ceil(size[0] / step)), max(1, math.ceil(size[1] / step))
    side = 2 * max(1, round(radius / step)) + 1
    low, seen = (_resized(v, small) for v in (guide, values))
    mean, mean_seen = _box(low, side), _box(seen, side)
    slope = (_box(low * seen, side) - mean * mean_seen) / (_box(low * low, side) - mean * mean + np.float32(eps))
    offset = mean_seen - slope * mean
    slope, offset = (_resized(_box(v, side), size) for v in (slope, offset))
    return np.asarray(slope * guide + offset, np.float32)


def _box(values: NDArray[Any], side: int) -> Soft:
    """Means over squares; outside of the image its border goes on."""
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REPLICATE), np.float32).reshape(values.shape)


# ── background and foreground ─────────────────────────────────────────────────────────────────────────────────────


def blurred(frame: Pixels, alpha: Soft, config: EffectConfig) -> Soft:
    """The background without the person, blurred: (h, w, 3) float32 in [0, 255].

    Normalised convolution (Knutsson & Westin, CVPR 1993): blur of pixel × weight over blur of weight. The weight is 0
    at the person and a margin around it, so nothing of it enters. Where no background is near, the mean of all of it
    stands; of a frame that is all person, the frame's own.

    Args:
        frame: (h, w, 3) uint8 RGB.
        alpha: (h, w) float32 in [0, 1].
        config: Blur and margin.
    """
    size = alpha.shape[0], alpha.shape[1]
    deviation = config.blur * _diagonal(alpha)
    small = _reduced(size, deviation / _FEW)
    weight = 1 - _grown(alpha, round(config.margin * _diagonal(alpha)))
    pixels = _resized(frame.astype(np.float32) * weight[:, :, None], small)
    weights = _resized(weight, small)
    total = float(weights.sum(dtype=np.float64))
    mean = pixels.sum(axis=(0, 1), dtype=np.float64) / total if total > 0 else frame.mean(axis=(0, 1))
    deviation *= math.sqrt(small[0] * small[1] / (size[0] * size[1]))
    spread = _gauss(pixels, deviation) + _TINY * mean.astype(np.float32)
    return _resized(spread / (_gauss(weights, deviation) + np.float32(_TINY))[:, :, None], size)


def foreground(frame: Pixels, alpha: Soft, config: EffectConfig) -> Soft:
    """The person's own colours: (h, w, 3) float32 in [0, 255], free of the old background along the outline.

    A pixel of the outline is a mixture, so on a new background it would carry a rim of the old one. "Blur fusion"
    (Forte, ICIP 2021): F = F' + alpha (I - alpha F' - (1 - alpha) B'), where F' and B' are means of person and
    background around the pixel. Where alpha is 1 that is the frame.

    Args:
        frame: (h, w, 3) uint8 RGB.
        alpha: (h, w) float32 in [0, 1].
        config: Spread.
    """
    image = frame.astype(np.float32)
    radius = round(config.spread * _diagonal(alpha))
    if radius < 1:
        return image
    size, share = (alpha.shape[0], alpha.shape[1]), alpha[:, :, None]
    small = _reduced(size, radius / _FEW)
    side = 2 * max(1, round(radius * small[0] / size[0])) + 1
    seen, person, weight = (_resized(v, small) for v in (image, image * share, alpha))
    front = _resized(_mean(person, weight, seen, side), size)
    back = _resized(_mean(seen - person, 1 - weight, seen, side), size)
    own = front + share * (image - back - share * (front - back))
    return np.asarray(np.clip(own, 0, 255), np.float32)


def _mean(weighted: Soft, weight: Soft, otherwise: Soft, side: int) -> Soft:
    """Mean over squares of pixels that were multiplied by their weight; ``otherwise`` where nothing has weight."""
    tiny = np.float32(_TINY)
    pixels = _box(weighted, side) + tiny * otherwise
    return np.asarray(pixels / (_box(weight, side) + tiny)[:, :, None], np.float32)


def cover(picture: Pixels, size: Size) -> Pixels:
    """A picture (a, b, 3) uint8 over the whole of ``size`` (h, w): scaled to cover it and cut at its middle."""
    scale = max(size[0] / picture.shape[0], size[1] / picture.shape[1])
    rows, columns = (max(n, round(m * scale)) for n, m in zip(size, picture.shape[:2], strict=True))
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    scaled = _resized(picture, (rows, columns))
    return np.ascontiguousarray(scaled[top : top + size[0], left : left + size[1]])


def plain(colour: tuple[int, int, int], size: Size) -> Pixels:
    """(h, w, 3) uint8 of one colour."""
    return np.full((*size, 3), colour, np.uint8)


def checkerboard(size: Size) -> Pixels:
    """(h, w, 3) uint8: squares of two grays, about 32 along the diagonal; stands for what is transparent."""
    side = max(1, round(math.hypot(*size) / 32))
    rows, columns = (np.arange(n) // side for n in size)
    odd = (rows[:, None] + columns) % 2
    return np.repeat(np.where(odd == 1, _BRIGHT, _DARK).astype(np.uint8)[:, :, None], 3, axis=2)


# ── pixels ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _diagonal(values: NDArray[Any]) -> float:
    return math.hypot(values.shape[0], values.shape[1])


def _reduced(size: Size, factor: float) -> Size:
    factor = max(1.0, factor)
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


def _resized(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """As ``students.data.resize``, and nothing where the size is the same."""
    return values if values.shape[:2] == size else resize(values, size)


def _gauss(values: NDArray[Any], deviation: float) -> Soft:
    side = 2 * max(1, math.ceil(3 * deviation)) + 1
    made = cv2.GaussianBlur(values, (side, side), deviation, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(made, np.float32).reshape(values.shape)


def _grown(alpha: Soft, reach: int) -> Soft:
    """Dilated by a disk, wherever there is a trace of person."""
    person = (alpha > 0).astype(np.uint8)
    if reach >= 1:
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        person = np.asarray(cv2.dilate(person, brush), np.uint8).reshape(alpha.shape)
    return person.astype(np.float32)
