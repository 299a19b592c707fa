"""From stages to a release: tables, copies of the shards, and ``release.json`` last.

Until ``release.json`` is there the folder is nothing; killed on the way, the next run writes the same files again.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.release import (
    RELEASE_FILE,
    RELEASE_VERSION,
    Counts,
    FileEntry,
    Model,
    Release,
    ReleaseExistsError,
    canonical_json,
    fingerprint,
    render_release,
    sha256_hex,
    write_release,
)
from manifests.schema import EVIDENCE, SCHEMA_NAMES, SCHEMA_VERSION, embedding_schema, manifest_schema
from manifests.shard import aspect_bucket, encode_parquet
from manifests.split import split_of
from manifests.stats import rows_by_class, statistics
from pipeline import storage
from pipeline.attributes import COMPUTED
from pipeline.errors import StageError
from pipeline.known import GIVEN, MASK, MASK_CONFIDENCE, effective, mask_columns, with_masks
from pipeline.mask_attributes import MASK_ATTRIBUTES
from pipeline.publish import PUBLISHED, SPLITS, Shard
from pipeline.stage import Done, Span, identity, iter_tables, read_span

FILE_ROWS = 250_000
GROUP_ROWS = 50_000
PACKAGES = (
    "apache-beam",
    "av",
    "faiss-cpu",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "timm",
    "torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run knows when all its stages are done.

    Attributes:
        config: the resolved config.
        seed: of the run.
        target: --target-size.
        run_id: hash of config, seed and inputs.
        counts: what became of every item read.
        inputs: summary of the sources.
        recorded: the newest modification time of the inputs, in nanoseconds; dates every assertion.
        given: names of the attributes that the user gave.
        embedder: name of the first embedding's model.
        models: checkpoints that had a part.
        stages: the finished stages and steps by name.
        judge: the judge's summary, the content of judge.json.
        plan: quotas and counts per cell.
        faults: inputs that were set aside.
    """

    config: Any
    seed: int
    target: int
    run_id: str
    counts: Counts
    inputs: Mapping[str, Any]
    recorded: int
    given: tuple[str, ...]
    embedder: str
    models: tuple[Model, ...]
    stages: Mapping[str, Done]
    judge: Mapping[str, Any]
    plan: Mapping[str, Any]
    faults: Sequence[Mapping[str, Any]]


def write(root: str, run: Run, shards: Sequence[Shard]) -> tuple[str, str]:
    """Writes the release of a run below ``root/releases``, named by its content, unless it is there.

    Equal runs give equal bytes and names; another content has another name, so a release is never written over.

    Returns:
        The folder and the fingerprint of the release.

    Raises:
        StorageError: a file cannot be written.
        StageError: the stages do not fit each other.
    """
    columns = _columns(run)
    made = [*_tables(run, columns), *_documents(run, columns)]
    parts = _shard_parts(run, shards)
    entries = [entry for entry, _ in (*made, *parts)]
    release = Release(
        name="unnamed",
        schemas={**dict.fromkeys(SCHEMA_NAMES, SCHEMA_VERSION), "release": RELEASE_VERSION},
        config_fingerprint=sha256_hex(canonical_json(identity(run.config))),
        parents=(),
        run_id=run.run_id,
        tool={"name": "curate", "version": importlib.metadata.version("curate")},
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        seed=run.seed,
        inputs=run.inputs,
        models=run.models,
        counts=run.counts,
        splits={split: sum(shard.stop - shard.start for shard in shards if shard.split == split) for split in SPLITS},
        cells=_cells(run, columns),
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        erasures=(),
    )
    release = replace(release, name=f"r-{fingerprint(render_release(release))[:12]}")
    folder, data = storage.join(root, "releases", release.name), render_release(release)
    if not storage.exists(storage.join(folder, RELEASE_FILE)):
        for entry, content in made:
            storage.write_bytes(storage.join(folder, entry.path), content)
        for entry, source in parts:
            _check_part(source, entry.sha256)
            storage.copy(source, storage.join(folder, entry.path))
    _commit(folder, data)
    return folder, fingerprint(data)


