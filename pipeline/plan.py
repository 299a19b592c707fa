"""``--plan``: what a run would cost, from unit costs measured on a small sample of the user's own input."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.probe import plan_shards
from pipeline.select import selection_key
from pipeline.stage import Output, Span, Task, Work


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
        items: frames (or sources, for the probe).
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


def measure(
    sources: pa.Table, sample: pa.Table, works: Sequence[tuple[Work, int]], *, shards: int, target: int, label_rows: int
) -> Plan:
    """Runs the real stages on a sample of the sources and scales what they cost to the whole.

    Args:
        sources: all sources.
        sample: those to measure.
        works: (probe, 0), (embed, 0), and the label work with the number of frames to measure, if a teacher is at hand.
        shards: as configured for the probe.
        target: frames to choose.
        label_rows: frames per label shard.
    """
    sizes = sources.column("bytes").to_pylist()
    scale = sum(sizes) / max(1, sum(sample.column("bytes").to_pylist()))
    tasks = len(plan_shards(sizes, shards))
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "sources.parquet")
        _write(path, sample)
        span = Span(uri=path)
        frames = 0
        for work, most in works:
            output, seconds = _timed(work.open(), Task(index=0, count=1, folder=folder, spans=(_limit(span, most),)))
            rows = max(1, output.table.num_rows)
            target_rows = target if most else round(rows * scale)
            factor = target_rows / rows
            count = -(-target // label_rows) if most else tasks
            lines.append(_line(work.name, count, target_rows, seconds * factor / 3600, round(_size(output) * factor)))
            span = Span(uri=str(Path(folder) / f"{work.name}.parquet")) if work.name == "probe" else Span(uri=span.uri)
            if work.name == "probe":
                _write(span.uri, output.table)
                frames = output.table.num_rows
        pixels = _pixels(storage.join(folder, "probe.parquet")) if frames else 0
    published = round(target * pixels * 0.35)
    lines.append(_line("publish", -(-target // 2048), target, target * pixels * 40e-9 / 3600, 2 * published))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Plan(lines=tuple(lines), memory_bytes=memory, sampled=sample.num_rows, sources=sources.num_rows)


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


def _limit(span: Span, most: int) -> Span:
    return dataclasses.replace(span, stop=most) if most else span


def _write(path: str, table: pa.Table) -> None:
    pq.write_table(table, path)


def _size(output: Output) -> int:
    return int(output.table.nbytes)


def _pixels(uri: str) -> float:
    table: Any = pq.read_table(uri, columns=["width", "height"])
    if not table.num_rows:
        return 0.0
    return float(np.mean(table.column("width").to_numpy().astype(np.float64) * table.column("height").to_numpy()))
