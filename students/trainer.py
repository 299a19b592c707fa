"""Train the shipping student on a release, with or without a labelled set, on a CPU or on one or several GPUs.

Killed at any moment and started again, a run on one CPU device ends with the same bytes.

    output/
      student.safetensors   the best weights by held-out IoU (moving average); the last ones where nothing is held out
      curve.csv, curve.png  step, loss, learning rate, held-out IoU
      batch.jpg             some images of both sources as the network sees them, with the previous masks it is shown
      overlays.jpg          held-out images from the worst to the best, mistakes painted; renewed at every validation
      state.pt              what a continued run needs (tensors, numbers and text only)
      result.json           scores, also of every held-out image; written last: the folder is finished
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifests.labelled import Labelled, held_out, labelled_sha256, read_labelled
from manifests.release import canonical_json
from students import appraisal
from students.data import nearest_bucket
from students.feed import Feed, loaders, mixture
from students.imagenet import load_imagenet
from students.losses import segmentation_loss
from students.model import Student, build_student, load_student, read_metadata, save_student
from students.recipe import TrainConfig, TrainError
from students.shards import Shards, open_shards
from students.views import Encoded, TrainBatch, View, draw_view, network_images
from training.average import follow
from training.curve import curve_csv, curve_png
from training.devices import DeviceError, Report, accelerator_of, spread
from training.files import remove_unfinished, sha256_file, write_atomically
from training.muon import Muon
from training.rate import warm_cosine
from training.state import StateError, check_identity, read_state, write_state

__all__ = ["LOSSES", "TrainConfig", "TrainError", "TrainResult", "train"]

#: Columns of the losses in `curve.csv`.
LOSSES = ("total",)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a finished training gave; scores are of the kept weights on the held-out images at their own size.

    Attributes:
        checkpoint: The file of weights, `student.safetensors`.
        sha256: Its digest.
        held_out_iou: Mean IoU; None where nothing is held out.
        held_out_boundary_iou: Mean Boundary IoU; None where nothing is held out.
        best_step: The step the weights are from.
        steps: Steps taken.
    """

    checkpoint: Path
    sha256: str
    held_out_iou: float | None
    held_out_boundary_iou: float | None
    best_step: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What identifies a run, and where its data and its files are."""

    config: TrainConfig
    seed: int
    release: Path | None
    labelled: tuple[Labelled, ...]
    held_out: frozenset[str]
    digests: Mapping[str, str]
    threads: int
    output: Path

    def identity(self) -> dict[str, Any]:
        """Every value that a continued run must share; files count by content, not by path."""
        return {**self.config.identity(), "seed": self.seed, "threads": self.threads, **self.digests}


def train(
    release: Path | None,
    labelled: Path | None,
    output: Path,
    config: TrainConfig,
    *,
    seed: int,
    require_signoff: bool = False,
    allowed_signers: Path | None = None,
    report: Callable[[str], None],
) -> TrainResult:
    """Train a student, or go on with one that was interrupted, or return the one that is finished.

    On one machine, one CPU device and one number of torch threads, equal data, configuration and seed give equal
    bytes, however often the run was interrupted. With several devices the sums are the same but for their rounding,
    except that batch normalisation sees the images of one device only, and the boundary loss is averaged over those of
    one device that have a boundary.

    Args:
        release: A folder with a release; all its files are checked before the first step. None for labelled data alone.
        labelled: A folder as `manifests.labelled.read_labelled` takes it, or None for the release alone.
        output: The folder written; made if absent.
        config: How.
        seed: Of the first weights, the order, the views and the priors; at least 0.
        require_signoff: Whether to refuse a release that no person has signed off.
        allowed_signers: Who may sign as whom; where it is given, one of them must have signed it off with their key.
        report: Called with a line of text at every report and validation.

    Raises:
        LabelledError: The labelled set is unusable.
        ReleaseError: There is no release, or `release.json` breaks a rule.
        UnsignedError: No person has signed the release off, where that is asked for.
        SignatureError: There is no file of allowed signers, or no `ssh-keygen`.
        SampleError: An image or mask cannot be decoded; names the sample.
        ShardError: A shard is missing, truncated, exchanged or damaged; names the file, and the row group if known.
        TrainError: There is nothing to train on; `output` holds another run (the difference is named) or a broken
            state; `init` cannot be used; a GPU is asked for and absent; or a loss is not finite.
    """
    try:
        accelerator_of(config.on())
    except DeviceError as error:
        raise TrainError(str(error)) from error
    samples = () if labelled is None else read_labelled(labelled)
    names = [sample.name for sample in samples]
    held = held_out(names, config.held_out_one_in) if len(names) > 1 else frozenset[str]()
    shards = (
        None
        if release is None
        else open_shards(release, require_signoff=require_signoff, allowed_signers=allowed_signers)
    )
    mixture(config, labelled=len(samples), release=len(shards or ()))
    digests = {
        "release": "" if shards is None else shards.fingerprint,
        "labelled": labelled_sha256(samples) if samples else "",
        "init": _init_sha256(config),
    }
    plan = _Plan(
        config=config, seed=seed, release=release, labelled=samples, held_out=held, digests=digests,
        threads=torch.get_num_threads(), output=output,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    try:
        finished = _finished(plan)
        if finished is None:
            spread(partial(_train, plan), config.on(), report)
            finished = _finished(plan)
    except (DeviceError, StateError) as error:
        raise TrainError(str(error)) from error
    assert finished is not None
    return finished


def _init_sha256(config: TrainConfig) -> str:
    if not config.init:
        return ""
    try:
        return sha256_file(Path(config.init))
    except OSError as error:
        raise TrainError(f"train.init {config.init!r} cannot be read: {error.strerror}; check the path") from error


class _Run:
    """What changes while training, in one process."""

    def __init__(self, plan: _Plan, fabric: Any, report: Report) -> None:
        self.plan, self.fabric = plan, fabric
        config = plan.config
        state = read_state(plan.output / "state.pt", plan.identity())
        self.student = _first_weights(plan).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = deepcopy(self.student).eval().to(fabric.device)
        self.muon = Muon(self.student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.network, self.optimiser = fabric.setup(self.student, self.muon)
        self.step, self.best_iou, self.best_step = 0, -1.0, 0
        self.best: dict[str, Tensor] = {}
        self.rows: list[list[float]] = []
        if state is not None:
            self._restore(state)
            report(f"going on from step {self.step} of {config.steps}")

    def save(self) -> None:
        """Write `state.pt` and `curve.csv`."""
        state = {
            "model": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.muon.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "best_iou": self.best_iou,
            "best_step": self.best_step,
            "best": self.best,
            "rows": torch.tensor(self.rows, dtype=torch.float64),
        }
        write_state(self.plan.output / "state.pt", self.plan.identity(), state)
        write_atomically(self.plan.output / "curve.csv", curve_csv(LOSSES, self.rows))

    def _restore(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.muon.load_state_dict(state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.step, self.best_iou, self.best_step = state["step"], state["best_iou"], state["best_step"]
        self.best = dict(state["best"])
        self.rows = state["rows"].tolist()

    def keep(self, score: float) -> None:
        """Keep the average's weights if no earlier ones had this score."""
        if score > self.best_iou:
            self.best_iou, self.best_step = score, self.step
            self.best = {key: value.clone() for key, value in self.average.state_dict().items()}


