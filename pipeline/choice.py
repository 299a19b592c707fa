"""From the inputs to exactly N chosen frames: the stages that read, describe, cluster and choose.

::

    sources ─ probe ─ embed ─ dedupe ─ cluster ─ assign ─ plan ─ select ─ chosen
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline import storage
from pipeline.again import first_target
from pipeline.assign import (
    PLAN_CELLS,
    Assign,
    Select,
    balanced_attributes,
    cell_counts,
    choose,
    plan_of,
    plan_selection,
    write_plan,
)
from pipeline.attributes import Given, read_given
from pipeline.cluster import cluster
from pipeline.config import Config
from pipeline.dedupe import dedupe, families
from pipeline.embed import Embed, weights_digest
from pipeline.errors import InputError, StorageError
from pipeline.job import Job
from pipeline.probe import ERASED, Probe, probe_spans
from pipeline.quota import shortfall_text
from pipeline.sources import list_sources
from pipeline.stage import Done, Span, identity, read_span
from pipeline.step import Weights, digest_of, weights_of, write_tables
from pipeline.suppressed import suppressed_of
from training.files import sha256_file

_READING = ("probe", "embed", "first_label", "label")
"""The stages that decode, and so may set inputs aside."""


def survey(job: Job) -> dict[str, Done]:
    """Lists and probes the inputs.

    Raises:
        InputError: nothing can be read, or more than ``max_bad`` of the sources are broken.
    """
    table, hidden = list_sources(job.inputs)
    digest = digest_of([table.column(name).to_pylist() for name in table.column_names])
    sources = job.step("sources", None, [digest], [], lambda folder: write_tables(folder, [table]))
    given_of(job, sources)  # a bad table is refused before anything is decoded
    spans = probe_spans(sources.uris()[0], table.column("bytes").to_pylist(), job.config.probe)
    suppressed = suppressed_of(job.output, job.config.cluster.duplicates.distance)
    probe = job.stage(Probe(config=job.config.probe.scan, suppressed=suppressed), spans, sources)
    quarantine(job, {"probe": probe})
    if probe.counts["not_media"] or hidden:
        job.say("probe", f"{probe.counts['not_media']} files that are no media and {hidden} hidden ones passed over")
    if probe.faults:
        job.say("probe", f"{len(probe.faults)} faults set aside, see {job.output}/quarantine.json")
    _check_bad(job, probe)
    return {"sources": sources, "probe": probe}


def _check_bad(job: Job, probe: Done) -> None:
    bad, total = probe.counts["bad"], probe.counts["sources"]
    errors = [fault for fault in probe.faults if fault["error"] not in ("BlankFrame", ERASED)]
    first = "; ".join(f"{fault['source']}: {fault['message']}" for fault in errors[:10])
    if probe.rows == 0:
        raise InputError(f"no readable input: {total} media files, {bad} of them broken{': ' + first if first else ''}")
    if bad > job.max_bad * total:
        raise InputError(
            f"{bad} of {total} sources are broken, more than --max-bad-fraction {job.max_bad:g} allows; the first: "
            f"{first}. Repair or remove them, or raise the limit; what was probed is kept"
        )


def take(job: Job) -> dict[str, Done]:
    """From the inputs to exactly ``target`` chosen frames."""
    config = job.config
    stages = survey(job)
    sources, probe = stages["sources"], stages["probe"]
    given = given_of(job, sources)
    balanced = balanced_attributes(config.select, given)
    embed = job.stage(embed_work(config), [(Span(uri=uri),) for uri in probe.uris()], probe)
    deduped = job.step(
        "dedupe",
        config.cluster.duplicates,
        [embed, probe],
        ["scipy"],
        lambda folder: write_tables(folder, dedupe(embed, probe, config.cluster.duplicates)),
    )
    clustered = job.step(
        "cluster",
        [identity(config.cluster), job.seed],
        [embed, deduped],
        ["faiss-cpu", "opencv-python-headless", "scikit-learn", "scipy", "timm", "torch"],
        lambda to: cluster(embed, deduped, config.cluster, seed=job.seed, folder=to, report=job.reporter("cluster")),
    )
    work = Assign(
        network=weights_of(clustered, "clusterfit.safetensors"),
        tree=weights_of(clustered, "tree.safetensors"),
        given=None if job.attributes is None else brought(job, "given", job.attributes),
        sources=sources.uris()[0],
        balanced=balanced,
        per_source=config.select.per_source,
        seed=job.seed,
    )
    triples = zip(embed.uris(), probe.uris(), deduped.uris(), strict=True)
    assign = job.stage(work, [tuple(Span(uri=uri) for uri in triple) for triple in triples], embed, probe, deduped)
    stages |= {"embed": embed, "dedupe": deduped, "cluster": clustered, "assign": assign}
    return stages | _choose(job, stages, balanced, given)


def _choose(job: Job, stages: Mapping[str, Done], balanced: Sequence[str], given: Given | None) -> dict[str, Done]:
    assign, embed, probe, deduped = (stages[name] for name in ("assign", "embed", "probe", "dedupe"))
    counts, config = cell_counts(assign), job.config.select
    alive = {cell: n for cell, n in counts.items() if json.loads(cell)[0] >= 0}
    if job.target > sum(alive.values()):
        listed = storage.join(job.output, "cells.json")
        storage.write_bytes(listed, json.dumps(counts, indent=1, sort_keys=True, ensure_ascii=False).encode())
        raise InputError(f"{shortfall_text(alive, job.target)}; frames per cell are listed in {listed}")
    target = first_target(config, job.target, sum(alive.values()))
    planned = job.step(
        "plan",
        [identity(config), target],
        [assign],
        ["scipy"],
        lambda folder: write_plan(folder, plan_selection(assign, target, config, balanced, given)),
    )
    select = job.stage(
        Select(plan=weights_of(planned, PLAN_CELLS)), [(Span(uri=uri),) for uri in assign.uris()], assign, planned
    )
    chosen = job.step(
        "chosen",
        job.config.label.rows,
        [select, planned, embed, deduped],
        [],
        lambda to: write_tables(
            to, [choose(select, plan_of(planned), families(embed, probe, deduped))], job.config.label.rows
        ),
    )
    _check_room(job, chosen)
    return {"plan": planned, "select": select, "chosen": chosen}


def embed_work(config: Config) -> Embed:
    """The work of the embed stage."""
    return Embed(config=config.embed, scan=config.probe.scan, weights_sha256=weights_digest(config.embed))


def brought(job: Job, name: str, given: str) -> Weights:
    """A file that the user gave, copied to where workers can read it."""
    file = name + PurePosixPath(given).suffix
    digest = _sha256(given)

    def make(folder: Path) -> Sequence[str]:
        storage.write_bytes(str(folder / file), storage.read_bytes(given))
        return [file]

    return weights_of(job.step(name, None, [digest], [], make), file)


def given_of(job: Job, sources: Done) -> Given | None:
    """The attributes that the user gave."""
    if job.attributes is None:
        return None
    return read_given(job.attributes, read_span(Span(uri=sources.uris()[0]), ["uri"]).column("uri").to_pylist())


def _sha256(uri: str) -> str:
    with storage.local_copy(uri) as path:
        return sha256_file(path)


def quarantine(job: Job, stages: Mapping[str, Done]) -> list[dict[str, object]]:
    """Writes ``quarantine.json``: every input that was set aside, with source, stage, error class and message."""
    faults = [dict(fault) for name in _READING if name in stages for fault in stages[name].faults]
    data = json.dumps(faults, indent=1, sort_keys=True, ensure_ascii=False)
    storage.write_bytes(storage.join(job.output, "quarantine.json"), data.encode())
    return faults


def _check_room(job: Job, chosen: Done) -> None:
    """Refuses to go on where the disk cannot hold the release, before hours are spent on it."""
    sizes = read_span(Span(uri=chosen.uris()[0]), ["width", "height"])
    pixels = np.dot(*(sizes.column(name).to_numpy().astype(np.int64) for name in ("width", "height")))
    needed = int(pixels * 0.4) + chosen.rows * 40_000
    free = storage.free_bytes(job.output)
    if free is not None and free < needed:
        raise StorageError(
            f"{job.output} has {free} bytes free, but labels and shards of {chosen.rows} frames take about {needed}; "
            "free some space or choose another --output"
        )
