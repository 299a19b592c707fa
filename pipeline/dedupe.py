"""The dedupe step: which frames repeat another, and which sources belong together for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.duplicates import DuplicateConfig, find_duplicates
from pipeline.embed import vectors_of
from pipeline.stage import Done, Span, read_span


def dedupe(embedded: Done, probed: Done, config: DuplicateConfig) -> list[pa.Table]:
    """Finds the frames that repeat another: one table (embed_row, duplicate_of) per embed part."""
    columns: dict[str, list[Any]] = {"id": [], "content": [], "source": [], "dhash": [], "vector": []}
    sizes: list[int] = []
    for part, described in zip(embedded.uris(), probed.uris(), strict=True):
        table = read_span(Span(uri=part), ["sample_id", "source_uri", "vector", "probe_row"])
        rows = read_span(Span(uri=described), ["content_sha256", "dhash64"]).take(table.column("probe_row"))
        sizes.append(table.num_rows)
        columns["id"] += table.column("sample_id").to_pylist()
        columns["source"] += table.column("source_uri").to_pylist()
        columns["content"] += [c.hex() for c in rows.column("content_sha256").to_pylist()]
        columns["dhash"].append(rows.column("dhash64").to_numpy())
        columns["vector"].append(vectors_of(table))
    ids = np.array(columns["id"], dtype=np.str_)
    _, sources = np.unique(np.array(columns["source"], dtype=np.str_), return_inverse=True)
    content = np.array(columns["content"], dtype=np.bytes_)
    hashes = np.concatenate([*columns["dhash"], np.zeros(0, np.uint64)]).astype(np.uint64)
    vectors = np.concatenate(columns["vector"]) if ids.size else np.zeros((0, 1), np.float32)
    of = find_duplicates(ids, content, sources, hashes, vectors, config)
    tables: list[pa.Table] = []
    start = 0
    for size in sizes:
        rows = np.flatnonzero(of[start : start + size] >= 0)
        originals = [columns["id"][of[start + row]] for row in rows]
        tables.append(
            pa.table({"embed_row": pa.array(rows, pa.int32()), "duplicate_of": pa.array(originals, pa.string())})
        )
        start += size
    return tables


def families(embedded: Done, probed: Done, deduped: Done) -> dict[str, str]:
    """Sources that share a duplicate, and so must not be torn apart by a split or a fold.

    Returns:
        Source uri -> the smallest sha256 (hex) of its family; sources without a relative are not listed.
    """
    pairs: list[tuple[str, str]] = []
    wanted: dict[str, list[str]] = {}
    for part, dup in zip(embedded.uris(), deduped.uris(), strict=True):
        gone = read_span(Span(uri=dup))
        uris = read_span(Span(uri=part), ["source_uri"]).column("source_uri").take(gone.column("embed_row")).to_pylist()
        for uri, original in zip(uris, gone.column("duplicate_of").to_pylist(), strict=True):
            wanted.setdefault(original, []).append(uri)
    digests: dict[str, str] = {}
    for part, described in zip(embedded.uris(), probed.uris(), strict=True):
        table = read_span(Span(uri=part), ["sample_id", "source_uri", "probe_row"])
        rows = read_span(Span(uri=described), ["source_sha256"]).take(table.column("probe_row"))
        for sample, uri, digest in zip(
            table.column("sample_id").to_pylist(),
            table.column("source_uri").to_pylist(),
            rows.column("source_sha256").to_pylist(),
            strict=True,
        ):
            digests[uri] = digest.hex()
            pairs += [(uri, other) for other in wanted.get(sample, ()) if other != uri]
    return _smallest_of_family(pairs, digests)


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
