"""Train a semantic PointRend on a folder of labelled images, on a CPU in minutes, or on one or several GPUs.

Killed and started again, a run on one CPU device ends with the same bytes.

    output/
      teacher.safetensors   the best weights by held-out IoU (moving average), with configuration and temperature
      curve.csv, curve.png  step, losses, learning rate, held-out IoU
      overlays.jpg          held-out images from the worst to the best, mistakes painted
      reliability.png       their probabilities against frequencies, before and after the temperature
      state.pt              what a continued run needs (tensors, numbers and text only)
      result.json           scores, also of every held-out image; written last: the folder is finished
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifests.labelled import Labelled, labelled_sha256, read_labelled
from teachers.calibrate import reliability_plot
from teachers.checkpoint import save_checkpoint
from teachers.crops import Feed, Scenes, backgrounds_sha256, loaders, read_backgrounds
from teachers.held_out import Appraisal, appraise, mean_iou
from teachers.objective import Objective
from teachers.pretrained import read_pretrained, start
from teachers.recipe import TeachConfig, TeachError
from teachers.record import Plan, TeachResult, read_result, read_state, split
from teachers.semantic import SemanticPointRend, build
from training.average import follow
from training.curve import curve_csv, curve_png
from training.devices import DeviceError, Devices, Report, accelerator_of, spread
from training.files import write_atomically
from training.muon import Muon
from training.rate import warm_cosine
from training.state import write_state

__all__ = ["FILES", "TeachConfig", "TeachError", "TeachResult", "input_digests", "learning_rate", "split", "teach"]

#: What a finished folder holds for others to read, the weights first.
FILES = ("teacher.safetensors", "curve.csv", "curve.png", "overlays.jpg", "reliability.png", "result.json")
#: Columns of the losses in `curve.csv`.
LOSSES = ("coarse", "point")

_POINTS = 3


def teach(
    labelled: Path, output: Path, config: TeachConfig, *, seed: int, report: Callable[[str], None]
) -> TeachResult:
    """Train a teacher, or go on with one that was interrupted, or return the one that is finished.

    On one machine, one CPU device and one number of torch threads, equal labels, configuration and seed give equal
    bytes, however often the run was interrupted. With several devices the sums are the same but for their rounding,
    except that batch normalisation sees the crops of one device only.

    Args:
        labelled: A folder as `manifests.labelled.read_labelled` takes it.
        output: The folder written; made if absent.
        config: How.
        seed: Of the first weights, the order, the crops and the points; at least 0.
        report: Called with a line of text at every report and validation, after the state is safe.

    Raises:
        LabelledError: The labelled set is unusable.
        TeachError: `output` holds a run of another configuration, seed or labelled set (the difference is named), or
            a broken state; `init` or `backgrounds` cannot be used; a GPU is asked for and absent; or a loss is not
            finite.
    """
    devices = _devices(config)
    samples = read_labelled(labelled)
    trained_on, held_out = split([s.name for s in samples], config.held_out_one_in)
    digests = {"labelled": labelled_sha256(samples), **input_digests(config)}
    plan = Plan(
        config=config, seed=seed, digests=digests, output=output, trained_on=trained_on, held_out=held_out
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    finished = read_result(plan)
    if finished is not None:
        report(f"the teacher in {output} is finished: held-out IoU {finished.held_out_iou:.4f}")
        return finished
    try:
        spread(partial(_teach, plan, samples), devices, report)
    except DeviceError as error:
        raise TeachError(str(error)) from error
    result = read_result(plan)
    assert result is not None
    return result


def _devices(config: TeachConfig) -> Devices:
    """Where to train.

    Raises:
        TeachError: A GPU is asked for and absent.
    """
    devices = Devices(
        accelerator=config.accelerator, devices=config.devices, precision=config.precision, section="teach"
    )
    try:
        accelerator_of(devices)
    except DeviceError as error:
        raise TeachError(str(error)) from error
    return devices


def input_digests(config: TeachConfig) -> dict[str, str]:
    """Digests of what the config names by path, "init" and "backgrounds"; "" for what it does not name.

    Raises:
        TeachError: Either cannot be read.
    """
    pretrained = read_pretrained(config.init)
    return {
        "init": "" if pretrained is None else pretrained.sha256,
        "backgrounds": backgrounds_sha256(read_backgrounds(config.backgrounds)),
    }


def _teach(plan: Plan, samples: Sequence[Labelled], fabric: Any, report: Report) -> None:
    """What every process does; the first one writes."""
    config = plan.config
    scenes = Scenes(samples, plan.trained_on, read_backgrounds(config.backgrounds), config)
    slots = range(fabric.global_rank, config.batch, fabric.world_size)
    feed = Feed(scenes, plan.seed, slots, loaders(fabric.device))
    try:
        run = _Run(plan, fabric, report)
        _train(run, feed, report)
    finally:
        feed.close()
    if fabric.global_rank == 0:
        _finish(run, scenes)


class _Run:
    """What changes while training, in one process."""

    def __init__(self, plan: Plan, fabric: Any, report: Report) -> None:
        self.plan = plan
        self.fabric = fabric
        config = plan.config
        state = read_state(plan) if plan.state_path.exists() else None
        self.model = _first_weights(plan, None if state else report).to(memory_format=torch.channels_last).train()
        self.average = deepcopy(self.model).eval().to(fabric.device)
        objective = Objective(
            self.model,
            num_points=config.points,
            batch=config.batch,
            rank=fabric.global_rank,
            devices=fabric.world_size,
        )
        self.muon = Muon(self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.objective, self.optimiser = fabric.setup(objective, self.muon)
        self.step = 0
        self.best_iou = -1.0
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.rows: list[list[float]] = []
        if state is not None:
            self.restore(state)
            report(f"going on from step {self.step} of {config.steps}")

    def save(self) -> None:
        """Write `state.pt` and `curve.csv`."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.muon.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "best_iou": self.best_iou,
            "best_step": self.best_step,
            "best": self.best,
            "rows": torch.tensor(self.rows, dtype=torch.float64),
        }
        write_state(self.plan.state_path, self.plan.identity(), state)
        write_atomically(self.plan.output / "curve.csv", curve_csv(LOSSES, self.rows))

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `save` wrote."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.muon.load_state_dict(state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.step, self.best_iou, self.best_step = state["step"], state["best_iou"], state["best_step"]
        self.best = dict(state["best"])
        self.rows = state["rows"].tolist()


