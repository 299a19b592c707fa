"""Laws of ``curate train``: what a user may say, and what is answered."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import Config
from pipeline.errors import CurateError, InputError, StageError, UsageError
from pipeline.train import one_release, train_student
from students.model import StudentConfig, load_student
from students.presets import PRESETS
from students.recipe import TrainConfig
from tests.students.releases import draw, write_drawn, write_labelled

TINY = TrainConfig(side=64, batch=2, steps=2, warm_up=1, validate_every=2, preset="nano")
CONFIG = replace(Config(), train=TINY)


def run(output: Path, **given: Any) -> Any:
    arguments: dict[str, Any] = {"release": None, "labelled": None, "config": CONFIG, "seed": 0} | given
    release, labelled, config = (arguments.pop(name) for name in ("release", "labelled", "config"))
    return train_student(release, labelled, str(output), config, console=Console(quiet=True), **arguments)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_drawn(tmp_path / "run" / "releases" / "one", [draw(seed) for seed in range(3)])


def test_the_output_of_a_run_stands_for_its_only_release(tmp_path: Path, release: Path) -> None:
    assert one_release(tmp_path / "run") == one_release(release) == release
    write_drawn(tmp_path / "run" / "releases" / "two", [draw(9)])
    with pytest.raises(InputError, match=r"holds 2 releases: .*name one of them"):
        one_release(tmp_path / "run")


def test_a_preset_takes_the_place_of_a_custom_network(tmp_path: Path, release: Path) -> None:
    custom = replace(TINY, preset="custom", model=StudentConfig(width=0.5), mask_channel=False)
    trained = run(tmp_path / "out", release=release, config=replace(CONFIG, train=custom), preset="nano")
    assert load_student(trained.checkpoint).config == replace(PRESETS["nano"], in_channels=3)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({}, UsageError, "nothing to train on"),
        ({"labelled": Path("absent")}, InputError, "--labelled: .*absent"),
        ({"labelled": Path("absent"), "require_signoff": True}, UsageError, "--require-signoff is about a RELEASE"),
        ({"labelled": Path("absent"), "allowed_signers": Path("keys")}, UsageError, "--allowed-signers is about a REL"),
        ({"release": Path("absent")}, InputError, "absent"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    tmp_path: Path, given: Mapping[str, Any], kind: type[CurateError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        run(tmp_path / "out", **given)


def test_an_unsigned_release_is_refused_where_that_is_asked_for(tmp_path: Path, release: Path) -> None:
    with pytest.raises(InputError, match="has no sign-off"):
        run(tmp_path / "out", release=release, require_signoff=True)
    (tmp_path / "keys").write_text("")
    with pytest.raises(InputError, match="has no sign-off"):
        run(tmp_path / "out", release=release, allowed_signers=tmp_path / "keys")


def test_an_output_of_another_training_is_refused(tmp_path: Path) -> None:
    labelled = write_labelled(tmp_path / "labelled", [draw(seed) for seed in range(3)])
    run(tmp_path / "out", labelled=labelled)
    with pytest.raises(StageError, match=r"train: .*of another training: seed is 1 and was 0"):
        run(tmp_path / "out", labelled=labelled, seed=1)
