"""The dedupe step: which frames repeat another, and which sources belong together for it.

Rows of the embed parts stand in the order of (source uri, frame), for sources are sorted before they are cut into
tasks; so the first of a family is the same however they are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.duplicates import DuplicateConfig, find_duplicates
from pipeline.embed import vectors_of
from pipeline.stage import Done, Span, read_span


def dedupe(embedded: Done, probed: Done, config: DuplicateConfig) -> list[pa.Table]:
    """Finds the frames that repeat another: one table (embed_row, duplicate_of) per embed part.

    Frames of a source with a time are compared by content alone, for thinning has seen to the rest; frames without one
    (rows of a Parquet file) are compared like frames of different sources. A million frames take about 150 MB, and the
    vectors of those frames alone are read whose hashes or contents are near another's.
    """
    frames = _frames(embedded, probed)
    edges = np.cumsum([0, *frames.sizes])

    def load(rows: NDArray[np.int64]) -> NDArray[np.float16]:
        parts = [vectors_of(t).astype(np.float16) for t in _taken(embedded, edges, rows, "vector")]
        return np.concatenate(parts)

    of = find_duplicates(frames.content, frames.sources, frames.hashes, load, config)
    originals = np.unique(of[of >= 0])
    ids = [t.column("sample_id") for t in _taken(embedded, edges, originals, "sample_id")]
    names = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    tables: list[pa.Table] = []
    for start, stop in itertools.pairwise(edges.tolist()):
        rows = np.flatnonzero(of[start:stop] >= 0)
        repeated = names.take(pa.array(np.searchsorted(originals, of[start + rows])))
        tables.append(pa.table({"embed_row": pa.array(rows, pa.int32()), "duplicate_of": repeated}))
    return tables


@dataclass(frozen=True, slots=True, kw_only=True)
class _Embedded:
    """What is known of all N embedded frames without their vectors.

    Attributes:
        sizes: rows per part.
        content: (N,) content hashes.
        sources: (N,) number of the source; frames without a time have one each.
        hashes: (N,) difference hashes.
    """

    sizes: list[int]
    content: NDArray[np.bytes_]
    sources: NDArray[np.int64]
    hashes: NDArray[np.uint64]


def _frames(embedded: Done, probed: Done) -> _Embedded:
    sizes: list[int] = []
    content, fresh, hashes = [np.zeros(0, "S32")], [np.zeros(0, np.bool_)], [np.zeros(0, np.uint64)]
    last = None
    for part, described in zip(embedded.uris(), probed.uris(), strict=True):
        table = read_span(Span(uri=part), ["source_uri", "probe_row"])
        sizes.append(table.num_rows)
        if not table.num_rows:
            continue
        columns = ["content_sha256", "dhash64", "frame_pts_us"]
        rows = read_span(Span(uri=described), columns).take(table.column("probe_row"))
        uris = table.column("source_uri").combine_chunks()
        begins = np.diff(uris.dictionary_encode().indices.to_numpy(), prepend=-1) != 0
        begins[0] = uris[0].as_py() != last
        last = uris[-1].as_py()
        content.append(np.array(rows.column("content_sha256").to_pylist(), "S32"))
        hashes.append(rows.column("dhash64").to_numpy())
        fresh.append(begins | rows.column("frame_pts_us").is_null().to_numpy())
    return _Embedded(
        sizes=sizes,
        content=np.concatenate(content),
        sources=np.cumsum(np.concatenate(fresh), dtype=np.int64),
        hashes=np.concatenate(hashes).astype(np.uint64),
    )


def _taken(done: Done, edges: NDArray[np.int64], rows: NDArray[np.int64], column: str) -> Iterator[pa.Table]:
    """A column of the given rows, ascending over all parts; one part in memory at a time."""
    for part, start, stop in zip(done.uris(), edges[:-1], edges[1:], strict=True):
        mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if mine.size:
            yield read_span(Span(uri=part), [column]).take(pa.array(mine))


def families(embedded: Done, probed: Done, deduped: Done) -> dict[str, str]:
    """Sources that share a duplicate, and so must not be torn apart by a split or a fold.

    Only duplicates, originals and their sources are held in memory.

    Returns:
        Source uri -> the smallest sha256 (hex) of its family; sources without a relative are not listed.
    """
    digests: dict[str, str] = {}
    wanted: dict[str, set[str]] = {}
    triples = list(zip(embedded.uris(), probed.uris(), deduped.uris(), strict=True))
    for part, described, dup in triples:
        gone = read_span(Span(uri=dup))
        if gone.num_rows:
            table = read_span(Span(uri=part), ["source_uri", "probe_row"]).take(gone.column("embed_row"))
            uris = _note_digests(table, described, digests)
            for uri, original in zip(uris, gone.column("duplicate_of").to_pylist(), strict=True):
                wanted.setdefault(original, set()).add(uri)
    pairs: set[tuple[str, str]] = set()
    originals = pa.array(list(wanted), pa.string())
    for part, described, _ in triples if wanted else ():
        ids = read_span(Span(uri=part), ["sample_id"]).column("sample_id")
        rows = pa.array(np.flatnonzero(pc.is_in(ids, originals).to_numpy()))
        if len(rows):
            table = read_span(Span(uri=part), ["source_uri", "probe_row"]).take(rows)
            uris = _note_digests(table, described, digests)
            for sample, uri in zip(ids.take(rows).to_pylist(), uris, strict=True):
                pairs.update((uri, other) for other in wanted[sample] if other != uri)
    return _smallest_of_family(sorted(pairs), digests)


def _note_digests(table: pa.Table, described: str, digests: dict[str, str]) -> list[str]:
    """Notes the digests of the sources of some embedded rows; gives their uris."""
    rows = read_span(Span(uri=described), ["source_sha256"]).take(table.column("probe_row"))
    uris: list[str] = table.column("source_uri").to_pylist()
    digests.update(zip(uris, (digest.hex() for digest in rows.column("source_sha256").to_pylist()), strict=True))
    return uris


def _smallest_of_family(pairs: Sequence[tuple[str, str]], digests: Mapping[str, str]) -> dict[str, str]:
    """Union-find: each member of a pair -> the smallest digest of all it is connected with."""
    parent: dict[str, str] = {}

    def root(uri: str) -> str:
        while parent.setdefault(uri, uri) != uri:
            parent[uri] = parent[parent[uri]]
            uri = parent[uri]
        return uri

    for a, b in pairs:
        parent[root(a)] = root(b)
    smallest: dict[str, str] = {}
    for uri in parent:
        smallest[root(uri)] = min(smallest.get(root(uri), digests[uri]), digests[uri])
    return {uri: smallest[root(uri)] for uri in parent}
