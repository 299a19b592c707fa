"""What a choice of real frames covers: the main job beside a random choice, flat k-means, and equal shares of sources.

Usage: python -m benchmarks.clip_coverage [--target N] [--seeds S] [--seed S0] [--per-source P]

Reads ``$CURATE_SHARED/data``: images and clips, and its MANIFEST.json, whose notes (people_count, source_repo,
mean_luma, size) no method sees. Ours is the product's own job up to the choice, with all defaults. The peers choose
from all frames that were probed: at random; the frame nearest to each centroid of N clusters (faiss, on the first
embedding); and from every source in turn a random frame. They are run with S seeds; a cell is the mean, and below it
the interval that holds the middle 95 % of the seeds.

sources, repos      share of the sources (repositories) with a chosen frame
eff                 effective number, exp of the entropy
redundant           share of the chosen frames with another one of their source nearer than 0.5 s
near-duplicates     pairs whose first embeddings have a cosine above 0.97
classes of …        effective number of an attribute's known classes / how many of those in the pool are covered
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.shared import SHARED
from manifests.shard import aspect_bucket
from pipeline.attributes import COMPUTED
from pipeline.choice import embed_work, take
from pipeline.config import Config
from pipeline.embed import vectors_of
from pipeline.job import Job
from pipeline.kmeans import nearest
from pipeline.quota import SelectConfig
from pipeline.runner import Runner
from pipeline.stage import Span, iter_tables
from pipeline.thin import ThinConfig
from pipeline.threads import one_thread
from pipeline.waterfill import water_fill

Rows = NDArray[np.int64]
Draw = Callable[["Pool", int, np.random.Generator], Rows]
NEAR_SECONDS, NEAR_COSINE = 0.5, 0.97
COVERAGE = ("sources", "sources eff", "repos", "repos eff")
WASTE = ("redundant", "near-duplicates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """All probed frames.

    Attributes:
        ids: their sample ids.
        source: (N,) number of the source.
        seconds: (N,) time in the source; NaN for still images.
        vectors: (N, D) float32 first embedding, rows of length 1.
        labels: attribute -> (N,) class numbers, -1 = not known; "repos" is the repository of the source.
    """

    ids: list[str]
    source: Rows
    seconds: NDArray[np.float64]
    vectors: NDArray[np.float32]
    labels: Mapping[str, Rows]


def numbered(values: Sequence[str | None]) -> Rows:
    """(N,) numbers of the different values in sorted order; -1 for None."""
    number = {value: i for i, value in enumerate(sorted({value for value in values if value is not None}))}
    return np.array([-1 if value is None else number[value] for value in values], np.int64)


def labels_of(files: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """What the manifest says of each source, as classes; luma in terciles of these files."""
    luma = np.array([np.nan if file.get("mean_luma") is None else file["mean_luma"] for file in files], np.float64)
    third = np.searchsorted(np.nanquantile(luma, (1 / 3, 2 / 3)), luma)
    return {
        "repos": [file["source_repo"] for file in files],
        "people_count": [None if file["people_count"] is None else str(file["people_count"]) for file in files],
        "aspect": [aspect_bucket(file["width"], file["height"]) for file in files],
        "luma": [None if np.isnan(value) else str(at) for value, at in zip(luma, third, strict=True)],
    }


def pool_of(frames: pa.Table, vectors: NDArray[np.float32], data: Path) -> Pool:
    """Joins probed frames and the manifest's notes by the names of the files."""
    notes = {file["file"]: file for file in json.loads((data / "MANIFEST.json").read_text())["files"]}
    uris = frames.column("source_uri").to_pylist()
    names = sorted(set(uris))
    told = labels_of([notes[Path(name).relative_to(data.absolute()).as_posix()] for name in names])
    source = np.searchsorted(names, uris)
    labels = {name: numbered(values)[source] for name, values in told.items()}
    labels |= {f"{name}*": numbered(frames.column(name).to_pylist()) for name in COMPUTED}
    times = [np.nan if pts is None else pts / 1e6 for pts in frames.column("frame_pts_us").to_pylist()]
    return Pool(
        ids=frames.column("sample_id").to_pylist(),
        source=source,
        seconds=np.array(times, np.float64),
        vectors=vectors,
        labels=labels,
    )


