import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import staging
from manifests.diff import compare
from manifests.mask import components, decode_mask, mask_sha256
from manifests.release import FileEntry, Release, read_release, render_release, sha256_hex, write_release
from manifests.schema import SINCE
from manifests.shard import PIXELS, encode_parquet
from manifests.successor import Assertion, Edit, SuccessorError, write_successor
from manifests.verify import verify_release
from tests.review import releases

AT = datetime(2026, 1, 3, 12, tzinfo=UTC)
CAUSE = {"by": "test"}
SAMPLES = [dataclasses.replace(sample, audit=sample.number % 4 == 1) for sample in releases.figures(48)]


def _of(decision: str, *, audit: bool = True) -> list[releases.Sample]:
    return [
        sample for sample in SAMPLES if sample.decision == decision and (decision != "drop" or sample.audit == audit)
    ]


KEPT, HELD, DROPPED, LOST = _of("keep"), _of("hold"), _of("drop"), _of("drop", audit=False)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Path]:
    """A release, whose files must be the same after the test as before."""
    folder = releases.write(tmp_path, SAMPLES)
    before = _digests(folder)
    yield folder
    assert _digests(folder) == before


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write(parent: Path, edits: dict[str, Edit], **more: Any) -> Path:
    folder, digest = write_successor(parent, edits=edits, cause=CAUSE, at=AT, **more)
    assert hashlib.sha256((folder / "release.json").read_bytes()).hexdigest() == digest
    assert verify_release(folder) == []
    return folder


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row of manifest/ and dropped/ by id."""
    files = [*sorted((folder / "manifest").iterdir()), *sorted((folder / "dropped").iterdir())]
    return {row["sample_id"]: row for file in files for row in pq.ParquetFile(file).read().to_pylist()}


def _pixels(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row of every shard by id, and the split that it is in."""
    return {
        row["sample_id"]: {**row, "split": file.parent.name}
        for file in sorted(folder.glob("shards/*/*.parquet"))
        for row in pq.ParquetFile(file).read().to_pylist()
    }


def _decided(decision: str, *reasons: str) -> Edit:
    return Edit(decision=decision, reasons=tuple(reasons), by="review")


def _redrawn(mask: releases.Mask, **more: Any) -> Edit:
    return Edit(mask=mask, label_source="human_corrected", **more)


def test_a_decision_moves_the_row_and_its_pixels(parent: Path) -> None:
    kept, held, dropped = KEPT[0].id, HELD[0].id, DROPPED[0].id
    edits = {kept: _decided("drop", "blurred"), held: _decided("keep"), dropped: _decided("hold", "look again")}
    folder = _write(parent, edits)
    rows, pixels = _rows(folder), _pixels(folder)
    split = dataclasses.replace(HELD[0], decision="keep").split
    told = ("decision", "split", "verdict", "decision_reasons", "decision_by")
    assert [rows[kept][name] for name in told] == ["drop", "dropped", "drop", ["blurred"], "review"]
    assert [rows[held][name] for name in told] == ["keep", split, "keep", [], "review"]
    assert [rows[dropped][name] for name in told] == ["hold", "hold", "hold", ["look again"], "review"]
    assert [pixels[one]["split"] for one in (kept, held, dropped)] == ["audit", split, "hold"]
    assert [pixels[one]["weight"] for one in (kept, held, dropped)] == [0.0, 1.0, 0.0]


def test_a_decision_taken_back_gives_the_rows_of_the_parent_again(parent: Path) -> None:
    told = {"decision_reasons", "decision_by", "verdict"}
    kept = next(sample for sample in KEPT if sample.teacher_mask is None)
    folder = _write(_write(parent, {kept.id: _decided("drop")}), {kept.id: _decided("keep")})
    assert [{k: v for k, v in row.items() if k not in told} for _, row in sorted(_rows(folder).items())] == [
        {k: v for k, v in row.items() if k not in told} for _, row in sorted(_rows(parent).items())
    ]
    assert _pixels(folder) == _pixels(parent)


