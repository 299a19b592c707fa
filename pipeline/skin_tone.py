"""Apparent skin tone of a picture: the individual typology angle (ITA) of the skin pixels inside a mask.

ITA = atan2(L* - 50, b*) in degrees (Chardon, Cretois & Hourseau, Int. J. Cosmetic Science 1991), in the six bins of
Del Bino & Bernerd (British J. of Dermatology 2013), joined two by two as the taxonomy joins Fitzpatrick's types:
light above 41, medium above 10, dark below.

A photograph is no colorimeter. Exposure, shade and the colour of the light move ITA by tens of degrees, so the same
person is `light` in one frame and `medium` in another. A class says how skin is *shown*, with a confidence that
assumes such a spread. It serves to see which appearances a data set covers; it never enters training and is no
statement about a person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CLASSES: Final = ("light", "medium", "dark")
EDGES: Final = (41.0, 10.0)
"""Degrees of ITA above which skin is light, and medium."""

LIGHT_SPREAD: Final = 18.0
"""Degrees: standard deviation of ITA that we allow for unknown light.

Set by eye on photographs: well lit dark faces have 5 to 10, and pale faces in the shade have the same.
"""

HAIR_STEP: Final = 18.0
"""Difference of lightness between two groups of pixels of a head from which they are skin and something else."""

LEAST_CONFIDENCE: Final = 0.4
"""Below it nothing is said; the best of three classes has at least a third."""

LEAST_PIXELS: Final = 40
"""Skin pixels below which nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tone:
    """What skin pixels tell.

    Attributes:
        ita: median ITA in degrees.
        spread: half the distance of its 16th and 84th percentile, in degrees.
        pixels: how many skin pixels.
    """

    ita: float
    spread: float
    pixels: int


def skin(pixels: NDArray[np.uint8], lab: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels of the hue and chroma of skin of any tone, neither clipped nor too dark to have a colour.

    Chroma may be smaller the darker the skin is, so it is bounded as a part of lightness. Wood, sand and brown hair
    pass as well: choose pixels of a head, or of a person.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        lab: the same in CIELAB.

    Returns:
        (h, w) bool.
    """
    lightness, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    brightest = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    good = (brightest < 250) & (lightness > 12) & (lightness < 95)
    hue = (b > 0.35 * a) & (b < 5.5 * a) & (a > 1.5)
    chroma = a * a + b * b
    found: NDArray[np.bool_] = good & hue & (chroma > (0.1 * lightness + 2) ** 2) & (chroma < 52 * 52)
    return found


def tone_of(lab: NDArray[np.float32], where: NDArray[np.bool_]) -> Tone | None:
    """The tone of chosen skin pixels; None where they are too few.

    Args:
        lab: (h, w, 3) float32 CIELAB.
        where: (h, w) bool.
    """
    chosen = lab[where].astype(np.float64)
    if len(chosen) < LEAST_PIXELS:
        return None
    lit = chosen[chosen[:, 0] >= _hair_below(chosen[:, 0])]
    ita = np.degrees(np.arctan2(lit[:, 0] - 50, lit[:, 2]))
    low, middle, high = np.percentile(ita, [16, 50, 84])
    return Tone(ita=float(middle), spread=float((high - low) / 2), pixels=len(lit))


def _hair_below(lightness: NDArray[np.float64]) -> float:
    """The lightness that parts brown hair from skin; a quarter of the pixels (brows, shadow) where nothing parts them.

    It is Otsu's threshold (IEEE Trans. SMC 1979), where the means on its sides are far enough apart.
    """
    counts = np.bincount(np.clip(lightness, 0, 99).astype(np.int64), minlength=100).astype(np.float64)
    level = np.arange(100) + 0.5
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * level)[:-1]
    above, rest = counts.sum() - below, (counts * level).sum() - mass
    low, high = mass / np.maximum(below, 1), rest / np.maximum(above, 1)
    cut = int(np.argmax(below * above * (high - low) ** 2))
    parted = high[cut] - low[cut] >= HAIR_STEP and above[cut] >= 0.2 * len(lightness)
    return float(cut + 1) if parted else float(np.percentile(lightness, 25))


def tone_class(tone: Tone | None) -> tuple[str | None, float | None]:
    """The class of a tone and its confidence; (None, None) below ``LEAST_CONFIDENCE``.

    The confidence is the probability that ITA lies within the bin, were it normal around the median with the spread of
    the light and that of the pixels, times n / (n + 40) for n pixels.
    """
    if tone is None:
        return None, None
    sigma = math.hypot(LIGHT_SPREAD, tone.spread / 2)
    light, medium = (0.5 * math.erfc((edge - tone.ita) / (sigma * math.sqrt(2))) for edge in EDGES)
    share = dict(zip(CLASSES, (light, medium - light, 1 - medium), strict=True))
    best = max(share, key=share.__getitem__)
    confidence = share[best] * tone.pixels / (tone.pixels + LEAST_PIXELS)
    return (best, confidence) if confidence >= LEAST_CONFIDENCE else (None, None)
