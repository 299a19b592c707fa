"""Train a semantic PointRend on a folder of labelled images, on a CPU, in minutes.

Killed and started again, a run ends with the same bytes.

    output/
      teacher.safetensors   the best weights by held-out IoU (moving average), with their configuration
      curve.csv             step, losses, learning rate, held-out IoU
      state.pt              what a continued run needs (tensors, numbers and text only)
      result.json           written last: the folder is finished
"""

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.masks import iou
from manifests.labelled import Labelled, labelled_sha256, load_labelled, read_labelled
from teachers.augment import AugmentConfig, draw_crop, paste, shrink
from teachers.checkpoint import save_checkpoint, sha256_file, write_atomically
from teachers.points import IGNORE
from teachers.semantic import SemanticConfig, SemanticPointRend, build, normalise
from teachers.teacher import probabilities

CURVE = ("step", "loss_coarse", "loss_point", "lr", "held_out_iou")
_SHUFFLE, _CROP, _POINTS = 1, 2, 3


class TeachError(RuntimeError):
    """Training cannot start, go on or be continued."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachConfig:
    """How a teacher is trained.

    Attributes:
        model: The network; `norm` must be "BN" or "GN", as frozen statistics cannot be learnt from nothing.
        augment: How crops are drawn.
        steps: Optimiser steps.
        batch: Crops of a step.
        points: Training points of a crop.
        learning_rate: Peak of AdamW's rate.
        weight_decay: AdamW's, on matrices and kernels only.
        warm_up: Steps of linear warm-up; a cosine to 0 follows.
        ema: Decay of the moving average of the weights.
        clip: Largest norm of the gradient.
        paste: Probability that the people of another crop are pasted over one.
        held_out_one_in: One image in so many is held out, by a hash of its name.
        validate_every: Steps between validations.
        report_every: Steps between reports.
        checkpoint_seconds: At most so long (and one step) is lost when killed.
        cache_bytes: Decoded images kept in memory; beyond it they are decoded again.
    """

    model: SemanticConfig = field(
        default_factory=lambda: SemanticConfig(
            depth=18,
            stem_out=32,
            res2_out=32,
            norm="BN",
            fpn_out=64,
            sem_convs_dim=64,
            point_fc_dim=64,
            subdivision_num_points=2048,
            min_size_test=192,
            max_size_test=512,
            pixel_std=(57.375, 57.12, 58.395),
        )
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    steps: int = 2400
    batch: int = 8
    points: int = 1024
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    ema: float = 0.995
    clip: float = 5.0
    paste: float = 0.3
    held_out_one_in: int = 6
    validate_every: int = 150
    report_every: int = field(default=50, metadata={"identity": False})
    checkpoint_seconds: float = field(default=60.0, metadata={"identity": False})
    cache_bytes: int = field(default=2**30, metadata={"identity": False})

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("steps", "batch", "points", "validate_every", "report_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"teach.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warm_up", "checkpoint_seconds", "cache_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"teach.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"teach.{name} must be > 0 and finite, got {getattr(self, name)}")
        self._check_rest()

    def _check_rest(self) -> None:
        if not (0 <= self.ema < 1 and 0 <= self.paste <= 1):
            raise ValueError(f"teach.ema must be in [0, 1) and paste in [0, 1], got {self.ema} and {self.paste}")
        if self.held_out_one_in < 2:
            raise ValueError(f"teach.held_out_one_in must be >= 2, got {self.held_out_one_in}")
        if self.model.norm == "FrozenBN":
            raise ValueError("teach.model.norm must be BN or GN, got FrozenBN, whose statistics are not learnt")

    @classmethod
    def quick(cls) -> "TeachConfig":
        """For small drawn or plain scenes, such as 320x180 frames: about 80 CPU seconds, many small crops."""
        full = cls()
        model = replace(
            full.model, norm="GN", stem_out=16, res2_out=16, fpn_out=32, sem_convs_dim=32, point_fc_dim=32,
            subdivision_num_points=512, min_size_test=64, max_size_test=128,
        )  # fmt: skip
        augment = replace(full.augment, crop=64, short_side=60, scale_low=0.8, scale_high=1.3, light=0.2, damage=0.05)
        return replace(
            full, model=model, augment=augment, steps=750, batch=16, points=512, learning_rate=6e-3, warm_up=40,
            ema=0.99, paste=0.0, validate_every=150, report_every=50,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachResult:
    """What a finished training gave.

    Attributes:
        checkpoint: The file of weights, `teacher.safetensors`.
        sha256: Its digest.
        held_out_iou: Mean IoU on the held-out images at their own size, that of the best weights.
        best_step: The step they are from.
        steps: Steps taken.
        trained_on: Names of the images trained on.
        held_out: Names of the images held out.
    """

    checkpoint: Path
    sha256: str
    held_out_iou: float
    best_step: int
    steps: int
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]


def split(names: Sequence[str], one_in: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names to train on and names held out, by a hash of each name alone; at least one of each.

    Raises:
        TeachError: Fewer than two names.
    """
    if len(names) < 2:
        raise TeachError(f"a teacher needs at least two labelled images, one to hold out, got {len(names)}: add some")
    digest = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names}
    held = {name for name in names if digest[name] % one_in == 0}
    if not held:
        held = {min(names, key=lambda n: digest[n])}
    if len(held) == len(names):
        held.remove(max(names, key=lambda n: digest[n]))
    return tuple(n for n in names if n not in held), tuple(n for n in names if n in held)


