"""How the shipping student is trained: every choice, with its default."""

import dataclasses
import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from students.card import MOST_SIDE
from students.data import Fit, Size, canonical_sizes
from students.model import STRIDE, StudentConfig, outline
from students.padding import Padding
from students.presets import PRESETS
from students.prior import PriorConfig
from students.views import ViewConfig
from training.devices import Accelerator, Devices, Precision

Preset = Literal["nano", "small", "base", "large", "custom"]


class TrainError(RuntimeError):
    """A training cannot start, go on or be continued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a student is trained on a release.

    Attributes:
        preset: The network, one of `students.presets`, or "custom": that of `model`.
        model: The network of "custom"; else left out.
        mask_channel: Whether the network sees Y, U, V and its previous mask (detect-with-mask), or RGB alone.
        padding: What convolutions see outside of a map; "custom" has its own.
        init: First weights: "" draws them; else a student's file, or a checkpoint of the encoder's own timm network.
        side: Images are seen at about side² pixels.
        fit: "aspect" groups images of similar aspect; "square" puts all into one square, to compare
            (`students.data.canonical_sizes`).
        steps: Optimiser steps.
        batch: Images of a step, over all devices.
        learning_rate: Peak of Muon's rate for kernels (see `training.muon`).
        weight_decay: Muon's, on kernels only.
        warm_up: Steps of linear warm-up; a cosine to 0 follows.
        ema: Decay of the moving average of the weights, which is what is kept.
        clip: Largest norm of the gradient.
        boundary: Factor of the boundary cross entropy; 0 leaves it out.
        two_sided: Whether the boundary's band reaches outwards too.
        dice: Factor of the soft dice loss; 0 leaves it out.
        labelled_first: Share of steps on labelled images at the start, where there are any.
        labelled_last: That share after `labelled_ramp`.
        labelled_ramp: Part of all steps over which the share moves from one to the other.
        strong: Whether pseudo-labelled images are augmented strongly.
        view: How images are augmented.
        prior: What previous masks are shown, with `mask_channel`.
        held_out_one_in: One labelled image in so many is held out, by a hash of its name.
        held_out_most: At most so many images are validated on, those of the smallest hashes.
        validate_every: Steps between validations.
        report_every: Steps between reports.
        save_seconds: At most so long (and one step) is lost when killed.
        accelerator: "cpu", "cuda", or "auto": a GPU if there is one. Bits are promised on one CPU device alone.
        devices: Processes that share every batch, each on a device of its own.
        precision: Arithmetic of forward and backward: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
    """

    preset: Preset = "small"
    model: StudentConfig = field(default_factory=StudentConfig)
    mask_channel: bool = True
    padding: Padding = "replicate"
    init: str = field(default="", metadata={"identity": False})  # its content is, not its path
    side: int = 192
    fit: Fit = "aspect"
    steps: int = 4000
    batch: int = 16
    learning_rate: float = 0.02
    weight_decay: float = 0.05
    warm_up: int = 100
    ema: float = 0.998
    clip: float = 5.0
    boundary: float = 1.0
    two_sided: bool = True
    dice: float = 0.0
    labelled_first: float = 1.0
    labelled_last: float = 0.4
    labelled_ramp: float = 0.3
    strong: bool = True
    view: ViewConfig = field(default_factory=ViewConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    held_out_one_in: int = 6
    held_out_most: int = 256
    validate_every: int = 250
    report_every: int = field(default=50, metadata={"identity": False})
    save_seconds: float = field(default=60.0, metadata={"identity": False})
    accelerator: Accelerator = "cpu"
    devices: int = 1
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        """Check every value."""
        least = dict.fromkeys(("steps", "batch", "held_out_most", "validate_every", "report_every", "devices"), 1)
        least |= {"held_out_one_in": 2, "side": 2 * STRIDE}
        least |= dict.fromkeys(("weight_decay", "warm_up", "boundary", "dice", "save_seconds"), 0)
        for name, lowest in least.items():
            if not lowest <= getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} must be >= {lowest} and finite, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} must be > 0 and finite, got {getattr(self, name)}")
        for name in ("labelled_first", "labelled_last", "labelled_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema must be in [0, 1), got {self.ema}")
        self._check_words()

    def _check_words(self) -> None:
        words = (("preset", Preset), ("fit", Fit), ("padding", Padding))
        for name, kind in (*words, ("accelerator", Accelerator), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"train.{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        if self.side > MOST_SIDE:
            raise ValueError(f"train.side must be <= {MOST_SIDE}, got {self.side}")
        if self.preset == "custom" and self.padding != "replicate":
            raise ValueError(
                f"train.padding is {self.padding}, but a custom network's is train.model.padding; set that"
            )
        if self.preset != "custom" and self.model != StudentConfig():
            raise ValueError(
                f"train.model is read with preset = custom alone, and preset is {self.preset}; leave it out"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        shortest = min(min(size) for size in self.sizes())
        if self.network().padding == "reflect" and shortest < outline(self.network()).smallest:
            rule = f"needs sides >= {outline(self.network()).smallest} to be padded by reflection"
            raise ValueError(
                f"train.side {self.side} gives sides of {shortest}, and the network {rule}; raise train.side"
            )

    def network(self) -> StudentConfig:
        """The shape of the network."""
        if self.preset == "custom":
            return replace(self.model, in_channels=4 if self.mask_channel else 3)
        return replace(PRESETS[self.preset], in_channels=4 if self.mask_channel else 3, padding=self.padding)

    def sizes(self) -> tuple[Size, ...]:
        """The sizes (H, W) that images are seen at."""
        return canonical_sizes(self.side, self.fit)

    def on(self) -> Devices:
        """What the training runs on."""
        return Devices(accelerator=self.accelerator, devices=self.devices, precision=self.precision, section="train")

    def identity(self) -> dict[str, Any]:
        """Every value that changes the result, flat as JSON has it: "view.flip"."""
        found: dict[str, Any] = json.loads(json.dumps(dict(_flat(self, ""))))
        return found


def _flat(config: Any, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for each in fields(config):
        value = getattr(config, each.name)
        if each.metadata.get("identity", True):
            nested = dataclasses.is_dataclass(value)
            found += _flat(value, f"{prefix}{each.name}.") if nested else [(f"{prefix}{each.name}", value)]
    return found
