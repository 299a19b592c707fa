"""Laws of what lies beside the releases: caches, audits, annotations, review logs, other folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.audit import load_audit, read_audit
from manifests.mask import encode_mask
from manifests.release import (
    canonical_json,
)
from manifests.verify import verify_release
from pipeline.audit_draw import draw_audit
from pipeline.audit_pool import release_pool
from pipeline.errors import InputError
from pipeline.forget import Forgotten
from pipeline.labels_coco import export_labels
from review.event import Reviewer
from review.log import ReviewLog
from review.query import parse_query
from tests.manifests.remains import digests, remains
from tests.pipeline.forgetting import (
    AT,
    GONE,
    SUBJECT,
    actions,
    forgotten,
    of,
    stage,
)
from tests.pipeline.media import jpeg
from tests.review import releases
from tests.review.releases import Sample, figures


def test_only_stages_that_an_untouched_release_vouches_for_stay(tmp_path: Path) -> None:
    samples = figures(24)
    named = stage(tmp_path, "embed", [samples[4].id])
    silent, vouched, own = (
        stage(tmp_path, "fold", [one.id for one in samples[12 : 12 + number]], number) for number in (1, 2, 3)
    )
    unfinished = stage(tmp_path, "score", [])
    (unfinished / "_MANIFEST.json").unlink()
    digest = {folder: json.loads((folder / "_MANIFEST.json").read_bytes())["digest"] for folder in (vouched, own)}
    for digests_, part in ((digest[vouched], samples[12:]), (digest[own], samples[:12])):
        made_by(tmp_path, part, digests_)
    forgotten(tmp_path)
    assert [folder.is_dir() for folder in (named, silent, vouched, own, unfinished)] == [
        False,
        False,
        True,
        False,
        False,
    ]


def made_by(root: Path, samples: list[Sample], digest: str) -> Path:
    """A release whose lineage names a stage."""
    folder = releases.write(root, samples)
    data = canonical_json({"run_id": "x", "stages": {"fold": {"digest": digest, "parts": 1}}, "set_aside": {}})
    listing = json.loads((folder / "release.json").read_bytes())
    for entry in listing["files"]:
        if entry["path"] == "lineage.json":
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "lineage.json").write_bytes(data)
    (folder / "release.json").write_bytes(canonical_json(listing))
    assert verify_release(folder) == []
    return folder


def test_frames_leave_an_audit_with_their_masks_and_the_rest_stays_good(tmp_path: Path) -> None:
    samples = figures(48)
    folder = releases.write(tmp_path / "root", samples)
    audit, _ = draw_audit(release_pool(folder), tmp_path / "audit", size=30, seed=1, coco=True)
    drawn = [one for one in audit.samples if one.sample_id in {samples[number].id for number in (0, 1, 2, *GONE)}]
    assert drawn
    by_id = {one.id: one for one in samples}
    (tmp_path / "audit" / "masks").mkdir(exist_ok=True)
    for one in audit.samples:
        (tmp_path / "audit" / "masks" / f"{one.name}.png").write_bytes(encode_mask(by_id[one.sample_id].mask))
    kept = [one for one in audit.samples if one not in drawn]
    before = {name: digest for name, digest in digests(tmp_path / "audit").items() if Path(name).stem in names(kept)}
    done = forgotten(tmp_path / "root", subjects=[SUBJECT, "person-video-0"], elsewhere=[tmp_path / "audit"])
    assert actions(done)["audit"] == {"edit"}
    assert [one.sample_id for one in load_audit(tmp_path / "audit").samples] == [one.sample_id for one in kept]
    masks, unfinished = read_audit(tmp_path / "audit")
    assert (len(masks), unfinished) == (len(kept), 0)
    after = {name: digest for name, digest in digests(tmp_path / "audit").items() if Path(name).stem in names(kept)}
    assert after == before
    listed = json.loads((tmp_path / "audit" / "annotations.json").read_bytes())["images"]
    assert [Path(image["file_name"]).stem for image in listed] == [one.name for one in kept]
    jpegs = {one.name: releases.shard_row(by_id[one.sample_id]).image_jpeg for one in drawn}
    assert remains(tmp_path, jpegs | {one.sample_id: one.sample_id.encode() for one in drawn}) == []


def names(drawn: Iterable[Any]) -> set[str]:
    return {one.name for one in drawn}


def test_an_audit_of_nothing_else_goes_whole(tmp_path: Path) -> None:
    folder = releases.write(tmp_path / "root", figures(3))
    draw_audit(release_pool(folder), tmp_path / "root" / "audit", size=3, seed=1)
    forgotten(tmp_path / "root", subjects=["person-video-0"])
    assert not (tmp_path / "root" / "audit").exists()


def test_trainings_and_comments_are_told_and_pictures_of_trainings_go(tmp_path: Path) -> None:
    samples = figures(12)
    folder = releases.write(tmp_path, samples)
    for name, digest in (("mine", of(folder)), ("other", "0" * 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"identity": {"release": digest}}))
        (tmp_path / name / "batch.jpg").write_bytes(jpeg(1))
    log = tmp_path / "reviews" / of(folder)
    log.mkdir(parents=True)
    target = {"ids": [samples[4].id]}
    (log / f"{0:020d}.json").write_bytes(canonical_json({"type": "comment", "target": target, "text": "looks ill"}))
    (log / f"{1:020d}.json").write_bytes(canonical_json({"type": "sample_decision", "target": target}))
    kept = digests(log)
    done = forgotten(tmp_path)
    told = {item.path for item in done.items if item.action == "tell"}
    assert told == {str(tmp_path / "mine"), str(log), str(log / f"{0:020d}.json")}
    assert [(tmp_path / name / "batch.jpg").exists() for name in ("mine", "other")] == [False, True]
    assert digests(log) == kept


def test_a_release_of_another_root_is_told_and_not_touched(tmp_path: Path) -> None:
    samples = figures(12)
    releases.write(tmp_path / "root", samples)
    other = releases.write(tmp_path / "root" / "old", samples[:6])
    before = digests(other)
    done = forgotten(tmp_path / "root")
    assert [item.path for item in done.items if (item.kind, item.action) == ("release", "tell")] == [str(other)]
    assert digests(other) == before


def test_bytes_with_a_name_outside_are_told(tmp_path: Path) -> None:
    folder = releases.write(tmp_path / "root", figures(12))
    shard = next(iter(sorted((folder / "shards").rglob("*.parquet"))))
    os.link(shard, tmp_path / "copy.parquet")
    done = forgotten(tmp_path / "root")
    assert [item.path for item in done.items if item.kind == "link"] == [str(folder)]


def test_files_that_only_name_the_source_are_told(tmp_path: Path) -> None:
    releases.write(tmp_path, figures(12))
    (tmp_path / "attributes.csv").write_text("source,tone\n/videos/video-1.mp4,dark\n")
    done = forgotten(tmp_path)
    assert [item.path for item in done.items if item.action == "tell"] == [str(tmp_path / "attributes.csv")]
    assert (tmp_path / "attributes.csv").exists()


def test_a_release_that_was_never_committed_goes_if_it_holds_it(tmp_path: Path) -> None:
    samples = figures(12)
    releases.write(tmp_path, samples)
    left = [releases.write(tmp_path / name, part) for name, part in (("a", samples[:6]), ("b", samples[6:]))]
    for folder in left:
        (folder / "release.json").unlink()
        folder.rename(tmp_path / "releases" / folder.name)
    forgotten(tmp_path)
    assert not (tmp_path / "releases" / left[0].name).exists()
    assert (tmp_path / "releases" / left[1].name).exists()


# Review logs ----------------------------------------------------------------------------------------------------------


def logged(folder: Path, samples: list[Sample]) -> ReviewLog:
    """A log with events that say something of a sample that goes, and events that do not."""
    log, who = ReviewLog.open(folder), Reviewer(name="ann")
    goes, stays = {"ids": [samples[4].id]}, {"ids": [samples[0].id]}
    facts: dict[str, Any] = {"verdict": "reject", "adjudicates": False}
    frozen = log.freeze([samples[4].id])
    log.append("sample_decision", reviewer=who, at=AT, target=goes, reasons=["asked by her"], **facts)  # 0: told
    log.append("sample_decision", reviewer=who, at=AT, target=goes, reasons=[], **facts)
    log.append("sample_decision", reviewer=who, at=AT, target=stays, reasons=["too dark"], **facts)
    log.append("comment", reviewer=who, at=AT, target=goes, text="looks ill")  # 3: told
    log.append("comment", reviewer=who, at=AT, target=stays, text=f"as {SUBJECT} wrote")  # 4: told
    target = {"query": {"group": "video-1"}, "ids_sha256": frozen, "count": 1}
    log.append("bulk_decision", reviewer=who, at=AT, target=target, verdict="reject", reasons=[])  # 5: told
    assert log.verify() == []
    return log


TOLD = [f"{number:020d}.json" for number in (0, 3, 4, 5)]


def told_events(done: Forgotten) -> list[str]:
    return sorted(Path(item.path).name for item in done.items if item.kind == "review" and item.path.endswith(".json"))


def test_every_event_with_words_on_a_sample_that_goes_is_told(tmp_path: Path) -> None:
    samples = figures(12)
    folder = releases.write(tmp_path, samples)
    logged(folder, samples)
    before = digests(tmp_path / "reviews")
    assert told_events(forgotten(tmp_path)) == TOLD
    assert digests(tmp_path / "reviews") == before


def test_logs_of_releases_that_an_earlier_erasure_removed_are_told_too(tmp_path: Path) -> None:
    samples = figures(12)
    logged(releases.write(tmp_path, samples), samples)
    forgotten(tmp_path, subjects=["person-video-2"])
    assert told_events(forgotten(tmp_path, at=AT.replace(hour=13))) == TOLD


def test_no_log_of_any_root_is_touched_however_it_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = figures(12)
    own, other = (releases.write(tmp_path / name, samples) for name in ("own", "other"))
    first, second = (logged(folder, samples) for folder in (own, other))
    forgotten(tmp_path / "other", sample_ids=[samples[1].id])
    kept = {name: digests(tmp_path / name / "reviews") for name in ("own", "other")}
    erased = digests(tmp_path / "other" / "erasures")
    monkeypatch.chdir(tmp_path)
    searched = [tmp_path / "other", Path("other/reviews"), tmp_path / "other" / "reviews" / second.fingerprint]
    searched += [Path("own/reviews"), tmp_path / "own" / "releases"]
    done = forgotten(Path("own"), elsewhere=searched)
    assert {name: digests(tmp_path / name / "reviews") for name in ("own", "other")} == kept
    assert digests(tmp_path / "other" / "erasures") == erased
    assert any(Path(i.path).resolve() == tmp_path / "other" / "reviews" for i in done.items if i.action == "tell")
    assert first.fingerprint in {path.name for path in (tmp_path / "own" / "reviews").iterdir()}


@pytest.mark.parametrize("folder", ["root/..", "root/../root", "."])
def test_a_search_of_the_root_itself_or_what_holds_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    releases.write(tmp_path / "root", figures(6))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="holds the output root itself"):
        forgotten(Path("root"), elsewhere=[Path(folder)])


# Annotations, compressed files, loose files ---------------------------------------------------------------------------


def test_annotations_of_other_samples_stay(tmp_path: Path) -> None:
    samples = figures(12)
    folder = releases.write(tmp_path / "root", samples)
    export_labels(folder, tmp_path / "labels", query=parse_query({}))
    names = ("annotations.json", "label_studio.json")
    before = {name: json.loads((tmp_path / "labels" / name).read_bytes()) for name in names}
    forgotten(tmp_path / "root", elsewhere=[tmp_path / "labels"])
    gone = {samples[number].id for number in GONE}
    assert remains(tmp_path / "labels", {one: one.encode() for one in gone}) == []
    after = {name: json.loads((tmp_path / "labels" / name).read_bytes()) for name in names}
    images = [one for one in before[names[0]]["images"] if one["sample_id"] not in gone]
    assert 0 < len(images) < len(before[names[0]]["images"])
    ids = {one["id"] for one in images}
    annotations = [one for one in before[names[0]]["annotations"] if one["image_id"] in ids]
    assert after[names[0]] == {**before[names[0]], "images": images, "annotations": annotations}
    assert after[names[1]] == [one for one in before[names[1]] if not any(name in json.dumps(one) for name in gone)]


def test_annotations_of_nothing_else_go_and_xml_is_told(tmp_path: Path) -> None:
    samples = figures(12)
    releases.write(tmp_path, samples)
    image = {"id": 1, "file_name": f"{samples[3].id}.jpg"}
    (tmp_path / "coco.json").write_text(json.dumps({"images": [image], "annotations": []}))
    (tmp_path / "cvat.xml").write_text(f'<image name="{samples[3].id}.jpg"/>')
    done = forgotten(tmp_path)
    assert not (tmp_path / "coco.json").exists()
    assert [item.path for item in done.items if item.action == "tell"] == [str(tmp_path / "cvat.xml")]


def test_compressed_files_are_told(tmp_path: Path) -> None:
    releases.write(tmp_path, figures(12))
    (tmp_path / "labels.json.gz").write_bytes(gzip.compress(b"{}"))
    np.savez_compressed(tmp_path / "masks.npz", a=np.zeros(9))
    done = forgotten(tmp_path, dry_run=True)
    told = {item.path for item in done.items if "cannot be searched" in item.why}
    assert told == {str(tmp_path / name) for name in ("labels.json.gz", "masks.npz")}


def test_loose_files_beside_stages_and_releases_are_searched(tmp_path: Path) -> None:
    samples = figures(12)
    releases.write(tmp_path, samples)
    stage(tmp_path, "label", [])
    loose = [tmp_path / place / "list.csv" for place in ("stages", "stages/label", "releases")]
    for path in loose:
        path.write_text(samples[4].id)
    (tmp_path / "stages" / "note.txt").write_text(samples[6].id)
    forgotten(tmp_path)
    assert [path.exists() for path in loose] == [False] * 3
    assert (tmp_path / "stages" / "note.txt").exists()
