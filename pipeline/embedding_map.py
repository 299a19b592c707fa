"""A map of the embedding: a sample of the frames in two dimensions.

t-SNE (van der Maaten & Hinton, JMLR 2008) from the first two principal components (Kobak & Berens, Nature
Communications 2019); below 30 frames these components themselves. The rows are in the order of their hashes and one
thread works, so equal frames give equal bits, however the shards are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from pipeline.assign import group_column
from pipeline.embed import vectors_of
from pipeline.stage import Done, Span, read_span

Floats = NDArray[np.float64]

_LEAST = 30  # frames that t-SNE needs
_DIMENSIONS = 50
_PERPLEXITY = 30.0
_CHOSEN_SHARE = 3  # one in three points at least is a chosen frame, where there are so many


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingMap:
    """Frames in two dimensions.

    Attributes:
        ids: N sample ids, in the order of their keys.
        places: (N, 2) float64 in [0, 1].
        groups: (N,) int64 group of clusters.
        chosen: (N,) bool.
        method: "t-SNE" or "PCA".
    """

    ids: tuple[str, ...]
    places: Floats
    groups: NDArray[np.int64]
    chosen: NDArray[np.bool_]
    method: str

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.places.shape != (n, 2) or self.groups.shape != (n,) or self.chosen.shape != (n,):
            shapes = f"{self.places.shape}, {self.groups.shape} and {self.chosen.shape}"
            raise ValueError(f"places must be ({n}, 2), groups and chosen ({n},), got {shapes}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slim:
    """What a pass over the assigned frames needs of one part; dead vectors are left out.

    Attributes:
        ids: N sample ids.
        rows: (N,) int64 rows in the part.
        keys: (N,) uint64 hashes that know nothing of the choice.
        groups: (N,) int64 group of clusters.
        chosen: (N,) bool.
    """

    ids: pa.ChunkedArray
    rows: NDArray[np.int64]
    keys: NDArray[np.uint64]
    groups: NDArray[np.int64]
    chosen: NDArray[np.bool_]


def slim_parts(assigned: Done, chosen: pa.Table) -> Iterator[Slim]:
    """The parts of the assign stage, one at a time, with which of their frames are chosen."""
    taken = chosen.column("sample_id").combine_chunks()
    for uri in assigned.uris():
        table = read_span(Span(uri=uri), ["sample_id", "key", "cluster_path"])
        groups = group_column(table)
        rows = np.flatnonzero(groups >= 0)
        ids = table.column("sample_id").take(pa.array(rows))
        yield Slim(
            ids=ids,
            rows=rows,
            keys=hashed_again(np.asarray(table.column("key").to_numpy(), np.uint64)[rows]),
            groups=groups[rows],
            chosen=np.asarray(pc.is_in(ids, value_set=taken).to_numpy(), bool),
        )


def hashed_again(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Another hash for each (N,) uint64 selection hash (finaliser of SplitMix64; Steele, Lea & Flood, OOPSLA 2014).

    A choice takes the smallest hashes of each cell, so a sample by the same hashes would hold hardly any frame that was
    not chosen.
    """
    out = keys ^ (keys >> np.uint64(30))
    out = out * np.uint64(0xBF58476D1CE4E5B9)
    out = out ^ (out >> np.uint64(27))
    out = out * np.uint64(0x94D049BB133111EB)
    return np.asarray(out ^ (out >> np.uint64(31)), np.uint64)


def embedding_map(assigned: Done, chosen: pa.Table, points: int) -> EmbeddingMap:
    """The map of at most ``points`` frames: a hash sample, a third of them chosen where there are so many.

    Raises:
        ValueError: ``points`` is negative.
    """
    if points < 0:
        raise ValueError(f"points must be >= 0, got {points}")
    rows = _sampled(assigned, chosen, points)
    vectors = _vectors(assigned, rows)
    return EmbeddingMap(
        ids=tuple(row.id for row in rows),
        places=_in_unit(laid_out(vectors)),
        groups=np.array([row.group for row in rows], np.int64),
        chosen=np.array([row.chosen for row in rows], bool),
        method="t-SNE" if len(rows) >= _LEAST else "PCA",
    )