def test_an_approved_kept_row_keeps_its_pixels_weight_and_verdict(parent: Path) -> None:
    corrected = next(sample for sample in KEPT if sample.teacher_mask is not None)
    folder = _write(parent, {corrected.id: _decided("keep", "review: approve")})
    row = _rows(folder)[corrected.id]
    assert (row["verdict"], row["decision_by"], row["decision_reasons"]) == ("correct", "review", ["review: approve"])
    assert _pixels(folder) == _pixels(parent)
    assert all(
        (folder / entry.path).stat().st_nlink == 2 for entry in read_release(folder).files if "shards" in entry.path
    )


def test_files_that_no_edit_reaches_are_hard_links_to_the_parents(parent: Path) -> None:
    folder = _write(parent, {HELD[0].id: _decided("drop")})
    before, after = _digests(parent), _digests(folder)
    same = {path for path in after if before.get(path) == after[path]}
    assert {path for path in same if (folder / path).stat().st_ino == (parent / path).stat().st_ino} == same
    assert same >= {path for path in before if path.startswith(("shards/train", "embeddings", "evidence", "config"))}


def test_a_human_mask_replaces_the_label_and_keeps_the_teachers(parent: Path) -> None:
    plain = next(sample for sample in KEPT if sample.teacher_mask is None)
    corrected = next(sample for sample in KEPT if sample.teacher_mask is not None)
    fresh = {one.id: np.roll(one.mask, 5, axis=0) for one in (plain, corrected)}
    folder = _write(parent, {one: _redrawn(mask) for one, mask in fresh.items()})
    rows, pixels, before = _rows(folder), _pixels(folder), _rows(parent)
    teachers = {plain.id: plain.mask, corrected.id: corrected.teacher_mask}
    for one, mask in fresh.items():
        row, shard = rows[one], pixels[one]
        assert row["mask_sha256"] == shard["mask_sha256"] == mask_sha256(mask)
        assert (row["mask_area_px"], row["mask_components"]) == (mask.sum(), components(mask))
        assert (row["label_source"], row["verdict"], shard["weight"]) == ("human_corrected", "keep", 1.0)
        assert row["label_confidence"] is row["boundary_uncertainty"] is shard["label_confidence"] is None
        assert np.array_equal(decode_mask(shard["mask"]["bytes"], mask.size), mask)
        assert np.array_equal(decode_mask(shard["teacher_mask"]["bytes"], mask.size), teachers[one])
        told = ("decision", "split", "decision_by", "student_iou", "teacher_id", "shard", "shard_row", "judge")
        assert [row[name] for name in told] == [before[one][name] for name in told]
    back = _write(folder, {plain.id: _redrawn(plain.mask)})
    assert _pixels(back)[plain.id]["teacher_mask"] is None, "the mask is the teacher's again"


def test_a_mask_of_another_size_than_the_frame_is_refused(parent: Path) -> None:
    with pytest.raises(SuccessorError, match=f"another size than the frame: {KEPT[0].id} .121x90, frame 120x90."):
        _write(parent, {KEPT[0].id: _redrawn(np.zeros((90, 121), np.bool_)), HELD[0].id: _decided("keep")})
    assert len(list(parent.parent.iterdir())) == 1


def test_the_pixels_that_a_person_left_out_are_kept_as_ignore(parent: Path) -> None:
    ignore = np.zeros_like(KEPT[0].mask)
    ignore[:4] = True
    folder = _write(parent, {KEPT[0].id: _redrawn(~KEPT[0].mask, ignore=ignore)})
    found = _pixels(folder)[KEPT[0].id]["ignore"]["bytes"]
    assert np.array_equal(decode_mask(found, ignore.size), ignore)


