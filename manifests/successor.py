"""A release made from another by a list of edits: decisions, masks, evidence, removed samples.

The parent is never written to. Files that no edit reaches are hard links to the parent's, the others are written anew,
in the present schema version; a parent of an older minor version is written anew as a whole, so that no release mixes
versions. The commit is `release.json`: killed before it, nothing is there. Equal edits give equal bytes.

| file | what becomes of it |
|---|---|
| manifest/, dropped/ | edited rows change, decided ones move; the files keep their ranges of ids |
| shards/ | edited rows change, decided ones move between the splits, hold and audit |
| evidence/ | assertions are added; those of removed samples go |
| embeddings/ | vectors of removed samples go; a sample that is dropped keeps its vector, so it can come back |
| stats.json, cells | counted again; what the judge said of the run is kept |
| lineage.json, config.json, `inputs`, any other JSON | what names a removed sample or its source goes |
| croissant.json, datacard.md | not carried over: they describe the parent |
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from manifests.edits import Assertion, Edit, Plan, SuccessorError, resolve
from manifests.mask import MaskError
from manifests.placing import Index, Places, place, read_index
from manifests.recount import Names, recount, scrubbed, without
from manifests.release import (
    FileEntry,
    Json,
    Release,
    ReleaseError,
    fingerprint,
    parse_release,
    read_release_bytes,
    render_release,
    sha256_hex,
)
from manifests.reshard import reshard
from manifests.rewrite import encode
from manifests.schema import MINOR, SCHEMA_NAMES, SCHEMA_VERSION, SchemaError
from manifests.shard import ShardError, iter_row_groups
from manifests.staging import Staging, StagingError, staged
from manifests.tables import counted, reattest, reembed, renumber, retable, slim
from manifests.traces import Traces

__all__ = ["Assertion", "Edit", "SuccessorError", "write_successor"]

DERIVED = ("croissant.json", "datacard.md")
"""Files that describe the release they are in, and are made anew."""
PACKAGES = ("numpy", "opencv-python-headless", "pyarrow")
"""Packages that shape the bytes written here."""

_Table: TypeAlias = tuple[str, pa.Table | None, str]


def write_successor(
    parent: Path,
    *,
    edits: Mapping[str, Edit],
    remove: Collection[str] = (),
    erasures: Sequence[str] = (),
    cause: Mapping[str, Json],
    at: datetime,
    output: Path | None = None,
    traces: Traces | None = None,
    groups: Mapping[str, str] | None = None,
) -> tuple[Path, str]:
    """Write the release that follows `parent` with some samples edited or removed; a run twice gives one release.

    A sample that becomes kept goes into the split of its group, which needs its pixels: a dropped one must be in
    shards/audit. A sample that becomes dropped goes there with its pixels. Every file of the parent is compared with
    its sha256 first.

    Args:
        parent: folder of a release, which must verify.
        edits: sample id -> what changes.
        remove: ids of samples of which nothing stays; they are no longer counted as read either.
        erasures: ids of the erasures that removed them.
        cause: why, kept as `inputs["successor"]`.
        at: when the assertions were recorded, an instant with a time zone.
        output: root below whose releases/ it is written; None for that of the parent.
        traces: what else no document of it may name, besides the removed samples and sources that only they have.
        groups: `group_id` -> its new name; the rows stay in their split.

    Returns:
        The folder of the release and its fingerprint.

    Raises:
        SuccessorError: nothing changes, an edit does not fit the sample, the parent is damaged, or a file cannot be
            written; nothing is left, and the parent is as it was.
    """
    try:
        return _write(
            parent, edits, frozenset(remove), tuple(erasures), cause, at, output, traces or Traces(), groups or {}
        )
    except (ReleaseError, ShardError, SchemaError, MaskError, StagingError) as error:
        raise SuccessorError(str(error.strerror if isinstance(error, StagingError) else error)) from error
    except (OSError, pa.ArrowException) as error:
        raise SuccessorError(f"{parent}: {error}; no release was written, and the old one is as it was") from error


def _write(
    parent: Path,
    edits: Mapping[str, Edit],
    remove: frozenset[str],
    erasures: tuple[str, ...],
    cause: Mapping[str, Json],
    at: datetime,
    output: Path | None,
    traces: Traces,
    groups: Mapping[str, str],
) -> tuple[Path, str]:
    if not edits and not remove and traces == Traces() and not groups:
        raise SuccessorError(f"{parent}: nothing to change: no edit and no sample to remove was given")
    if at.utcoffset() is None:
        raise SuccessorError(f"at must have a time zone, got {at.isoformat()}")
    data = read_release_bytes(parent)
    release = parse_release(data)
    for entry in release.files:
        _check_file(parent, entry)
    index = read_index(parent, release)
    plan = resolve(parent, release, index, edits, remove, at, traces, groups)
    places = place(release, index, plan.folder, plan.pixels, plan.shard_rows)
    root = output or parent.resolve().parent.parent
    with staged(root / "releases") as staging:
        work = _Work(parent=parent, release=release, staging=staging)
        tables = _tables(work, index, plan, places)
        if plan.quiet and work.unchanged():
            raise SuccessorError(f"{parent}: nothing to change: every edit says what the release already holds")
        for shard, table in reshard(parent, release, index, places, plan.pixels, anew=work.anew):
            work.put(shard.path, table, "shard", source=shard.source)
        made = recount(parent, release, tables, plan.gone, plan.traces.named_by)
        work.documents(made.documents, plan.traces.named_by)
        fresh = dataclasses.replace(
            release,
            name="unnamed",
            schemas={**release.schemas, **{name: _newer(release.schemas.get(name)) for name in SCHEMA_NAMES}},
            parents=(fingerprint(data),),
            tool={"name": "curate", "version": importlib.metadata.version("curate")},
            packages={**release.packages, **{name: importlib.metadata.version(name) for name in PACKAGES}},
            inputs={**without(release.inputs, plan.traces.named_by), "successor": dict(cause)},
            counts=made.counts,
            splits=places.counted(release.splits),
            cells=made.cells,
            files=tuple(sorted(work.entries, key=lambda entry: entry.path)),
            erasures=tuple(sorted({*release.erasures, *erasures})),
        )
        fresh = dataclasses.replace(fresh, name=f"r-{fingerprint(render_release(fresh))[:12]}")
        final = render_release(fresh)
        return staging.commit(fresh.name, final), fingerprint(final)


def _newer(version: str | None) -> str:
    """The version of a schema in the successor: the present one, unless the parent's minor version is higher."""
    return version if version and int(version.split(".")[1]) > MINOR else SCHEMA_VERSION


