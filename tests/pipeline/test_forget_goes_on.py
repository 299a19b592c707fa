"""Laws of a forget that cannot go on: killed it is finished by the next call, else all is as it was."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.erasures import FOLDER, KEY, SUPPRESSED, read_erasures, read_suppression
from manifests.verify import verify_release
from pipeline.errors import StageError
from tests.manifests.remains import digests, remains
from tests.pipeline.forgetting import (
    AT,
    GONE,
    family,
    forgotten,
    needles,
    of,
    releases_of,
    releases_with,
    stage,
)
from tests.review import releases
from tests.review.releases import figures

_KILLED = """
import os, shutil, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from pipeline.forget import forget

def call(root, kill_at):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("os.remove", "os.rename", "os.link", "os.rmdir", "os.mkdir"):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    forget(root, subjects=["person-video-1"], reason="a person asked", at=datetime(2026, 3, 1, 12, tzinfo=UTC))
    (root.parent / "events").write_text(str(seen))

def child(root, kill_at):
    pid = os.fork()
    if pid == 0:
        try:
            call(root, kill_at)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

base = Path(sys.argv[1])
shutil.copytree(base / "root", base / "whole")
assert child(base / "whole", 0) == 0
events = int((base / "events").read_text())
cuts = sorted({1 + (events - 3) * n // 2 for n in range(3)})
print(events)
for cut in cuts:
    root = base / f"cut-{cut}"
    shutil.copytree(base / "root", root)
    assert child(root, cut) == -signal.SIGKILL, cut
    print(cut, *sorted(p.name for p in root.glob("releases/*/release.json")), file=sys.stderr)
    assert child(root, cut // 2 + 1) in (0, -signal.SIGKILL)
    code = child(root, 0)
    assert code in (0, 3), code
    print(cut, code)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same_when_called_again(tmp_path: Path) -> None:
    samples = figures(9)
    first = releases.write(tmp_path / "root", samples)
    releases.write(tmp_path / "root", samples[:6], parents=(of(first),))
    stage(tmp_path / "root", "label", [one.id for one in samples])
    result = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    codes = dict(line.split() for line in result.stdout.splitlines()[1:])
    cuts = sorted(int(path.name[4:]) for path in tmp_path.glob("cut-*"))
    assert len(cuts) == 3
    for cut in cuts:
        root = tmp_path / f"cut-{cut}"
        (tombstone,) = read_erasures(root)
        assert (tombstone.state, tombstone.count) == ("done", 3)
        assert remains(root, needles(samples)) == []
        assert len(releases_of(root)) == 2
        assert all(verify_release(folder) == [] for folder in releases_of(root))
        # 3: the second call had ended it, and the third is told so
        assert codes[str(cut)] in ("0", "3")
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp") or ".successor-" in path.name]


def test_a_full_disk_leaves_all_as_it_was_and_the_next_call_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = family(tmp_path)
    before = digests(tmp_path / "releases")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("manifests.staging.os.write", full)
        with pytest.raises(StageError, match=r"free some space.*forget again"):
            forgotten(tmp_path)
    assert digests(tmp_path / "releases") == before
    assert read_erasures(tmp_path) == ()
    assert read_suppression(tmp_path) is None
    forgotten(tmp_path)
    assert remains(tmp_path, needles(samples)) == []


def test_a_release_that_came_between_is_rewritten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = family(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.erasing.rewrite", _killed)
        with pytest.raises(KeyboardInterrupt):
            forgotten(tmp_path)
    late = releases.write(tmp_path, samples[2:9])
    forgotten(tmp_path)
    assert not late.exists()
    assert remains(tmp_path, needles(samples)) == []


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_release_that_came_after_the_old_ones_began_to_go_is_rewritten_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = family(tmp_path, 12)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.erasing.remove_release", _killed)
        with pytest.raises(KeyboardInterrupt):
            forgotten(tmp_path)
    assert [erasure.state for erasure in read_erasures(tmp_path)] == ["rewritten"]
    late = releases.write(tmp_path, samples[2:9])
    done = forgotten(tmp_path)
    assert not late.exists()
    assert len(done.replaced) == 4
    assert remains(tmp_path, needles(samples)) == []


def test_another_persons_call_finishes_what_was_killed_and_then_does_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = family(tmp_path, 12)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.erasing.rewrite", _killed)
        with pytest.raises(KeyboardInterrupt):
            forgotten(tmp_path)
    done = forgotten(tmp_path, subjects=["person-video-0"], at=AT.replace(hour=13))
    assert len(done.finished) == 1
    assert remains(tmp_path, needles(samples, (0, 1, 2, *GONE))) == []


def unscrubbed(folder: Path) -> Path:
    """The release with a document that no JSON parser reads and that names a source."""
    return releases_with(folder, "notes.txt", b"clips of /videos/video-1.mp4 look best")


def test_what_cannot_be_taken_out_withdraws_the_erasure_and_hinders_nobody(tmp_path: Path) -> None:
    samples = figures(12)
    mild, bad = releases.write(tmp_path, samples[:9]), unscrubbed(releases.write(tmp_path, samples))
    stage(tmp_path, "label", [one.id for one in samples])
    before = digests(tmp_path)
    for _ in range(2):
        with pytest.raises(StageError, match=r"notes\.txt: names .* was withdrawn, and nothing was changed"):
            forgotten(tmp_path)
    unlike = {name: one for name, one in digests(tmp_path).items() if before.get(name) != one}
    assert set(unlike) == {".lock", f"{FOLDER}/{KEY}"}
    assert read_erasures(tmp_path) == ()
    forgotten(tmp_path, subjects=["person-video-2"])
    assert not mild.exists()
    assert not bad.exists()
    assert [erasure.state for erasure in read_erasures(tmp_path)] == ["done"]
    with pytest.raises(StageError, match="was withdrawn"):
        forgotten(tmp_path)


def test_withdrawn_leaves_on_the_list_what_an_earlier_erasure_put_there(tmp_path: Path) -> None:
    samples = figures(12)
    samples[4] = replace(samples[4], row={"dhash64": releases.manifest_row(samples[7], None)["dhash64"]})
    unscrubbed(releases.write(tmp_path, samples))
    forgotten(tmp_path, subjects=["person-video-2"])
    listed = (tmp_path / FOLDER / SUPPRESSED).read_bytes()
    with pytest.raises(StageError, match="was withdrawn"):
        forgotten(tmp_path)
    assert (tmp_path / FOLDER / SUPPRESSED).read_bytes() == listed


def test_a_damaged_release_met_on_the_way_withdraws_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = releases.write(tmp_path, figures(12))
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.erasing.rewrite", _killed)
        with pytest.raises(KeyboardInterrupt):
            forgotten(tmp_path)
    shard = min((folder / "shards").rglob("*.parquet"))
    good = shard.read_bytes()
    shard.write_bytes(good[:-40] + bytes(40))
    with pytest.raises(StageError, match="was withdrawn"):
        forgotten(tmp_path, subjects=["person-video-0"])
    assert read_erasures(tmp_path) == ()
    shard.write_bytes(good)
    forgotten(tmp_path, subjects=["person-video-0"])
