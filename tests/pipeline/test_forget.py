"""Laws of forgetting: nothing of it is left below the root, all else is as it was, and it does not come back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from manifests.audit import load_audit, read_audit
from manifests.erasures import FOLDER, KEY, forebears, read_erasures, read_suppression, replacements
from manifests.mask import encode_mask
from manifests.release import canonical_json, fingerprint, read_release, read_release_bytes
from manifests.report_index import entry_of, read_index, record
from manifests.verify import verify_release
from pipeline import storage
from pipeline.audit_draw import draw_audit
from pipeline.audit_pool import release_pool
from pipeline.choice import embed_work, survey
from pipeline.errors import InputError, StageError, StorageError
from pipeline.forget import Forgotten, forget
from pipeline.job import Job
from pipeline.stage import Span, iter_tables
from tests.manifests.remains import digests, remains
from tests.manifests.test_forget import contents
from tests.pipeline.chains import step
from tests.pipeline.media import jpeg, moving, texture, video
from tests.review import releases
from tests.review.releases import Sample, figures

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUBJECT = "person-video-1"  # samples 3 (dropped, with pixels), 4 (held), 5 (kept)
GONE = (3, 4, 5)


def of(folder: Path) -> str:
    return fingerprint(read_release_bytes(folder))


def forgotten(root: Path, **given: Any) -> Forgotten:
    selection = given if set(given) & {"subjects", "sample_ids", "source_sha256s"} else {"subjects": [SUBJECT], **given}
    return forget(root, **{"reason": "a person asked", "at": AT, **selection})


def actions(done: Forgotten) -> dict[str, set[str]]:
    """Kind of thing -> what became of things of that kind."""
    found: dict[str, set[str]] = {}
    for item in done.items:
        found.setdefault(item.kind, set()).add(item.action)
    return found


def stage(root: Path, name: str, ids: Iterable[str], number: int = 0) -> Path:
    """A finished stage of rows that have these ids."""
    (root / "stages" / name).mkdir(parents=True, exist_ok=True)
    folder = root / "stages" / name / f"{number:020x}"
    step(name, folder, [pa.table({"sample_id": pa.array(list(ids), pa.string()), "n": [number] * len(list(ids))})])
    return folder


def family(root: Path) -> list[Sample]:
    """Three releases, each from the one before; a cache, pages and reports that speak of their samples."""
    samples = figures(24)
    first = releases.write(root, samples[:18])
    second = releases.write(root, samples, parents=(of(first),))
    releases.write(root, samples[:12], parents=(of(second),))
    stage(root, "label", [one.id for one in samples])
    stage(root, "teach", [])
    (root / "selection.html").write_text(f"<img src=x> {samples[4].id}")
    (root / "quarantine.json").write_text('[{"source":"/videos/video-1.mp4"}]')
    (root / "next").mkdir()
    (root / "next" / "label_first.csv").write_text(f"rank,sample_id\n1,{samples[3].id}\n")
    return samples


def report(root: Path, folder: Path, name: str, text: str) -> Path:
    entry = entry_of(root, root / "reports" / name, of(folder), [], images=True)
    record(root, entry)
    path = entry.file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def releases_of(root: Path) -> list[Path]:
    return sorted(file.parent for file in (root / "releases").glob("*/release.json"))


def needles(samples: list[Sample], numbers: Iterable[int] = GONE) -> dict[str, bytes]:
    found = {"uri": b"/videos/video-1.mp4", "subject": SUBJECT.encode()}
    for number in numbers:
        row = releases.manifest_row(samples[number], None)
        found |= {
            f"id {number}": samples[number].id.encode(),
            f"jpeg {number}": releases.shard_row(samples[number]).image_jpeg,
            f"content {number}": row["content_sha256"],
            f"content hex {number}": row["content_sha256"].hex().encode(),
        }
    return found


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


# Caches, audits, and what cannot be reached ---------------------------------------------------------------------------


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


# Killed, and full disks -----------------------------------------------------------------------------------------------

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
cuts = sorted({1 + (events - 3) * n // 10 for n in range(11)})
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
    samples = family(tmp_path / "root")
    result = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    codes = dict(line.split() for line in result.stdout.splitlines()[1:])
    cuts = sorted(int(path.name[4:]) for path in tmp_path.glob("cut-*"))
    assert len(cuts) == 11
    for cut in cuts:
        root = tmp_path / f"cut-{cut}"
        (tombstone,) = read_erasures(root)
        assert (tombstone.state, tombstone.count) == ("done", 3)
        assert remains(root, needles(samples)) == []
        assert len(releases_of(root)) == 3
        assert all(verify_release(folder) == [] for folder in releases_of(root))
        # 3: the second call had ended it, and the third is told so
        assert codes[str(cut)] in ("0", "3")
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp") or ".successor-" in path.name]


def test_a_full_disk_leaves_the_releases_and_the_next_call_goes_on(
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
    assert [erasure.state for erasure in read_erasures(tmp_path)] == ["planned"]
    done = forgotten(tmp_path, subjects=["person-video-0"], at=AT.replace(hour=13))
    assert len(done.finished) == 1
    assert remains(tmp_path, needles(samples, (0, 1, 2, *GONE))) == []


def test_a_release_that_came_between_is_rewritten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = family(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.forget.rewrite", _fail)
        with pytest.raises(StageError):
            forgotten(tmp_path)
    late = releases.write(tmp_path, samples[2:9])
    forgotten(tmp_path)
    assert not late.exists()
    assert remains(tmp_path, needles(samples)) == []


def _fail(*_: object) -> None:
    raise StageError("as if")


# It does not come back ------------------------------------------------------------------------------------------------


def job(root: Path, inputs: Path) -> Job:
    return Job(inputs=(str(inputs),), labelled=root, output=str(root), target=4, max_bad=0.0)


def probed(root: Path, inputs: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows and counts of the real first stages; the quarantine is in the root."""
    stages = survey(job(root, inputs))
    rows = [row for table in iter_tables(stages["probe"].uris()) for row in table.to_pylist()]
    counts = stages["probe"].counts
    assert counts["read"] == counts["undecodable"] + counts["duplicate"] + counts["not_sampled"] + len(rows)
    return rows, dict(counts)


