"""Laws of the files: whole or not at all, whatever happens while they are written."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.files import remove_unfinished, sha256_file, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from training.files import write_atomically
dies_in = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if dies_in == "flush":
    os.fsync = die
else:
    Path.replace = die
write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""


@given(st.binary(max_size=200))
def test_the_digest_is_that_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"", b"third"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["flush", "rename"])
def test_killed_while_writing_the_old_file_stays_whole(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), moment], cwd=root, check=False, env={**os.environ, "PYTHONPATH": "."}
    )
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomically(path, b"newer")
    remove_unfinished(tmp_path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"newer")]