def test_assertions_are_added_to_the_evidence(parent: Path) -> None:
    said = Assertion(
        name="mask", value="redrawn", provenance="human", source_id="cvat: a.json", source_sha256=bytes(32)
    )
    folder = _write(parent, {KEPT[0].id: Edit(evidence=(said,)), LOST[0].id: Edit(evidence=(said, said))})
    before, after = (pq.ParquetFile(next((f / "evidence").iterdir())).read().to_pylist() for f in (parent, folder))
    fresh = [row for row in after if row["name"] == "mask"]
    assert [row for row in after if row["name"] != "mask"] == before
    assert sorted(row["sample_id"] for row in fresh) == sorted([KEPT[0].id, LOST[0].id, LOST[0].id])
    assert {(row["recorded_at"], row["source_id"], row["provenance"]) for row in fresh} == {
        (AT, "cvat: a.json", "human")
    }
    assert compare(parent, folder).empty


def test_evidence_that_would_contradict_an_attribute_is_refused(parent: Path) -> None:
    said = Assertion(name="lighting_level", value="dark", provenance="human", source_id="me")
    with pytest.raises(SuccessorError, match="lighting_level"):
        _write(parent, {KEPT[0].id: Edit(evidence=(said,))})


def test_nothing_of_a_removed_sample_stays(parent: Path, tmp_path: Path) -> None:
    lineage = json.loads((parent / "lineage.json").read_bytes())
    gone = [KEPT[0], HELD[0], DROPPED[0], LOST[0]]
    source = f"/videos/{KEPT[0].group}.mp4"
    mine = [sample for sample in SAMPLES if sample.group == KEPT[0].group and sample not in gone]
    lineage["first_set_aside"] = [{"source": source, "error": "x"}, {"source": "/videos/other.mp4", "error": "y"}]
    spoken = _with_document(parent, "lineage.json", lineage)
    remove = {sample.id for sample in (*gone, *mine)}
    folder = _write(spoken, {}, remove=remove, erasures=["e-1"])
    pixels = _pixels(parent)
    needles = [one.encode() for one in remove]
    needles += [pixels[one]["image"]["bytes"] for one in remove if one in pixels]
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
            data += repr(table.to_pylist()).encode()
            assert not remove & set(table.column("sample_id").to_pylist())
        assert not [needle for needle in needles if needle in data], path
    assert json.loads((folder / "lineage.json").read_bytes())["first_set_aside"] == lineage["first_set_aside"][1:]
    old, new = read_release(parent), read_release(folder)
    assert new.counts.read == old.counts.read - len(remove)
    assert new.erasures == ("e-1",)
    rows = _rows(folder)
    assert set(rows) == {sample.id for sample in SAMPLES} - remove
    vectors = pq.ParquetFile(next((folder / "embeddings").iterdir())).read().column("sample_id").to_pylist()
    told = {row["sample_id"]: row["embedding_row"] for row in rows.values() if row["embedding_row"] is not None}
    assert {one: vectors[at] for one, at in told.items()} == {one: one for one in told}
    assert not (tmp_path / "reviews").exists()


def test_a_document_loses_what_names_a_removed_sample_and_one_that_is_no_json_is_refused(parent: Path) -> None:
    examples = {"examples": [KEPT[0].id, KEPT[1].id], "best": f"of {KEPT[0].id}", "number": 7}
    made = _write(_with_document(parent, "config.json", examples), {}, remove={KEPT[0].id})
    assert json.loads((made / "config.json").read_bytes()) == {"examples": [KEPT[1].id], "number": 7}
    data = f"examples: {KEPT[0].id}".encode()
    entry = FileEntry(path="config.json", bytes=len(data), sha256=sha256_hex(data))
    spoken = _republished(parent, {"config.json": (entry, data)})
    with pytest.raises(SuccessorError, match=r"config\.json: names a sample.*no JSON.*no release was written"):
        _write(spoken, {}, remove={KEPT[0].id})


def test_rows_of_a_renamed_group_keep_all_else(parent: Path) -> None:
    group = KEPT[0].group
    kin = {one.id for one in SAMPLES if one.group == group}
    made = _write(parent, {}, groups={group: "another"})
    before, after = _rows(parent), _rows(made)
    assert {name for name, row in after.items() if row["group_id"] == "another"} == kin
    assert {name: row | {"group_id": before[name]["group_id"]} for name, row in after.items()} == before


