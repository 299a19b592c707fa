"""What is to be forgotten, where the releases of a root hold it, and the releases that take their place.

```
selection ── rows of every release ── closure ── a successor each ── the old releases go
             (people, consents,       (the same sample, or the same
              sources, samples)        pixels, in any other release)
```

Only rows that were asked for go, and rows with the very same pixels; what merely looks alike is told (`Found.others`).
A release without such a row that names one, or its source, is rewritten too. A group is called by the sha256 of one of
its sources: where that goes and others of the group stay, they get a name that says nothing and has the same split.
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.erasures import ErasureError, Replaced, keyed_hash
from manifests.release import RELEASE_FILE, Json, Release, ReleaseError, fingerprint, parse_release, read_release_bytes
from manifests.split import split_of
from manifests.successor import write_successor
from manifests.traces import NAMES, Traces, search

FIELDS = ("subjects", "consent_refs", "source_sha256s", "source_uris", "sample_ids")
ROWS = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("content_sha256", pa.binary(32)),
        pa.field("source_uri", pa.string()),
        pa.field("source_sha256", pa.binary(32)),
        pa.field("media_kind", pa.string()),
        pa.field("dhash64", pa.uint64()),
        pa.field("group_id", pa.string()),
        pa.field("cluster_path", pa.list_(pa.int32())),
        pa.field("subject_ids", pa.list_(pa.string())),
        pa.field("consent_ref", pa.string()),
    ]
)
"""What is read of a row; columns that a table lacks are null."""
_KEPT = ("sample_id", "content_sha256", "source_uri", "source_sha256", "dhash64", "group_id")
OTHERS = pa.schema([ROWS.field(name) for name in _KEPT])
"""What is kept in mind of a row that stays."""

Digests: TypeAlias = frozenset[str]

_RULES = {"source_sha256s": (64, "the sha256 of a file"), "sample_ids": (32, "a sample id")}
_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What a person asked to be forgotten; rows that any of it names.

    Attributes:
        subjects: values of `subject_ids`.
        consent_refs: values of `consent_ref`.
        source_sha256s: of source files, 64 hex digits.
        source_uris: of source files, as `source_uri` has them.
        sample_ids: 32 hex digits.
    """

    subjects: tuple[str, ...] = ()
    consent_refs: tuple[str, ...] = ()
    source_sha256s: tuple[str, ...] = ()
    source_uris: tuple[str, ...] = ()
    sample_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that something is named, and hashes for their form."""
        if not any(getattr(self, name) for name in FIELDS):
            raise ErasureError("nothing to forget: name a subject, a consent, a source or a sample")
        for name in FIELDS:
            if not all(isinstance(value, str) and value for value in getattr(self, name)):
                raise ErasureError(f"{name} must be non-empty strings")
        for name, (digits, what) in _RULES.items():
            for value in getattr(self, name):
                if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
                    raise ErasureError(f"{what} has {digits} lower-case hex digits, got {value!r:.80}")

    def keyed(self, key: bytes) -> tuple[str, ...]:
        """A keyed hash of each thing named, sorted."""
        return tuple(sorted(keyed_hash(key, name, value.encode()) for name, value in self._named()))

    def _named(self) -> Iterator[tuple[str, str]]:
        for name in FIELDS:
            yield from ((name, value) for value in getattr(self, name))

    def matches(self, rows: pa.Table) -> pa.ChunkedArray:
        """(N,) bool: rows of schema ROWS that the selection names."""
        sources = [bytes.fromhex(value) for value in self.source_sha256s]
        named = pc.is_in(rows.column("sample_id"), value_set=pa.array(self.sample_ids, pa.string()))
        named = pc.or_(named, pc.is_in(rows.column("source_sha256"), value_set=pa.array(sources, pa.binary(32))))
        named = pc.or_(named, pc.is_in(rows.column("source_uri"), value_set=pa.array(self.source_uris, pa.string())))
        if self.consent_refs:
            consents = pa.array(self.consent_refs, pa.string())
            named = pc.or_(named, pc.is_in(rows.column("consent_ref"), value_set=consents))
        return pc.or_(named, _lists_any(rows.column("subject_ids"), self.subjects))

    def unknown(self, rows: pa.Table) -> list[tuple[str, str]]:
        """What the selection names and no row has: its field, and the value."""
        subjects = pc.list_flatten(rows.column("subject_ids"))
        known = {
            "subjects": set(subjects.to_pylist()),
            "consent_refs": set(rows.column("consent_ref").to_pylist()),
            "source_sha256s": {None if d is None else d.hex() for d in rows.column("source_sha256").to_pylist()},
            "source_uris": set(rows.column("source_uri").to_pylist()),
            "sample_ids": set(rows.column("sample_id").to_pylist()),
        }
        return [(name, value) for name, value in self._named() if value not in known[name]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A release that holds rows that are to go, or names them.

    Attributes:
        folder: of the release.
        fingerprint: of its `release.json`.
        parents: fingerprints of the releases it was made from.
        samples: ids of the rows that go, ascending; none where it only names what goes.
        rows: of manifest/ and dropped/ together, those that go among them.
        stages: digests of the stages that it was made by.
    """

    folder: Path
    fingerprint: str
    parents: tuple[str, ...]
    samples: tuple[str, ...]
    rows: int
    stages: Digests

    @property
    def emptied(self) -> bool:
        """Whether no row is left, so that no successor is written."""
        return 0 < self.rows == len(self.samples)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What is to go.

    Attributes:
        rows: of schema ROWS: each sample that goes, once, by id.
        whole: sha256 of the sources of which everything goes; these may never come back.
        held: the releases that hold some of them, parents before children.
        others: of schema OTHERS: rows of releases that stay; a sample is there once per release.
        stages: digests of the stages of releases that hold nothing of it.
        count: samples of releases that go; `rows` also has frames that were never chosen.
    """

    rows: pa.Table
    whole: frozenset[bytes]
    held: tuple[Held, ...]
    others: pa.Table
    stages: Digests
    count: int


def releases_of(root: Path) -> list[tuple[Path, Release, str]]:
    """Every release of a root with its fingerprint; parents before children.

    Raises:
        ErasureError: one is damaged, or the folder of one is a link.
    """
    found: dict[str, tuple[Path, Release, str]] = {}
    for file in sorted((root / "releases").glob(f"*/{RELEASE_FILE}")):
        if file.parent.is_symlink():
            raise ErasureError(f"{file.parent} is a link: what it leads to would stay; put the release itself there")
        data = read_release_bytes(file.parent)
        try:
            release = parse_release(data)
        except ReleaseError as error:
            remedy = "restore it from a backup, or remove its folder; nothing has been forgotten"
            raise ErasureError(f"{file.parent}: {error}; {remedy}") from error
        found[fingerprint(data)] = (file.parent, release, fingerprint(data))
    return list(_ordered(found))


def _ordered(found: Mapping[str, tuple[Path, Release, str]]) -> Iterator[tuple[Path, Release, str]]:
    left = dict(found)
    while left:
        ready = [name for name, (_, release, _) in left.items() if not set(release.parents) & set(left)]
        for name in ready or list(left):  # hashes cannot form a ring
            yield left.pop(name)


def find(
    root: Path,
    selection: Selection,
    frames: Callable[[], Iterable[pa.Table]] = tuple,
    mentioned: Callable[[Traces], bool] = lambda _: False,
) -> Found:
    """Resolve a selection over every release of a root.

    Args:
        root: holds `releases/`.
        selection: what was asked for.
        frames: gives tables of schema ROWS: candidate frames that the stages of runs have read, chosen or not; called
            twice.
        mentioned: whether a file of a run names a source; asked of sources that no row names, for one that never gave
            a frame can be forgotten too.

    Raises:
        ErasureError: something that is named is nowhere, or a release or table is damaged.
    """
    listed = releases_of(root)
    tables = itertools.chain(frames(), *(_tables(folder, release) for folder, release, _ in listed))
    named = _joined(table.filter(selection.matches(table)) for table in tables)
    _check_known(selection, named, root, len(listed), mentioned)
    while True:
        parts = [_parted(folder, release, digest, named) for folder, release, digest in listed]
        others = _joined((part.others for part in parts), OTHERS)
        chosen = [part.gone for part in parts]
        gone = _joined([*(table.filter(_same(table, named)) for table in frames()), *chosen])
        whole = _whole(gone, others, selection)
        unchosen = _joined(table.filter(_among(table, "source_sha256", whole)) for table in frames())
        if not pc.any(_same(others, unchosen)).as_py():
            break
        named = _joined([named, unchosen])  # a frame that nobody chose has the pixels of one that another source gave
    published = {sample for part in parts for sample in part.held.samples}
    rows = _each_once(_joined([unchosen, gone]))
    return Found(
        rows=rows,
        whole=whole,
        held=tuple(part.held for part in parts if part.held.samples),
        others=others,
        stages=frozenset(digest for part in parts if not part.held.samples for digest in part.held.stages),
        count=len(published) or len(rows),
    )


def held_of(root: Path, traces: Traces) -> tuple[Held, ...]:
    """The releases of a root that hold any of these samples, or their pixels, or name them or their sources.

    Parents come before children.

    Raises:
        ErasureError: a release or table is damaged.
    """
    samples, contents = sorted(traces.samples), sorted(traces.contents)
    ids, hashes = pa.array(list(samples), pa.string()), pa.array(list(contents), pa.binary(32))
    named = _joined(
        [
            pa.table([ids, *(pa.nulls(len(ids), one.type) for one in list(ROWS)[1:])], schema=ROWS),
            pa.table(
                [
                    pa.nulls(len(hashes), pa.string()),
                    hashes,
                    *(pa.nulls(len(hashes), one.type) for one in list(ROWS)[2:]),
                ],
                schema=ROWS,
            ),
        ]
    )
    parts = (_parted(folder, release, digest, named) for folder, release, digest in releases_of(root))
    return tuple(part.held for part in parts if part.held.samples or naming(part.held.folder, traces))


def naming(folder: Path, traces: Traces) -> list[tuple[Path, str]]:
    """The files of a release that name what `traces` has, by their path; each with the kinds of names, in words.

    Raises:
        ErasureError: one cannot be read.
    """
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        try:
            kinds = search(path, traces) & NAMES
        except OSError as error:
            raise ErasureError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
        if kinds:
            found.append((path, ", ".join(sorted(kinds))))
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Parted:
    """A release in two: what goes and what stays."""

    held: Held
    gone: pa.Table
    others: pa.Table


def _parted(folder: Path, release: Release, digest: str, named: pa.Table) -> _Parted:
    rows = _joined(_tables(folder, release))
    goes = _same(rows, named)
    gone = rows.filter(goes)
    held = Held(
        folder=folder,
        fingerprint=digest,
        parents=release.parents,
        samples=tuple(sorted(gone.column("sample_id").to_pylist())),
        rows=len(rows),
        stages=_stages(folder),
    )
    return _Parted(held=held, gone=gone, others=rows.filter(pc.invert(goes)).select(OTHERS.names))


def _check_known(
    selection: Selection, named: pa.Table, root: Path, releases: int, mentioned: Callable[[Traces], bool]
) -> None:
    left = [
        one for one in selection.unknown(named) if one[0] not in _SOURCES or not mentioned(_SOURCES[one[0]](one[1]))
    ]
    if not left:
        return
    unknown = [f"{_WORDS[name]} {value!r:.80}" for name, value in left]
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    bare = any(name == "source_sha256s" for name, _ in left)
    hint = "; of a source that never gave a frame runs keep the uri alone: name it by that" if bare else ""
    raise ErasureError(
        f"{', '.join(unknown[:_NAMED])}{more}: named by no row of the {releases} releases below {root}, nor by a "
        f"frame that a run has read; check the spelling{hint}. Nothing was changed"
    )


_WORDS = {
    "subjects": "subject",
    "consent_refs": "consent",
    "source_sha256s": "source",
    "source_uris": "source",
    "sample_ids": "sample",
}
_SOURCES: Mapping[str, Callable[[str], Traces]] = {
    "source_sha256s": lambda value: Traces(sources=frozenset({bytes.fromhex(value)})),
    "source_uris": lambda value: Traces(uris=frozenset({value})),
}


def _joined(tables: Iterable[pa.Table], schema: pa.Schema = ROWS) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables])


def _tables(folder: Path, release: Release) -> Iterator[pa.Table]:
    """The rows of manifest/ and dropped/ with the columns of ROWS, a file at a time."""
    for entry in release.files:
        if entry.path.split("/")[0] in ("manifest", "dropped"):
            yield read_rows(folder / entry.path)


def read_rows(path: Path) -> pa.Table:
    """A Parquet file with the columns of ROWS; those that it lacks are null.

    Raises:
        ErasureError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = [name for name in ROWS.names if name in file.schema_arrow.names]
            table = file.read(columns=names)
            columns = [
                table.column(one.name).cast(one.type) if one.name in names else pa.nulls(len(table), one.type)
                for one in ROWS
            ]
    except (OSError, pa.ArrowException) as error:
        remedy = "restore it from a backup, or remove its folder; nothing has been forgotten"
        raise ErasureError(f"{path} cannot be read: {error}; {remedy}") from error
    return pa.table(columns, schema=ROWS)


