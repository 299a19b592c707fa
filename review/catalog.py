"""One release as the review screens ask for it: counts, slices, pages and samples, as JSON.

Opening reads release.json, stats.json and the footers of the manifest; a column is read when a screen first needs it,
and then stays (`review.columns`). Threads share a catalog. Texts come from outside: long ones are shortened
(`review.columns.shown`), and whoever shows them must take them for text.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.release import FileEntry, Json, Release, parse_release, read_release_bytes, sha256_hex
from manifests.schema import MASK_SPLITS
from manifests.verify import parse_document
from review import bias, coverage, histogram, overview, record, structure
from review.coding import Codes, shown
from review.columns import CatalogError, Columns, hex_of
from review.query import NUMBERS, STATES, WORDS, Query, QueryError, one_of

States = NDArray[np.int8]

MAX_PAGE = 200
MAX_BINS = 200
MAX_STATS_BYTES = 64 << 20
_KEPT_SELECTIONS = 4
_SHARD = re.compile(rf"shards/({'|'.join(MASK_SPLITS)})/([0-9]{{5}})-of-[0-9]{{5}}\.parquet")
_SLICES = ("decision", "split", "verdict", "label_source", "media_kind", "licence", "consent_status")


class UnknownSample(CatalogError):  # noqa: N818
    """A sample id that the release does not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the pixels of a sample lie.

    Attributes:
        sample_id: 32 hex digits; the row there must have it.
        folder: below `shards/`.
        entry: the shard's file as release.json lists it.
        row: in that file.
        width: pixels.
        height: pixels.
        mask_sha256: 32 bytes, as the manifest says; None where it says nothing.
    """

    sample_id: str
    folder: str
    entry: FileEntry
    row: int
    width: int
    height: int
    mask_sha256: bytes | None


class Catalog:
    """What the screens ask of one release.

    Attributes:
        folder: of the release.
        release: its `release.json`.
        fingerprint: of the release.
        stats: its `stats.json`.
        columns: its columns.
    """

    def __init__(
        self, *, folder: Path, release: Release, fingerprint: str, stats: Mapping[str, Any], columns: Columns
    ) -> None:
        self.folder = folder
        self.release = release
        self.fingerprint = fingerprint
        self.stats = stats
        self.columns = columns
        self._shards = {key: entry for entry in release.files if (key := _shard_key(entry))}
        self._selections: OrderedDict[Query, NDArray[np.int64]] = OrderedDict()
        self._lock = Lock()
        self._once = columns.once

    @classmethod
    def open(cls, folder: Path) -> "Catalog":
        """Open the release in `folder`; no column is read.

        Raises:
            ReleaseError: there is none, or it breaks a rule.
            CatalogError: stats.json or the manifest is not what release.json lists; the message names it.
        """
        data = read_release_bytes(folder)
        release = parse_release(data)
        return cls(
            folder=folder,
            release=release,
            fingerprint=sha256_hex(data),
            stats=_stats(folder, release),
            columns=Columns(folder, release),
        )

    @property
    def rows(self) -> int:
        """Kept, held and dropped rows."""
        return self.columns.rows

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """(rows,) S16 sample ids, ascending."""
        return self.columns.ids

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes."""
        return self.columns.attributes

    def warm(self) -> None:
        """Read all columns and what takes long to count."""
        self.columns.load()
        self.leakage()
        self.columns.cells(len(record.balanced(self.release, self.stats)))

    def select(self, query: Query, states: States | None = None) -> NDArray[np.int64]:
        """The rows that match, in the order asked for; missing numbers last, equal ones by id.

        A range whose end is the last edge of the histogram of its column includes that value.

        Args:
            query: which, and in which order.
            states: (rows,) place in STATES; None where nobody has decided.

        Raises:
            QueryError: an attribute that the release does not have.
        """
        if query.state:
            return self._ordered(query, self._matching(query, states))
        with self._lock:
            found = self._selections.pop(query, None)
        if found is None:
            found = self._ordered(query, self._matching(query, states))
            found.flags.writeable = False
        with self._lock:
            self._selections[query] = found
            if len(self._selections) > _KEPT_SELECTIONS:
                self._selections.popitem(last=False)
        return found

    def histogram(
        self, column: str, query: Query, by: str | None = None, bins: int = 40, states: States | None = None
    ) -> dict[str, Json]:
        """How a column of numbers is spread over the rows that match, as one series or one for each value of `by`.

        Args:
            column: of NUMBERS.
            query: which rows.
            by: an attribute, "cluster" (the coarsest), "state", or a column of words.
            bins: at most, in [2, MAX_BINS].
            states: as of `select`.

        Raises:
            QueryError: an unknown column or slice, or a number of bins out of range.
        """
        one_of(column, NUMBERS, "column")
        if not 2 <= bins <= MAX_BINS:
            raise QueryError(f"bins must be in [2, {MAX_BINS}], got {bins}")
        slices = None if by is None else self._slices(by, states)
        values = self.columns.number(column)
        chosen = self._matching(query, states)
        if not chosen.all():
            values = values[chosen]
            slices = slices and Codes(codes=slices.codes[chosen], values=slices.values)
        body = histogram.counts_of(column, values, self._edges(column, bins), slices)
        return {**body, "by": by}

    def page(self, query: Query, *, offset: int, limit: int, states: States | None = None) -> dict[str, Json]:
        """Some of the rows that match, shortly.

        Args:
            query: which, and in which order.
            offset: of the first, >= 0.
            limit: how many, in [1, MAX_PAGE].
            states: as of `select`.

        Raises:
            QueryError: see `select`; or a page out of range.
        """
        if offset < 0 or not 1 <= limit <= MAX_PAGE:
            raise QueryError(f"a page must have offset >= 0 and limit in [1, {MAX_PAGE}], got {offset} and {limit}")
        rows = self.select(query, states)
        samples: list[Json] = [self.tile(row, states) for row in rows[offset : offset + limit].tolist()]
        return {"total": len(rows), "offset": offset, "limit": limit, "samples": samples}

    def tile(self, row: int, states: States | None = None) -> dict[str, Json]:
        """What a tile of the grid shows of one row."""
        columns = self.columns
        words = ("decision", "split", "verdict", "label_source", "media_kind")
        numbers = ("q", "label_confidence", "student_iou")
        return {
            "id": hex_of(self.ids, row),
            "width": int(columns.integers("width")[row]),
            "height": int(columns.integers("height")[row]),
            **{name: columns.words(name).at(row) for name in words},
            "reasons": list(columns.reasons().at(row)),
            "state": STATES[0 if states is None else int(states[row])],
            **{name: _number(columns.number(name)[row]) for name in numbers},
            "pixels": bool(self.has_pixels()[row]),
        }

    def has_pixels(self) -> NDArray[np.bool_]:
        """(rows,) whose pixels are kept."""
        return self._once.get("pixels", self._has_pixels)

    def sample(self, sample_id: str, state: str = STATES[0]) -> dict[str, Json]:
        """All that the release says of one sample; `history` and `comments` are empty, for others to fill.

        Raises:
            UnknownSample: it is not there.
            CatalogError: what says it cannot be read.
        """
        row = self._row(sample_id)
        body = record.body(self.columns, row)
        body["evidence"] = record.evidence(self.folder, self.release, sample_id)
        body["neighbours"] = self._neighbours(row)
        body["pixels"] = record.pixels(self.folder, self.place(sample_id))
        return {"id": sample_id, **body, "history": [], "comments": [], "state": state}

    def place(self, sample_id: str) -> Place | None:
        """Where the pixels of a sample lie; None where none are kept.

        Raises:
            UnknownSample: it is not there.
            CatalogError: the manifest names a shard that the release does not list.
        """
        row = self._row(sample_id)
        if not self.has_pixels()[row]:
            return None
        split = self.columns.words("split").at(row)
        folder = "audit" if split == "dropped" else str(split)
        number, at = (int(self.columns.integers(name)[row]) for name in ("shard", "shard_row"))
        entry = self._shards.get((folder, number))
        if entry is None or not 0 <= at < (entry.rows or 0):
            raise CatalogError(
                f"{self.folder}: sample {sample_id} should be row {at} of shard {number} of {shown(folder)}, which is "
                f"not there; `curate verify {self.folder}` lists all that is broken"
            )
        return Place(
            sample_id=sample_id,
            folder=folder,
            entry=entry,
            row=at,
            width=int(self.columns.integers("width")[row]),
            height=int(self.columns.integers("height")[row]),
            mask_sha256=self.columns.mask_sha256(row),
        )

    def overview(self, *, today: date, review: overview.Review | None = None) -> dict[str, Json]:
        """The first screen: counts, models, and checks; no column is read for it.

        Args:
            today: against which retention is held.
            review: what the log and the integrity check say; None where nothing is known.
        """
        return overview.overview(self, today, review or overview.Review())

    def coverage(self) -> dict[str, Json]:
        """Target and actual rows of each cell, values of each attribute, and who says them."""
        return self._once.get("coverage", lambda: coverage.coverage(self.release, self.stats, self.columns))

    def bias(self, attribute: str | None = None) -> dict[str, Json]:
        """Rates of removal of each value of an attribute, or of all attributes, against the pool.

        Raises:
            QueryError: the release has no such attribute.
        """
        names = self.attributes if attribute is None else [self._attribute(attribute)]
        return self._once.get(f"bias {attribute is None} {attribute}", lambda: bias.bias(self.columns, names))

    def reasons(self) -> dict[str, Json]:
        """Each reason of a decision with its rows; a row with two reasons counts for both."""
        return self._once.get("reasons body", lambda: bias.by_reason(self.columns, self.has_pixels()))

    def clusters(self, path: Sequence[int] = ()) -> dict[str, Json]:
        """The clusters below a path of the tree."""
        return structure.clusters(self.columns, self.stats.get("judge", {}), path, self.has_pixels())

    def leakage(self) -> dict[str, Json]:
        """Groups that lie in several splits, and near duplicates across splits."""
        return self._once.get("leakage", lambda: structure.leakage(self.columns))

    def rights(self, today: date) -> dict[str, Json]:
        """Licences, consent, retention and erasures."""
        return structure.rights(self.columns, self.folder, self.release, today)

    def known(self, what: str) -> bool:
        """Whether "leakage", or the "columns", have been read already."""
        return self.columns.warm if what == "columns" else self._once.has(what)

    def row_of(self, sample_id: str) -> int:
        """The row of a sample.

        Raises:
            UnknownSample: it is not there.
        """
        return self._row(sample_id)

    def _row(self, sample_id: str) -> int:
        row = self.columns.find(sample_id)
        if row is None:
            raise UnknownSample(
                f"no sample {sample_id!r:.60} in release {self.release.name}; is it of another release?"
            )
        return row

    def _attribute(self, name: str) -> str:
        return one_of(name, self.attributes, "attribute")

    def _has_pixels(self) -> NDArray[np.bool_]:
        shard = self.columns.integers("shard")
        return shard >= 0

    def _neighbours(self, row: int) -> list[Json]:
        rows, times = record.neighbours(self.columns, row)
        decision, pixels = self.columns.words("decision"), self.has_pixels()
        return [
            {"id": hex_of(self.ids, at), "frame_pts_us": time, "decision": decision.at(at), "pixels": bool(pixels[at])}
            for at, time in zip(rows, times, strict=True)
        ]

    def _edges(self, column: str, bins: int = 40) -> NDArray[np.float64]:
        values = self.columns.number(column)
        return self._once.get(f"edges {column} {bins}", lambda: histogram.edges_of(column, values, bins))

    def _slices(self, by: str, states: States | None) -> Codes:
        if by in self.attributes:
            return self.columns.attribute(by)
        one_of(by, (*self.attributes, *_SLICES, "cluster", "state"), "by")
        return self._once.get("coarse", self._coarse) if by == "cluster" else self._word(by, states)

    def _word(self, name: str, states: States | None) -> Codes:
        if name != "state":
            return self.columns.words(name)
        return Codes(codes=np.zeros(self.rows, np.int8) if states is None else states, values=STATES)

    def _coarse(self) -> Codes:
        path = self.columns.clusters()
        if not path.shape[1]:
            return Codes(codes=np.full(self.rows, -1, np.int16), values=())
        numbers, codes = np.unique(path[:, 0], return_inverse=True)
        return Codes(codes=codes.astype(np.int32), values=tuple(str(number) for number in numbers.tolist()))

    def _ordered(self, query: Query, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.flatnonzero(chosen)
        if query.sort == "id":
            return rows[::-1].copy() if query.descending else rows
        values = self.columns.number(query.sort)[rows]
        return rows[np.argsort(-values if query.descending else values, kind="stable")]

    def _matching(self, query: Query, states: States | None) -> NDArray[np.bool_]:
        """(rows,) which rows match."""
        chosen = np.ones(self.rows, np.bool_)
        for name in WORDS:
            if wanted := getattr(query, name):
                chosen &= self._word(name, states).chosen(wanted)
        for name, classes in query.attr:
            if classes:
                chosen &= self.columns.attribute(self._attribute(name)).chosen(classes)
        for name, low, high in query.range:
            top = float(self._edges(name)[-1])
            chosen &= histogram.in_range(self.columns.number(name), low, high, top)
        if query.reason:
            chosen &= self.columns.reasons().chosen(query.reason)
        return self._placed(query, chosen)

    def _placed(self, query: Query, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if query.cluster:
            path = self.columns.clusters()
            if len(query.cluster) > path.shape[1]:
                return np.zeros(self.rows, np.bool_)
            chosen &= (path[:, : len(query.cluster)] == np.array(query.cluster, np.int32)).all(1)
        if query.cell is not None:
            chosen &= self._scanned("cell", query.cell)
        if query.group is not None:
            chosen &= self._scanned("group", query.group)
        if query.id is not None:
            low, high = (np.array([bytes.fromhex(query.id.ljust(32, end))], "S16") for end in "0f")
            chosen[: int(np.searchsorted(self.ids, low)[0])] = False
            chosen[int(np.searchsorted(self.ids, high, side="right")[0]) :] = False
        return chosen

    def _scanned(self, kind: str, value: str) -> NDArray[np.bool_]:
        if kind == "group":
            return record.rows_of_group(self.columns, value)
        return record.rows_of_cell(self.columns, value, record.balanced(self.release, self.stats))


def _shard_key(entry: FileEntry) -> tuple[str, int] | None:
    match = _SHARD.fullmatch(entry.path)
    return (match[1], int(match[2])) if match and entry.schema == "shard" else None


def _stats(folder: Path, release: Release) -> Mapping[str, Any]:
    """stats.json, checked against release.json."""
    entry = next((entry for entry in release.files if entry.path == "stats.json"), None)
    if entry is None or entry.bytes > MAX_STATS_BYTES:
        raise CatalogError(f"{folder}: release.json must list a stats.json of at most {MAX_STATS_BYTES} bytes")
    try:
        with (folder / entry.path).open("rb") as file:
            data = file.read(MAX_STATS_BYTES + 1)
        if sha256_hex(data) != entry.sha256:
            raise ValueError("its bytes are not those that release.json lists")
        stats = parse_document(data)
        return _checked(stats)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CatalogError(
            f"{folder / entry.path} cannot be read: {str(error)[:300]}; `curate verify {folder}` lists all that is "
            f"broken"
        ) from error


def _checked(stats: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("decisions", "verdicts", "splits", "attributes"):
        if not isinstance(stats.get(key), dict):
            raise ValueError(f"{key} must be an object")
    counted = [(key, stats[key]) for key in ("decisions", "verdicts", "splits")]
    counted += [(name, found) for name, values in stats["attributes"].items() for found in values.values()]
    for name, found in counted:
        if not all(type(count) is int and count >= 0 for count in found.values()):
            raise ValueError(f"{name:.60}: counts must be integers >= 0")
    return stats


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
