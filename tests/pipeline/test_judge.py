"""Laws of the judge's students: none judges what it has seen, and all see the human masks that they may see."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.mask import decode_soft, encode_mask, encode_soft
from pipeline.embed import decode_jpeg, encode_jpeg
from pipeline.errors import StageError
from pipeline.gold import GOLD
from pipeline.judge import (
    FOLDS,
    SCORED,
    Fold,
    JudgeConfig,
    Score,
    _read_folds,
    _score,
    fold_tables,
)
from pipeline.label import LABELLED
from pipeline.stage import Done, Part, Span, iter_tables, write_manifest
from pipeline.step import write_tables
from students.train import Ensemble, StudentPrediction
from tests.pipeline.media import texture
from tests.pipeline.test_assign import finish
from tests.students.test_train import SHORT, ellipses

MOST = 1 << 20
Map = NDArray[np.float32]


# Folds ----------------------------------------------------------------------------------------------------------------


def chosen_table(groups: Sequence[int], sources: Sequence[int], seed: int = 0) -> tuple[pa.Table, NDArray[np.int64]]:
    """Chosen frames of which only what the folds look at is there."""
    rng = np.random.default_rng(seed)
    count = len(groups)
    vectors = rng.normal(size=(count, 3)).astype(np.float16)
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), 3)
    columns = {
        "sample_id": [f"{i:032x}" for i in range(count)],
        "group_id": [hashlib.sha256(bytes([s])).hexdigest() for s in sources],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind),
        "key": pa.array(rng.integers(0, 1 << 63, count).astype(np.uint64)),
    }
    return pa.table(columns), np.array(groups, np.int64)


DRAWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30)


@given(DRAWS, st.integers(2, 5), st.sampled_from([-1.0, 0.0, 0.9, 1.0]), st.integers(0, 99))
def test_no_student_judges_a_cluster_or_source_it_was_trained_on(
    draws: list[tuple[int, int]], folds: int, similar: float, seed: int
) -> None:
    groups, sources = np.array([g for g, _ in draws]), np.array([s for _, s in draws])
    chosen, coarse = chosen_table(groups.tolist(), sources.tolist(), seed)
    table, facts = fold_tables(chosen, coarse, JudgeConfig(folds=folds, similar=similar))
    assert table.schema.equals(FOLDS)
    fold = table.column("fold").to_numpy()
    read = _read_folds(table)
    assert facts["folds"] == read.count <= folds
    assert facts["held"] == [list(held) for held in read.held_clusters]
    assert (facts["reason"] != "") == (facts["folds"] == 0)
    assert np.isin(fold, range(facts["folds"]) if facts["folds"] else [-1]).all()
    for student in range(facts["folds"]):
        judged, seen = fold == student, ~read.purged(student)
        assert judged.any()
        assert not set(groups[judged]) & set(groups[seen])
        assert not set(sources[judged]) & set(sources[seen])


@given(DRAWS, st.randoms(use_true_random=False))
def test_the_order_of_the_frames_changes_no_fold(draws: list[tuple[int, int]], random: Any) -> None:
    chosen, groups = chosen_table([g for g, _ in draws], [s for _, s in draws])
    order = list(range(len(draws)))
    random.shuffle(order)
    table, facts = fold_tables(chosen, groups, JudgeConfig())
    shuffled, other = fold_tables(chosen.take(pa.array(order)), groups[order], JudgeConfig())
    assert shuffled.to_pylist() == table.take(pa.array(order)).to_pylist()
    assert other == facts


@pytest.mark.parametrize(
    ("groups", "sources", "reason"),
    [
        ([0, 0, 0], [0, 1, 2], "one cluster: nothing would be left to train on"),
        ([0, 1, 2], [4, 4, 4], "one source: its frames cannot be held out from each other"),
        ([0, 0, 1, 0, 0], [0, 0, 0, 1, 1], "all 2 sources lie mostly in cluster 0"),
        ([3], [0], "one source"),
    ],
)
def test_where_nobody_can_judge_it_is_said_why(groups: list[int], sources: list[int], reason: str) -> None:
    table, facts = fold_tables(*chosen_table(groups, sources), JudgeConfig())
    assert set(table.column("fold").to_pylist()) == {-1}
    assert (facts["folds"], facts["held"]) == (0, [])
    assert facts["reason"].startswith(reason)


# One score ------------------------------------------------------------------------------------------------------------


class Drawn(Ensemble):
    """A student whose answer was drawn."""

    def __init__(self, answer: Map) -> None:
        self.answer = answer

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[StudentPrediction]:
        assert [image.shape[:2] for image in images] == [self.answer.shape]
        return [StudentPrediction(probability=self.answer, stability=0.125)]


def label_row(soft: Map) -> dict[str, Any]:
    height, width = soft.shape
    return {
        "row": 7,
        "sample_id": "a",
        "picture": encode_jpeg(texture(1, height, width), 90),
        "soft": encode_soft(soft),
    }


def blobs(seed: int, height: int, width: int) -> Map:
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, 4)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)


MAPS = st.tuples(st.integers(0, 999), st.integers(8, 60), st.integers(8, 60))


@given(MAPS, st.integers(0, 999))
def test_a_score_compares_label_and_student(drawn: tuple[int, int, int], other: int) -> None:
    soft, answer = blobs(*drawn), blobs(other, *drawn[1:])
    row = _score(label_row(soft), 3, Drawn(answer))
    assert set(row) == set(SCORED.names)
    label, person = decode_soft(encode_soft(soft), MOST) >= 0.5, answer >= 0.5
    union = np.count_nonzero(label | person)
    assert row["student_iou"] == (np.count_nonzero(label & person) / union if union else 1)
    assert 0 <= row["student_boundary_iou"] <= 1
    assert (row["row"], row["sample_id"], row["fold"], row["stability"]) == (7, "a", 3, 0.125)
    assert row["teacher_area"] == pytest.approx(label.mean())
    assert row["student_area"] == pytest.approx(person.mean())
    np.testing.assert_allclose(decode_soft(row["student"], MOST), answer, atol=1 / 500)
    assert pa.Table.from_pylist([row], schema=SCORED).num_rows == 1


@given(MAPS)
def test_a_student_that_says_the_same_has_nothing_to_add(drawn: tuple[int, int, int]) -> None:
    soft = decode_soft(encode_soft(blobs(*drawn)), MOST)
    row = _score(label_row(soft), 0, Drawn(soft))
    assert (row["student_iou"], row["student_boundary_iou"]) == (1, 1)
    assert (row["miss"], row["extra"], row["doubt"], row["disagreement"]) == (0, 0, 0, 0)


def test_without_a_student_or_a_label_there_is_no_score() -> None:
    soft = blobs(1, 20, 20)
    bare = {"row": 7, "sample_id": "a", "fold": -1}
    assert _score(label_row(soft), -1, None) == bare
    assert _score(label_row(soft) | {"picture": None, "soft": None}, -1, Drawn(soft)) == bare


# Students -------------------------------------------------------------------------------------------------------------

QUICK = dataclasses.replace(SHORT, steps=3)
GROUPS = (0, 0, 0, 1, 1, 1, 2, 2)
BROKEN = 4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Label parts of ellipses, gold and folds in files."""

    folder: Path
    labels: Done
    folds: Done
    gold: Done

    def fold(self, name: str, config: JudgeConfig) -> Done:
        pair = (Span(uri=self.folds.uris()[0]), Span(uri=self.gold.uris()[0]))
        work = Fold(student=config.student, examples=config.examples, seed=0, labels=self.labels.folder)
        return finish(work, self.folder / name, [pair, pair])

    def score(self, name: str, students: Done) -> Done:
        starts = (0, 3, 6)
        uris = zip(self.labels.uris(), starts, strict=True)
        spans = [(Span(uri=u), Span(uri=self.folds.uris()[0], start=s, stop=s + 3)) for u, s in uris]
        return finish(Score(students=students.folder), self.folder / name, spans)


