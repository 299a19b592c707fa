"""Laws of the list of sources: every file once, sorted; hidden ones counted; what is missing is named."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.sources import SOURCES, list_sources


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def listed(*inputs: Path | str) -> tuple[list[str], int]:
    table, hidden = list_sources([str(i) for i in inputs])
    assert table.schema.equals(SOURCES)
    uris = table.column("uri").to_pylist()
    assert uris == sorted(set(uris))
    assert all(os.path.isabs(uri) for uri in uris)  # noqa: PTH117
    return uris, hidden


def test_a_folder_is_read_to_its_depth_with_sizes_and_times(tmp_path: Path) -> None:
    fill(tmp_path, "b.mp4", "a/deep/er.jpg", "a/x.jpg")
    os.utime(tmp_path / "b.mp4", ns=(5, 7_000_000_000))
    table, hidden = list_sources([str(tmp_path)])
    assert hidden == 0
    assert [Path(row["uri"]).relative_to(tmp_path).as_posix() for row in table.to_pylist()] == [
        "a/deep/er.jpg",
        "a/x.jpg",
        "b.mp4",
    ]
    assert table.column("bytes").to_pylist() == [13, 7, 5]
    assert table.column("modified_ns")[2].as_py() == 7_000_000_000


def test_a_file_given_in_many_ways_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/x.jpg")
    monkeypatch.chdir(tmp_path)
    ways: list[Path | str] = [
        "a/x.jpg",
        "./a/../a/x.jpg",
        str(tmp_path / "a"),
        "a/",
        "*",
        "a/*.jpg",
        "**/*.jpg",
        tmp_path / "a" / "x.jpg",
    ]
    assert listed(*ways) == ([str(tmp_path / "a" / "x.jpg")], 0)
    for way in ways:
        assert listed(way) == ([str(tmp_path / "a" / "x.jpg")], 0)


def test_hidden_files_and_folders_are_counted_and_not_read(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", ".b.jpg", ".c/d.jpg", "e/.f/g.jpg", "e/h.jpg")
    assert listed(tmp_path) == ([str(tmp_path / "a.jpg"), str(tmp_path / "e" / "h.jpg")], 3)


def test_dots_in_what_the_user_wrote_hide_nothing(tmp_path: Path) -> None:
    fill(tmp_path, ".data/v1.0/a.jpg", ".data/v1.0/.b.jpg")
    expected = ([str(tmp_path / ".data" / "v1.0" / "a.jpg")], 1)
    assert listed(tmp_path / ".data") == expected
    assert listed(tmp_path / ".data" / "v*") == expected
    assert listed(tmp_path / ".data" / "v1.0" / "a.jpg") == (expected[0], 0)


@settings(max_examples=40)
@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=6, unique=True), st.integers(0, 8))
def test_a_pattern_of_any_length_reads_names_of_any_length(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str], length: int
) -> None:
    folder = tmp_path_factory.mktemp("glob")
    fill(folder, *(f"{stem}.mp4" for stem in stems), *(f"sub-{stem}/.hidden.mp4" for stem in stems))
    expected = sorted(str(folder / f"{stem}.mp4") for stem in stems)
    assert listed(f"{folder}/*.mp4") == (expected, 0)
    assert listed(f"{folder}/[{'abs' * length}abs]*") == (expected, len(stems))


def test_a_name_that_looks_like_a_pattern_is_a_name_first(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].jpg", "a1.jpg", "d[2]/x.jpg", "d2/x.jpg")
    assert listed(tmp_path / "a[1].jpg") == ([str(tmp_path / "a[1].jpg")], 0)
    assert listed(tmp_path / "d[2]") == ([str(tmp_path / "d[2]" / "x.jpg")], 0)
    assert listed(tmp_path / "d[12]") == ([str(tmp_path / "d2" / "x.jpg")], 0)


def test_odd_names_are_names(tmp_path: Path) -> None:
    odd = ["-dash.jpg", "фото 人 ñ (copy) #1 %20.jpg", "new\nline.jpg", "UPPER.JPG", "upper.jpg", "x" * 251 + ".jpg"]
    fill(tmp_path, *odd)
    assert listed(tmp_path) == (sorted(str(tmp_path / name) for name in odd), 0)


def test_links_are_listed_by_their_own_names(tmp_path: Path) -> None:
    fill(tmp_path, "data/a.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jpg").symlink_to(tmp_path / "data" / "a.jpg")
    (tmp_path / "in" / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "in" / "loop.jpg").symlink_to("loop.jpg")
    table, _ = list_sources([str(tmp_path / "in")])
    assert [(Path(r["uri"]).name, r["bytes"]) for r in table.to_pylist()] == [
        ("dangling.jpg", 0),
        ("good.jpg", 10),
        ("loop.jpg", 0),
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"--input .*absent does not exist; check the path"):
        list_sources([str(tmp_path / "a.jpg"), str(tmp_path / "absent")])
    with pytest.raises(InputError, match=r"--input .*\*\.mp4 matches nothing; check the pattern"):
        list_sources([f"{tmp_path}/*.mp4"])


def test_an_empty_folder_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no files to read in .*; give a file, a folder or a pattern"):
        list_sources([str(tmp_path)])
    fill(tmp_path, ".hidden")
    with pytest.raises(InputError, match="no files to read"):
        list_sources([str(tmp_path)])


def test_a_name_that_is_no_utf8_is_shown_in_ascii(tmp_path: Path) -> None:
    with open(os.fsencode(str(tmp_path)) + b"/caf\xe9.jpg", "wb"):  # noqa: PTH123
        pass
    with pytest.raises(InputError, match=r"caf\\udce9\.jpg is not valid UTF-8; rename the file") as caught:
        list_sources([str(tmp_path)])
    str(caught.value).encode()


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot list the folder .*locked: Permission denied"):
        list_sources([str(tmp_path)])


def test_a_beam_file_system_that_is_not_there_is_named() -> None:
    with pytest.raises(Exception, match="nosuch://bucket/"):
        list_sources(["nosuch://bucket/"])
