"""Whether a teacher's probabilities can be believed, and the one number that mends them.

A temperature T > 0 divides the log-odds z = log(p / (1 - p)) of every pixel (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017, section 4.2; Platt scaling without its shift): p' = sigmoid(z / T). T > 1 makes a teacher
less sure, T < 1 surer; the mask p >= 0.5 never changes.

A fold is not kept in memory but counted, per truth, over fine bins of z:

    background  |######:. .                    .|
    person      |.                 .  . .:######|
               -16              z = 0           16

Log-odds end at +-16, 1.1e-7 from certainty: float32 knows no p above it but 1 itself, and a wrong pixel then costs
16 nats instead of infinitely many. Bins are 1/512 wide, with one centred on 0, so that a pixel is counted at most
1/1024 from its own log-odds and 2.5e-4 from its own probability, less than a fold of photographs can tell apart.
"""

import io
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from evaluation.masks import check_mask, check_pair

#: Log-odds are cut at +-LIMIT.
LIMIT = 16.0
#: Bins of log-odds, centred on every 1/512 of [-LIMIT, LIMIT].
BINS = 2**14 + 1
#: What one image weighs in a `Histogram`; whole numbers add up to the same sum in every order.
IMAGE = 2**36
#: The temperatures that `fit_temperature` may return: beyond them, it is the fold that is too small or too easy.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
#: Bins of a reliability diagram, of equal width.
RELIABILITY_BINS = 15

_BLOCK = 2**18  # pixels worked on at a time: a block stays in the cache and float64 does not double a large image
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))
_CENTRES = np.linspace(-LIMIT, LIMIT, BINS)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Histogram:
    """What a teacher said of the pixels of some images, and what they were.

    Every image weighs the same, `IMAGE`, shared by its counted pixels: scores of masks are means over images too, and
    a picture of 0.1 megapixels says as much about a teacher as one of 12. Background is nearly all of the weight in
    most images, as it is in use.

    Attributes:
        person: (BINS,) int64, the weight of the pixels of a person by log-odds.
        background: (BINS,) int64, that of the others.
        images: How many images are counted, those without a counted pixel left out.
    """

    person: NDArray[np.int64]
    background: NDArray[np.int64]
    images: int

    def __post_init__(self) -> None:
        """Check that these are weights."""
        for name in ("person", "background"):
            weights = getattr(self, name)
            if weights.shape != (BINS,) or weights.dtype != np.int64 or weights.min() < 0:
                raise ValueError(f"histogram.{name} must be ({BINS},) int64 >= 0, got {weights.shape} {weights.dtype}")

    def __add__(self, other: "Histogram") -> "Histogram":
        """The histogram of both; exact, so neither order nor grouping matters."""
        return Histogram(
            person=self.person + other.person,
            background=self.background + other.background,
            images=self.images + other.images,
        )


def empty() -> Histogram:
    """The histogram of no image."""
    return Histogram(person=np.zeros(BINS, np.int64), background=np.zeros(BINS, np.int64), images=0)


