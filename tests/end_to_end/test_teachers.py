"""The main job with a teacher of every kind, and the commands around a teacher."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from manifests.verify import verify_release
from pipeline.cli import main
from teachers.backend import TeacherConfig, load_teacher
from teachers.checkpoint import save_checkpoint
from teachers.instance import InstanceConfig, build_instance
from tests.end_to_end.conftest import TARGET, arguments

TINY = InstanceConfig(
    stem_out=8, res2_out=16, width_per_group=4, fpn_out=16, min_size_test=96, max_size_test=192, num_classes=2,
    box_fc_dim=16, mask_conv_dim=16, mask_fc_dim=16, point_fc_dim=16, subdivision_num_points=196,
    rpn_pre_nms_topk=50, rpn_post_nms_topk=20, detections_per_image=5,
)  # fmt: skip


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Every chosen frame of the only release, which must be good."""
    (release,) = (output / "releases").iterdir()
    assert verify_release(release) == []
    files = [path for kind in ("manifest", "dropped") for path in sorted((release / kind).glob("*.parquet"))]
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def save_onnx(path: Path) -> None:
    """A network whose person is whatever is red."""
    weight = np.array([4.0, -2.0, -2.0], np.float32).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["mask"])],
        "red",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 48])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, 32, 48])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def with_teacher(world: Path, config: Path, folder: Path, teacher: Path, more: str) -> list[dict[str, Any]]:
    """Runs the main job with a teacher and settings of it; the rows of its release."""
    settings = folder / "teacher.toml"
    settings.write_text(config.read_text() + more)
    assert main(arguments(world, settings, folder / "out", "--teacher", str(teacher), "--workers", "2")) == 0
    rows = rows_of(folder / "out")
    assert len(rows) == TARGET
    return rows


def test_a_teacher_that_detects_people_puts_them_into_the_manifest(world: Path, config: Path, tmp_path: Path) -> None:
    model = build_instance(TINY, 0)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    path = tmp_path / "detector.safetensors"
    save_checkpoint(path, model, TINY, {})
    rows = with_teacher(world, config, tmp_path, path, "[teacher]\nperson_score = 0.3\n")
    assert {row["teacher_id"] for row in rows} == {load_teacher(path).id}
    assert all(len(row["persons"]) == row["n_persons"] for row in rows)
    assert any(row["n_persons"] for row in rows)
    for row in rows:
        scores = [person["score"] for person in row["persons"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0.3 <= score <= 1 for score in scores)
        assert all(0 <= p["x0"] < p["x1"] <= row["width"] and 0 <= p["y0"] < p["y1"] <= row["height"]
                   for p in row["persons"])  # fmt: skip


def test_a_teacher_may_be_an_onnx_model(world: Path, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "red.onnx"
    save_onnx(path)
    rows = with_teacher(world, config, tmp_path, path, '[teacher.onnx]\nstd = [32.0, 32.0, 32.0]\noutput = "logit"\n')
    assert {row["teacher_id"] for row in rows} == {load_teacher(path).id}
    assert all(row["n_persons"] is None and row["persons"] is None for row in rows)
    assert any(row["mask_area_px"] for row in rows)


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed")
def test_a_teacher_may_run_in_detectron2(world: Path, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    save_checkpoint(path, build_instance(TINY, 0), TINY, {})
    rows = with_teacher(world, config, tmp_path, path, '[teacher]\nbackend = "detectron2"\n')
    assert all(row["teacher_id"].startswith("detectron2-instance") for row in rows)


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="Detectron2 is installed")
def test_without_detectron2_its_backend_is_refused_before_any_work(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "red.onnx"
    save_onnx(path)
    settings = tmp_path / "teacher.toml"
    settings.write_text(config.read_text() + '[teacher]\nbackend = "detectron2"\n')
    assert main(arguments(world, settings, tmp_path / "out", "--teacher", str(path))) == 1
    assert "Detectron2, which is not installed" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "stages").glob("*"))


def test_a_teacher_is_measured_on_a_labelled_set(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, labelled = tmp_path / "red.onnx", world / "labelled"
    save_onnx(model)
    names = sorted(path.stem for path in (labelled / "images").iterdir())
    table = tmp_path / "attributes.csv"
    table.write_text(
        "name,light\n" + "".join(f"{name},{'day' if i % 2 else 'night'}\n" for i, name in enumerate(names))
    )
    (tmp_path / "c.toml").write_text('[teacher.onnx]\nstd = [32.0, 32.0, 32.0]\noutput = "logit"\n')
    flags = ["--teacher", str(model), "--labelled", str(labelled), "--output", str(tmp_path / "out")]
    flags += ["--attributes", str(table), "--config", str(tmp_path / "c.toml")]
    assert main(["teacher", "evaluate", *flags]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("overall", "day", "night", "expected calibration error", "temperature"))
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"images.parquet", "classes.csv", "reliability.csv", "reliability.png", "overlays.jpg",
                    "evaluation.json"}  # fmt: skip
    table.write_text("name,light\nnobody,day\n")
    assert main(["teacher", "evaluate", *flags]) == 1
    assert "nobody" in capsys.readouterr().err


def test_a_zoo_checkpoint_is_converted_once_and_gives_the_same(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (goldens / "pointrend" / "zoo_format").glob("model_final_*.pkl")
    target = tmp_path / "teacher.safetensors"
    assert main(["teacher", "convert", str(source), str(target)]) == 1
    assert "3 classes, and not which of them are persons" in capsys.readouterr().err
    assert main(["teacher", "convert", str(source), str(target), "--person-classes", "1"]) == 0
    assert str(target) in capsys.readouterr().out
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    (before,) = load_teacher(source, TeacherConfig(person_classes=(1,))).predict([image])
    (after,) = load_teacher(target).predict([image])
    assert np.array_equal(before.probability, after.probability)
    assert main(["teacher", "convert", str(source), str(tmp_path / "teacher.pth")]) == 2
    assert "must be a .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["teacher"], "'curate teacher' is followed by one of convert, evaluate, fetch"),
        (["teacher", "fetsh"], "did you mean 'fetch'?"),
        (["teacher", "fetch", "pointrend_rcnn_R_50"], "did you mean 'pointrend_rcnn_R_50_FPN_3x_coco'"),
        (["teacher", "fetch", "x", "--sha256", "12"], "must be 64 hexadecimal digits"),
        (["teacher", "evaluate", "--techer", "x"], "unknown argument '--techer'; did you mean '--teacher'?"),
    ],
)
def test_wrong_usage_of_the_commands_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
