"""Laws of ``curate audit``: every flag does something or is refused, and what is said fits what was done."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from manifests.audit import load_audit
from pipeline import cli
from pipeline.errors import UsageError
from pipeline.flags import parse
from pipeline.step import run_step, write_tables
from tests.pipeline.test_label import Drawn, draw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("command") / "drawn")


@pytest.fixture
def output(drawn: Drawn, tmp_path: Path) -> Path:
    """A run that has come to the end of its label stage."""
    stages = tmp_path / "out" / "stages"
    label = drawn.folder / "label"
    shutil.copytree(label if label.exists() else drawn.label("label").folder, stages / "label" / "abc")
    run_step(str(stages), "chosen", 1, None, [], [], lambda folder: write_tables(folder, [drawn.chosen]))
    return tmp_path / "out"


def test_a_draw_is_told_all_it_needs() -> None:
    values = parse(["audit", "p", "--output", "o"])
    assert (values.command, values.path, values.output) == ("audit", Path("p"), "o")
    assert (values.size, values.seed, values.coco, values.without, values.config) == (None, None, False, None, None)
    argv = ["audit", "p", "--output", "o", "--size", "1k", "--seed", "7", "--coco", "--without", "a", "--without", "b"]
    values = parse([*argv, "--config", "c"])
    assert (values.size, values.seed, values.coco) == (1000, 7, True)
    assert (values.without, values.config) == ([Path("a"), Path("b")], Path("c"))
    assert parse(["audit", "d", "--import-coco", "f"]).import_coco == Path("f")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["audit"], "the following arguments are required: PATH"),
        (["audit", "p", "--size", "0"], "must be a whole number of frames, at least 1"),
        (["audit", "p", "--sise", "3"], "unknown argument '--sise'; did you mean '--size'?"),
        (["audit", "p", "--seed", "-1"], "must be a whole number from 0"),
        (["audit", "p", "--output", " "], "must name a folder"),
        (["audti", "p"], "unknown command 'audti'; did you mean 'audit'?"),
    ],
)
def test_wrong_usage_is_met_with_what_is_right(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert message in str(caught.value)


def test_frames_are_drawn_labelled_and_read(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a"
    argv = ["audit", str(output), "--output", str(folder)]
    assert cli.main([*argv, "--size", "6", "--coco"]) == 0
    assert f"{folder}: 6 frames of 2 clusters" in capsys.readouterr().out
    audit = load_audit(folder)
    assert (audit.size, audit.seed, len(audit.samples)) == (6, 0, 6)
    for sample in audit.samples:
        assert cv2.imread(str(folder / "images" / f"{sample.name}.jpg")).shape == (sample.height, sample.width, 3)
    assert cli.main(["audit", str(folder)]) == 0
    assert f"{folder}: 0 of 6 masks are done and good" in capsys.readouterr().out

    first = audit.samples[0]
    assert cv2.imwrite(str(folder / "masks" / "0001.png"), np.zeros((first.height, first.width), np.uint8))
    value = json.loads((folder / "annotations.json").read_bytes())
    value["images"] = value["images"][1:3]
    value["annotations"] = [
        {"id": 1, "image_id": value["images"][0]["id"], "category_id": 1, "segmentation": [[2, 2, 30, 2, 30, 30]]}
    ]
    (tmp_path / "tool.json").write_text(json.dumps(value))
    imported = ["audit", str(folder), "--import-coco", str(tmp_path / "tool.json")]
    assert cli.main(imported) == 1
    assert "1 of 2 images have no annotation: 0003" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*imported, "--empty"]) == 0
    shown = capsys.readouterr().out
    assert f"{folder}: 2 masks imported; 1 of 2 show nobody" in shown
    assert f"{folder}: 3 of 6 masks are done and good" in shown

    assert cli.main([*argv, "--size", "6"]) == 1
    assert "is an audit with masks, and they are never overwritten" in " ".join(capsys.readouterr().err.split())
    other = ["audit", str(output), "--output", str(tmp_path / "b"), "--without", str(folder), "--seed", "3"]
    assert cli.main(other) == 0
    shown_ = capsys.readouterr()
    assert "8 frames were drawn and not 200" in shown_.err
    assert not {s.sample_id for s in audit.samples} & {s.sample_id for s in load_audit(tmp_path / "b").samples}

    (folder / "masks" / "0004.png").write_bytes(b"junk")
    assert cli.main(["audit", str(folder)]) == 1
    assert "0004.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [["--size", "5"], ["--output", "o"], ["--seed", "0"], ["--coco"], ["--without", "w"], ["--config", "c"]]
)
def test_a_flag_about_drawing_is_refused_where_masks_are_read(
    output: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    assert cli.main(["audit", str(output), "--output", str(folder), "--size", "2"]) == 0
    for argv in (["audit", str(folder), *more], ["audit", str(folder), "--import-coco", "f", *more]):
        capsys.readouterr()
        assert cli.main(argv) == 2
        assert f"{more[0]} is about drawing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "holds no audit.json, so frames are drawn from it: give --output DIR"),
        (["--output", "o", "--empty"], 2, "--empty is about --import-coco; give both"),
        (["--output", "out/stages/label/abc/a"], 1, "which must not change; choose another folder"),
        (["--output", "gs://bucket/a"], 2, "must be a folder of this machine"),
        (["--import-coco", "absent.json"], 1, "no audit is here"),
        (["--output", "x", "--config", "absent.toml"], 2, "absent.toml"),
        (["--output", "x", "--without", "absent"], 1, "--without: 'absent/audit.json' cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_its_exit_code(
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", str(output), *argv]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
    assert not (tmp_path / "x").exists()


def test_a_path_that_does_not_exist_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--output", str(tmp_path / "a")]):
        assert cli.main(["audit", str(tmp_path / "such"), *more]) == 1
        assert "such does not exist; name a release" in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_a_release_or_labels_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(tmp_path), "--output", str(tmp_path / "a")]) == 1
    assert "no finished label stage; run first" in capsys.readouterr().err
