"""The counts and documents of a successor, made from its rows."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from manifests.placing import entries_of
from manifests.release import Counts, Release, ReleaseError, canonical_json
from manifests.stats import rows_by_class, statistics
from manifests.tables import counted_cells

Names: TypeAlias = Callable[[str], bool]
"""Whether a text names something that no successor may hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recount:
    """What is counted again.

    Attributes:
        counts: of the inputs.
        cells: as of `Release`.
        documents: name -> bytes of stats.json.
    """

    counts: Counts
    cells: Mapping[str, Mapping[str, int]]
    documents: Mapping[str, bytes]


def recount(parent: Path, release: Release, tables: Sequence[pa.Table], gone: pa.Array, names: Names) -> Recount:
    """Count the rows of a successor.

    Args:
        parent: folder of the release.
        release: the parent.
        tables: as `manifests.tables.slim` makes them, of all files of manifest/ and dropped/ of the successor.
        gone: ids of the removed samples.
        names: what may not stay.

    Raises:
        ReleaseError: stats.json is no JSON object, or the cells of the parent cannot be told apart.
    """
    rows = pa.concat_tables(tables)
    told = _object(parent, "stats.json")
    found = Counter({item["values"]: item["counts"] for item in pc.value_counts(rows.column("decision")).to_pylist()})
    counts = Counts(
        read=release.counts.read - len(gone),
        undecodable=release.counts.undecodable,
        duplicate=release.counts.duplicate,
        not_sampled=release.counts.not_sampled,
        dropped=found["drop"],
        held=found["hold"],
        kept=found["keep"],
    )
    balanced = _balanced(parent, release, told)
    judge = told.get("judge")
    judge = without(judge, names) if isinstance(judge, dict) else {}
    documents = {"stats.json": _rendered(statistics(rows, judge, balanced))}
    return Recount(counts=counts, cells=_cells(release, balanced, _kept_cells(rows)), documents=documents)


def scrubbed(path: Path, names: Names) -> bytes | None:
    """The bytes of a document without what names something that may not stay; None where it names nothing of it.

    Raises:
        ReleaseError: it names something, and is no JSON.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        if names(path.read_text("utf-8", errors="surrogateescape")):
            remedy = "it is no JSON, so this cannot take it out; no release was written"
            raise ReleaseError(f"{path}: names a sample or source that is to be removed, and {remedy}") from None
        return None
    left = without(value, names)
    return None if left == value else _rendered(left)


def without(value: Any, names: Names) -> Any:
    """The JSON value without the items of lists and objects that name something; None where it is such a text itself.

    A record in a list goes as a whole.
    """
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not names(key) and not _holds(item, names)}
        return {key: without(item, names) for key, item in kept.items()}
    if isinstance(value, list):
        return [without(item, names) for item in value if not _goes(item, names)]
    return None if _holds(value, names) else value


def _goes(item: Any, names: Names) -> bool:
    """Whether an item of a list goes as a whole: a text, or a record with a text that names something."""
    return any(_holds(part, names) for part in (item.values() if isinstance(item, dict) else [item]))


def _holds(value: Any, names: Names) -> bool:
    return isinstance(value, str) and names(value)


def _object(parent: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((parent / name).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ReleaseError(f"{parent / name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReleaseError(f"{parent / name} must be a JSON object, got {type(value).__name__}")
    return value


def _rendered(value: Any) -> bytes:
    return json.dumps(json.loads(canonical_json(value)), indent=1, sort_keys=True, ensure_ascii=False).encode()


def _kept_cells(rows: pa.Table) -> Counter[str]:
    kept = rows.column("quota_cell").filter(pc.equal(rows.column("decision"), "keep"))
    return Counter({item["values"]: item["counts"] for item in pc.value_counts(kept).to_pylist()})


def _balanced(parent: Path, release: Release, told: Mapping[str, Any]) -> tuple[str, ...]:
    """The attributes of the quota cells, in their order; older releases do not name them."""
    if isinstance(told.get("balanced"), list):
        return tuple(told["balanced"])
    names = tuple(sorted({cell.partition("=")[0] for cell in release.cells} - {"group"}))
    stated = {cell: rows["actual"] for cell, rows in release.cells.items()}
    if stated:
        tables = [counted_cells(parent / entry.path) for entry in entries_of(release, "manifest")]
        try:
            found = rows_by_class(names, _kept_cells(pa.concat_tables(tables)))
        except ValueError as error:
            raise ReleaseError(_UNTOLD) from error
        if any(found[cell] != rows for cell, rows in stated.items()):
            raise ReleaseError(_UNTOLD)
    return names


_UNTOLD = (
    "stats.json does not say which attributes the quota cells hold ('balanced'), and the cells of release.json do not "
    "tell either: publish again with this version"
)


def _cells(release: Release, balanced: Sequence[str], kept: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The cells of the parent with the rows that are kept now."""
    if not release.cells:
        return {}
    actual = rows_by_class(balanced, kept)
    return {cell: {"target": rows["target"], "actual": actual[cell]} for cell, rows in release.cells.items()}
