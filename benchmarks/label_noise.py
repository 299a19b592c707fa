"""Does the judge find real mistakes in real masks? Masks that a vendor sold, beside notes of what is wrong with them.

Usage: python -m benchmarks.label_noise [--seeds I …] [--steps N] [--side N] [--clusters K] [--output DIR]

Reads the labelled photographs of ``$CURATE_SHARED/data``; its MANIFEST.json names masks that miss people, lack parts or
cover things (``label_flags``). The masks are judged like a teacher's labels, and nothing else anchors the students: on
folds that hold out clusters of similar pictures, on random folds, and with an audit of a third of the masks (the notes
are its truth). Printed: average precision (AP) of each ranking against the notes, over the photographs not of ``ccp_``
(there, passers-by are unlabelled as a rule, and no note says where), with 95 % intervals from resampled photographs,
of scores averaged over the seeds; and the same with minor mistakes left out. ``--output`` holds two sheets to look at:
the twenty masks that the judge doubts most, whatever their source, and twenty that it trusts.
Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score

from benchmarks.planted_bias import FOLDS, TINY, Study, compared, judge, out_of_fold, random_folds
from benchmarks.planted_world import GOLD, POOL, Sample
from benchmarks.shared import SHARED
from evaluation.picture import overlay
from manifests.labelled import load_labelled, read_labelled
from pipeline.embed import descriptor, shrink
from pipeline.process import prepare_process
from students.folds import assign_folds
from students.model import StudentConfig
from students.train import StudentPrediction, StudentTrainConfig

Floats = NDArray[np.float64]
LONG_SIDE = 192
RESAMPLES = 2000
RANKINGS = {
    "confidence (of a network of random folds)": "confidence",
    "confident learning (random folds, softmin)": "random_softmin",
    "random folds, confident disagreement": "random_confident",
    "held-out clusters, softmin": "held_softmin",
    "held-out clusters, confident disagreement": "held_confident",
    "judge without audit": "judge_mixture",
    "judge with an audit of a third": "judge_audit",
}


def notes() -> dict[str, list[str]]:
    """Name of a photograph -> what is wrong with its mask; "ambiguous" is not wrong."""
    entries = json.loads((SHARED / "data" / "MANIFEST.json").read_text())["files"]
    flagged = {Path(e["file"]).stem: e.get("label_flags") or [] for e in entries if e["file"].startswith("images/")}
    return {name: [f for f in flags if not f.startswith("ambiguous")] for name, flags in flagged.items()}


def photographs(clusters: int) -> tuple[list[str], list[Sample]]:
    """Names and samples, small; clusters by k-means on the descriptor that the pipeline starts with."""
    wrong, names, loaded = notes(), [], []
    for labelled in read_labelled(SHARED / "data"):
        image, mask, _ignore = load_labelled(labelled)
        picture = shrink(image, LONG_SIDE)
        size = (picture.shape[1], picture.shape[0])
        small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        names.append(labelled.name)
        loaded.append((picture, np.asarray(small)))
    vectors = np.stack([descriptor(picture) for picture, _ in loaded])
    groups = KMeans(clusters, random_state=0, n_init=4).fit_predict(vectors)
    samples = [
        Sample(image=i, truth=m, label=m, bad=bool(wrong.get(n)), cluster=int(g), source=n)
        for n, (i, m), g in zip(names, loaded, groups, strict=True)
    ]
    return names, samples


def third(names: Sequence[str]) -> NDArray[np.int64]:
    """The audited photographs: one in three, by a hash; none of ``ccp_``, whose passers-by no note names."""
    known = [i for i, n in enumerate(names) if not n.startswith("ccp_")]
    return np.array([i for i in known if hashlib.sha256(f"audit|{names[i]}".encode()).digest()[0] % 3 == 0])


def scores(study: Study, names: Sequence[str], clusters: int) -> tuple[dict[str, Floats], list[StudentPrediction]]:
    """Every ranking of one seed, higher where a mask is doubted; and what the judge's students say."""
    sources = np.array(names)
    folds = assign_folds(study.clusters, sources, np.eye(clusters), FOLDS, 0.97).fold
    by_chance = out_of_fold(study, "random", random_folds(study))
    said = out_of_fold(study, "held", folds)
    at_random, held = compared(study, by_chance), compared(study, said)
    sure = [float(np.maximum(p.probability, 1 - p.probability).mean()) for p in by_chance]
    none = np.array([], np.int64)
    return {
        "confidence": -np.array(sure),
        "random_softmin": np.array([-f.softmin for f in at_random]),
        "random_confident": np.array([f.miss + f.extra for f in at_random]),
        "held_softmin": np.array([-f.softmin for f in held]),
        "held_confident": np.array([f.miss + f.extra for f in held]),
        "judge_mixture": judge(study, held, folds, none, "auto").q,
        "judge_audit": judge(study, held, folds, third(names), "auto").q,
    }, said