def _check_part(uri: str, sha256: str) -> None:
    """Refuses to publish a shard whose bytes are no longer those that were committed."""
    digest = hashlib.sha256()
    with storage.open_read(uri) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        folder = uri.rsplit("/", 1)[0]
        raise StageError(f"{uri} is damaged (its sha256 is not {sha256}); remove the folder {folder} and run again")


def _commit(folder: str, data: bytes) -> None:
    """Writes ``release.json`` if it is absent; object stores show it whole or not at all."""
    uri = storage.join(folder, RELEASE_FILE)
    if storage.is_local(folder):
        try:
            write_release(Path(folder), data)
        except ReleaseExistsError as error:
            raise StageError(f"{error}, or another --output") from error
    elif not storage.exists(uri):
        storage.write_bytes(uri, data)
    elif storage.read_bytes(uri) != data:
        raise StageError(f"{uri} is another release; releases are immutable: choose another --output")


def count_items(stages: Mapping[str, Done], decisions: Sequence[str]) -> Counts:
    """What became of every item read; every item is in exactly one of the counts."""
    probed = stages["probe"].counts
    found = Counter(decisions)
    undecodable = probed["undecodable"] + stages["embed"].counts.get("undecodable", 0)
    duplicate = probed["duplicate"] + stages["embed"].counts.get("thinned", 0)
    duplicate += sum(t.num_rows for t in iter_tables(stages["dedupe"].uris()))
    pool = stages["assign"].rows
    return Counts(
        read=probed["read"],
        undecodable=undecodable,
        duplicate=duplicate,
        not_sampled=probed["not_sampled"] + stages["assign"].counts["capped"] + pool - len(decisions),
        dropped=found["drop"],
        held=found["hold"],
        kept=found["keep"],
    )


_SAID = ("label_confidence", "boundary_uncertainty", "n_persons", "persons")
"""What the teacher says of a frame, taken over as it is."""


def _columns(run: Run) -> pa.Table:
    """One row per chosen frame, in chosen order, with the columns of the manifest and the vector."""
    chosen = read_span(Span(uri=run.stages["chosen"].uris()[0]))
    labels = pa.concat_tables(
        iter_tables(
            run.stages["label"].uris(),
            [*_SAID, *mask_columns(), "mask_area_px", "mask_components", "fault"],
        )
    )
    scores = pa.concat_tables(
        iter_tables(
            run.stages["score"].uris(),
            ["fold", "student_iou", "student_boundary_iou", "miss", "extra", "stability", "student_area"],
        )
    )
    verdicts = read_span(Span(uri=run.stages["verdict"].uris()[0]))
    published = pa.concat_tables([PUBLISHED.empty_table(), *iter_tables(run.stages["publish"].uris("rows"))])
    if len({chosen.num_rows, labels.num_rows, scores.num_rows, verdicts.num_rows}) != 1:
        raise StageError("the stages disagree on the number of chosen frames; remove the folder 'stages' and run again")
    return _manifest(run, chosen, labels, scores, verdicts, _place(published, chosen.num_rows))


def _place(published: pa.Table, rows: int) -> dict[str, pa.Array]:
    """Columns of the publish stage, by chosen row; null where a row was not published."""
    order = np.full(rows, -1, np.int64)
    order[published.column("row").to_numpy()] = np.arange(published.num_rows)
    index = pa.array(order, mask=order < 0)
    names = ("shard", "shard_row", "mask_sha256", "mask_area_px", "mask_components")
    return {name: published.column(name).combine_chunks().take(index) for name in names}