def _first_weights(plan: _Plan) -> Student:
    """Drawn ones, over which those of `init` are laid: a student's as they are, or timm's into the encoder."""
    config = plan.config
    student = build_student(config.network(), plan.seed)
    if not config.init:
        return student
    path = Path(config.init)
    try:
        if path.suffix == ".safetensors" and _is_student(path):
            given = load_student(path)
            if given.config != student.config:
                raise ValueError(f"its network is {given.config}, and {student.config} is to be trained")
            return given
        load_imagenet(student, path)
    except (ValueError, OSError) as error:
        raise TrainError(f"train.init {config.init!r}: {error}") from error
    return student


def _is_student(path: Path) -> bool:
    try:
        read_metadata(path)
    except ValueError:
        return False
    return True


def _train(plan: _Plan, fabric: Any, report: Report) -> None:
    """What every process does; the first one writes."""
    config = plan.config
    shards = None if plan.release is None else open_shards(plan.release, verify=False)
    _check_release(plan, shards)
    own = [Encoded.from_labelled(sample, gold=True) for sample in plan.labelled]
    trained = [sample for sample in own if sample.name not in plan.held_out]
    first = fabric.global_rank == 0
    shown = _held_out(plan, own) if first else []
    appraisal.check(shown)
    run = _Run(plan, fabric, report)
    feed = Feed(
        trained, shards, config, seed=plan.seed, start=run.step,
        rank=fabric.global_rank, world=fabric.world_size, loaders=loaders(fabric.device),
    )  # fmt: skip
    try:
        if first and run.step == 0:
            _begin(plan, trained, shards, feed, len(shown), report)
        _steps(run, feed, shown, report)
    finally:
        feed.close()
    if first:
        _finish(run, shown)


