"""Training a student for the judge, and what its late checkpoints say together.

A training is one thread's deterministic work: batches are a function of (seed, step), the state is written
every few seconds, and a training that was killed continues to the same bits. Late checkpoints are exponential
moving averages (EMA) of the weights at 80, 90 and 100 % of the steps; where they differ the student is unsure.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from students.data import Batch, Buckets, Example, Pixels, bucket_sizes, fit_image, nearest_bucket, resize
from students.fuse import fuse
from students.losses import segmentation_loss
from students.model import (
    Student,
    StudentConfig,
    build_student,
    config_to_json,
    load_student,
    read_metadata,
    save_student,
)
from training.average import follow
from training.rate import warm_cosine
from training.state import read_state, write_state

Report = Callable[[str], None]
STATE = "state.pt"
NEAR_PERSON = 0.04  # share of the diagonal that counts as near the person


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentTrainConfig:
    """How a student of the judge is trained; the defaults fit one minute on one core.

    Attributes:
        steps: Optimiser steps.
        batch: Images per step.
        lr: Peak learning rate of AdamW; 5 % of the steps warm up, then half a cosine down to a tenth.
        weight_decay: Of AdamW, on all weights.
        ema: Decay of the moving average per step.
        side: Images are trained at about side² pixels.
        boundary: Factor of the boundary cross entropy.
        late_checkpoints: How many late checkpoints are kept, the last 20 % of the steps apart in equal parts.
        gold_oversampling: How often a gold example occurs in an epoch.
        save_seconds: Seconds between two writes of the state; no influence on the result.
        student: The network's shape.
    """

    steps: int = 400
    batch: int = 16
    lr: float = 0.01
    weight_decay: float = 0.01
    ema: float = 0.99
    side: int = 128
    boundary: float = 1.0
    late_checkpoints: int = 3
    gold_oversampling: int = 3
    save_seconds: float = field(default=15.0, metadata={"identity": False})
    student: StudentConfig = field(default_factory=StudentConfig)

    def __post_init__(self) -> None:
        limits = {"batch": 1, "side": 64, "late_checkpoints": 1, "gold_oversampling": 1, "weight_decay": 0}
        limits |= {"boundary": 0, "save_seconds": 0, "steps": self.late_checkpoints}
        for name, lowest in limits.items():
            if not getattr(self, name) >= lowest:
                raise ValueError(f"student_train.{name} must be >= {lowest}, got {getattr(self, name)}")
        if not 0 < self.lr <= 1 or not 0 <= self.ema < 1:
            raise ValueError(f"student_train.lr must be in (0, 1] and ema in [0, 1), got {self.lr} and {self.ema}")
        if self.student.in_channels != 3:
            raise ValueError(f"the judge's student sees RGB: in_channels must be 3, got {self.student.in_channels}")

    def late_steps(self) -> tuple[int, ...]:
        """Steps after which a late checkpoint is written, ascending; the last is ``steps``."""
        apart = max(1, round(0.2 * self.steps / max(1, self.late_checkpoints - 1)))
        apart = min(apart, self.steps // self.late_checkpoints)
        return tuple(self.steps - apart * i for i in reversed(range(self.late_checkpoints)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StudentPrediction:
    """What the late checkpoints say of one image.

    Attributes:
        probability: (h, w) float32 in [0, 1] at the image's own size; mean over checkpoints and mirror images.
        stability: Mean over the pixels in or near the person of the checkpoints' standard deviation, in [0, .5];
            0 is steady. All pixels count where no person is seen.
    """

    probability: NDArray[np.float32]
    stability: float


def train_student(
    examples: Sequence[Example],
    config: StudentTrainConfig,
    *,
    seed: int,
    folder: Path,
    report: Report | None = None,
) -> tuple[Path, ...]:
    """Train one student and return the paths of its late checkpoints, ``folder/late-0.safetensors`` and on.

    The bits are a function of (examples, config, seed) on one torch thread; the caller sets the threads. A training
    that was killed continues from ``folder/state.pt``; a finished one returns at once.

    Args:
        examples: Images with labels, at least one.
        config: The recipe.
        seed: Of weights, order and augmentation, >= 0.
        folder: Where state and checkpoints lie; made if absent.
        report: Called with a line of progress about every tenth of the way.

    Raises:
        ValueError: If there is no example, the folder belongs to another training, or the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buckets = Buckets(
        examples, side=config.side, batch=config.batch, seed=seed, gold_oversampling=config.gold_oversampling
    )
    identity = _identity(config, seed, buckets.digest())
    paths = tuple(folder / f"late-{i}.safetensors" for i in range(config.late_checkpoints))
    if all(path.exists() and read_metadata(path).get("training") == identity for path in paths):
        return paths
    run = _Run(config, seed=seed, identity=identity)
    run.restore(folder / STATE)
    _loop(run, buckets, paths, folder / STATE, report)
    (folder / STATE).unlink(missing_ok=True)
    return paths


