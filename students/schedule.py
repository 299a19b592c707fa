"""Which samples make up which batch: a pure function of (units, buckets, seed, step).

```
units of reading   [0][1][2][3][4][5] …            a permutation per epoch
blocks             [4 1 5][0 3 2] …                `block` units each, read together
stream             rows of a block permuted, block after block
buckets            ▯▯▮ ▯▮▮ …                       each sample goes to the bucket of its canonical size
batches            a full bucket is a batch; what is left at the end of the epoch are partial batches
```

So the order is random, yet files are read in runs of whole row groups, and at any time no more samples wait than one
block and less than a batch per bucket. N is the number of samples, B of buckets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_SAMPLES = 1024
_KEPT_EPOCHS = 2
"""A reader that looks ahead and a trainer may stand on both sides of an epoch's end."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Epoch:
    """An epoch's batches: batch k is `members[starts[k] : starts[k] + sizes[k]]`, of the bucket `buckets[k]`."""

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    buckets: NDArray[np.int64]


class Schedule:
    """The batches of a training; two schedules of equal arguments are equal, whoever asks and in whatever order.

    An epoch holds every sample once, in batches of one bucket each, and each epoch has `steps` batches: the bucket
    with n samples gives ceil(n / batch), of which the last may be partial. Partial batches end the epoch.
    """

    def __init__(
        self, *, units: NDArray[Any], buckets: NDArray[Any], batch: int, seed: int, block: int | None = None
    ) -> None:
        """Check the index; nothing is drawn yet.

        Args:
            units: (U,) integers, samples of each unit of reading, >= 0; samples are numbered through the units.
            buckets: (N,) integers >= 0, the bucket of each sample.
            batch: samples of a full batch, >= 1.
            seed: >= 0.
            block: units of a block, >= 1; None for about BLOCK_SAMPLES samples.

        Raises:
            ValueError: no sample, units that do not add up to the samples, or a number out of range.
        """
        self._units = np.asarray(units, np.int64).reshape(-1)
        self._buckets = np.asarray(buckets).reshape(-1)
        if not self._buckets.size:
            raise ValueError("a schedule needs at least 1 sample, got 0: is the split empty?")
        if self._units.min(initial=0) < 0 or self._units.sum() != self._buckets.size:
            raise ValueError(
                f"units must be >= 0 and add up to the {self._buckets.size} samples, got {self._units.sum()}"
            )
        if self._buckets.dtype.kind not in "iu" or int(self._buckets.min()) < 0:
            raise ValueError(f"buckets must be integers >= 0, got {self._buckets.dtype} from {self._buckets.min()}")
        if batch < 1 or seed < 0 or (block is not None and block < 1):
            raise ValueError(f"batch, block must be >= 1 and seed >= 0, got {batch}, {block}, {seed}")
        self.batch_size, self.seed = batch, seed
        self.block = block or max(1, round(BLOCK_SAMPLES * self._units.size / self._buckets.size))
        self._totals = np.bincount(self._buckets)
        self._kept: OrderedDict[int, _Epoch] = OrderedDict()

    @property
    def samples(self) -> int:
        """Samples of an epoch, N."""
        return self._buckets.size

    @property
    def steps(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        return int((-(-self._totals // self.batch_size)).sum())

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The bucket and the sample numbers, (K,) int64 with 1 <= K <= batch, of a step >= 0 counted over all epochs.

        Raises:
            ValueError: step below 0.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        number, place = divmod(step, self.steps)
        epoch = self._epoch(number)
        start = epoch.starts[place]
        return int(epoch.buckets[place]), epoch.members[start : start + epoch.sizes[place]].copy()

    def _epoch(self, number: int) -> _Epoch:
        epoch = self._kept.pop(number, None) or self._draw(number)
        self._kept[number] = epoch
        if len(self._kept) > _KEPT_EPOCHS:
            self._kept.popitem(last=False)
        return epoch

    def _draw(self, number: int) -> _Epoch:
        stream = self.stream(number)
        bucket = self._buckets[stream]
        members = np.argsort(bucket, kind="stable")  # places in the stream, bucket by bucket
        starts, sizes, buckets = self._cuts()
        partial = sizes < self.batch_size
        order = np.lexsort((members[starts + sizes - 1], partial))  # when the bucket is full, leftovers last
        return _Epoch(members=stream[members], starts=starts[order], sizes=sizes[order], buckets=buckets[order])

    def _cuts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Start, size and bucket of each batch where samples lie bucket by bucket."""
        per_bucket = -(-self._totals // self.batch_size)
        buckets = np.repeat(np.arange(self._totals.size), per_bucket)
        first_batch = np.cumsum(per_bucket) - per_bucket
        place = (np.arange(buckets.size) - first_batch[buckets]) * self.batch_size
        first = np.cumsum(self._totals) - self._totals
        return first[buckets] + place, np.minimum(self.batch_size, self._totals[buckets] - place), buckets

    def stream(self, epoch: int) -> NDArray[np.int64]:
        """The order in which an epoch's samples enter their buckets, (N,) int64: block by block."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch))))
        order = rng.permutation(self._units.size)
        rows = self._units[order]
        first = np.cumsum(self._units) - self._units
        stream = np.repeat(first[order] - (np.cumsum(rows) - rows), rows) + np.arange(self.samples)
        ends = np.cumsum(rows)[self.block - 1 :: self.block].tolist()
        for start, stop in zip([0, *ends], [*ends, self.samples], strict=True):
            rng.shuffle(stream[start:stop])
        return stream


def block_units(rows: NDArray[np.int64], sizes: NDArray[np.int64], limit: int) -> int:
    """Units of a block of about BLOCK_SAMPLES samples that takes at most about `limit` bytes, at least 1.

    Args:
        rows: (U,) samples of each unit.
        sizes: (U,) bytes of each unit.
        limit: bytes.
    """
    samples, taken = int(rows.sum()), int(sizes.sum())
    wanted = BLOCK_SAMPLES * rows.size / max(samples, 1)
    return max(1, min(round(wanted), limit * rows.size // max(taken, 1)))
