"""From a run's release to the model that ships: train, export, evaluate, preview, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from manifests.image import decode_image
from pipeline.cli import main
from students.runtime import open_network
from tests.end_to_end.conftest import arguments
from tests.end_to_end.test_teachers import save_onnx

RECIPE = """
[train]
preset = "nano"
side = 64
batch = 4
steps = 8
warm_up = 2
validate_every = 4

[teacher.onnx]
std = [32.0, 32.0, 32.0]
output = "logit"
"""


def test_a_release_becomes_a_model_that_is_exported_measured_and_looked_at(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_onnx(tmp_path / "red.onnx")
    settings = tmp_path / "settings.toml"
    settings.write_text(config.read_text() + RECIPE)
    out = tmp_path / "out"
    assert main(arguments(world, settings, out, "--teacher", str(tmp_path / "red.onnx"), "--workers", "2")) == 0
    train = ["train", str(out), "--labelled", str(world / "labelled"), "--config", str(settings)]
    assert main([*train, "--output", str(tmp_path / "student")]) == 0
    student = tmp_path / "student" / "student.safetensors"
    assert f"{student}  held-out IoU" in capsys.readouterr().out
    assert decode_image((tmp_path / "student" / "batch.jpg").read_bytes()).pixels.size
    before = student.read_bytes()
    assert main([*train, "--output", str(tmp_path / "student")]) == 0
    assert student.read_bytes() == before

    export = ["export", str(student), "--output", str(tmp_path / "shipped")]
    assert main([*export, "--frames", str(world / "labelled" / "images")]) == 0
    (made,) = json.loads((tmp_path / "shipped" / "export.json").read_text())["exports"]
    assert made["parity"]["iou_mean"] >= 0.995
    shipped = tmp_path / "shipped" / made["file"]
    assert open_network(shipped).in_channels == 4

    video = min((world / "unlabelled").rglob("*.mp4"))
    preview = ["preview", str(video), "--model", str(shipped), "--output", str(tmp_path / "blurred.mp4")]
    assert main([*preview, "--seconds", "1"]) == 0
    assert "ms per frame" in capsys.readouterr().out
    assert main([*preview, "--seconds", "1"]) == 1  # it exists

    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / video.name).symlink_to(video)
    measured = [
        "evaluate",
        "--videos",
        str(clips),
        "--no-flow",
        "--workers",
        "1",
        "--output",
        str(tmp_path / "measured"),
    ]
    assert main([*measured, "--model", str(student)]) == 0
    assert main([*measured, "--model", str(shipped)]) == 0
    tables = [pq.read_table(path).to_pylist() for path in sorted((tmp_path / "measured").glob("*/videos.parquet"))]
    assert len(tables) == 2
    assert tables[0][0]["adjacent"] == pytest.approx(tables[1][0]["adjacent"], abs=1e-3)
