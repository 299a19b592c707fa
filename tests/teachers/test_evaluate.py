"""An evaluation says of a teacher with known answers what is known, and writes the same files in any order."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.labelled import Labelled, LabelledError, labelled_sha256, read_labelled
from teachers import evaluate as module
from teachers.evaluate import Evaluation, EvaluationError, choose, evaluate, read_attributes
from teachers.pointrend import PointRendBackend
from teachers.score import METRICS, ImageScore
from teachers.semantic import SemanticConfig, build
from teachers.teacher import Labeller, Person, Prediction, Teacher, TeacherError, summarise

FILES = ("images.parquet", "classes.csv", "reliability.csv", "reliability.png", "overlays.jpg", "evaluation.json")
SIZE = (36, 40)


class Reader:
    """A teacher whose answer is written in the image: p is the red channel over 255."""

    id = "reader"
    sha256 = "0" * 64

    def __init__(self) -> None:
        self.largest_batch = 0

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        self.largest_batch = max(self.largest_batch, len(images))
        people = tuple(Person(box=(0, 0, 1, 1), score=0.9) for _ in range(2))
        return [summarise(np.divide(image[:, :, 0], 255, dtype=np.float32), people) for image in images]


def write(folder: Path, name: str, answer: NDArray[np.uint8], truth: Any, ignore: Any = None) -> None:
    image = np.stack([answer, answer // 2, np.full_like(answer, 30)], axis=2)
    for part, pixels in (("images", image), ("masks", truth), ("ignore", ignore)):
        if pixels is not None:
            (folder / part).mkdir(parents=True, exist_ok=True)
            raw = pixels if part == "images" else np.asarray(pixels, bool).astype(np.uint8) * 255
            Image.fromarray(raw).save(folder / part / f"{name}.png")


def box(left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE, bool)
    mask[5:25, left:right] = True
    return mask


def told(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(mask, 230, 20).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images whose found box is moved by 0 to 9 of its 20 columns: IoU (20 - k) / (20 + k)."""
    for i in range(30):
        write(tmp_path / "set", f"s{i:02}", told(box(5 + i % 10, 25 + i % 10)), box(5, 25))
    return tmp_path / "set"


@pytest.fixture
def attributes() -> dict[str, dict[str, str | None]]:
    return {
        f"s{i:02}": {"shift": "none" if i % 10 == 0 else "some", "odd": str(i % 2) if i < 20 else None}
        for i in range(29)
    }


