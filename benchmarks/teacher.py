"""What a PointRend costs, beside the same network run as Detectron2 runs it: CPU seconds, images/s, equal pixels.

Usage: python -m benchmarks.teacher [--models NAME ...] [--sizes HxW ...] [--batches N ...] [--rounds R] [--compile]
                                    [--device cpu|cuda] [--weights FILE]

Both sides run in turns, on one thread, in one process; the best round of each counts. Images already have the size of
the network's input. Of a CPU its time is printed (a shared machine does not change it much), of a GPU that of the
clock; `equal` is the share of pixels on which person masks (p >= 0.5) equal the peer's.

The peer is Detectron2 where it is installed. Elsewhere it is our own modules run its way, and the table says so:
NCHW memory, batch normalisation unfolded, float32, direct convolutions, p6 computed, softmax of all classes, on a
CPU image by image. What is not the same: Detectron2's own Python between the layers; its choice of uncertain pixels
(torch's topk over classes, some 30 ms per 480x640 image of 19 classes), which ours does in both columns faster.

Without --weights, weights follow from seed 0 and are brought to life with drawn scenes (`pipeline.scene`): statistics
of batch normalisation measured on two, the last of each residual block scaled by 0.3 as trained ones are small; the
predictors of the semantic models are the least-squares fit to drawn persons, and the instance model's score of a
person is shifted until ten are found in the first scene. Such features are random and such masks far less firm than
those of a trained network, so `equal` of bfloat16 says little about one: give --weights for that.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.camera import render
from pipeline.scene import draw_scene
from pipeline.threads import one_thread
from teachers import instance, points
from teachers.backbone import normalise, pad
from teachers.backend import TeacherConfig, load_model, load_teacher
from teachers.checkpoint import save_checkpoint
from teachers.instance import InstanceConfig, InstancePointRend, build_instance
from teachers.pointrend import PointRend, PointRendBackend
from teachers.resnet import BatchNorm, Block
from teachers.semantic import SemanticConfig, SemanticPointRend, build
from teachers.teacher import Labeller

Image = NDArray[np.uint8]
Soft = NDArray[np.float32]
Run = Callable[[Sequence[Image]], list[Soft]]

MODELS = ("semantic-r50", "semantic-r101", "instance-r50")
LEAST_SCORE = 0.05


# --- Weights -----------------------------------------------------------------------------------------------------


def make(name: str) -> PointRend:
    """A network whose weights follow from the docstring above."""
    kind, _, depth = name.partition("-r")
    model: PointRend
    if kind == "semantic":
        model = build(SemanticConfig(depth=int(depth), num_classes=19, person_classes=(11,)), 0)
    else:
        model = build_instance(InstanceConfig(depth=int(depth)), 0)
    scenes = [render(draw_scene(0, n), 0.0, height_width=(240, 320)) for n in range(12)]
    with torch.no_grad():
        _calibrate(model.eval(), torch.cat([_input(image, model) for image, _ in scenes[:2]]))
        if isinstance(model, SemanticPointRend):
            _fit(model, scenes)
        else:
            _shift(model, _input(scenes[0][0], model), (240, 320))
    return model


def _input(image: Image, model: PointRend) -> Tensor:
    return pad([normalise(image, model.config)])


def _calibrate(model: PointRend, images: Tensor) -> None:
    """Measure the statistics of every batch normalisation, in the order in which they are met."""

    def measure(norm: BatchNorm, given: tuple[Tensor]) -> None:
        norm.running_mean.copy_(given[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(given[0].var(dim=(0, 2, 3)))

    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for block in (m for m in model.modules() if isinstance(m, Block)):
        block.get_submodule(f"{block.names[-1]}.norm").get_buffer("weight").fill_(0.3)
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.features(images)
    for hook in hooks:
        hook.remove()


def _fit(model: SemanticPointRend, scenes: Sequence[tuple[Image, NDArray[np.bool_]]]) -> None:
    """Both predictors: the least-squares fit to +-6 on persons and elsewhere; classes but 0 and the person get -8."""
    person = model.config.person_classes[0]
    coarse_head, point_head = model.sem_seg_head.coarse_sem_seg_head, model.sem_seg_head.point_head
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(len(scenes), 4000, 2, generator=generator)
    truth = [torch.from_numpy(mask)[None, None].float() for _, mask in scenes]
    wanted = torch.cat([points.point_sample(t, w[None])[0, 0] for t, w in zip(truth, where, strict=True)])
    seen: list[Tensor] = []
    for predictor, at_points in ((coarse_head.predictor, False), (point_head.predictor, True)):
        hook = predictor.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        rows = []
        for (image, _), w in zip(scenes, where, strict=True):
            seen.clear()
            features = model.features(_input(image, model))
            coarse = model.coarse(features)
            if at_points:
                model.point_logits(coarse, features["p2"], w[None])
            rows.append((seen[-1] if at_points else points.point_sample(seen[0], w[None]))[0].T)
        hook.remove()
        weight, bias = _least_squares(torch.cat(rows).double(), wanted.double() * 12 - 6)
        assert predictor.bias is not None
        predictor.weight.zero_()
        predictor.bias.fill_(-8.0)
        for row, sign in ((0, -0.5), (person, 0.5)):
            predictor.weight[row].view(-1).copy_(sign * weight)
            predictor.bias[row] = sign * bias


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(dim=0)
    gram = (x - mean).T @ (x - mean)
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, (x - mean).T @ (y - y.mean()))
    return weight, y.mean() - mean @ weight


def _shift(model: InstancePointRend, images: Tensor, size: tuple[int, int]) -> None:
    """Move the logit of a person until about ten are found."""
    features = model.features(images)
    proposals = model.proposals(features, [size])
    logits, deltas = model.roi_heads.box_predictor(model.box_features(features, [p.boxes for p in proposals]))
    low, high = -20.0, 20.0
    for _ in range(20):
        moved = logits.clone()
        moved[:, 0] += (low + high) / 2
        (found,) = model.detect(moved, deltas, proposals, [size])
        low, high = (low, (low + high) / 2) if len(found.boxes) > 10 else ((low + high) / 2, high)
    model.roi_heads.box_predictor.cls_score.bias[0] += low


# --- Both sides --------------------------------------------------------------------------------------------------


def ours(model: PointRend, device: str, precision: torch.dtype, *, compiled: bool = False) -> Run:
    """Our backend."""
    backend = PointRendBackend(
        model, "0" * 64, device=device, precision=precision, person_score=LEAST_SCORE, compiled=compiled
    )
    return lambda images: [soft.probability for soft in backend.soft(images, 1.0)]


def peer(model: PointRend, device: str) -> tuple[str, Run]:
    """Detectron2, or our modules run its way; with its name."""
    if importlib.util.find_spec("detectron2") is None:
        return "the same network run as Detectron2 runs it (Detectron2 is not installed)", _as_detectron2(model, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_checkpoint(path, model, model.config, {})
        config = TeacherConfig(backend="detectron2", device=device, person_score=LEAST_SCORE)
        teacher = load_teacher(path, config)
    return "Detectron2", lambda images: [p.probability for p in teacher.predict(images)]


def _as_detectron2(model: PointRend, device: str) -> Run:
    model = model.to(device).to(memory_format=torch.contiguous_format).eval()

    def run(images: Sequence[Image]) -> list[Soft]:
        groups = [[x] for x in images] if device == "cpu" else [list(images)]
        return [soft for group in groups for soft in _plainly(model, group, device)]

    return run


@torch.inference_mode()
def _plainly(model: PointRend, images: Sequence[Image], device: str) -> list[Soft]:
    inputs = pad([normalise(x, model.config) for x in images]).to(device)
    size = images[0].shape[:2]
    if isinstance(model, InstancePointRend):
        found = model(inputs, [size] * len(images))
        persons = [instance.person(f, size, model.config.person_classes, LEAST_SCORE)[0] for f in found]
        return [p.cpu().numpy() for p in persons]
    features = model.features(inputs)
    functional.max_pool2d(features["p5"], kernel_size=1, stride=2)  # p6, which it always computes
    logits = coarse = model.coarse(features)
    for step in model.refine(coarse, features["p2"]):
        logits = step.logits
    cut = logits[:, :, : size[0], : size[1]]
    whole = functional.interpolate(cut, size=size, mode="bilinear", align_corners=False)
    share = whole.softmax(dim=1)[:, list(model.config.person_classes)].sum(dim=1)
    return [p.cpu().numpy() for p in share]


# --- Measuring ---------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Run], images: Sequence[Image], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Seconds per image of each, (processor, clock), the best of several interleaved rounds after a warm-up."""
    best = dict.fromkeys(runs, (float("inf"), float("inf")))
    for number in range(rounds + 1):
        for name, run in runs.items():
            before = time.process_time(), time.perf_counter()
            run(images)
            if device != "cpu":
                torch.cuda.synchronize()
            spent = (time.process_time() - before[0], time.perf_counter() - before[1])
            if number:
                best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return {name: (cpu / len(images), wall / len(images)) for name, (cpu, wall) in best.items()}


