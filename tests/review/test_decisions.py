import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.release import sha256_hex
from manifests.signoff import ReviewLogError
from review import decisions
from review.decisions import STATES, Decisions, Folding, LiveDecisions, fold
from review.event import VERDICTS, Event, Reviewer
from review.ids import IdIndex, Ids, hex_ids, holds, id_array, is_ascending, sorted_unique
from review.log import ReviewLog
from tests.review.test_log import AT, FINGERPRINT, bulk, sample, task

NAMES = ("Ada", "Bea", "Cyd")
SAMPLES = [sample(number) for number in range(8)]
LISTS = {sha256_hex(bytes([n])): sorted(SAMPLES[n:] + SAMPLES[:1]) for n in range(len(SAMPLES))}


def frozen(sha256: str) -> Ids:
    return id_array(LISTS[sha256])


def event(seq: int, kind: str, who: str, **fields: Any) -> Event:
    return Event(seq=seq, kind=kind, reviewer=Reviewer(name=who), at=AT, sha256=f"{seq:064x}", fields=fields)


def one(seq: int, who: str, verdict: str, ids: Sequence[str], adjudicates: bool = False) -> Event:
    fields = {"target": {"ids": list(ids)}, "verdict": verdict, "reasons": [], "adjudicates": adjudicates}
    return event(seq, "sample_decision", who, **fields)


def many(seq: int, who: str, verdict: str, sha256: str) -> Event:
    target = {"query": {}, "ids_sha256": sha256, "count": len(LISTS[sha256])}
    return event(seq, "bulk_decision", who, target=target, verdict=verdict, reasons=[])


def state(*events: Event, of: str = SAMPLES[0]) -> str:
    return fold(events, frozen).state(of)


def test_the_states_begin_with_undecided_and_end_with_disputed() -> None:
    assert ("undecided", *VERDICTS, "disputed") == STATES


# One sample


def test_nobody_decided() -> None:
    assert state() == "undecided"
    assert state(one(0, "Ada", "approve", SAMPLES[1:])) == "undecided"
    assert fold([], frozen).states([]).shape == (0,)


def test_the_latest_verdict_of_a_reviewer_counts() -> None:
    assert state(one(0, "Ada", "approve", SAMPLES[:1]), one(1, "Ada", "hold", SAMPLES[:1])) == "hold"


def test_two_who_agree_agree_and_two_who_differ_dispute() -> None:
    first = one(0, "Ada", "approve", SAMPLES)
    assert state(first, one(1, "Bea", "approve", SAMPLES)) == "approve"
    assert state(first, one(1, "Bea", "reject", SAMPLES)) == "disputed"
    assert state(first, one(1, "Bea", "reject", SAMPLES), one(2, "Ada", "reject", SAMPLES)) == "reject"


def test_an_adjudication_settles_a_dispute_until_somebody_decides_later() -> None:
    dispute = [one(0, "Ada", "approve", SAMPLES), one(1, "Bea", "reject", SAMPLES)]
    settled = [*dispute, one(2, "Cyd", "redraw", SAMPLES, adjudicates=True)]
    assert state(*settled) == "redraw"
    assert state(*settled, one(3, "Ada", "redraw", SAMPLES)) == "redraw"
    assert state(*settled, one(3, "Ada", "approve", SAMPLES)) == "disputed"
    assert state(*settled, one(3, "Cyd", "hold", SAMPLES)) == "hold"
    assert state(*settled, one(3, "Ada", "approve", SAMPLES), one(4, "Ada", "hold", SAMPLES, True)) == "hold"


def test_a_bulk_decision_is_the_decision_of_its_reviewer_on_each_sample_of_its_list() -> None:
    sha256 = next(iter(LISTS))
    assert state(many(0, "Ada", "approve", sha256)) == "approve"
    assert state(many(0, "Ada", "approve", sha256), one(1, "Ada", "hold", SAMPLES[:1])) == "hold"
    assert state(one(0, "Ada", "hold", SAMPLES[:1]), many(1, "Ada", "approve", sha256)) == "approve"
    assert state(one(0, "Bea", "hold", SAMPLES[:1]), many(1, "Ada", "approve", sha256)) == "disputed"