def recompressed(seed: int, quality: int) -> bytes:
    return bytes(cv2.imencode(".jpg", texture(seed)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


@pytest.fixture
def read_root(tmp_path: Path) -> Path:
    """An output whose inputs were read: a video, three stills."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "clip.mp4").write_bytes(video(moving(30, seed=1)))
    for seed in (1, 2, 3):
        (inputs / f"still-{seed}.jpg").write_bytes(recompressed(seed, 95))
    (tmp_path / "out").mkdir()
    probed(tmp_path / "out", inputs)
    return tmp_path


def test_a_source_a_frame_and_its_likeness_are_not_read_again(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, before = probed(root, inputs)
    still = next(row for row in rows if row["source_uri"].endswith("still-1.jpg"))
    clip = [row for row in rows if row["source_uri"].endswith("clip.mp4")]
    assert len(clip) > 1
    forgotten(root, sample_ids=[still["sample_id"]], source_sha256s=[clip[0]["source_sha256"].hex()])
    assert remains(root, {"still": still["sample_id"].encode(), "clip": clip[0]["sample_id"].encode()}) == []
    (inputs / "still-1.jpg").rename(inputs / "other name.jpg")
    (inputs / "smaller.jpg").write_bytes(recompressed(1, 80))
    (inputs / "clip again.mp4").write_bytes((inputs / "clip.mp4").read_bytes())
    again, counts = probed(root, inputs)
    assert {Path(row["source_uri"]).name for row in again} == {"still-2.jpg", "still-3.jpg"}
    assert counts["not_sampled"] >= 5 - 1
    faults = json.loads((root / "quarantine.json").read_bytes())
    assert {fault["error"] for fault in faults} == {"Erased"}
    assert {fault["source"] for fault in faults} == {""}
    assert sum(fault["items"] for fault in faults) == 4
    assert counts["bad"] == 0
    assert before["bad"] == 0


def test_frames_of_a_video_are_left_out_one_by_one(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, counts = probed(root, inputs)
    clip = [row for row in rows if row["source_uri"].endswith("clip.mp4")]
    forgotten(root, sample_ids=[clip[1]["sample_id"]])
    again, less = probed(root, inputs)
    left = {row["sample_id"] for row in again}
    near = {row["sample_id"] for row in rows if (row["dhash64"] ^ clip[1]["dhash64"]).bit_count() <= 3}
    assert left == {row["sample_id"] for row in rows} - near
    assert clip[0]["sample_id"] in left
    assert less["read"] == counts["read"]


def test_another_list_is_another_stage_and_no_list_none(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    first = survey(job(root, inputs))["probe"].folder
    assert survey(job(root, inputs))["probe"].folder == first
    rows, _ = probed(root, inputs)
    stills = [row["sample_id"] for row in rows if row["source_uri"].endswith(".jpg")]
    folders = {first}
    for number, sample in enumerate(stills[:2]):
        forgotten(root, sample_ids=[sample], at=AT.replace(hour=number))
        folders.add(survey(job(root, inputs))["probe"].folder)
    assert len(folders) == 3


@pytest.mark.parametrize("damage", ["lost", "exchanged"])
def test_without_the_key_nothing_is_read(read_root: Path, damage: str) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, _ = probed(root, inputs)
    forgotten(root, sample_ids=[rows[-1]["sample_id"]])
    key = root / FOLDER / KEY
    if damage == "lost":
        key.unlink()
    else:
        key.write_bytes(bytes(32))
    with pytest.raises(InputError, match="key"):
        survey(job(root, inputs))


def test_a_run_reads_on_where_everything_was_erased_and_says_that_nothing_is_left(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, _ = probed(root, inputs)
    forgotten(root, source_sha256s=sorted({row["source_sha256"].hex() for row in rows}))
    with pytest.raises(InputError, match="no readable input"):
        survey(job(root, inputs))


def test_vectors_and_thumbnails_go_with_the_caches(tmp_path: Path) -> None:
    """Every stage up to the embedding, for real: no vector and no picture of the frame is left in any of them."""
    root, inputs = tmp_path / "out", tmp_path / "in"
    inputs.mkdir()
    root.mkdir()
    for seed in range(4):
        (inputs / f"still-{seed}.jpg").write_bytes(recompressed(seed, 95))
    stages = survey(job(root, inputs))
    run = job(root, inputs)
    embed = run.stage(embed_work(run.config), [(Span(uri=uri),) for uri in stages["probe"].uris()], stages["probe"])
    (row, *_) = (row for table in iter_tables(embed.uris()) for row in table.to_pylist())
    vector = np.array(row["vector"], np.float16).tobytes()
    assert remains(root, {"vector": vector, "picture": row["thumbnail"]}) != []
    forgotten(root, sample_ids=[row["sample_id"]])
    assert remains(root, {"vector": vector, "picture": row["thumbnail"], "id": row["sample_id"].encode()}) == []