def _equal(a: Sequence[Soft], b: Sequence[Soft]) -> float:
    return float(np.mean([np.mean((x >= 0.5) == (y >= 0.5)) for x, y in zip(a, b, strict=True)]))


def _rows(name: str, model: PointRend, size: tuple[int, int], batch: int, values: argparse.Namespace) -> None:
    label, theirs = peer(model, values.device)
    runs = {
        "peer": theirs,
        "float32": ours(model, values.device, torch.float32),
        "bfloat16": ours(model, values.device, torch.bfloat16),
    }
    if values.compile:
        runs["float32 compiled"] = ours(model, values.device, torch.float32, compiled=True)
    images = [render(draw_scene(1, n), 0.0, height_width=size)[0] for n in range(batch)]
    times = measure(runs, images, values.rounds, values.device)
    wanted = theirs(images)
    print(f"\n{name} {size[0]}x{size[1]} batch {batch}; peer: {label}; persons on {np.mean(_shares(wanted)):.1%}")
    clock = 0 if values.device == "cpu" else 1
    for key, (cpu, wall) in times.items():
        ratio = times["peer"][clock] / times[key][clock]
        print(
            f"  {key:18} {cpu:7.3f} CPU s/image {1 / wall:8.2f} images/s  x{ratio:5.2f}  "
            f"equal {_equal(runs[key](images), wanted):.4%}",
            flush=True,
        )


