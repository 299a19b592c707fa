"""Structure: clusters, what leaks from one split into another, and the rights of the people in the pictures.

N: rows of the release.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.erasures import ErasureError, read_erasures
from manifests.release import Json, Release, ReleaseError, read_release
from manifests.schema import SPLITS
from review.coding import shown
from review.columns import Columns, hex_of

EXAMPLES = 6
MAX_CHILDREN = 500
"""Clusters of one level that are sent, the largest first."""
MAX_PAIRS = 200
MAX_LEAKS = 50
MAX_DUE = 200
BITS = 3
"""dhash64 values that differ in at most so many bits are near duplicates, as in the pipeline."""
MAX_RUN = 64
"""Neighbours in one bucket that a hash is compared with; beyond that the count is a lower bound, and says so."""

_BLOCKS = (13, 13, 13, 13, 12)  # of 64 bits: 3 differing bits leave at least two blocks equal


def clusters(
    columns: Columns, judge: Mapping[str, Any], path: Sequence[int], pixels: NDArray[np.bool_]
) -> dict[str, Json]:
    """The clusters below `path`, largest first, with their decisions, splits and some ids to look at.

    Args:
        columns: of the release.
        judge: summary of the judge in stats.json: noise and gate of the coarse clusters.
        path: from the root; () for the coarsest.
        pixels: (N,) rows whose pixels are kept.
    """
    table = columns.clusters()
    levels = table.shape[1]
    inside = np.ones(columns.rows, np.bool_)
    for level, number in enumerate(path):
        inside &= table[:, level] == number if level < levels else False
    body: dict[str, Json] = {"levels": levels, "path": list(path), "n": int(inside.sum())}
    if len(path) >= levels:
        return {**body, "clusters": [], "clusters_left_out": 0}
    rows = np.flatnonzero(inside)
    numbers, kind, counts = np.unique(table[rows, len(path)], return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CHILDREN]
    decided, split = (_table(columns, name, rows, kind, len(numbers)) for name in ("decision", "split"))
    examples = _examples(rows, kind, pixels, len(numbers))
    found: list[Json] = [
        {
            "path": [*path, int(numbers[at])] if numbers[at] >= 0 else None,
            "n": int(counts[at]),
            "kept": decided[at].get("keep", 0),
            "held": decided[at].get("hold", 0),
            "dropped": decided[at].get("drop", 0),
            "splits": {name: split[at].get(name, 0) for name in SPLITS},
            "examples": [hex_of(columns.ids, row) for row in examples[at]],
            **(_judged(judge, int(numbers[at])) if not path else {}),
        }
        for at in order.tolist()
    ]
    return {**body, "clusters": found, "clusters_left_out": max(0, len(numbers) - MAX_CHILDREN)}


def _table(
    columns: Columns, name: str, rows: NDArray[np.int64], kind: NDArray[np.int64], kinds: int
) -> list[dict[str, int]]:
    words = columns.words(name)
    width = len(words.values) + 1
    found = np.bincount(kind * width + words.codes[rows] + 1, minlength=kinds * width).reshape(kinds, width)
    return [dict(zip(words.values, row, strict=True)) for row in found[:, 1:].tolist()]


def _examples(
    rows: NDArray[np.int64], kind: NDArray[np.int64], pixels: NDArray[np.bool_], kinds: int
) -> list[list[int]]:
    """Of each kind the first rows with pixels; ids are hashes, so the first are as good as drawn ones."""
    seen = pixels[rows]
    order = np.argsort(kind[seen], kind="stable")
    mine, sorted_kind = rows[seen][order], kind[seen][order]
    starts = np.searchsorted(sorted_kind, np.arange(kinds + 1))
    return [
        mine[start : min(start + EXAMPLES, end)].tolist()
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]


def _judged(judge: Mapping[str, Any], number: int) -> dict[str, Json]:
    said = judge.get("clusters", {}).get(str(number))
    if not isinstance(said, Mapping):
        return {}
    return {name: said[name] for name in ("noise", "gate", "gate_reason", "fold") if name in said}


def leaking_groups(columns: Columns) -> tuple[int, NDArray[np.int32], NDArray[np.uint8]]:
    """How many groups there are, the numbers of those that lie in several splits, and which: bit s for SPLITS[s]."""
    groups, bit = columns.groups(), split_bits(columns)
    if not len(groups):
        return 0, np.empty(0, np.int32), np.empty(0, np.uint8)
    found = np.zeros(int(groups.max()) + 1, np.uint8)
    for value in (1, 2, 4):
        found[groups[bit == value]] |= value
    leaks = np.flatnonzero(np.bitwise_count(found) > 1).astype(np.int32)
    return len(found), leaks, found[leaks]


def split_bits(columns: Columns) -> NDArray[np.uint8]:
    """(N,) 1, 2 or 4 for a kept row in train, val or test; 0 for others."""
    split, kept = columns.words("split"), columns.words("decision").chosen(["keep"])
    bit = np.zeros(columns.rows, np.uint8)
    for number, name in enumerate(SPLITS):
        bit[split.chosen([name]) & kept] = 1 << number
    return bit


def leakage(columns: Columns) -> dict[str, Json]:
    """Groups whose kept rows lie in several splits, and near duplicates across splits.

    A group across splits is a leak, for the split is a function of the group. A near duplicate is one to look at.
    """
    groups, leaks, _ = leaking_groups(columns)
    pairs, total, complete = near_duplicates(columns.bits("dhash64"), split_bits(columns))
    count = f"{total:,}{'' if complete else ' or more'} {'pair' if total == 1 else 'pairs'}"
    told = f"{count} within {BITS} bits of dhash64 in different splits"
    if total > len(pairs):
        told += f"; the {len(pairs):,} nearest are listed"
    return {
        "groups": groups,
        "across_n": len(leaks),
        "across_splits": [_leak(columns, group) for group in leaks[:MAX_LEAKS].tolist()],
        "near_duplicates": [_pair(columns, *pair) for pair in pairs],
        "near_n": total,
        "complete": complete,
        "told": told,
    }


def _leak(columns: Columns, group: int) -> dict[str, Json]:
    rows = np.flatnonzero((columns.groups() == group) & (split_bits(columns) > 0))
    counts = columns.words("split").counts(rows)
    return {
        "group": shown(str(columns.row(int(rows[0]))["group_id"])),
        "splits": {name: counts.get(name, 0) for name in SPLITS},
        "n": len(rows),
        "ids": [hex_of(columns.ids, row) for row in rows[:20].tolist()],
    }


def _pair(columns: Columns, a: int, b: int, distance: int) -> dict[str, Json]:
    split = columns.words("split")
    ids = columns.ids
    return {"distance": distance, "a": hex_of(ids, a), "b": hex_of(ids, b), "splits": [split.at(a), split.at(b)]}


def near_duplicates(hashes: NDArray[np.uint64], bit: NDArray[np.uint8]) -> tuple[list[tuple[int, int, int]], int, bool]:
    """Pairs of rows in different splits whose hashes differ in at most BITS bits.

    Equal hashes are one value; values that share two of five blocks of bits are compared (any two within three bits
    share two: pigeonhole), so a million rows take ten sorts.

    Args:
        hashes: (N,) uint64; 0 is none, and matches nothing.
        bit: (N,) uint8 of `split_bits`.

    Returns:
        pairs: up to MAX_PAIRS (row, row, distance), nearest first, one for each pair of values and splits.
        total: pairs of (value, split) that were found.
        complete: whether no bucket was too full to be compared in whole.
    """
    mine = np.flatnonzero((bit > 0) & (hashes != 0))
    values, inverse = np.unique(hashes[mine], return_inverse=True)
    row_of = np.full((3, len(values)), -1, np.int64)  # of each value and split, a row
    for number in range(3):
        inside = bit[mine] == 1 << number
        row_of[number, inverse[inside][::-1]] = mine[inside][::-1]
    splits = np.array([1, 2, 4], np.uint8) @ (row_of >= 0).astype(np.uint8)
    a, b, complete = _close(values, splits)
    same = np.flatnonzero(np.bitwise_count(splits) > 1)
    left, right = np.concatenate([same, a]), np.concatenate([same, b])
    distance = np.bitwise_count(values[left] ^ values[right])
    order = np.lexsort((right, left, distance))
    total = _crossings(splits[left], splits[right], equal=left == right)
    pairs = _rows_of(left[order], right[order], distance[order], row_of)
    return pairs, total, complete


def _crossings(left: NDArray[np.uint8], right: NDArray[np.uint8], *, equal: NDArray[np.bool_]) -> int:
    """How many (split, split) pairs differ: of one value each once, of two values in both directions."""
    crossed = np.bitwise_count(left).astype(np.int64) * np.bitwise_count(right) - np.bitwise_count(left & right)
    return int(np.where(equal, crossed // 2, crossed).sum())


def _rows_of(
    left: NDArray[np.int64], right: NDArray[np.int64], distance: NDArray[np.uint8], row_of: NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    pairs: list[tuple[int, int, int]] = []
    for a, b, bits in zip(left[:MAX_PAIRS].tolist(), right[:MAX_PAIRS].tolist(), distance.tolist(), strict=False):
        splits = combinations(range(3), 2) if a == b else ((s, t) for s in range(3) for t in range(3) if s != t)
        pairs += [
            (int(row_of[s, a]), int(row_of[t, b]), bits) for s, t in splits if row_of[s, a] >= 0 and row_of[t, b] >= 0
        ]
    return pairs[:MAX_PAIRS]


def _close(values: NDArray[np.uint64], splits: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Pairs of distinct values within BITS bits, not both in the same single split; (P,), (P,), all found?"""
    found = [np.empty(0, np.uint64)]
    complete = True
    size = np.uint64(max(1, len(values)))
    for keep in combinations(range(len(_BLOCKS)), 2):
        keys = values & _blocks(keep)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for a, b, whole in _neighbours(keys, order):
            complete &= whole
            near = np.bitwise_count(values[a] ^ values[b]) <= BITS
            near &= np.bitwise_count(splits[a] | splits[b]) > 1
            low, high = np.minimum(a[near], b[near]), np.maximum(a[near], b[near])
            found.append(low.astype(np.uint64) * size + high.astype(np.uint64))
    pairs = np.unique(np.concatenate(found))
    return (pairs // size).astype(np.int64), (pairs % size).astype(np.int64), complete


def _blocks(keep: Sequence[int]) -> np.uint64:
    """The bits of some of the _BLOCKS."""
    mask, start = 0, 0
    for number, width in enumerate(_BLOCKS):
        mask |= ((1 << width) - 1) << start if number in keep else 0
        start += width
    return np.uint64(mask)


def _neighbours(
    keys: NDArray[np.uint64], order: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], bool]]:
    """Pairs of items with equal keys (sorted), by their distance in the order; and whether that was all of them."""
    at = np.arange(len(keys) - 1 if len(keys) else 0)
    for step in range(1, MAX_RUN + 1):
        at = at[at + step < len(keys)]
        at = at[keys[at] == keys[at + step]]
        if not len(at):
            return
        yield order[at], order[at + step], True
    yield order[:0], order[:0], False


