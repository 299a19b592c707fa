from pathlib import Path
from typing import Any

import pytest

from manifests.signoff import EVENT_TYPES, MAX_EVENT_BYTES
from review.event import _FIELDS
from review.log import EventError, Reviewer, ReviewLog
from tests.review.test_log import ADA, another, sample


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    return another(tmp_path)


def test_the_format_has_fields_for_each_type() -> None:
    assert set(_FIELDS) == set(EVENT_TYPES)


# What an event must not hold

DECISION: dict[str, Any] = {"target": {"ids": [sample(1)]}, "verdict": "approve", "reasons": [], "adjudicates": False}
TARGET: dict[str, Any] = {"query": {}, "ids_sha256": "0" * 64, "count": 2}
ABOUT: dict[str, Any] = {"kind": "audit", "size": 2, "seed": 0, "blind": True}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("decision", DECISION, "type must be one of"),
        ("sample_decision", DECISION | {"note": "x"}, "got 'note'"),
        ("sample_decision", DECISION | {"seq": 5}, "got 'seq'"),
        ("sample_decision", DECISION | {"verdict": "keep"}, "verdict must be one of"),
        ("sample_decision", DECISION | {"reasons": "bad"}, "reasons must be a list"),
        ("sample_decision", DECISION | {"reasons": ["x"] * 21}, "at most 20"),
        ("sample_decision", DECISION | {"reasons": [""]}, "reasons must be a text"),
        ("sample_decision", DECISION | {"adjudicates": 1}, "adjudicates must be true or false"),
        ("sample_decision", DECISION | {"target": {"ids": []}}, "target.ids must be a list of 1..1000"),
        ("sample_decision", DECISION | {"target": {"ids": [sample(n) for n in range(1001)]}}, "1..1000"),
        ("sample_decision", DECISION | {"target": {"ids": [sample(1)] * 2}}, "all different"),
        ("sample_decision", DECISION | {"target": {"ids": ["AB" * 16]}}, "32 hex digits"),
        ("sample_decision", DECISION | {"target": "all"}, "target.ids must be"),
        ("sample_decision", {"target": {"ids": [sample(1)]}}, "verdict must be"),
        ("comment", {"target": {"ids": [sample(1)]}, "text": "x" * 4001}, "1..4000 characters"),
        ("comment", {"target": {"ids": [sample(1)]}, "text": "\ud800"}, "cannot be written"),
        ("bulk_decision", {"target": TARGET | {"query": None}, "verdict": "hold", "reasons": []}, "query must be"),
        ("bulk_decision", {"target": TARGET | {"ids_sha256": "x"}, "verdict": "hold", "reasons": []}, "64 hex"),
        ("bulk_decision", {"target": TARGET | {"count": True}, "verdict": "hold", "reasons": []}, "count must be"),
        ("task", {"target": TARGET, "task": ABOUT | {"size": 3}, "title": "x"}, "task.size must be the number"),
        ("task", {"target": TARGET, "task": ABOUT | {"blind": False}, "title": "x"}, "task.blind must be true"),
        ("task", {"target": TARGET, "task": ABOUT | {"kind": "look"}, "title": "x"}, "task.kind must be one of"),
        ("task", {"target": TARGET, "task": ABOUT | {"kind": "overlap"}, "title": "x"}, "task.of_task must be"),
        ("task", {"target": TARGET, "task": ABOUT | {"population": 1}, "title": "x"}, "task.population must be"),
        ("task_result", {"target": {"ids": [sample(1), sample(2)]}, "task": 0, "verdict": "good"}, "1..1 sample"),
        ("task_result", {"target": {"ids": [sample(1)]}, "task": 0, "verdict": "approve"}, "verdict must be one of"),
        ("signoff", {"verdict": "rejected"}, "verdict of a signoff must be 'approved'"),
        ("signoff", {"conditions": "none"}, "verdict of a signoff must be 'approved'"),
        ("signoff", {"verdict": "approved", "checklist": {"q": 5}}, "checklist"),
        ("signoff", {"verdict": "approved", "expires_at": "tomorrow"}, "expires_at must be null or in UTC"),
    ],
)
def test_a_field_that_breaks_a_rule_is_refused(log: ReviewLog, kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EventError, match=message):
        log.append(kind, reviewer=ADA, **fields)
    assert list(log.events()) == []


@pytest.mark.parametrize("name", [" Ada", "Ada\n", "x" * 81, "\u202eAda", "A\x00da"])
def test_a_name_that_cannot_be_seen_is_refused(log: ReviewLog, name: str) -> None:
    with pytest.raises(EventError, match="printable"):
        log.append("comment", reviewer=Reviewer(name=name), target={"ids": [sample(1)]}, text="x")
    with pytest.raises(EventError, match="non-empty"):
        Reviewer(name="")


def test_an_event_that_is_too_large_is_refused(log: ReviewLog) -> None:
    big = {"query": {"note": "x" * MAX_EVENT_BYTES}, "ids_sha256": log.freeze([sample(1)]), "count": 1}
    with pytest.raises(EventError, match="at most 1048576 bytes"):
        log.append("bulk_decision", reviewer=ADA, target=big, verdict="hold", reasons=[])
    assert list(log.events()) == []
