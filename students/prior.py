"""Detect-with-mask in training: what the previous mask may look like when the next frame comes.

A network that always gets a good previous mask learns to copy it, and on a device it never forgets a mistake. So the
fourth channel is drawn anew for each sample: nothing, a mask of another moment, a wrong one, or what the network itself
said of the previous frame (``rollout``).

Letters: B batch, H and W sides. A mask is (H, W) float32 in [0, 1], 1 is person.

```
previous frame, any prior ─▶ network ─▶ sigmoid ─ detach ─▶ prior ─┐
present frame ─────────────────────────────────────────────────────┴▶ network ─▶ logits, loss
```
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from students.yuv import rgb_to_yuv

Kind = Literal["empty", "full", "true", "stale", "shifted", "scaled", "torn", "thick", "thin", "own"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Soft = NDArray[np.float32]
Matrix = NDArray[np.float64]
Network = Callable[[Tensor], Tensor]
_Values = TypeVar("_Values", bound=NDArray[Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """How often each kind of prior is drawn, and how wrong it is; the probabilities sum to 1.

    Attributes:
        empty: Probability of zeros: the first frame, or the first after a cut.
        full: Of ones: nothing of it may be believed.
        true: Of the frame's own true mask: nothing moved.
        stale: Of the true mask of an earlier frame; of a still, its own mask moved as ``still_*`` say.
        shifted: Of the true mask, shifted.
        scaled: Of the true mask, scaled about its centre of mass.
        torn: Of the true mask without some parts.
        thick: Of the true mask, dilated.
        thin: Of the true mask, eroded.
        own: Of the network's own output for the previous frame.
        still_turn: Greatest angle between a still and its supposed earlier frame, in degrees.
        still_zoom: Greatest |log| of the scale between them.
        still_shift: Greatest shift between them, as a share of each side.
        shift: Greatest shift of a shifted mask, as a share of each side.
        zoom: Greatest |log| of the scale of a scaled mask.
        tears: Most parts that a torn mask lacks.
        tear: Greatest radius of such a part, as a share of the square root of the person's area.
        thickness: Greatest width by which a mask is dilated or eroded, as a share of the diagonal.
    """

    empty: float = 0.3
    full: float = 0.04
    true: float = 0.05
    stale: float = 0.15
    shifted: float = 0.05
    scaled: float = 0.05
    torn: float = 0.08
    thick: float = 0.04
    thin: float = 0.04
    own: float = 0.2
    still_turn: float = 5.0
    still_zoom: float = 0.05
    still_shift: float = 0.05
    shift: float = 0.2
    zoom: float = 0.3
    tears: int = 3
    tear: float = 0.6
    thickness: float = 0.03

    def __post_init__(self) -> None:
        for kind in KINDS:
            if not 0 <= getattr(self, kind) <= 1:
                raise ValueError(f"prior.{kind} must be a probability in [0, 1], got {getattr(self, kind)}")
        total = math.fsum(getattr(self, kind) for kind in KINDS)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the probabilities of prior ({', '.join(KINDS)}) must sum to 1, got {total}")
        limits = {"still_turn": 180, "still_zoom": 1, "still_shift": 1, "shift": 1, "zoom": 1, "tear": 2}
        for name, most in (limits | {"thickness": 0.5}).items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"prior.{name} must be in [0, {most}], got {getattr(self, name)}")
        if self.tears < 1:
            raise ValueError(f"prior.tears must be >= 1, got {self.tears}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prior:
    """A prior that was drawn.

    Attributes:
        kind: Which.
        mask: (H, W) float32 in [0, 1]; where ``kind`` is "own", what the network gets with the previous frame.
    """

    kind: Kind
    mask: Soft


def prior_generator(seed: int, sample: str, epoch: int) -> np.random.Generator:
    """The random numbers of one sample's prior in one epoch, whatever was drawn before.

    Args:
        seed: Of the training.
        sample: Name of the sample.
        epoch: Number of the epoch, or of the step.
    """
    digest = hashlib.sha256(f"prior\n{seed}\n{epoch}\n{sample}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def draw_prior(mask: Soft, config: PriorConfig, rng: np.random.Generator, earlier: Soft | None = None) -> Prior:
    """Draw a kind, and a prior of that kind.

    For "own" the mask is one of the other kinds, in their proportions, of the previous frame: the network's first step
    begins as any other. Without other kinds it is empty.

    Args:
        mask: (H, W) true mask of the frame.
        config: Probabilities and strengths.
        rng: Random numbers, as ``prior_generator`` gives them.
        earlier: (H, W) true mask of an earlier frame; None for stills.

    Raises:
        ValueError: If a mask is not (H, W) float32 in [0, 1], or the two differ in size.
    """
    kind = _draw_kind(config, rng, KINDS)
    if kind != "own":
        return Prior(kind=kind, mask=prior_of_kind(kind, mask, config, rng, earlier))
    first = _draw_kind(config, rng, KINDS[:-1]) if config.own < 1 else "empty"
    return Prior(kind=kind, mask=prior_of_kind(first, mask if earlier is None else earlier, config, rng))


def _draw_kind(config: PriorConfig, rng: np.random.Generator, kinds: tuple[Kind, ...]) -> Kind:
    weights = np.array([getattr(config, kind) for kind in kinds], np.float64)
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def prior_of_kind(
    kind: Kind, mask: Soft, config: PriorConfig, rng: np.random.Generator, earlier: Soft | None = None
) -> Soft:
    """A prior of one kind: (H, W) float32 in [0, 1], a new array.

    Where a mask moves, what comes from outside repeats its border: a person cut by the frame goes on there.

    Args:
        kind: Any but "own", which only a network can give.
        mask: (H, W) true mask of the frame.
        config: Strengths.
        rng: Random numbers.
        earlier: (H, W) true mask of an earlier frame, used by "stale"; None for stills.

    Raises:
        ValueError: If the kind is "own" or unknown, a mask is not (H, W) float32 in [0, 1], or the two differ in size.
    """
    _check_mask(mask, "mask")
    if earlier is not None:
        _check_mask(earlier, "earlier")
        if earlier.shape != mask.shape:
            raise ValueError(f"mask and earlier must have one shape, got {mask.shape} and {earlier.shape}")
    if kind not in _MAKERS:
        raise ValueError(f"kind must be one of {sorted(_MAKERS)}, got {kind!r}; 'own' comes from own_prior")
    made = earlier if kind == "stale" and earlier is not None else _MAKERS[kind](mask, config, rng)
    return np.asarray(np.clip(made, 0, 1), np.float32)


def _check_mask(mask: NDArray[Any], name: str) -> None:
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.float32:
        raise ValueError(f"{name} must be (H, W) float32 with H, W >= 1, got {mask.shape} {mask.dtype}")
    if not (float(mask.min()) >= 0 and float(mask.max()) <= 1):
        raise ValueError(f"{name} must lie in [0, 1], got {mask.min()} to {mask.max()}")


def still_motion(height: int, width: int, config: PriorConfig, rng: np.random.Generator) -> Matrix:
    """How a still's supposed earlier frame lies to it: (2, 3) float64, from points (x, y, 1) of one to the other."""
    angle = rng.uniform(-config.still_turn, config.still_turn)
    scale = math.exp(rng.uniform(-config.still_zoom, config.still_zoom))
    matrix = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale), np.float64)
    matrix[:, 2] += rng.uniform(-1, 1, 2) * config.still_shift * np.array([width, height])
    return matrix


