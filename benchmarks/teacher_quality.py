"""What a teacher learns from a few hundred photographs: cross-validated, beside simpler and ready-made models.

Usage: python -m benchmarks.teacher_quality [--folds K] [--only I] [--seed S] [--config FILE] [--output DIR] [--flip]

Reads ``$CURATE_SHARED/data`` (labelled photographs) and ``$CURATE_SHARED/models`` (ONNX person models, where present).
For each of K folds (by a hash of the name) a teacher is trained from nothing on the rest, with the recipe that
``teachers.recipe.TeachConfig`` has by default and the seed, and measured on the fold. On the same pictures: the mean
mask of the rest (the prior), and the ONNX models, which have seen many thousand portraits.
Printed are IoU, Boundary IoU, precision and recall over all folds, with intervals, and IoU by source of the pictures.
Killed, the same command goes on; ``--only I`` trains and measures one fold (to run folds side by side).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.shared import SHARED
from manifests.labelled import Labelled, load_labelled, read_labelled
from pipeline.config import read_config
from pipeline.process import prepare_process
from pipeline.threads import torch_threads
from teachers.backend import TeacherConfig, load_teacher
from teachers.onnx import OnnxConfig
from teachers.score import METRICS, ImageScore, estimate, score
from teachers.teacher import Prediction, Teacher, summarise
from teachers.train import teach

PRIOR_SIDE = 64
ONNX = {
    "prisma": OnnxConfig(std=(255.0, 255.0, 255.0)),
    "sinet": OnnxConfig(
        channels="BGR",
        mean=(102.890434, 111.25247, 126.91212),
        std=(62.93292 * 255, 62.82138 * 255, 66.355705 * 255),
        output="probabilities",
    ),
    "deeplab": OnnxConfig(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5), output="logits"),
}
"""How the models of ``$CURATE_SHARED/models`` want their input; see the README there."""


class MeanMask:
    """The prior: the mean mask of the training pictures, stretched over whatever comes."""

    def __init__(self, samples: Sequence[Labelled]) -> None:
        masks = [load_labelled(sample)[1].astype(np.float32) for sample in samples]
        side = (PRIOR_SIDE, PRIOR_SIDE)
        self.mean = np.mean([cv2.resize(mask, side, interpolation=cv2.INTER_AREA) for mask in masks], axis=0)
        self.id, self.sha256 = "mean mask", ""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """The same for every picture of a shape."""
        sizes = [image.shape[1::-1] for image in images]
        stretched = [cv2.resize(self.mean, size, interpolation=cv2.INTER_LINEAR) for size in sizes]
        return [summarise(np.clip(soft, 0, 1).astype(np.float32)) for soft in stretched]


def fold_of(name: str, folds: int) -> int:
    """The fold of a picture."""
    return int(hashlib.sha256(f"fold|{name}".encode()).hexdigest(), 16) % folds


def link(samples: Sequence[Labelled], folder: Path) -> Path:
    """A labelled folder of links to the files of some samples."""
    for sample in samples:
        for kind, path in (("images", sample.image), ("masks", sample.mask), ("ignore", sample.ignore)):
            if path is not None:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                if not (folder / kind / path.name).exists():
                    (folder / kind / path.name).symlink_to(path.resolve())
    return folder


def measure(teacher: Teacher, samples: Sequence[Labelled]) -> list[ImageScore]:
    """The scores of a teacher on some samples."""
    scores = []
    for sample in samples:
        image, mask, ignore = load_labelled(sample)
        (prediction,) = teacher.predict([image])
        scores.append(score(sample.name, prediction, mask, ignore))
    return scores


def ready_made() -> dict[str, Callable[[], Teacher]]:
    """Name -> loader of the ONNX models that are there."""
    found: dict[str, Callable[[], Teacher]] = {}
    for name, config in ONNX.items():
        path = SHARED / "models" / f"{name}.onnx"
        if path.is_file():
            found[name] = lambda path=path, config=config: load_teacher(path, TeacherConfig(onnx=config))  # type: ignore[misc]
    return found


def shown(scores: Sequence[ImageScore], metric: str) -> str:
    """Mean and interval of a metric."""
    found = estimate(np.array([value for s in scores if (value := getattr(s, metric)) is not None]))
    if found.mean is None or found.low is None or found.high is None:
        return f"{'-' if found.mean is None else f'{found.mean:.3f}':>20}"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def report(results: Mapping[str, Sequence[ImageScore]]) -> None:
    """Prints the table."""
    sources = sorted({s.name.split("_")[0] for scores in results.values() for s in scores})
    print(f"\n{'':24}{'images':>7}" + "".join(f"{m.replace('_', ' '):>24}" for m in METRICS))
    for name, scores in results.items():
        print(f"{name:24}{len(scores):>7}" + "".join(f"{shown(scores, m):>24}" for m in METRICS))
    print(f"\n{'IoU by source':24}" + "".join(f"{source:>10}" for source in sources))
    for name, scores in results.items():
        parts = [[s for s in scores if s.name.split("_")[0] == source] for source in sources]
        means = ["-" if not part else f"{np.mean([s.iou for s in part if s.iou is not None]):.3f}" for part in parts]
        print(f"{name:24}" + "".join(f"{mean:>10}" for mean in means))


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="TOML file; its section [teach] is the recipe")
    parser.add_argument("--output", type=Path, default=Path("teacher_quality"))
    parser.add_argument("--flip", action="store_true", help="measure with the mirrored view, too")
    values = parser.parse_args()
    samples = read_labelled(SHARED / "data")
    config = read_config(values.config)
    results: dict[str, list[ImageScore]] = {}
    for fold in [values.only] if values.only is not None else range(values.folds):
        rest = [s for s in samples if fold_of(s.name, values.folds) != fold]
        held = [s for s in samples if fold_of(s.name, values.folds) == fold]
        folder = values.output / f"fold{fold}"
        started = time.process_time()
        with torch_threads(config.driver.threads):
            labelled = link(rest, folder / "labelled")
            trained = teach(labelled, folder / "teacher", config.teach, seed=values.seed, report=print)
        print(f"fold {fold}: {len(rest)} to train on, {len(held)} held out; {time.process_time() - started:.0f} CPU s")
        with torch_threads(1):
            results.setdefault("mean mask", []).extend(measure(MeanMask(rest), held))
            results.setdefault("ours", []).extend(measure(load_teacher(trained.checkpoint), held))
            if values.flip:
                flipped = load_teacher(trained.checkpoint, TeacherConfig(flip=True))
                results.setdefault("ours, flip", []).extend(measure(flipped, held))
            for name, load in ready_made().items():
                results.setdefault(f"{name} (ready-made)", []).extend(measure(load(), held))
    report(results)


if __name__ == "__main__":
    prepare_process()
    main()