def _shares(probabilities: Sequence[Soft]) -> list[float]:
    return [float((p >= 0.5).mean()) for p in probabilities]


def _views(model: PointRend, size: tuple[int, int], values: argparse.Namespace) -> None:
    """What test-time augmentation costs."""
    backend = PointRendBackend(model, "0" * 64, device=values.device)
    views = {
        "plain": Labeller(backend=backend),
        "flip": Labeller(backend=backend, flip=True),
        "scales": Labeller(backend=backend, scales=(0.75, 1.0, 1.25)),
    }
    runs: dict[str, Run] = {
        key: lambda images, labeller=labeller: [p.probability for p in labeller.predict(images)]  # type: ignore[misc]
        for key, labeller in views.items()
    }
    times = measure(runs, [render(draw_scene(1, 0), 0.0, height_width=size)[0]], values.rounds, values.device)
    clock = 0 if values.device == "cpu" else 1
    factors = {key: seconds[clock] / times["plain"][clock] for key, seconds in times.items()}
    print(f"\ntest-time augmentation: flip x{factors['flip']:.2f}, scales 0.75, 1, 1.25 x{factors['scales']:.2f}")


def _at(model: PointRend, size: tuple[int, int]) -> PointRend:
    """With an input of the image's own size."""
    values = {f: getattr(model.config, f) for f in type(model.config).__dataclass_fields__ if f != "architecture"}
    values |= {"min_size_test": min(size), "max_size_test": max(size)}
    model.config = type(model.config)(**values)  # type: ignore[arg-type,assignment]
    return model


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(480, 640), (512, 1024)])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path)
    values = parser.parse_args(argv)
    one_thread()
    for name in [str(values.weights)] if values.weights else values.models:
        model = load_model(values.weights)[0] if values.weights else make(name)
        for size in values.sizes:
            for batch in values.batches:
                _rows(name, _at(model, size), size, batch, values)
        _views(model, values.sizes[0], values)


if __name__ == "__main__":
    main()