def _first_weights(plan: Plan, report: Report | None) -> SemanticPointRend:
    """Drawn ones with what `init` holds laid over them.

    Drawn as in the original, but with coarse logits near 0: its large ones cost the first steps to unlearn.
    """
    config = plan.config
    model = build(config.model, plan.seed)
    with torch.no_grad():
        model.sem_seg_head.coarse_sem_seg_head.predictor.weight.mul_(0.01)
    pretrained = read_pretrained(config.init)
    if pretrained is None:
        return model
    fresh = start(model, pretrained)
    if report is not None:
        report(f"first weights from {pretrained.source} (sha256 {pretrained.sha256[:12]}), {len(fresh)} keys afresh")
        for key in fresh:
            report(f"  afresh: {key}")
    return model


def learning_rate(step: int, config: TeachConfig) -> float:
    """The rate of step 0, 1, ..: a linear warm-up, then half a cosine to 0."""
    return warm_cosine(step, config.steps, peak=config.learning_rate, warm_up=config.warm_up)


def _train(run: _Run, feed: Feed, report: Report) -> None:
    config = run.plan.config
    first = run.fabric.global_rank == 0
    saved = time.monotonic()
    while run.step < config.steps:
        row = _step(run, feed)
        validates = run.step % config.validate_every == 0 or run.step == config.steps
        if not first:
            continue
        run.rows.append([*row, _validate(run, feed.scenes) if validates else math.nan])
        if validates or time.monotonic() - saved >= config.checkpoint_seconds:
            run.save()
            saved = time.monotonic()
        if validates or run.step % config.report_every == 0:
            report(_line(run, validates))


