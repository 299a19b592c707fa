"""What differs between two releases: samples, decisions, splits, masks, attributes, quotas, distributions, settings.

A, B: the two releases, B usually the later one. M: samples in both. Rows of a release are those of manifest/ and then
of dropped/, in the order of their files; two releases are joined by `sample_id`, and columns are read one at a time, so
a million rows a side need some hundreds of megabytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.drift import AREA, NUMBERS, WORDS, Drift, drift_of_numbers, drift_of_words
from manifests.release import Json, Release, ReleaseError, canonical_json
from manifests.scan import MISSING, Side, Words, open_side, read_words
from manifests.shard import ShardError
from manifests.text import cut

KINDS = ("added", "removed", "decision", "split", "mask", "attribute")
"""What can differ in a sample; the last four between its row in A and its row in B."""
MAX_PAGE = 1000
"""Most samples of a page of `Difference.rows`."""
_ROW = ["sample_id", "decision", "split", "verdict", "decision_reasons", "decision_by", "label_source", "mask_sha256"]

Ints = NDArray[np.int64]
Moves = Mapping[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Difference:
    """What differs between the releases A and B.

    Attributes:
        a: the first release.
        b: the second release.
        common: samples in both.
        places: kind of KINDS -> (n, 2) rows in A and B of the samples that differ so, by id; -1 where there is none.
        changed: samples in both that differ in anything of KINDS.
        decisions: (decision in A, decision in B) -> samples, where they differ.
        splits: the same of splits.
        attributes: attribute -> samples whose value or provenance differs.
        drift: of columns, the largest first.
        settings: dotted path -> (value in A, value in B) of config.json, where they differ; absent is None.
    """

    a: Side
    b: Side
    common: int
    places: Mapping[str, Ints]
    changed: int
    decisions: Moves
    splits: Moves
    attributes: Mapping[str, int]
    drift: tuple[Drift, ...]
    settings: Mapping[str, tuple[Json, Json]]
    _marks: Mapping[str, Ints] = field(repr=False)

    @property
    def empty(self) -> bool:
        """Whether both hold the same samples with the same decisions, splits, masks and attributes."""
        return not any(len(places) for places in self.places.values())

    def rows(self, kind: str, offset: int, limit: int) -> dict[str, Any]:
        """A page of the samples that differ in one way, by id.

        Args:
            kind: one of KINDS.
            offset: of the first, >= 0.
            limit: of their number, in 1..MAX_PAGE.

        Returns:
            `{"total", "samples": [{"id", "before", "after"}]}`; before is the row in A and after that in B, None where
            there is none, each `{"decision", "split", "verdict", "reasons", "by", "label_source", "mask_sha256",
            "pixels", "attributes": {name: {"value", "provenance"}}}` with the attributes that differ.

        Raises:
            ValueError: an unknown kind, or a page out of range.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if offset < 0 or not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"offset must be >= 0 and limit in 1..{MAX_PAGE}, got {offset} and {limit}")
        page = self.places[kind][offset : offset + limit]
        names = [name for name, rows in self._marks.items() if np.isin(page[:, 0], rows).any()]
        before, after = _fetched(self.a, page[:, 0], names), _fetched(self.b, page[:, 1], names)
        samples: list[Json] = []
        for one, other in zip(before, after, strict=True):
            told = one or other or {}
            if one and other:
                same = [name for name in names if one["attributes"].get(name) == other["attributes"].get(name)]
                for row in (one, other):
                    row["attributes"] = {n: v for n, v in row["attributes"].items() if n not in same}
            samples.append({"id": told["id"], "before": _without_id(one), "after": _without_id(other)})
        return {"total": len(self.places[kind]), "samples": samples}

    def to_json(self) -> dict[str, Any]:
        """The difference without the samples.

        Returns:
            `a`, `b`: `{"name", "fingerprint", "rows", "parents", "counts"}`;
            `relation`: "same", "successor" (A is a parent of B), "parent", "siblings" (one parent in common) or
            "unrelated";
            `samples`: `{"common", "changed", "added", "removed", "decision", "split", "mask", "attribute"}`, numbers;
            `counts`, `splits`: `[{"name", "a", "b"}]` of release.json;
            `moves`: `{"decision": [{"before", "after", "count"}], "split": the same}`, the largest first;
            `attributes`: `[{"name", "changed"}]`, the largest first;
            `cells`: `[{"attribute", "value", "a": {"target", "actual"} or null, "b": the same, "delta"}]`;
            `drift`: `[{"column", "of": "kept rows" or "all rows", "a", "b" (rows), "linf", "js", "edges" (of numbers,
            else null), "values": [{"value", "a", "b"}]}]`, shares, of numbers one per bin and then the missing ones
            (value null), the largest js first;
            `config`: `[{"path", "a", "b"}]`; `models`: `[{"role", "id", "a", "b"}]`, sha256 or null, those that differ.
        """
        return {
            "a": _told(self.a),
            "b": _told(self.b),
            "relation": _relation(self.a, self.b),
            "samples": {
                "common": self.common,
                "changed": self.changed,
                **{kind: len(self.places[kind]) for kind in KINDS},
            },
            "counts": _beside(_counts(self.a.release), _counts(self.b.release)),
            "splits": _beside(self.a.release.splits, self.b.release.splits),
            "moves": {"decision": _moves(self.decisions), "split": _moves(self.splits)},
            "attributes": [
                {"name": name, "changed": count}
                for name, count in sorted(self.attributes.items(), key=lambda item: (-item[1], item[0]))
                if count
            ],
            "cells": _cells(self.a.release, self.b.release),
            "drift": [drift.to_json() for drift in self.drift],
            "config": [{"path": path, "a": a, "b": b} for path, (a, b) in self.settings.items()],
            "models": _models(self.a.release, self.b.release),
        }


