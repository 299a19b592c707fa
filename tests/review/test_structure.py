import dataclasses
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.erasures import Erasure, write_erasure
from manifests.release import parse_release, render_release
from review import structure
from review.catalog import Catalog
from review.query import parse_query
from review.structure import BITS, MAX_PAIRS, near_duplicates
from tests.review import releases


@pytest.fixture(scope="module")
def samples():
    return releases.figures(60)


@pytest.fixture(scope="module")
def catalog(samples, tmp_path_factory):
    return Catalog.open(releases.write(tmp_path_factory.mktemp("root"), samples))


def crossings(hashes, bits):
    """Pairs of (value, split), (value, split) in different splits within BITS bits, by looking at all."""
    items = sorted({(value, split) for value, split in zip(hashes, bits, strict=True) if value and split})
    return [
        (a, b)
        for at, a in enumerate(items)
        for b in items[at + 1 :]
        if a[1] != b[1] and (a[0] ^ b[0]).bit_count() <= BITS
    ]


FLIPS = st.lists(st.integers(0, 63), max_size=5).map(lambda bits: sum({1 << bit for bit in bits}))
HASHES = st.lists(
    st.tuples(st.sampled_from((0, 1, 0x0123456789ABCDEF, (1 << 64) - 1)), FLIPS, st.sampled_from((0, 1, 2, 4))),
    max_size=40,
)


@given(HASHES)
def test_near_duplicates_are_all_that_a_look_at_every_pair_finds(drawn):
    hashes, bits = [base ^ flip for base, flip, _ in drawn], [bit for *_, bit in drawn]
    pairs, total, complete = near_duplicates(np.array(hashes, np.uint64), np.array(bits, np.uint8))
    expected = crossings(hashes, bits)
    assert complete
    assert total == len(expected)
    assert len(pairs) == min(MAX_PAIRS, total)
    for a, b, distance in pairs:
        assert (hashes[a] ^ hashes[b]).bit_count() == distance <= BITS
        assert bits[a] != bits[b]
    assert [distance for *_, distance in pairs] == sorted(distance for *_, distance in pairs)
    found = {frozenset(((hashes[a], bits[a]), (hashes[b], bits[b]))) for a, b, _ in pairs}
    assert len(found) == len(pairs)
    assert found <= {frozenset(pair) for pair in expected}


def test_a_bucket_that_is_too_full_is_told(monkeypatch):
    monkeypatch.setattr(structure, "MAX_RUN", 4)
    hashes = np.arange(1, 400, dtype=np.uint64)
    bits = np.where(np.arange(399) % 2, 1, 2).astype(np.uint8)
    _, total, complete = near_duplicates(hashes, bits)
    assert not complete
    assert 0 < total <= len(crossings(hashes.tolist(), bits.tolist()))


def test_a_group_in_two_splits_is_a_leak(samples, catalog, tmp_path):
    assert catalog.leakage()["across_splits"] == []
    train = [one for one in samples if one.split == "train"]
    other = dataclasses.replace(train[0], row={"split": "test"})
    body = Catalog.open(releases.write(tmp_path, [other if one.id == other.id else one for one in samples])).leakage()
    assert body["across_n"] == 1
    leak = body["across_splits"][0]
    mine = [one for one in train if one.group == other.group]
    assert leak["group"] == other.group
    assert leak["splits"] == {"train": len(mine) - 1, "val": 0, "test": 1}
    assert set(leak["ids"]) == {one.id for one in mine}
    assert body["groups"] == len({one.group for one in samples})


def test_a_near_duplicate_in_another_split_is_shown(samples, tmp_path):
    train = next(one for one in samples if one.split == "train")
    test = next(one for one in samples if one.split == "test")
    held = next(one for one in samples if one.split == "hold")
    near = {train.number: 0b1000, test.number: 0b1110, held.number: 0b1000}
    changed = [
        dataclasses.replace(one, row={"dhash64": near[one.number]} if one.number in near else {}) for one in samples
    ]
    body = Catalog.open(releases.write(tmp_path, changed)).leakage()
    assert [(one["distance"], {one["a"], one["b"]}) for one in body["near_duplicates"]] == [(2, {train.id, test.id})]
    assert set(body["near_duplicates"][0]["splits"]) == {"train", "test"}
    assert body["told"].startswith("1 pair")