def _with_document(folder: Path, name: str, value: Any) -> Path:
    """The release again with another document, in a root of its own."""
    data = json.dumps(value).encode()
    entry = FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data))
    return _republished(folder, {name: (entry, data)})


def _republished(folder: Path, changed: dict[str, tuple[FileEntry, bytes]], **fields: Any) -> Path:
    release = read_release(folder)
    target = folder.parent.parent / f"root-{len(list(folder.parent.parent.iterdir()))}" / "releases" / "other"
    entries = []
    for entry in release.files:
        fresh, data = changed.get(entry.path, (entry, (folder / entry.path).read_bytes()))
        (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (target / entry.path).write_bytes(data)
        entries.append(fresh)
    write_release(target, render_release(dataclasses.replace(release, files=tuple(entries), **fields)))
    return target


@pytest.mark.parametrize("minor", [0, 1])
def test_a_release_of_a_lower_minor_version_is_written_in_the_present_one(parent: Path, minor: int) -> None:
    old = _downgraded(parent, minor)
    assert verify_release(old) == []
    folder = _write(old, {HELD[0].id: _decided("keep")}, remove={KEPT[0].id})
    for path in folder.rglob("*.parquet"):
        assert pq.read_schema(path).metadata[b"curate.schema_version"] == b"1.2"
    assert set(read_release(folder).schemas.values()) == {"1.2", "1.0"}  # release.json itself is 1.0
    told = {"sample_id", "image", "mask", "split"}
    assert {one: {name: row[name] for name in told} for one, row in _pixels(folder).items() if one != HELD[0].id} == {
        one: {name: row[name] for name in told}
        for one, row in _pixels(parent).items()
        if one not in (HELD[0].id, KEPT[0].id)
    }


def _downgraded(folder: Path, minor: int) -> Path:
    changed = {}
    for entry in read_release(folder).files:
        if entry.schema is None:
            continue
        table = pq.ParquetFile(folder / entry.path).read()
        table = table.drop([name for name, since in SINCE.items() if since > minor and name in table.column_names])
        version = {b"curate.schema_version": f"1.{minor}".encode()}
        table = table.replace_schema_metadata({**table.schema.metadata, **version})
        plain = [name for name in PIXELS if name in table.column_names]
        data = encode_parquet(table, row_group_rows=5, plain=plain)
        changed[entry.path] = (dataclasses.replace(entry, bytes=len(data), sha256=sha256_hex(data)), data)
    schemas = dict.fromkeys(read_release(folder).schemas, f"1.{minor}")
    stats = json.loads((folder / "stats.json").read_bytes())
    del stats["balanced"]
    data = json.dumps(stats).encode()
    changed["stats.json"] = (FileEntry(path="stats.json", bytes=len(data), sha256=sha256_hex(data)), data)
    return _republished(folder, changed, schemas={**schemas, "release": "1.0"})


def test_columns_that_this_version_does_not_know_are_kept(parent: Path) -> None:
    changed = {}
    for entry in read_release(parent).files:
        if entry.schema != "manifest":
            continue
        table = pq.ParquetFile(parent / entry.path).read()
        table = table.append_column(
            "mood", pa.array([f"mood of {one}" for one in table.column("sample_id").to_pylist()])
        )
        table = table.replace_schema_metadata({**table.schema.metadata, b"curate.schema_version": b"1.9"})
        data = encode_parquet(table, row_group_rows=5)
        changed[entry.path] = (dataclasses.replace(entry, bytes=len(data), sha256=sha256_hex(data)), data)
    newer = _republished(parent, changed, schemas={**read_release(parent).schemas, "manifest": "1.9"})
    folder = _write(newer, {HELD[0].id: _decided("drop")})
    assert {one: row["mood"] for one, row in _rows(folder).items()} == {s.id: f"mood of {s.id}" for s in SAMPLES}
    assert read_release(folder).schemas["manifest"] == "1.9"


def test_equal_edits_give_equal_bytes_whatever_their_order(parent: Path, tmp_path: Path) -> None:
    edits = {HELD[0].id: _decided("keep"), KEPT[0].id: _redrawn(~KEPT[0].mask), KEPT[1].id: _decided("drop")}
    first = _write(parent, edits)
    digests = _digests(first)
    assert _write(parent, dict(reversed(edits.items()))) == first
    elsewhere = _write(parent, edits, output=tmp_path / "elsewhere")
    assert _digests(elsewhere) == digests == _digests(first)


def test_the_successor_says_where_it_comes_from(parent: Path) -> None:
    folder = _write(parent, {HELD[0].id: _decided("keep")}, erasures=["e-2", "e-1"])
    old, new = read_release(parent), read_release(folder)
    assert new.parents == (hashlib.sha256((parent / "release.json").read_bytes()).hexdigest(),)
    assert new.inputs == {**old.inputs, "successor": CAUSE}
    assert new.erasures == ("e-1", "e-2")
    assert folder.name == new.name
    assert (new.seed, new.models, new.config_fingerprint) == (old.seed, old.models, old.config_fingerprint)


@pytest.mark.parametrize(
    ("edits", "remove", "message"),
    [
        ({}, [], "nothing to change"),
        ({KEPT[0].id: Edit()}, [], "nothing to change"),
        ({"f" * 32: _decided("keep")}, ["e" * 32], f"2 samples are not in the release .*: {'f' * 32}, {'e' * 32}"),
        ({KEPT[0].id: _decided("keep")}, [KEPT[0].id], "edited and removed at once"),
        ({one.id: _decided("keep") for one in LOST}, [], f"{LOST[0].id}.*only a new run can bring them back"),
        ({LOST[0].id: _redrawn(LOST[0].mask)}, [], "have no pixels"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    parent: Path, edits: dict[str, Edit], remove: list[str], message: str
) -> None:
    with pytest.raises(SuccessorError, match=message):
        _write(parent, edits, remove=remove)
    assert list(parent.parent.iterdir()) == [parent]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decision": "maybe", "by": "me"}, "decision must be one of"),
        ({"decision": "keep"}, "by whom"),
        ({"reasons": ("x",)}, "by whom"),
        ({"mask": np.zeros((2, 2), np.bool_)}, "label_source"),
        ({"mask": np.zeros((2, 2), np.uint8), "label_source": "human"}, "bool"),
        ({"label_source": "guess"}, "label_source must be one of"),
        ({"ignore": np.zeros((2, 2), np.bool_)}, "ignore needs a mask"),
    ],
)
def test_an_edit_that_says_too_little_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SuccessorError, match=message):
        Edit(**fields)