def _manifest(
    run: Run, chosen: pa.Table, labels: pa.Table, scores: pa.Table, verdicts: pa.Table, placed: Mapping[str, pa.Array]
) -> pa.Table:
    rows, config = chosen.num_rows, run.config.publish
    teacher = next(model for model in run.models if model.role == "teacher")
    names = _attribute_names(run)
    decision = verdicts.column("decision").to_pylist()
    groups = chosen.column("group_id").to_pylist()
    keep = {"keep": None, "hold": "hold", "drop": "dropped"}
    labelled = pc.is_null(labels.column("fault")).combine_chunks()
    audited = verdicts.column("audited").combine_chunks()
    columns = {name: chosen.column(name) for name in chosen.column_names if name in manifest_schema(names).names}
    columns |= {name: labels.column(name) for name in _SAID}
    columns |= {
        name: pc.if_else(audited, pa.scalar(None, labels.schema.field(name).type), labels.column(name).combine_chunks())
        for name in ("label_confidence", "boundary_uncertainty")  # of a mask that a person's has replaced
    }
    columns |= {name: scores.column(name) for name in ("student_iou", "student_boundary_iou")}
    columns |= {
        "aspect_bucket": [aspect_bucket(w, h) for w, h in _sizes(chosen)],
        "group_id": groups,
        "embedding_model": pa.repeat(pa.scalar(run.embedder), rows),
        "attr": _attr(with_masks(chosen, labels), names),
        "label_source": pc.if_else(audited, "human", pc.if_else(labelled, "pseudo", "none")),
        "teacher_id": pa.repeat(pa.scalar(teacher.id), rows),
        "teacher_sha256": pa.repeat(pa.scalar(bytes.fromhex(teacher.sha256), pa.binary(32)), rows),
        **_student(run, scores, verdicts),
        "mask_sha256": placed["mask_sha256"],
        "mask_area_px": pc.coalesce(placed["mask_area_px"], labels.column("mask_area_px").combine_chunks()),
        "mask_components": pc.coalesce(placed["mask_components"], labels.column("mask_components").combine_chunks()),
        "decision": decision,
        "decision_reasons": verdicts.column("reasons"),
        "decision_by": pc.if_else(audited, "audit", "judge"),
        "verdict": verdicts.column("verdict"),
        "judge": _judge(chosen, scores, verdicts),
        "quota_cell": chosen.column("cell"),
        "sampling_weight": pc.divide(chosen.column("stands_for").cast(pa.float64()), chosen.column("inclusion_prob")),
        "sampling_round": pa.repeat(pa.scalar(run.config.select.rounds, pa.int16()), rows),
        "split": [
            keep[d] or split_of(g, run.seed, val=config.val, test=config.test)
            for d, g in zip(decision, groups, strict=True)
        ],
        "licence": pa.repeat(pa.scalar(run.config.publish.licence), rows),
        "consent_status": pa.repeat(pa.scalar(run.config.publish.consent), rows),
        "subject_ids": pa.array([[]] * rows, pa.list_(pa.string())),
        "shard": placed["shard"],
        "shard_row": placed["shard_row"],
        "run_id": pa.repeat(pa.scalar(run.run_id), rows),
        "vector": chosen.column("vector"),
    }
    schema = manifest_schema(names).append(chosen.schema.field("vector"))
    return pa.table([_column(columns, field, rows) for field in schema], schema=schema)


def _column(columns: Mapping[str, Any], field: pa.Field, rows: int) -> Any:
    value = columns.get(field.name)
    if value is None:
        return pa.nulls(rows, field.type)
    if isinstance(value, list):
        return pa.array(value, field.type)
    return value if field.name in ("attr", "judge", "persons", "vector") else value.cast(field.type)


def _attribute_names(run: Run) -> list[str]:
    return sorted({*COMPUTED, *MASK_ATTRIBUTES, *run.given})