def _step(run: _Run, feed: Feed) -> list[float]:
    """One optimiser step; returns its number, the two losses and the rate."""
    config, step, fabric = run.plan.config, run.step, run.fabric
    inputs, labels = (x.to(fabric.device, non_blocking=True) for x in feed.batch(step))
    rate = learning_rate(step, config)
    for group in run.muon.param_groups:
        group["lr"] = rate
    drawn = int(np.random.SeedSequence([run.plan.seed, _POINTS, step]).generate_state(1)[0])
    losses, counts = run.objective(inputs, labels, drawn)
    values, share = _over_devices(fabric, losses, counts)
    if not all(map(math.isfinite, values)):
        raise TeachError(f"step {step + 1}: the losses are {values}; lower the learning rate ({rate:.3g})")
    run.optimiser.zero_grad()
    fabric.backward((losses * share).sum())
    fabric.clip_gradients(run.objective, run.optimiser, max_norm=config.clip, error_if_nonfinite=False)
    run.optimiser.step()
    run.step += 1
    follow(run.average, run.model, min(config.ema, run.step / (run.step + 10)))
    return [run.step, *values, rate]


def _over_devices(fabric: Any, losses: Tensor, counts: Tensor) -> tuple[list[float], Tensor]:
    """The mean losses over all devices, and what to weight those of this one with.

    Devices average gradients. So that the average is the gradient of the mean over the pixels of all, a device's mean
    counts by its share of these pixels.
    """
    if fabric.world_size == 1:
        return losses.tolist(), torch.ones_like(losses)
    sums = fabric.all_reduce(torch.stack([losses.detach().double() * counts, counts.double()]), reduce_op="sum")
    total = sums[1].clamp(min=1)
    return (sums[0] / total).tolist(), (fabric.world_size * counts / total).to(losses.dtype)


def _validate(run: _Run, scenes: Scenes) -> float:
    """Mean IoU of the averaged weights on the held-out images at their own size; keeps the best weights."""
    mean = mean_iou(run.average, scenes, run.plan.held_out)
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


def _finish(run: _Run, scenes: Scenes) -> None:
    """Write teacher, curve and pictures, then the result that marks the folder as finished."""
    plan = run.plan
    run.average.load_state_dict(run.best)
    found = appraise(run.average, scenes, plan.held_out)
    numbers: dict[str, float] = {
        "held_out_iou": run.best_iou,
        "held_out_boundary_iou": found.mean("boundary_iou"),
        "temperature": found.after.temperature,
    }
    metadata: dict[str, str | int | float] = {
        **numbers,
        "step": run.best_step,
        "seed": plan.seed,
        **{f"{name}_sha256": digest for name, digest in plan.digests.items()},
    }
    record = {
        **numbers,
        "ece_before": found.before.ece,
        "ece_after": found.after.ece,
        "best_step": run.best_step,
        "steps": run.step,
        "sha256": save_checkpoint(plan.teacher_path, run.average, plan.config.model, metadata),
        "held_out": _scores(found),
        "identity": plan.identity(),
    }
    write_atomically(plan.output / "curve.csv", curve_csv(LOSSES, run.rows))
    write_atomically(plan.output / "curve.png", curve_png(LOSSES, run.rows, run.best_step))
    write_atomically(plan.output / "overlays.jpg", found.overlays)
    write_atomically(plan.output / "reliability.png", reliability_plot(found.before, found.after))
    write_atomically(plan.result_path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def _scores(found: Appraisal) -> dict[str, dict[str, float | None]]:
    names = ("iou", "boundary_iou", "precision", "recall", "label_confidence", "area_truth")
    return {image.name: {name: getattr(image, name) for name in names} for image in found.images}