def by_job(data: Path, folder: str, target: int, seed: int, per_source: int) -> tuple[Pool, Rows, int]:
    """All probed frames, the rows that the product chooses of them, and how many frames it has to choose from."""
    clips = sorted(str(path.absolute()) for path in (data / "labelled_clips").glob("*/*.mp4"))
    inputs = tuple(str((data / name).absolute()) for name in ("clips", "images", "unlabelled"))
    runner = Runner(workers=1, console=Console(quiet=True))
    config = Config(select=SelectConfig(per_source=per_source))
    job = Job(
        inputs=(*inputs, *clips),
        labelled=data,
        output=folder,
        target=target,
        config=config,
        runner=runner,
        seed=seed,
    )
    stages = take(job)
    chosen = pa.concat_tables(iter_tables(stages["chosen"].uris(), ["sample_id"])).column("sample_id").to_pylist()
    probe = stages["probe"]
    unthinned = replace(job.config.embed, thin=ThinConfig(gap_seconds=0, still_seconds=0))
    work = embed_work(replace(job.config, embed=unthinned))
    embed = job.stage(work, [(Span(uri=uri),) for uri in probe.uris()], probe)
    frames, vectors = [], []
    for probed, embedded in zip(iter_tables(probe.uris()), iter_tables(embed.uris()), strict=True):
        frames.append(probed.take(embedded.column("probe_row")))
        vectors.append(vectors_of(embedded))
    pool = pool_of(pa.concat_tables(frames), np.concatenate(vectors), data)
    row = {sample_id: number for number, sample_id in enumerate(pool.ids)}
    return pool, np.array([row[sample_id] for sample_id in chosen], np.int64), stages["assign"].rows


def random_rows(pool: Pool, target: int, rng: np.random.Generator) -> Rows:
    """Any frames."""
    return rng.choice(len(pool.ids), target, replace=False)


def flat_rows(pool: Pool, target: int, rng: np.random.Generator) -> Rows:
    """The frame nearest to each centroid of flat k-means; random ones for centroids that share a frame."""
    seed = int(rng.integers(1 << 30))
    model = faiss.Kmeans(pool.vectors.shape[1], target, niter=25, seed=seed, min_points_per_centroid=1)
    model.train(pool.vectors)
    rows = np.unique(nearest(np.asarray(model.centroids, np.float32), pool.vectors)[1][:, 0])
    rest = np.setdiff1d(np.arange(len(pool.ids)), rows)
    return np.concatenate([rows, rng.choice(rest, target - len(rows), replace=False)])


def source_rows(pool: Pool, target: int, rng: np.random.Generator) -> Rows:
    """From every source in turn a random frame."""
    sizes = np.bincount(pool.source)
    order = rng.permutation(len(sizes))
    quotas = np.empty(len(sizes), np.int64)
    quotas[order] = water_fill(sizes[order], target)
    drawn = [rng.choice(np.flatnonzero(pool.source == at), quota, replace=False) for at, quota in enumerate(quotas)]
    return np.concatenate(drawn)


PEERS: dict[str, Draw] = {"random": random_rows, "flat k-means": flat_rows, "uniform over sources": source_rows}


def effective_number(classes: Rows) -> float:
    """Exp of the entropy of the known classes."""
    counts = np.bincount(classes[classes >= 0])
    p = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-(p * np.log(p)).sum()))


def covered(pool: Rows, chosen: Rows) -> float:
    """Share of the pool's known classes that are chosen."""
    return len(np.unique(chosen[chosen >= 0])) / len(np.unique(pool[pool >= 0]))


