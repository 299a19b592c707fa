"""What a stage is: tasks over shards, one committed Parquet part per task, a manifest last.

::

    <root>/<stage>/<fingerprint>/
        part-00003-of-00012.parquet      one per task; written whole or not at all
        rows-00003-of-00012.parquet      optional side tables of the same task
        _commits/00003.json              {rows, bytes, sha256, counts, faults, seconds}: the task is done
        _failed/00003.json               why the last attempt of a task failed
        _MANIFEST.json                   last: the stage is done; readers follow it and list nothing

The fingerprint covers the stage's name, code version and config, the digests of its inputs and the versions of the
libraries that change bits. The digest of a manifest covers content only, so a stage that is redone with equal results
does not make the next one stale.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.release import canonical_json
from manifests.shard import encode_parquet
from pipeline import storage
from pipeline.errors import CurateError, StageError
from pipeline.threads import one_thread

MANIFEST = "_MANIFEST.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows ``start`` to ``stop`` (exclusive; None = to the end) of a Parquet file."""

    uri: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One shard of a stage: what Beam passes around; names and row numbers only.

    Attributes:
        index: which shard.
        count: how many shards the stage has.
        folder: the stage's folder.
        spans: what to read; their meaning is the stage's own.
    """

    index: int
    count: int
    folder: str
    spans: tuple[Span, ...]

    def name(self, kind: str = "part") -> str:
        """The deterministic file name of a table of this task."""
        return f"{kind}-{self.index:05d}-of-{self.count:05d}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a task made.

    Attributes:
        table: the part.
        counts: numbers to be summed over the stage (inputs read, undecodable, cells …).
        faults: inputs set aside: {source, stage, error, message, items}.
        extra: side tables by kind (``rows`` becomes ``rows-00003-of-00012.parquet``).
        row_group_rows: rows per row group of the part.
        plain: columns stored uncompressed (their content is compressed already).
    """

    table: pa.Table
    counts: Mapping[str, int] = field(default_factory=dict)
    faults: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, pa.Table] = field(default_factory=dict)
    row_group_rows: int = 4096
    plain: Sequence[str] = ()