def test_a_damaged_parent_is_refused_by_the_file(tmp_path: Path) -> None:
    parent = releases.write(tmp_path, SAMPLES)
    path = next((parent / "evidence").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SuccessorError, match=r"evidence/part-00000-of-00001\.parquet: sha256 is .*bytes have changed"):
        write_successor(parent, edits={HELD[0].id: _decided("keep")}, cause=CAUSE, at=AT)


def test_rows_fill_shards_with_room_and_then_new_ones(parent: Path) -> None:
    config = json.loads((parent / "config.json").read_bytes())
    config["config"]["publish"]["rows"] = 5
    small = _with_document(parent, "config.json", config)
    folder = _write(small, {one.id: _decided("drop") for one in KEPT})
    sizes = [pq.read_metadata(path).num_rows for path in sorted((folder / "shards/audit").iterdir())]
    old = pq.read_metadata(next((parent / "shards/audit").iterdir())).num_rows
    assert sizes[0] == max(old, 5)
    assert all(size <= 5 for size in sizes[1:])
    assert not (folder / "shards/train").exists()
    assert read_release(folder).splits == {
        **dict.fromkeys(("train", "val", "test"), 0),
        "hold": len(HELD),
        "audit": sum(sizes),
    }


def test_a_group_that_would_be_in_two_splits_is_refused(parent: Path) -> None:
    config = json.loads((parent / "config.json").read_bytes())
    config["config"]["publish"] = {"val": 0.0, "test": 1.0}
    wrong = _with_document(parent, "config.json", config)
    held = next(one for one in HELD if any(k.group == one.group and k.split != "test" for k in KEPT))
    with pytest.raises(SuccessorError, match=f"group {held.group} is in split .* puts it in test"):
        _write(wrong, {held.id: _decided("keep")})


