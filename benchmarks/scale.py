"""What a choice costs as the pool grows: embeddings of N frames are assigned, planned and drawn as the main job does.

Usage: python -m benchmarks.scale [--sizes N…] [--threads T] [--plot FILE.png] [--json FILE]

The pool is a mixture of 2,000 directions in 384 dimensions whose sizes have a long tail, in float16 Parquet parts on
disk, as the stages hold them; 8 attributes have long tails and are unknown in 10 % of the frames. N/10 frames are
chosen, at most 100,000. Every size runs in a process of its own, on one thread, through the product's own functions:

fit      the tree, on a hash sample of ``cluster.sample`` frames: the same for all N above it
assign   per part: read, nearest cell, keys, cells, counts, write; then the counts of all parts
plan     quotas and thresholds of all cells
select   survivors per part, the exact trim, write

GFLOP/s are those of the assignment itself beside a plain NumPy matrix product of the same shape and a flat faiss index.
The exponent is the slope of a straight line through log seconds against log N: 1 = linear.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from manifests.shard import encode_parquet
from pipeline.kmeans import unit_rows
from pipeline.known import GIVEN

Record = dict[str, Any]
DIMENSION, COMPONENTS, PART_ROWS, SOURCE_ROWS = 384, 2000, 10_000, 250
CLASSES = (2, 3, 3, 4, 4, 5, 6, 8)
UNKNOWN, TIED = 0.1, 0.5
STEPS = ("fit", "assign", "plan", "select")
SIZES = ("10k", "30k", "100k", "300k", "1M")
MOST_SECONDS, MOST_MB, MOST_EXPONENT = 600, 4000, 1.1


def size_of(text: str) -> int:
    """A number of frames such as 10k or 1M.

    Raises:
        ArgumentTypeError: it is none, or below 1000.
    """
    scale = {"k": 1000, "M": 1_000_000}.get(text[-1:], 1)
    number = text if scale == 1 else text[:-1]
    if not number.isdecimal() or int(number) * scale < 1000:
        raise argparse.ArgumentTypeError(f"a size is a number of frames >= 1000, such as 10k or 1M; got {text!r}")
    return int(number) * scale


def make_pool(folder: Path, size: int, seed: int) -> list[str]:
    """Writes the parts of a pool, each from a generator of its own; a smaller pool is the beginning of a larger one."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.standard_normal((COMPONENTS, DIMENSION), np.float32))
    weights = np.arange(1, COMPONENTS + 1) ** -1.2
    habits = [rng.integers(0, count, COMPONENTS) for count in CLASSES]
    uris = []
    for part, start in enumerate(range(0, size, PART_ROWS)):
        rng = np.random.default_rng((seed, part))
        component = rng.choice(COMPONENTS, PART_ROWS, p=weights / weights.sum())
        noise = rng.standard_normal((PART_ROWS, DIMENSION), np.float32) / np.float32(np.sqrt(DIMENSION))
        vectors = unit_rows(centres[component] + noise).astype(np.float16)
        frames = np.arange(start, start + PART_ROWS)
        sources = [f"clips/{number:08d}.mp4" for number in (frames // SOURCE_ROWS).tolist()]
        kind = pa.list_(pa.field("element", pa.float16(), nullable=False), DIMENSION)
        columns: dict[str, Any] = {
            "sample_id": [f"{number:032x}" for number in frames.tolist()],
            "source_uri": sources,
            "source_sha256": [source.encode().ljust(32, b".")[:32] for source in sources],
            "frame_index": pa.array(frames % SOURCE_ROWS, pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind),
        }
        for name, (count, habit) in enumerate(zip(CLASSES, habits, strict=True)):
            tail = np.arange(1, count + 1) ** -1.5
            drawn = rng.choice(count, PART_ROWS, p=tail / tail.sum())
            value = np.where(rng.random(PART_ROWS) < TIED, habit[component], drawn)
            known = rng.random(PART_ROWS) >= UNKNOWN
            columns[f"{GIVEN}attribute_{name}"] = pa.array([f"class_{v}" for v in value], mask=~known)
        uris.append(str(folder / f"embedded-{part:05d}.parquet"))
        Path(uris[-1]).write_bytes(encode_parquet(pa.table(columns), row_group_rows=4096))
    return uris


def apart(parts: Sequence[str], size: int, threads: int) -> Record:
    """What ``scale_process`` measures, in a fresh process."""
    limit = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        task = {"parts": list(parts), "size": size, "part_rows": PART_ROWS, "folder": folder, "threads": threads}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale_process", json.dumps(task)],
            stdout=subprocess.PIPE,
            env={**os.environ, **limit},
            check=True,
        )
    return dict(json.loads(done.stdout))


def total(record: Record, unit: str) -> float:
    """Seconds of all steps."""
    return float(sum(step[unit] for step in record["steps"].values()))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line through (log N, log seconds); NaN for fewer than two sizes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else float("nan")


def show(console: Console, records: Sequence[Record]) -> None:
    """The table of seconds and memory, that of the assignment's speed, and the exponents."""
    table = Table("frames", "chosen", "cells", "survive", title="CPU s / wall s", title_justify="left")
    for name in (*STEPS, "all", "per 1000", "RSS MB"):
        table.add_column(name, justify="right")
    for r in records:
        seconds = [f"{r['steps'][name]['cpu_s']:.2f} / {r['steps'][name]['wall_s']:.2f}" for name in STEPS]
        cpu, wall = total(r, "cpu_s"), total(r, "wall_s")
        peak = f"{r['steps'][STEPS[-1]]['rss_mb']:.0f}"
        per = f"{1000 * cpu / r['n']:.3f} / {1000 * wall / r['n']:.3f}"
        counts = [f"{r[key]:,}" for key in ("n", "target", "cells", "survivors")]
        table.add_row(*counts, *seconds, f"{cpu:.1f} / {wall:.1f}", per, peak)
    console.print(table)
    speed = Table("frames", "clusters", "ours", "NumPy sgemm", "faiss flat", "ours/sgemm", title="assignment, GFLOP/s")
    for r in records:
        g = r["gflops"]
        figures = [f"{g[name]:.1f}" for name in ("ours", "sgemm", "faiss")]
        speed.add_row(f"{r['n']:,}", str(r["clusters"]), *figures, f"{g['ours'] / g['sgemm']:.2f}")
    console.print(speed)
    for name, spent in series(records).items():
        console.print(f"exponent of {name:>13}: {exponent([r['n'] for r in records], spent):.2f}", highlight=False)


def series(records: Sequence[Record]) -> dict[str, list[float]]:
    """CPU seconds of each step and of all, by size."""
    steps = {name: [r["steps"][name]["cpu_s"] for r in records] for name in STEPS}
    everything = [total(r, "cpu_s") for r in records]
    return {**steps, "all": everything, "all but fit": [a - f for a, f in zip(everything, steps["fit"], strict=True)]}


def verdicts(records: Sequence[Record]) -> list[str]:
    """Whether the goals hold."""
    largest = records[-1]
    wall, most = total(largest, "wall_s"), largest["steps"][STEPS[-1]]["rss_mb"]
    slope = exponent([r["n"] for r in records], series(records)["all but fit"])
    n = f"{largest['n']:,} frames"
    goals = [
        (wall < MOST_SECONDS, f"{n} in under {MOST_SECONDS} s: {wall:.0f} s"),
        (most < MOST_MB, f"{n} within {MOST_MB} MB: {most:.0f} MB"),
    ]
    if len(records) > 1:
        goals.append((slope <= MOST_EXPONENT, f"linear, exponent without the fit <= {MOST_EXPONENT}: {slope:.2f}"))
    return [f"{'met    ' if met else 'NOT MET'} {text}" for met, text in goals]


def plot(records: Sequence[Record], path: Path) -> None:
    """Draws CPU seconds against N on logarithmic axes, with a line of slope 1."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [r["n"] for r in records]
    for name, seconds in series(records).items():
        if name != "all but fit":
            axes.loglog(sizes, seconds, marker="o", label=name, linewidth=2.5 if name == "all" else 1.2)
    last = series(records)["all"][-1]
    axes.loglog(sizes, [last * n / sizes[-1] for n in sizes], "k--", linewidth=1, label="linear")
    axes.set_xlabel("frames")
    axes.set_ylabel("CPU seconds, one process")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=140)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[size_of(s) for s in SIZES], metavar="N")
    parser.add_argument("--threads", type=int, default=1, help="of the matrix products; all else is on one")
    parser.add_argument("--seed", type=int, default=0, help="of the pool")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the figures")
    flags = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as folder:
        parts = make_pool(Path(folder), max(flags.sizes), flags.seed)
        records = []
        for size in sorted(set(flags.sizes)):
            records.append(apart(parts, size, flags.threads))
            console.print(f"{size:,} frames: {total(records[-1], 'wall_s'):.1f} s", highlight=False)
    show(console, records)
    console.print("\n".join(verdicts(records)), highlight=False)
    if flags.plot:
        plot(records, flags.plot)
    if flags.json:
        flags.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