def test_a_bulk_decision_settles_nothing_whatever_another_tool_wrote_into_it() -> None:
    odd = many(2, "Cyd", "hold", next(iter(LISTS)))
    odd = dataclasses.replace(odd, fields={**odd.fields, "adjudicates": True})
    events = [one(0, "Ada", "approve", SAMPLES[:1]), one(1, "Bea", "reject", SAMPLES[:1]), odd]
    events.append(one(3, "Cyd", "hold", SAMPLES[:1]))
    assert state(*events) == "disputed"
    folding = Folding(frozen)
    assert [folding.add([event]).state(SAMPLES[0]) for event in events][-1] == "disputed"


def test_a_bulk_decision_keeps_one_bit_per_sample() -> None:
    everything = sorted_unique(
        np.random.default_rng(0).integers(0, 256, (10_001, 16), np.uint8).view("S16").reshape(-1)
    )
    folding = Folding(lambda _: everything)
    target = {"query": {}, "ids_sha256": next(iter(LISTS)), "count": len(everything)}
    for seq in range(9):
        fields = {"target": target, "verdict": VERDICTS[seq % 2], "reasons": []}
        found = folding.add([event(seq, "bulk_decision", NAMES[seq % 3], **fields)])
    assert sum(bits.nbytes for _, bits in folding.base.bulks) == 9 * 1251
    assert len(found.history(hex_ids(everything[77:78])[0])) == 9


# Any log, against ten lines of plain Python


def plain(events: Sequence[Event], sample_id: str) -> str:
    said: dict[str, str] = {}
    for found in events:
        ids = LISTS[found.frozen[0]] if found.frozen else found.ids
        if sample_id in ids:
            if found.fields.get("adjudicates"):
                said = {}
            said[found.reviewer.name] = found.fields["verdict"]
    return "disputed" if len(set(said.values())) > 1 else next(iter(said.values()), "undecided")


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for seq in range(draw(st.integers(0, 14))):
        who, verdict = draw(st.sampled_from(NAMES)), draw(st.sampled_from(VERDICTS))
        if draw(st.integers(0, 3)) == 0:
            events.append(many(seq, who, verdict, draw(st.sampled_from(sorted(LISTS)))))
        else:
            ids = draw(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=4, unique=True))
            events.append(one(seq, who, verdict, ids, draw(st.booleans())))
    return events


def same(found: Decisions, events: Sequence[Event]) -> None:
    expected = [plain(events, sample_id) for sample_id in SAMPLES]
    assert [STATES[code] for code in found.states(SAMPLES)] == expected
    assert [found.state(sample_id) for sample_id in SAMPLES] == expected
    assert found.counts == {name: expected.count(name) for name in STATES[1:]}
    for name in STATES[1:]:
        assert hex_ids(found.ids_in(name)) == [s for s, e in zip(SAMPLES, expected, strict=True) if e == name]
    for sample_id in SAMPLES:
        about = [e.seq for e in events if sample_id in (LISTS[e.frozen[0]] if e.frozen else e.ids)]
        assert [e.seq for e in found.history(sample_id)] == about


@given(logs())
def test_a_fold_says_what_plain_python_says(events: list[Event]) -> None:
    same(fold(events, frozen), events)


@given(logs(), st.data(), st.sampled_from([0, 2, 4096]))
def test_a_fold_in_pieces_is_the_fold_of_the_whole_and_older_ones_stay(
    events: list[Event], data: st.DataObject, recent: int
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "MAX_RECENT", recent)
        folding = Folding(frozen)
        found = [
            (end, folding.add(events[start:end])) for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)
        ]
    for end, part in found:
        assert part.head.seq == end - 1
        same(part, events[:end])


def test_states_take_ids_in_every_form_and_order() -> None:
    found = fold([one(0, "Ada", "approve", SAMPLES[1:3]), one(1, "Bea", "reject", SAMPLES[2:4])], frozen)
    asked = [SAMPLES[3], sample(99), SAMPLES[1], SAMPLES[2], SAMPLES[1]]
    array = id_array(asked)
    expected = [STATES.index(name) for name in ("reject", "undecided", "approve", "disputed", "approve")]
    for form in (asked, array, array.view(np.uint8).reshape(-1, 16)):
        codes = found.states(form)
        assert codes.dtype == np.int8
        assert codes.tolist() == expected


