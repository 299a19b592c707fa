"""Laws of the plan: figures measured on a sample are positive and grow with what is asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from pipeline.embed import Embed, EmbedConfig
from pipeline.frames import ScanConfig
from pipeline.plan import Line, Plan, PriceConfig, measure, sample_sources, strata, training, with_gpu
from pipeline.probe import Probe
from pipeline.sources import list_sources
from pipeline.stage import Output, Task, Work, read_span
from tests.pipeline.media import jpeg, moving, video


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A label work whose cost per frame is known: 1,000 bytes, and some work."""

    name: ClassVar[str] = "label"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def open(self) -> Callable[[Task], Output]:
        return self.run

    def run(self, task: Task) -> Output:
        rows = read_span(task.spans[0], ["sample_id"]).num_rows
        assert rows <= 4
        assert sum(math.sqrt(i) for i in range(20_000 * rows)) > 0
        return Output(table=pa.table({"mask": pa.array([bytes(1000)] * rows, pa.binary())}))


SCAN = ScanConfig()
WORKS: list[tuple[Work, int]] = [
    (Probe(config=SCAN), 0),
    (Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None), 0),
    (Label(), 4),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("plan")
    for seed in range(6):
        (folder / f"v{seed}.mp4").write_bytes(video(moving(20, seed=seed)))
    for seed in range(6):
        (folder / f"s{seed}.jpg").write_bytes(jpeg(10 + seed))
    return list_sources([str(folder)])[0]


def planned(sources: pa.Table, sample: pa.Table, target: int = 1000, works: list[tuple[Work, int]] = WORKS) -> Plan:
    return measure([(sources, sample)], works, shards=4, target=target, label_rows=32)


def line(plan: Plan, stage: str) -> Line:
    (found,) = (line for line in plan.lines if line.stage == stage)
    return found


def test_every_stage_has_positive_figures(sources: pa.Table) -> None:
    plan = planned(sources, sources)
    assert [line.stage for line in plan.lines] == ["probe", "embed", "label", "publish"]
    for one in plan.lines:
        assert one.tasks >= 1
        assert one.items >= 1
        assert one.cpu_hours > 0
        assert one.bytes > 0
        assert one.gpu_hours == 0
    assert plan.bytes == sum(one.bytes for one in plan.lines)
    assert plan.memory_bytes > 10 << 20
    assert (plan.sampled, plan.sources) == (12, 12)
    assert line(plan, "probe").items == 6 * 4 + 6
    assert 6 + 6 <= line(plan, "embed").items <= 6 * 4 + 6  # thinned in time


def test_the_label_and_publish_lines_grow_with_the_target(sources: pa.Table) -> None:
    small, large = planned(sources, sources, 1000), planned(sources, sources, 64_000)
    for stage, rows in (("label", 32), ("publish", 2048)):
        assert line(small, stage).items == 1000
        assert line(large, stage).items == 64_000
        assert line(small, stage).tasks == -(-1000 // rows)
        assert line(large, stage).tasks == -(-64_000 // rows)
        assert line(large, stage).bytes == pytest.approx(64 * line(small, stage).bytes, rel=0.01)
    assert 1000 * 1000 <= line(small, "label").bytes <= 1100 * 1000
    assert line(large, "label").cpu_hours > 8 * line(small, "label").cpu_hours
    assert line(large, "publish").cpu_hours == pytest.approx(64 * line(small, "publish").cpu_hours)
    assert line(large, "embed").items == line(small, "embed").items


def test_a_sample_is_scaled_to_the_bytes_of_all_sources(sources: pa.Table) -> None:
    videos = sources.filter(pa.array([uri.endswith(".mp4") for uri in sources.column("uri").to_pylist()]))
    plan = planned(videos, videos.slice(0, 2))
    share = sum(videos.column("bytes").to_pylist()) / sum(videos.slice(0, 2).column("bytes").to_pylist())
    assert line(plan, "probe").items == round(8 * share)
    assert line(plan, "probe").items == pytest.approx(24, abs=8)
    assert (plan.sampled, plan.sources) == (2, 6)


def test_strata_are_measured_apart_and_summed(sources: pa.Table) -> None:
    videos, stills = strata(sources)
    assert (videos.num_rows, stills.num_rows) == (6, 6)
    plan = measure([(videos, videos), (stills, stills)], WORKS, shards=4, target=1000, label_rows=32)
    whole = planned(sources, sources)
    assert [(one.stage, one.tasks, one.items) for one in plan.lines] == [
        (one.stage, one.tasks, one.items) for one in whole.lines
    ]


def test_a_training_costs_its_steps_and_not_its_start() -> None:
    def run(steps: int) -> None:
        assert sum(math.sqrt(i) for i in range(400_000 + 100_000 * steps)) > 0

    one, ten = training("fit", 1, 100, run), training("fit", 10, 100, run)
    assert (one.items, ten.items, ten.tasks) == (100, 1000, 10)
    assert one.cpu_hours > 0
    assert ten.cpu_hours == pytest.approx(10 * one.cpu_hours, rel=0.8)


def test_sources_without_a_frame_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    broken = list_sources([str(tmp_path)])[0]
    plan = planned(broken, broken, works=WORKS[:2])
    assert line(plan, "publish").bytes == 0


def test_a_sample_is_a_fair_one_and_the_same_for_equal_seeds(sources: pa.Table) -> None:
    one = sample_sources(sources, 5, 0).column("uri").to_pylist()
    assert one == sample_sources(sources, 5, 0).column("uri").to_pylist()
    assert len(set(one)) == 5
    assert one == sorted(one)
    assert any(sample_sources(sources, 5, seed).column("uri").to_pylist() != one for seed in range(1, 5))
    assert sample_sources(sources, 99, 0).equals(sources)


# Prices ---------------------------------------------------------------------------------------------------------------


def plain(gpu_hours: float = 0.0) -> Plan:
    stages = ("probe", "label")
    lines = tuple(
        Line(stage=stage, tasks=1, items=1, cpu_hours=10.0, gpu_hours=gpu_hours, bytes=100) for stage in stages
    )
    return Plan(lines=lines, memory_bytes=1, sampled=1, sources=1)


def test_money_is_hours_times_prices() -> None:
    assert plain().money(PriceConfig()) == 0
    assert plain().money(PriceConfig(cpu_hour=0.05)) == pytest.approx(1.0)
    assert plain(gpu_hours=2.0).money(PriceConfig(cpu_hour=0.05, gpu_hour=3)) == pytest.approx(13.0)


def test_a_gpu_takes_the_labelling_over_and_nothing_else() -> None:
    moved = with_gpu(plain(), PriceConfig(gpu_speed=20))
    assert (line(moved, "label").cpu_hours, line(moved, "label").gpu_hours) == (0, 0.5)
    assert line(moved, "probe") == line(plain(), "probe")
    assert with_gpu(plain(), PriceConfig()) == plain()


@pytest.mark.parametrize("name", ["cpu_hour", "gpu_hour", "gpu_speed"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_price_is_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"price.{name} must be >= 0"):
        PriceConfig(**{name: value})  # type: ignore[arg-type]
