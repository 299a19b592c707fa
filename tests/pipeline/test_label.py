"""Laws of the labels: a row for every chosen frame, masks of the frame's size, and the same bits for any cut."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from manifests.mask import decode_mask, decode_soft
from pipeline.embed import decode_jpeg, frames_of, shrink
from pipeline.errors import InputError, StageError
from pipeline.frames import ScanConfig
from pipeline.known import GIVEN
from pipeline.label import LABELLED, Label, LabelConfig, _columns, label_spans, resize_soft
from pipeline.mask_attributes import MASK_ATTRIBUTES, mask_attributes
from pipeline.motion import decode_grid
from pipeline.select import cell_name, selection_key
from pipeline.stage import Done, Task, iter_tables
from teachers.backend import TeacherConfig, load_teacher
from teachers.checkpoint import save_checkpoint
from teachers.pointrend import PointRendBackend
from teachers.semantic import SemanticConfig, build
from teachers.teacher import Labeller, Prediction
from tests.pipeline.media import jpeg, moving, table, texture, video
from tests.pipeline.test_assign import finish
from tests.pipeline.test_probe import probe, sources_file

SCAN = ScanConfig()
SIDE = 64
MOST = 1 << 20
TINY = SemanticConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
    subdivision_num_points=300, min_size_test=64, max_size_test=128,
)  # fmt: skip


def draw_teacher(path: Path, seed: int = 0) -> str:
    """A small network that has learnt nothing, but sees something; returns its sha256."""
    model = build(TINY, seed)
    model.sem_seg_head.point_head.predictor.weight.data.mul_(100)
    return save_checkpoint(path, model, TINY, {"step": 0})


def draw_chosen(folder: Path) -> pa.Table:
    """Frames of two clips, three pictures of three shapes and a table, as the choice hands them on."""
    inputs = folder / "in"
    inputs.mkdir(parents=True)
    for name, pixels in (("tall", texture(3, 120, 70)), ("wide", texture(4, 50, 160)), ("small", texture(5, 40, 40))):
        cv2.imwrite(str(inputs / f"{name}.png"), pixels[:, :, ::-1])
    (inputs / "one.mp4").write_bytes(video(moving(30, seed=1)))
    (inputs / "two.mp4").write_bytes(video(moving(20, seed=2)))
    (inputs / "table.parquet").write_bytes(table({"image": [jpeg(6), jpeg(7)]}))
    chosen = probe(sources_file(folder, inputs)[0], (0, None)).table
    ids, uris = chosen.column("sample_id").to_pylist(), chosen.column("source_uri").to_pylist()
    groups = [sorted(set(uris)).index(uri) % 2 for uri in uris]
    vectors = [[1.0, 0.0] if group else [0.0, 1.0] for group in groups]
    columns = {
        GIVEN + "place": pa.array(["indoors" if uri.endswith(".mp4") else None for uri in uris], pa.string()),
        "cluster_path": pa.array(
            [[g, g, g] for g in groups], pa.list_(pa.field("element", pa.int32(), nullable=False))
        ),
        "cluster_distance": pa.array([0.25] * len(ids), pa.float32()),
        "vector": pa.array(vectors, pa.list_(pa.field("element", pa.float16(), nullable=False), 2)),
        "key": pa.array([selection_key(0, i) for i in ids], pa.uint64()),
        "cell": pa.array([cell_name((group, group, group), ()) for group in groups], pa.string()),
        "inclusion_prob": pa.array([0.5] * len(ids), pa.float64()),
        "stands_for": pa.array([3] * len(ids), pa.int32()),
        "group_id": pa.array([d.hex() for d in chosen.column("source_sha256").to_pylist()], pa.string()),
    }
    for name, values in columns.items():
        chosen = chosen.append_column(name, values)
    return chosen


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Chosen frames in a file, and a teacher."""

    folder: Path
    chosen: pa.Table
    teacher: Path
    sha256: str

    @property
    def uri(self) -> str:
        return str(self.folder / "chosen.parquet")

    def label(self, name: str, rows: int = 32, batch: int = 8) -> Done:
        """The label stage in a folder of that name."""
        config = LabelConfig(rows=rows, batch=batch, student_side=SIDE)
        work = Label(
            config=config, scan=SCAN, run=TeacherConfig(), teacher=str(self.teacher), teacher_sha256=self.sha256
        )
        return finish(work, self.folder / name, label_spans(self.uri, self.chosen.num_rows, config))

    def frames(self) -> dict[int, NDArray[np.uint8]]:
        """The frames, decoded again, by row."""
        return dict(frames_of(self.chosen, SCAN, [], "test"))


