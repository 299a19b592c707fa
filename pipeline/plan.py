"""``--plan``: what a run would cost, from unit costs measured on a small sample of the user's own input."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.probe import plan_shards
from pipeline.select import selection_key
from pipeline.stage import Output, Span, Task, Work

_VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """Prices that turn hours into money; 0 where nothing is paid.

    Attributes:
        cpu_hour: of one core for one hour.
        gpu_hour: of one GPU for one hour.
        gpu_speed: how many cores one GPU replaces in labelling; 0 = no GPU is used.
        currency: shown behind the sums.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    gpu_speed: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("cpu_hour", "gpu_hour", "gpu_speed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"price.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The plan of one stage.

    Attributes:
        stage: its name.
        tasks: shards.
        items: frames, or steps of training.
        cpu_hours: of one core.
        gpu_hours: where a GPU takes over.
        bytes: written to the output.
    """

    stage: str
    tasks: int
    items: int
    cpu_hours: float
    gpu_hours: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would cost.

    Attributes:
        lines: per stage.
        memory_bytes: peak of one worker, as measured on the sample.
        sampled: sources measured.
        sources: sources in all.
    """

    lines: tuple[Line, ...]
    memory_bytes: int
    sampled: int
    sources: int

    @property
    def bytes(self) -> int:
        """Bytes that the output will take."""
        return sum(line.bytes for line in self.lines)

    def money(self, prices: PriceConfig) -> float:
        """Hours times prices."""
        cpu = sum(line.cpu_hours for line in self.lines)
        return cpu * prices.cpu_hour + sum(line.gpu_hours for line in self.lines) * prices.gpu_hour


def sample_sources(sources: pa.Table, most: int, seed: int) -> pa.Table:
    """About ``most`` sources, by hash, so that the sample is a fair one."""
    keys = [selection_key(seed, uri) for uri in sources.column("uri").to_pylist()]
    return sources.take(pa.array(np.sort(np.argsort(np.array(keys, np.uint64))[:most])))


def strata(sources: pa.Table) -> list[pa.Table]:
    """Videos and other files, by name: their cost per byte differs too much for one sample."""
    videos = [PurePosixPath(uri).suffix.lower() in _VIDEOS for uri in sources.column("uri").to_pylist()]
    parts = [sources.filter(pa.array(chosen)) for chosen in (videos, [not video for video in videos])]
    return [part for part in parts if part.num_rows]


def measure(
    parts: Sequence[tuple[pa.Table, pa.Table]],
    works: Sequence[tuple[Work, int]],
    *,
    shards: int,
    target: int,
    label_rows: int,
) -> Plan:
    """Runs the real stages on samples of the sources and scales what they cost to the whole.

    Args:
        parts: each stratum of the sources with its sample.
        works: (probe, 0), (embed, 0), and the label work with the number of frames to measure, if a teacher is at hand.
        shards: as configured for the probe.
        target: frames to choose.
        label_rows: frames per label shard.
    """
    sizes = [size for whole, _ in parts for size in whole.column("bytes").to_pylist()]
    tasks = len(plan_shards(sizes, shards))
    sums: dict[str, Counter[str]] = {}
    pixels = 0.0
    for whole, sample in parts:
        scale = sum(whole.column("bytes").to_pylist()) / max(1, sum(sample.column("bytes").to_pylist()))
        with tempfile.TemporaryDirectory() as folder:
            uri = _write(folder, "sources", sample)
            for work, most in works:
                task = Task(index=0, count=1, folder=folder, spans=(Span(uri=uri, stop=most or None),))
                output, seconds = _timed(work.open(), task)
                uri = _write(folder, "probe", output.table) if work.name == "probe" else uri
                row = sums.setdefault(work.name, Counter())
                row.update(rows=output.table.num_rows, found=round(output.table.num_rows * scale))
                row.update(bytes=round(output.table.nbytes * scale), microseconds=round(1e6 * seconds * scale))
                pixels += _pixels(output.table) * scale if work.name == "probe" else 0
    found = max(1, sums["probe"]["found"])
    lines = []
    for work, most in works:
        row = sums[work.name]
        items = target if most else row["found"]
        factor = items / max(1, row["found"])
        count = -(-target // label_rows) if most else tasks
        hours = row["microseconds"] / 3.6e9 * factor
        lines.append(_line(work.name, count, items, hours, round(row["bytes"] * factor)))
    published = target * pixels / found
    lines.append(_line("publish", -(-target // 2048), target, published * 40e-9 / 3600, round(0.7 * published)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sampled = sum(sample.num_rows for _, sample in parts)
    return Plan(
        lines=tuple(lines), memory_bytes=memory, sampled=sampled, sources=sum(whole.num_rows for whole, _ in parts)
    )


def training(stage: str, tasks: int, steps: int, run: Callable[[int], object], few: tuple[int, int] = (3, 9)) -> Line:
    """The plan of a training, from the CPU time of two short ones; what is spent before the first step cancels out.

    Args:
        stage: its name.
        tasks: networks to train.
        steps: of each.
        run: trains a network for so many steps.
        few: steps of the two short trainings.
    """
    seconds = []
    for count in few:
        before = time.process_time()
        run(count)
        seconds.append(time.process_time() - before)
    per_step = max(seconds[1] - seconds[0], 0.0) / (few[1] - few[0])
    return _line(stage, tasks, tasks * steps, tasks * steps * per_step / 3600, 0)


def with_gpu(plan: Plan, prices: PriceConfig) -> Plan:
    """The plan with labelling moved to a GPU, where the price table says how many cores one replaces."""
    if prices.gpu_speed <= 0:
        return plan
    lines = [
        dataclasses.replace(line, cpu_hours=0.0, gpu_hours=line.cpu_hours / prices.gpu_speed)
        if line.stage == "label"
        else line
        for line in plan.lines
    ]
    return dataclasses.replace(plan, lines=tuple(lines))


def _line(stage: str, tasks: int, items: int, cpu_hours: float, size: int) -> Line:
    return Line(stage=stage, tasks=tasks, items=items, cpu_hours=cpu_hours, gpu_hours=0.0, bytes=size)


def _timed(function: Callable[[Task], Output], task: Task) -> tuple[Output, float]:
    before = time.process_time()
    output = function(task)
    return output, time.process_time() - before


def _write(folder: str, name: str, table: pa.Table) -> str:
    uri = str(Path(folder) / f"{name}.parquet")
    pq.write_table(table, uri)
    return uri


def _pixels(table: pa.Table) -> float:
    """Pixels of all frames of a probe's table."""
    return float(np.dot(*(table.column(name).to_numpy().astype(np.float64) for name in ("width", "height"))))
