"""Laws of names: groups, documents and inputs of a release name nothing of what went, and nobody's call is hindered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.erasures import read_erasures, read_suppression
from manifests.release import canonical_json, read_release
from manifests.split import split_of
from manifests.successor import Edit, write_successor
from manifests.verify import verify_release
from pipeline.errors import InputError
from tests.manifests.remains import digests, remains
from tests.pipeline.forgetting import AT, actions, forgotten, of, releases_of, releases_with, stage
from tests.review import releases
from tests.review.releases import SEED, TEST, VAL, Sample, figures

URI = "/videos/video-1.mp4"
FAULT = {"source": URI, "stage": "probe", "error": "Corrupt", "message": f"cannot read {URI}", "items": 1}


def digest(number: int) -> bytes:
    return hashlib.sha256(f"picture {number}".encode()).digest()


def stills(count: int, named: str = "sha256") -> list[Sample]:
    """Stills of a person each, in families of three that are called by what their first is called."""
    found = []
    for one in figures(count):
        first, uri = one.number // 3 * 3, f"/pictures/{one.number:03d}.jpg"
        group = {"sha256": digest(first).hex(), "uri": f"/pictures/{first:03d}.jpg", "id": figures(count)[first].id}[
            named
        ]
        row = {"source_sha256": digest(one.number), "source_uri": uri, "subject_ids": [f"person-{one.number}"]}
        found.append(replace(one, group=group, row={**row, "media_kind": "image"}))
    return found


def rows(folder: Path) -> dict[str, dict[str, object]]:
    tables = [pa.parquet.read_table(path) for name in ("manifest", "dropped") for path in (folder / name).iterdir()]
    return {row["sample_id"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("named", ["sha256", "uri", "id"])
def test_a_group_called_by_what_goes_gets_a_name_that_says_nothing_in_its_split(tmp_path: Path, named: str) -> None:
    samples = stills(12, named)
    first = releases.write(tmp_path, samples)
    releases.write(tmp_path, [one for one in samples if one.number != 3], parents=(of(first),))
    before, called = rows(first), samples[3].group
    forgotten(tmp_path, subjects=["person-3"])
    forgotten(tmp_path, subjects=["person-9"], at=AT.replace(hour=13))
    needles = {"id": samples[3].id.encode(), "bytes": digest(3), "hex": digest(3).hex().encode()}
    assert remains(tmp_path, needles | {"uri": b"/pictures/003.jpg"}) == []
    names = set()
    for folder in releases_of(tmp_path):
        assert verify_release(folder) == []
        after = rows(folder)
        kin = {samples[number].id for number in (4, 5)}
        names |= {str(after[one]["group_id"]) for one in kin}
        assert {name: row["split"] for name, row in after.items()} == {name: before[name]["split"] for name in after}
        others = {name: row["group_id"] for name, row in after.items() if name not in kin}
        assert sum(group != before[name]["group_id"] for name, group in others.items()) == 2  # 10 and 11
    assert len(names) == 1
    assert called not in names
    (name,) = names
    assert split_of(name, SEED, val=VAL, test=TEST) == split_of(called, SEED, val=VAL, test=TEST)


def test_a_held_relative_that_is_kept_later_enters_the_split_of_its_group(tmp_path: Path) -> None:
    samples = stills(24)
    releases.write(tmp_path, samples)
    forgotten(tmp_path, subjects=["person-3"])
    (folder,) = releases_of(tmp_path)
    edits = {samples[4].id: Edit(decision="keep", by="review")}  # held; 5 of its family is kept
    made, _ = write_successor(folder, edits=edits, cause={"by": "test"}, at=datetime(2026, 4, 1, tzinfo=UTC))
    after = rows(made)
    assert after[samples[4].id]["split"] == after[samples[5].id]["split"] == samples[5].split
    assert verify_release(made) == []


def lineage(folder: Path, **more: object) -> Path:
    value = json.loads((folder / "lineage.json").read_bytes()) | more
    return releases_with(folder, "lineage.json", canonical_json(value))


def test_a_release_without_a_row_of_it_that_names_its_source_is_rewritten(tmp_path: Path) -> None:
    samples = figures(24)
    releases.write(tmp_path, samples)
    other = lineage(releases.write(tmp_path, [s for s in samples if s.group != "video-1"]), first_set_aside=[FAULT])
    told = forgotten(tmp_path, dry_run=True)
    assert {item.why for item in told.items if item.path == str(other)} == {"names it in its documents or groups"}
    done = forgotten(tmp_path)
    assert not other.exists()
    assert remains(tmp_path, {"uri": URI.encode()}) == []
    assert len(done.replaced) == 2
    assert all(verify_release(folder) == [] for folder in releases_of(tmp_path))
    forgotten(tmp_path, subjects=["person-video-2"], at=AT.replace(hour=13))


def test_configuration_and_inputs_lose_what_names_a_source(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, figures(24))
    config = json.loads((folder / "config.json").read_bytes())
    config["config"]["inputs"] = [URI, "/videos/video-2.mp4"]
    inputs = {**read_release(folder).inputs, "uris": [URI, "/videos/video-3.mp4"], "first": URI}
    releases_with(folder, "config.json", canonical_json(config), inputs=inputs)
    forgotten(tmp_path)
    (after,) = releases_of(tmp_path)
    assert verify_release(after) == []
    assert remains(tmp_path, {"uri": URI.encode()}) == []
    assert json.loads((after / "config.json").read_bytes())["config"]["inputs"] == ["/videos/video-2.mp4"]
    left = read_release(after).inputs
    assert (left["uris"], left["sources"], "first" in left) == (["/videos/video-3.mp4"], inputs["sources"], False)
    forgotten(tmp_path, subjects=["person-video-3"], at=AT.replace(hour=13))


# Sources that never gave a frame --------------------------------------------------------------------------------------


def broken(root: Path, uri: str) -> Path:
    """A release and a list of what was set aside that name a source of which there is no row."""
    fault = {**FAULT, "source": uri, "message": f"cannot read {uri}"}
    root.mkdir(exist_ok=True)
    (root / "quarantine.json").write_text(json.dumps([fault]))
    return lineage(releases.write(root, figures(12)), first_set_aside=[fault])


def test_a_source_that_never_gave_a_frame_is_forgotten_by_its_uri(tmp_path: Path) -> None:
    source = tmp_path / "in" / "broken.mp4"
    source.parent.mkdir()
    source.write_bytes(b"no video")
    root = tmp_path / "out"
    broken(root, str(source))
    before = rows(releases_of(root)[0])
    done = forgotten(root, source_uris=[str(source)])
    assert (done.count, done.sources, len(done.replaced)) == (0, 1, 1)
    assert remains(root, {"uri": str(source).encode()}) == []
    assert actions(done)["page"] == {"remove"}
    (after,) = releases_of(root)
    assert verify_release(after) == []
    assert rows(after) == before
    listed = read_suppression(root)
    assert listed is not None
    assert listed.has_source(hashlib.sha256(b"no video").digest())
    (tombstone,) = read_erasures(root)
    assert (tombstone.state, tombstone.count) == ("done", 0)


def test_a_source_that_is_no_longer_there_is_told_to_be_read_again(tmp_path: Path) -> None:
    broken(tmp_path, "/gone/broken.mp4")
    done = forgotten(tmp_path, source_uris=["/gone/broken.mp4"])
    assert done.sources == 0
    assert any("no sha256 is known" in text for text in done.out_of_reach)
    assert read_suppression(tmp_path) is None
    with pytest.raises(InputError, match="already"):
        forgotten(tmp_path, source_uris=["/gone/broken.mp4"])


def test_a_source_is_found_by_its_sha256_where_a_document_has_it_and_else_its_uri_is_asked_for(tmp_path: Path) -> None:
    unknown, known = digest(1).hex(), digest(2).hex()
    lineage(releases.write(tmp_path, figures(12)), duplicates=[known])
    before = digests(tmp_path)
    with pytest.raises(InputError, match=r"source '[0-9a-f]{64}': .*runs keep the uri alone: name it by that"):
        forgotten(tmp_path, source_sha256s=[unknown])
    assert {path: one for path, one in digests(tmp_path).items() if path != ".lock"} == before
    assert forgotten(tmp_path, source_sha256s=[known]).sources == 1
    assert remains(tmp_path, {"sha256": known.encode()}) == []


def test_a_uri_names_its_rows_too(tmp_path: Path) -> None:
    samples = figures(12)
    releases.write(tmp_path, samples)
    stage(tmp_path, "label", [one.id for one in samples])
    done = forgotten(tmp_path, source_uris=[URI])
    assert (done.count, done.sources) == (3, 1)
    assert remains(tmp_path, {"uri": URI.encode(), "id": samples[3].id.encode()}) == []
