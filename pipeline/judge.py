"""The judge: students trained across folds that hold out whole clusters find the labels the teacher got wrong.

::

    gold    (driver)  the human masks that students train on, at student size
    audit   (driver)  human masks of chosen frames, held against their labels (``pipeline.audited``)
    folds   (driver)  who judges whom
    fold    (Beam)    one student per fold, trained on gold and on the pseudo labels of the other folds
    score   (Beam)    each label against the student that never saw its cluster
    verdict (driver)  keep, drop, hold, correct or weight, per fold and cluster (``pipeline.verdicts``)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.boundary import boundary_iou
from evaluation.masks import iou
from manifests.mask import decode_mask, decode_soft, encode_soft
from pipeline import storage
from pipeline.audited import AuditRules
from pipeline.embed import decode_jpeg
from pipeline.errors import StageError
from pipeline.kmeans import unit_rows
from pipeline.publish import MAX_PIXELS
from pipeline.stage import Output, Task, iter_tables, not_identity, read_manifest, read_span
from students.agreement import Features, Rules, features
from students.data import Example
from students.folds import Folds, assign_folds
from students.train import Ensemble, StudentTrainConfig, train_student

FOLDS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("fold", pa.int16(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
    ]
)
FEATURES = tuple(f.name for f in dataclasses.fields(Features))
SCORED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("fold", pa.int16(), nullable=False),
        pa.field("student", pa.binary()),
        pa.field("student_iou", pa.float32()),
        pa.field("student_boundary_iou", pa.float32()),
        *(pa.field(name, pa.float64()) for name in FEATURES),
    ]
)
VERDICTS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("q", pa.float32()),
        pa.field("gate", pa.string()),
        pa.field("calibrated", pa.bool_()),
        pa.field("audited", pa.bool_(), nullable=False),
    ]
)
"""What becomes of each chosen row; ``audited`` rows are published with the mask that a person drew, of a random sample
or from a list: the reasons tell which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Settings of the judge.

    Attributes:
        folds: students to train, at most; each judges the clusters it never saw.
        similar: cosine above which two groups of clusters go to one fold.
        examples: most pseudo labels a student trains on (the smallest hashes); about 0.2 MB of memory each.
        policy: which actions are allowed; ``auto`` chooses per label, and drops nothing where q is not calibrated.
        gate_iou: median IoU of student and labels in a cluster below which nobody knows who is wrong; a student that
            knows no more than where people usually are reaches about .5 on video calls.
        audit_iou: IoU with the human mask below which an audited label is bad.
        audit_part: share of both masks that a label may lack, or have too much, in one connected part.
        audit_agree: IoU below which two people's masks of one frame contradict each other.
        student: the students' training.
        rules: thresholds of the verdicts.
    """

    folds: int = 4
    similar: float = 0.97
    examples: int = 6_000
    policy: Literal["auto", "correct", "drop", "weight"] = "auto"
    gate_iou: float = 0.6
    audit_iou: float = 0.8
    audit_part: float = 0.05
    audit_agree: float = 0.8
    student: StudentTrainConfig = field(default_factory=StudentTrainConfig)
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.folds < 2 or self.examples < 1:
            raise ValueError(f"judge needs folds >= 2 and examples >= 1, got {self.folds} and {self.examples}")
        if not (-1 <= self.similar <= 1 and 0 <= self.gate_iou <= 1):
            raise ValueError(
                f"judge.similar must be in [-1, 1] and gate_iou in [0, 1], got {self.similar}, {self.gate_iou}"
            )
        self.audit_rules()

    def audit_rules(self) -> AuditRules:
        """What an audit finds bad."""
        return AuditRules(iou=self.audit_iou, part=self.audit_part, agree=self.audit_agree)


def fold_tables(chosen: pa.Table, groups: NDArray[np.int64], config: JudgeConfig) -> tuple[pa.Table, dict[str, Any]]:
    """Who judges whom.

    Args:
        chosen: the chosen frames (sample_id, group_id, vector, key).
        groups: (N,) coarse cluster of each; what a fold holds out.
        config: number of folds and what counts as similar.

    Returns:
        The table of folds (schema ``FOLDS``) and facts: how many folds, which clusters each holds out, why none.
    """
    sources = np.array(chosen.column("group_id").to_pylist(), dtype=np.str_)
    vectors = chosen.column("vector").combine_chunks()
    matrix = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(vectors), -1)
    means = [
        matrix[groups == g].mean(axis=0) if (groups == g).any() else matrix.mean(axis=0)
        for g in range(groups.max() + 1)
    ]
    folds = assign_folds(groups, sources, unit_rows(np.stack(means)), config.folds, config.similar)
    columns = {
        "sample_id": chosen.column("sample_id"),
        "cluster": groups,
        "fold": folds.fold,
        "key": chosen.column("key"),
    }
    facts = {
        "folds": folds.count,
        "held": [list(h) for h in folds.held_clusters],
        "similar_across": [list(pair) for pair in folds.leaks],
        "reason": folds.reason,
    }
    return pa.table(columns).cast(FOLDS), facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The work of the fold stage: trains one student; a task's spans are (folds, gold), its index is the fold."""

    name: ClassVar[str] = "fold"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "opencv-python-headless", "pyarrow", "torch")

    student: StudentTrainConfig
    examples: int
    seed: int
    labels: str = not_identity()

    def open(self) -> Callable[[Task], Output]:
        """The function that trains a student."""
        return self._run

    def _run(self, task: Task) -> Output:
        folds = _read_folds(read_span(task.spans[0]))
        table = read_span(task.spans[0], ["key"])
        examples = gold_examples(read_span(task.spans[1]))
        examples += self._pseudo_examples(~folds.purged(task.index), table.column("key").to_numpy())
        target = storage.join(task.folder, "students", f"fold-{task.index}")
        with storage.working_folder(target) as local:
            paths = train_student(examples, self.student, seed=self.seed + task.index, folder=local)
            files = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
        rows = [
            {"fold": task.index, "file": f"students/fold-{task.index}/{name}", "sha256": sha} for name, sha in files
        ]
        return Output(table=pa.Table.from_pylist(rows), counts={"examples": len(examples)})

    def _pseudo_examples(self, allowed: NDArray[np.bool_], keys: NDArray[np.uint64]) -> list[Example]:
        done = read_manifest(self.labels)
        if done is None:
            raise StageError(f"the label stage {self.labels} is not finished")
        faults = [fault for part in iter_tables(done.uris(), ["fault"]) for fault in part.column("fault").to_pylist()]
        rows = np.flatnonzero(allowed & np.array([fault is None for fault in faults], np.bool_))
        wanted = pa.array(rows[np.argsort(keys[rows], kind="stable")][: self.examples], pa.int64())
        examples = []
        for part in iter_tables(done.uris(), ["row", "picture", "soft"]):
            for row in part.filter(pc.is_in(part.column("row"), wanted)).to_pylist():
                target = decode_soft(row["soft"], MAX_PIXELS) >= 0.5
                examples.append(Example(image=decode_jpeg(row["picture"]), target=target.astype(np.uint8)))
        return examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The work of the score stage; a task's spans are (label part, the rows of the folds that it holds)."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "opencv-python-headless", "pyarrow", "torch")

    students: str = not_identity()

    def open(self) -> Callable[[Task], Output]:
        """Loads the students of all folds and gives the function that scores a task's labels."""
        done = read_manifest(self.students)
        if done is None:
            raise StageError(f"the fold stage {self.students} is not finished")
        files: dict[int, list[tuple[str, str]]] = {}
        for table in iter_tables(done.uris()):
            for row in table.to_pylist():
                files.setdefault(row["fold"], []).append((done.uri(row["file"]), row["sha256"]))
        ensembles = {fold: _load_ensemble(listed) for fold, listed in sorted(files.items())}
        return functools.partial(self._run, ensembles)

    def _run(self, ensembles: Mapping[int, Ensemble], task: Task) -> Output:
        labels = read_span(task.spans[0], ["row", "sample_id", "picture", "soft"]).to_pylist()
        folds = read_span(task.spans[1], ["fold"]).column("fold").to_pylist()
        rows = [_score(label, fold, ensembles.get(fold)) for label, fold in zip(labels, folds, strict=True)]
        return Output(table=pa.Table.from_pylist(rows, schema=SCORED), row_group_rows=64, plain=["student"])


