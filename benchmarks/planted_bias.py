"""Does the judge find planted mistakes, and does what it does about them help? Beside its peers, over seeds.

Usage: python -m benchmarks.planted_bias [--world drawn|real …] [--seeds N] [--steps N] [--output DIR]

The worlds are those of ``benchmarks.planted_world``. In each seed, students of one recipe are trained: one on all
labels (its loss, and ST++'s stability of its checkpoints), three on random folds (confident learning's softmin, and the
judge's features without its folds), three on folds that hold out clusters (the judge). The teacher's confidence is a
real one: of a network trained on other pictures with the same mistakes.

Printed: average precision (AP) of every ranking against the planted mistakes, with intervals over seeds; the area under
the ROC curve in each cluster; gates and verdicts; then what students are worth that are trained on what each filter
leaves, on clean test pictures: IoU per cluster, the share of the gap from "no filter" to the true labels that is closed
in the harmed clusters, the change of the worst ordinary cluster, the benefit ratio (Zhu et al., ICLR 2022), and the IoU
of the labels themselves with the truth.

Twelve labels of each cluster are audited: the judge may know whether these are right, and no ranking is measured on
them; their true masks are not used, for of a million labels an audit mends none worth counting. Students of the last
table see no gold, which would be a ninth of so small a pool. The judge's prior slopes were rounded from fits to seed 0
of both worlds, so the other seeds are the honest ones.
Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.planted_world import (
    GOLD,
    HARD,
    HARMED,
    NAMES,
    ORDINARY,
    POOL,
    SIDE,
    TEST,
    UNLEARNABLE,
    WORLDS,
    Mask,
    Sample,
)
from pipeline.process import prepare_process
from students.agreement import Audit, Decision, Features, Policy, correct, corruption, decide, features, gate
from students.data import Example
from students.folds import assign_folds
from students.model import StudentConfig
from students.train import Ensemble, StudentPrediction, StudentTrainConfig, train_student

Floats = NDArray[np.float64]
COUNTS = {POOL: 48, GOLD: 6, TEST: 30, "teacher": 30}
AUDITED = 12
FOLDS = 3
TINY = StudentConfig(channels=(8, 8, 16, 24, 40, 56), depths=(1, 1, 1, 2, 1), expansions=(1, 3, 3, 3, 3))
PEERS = {
    "teacher's confidence": "confidence",
    "ST++ stability": "stpp",
    "small loss": "loss",
    "confident learning (random folds, softmin)": "random_softmin",
    "random folds, IoU": "random_iou",
    "random folds, confident disagreement": "random_confident",
    "held-out clusters, softmin": "held_softmin",
    "held-out clusters, IoU": "held_iou",
    "held-out clusters, confident disagreement": "held_confident",
    "judge without audit": "judge_mixture",
    "judge with audit": "judge_audit",
}


def recipe(steps: int) -> StudentTrainConfig:
    """How every student of the worlds is trained."""
    return StudentTrainConfig(steps=steps, lr=0.02, side=SIDE, student=TINY)


class Thirds(StudentTrainConfig):
    """Checkpoints after each third of the steps, as ST++ compares them."""

    @classmethod
    def of(cls, config: StudentTrainConfig) -> Thirds:
        """The same training but for its checkpoints."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)})

    def late_steps(self) -> tuple[int, ...]:
        """See the base."""
        return (self.steps // 3, 2 * self.steps // 3, self.steps)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Study:
    """One seed of one world: its samples, and trainings kept below a folder."""

    parts: Mapping[str, Sequence[Sample]]
    seed: int
    recipe: StudentTrainConfig
    folder: Path

    @property
    def pool(self) -> Sequence[Sample]:
        """The samples whose labels are judged."""
        return self.parts[POOL]

    @property
    def clusters(self) -> NDArray[np.int64]:
        """(n,) cluster of each sample of the pool."""
        return np.array([s.cluster for s in self.pool], np.int64)

    def gold(self) -> list[Example]:
        """The human masks."""
        return [Example(image=s.image, target=s.truth.astype(np.uint8), gold=True) for s in self.parts[GOLD]]

    def train(self, name: str, labels: Sequence[Example], config: StudentTrainConfig) -> tuple[Path, ...]:
        """The checkpoints of a student trained on labels and gold."""
        gold = self.gold()
        return train_student([*gold, *labels], config, seed=self.seed, folder=self.folder / name)


def example(sample: Sample, label: Mask | None = None, ignore: Mask | None = None, weight: float = 1.0) -> Example:
    """A sample with its own or another label."""
    target = (sample.label if label is None else label).astype(np.uint8)
    return Example(image=sample.image, target=target, ignore=ignore, weight=weight)


def iou(one: Mask, other: Mask, valid: Mask | None = None) -> float:
    """IoU, 1 where both are empty."""
    inside = np.ones_like(one) if valid is None else valid
    union = int(((one | other) & inside).sum())
    return float((one & other & inside).sum()) / union if union else 1.0


def predictions(paths: Sequence[Path], samples: Sequence[Sample]) -> list[StudentPrediction]:
    """What the checkpoints say of each picture."""
    return Ensemble.load(paths).predict([s.image for s in samples])


def out_of_fold(study: Study, kind: str, folds: NDArray[np.int64]) -> list[StudentPrediction]:
    """Each sample judged by the student that saw no sample of its fold."""
    found: list[StudentPrediction | None] = [None] * len(folds)
    for fold in np.unique(folds).tolist():
        rest = [example(s) for s, f in zip(study.pool, folds, strict=True) if f != fold]
        paths = study.train(f"{kind}{fold}", rest, study.recipe)
        mine = np.flatnonzero(folds == fold).tolist()
        for at, prediction in zip(mine, predictions(paths, [study.pool[i] for i in mine]), strict=True):
            found[at] = prediction
    return [f for f in found if f is not None]


def compared(study: Study, said: Sequence[StudentPrediction]) -> list[Features]:
    """Features of each label against a student's prediction."""
    return [
        features(s.label.astype(np.float32), p.probability, p.stability) for s, p in zip(study.pool, said, strict=True)
    ]


def cluster_folds(study: Study) -> NDArray[np.int64]:
    """The judge's folds; no two clusters look alike."""
    sources = np.array([s.source for s in study.pool])
    return assign_folds(study.clusters, sources, np.eye(len(NAMES)), FOLDS, 0.97).fold


def random_folds(study: Study) -> NDArray[np.int64]:
    """Folds by picture, as confident learning has them; views of one photograph stay together."""
    rng = np.random.default_rng([study.seed, 99])
    _, source = np.unique([s.source for s in study.pool], return_inverse=True)
    return np.asarray(rng.permutation(int(source.max()) + 1)[source] % FOLDS, np.int64)


def audited(study: Study) -> NDArray[np.int64]:
    """The audited samples: so many of each cluster, at random."""
    rng = np.random.default_rng([study.seed, 98])
    own = [np.flatnonzero(study.clusters == c) for c in range(len(NAMES))]
    return np.sort(np.concatenate([rng.permutation(rows)[:AUDITED] for rows in own]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """The judge's word on the pool, fold by fold."""

    q: Floats
    gates: Mapping[int, str]
    decisions: Sequence[Decision]


def judge(
    study: Study, found: Sequence[Features], folds: NDArray[np.int64], rows: NDArray[np.int64], policy: Policy
) -> Judged:
    """q, gates and decisions, with the truth of the audited rows (none: without an audit)."""
    q = np.zeros(len(found))
    gates: dict[int, str] = {}
    decisions: dict[int, Decision] = {}
    bad = np.array([s.bad for s in study.pool])
    for fold in np.unique(folds).tolist():
        mine = np.flatnonzero(folds == fold)
        inside = rows[folds[rows] == fold]
        audit = Audit(features=[found[i] for i in inside], bad=bad[inside], clusters=study.clusters[inside])
        samples, clusters = [found[i] for i in mine], study.clusters[mine]
        given = audit if len(inside) else None
        rated = corruption(samples, clusters, given)
        outcome = gate(samples, clusters, rated, given)
        ids = [f"{i:05d}" for i in mine]
        made = decide(samples, clusters, rated, outcome, ids=ids, policy=policy)
        q[mine] = rated.q
        gates |= {c: g.outcome for c, g in outcome.items()}
        decisions |= dict(zip(mine.tolist(), made, strict=True))
    return Judged(q=q, gates=gates, decisions=[decisions[i] for i in range(len(found))])


def teacher_confidence(study: Study) -> Floats:
    """How sure a network that learnt the same mistakes elsewhere is of each label, where either sees a person."""
    paths = study.train("teacher", [example(s) for s in study.parts["teacher"]], study.recipe)
    sure = []
    for sample, prediction in zip(study.pool, predictions(paths, study.pool), strict=True):
        p = np.where(sample.label, prediction.probability, 1 - prediction.probability)
        sure.append(float(p[sample.label | (prediction.probability > 0.5)].mean()) if sample.label.any() else 1.0)
    return np.nan_to_num(np.array(sure), nan=1.0)


def own_student(study: Study) -> tuple[Floats, Floats]:
    """Loss and ST++ stability of a student trained on every label."""
    paths = study.train("all", [example(s) for s in study.pool], Thirds.of(study.recipe))
    early, middle, last = (predictions([path], study.pool) for path in paths)
    loss, stable = [], []
    for s, a, b, c in zip(study.pool, early, middle, last, strict=True):
        p = np.clip(np.where(s.label, c.probability, 1 - c.probability), 1e-6, 1)
        loss.append(float(-np.log(p).mean()))
        end = c.probability >= 0.5
        stable.append((iou(a.probability >= 0.5, end) + iou(b.probability >= 0.5, end)) / 2)
    return np.array(loss), np.array(stable)


def filters(
    study: Study, scores: Mapping[str, Floats], said: Sequence[StudentPrediction], verdicts: Mapping[str, Judged]
) -> dict[str, list[Example]]:
    """What each filter leaves to train on."""
    pool = study.pool
    n, refused = len(pool), sum(d.verdict in ("drop", "hold") for d in verdicts["drop"].decisions)
    fixed = [correct(s.label, p.probability) for s, p in zip(pool, said, strict=True)]
    gates = verdicts["auto"].gates

    def best(score: Floats, keep: int) -> list[Example]:
        return [example(pool[i]) for i in np.argsort(score, kind="stable")[:keep]]

    def decided(name: str, everywhere: bool) -> list[Example]:
        kept = []
        for s, mend, d in zip(pool, fixed, verdicts[name].decisions, strict=True):
            if d.verdict in ("drop", "hold"):
                continue
            mended = d.verdict == "correct" or (everywhere and gates[s.cluster] == "passed")
            kept.append(example(s, *mend, weight=d.weight) if mended else example(s, weight=d.weight))
        return kept

    return {
        "no filter": [example(s) for s in pool],
        "teacher's confidence, same budget": best(scores["confidence"], n - refused),
        "ST++, the better half": best(scores["stpp"], n // 2),
        "confident learning, same budget": best(scores["random_softmin"], n - refused),
        "judge: drop": decided("drop", everywhere=False),
        "judge: weight": decided("weight", everywhere=False),
        "judge: correct flagged": decided("correct", everywhere=False),
        "judge: correct flagged, drop the rest": decided("auto", everywhere=False),
        "judge: correct everywhere": [
            example(s, *mend) if gates[s.cluster] == "passed" else example(s)
            for s, mend in zip(pool, fixed, strict=True)
        ],
        "judge: correct everywhere, drop the rest": decided("auto", everywhere=True),
        "true labels": [example(s, s.truth) for s in pool],
        "gold alone": study.gold(),
    }


def test_ious(study: Study, name: str, kept: Sequence[Example]) -> list[float]:
    """Mean IoU with the truth per cluster of the test pictures, after training on what a filter leaves."""
    folder = study.folder / ("left-" + name.translate(str.maketrans(" :,'", "----")))
    paths = train_student(kept, replace(study.recipe, late_checkpoints=1), seed=study.seed, folder=folder)
    test = study.parts[TEST]
    said = predictions(paths, test)
    each = np.array([iou(p.probability >= 0.5, s.truth) for s, p in zip(test, said, strict=True)])
    cluster = np.array([s.cluster for s in test])
    return [float(each[cluster == c].mean()) for c in range(len(NAMES))]


def label_ious(study: Study, said: Sequence[StudentPrediction], judged: Judged) -> dict[str, float]:
    """Mean IoU of labels with the truth: as they are, and after correction (ignored pixels do not count)."""
    flagged, everywhere = [], []
    for s, p, d in zip(study.pool, said, judged.decisions, strict=True):
        mended, ignore = correct(s.label, p.probability)
        fixed, before = iou(mended, s.truth, ~ignore), iou(s.label, s.truth)
        flagged.append(fixed if d.verdict == "correct" else before)
        everywhere.append(fixed if judged.gates[s.cluster] == "passed" else before)
    before = float(np.mean([iou(s.label, s.truth) for s in study.pool]))
    return {"before": before, "flagged": float(np.mean(flagged)), "everywhere": float(np.mean(everywhere))}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What all students of a seed say, and the judge's words on it."""

    study: Study
    said: Sequence[StudentPrediction]
    scores: Mapping[str, Floats]
    verdicts: Mapping[str, Judged]
    blind: Judged


def find(study: Study) -> Found:
    """Every ranking, and the verdicts of every policy."""
    loss, stable = own_student(study)
    at_random = compared(study, out_of_fold(study, "random", random_folds(study)))
    folds = cluster_folds(study)
    said = out_of_fold(study, "held", folds)
    held, rows, none = compared(study, said), audited(study), np.array([], np.int64)
    policies: tuple[Policy, ...] = ("auto", "correct", "drop", "weight")
    verdicts = {policy: judge(study, held, folds, rows, policy) for policy in policies}
    blind = judge(study, held, folds, none, "auto")
    scores = {"confidence": -teacher_confidence(study), "stpp": -stable, "loss": loss}
    for name, found in (("random", at_random), ("held", held)):
        scores[f"{name}_softmin"] = np.array([-f.softmin for f in found])
        scores[f"{name}_iou"] = np.array([f.disagreement for f in found])
        scores[f"{name}_confident"] = np.array([f.miss + f.extra for f in found])
    scores |= {"judge_mixture": blind.q, "judge_audit": verdicts["auto"].q}
    return Found(study=study, said=said, scores=scores, verdicts=verdicts, blind=blind)


def detection(found: Found) -> dict[str, Any]:
    """What can be told before anything is trained on what the filters leave."""
    study, auto = found.study, found.verdicts["auto"]
    judged = np.setdiff1d(np.arange(len(study.pool)), audited(study))
    return {
        "detection": {name: _detection(study, score, judged) for name, score in found.scores.items()},
        "gates": {"audit": _named(auto.gates), "none": _named(found.blind.gates)},
        "verdicts": {"audit": _counts(study, auto), "none": _counts(study, found.blind)},
        "labels": label_ious(study, found.said, auto),
    }


def downstream(found: Found, skip: Sequence[str], say: Callable[[str], None]) -> dict[str, list[float]]:
    """Test IoU per cluster of a student trained on what each filter leaves."""
    result = {}
    for name, kept in filters(found.study, found.scores, found.said, found.verdicts).items():
        if name not in skip:
            before = time.process_time()
            result[name] = test_ious(found.study, name, kept)
            say(f"{name}: {np.mean(result[name]):.3f} ({time.process_time() - before:.0f} CPU s)")
    return result


def _named(gates: Mapping[int, str]) -> dict[str, str]:
    return {NAMES[c]: outcome for c, outcome in sorted(gates.items())}


def _counts(study: Study, judged: Judged) -> dict[str, dict[str, list[int]]]:
    """Cluster -> verdict -> labels that are right, and labels that are wrong."""
    table: dict[str, dict[str, list[int]]] = {name: {} for name in NAMES}
    for s, d in zip(study.pool, judged.decisions, strict=True):
        table[NAMES[s.cluster]].setdefault(d.verdict, [0, 0])[int(s.bad)] += 1
    return table


def _detection(study: Study, score: Floats, rows: NDArray[np.int64]) -> dict[str, Any]:
    """AP over the rows, and the area under the ROC curve in each cluster; the unlearnable one counts apart."""
    bad = np.array([s.bad for s in study.pool])
    seen = rows[study.clusters[rows] != UNLEARNABLE]
    areas = {}
    for cluster in range(len(NAMES)):
        mine = rows[study.clusters[rows] == cluster]
        if 0 < bad[mine].sum() < len(mine):
            areas[NAMES[cluster]] = float(roc_auc_score(bad[mine], score[mine]))
    return {
        "ap": float(average_precision_score(bad[seen], score[seen])),
        "ap_all": float(average_precision_score(bad[rows], score[rows])),
        "auroc": areas,
    }


# ── what is printed ───────────────────────────────────────────────────────────────────────────────────────────────


def interval(values: Sequence[float]) -> str:
    """Mean and its 95 % t interval over seeds."""
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return f"{found.mean():6.3f}"
    reach = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return f"{found.mean():6.3f} ± {reach:.3f}"


def gap_closed(found: Mapping[str, Sequence[float]], name: str, clusters: Sequence[int]) -> float:
    """Share of the gap from no filter to the true labels that is closed, of the mean IoU of some clusters."""
    mean = {key: float(np.mean([values[c] for c in clusters])) for key, values in found.items()}
    return (mean[name] - mean["no filter"]) / max(1e-9, mean["true labels"] - mean["no filter"])


def benefit_ratio(found: Mapping[str, Sequence[float]], name: str, cluster: int) -> float:
    """(IoU - IoU of gold alone) / (IoU of the true labels - IoU of gold alone), Zhu et al. (ICLR 2022), eq. 2.

    NaN where the true labels gain less than a point: there is nothing to share.
    """
    base = found["gold alone"][cluster]
    gain = found["true labels"][cluster] - base
    return (found[name][cluster] - base) / gain if gain >= 0.01 else float("nan")


def show(world: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Prints the tables of a world."""
    print(f"\n{world} world, {len(results)} seeds; mean ± 95 % t interval over seeds")
    areas = ("low light", "thin parts", "camouflage")
    print(f"{'ranking':45}{'AP':>16}{'AP, all clusters':>18}" + "".join(f"{'AUROC ' + a:>19}" for a in areas))
    for title, key in PEERS.items():
        rows = [r["detection"][key] for r in results]
        line = f"{title:45}{interval([r['ap'] for r in rows]):>16}{interval([r['ap_all'] for r in rows]):>18}"
        print(line + "".join(f"{interval([r['auroc'][a] for r in rows if a in r['auroc']]):>19}" for a in areas))
    for kind in ("audit", "none"):
        print(f"\nverdicts with {kind if kind == 'audit' else 'no audit'} (labels that are right / wrong), all seeds")
        for name in NAMES:
            gates = ", ".join(r["gates"][kind][name] for r in results)
            sums = {v: np.sum([r["verdicts"][kind][name].get(v, [0, 0]) for r in results], axis=0) for v in VERDICTS}
            print(f"  {name:12} gate {gates:30}" + "  ".join(f"{v} {a}/{b}" for v, (a, b) in sums.items()))
    labels = {key: [r["labels"][key] for r in results] for key in ("before", "flagged", "everywhere")}
    print("\nIoU of the labels with the truth: " + ", ".join(f"{k} {interval(v)}" for k, v in labels.items()))
    if "iou" in results[0]:
        _show_downstream([r["iou"] for r in results])


VERDICTS = ("keep", "weight", "correct", "hold", "drop")


def _show_downstream(found: Sequence[Mapping[str, Sequence[float]]]) -> None:
    seen = [c for c in range(len(NAMES)) if c != UNLEARNABLE]
    heads = ("IoU", "harmed", "gap closed", "ordinary", "worst ordinary", "hard", "benefit, harmed")
    print(f"\n{'trained on what is left by':42}" + "".join(f"{head:>17}" for head in heads))
    for name in found[0]:
        cells = [
            [float(np.mean([f[name][c] for c in seen])) for f in found],
            [float(np.mean([f[name][c] for c in HARMED])) for f in found],
            [gap_closed(f, name, HARMED) for f in found],
            [float(np.mean([f[name][c] - f["no filter"][c] for c in ORDINARY])) for f in found],
            [min(float(np.mean([f[name][c] - f["no filter"][c] for f in found])) for c in ORDINARY)],
            [f[name][HARD] - f["no filter"][HARD] for f in found],
            [float(np.nanmean([benefit_ratio(f, name, c) for c in HARMED])) for f in found],
        ]
        print(f"{name:42}" + "".join(f"{interval(cell):>17}" for cell in cells))
    print("ordinary, worst ordinary and hard: change of the IoU against no filter; the worst is of means over seeds")


def main() -> None:
    """Runs what is not there yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(WORLDS), nargs="+", default=sorted(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--skip", nargs="+", default=[], help="filters to leave out of the trainings, by name")
    parser.add_argument("--detect", action="store_true", help="rankings and verdicts alone")
    parser.add_argument("--output", type=Path, default=Path("planted_bias"))
    values = parser.parse_args()
    torch.set_num_threads(1)
    for world in values.world:
        results = []
        for seed in values.seeds:
            folder = values.output / world / f"{seed}-{values.steps}"
            study = Study(parts=WORLDS[world](seed, COUNTS), seed=seed, recipe=recipe(values.steps), folder=folder)
            bad = sum(s.bad for s in study.pool)
            print(f"{world} {seed}: {len(study.pool)} labels, {bad} with a planted mistake", flush=True)
            found = find(study)
            results.append(detection(found))
            if not values.detect:
                results[-1]["iou"] = downstream(found, values.skip, lambda text: print(f"  {text}", flush=True))
        show(world, results)


if __name__ == "__main__":
    prepare_process()
    main()