def _check_release(plan: _Plan, shards: Shards | None) -> None:
    if shards is not None and shards.fingerprint != plan.digests["release"]:
        raise TrainError(f"{plan.release}: the release was exchanged while it was read; start again")


def _held_out(plan: _Plan, own: Sequence[Encoded]) -> list[Encoded]:
    """The images to validate on: held-out labelled ones, or the release's own, which a teacher labelled."""
    most = plan.config.held_out_most
    if plan.held_out:
        held = [sample for sample in own if sample.name in plan.held_out]
        chosen = sorted(held, key=lambda sample: hashlib.sha256(sample.name.encode()).digest())[:most]
        return sorted(chosen, key=lambda sample: sample.name)
    validation = None if plan.release is None else open_shards(plan.release, "val")
    if validation is None or not len(validation):
        return []
    return next(validation.read([np.arange(min(most, len(validation)))]))


def _begin(
    plan: _Plan, trained: Sequence[Encoded], shards: Shards | None, feed: Feed, shown: int, report: Report
) -> None:
    """Say what is trained on, and draw it."""
    config = plan.config
    count = len(shards) if shards is not None else 0
    passes = ""
    if feed.release_steps:
        taken = config.steps - mixture(config, labelled=len(trained), release=count).labelled_before(config.steps)
        passes = f", seen {taken / feed.release_steps:.1f} times"
    report(f"{count} samples of the release{passes}; {len(trained)} labelled images; {shown} held out")
    views, captions = _views(plan, trained, shards)
    write_atomically(plan.output / "batch.jpg", appraisal.views_sheet(views, captions))