@settings(max_examples=4)
@given(data=st.data())
def test_any_edits_give_a_release_that_verifies_and_differs_by_them_alone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parent = releases.write(tmp_path_factory.mktemp("law"), SAMPLES)
    able = [one for one in SAMPLES if one.decision != "drop" or one.audit]
    chosen = data.draw(st.lists(st.sampled_from(able), unique_by=lambda one: one.id, min_size=1, max_size=20))
    remove = {one.id for one in data.draw(st.lists(st.sampled_from(SAMPLES), max_size=4)) if one not in chosen}
    edits, masks = {}, set()
    for one in chosen:
        edits[one.id] = _decided(data.draw(st.sampled_from(["keep", "hold", "drop"])), "because")
        if data.draw(st.booleans()):
            edits[one.id] = dataclasses.replace(edits[one.id], mask=~one.mask, label_source="human")
            masks.add(one.id)
    folder = _write(parent, edits, remove=remove)
    before, after, difference = _rows(parent), _rows(folder), compare(parent, folder)
    assert set(after) == set(before) - remove
    assert {one: after[one]["decision"] for one in edits} == {one: edit.decision for one, edit in edits.items()}
    rest = ["sample_id", "content_sha256", "attr", "group_id", "source_uri", "embedding_row", "quota_cell", "judge"]
    rest = rest if not remove else [name for name in rest if name != "embedding_row"]
    assert {one: [row[name] for name in rest] for one, row in after.items()} == {
        one: [row[name] for name in rest] for one, row in before.items() if one not in remove
    }
    moved = {one.id for one in chosen if edits[one.id].decision != one.decision}
    assert _ids(difference, "removed") == remove
    assert _ids(difference, "added") == _ids(difference, "attribute") == set()
    assert _ids(difference, "decision") == moved
    assert _ids(difference, "mask") == masks
    images = {one: row["image"]["bytes"] for one, row in _pixels(parent).items() if one not in remove}
    assert {one: row["image"]["bytes"] for one, row in _pixels(folder).items()} == images
    _check_counts(read_release(parent), read_release(folder), after, len(remove))


def _ids(difference: Any, kind: str) -> set[str]:
    return {sample["id"] for sample in difference.rows(kind, 0, 1000)["samples"]}


def _check_counts(old: Release, new: Release, rows: dict[str, dict[str, Any]], removed: int) -> None:
    kept = [row for row in rows.values() if row["decision"] == "keep"]
    assert new.counts.kept == len(kept)
    assert new.counts.read == old.counts.read - removed
    for name, cell in new.cells.items():
        attribute, _, value = name.partition("=")
        if attribute == "group":
            found = sum(1 for row in kept if str(row["cluster_path"][0]) == value)
        else:
            found = sum(1 for row in kept if (row["attr"][attribute]["value"] or "unknown") == value)
        assert cell == {"target": old.cells[name]["target"], "actual": found}, name