def teach(
    labelled: Path, output: Path, config: TeachConfig, *, seed: int, report: Callable[[str], None]
) -> TeachResult:
    """Train a teacher, or go on with one that was interrupted, or return the one that is finished.

    On one machine with one number of torch threads, equal labels, configuration and seed give equal bytes, however
    often the run was interrupted.

    Args:
        labelled: A folder as `manifests.labelled.read_labelled` takes it.
        output: The folder written; made if absent.
        config: How.
        seed: Of the first weights, the order, the crops and the points; at least 0.
        report: Called with a line of text at every report and validation, after the state is safe.

    Raises:
        LabelledError: The labelled set is unusable.
        TeachError: `output` holds a run of another configuration, seed or labelled set (the difference is named),
            or a broken state; or a loss is not finite.
    """
    samples = read_labelled(labelled)
    plan = _Plan(
        config=config,
        seed=seed,
        labelled=labelled_sha256(samples),
        output=output,
        parts=split([s.name for s in samples], config.held_out_one_in),
    )
    output.mkdir(parents=True, exist_ok=True)
    finished = _read_result(plan)
    if finished is not None:
        report(f"the teacher in {output} is finished: held-out IoU {finished.held_out_iou:.4f}")
        return finished
    run = _Run(plan)
    if plan.state_path.exists():
        run.restore(_read_state(plan))
        report(f"going on from step {run.step} of {config.steps}")
    _train(run, _Images(samples, config), report)
    return _finish(run)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What identifies a run; `parts` are the names to train on and those held out."""

    config: TeachConfig
    seed: int
    labelled: str
    output: Path
    parts: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def state_path(self) -> Path:
        return self.output / "state.pt"

    @property
    def teacher_path(self) -> Path:
        return self.output / "teacher.safetensors"

    @property
    def result_path(self) -> Path:
        return self.output / "result.json"

    def identity(self) -> dict[str, Any]:
        """Every value that a continued run must share, flat, as JSON has it."""
        flat: dict[str, Any] = {"seed": self.seed, "labelled": self.labelled}
        for name, value in json.loads(json.dumps(asdict(self.config))).items():
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat

    def check(self, stored: object, path: Path) -> None:
        """Refuse what another run wrote, naming what differs."""
        mine = self.identity()
        if not isinstance(stored, dict):
            raise TeachError(f"{path} is not readable as a run's: remove {self.output} to start again")
        differing = [
            f"{k} is {mine.get(k)!r} and was {stored.get(k)!r}"
            for k in sorted(set(mine) | set(stored), key=str)
            if mine.get(k) != stored.get(k)
        ]
        if differing:
            raise TeachError(
                f"{path} is of another run: {'; '.join(differing)}; choose another output folder or remove this one"
            )


class _Images:
    """Decoded images: shrunken ones for training, whole ones of the held-out fold; kept while there is room."""

    def __init__(self, samples: Sequence[Labelled], config: TeachConfig) -> None:
        self.samples = {s.name: s for s in samples}
        self.side = math.ceil(config.augment.short_side * config.augment.scale_high)
        self.left = config.cache_bytes
        self.cache: dict[tuple[str, bool], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def get(self, name: str, *, whole: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) uint8 and label (H, W) uint8 of 0, 1, 255."""
        key = (name, whole)
        if key in self.cache:
            return self.cache[key]
        image, mask, ignore = load_labelled(self.samples[name])
        label = np.where(ignore, IGNORE, mask).astype(np.uint8)
        pair = (image, label) if whole else shrink(image, label, self.side)
        size = pair[0].nbytes + pair[1].nbytes
        if size <= self.left:
            self.left -= size
            self.cache[key] = pair
        return pair