def due(columns: Columns, today: date) -> tuple[NDArray[np.int64], date | None]:
    """Rows whose retention ended before `today`, the longest ago first, and the next end that is to come."""
    until = columns.integers("retention_until")
    stated = until != np.iinfo(until.dtype).min
    day = today.toordinal() - _EPOCH
    rows = np.flatnonzero(stated & (until < day))
    ahead = until[stated & (until >= day)]
    rows = rows[np.argsort(until[rows], kind="stable")]
    return rows, _date(int(ahead.min())) if len(ahead) else None


def _date(days: int) -> date:
    """Days since 1970 as a date; what no calendar holds becomes its first or last day."""
    return date.fromordinal(min(max(days + _EPOCH, 1), date.max.toordinal()))


_EPOCH = date(1970, 1, 1).toordinal()


def rights(columns: Columns, folder: Path, release: Release, today: date) -> dict[str, Json]:
    """Licences, consent, retention, subjects and erasures of the rows; names of sibling releases that share files."""
    rows, upcoming = due(columns, today)
    until = columns.integers("retention_until")
    return {
        "licences": _ranked(columns, "licence"),
        "consent": _ranked(columns, "consent_status", "status"),
        "retention": {
            "due": [
                {"id": hex_of(columns.ids, row), "until": _date(int(until[row])).isoformat()}
                for row in rows[:MAX_DUE].tolist()
            ],
            "due_n": len(rows),
            "next": upcoming.isoformat() if upcoming else None,
            "unstated": int((until == np.iinfo(until.dtype).min).sum()),
        },
        "subjects": columns.subjects(),
        "erasures": list(_erasures(folder, release)),
        "releases_sharing": list(_sharing(folder, release)),
    }


