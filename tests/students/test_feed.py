"""Laws of the feed: a function of (data, config, seed, step), shared out without a sample lost or seen twice."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manifests.labelled import read_labelled
from students.feed import Feed, mixture
from students.recipe import TrainConfig, TrainError
from students.schedule import Schedule
from students.shards import Shards, open_shards
from students.views import Encoded, TrainBatch, View, ViewConfig
from tests.students.releases import draw, write_drawn, write_labelled

CONFIG = TrainConfig(side=96, batch=4, steps=24, labelled_first=0.7, labelled_last=0.3)
WEIGHTS = (1.0, 0.5, 2.0, 0.0)
RELEASED, LABELLED = 14, 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    drawn = [replace(draw(seed), weight=WEIGHTS[seed % 4]) for seed in range(RELEASED)]
    return open_shards(write_drawn(tmp_path_factory.mktemp("release"), drawn))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> list[Encoded]:
    folder = write_labelled(tmp_path_factory.mktemp("labelled"), [draw(seed) for seed in range(50, 50 + LABELLED)])
    return [Encoded.from_labelled(sample, gold=True) for sample in read_labelled(folder)]


def batches(feed: Feed, count: int) -> list[TrainBatch]:
    try:
        return [feed.next() for _ in range(count)]
    finally:
        feed.close()


def same(one: TrainBatch, other: TrainBatch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(TrainBatch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a is b for a, b in pairs)


@pytest.fixture(scope="module")
def whole(labelled: list[Encoded], shards: Shards) -> list[TrainBatch]:
    return batches(Feed(labelled, shards, CONFIG, seed=3), CONFIG.steps)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, CONFIG.steps - 1), loaders=st.sampled_from([1, 4]))
def test_started_at_any_step_with_any_threads_the_batches_are_the_uninterrupted_ones(
    labelled: list[Encoded], shards: Shards, whole: list[TrainBatch], start: int, loaders: int
) -> None:
    found = batches(Feed(labelled, shards, CONFIG, seed=3, start=start, loaders=loaders), min(4, CONFIG.steps - start))
    assert all(same(one, other) for one, other in zip(found, whole[start:], strict=False))


def test_every_batch_of_a_run_has_one_size_and_as_many_images_as_it_weighs(whole: list[TrainBatch]) -> None:
    sizes = {tuple(batch.images.shape[2:]) for batch in whole}
    assert sizes <= set(CONFIG.sizes())
    assert len(sizes) == 3
    assert all(1 <= len(batch.images) == len(batch.weight) <= CONFIG.batch for batch in whole)


def test_another_seed_gives_other_batches(labelled: list[Encoded], shards: Shards, whole: list[TrainBatch]) -> None:
    found = batches(Feed(labelled, shards, CONFIG, seed=4), 3)
    assert not any(same(one, other) for one, other in zip(found, whole, strict=False))


class Watched(Feed):
    """A feed that notes the step, slot and name of each view it draws, and whether its label is gold."""

    def __init__(self, labelled: Sequence[Encoded], shards: Shards | None, config: TrainConfig, **more: int) -> None:
        self.seen: list[tuple[int, int, str, bool]] = []
        super().__init__(labelled, shards, config, **more)

    def _view(self, sample: Encoded, size: tuple[int, int], key: tuple[int, int]) -> View:
        self.seen.append((*key, sample.name, sample.gold))
        return super()._view(sample, size, key)


@pytest.mark.parametrize(("gold", "count"), [(True, LABELLED), (False, RELEASED)])
def test_a_source_gives_each_sample_once_per_epoch(
    labelled: list[Encoded], shards: Shards, gold: bool, count: int
) -> None:
    config = replace(CONFIG, steps=60)
    feed = Watched(labelled, shards, config, seed=3)
    batches(feed, config.steps)
    names = [name for _, _, name, of_gold in sorted(feed.seen) if of_gold == gold]
    assert len(names) >= 3 * count
    whole_epochs = [names[start : start + count] for start in range(0, len(names) - count + 1, count)]
    assert all(len(set(epoch)) == count for epoch in whole_epochs)
    assert len({tuple(epoch) for epoch in whole_epochs}) > 1


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_every_batch_out(
    labelled: list[Encoded], shards: Shards, whole: list[TrainBatch], world: int
) -> None:
    """Each image goes to one process; the mean of weighted means over processes is that of one process."""
    shares = [
        batches(Feed(labelled, shards, CONFIG, seed=3, rank=rank, world=world), CONFIG.steps) for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        count = len(batch.images)
        mean = 0.0
        for rank, (part, places) in enumerate((shares[r][step], range(r, count, world)) for r in range(world)):
            if rank >= count:
                assert part.weight.tolist() == [0.0]
                continue
            assert torch.equal(part.images, batch.images[rank::world])
            assert torch.equal(part.target, batch.target[rank::world])
            mean += mean_of(part, torch.tensor([10.0 + place for place in places])) / world
        assert mean == pytest.approx(mean_of(batch, torch.arange(10.0, 10.0 + count)), rel=1e-5)


def mean_of(batch: TrainBatch, losses: Tensor) -> float:
    """What the trainer makes of the losses of a batch's images: a mean over those of weight above 0."""
    return float((losses * batch.weight).sum()) / max(1, int((batch.weight > 0).sum()))


