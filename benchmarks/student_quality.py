"""The student that the whole pipeline gives, cross-validated on real photographs, beside ready-made models.

Usage: python -m benchmarks.student_quality [--folds K] [--only I …] [--target N] [--config FILE] [--output DIR]

Reads ``$CURATE_SHARED/data`` and ``$CURATE_SHARED/models``. For each of K folds (by a hash of the name): a teacher is
trained on the other folds (or that of ``--teachers``, which ``benchmarks.teacher_quality --output`` made, is taken);
the main job chooses N of the unlabelled images and clips, labels, judges and publishes them; a student is trained on
the release and on the other folds' photographs, and a second one on those photographs alone, with as many steps. On
the fold's photographs, which none of them saw: IoU, Boundary IoU, precision and recall of both students (one view, no
previous mask), of the teacher and of the ready-made ONNX models, which have seen many thousand portraits; then the
difference of the student and PrismaNet per photograph with its interval (their latencies: ``benchmarks.latency``).
Killed, the same command goes on; ``--only I`` does some folds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.shared import SHARED
from benchmarks.teacher_quality import fold_of, link, measure, ready_made, report
from manifests.labelled import Labelled, read_labelled
from pipeline.config import Config, read_config
from pipeline.driver import curate
from pipeline.job import Job
from pipeline.process import prepare_process
from pipeline.runner import Runner
from pipeline.threads import torch_threads
from students.appraisal import predict
from students.data import Size
from students.model import load_student
from students.trainer import TrainConfig, TrainResult, train
from teachers.backend import load_teacher
from teachers.score import ImageScore, estimate
from teachers.teacher import Prediction, summarise
from teachers.train import teach


class Shipped:
    """A student, asked like a teacher."""

    def __init__(self, trained: TrainResult, sizes: Sequence[Size]) -> None:
        self._student, self._sizes = load_student(trained.checkpoint), sizes
        self.id, self.sha256 = "student", trained.sha256

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """One view of each, without a previous mask."""
        return [summarise(predict(self._student, image, self._sizes)) for image in images]


def teacher_of(fold: int, labelled: Path, values: argparse.Namespace, config: Config) -> Path:
    """The fold's teacher, which saw the other folds alone."""
    folder = (values.teachers or values.output) / f"fold{fold}" / "teacher"
    with torch_threads(config.driver.threads):
        return teach(labelled, folder, config.teach, seed=values.seed, report=print).checkpoint


def release_of(labelled: Path, teacher: Path, output: Path, values: argparse.Namespace, config: Config) -> Path:
    """The release of the main job on all that is not labelled."""
    inputs = (str(SHARED / "data" / "unlabelled"), str(SHARED / "data" / "clips"))
    job = Job(
        inputs=inputs, labelled=labelled, output=str(output), target=values.target, config=config,
        runner=Runner(workers=values.workers), seed=values.seed, teacher=teacher, max_bad=0.2,
    )  # fmt: skip
    return Path(curate(job).release)


def one_fold(
    fold: int, samples: Sequence[Labelled], values: argparse.Namespace, config: Config
) -> dict[str, list[ImageScore]]:
    """The scores of all models on a fold."""
    rest = [s for s in samples if fold_of(s.name, values.folds) != fold]
    held = [s for s in samples if fold_of(s.name, values.folds) == fold]
    folder = values.output / f"fold{fold}"
    labelled = link(rest, folder / "labelled")
    teacher = teacher_of(fold, labelled, values, config)
    release = release_of(labelled, teacher, folder / "run", values, config)
    with torch_threads(1):
        found: dict[str, list[ImageScore]] = {}
        for name, source in (("whole pipeline", release), ("photographs alone", None)):
            started = time.process_time()
            output = folder / name.replace(" ", "_")
            trained = train(source, labelled, output, config.train, seed=values.seed, report=print)
            print(f"fold {fold}, {name}: {time.process_time() - started:.0f} CPU s", flush=True)
            found[f"{config.train.preset}, {name}"] = measure(Shipped(trained, config.train.sizes()), held)
        found["its teacher"] = measure(load_teacher(teacher), held)
        for name, load in ready_made().items():
            found[f"{name} (ready-made)"] = measure(load(), held)
    return found


def compare(first: Sequence[ImageScore], second: Sequence[ImageScore], words: str) -> None:
    """Prints the mean difference in IoU per photograph."""
    pairs = [(a.iou, b.iou) for a, b in zip(first, second, strict=True) if a.iou is not None and b.iou is not None]
    found = estimate(np.array([(1 + a - b) / 2 for a, b in pairs]))  # it is for scores in [0, 1]
    mean, low, high = (float("nan") if v is None else 2 * v - 1 for v in (found.mean, found.low, found.high))
    print(f"\nIoU, {words}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {len(pairs)} photographs")


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--only", type=int, nargs="+")
    parser.add_argument("--target", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--config", type=Path, help="TOML file; [train] is the student's recipe")
    parser.add_argument("--teachers", type=Path, help="an --output of benchmarks.teacher_quality with as many folds")
    parser.add_argument("--output", type=Path, default=Path("student_quality"))
    values = parser.parse_args()
    samples = read_labelled(SHARED / "data")
    config = read_config(values.config)
    if values.config is None:
        config = replace(config, train=TrainConfig(side=160, steps=3000, mask_channel=False))
    results: dict[str, list[ImageScore]] = {}
    for fold in values.only or range(values.folds):
        for name, scores in one_fold(fold, samples, values, config).items():
            results.setdefault(name, []).extend(scores)
    report(results)
    ours = f"{config.train.preset}, whole pipeline"
    compare(results[ours], results[f"{config.train.preset}, photographs alone"], "with the release less without")
    if "prisma (ready-made)" in results:
        compare(results[ours], results["prisma (ready-made)"], "ours less PrismaNet")


if __name__ == "__main__":
    prepare_process()
    main()