def interval(score: Floats, wrong: NDArray[np.bool_]) -> str:
    """AP and its 95 % percentile interval over resampled photographs."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(wrong), (RESAMPLES, len(wrong)))
    found = [average_precision_score(wrong[d], score[d]) for d in draws if wrong[d].any()]
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{average_precision_score(wrong, score):.3f} [{low:.3f}, {high:.3f}]"


def show(mean: Mapping[str, Floats], names: Sequence[str]) -> None:
    """Prints the table."""
    wrong = notes()
    seen = ~np.array([n.startswith("ccp_") for n in names]) & ~np.isin(np.arange(len(names)), third(names))
    any_flag = np.array([bool(wrong.get(n)) for n in names])
    major = np.array([any(not f.startswith("over_minor") for f in wrong.get(n, [])) for n in names])
    print(f"{int(seen.sum())} photographs that are neither of ccp nor audited; {int(any_flag[seen].sum())} noted")
    print(f"{'ranking':45}{'AP, all notes':>24}{'AP, minor ones left out':>26}")
    for title, key in RANKINGS.items():
        kept = seen & (major | ~any_flag)
        print(f"{title:45}{interval(mean[key][seen], any_flag[seen]):>24}{interval(mean[key][kept], major[kept]):>26}")
    print(f"{'by chance':45}{any_flag[seen].mean():>24.3f}{major[seen & (major | ~any_flag)].mean():>26.3f}")


def sheet(samples: Sequence[Sample], said: Sequence[StudentPrediction], rows: Sequence[int], path: Path) -> None:
    """Pairs of pictures, four in a row: the mask, and what the student of the last seed sees."""
    tiles = []
    for row in rows:
        sample, person = samples[row], said[row].probability >= 0.5
        views = (overlay(sample.image, sample.label), overlay(sample.image, person))
        square = [cv2.copyMakeBorder(v, 0, 200 - v.shape[0], 0, 200 - v.shape[1], cv2.BORDER_CONSTANT) for v in views]
        tiles.append(np.hstack(square))
    lines = [np.hstack(tiles[at : at + 4]) for at in range(0, len(tiles), 4)]
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR))


def main() -> None:
    """Trains what is not there yet, prints the table and draws the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="the small student of benchmarks.planted_bias")
    parser.add_argument("--output", type=Path, default=Path("label_noise"))
    values = parser.parse_args()
    torch.set_num_threads(1)
    names, samples = photographs(values.clusters)
    student = TINY if values.tiny else StudentConfig()
    config = StudentTrainConfig(steps=values.steps, lr=0.02, side=values.side, student=student)
    every: dict[str, list[Floats]] = {}
    for seed in values.seeds:
        study = Study(parts={POOL: samples, GOLD: []}, seed=seed, recipe=config, folder=values.output / str(seed))
        found, said = scores(study, names, values.clusters)
        for key, score in found.items():
            every.setdefault(key, []).append(rankdata(score) / len(score))
        print(f"seed {seed} is done", flush=True)
    mean = {key: np.mean(ranks, axis=0) for key, ranks in every.items()}
    show(mean, names)
    order = np.argsort(-mean["judge_mixture"], kind="stable")
    for name, rows in (("doubted", order[:20]), ("trusted", order[len(order) // 2 :][:20])):
        sheet(samples, said, rows.tolist(), values.output / f"{name}.png")
        print(f"{name}: " + ", ".join(f"{names[i]}{'*' * bool(samples[i].bad)}" for i in rows.tolist()))


if __name__ == "__main__":
    prepare_process()
    main()