def test_each_image_weighs_the_same_in_whole_and_partial_batches(labelled: list[Encoded], shards: Shards) -> None:
    """By the trainer's mean each counts its own weight / batch, whatever its mates."""
    names: set[float] = set()
    for own, released in ((labelled, None), ([], shards)):
        feed = Feed(own, released, CONFIG, seed=3)
        for batch in batches(feed, 12):
            counted = int((batch.weight > 0).sum())
            factors = batch.weight / max(1, counted) * CONFIG.batch
            names |= {round(factor, 6) for factor in factors.tolist()}
    assert names == set(WEIGHTS)


def test_the_share_is_that_of_a_full_batch(labelled: list[Encoded], shards: Shards) -> None:
    for world in (1, 3):
        feeds = [Feed(labelled, shards, CONFIG, seed=3, rank=rank, world=world) for rank in range(world)]
        for _ in range(CONFIG.steps):
            parts = [feed.next() for feed in feeds]
            counted = sum(int((part.weight > 0).sum()) for part in parts)
            assert [feed.share for feed in feeds] == [counted / CONFIG.batch] * world
        for feed in feeds:
            feed.close()


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_a_source_that_has_no_share_is_never_read(
    labelled: list[Encoded], shards: Shards, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    read: list[int] = []
    original = Shards.read

    def watched(self: Shards, wanted: object) -> object:
        for batch in original(self, wanted):  # type: ignore[arg-type]
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(Shards, "read", watched)
    feed = Watched(labelled, shards, replace(CONFIG, labelled_first=first, labelled_last=first), seed=3)
    batches(feed, 8)
    assert bool(read) == (first == 0)
    assert {gold for *_, gold in feed.seen} == {first == 1}


def test_one_source_alone_fills_all_steps(labelled: list[Encoded], shards: Shards) -> None:
    for own, released in ((labelled, None), ([], shards)):
        assert len(batches(Feed(own, released, CONFIG, seed=0), CONFIG.steps)) == CONFIG.steps
    assert Feed(labelled, None, CONFIG, seed=0).release_steps == 0
    steps = shards.schedule(sizes=CONFIG.sizes(), batch=CONFIG.batch, seed=0).steps
    assert Feed(labelled, shards, CONFIG, seed=0).release_steps == steps


def test_a_small_release_is_scheduled_no_further_than_the_run_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[int] = Counter()
    original = Schedule.batch

    def counted(self: Schedule, step: int) -> object:
        asked[step] += 1
        return original(self, step)

    monkeypatch.setattr(Schedule, "batch", counted)
    one = open_shards(write_drawn(tmp_path, [draw(1)]))
    batches(Feed([], one, replace(CONFIG, steps=9), seed=0), 9)
    assert max(asked) == 8


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    empty = open_shards(write_drawn(tmp_path, [], [draw(1)]))
    assert len(empty) == 0
    for shards in (None, empty):
        with pytest.raises(TrainError, match="nothing to train on"):
            Feed([], shards, CONFIG, seed=0)
    with pytest.raises(TrainError, match="nothing to train on"):
        mixture(CONFIG, labelled=0, release=0)


def test_without_a_mask_channel_no_prior_is_drawn_and_the_images_are_the_same(
    labelled: list[Encoded], shards: Shards, whole: list[TrainBatch]
) -> None:
    plain = batches(Feed(labelled, shards, replace(CONFIG, mask_channel=False), seed=3), 6)
    for one, other in zip(plain, whole, strict=False):
        assert one.prior is None
        assert other.prior is not None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.target, other.target)


def test_square_fit_puts_every_image_into_one_square(labelled: list[Encoded], shards: Shards) -> None:
    found = batches(Feed(labelled, shards, replace(CONFIG, fit="square", view=ViewConfig.plain()), seed=3), 8)
    assert {tuple(batch.images.shape[2:]) for batch in found} == {(96, 96)}


def test_nothing_that_a_shard_says_of_a_sample_but_pixels_weight_and_source_reaches_the_network(
    shards: Shards,
) -> None:
    """The feed's samples hold no path, no attribute and no source; a person's traits cannot be learnt from them."""
    sample = next(shards.read([np.array([0])]))[0]
    assert {field.name for field in dataclasses.fields(sample)} == {
        "name", "image", "mask", "ignore", "height", "width", "weight", "gold",
    }  # fmt: skip
    assert set(sample.name) <= set("0123456789abcdef")


def test_human_labels_of_a_release_are_augmented_as_the_labelled_are(shards: Shards) -> None:
    drawn, views = dataclasses.replace(shards, gold=np.ones(len(shards), np.bool_)), ViewConfig(erase=1.0)
    config = dataclasses.replace(CONFIG, view=views, steps=2)
    weak = batches(Feed([], shards, dataclasses.replace(config, strong=False), seed=3), 2)
    assert all(same(a, b) for a, b in zip(batches(Feed([], drawn, config, seed=3), 2), weak, strict=True))
    assert not any(same(a, b) for a, b in zip(batches(Feed([], shards, config, seed=3), 2), weak, strict=True))
