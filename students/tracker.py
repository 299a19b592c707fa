"""Detect-with-mask on a video: each frame is seen together with the mask of the one before.

```
frame ─▶ fit to its bucket ─▶ Y U V ─┐
last mask, or zeros ─────────────────┴▶ network ─▶ mask ─▶ cut off padding ─▶ resize to the frame
      ▲                                                        │
      └──────────────── border repeated into the padding ──────┘
```

The last mask is forgotten where it has nothing to do with the frame: at a cut, at another size, after a gap in time.
What is remembered lies inside the image: padding, which no loss ever saw, has no memory.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.temporal import HISTOGRAM_CUT, THUMBNAIL_CUT, Look, is_cut, look
from students.data import Fit, Pixels, Size, canonical_sizes, fit_image, nearest_bucket, resize
from students.prior import Network, Soft, network_input

Start = Literal["first", "size", "gap", "cut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig:
    """How a tracker sees frames and when it starts anew.

    Attributes:
        side: Frames are seen at about side² pixels.
        fit: In which sizes, see ``students.data.canonical_sizes``.
        gap_us: A frame that comes more than so many microseconds after the last one starts anew.
        histogram: Of a cut, see ``evaluation.temporal.is_cut``.
        thumbnail: Of a cut, see ``evaluation.temporal.is_cut``.
    """

    side: int = 192
    fit: Fit = "aspect"
    gap_us: int = 500_000
    histogram: float = HISTOGRAM_CUT
    thumbnail: float = THUMBNAIL_CUT

    def __post_init__(self) -> None:
        canonical_sizes(self.side, self.fit)
        if self.gap_us < 1:
            raise ValueError(f"tracker.gap_us must be >= 1 microsecond, got {self.gap_us}")
        for name in ("histogram", "thumbnail"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"tracker.{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Last:
    """What is kept of a frame: its size, time and look, and the prior it leaves, (1, 1, H, W) with padding."""

    size: Size
    time_us: int | None
    look: Look
    prior: Tensor


class Tracker:
    """The person in each frame of one video, frame by frame. Two trackers share nothing but the network.

    Masks are a function of the frames and times since the last start, and of the network; the network is called once
    per frame. A frame that raises an error is forgotten, and the next one starts anew.
    """

    def __init__(self, model: Network, config: TrackerConfig | None = None) -> None:
        """Track with a network.

        Args:
            model: (1, 4, H, W) float32, as ``students.prior.network_input`` makes it, to logits (1, 1, H, W); H and W
                are multiples of 32.
            config: Size and limits.

        Raises:
            ValueError: If the network is in training mode, where normalisation would carry frames on.
        """
        if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
            raise ValueError("the tracker's network must be in evaluation mode; call model.eval()")
        self._model = model
        self._config = config or TrackerConfig()
        self._sizes = canonical_sizes(self._config.side, self._config.fit)
        self._last: _Last | None = None
        self._started: Start | None = None

    @property
    def started(self) -> Start | None:
        """Why the last update began without a mask: "first" frame, other "size", "gap", "cut"; None if it had one."""
        return self._started

    def reset(self) -> None:
        """Forget the video: the next frame is a first one."""
        self._last = self._started = None

    def update(self, frame: Pixels, time_us: int | None = None) -> Soft:
        """The mask of the next frame.

        Args:
            frame: (h, w, 3) uint8 RGB of any size.
            time_us: Its time in microseconds; a time before the last one starts anew. Without times on both frames
                there is no gap.

        Returns:
            (h, w) float32 in [0, 1].

        Raises:
            ValueError: If the frame is of another shape or type, or the network's logits are of another shape or not
                finite.
        """
        last, self._last = self._last, None
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or frame.dtype != np.uint8:
            raise ValueError(f"frame must be (h, w, 3) uint8 with h, w >= 1, got {frame.shape} {frame.dtype}")
        size = frame.shape[0], frame.shape[1]
        fitted, inside = fit_image(frame, nearest_bucket(*size, self._sizes))
        seen = look(np.ascontiguousarray(fitted[: inside[0], : inside[1]]))
        self._started = self._start(last, size, time_us, seen)
        mask = self._mask(fitted, last.prior if last is not None and self._started is None else None)
        mask = mask[..., : inside[0], : inside[1]]
        missing = (0, fitted.shape[1] - inside[1], 0, fitted.shape[0] - inside[0])
        prior = functional.pad(mask, missing, mode="replicate")
        self._last = _Last(size=size, time_us=time_us, look=seen, prior=prior)
        return np.asarray(np.clip(resize(mask[0, 0].numpy(), size), 0, 1), np.float32)

    def _start(self, last: _Last | None, size: Size, time_us: int | None, seen: Look) -> Start | None:
        if last is None:
            return "first"
        if last.size != size:
            return "size"
        if time_us is not None and last.time_us is not None and not 0 <= time_us - last.time_us <= self._config.gap_us:
            return "gap"
        limits = {"histogram": self._config.histogram, "thumbnail": self._config.thumbnail}
        return "cut" if is_cut(last.look, seen, **limits) else None

    @torch.no_grad()
    def _mask(self, fitted: Pixels, prior: Tensor | None) -> Tensor:
        """(1, 1, H, W) float32 in [0, 1], at the bucket's size."""
        height, width = fitted.shape[:2]
        image = torch.from_numpy(fitted).permute(2, 0, 1)[None]
        prior = torch.zeros((1, 1, height, width)) if prior is None else prior
        logits = self._model(network_input(image, prior))
        if logits.shape != prior.shape:
            raise ValueError(f"the network must give logits {tuple(prior.shape)}, got {tuple(logits.shape)}")
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the network's logits must be finite; its weights are damaged or the training diverged")
        return torch.sigmoid(logits.float())
