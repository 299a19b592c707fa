import dataclasses
import hashlib
from collections import Counter
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.diff import compare
from manifests.release import read_release
from manifests.signoff import ReviewLogError
from manifests.successor import SuccessorError
from manifests.verify import verify_release
from review.apply import BECOMES, ApplyError, _edits, apply_reviews
from review.decisions import fold
from review.event import VERDICTS, Event, Reviewer
from review.ids import hex_ids
from review.log import ReviewLog
from tests.review import releases

AT = datetime(2026, 2, 1, tzinfo=UTC)
ANN, BEN = Reviewer(name="Ann"), Reviewer(name="Ben")
SAMPLES = [dataclasses.replace(sample, audit=True) for sample in releases.figures(36)]
KEPT, HELD, DROPPED = ([one for one in SAMPLES if one.decision == what] for what in ("keep", "hold", "drop"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release that nobody has looked at."""
    return releases.write(tmp_path, SAMPLES)


def _decide(folder: Path, ids: list[str], verdict: str, *, who: Reviewer = ANN, **fields: Any) -> None:
    target = {"ids": ids}
    ReviewLog.open(folder).append("sample_decision", reviewer=who, target=target, verdict=verdict, **fields)


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    files = [*(folder / "manifest").iterdir(), *(folder / "dropped").iterdir()]
    return {row["sample_id"]: row for file in files for row in pq.ParquetFile(file).read().to_pylist()}


def _digests(folder: Path) -> dict[Path, bytes]:
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_verdicts_become_decisions_with_the_reviewers_reasons(folder: Path) -> None:
    before = _digests(folder.parent.parent)
    _decide(folder, [HELD[0].id, DROPPED[0].id], "approve")
    _decide(folder, [KEPT[0].id], "reject", reasons=["blurred", "no person"])
    _decide(folder, [KEPT[1].id], "redraw", reasons=["hand missing"])
    applied = apply_reviews(folder, at=AT)
    assert verify_release(applied.folder) == []
    rows = _rows(applied.folder)
    told = {one.id: [rows[one.id][name] for name in ("decision", "decision_reasons", "decision_by")] for one in SAMPLES}
    assert told[HELD[0].id] == told[DROPPED[0].id] == ["keep", ["review: approve"], "review"]
    assert told[KEPT[0].id] == ["drop", ["review: reject", "review: blurred", "review: no person"], "review"]
    assert told[KEPT[1].id] == ["hold", ["review: redraw", "review: hand missing"], "review"]
    changed = {HELD[0].id, DROPPED[0].id, KEPT[0].id, KEPT[1].id}
    old = _rows(folder)
    assert all(
        told[one] == [old[one][n] for n in ("decision", "decision_reasons", "decision_by")]
        for one in told.keys() - changed
    )
    assert applied.decisions == {"approve": 2, "reject": 1, "redraw": 1}
    assert {path: digest for path, digest in _digests(folder.parent.parent).items() if path in before} == before


def test_the_head_of_the_log_is_pinned_in_the_new_release(folder: Path) -> None:
    _decide(folder, [KEPT[0].id], "reject")
    head = ReviewLog.open(folder).head()
    applied = apply_reviews(folder, at=AT)
    assert applied.head == head
    assert read_release(applied.folder).inputs["successor"] == {
        "by": "apply-reviews",
        "log_head": head.sha256,
        "events": 1,
        "decisions": {"reject": 1},
    }
    again = apply_reviews(folder, at=datetime(2030, 1, 1, tzinfo=UTC))
    assert again == applied, "equal decisions are one release, whenever they are applied"
    _decide(folder, [KEPT[0].id], "approve")
    assert apply_reviews(folder, at=AT).fingerprint != applied.fingerprint


def test_a_bulk_decision_is_of_the_frozen_samples(folder: Path) -> None:
    log = ReviewLog.open(folder)
    ids = sorted(one.id for one in HELD)
    target = {"query": {"decision": ["hold"]}, "ids_sha256": log.freeze(ids), "count": len(ids)}
    log.append("bulk_decision", reviewer=ANN, target=target, verdict="approve", reasons=["all fine"])
    _decide(folder, ids[:1], "hold")
    applied = apply_reviews(folder, at=AT)
    rows = _rows(applied.folder)
    assert {one for one in ids if rows[one]["decision"] == "keep"} == set(ids[1:])
    assert rows[ids[1]]["decision_reasons"] == ["review: approve", "review: all fine"]
    assert rows[ids[0]]["decision_reasons"] == ["review: hold"]


def test_the_reasons_are_those_of_the_last_decision_single_or_bulk_for_any_number_of_samples(folder: Path) -> None:
    log = ReviewLog.open(folder)
    ids = sorted(one.id for one in SAMPLES)
    _decide(folder, ids[:3], "approve", reasons=["first"])
    listed = log.freeze(ids)
    target = {"query": {}, "ids_sha256": listed, "count": len(ids)}
    log.append("bulk_decision", reviewer=ANN, target=target, verdict="approve", reasons=["in bulk"])
    _decide(folder, [ids[1], ids[5]], "approve", reasons=["last"])
    _decide(folder, [ids[1]], "approve", who=BEN, reasons=["agreed"])
    rows = _rows(apply_reviews(folder, at=AT).folder)
    said = {one: rows[one]["decision_reasons"][1:] for one in ids}
    special = {ids[1]: ["review: agreed"], ids[5]: ["review: last"]}
    assert said == {one: ["review: in bulk"] for one in ids} | special


@settings(max_examples=25, deadline=None)
@given(
    said=st.lists(
        st.tuples(
            st.sets(st.integers(0, 11), min_size=1),
            st.sampled_from(VERDICTS),
            st.booleans(),
            st.sampled_from([ANN, ANN, BEN]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_shared_by_samples_is_what_the_history_of_each_says(
    said: list[tuple[set[int], str, bool, Reviewer]],
) -> None:
    names = [f"{number * 0x1234567:032x}" for number in range(12)]
    frozen: dict[str, list[str]] = {}
    events = []
    for seq, (chosen, verdict, bulk, who) in enumerate(said):
        ids, listed = sorted(names[one] for one in chosen), f"{seq:064x}"
        frozen[listed] = ids
        target = {"query": {}, "ids_sha256": listed, "count": len(ids)} if bulk else {"ids": ids}
        fields = {"target": target, "verdict": verdict, "reasons": [f"event {seq}"]}
        kind = "bulk_decision" if bulk else "sample_decision"
        events.append(Event(seq=seq, kind=kind, reviewer=who, at=AT, sha256="", fields=fields))
    decisions = fold(events, frozen.__getitem__)
    found = {state: hex_ids(decisions.ids_in(state)) for state in BECOMES}
    edits = _edits(found, events, frozen.__getitem__)
    assert set(edits) == set(chain.from_iterable(frozen.values()))
    for state, ids in found.items():
        for one in ids:
            said_last = decisions.history(one)[-1].fields["reasons"] if state != "disputed" else []
            reasons = tuple(f"review: {text}" for text in (state, *said_last))
            assert (edits[one].decision, edits[one].reasons, edits[one].by) == (BECOMES[state], reasons, "review")


def test_a_dispute_is_refused_or_held_until_it_is_settled(folder: Path) -> None:
    _decide(folder, [KEPT[0].id], "approve")
    _decide(folder, [KEPT[0].id], "reject", who=BEN, reasons=["cut off"])
    with pytest.raises(ApplyError, match=f"disagree on 1 samples: {KEPT[0].id}"):
        apply_reviews(folder, at=AT)
    assert len(list(folder.parent.iterdir())) == 1
    held = _rows(apply_reviews(folder, disputed="hold", at=AT).folder)[KEPT[0].id]
    assert (held["decision"], held["decision_reasons"]) == ("hold", ["review: disputed"])
    _decide(folder, [KEPT[0].id], "reject", adjudicates=True, reasons=["Ben is right"])
    settled = _rows(apply_reviews(folder, at=AT).folder)[KEPT[0].id]
    assert (settled["decision"], settled["decision_reasons"]) == ("drop", ["review: reject", "review: Ben is right"])


def test_a_release_that_nobody_decided_on_has_nothing_to_apply(folder: Path) -> None:
    with pytest.raises(ApplyError, match="nobody has decided"):
        apply_reviews(folder, at=AT)
    ReviewLog.open(folder).append("comment", reviewer=ANN, target={"ids": [KEPT[0].id]}, text="nice")
    with pytest.raises(ApplyError, match="nobody has decided"):
        apply_reviews(folder, at=AT)


def test_an_approved_drop_without_pixels_is_refused_by_its_id(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, [dataclasses.replace(one, audit=False) for one in SAMPLES])
    _decide(folder, [DROPPED[0].id, KEPT[0].id], "approve")
    with pytest.raises(SuccessorError, match=f"{DROPPED[0].id}; only a new run"):
        apply_reviews(folder, at=AT)
    assert len(list(folder.parent.iterdir())) == 1


def test_decisions_on_samples_that_the_release_does_not_have_are_refused(folder: Path) -> None:
    _decide(folder, ["0" * 32], "reject")
    with pytest.raises(SuccessorError, match="1 samples are not in the release"):
        apply_reviews(folder, at=AT)


def test_a_broken_log_is_refused_by_its_event(folder: Path) -> None:
    _decide(folder, [KEPT[0].id], "reject")
    _decide(folder, [KEPT[1].id], "reject")
    log = ReviewLog.open(folder).folder
    first = log / f"{0:020d}.json"
    first.write_bytes(first.read_bytes().replace(b"reject", b"approv"))
    with pytest.raises(ReviewLogError, match="event"):
        apply_reviews(folder, at=AT)


@settings(max_examples=8)
@given(
    said=st.lists(
        st.tuples(st.sampled_from([one.id for one in SAMPLES]), st.sampled_from(VERDICTS), st.sampled_from([ANN, BEN])),
        min_size=1,
        max_size=25,
    )
)
def test_the_successor_differs_by_the_decisions_alone(
    said: list[tuple[str, str, Reviewer]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = releases.write(tmp_path_factory.mktemp("law"), SAMPLES)
    latest: dict[str, dict[str, str]] = {}
    for one, verdict, who in said:
        _decide(folder, [one], verdict, who=who)
        latest.setdefault(one, {})[who.name] = verdict
    states = {one: (set(by.values()).pop() if len(set(by.values())) == 1 else "disputed") for one, by in latest.items()}
    applied = apply_reviews(folder, disputed="hold", at=AT)
    assert verify_release(applied.folder) == []
    assert applied.decisions == Counter(states.values())
    before = {sample.id: sample.decision for sample in SAMPLES}
    moved = {one for one, state in states.items() if BECOMES[state] != before[one]}
    difference = compare(folder, applied.folder)
    found = difference.rows("decision", 0, 1000)["samples"]
    assert {row["id"]: row["after"]["decision"] for row in found} == {one: BECOMES[states[one]] for one in moved}
    assert [len(difference.places[kind]) for kind in ("added", "removed", "mask", "attribute")] == [0, 0, 0, 0]