class _Run:
    """What changes while training."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.model = _first_weights(plan).to(memory_format=torch.channels_last).train()
        self.average = deepcopy(self.model).eval()
        self.optimiser = _optimiser(self.model, plan.config)
        self.step = 0
        self.best_iou = -1.0
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.rows: list[list[float]] = []

    def save(self) -> None:
        """Write `state.pt` and `curve.csv`."""
        state = {
            "identity": json.dumps(self.plan.identity(), sort_keys=True),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best_iou": self.best_iou,
            "best_step": self.best_step,
            "best": self.best,
            "rows": torch.tensor(self.rows, dtype=torch.float64),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.plan.state_path, buffer.getvalue())
        write_atomically(self.plan.output / "curve.csv", _curve(self.rows))

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `save` wrote."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best_iou, self.best_step = state["step"], state["best_iou"], state["best_step"]
        self.best = dict(state["best"])
        self.rows = state["rows"].tolist()


def _first_weights(plan: _Plan) -> SemanticPointRend:
    """The original's, but with coarse logits near 0: from nothing, its large ones cost the first steps to unlearn."""
    model = build(plan.config.model, plan.seed)
    with torch.no_grad():
        model.sem_seg_head.coarse_sem_seg_head.predictor.weight.mul_(0.01)
    return model


def _optimiser(model: nn.Module, config: TeachConfig) -> torch.optim.AdamW:
    """AdamW that decays kernels, but no bias, scale or shift."""
    kernels = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(step: int, config: TeachConfig) -> float:
    """The rate of step 0, 1, ..: a linear warm-up, then half a cosine to 0."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def _train(run: _Run, images: _Images, report: Callable[[str], None]) -> None:
    config = run.plan.config
    saved = time.monotonic()
    while run.step < config.steps:
        row = _step(run, images)
        validates = run.step % config.validate_every == 0 or run.step == config.steps
        run.rows.append([*row, _validate(run, images) if validates else math.nan])
        if validates or time.monotonic() - saved >= config.checkpoint_seconds:
            run.save()
            saved = time.monotonic()
        if validates or run.step % config.report_every == 0:
            report(_line(run, validates))


def _step(run: _Run, images: _Images) -> list[float]:
    """One optimiser step; returns its number, the two losses and the rate."""
    config, step = run.plan.config, run.step
    inputs, labels = _batch(run.plan, images, step)
    rate = learning_rate(step, config)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    drawn = int(np.random.SeedSequence([run.plan.seed, _POINTS, step]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(drawn)
    losses = run.model.losses(inputs, labels, num_points=config.points, generator=generator)
    coarse, point = losses["loss_sem_seg"], losses["loss_sem_seg_point"]
    values = [coarse.item(), point.item()]
    if not all(map(math.isfinite, values)):
        raise TeachError(f"step {step + 1}: the losses are {values}; lower the learning rate ({rate:.3g})")
    run.optimiser.zero_grad()
    (coarse + point).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    run.optimiser.step()
    run.step += 1
    _follow(run.average, run.model, min(config.ema, run.step / (run.step + 10)))
    return [run.step, *values, rate]


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every tensor of the average, running statistics too, a little towards the model's."""
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mine.lerp_(theirs, 1.0 - decay)