def label_table(inverted: Sequence[int]) -> pa.Table:
    """Labels of eight ellipses, one of them without; those named show the background."""
    rows = []
    for i, example in enumerate(ellipses(len(GROUPS), 0)):
        soft = example.target.astype(np.float32)
        row: dict[str, Any] = {"row": i, "sample_id": f"{i:032x}", "fault": "gone"}
        if i != BROKEN:
            row |= {"picture": encode_jpeg(example.image, 90), "fault": None}
            row |= {"soft": encode_soft(1 - soft if i in inverted else soft)}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=LABELLED)


def as_step(name: str, folder: Path, tables: Sequence[pa.Table]) -> Done:
    folder.mkdir(parents=True)
    names = write_tables(folder, tables, 3)
    parts = [Part(name=n, rows=t.num_rows, bytes=0, sha256="") for n, t in zip(names, tables, strict=True)]
    return write_manifest(name, str(folder), parts, {}, [])


def bench(folder: Path, inverted: Sequence[int] = ()) -> Bench:
    labels = label_table(inverted)
    parts = [labels.slice(start, 3) for start in (0, 3, 6)]
    chosen, groups = chosen_table(GROUPS, GROUPS)
    folds, facts = fold_tables(chosen, groups, JudgeConfig(folds=2, similar=1.0))
    assert facts["folds"] == 2
    gold = []
    for example in ellipses(2, 9):
        masks = {"mask": encode_mask(example.target > 0), "ignore": encode_mask(example.target > 1)}
        gold.append({"role": "gold", "name": "g", "picture": encode_jpeg(example.image, 92), **masks})
    return Bench(
        folder=folder,
        labels=as_step("label", folder / "label", parts),
        folds=as_step("folds", folder / "folds", [folds]),
        gold=as_step("gold", folder / "gold", [pa.Table.from_pylist(gold, schema=GOLD)]),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Done]:
    made = bench(tmp_path_factory.mktemp("judge"))
    return made, made.fold("fold", JudgeConfig(folds=2, student=QUICK))