def _attr(chosen: pa.Table, names: Sequence[str]) -> pa.StructArray:
    kind = manifest_schema(names).field("attr").type
    arrays = []
    nothing = pa.nulls(chosen.num_rows, pa.string())
    for name in names:
        values = effective(chosen, name).combine_chunks()
        given = chosen.column(GIVEN + name).combine_chunks() if GIVEN + name in chosen.column_names else nothing
        from_user, from_mask = pc.is_valid(given), _told_by_mask(chosen, name)
        provenance = pc.if_else(from_user, "source", pc.if_else(pc.is_valid(values), "model", "unknown"))
        computed = pc.if_else(pc.is_valid(values), "pixels", pa.scalar(None, pa.string()))
        source = pc.if_else(from_user, "attributes file", pc.if_else(from_mask, "mask", computed))
        unsure = pa.nulls(len(values), pa.float32())
        confidence = chosen.column(MASK_CONFIDENCE + name).combine_chunks() if name in MASK_ATTRIBUTES else unsure
        parts = [values, provenance, pc.if_else(from_user, unsure, confidence), source]
        arrays.append(pa.StructArray.from_arrays(parts, fields=list(kind.field(name).type)))
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _told_by_mask(chosen: pa.Table, name: str) -> pa.Array:
    if name not in MASK_ATTRIBUTES:
        return pa.repeat(pa.scalar(False), chosen.num_rows)
    return pc.is_valid(chosen.column(MASK + name).combine_chunks())


def _judge(chosen: pa.Table, scores: pa.Table, verdicts: pa.Table) -> pa.StructArray:
    kind = manifest_schema(["none"]).field("judge").type
    clusters = pc.cast(pc.list_element(chosen.column("cluster_path"), 0), pa.string())
    sources = {"q": verdicts, "gate": verdicts, "calibrated": verdicts}
    arrays = []
    for field in kind:
        column = clusters if field.name == "cluster" else sources.get(field.name, scores).column(field.name)
        arrays.append(column.cast(field.type).combine_chunks())
    unjudged = pc.is_null(verdicts.column("q")).combine_chunks()
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=unjudged)


def _student(run: Run, scores: pa.Table, verdicts: pa.Table) -> dict[str, pa.Array]:
    """Which student judged each row, and the sha256 over its checkpoints; null where none did."""
    named = {fold["fold"]: bytes.fromhex(fold["student_sha256"]) for fold in run.judge["folds"]}
    judged = pc.is_valid(verdicts.column("q")).to_pylist()
    folds = [fold if known else None for fold, known in zip(scores.column("fold").to_pylist(), judged, strict=True)]
    return {
        "student_id": pa.array([None if fold is None else f"fold-{fold}" for fold in folds], pa.string()),
        "student_sha256": pa.array([None if fold is None else named[fold] for fold in folds], pa.binary(32)),
    }


def _sizes(chosen: pa.Table) -> list[tuple[int, int]]:
    return list(zip(chosen.column("width").to_pylist(), chosen.column("height").to_pylist(), strict=True))