def count(
    probability: NDArray[np.float32], truth: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> Histogram:
    """The histogram of one image.

    Args:
        probability: (H, W) float32 in [0, 1], that of a person.
        truth: (H, W) bool.
        ignore: (H, W) bool, pixels that do not count, or None; an image without any other gives `empty()`.

    Raises:
        ValueError: The shapes differ, a mask is no mask, or a probability is not in [0, 1].
    """
    check_mask(truth, "truth")
    _check(probability)
    if probability.shape != truth.shape:
        raise ValueError(f"probability and truth must have one shape, got {probability.shape} and {truth.shape}")
    if ignore is not None:
        check_pair(truth, ignore)
    keep = slice(None) if ignore is None else ~ignore.ravel()
    said, true = probability.ravel()[keep], truth.ravel()[keep]
    pixels = np.zeros(2 * BINS, np.int64)
    for start in range(0, said.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        pixels += np.bincount(_bins(said[block]) + BINS * true[block], minlength=2 * BINS)
    if said.size == 0:
        return empty()
    weights = np.rint(pixels / said.size * IMAGE).astype(np.int64)
    return Histogram(person=weights[BINS:], background=weights[:BINS], images=1)


def temper(probability: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities at another temperature: sigmoid(z / T), with the log-odds z cut at +-`LIMIT`.

    Never falls where `probability` rises, and p >= 0.5 holds after as before. A p of 0 or 1 is moved as 1.1e-7 and
    1 - 1.1e-7 are, so that what `fit_temperature` measured is what is done.

    Args:
        probability: Any shape, float32 in [0, 1].
        temperature: T > 0, finite; at 1 the array itself is returned.

    Raises:
        ValueError: A value that is none of these.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")
    _check(probability)
    if temperature == 1.0:
        return probability
    flat = probability.ravel()
    out = np.empty(flat.shape, np.float32)
    for start in range(0, flat.size, _BLOCK):
        p = flat[start : start + _BLOCK]
        said = expit(_log_odds(p) / temperature).astype(np.float32)
        # Rounded to float32, an odd below one half may be one half.
        out[start : start + _BLOCK] = np.where(p >= 0.5, np.maximum(said, 0.5), np.minimum(said, _BELOW_HALF))
    return out.reshape(probability.shape)


def fit_temperature(histogram: Histogram) -> float:
    """The temperature of the smallest negative log-likelihood, in [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`].

    The likelihood is convex in 1 / T: its slope is followed to its only zero. 1 where no pixel or only one kind of
    pixel was seen, for then nothing but the end of the range would be found, or where every pixel stands at 0.5.
    """
    person, background = histogram.person / IMAGE, histogram.background / IMAGE
    if not (person.any() and background.any() and (person + background)[_CENTRES != 0.0].any()):
        return 1.0

    def slope(inverse: float) -> float:
        said = expit(inverse * _CENTRES)
        return float(_CENTRES @ (background * said - person * (1.0 - said)))

    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    if slope(low) >= 0.0:
        return MAX_TEMPERATURE
    if slope(high) <= 0.0:
        return MIN_TEMPERATURE
    return float(1.0 / brentq(slope, low, high, xtol=1e-12))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """The pixels whose probability lies in [low, high), and in the last bin at 1 too.

    Attributes:
        low: Lower edge.
        high: Upper edge.
        share: Their part of all pixels (every image weighing the same).
        mean: Their mean probability of a person; None without a pixel.
        observed: The part of them that is a person; None without a pixel.
    """

    low: float
    high: float
    share: float
    mean: float | None
    observed: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """How far probabilities of a person are from frequencies, at one temperature.

    Attributes:
        temperature: The one applied.
        bins: `RELIABILITY_BINS` of equal width over [0, 1].
        ece: Expected calibration error: mean over pixels of |mean - observed| of their bin; in [0, 1].
        nll: Mean negative log-likelihood, in nats.
        brier: Mean squared error of the probability; in [0, 1].
    """

    temperature: float
    bins: tuple[Bin, ...]
    ece: float
    nll: float
    brier: float


def reliability(histogram: Histogram, temperature: float = 1.0) -> Reliability:
    """Measure a histogram after a temperature.

    Of the probability of a person, not of the likelier class: a diagram over [0, 1] shows missed people (left, above
    the diagonal) apart from invented ones (right, below).

    Raises:
        ValueError: No pixel is counted, or the temperature is not > 0 and finite.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")
    weight = histogram.person + histogram.background
    total = int(weight.sum())
    if total == 0:
        raise ValueError("a histogram must hold at least one pixel to be measured, got none: count an image first")
    z = _CENTRES / temperature
    said = expit(z)
    edges = np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)
    place = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, RELIABILITY_BINS - 1)
    sums = [
        np.bincount(place, values / total, RELIABILITY_BINS) for values in (weight, weight * said, histogram.person)
    ]
    bins = tuple(_bin(low, high, *values) for (low, high), *values in zip(pairwise(edges), *sums, strict=True))
    person, background = histogram.person / total, histogram.background / total
    return Reliability(
        temperature=temperature,
        bins=bins,
        ece=float(np.abs(sums[1] - sums[2]).sum()),
        nll=float(person @ np.logaddexp(0.0, -z) + background @ np.logaddexp(0.0, z)),
        brier=float(person @ (1.0 - said) ** 2 + background @ said**2),
    )


def reliability_plot(before: Reliability, after: Reliability) -> bytes:
    """A PNG of two reliability diagrams, before and after a temperature, above the shares of their bins."""
    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (title, measured) in enumerate((("As predicted", before), ("After the temperature", after))):
        top, bottom = axes[0, column], axes[1, column]
        _draw_diagram(top, measured)
        top.set_title(f"{title} (T = {measured.temperature:.3g})")
        lows, shares = [b.low for b in measured.bins], [b.share for b in measured.bins]
        bottom.bar(lows, shares, width=1 / RELIABILITY_BINS, align="edge", color="#999999", edgecolor="white")
        bottom.set_yscale("log")
        bottom.set_ylim(1e-4, 1.0)
        bottom.set_xlabel("predicted probability that a pixel is a person")
    axes[0, 0].set_ylabel("observed share of pixels\nthat are a person")
    axes[1, 0].set_ylabel("share of all\npixels (log)")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_diagram(axes: Axes, measured: Reliability) -> None:
    """Bars of what was observed, hatched up or down to what was predicted, and the diagonal of a perfect teacher."""
    full = [(b.low, b.mean, b.observed) for b in measured.bins if b.mean is not None and b.observed is not None]
    lows, means, observed = (np.array(values) for values in zip(*full, strict=True))
    width = 1 / RELIABILITY_BINS
    axes.bar(lows, observed, width=width, align="edge", color="#56B4E9", edgecolor="white", label="observed")
    axes.bar(
        lows, means - observed, width=width, bottom=observed, align="edge", color="#D55E0040", edgecolor="#D55E00",
        hatch="///", label="gap to the mean prediction",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    scores = f"ECE {measured.ece:.4f}   NLL {measured.nll:.4f}   Brier {measured.brier:.4f}"
    axes.legend(loc="upper left", title=scores, framealpha=0.9)


def _bin(low: float, high: float, share: float, said: float, person: float) -> Bin:
    mean, observed = (float(said / share), float(person / share)) if share > 0 else (None, None)
    return Bin(low=float(low), high=float(high), share=float(share), mean=mean, observed=observed)


def _log_odds(p: NDArray[np.float32]) -> NDArray[np.float64]:
    z: NDArray[np.float64] = np.clip(logit(p.astype(np.float64)), -LIMIT, LIMIT)
    return z


def _bins(p: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.rint((_log_odds(p) + LIMIT) * ((BINS - 1) / (2.0 * LIMIT))).astype(np.int64)


def _check(probability: NDArray[np.float32]) -> None:
    if probability.dtype != np.float32:
        raise ValueError(f"probability must be float32, got {probability.dtype}")
    if probability.size and not (probability.min() >= 0.0 and probability.max() <= 1.0):
        raise ValueError(f"probability must be in [0, 1], got {probability.min()} to {probability.max()}")