def moved(values: _Values, matrix: Matrix) -> _Values:
    """(H, W) or (H, W, C), uint8 or float32, moved by a (2, 3) matrix; bilinear, the border repeated."""
    size = values.shape[1], values.shape[0]
    warped = cv2.warpAffine(values, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, values.dtype).reshape(values.shape)  # type: ignore[return-value]


def _stale(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    return moved(mask, still_motion(mask.shape[0], mask.shape[1], config, rng))


def _shifted(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    by = rng.uniform(-1, 1, 2) * config.shift * np.array(mask.shape[::-1])
    return moved(mask, np.array([[1, 0, by[0]], [0, 1, by[1]]], np.float64))


def _scaled(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    scale = math.exp(rng.uniform(-config.zoom, config.zoom))
    weight = float(mask.sum(dtype=np.float64))
    if weight == 0:
        return mask
    y = float(mask.sum(axis=1, dtype=np.float64) @ np.arange(mask.shape[0])) / weight
    x = float(mask.sum(axis=0, dtype=np.float64) @ np.arange(mask.shape[1])) / weight
    return moved(mask, np.array([[scale, 0, x - scale * x], [0, scale, y - scale * y]], np.float64))


def _torn(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    """Without one or more ellipses around points of the person."""
    person = np.argwhere(mask > 0.5)
    if not len(person):
        return mask
    kept = np.ones(mask.shape, np.uint8)
    for _ in range(rng.integers(1, config.tears + 1)):
        row, column = (int(v) for v in person[rng.integers(len(person))])
        radii = rng.uniform(0.3, 1, 2) * config.tear * math.sqrt(len(person))
        axes = max(1, round(radii[0])), max(1, round(radii[1]))
        cv2.ellipse(kept, (column, row), axes, rng.uniform(0, 180), 0, 360, (0,), -1)
    return mask * kept


def _brush(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    reach = max(1, round(rng.random() * config.thickness * math.hypot(*mask.shape)))
    side = 2 * reach + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def _thick(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    return np.asarray(cv2.dilate(mask, _brush(mask, config, rng)), np.float32).reshape(mask.shape)


def _thin(mask: Soft, config: PriorConfig, rng: np.random.Generator) -> Soft:
    """The image border does not erode."""
    return np.asarray(cv2.erode(mask, _brush(mask, config, rng)), np.float32).reshape(mask.shape)


_MAKERS: Final[dict[Kind, Callable[[Soft, PriorConfig, np.random.Generator], Soft]]] = {
    "empty": lambda mask, _, __: np.zeros_like(mask),
    "full": lambda mask, _, __: np.ones_like(mask),
    "true": lambda mask, _, __: mask,
    "stale": _stale,
    "shifted": _shifted,
    "scaled": _scaled,
    "torn": _torn,
    "thick": _thick,
    "thin": _thin,
}


# ── two steps ─────────────────────────────────────────────────────────────────────────────────────────────────────


def network_input(images: Tensor, prior: Tensor) -> Tensor:
    """What a detect-with-mask network sees: (B, 4, H, W) float32, channels Y, U, V and the previous mask.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float32 in [0, 1].
        prior: (B, 1, H, W) float32 in [0, 1]; zeros where there is no previous mask.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if prior.ndim != 4 or prior.shape[1] != 1 or prior.shape[2:] != images.shape[2:] or len(prior) != len(images):
        shapes = f"{tuple(images.shape)} and {tuple(prior.shape)}"
        raise ValueError(f"images and prior must have shapes (B, 3, H, W) and (B, 1, H, W), got {shapes}")
    return torch.cat((rgb_to_yuv(images), prior), dim=1)


def nearest_valid(valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each pixel's value comes from so that padding repeats the image: (H, W) int64, places in the flat image.

    A valid pixel stands for itself, another takes the nearest valid one; around a box that is replicate padding.
    ``mask.ravel()[nearest_valid(valid)]`` is the mask. Without any valid pixel each stands for itself.

    Args:
        valid: (H, W) bool.
    """
    places = np.arange(valid.size, dtype=np.int64).reshape(valid.shape)
    if not valid.any():
        return places
    rows, columns = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return np.asarray(places[rows, columns], np.int64)


def own_prior(model: Network, previous: Tensor, before: Tensor, sources: Tensor | None = None) -> Tensor:
    """The network's own mask of the previous frame, (B, 1, H, W) float32 in [0, 1], as a tracker would feed it back.

    It runs as on a device: without gradient, in evaluation mode. Afterwards every module is in the mode it was in, and
    no running statistic has moved.

    Args:
        model: (B, 4, H, W) to logits (B, 1, H, W).
        previous: (B, 3, H, W) RGB of the previous frame, as ``network_input`` takes it.
        before: (B, 1, H, W) float32, the prior of the previous frame.
        sources: (B, 1, H, W) int64, ``nearest_valid`` of each frame; None where the frames have no padding.

    Raises:
        ValueError: If shapes do not belong together.
    """
    with _deployed(model), torch.no_grad():
        logits = model(network_input(previous, before))
        if logits.shape != before.shape:
            raise ValueError(f"the network must give logits {tuple(before.shape)}, got {tuple(logits.shape)}")
        mask = torch.sigmoid(logits.float())
        if sources is not None:
            mask = mask.flatten(2).gather(2, sources.flatten(2)).view_as(mask)
    return mask


def rollout(model: Network, previous: Tensor, frame: Tensor, before: Tensor, sources: Tensor | None = None) -> Tensor:
    """Logits (B, 1, H, W) of a frame whose prior is the network's own mask of the previous frame.

    The gradient flows through this second step alone.

    Args:
        model: As in ``own_prior``.
        previous: (B, 3, H, W) RGB of the previous frame; of a still, the still ``moved`` by ``still_motion``.
        frame: (B, 3, H, W) RGB of the present frame.
        before: (B, 1, H, W) float32, the prior of the previous frame.
        sources: As in ``own_prior``.

    Raises:
        ValueError: If shapes do not belong together.
    """
    return model(network_input(frame, own_prior(model, previous, before, sources)))


@contextmanager
def _deployed(model: Network) -> Iterator[None]:
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
