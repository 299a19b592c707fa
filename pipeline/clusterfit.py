"""ClusterFit: cluster the features of a first network, train a fresh one on the cluster ids, use its features.

Source: Yan et al., "ClusterFit: Improving Generalization of Visual Representations", CVPR 2020. The second network is
trained from scratch on thumbnails, so it keeps what the clusters have in common and forgets the first network's noise.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline import storage
from pipeline.embed import decode_jpeg
from pipeline.errors import StageError

_STATE = "state.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFitConfig:
    """Settings of the second network and its training.

    Attributes:
        network: a timm backbone; small, since it is trained from scratch on thumbnails.
        side: pixels of the square it sees.
        steps: of training.
        batch: thumbnails per step.
        lr: peak learning rate of SGD with momentum 0.9 and weight decay 1e-4; 5 % warm-up, then a cosine.
    """

    network: str = "mobilenetv3_small_050"
    side: int = 64
    steps: int = 240
    batch: int = 48
    lr: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("side", 32), ("steps", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"cluster.fit.{name} must be >= {least}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"cluster.fit.lr must be > 0, got {self.lr}")
        if not timm.is_model(self.network):
            raise ValueError(f"cluster.fit.network '{self.network}' is no timm model")


def squares(thumbnails: Sequence[bytes], side: int) -> NDArray[np.uint8]:
    """Thumbnails (JPEG) as (N, side, side, 3) uint8 RGB."""
    out = np.empty((len(thumbnails), side, side, 3), np.uint8)
    for index, data in enumerate(thumbnails):
        out[index] = cv2.resize(decode_jpeg(data), (side, side), interpolation=cv2.INTER_AREA)
    return out


def train(
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    config: ClusterFitConfig,
    *,
    seed: int,
    folder: Path,
    checkpoint_seconds: float = 20.0,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Trains a fresh network to tell the clusters; resumes where it was killed, with equal bits.

    Args:
        pictures: (N, side, side, 3) uint8.
        targets: (N,) cluster ids.
        config: the recipe.
        seed: of the first weights, the order and the augmentation.
        folder: gets ``clusterfit.safetensors``; holds the state of an unfinished training.
        checkpoint_seconds: time between saved states.
        report: called with step and loss.

    Returns:
        The path of the weights.
    """
    path = folder / "clusterfit.safetensors"
    if path.exists():
        return path
    classes = int(targets.max()) + 1
    model = _fresh(config, classes, seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    first = _restore(folder / _STATE, model, optimiser)
    model.train()
    saved = time.monotonic()
    for step in range(first, config.steps):
        _set_lr(optimiser, config, step)
        loss = _step(model, optimiser, pictures, targets, config, seed, step)
        if report:
            report(step, loss)
        if time.monotonic() - saved > checkpoint_seconds:
            _save_state(folder / _STATE, model, optimiser, step + 1)
            saved = time.monotonic()
    _save_weights(path, model, config, classes)
    (folder / _STATE).unlink(missing_ok=True)
    return path


class ClusterFitNetwork:
    """The trained second network: pictures in, features out."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["clusterfit"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        self.side = int(meta["side"])
        self._model: Any = timm.create_model(meta["network"], num_classes=meta["classes"])
        self._model.load_state_dict(state)
        self._model.eval()
        self.dimension = int(cast("int", self._model.num_features))

    def __call__(self, pictures: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
        """(N, side, side, 3) uint8 -> (N, dimension) float32 L2-normalised features of the last feature map."""
        features = [self._features(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
        return np.concatenate(features) if features else np.zeros((0, self.dimension), np.float32)

    @torch.inference_mode()
    def _features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = self._model.forward_features(_normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
        return np.asarray(nn.functional.normalize(maps.mean(dim=(2, 3))).numpy(), np.float32)


def _fresh(config: ClusterFitConfig, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(config.network, pretrained=False, num_classes=classes)
        probe = cast("Any", model).eval().forward_features(torch.zeros(1, 3, config.side, config.side))
    if probe.ndim != 4:
        raise StageError(f"cluster.fit.network '{config.network}' gives no feature map; choose a convolutional network")
    return model


def _set_lr(optimiser: torch.optim.Optimizer, config: ClusterFitConfig, step: int) -> None:
    warm = max(1, config.steps // 20)
    rate = (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, config.steps - warm)))
    for group in optimiser.param_groups:
        group["lr"] = config.lr * float(rate)


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    config: ClusterFitConfig,
    seed: int,
    step: int,
) -> float:
    rng = np.random.default_rng([seed, step])
    rows = rng.integers(len(pictures), size=min(config.batch, max(2, len(pictures))))
    x = _normalise(_augment(torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float(), rng))
    loss = nn.functional.cross_entropy(model(x), torch.from_numpy(targets[rows]))
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    value = float(loss.detach())
    if not np.isfinite(value):
        raise StageError(f"ClusterFit diverged at step {step} (loss {value}); lower cluster.fit.lr")
    return value


def _augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Random resized crop, mirror and colour jitter, per picture."""
    n = len(x)
    scale = torch.from_numpy(np.sqrt(rng.uniform(0.35, 1, n)).astype(np.float32))
    flip = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), n))
    shift = torch.from_numpy(rng.uniform(-1, 1, (n, 2)).astype(np.float32)) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * flip
    theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (n, 3, 1, 1)).astype(np.float32))
    return (x * gain).clamp(0, 255)


def _normalise(x: Tensor) -> Tensor:
    return (x.float() - 118) / 60


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except Exception as error:  # torch raises what it likes on a damaged file
        raise StageError(f"{path} is damaged ({type(error).__name__}); remove it and run again") from error


def _save_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, buffer)
    storage.write_bytes(str(path), buffer.getbuffer())


def _save_weights(path: Path, model: nn.Module, config: ClusterFitConfig, classes: int) -> None:
    meta = {"network": config.network, "side": config.side, "classes": classes}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    storage.write_bytes(str(path), save(state, metadata={"clusterfit": json.dumps(meta, sort_keys=True)}))
