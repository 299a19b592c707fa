"""``curate export``: what it writes agrees with the student; what does not agree has another name."""

import contextlib
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from rich.console import Console

from pipeline import export as module
from pipeline.errors import CurateError, InputError, UsageError
from pipeline.export import ExportConfig, export_student
from students import parity
from students.export import FORMATS
from students.export_executorch import needed
from students.model import save_student
from students.runtime import open_network
from tests.students.exports import SIDE, pictures, tiny

FEW = ExportConfig(pictures=3, rounds=3)


def _model(folder: Path, **changes: object) -> Path:
    student = tiny(**changes)
    path = folder / "tiny.safetensors"
    save_student(path, student, student.config, {"side": str(SIDE), "training": "abc", "step": "7"})
    return path


def _frames(folder: Path) -> Path:
    folder.mkdir()
    for picture in pictures(4):
        cv2.imwrite(str(folder / f"{picture.name}.png"), picture.pixels[..., ::-1])
    return folder


def _console() -> Console:
    return Console(file=io.StringIO(), width=160)


def test_files_record_and_table_say_the_same(tmp_path: Path) -> None:
    model, frames, output, console = (
        _model(tmp_path, in_channels=4),
        _frames(tmp_path / "frames"),
        tmp_path / "out",
        _console(),
    )
    done = export_student(model, output, ["onnx", "ptl"], frames, FEW, console=console)
    assert sorted(p.name for p in output.iterdir()) == ["export.json", "tiny.onnx", "tiny.ptl"]
    record = json.loads((output / "export.json").read_text())
    assert record["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert record["frames"]["source"] == "frames"
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ptl is no longer developed by its makers; prefer executorch" in shown
    for one, row in zip(done, record["exports"], strict=True):
        data = (output / one.file).read_bytes()
        assert (one.bytes, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (row["file"], row["latency_ms"], row["parity"]["iou_mean"]) == (
            one.file,
            one.latency_ms,
            one.parity.iou_mean,
        )
        assert one.parity.iou_mean == 1.0
        assert one.parity.fed_back >= 2
        assert one.parity.logit_difference < 1e-3
        assert one.file in shown
    assert open_network(output / "tiny.onnx").card.config == tiny(in_channels=4).config


def test_without_frames_the_pictures_are_said_to_be_synthetic(tmp_path: Path) -> None:
    console = _console()
    export_student(_model(tmp_path), tmp_path / "out", ["ptl"], None, FEW, console=console)
    assert "3 synthetic pictures; give --frames for real ones" in console.file.getvalue()  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "out/export.json").read_text())["frames"]["source"] == "synthetic"


