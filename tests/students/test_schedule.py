import itertools
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from students.schedule import BLOCK_SAMPLES, Schedule, block_units


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    units = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum))
    buckets = draw(st.lists(st.integers(0, 4), min_size=sum(units), max_size=sum(units)))
    batch, seed, block = (draw(st.integers(low, high)) for low, high in ((1, 7), (0, 99), (1, 5)))
    return Schedule(units=np.array(units), buckets=np.array(buckets, np.int8), batch=batch, seed=seed, block=block)


def _epoch(schedule: Schedule, epoch: int = 0) -> list[tuple[int, list[int]]]:
    steps = range(epoch * schedule.steps, (epoch + 1) * schedule.steps)
    return [(bucket, members.tolist()) for bucket, members in map(schedule.batch, steps)]


def _twin(schedule: Schedule, **changes: int) -> Schedule:
    same = {"batch": schedule.batch_size, "seed": schedule.seed, "block": schedule.block}
    return Schedule(units=schedule._units, buckets=schedule._buckets, **{**same, **changes})


@given(schedules(), st.integers(0, 3))
def test_an_epoch_holds_every_sample_exactly_once(schedule: Schedule, epoch: int) -> None:
    members = [sample for _, batch in _epoch(schedule, epoch) for sample in batch]
    assert sorted(members) == list(range(schedule.samples))


@given(schedules(), st.integers(0, 3))
def test_a_batch_has_one_bucket_and_only_a_buckets_last_is_partial(schedule: Schedule, epoch: int) -> None:
    batches = _epoch(schedule, epoch)
    for bucket, members in batches:
        assert {int(schedule._buckets[sample]) for sample in members} == {bucket}
        assert 1 <= len(members) <= schedule.batch_size
    partial = [bucket for bucket, members in batches if len(members) < schedule.batch_size]
    assert len(set(partial)) == len(partial)
    assert [bucket for bucket, _ in batches[len(batches) - len(partial) :]] == partial  # they end the epoch


@given(schedules(), st.data())
def test_a_resume_at_any_step_gives_the_same_remaining_batches(schedule: Schedule, data: st.DataObject) -> None:
    steps = 3 * schedule.steps
    whole = [schedule.batch(step)[1].tolist() for step in range(steps)]
    start = data.draw(st.integers(0, steps - 1))
    again = _twin(schedule)
    assert [again.batch(step)[1].tolist() for step in range(start, steps)] == whole[start:]
    assert again.batch(0)[1].tolist() == whole[0]  # backwards too


@given(schedules())
def test_no_more_wait_than_one_block_and_less_than_a_batch_per_bucket(schedule: Schedule) -> None:
    stream = schedule.stream(0)
    place = np.empty(schedule.samples, np.int64)
    place[stream] = np.arange(schedule.samples)
    emitted, reached = 0, -1
    for _, members in _epoch(schedule):
        if len(members) < schedule.batch_size:
            break
        reached = max(reached, int(place[members].max()))
        emitted += len(members)

        assert reached + 1 - emitted <= 5 * (schedule.batch_size - 1)


@given(schedules())
def test_the_stream_takes_block_after_block_of_whole_units(schedule: Schedule) -> None:
    unit_of = np.repeat(np.arange(schedule._units.size), schedule._units)[schedule.stream(0)]
    last = {int(unit): place for place, unit in enumerate(unit_of)}
    together: list[set[int]] = [set()]  # units whose rows are mixed
    reach = -1
    for place, unit in enumerate(unit_of.tolist()):
        if place > reach:
            together.append(set())
        together[-1].add(unit)
        reach = max(reach, last[unit])
    assert max(map(len, together)) <= schedule.block
    assert sum(map(len, together)) == len(last)


def test_seeds_and_epochs_differ_and_equal_seeds_agree() -> None:
    units, buckets = np.full(20, 16), np.arange(320, dtype=np.int8) % 3
    one, two = (Schedule(units=units, buckets=buckets, batch=8, seed=seed) for seed in (0, 1))
    assert _epoch(one) == _epoch(Schedule(units=units, buckets=buckets, batch=8, seed=0))
    assert _epoch(one) != _epoch(two)
    assert _epoch(one) != _epoch(one, 1)
    assert len(_epoch(one)) == len(_epoch(one, 5)) == one.steps == 42


def test_neighbours_in_a_file_are_seldom_neighbours_in_a_batch() -> None:
    schedule = Schedule(units=np.full(64, 64), buckets=np.zeros(4096, np.int8), batch=32, seed=3)
    pairs = [pair for _, members in _epoch(schedule) for pair in itertools.pairwise(members)]
    assert sum(abs(a - b) == 1 for a, b in pairs) < 30  # about 8 of 3,968 by chance within blocks of 1,024


def test_the_default_block_is_about_a_thousand_samples() -> None:
    schedule = Schedule(units=np.full(100, 64), buckets=np.zeros(6400, np.int8), batch=8, seed=0)
    assert schedule.block * 64 == BLOCK_SAMPLES


def test_a_block_is_smaller_where_samples_are_large() -> None:
    rows, small, large = np.full(100, 64), np.full(100, 4 << 20), np.full(100, 40 << 20)
    assert block_units(rows, small, 80 << 20) == 16
    assert block_units(rows, large, 80 << 20) == 2
    assert block_units(rows, 100 * large, 80 << 20) == 1


def test_a_million_samples_take_little_memory() -> None:
    rng = np.random.default_rng(0)
    units = np.full(15_625, 64)
    buckets = rng.integers(0, 5, 1_000_000).astype(np.int8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    schedule = Schedule(units=units, buckets=buckets, batch=32, seed=0)
    first = schedule.batch(0)[1]
    schedule.batch(schedule.steps)
    assert first.size == 32
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": np.array([], int), "buckets": np.array([], np.int8)}, "at least 1 sample"),
        ({"units": np.array([2])}, "add up to the 3 samples, got 2"),
        ({"units": np.array([4, -1])}, "add up"),
        ({"buckets": np.array([0, -1, 0])}, "from -1"),
        ({"buckets": np.zeros(3)}, "float64"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
        ({"block": 0}, "block"),
    ],
)
def test_what_is_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    good = {"units": np.array([2, 1]), "buckets": np.zeros(3, np.int8), "batch": 2, "seed": 0, "block": 1}
    schedule = Schedule(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        schedule.batch(-1)
    with pytest.raises(ValueError, match=message):
        Schedule(**{**good, **changes})  # type: ignore[arg-type]


def test_what_detectron2_keeps_back_or_never_shows_is_shown_once_per_epoch(goldens: Path) -> None:
    """The reference's grouping keeps what does not fill a batch: 10 of 157 images are not in its first two epochs."""
    golden = json.loads((goldens / "student" / "detectron2_aspect.json").read_text())["grouping"]
    items, batch = golden["items"], golden["batch_size"]
    buckets = np.array([0 if item["width"] > item["height"] else 1 for item in items])
    schedule = Schedule(units=np.array([len(items)]), buckets=buckets, batch=batch, seed=0)
    theirs = [[buckets[i] for i in members] for members in golden["epoch1"]]
    assert all(len(set(members)) == 1 for members in theirs)
    assert sum(map(len, golden["epoch1"])) < len(items)
    for epoch in range(2):
        batches = [schedule.batch(epoch * schedule.steps + place) for place in range(schedule.steps)]
        assert sorted(i for _, members in batches for i in members.tolist()) == list(range(len(items)))
        assert all((buckets[members] == bucket).all() for bucket, members in batches)
        assert sum(len(members) == batch for _, members in batches) >= len(golden["epoch1"])
