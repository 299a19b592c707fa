"""The commands around a teacher: what they refuse, in words that name the file once."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.gold import read_human
from pipeline.job import Job
from pipeline.judging import gold_role
from pipeline.teacher import open_teacher, taught_with
from teachers.checkpoint import save_checkpoint
from teachers.semantic import build
from tests.pipeline.test_gold import draw_gold
from tests.pipeline.test_label import TINY


@pytest.mark.parametrize("name", ["broken.pth", "broken.onnx", "broken.safetensors"])
def test_a_broken_teacher_is_named_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(InputError) as error:
        open_teacher(path, Config())
    assert str(error.value).startswith(f"--teacher {path}: ")
    assert str(error.value).count(str(path)) == 1


def test_a_set_that_taught_the_given_teacher_is_no_gold_and_of_other_teachers_nobody_knows(tmp_path: Path) -> None:
    labelled, gold = tmp_path / "labelled", tmp_path / "gold"
    draw_gold(labelled)
    human = read_human(labelled, None, [])
    job = Job(inputs=(), labelled=labelled, output=str(tmp_path / "out"), target=1)
    assert gold_role(job, human) == "none"
    roles = {}
    for name, told in {"own": human.digests["labelled"], "other": "0" * 64, "foreign": None}.items():
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, build(TINY, 0), TINY, {} if told is None else {"labelled_sha256": told})
        assert taught_with(path) == (told or "")
        roles[name] = gold_role(replace(job, teacher=path), human)
        assert gold_role(replace(job, teacher=path, gold=gold), human) == "given"
    assert roles == {"own": "none", "other": "labelled", "foreign": "labelled"}
    assert taught_with(tmp_path / "model_final.pkl") == taught_with(tmp_path / "model.onnx") == ""