def draw(folder: Path) -> Drawn:
    """Chosen frames and a teacher in a new folder."""
    chosen = draw_chosen(folder)
    pq.write_table(chosen, folder / "chosen.parquet", row_group_size=5)
    sha256 = draw_teacher(folder / "teacher.safetensors")
    return Drawn(folder=folder, chosen=chosen, teacher=folder / "teacher.safetensors", sha256=sha256)


def rows_of(done: Done) -> list[dict[str, Any]]:
    """All rows of a stage."""
    return [row for part in iter_tables(done.uris()) for row in part.to_pylist()]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("label") / "drawn")


@pytest.fixture(scope="module")
def labelled(drawn: Drawn) -> Done:
    return drawn.label("whole", rows=5)


# The stage ------------------------------------------------------------------------------------------------------------


def test_every_chosen_frame_has_its_row_in_its_place(drawn: Drawn, labelled: Done) -> None:
    assert [part.rows for part in labelled.parts] == [5, 5, 4]
    assert not labelled.faults
    for part in iter_tables(labelled.uris()):
        assert part.schema.equals(LABELLED)
    rows = rows_of(labelled)
    assert [row["row"] for row in rows] == list(range(14))
    assert [row["sample_id"] for row in rows] == drawn.chosen.column("sample_id").to_pylist()
    assert {row["fault"] for row in rows} == {None}


def test_a_mask_is_what_the_teacher_says_of_the_frame(drawn: Drawn, labelled: Done) -> None:
    teacher, frames = load_teacher(drawn.teacher), drawn.frames()
    assert {pixels.shape[:2] for pixels in frames.values()} == {(64, 96), (120, 70), (50, 160), (40, 40)}
    areas = []
    for row in rows_of(labelled):
        (said,) = teacher.predict([frames[row["row"]]])
        mask = decode_mask(row["mask"], MOST)
        np.testing.assert_array_equal(mask, said.probability >= 0.5)
        assert row["mask_area_px"] == np.count_nonzero(said.probability >= 0.5)
        assert row["mask_components"] == ndimage.label(mask, np.ones((3, 3)))[1]
        assert row["label_confidence"] == pytest.approx(said.label_confidence)
        assert row["boundary_uncertainty"] == pytest.approx(said.boundary_uncertainty)
        areas.append(row["mask_area_px"] / mask.size)
    assert 0 < np.mean(areas) < 1


