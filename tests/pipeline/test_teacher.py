"""The commands around a teacher: what they refuse, in words that name the file once."""

from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.teacher import open_teacher


@pytest.mark.parametrize("name", ["broken.pth", "broken.onnx", "broken.safetensors"])
def test_a_broken_teacher_is_named_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(InputError) as error:
        open_teacher(path, Config())
    assert str(error.value).startswith(f"--teacher {path}: ")
    assert str(error.value).count(str(path)) == 1
