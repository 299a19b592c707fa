"""What the students cost: parameters, MACs, the decoder's share, and latency in eager PyTorch on one thread.

Usage: python -m benchmarks.students [--rounds N] [--presets nano,base]

Prints a Markdown table. Latency is the median over the rounds (default 21) after 3 to warm up, one image, random
weights, evaluation mode: wall time, and in brackets the thread's own CPU time, which other programs disturb less.
Presets, paddings and sizes take turns, so that a busy machine is busy for all.
Columns marked "quoted" are not measured here: they are what the design was made from, on another machine (2 idle cores,
minimum of 25 to 40 runs).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from students.cost import summary
from students.model import build_student
from students.padding import Padding
from students.presets import PRESETS

SIZES = ((256, 256), (160, 256))
PADDINGS: tuple[Padding, ...] = ("replicate", "zeros")
WARM_UP = 3
# parameters in millions, MMAC at 256×256, decoder's share in %, eager ms at 256×256 and 160×256 with zeros
QUOTED = {
    "nano": "0.45 M, 99, 9.7 %, 8.0 / 5.7",
    "small": "2.07 M, 286, 8.2 %, 18.3 / 12.5",
    "base": "3.67 M, 534, 4.7 %, 31.9 / 19.4",
    "large": "10.74 M, 1361, 2.2 %, 56.8 / 36.5",
}

Case = tuple[str, Padding, tuple[int, int]]
Times = tuple[float, float]


def latencies(names: Sequence[str], rounds: int) -> dict[Case, Times]:
    """Median milliseconds, wall and CPU, of one image for each preset, padding and size."""
    cases = [(name, padding, size) for name in names for padding in PADDINGS for size in SIZES]
    students = {
        (name, padding): build_student(replace(PRESETS[name], padding=padding), 0).eval()
        for name in names
        for padding in PADDINGS
    }
    images = {size: torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) for size in SIZES}
    taken: dict[Case, list[Times]] = {case: [] for case in cases}
    with torch.inference_mode():
        for _ in range(WARM_UP + rounds):
            for name, padding, size in cases:
                wall, cpu = time.perf_counter(), time.thread_time()
                students[name, padding](images[size])
                taken[name, padding, size].append((time.perf_counter() - wall, time.thread_time() - cpu))
    return {case: _medians(times[WARM_UP:]) for case, times in taken.items()}


def _medians(times: Sequence[Times]) -> Times:
    wall, cpu = zip(*times, strict=True)
    return 1000 * statistics.median(wall), 1000 * statistics.median(cpu)


def _shown(times: Times) -> str:
    return f"{times[0]:.1f} ({times[1]:.1f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--presets", default=",".join(PRESETS), help="names, separated by commas")
    options = parser.parse_args()
    names = options.presets.split(",")
    if options.rounds < 1 or not set(names) <= set(PRESETS):
        parser.error(f"--rounds must be >= 1 and --presets of {', '.join(PRESETS)}")
    torch.set_num_threads(1)
    measured = latencies(names, options.rounds)
    print("| preset | parameters | MMAC 256×256 | MMAC 160×256 | decoder | ms replicate | ms zeros | quoted |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        costs = [summary(PRESETS[name], *size) for size in SIZES]
        times = [" / ".join(_shown(measured[name, padding, size]) for size in SIZES) for padding in PADDINGS]
        print(
            f"| {name} | {costs[0].parameters / 1e6:.2f} M | {costs[0].macs / 1e6:.1f} | {costs[1].macs / 1e6:.1f} "
            f"| {100 * costs[0].decoder_share:.1f} % | {times[0]} | {times[1]} | {QUOTED[name]} |"
        )
    print("\nms: wall (CPU), eager, one thread, 256×256 / 160×256.")
    print("quoted: parameters, MMAC and decoder's share at 256×256, wall ms with zeros.")


if __name__ == "__main__":
    main()