def figures(pool: Pool, rows: Rows) -> dict[str, float]:
    """All that is measured of a choice."""
    splits = {"sources": pool.source, **pool.labels}
    found = {name: covered(classes, classes[rows]) for name, classes in splits.items()}
    found |= {f"{name} eff": effective_number(classes[rows]) for name, classes in splits.items()}
    order = rows[np.lexsort((pool.seconds[rows], pool.source[rows]))]
    with np.errstate(invalid="ignore"):
        near = (np.diff(pool.seconds[order]) < NEAR_SECONDS - 1e-6) & (np.diff(pool.source[order]) == 0)
    found["redundant"] = float((np.append(near, False) | np.insert(near, 0, False)).mean())
    vectors = pool.vectors[rows]
    found["near-duplicates"] = float((np.triu(vectors @ vectors.T, 1) > NEAR_COSINE).sum())
    return found


def show(console: Console, measured: Mapping[str, Sequence[Mapping[str, float]]], pool: Pool) -> None:
    """The table, a row per figure."""
    table = Table("figure", *measured, "all probed")
    everything = figures(pool, np.arange(len(pool.ids)))
    for name in (*COVERAGE, *WASTE):
        digits = 0 if name == "near-duplicates" else 1 if name.endswith("eff") else 3
        cells = [cell([m[name] for m in runs], digits) for runs in measured.values()]
        table.add_row(name, *cells, f"{everything[name]:.{digits}f}")
    for name in [label for label in pool.labels if label != "repos"]:
        runs_of = [
            cell([m[f"{name} eff"] for m in runs], 2) + f"  {np.mean([m[name] for m in runs]):.0%}"
            for runs in measured.values()
        ]
        table.add_row(f"classes of {name}", *runs_of, f"{everything[f'{name} eff']:.2f}")
    console.print(table)
    console.print("* computed from pixels, and balanced by ours; the other classes are told by the manifest alone")


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and, of several runs, the interval of the middle 95 %."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def verdicts(measured: Mapping[str, Sequence[Mapping[str, float]]], pool: Pool) -> list[str]:
    """Per figure and peer whether ours is better than the mean of the peer's seeds."""
    ours = measured["ours"][0]
    told = [f"{name} eff" for name in pool.labels]
    lines = []
    for peer in PEERS:
        mean = {name: float(np.mean([run[name] for run in measured[peer]])) for name in ours}
        names = ["sources", "sources eff", *told]
        worse = [name for name in names if ours[name] < mean[name] - 1e-9]
        worse += [name for name in WASTE if ours[name] > mean[name] + 1e-9]
        lines.append(f"{'met    ' if not worse else 'NOT MET'} ours better or equal to {peer} in all figures")
        lines[-1] += f"; worse in {', '.join(worse)}" if worse else ""
    return lines


def main() -> None:
    """Chooses, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, default=300, help="frames to choose")
    parser.add_argument("--seeds", type=int, default=20, help="runs of every peer")
    parser.add_argument("--seed", type=int, default=0, help="of our job")
    usual = SelectConfig().per_source
    parser.add_argument(
        "--per-source", type=int, default=usual, help="select.per_source of our job; default: %(default)s"
    )
    flags = parser.parse_args()
    one_thread()
    faiss.omp_set_num_threads(1)
    data = Path(os.path.normpath((SHARED / "data").absolute()))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pool, chosen, left = by_job(data, folder, flags.target, flags.seed, flags.per_source)
    spent = time.process_time() - start
    console = Console(width=150)
    sources = len(np.unique(pool.source))
    console.print(
        f"{len(pool.ids)} probed frames of {sources} sources; {left} are left for ours; {len(chosen)} chosen; "
        f"{spent:.0f} CPU s of this process"
    )
    measured = {"ours": [figures(pool, chosen)]}
    for name, draw in PEERS.items():
        rngs = [np.random.default_rng(seed) for seed in range(flags.seeds)]
        measured[name] = [figures(pool, draw(pool, flags.target, rng)) for rng in rngs]
    show(console, measured, pool)
    console.print("\n".join(verdicts(measured, pool)), highlight=False)


if __name__ == "__main__":
    main()