def _lists_any(lists: pa.ChunkedArray, values: Sequence[str]) -> pa.ChunkedArray:
    """(N,) bool: lists that hold any of the values."""
    whole = lists.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], lists.type)
    hits = pc.is_in(pc.list_flatten(whole), value_set=pa.array(list(values), pa.string()))
    rows = pc.filter(pc.list_parent_indices(whole), hits)
    return pc.is_in(pa.array(np.arange(len(whole))), value_set=pc.cast(rows, pa.int64()))


def _same(rows: pa.Table, named: pa.Table) -> pa.ChunkedArray:
    """(N,) bool: rows that are a named sample, or have the very pixels of one."""
    ids, contents = (named.column(name).combine_chunks() for name in ("sample_id", "content_sha256"))
    by_id = pc.is_in(rows.column("sample_id"), value_set=ids.drop_null(), skip_nulls=True)
    by_content = pc.is_in(rows.column("content_sha256"), value_set=contents.drop_null(), skip_nulls=True)
    return pc.or_(by_id, by_content)


def _among(rows: pa.Table, name: str, values: Iterable[object]) -> pa.ChunkedArray:
    wanted = pa.array(list(values), rows.schema.field(name).type)
    return pc.is_in(rows.column(name), value_set=wanted)


def _each_once(rows: pa.Table) -> pa.Table:
    """The rows by sample id, the last of each; later tables are releases and know more than stages."""
    ids = rows.column("sample_id").to_pylist()
    last = dict(zip(ids, range(len(ids)), strict=True))
    return rows.take(pa.array([last[name] for name in sorted(last)], pa.int64()))


