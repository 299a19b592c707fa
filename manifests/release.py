"""The commit point of a release: `release.json`, written last and only if absent.

It lists every file with size, rows and sha256; the sha256 of its own bytes is the fingerprint of the release.
It holds no time of writing, so equal runs give equal fingerprints.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

from manifests.disk import put_if_absent
from manifests.schema import SCHEMA_NAMES, SchemaError, check_version

T = TypeVar("T")
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

RELEASE_FILE = "release.json"
RELEASE_VERSION = "1.0"
"""Version of `release.json` itself, kept as `schemas["release"]`."""
MAX_RELEASE_BYTES = 64 << 20
"""Limit of the size of `release.json`: about 200,000 files."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ReleaseError(ValueError):
    """A release that breaks a rule; the message names the field."""


class ConservationError(ReleaseError):
    """Counts that do not add up: an input was lost, or counted twice."""


class ReleaseExistsError(ReleaseError):
    """Another release is committed in this folder.

    Attributes:
        fingerprint: of the release that is there.
    """

    def __init__(self, folder: Path, found: str) -> None:
        super().__init__(
            f"{folder / RELEASE_FILE}: another release is committed here, fingerprint {found}; "
            f"releases are immutable: choose another name"
        )
        self.fingerprint = found


def canonical_json(value: object) -> bytes:
    """Encode as JSON in UTF-8 with sorted keys and no spaces; equal values give equal bytes.

    Raises:
        ReleaseError: a number that is not finite, a key that is no string, or what JSON cannot hold.
    """
    _check_keys(value)
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ReleaseError(f"value cannot be written as canonical JSON: {error}") from error


