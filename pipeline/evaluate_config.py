"""The settings of an evaluation: section ``[evaluate]`` of the config file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evaluation.estimates import Settings
from evaluation.flow import FlowConfig
from evaluation.video import MeterConfig
from pipeline.clip_formats import ClipConfig
from pipeline.stage import not_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How videos are read, measured and compared; stored with every result.

    The settings of the comparison and of pictures change no measured number, so changing them measures nothing anew.

    Attributes:
        clips: how videos are found and read; ``clips.persons`` names the persons among the objects of DAVIS.
        meter: threshold, bands, border rule, tolerance, warp, worst frames.
        flow: how optical flow is computed.
        flow_bytes: most bytes of kept flow; the clips used longest ago make room.
        cut_histogram: two frames are of different shots where their luma histograms differ by more; see
            ``evaluation.temporal.cuts``. 1 finds none.
        cut_thumbnail: the same for thumbnails.
        picture_side: long side of the pictures of the worst frames, in pixels.
        resamples: resamples and permutations of people, at least 1999.
        seed: of both.
        confidence: of the intervals.
        margin: largest gap that still counts as similar.
    """

    clips: ClipConfig = field(default_factory=ClipConfig)
    meter: MeterConfig = field(default_factory=MeterConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    flow_bytes: int = not_identity(default=20 << 30)
    cut_histogram: float = 0.15
    cut_thumbnail: float = 0.12
    picture_side: int = 480
    resamples: int = not_identity(default=1999)
    seed: int = not_identity(default=0)
    confidence: float = not_identity(default=0.95)
    margin: float = not_identity(default=0.02)

    def __post_init__(self) -> None:
        for name, least in (("flow_bytes", 0), ("picture_side", 32)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluate.{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("cut_histogram", "cut_thumbnail"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"evaluate.{name} must be in [0, 1], got {value}")
        _ = self.settings  # which checks the rest

    @property
    def settings(self) -> Settings:
        """Those of the comparison; videos that lack a score are left out of that metric, and named."""
        return Settings(
            replicates=self.resamples,
            seed=self.seed,
            confidence=self.confidence,
            margin=self.margin,
            missing="exclude",
        )
