"""Training samples out of a published release: a small index in memory, pixels read when their batch comes.

```
batches ──> a window of the batches to come ──> which rows are wanted, and when next
                                                     │
shards ──> one row group at a time, CRC on ──> wanted rows are held ──> batches of Encoded, in order
```
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.release import FileEntry
from manifests.schema import LABEL_SOURCES, SHARD
from manifests.signoff import check_signed
from manifests.units import (
    Footers,
    Unit,
    damaged_file,
    damaged_unit,
    encoded_bytes,
    read_listing,
    read_unit,
    shard_entries,
    units_of,
)
from students.data import Size, nearest_bucket
from students.schedule import Schedule, block_units
from students.views import Encoded

HORIZON = 1 << 16
"""Samples of the batches that are looked ahead: what is wanted later than that is read again."""
HELD_BYTES = 160 << 20
"""Encoded bytes that are held at most, apart from the batch in hand."""
BLOCK_BYTES = 80 << 20
"""Encoded bytes of a block: half of what is held, the rest is for samples whose bucket is not full."""
GOLD = ("human", "human_corrected")
"""Sources of labels that a person drew."""

_INDEX = ("sample_id", "width", "height", "weight", "label_source")
_READ = ("sample_id", "image.bytes", "mask.bytes", "ignore.bytes")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shards:
    """One split of a release, checked, with its index in memory; N samples in U units.

    Attributes:
        folder: of the release.
        split: one of `manifests.schema.MASK_SPLITS`.
        fingerprint: of the release.
        units: what is read at once, in the order of the samples.
        names: (N,) sample ids, Arrow strings.
        heights: (N,) int32 pixels, >= 1.
        widths: (N,) int32 pixels, >= 1.
        weights: (N,) float32 factors of the loss, >= 0; a sample of weight 0 is read like any other.
        gold: (N,) bool, whether a person drew the label.
    """

    folder: Path
    split: str
    fingerprint: str
    units: tuple[Unit, ...]
    names: pa.StringArray
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    weights: NDArray[np.float32]
    gold: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of samples, N."""
        return len(self.names)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(U,) samples of each unit."""
        return np.array([unit.rows for unit in self.units], np.int64)

    def buckets(self, sizes: Sequence[Size]) -> NDArray[np.int8]:
        """(N,) the number of each sample's canonical size, of `students.data.nearest_bucket`."""
        shapes, inverse = np.unique(np.stack([self.heights, self.widths], 1), axis=0, return_inverse=True)
        nearest = [sizes.index(nearest_bucket(height, width, sizes)) for height, width in shapes.tolist()]
        return np.array(nearest, np.int8)[inverse.reshape(-1)]

    def schedule(self, *, sizes: Sequence[Size], batch: int, seed: int) -> Schedule:
        """The batches of a training on this split, in blocks of about 1,024 samples and at most BLOCK_BYTES.

        Raises:
            ValueError: see `Schedule`; the split is empty.
        """
        if not len(self):
            raise ValueError(f"split {self.split!r} of {self.folder} holds no sample: nothing to train on")
        rows, taken = self.rows, np.array([unit.bytes for unit in self.units], np.int64)
        block = block_units(rows, taken, BLOCK_BYTES)
        return Schedule(units=rows, buckets=self.buckets(sizes), batch=batch, seed=seed, block=block)

    def read(self, batches: Iterable[Sequence[int] | NDArray[np.integer]]) -> Iterator[list[Encoded]]:
        """Read the samples of each batch, in order.

        `batches` is drawn ahead by up to HORIZON samples; it may be endless. A unit is read when a batch first needs a
        row of it; of its rows those are held that the batches to come need, soonest first, up to HELD_BYTES. So the
        batches of a `Schedule` read every unit once per epoch, any other order is as right but reads units again, and
        a start in the middle of an epoch reads only the units that are still needed.

        Raises:
            IndexError: a number outside [0, N).
            ShardError: a damaged unit, a row without image or mask, or a file that was exchanged after it was opened.
        """
        return _Reading(shards=self).run(batches)


