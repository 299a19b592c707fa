"""What each choice of the student's training is worth: padding, boundary loss, aspect groups, mask channel, dice.

Usage: python -m benchmarks.ablation [--preset P] [--side S] [--steps N] [--seeds K] [--only NAME …] [--output DIR]

Reads ``$CURATE_SHARED/data``. Every variant differs from "ours" in one choice and is trained with the same seed on the
labelled photographs alone, then run over the labelled clips whose truth is exact (schoolgirls, talk_green,
talk_composite), as it would live: frame by frame, with its own previous mask where it has a mask channel. Printed
are, as means over the clips: IoU, Boundary IoU, and both temporal metrics as excess over the truth's own motion (0 is
as steady as the truth; smaller is steadier); and the held-out photographs' IoU and Boundary IoU without a previous
mask. With several seeds, the mean and the standard deviation over them. Killed, the same command goes on.

A few hundred photographs and a few hundred frames of three clips: differences below the spread over seeds say nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.shared import SHARED
from pipeline.evaluate import evaluate
from pipeline.process import prepare_process
from pipeline.threads import torch_threads
from students.trainer import TrainConfig, TrainResult, train

CLIPS = ("schoolgirls", "talk_composite", "talk_green")
COLUMNS = ("iou", "boundary_iou", "adjacent_excess", "warped_excess")
PHOTOGRAPHS = ("held_out_iou", "held_out_boundary_iou")
VARIANTS: dict[str, Mapping[str, object]] = {
    "ours": {},
    "zero padding": {"padding": "zeros"},
    "reflect padding": {"padding": "reflect"},
    "plain cross entropy": {"boundary": 0.0},
    "inner band": {"two_sided": False},
    "with dice": {"dice": 1.0},
    "squares": {"fit": "square"},
    "no mask channel": {"mask_channel": False},
}


def clips(folder: Path) -> Path:
    """A folder of links to the clips whose labels are exact."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CLIPS:
        if not (folder / name).exists():
            (folder / name).symlink_to((SHARED / "data" / "labelled_clips" / name).resolve())
    return folder


def measure(name: str, trained: TrainResult, output: Path) -> dict[str, float]:
    """The means over the clips of a trained student, and its scores on the held-out photographs."""
    done = evaluate(trained.checkpoint, clips(output / "clips"), None, str(output / "evaluation"))
    table = pq.read_table(done.folder / "videos.parquet").to_pydict()
    means = {column: statistics.fmean(v for v in table[column] if v is not None) for column in COLUMNS}
    print(f"{name}: {means}", flush=True)
    return means | {key: float(getattr(trained, key) or 0.0) for key in PHOTOGRAPHS}


def report(found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Prints the table."""
    keys = (*COLUMNS, *PHOTOGRAPHS)
    print(f"\n{'':22}" + "".join(f"{key.replace('_', ' '):>24}" for key in keys))
    for name, runs in found.items():
        cells = []
        for key in keys:
            values = [run[key] for run in runs]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{spread}")
        print(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("ablation"))
    values = parser.parse_args()
    base = TrainConfig(
        preset=values.preset, side=values.side, steps=values.steps, batch=values.batch, report_every=values.steps
    )
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(values.seeds):
        for name in values.only:
            config = replace(base, **VARIANTS[name])  # type: ignore[arg-type]
            folder = values.output / f"{name.replace(' ', '_')}-{seed}"
            with torch_threads(1):
                trained = train(None, SHARED / "data", folder, config, seed=seed, report=lambda _: None)
            found.setdefault(name, []).append(measure(f"{name}, seed {seed}", trained, values.output))
    report(found)


if __name__ == "__main__":
    prepare_process()
    main()