def _identity(config: StudentTrainConfig, seed: int, digest: str) -> str:
    """Hash of all that decides the result; ``save_seconds`` does not."""
    recipe = asdict(config)
    del recipe["save_seconds"]
    recipe["student"] = json.loads(config_to_json(config.student))
    text = json.dumps({"recipe": recipe, "seed": seed, "data": digest, "version": 2}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _loop(run: "_Run", buckets: Buckets, paths: Sequence[Path], state: Path, report: Report | None) -> None:
    config = run.config
    late = dict(zip(config.late_steps(), paths, strict=True))
    started = saved = time.monotonic()
    while run.step < config.steps:
        loss = run.advance(buckets.batch(run.step))
        if run.step in late:
            run.write_average(late[run.step])
        if time.monotonic() - saved >= config.save_seconds:
            run.save(state)
            saved = time.monotonic()
        if report is not None and (run.step % max(1, config.steps // 10) == 0 or run.step == config.steps):
            report(f"step {run.step}/{config.steps}, loss {loss:.3f}, {time.monotonic() - started:.0f} s")


class _Run:
    """One training between two steps: network, optimiser, moving average and step count."""

    def __init__(self, config: StudentTrainConfig, *, seed: int, identity: str) -> None:
        self.config = config
        self.step = 0
        self._seed, self._identity = seed, identity
        self._model = build_student(config.student, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = build_student(config.student, seed).requires_grad_(False)
        self._optimiser = torch.optim.AdamW(
            self._model.parameters(), lr=config.lr, weight_decay=config.weight_decay, foreach=True
        )

    def advance(self, batch: Batch) -> float:
        """One optimiser step; returns the loss.

        Raises:
            ValueError: If the loss is not finite.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = _learning_rate(self.config, self.step)
        images = torch.from_numpy(batch.images).contiguous(memory_format=torch.channels_last)
        target, ignore, weight = (torch.from_numpy(v) for v in (batch.target, batch.ignore, batch.weight))
        loss = segmentation_loss(self._model.train()(images), target, ignore, weight, self.config.boundary)
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"loss is {value} at step {self.step}; lower lr (now {self.config.lr})")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self.step += 1
        # early on it follows faster, so it never remembers the start
        follow(self._average, self._model, min(self.config.ema, self.step / (self.step + 9)))
        return value

    def write_average(self, path: Path) -> None:
        """Write the moving average as a student."""
        metadata = {"training": self._identity, "step": str(self.step), "seed": str(self._seed)}
        metadata["side"] = str(self.config.side)
        save_student(path, self._average, self.config.student, metadata)

    def save(self, path: Path) -> None:
        """Write the whole state; atomic."""
        write_state(path, {"training": self._identity}, {"step": self.step, **self._parts()})

    def restore(self, path: Path) -> None:
        """Continue from a state, if there is one.

        Raises:
            ValueError: If it cannot be read, or belongs to another training.
        """
        state = read_state(path, {"training": self._identity})
        if state is None:
            return
        self._model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }


def _learning_rate(config: StudentTrainConfig, step: int) -> float:
    return warm_cosine(step, config.steps, peak=config.lr, warm_up=max(1, round(0.05 * config.steps)), floor=0.1)


class Ensemble:
    """The late checkpoints of one training, ready to predict. An image is predicted alone: mates cannot matter."""

    def __init__(self, students: Sequence[Student], side: int) -> None:
        if not students:
            raise ValueError("an ensemble needs at least 1 student, got 0")
        self._students = [_fused(student) for student in students]
        self._sizes = bucket_sizes(side)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> "Ensemble":
        """The ensemble of the checkpoints that ``train_student`` returned.

        Raises:
            ValueError: If a file is no valid student, they were trained at different sides, or there is none.
        """
        if not paths:
            raise ValueError("an ensemble needs at least 1 student, got 0")
        sides = {read_metadata(path).get("side", "unknown") for path in paths}
        if len(sides) > 1 or "unknown" in sides:
            raise ValueError(f"checkpoints of one ensemble must state one training side, got {sorted(sides)}")
        return cls([load_student(path) for path in paths], int(sides.pop()))

    def predict(self, images: Sequence[Pixels]) -> list[StudentPrediction]:
        """One prediction per image (h, w, 3) uint8 RGB of any size, in order."""
        with torch.inference_mode():
            return [self._predict(image) for image in images]

    def _predict(self, image: Pixels) -> StudentPrediction:
        size = nearest_bucket(image.shape[0], image.shape[1], self._sizes)
        padded, (height, width) = fit_image(image, size)
        pair = torch.from_numpy(np.stack((padded, padded[:, ::-1]))).permute(0, 3, 1, 2).float() / 255
        both = torch.stack([torch.sigmoid(student(pair)[:, 0]) for student in self._students])
        each = ((both[:, 0] + both[:, 1].flip(-1)) / 2)[:, :height, :width].numpy()
        mean = each.mean(axis=0)
        large = resize(mean, (image.shape[0], image.shape[1]))
        return StudentPrediction(
            probability=np.clip(large, 0, 1).astype(np.float32), stability=_stability(mean, each.std(axis=0))
        )


def _stability(mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> float:
    person = (mean > 0.5).astype(np.uint8)
    reach = max(1, round(NEAR_PERSON * math.hypot(*mean.shape)))
    near = cv2.dilate(person, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    return float(deviation[near].mean() if near.any() else deviation.mean())


def _fused(student: Student) -> Student:
    """As it is run, in the layout that is fastest on a processor."""
    return fuse(student).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
