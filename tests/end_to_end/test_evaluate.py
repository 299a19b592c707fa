"""The evaluate command: from a folder of clips to tables and a page, and two models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.cli import main

HEIGHT, WIDTH, FRAMES = 48, 64, 6
CLIPS = ("walk", "wave")


def truth(clip: str, index: int) -> NDArray[np.bool_]:
    """A box that moves to the right, faster in the second clip."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    left = 8 + index * (2 + 2 * CLIPS.index(clip))
    mask[10:40, left : left + 16] = True
    return mask


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a model that is two pixels too far right, one that holds its first mask, and attributes."""
    folder = tmp_path_factory.mktemp("evaluate")
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for clip in CLIPS:
        for index in range(FRAMES):
            mask, name = truth(clip, index), f"{index:03}.png"
            save(folder / "videos" / clip / "frames" / name, np.where(mask[..., None], 255 - texture, texture))
            save(folder / "videos" / clip / "masks" / name, mask.astype(np.uint8) * 255)
            save(folder / "late" / clip / name, truth(clip, 0).astype(np.uint8) * 255)
            save(folder / "right" / clip / name, np.roll(mask, 2, axis=1).astype(np.uint8) * 255)
    (folder / "people.csv").write_text("video,subject_id,lighting_level\nwalk,a,dim\nwave,b,bright\n")
    return folder


def evaluated(drawn: Path, model: str, output: Path) -> Path:
    flags = ["--model", str(drawn / model), "--videos", str(drawn / "videos"), "--output", str(output)]
    assert main(["evaluate", *flags, "--attributes", str(drawn / "people.csv"), "--workers", "2"]) == 0
    (folder,) = output.glob(f"{model}-*")
    return folder


def test_numbers_agree_with_plain_numpy_and_two_models_are_compared_video_by_video(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    means = {}
    for model in ("right", "late"):
        folder = evaluated(drawn, model, tmp_path / "out")
        rows = {row["video"]: row for row in pq.read_table(folder / "videos.parquet").to_pylist()}
        for clip in CLIPS:
            ious = []
            for index in range(FRAMES):
                wanted = truth(clip, index)
                found = np.roll(wanted, 2, axis=1) if model == "right" else truth(clip, 0)
                ious.append((wanted & found).sum() / (wanted | found).sum())
            assert rows[clip]["iou"] == pytest.approx(np.mean(ious), abs=1e-12)
        means[model] = np.mean([rows[clip]["iou"] for clip in CLIPS])
        assert all(rows[clip]["adjacent"] == 1 for clip in CLIPS) == (model == "late")
        page = (folder / "report.html").read_text()
        assert "lighting" in page
        assert json.loads((folder / "evaluation.json").read_text())["counts"]["frames"] == 2 * FRAMES
    both = [str(next((tmp_path / "out").glob(f"{model}-*"))) for model in ("right", "late")]
    assert main(["evaluate", "--compare", *both, "--output", str(tmp_path / "compared")]) == 0
    assert f"{means['right'] - means['late']:.4f}" in capsys.readouterr().out
    assert (tmp_path / "compared" / "report.html").is_file()


def test_a_missing_prediction_is_named_and_no_evaluation_is_left(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    for clip in CLIPS:
        for path in sorted((drawn / "late" / clip).iterdir())[1 if clip == "wave" else 0 :]:
            save(tmp_path / "model" / clip / path.name, np.asarray(Image.open(path)))
    flags = ["--model", str(tmp_path / "model"), "--videos", str(drawn / "videos"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *flags]) == 1
    said = capsys.readouterr().err
    assert "wave" in said
    assert "000" in said
    assert not list((tmp_path / "out").glob("*/evaluation.json"))


def test_an_unknown_class_is_refused_with_the_nearest(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "people.csv"
    table.write_text("video,lighting_level\nwalk,dimm\nwave,bright\n")
    flags = ["--model", str(drawn / "late"), "--videos", str(drawn / "videos"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *flags, "--attributes", str(table)]) == 1
    said = capsys.readouterr().err
    assert "dimm" in said
    assert "dim" in said.replace("dimm", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "o"], "--model and --videos must be given, or --compare A B"),
        (["--model", "m", "--output", "o"], "--videos must be given, or --compare A B"),
        (
            ["--compare", "a", "b", "--model", "m", "--output", "o"],
            "--compare reads finished evaluations; remove --model",
        ),
        (["--compare", "a", "b", "--no-flow", "--output", "o"], "remove --no-flow"),
        (["--compare", "a", "--output", "o"], "expected 2 arguments"),
        (["--compare", "a", "b", "--output", "gs://x/y"], "--output gs://x/y must be a folder of this machine"),
        (["--modle", "m"], "unknown argument '--modle'; did you mean '--model'?"),
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *argv]) == 2
    assert message in capsys.readouterr().err