def _failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: int) -> Callable[[], int]:
    """Let the n-th call of a function of `os` fail; returns how often it was called."""
    real, calls = getattr(os, name), 0

    def fail(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(code, os.strerror(code))
        return real(*args, **more)

    monkeypatch.setattr(staging.os, name, fail)
    return lambda: calls


@pytest.mark.parametrize(("name", "code"), [("write", errno.ENOSPC), ("fsync", errno.EIO), ("link", errno.EDQUOT)])
def test_a_full_disk_at_any_write_leaves_nothing_and_says_so(
    parent: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    edits = {HELD[0].id: _decided("keep")}
    with monkeypatch.context() as patch:
        calls = _failing(patch, name, 0, code)
        write_successor(parent, edits=edits, cause=CAUSE, at=AT, output=parent.parents[1] / "whole")
    total, told = calls(), []
    for number in sorted({1 + (total - 1) * part // 6 for part in range(7)}):
        with monkeypatch.context() as patch:
            calls = _failing(patch, name, number, code)
            try:
                write_successor(parent, edits=edits, cause=CAUSE, at=AT)
            except SuccessorError as error:
                told.append(str(error))
        assert calls() >= number
        committed = [path for path in parent.parent.iterdir() if (path / "release.json").exists()]
        assert [path for path in parent.parent.iterdir() if path not in committed] == []
        assert [verify_release(path, pixels=False) for path in committed] == [[] for _ in committed]
    assert len(told) >= 4
    for text in told:
        assert os.strerror(code) in text
        assert "the old one is as it was" in text
        assert code == errno.EIO or "are free: free some space" in text


def test_a_file_system_without_hard_links_gets_copies(
    parent: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    edits = {HELD[0].id: _decided("keep")}
    linked = _write(parent, edits)
    real = os.link

    def link(source: Any, target: Any) -> None:
        if Path(target).name != "release.json":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(staging.os, "link", link)
    copied = _write(parent, edits, output=tmp_path / "copies")
    assert _digests(copied) == _digests(linked)
    assert all(path.stat().st_nlink == 1 for path in copied.rglob("*.parquet"))


_DRIVER = """
import json, os, random, signal, sys, time
from datetime import UTC, datetime
from pathlib import Path
from manifests.successor import Edit, write_successor

parent, held = Path(sys.argv[1]), sys.argv[2]
NAMES = ("write", "fsync", "link", "mkdir", "rename")

REAL = {name: getattr(os, name) for name in NAMES}

def run(fatal, output=None):
    calls = 0
    def dying(real):
        def call(*args, **more):
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)
        return call
    for name in NAMES:
        setattr(os, name, dying(REAL[name]))
    edits = {held: Edit(decision="keep", by="review")}
    write_successor(parent, edits=edits, cause={"by": "test"}, at=datetime(2026, 1, 3, 12, tzinfo=UTC), output=output)
    return calls

whole = Path(sys.argv[3])
(whole / "releases").mkdir(parents=True)
total = run(0, whole)
for fatal in sorted({1 + (total - 1) * part // 9 for part in range(10)}) + [total + 1]:
    pid = os.fork()
    if not pid:
        run(fatal)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print(json.dumps({
        "killed": os.WIFSIGNALED(status),
        "code": status,
        "committed": sorted(p.parent.name for p in parent.parent.glob("*/release.json")),
        "left": sum(1 for p in parent.parent.glob(".successors/*")),
    }), flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_nothing_that_counts_and_a_rerun_gives_the_same_bytes(
    parent: Path, tmp_path: Path
) -> None:
    expected = _write(parent, {HELD[0].id: Edit(decision="keep", by="review")}, output=tmp_path / "expected")
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER)
    command = [sys.executable, str(driver), str(parent), HELD[0].id, str(tmp_path / "whole")]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
    )
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["killed"] for step in steps] == [True] * 10 + [False]
    assert all(step["committed"] == [parent.name] for step in steps[:9]), "a release before the commit"
    assert any(step["left"] for step in steps[:-1]), "no kill came while files were written"
    assert all(step["left"] <= 1 for step in steps), "what the dead leave is not swept"
    assert steps[-1]["committed"] == sorted([parent.name, expected.name])
    again = _write(parent, {HELD[0].id: Edit(decision="keep", by="review")})
    assert _digests(again) == _digests(expected)
    assert sorted(path.name for path in parent.parent.iterdir()) == sorted([parent.name, expected.name])


def test_the_split_of_every_kept_row_is_that_of_its_group(parent: Path) -> None:
    folder = _write(parent, {one.id: _decided("keep") for one in (*HELD, *DROPPED)})
    table = pa.concat_tables(
        pq.ParquetFile(file).read(["group_id", "split"]) for file in (folder / "manifest").iterdir()
    )
    groups = table.group_by("group_id").aggregate([("split", "count_distinct")])
    assert pc.max(groups.column("split_count_distinct")).as_py() == 1
