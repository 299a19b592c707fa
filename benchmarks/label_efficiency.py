"""What pseudo labels add to a tenth of the labels: the shipping model with and without them, on held-out photographs.

Usage: python -m benchmarks.label_efficiency [--seeds I …] [--share X] [--target N] [--config FILE] [--output DIR]

Reads the labelled photographs of ``$CURATE_SHARED/data`` and its unlabelled ones. For each seed: a quarter of the
labelled photographs is held out (by a hash of name and seed); of the others, ``--share`` keep their masks and the rest
become unlabelled. A teacher is trained on those masks alone; the main job chooses N of all unlabelled photographs,
labels, judges and publishes them; a student is trained on the release and the few masks, and one with the same recipe,
steps and seed on the few masks alone. Printed: IoU of both on the held-out photographs, of the teacher, and the
difference with its interval over photographs, seed by seed and over seeds.
Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.shared import SHARED
from benchmarks.student_quality import Shipped
from benchmarks.teacher_quality import link, measure
from manifests.labelled import Labelled, read_labelled
from pipeline.config import Config, read_config
from pipeline.driver import curate
from pipeline.job import Job
from pipeline.process import prepare_process
from pipeline.runner import Runner
from pipeline.threads import torch_threads
from students.trainer import train
from teachers.backend import load_teacher
from teachers.score import ImageScore, estimate
from teachers.train import teach

HELD_OUT = 0.25
WITH, WITHOUT, TEACHER = "few masks and pseudo labels", "few masks alone", "their teacher"


def share_of(name: str, seed: int, what: str) -> float:
    """A number in [0, 1) by a hash."""
    return int(hashlib.sha256(f"{what}|{seed}|{name}".encode()).hexdigest()[:12], 16) / float(1 << 48)


def split(
    samples: Sequence[Labelled], seed: int, share: float
) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Held out; with their masks; without."""
    held = [s for s in samples if share_of(s.name, seed, "held") < HELD_OUT]
    rest = sorted((s for s in samples if s not in held), key=lambda s: share_of(s.name, seed, "label"))
    count = max(2, round(share * len(rest)))
    return held, rest[:count], rest[count:]


def pictures(samples: Sequence[Labelled], folder: Path) -> Path:
    """A folder of links to pictures alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        if not (folder / sample.image.name).exists():
            (folder / sample.image.name).symlink_to(sample.image.resolve())
    return folder


def one_seed(
    samples: Sequence[Labelled], seed: int, values: argparse.Namespace, config: Config
) -> dict[str, list[ImageScore]]:
    """The scores of both students and the teacher."""
    held, few, rest = split(samples, seed, values.share)
    folder = values.output / f"seed{seed}"
    labelled, unlabelled = link(few, folder / "labelled"), pictures(rest, folder / "unlabelled")
    with torch_threads(config.driver.threads):
        teacher = teach(labelled, folder / "teacher", config.teach, seed=seed, report=print).checkpoint
    job = Job(
        inputs=(str(unlabelled), str(SHARED / "data" / "unlabelled")), labelled=labelled, output=str(folder / "run"),
        target=values.target, config=config, runner=Runner(workers=1), seed=seed, teacher=teacher, max_bad=0.2,
    )  # fmt: skip
    release = Path(curate(job).release)
    found = {TEACHER: measure(load_teacher(teacher), held)}
    with torch_threads(1):
        for name, source in ((WITHOUT, None), (WITH, release)):
            output = folder / name.replace(" ", "_")
            trained = train(source, labelled, output, config.train, seed=seed, report=print)
            found[name] = measure(Shipped(trained, config.train.sizes()), held)
    print(f"seed {seed}: {len(few)} masks, {len(rest)} photographs without, {len(held)} held out", flush=True)
    return found


def ious(scores: Sequence[ImageScore]) -> np.ndarray:
    """IoU per photograph; NaN where it has none."""
    return np.array([np.nan if s.iou is None else s.iou for s in scores], np.float64)


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--target", type=int, default=320)
    parser.add_argument("--config", type=Path, help="TOML file with [teach], [judge] and [train]")
    parser.add_argument("--output", type=Path, default=Path("label_efficiency"))
    values = parser.parse_args()
    samples, config = read_labelled(SHARED / "data"), read_config(values.config)
    results = {seed: one_seed(samples, seed, values, config) for seed in values.seeds}
    print(f"\n{'mean IoU of held-out photographs':34}" + "".join(f"{name:>30}" for name in (WITHOUT, WITH, TEACHER)))
    differences = []
    for seed, found in results.items():
        means = [np.nanmean(ious(found[name])) for name in (WITHOUT, WITH, TEACHER)]
        change = ious(found[WITH]) - ious(found[WITHOUT])
        span = estimate((1 + change[~np.isnan(change)]) / 2)
        low, high = (float("nan") if v is None else 2 * v - 1 for v in (span.low, span.high))
        differences.append(float(np.nanmean(change)))
        line = f"seed {seed:<29}" + "".join(f"{m:>30.3f}" for m in means)
        print(f"{line}   difference {differences[-1]:+.3f} [{low:+.3f}, {high:+.3f}]")
    if len(differences) > 1:
        reach = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / np.sqrt(len(differences))
        print(f"over seeds: {np.mean(differences):+.3f} ± {reach:.3f} (95 % t interval)")


if __name__ == "__main__":
    prepare_process()
    main()
