"""Where a description of a release may lie: anywhere but in a release, whichever way the path is spelled."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.paper import PaperError, PlaceError, file_place, outside_releases, paper_path, write_paper

Spelling = Callable[[Path, Path], Path]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """The folders of two releases of two roots; of a release only `release.json` counts here."""
    folders = [tmp_path / root / "releases" / "r" for root in "ab"]
    for folder in folders:
        (folder / "shards" / "train").mkdir(parents=True)
        (folder / "release.json").write_bytes(b"{}")
        (folder / "stats.json").write_bytes(b"{}")
    return folders


SPELLED: dict[str, Spelling] = {
    "a file that is there": lambda folder, _: folder / "stats.json",
    "its own commit": lambda folder, _: folder / "release.json",
    "a new file": lambda folder, _: folder / "new.json",
    "below": lambda folder, _: folder / "shards" / "train" / "x" / "new.json",
    "the release itself": lambda folder, _: folder,
    "with dots": lambda folder, _: folder / "shards" / ".." / "stats.json",
    "relative": lambda folder, _: Path(os.path.relpath(folder / "stats.json")),
    "through a link to its folder": lambda folder, tmp: _link(tmp / "to-folder", folder) / "stats.json",
    "a link to its file": lambda folder, tmp: _link(tmp / "to-file", folder / "stats.json"),
    "a link to nothing yet": lambda folder, tmp: _link(tmp / "to-new", folder / "new.json"),
}


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("spelled", SPELLED)
def test_no_path_into_any_release_is_let_through(two: list[Path], tmp_path: Path, spelled: str) -> None:
    path = SPELLED[spelled](two[1], tmp_path)
    for ask in (outside_releases, file_place, lambda path: paper_path(two[0], path, "croissant.json")):
        with pytest.raises(PlaceError, match="which nobody may change"):
            ask(path)


def test_a_description_may_lie_beside_the_commit_of_its_own_release_alone(two: list[Path]) -> None:
    own, other = two
    for name in ("croissant.json", "datacard.md"):
        assert paper_path(own, own / name, name) == own / name
        assert paper_path(own, None, name) == own.parent.parent / "reports" / "r" / name
        for wrong in (other / name, own / "shards" / name, own / "stats.json"):
            with pytest.raises(PlaceError):
                paper_path(own, wrong, name)


def test_beside_the_releases_is_a_place(two: list[Path], tmp_path: Path) -> None:
    for path in (tmp_path / "x", two[0].parent / "unfinished" / "x", two[0].parent.parent / "reports" / "x"):
        assert outside_releases(path) == file_place(path) == path


def test_a_folder_a_device_and_a_circle_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    wrong = {"is a folder": tmp_path, "a device": Path("/dev/null"), "a pipe": tmp_path / "pipe"}
    for told, path in {**wrong, "leads nowhere": tmp_path / "circle"}.items():
        with pytest.raises(PlaceError, match=told):
            file_place(path)


def test_a_write_that_fails_says_why_once_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.md"
    path.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PaperError) as caught:
        write_paper(path, b"after")
    told = str(caught.value)
    assert "No space left on device; make room" in told
    assert told.count(str(path)) == 1
    assert "Errno" not in told
    assert path.read_bytes() == b"before"