def _check_file(parent: Path, entry: FileEntry) -> None:
    with (parent / entry.path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise SuccessorError(
            f"{parent / entry.path}: sha256 is {found}, expected {entry.sha256}: the bytes have changed; "
            f"put the original back (curate verify names all such files)"
        )


class _Work:
    """The successor while it is written: its files, each with its entry in `release.json`.

    Attributes:
        anew: whether the parent is of an older minor version, so that every table is written anew.
        entries: of the files that are there.
    """

    def __init__(self, *, parent: Path, release: Release, staging: Staging) -> None:
        self._parent, self._release, self._staging = parent, release, staging
        self._known = {entry.path: entry for entry in release.files}
        self.anew = any(int(release.schemas.get(name, "1.0").split(".")[1]) < MINOR for name in SCHEMA_NAMES)
        self.entries: list[FileEntry] = []

    def put(self, path: str, table: pa.Table | None, schema: str, source: FileEntry | None = None) -> Path:
        """Write a table, or link the parent's file where it is None; returns where its rows can be read."""
        if table is None:
            old = source or self._known[path]
            self._staging.link(self._parent / old.path, path)
            self.entries.append(dataclasses.replace(old, path=path))
        else:
            entry, data = encode(path, table, schema)
            self._staging.write(path, data)
            _check_written(self._staging.folder / path, entry)
            self.entries.append(entry)
        return self._staging.folder / path

    def documents(self, fresh: Mapping[str, bytes], names: Names) -> None:
        """Write what is no table, and link what the parent has besides and names nothing that goes."""
        made = dict(fresh)
        for entry in self._release.files:
            if entry.schema is not None or entry.path in (*made, *DERIVED):
                continue
            data = scrubbed(self._parent / entry.path, names)
            if data is None:
                self.put(entry.path, None, "", source=entry)
            else:
                made[entry.path] = data
        for path, data in made.items():
            self._staging.write(path, data)
            self.entries.append(FileEntry(path=path, bytes=len(data), sha256=sha256_hex(data)))

    def unchanged(self) -> bool:
        """Whether all tables so far hold what the parent's do."""
        return all(
            entry.sha256 == self._known[entry.path].sha256 for entry in self.entries if entry.path in self._known
        )


def _check_written(path: Path, entry: FileEntry) -> None:
    """Read a table back: a file that was renamed into place can still hold bad bytes."""
    with path.open("rb") as file:
        good = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    if not good or sum(len(table) for table in iter_row_groups(path, str(entry.schema))) != entry.rows:
        raise SuccessorError(f"{path}: reads back other bytes than were written; check the disk")


def _tables(work: _Work, index: Index, plan: Plan, places: Places) -> list[pa.Table]:
    """Write all tables but the shards; returns what the statistics need of manifest/ and dropped/."""
    parent, release, anew = work._parent, work._release, work.anew
    vectors = renumber(parent, release, plan.gone) if len(plan.gone) else {}
    kept = []
    for path, table in retable(parent, index, plan.table, places, plan.rows, vectors, anew=anew):
        written = work.put(path, table, "manifest")
        kept.append(counted(written) if table is None else slim(table))
    for path, table in reattest(parent, release, plan.gone, plan.evidence, anew=anew):
        work.put(path, table, "attribute_evidence")
    for path, table in reembed(parent, release, vectors, anew=anew):
        work.put(path, table, "embedding")
    return kept
