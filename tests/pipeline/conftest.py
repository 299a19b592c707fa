"""Stages that several test modules look at, made once."""

from pathlib import Path

import pytest

from tests.pipeline.chains import Chain, chain, draw


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assign") / "in"
    draw(folder)
    return folder


@pytest.fixture(scope="session")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.mktemp("assign") / "whole", inputs, [])


@pytest.fixture(scope="session")
def cut(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The first task holds nothing but the broken file, so one part has no rows."""
    return chain(tmp_path_factory.mktemp("assign") / "cut", inputs, [1, 4, 9])