def test_picture_and_soft_mask_have_one_size_of_the_students(drawn: Drawn, labelled: Done) -> None:
    teacher, frames = load_teacher(drawn.teacher), drawn.frames()
    for row in rows_of(labelled):
        frame = frames[row["row"]]
        small = shrink(frame, SIDE)
        picture, soft = decode_jpeg(row["picture"]), decode_soft(row["soft"], MOST)
        assert picture.shape == small.shape
        assert soft.shape == small.shape[:2]
        assert max(soft.shape) == min(SIDE, max(frame.shape[:2]))
        assert np.abs(picture.astype(int) - small).mean() < 8
        (said,) = teacher.predict([frame])
        wanted = cv2.resize(said.probability, soft.shape[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(soft, wanted, atol=1 / 500)


def test_what_a_mask_tells_stands_beside_it(drawn: Drawn, labelled: Done) -> None:
    teacher, frames = load_teacher(drawn.teacher), drawn.frames()
    grids = drawn.chosen.column("motion_grid").to_pylist()
    assert any(grids)
    for row in rows_of(labelled):
        (said,) = teacher.predict([frames[row["row"]]])
        grid = None if grids[row["row"]] is None else decode_grid(grids[row["row"]])
        told = mask_attributes(frames[row["row"]], said.probability, said.persons, grid)
        assert {name: row[f"mask.{name}"] for name in MASK_ATTRIBUTES} == {n: value for n, (value, _) in told.items()}
        for name, (_, confidence) in told.items():
            expected = None if confidence is None else np.float32(confidence)
            assert row[f"mask_confidence.{name}"] == expected


def test_chosen_frames_without_motion_are_labelled_as_stills(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn")
    pq.write_table(drawn.chosen.drop_columns(["motion_grid"]), drawn.uri)
    rows = rows_of(drawn.label("bare"))
    assert len(rows) == 14
    assert {row["mask.subject_motion"] for row in rows} == {None}
    assert {row["fault"] for row in rows} == {None}


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (3, 2), (14, 5), (32, 8)])
def test_spans_and_batches_change_no_byte_of_a_label(drawn: Drawn, labelled: Done, rows: int, batch: int) -> None:
    other = drawn.label(f"cut-{rows}-{batch}", rows, batch)
    assert [part.rows for part in other.parts] == [min(rows, 14 - start) for start in range(0, 14, rows)]
    assert rows_of(other) == rows_of(labelled)


def test_labels_made_again_are_the_same_bytes(drawn: Drawn, labelled: Done) -> None:
    again = drawn.label("again", rows=5)
    assert again.digest == labelled.digest
    assert [part.sha256 for part in again.parts] == [part.sha256 for part in labelled.parts]


def test_a_frame_that_is_gone_or_has_changed_keeps_its_row_without_a_label(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn")
    before = rows_of(drawn.label("before", rows=5))  # of the same files: an encoder on several threads is not exact
    (tmp_path / "drawn" / "in" / "two.mp4").unlink()
    shutil.copy(tmp_path / "drawn" / "in" / "tall.png", tmp_path / "drawn" / "in" / "small.png")
    done = drawn.label("spoilt", rows=5)
    uris = [Path(uri).name for uri in drawn.chosen.column("source_uri").to_pylist()]
    after = rows_of(done)
    assert len(after) == 14
    for name, was, row in zip(uris, before, after, strict=True):
        if name in ("two.mp4", "small.png"):
            assert row["fault"] == "the frame could not be decoded again"
            assert {row[column] for column in LABELLED.names[2:-1]} == {None}
        else:
            assert row == was
    found = sorted((Path(f["source"]).name, f["error"], f["items"]) for f in done.faults if f["items"])
    assert found == [("small.png", "FrameChanged", 1)] + [("two.mp4", "FrameChanged", 1)] * 4
    assert {fault["stage"] for fault in done.faults} == {"label"}
    assert all("frame" in fault["message"] or "decoding again failed" in fault["message"] for fault in done.faults)


def test_a_teacher_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    sha256 = draw_teacher(tmp_path / "teacher.safetensors", seed=0)
    work = Label(
        config=LabelConfig(),
        scan=SCAN,
        run=TeacherConfig(),
        teacher=str(tmp_path / "teacher.safetensors"),
        teacher_sha256=sha256,
    )
    work.open()
    other = draw_teacher(tmp_path / "teacher.safetensors", seed=1)
    with pytest.raises(InputError, match=rf"teacher.safetensors has changed since the run was planned \(.*{other}"):
        work.open()


def test_a_teacher_that_fails_names_the_sources_of_its_frames(drawn: Drawn, tmp_path: Path) -> None:
    model = build(TINY, 0)
    model.sem_seg_head.coarse_sem_seg_head.predictor.weight.data.fill_(float("nan"))
    broken = Labeller(backend=PointRendBackend(model, "0" * 64))
    work = Label(config=LabelConfig(batch=2), scan=SCAN, run=TeacherConfig(), teacher="", teacher_sha256="")
    task = Task(index=0, count=1, folder=str(tmp_path), spans=label_spans(drawn.uri, 4, LabelConfig())[0])
    with pytest.raises(StageError, match=r"not finite; the images are frames of .*(png|jpg|mp4|parquet)"):
        work._run(broken, task)


# Spans ----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 50))
def test_spans_cover_every_row_once_and_in_order(rows: int, size: int) -> None:
    spans = [task[0] for task in label_spans("x", rows, LabelConfig(rows=size))]
    assert [row for span in spans for row in range(span.start, span.stop or 0)] == list(range(rows))
    assert all(1 <= (span.stop or 0) - span.start <= size for span in spans)


# One label ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
def test_a_smaller_soft_mask_is_the_mean_of_its_blocks(seed: int, factor: int, height: int, width: int) -> None:
    soft = np.random.default_rng(seed).random((height * factor, width * factor), np.float32)
    blocks = soft.reshape(height, factor, width, factor).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_soft(soft, height, width), blocks, atol=1e-5)


@given(st.floats(0, 1, width=32), st.integers(1, 30), st.integers(1, 30), st.integers(1, 60), st.integers(1, 60))
def test_a_uniform_soft_mask_stays_so_at_any_size(value: float, h: int, w: int, height: int, width: int) -> None:
    resized = resize_soft(np.full((h, w), value, np.float32), height, width)
    assert resized.shape == (height, width)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, value, atol=1e-6)
    assert 0 <= resized.min() <= resized.max() <= 1


def test_more_components_than_the_column_holds_are_told_as_its_largest_number() -> None:
    probability = np.zeros((400, 400), np.float32)
    probability[::2, ::2] = 1
    said = Prediction(probability=probability, label_confidence=1.0, boundary_uncertainty=0.0)
    row = _columns(texture(0, 400, 400), said, 256, None)
    assert (row["mask_components"], row["mask_area_px"]) == (32767, 40_000)


@pytest.mark.parametrize(("name", "least"), [("rows", 1), ("batch", 1), ("student_side", 64)])
def test_impossible_settings_are_refused(name: str, least: int) -> None:
    LabelConfig(**{name: least})
    with pytest.raises(ValueError, match=rf"label.{name} must be >= {least}, got {least - 1}"):
        LabelConfig(**{name: least - 1})