def compare(a: Path, b: Path) -> Difference:
    """Compare the release in the folder `a` with that in `b`; a few seconds for a million rows a side.

    Raises:
        ReleaseError: a folder holds no release, or its config.json is no JSON object.
        ShardError: a table cannot be read, or an id is no 32 hex digits or there twice.
    """
    one, two = open_side(a), open_side(b)
    pairs, added, removed = _join(one, two)
    names = sorted({*one.attributes, *two.attributes})
    told = [f"attr.{name}.{part}" for name in names for part in ("value", "provenance")]
    words = read_words(one, two, ["decision", *WORDS, *told])
    kept = tuple(codes == words["decision"].code("keep") for codes in words["decision"].codes)
    drifts = [drift_of_words("decision", words["decision"], None)]
    drifts += [drift_of_words(name, words[name], kept) for name in WORDS]
    drifts += [drift_of_words(f"attr.{name}", words[f"attr.{name}.value"], kept) for name in names]
    drifts += _drifts_of_numbers(one, two, kept)
    marks = {name: _marked(words, name, pairs) for name in names}
    differs = {
        "decision": words["decision"].differ(pairs),
        "split": words["split"].differ(pairs),
        "mask": _masks(one, two, pairs),
        "attribute": np.logical_or.reduce([*marks.values(), np.zeros(len(pairs), np.bool_)]),
    }
    nowhere = np.full((max(len(added), len(removed)), 1), -1, np.int64)
    return Difference(
        a=one,
        b=two,
        common=len(pairs),
        places={
            "added": np.hstack([nowhere[: len(added)], added[:, None]]),
            "removed": np.hstack([removed[:, None], nowhere[: len(removed)]]),
            **{kind: pairs[mask] for kind, mask in differs.items()},
        },
        changed=int(np.logical_or.reduce(list(differs.values())).sum()),
        decisions=_changes(words["decision"], pairs[differs["decision"]]),
        splits=_changes(words["split"], pairs[differs["split"]]),
        attributes={name: int(mark.sum()) for name, mark in marks.items()},
        drift=tuple(sorted(drifts, key=lambda drift: (-drift.js, drift.column))),
        settings=_settings(a, b),
        _marks={name: pairs[mark, 0] for name, mark in marks.items()},
    )


def _join(a: Side, b: Side) -> tuple[Ints, Ints, Ints]:
    """(M, 2) rows of the samples in both, (n,) rows in B alone, (m,) rows in A alone, each by id."""
    high, low = np.concatenate([a.high, b.high]), np.concatenate([a.low, b.low])
    order = np.argsort(high, kind="stable")  # of a few sorted runs: merged
    if (low[order][1:] < low[order][:-1])[np.diff(high[order]) == 0].any():
        order = np.lexsort((low, high))
    high, low = high[order], low[order]
    twin = np.zeros(len(order) + 1, np.bool_)
    if len(order):
        twin[1:-1] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])  # with the one before; A comes before B
    first = np.flatnonzero(twin[1:])
    pairs = np.stack([order[first], order[first + 1] - a.rows], axis=1)
    if ((pairs[:, 0] >= a.rows) | (pairs[:, 1] < 0)).any() or (twin[:-1] & twin[1:]).any():
        raise ShardError(f"a sample id is twice in {a.folder} or in {b.folder}; verify both")
    alone = order[~(twin[:-1] | twin[1:])]
    return pairs, alone[alone >= a.rows] - a.rows, alone[alone < a.rows]