def students_of(done: Done) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for table in iter_tables(done.uris()):
        for row in table.to_pylist():
            data = Path(done.uri(row["file"])).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            found.setdefault(row["fold"], []).append(row["sha256"])
    return found


def fold_column(made: Bench) -> list[int]:
    return pq.read_table(made.folds.uris()[0]).column("fold").to_pylist()


def test_a_student_trains_on_gold_and_on_the_labels_of_the_other_fold(trained: tuple[Bench, Done]) -> None:
    made, done = trained
    fold = fold_column(made)
    assert {f: len(files) for f, files in students_of(done).items()} == {0: 3, 1: 3}
    with_label = [f for i, f in enumerate(fold) if i != BROKEN]
    assert done.counts["examples"] == sum(2 + len(with_label) - with_label.count(f) for f in (0, 1))


def test_what_a_student_judges_had_no_part_in_its_training(trained: tuple[Bench, Done], tmp_path: Path) -> None:
    made, done = trained
    mine = [i for i, fold in enumerate(fold_column(made)) if fold == 0]
    other = bench(tmp_path, inverted=mine).fold("fold", JudgeConfig(folds=2, student=QUICK))
    assert students_of(other)[0] == students_of(done)[0]
    assert students_of(other)[1] != students_of(done)[1]


def test_at_most_the_stated_examples_are_used_those_of_the_smallest_hashes(
    trained: tuple[Bench, Done], tmp_path: Path
) -> None:
    made, _ = trained
    config = JudgeConfig(folds=2, examples=2, student=QUICK)
    done = made.fold("two", config)
    fold, keys = fold_column(made), pq.read_table(made.folds.uris()[0]).column("key").to_pylist()
    good = [i for i in range(len(fold)) if i != BROKEN]
    used = [sorted((i for i in good if fold[i] != f), key=keys.__getitem__)[:2] for f in (0, 1)]
    assert done.counts["examples"] == sum(2 + len(mine) for mine in used)
    unused = sorted(set(range(len(fold))) - {*used[0], *used[1]})
    assert students_of(bench(tmp_path / "a", inverted=unused).fold("fold", config)) == students_of(done)
    other = students_of(bench(tmp_path / "b", inverted=used[0]).fold("fold", config))
    assert other[0] != students_of(done)[0]
    assert other[1] == students_of(done)[1]


def test_every_label_is_scored_by_the_student_of_its_fold(trained: tuple[Bench, Done]) -> None:
    made, done = trained
    scored = made.score("score", done)
    assert made.score("score-again", done).digest == scored.digest
    fold = fold_column(made)
    rows = [row for table in iter_tables(scored.uris()) for row in table.to_pylist()]
    assert [row["row"] for row in rows] == list(range(len(GROUPS)))
    assert [row["fold"] for row in rows] == fold
    files = {f: [Path(done.uri(f"students/fold-{f}/late-{i}.safetensors")) for i in range(3)] for f in (0, 1)}
    for row, label in zip(rows, label_table(()).to_pylist(), strict=True):
        if row["row"] == BROKEN:
            assert {row[name] for name in SCORED.names[3:]} == {None}
            continue
        picture = decode_jpeg(label["picture"])
        (said,) = Ensemble.load(files[row["fold"]]).predict([picture])
        student = decode_soft(row["student"], MOST)
        assert student.shape == picture.shape[:2]
        np.testing.assert_allclose(student, said.probability, atol=1 / 500)
        assert row["stability"] == said.stability


def test_a_student_that_changed_since_it_was_trained_is_refused(trained: tuple[Bench, Done], tmp_path: Path) -> None:
    made, _ = trained
    done = Bench(folder=tmp_path, labels=made.labels, folds=made.folds, gold=made.gold).fold(
        "fold", JudgeConfig(folds=2, student=QUICK)
    )
    path = Path(done.uri("students/fold-1/late-0.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StageError, match=r"late-0.safetensors has changed since it was trained; remove its folder"):
        Score(students=done.folder).open()


def test_a_stage_that_is_not_finished_is_not_read(trained: tuple[Bench, Done], tmp_path: Path) -> None:
    made, _ = trained
    with pytest.raises(StageError, match=rf"the fold stage {tmp_path} is not finished"):
        Score(students=str(tmp_path)).open()
    Path(made.labels.folder, "_MANIFEST.json").rename(Path(made.labels.folder, "aside.json"))
    try:
        with pytest.raises(StageError, match=r"the label stage .* is not finished"):
            made.fold("unfinished", JudgeConfig(folds=2, student=QUICK))
    finally:
        Path(made.labels.folder, "aside.json").rename(Path(made.labels.folder, "_MANIFEST.json"))


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        *({"folds": 1}, {"examples": 0}, {"similar": 1.1}, {"similar": -1.1}, {"gate_iou": 2.0}, {"gate_iou": -1.0}),
        *({"audit_iou": 1.5}, {"audit_part": -0.5}, {"audit_agree": 2.0}),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"judge.*{next(iter(values))}.*{next(iter(values.values()))}"):
        JudgeConfig(**values)
