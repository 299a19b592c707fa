"""Every address of the review server that tells something: what it tells is what the tables of the release say."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.release import RELEASE_FILE, fingerprint, read_release
from tests.review import releases
from tests.review.asked import BY_ID, SAMPLES, good, refused, rows_of
from tests.review.client import Client
from tests.review.test_pixels import image_of, mask_of


def test_the_session_says_which_release_is_open_and_that_a_newer_one_was_made_from_it(
    looking: Client, written: Path
) -> None:
    found = good(looking.get("/api/session"))
    newer = next(path for path in written.parent.iterdir() if path != written)
    assert found["release"] == "people"
    assert found["name"] == written.name
    assert found["fingerprint"] == fingerprint((written / RELEASE_FILE).read_bytes())
    assert found["root_name"] == "root of it all"
    assert found["newer"] == [
        {"name": newer.name, "fingerprint": fingerprint((newer / RELEASE_FILE).read_bytes())},
    ]
    assert found["read_only"] is True
    assert found["reviewer"] is None
    assert found["limits"] == {"page": 200}
    assert found["stale"] is None
    assert found["changed"] == []


def test_the_releases_of_the_root_are_listed(looking: Client, written: Path) -> None:
    found = good(looking.get("/api/releases"))
    assert [one["name"] for one in found] == sorted(path.name for path in written.parent.iterdir())
    current = next(one for one in found if one["current"])
    other = next(one for one in found if not one["current"])
    assert (current["name"], current["rows"], other["rows"]) == (written.name, len(SAMPLES), len(SAMPLES) - 1)
    assert not any(one["parent_of_current"] for one in found)


def test_the_overview_counts_as_the_tables_do(looking: Client, written: Path) -> None:
    found, rows = good(looking.get("/api/overview")), rows_of(written)
    decisions = collections.Counter(row["decision"] for row in rows.values())
    assert found["counts"]["kept"] == decisions["keep"]
    assert found["counts"]["held"] == decisions["hold"]
    assert found["counts"]["dropped"] == decisions["drop"]
    assert found["counts"]["read"] == len(rows) + 6
    assert found["rows"] == len(rows)
    assert found["adds_up"] is True
    assert found["decisions"] == dict(decisions)
    assert found["signoff"]["state"] == "none"
    assert found["review"]["counts"] == {
        "undecided": len(rows), "approve": 0, "reject": 0, "hold": 0, "redraw": 0, "disputed": 0
    }  # fmt: skip
    assert found["review"]["events"] == 0
    assert {check["state"] for check in found["checks"]} <= {"pass", "warn", "fail", "not run"}


def test_coverage_bias_and_reasons_conserve_rows(looking: Client, written: Path) -> None:
    release, rows = read_release(written), rows_of(written)
    cells = good(looking.get("/api/coverage"))["cells"]
    assert {cell["cell"]: (cell["target"], cell["actual"]) for cell in cells} == {
        name: (of["target"], of["actual"]) for name, of in release.cells.items()
    }
    bias = good(looking.get("/api/bias", attribute="lighting_level"))
    assert sum(row["n"] for row in bias["rows"]) == len(rows)
    removed = sum(row["decision"] != "keep" for row in rows.values())
    assert sum(row["removed"] for row in bias["rows"]) == bias["overall"]["removed"] == removed
    assert {row["attribute"] for row in good(looking.get("/api/bias"))["rows"]} == set(releases.ATTRIBUTES)
    reasons = {one["reason"]: one["n"] for one in good(looking.get("/api/reasons"))["reasons"]}
    expected = collections.Counter(reason for row in rows.values() for reason in row["decision_reasons"])
    assert {name: n for name, n in reasons.items() if name in expected} == dict(expected)


def test_a_histogram_holds_each_row_of_its_filter_once(looking: Client, written: Path) -> None:
    rows = rows_of(written)
    query = {"decision": ["keep", "hold"]}
    found = good(looking.get("/api/histogram", column="student_iou", by="lighting_level", filter=query, bins="10"))
    wanted = [row for row in rows.values() if row["decision"] != "drop"]
    assert sum(one["n"] for one in found["series"]) == len(wanted)
    assert sum(sum(one["counts"]) for one in found["series"]) == sum(row["student_iou"] is not None for row in wanted)
    whole = good(looking.get("/api/histogram", column="student_iou"))
    assert sum(whole["series"][0]["counts"]) == len(rows)


def test_pages_hold_each_sample_of_the_filter_once_in_the_order_asked_for(looking: Client, written: Path) -> None:
    rows = rows_of(written)
    query = {"decision": ["keep"], "sort": "q", "descending": True}
    found: list[dict[str, Any]] = []
    for offset in range(0, 60, 7):
        page = good(looking.get("/api/page", filter=query, offset=str(offset), limit="7"))
        found += page["samples"]
    kept = {one: row for one, row in rows.items() if row["decision"] == "keep"}
    assert page["total"] == len(kept) == len(found)
    assert {one["id"] for one in found} == set(kept)
    assert [one["q"] for one in found] == sorted((one["q"] for one in found), reverse=True)
    for one in found:
        row = rows[one["id"]]
        assert (one["split"], one["verdict"], one["label_source"]) == (
            row["split"],
            row["verdict"],
            row["label_source"],
        )
        assert (one["width"], one["height"]) == (row["width"], row["height"])
        assert one["reasons"] == row["decision_reasons"]
        assert one["pixels"] == (row["shard"] is not None)
        assert one["state"] == "undecided"


def test_a_sample_is_told_whole(looking: Client, written: Path) -> None:
    rows = rows_of(written)
    for one, row in list(rows.items())[:8]:
        found = good(looking.get(f"/api/sample/{one}"))
        assert found["id"] == one
        assert found["identity"]["source_uri"] == row["source_uri"]
        assert found["identity"]["content_sha256"] == row["content_sha256"].hex()
        assert found["label"]["student_iou"] == pytest.approx(row["student_iou"], abs=1e-5)
        assert found["judge"]["q"] == pytest.approx(row["judge"]["q"], abs=1e-5)
        assert found["decision"]["decision"] == row["decision"]
        assert found["rights"]["licence"] == row["licence"]
        told = {said["name"]: (said["value"], said["provenance"]) for said in found["attributes"]}
        assert told == {name: (said["value"], said["provenance"]) for name, said in row["attr"].items()}
        assert len(found["evidence"]) == sum(said["value"] is not None for said in row["attr"].values())
        same = {other for other, its in rows.items() if its["source_sha256"] == row["source_sha256"]} - {one}
        assert {near["id"] for near in found["neighbours"]} == same
        sample = BY_ID[one]
        assert found["pixels"]["image"] == (row["shard"] is not None)
        assert found["pixels"]["teacher_mask"] == (sample.teacher_mask is not None)
        assert (found["history"], found["comments"], found["state"]) == ([], [], "undecided")
    refused(looking.get(f"/api/sample/{'0' * 32}"), 404, "no sample")


def test_structure_and_rights_are_told(looking: Client, written: Path) -> None:
    rows = rows_of(written)
    coarse = good(looking.get("/api/clusters"))["clusters"]
    assert sum(one["n"] for one in coarse) == len(rows)
    assert [one["path"] for one in coarse if one["path"] == [0]] == [[0]]
    below = good(looking.get("/api/clusters", path="0"))["clusters"]
    assert sum(one["n"] for one in below) == next(one["n"] for one in coarse if one["path"] == [0])
    assert good(looking.get("/api/clusters", path="0,0"))["path"] == [0, 0]
    leakage = good(looking.get("/api/leakage"))
    assert (leakage["groups"], leakage["across_splits"]) == (len({row["group_id"] for row in rows.values()}), [])
    rights = good(looking.get("/api/rights"))
    assert rights["licences"] == [{"licence": "CC-BY-4.0", "n": len(rows)}]
    assert rights["subjects"] == len({row["subject_ids"][0] for row in rows.values()})


def test_pictures_are_those_of_the_sample(looking: Client, written: Path) -> None:
    for one, row in rows_of(written).items():
        sample = BY_ID[one]
        answer = looking.get(f"/thumb/{one}", side="64")
        if row["shard"] is None:
            refused(answer, 404, "no pixels")
            refused(looking.get(f"/mask/{one}"), 404, "no pixels")
            continue
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/jpeg"
        mask = looking.get(f"/mask/{one}", side="2048")
        assert mask.headers["content-type"] == "image/png"
        assert image_of(answer.body).shape == (48, 64, 3)
        assert np.array_equal(mask_of(mask.body) > 0, sample.mask)
        teacher = looking.get(f"/mask/{one}", side="2048", kind="teacher")
        if sample.teacher_mask is None:
            refused(teacher, 404, "teacher_mask")
        else:
            assert np.array_equal(mask_of(teacher.body) > 0, sample.teacher_mask)


def test_two_releases_of_one_root_are_compared_and_the_other_s_pictures_are_shown(
    looking: Client, written: Path
) -> None:
    newer = good(looking.get("/api/session"))["newer"][0]["fingerprint"]
    found = good(looking.get("/api/compare", **{"with": newer}))
    assert found["a"]["fingerprint"] == fingerprint((written / RELEASE_FILE).read_bytes())  # the older is A
    assert found["b"]["fingerprint"] == newer
    assert found["relation"] == "successor"
    assert found["samples"]["removed"] == 1
    assert found["samples"]["added"] == 0
    assert found["samples"]["mask"] == 1
    removed = good(looking.get("/api/compare/page", **{"with": newer}, kind="removed"))
    assert removed["samples"][0]["id"] == SAMPLES[-1].id
    changed = good(looking.get("/api/compare/page", **{"with": newer}, kind="mask"))["samples"][0]
    assert changed["id"] == SAMPLES[0].id
    before = mask_of(looking.get(f"/mask/{SAMPLES[0].id}", side="2048").body)
    after = mask_of(looking.get(f"/mask/{newer}/{SAMPLES[0].id}", side="2048").body)
    assert np.array_equal(before > 0, SAMPLES[0].mask)
    assert np.array_equal(after > 0, ~SAMPLES[0].mask)
    assert looking.get(f"/thumb/{newer}/{SAMPLES[0].id}").status == 200
    refused(looking.get(f"/thumb/{newer}/{SAMPLES[-1].id}"), 404, "no sample")
    refused(looking.get(f"/thumb/{'0' * 64}/{SAMPLES[0].id}"), 404, "no release of this root")
    refused(looking.get("/api/compare", **{"with": "0" * 64}), 404, "no release of this root")
    refused(looking.get("/api/compare", **{"with": "../.."}), 400, "fingerprint")
    refused(looking.get("/api/compare/page", **{"with": newer}, kind="all"), 400, "kind must be")


def test_releases_of_another_root_are_not_shown(written: Path, looking: Client, tmp_path: Path) -> None:
    other = releases.write(tmp_path, releases.figures(6, seed=1))
    digest = fingerprint((other / RELEASE_FILE).read_bytes())
    refused(looking.get(f"/thumb/{digest}/{releases.figures(1, seed=1)[0].id}"), 404, "no release of this root")
    link = written.parent / "link"
    link.symlink_to(other)
    try:
        refused(looking.get("/api/compare", **{"with": digest}), 404, "no release of this root")
    finally:
        link.unlink()