def _batch(plan: _Plan, images: _Images, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, which follows from (seed, step, slot) alone: (N, 3, S, S) float32 and (N, S, S) uint8."""
    pairs = [_crop(plan, images, step, slot) for slot in range(plan.config.batch)]
    inputs = torch.stack([normalise(image, plan.config.model) for image, _ in pairs])
    labels = torch.from_numpy(np.stack([label for _, label in pairs]))
    return inputs.contiguous(memory_format=torch.channels_last), labels


def _crop(plan: _Plan, images: _Images, step: int, slot: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    names, config = plan.parts[0], plan.config
    epoch, place = divmod(step * config.batch + slot, len(names))
    order = np.random.default_rng([plan.seed, _SHUFFLE, epoch]).permutation(len(names))
    rng = np.random.default_rng([plan.seed, _CROP, step, slot])
    image, label = draw_crop(*images.get(names[order[place]], whole=False), config.augment, rng)
    if rng.random() < config.paste:
        donor = images.get(names[int(rng.integers(len(names)))], whole=False)
        image, label = paste(image, label, *draw_crop(*donor, config.augment, rng))
    return image, label


def _validate(run: _Run, images: _Images) -> float:
    """Mean IoU of the averaged weights on the held-out images at their own size; keeps the best weights."""
    scores = []
    for name in run.plan.parts[1]:
        image, label = images.get(name, whole=True)
        found = probabilities(run.average, [image])[0] >= 0.5
        scores.append(iou(found, label == 1, label == IGNORE))
    mean = float(np.mean(scores))
    if mean > run.best_iou:
        run.best_iou, run.best_step = mean, run.step
        run.best = {k: v.clone() for k, v in run.average.state_dict().items()}
    return mean


def _line(run: _Run, validates: bool) -> str:
    _, coarse, point, _, score = run.rows[-1]
    text = f"step {run.step} of {run.plan.config.steps}: loss {coarse:.4f} coarse, {point:.4f} at points"
    if not validates:
        return text
    return f"{text}; held-out IoU {score:.4f}, best {run.best_iou:.4f} at step {run.best_step}"


def _curve(rows: Sequence[Sequence[float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE)
    for step, coarse, point, rate, score in rows:
        shown = "" if math.isnan(score) else f"{score:.6f}"
        writer.writerow([int(step), f"{coarse:.6g}", f"{point:.6g}", f"{rate:.6g}", shown])
    return text.getvalue().encode()


def _read_state(plan: _Plan) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(plan.state_path, map_location="cpu", weights_only=True)
        stored = json.loads(state["identity"])
    except Exception as error:  # torch raises many kinds for a broken file
        raise TeachError(f"{plan.state_path} cannot be read ({error!r}): remove it to start again") from error
    plan.check(stored, plan.state_path)
    return state


def _finish(run: _Run) -> TeachResult:
    """Write the teacher, then the result that marks the folder as finished."""
    plan = run.plan
    best: SemanticPointRend = deepcopy(run.average)
    best.load_state_dict(run.best)
    metadata: dict[str, str | int | float] = {
        "held_out_iou": run.best_iou,
        "step": run.best_step,
        "seed": plan.seed,
        "labelled_sha256": plan.labelled,
    }
    sha256 = save_checkpoint(plan.teacher_path, best, plan.config.model, metadata)
    values = {"held_out_iou": run.best_iou, "best_step": run.best_step, "steps": run.step, "sha256": sha256}
    record = {**values, "identity": plan.identity()}
    write_atomically(plan.result_path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
    return _result(plan, record)


def _read_result(plan: _Plan) -> TeachResult | None:
    """The result of a finished folder, None where it is not finished."""
    if not plan.result_path.exists():
        return None
    try:
        record = json.loads(plan.result_path.read_bytes())
        plan.check(record["identity"], plan.result_path)
        result = _result(plan, record)
    except (ValueError, KeyError, TypeError) as error:
        raise TeachError(f"{plan.result_path} cannot be read ({error!r}): remove {plan.output}") from error
    if not plan.teacher_path.is_file() or sha256_file(plan.teacher_path) != result.sha256:
        raise TeachError(f"{plan.teacher_path} is not the file that was finished here: remove {plan.output}")
    return result


def _result(plan: _Plan, record: dict[str, Any]) -> TeachResult:
    return TeachResult(
        checkpoint=plan.teacher_path,
        sha256=record["sha256"],
        held_out_iou=record["held_out_iou"],
        best_step=record["best_step"],
        steps=record["steps"],
        trained_on=plan.parts[0],
        held_out=plan.parts[1],
    )
