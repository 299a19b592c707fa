"""Laws of masks of chosen frames: they are labels as audited ones are, and nothing is estimated by them."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.mask import decode_mask
from pipeline.audited import NO_AUDIT
from pipeline.judge import JudgeConfig
from pipeline.judge_summary import Basis
from pipeline.next_round import next_round
from students.agreement import Policy
from tests.pipeline.test_audited import MOST, draw, judged, person
from tests.pipeline.test_next_round import by_decision, draw_rows, listed, write_rows
from tests.pipeline.test_verdicts import AUDIT, Docket, docket

OFF = 12
"""Columns by which a mask is moved that contradicts another, and is far from the label."""

# The audit step -------------------------------------------------------------------------------------------------------


def test_masks_of_chosen_frames_are_used_and_counted_apart(tmp_path: Path) -> None:
    random = draw(tmp_path / "random", {0: person(), 1: person(OFF)})
    chosen = draw(tmp_path / "chosen", {2: person(), 3: person(OFF), 4: person(OFF), 14: person()}, sampled=False)
    rows, facts = judged(tmp_path, random, chosen)
    assert {row: (found["sampled"], found["used"]) for row, found in rows.items()} == {
        0: (True, True), 1: (True, True), 2: (False, True), 3: (False, True), 4: (False, True),
    }  # fmt: skip
    assert (facts["used"], facts["bad"]) == (2, 1)
    assert (facts["chosen"], facts["chosen_bad"], facts["chosen_reason"]) == (3, 2, "")
    assert (facts["folders"], facts["masks"], facts["not_in_run"]) == (2, 6, 1)
    np.testing.assert_array_equal(decode_mask(rows[3]["mask"], MOST), person(OFF))


@pytest.mark.parametrize("first", [True, False])
def test_a_frame_masked_in_both_counts_as_random_with_the_mask_drawn_for_the_audit(tmp_path: Path, first: bool) -> None:
    read = [
        draw(tmp_path / "random", {0: person()}),
        draw(tmp_path / "chosen", {0: person(1), 1: person(1)}, sampled=False),
    ]
    rows, facts = judged(tmp_path, *(read if first else read[::-1]))
    assert [rows[row]["sampled"] for row in (0, 1)] == [True, False]
    np.testing.assert_array_equal(decode_mask(rows[0]["mask"], MOST), person())
    assert (facts["used"], facts["chosen"], facts["twice"]) == (1, 1, 1)


def test_a_chosen_mask_that_contradicts_another_is_left_out_and_named(tmp_path: Path) -> None:
    random = draw(tmp_path / "random", {row: person() for row in range(6)})
    chosen = draw(tmp_path / "chosen", {0: person(OFF), **{row: person() for row in range(1, 12)}}, sampled=False)
    copy = draw(tmp_path / "copy", {6: person(OFF), **{row: person() for row in range(7, 12)}}, sampled=False)
    rows, facts = judged(tmp_path, random, chosen, copy)
    assert facts["contradictions"] == [f"{0:032x}", f"{6:032x}"]
    assert [row for row in rows if not rows[row]["used"]] == [0, 6]
    assert (facts["used"], facts["chosen"], facts["twice"], facts["trusted"]) == (5, 5, 12, True)


def test_chosen_frames_that_people_disagree_on_do_not_cost_the_audit_its_trust(tmp_path: Path) -> None:
    random = draw(tmp_path / "random", {row: person() for row in range(4)})
    one = draw(tmp_path / "one", {row: person() for row in range(4, 12)}, sampled=False)
    two = draw(tmp_path / "two", {row: person(OFF if row < 6 else 0) for row in range(4, 12)}, sampled=False)
    rows, facts = judged(tmp_path, random, one, two)
    assert (facts["trusted"], facts["reason"], facts["used"], facts["chosen"]) == (True, "", 4, 0)
    told = "2 of 8 chosen frames that two people masked contradict each other, more than a fifth"
    assert facts["chosen_reason"] == told
    assert [row for row in rows if rows[row]["used"]] == [0, 1, 2, 3]


def test_people_who_contradict_each_other_in_the_audit_are_not_trusted_with_chosen_frames(tmp_path: Path) -> None:
    shifts = {"one": 0, "two": OFF}
    one, two = (draw(tmp_path / name, {row: person(shifts[name]) for row in range(8)}) for name in shifts)
    rows, facts = judged(tmp_path, one, two, draw(tmp_path / "chosen", {8: person()}, sampled=False))
    assert not any(found["used"] for found in rows.values())
    assert (facts["trusted"], facts["used"], facts["chosen"]) == (False, 0, 0)
    assert facts["chosen_reason"] == facts["reason"] != ""


# The verdicts ---------------------------------------------------------------------------------------------------------

DOCKETS = st.builds(
    docket,
    st.integers(0, 9999),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.2, 0.8]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.3]),
)


def with_chosen(case: Docket, seed: int, share: float = 0.3) -> tuple[Docket, dict[int, bool]]:
    """A docket in which people also drew frames of a list; and row -> whether the label was bad."""
    rng = np.random.default_rng(seed)
    before = case.audited.to_pylist()
    faults = case.labels.column("fault").to_pylist()
    free = [row for row in range(len(case)) if row not in {found["row"] for found in before} and faults[row] is None]
    chosen = {row: bool(rng.random() < 0.9) for row in free if rng.random() < share}
    rows = [*before, *({"row": row, "used": True, "sampled": False, "bad": bad} for row, bad in chosen.items())]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["row"]), schema=AUDIT)
    return dataclasses.replace(case, audited=table), chosen


ESTIMATED = ("audited", "bad", "gate", "gate_reason", "auroc", "noise", "labels", "fold")


@settings(max_examples=60)
@given(DOCKETS, st.integers(0, 99), st.sampled_from(get_args(Policy)))
def test_chosen_masks_are_labels_and_enter_no_estimate(case: Docket, seed: int, policy: Policy) -> None:
    more, chosen = with_chosen(case, seed)
    rows, summary = more.judge(JudgeConfig(policy=policy))
    plain, without = case.judge(JudgeConfig(policy=policy))
    for row, bad in chosen.items():
        assert (rows[row]["verdict"], rows[row]["decision"], rows[row]["weight"]) == ("keep", "keep", 1)
        assert rows[row]["reasons"] == (["drawn", "teacher-wrong"] if bad else ["drawn"])
        assert rows[row]["audited"]  # published with the human mask
    for name in ("q", "gate", "calibrated"):
        assert [row[name] for row in rows] == [row[name] for row in plain]
    for name in ("folds", "method", "calibrated", "labels", "judged"):
        assert summary[name] == without[name]
    for cluster, said in summary["clusters"].items():
        assert {name: said[name] for name in ESTIMATED} == {
            name: without["clusters"][cluster][name] for name in ESTIMATED
        }
    for attribute, classes in summary["groups"].items():
        for name, said in classes.items():
            before = without["groups"][attribute][name]
            assert (said["noise"], said["audited"]) == (before["noise"], before["audited"])


def test_chosen_labels_alone_calibrate_nothing_however_many_and_however_bad() -> None:
    case = docket(5, 400, bad=0.3, unjudged=0.0, faulty=0.0)
    more, chosen = with_chosen(case, 1, share=0.6)
    assert len(chosen) > 200
    _, summary = more.judge()
    assert (summary["calibrated"], [fold["audited"] for fold in summary["folds"]]) == (False, [0, 0])
    random = [{**row, "sampled": True} for row in more.audited.to_pylist()]
    audited = dataclasses.replace(case, audited=pa.Table.from_pylist(random, schema=AUDIT)).judge()[1]
    assert audited["folds"] != summary["folds"]


def test_nobody_who_was_chosen_is_refused_and_others_still_are() -> None:
    more, chosen = with_chosen(docket(5, 300, bad=0.3, unjudged=0.0, faulty=0.0, audited=0.2), 3, share=0.2)
    lost = {row for row, found in enumerate(more.judge()[0]) if found["decision"] != "keep"}
    assert lost
    assert chosen
    assert not lost & set(chosen)


DRAWN = (
    "People masked 5 frames that were chosen from a list. Their masks are the labels there; of the teacher's 4 were "
    "bad. They are no random sample: they count in no rate and calibrate nothing."
)


@pytest.mark.parametrize(
    ("facts", "notes"),
    [
        (
            {"used": 30, "bad": 6, "chosen": 5, "chosen_bad": 4},
            ["People masked 30 of these frames; by their masks 6 of the labels are bad.", DRAWN],
        ),
        (
            {"chosen": 5, "chosen_bad": 4},
            ["No mask of a frame drawn at random is used, so no label is calibrated by it.", DRAWN],
        ),
        ({"chosen_reason": "why"}, ["No mask of a frame chosen from a list is used: why."]),
    ],
)
def test_a_reader_is_told_of_chosen_frames(facts: dict[str, Any], notes: list[str]) -> None:
    given_ = {**NO_AUDIT, "folders": 2, "masks": 35, "trusted": True, "reason": "", **facts}
    _, summary = docket(3, 60).judge(basis=Basis(audit=given_))
    assert summary["audit"] == given_
    assert set(notes) <= set(summary["notes"])


# The next round -------------------------------------------------------------------------------------------------------


def test_drawn_labels_are_listed_no_more_and_tell_no_rate(tmp_path: Path) -> None:
    made = draw_rows(5, 400)
    rows = made.table.to_pylist()
    able = [i for i, row in enumerate(rows) if row["judge"] is not None and "audited" not in row["decision_reasons"]]
    drawn = [i for i in able if rows[i]["decision"] == "keep"][:60]
    reasons = [["drawn", "teacher-wrong"] if i in drawn else row["decision_reasons"] for i, row in enumerate(rows)]
    place = made.table.schema.get_field_index("decision_reasons")
    field = made.table.schema.field(place)
    table = made.table.set_column(place, field, pa.array(reasons, field.type))
    plain = next_round(
        write_rows(tmp_path / "a", by_decision(made.table, 2), made.judge), str(tmp_path / "x"), labels=999
    )
    found = next_round(write_rows(tmp_path / "b", by_decision(table, 2), made.judge), str(tmp_path / "y"), labels=999)
    assert found.needs == plain.needs
    assert (found.drawn, found.audited, found.judged) == (60, plain.audited, plain.judged)
    assert plain.drawn == 0
    names = {row["sample_id"] for row in listed(tmp_path / "y")}
    assert names == {rows[i]["sample_id"] for i in able} - {rows[i]["sample_id"] for i in drawn}
    assert 0 < found.expected < plain.expected
