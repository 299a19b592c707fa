"""Samples that stay and look like one that goes: nobody can tell them apart by a rule, so they are told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.forget import Found
from pipeline.duplicates import near_hashes

_SHOWN = 200
"""Look-alikes that are listed; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAlike:
    """A sample that stays and looks like one that goes.

    Attributes:
        sample_id: of the sample that stays.
        source_uri: of its source.
        distance: Hamming distance of the difference hashes.
    """

    sample_id: str
    source_uri: str
    distance: int


def look_alikes(found: Found, distance: int) -> tuple[tuple[LookAlike, ...], int]:
    """Samples that stay and look like one that goes: those of its group, and how many of other groups."""
    stays = found.others.filter(found.others.column("dhash64").is_valid())
    others = _hashes(stays)
    near = _near(_hashes(found.rows.filter(found.rows.column("dhash64").is_valid())), others, distance)
    groups = set(found.rows.column("group_id").to_pylist()) - {None}
    same: dict[str, LookAlike] = {}
    elsewhere: set[str] = set()
    for row in np.flatnonzero(np.isin(others, np.array(list(near), np.uint64))).tolist():
        one = {name: stays.column(name)[row].as_py() for name in ("sample_id", "source_uri", "group_id")}
        if one["group_id"] not in groups:
            elsewhere.add(one["sample_id"])
        elif len(same) < _SHOWN:
            same[one["sample_id"]] = LookAlike(
                sample_id=one["sample_id"], source_uri=one["source_uri"], distance=near[int(others[row])]
            )
    return tuple(same[name] for name in sorted(same)), len(elsewhere)


def _hashes(table: pa.Table) -> NDArray[np.uint64]:
    """(N,) difference hashes of rows that all have one."""
    return np.asarray(table.column("dhash64").to_numpy(), np.uint64)


def _near(gone: NDArray[np.uint64], others: NDArray[np.uint64], distance: int) -> dict[int, int]:
    """Hash of a sample that stays -> its distance to the nearest that goes, where that is at most ``distance``."""
    first, second = np.unique(gone), np.unique(others)
    found = dict.fromkeys(np.intersect1d(first, second).tolist(), 0)
    both = np.union1d(first, second)
    going = np.isin(both, first)
    for a, b in near_hashes(both, distance).T.tolist():
        for one, other in ((a, b), (b, a)):
            if going[one] and not going[other]:
                apart = int(np.bitwise_count(both[one] ^ both[other]))
                found[int(both[other])] = min(apart, found.get(int(both[other]), 64))
    return found