class Work(Hashable, Protocol):
    """A stage's work: a frozen, hashable dataclass that Beam pickles; ``open`` loads models, once per worker process.

    Fields whose metadata says ``identity: False`` (paths, whose content is covered by a sha256 field) do not enter the
    fingerprint.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]

    def open(self) -> Callable[[Task], Output]:
        """Loads what the work needs and returns the function from a task to its output."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One committed table of a stage."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished stage, as its manifest says.

    Attributes:
        stage: its name.
        folder: where it is.
        parts: its tables in order (side tables follow all parts).
        counts: sums over its tasks.
        faults: inputs it set aside.
        digest: sha256 over its content; enters the fingerprint of the next stage.
    """

    stage: str
    folder: str
    parts: tuple[Part, ...]
    counts: Mapping[str, int]
    faults: tuple[Mapping[str, Any], ...]
    digest: str

    def uri(self, name: str) -> str:
        """The uri of a file of this stage."""
        return storage.join(self.folder, name)

    def uris(self, kind: str = "part") -> list[str]:
        """Uris of the tables of one kind, in task order."""
        return [self.uri(p.name) for p in self.parts if p.name.startswith(kind + "-")]

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(p.rows for p in self.parts if p.name.startswith("part-"))


def not_identity(**kwargs: Any) -> Any:
    """A dataclass field that does not enter the fingerprint (a path whose sha256 is a field of its own)."""
    return field(metadata={"identity": False}, **kwargs)


def identity(value: Any) -> Any:
    """The JSON form of a config object, without the fields marked as no identity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f for f in dataclasses.fields(value) if f.metadata.get("identity", True))
        return {f.name: identity(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {str(k): identity(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [identity(v) for v in value]
    return value


def fingerprint(name: str, version: int, config: Any, inputs: Sequence[str], libraries: Iterable[str]) -> str:
    """The name of a stage's folder: 20 hex digits over everything that changes its bytes."""
    versions = {library: importlib.metadata.version(library) for library in sorted(libraries)}
    return hashlib.sha256(canonical_json([name, version, identity(config), list(inputs), versions])).hexdigest()[:20]


def stage_folder(root: str, work: Work, inputs: Sequence[str]) -> str:
    """The folder of a stage below the root of all stages."""
    return storage.join(root, work.name, fingerprint(work.name, work.version, work, inputs, work.libraries))


def read_manifest(folder: str) -> Done | None:
    """The finished stage in a folder, or None if it is not finished.

    Raises:
        StageError: the manifest cannot be parsed.
    """
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        return None
    try:
        raw = json.loads(storage.read_bytes(uri))
        return Done(
            stage=raw["stage"],
            folder=folder,
            parts=tuple(Part(**part) for part in raw["parts"]),
            counts=raw["counts"],
            faults=tuple(raw["faults"]),
            digest=raw["digest"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{uri} is damaged ({error}); remove the folder {folder} and run again") from error


def write_manifest(
    stage: str, folder: str, parts: Sequence[Part], counts: Mapping[str, int], faults: Sequence[Mapping[str, Any]]
) -> Done:
    """Finishes a stage: from now on it exists."""
    listed = [dataclasses.asdict(part) for part in parts]
    digest = hashlib.sha256(canonical_json([stage, listed, dict(counts)])).hexdigest()
    body = {"stage": stage, "parts": listed, "counts": dict(counts), "faults": list(faults), "digest": digest}
    storage.write_bytes(storage.join(folder, MANIFEST), canonical_json(body))
    return Done(
        stage=stage, folder=folder, parts=tuple(parts), counts=dict(counts), faults=tuple(faults), digest=digest
    )


def commit_name(index: int) -> str:
    """The name of a task's commit record."""
    return f"{index:05d}.json"


def committed(folder: str) -> set[int]:
    """Indices of the tasks of a stage that are done."""
    names = storage.list_names(storage.join(folder, "_commits"), ".json")
    return {int(name.removesuffix(".json")) for name in names}


def run_task(function: Callable[[Task], Output], task: Task) -> None:
    """Does one task and commits it: tables first, the record last.

    Doing it again gives the same files with the same bytes, so retries and replays are harmless.
    """
    started = time.monotonic()
    try:
        output = function(task)
        tables = {"part": output.table, **output.extra}
        parts = [_write_part(task, kind, table, output) for kind, table in tables.items()]
    except Exception as error:
        _record_failure(task, error)
        raise
    record = {
        "parts": [dataclasses.asdict(part) for part in parts],
        "counts": dict(output.counts),
        "faults": list(output.faults),
        "seconds": round(time.monotonic() - started, 3),
    }
    storage.write_bytes(storage.join(task.folder, "_commits", commit_name(task.index)), canonical_json(record))


def collect(stage: str, folder: str, count: int) -> Done:
    """Sums the commit records of a stage and writes its manifest.

    Raises:
        StageError: a task has not committed.
    """
    missing = sorted(set(range(count)) - committed(folder))
    if missing:
        raise StageError(f"stage {stage}: {len(missing)} of {count} shards did not finish (first: {missing[0]})")
    parts: list[Part] = []
    counts: dict[str, int] = {}
    faults: list[Mapping[str, Any]] = []
    for index in range(count):
        record = json.loads(storage.read_bytes(storage.join(folder, "_commits", commit_name(index))))
        parts.extend(Part(**part) for part in record["parts"])
        faults.extend(record["faults"])
        for key, value in record["counts"].items():
            counts[key] = counts.get(key, 0) + value
    parts.sort(key=lambda part: (not part.name.startswith("part-"), part.name.split("-")[0]))  # stable: tasks in order
    return write_manifest(stage, folder, parts, dict(sorted(counts.items())), faults)


def failures(folder: str) -> list[str]:
    """Messages of the tasks whose last attempt failed."""
    done = {commit_name(index) for index in committed(folder)}
    names = [n for n in storage.list_names(storage.join(folder, "_failed"), ".json") if n not in done]
    return [json.loads(storage.read_bytes(storage.join(folder, "_failed", n)))["message"] for n in names]


def read_span(span: Span, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a span, reading only the row groups it touches; none where it lies behind the end.

    Raises:
        StageError: the file is damaged.
    """
    with storage.open_read(span.uri) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            stop = parquet.metadata.num_rows if span.stop is None else min(span.stop, parquet.metadata.num_rows)
            groups, first = _groups(parquet.metadata, span.start, stop)
            table = parquet.read_row_groups(groups, columns=list(columns) if columns is not None else None)
        except (OSError, pa.ArrowException) as error:
            folder = span.uri.rsplit("/", 1)[0]
            raise StageError(f"{span.uri} is damaged ({error}); remove the folder {folder} and run again") from error
        return table.slice(span.start - first, max(0, stop - span.start))


def iter_tables(uris: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of a stage, one file at a time."""
    for uri in uris:
        yield read_span(Span(uri=uri), columns)


@beam.typehints.with_input_types(Task)
@beam.typehints.with_output_types(int)
class RunTask(beam.DoFn):  # type: ignore[misc]
    """Runs one task; models load once per worker process, whatever the number of threads."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def setup(self) -> None:
        """Loads the work's models, or takes those another thread of this process has loaded."""
        one_thread()
        self._function = _opened(self._work)

    def process(self, task: Task) -> Iterator[int]:
        """Does the task and gives its index."""
        run_task(self._function, task)
        yield task.index


_OPENING = threading.Lock()


def _opened(work: Work) -> Callable[[Task], Output]:
    with _OPENING:
        return _open_once(work)


@functools.lru_cache(maxsize=4)
def _open_once(work: Work) -> Callable[[Task], Output]:
    return work.open()


def _write_part(task: Task, kind: str, table: pa.Table, output: Output) -> Part:
    plain = [name for name in output.plain if name in table.column_names]
    data = encode_parquet(table, row_group_rows=output.row_group_rows, plain=plain)
    name = task.name(kind)
    storage.write_bytes(storage.join(task.folder, name), data)
    return Part(name=name, rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _record_failure(task: Task, error: Exception) -> None:
    message = str(error) if isinstance(error, CurateError) else storage.reason(error)
    uri = storage.join(task.folder, "_failed", commit_name(task.index))
    try:
        storage.write_bytes(uri, canonical_json({"message": message}))
    except CurateError:
        return  # the disk is full: the driver reads the message from the exception instead


def _groups(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[list[int], int]:
    groups: list[int] = []
    first = row = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row + rows > start and row < stop:
            first = first if groups else row
            groups.append(group)
        row += rows
    return groups, first if groups else start