def test_an_export_that_disagrees_is_kept_as_rejected_and_fails_with_frame_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(student, path, *, side, metadata, calibration, stages):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            student.head.bias += 0.5
            FORMATS["ptl"].export(student, path, side=side, metadata=metadata, calibration=calibration, stages=stages)
            student.head.bias -= 0.5

    broken = module.FORMATS | {"pt2": type(FORMATS["pt2"])(suffix=".pt2.ptl", precision="float32", export=spoilt)}
    monkeypatch.setattr(module, "FORMATS", broken)
    with pytest.raises(
        CurateError, match=r"pt2: mean IoU with the student must be >= 0\.995 .*worst 0\.\d+ at synthetic \d"
    ):
        export_student(_model(tmp_path), tmp_path / "out", ["pt2", "ptl"], None, FEW, console=_console())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["export.json", "tiny.pt2.ptl.rejected", "tiny.ptl"]
    rows = json.loads((tmp_path / "out/export.json").read_text())["exports"]
    assert rows[0]["fault"].startswith("mean IoU")
    assert rows[1]["fault"] is None


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["onnx-int8"], "--format onnx-int8 is calibrated on real frames; give --frames"),
        (["tflite"], "--format must be of onnx, .*got 'tflite'"),
        (["onnx", "onnx"], "each once"),
        ([], "one format or more"),
    ],
)
def test_formats_that_cannot_be_are_refused_before_anything_is_written(
    formats: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export_student(_model(tmp_path), tmp_path / "out", formats, None, FEW, console=_console())
    assert not (tmp_path / "out").exists()


def test_models_and_frames_that_are_none_are_refused(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (tmp_path / "empty").mkdir()
    for frames in (tmp_path / "empty", tmp_path / "absent", model):
        with pytest.raises(InputError, match="--frames"):
            export_student(model, tmp_path / "out", ["ptl"], frames, FEW, console=_console())
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    for bad in (tmp_path / "bad.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match="--model"):
            export_student(bad, tmp_path / "out", ["ptl"], None, FEW, console=_console())


def test_a_format_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        needed("executorch.no_such_part")

    chosen = type(FORMATS["executorch"])(suffix=".pte", precision="float32", export=absent)
    monkeypatch.setattr(module, "FORMATS", module.FORMATS | {"executorch": chosen})
    with pytest.raises(CurateError, match=r"--format executorch: .*pip install 'curate\[executorch\]'"):
        export_student(_model(tmp_path), tmp_path / "out", ["executorch"], None, FEW, console=_console())


def _refusing(*_: object, **__: object) -> None:
    raise ValueError("a layer cannot\nbe written")


def _failing(*_: object, **__: object) -> None:
    raise RuntimeError("an operator is unknown")


def _rubbish(student: object, path: Path, **_: object) -> None:  # noqa: ARG001 (an exporter's)
    path.write_bytes(b"rubbish")


def test_formats_that_fail_are_named_in_the_end_and_do_not_keep_the_others_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"onnx": _refusing, "executorch": _failing, "pt2": _rubbish}
    made = {name: replace(FORMATS[name], export=export) for name, export in wrong.items()}
    monkeypatch.setattr(module, "FORMATS", module.FORMATS | made)
    console = _console()
    with pytest.raises(CurateError) as caught:
        export_student(_model(tmp_path), tmp_path / "out", [*wrong, "ptl"], None, FEW, console=console)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"--format {name}" for name in wrong]
    assert lines[:2] == ["--format onnx: a layer cannot be written", "--format executorch: an operator is unknown"]
    assert lines[2].startswith("--format pt2: tiny.pt2: ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["export.json", "tiny.ptl"]
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert [row["file"] for row in record["exports"]] == ["tiny.ptl"]
    assert list(record["failed"]) == list(wrong)
    assert "tiny.ptl" in console.file.getvalue()  # type: ignore[attr-defined]


def test_of_an_accepted_and_a_rejected_file_of_one_name_the_newer_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path)

    def names(least: float) -> list[str]:
        monkeypatch.setitem(parity.LEAST_IOU, "float32", least)
        with contextlib.suppress(CurateError):
            export_student(model, tmp_path / "out", ["ptl"], None, FEW, console=_console())
        return sorted(p.name for p in (tmp_path / "out").iterdir())

    assert names(0.5) == ["export.json", "tiny.ptl"]
    assert names(1.5) == ["export.json", "tiny.ptl.rejected"]
    assert names(0.5) == ["export.json", "tiny.ptl"]


def test_a_checkpoint_without_a_side_is_refused(tmp_path: Path) -> None:
    student = tiny()
    save_student(tmp_path / "a.safetensors", student, student.config, {"side": "63"})
    with pytest.raises(
        InputError, match=r"--model .*a\.safetensors: its metadata must state the side, 64\.\.4096, got"
    ):
        export_student(tmp_path / "a.safetensors", tmp_path / "out", ["ptl"], None, FEW, console=_console())


def test_pictures_of_a_kind_that_cannot_be_read_are_not_counted_as_images(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    cv2.imwrite(str(tmp_path / "frames/a.bmp"), pictures(1)[0].pixels)
    with pytest.raises(InputError, match=r"must hold at least 1 image \(\.jpg, \.jpeg, \.png, \.webp\), got 0"):
        export_student(_model(tmp_path), tmp_path / "out", ["ptl"], tmp_path / "frames", FEW, console=_console())


def test_frames_of_a_video_feed_masks_back(data: Path, tmp_path: Path) -> None:
    clip = data / "clips" / "asl_book.mp4"
    done = export_student(_model(tmp_path, in_channels=4), tmp_path / "out", ["ptl"], clip, FEW, console=_console())
    assert done[0].parity.fed_back == 2 * FEW.pictures - 1
    assert done[0].parity.iou_mean >= parity.LEAST_IOU["float32"]


@pytest.mark.parametrize("name", ["pictures", "rounds"])
def test_a_config_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"export.{name} must be >= 1, got 0"):
        ExportConfig(**{name: 0})


def test_int8_takes_fewer_stages_where_more_of_them_move_the_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, ...]] = []

    def careful(student, path, *, side, metadata, calibration, stages):  # type: ignore[no-untyped-def]
        assert calibration
        tried.append(tuple(stages))
        with torch.no_grad():
            spoil = 0.5 * (len(stages) > 1)
            student.head.bias += spoil
            FORMATS["ptl"].export(student, path, side=side, metadata=metadata, calibration=(), stages=())
            student.head.bias -= spoil

    attempts = FORMATS["onnx-int8"].attempts
    mine = type(FORMATS["ptl"])(suffix=".x.ptl", precision="int8", export=careful, attempts=attempts)
    monkeypatch.setattr(module, "FORMATS", {"x": mine})
    (found,) = export_student(
        _model(tmp_path), tmp_path / "out", ["x"], _frames(tmp_path / "frames"), FEW, console=_console()
    )
    assert tried == [("stages.3", "stages.4"), ("stages.4",)]
    assert found.quantised == ("stages.4",)
    assert found.fault is None
