"""The list of reports: whole after any number of writers, and true wherever the reports lie."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manifests.report_index import Entry, ReportError, entry_of, forget_entries, read_index, record

FINGERPRINT = "ab" * 32


def entry(root: Path, name: str, *ids: str) -> Entry:
    return entry_of(root, root / "reports" / name, FINGERPRINT, ids, images=True)


def test_a_root_without_reports_lists_none(tmp_path: Path) -> None:
    assert read_index(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_recorded_is_listed_once_by_path(tmp_path: Path) -> None:
    for name, ids in (("b.html", ["1"]), ("a.html", []), ("b.html", ["1", "2"])):
        record(tmp_path, entry(tmp_path, name, *ids))
    assert [(one.path, one.samples) for one in read_index(tmp_path)] == [("a.html", 0), ("b.html", 2)]
    forget_entries(tmp_path, ["a.html", "unknown.html"])
    assert [one.path for one in read_index(tmp_path)] == ["b.html"]


def test_writers_at_once_lose_no_entry(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record(tmp_path, entry(tmp_path, f"{number:02}.html")), range(40)))
    assert [one.path for one in read_index(tmp_path)] == [f"{number:02}.html" for number in range(40)]


@pytest.mark.parametrize("place", ["reports/a.html", "a.html", "deep/er/a.html", "../a.html"])
def test_an_entry_leads_to_its_file(tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    one = entry_of(root, root / place, FINGERPRINT, [], images=False)
    assert one.file(root) == (root / place).resolve()
    assert Path(one.path).is_absolute() == (place == "../a.html")


def test_the_order_of_the_ids_does_not_matter(tmp_path: Path) -> None:
    assert entry(tmp_path, "a.html", "1", "2") == entry(tmp_path, "a.html", "2", "1")
    assert entry(tmp_path, "a.html", "12") != entry(tmp_path, "a.html", "1", "2")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, entry(tmp_path, "a.html"))
    before = sorted(path.name for path in (tmp_path / "reports").iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ReportError, match="No space left"):
        record(tmp_path, entry(tmp_path, "b.html"))
    monkeypatch.undo()
    assert [one.path for one in read_index(tmp_path)] == ["a.html"]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == before
