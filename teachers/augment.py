"""Training crops: geometry, light and damage, each drawn from a generator that is given.

A label is (H, W) uint8: 0 background, 1 person, 255 ignored. Images are (H, W, 3) uint8 RGB.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from teachers.points import IGNORE

Image = NDArray[np.uint8]
Label = NDArray[np.uint8]

#: Fills what lies outside an image; the mean that the network subtracts, so 0 to it.
FILL = (124, 116, 104)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How crops are drawn.

    Attributes:
        crop: Side of the square crop; a multiple of 32.
        short_side: Shorter edge of the image at scale 1.
        scale_low: Smallest scale; scales are drawn log-uniformly.
        scale_high: Largest scale.
        aspect: The width is also multiplied by up to this factor or its inverse.
        degrees: Largest rotation.
        light: Strength of brightness, contrast, gamma and colour in [0, 1]; 0 leaves light alone.
        damage: Probability of each of blur, JPEG and low light, in [0, 1].
    """

    crop: int = 128
    short_side: int = 128
    scale_low: float = 0.6
    scale_high: float = 1.6
    aspect: float = 1.15
    degrees: float = 8.0
    light: float = 0.5
    damage: float = 0.15

    def __post_init__(self) -> None:
        """Check every value."""
        if self.crop < 32 or self.crop % 32:
            raise ValueError(f"augment.crop must be a multiple of 32, got {self.crop}")
        if self.short_side < 8:
            raise ValueError(f"augment.short_side must be >= 8, got {self.short_side}")
        if not 0 < self.scale_low <= self.scale_high:
            raise ValueError(f"augment.scale_low must be in (0, {self.scale_high}], got {self.scale_low}")
        if self.aspect < 1:
            raise ValueError(f"augment.aspect must be >= 1, got {self.aspect}")
        if not (0 <= self.light <= 1 and 0 <= self.damage <= 1):
            raise ValueError(f"augment.light and damage must be in [0, 1], got {self.light} and {self.damage}")


def draw_crop(image: Image, label: Label, config: AugmentConfig, rng: np.random.Generator) -> tuple[Image, Label]:
    """A random crop with a random look.

    Returns:
        Image (crop, crop, 3) uint8 and label (crop, crop) uint8; what lies outside the image is `FILL`, ignored.
    """
    image, label = _geometry(image, label, config, rng)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image = _light(np.ascontiguousarray(image), config.light, rng)
    return _damage(image, config.damage, rng), np.ascontiguousarray(label)


def shrink(image: Image, label: Label, short_side: int) -> tuple[Image, Label]:
    """Bring the shorter edge down to `short_side`, averaging areas; smaller images stay as they are.

    A label's pixel is a person where at least half of its area is, and ignored where any of it is.
    """
    height, width = label.shape
    scale = short_side / min(height, width)
    if scale >= 1:
        return image, label
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return small, _shrink_label(label, size)


def _shrink_label(label: Label, size: tuple[int, int]) -> Label:
    person = cv2.resize((label == 1).astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    ignored = cv2.resize((label == IGNORE).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    return np.where(ignored, IGNORE, person).astype(np.uint8)


def _geometry(image: Image, label: Label, config: AugmentConfig, rng: np.random.Generator) -> tuple[Image, Label]:
    """Scale, stretch, rotate and cut in one warp, after averaging areas where the image is made smaller."""
    low, high = np.log(config.scale_low), np.log(config.scale_high)
    side = config.short_side * float(np.exp(rng.uniform(low, high)))
    stretch = float(np.exp(rng.uniform(-1, 1) * np.log(config.aspect)))
    image, label = shrink(image, label, max(1, round(side)))
    height, width = label.shape
    scale = side / min(height, width)
    x_scale, y_scale = scale * stretch, scale
    angle = np.deg2rad(rng.uniform(-config.degrees, config.degrees))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([x_scale, y_scale])
    centre = np.array([_start(width * x_scale, config.crop, rng), _start(height * y_scale, config.crop, rng)])
    offset = config.crop / 2 - turn @ centre
    # Pixel centres lie at half integers: x' = A (x + 1/2) + b - 1/2.
    matrix = np.column_stack([linear, linear @ [0.5, 0.5] + offset - 0.5])
    size = (config.crop, config.crop)
    warped = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT,
                            borderValue=FILL)  # fmt: skip
    marked = cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT,
                            borderValue=(IGNORE,))  # fmt: skip
    return np.asarray(warped, dtype=np.uint8), np.asarray(marked, dtype=np.uint8)


def _start(length: float, crop: int, rng: np.random.Generator) -> float:
    """Where the crop's centre falls on an edge of this length; the whole edge is inside when it fits."""
    slack = (length - crop) / 2
    return length / 2 + rng.uniform(-1, 1) * abs(slack)


def _light(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Gain per channel, contrast, brightness and gamma as one table of 256 values, then saturation."""
    if strength == 0:
        return image
    gain = np.exp(rng.uniform(-0.3, 0.3, size=3) * strength) * np.exp(rng.uniform(-0.8, 0.8) * strength)
    gamma = np.exp(rng.uniform(-0.7, 0.7) * strength)
    shift = rng.uniform(-0.3, 0.3) * strength
    saturation = rng.uniform(1 - strength, 1 + strength) if rng.random() > 0.1 * strength else 0.0
    ramp = np.arange(256)[:, None] / 255.0
    table = np.clip(255 * ((ramp**gamma - 0.5) * gain + 0.5 + shift), 0, 255)
    lit = np.asarray(cv2.LUT(image, np.round(table).astype(np.uint8).reshape(1, 256, 3)), dtype=np.float32)
    grey = lit.mean(axis=2, keepdims=True)
    tinted: Image = np.clip(np.round(grey + (lit - grey) * np.float32(saturation)), 0, 255).astype(np.uint8)
    return tinted


def _damage(image: Image, probability: float, rng: np.random.Generator) -> Image:
    if rng.random() < probability:
        image = _darken(image, rng)
    if rng.random() < probability:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6)), dtype=np.uint8)
    if rng.random() < probability:
        image = _compress(image, int(rng.integers(20, 80)))
    return image


def _darken(image: Image, rng: np.random.Generator) -> Image:
    """Low light: fewer photons, so less signal and more noise."""
    dim = image.astype(np.float32) * np.float32(rng.uniform(0.15, 0.6))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 10))
    return np.clip(np.round(dim + noise), 0, 255).astype(np.uint8)


def _compress(image: Image, quality: int) -> Image:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[:, :, ::-1]).astype(np.uint8)
