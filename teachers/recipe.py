"""How a teacher is trained: every choice, with its default."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from teachers.augment import AugmentConfig
from teachers.backbone import STRIDE
from teachers.semantic import SemanticConfig


class TeachError(RuntimeError):
    """Training cannot start, go on or be continued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachConfig:
    """How a teacher is trained.

    Attributes:
        model: The network; without `init`, `norm` must be "BN" or "GN", as frozen statistics cannot be learnt.
        augment: How crops are drawn.
        init: First weights: "" draws them; else a PointRend checkpoint or a ResNet's state of torchvision or timm
            (`.safetensors`, `.pkl`, `.pth`), or "timm:NAME" to download one (see `teachers.pretrained`).
        backgrounds: A folder of pictures without people for compositions, or "".
        steps: Optimiser steps.
        batch: Crops of a step, over all devices.
        points: Training points of a crop.
        learning_rate: Peak of Muon's rate for kernels (see `training.muon`).
        weight_decay: Muon's, on kernels only.
        warm_up: Steps of linear warm-up; a cosine to 0 follows.
        ema: Decay of the moving average of the weights.
        clip: Largest norm of the gradient.
        compose: Probability that an image becomes a composition (see `teachers.compose`).
        held_out_one_in: One image in so many is held out, by a hash of its name.
        validate_every: Steps between validations.
        report_every: Steps between reports.
        checkpoint_seconds: At most so long (and one step) is lost when killed.
        cache_bytes: Decoded images kept in memory; beyond it they are decoded again.
        accelerator: "cpu", "cuda", or "auto": a GPU if there is one. Bits are promised on one CPU device alone.
        devices: Processes that share every batch, each on a device of its own.
        precision: Arithmetic of forward and backward: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
    """

    model: SemanticConfig = field(
        default_factory=lambda: SemanticConfig(
            depth=18,
            stem_out=16,
            res2_out=16,
            norm="BN",
            fpn_out=32,
            sem_convs_dim=32,
            point_fc_dim=32,
            subdivision_num_points=2048,
            min_size_test=128,
            max_size_test=384,
            pixel_std=(57.375, 57.12, 58.395),
        )
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    init: str = field(default="", metadata={"identity": False})  # its content is, not its path
    backgrounds: str = field(default="", metadata={"identity": False})
    steps: int = 3600
    batch: int = 16
    points: int = 512
    learning_rate: float = 0.02
    weight_decay: float = 0.05
    warm_up: int = 100
    ema: float = 0.995
    clip: float = 5.0
    compose: float = 0.4
    held_out_one_in: int = 6
    validate_every: int = 150
    report_every: int = field(default=50, metadata={"identity": False})
    checkpoint_seconds: float = field(default=60.0, metadata={"identity": False})
    cache_bytes: int = field(default=2**30, metadata={"identity": False})
    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("steps", "batch", "points", "validate_every", "report_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"teach.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warm_up", "checkpoint_seconds", "cache_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"teach.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"teach.{name} must be > 0 and finite, got {getattr(self, name)}")
        self._check_rest()
        self._check_devices()

    def _check_rest(self) -> None:
        if not (0 <= self.ema < 1 and 0 <= self.compose <= 1):
            raise ValueError(f"teach.ema must be in [0, 1) and compose in [0, 1], got {self.ema} and {self.compose}")
        if self.held_out_one_in < 2:
            raise ValueError(f"teach.held_out_one_in must be >= 2, got {self.held_out_one_in}")
        if self.model.norm == "FrozenBN" and not self.init:
            raise ValueError(
                "teach.model.norm must be BN or GN without teach.init, got FrozenBN, whose statistics are not learnt"
            )
        if len(self.model.person_classes) != 1 or self.model.person_classes[0] != 1:
            raise ValueError(f"teach.model.person_classes must be [1], the label of a person, got "
                             f"{list(self.model.person_classes)}")  # fmt: skip

    def _check_devices(self) -> None:
        if self.batch // self.devices == 1 and self.augment.crop == STRIDE:
            raise ValueError(
                f"teach.augment.crop must be >= {2 * STRIDE} where a device sees one crop at a time, got {STRIDE}: a "
                "normalisation over a single pixel learns nothing"
            )
        for name in ("accelerator", "precision"):
            allowed = _CHOICES[name]
            if getattr(self, name) not in allowed:
                raise ValueError(f"teach.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.batch < self.devices:
            raise ValueError(f"teach.batch must be >= teach.devices ({self.devices}), got {self.batch}")
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise ValueError("teach.precision must be 32-true or bf16-mixed on a CPU, got '16-mixed'")

    def identity(self) -> dict[str, Any]:
        """The values that decide what is learnt, flat, "model.depth" for nested ones."""
        flat: dict[str, Any] = {}
        for name in (f.name for f in fields(self) if f.metadata.get("identity", True)):
            value = getattr(self, name)
            nested = isinstance(value, SemanticConfig | AugmentConfig)
            flat |= {f"{name}.{f.name}": getattr(value, f.name) for f in fields(value)} if nested else {name: value}
        return flat

    @classmethod
    def quick(cls) -> "TeachConfig":
        """For small drawn or plain scenes, such as 320x180 frames: many small crops, few steps."""
        full = cls()
        model = replace(full.model, norm="GN", subdivision_num_points=512, min_size_test=64, max_size_test=128)
        augment = replace(full.augment, crop=64, short_side=60, scale_low=0.8, scale_high=1.3, light=0.2, damage=0.05)
        return replace(
            full, model=model, augment=augment, steps=750, learning_rate=0.02, warm_up=40,
            ema=0.99, compose=0.0, validate_every=150, report_every=50,
        )  # fmt: skip


_CHOICES = {"accelerator": ("cpu", "cuda", "auto"), "precision": ("32-true", "bf16-mixed", "16-mixed")}
