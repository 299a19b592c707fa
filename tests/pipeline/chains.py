"""All stages from the probe to the choice without Beam, over a few sources, cut into tasks in any way."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.assign import PLAN_CELLS, Assign, Select, choose, plan_selection, write_plan
from pipeline.cluster import ClusterConfig, cluster
from pipeline.clusterfit import ClusterFitConfig
from pipeline.dedupe import dedupe
from pipeline.duplicates import DuplicateConfig
from pipeline.embed import Embed, EmbedConfig
from pipeline.frames import ScanConfig
from pipeline.probe import Probe
from pipeline.quota import SelectConfig
from pipeline.sources import list_sources
from pipeline.stage import Done, Part, Span, Task, Work, collect, iter_tables, run_task, write_manifest
from pipeline.step import Weights, write_tables
from tests.pipeline.media import jpeg, moving, video

SCAN = ScanConfig()
SMALL = ClusterConfig(fit_per_cluster=6, per_cluster=6, fit=ClusterFitConfig(side=32, steps=4, batch=8))
SEED = 5
BALANCED = ("lighting_level", "sharpness")


def finish(work: Work, folder: Path, spans: Sequence[tuple[Span, ...]]) -> Done:
    """A stage without Beam: its tasks one by one."""
    function = work.open()
    for index, span in enumerate(spans):
        run_task(function, Task(index=index, count=len(spans), folder=str(folder), spans=span))
    return collect(work.name, str(folder), len(spans))


def step(name: str, folder: Path, tables: Sequence[pa.Table]) -> Done:
    """A driver step of tables; nothing but its uris and rows are looked at."""
    folder.mkdir()
    names = write_tables(folder, tables)
    parts = [Part(name=n, rows=t.num_rows, bytes=0, sha256="") for n, t in zip(names, tables, strict=True)]
    return write_manifest(name, str(folder), parts, {}, [])


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All stages up to the choice, over the same sources cut into tasks in one way."""

    probed: Done
    embedded: Done
    deduped: Done
    clustered: Path
    assigned: Done
    work: Assign


def chain(folder: Path, inputs: Path, cuts: Sequence[int], given: Path | None = None) -> Chain:
    folder.mkdir()
    sources, _ = list_sources([str(inputs)])
    listed = str(folder / "sources.parquet")
    pq.write_table(sources, listed)
    edges = [0, *cuts, sources.num_rows]
    spans = [(Span(uri=listed, start=a, stop=b),) for a, b in itertools.pairwise(edges)]
    probed = finish(Probe(config=SCAN), folder / "probe", spans)
    embed = Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None)
    embedded = finish(embed, folder / "embed", [(Span(uri=uri),) for uri in probed.uris()])
    deduped = step("dedupe", folder / "dedupe", dedupe(embedded, probed, DuplicateConfig()))
    clustered = folder / "cluster"
    clustered.mkdir()
    said: list[str] = []
    cluster(embedded, deduped, SMALL, seed=SEED, folder=clustered, report=said.append)
    assert said
    work = Assign(
        network=Weights(uri=str(clustered / "clusterfit.safetensors"), sha256="n"),
        tree=Weights(uri=str(clustered / "tree.safetensors"), sha256="t"),
        given=Weights(uri=str(given), sha256="g") if given else None,
        sources=listed,
        balanced=BALANCED,
        per_source=0,
        seed=SEED,
    )
    triples = zip(embedded.uris(), probed.uris(), deduped.uris(), strict=True)
    assigned = finish(work, folder / "assign", [tuple(Span(uri=uri) for uri in triple) for triple in triples])
    return Chain(probed=probed, embedded=embedded, deduped=deduped, clustered=clustered, assigned=assigned, work=work)


def taken(folder: Path, assigned: Done, target: int) -> tuple[pa.Table, dict[str, Any]]:
    folder.mkdir()
    plan = plan_selection(assigned, target, SelectConfig(), BALANCED)
    write_plan(folder, plan)
    work = Select(plan=Weights(uri=str(folder / PLAN_CELLS), sha256="p"))
    selected = finish(work, folder / "select", [(Span(uri=uri),) for uri in assigned.uris()])
    return choose(selected, plan, {}), plan


def rows_of(done: Done) -> pa.Table:
    return pa.concat_tables(iter_tables(done.uris()))


def draw(folder: Path) -> None:
    """Five videos, of which two are one, ten stills, of which three repeat others, and one file without a frame."""
    folder.mkdir()
    for seed in range(4):
        (folder / f"v{seed}.mp4").write_bytes(video(moving(40, seed=seed)))
    (folder / "v9 again.mp4").write_bytes((folder / "v0.mp4").read_bytes())
    for seed in range(10, 17):
        (folder / f"s{seed}.jpg").write_bytes(jpeg(seed, quality=95))
    for seed in (10, 11, 12):
        (folder / f"t{seed}.jpg").write_bytes(jpeg(seed, quality=60))
    (folder / "broken.jpg").write_bytes(jpeg(1)[:200])