def laid_out(vectors: Floats) -> Floats:
    """(N, D) finite vectors in two dimensions, (N, 2); equal bits for equal rows in equal order."""
    with threadpool_limits(1):
        low = _principal(vectors, _DIMENSIONS)
        first = low[:, :2]
        spread = float(first[:, 0].std()) if len(first) else 0.0
        if len(vectors) < _LEAST or spread == 0:
            return first
        found = TSNE(
            n_components=2,
            perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3),
            init=np.asarray(first / spread * 1e-4, np.float32),
            learning_rate="auto",
            random_state=0,
            n_jobs=1,
        ).fit_transform(np.asarray(low, np.float32))
    return np.asarray(found, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Row:
    key: int
    id: str
    part: int
    row: int
    group: int
    chosen: bool


def _sampled(assigned: Done, chosen: pa.Table, points: int) -> list[_Row]:
    every: list[_Row] = []
    taken: list[_Row] = []
    for part, slim in enumerate(slim_parts(assigned, chosen)):
        every = _smallest(every, part, slim, np.arange(len(slim.keys)), points)
        taken = _smallest(taken, part, slim, np.flatnonzero(slim.chosen), points // _CHOSEN_SHARE)
    held = {row.id for row in taken}
    more = [row for row in every if row.id not in held][: points - len(taken)]
    return sorted([*taken, *more])


def _smallest(held: list[_Row], part: int, slim: Slim, rows: NDArray[np.int64], points: int) -> list[_Row]:
    """The rows with the smallest keys of those held and those of a part."""
    rows = rows[np.argsort(slim.keys[rows], kind="stable")][:points]
    ids = slim.ids.take(pa.array(rows)).to_pylist()
    new = (
        _Row(
            key=int(slim.keys[at]),
            id=name,
            part=part,
            row=int(slim.rows[at]),
            group=int(slim.groups[at]),
            chosen=bool(slim.chosen[at]),
        )
        for at, name in zip(rows.tolist(), ids, strict=True)
    )
    return sorted([*held, *new])[:points]


def _vectors(assigned: Done, rows: list[_Row]) -> Floats:
    """(N, D) vectors of the rows; those of one part in memory at a time."""
    out: dict[str, NDArray[np.float32]] = {}
    for part, uri in enumerate(assigned.uris()):
        mine = [row for row in rows if row.part == part]
        if mine:
            table = read_span(Span(uri=uri), ["vector"]).take(pa.array([row.row for row in mine], pa.int64()))
            out.update(zip((row.id for row in mine), vectors_of(table), strict=True))
    return np.stack([out[row.id] for row in rows]).astype(np.float64) if rows else np.zeros((0, 2))


def _principal(vectors: Floats, count: int) -> Floats:
    """(N, D) -> (N, at least 2 and at most ``count``): principal components; signs by their largest loading."""
    if not len(vectors):
        return np.zeros((0, 2))
    centred = vectors - vectors.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    sizes = np.where(sizes > 1e-9 * max(1.0, float(np.abs(vectors).max())), sizes, 0.0)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    low = (left * sizes * np.where(signs == 0, 1.0, signs))[:, :count]
    return np.asarray(np.pad(low, ((0, 0), (0, max(0, 2 - low.shape[1])))), np.float64)


def _in_unit(places: Floats) -> Floats:
    """The points moved into the unit square, with one scale for both axes; all in the middle where they are one."""
    if not len(places):
        return places
    low, high = places.min(axis=0), places.max(axis=0)
    size = float((high - low).max())
    if size == 0:
        return np.full_like(places, 0.5)
    return np.asarray(np.clip(0.5 + (places - (low + high) / 2) / size, 0.0, 1.0), np.float64)