@dataclass(kw_only=True, slots=True, eq=False)
class _Reading:
    """One pass: the window of batches to come, and the samples held for them.

    Attributes:
        shards: what is read.
        starts: (U + 1,) first sample of each unit.
        next_use: (N,) number of the next batch in the window that has the sample; -1 for none.
        later: of samples that are in several batches of the window, the numbers after the next.
        held: samples read and not yet used up.
        taken: encoded bytes in `held`.
    """

    shards: Shards
    starts: NDArray[np.int64] = field(init=False)
    next_use: NDArray[np.int64] = field(init=False)
    later: dict[int, list[int]] = field(default_factory=dict)
    held: dict[int, Encoded] = field(default_factory=dict)
    taken: int = 0
    footers: Footers = field(default_factory=Footers)

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.shards.rows)]).astype(np.int64)
        self.next_use = np.full(len(self.shards), -1, np.int64)

    def run(self, batches: Iterable[Sequence[int] | NDArray[np.integer]]) -> Iterator[list[Encoded]]:
        source, window, ahead, number = iter(batches), deque[list[int]](), 0, 0
        while True:
            while ahead < HORIZON and (batch := next(source, None)) is not None:
                window.append(self._expect(batch, number + len(window)))
                ahead += len(window[-1])
            if not window:
                return
            samples = window.popleft()
            ahead -= len(samples)
            yield self._take(samples, number)
            number += 1

    def _expect(self, batch: Sequence[int] | NDArray[np.integer], number: int) -> list[int]:
        samples = [int(sample) for sample in batch]
        for sample in samples:
            if not 0 <= sample < len(self.shards):
                raise IndexError(f"sample must be in [0, {len(self.shards)}), got {sample}")
            if self.next_use[sample] < 0:
                self.next_use[sample] = number
            else:
                self.later.setdefault(sample, []).append(number)
        return samples

    def _take(self, samples: list[int], number: int) -> list[Encoded]:
        wanted = [sample for sample in samples if sample not in self.held]
        for unit in np.unique(np.searchsorted(self.starts, wanted, side="right") - 1).tolist():
            self._load(unit)
            self._trim(number)
        found = [self.held[sample] for sample in samples]
        for sample in samples:
            self._used(sample)
        return found

    def _used(self, sample: int) -> None:
        uses = self.later.get(sample)
        if uses:
            self.next_use[sample] = uses.pop(0)
            return
        self.later.pop(sample, None)
        self.next_use[sample] = -1
        self._drop(sample)

    def _drop(self, sample: int) -> None:
        self.taken -= _size(self.held.pop(sample))

    def _trim(self, number: int) -> None:
        """Let go of the samples wanted last; a quarter at once, so that it is rare."""
        if self.taken <= HELD_BYTES:
            return
        for sample in sorted(self.held, key=lambda sample: -self.next_use[sample]):
            if self.taken <= HELD_BYTES // 4 * 3 or self.next_use[sample] <= number:
                return
            self._drop(sample)

    def _load(self, number: int) -> None:
        """Read a unit and hold those of its rows that are in the window."""
        unit, start = self.shards.units[number], int(self.starts[number])
        table = read_unit(unit, _READ, footers=self.footers)
        names = self.shards.names.slice(start, unit.rows)
        if not table.column("sample_id").combine_chunks().equals(names):
            raise damaged_unit(unit, "holds other samples than when it was opened: the file was exchanged")
        wanted = np.flatnonzero(self.next_use[start : start + unit.rows] >= 0).tolist()
        places = np.array([place for place in wanted if start + place not in self.held], np.int64)
        images, masks, ignores = (encoded_bytes(table, name, places) for name in ("image", "mask", "ignore"))
        for place, image, mask, ignore in zip(places.tolist(), images, masks, ignores, strict=True):
            sample = self._sample(unit, start + place, image, mask, ignore)
            self.held[start + place] = sample
            self.taken += _size(sample)

    def _sample(self, unit: Unit, index: int, image: bytes | None, mask: bytes | None, ignore: bytes | None) -> Encoded:
        shards = self.shards
        name = shards.names[index].as_py()
        if not image or not mask:
            raise damaged_unit(unit, f"sample {name} has no {'mask' if image else 'image'}")
        return Encoded(
            name=name,
            image=image,
            mask=mask,
            ignore=ignore or None,
            height=int(shards.heights[index]),
            width=int(shards.widths[index]),
            weight=float(shards.weights[index]),
            gold=bool(shards.gold[index]),
        )