def _read_folds(table: pa.Table) -> Folds:
    clusters = table.column("cluster").to_numpy().astype(np.int64)
    fold = table.column("fold").to_numpy().astype(np.int64)
    held = tuple(tuple(np.unique(clusters[fold == f]).tolist()) for f in range(int(fold.max(initial=-1)) + 1))
    return Folds(clusters=clusters, fold=fold, held_clusters=held)


def gold_examples(table: pa.Table) -> list[Example]:
    """The examples of a gold table, whatever their role."""
    examples = []
    for row in table.to_pylist():
        target = decode_mask(row["mask"], MAX_PIXELS).astype(np.uint8)
        ignore = decode_mask(row["ignore"], MAX_PIXELS)
        examples.append(Example(image=decode_jpeg(row["picture"]), target=target, ignore=ignore, gold=True))
    return examples


def _load_ensemble(files: Sequence[tuple[str, str]]) -> Ensemble:
    with storage.local_copies([uri for uri, _ in files]) as paths:
        for path, (uri, sha256) in zip(paths, files, strict=True):
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise StageError(f"{uri} has changed since it was trained; remove its folder and run again")
        return Ensemble.load(paths)


def _score(label: Mapping[str, Any], fold: int, ensemble: Ensemble | None) -> dict[str, Any]:
    row = {"row": label["row"], "sample_id": label["sample_id"], "fold": fold}
    if ensemble is None or label["picture"] is None:
        return row
    teacher = decode_soft(label["soft"], MAX_PIXELS)
    prediction = ensemble.predict([decode_jpeg(label["picture"])])[0]
    mask, person = teacher >= 0.5, prediction.probability >= 0.5
    return {
        **row,
        "student": encode_soft(prediction.probability),
        "student_iou": iou(mask, person),
        "student_boundary_iou": boundary_iou(mask, person),
        **dataclasses.asdict(features(teacher, prediction.probability, prediction.stability)),
    }
