"""Which samples the report shows: some at random, which stand for the data set, and the worst of each kind.

The choice is by hashes of id and seed, or by a number of the release: equal inputs give equal samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from review import tasks
from review.catalog import Catalog
from review.query import Query

Rows = NDArray[np.int64]
States = NDArray[np.int8]

RANDOM = 0.4
"""Share of the samples that are drawn at random from the kept ones."""
_TITLES = {
    "disputed": ("Disputed by reviewers", "Samples on which people differ."),
    "doubted": ("Kept, with the highest q", "Kept labels that the judge doubts most, the most doubted first."),
    "unsure": ("Kept, with the least confidence", "Kept labels of which the teacher was least sure."),
    "held": ("Held for a person", "Samples that wait for a person, those with the highest q first."),
    "dropped": ("Dropped", "Dropped samples whose pixels were kept, those with the highest q first."),
    "corrected": ("Corrected", "Kept samples whose mask is not the teacher's, those with the highest q first."),
    "random": (
        "Drawn at random",
        "Drawn from all kept samples, from each split its share: they stand for the data set.",
    ),
}
_SHARES = {"disputed": 0.1, "doubted": 0.15, "unsure": 0.1, "held": 0.15, "dropped": 0.1, "corrected": 0.1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Samples that are shown for one reason.

    Attributes:
        key: of the group.
        title: of its sheet.
        told: how they were chosen.
        samples: as a tile of the catalogue tells them.
    """

    key: str
    title: str
    told: str
    samples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The samples of a report.

    Attributes:
        groups: each sample is in one.
        random: ids of those drawn at random, in whatever group they are.
    """

    groups: tuple[Group, ...]
    random: frozenset[str]

    @property
    def ids(self) -> list[str]:
        """Of all samples, sorted."""
        return sorted(sample["id"] for group in self.groups for sample in group.samples)


def choose(catalog: Catalog, count: int, seed: int, states: States | None) -> Choice:
    """The samples that are shown, the worst of each kind first, the random ones last.

    Args:
        catalog: of the release.
        count: how many in all, at most; 0 for none.
        seed: of the draw, >= 0.
        states: (rows,) place in `query.STATES`; None where nobody has decided.
    """
    drawn = draw(catalog, round(RANDOM * count), seed)
    ranked = {key: _rows(catalog, query, states) for key, query in _QUERIES.items()}
    ranked["corrected"] = ranked["corrected"][_corrected(catalog, ranked["corrected"])]
    ranked["dropped"] = ranked["dropped"][catalog.has_pixels()[ranked["dropped"]]]
    taken = fill({key: ranked[key][: 2 * count].tolist() for key in _SHARES}, count, drawn.tolist())
    seen = {row for rows in taken.values() for row in rows}
    taken["random"] = [row for row in drawn.tolist() if row not in seen]
    tiles = {row: catalog.tile(row, states) for rows in taken.values() for row in rows}
    tiles |= {row: catalog.tile(row, states) for row in drawn.tolist() if row not in tiles}
    groups = (
        Group(
            key=key,
            title=title,
            told=_told(key, told, seed, len(drawn)),
            samples=tuple(tiles[row] for row in taken[key]),
        )
        for key, (title, told) in _TITLES.items()
        if taken[key] or key != "disputed"
    )
    return Choice(groups=tuple(groups), random=frozenset(str(tiles[row]["id"]) for row in drawn.tolist()))


_QUERIES = {
    "disputed": Query(state=("disputed",), sort="q", descending=True),
    "doubted": Query(decision=("keep",), range=(("q", None, None),), sort="q", descending=True),
    "unsure": Query(decision=("keep",), range=(("label_confidence", None, None),), sort="label_confidence"),
    "held": Query(decision=("hold",), sort="q", descending=True),
    "dropped": Query(decision=("drop",), sort="q", descending=True),
    "corrected": Query(decision=("keep",), sort="q", descending=True),
}


def _rows(catalog: Catalog, query: Query, states: States | None) -> Rows:
    return catalog.select(query, states) if states is not None or not query.state else np.empty(0, np.int64)


def _corrected(catalog: Catalog, rows: Rows) -> NDArray[np.bool_]:
    verdict, source = (catalog.columns.words(name) for name in ("verdict", "label_source"))
    found = verdict.chosen(["correct"]) | source.chosen(["human_corrected"])
    picked: NDArray[np.bool_] = found[rows]
    return picked


def _told(key: str, told: str, seed: int, drawn: int) -> str:
    if key != "random":
        return told
    return f"{told} {drawn:,} were drawn (seed {seed}); those that are among the worst are shown above, marked random."


def draw(catalog: Catalog, count: int, seed: int) -> Rows:
    """Rows drawn at random from the kept ones, from each split in proportion; ascending.

    Args:
        catalog: of the release.
        count: how many at most.
        seed: >= 0. A review task of the same seed draws other samples.
    """
    rows = catalog.select(Query(decision=("keep",)))
    if not count or not len(rows):
        return np.empty(0, np.int64)
    splits = catalog.columns.words("split").codes[rows]
    drawn: Rows = rows[tasks.draw(catalog.ids[rows], splits, count, -1 - seed)]
    return drawn


def fill(ranked: Mapping[str, Sequence[int]], count: int, drawn: Sequence[int]) -> dict[str, list[int]]:
    """Which rows of each ranking are shown: each row once, and as many in all as are asked for.

    The rankings take turns, each up to its share; what one lacks the others get. A row that was drawn at random too
    takes no further place.

    Args:
        ranked: key of the shares -> rows, worst first.
        count: rows in all, the drawn ones included.
        drawn: rows drawn at random.

    Returns:
        key -> rows, worst first; of those drawn at random only the ones that are in a ranking too.
    """
    taken: dict[str, list[int]] = {key: [] for key in ranked}
    seen: set[int] = set()
    random, left = set(drawn), count - len(drawn)
    for bounded in (True, False):
        waiting = {key: iter(rows) for key, rows in ranked.items()}
        while waiting and left > 0:
            key = next(iter(waiting))
            rows = waiting.pop(key)
            full = bounded and len(taken[key]) >= max(1, round(_SHARES[key] * count))
            row = None if full else _next(rows, seen)
            if row is not None:
                waiting[key] = rows  # behind the others
                seen.add(row)
                taken[key].append(row)
                left -= row not in random
    return {key: sorted(rows, key=ranked[key].index) for key, rows in taken.items()}


def _next(rows: Iterator[int], seen: set[int]) -> int | None:
    return next((row for row in rows if row not in seen), None)