def test_events_that_do_not_follow_are_refused() -> None:
    folding = Folding(frozen)
    folding.add([one(0, "Ada", "approve", SAMPLES)])
    with pytest.raises(ValueError, match="event 1 comes next, got 2"):
        folding.add([one(2, "Ada", "approve", SAMPLES)])


def test_a_million_samples_and_a_hundred_thousand_events_are_right() -> None:
    rng = np.random.default_rng(0)
    everything = sorted_unique(rng.integers(0, 256, (1_000_000, 16), dtype=np.uint8).view("S16").reshape(-1))
    texts = hex_ids(everything[::10])
    events = [one(k, NAMES[k % 3], VERDICTS[k % 2], [texts[k]]) for k in range(100_000)]
    sha256 = next(iter(LISTS))
    target = {"query": {}, "ids_sha256": sha256, "count": len(everything)}
    last = event(100_000, "bulk_decision", "Ada", target=target, verdict="approve", reasons=[])
    found = fold([*events, last], lambda _: everything)
    # Of every sample decided on before, that of Ada is replaced, "approve" of the others agrees, their "reject" not.
    disputed = sum(k % 3 > 0 and k % 2 == 1 for k in range(100_000))
    assert found.counts["disputed"] == disputed
    assert found.counts["approve"] == len(everything) - disputed


# Ids


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=30), st.lists(st.binary(min_size=16, max_size=16)))
def test_ids_are_ordered_and_found_as_bytes(some: list[bytes], others: list[bytes]) -> None:
    ids = sorted_unique(np.array(some, "S16"))
    assert hex_ids(ids) == sorted({x.hex() for x in some})
    assert is_ascending(ids)
    asked = [*some, *others]
    place = {text: at for at, text in enumerate(hex_ids(ids))}
    assert IdIndex(ids).find(np.array(asked, "S16")).tolist() == [place.get(x.hex(), -1) for x in asked]
    assert [holds(ids, x.hex()) for x in asked] == [x.hex() in place for x in asked]


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=20))
def test_ids_with_equal_upper_halves_are_told_apart(lower: list[bytes]) -> None:
    some = [b"\x01" * 8 + x for x in lower]
    ids = sorted_unique(np.array(some, "S16"))
    assert hex_ids(ids) == sorted({x.hex() for x in some})
    assert IdIndex(ids).find(np.array(some, "S16")).tolist() == [sorted(set(some)).index(x) for x in some]


# A log on disk


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    return ReviewLog(tmp_path / "reviews" / FINGERPRINT, FINGERPRINT)


def decide(log: ReviewLog, who: str, verdict: str, *numbers: int, adjudicates: bool = False) -> int:
    target = {"ids": [sample(number) for number in numbers]}
    more = {"verdict": verdict, "reasons": ["seen"], "adjudicates": adjudicates}
    return log.append("sample_decision", reviewer=Reviewer(name=who), target=target, **more).seq


def test_two_people_who_decide_one_after_the_other_leave_a_dispute_and_both_events(log: ReviewLog) -> None:
    live, other = LiveDecisions(log), ReviewLog(log.folder, FINGERPRINT)
    assert live.now().state(sample(1)) == "undecided"
    decide(log, "Ada", "approve", 1)
    decide(other, "Bea", "reject", 1)
    before = live.now()
    assert before.state(sample(1)) == "disputed"
    assert [e.reviewer.name for e in before.history(sample(1))] == ["Ada", "Bea"]
    decide(other, "Cyd", "reject", 1, adjudicates=True)
    assert live.now().state(sample(1)) == "reject"
    assert before.state(sample(1)) == "disputed"
    assert live.now() is live.now()
    assert live.now().head == log.head()