def _size(sample: Encoded) -> int:
    return len(sample.image) + len(sample.mask) + len(sample.ignore or b"")


def open_shards(
    folder: Path,
    split: str = "train",
    *,
    require_signoff: bool = False,
    allowed_signers: Path | None = None,
    verify: bool = True,
) -> Shards:
    """Open one split of the release in `folder`: all its files are checked, and their columns without pixels read.

    Args:
        folder: holds `release.json`.
        split: one of `manifests.schema.MASK_SPLITS`; a split without samples gives `Shards` of length 0.
        require_signoff: whether to refuse a release that no person has signed off.
        allowed_signers: who may sign as whom, see `manifests.signoff.check_signed`; where it is given, a release is
            refused that none of them has signed off with their key, whatever `require_signoff` says.
        verify: whether to compare the sha256 of every file, about a second per gigabyte.

    Raises:
        ReleaseError: no release, or `release.json` breaks a rule.
        UnsignedError: see `manifests.signoff.check_signed`.
        SignatureError: see `manifests.signoff.check_signed`.
        ShardError: a file is missing, truncated, exchanged, changed or of another schema; a value is out of range.
    """
    release, fingerprint = read_listing(folder)
    if require_signoff or allowed_signers is not None:
        check_signed(folder, fingerprint=fingerprint, allowed_signers=allowed_signers)
    found: list[Unit] = []
    tables: list[pa.Table] = []
    for entry in shard_entries(release, split):
        footers = Footers(1)
        of_file = units_of(folder, entry, verify=verify, footers=footers)
        of_index = [_read_index(unit, footers) for unit in of_file]
        _check_ids(of_index, entry, folder / entry.path)
        found += of_file
        tables += of_index
    index = pa.concat_tables(tables) if tables else SHARD.empty_table().select(_INDEX)
    gold = [source in GOLD for source in index.column("label_source").to_pylist()]
    return Shards(
        folder=folder,
        split=split,
        fingerprint=fingerprint,
        units=tuple(found),
        names=_whole(index.column("sample_id")),
        heights=_numbers(index.column("height")),
        widths=_numbers(index.column("width")),
        weights=_numbers(index.column("weight")),
        gold=np.array(gold, np.bool_),
    )


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column without nulls; `to_numpy`, like `pa.array`, imports pandas where it is there: 0.4 s and 40 MB."""
    return np.from_dlpack(_whole(column))


def _read_index(unit: Unit, footers: Footers) -> pa.Table:
    """The columns of a unit that say what its samples are, without pixels; each value checked."""
    table = read_unit(unit, _INDEX, footers=footers)
    height, width, weight = (_numbers(table.column(name)) for name in ("height", "width", "weight"))
    known = [source in LABEL_SOURCES for source in table.column("label_source").to_pylist()]
    good = {
        "width and height must be >= 1": (height >= 1) & (width >= 1),
        "weight must be finite and >= 0": np.isfinite(weight) & (weight >= 0),
        f"label_source must be one of {LABEL_SOURCES}": np.array(known, np.bool_),
    }
    for rule, holds in good.items():
        if not holds.all():
            row = table.slice(int(np.argmin(holds)), 1).to_pylist()[0]
            raise damaged_unit(unit, f"{rule}, got {row}")
    return table


def _check_ids(tables: Sequence[pa.Table], entry: FileEntry, path: Path) -> None:
    """Check the first and last id: two files of equal size may have changed places."""
    filled = [table.column("sample_id") for table in tables if len(table)]
    ends = (filled[0][0].as_py(), filled[-1][-1].as_py()) if filled else (None, None)
    if ends != (entry.min_id, entry.max_id):
        raise damaged_file(
            path, f"holds ids {ends[0]!r} to {ends[1]!r}, expected {entry.min_id!r} to {entry.max_id!r}: another file"
        )