@pytest.mark.parametrize("path", [(), (0,), (1,), (2, 5), (9,), (0, 0, 0)])
def test_clusters_count_every_row_below_them(catalog, samples, path):
    inside = [one for one in samples if one.cluster[: len(path)] == path]
    body = catalog.clusters(path)
    assert body["n"] == len(inside)
    children = Counter(one.cluster[: len(path) + 1] for one in inside) if len(path) < 3 else {}
    assert {tuple(child["path"]): child["n"] for child in body["clusters"]} == children
    for child in body["clusters"]:
        mine = [one for one in inside if one.cluster[: len(path) + 1] == tuple(child["path"])]
        decisions = Counter(one.decision for one in mine)
        splits = Counter(one.split for one in mine)
        assert (child["kept"], child["held"], child["dropped"]) == tuple(decisions[d] for d in ("keep", "hold", "drop"))
        assert child["splits"] == {name: splits[name] for name in ("train", "val", "test")}
        pixels = {one.id for one in mine if one.decision != "drop" or one.audit}
        assert set(child["examples"]) <= pixels
        assert len(child["examples"]) == min(6, len(pixels))
        assert len(catalog.select(parse_query({"cluster": child["path"]}))) == child["n"]


def test_a_path_that_ends_early_is_a_cluster_of_its_own(samples, tmp_path):
    changed = [dataclasses.replace(one, row={"cluster_path": [3] if one.number < 5 else [3, 1]}) for one in samples]
    body = Catalog.open(releases.write(tmp_path, changed)).clusters((3,))
    assert {None if c["path"] is None else tuple(c["path"]): c["n"] for c in body["clusters"]} == {
        None: 5,
        (3, 1): len(samples) - 5,
    }


def test_the_judge_is_told_of_coarse_clusters(catalog):
    stats = {**catalog.stats, "judge": {"clusters": {"0": {"noise": [0.1, 0.0, 0.2], "gate": "failed", "labels": 9}}}}
    body = structure.clusters(catalog.columns, stats["judge"], (), catalog.has_pixels())
    told = {tuple(child["path"]): child.get("gate") for child in body["clusters"]}
    assert told == {(0,): "failed", (1,): None, (2,): None}


def test_rights_count_every_row_and_what_is_due(samples, tmp_path):
    today = date(2026, 5, 1)
    until = [today - timedelta(days=2), today - timedelta(days=1), today, today + timedelta(days=9), None]
    changed = [
        dataclasses.replace(
            one,
            row={
                "retention_until": until[one.number % 5],
                "licence": ("CC0-1.0", "unknown")[one.number % 2],
                "consent_status": ("granted", "withdrawn", "unknown")[one.number % 3],
                "subject_ids": [f"p{one.number % 7}", "p0"],
            },
        )
        for one in samples
    ]
    body = Catalog.open(releases.write(tmp_path, changed)).rights(today)
    assert {row["licence"]: row["n"] for row in body["licences"]} == {"CC0-1.0": 30, "unknown": 30}
    assert {row["status"]: row["n"] for row in body["consent"]} == {"granted": 20, "withdrawn": 20, "unknown": 20}
    due = body["retention"]
    assert (due["due_n"], due["unstated"], due["next"]) == (24, 12, today.isoformat())
    assert [row["until"] for row in due["due"]] == sorted(row["until"] for row in due["due"])
    expected = {one.id: one.row["retention_until"].isoformat() for one in changed if one.number % 5 < 2}
    assert {row["id"]: row["until"] for row in due["due"]} == expected
    assert body["subjects"] == 7
    json.dumps(body)


def test_releases_that_share_a_file_are_named(samples, tmp_path):
    one = releases.write(tmp_path, samples)
    other = releases.write(tmp_path, [*samples[:-1], dataclasses.replace(samples[-1], row={"licence": "x"})])
    alone = releases.write(tmp_path, releases.figures(3, seed=9))
    assert Catalog.open(one).rights(date(2026, 1, 1))["releases_sharing"] == [other.name]
    assert Catalog.open(alone).rights(date(2026, 1, 1))["releases_sharing"] == []


def test_erasures_say_what_the_root_remembers_of_them(samples, tmp_path):
    folder = releases.write(tmp_path, samples)
    release = parse_release((folder / "release.json").read_bytes())
    ids = ("e-0123456789abcdef", "e-fedcba9876543210")
    (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, erasures=ids)))
    at = datetime(2026, 3, 1, tzinfo=UTC)
    (tmp_path / "erasures").mkdir()
    write_erasure(tmp_path, Erasure(id=ids[0], state="done", at=at, reason="asked for", count=3, keyed=()))
    assert Catalog.open(folder).rights(date(2026, 1, 1))["erasures"] == [
        {"id": ids[0], "at": at.isoformat(), "reason": "asked for", "count": 3},
        {"id": ids[1], "at": None, "reason": None, "count": None},
    ]
    (tmp_path / "erasures" / f"{ids[0]}.json").write_bytes(b"{")
    assert Catalog.open(folder).rights(date(2026, 1, 1))["erasures"][0]["count"] is None