def _whole(gone: pa.Table, others: pa.Table, selection: Selection) -> frozenset[bytes]:
    """Sources of which nothing stays, and that a person, a consent or its own hash named, or that are one picture."""
    named = frozenset(bytes.fromhex(value) for value in selection.source_sha256s)
    only_samples = selection == Selection(sample_ids=selection.sample_ids) if selection.sample_ids else False
    stays = pc.is_in(gone.column("source_sha256"), value_set=others.column("source_sha256"))
    left = gone.filter(pc.invert(stays))
    if only_samples:
        left = left.filter(pc.equal(left.column("media_kind"), "image"))
    return named | frozenset(left.column("source_sha256").to_pylist())


def _stages(folder: Path) -> Digests:
    """Digests of the stages that a release was made by; none where it does not say."""
    try:
        stages = json.loads((folder / "lineage.json").read_bytes())["stages"]
        return frozenset(str(stage["digest"]) for stage in stages.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


# Rewriting and removing -----------------------------------------------------------------------------------------------


def rewrite(
    held: Held, erasure: str, at: datetime, replaced: Sequence[Replaced], traces: Traces, key: bytes
) -> Replaced:
    """Write the successor of a release without what goes; the same again where it is there already.

    Args:
        held: the release and the rows.
        erasure: id of the erasure.
        at: its time.
        replaced: the releases of this erasure that are rewritten already, so that the chain of parents can be followed.
        traces: what the successor may not name.
        key: of the root, for the new names of groups.

    Raises:
        ValueError: the release is damaged, see `manifests.successor.write_successor`.
        OSError: it cannot be written.
    """
    successor = None
    if not held.emptied:
        new = {one.fingerprint: one.successor or one.fingerprint for one in replaced}
        cause: dict[str, Json] = {
            "by": "forget",
            "erasure": erasure,
            "parents": [new.get(parent, parent) for parent in held.parents],
        }
        _, successor = write_successor(
            held.folder,
            edits={},
            remove=held.samples,
            erasures=[erasure],
            cause=cause,
            at=at,
            traces=traces,
            groups=_groups(held.folder, traces, key),
        )
    return Replaced(name=held.folder.name, fingerprint=held.fingerprint, parents=held.parents, successor=successor)


def _groups(folder: Path, traces: Traces, key: bytes) -> dict[str, str]:
    """New names of the groups of a release that are called by what goes; split_of puts both names in one split."""
    release = parse_release(read_release_bytes(folder))
    found = _joined(_tables(folder, release)).column("group_id").unique().to_pylist()
    shares = _shares(folder)
    return {group: _neutral(group, key, release.seed, shares) for group in traces.held_by(found)}


def _neutral(group: str, key: bytes, seed: int, shares: Mapping[str, float] | None) -> str:
    for number in itertools.count():
        name = f"g-{keyed_hash(key, 'group', f'{number} {group}'.encode())[:24]}"
        if shares is None or split_of(name, seed, **shares) == split_of(group, seed, **shares):
            break
    return name


def _shares(folder: Path) -> dict[str, float] | None:
    """The shares of the validation and test split; None where the release does not say."""
    try:
        publish = json.loads((folder / "config.json").read_bytes())["config"]["publish"]
        return {name: float(publish[name]) for name in ("val", "test")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_release(folder: Path) -> None:
    """Remove a release: its `release.json` first, so that what is left of it is none; then everything.

    Files that a successor has linked stay there. Removing what is gone already is no error.
    """
    (folder / RELEASE_FILE).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
