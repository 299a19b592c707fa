"""Laws of the judge: no student judges what it has seen, and every label gets exactly one verdict."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from manifests.mask import decode_mask, decode_soft, encode_mask, encode_soft
from pipeline.embed import decode_jpeg, encode_jpeg, shrink
from pipeline.errors import InputError, StageError
from pipeline.judge import (
    FOLDS,
    GOLD,
    SCORED,
    VERDICTS,
    Fold,
    JudgeConfig,
    Score,
    _read_folds,
    _score,
    fold_tables,
    gold_table,
    labelled_digest,
    verdicts,
)
from pipeline.label import LABELLED
from pipeline.stage import Done, Part, Span, iter_tables, write_manifest
from pipeline.step import write_tables
from students.agreement import Features, Policy
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


# The labelled set -----------------------------------------------------------------------------------------------------


def draw_gold(folder: Path) -> None:
    """Pictures of 128 x 64, 40 x 32 and 64 x 192 pixels; the first has pixels to ignore."""
    for name in ("images", "masks", "ignore"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(((64, 128), (32, 40), (192, 64))):
        Image.fromarray(texture(number, height, width)).save(folder / "images" / f"{number}.png")
        mask = np.kron(rng.random((height // 2, width // 2)) < 0.5, np.ones((2, 2))) > 0
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
    void = np.zeros((64, 128), np.uint8)
    void[10, 20] = void[33, 40:50] = 255
    Image.fromarray(void).save(folder / "ignore" / "0.png")


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_gold_has_the_size_of_the_students_and_keeps_every_ignored_pixel(tmp_path: Path) -> None:
    draw_gold(tmp_path)
    table = gold_table(tmp_path, 64)
    assert table.schema.equals(GOLD)
    rows = table.to_pylist()
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    sizes = [(32, 64), (32, 40), (64, 21)]
    for row, size in zip(rows, sizes, strict=True):
        picture = decode_jpeg(row["picture"])
        assert picture.shape == (*size, 3)
        assert np.abs(picture.astype(int) - shrink(pixels(tmp_path / "images" / f"{row['name']}.png"), 64)).mean() < 8
        assert decode_mask(row["mask"], MOST).shape == decode_mask(row["ignore"], MOST).shape == size
    # Blocks of 2 x 2 pixels that are wholly person or not, and one void pixel condemns its block.
    whole = pixels(tmp_path / "masks" / "0.png")[::2, ::2] > 0
    np.testing.assert_array_equal(decode_mask(rows[0]["mask"], MOST), whole)
    void = pixels(tmp_path / "ignore" / "0.png").reshape(32, 2, 64, 2).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(decode_mask(rows[0]["ignore"], MOST), void)
    np.testing.assert_array_equal(decode_mask(rows[1]["mask"], MOST), pixels(tmp_path / "masks" / "1.png") > 0)
    assert not decode_mask(rows[1]["ignore"], MOST).any()


def spoil_by_missing_mask(folder: Path) -> str:
    (folder / "masks" / "1.png").unlink()
    return "an image must have a mask of the same stem"


def spoil_by_size(folder: Path) -> str:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "masks" / "1.png")
    return r"1 \(40x32 and 40x40\)"


def spoil_by_absence(folder: Path) -> str:
    (folder / "images").rename(folder / "pictures")
    return "images.*must be a folder"


@pytest.mark.parametrize("spoil", [spoil_by_missing_mask, spoil_by_size, spoil_by_absence])
def test_a_labelled_set_that_does_not_fit_together_is_refused(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    draw_gold(tmp_path)
    message = spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        gold_table(tmp_path, 64)
    with pytest.raises(InputError, match=rf"--labelled: .*{message}"):
        labelled_digest(tmp_path)


def test_a_picture_that_ends_early_is_named(tmp_path: Path) -> None:
    draw_gold(tmp_path)
    data = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"images/2.png.*replace or remove the file"):
        gold_table(tmp_path, 64)


def test_the_digest_of_a_labelled_set_is_of_its_files(tmp_path: Path) -> None:
    draw_gold(tmp_path / "a")
    draw_gold(tmp_path / "b")
    assert labelled_digest(tmp_path / "a") == labelled_digest(tmp_path / "b")
    (tmp_path / "b" / "ignore" / "0.png").unlink()
    assert labelled_digest(tmp_path / "a") != labelled_digest(tmp_path / "b")


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
        gold.append({"name": "g", "picture": encode_jpeg(example.image, 92), **masks})
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


# Verdicts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Docket:
    """What the verdicts are made of."""

    scores: pa.Table
    labels: pa.Table
    folds: pa.Table
    groups: dict[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return int(self.scores.num_rows)

    def take(self, order: Sequence[int]) -> "Docket":
        rows = pa.array(order, pa.int64())
        groups = {name: values[list(order)] for name, values in self.groups.items()}
        tables = (self.scores.take(rows), self.labels.take(rows), self.folds.take(rows))
        return Docket(scores=tables[0], labels=tables[1], folds=tables[2], groups=groups)

    def judge(self, config: JudgeConfig | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        table, summary = verdicts(self.scores, self.labels, self.folds, self.groups, config or JudgeConfig())
        assert table.schema.equals(VERDICTS)
        return table.to_pylist(), summary


def quantity(rng: np.random.Generator, bad: float) -> dict[str, float]:
    """The features of a label that is good, or bad with the given probability."""
    amount = float(rng.uniform(0.2, 0.5) if rng.random() < bad else rng.exponential(0.01))
    miss = amount if rng.random() < 0.5 else 0.0
    found = dict.fromkeys((field.name for field in dataclasses.fields(Features)), 0.0)
    found |= {"miss": miss, "largest_miss": miss, "extra": amount - miss, "largest_extra": amount - miss}
    found |= {"disagreement": min(1.0, amount), "softmin": max(0.0, 1 - amount), "stability": rng.uniform(0, 0.1)}
    area = 0.0 if rng.random() < 0.05 else 0.3
    return found | {"doubt": rng.choice([0, 0.1]), "teacher_area": area, "student_area": 0.3}


def docket(seed: int, count: int, bad: float = 0.2, unjudged: float = 0.1, faulty: float = 0.1) -> Docket:
    """Drawn scores: some labels have no judge, some frames no label."""
    rng = np.random.default_rng(seed)
    ids = [hashlib.sha256(f"{seed}-{i}".encode()).hexdigest()[:32] for i in range(count)]
    clusters = rng.integers(0, 4, count)
    fold = np.where(rng.random(count) < unjudged, -1, clusters % 2)
    faults = ["gone" if rng.random() < faulty else None for _ in ids]
    scores = []
    for i, name in enumerate(ids):
        known = fold[i] >= 0 and faults[i] is None
        facts = quantity(rng, bad)
        scores.append({"row": i, "sample_id": name, "fold": int(fold[i]), **(facts if known else {})})
    schema = SCORED.remove(SCORED.get_field_index("student"))
    folds = {"sample_id": ids, "cluster": clusters, "fold": fold, "key": np.arange(count).astype(np.uint64)}
    return Docket(
        scores=pa.Table.from_pylist(scores, schema=schema),
        labels=pa.table({"fault": pa.array(faults, pa.string())}),
        folds=pa.table(folds).cast(FOLDS),
        groups={"light": np.where(rng.random(count) < 0.3, "dim", "normal")},
    )


DOCKETS = st.builds(
    docket,
    st.integers(0, 9999),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.2, 0.8]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
DECISION = {"keep": "keep", "weight": "keep", "correct": "keep", "hold": "hold", "drop": "drop"}


@settings(max_examples=60)
@given(DOCKETS, st.sampled_from(get_args(Policy)))
def test_every_label_gets_one_verdict_and_the_sums_agree(case: Docket, policy: Policy) -> None:
    rows, summary = case.judge(JudgeConfig(policy=policy))
    assert [row["sample_id"] for row in rows] == case.scores.column("sample_id").to_pylist()
    fold, faults = case.folds.column("fold").to_pylist(), case.labels.column("fault").to_pylist()
    judged = [f >= 0 and fault is None for f, fault in zip(fold, faults, strict=True)]
    for row, known, fault in zip(rows, judged, faults, strict=True):
        assert row["decision"] == DECISION[row["verdict"]]
        assert (row["weight"] == 0) == (row["verdict"] in ("drop", "hold"))
        assert 0 <= row["weight"] <= 1
        assert (row["q"] is not None) == (row["gate"] is not None) == (row["calibrated"] is not None) == known
        if fault is not None:
            assert (row["verdict"], row["reasons"]) == ("drop", [f"no label: {fault}"])
        elif not known:
            assert (row["verdict"], row["weight"]) == ("keep", 1)
            assert row["reasons"] == ["not judged: no student without its cluster"]
        elif row["verdict"] != "keep":
            assert row["reasons"]
    assert summary["judged"] == sum(judged) == sum(c["labels"] for c in summary["clusters"].values())
    found = Counter(row["verdict"] for row, known in zip(rows, judged, strict=True) if known)
    for verdict in DECISION:
        assert sum(cluster[verdict] for cluster in summary["clusters"].values()) == found[verdict]
    assert (summary["method"] == "none") == (not any(judged))


@settings(max_examples=40)
@given(DOCKETS, st.randoms(use_true_random=False))
def test_the_order_of_the_labels_changes_no_verdict(case: Docket, random: Any) -> None:
    order = list(range(len(case)))
    random.shuffle(order)
    rows, summary = case.judge()
    shuffled, other = case.take(order).judge()
    assert shuffled == [rows[i] for i in order]
    assert other == summary


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [("drop", {"drop"}), ("weight", {"weight"}), ("correct", {"correct", "weight"}), ("auto", {"correct", "drop"})],
)
def test_a_policy_acts_on_the_worst_labels_in_its_own_way(policy: Policy, allowed: set[str]) -> None:
    case = docket(5, 400, bad=0.15, unjudged=0.0, faulty=0.0)
    rows, summary = case.judge(JudgeConfig(policy=policy))
    assert {cluster["gate"] for cluster in summary["clusters"].values()} == {"passed"}
    bad = [a + b > 0.2 for a, b in zip(*(case.scores.column(n).to_pylist() for n in ("miss", "extra")), strict=True)]
    acted = Counter(row["verdict"] for row, wrong in zip(rows, bad, strict=True) if wrong and row["verdict"] != "hold")
    assert set(acted) - {"weight", "keep"} == allowed - {"weight"}
    assert sum(acted[verdict] for verdict in allowed) > 0.7 * sum(acted.values())
    good = [row["verdict"] for row, wrong in zip(rows, bad, strict=True) if not wrong]
    assert good.count("drop") == 0


def test_no_class_of_an_attribute_is_emptied_whoever_is_not_judged() -> None:
    case = docket(5, 400, bad=0.15, unjudged=0.3, faulty=0.1)
    wrong = [(row["miss"] or 0) + (row["extra"] or 0) > 0.2 for row in case.scores.to_pylist()]
    dim = Docket(
        scores=case.scores, labels=case.labels, folds=case.folds, groups={"light": np.where(wrong, "dim", "normal")}
    )
    rows, _ = dim.judge(JudgeConfig(policy="drop"))
    kept = [row["decision"] == "keep" for row, bad in zip(rows, wrong, strict=True) if bad]
    assert 0.4 <= np.mean(kept) < 0.5
    free, _ = case.judge(JudgeConfig(policy="drop"))
    assert np.mean([row["decision"] == "keep" for row, bad in zip(free, wrong, strict=True) if bad]) < 0.3


def test_where_nobody_knows_who_is_wrong_nothing_is_dropped() -> None:
    case = docket(5, 100, bad=1.0, unjudged=0.0, faulty=0.0)
    rows, summary = case.judge(JudgeConfig(gate_iou=1.0))
    assert {cluster["gate"] for cluster in summary["clusters"].values()} == {"failed"}
    assert {row["verdict"] for row in rows} == {"keep", "hold"}


@pytest.mark.parametrize(
    "values",
    [{"folds": 1}, {"examples": 0}, {"similar": 1.1}, {"similar": -1.1}, {"gate_iou": 2.0}, {"gate_iou": -1.0}],
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"judge.*{next(iter(values))}.*{next(iter(values.values()))}"):
        JudgeConfig(**values)
