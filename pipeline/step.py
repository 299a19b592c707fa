"""Driver steps: what is done once, between the Beam stages; like a stage, finished by a manifest, or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.release import canonical_json
from manifests.shard import encode_parquet
from pipeline import storage
from pipeline.stage import Done, Part, fingerprint, not_identity, read_manifest, write_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of weights and its content.

    Attributes:
        uri: where it is (no identity: the content is).
        sha256: of its bytes.
    """

    uri: str = not_identity()
    sha256: str


def weights_of(done: Done, name: str) -> Weights:
    """A file of a finished step."""
    return Weights(uri=done.uri(name), sha256=next(part.sha256 for part in done.parts if part.name == name))


def run_step(
    root: str,
    name: str,
    version: int,
    config: Any,
    inputs: Sequence[str],
    libraries: Sequence[str],
    make: Callable[[Path], Sequence[str]],
) -> Done:
    """Runs a driver step unless it is done.

    Args:
        root: folder of all stages.
        name: of the step.
        version: of its code.
        config: what it is told; enters the fingerprint.
        inputs: digests of what it reads.
        libraries: those whose version changes its bits, besides NumPy and pyarrow, which every step uses.
        make: writes the step's files into the folder it is given and returns their names; called again in the same
            folder after a kill, so that it can resume.
    """
    folder = storage.join(root, name, fingerprint(name, version, config, inputs, {*libraries, "numpy", "pyarrow"}))
    done = read_manifest(folder)
    if done is not None:
        return done
    with storage.working_folder(folder) as local:
        names = make(local)
        parts = [_part(local / n) for n in names]
    storage.sweep(folder)
    return write_manifest(name, folder, parts, {}, ())


def write_tables(folder: Path, tables: Sequence[pa.Table], row_group_rows: int = 4096) -> list[str]:
    """Writes tables as the numbered parts of a step and returns their names."""
    names = []
    for index, table in enumerate(tables):
        name = f"part-{index:05d}-of-{len(tables):05d}.parquet"
        storage.write_bytes(str(folder / name), encode_parquet(table, row_group_rows=row_group_rows))
        names.append(name)
    return names


def write_json(folder: Path, name: str, value: Any) -> str:
    """Writes a JSON file of a step and returns its name."""
    storage.write_bytes(str(folder / name), canonical_json(value))
    return name


def digest_of(value: Any) -> str:
    """sha256 of a JSON value; stands for an input that is no stage."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _part(path: Path) -> Part:
    data = path.read_bytes()
    rows = pq.ParquetFile(path).metadata.num_rows if path.suffix == ".parquet" else 0
    return Part(name=path.name, rows=rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
