"""ClusterFit: cluster the features of a first network, train a fresh one on the cluster ids, use its features.

Source: Yan et al., "ClusterFit: Improving Generalization of Visual Representations", CVPR 2020. The second network is
trained from scratch on thumbnails, so it keeps what the clusters have in common and forgets the first network's noise.
A share of the thumbnails is held out and tells when the training stops.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

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
from pipeline.kmeans import row_keys
from training.devices import DeviceError, Devices, accelerator_of

_STATE = "state.pt"
_LEAST_FRAMES = 20
_MOST_HELD_OUT = 512
_MEASURE_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFitConfig:
    """Settings of the second network and its training.

    Attributes:
        network: a timm backbone; small, since it is trained from scratch on thumbnails.
        side: pixels of the square it sees.
        steps: of training, at most.
        batch: thumbnails per step.
        lr: peak learning rate of SGD with momentum 0.9 and weight decay 1e-4; 5 % warm-up, then a cosine.
        held_out: share of the frames that are not trained on but tell when to stop; 0 = all steps are taken.
        measure_every: steps between measurements on the held-out frames.
        patience: measurements in a row without a lower held-out loss that end the training; the best weights are kept.
        accelerator: where it is trained: "cpu", "cuda", or "auto" = a GPU if there is one. Equal bits are promised on
            one CPU thread alone; features are always computed on the CPU.
        precision: of forward and backward: "32", or "bf16" = bfloat16 by autocast, with weights and sums in 32 bit.
    """

    network: str = "mobilenetv3_small_050"
    side: int = 64
    steps: int = 240
    batch: int = 48
    lr: float = 0.1
    held_out: float = 0.1
    measure_every: int = 20
    patience: int = 4
    accelerator: Literal["cpu", "cuda", "auto"] = "cpu"
    precision: Literal["32", "bf16"] = "32"

    def __post_init__(self) -> None:
        for name, least in (("side", 32), ("steps", 1), ("batch", 2), ("measure_every", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"cluster.fit.{name} must be >= {least}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"cluster.fit.lr must be > 0, got {self.lr}")
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(f"cluster.fit.held_out must be between 0 and 0.5, got {self.held_out}")
        for name, allowed in (("accelerator", ("cpu", "cuda", "auto")), ("precision", ("32", "bf16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"cluster.fit.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not timm.is_model(self.network):
            raise ValueError(f"cluster.fit.network '{self.network}' is no timm model")


def squares(thumbnails: Sequence[bytes], side: int) -> NDArray[np.uint8]:
    """Thumbnails (JPEG) as (N, side, side, 3) uint8 RGB."""
    out = np.empty((len(thumbnails), side, side, 3), np.uint8)
    for index, data in enumerate(thumbnails):
        out[index] = cv2.resize(decode_jpeg(data), (side, side), interpolation=cv2.INTER_AREA)
    return out


def held_out_rows(keys: NDArray[np.uint64], share: float) -> NDArray[np.int64]:
    """Rows that are not trained on: the ``share`` with the smallest keys, ascending; at most 512 of them.

    None of fewer than 20 rows, for a handful of pictures tells nothing and is missed in the training. More than 512
    would cost more time than they save: with 512 the standard error of an accuracy is at most 2.2 %.
    """
    if len(keys) < _LEAST_FRAMES:
        return np.zeros(0, np.int64)
    count = min(_MOST_HELD_OUT, round(share * len(keys)))
    return np.sort(np.argsort(keys, kind="stable")[:count])


def train(
    pictures: NDArray[np.uint8],
    targets: NDArray[np.int64],
    config: ClusterFitConfig,
    *,
    seed: int,
    folder: Path,
    keys: NDArray[np.uint64] | None = None,
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
        keys: (N,) a hash per picture, that chooses which are held out; None = a hash of the picture itself.
        checkpoint_seconds: time between saved states.
        report: called with step and loss.

    Returns:
        The path of the weights; their metadata tell how the training went (see ``ClusterFitNetwork.training``).

    Raises:
        StageError: the loss is not finite, the saved state is damaged, or the GPU asked for is not here.
    """
    path = folder / "clusterfit.safetensors"
    if path.exists():
        return path
    keys = row_keys(pictures.reshape(len(pictures), -1).astype(np.float32)) if keys is None else keys
    training = _Training(pictures, targets, config, seed, held_out_rows(keys, config.held_out))
    training.restore(folder / _STATE)
    saved = time.monotonic()
    while not training.stopped:
        loss = training.advance()
        if report:
            report(training.step - 1, loss)
        if time.monotonic() - saved > checkpoint_seconds:
            storage.write_bytes(str(folder / _STATE), training.state())
            saved = time.monotonic()
    storage.write_bytes(str(path), training.weights())
    (folder / _STATE).unlink(missing_ok=True)
    return path


