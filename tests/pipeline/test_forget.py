"""Laws of forgetting: nothing of it is left below the root, and all else is as it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.erasures import FOLDER, forebears, read_erasures, read_suppression, replacements
from manifests.release import (
    read_release,
)
from manifests.report_index import read_index
from manifests.verify import verify_release
from pipeline import storage
from pipeline.errors import InputError, StorageError
from tests.manifests.remains import digests, remains
from tests.manifests.test_forget import contents
from tests.pipeline.forgetting import (
    AT,
    GONE,
    SUBJECT,
    actions,
    family,
    forgotten,
    needles,
    of,
    releases_of,
    report,
)
from tests.review import releases
from tests.review.releases import figures

# Everything goes, and all else stays ----------------------------------------------------------------------------------


def test_a_person_leaves_every_release_cache_page_and_report(tmp_path: Path) -> None:
    samples = family(tmp_path)
    before = {of(folder): contents(folder) for folder in releases_of(tmp_path)}
    page = report(tmp_path, releases_of(tmp_path)[0], "page.html", f"<p>{samples[5].id}</p>")
    away = tmp_path / "away" / "page.html"
    away.parent.mkdir()
    away.write_text(f'<meta name="curate-release" content="{of(releases_of(tmp_path)[1])}">')
    assert len(remains(tmp_path, needles(samples))) > 30
    done = forgotten(tmp_path)
    assert remains(tmp_path, needles(samples)) == []
    assert not page.exists()
    assert not away.exists()
    assert read_index(tmp_path) == []
    assert len(releases_of(tmp_path)) == len(done.replaced) == 3
    new = {of(folder): folder for folder in releases_of(tmp_path)}
    gone = {samples[number].id for number in GONE}
    for one in done.replaced:
        folder = new[str(one.successor)]
        assert verify_release(folder) == []
        kept = {name: row for name, row in before[one.fingerprint].items() if name not in gone}
        assert contents(folder) == kept
    assert actions(done)["release"] == {"rewrite"}
    assert actions(done)["stage"] == actions(done)["page"] == actions(done)["report"] == {"remove"}
    assert (tmp_path / "stages" / "teach").is_dir()
    assert list((tmp_path / "stages" / "label").iterdir()) == []


def test_the_tombstone_names_nothing_and_the_list_holds_what_went(tmp_path: Path) -> None:
    samples = family(tmp_path)
    done = forgotten(tmp_path)
    (tombstone,) = read_erasures(tmp_path)
    assert (tombstone.id, tombstone.state, tombstone.count) == (done.id, "done", 3)
    assert (tombstone.at, tombstone.reason) == (AT, "a person asked")
    assert not tombstone.target
    assert done.id in json.loads((releases_of(tmp_path)[0] / "release.json").read_bytes())["erasures"]
    listed = read_suppression(tmp_path)
    assert listed is not None
    for number in GONE:
        row = releases.manifest_row(samples[number], None)
        assert listed.has_frame(row["content_sha256"], 0, -1)
        assert listed.has_source(row["source_sha256"])
    assert not listed.has_source(hashlib.sha256(b"video-2").digest())
    assert remains(tmp_path / FOLDER, needles(samples)) == []


def test_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path) -> None:
    family(tmp_path)
    before = digests(tmp_path)
    told = forgotten(tmp_path, dry_run=True)
    assert digests(tmp_path) == before
    assert (told.dry_run, told.id) == (True, "")
    done = forgotten(tmp_path)
    assert (done.items, done.count, done.sources, done.frames) == (told.items, told.count, told.sources, told.frames)


def test_untouched_files_are_not_copied(tmp_path: Path) -> None:
    samples = figures(24)
    folder = releases.write(tmp_path, samples)
    before = {path.stat().st_ino for path in folder.rglob("*.parquet")}
    forgotten(tmp_path, sample_ids=[samples[6].id])
    (after,) = releases_of(tmp_path)
    assert any(path.stat().st_ino in before for path in after.rglob("*.parquet"))


def test_two_in_a_row_leave_neither_and_the_chain_can_be_followed(tmp_path: Path) -> None:
    samples = family(tmp_path)
    first, second = forgotten(tmp_path), forgotten(tmp_path, subjects=["person-video-0"], at=AT.replace(hour=13))
    numbers = (0, 1, 2, *GONE)
    assert remains(tmp_path, needles(samples, numbers) | {"uri 0": b"/videos/video-0.mp4"}) == []
    for folder in releases_of(tmp_path):
        assert verify_release(folder) == []
        assert json.loads((folder / "release.json").read_bytes())["erasures"] == sorted([first.id, second.id])
    assert {one.successor for one in first.replaced} == {one.fingerprint for one in second.replaced}
    heads = [folder for folder in releases_of(tmp_path) if not _is_behind(tmp_path, folder)]
    assert len(heads) == 1


def _is_behind(root: Path, folder: Path) -> bool:
    """Whether another release of the root came of this one, erased releases between them or not."""
    others = [other for other in releases_of(root) if other != folder]
    known = replacements(root)
    return any(of(folder) in forebears(read_release(other).parents, known) for other in others)


def test_what_looks_alike_in_its_group_is_told_and_stays(tmp_path: Path) -> None:
    samples = figures(12)
    code = releases.manifest_row(samples[3], None)["dhash64"]
    samples[4] = replace(samples[4], row={"dhash64": code ^ 0b11})
    samples[5] = replace(samples[5], row={"dhash64": code ^ 0b1111})
    samples[7] = replace(samples[7], row={"dhash64": code})
    releases.write(tmp_path, samples)
    done = forgotten(tmp_path, sample_ids=[samples[3].id], dry_run=True)
    assert [(one.sample_id, one.distance) for one in done.same_group] == [(samples[4].id, 2)]
    assert done.look_alikes == 1


def test_a_release_of_nobody_else_goes_without_a_successor(tmp_path: Path) -> None:
    releases.write(tmp_path, figures(3))
    done = forgotten(tmp_path, subjects=["person-video-0"])
    assert releases_of(tmp_path) == []
    assert [one.successor for one in done.replaced] == [None]


# What is asked wrongly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subjects": ["nobody"]}, r"subject 'nobody': named by no row of the 1 releases.*Nothing was changed"),
        ({"subjects": []}, "nothing to forget"),
        ({"reason": f"{SUBJECT} wrote to us"}, "must name nobody"),
        ({"reason": ""}, "reason must be one line"),
        ({"reason": None}, "needs a reason"),
        ({"at": AT.replace(tzinfo=None)}, "time zone"),
        ({"elsewhere": [Path("nowhere")]}, "is no folder"),
        ({"sample_ids": ["--help"]}, "32 lower-case hex digits"),
    ],
)
def test_a_bad_call_is_refused_and_nothing_is_changed(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    releases.write(tmp_path, figures(6))
    before = digests(tmp_path)
    with pytest.raises(InputError, match=message):
        forgotten(tmp_path, **given)
    assert {path: one for path, one in digests(tmp_path).items() if path != ".lock"} == before


def test_a_folder_without_releases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no releases/ and no stages/"):
        forgotten(tmp_path)


def test_what_was_forgotten_before_is_told_so(tmp_path: Path) -> None:
    family(tmp_path)
    done = forgotten(tmp_path)
    with pytest.raises(InputError, match=rf"forgotten on 2026-03-01 already \(erasure {done.id}\)"):
        forgotten(tmp_path)
    with pytest.raises(InputError, match="subject 'nobody'"):
        forgotten(tmp_path, subjects=["nobody"])


def test_while_a_run_or_another_forget_has_the_root_it_is_refused(tmp_path: Path) -> None:
    family(tmp_path)
    before = digests(tmp_path)
    with storage.lock(str(tmp_path)), pytest.raises(StorageError, match="another run is using"):
        forgotten(tmp_path)
    assert {path: one for path, one in digests(tmp_path).items() if path != ".lock"} == before