def _changes(words: Words, pairs: Ints) -> Moves:
    """How often which value became which."""
    before, after = (codes[pairs[:, side]].astype(np.int64) for side, codes in enumerate(words.codes))
    size = len(words.values) + 1
    keys, counts = np.unique((before + 1) * size + after + 1, return_counts=True)
    names = [MISSING, *words.values]
    found = zip(keys.tolist(), counts.tolist(), strict=True)
    return {(names[key // size], names[key % size]): count for key, count in found}


def _masks(a: Side, b: Side, pairs: Ints) -> NDArray[np.bool_]:
    before, after = a.digests("mask_sha256"), b.digests("mask_sha256")
    differs = np.zeros(len(pairs), np.bool_)
    for word in range(before.shape[1]):  # one 64-bit word at a time: no copy of the whole
        differs |= before[pairs[:, 0], word] != after[pairs[:, 1], word]
    return differs


def _marked(words: Mapping[str, Words], name: str, pairs: Ints) -> NDArray[np.bool_]:
    """(M,) whether the value or the provenance of an attribute differs."""
    value, provenance = (words[f"attr.{name}.{part}"].differ(pairs) for part in ("value", "provenance"))
    return value | provenance


def _drifts_of_numbers(a: Side, b: Side, kept: Sequence[NDArray[np.bool_]]) -> list[Drift]:
    plain = [name for name in NUMBERS if name != AREA]
    one, two = (side.numbers([*plain, "mask_area_px", "width", "height"]) for side in (a, b))
    for values in (one, two):
        values[AREA] = values["mask_area_px"] / (values["width"] * values["height"])
    return [drift_of_numbers(name, one[name], two[name], kept) for name in NUMBERS]


def _fetched(side: Side, rows: Ints, names: Sequence[str]) -> list[dict[str, Any] | None]:
    """The rows of one release; None for -1."""
    known = [name for name in names if name in side.attributes]
    parts = [f"attr.{name}.{part}" for name in known for part in ("value", "provenance")]
    found = iter(side.fetch(rows[rows >= 0], [*_ROW, "shard", *parts]))
    return [_shown_row(next(found)) if row >= 0 else None for row in rows.tolist()]


def _shown_row(row: Mapping[str, Any]) -> dict[str, Any]:
    digest = row["mask_sha256"]
    return {
        "id": row["sample_id"],
        "decision": row["decision"],
        "split": row["split"],
        "verdict": row["verdict"],
        "reasons": [_short(reason) for reason in row["decision_reasons"]],
        "by": _short(row["decision_by"]),
        "label_source": row["label_source"],
        "mask_sha256": None if digest is None else digest.hex(),
        "pixels": row["shard"] is not None,
        "attributes": {
            name: {"value": _short(told["value"]), "provenance": told["provenance"]}
            for name, told in (row.get("attr") or {}).items()
        },
    }


def _without_id(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: value for name, value in row.items() if name != "id"}


def _short(text: str | None) -> str | None:
    return None if text is None else cut(text)


def _told(side: Side) -> dict[str, Json]:
    return {
        "name": side.release.name,
        "fingerprint": side.fingerprint,
        "rows": side.rows,
        "parents": list(side.release.parents),
        "counts": dict(_counts(side.release)),
    }


def _relation(a: Side, b: Side) -> str:
    if a.fingerprint == b.fingerprint:
        return "same"
    if a.fingerprint in b.release.parents:
        return "successor"
    if b.fingerprint in a.release.parents:
        return "parent"
    return "siblings" if set(a.release.parents) & set(b.release.parents) else "unrelated"


def _counts(release: Release) -> dict[str, int]:
    counts = release.counts
    names = ("read", "undecodable", "duplicate", "not_sampled", "dropped", "held", "kept")
    return {name: getattr(counts, name) for name in names}


def _beside(a: Mapping[str, int], b: Mapping[str, int]) -> list[Json]:
    names = [*a, *(name for name in b if name not in a)]
    return [{"name": name, "a": a.get(name, 0), "b": b.get(name, 0)} for name in names]


def _moves(moves: Moves) -> list[Json]:
    ordered = sorted(moves.items(), key=lambda item: (-item[1], item[0]))
    return [{"before": before, "after": after, "count": count} for (before, after), count in ordered]


def _cells(a: Release, b: Release) -> list[Json]:
    cells: list[Json] = []
    for name in sorted({*a.cells, *b.cells}):
        attribute, _, value = name.partition("=")
        one, two = a.cells.get(name), b.cells.get(name)
        delta = (two or {"actual": 0})["actual"] - (one or {"actual": 0})["actual"]
        cells.append(
            {
                "attribute": attribute,
                "value": _short(value),
                "a": None if one is None else dict(one),
                "b": None if two is None else dict(two),
                "delta": delta,
            }
        )
    return cells


def _models(a: Release, b: Release) -> list[Json]:
    one, two = ({(model.role, model.id): model.sha256 for model in release.models} for release in (a, b))
    return [
        {"role": key[0], "id": key[1], "a": one.get(key), "b": two.get(key)}
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]


def _settings(a: Path, b: Path) -> dict[str, tuple[Json, Json]]:
    one, two = _flat(_config(a)), _flat(_config(b))
    paths = sorted({*one, *two})
    return {path: (one.get(path), two.get(path)) for path in paths if one.get(path) != two.get(path)}


def _config(folder: Path) -> Json:
    try:
        value: Json = json.loads((folder / "config.json").read_bytes())
        canonical_json(value)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{folder / 'config.json'} cannot be read: {error}") from error
    return value


def _flat(value: Json, path: str = "") -> dict[str, Json]:
    """Every leaf by its dotted path; a list is one."""
    if not isinstance(value, dict) or not value:
        return {path: value} if path else {}
    flat: dict[str, Json] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{path}.{key}" if path else key)
    return flat