def _erasures(folder: Path, release: Release) -> Iterator[dict[str, Json]]:
    """The erasures that the release carries out, with what the root remembers of them."""
    try:
        known = {erasure.id: erasure for erasure in read_erasures(folder.resolve().parent.parent)}
    except (ErasureError, OSError):  # the release stands without its root
        known = {}
    for name in release.erasures:
        found = known.get(name)
        told: dict[str, Json] = {"id": shown(name), "at": None, "reason": None, "count": None}
        if found is not None:
            told |= {"at": found.at.isoformat(), "reason": shown(found.reason), "count": found.count}
        yield told


def _ranked(columns: Columns, name: str, key: str = "") -> list[Json]:
    counts = columns.words(name).counts()
    found = sorted(((n, value or "") for value, n in counts.items() if n), key=lambda item: (-item[0], item[1]))
    return [{key or name: value, "n": n} for n, value in found[:MAX_DUE]]


def _sharing(folder: Path, release: Release) -> Iterator[str]:
    """Other releases beside this one that hold a file of the same bytes: what is erased here must go there too."""
    mine = {entry.sha256 for entry in release.files if entry.schema}
    for path in sorted(folder.resolve().parent.glob("*/release.json")):
        if path.parent == folder.resolve():
            continue
        try:
            other = read_release(path.parent)
        except ReleaseError:
            continue
        if any(entry.sha256 in mine for entry in other.files):
            yield path.parent.name
