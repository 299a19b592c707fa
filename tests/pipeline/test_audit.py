"""Laws of finished evaluations: found, read, and compared only where they are alike."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.video import FRAME_METRICS
from pipeline.audit import find_evaluation, read_evaluation
from pipeline.errors import InputError
from pipeline.evaluate import Evaluated, compare
from pipeline.evaluate_config import EvaluateConfig
from tests.pipeline.evaluations import (
    HEIGHT,
    MODELS,
    WIDTH,
    World,
    draw,
    rows,
    write_mask,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: World) -> dict[str, Evaluated]:
    """Every model, measured along the flow into one output."""
    return {name: world.run(name, flow=True) for name in MODELS}


def test_a_model_differs_from_itself_by_nothing(done: dict[str, Evaluated], tmp_path: Path) -> None:
    same = compare(done["noisy"].folder, done["noisy"].folder, tmp_path)
    assert {row["change"] for row in rows(same, "compare")} == {0.0}


def test_the_change_is_the_mean_of_the_differences(done: dict[str, Evaluated], tmp_path: Path) -> None:
    changes = {
        (row["metric"], row["category"]): row
        for row in rows(compare(done["truth"].folder, done["late"].folder, tmp_path), "compare")
    }
    first, second = ([row["iou"] for row in rows(done[name])] for name in ("truth", "late"))
    row = changes["iou", "all"]
    assert row["change"] == pytest.approx(np.mean(first) - np.mean(second))
    assert (row["first"], row["second"]) == (pytest.approx(np.mean(first)), pytest.approx(np.mean(second)))
    assert "late" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "compare.json").read_bytes())["second"]["model"]["id"].startswith("late-")


def test_evaluations_that_are_not_alike_are_refused(world: World, done: dict[str, Evaluated], tmp_path: Path) -> None:
    first = done["noisy"].folder
    with pytest.raises(InputError, match="measured alike; one was measured without flow"):
        compare(first, world.run("late", str(tmp_path / "plain")).folder, tmp_path)
    other = EvaluateConfig(meter=dataclasses.replace(EvaluateConfig().meter, ratio=0.01))
    with pytest.raises(InputError, match=r"measured alike; evaluate\.meter is"):
        compare(first, world.run("late", str(tmp_path / "thin"), flow=True, config=other).folder, tmp_path)
    shutil.copytree(world.videos, tmp_path / "videos")
    write_mask(tmp_path / "videos" / "ben" / "masks" / "00003.png", np.zeros((HEIGHT, WIDTH), np.bool_))
    moved = world.run("late", str(tmp_path / "changed"), flow=True, videos=tmp_path / "videos")
    with pytest.raises(InputError, match="frames or truths of 'ben' have changed"):
        compare(first, moved.folder, tmp_path)
    path = tmp_path / "people.csv"
    path.write_text("video,subject_id\nanna,p\nben,p\ncarl,q\n")
    with pytest.raises(InputError, match="subjects must be given with both models"):
        compare(first, world.run("noisy", flow=True, attributes=path).folder, tmp_path)


def test_a_comparison_takes_the_place_of_no_evaluation(done: dict[str, Evaluated]) -> None:
    folder = done["noisy"].folder
    with pytest.raises(InputError, match="is an evaluation, whose report would be lost"):
        compare(folder, done["late"].folder, folder)


def test_an_evaluation_is_found_by_its_folder_or_its_output(done: dict[str, Evaluated], tmp_path: Path) -> None:
    folder = done["noisy"].folder
    assert find_evaluation(folder) == folder
    shutil.copytree(folder, tmp_path / "one" / "a")
    assert find_evaluation(tmp_path / "one") == tmp_path / "one" / "a"
    shutil.copytree(folder, tmp_path / "one" / "b")
    with pytest.raises(InputError, match="holds 2 evaluations"):
        find_evaluation(tmp_path / "one")
    with pytest.raises(InputError, match="holds no finished evaluation"):
        find_evaluation(tmp_path / "none")
    (tmp_path / "one" / "a" / "evaluation.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="of format 99"):
        read_evaluation(tmp_path / "one" / "a")


def test_the_documentation_names_every_column(done: dict[str, Evaluated], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    known = {name: set(re.findall(r"`(\w+)`", line)) for name, line in lines.items()}
    known["videos"] |= set(FRAME_METRICS)  # "the means of the scores above"
    known["compare"] |= known["classes"]
    compared = compare(done["noisy"].folder, done["late"].folder, tmp_path)
    for name in ("frames", "videos", "classes", "worst", "attributes", "pictures", "compare"):
        folder = (compared if name == "compare" else done["noisy"]).folder
        found = set(pq.read_schema(folder / f"{name}.parquet").names)
        assert found <= known[name] | {f"{column}_{end}" for column in known[name] for end in ("low", "high")}, name