def test_a_fold_of_a_log_takes_its_frozen_lists_in_either_form(log: ReviewLog) -> None:
    bulk(log, log.freeze([sample(1), sample(2)]), 2)
    for form in (log.frozen, log.frozen_ids):
        assert fold(log.events(), form).counts["approve"] == 2


def test_a_damaged_frozen_list_stops_the_fold_and_names_the_event(log: ReviewLog) -> None:
    decide(log, "Ada", "approve", 1)
    live = LiveDecisions(log)
    live.now()
    sha256 = log.freeze([sample(1), sample(2)])
    bulk(log, sha256, 2)
    path = log.folder / f"ids-{sha256}.bin"
    data = path.read_bytes()
    path.write_bytes(data[:16])
    for _ in range(2):
        with pytest.raises(ReviewLogError, match="event 1 refers to a frozen list that is no good"):
            live.now()
    path.write_bytes(data)
    assert live.now().state(sample(2)) == "approve"


def test_comments_belong_to_their_samples(log: ReviewLog) -> None:
    ada = Reviewer(name="Ada")
    log.append("comment", reviewer=ada, target={"ids": [sample(1), sample(2)]}, text="both")
    before = LiveDecisions(log).now()
    log.append("comment", reviewer=ada, target={"ids": [sample(2)]}, text="second")
    found = fold(log.events(), log.frozen_ids)
    assert [e.fields["text"] for e in found.comments(sample(2))] == ["both", "second"]
    assert [e.fields["text"] for e in found.comments(sample(1))] == ["both"]
    assert [e.fields["text"] for e in before.comments(sample(2))] == ["both"]
    assert found.history(sample(1)) == []
    assert found.state(sample(1)) == "undecided"


def test_tasks_hold_their_results(log: ReviewLog) -> None:
    audit = task(log, [sample(1), sample(2)], population=10)
    result = {"target": {"ids": [sample(2)]}, "task": audit, "reasons": ["edge"]}
    log.append("task_result", reviewer=Reviewer(name="Ada"), verdict="good", **result)
    before = fold(log.events(), log.frozen_ids)
    log.append("task_result", reviewer=Reviewer(name="Ada"), verdict="defect", **result)
    found = fold(log.events(), log.frozen_ids).task(audit)
    assert (found.seq, found.kind, found.size, found.population, found.of_task) == (audit, "audit", 2, 10, None)
    assert [(r.id, r.reviewer, r.verdict, r.reasons) for r in found.results] == [
        (sample(2), "Ada", "good", ("edge",)),
        (sample(2), "Ada", "defect", ("edge",)),
    ]
    assert len(before.task(audit).results) == 1
    assert found.strays == ()
    with pytest.raises(KeyError, match="event 1 is no task"):
        before.task(1)


def test_a_result_on_a_sample_that_was_not_drawn_does_not_count(log: ReviewLog) -> None:
    audit = task(log, [sample(1)])
    stray = event(1, "task_result", "Ada", target={"ids": [sample(2)]}, task=audit, verdict="defect", reasons=[])
    found = fold([*log.events(), stray], log.frozen_ids).task(audit)
    assert (found.results, found.strays) == ((), (1,))


def test_the_signoff_follows_its_events(log: ReviewLog) -> None:
    ada = Reviewer(name="Ada")
    assert fold(log.events(), log.frozen_ids).signoff is None
    log.append("signoff", reviewer=ada, verdict="approved", checklist={"seen": True}, conditions="none")
    signed = fold(log.events(), log.frozen_ids)
    assert signed.signoff is not None
    assert (signed.signoff.reviewer, signed.signoff.seq) == ("Ada", 0)
    log.append("withdraw_signoff", reviewer=ada, reasons=["a mistake"])
    found = fold(log.events(), log.frozen_ids)
    assert (found.signoff, found.signoff_state.state) == (None, "withdrawn")
    expired = {"verdict": "approved", "expires_at": "2020-01-01T00:00:00Z"}
    log.append("signoff", reviewer=ada, **expired)
    found = fold(log.events(), log.frozen_ids)
    assert (found.signoff, found.signoff_state.at().state) == (None, "expired")
    assert found.signoff_state.at(AT.replace(year=2019)).state == "signed"