def _tables(run: Run, columns: pa.Table) -> list[tuple[FileEntry, bytes]]:
    ordered = columns.sort_by("sample_id")
    dropped = pc.equal(ordered.column("decision"), "drop")
    kept, gone = ordered.filter(pc.invert(dropped)), ordered.filter(dropped)
    schema = manifest_schema(_attribute_names(run))
    vectors = kept.select(["sample_id", "vector"])
    dimension = ordered.schema.field("vector").type.list_size
    rows = np.arange(kept.num_rows)
    kept = _set(kept, "embedding_shard", rows // FILE_ROWS)
    kept = _set(kept, "embedding_row", rows % FILE_ROWS)
    return [
        *_encode_parts("manifest", kept.select(schema.names).cast(schema), "manifest"),
        *_encode_parts("dropped", gone.select(schema.names).cast(schema), "manifest"),
        *_encode_parts("evidence", _evidence(ordered, run), "attribute_evidence"),
        *_encode_parts("embeddings", vectors.cast(embedding_schema(dimension)), "embedding"),
    ]


def _set(table: pa.Table, name: str, values: NDArray[np.int64]) -> pa.Table:
    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def _evidence(table: pa.Table, run: Run) -> pa.Table:
    """Every known attribute of every chosen frame, one row each, sorted by sample and name."""
    recorded = datetime.datetime.fromtimestamp(run.recorded // 1_000_000_000, datetime.UTC)
    parts = []
    for name in _attribute_names(run):
        attribute = pc.struct_field(table.column("attr"), name)
        rows = {
            "sample_id": table.column("sample_id"),
            "name": pa.repeat(pa.scalar(name), table.num_rows),
            "value": pc.struct_field(attribute, "value"),
            "provenance": pc.struct_field(attribute, "provenance"),
            "source_id": pc.struct_field(attribute, "source_id"),
            "source_sha256": table.column("source_sha256"),
            "confidence": pc.struct_field(attribute, "confidence"),
            "recorded_at": pa.repeat(pa.scalar(recorded, pa.timestamp("us", tz="UTC")), table.num_rows),
        }
        parts.append(pa.table([rows[field.name] for field in EVIDENCE], schema=EVIDENCE))
    known = pa.concat_tables(parts)
    known = known.filter(pc.not_equal(known.column("provenance"), "unknown"))
    return known.sort_by([("sample_id", "ascending"), ("name", "ascending")])


def _encode_parts(kind: str, table: pa.Table, schema: str) -> list[tuple[FileEntry, bytes]]:
    count = max(1, -(-table.num_rows // FILE_ROWS))
    entries = []
    for index in range(count):
        part = table.slice(index * FILE_ROWS, FILE_ROWS)
        data = encode_parquet(part, row_group_rows=GROUP_ROWS)
        path = f"{kind}/part-{index:05d}-of-{count:05d}.parquet"
        entries.append((_entry(path, len(data), sha256_hex(data), part.column("sample_id"), schema), data))
    return entries


def _entry(path: str, size: int, sha256: str, ids: pa.ChunkedArray, schema: str) -> FileEntry:
    limits = pc.min_max(ids).as_py() if len(ids) else {"min": None, "max": None}
    return FileEntry(
        path=path, bytes=size, sha256=sha256, rows=len(ids), min_id=limits["min"], max_id=limits["max"], schema=schema
    )


def _shard_parts(run: Run, shards: Sequence[Shard]) -> list[tuple[FileEntry, str]]:
    """Each shard of the release with the part of the publish stage that it is a copy of."""
    published = run.stages["publish"]
    parts = [part for part in published.parts if part.name.startswith("part-")]
    entries = []
    for shard, part in zip(shards, parts, strict=True):
        path = f"shards/{shard.split}/{shard.number:05d}-of-{shard.shards:05d}.parquet"
        ids = read_span(Span(uri=published.uri(part.name)), ["sample_id"]).column("sample_id")
        entries.append((_entry(path, part.bytes, part.sha256, ids, "shard"), published.uri(part.name)))
    return entries


def _documents(run: Run, columns: pa.Table) -> list[tuple[FileEntry, bytes]]:
    documents = {
        "stats.json": statistics(columns, run.judge, run.plan.get("attributes", ())),
        "config.json": {"config": identity(run.config), "seed": run.seed, "target_size": run.target},
        "lineage.json": _lineage(run),
    }
    entries = []
    for name, value in documents.items():
        data = json.dumps(json.loads(canonical_json(value)), indent=1, sort_keys=True, ensure_ascii=False).encode()
        entries.append((FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data)), data))
    return entries


def _lineage(run: Run) -> dict[str, Any]:
    errors = Counter(f"{fault['stage']}: {fault['error']}" for fault in run.faults)
    return {
        "run_id": run.run_id,
        "stages": {
            name: {"digest": done.digest, "parts": len(done.parts)} for name, done in sorted(run.stages.items())
        },
        "set_aside": dict(sorted(errors.items())),
        "first_set_aside": [dict(fault) for fault in run.faults[:1000]],
    }


def _cells(run: Run, columns: pa.Table) -> dict[str, dict[str, int]]:
    """Planned and kept frames per group of clusters and per class of every balanced attribute."""
    kept = columns.filter(pc.equal(columns.column("decision"), "keep"))
    balanced = run.plan.get("attributes", ())
    target = rows_by_class(balanced, run.plan["quotas"])
    actual = rows_by_class(balanced, Counter(kept.column("quota_cell").to_pylist()))
    return {name: {"target": n, "actual": actual[name]} for name, n in target.items() if n}
