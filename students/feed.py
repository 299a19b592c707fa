"""The batches of one process of a training: labelled images and the release's samples, each at its step.

```
step ─▶ Mixture ─┬▶ labelled: Schedule over the folder's images ────────────────▶ encoded ─┐
                 └▶ release:  Schedule over the shards' rows ─▶ Shards.read, CRC ▶ encoded ─┴▶ threads: views ▶ batch
```

Batches are a function of (data, config, seed, step). Reading stays ahead of the training by a few steps; started at
any step, the feed gives what an uninterrupted one would have given from there on.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from students.data import Size, nearest_bucket
from students.mixture import Mixture
from students.recipe import TrainConfig, TrainError
from students.schedule import Schedule
from students.shards import Shards
from students.views import Encoded, TrainBatch, View, collate, draw_view

_AHEAD = 3  # steps whose views are drawn before they are asked for
_LABELLED = 1  # keeps the labelled schedule's random numbers apart from the release's


class Feed:
    """Batches from one step on, in order.

    Args:
        labelled: The labelled images to train on; may be empty.
        shards: The samples of the release; None or empty where there is none.
        config: Sizes, batch, mixture, augmentation.
        seed: Of all that is drawn.
        start: The first step asked for.
        rank: Number of this process.
        world: Processes that share every batch.
        loaders: Threads that draw views.

    Raises:
        TrainError: There is neither a labelled image nor a sample.
    """

    def __init__(
        self,
        labelled: Sequence[Encoded],
        shards: Shards | None,
        config: TrainConfig,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        loaders: int = 1,
    ) -> None:
        self._labelled, self._config, self._seed = labelled, config, seed
        self._rank, self._world = rank, world
        self._sizes = config.sizes()
        self._mixture = mixture(config, labelled=len(labelled), release=len(shards) if shards is not None else 0)
        self._own = _labelled_schedule(labelled, self._sizes, config.batch, seed) if labelled else None
        self._release = (
            shards.schedule(sizes=self._sizes, batch=config.batch, seed=seed)
            if shards is not None and len(shards)
            else None
        )
        self._reading = self._read(shards, start) if shards is not None and len(shards) else iter(())
        self._threads = ThreadPoolExecutor(loaders)
        self._drawn = start
        self._coming: deque[tuple[list[Future[View]], list[float], float]] = deque()
        self._weights = np.ones(0) if shards is None else shards.weights
        self.share = 0.0

    @property
    def release_steps(self) -> int:
        """Batches of one epoch of the release; 0 without one."""
        return self._release.steps if self._release is not None else 0

    def next(self) -> TrainBatch:
        """The batch of the next step; weights carry the process's share of the batch.

        Then ``share`` is the part of a full batch that this step's images of weight above 0 are, over all processes.

        Raises:
            ShardError: A unit of the release is damaged.
            SampleError: A sample cannot be decoded.
        """
        while len(self._coming) < _AHEAD and self._drawn < self._config.steps:
            self._coming.append(self._draw(self._drawn))
            self._drawn += 1
        views, weights, self.share = self._coming.popleft()
        return collate([view.result() for view in views], weights)

    def close(self) -> None:
        """Stop drawing ahead."""
        self._threads.shutdown(cancel_futures=True)

    def _draw(self, step: int) -> tuple[list[Future[View]], list[float], float]:
        labelled, place = self._mixture.source(step)
        schedule = self._own if labelled else self._release
        assert schedule is not None
        bucket, members = schedule.batch(place)
        slots = self._slots(len(members))
        chosen = [self._labelled[members[slot]] for slot in slots] if labelled else next(self._reading)
        views = [
            self._threads.submit(self._view, sample, self._sizes[bucket], (step, slot))
            for slot, sample in zip(slots, chosen, strict=True)
        ]
        counted = np.array([self._labelled[i].weight for i in members] if labelled else self._weights[members]) > 0
        idle = self._rank >= len(members)  # its one sample only keeps the devices in step
        share = 0.0 if idle else int(counted[slots].sum()) * self._world / self._config.batch
        weights = [sample.weight * share for sample in chosen]
        return views, weights, int(counted.sum()) / self._config.batch

    def _slots(self, count: int) -> list[int]:
        """The places of a batch of so many samples that this process fills, at least one."""
        return list(range(self._rank, count, self._world)) or [0]

    def _read(self, shards: Shards, start: int) -> Iterator[list[Encoded]]:
        first, end = (step - self._mixture.labelled_before(step) for step in (start, self._config.steps))
        return shards.read(self._mine(place) for place in range(first, end))

    def _mine(self, place: int) -> NDArray[np.int64]:
        assert self._release is not None
        members = self._release.batch(place)[1]
        return members[self._slots(len(members))]

    def _view(self, sample: Encoded, size: Size, key: tuple[int, int]) -> View:
        rng = np.random.default_rng([self._seed, *key])
        prior = self._config.prior if self._config.mask_channel else None
        strong = self._config.strong and not sample.gold
        return draw_view(sample, size, self._config.view, rng, strong=strong, prior=prior)


def mixture(config: TrainConfig, *, labelled: int, release: int) -> Mixture:
    """Where each step's images come from; all from the one source that there is, if there is only one.

    Raises:
        TrainError: There is none.
    """
    if not labelled and not release:
        raise TrainError("there is nothing to train on: the release has no training sample, and no image is labelled")
    if not labelled or not release:
        share = 1.0 if labelled else 0.0
        return Mixture(first=share, last=share, ramp=0.0)
    return Mixture(first=config.labelled_first, last=config.labelled_last, ramp=config.labelled_ramp * config.steps)


def _labelled_schedule(labelled: Sequence[Encoded], sizes: Sequence[Size], batch: int, seed: int) -> Schedule:
    buckets = [sizes.index(nearest_bucket(sample.height, sample.width, sizes)) for sample in labelled]
    drawn = int(np.random.SeedSequence([seed, _LABELLED]).generate_state(1)[0])
    return Schedule(units=np.array([len(labelled)]), buckets=np.array(buckets), batch=batch, seed=drawn)


def loaders(device: torch.device) -> int:
    """Threads that pay: a CPU that computes spares one, a GPU waits for views."""
    return 1 if device.type == "cpu" else min(12, os.cpu_count() or 1)