def _views(plan: _Plan, trained: Sequence[Encoded], shards: Shards | None) -> tuple[list[View], list[str]]:
    """Views of images of both sources, half of each where there are enough, and what to call them."""
    config, count = plan.config, len(shards) if shards is not None else 0
    most = appraisal.SHOWN - min(count, appraisal.SHOWN // 2)
    places = np.linspace(0, len(trained), min(most, len(trained)), endpoint=False).astype(int)
    own = [trained[place] for place in places]
    taken = min(count, appraisal.SHOWN - len(own))
    given = next(shards.read([np.arange(taken)])) if shards is not None and taken else []
    rng = np.random.default_rng([plan.seed])
    prior = config.prior if config.mask_channel else None
    views = []
    for sample in (*own, *given):
        size = nearest_bucket(sample.height, sample.width, config.sizes())
        views.append(draw_view(sample, size, config.view, rng, strong=config.strong and not sample.gold, prior=prior))
    captions = [f"labelled: {sample.name}" for sample in own] + [f"release: {sample.name}" for sample in given]
    return views, captions


def _steps(run: _Run, feed: Feed, shown: Sequence[Encoded], report: Report) -> None:
    config = run.plan.config
    first = run.fabric.global_rank == 0
    saved = time.monotonic()
    while run.step < config.steps:
        batch = feed.next()
        row = _step(run, batch, feed.share)
        if not first:
            continue
        validates = run.step % config.validate_every == 0 or run.step == config.steps
        run.rows.append([*row, _validate(run, shown) if validates else math.nan])
        if validates or time.monotonic() - saved >= config.save_seconds:
            run.save()
            saved = time.monotonic()
        if validates or run.step % config.report_every == 0:
            report(_line(run, validates=validates and bool(shown)))


def _step(run: _Run, batch: TrainBatch, share: float) -> list[float]:
    """One optimiser step; returns its number, the loss of a full batch of such images, and the rate.

    ``share`` is the part of a full batch that this one is: its loss is lighter by that, which is no progress.
    """
    config, fabric = run.plan.config, run.fabric
    batch = batch.to(fabric.device)
    rate = warm_cosine(run.step, config.steps, peak=config.learning_rate, warm_up=config.warm_up)
    for group in run.muon.param_groups:
        group["lr"] = rate
    with fabric.autocast():
        images = network_images(batch, run.student, run.student.config.in_channels)
    logits = run.network(images.contiguous(memory_format=torch.channels_last))
    loss = _loss(logits, batch, config)
    total = fabric.all_reduce(loss.detach(), reduce_op="mean") if fabric.world_size > 1 else loss.detach()
    value = float(total)
    if not math.isfinite(value):
        raise TrainError(f"step {run.step + 1}: the loss is {value}; lower the learning rate ({rate:.3g})")
    run.optimiser.zero_grad()
    fabric.backward(loss)
    fabric.clip_gradients(run.network, run.optimiser, max_norm=config.clip, error_if_nonfinite=False)
    run.optimiser.step()
    run.step += 1
    follow(run.average, run.student, min(config.ema, run.step / (run.step + 10)))
    return [run.step, value / share if share else value, rate]


def _loss(logits: Tensor, batch: TrainBatch, config: TrainConfig) -> Tensor:
    """Of the rows of weight above 0: any other would still count among the images of a mean."""
    rows = torch.nonzero(batch.weight > 0)[:, 0]
    parts = logits, batch.target, batch.ignore, batch.weight
    if 0 < len(rows) < len(batch.weight):
        parts = tuple(part[rows] for part in parts)  # type: ignore[assignment]
    return segmentation_loss(*parts, config.boundary, two_sided=config.two_sided, dice=config.dice)


def _validate(run: _Run, shown: Sequence[Encoded]) -> float:
    """Mean IoU of the averaged weights on the held-out images; keeps the best weights. NaN where none is held out."""
    found = appraisal.scores(run.average, shown, run.plan.config.sizes())
    if not found:
        run.keep(run.step)  # the last ones
        return math.nan
    mean = float(np.mean([score.iou for score in found]))
    run.keep(mean)
    pictures = appraisal.overlays(run.average, shown, run.plan.config.sizes(), found)
    write_atomically(run.plan.output / "overlays.jpg", pictures)
    return mean


def _line(run: _Run, *, validates: bool) -> str:
    text = f"step {run.step} of {run.plan.config.steps}: loss {run.rows[-1][1]:.4f}"
    if not validates:
        return text
    return f"{text}; held-out IoU {run.rows[-1][-1]:.4f}, best {run.best_iou:.4f} at step {run.best_step}"


def _finish(run: _Run, shown: Sequence[Encoded]) -> None:
    """Write student, curve and pictures, then the result that marks the folder as finished."""
    plan, config = run.plan, run.plan.config
    run.average.load_state_dict(run.best)
    found = appraisal.scores(run.average, shown, config.sizes())
    if found:
        write_atomically(plan.output / "overlays.jpg", appraisal.overlays(run.average, shown, config.sizes(), found))
    path = plan.output / "student.safetensors"
    identity = canonical_json(plan.identity()).decode()
    metadata = {"training": identity, "step": str(run.best_step), "seed": str(plan.seed), "side": str(config.side)}
    save_student(path, run.average.cpu(), config.network(), {**metadata, "fit": config.fit})
    record = {
        "held_out_iou": float(np.mean([score.iou for score in found])) if found else None,
        "held_out_boundary_iou": float(np.mean([score.boundary_iou for score in found])) if found else None,
        "best_step": run.best_step,
        "steps": run.step,
        "sha256": sha256_file(path),
        "held_out": {score.name: {"iou": score.iou, "boundary_iou": score.boundary_iou} for score in found},
        "identity": plan.identity(),
    }
    write_atomically(plan.output / "curve.csv", curve_csv(LOSSES, run.rows))
    write_atomically(plan.output / "curve.png", curve_png(LOSSES, run.rows, run.best_step))
    remove_unfinished(plan.output)
    write_atomically(plan.output / "result.json", (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def _finished(plan: _Plan) -> TrainResult | None:
    """The result of a finished folder, None where it is not finished.

    Raises:
        StateError: It is broken or of another run, or the weights are not those that were finished.
    """
    path, checkpoint = plan.output / "result.json", plan.output / "student.safetensors"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        numbers = ("held_out_iou", "held_out_boundary_iou", "best_step", "steps", "sha256")
        result = TrainResult(checkpoint=checkpoint, **{name: record[name] for name in numbers})
        stored = record["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} cannot be read ({error!r}): remove {plan.output}") from error
    check_identity(plan.identity(), stored, path)
    if not checkpoint.is_file() or sha256_file(checkpoint) != result.sha256:
        raise StateError(f"{checkpoint} is not the student that was finished: remove {plan.output} to train it again")
    return result