def run(folder: Path, output: Path, teacher: Teacher | None = None, **more: Any) -> Evaluation:
    options: dict[str, Any] = {"attributes": {}, "batch": 4, "report": lambda _: None} | more
    return evaluate(teacher or Reader(), read_labelled(folder), output=output, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_teacher_that_is_right_scores_one_everywhere(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / "set", f"s{i:02}", np.where(box(i, 20), 255, 0).astype(np.uint8), box(i, 20))
    found = run(tmp_path / "set", tmp_path / "out")
    for metric in METRICS:
        score = found.overall.scores[metric]
        assert (score.mean, score.low, score.high, score.images) == (1.0, 1.0, 1.0, 12)
    assert found.before.ece == pytest.approx(0.0, abs=1e-6)
    assert {image.persons for image in found.images} == {2}


def test_means_are_those_of_the_images_and_every_class_is_a_row(
    folder: Path, tmp_path: Path, attributes: dict[str, dict[str, str | None]]
) -> None:
    found = run(folder, tmp_path / "out", attributes=attributes)
    known = [(20 - i % 10) / (20 + i % 10) for i in range(30)]
    assert [image.iou for image in found.images] == pytest.approx(known)
    assert [image.precision for image in found.images] == pytest.approx([(20 - i % 10) / 20 for i in range(30)])
    assert found.overall.scores["iou"].mean == pytest.approx(np.mean(known))
    rows = rows_of(tmp_path / "out" / "classes.csv")
    assert [(r["attribute"], r["class"], int(r["images"])) for r in rows] == [
        ("overall", "all", 30), ("odd", "0", 10), ("odd", "1", 10), ("odd", "unknown", 10),
        ("shift", "none", 3), ("shift", "some", 26), ("shift", "unknown", 1),
    ]  # fmt: skip
    assert float(rows[1]["iou"]) == pytest.approx(np.mean(known[:20:2]), abs=1e-6)
    assert float(rows[1]["iou_low"]) < float(rows[1]["iou"]) < float(rows[1]["iou_high"])
    assert (rows[4]["iou"], rows[4]["iou_low"], rows[4]["iou_high"]) == ("1.000000", "", "")


def test_the_table_of_images_holds_what_was_measured(
    folder: Path, tmp_path: Path, attributes: dict[str, dict[str, str | None]]
) -> None:
    found = run(folder, tmp_path / "out", attributes=attributes)
    table = pq.read_table(tmp_path / "out" / "images.parquet")
    assert table.column_names == [
        "name", *METRICS, "label_confidence", "boundary_uncertainty", "persons", "area_truth", "area_found", "ignored",
        "odd", "shift",
    ]  # fmt: skip
    for row, image in zip(table.to_pylist(), found.images, strict=True):
        assert row["name"] == image.name
        assert row["iou"] == image.iou
        assert row["area_truth"] == pytest.approx(400 / 1440)
        assert row["persons"] == 2
        assert row["odd"] == attributes.get(image.name, {}).get("odd")


def test_the_record_names_teacher_and_set_and_repeats_the_figures(folder: Path, tmp_path: Path) -> None:
    found = run(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["teacher"] == {"id": "reader", "sha256": "0" * 64}
    assert record["labelled_sha256"] == labelled_sha256(read_labelled(folder))
    assert record["images"] == 30
    assert record["overall"]["iou"]["mean"] == found.overall.scores["iou"].mean
    assert record["calibration"]["temperature"] == found.after.temperature
    assert record["calibration"]["after"]["nll"] <= record["calibration"]["before"]["nll"]
    assert record["seconds_per_image"] >= 0
    rows = rows_of(tmp_path / "out" / "reliability.csv")
    assert sum(float(r["share"]) for r in rows if r["when"] == "before") == pytest.approx(1.0, abs=1e-5)


def test_files_do_not_depend_on_the_order_of_samples_or_the_batch(folder: Path, tmp_path: Path) -> None:
    config = SemanticConfig(
        depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
        subdivision_num_points=100, min_size_test=64, max_size_test=96,
    )  # fmt: skip
    model = build(config, 0)
    model.sem_seg_head.point_head.predictor.weight.data.mul_(100)
    teacher = Labeller(backend=PointRendBackend(model, "1" * 64))
    samples = read_labelled(folder)
    for name, order, batch in (("a", samples, 4), ("b", samples[::-1], 7)):
        evaluate(teacher, order, {}, tmp_path / name, batch=batch, report=lambda _: None)
    for name in FILES:
        one, two = ((tmp_path / run / name).read_bytes() for run in ("a", "b"))
        if name == "evaluation.json":
            one, two = (json.dumps(json.loads(raw) | {"seconds_per_image": 0}).encode() for raw in (one, two))
        assert one == two, name


def test_no_more_than_a_batch_is_decoded_at_a_time(folder: Path, tmp_path: Path) -> None:
    teacher = Reader()
    lines: list[str] = []
    run(folder, tmp_path / "out", teacher, batch=3, report=lines.append)
    assert teacher.largest_batch == 3
    assert len(lines) == 11
    assert lines[-1].startswith("evaluated 30 images: IoU 0.6")


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    ignore = np.zeros(SIZE, bool)
    ignore[:, 20:] = True
    for name, right in (("a", 40), ("b", 20)):
        write(tmp_path / name, "x", told(box(5, right)), box(5, 20), ignore)
        run(tmp_path / name, tmp_path / f"out_{name}")
    for file in ("classes.csv", "reliability.csv"):
        assert (tmp_path / "out_a" / file).read_bytes() == (tmp_path / "out_b" / file).read_bytes()
    assert rows_of(tmp_path / "out_a" / "classes.csv")[0]["iou"] == "1.000000"


def test_what_has_no_score_is_null_and_counted(tmp_path: Path) -> None:
    empty, full = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    write(tmp_path / "set", "nothing", told(empty), empty)
    write(tmp_path / "set", "missed", told(empty), box(5, 25))
    write(tmp_path / "set", "void", told(box(5, 25)), box(5, 25), full)
    run(tmp_path / "set", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "classes.csv")
    expected = {"images": "3", "iou": "0.500000", "iou_null": "1"}
    expected |= {"precision": "", "precision_null": "3", "recall": "0.000000", "recall_null": "2"}
    assert {key: row[key] for key in expected} == expected
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    counts = ("images", "images_wholly_ignored", "images_without_person", "images_with_nothing_found")
    assert [record[key] for key in counts] == [3, 1, 1, 2]


def test_a_set_without_a_pixel_that_counts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set", "void", told(box(5, 25)), box(5, 25), np.ones(SIZE, bool))
    with pytest.raises(EvaluationError, match="all are ignored"):
        run(tmp_path / "set", tmp_path / "out")


def test_a_broken_image_is_named_and_leaves_no_finished_folder(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    samples = read_labelled(folder)
    path = samples[20].image
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LabelledError, match=r"s20\.png"):
        evaluate(Reader(), samples, {}, tmp_path / "out", batch=4, report=lambda _: None)
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"s99": {"light": "dim"}}, "'s99', which is no labelled image"),
        ({"s01": {"iou": "dim"}}, "column 'iou' is taken"),
        ({"s01": {"two words": "dim"}}, "'two words' must be letters"),
        ({"s01": {f"a{i}": "x" for i in range(65)}}, "at most 64 attributes"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, attributes: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(folder, tmp_path / "out", attributes=attributes)


def test_samples_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    (first, *_) = read_labelled(folder)

    def of(samples: Sequence[Labelled], batch: int = 1) -> Evaluation:
        return evaluate(Reader(), samples, {}, tmp_path / "out", batch=batch, report=lambda _: None)

    with pytest.raises(EvaluationError, match="at least one labelled image"):
        of([])
    with pytest.raises(EvaluationError, match="'s00' stands twice"):
        of([first, replace(first, mask=first.image)])
    with pytest.raises(ValueError, match="batch must be >= 1"):
        of([first], 0)


class Short(Reader):
    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return super().predict(images)[1:]


class Small(Reader):
    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        return super().predict([image[1:] for image in images])


@pytest.mark.parametrize(
    ("teacher", "message"), [(Short(), "3 answers for 4 images"), (Small(), r"'s00': reader gave")]
)
def test_answers_that_do_not_fit_their_images_are_refused(
    folder: Path, tmp_path: Path, teacher: Teacher, message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        run(folder, tmp_path / "out", teacher)


# --- Choosing pictures ------------------------------------------------------------------------------------------


def scored(name: str, value: float | None) -> ImageScore:
    return ImageScore(
        name=name, iou=value, boundary_iou=value, precision=value, recall=value, label_confidence=1.0,
        boundary_uncertainty=0.0, persons=None, area_truth=value, area_found=value, ignored=0.0,
    )  # fmt: skip


def test_worst_median_and_best_are_shown_and_none_twice() -> None:
    images = [scored(f"i{k:03}", (k * 37 % 101) / 101) for k in range(101)]
    chosen = choose([*images, scored("void", None)], 3)
    assert [word for word, _ in chosen] == ["worst"] * 3 + ["median"] * 3 + ["best"] * 3
    assert [round((one.iou or 0.0) * 101) for _, one in chosen] == [0, 1, 2, 49, 50, 51, 98, 99, 100]


@pytest.mark.parametrize("images", [1, 8, 9])
def test_few_images_are_all_shown_in_order(images: int) -> None:
    chosen = choose([scored(f"i{k}", 1.0 - k / 10) for k in range(images)], 3)
    assert [one.name for _, one in chosen] == [f"i{k}" for k in reversed(range(images))]
    assert chosen[0][0] == f"1 of {images}"


# --- Reading attributes -----------------------------------------------------------------------------------------


def test_a_table_of_attributes_is_read_by_name_or_image(tmp_path: Path) -> None:
    for key in ("name", "image"):
        path = tmp_path / f"{key}.csv"
        path.write_bytes(f'\ufefflight,{key},pose\r\ndim,a, standing \r\n,"b c",\r\n\r\n'.encode())
        assert read_attributes(path, {"a", "b c", "d"}) == {
            "a": {"light": "dim", "pose": "standing"},
            "b c": {"light": None, "pose": None},
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one column 'name' or 'image', has none"),
        ("file,light\na,dim\n", "one column 'name' or 'image', has file, light"),
        ("name,image,light\na,a,dim\n", "one column"),
        ("name,name\na,a\n", "one column"),
        ("name,light,light\na,dim,dim\n", "column 'light' is taken"),
        ("name,\na,dim\n", "attribute name '' must be"),
        ("name,recall\na,dim\n", "column 'recall' is taken"),
        ("name,light\na,dim\nb.jpg,dim\n", "line 3: 'b.jpg' is no labelled image; .*without suffix"),
        ("name,light\na,dim\na,dim\n", "line 3: 'a' has a row already"),
        ("name,light\na\n", "line 2: must have 2 cells as the header has, got 1"),
        ("name,light\na,dim,dim\n", "line 2: must have 2 cells"),
        ('name,light\na,"dim\n', "cannot be read as CSV"),
        ("name," + ",".join(f"a{i}" for i in range(65)) + "\n", "at most 64 attributes"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "attributes.csv"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_attributes(path, {"a", "b"})


def test_a_table_that_is_absent_foreign_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "attributes.csv"
    with pytest.raises(EvaluationError, match=r"attributes\.csv: cannot be read"):
        read_attributes(path, {"a"})
    path.write_bytes(b"name,light\na,\xff\n")
    with pytest.raises(EvaluationError, match="UTF-8"):
        read_attributes(path, {"a"})
    monkeypatch.setattr(module, "MAX_ATTRIBUTE_BYTES", 10)
    with pytest.raises(EvaluationError, match="at most 10 bytes"):
        read_attributes(path, {"a"})


def test_a_teacher_that_fails_names_the_images_it_was_given(folder: Path, tmp_path: Path) -> None:
    class Failing(Reader):
        def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            raise TeacherError(f"image {len(images) - 1}: no probability")

    with pytest.raises(TeacherError, match="of the images 's00' to 's06', image 6: no probability"):
        evaluate(Failing(), read_labelled(folder), {}, tmp_path / "out", batch=7, report=lambda _: None)