class _Training:
    """A training between two steps: all that a killed one needs to go on.

    Attributes:
        step: steps taken.
        stopped: why no further step is taken, "steps" or "patience"; "" while it goes on.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        targets: NDArray[np.int64],
        config: ClusterFitConfig,
        seed: int,
        held_out: NDArray[np.int64],
    ) -> None:
        self.step, self.stopped = 0, ""
        self._config, self._seed = config, seed
        self._pictures, self._targets = pictures, targets
        self._held_out = held_out
        self._learnt = np.setdiff1d(np.arange(len(pictures)), held_out)
        self._classes = int(targets.max()) + 1
        self._device = torch.device(_accelerator(config))
        self._model = _fresh(config, self._classes, seed).to(self._device).train()
        self._optimiser = torch.optim.SGD(
            self._model.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4, nesterov=True
        )
        self._curve: list[dict[str, float | None]] = []
        self._losses: list[float] = []
        self._best: dict[str, Any] = {"loss": math.inf, "step": 0, "weights": None}

    def advance(self) -> float:
        """Takes a step, measures where it is time to, and says whether it was the last; its loss."""
        _set_lr(self._optimiser, self._config, self.step)
        loss = self._learn()
        self._losses.append(loss)
        self.step += 1
        last = self.step == self._config.steps
        if last or self.step % self._config.measure_every == 0:
            self._measure()
        worse = (self.step - self._best["step"]) // self._config.measure_every
        if last:
            self.stopped = "steps"
        elif len(self._held_out) and worse >= self._config.patience:
            self.stopped = "patience"
        return loss

    def _learn(self) -> float:
        config = self._config
        rng = np.random.default_rng([self._seed, self.step])
        size = min(config.batch, max(2, len(self._learnt)))
        rows = self._learnt[rng.integers(len(self._learnt), size=size)]
        x = torch.from_numpy(self._pictures[rows]).to(self._device).permute(0, 3, 1, 2).float()
        x = _normalise(_augment(x, rng))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self._model(x)
        target = torch.from_numpy(self._targets[rows]).to(self._device)
        loss = nn.functional.cross_entropy(logits.float(), target)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StageError(f"ClusterFit diverged at step {self.step} (loss {value}); lower cluster.fit.lr")
        return value

    def _measure(self) -> None:
        """Adds a point to the curve; keeps the weights if the held-out loss is the lowest so far."""
        point: dict[str, float | None] = {"step": self.step, "loss": float(np.mean(self._losses))}
        self._losses = []
        if len(self._held_out):
            loss, accuracy = self._held_out_figures()
            finite = math.isfinite(loss)  # running statistics of the first steps can be far off
            point |= {"held_out_loss": loss if finite else None, "held_out_accuracy": accuracy}
            if finite and loss < self._best["loss"]:
                weights = {key: value.detach().cpu().clone() for key, value in self._model.state_dict().items()}
                self._best = {"loss": loss, "step": self.step, "weights": weights}
        self._curve.append(point)

    @torch.no_grad()
    def _held_out_figures(self) -> tuple[float, float]:
        """Mean cross-entropy in nats and share of right pseudo-labels of the held-out pictures, not augmented."""
        self._model.eval()
        total, right = 0.0, 0
        for start in range(0, len(self._held_out), _MEASURE_ROWS):
            rows = self._held_out[start : start + _MEASURE_ROWS]
            x = torch.from_numpy(self._pictures[rows]).to(self._device).permute(0, 3, 1, 2)
            logits = self._model(_normalise(x)).float().cpu()
            target = torch.from_numpy(self._targets[rows])
            total += float(nn.functional.cross_entropy(logits, target, reduction="sum"))
            right += int((logits.argmax(dim=1) == target).sum())
        self._model.train()
        return total / len(self._held_out), right / len(self._held_out)

    def restore(self, path: Path) -> None:
        """Goes back to a saved state, where there is one.

        Raises:
            StageError: the state is damaged.
        """
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            self._model.load_state_dict(state["model"])
            self._optimiser.load_state_dict(state["optimiser"])
            self.step, self.stopped = int(state["step"]), str(state["stopped"])
            self._curve, self._losses, self._best = state["curve"], state["losses"], state["best"]
        except Exception as error:  # torch raises what it likes on a damaged file
            raise StageError(f"{path} is damaged ({type(error).__name__}); remove it and run again") from error

    def state(self) -> memoryview:
        """All that ``restore`` needs."""
        buffer = io.BytesIO()
        state = {
            "model": self._model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "stopped": self.stopped,
            "curve": self._curve,
            "losses": self._losses,
            "best": self._best,
        }
        torch.save(state, buffer)
        return buffer.getbuffer()

    def weights(self) -> bytes:
        """The best weights, or the last where nothing is held out, as a safetensors file."""
        best = self._best["weights"]
        weights = self._model.state_dict() if best is None else best
        meta = {
            "network": self._config.network,
            "side": self._config.side,
            "classes": self._classes,
            "training": self._facts(kept=self.step if best is None else self._best["step"]),
        }
        state = {key: value.cpu().contiguous() for key, value in weights.items()}
        return save(state, metadata={"clusterfit": json.dumps(meta, sort_keys=True)})

    def _facts(self, kept: int) -> dict[str, Any]:
        return {
            "trained_on": len(self._learnt),
            "held_out": len(self._held_out),
            "early_stop": len(self._held_out) > 0,
            "steps": self.step,
            "stopped_by": self.stopped,
            "kept_step": kept,
            "device": self._device.type,
            "precision": self._config.precision,
            "curve": self._curve,
        }


class ClusterFitNetwork:
    """The trained second network: pictures in, features out.

    Attributes:
        side: pixels of the square it sees.
        dimension: of its features.
        training: how it was trained: ``trained_on`` and ``held_out`` pictures, whether there was an ``early_stop``,
            ``steps`` taken, ``stopped_by`` "steps" or "patience", the ``kept_step`` whose weights these are, ``device``
            and ``precision``, and the ``curve``: per measurement its ``step``, the mean training ``loss`` since the one
            before, and ``held_out_loss`` (nats) and ``held_out_accuracy`` (0..1) where pictures are held out.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["clusterfit"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        self.side = int(meta["side"])
        self.training: dict[str, Any] = meta["training"]
        self._model: Any = timm.create_model(meta["network"], num_classes=meta["classes"])
        self._model.load_state_dict(state)
        self._model.eval()
        self.dimension = int(cast("int", self._model.num_features))

    def __call__(self, pictures: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
        """(N, side, side, 3) uint8 -> (N, dimension) float32 L2-normalised features of the last feature map.

        Every batch is full, the last one filled up with black: bits depend on the size of a batch, not on where in one
        a picture stands.
        """
        filled = np.zeros((-len(pictures) % batch, *pictures.shape[1:]), np.uint8)
        full = np.concatenate([pictures, filled])
        features = [self._features(full[i : i + batch]) for i in range(0, len(full), batch)]
        return np.concatenate([np.zeros((0, self.dimension), np.float32), *features])[: len(pictures)]

    @torch.inference_mode()
    def _features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = self._model.forward_features(_normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
        return np.asarray(nn.functional.normalize(maps.mean(dim=(2, 3))).numpy(), np.float32)


def _accelerator(config: ClusterFitConfig) -> str:
    try:
        return accelerator_of(Devices(accelerator=config.accelerator))
    except DeviceError as error:
        raise StageError(
            f"cluster.fit.accelerator is {config.accelerator!r}, but torch finds no GPU here: choose cpu or auto"
        ) from error


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


def _augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Random resized crop, mirror and colour jitter, per picture."""
    n = len(x)
    scale = torch.from_numpy(np.sqrt(rng.uniform(0.35, 1, n)).astype(np.float32))
    flip = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), n))
    shift = torch.from_numpy(rng.uniform(-1, 1, (n, 2)).astype(np.float32)) * (1 - scale)[:, None]
    gain = torch.from_numpy(rng.uniform(0.7, 1.3, (n, 3, 1, 1)).astype(np.float32))
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * flip
    theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
    x = nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return (x * gain.to(x.device)).clamp(0, 255)


def _normalise(x: Tensor) -> Tensor:
    return (x.float() - 118) / 60
