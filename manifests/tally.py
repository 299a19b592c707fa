"""Counts of a release that its papers tell: who says what of how many rows, read from the manifest column by column."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.release import FileEntry, Release, read_release
from manifests.schema import SchemaError, check_schema
from manifests.shard import ShardError

_COLUMNS = ("attr", "decision", "label_source", "licence", "consent_status", "retention_until", "subject_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What the rows of a release say, counted.

    Attributes:
        all: kept, held and dropped rows.
        kept: rows of decision keep.
        attributes: names in the order of the schema.
        counts: (attribute, value or None where unknown, decision) -> rows.
        provenances: (attribute, provenance) -> kept rows.
        label_sources: of the kept rows.
        licences: of all rows.
        consents: of all rows.
        retention_dated: rows with a date until which they may be kept.
        retention_first: the earliest of these dates; None without any.
        with_subjects: rows that name a pseudonym.
        subjects: different pseudonyms.
        sources: different sources.
        judge: the judge's summary in `stats.json`; empty where no judge looked.
    """

    all: int
    kept: int
    attributes: tuple[str, ...]
    counts: Counter[tuple[str, str | None, str]]
    provenances: Counter[tuple[str, str]]
    label_sources: Counter[str]
    licences: Counter[str]
    consents: Counter[str]
    retention_dated: int
    retention_first: date | None
    with_subjects: int
    subjects: int
    sources: int
    judge: Mapping[str, Any]

    def values(self, attribute: str, decision: str | None = None) -> Counter[str | None]:
        """Rows per value of an attribute, None for unknown; of one decision or of all."""
        found: Counter[str | None] = Counter()
        for (name, value, decided), number in self.counts.items():
            if name == attribute and decision in (None, decided):
                found[value] += number
        return found

    def provenance(self, attribute: str) -> Counter[str]:
        """Kept rows per provenance of an attribute."""
        return Counter({by: number for (name, by), number in self.provenances.items() if name == attribute})


def tally(folder: Path) -> Tally:
    """Count the rows of the release in `folder`: each table once, row group by row group.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        ShardError: a file is missing, damaged, or not the one that was committed.
    """
    release = read_release(folder)
    counts: Counter[tuple[str, str | None, str]] = Counter()
    provenances: Counter[tuple[str, str]] = Counter()
    plain = {name: Counter[Any]() for name in ("decision", "licence", "consent_status")}
    sources: Counter[str] = Counter()
    attributes: tuple[str, ...] = ()
    subjects: set[str] = set()
    dated = with_subjects = 0
    first: date | None = None
    for rows in _tables(folder, release):
        attributes = attributes or tuple(field.name for field in rows.schema.field("attr").type)
        for name in attributes:
            counts.update(_by_decision(rows, name))
        kept = rows.filter(pc.equal(rows.column("decision"), "keep"))
        for name in attributes:
            said = pc.struct_field(kept.column("attr"), [name, "provenance"])
            provenances.update({(name, by): number for by, number in _counted(said).items()})
        for name, counter in plain.items():
            counter.update(_counted(rows.column(name)))
        sources.update(_counted(kept.column("label_source")))
        until = rows.column("retention_until")
        dated += len(until) - until.null_count
        first = min((day for day in (first, pc.min(until).as_py()) if day is not None), default=None)
        named = rows.column("subject_ids")
        with_subjects += pc.sum(pc.greater(pc.list_value_length(named), 0)).as_py() or 0
        subjects.update(pc.unique(pc.list_flatten(named)).to_pylist())
    stats = _stats(folder, release)
    return Tally(
        all=plain["decision"].total(),
        kept=plain["decision"]["keep"],
        attributes=attributes,
        counts=counts,
        provenances=provenances,
        label_sources=sources,
        licences=plain["licence"],
        consents=plain["consent_status"],
        retention_dated=dated,
        retention_first=first,
        with_subjects=with_subjects,
        subjects=len(subjects),
        sources=int(stats.get("sources", 0)),
        judge=stats.get("judge") or {},
    )


def _tables(folder: Path, release: Release) -> Iterator[pa.Table]:
    """The columns that count, of the kept, held and dropped rows; a file that is not the committed one is refused."""
    for entry in release.files:
        if entry.schema != "manifest":
            continue
        path = _checked(folder, entry)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                check_schema(file.schema_arrow, "manifest")
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=list(_COLUMNS), use_threads=False)
        except (OSError, pa.ArrowException, SchemaError) as error:
            raise ShardError(f"{path}: {error}") from error


def _checked(folder: Path, entry: FileEntry) -> Path:
    """The path of a file whose bytes are those that were committed."""
    path = folder / entry.path
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{path}: {error}") from error
    if digest != entry.sha256:
        raise ShardError(f"{path}: the bytes have changed; `curate verify {folder}` lists all that is broken")
    return path


def _stats(folder: Path, release: Release) -> dict[str, Any]:
    entry = next((entry for entry in release.files if entry.path == "stats.json"), None)
    if entry is None:
        return {}
    stats = json.loads(_checked(folder, entry).read_bytes())
    return stats if isinstance(stats, dict) else {}


def _by_decision(rows: pa.Table, name: str) -> dict[tuple[str, str | None, str], int]:
    """Rows of each value of an attribute by decision."""
    value = pc.struct_field(rows.column("attr"), [name, "value"])
    table = pa.table({"value": value, "decision": rows.column("decision")})
    grouped = table.group_by(["value", "decision"], use_threads=False).aggregate([([], "count_all")])
    return {(name, row["value"], row["decision"]): row["count_all"] for row in grouped.to_pylist()}


def _counted(column: pa.ChunkedArray) -> dict[Any, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