def _check_keys(value: object) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            wrong = [key for key in item if not isinstance(key, str)]
            if wrong:
                raise ReleaseError(f"keys of canonical JSON must be strings, got {wrong[0]!r}")
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(release_bytes: bytes) -> str:
    """What names a release: the sha256 of the bytes of its `release.json`, 64 hex digits."""
    return sha256_hex(release_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a release.

    Attributes:
        path: relative to the release folder, with "/", never leaving it.
        bytes: size.
        rows: of a Parquet file; None for another file.
        sha256: of the file, 64 hex digits.
        min_id: smallest sample id; None without rows.
        max_id: largest sample id; None without rows.
        schema: one of SCHEMA_NAMES for a Parquet file; None for another file.
    """

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    min_id: str | None = None
    max_id: str | None = None
    schema: str | None = None

    def __post_init__(self) -> None:
        """Check each field, and that ids and schema are there exactly where there are rows."""
        check_path(self.path)
        _check_count(self.bytes, f"files: {self.path}: bytes")
        _check_sha256(self.sha256, f"files: {self.path}: sha256")
        _check_optional_text(self.min_id, f"files: {self.path}: min_id")
        _check_optional_text(self.max_id, f"files: {self.path}: max_id")
        if self.rows is not None:
            _check_count(self.rows, f"files: {self.path}: rows")
        if (self.schema is None) != (self.rows is None):
            raise ReleaseError(f"files: {self.path}: rows and schema belong together, got {self.rows}, {self.schema!r}")
        if self.schema is not None and self.schema not in SCHEMA_NAMES:
            raise ReleaseError(f"files: {self.path}: schema must be one of {SCHEMA_NAMES}, got {self.schema!r}")
        if (self.min_id is None) != (not self.rows) or (self.max_id is None) != (not self.rows):
            raise ReleaseError(f"files: {self.path}: min_id and max_id must be set exactly where rows > 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of every input: read = undecodable + duplicate + not_sampled + dropped + held + kept."""

    read: int
    undecodable: int
    duplicate: int
    not_sampled: int
    dropped: int
    held: int
    kept: int

    def __post_init__(self) -> None:
        """Refuse counts that do not add up."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise ConservationError(f"counts: {field.name} must be an integer >= 0, got {value!r}")
        total = self.undecodable + self.duplicate + self.not_sampled + self.dropped + self.held + self.kept
        if self.read != total:
            raise ConservationError(
                f"counts: read is {self.read}, but undecodable {self.undecodable} + duplicate {self.duplicate} + "
                f"not_sampled {self.not_sampled} + dropped {self.dropped} + held {self.held} + kept {self.kept} "
                f"= {total}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint that had a part in the release, e.g. role "teacher"; licence may be "unknown", never empty."""

    role: str
    id: str
    sha256: str
    source: str
    licence: str

    def __post_init__(self) -> None:
        """Check that every field says something."""
        for field in dataclasses.fields(self):
            _check_text(getattr(self, field.name), f"models: {field.name}")
        _check_sha256(self.sha256, f"models: {self.id}: sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A published data set: where it came from, what is in it, and its files.

    Attributes:
        name: of the release: letters, digits, ".", "_", "-".
        schemas: version of each schema, and of `release.json` as "release".
        config_fingerprint: sha256 of the canonical configuration.
        parents: fingerprints of the releases that this one was made from.
        run_id: of the run that made it.
        tool: at least its "version".
        packages: version of each package that shaped the bytes.
        seed: of the run.
        inputs: summary of the sources, free JSON.
        models: checkpoints.
        counts: conservation of the inputs.
        splits: rows of the shards of each folder below `shards/` (train, val, test, hold, audit).
        cells: per group of clusters and class of a balanced attribute ("name=class") its {"target", "actual"} rows.
        files: sorted by path.
        erasures: ids of the erasures applied.
    """

    name: str
    schemas: Mapping[str, str]
    config_fingerprint: str
    parents: tuple[str, ...]
    run_id: str
    tool: Mapping[str, str]
    packages: Mapping[str, str]
    seed: int
    inputs: Mapping[str, Json]
    models: tuple[Model, ...]
    counts: Counts
    splits: Mapping[str, int]
    cells: Mapping[str, Mapping[str, int]]
    files: tuple[FileEntry, ...]
    erasures: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check every field; `counts`, `models` and `files` have checked themselves."""
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise ReleaseError(f"name must match {_NAME.pattern}, got {self.name!r}")
        _check_sha256(self.config_fingerprint, "config_fingerprint")
        _check_text(self.run_id, "run_id")
        if type(self.seed) is not int:
            raise ReleaseError(f"seed must be an integer, got {self.seed!r}")
        for parent in _tuple_of(self.parents, str, "parents"):
            _check_sha256(parent, "parents")
        for erasure in _tuple_of(self.erasures, str, "erasures"):
            _check_text(erasure, "erasures")
        self._check_mappings()
        _tuple_of(self.models, Model, "models")
        _check_files(_tuple_of(self.files, FileEntry, "files"))

    def _check_mappings(self) -> None:
        for name in ("schemas", "tool", "packages"):
            for key, value in _mapping(getattr(self, name), name).items():
                _check_text(value, f"{name}: {key}")
        if "version" not in self.tool:
            raise ReleaseError("tool must name its version")
        _check_schemas(self.schemas)
        _mapping(self.inputs, "inputs")
        for split, rows in _mapping(self.splits, "splits").items():
            _check_count(rows, f"splits: {split}")
        for cell, rows_of in _mapping(self.cells, "cells").items():
            if set(_mapping(rows_of, f"cells: {cell}")) != {"target", "actual"}:
                raise ReleaseError(f"cells: {cell}: must have target and actual, got {sorted(rows_of)}")
            for key, value in rows_of.items():
                _check_count(value, f"cells: {cell}: {key}")


def check_path(path: object) -> None:
    """Check that a path is relative, in plain form, and stays below its folder.

    Raises:
        ReleaseError: absolute, with "..", ".", a backslash, a NUL, a colon or an empty part, or `release.json` itself.
    """
    if not isinstance(path, str) or not path:
        raise ReleaseError(f"files: path must be a non-empty string, got {path!r}")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(char in path for char in "\\\0:"):
        raise ReleaseError(f"files: path must be relative and stay in the release folder, got {path!r}")
    if PurePosixPath(path).as_posix() == RELEASE_FILE:
        raise ReleaseError(f"files: path must not be {RELEASE_FILE}: it cannot list itself")


def _check_text(value: object, field: str) -> None:
    if not isinstance(value, str) or not value:
        raise ReleaseError(f"{field} must be a non-empty string, got {value!r}")


def _check_optional_text(value: object, field: str) -> None:
    if value is not None:
        _check_text(value, field)


def _check_sha256(value: object, field: str) -> None:
    if not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ReleaseError(f"{field} must be 64 lower-case hex digits, got {value!r}")


def _check_count(value: object, field: str) -> None:
    if type(value) is not int or value < 0:
        raise ReleaseError(f"{field} must be an integer >= 0, got {value!r}")


def _mapping(value: Mapping[str, T], field: str) -> Mapping[str, T]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ReleaseError(f"{field} must be an object with string keys, got {type(value).__name__}")
    return value


def _tuple_of(value: tuple[T, ...], kind: type[T], field: str) -> tuple[T, ...]:
    if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
        raise ReleaseError(f"{field} must be a list of {kind.__name__}, got {value!r:.80}")
    return value


def _check_schemas(schemas: Mapping[str, str]) -> None:
    if "release" not in schemas:
        raise ReleaseError("schemas must name the version of 'release'")
    for name, version in schemas.items():
        try:
            check_version(version, name)
        except SchemaError as error:
            raise ReleaseError(f"schemas: {error}") from error


def _check_files(files: tuple[FileEntry, ...]) -> None:
    paths = [entry.path for entry in files]
    if paths != sorted(set(paths)):
        raise ReleaseError("files must be sorted by path, none twice")


def render_release(release: Release) -> bytes:
    """The bytes of `release.json`: canonical JSON, so equal releases give equal bytes.

    Raises:
        ReleaseError: `inputs` holds what JSON cannot.
    """
    try:
        return canonical_json(_plain(release))
    except RecursionError as error:
        raise ReleaseError("inputs are nested too deeply") from error


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    plain: Json = value
    return plain


def parse_release(data: bytes) -> Release:
    """Parse and check the bytes of a `release.json`; `render_release` of the result gives the same bytes.

    Raises:
        ReleaseError: too large, no canonical JSON (truncated, a key twice, NaN, edited by hand), an unknown major
            version, or a field that is missing, surplus or malformed (named).
    """
    if len(data) > MAX_RELEASE_BYTES:
        raise ReleaseError(f"{RELEASE_FILE} must have at most {MAX_RELEASE_BYTES} bytes, got {len(data)}")
    value = _load(data)
    schemas = value.get("schemas")
    if isinstance(schemas, dict) and isinstance(schemas.get("release"), str):
        _check_schemas(schemas)  # first: a newer version may have other fields, and the message must say why
    _check_fields(value, Release, "release")
    _check_fields(value["counts"], Counts, "counts")
    release = Release(
        **{
            **value,
            "parents": _tuple(value["parents"], "parents"),
            "erasures": _tuple(value["erasures"], "erasures"),
            "counts": Counts(**value["counts"]),
            "models": tuple(_build(item, Model, "models") for item in _tuple(value["models"], "models")),
            "files": tuple(_build(item, FileEntry, "files") for item in _tuple(value["files"], "files")),
        }
    )
    if render_release(release) != data:
        raise ReleaseError(f"{RELEASE_FILE} is not in canonical form (sorted keys, no spaces): was it edited?")
    return release


def _load(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{RELEASE_FILE} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReleaseError(f"{RELEASE_FILE} must be a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ReleaseError(f"key {twice!r} is there twice")
    return value


def _refuse(constant: str) -> float:
    raise ReleaseError(f"numbers must be finite, got {constant}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _check_fields(value: object, kind: type[Any], where: str) -> None:
    if not isinstance(value, dict):
        raise ReleaseError(f"{where} must be an object, got {type(value).__name__}")
    expected = {field.name for field in dataclasses.fields(kind)}
    missing, surplus = sorted(expected - set(value)), sorted(set(value) - expected)
    if missing or surplus:
        raise ReleaseError(f"{where}: missing fields {missing}, surplus fields {surplus}")


def _build(value: Any, kind: type[T], where: str) -> T:
    _check_fields(value, kind, where)
    return kind(**value)


def _tuple(value: object, field: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ReleaseError(f"{field} must be a list, got {type(value).__name__}")
    return tuple(value)


def read_release(folder: Path) -> Release:
    """Read the release that is committed in `folder`.

    Raises:
        ReleaseError: names the file: absent, unreadable, or see `parse_release`.
    """
    return parse_release(read_release_bytes(folder))


def read_release_bytes(folder: Path) -> bytes:
    """The bytes of the `release.json` of `folder`, at most one more than MAX_RELEASE_BYTES.

    Raises:
        ReleaseError: absent or unreadable.
    """
    try:
        with (folder / RELEASE_FILE).open("rb") as file:
            return file.read(MAX_RELEASE_BYTES + 1)
    except OSError as error:
        raise ReleaseError(f"{folder / RELEASE_FILE} cannot be read, so no release is here: {error}") from error


def write_release(folder: Path, data: bytes) -> None:
    """Commit a release: write `release.json` if absent, whole and durable, or not at all.

    The same bytes again are a success, so a retry after a lost answer is safe.

    Raises:
        ReleaseError: `data` is no valid release.
        ReleaseExistsError: another release is committed here.
        OSError: the folder cannot be written, or its file system has no hard links.
    """
    parse_release(data)
    put_if_absent(folder, RELEASE_FILE, data)
    found = read_release_bytes(folder)
    if found != data:
        raise ReleaseExistsError(folder, fingerprint(found))
