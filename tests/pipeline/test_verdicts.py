"""Laws of the verdicts: one per row, the sums agree, no fold speaks for another, and what a person drew stands."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.release import canonical_json
from pipeline.audited import AUDITED, NO_AUDIT
from pipeline.judge import FOLDS, SCORED, VERDICTS, JudgeConfig
from pipeline.judge_summary import KEPT, KINDS, Basis
from pipeline.verdicts import verdicts
from students.agreement import Features, Policy

AUDIT = pa.schema([AUDITED.field(name) for name in ("row", "used", "sampled", "bad")])


@dataclass(frozen=True, kw_only=True)
class Docket:
    """What the verdicts are made of."""

    scores: pa.Table
    labels: pa.Table
    folds: pa.Table
    groups: dict[str, NDArray[np.str_]]
    audited: pa.Table

    def __len__(self) -> int:
        return int(self.scores.num_rows)

    def take(self, order: Sequence[int]) -> "Docket":
        rows = pa.array(order, pa.int64())
        groups = {name: values[list(order)] for name, values in self.groups.items()}
        tables = (self.scores.take(rows), self.labels.take(rows), self.folds.take(rows))
        place = {old: new for new, old in enumerate(order)}
        audited = [{**row, "row": place[row["row"]]} for row in self.audited.to_pylist()]
        told = pa.Table.from_pylist(sorted(audited, key=lambda row: row["row"]), schema=AUDIT)
        return Docket(scores=tables[0], labels=tables[1], folds=tables[2], groups=groups, audited=told)

    def beside(self, other: "Docket") -> "Docket":
        """This docket, and behind it another with folds of its own."""
        rows = [{**row, "row": row["row"] + len(self)} for row in other.audited.to_pylist()]
        return Docket(
            scores=pa.concat_tables([self.scores, other.scores]),
            labels=pa.concat_tables([self.labels, other.labels]),
            folds=pa.concat_tables([self.folds, other.folds]),
            groups={name: np.concatenate([self.groups[name], other.groups[name]]) for name in self.groups},
            audited=pa.concat_tables([self.audited, pa.Table.from_pylist(rows, schema=AUDIT)]),
        )

    def with_rows(self, changed: Mapping[int, Mapping[str, Any]]) -> "Docket":
        """With other scores of some rows."""
        rows = [{**row, **changed.get(i, {})} for i, row in enumerate(self.scores.to_pylist())]
        return dataclasses.replace(self, scores=pa.Table.from_pylist(rows, schema=self.scores.schema))

    def judge(
        self, config: JudgeConfig | None = None, basis: Basis | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        table, summary = verdicts(
            self.scores,
            self.labels,
            self.folds,
            self.groups,
            config or JudgeConfig(),
            audited=self.audited,
            basis=basis,
        )
        assert table.schema.equals(VERDICTS)
        assert json.loads(canonical_json(summary)) == summary  # plain numbers and texts, none of them NaN
        return table.to_pylist(), summary


def quantity(rng: np.random.Generator, bad: float) -> dict[str, float]:
    """The features of a label that is good, or bad with the given probability."""
    amount = float(rng.uniform(0.2, 0.5) if rng.random() < bad else rng.exponential(0.01))
    miss = amount if rng.random() < 0.5 else 0.0
    found = dict.fromkeys((field.name for field in dataclasses.fields(Features)), 0.0)
    found |= {"miss": miss, "largest_miss": miss, "extra": amount - miss, "largest_extra": amount - miss}
    found |= {"disagreement": min(1.0, amount), "softmin": max(0.0, 1 - amount), "stability": rng.uniform(0, 0.1)}
    area = 0.0 if rng.random() < 0.05 else 0.3
    return found | {"doubt": rng.choice([0, 0.1]), "teacher_area": area, "student_area": 0.3}


def docket(
    seed: int,
    count: int,
    bad: float = 0.2,
    unjudged: float = 0.1,
    faulty: float = 0.1,
    audited: float = 0.0,
    first: int = 0,
) -> Docket:
    """Drawn scores of clusters ``first`` to ``first`` + 3: some labels have no judge, some frames no label."""
    rng = np.random.default_rng(seed)
    ids = [hashlib.sha256(f"{seed}-{i}".encode()).hexdigest()[:32] for i in range(count)]
    clusters = first + rng.integers(0, 4, count)
    fold = np.where(rng.random(count) < unjudged, -1, first + clusters % 2)
    faults = ["gone" if rng.random() < faulty else None for _ in ids]
    scores, told = [], []
    for i, name in enumerate(ids):
        known = fold[i] >= 0 and faults[i] is None
        facts = quantity(rng, bad)
        if rng.random() < audited:
            wrong = facts["miss"] + facts["extra"] > 0.15
            told.append({"row": i, "used": faults[i] is None, "sampled": True, "bad": wrong})
        scores.append({"row": i, "sample_id": name, "fold": int(fold[i]), **(facts if known else {})})
    schema = SCORED.remove(SCORED.get_field_index("student"))
    folds = {"sample_id": ids, "cluster": clusters, "fold": fold, "key": np.arange(count).astype(np.uint64)}
    return Docket(
        scores=pa.Table.from_pylist(scores, schema=schema),
        labels=pa.table({"fault": pa.array(faults, pa.string())}),
        folds=pa.table(folds).cast(FOLDS),
        groups={"light": np.where(rng.random(count) < 0.3, "dim", "normal")},
        audited=pa.Table.from_pylist(told, schema=AUDIT),
    )


DOCKETS = st.builds(
    docket,
    st.integers(0, 9999),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.2, 0.8]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
DECISION = {"keep": "keep", "weight": "keep", "correct": "keep", "hold": "hold", "drop": "drop"}


@settings(max_examples=60)
@given(DOCKETS, st.sampled_from(get_args(Policy)))
def test_every_label_gets_one_verdict_and_the_sums_agree(case: Docket, policy: Policy) -> None:
    rows, summary = case.judge(JudgeConfig(policy=policy))
    assert [row["sample_id"] for row in rows] == case.scores.column("sample_id").to_pylist()
    fold, faults = case.folds.column("fold").to_pylist(), case.labels.column("fault").to_pylist()
    judged = [f >= 0 and fault is None for f, fault in zip(fold, faults, strict=True)]
    drawn = {row["row"]: row["bad"] for row in case.audited.to_pylist() if row["used"]}
    for i, (row, known, fault) in enumerate(zip(rows, judged, faults, strict=True)):
        assert row["audited"] == (i in drawn)
        assert row["decision"] == DECISION[row["verdict"]]
        assert (row["weight"] == 0) == (row["verdict"] in ("drop", "hold"))
        assert 0 <= row["weight"] <= 1
        assert (row["q"] is not None) == (row["gate"] is not None) == (row["calibrated"] is not None) == known
        if fault is not None:
            assert (row["verdict"], row["reasons"]) == ("drop", [f"no label: {fault}"])
        elif i in drawn:
            assert (row["verdict"], row["weight"]) == ("keep", 1)
            assert row["reasons"] == (["audited", "teacher-wrong"] if drawn[i] else ["audited"])
        elif not known:
            assert (row["verdict"], row["weight"]) == ("keep", 1)
            assert row["reasons"] == ["not judged: no student without its cluster"]
        elif row["verdict"] != "keep":
            assert row["reasons"]
    check_sums(summary, rows, judged)


def check_sums(summary: dict[str, Any], rows: Sequence[dict[str, Any]], judged: Sequence[bool]) -> None:
    """Every number of judge.json is what the verdicts say."""
    mine = [row for row, known in zip(rows, judged, strict=True) if known]
    clusters, folds = summary["clusters"].values(), summary["folds"]
    assert summary["format"] == 2
    assert summary["labels"] + summary["unlabelled"] == len(rows)
    assert summary["judged"] == len(mine) == sum(c["labels"] for c in clusters) == sum(f["labels"] for f in folds)
    found, audited = Counter(row["verdict"] for row in mine), sum(row["audited"] for row in mine)
    wrong = sum("teacher-wrong" in row["reasons"] for row in mine)
    for parts in (clusters, folds):
        assert (sum(part["audited"] for part in parts), sum(part["bad"] for part in parts)) == (audited, wrong)
    for kind in KINDS:
        assert sum(cluster[kind] for cluster in clusters) == found[kind]
    assert sum(cluster["spared"] for cluster in clusters) == sum("floor" in row["reasons"] for row in mine)
    assert (summary["method"] == "none") == (not mine) == (summary["reason"] != "") == (not summary["groups"])
    assert summary["calibrated"] == any(row["calibrated"] for row in mine)
    lost = found["drop"] + found["hold"]
    for classes in summary["groups"].values():
        assert sum(c["labels"] for c in classes.values()) == len(mine)
        by_one = sum(c["labels"] * (1 - c["kept_by_one_threshold"]) for c in classes.values())
        assert by_one == pytest.approx(lost, abs=1e-4 * len(mine))
        for part in classes.values():
            assert sum(part[kind] for kind in KINDS) == part["labels"]
            assert part["kept"][0] == pytest.approx(sum(part[kind] for kind in KEPT) / part["labels"], abs=1e-4)
        for name in ("noise", "kept"):
            assert all(0 <= part[name][1] <= part[name][0] <= part[name][2] <= 1 for part in classes.values())
    for part in clusters:
        assert 0 <= part["noise"][1] <= part["noise"][0] <= part["noise"][2] <= 1
        assert part["gate"] in ("passed", "failed", "uncertain")


@settings(max_examples=40)
@given(DOCKETS, st.randoms(use_true_random=False))
def test_the_order_of_the_labels_changes_no_verdict(case: Docket, random: Any) -> None:
    order = list(range(len(case)))
    random.shuffle(order)
    rows, summary = case.judge()
    shuffled, other = case.take(order).judge()
    assert case.judge() == (rows, summary)
    assert shuffled == [rows[i] for i in order]
    assert other == summary


@pytest.mark.parametrize(
    ("policy", "audited", "allowed"),
    [
        ("drop", 0.0, {"drop"}),
        ("weight", 0.0, {"weight"}),
        ("correct", 0.0, {"correct", "weight"}),
        ("auto", 0.0, {"correct", "weight"}),  # nobody has said how far q is to be believed
        ("auto", 0.3, {"correct", "drop", "weight"}),
    ],
)
def test_a_policy_acts_on_the_worst_labels_in_its_own_way(policy: Policy, audited: float, allowed: set[str]) -> None:
    case = docket(5, 400, bad=0.15, unjudged=0.0, faulty=0.0, audited=audited)
    rows, summary = case.judge(JudgeConfig(policy=policy))
    assert {cluster["gate"] for cluster in summary["clusters"].values()} == {"passed"}
    bad = [a + b > 0.2 for a, b in zip(*(case.scores.column(n).to_pylist() for n in ("miss", "extra")), strict=True)]
    free = [wrong and row["verdict"] != "hold" and not row["audited"] for row, wrong in zip(rows, bad, strict=True)]
    acted = Counter(row["verdict"] for row, mine in zip(rows, free, strict=True) if mine)
    assert set(acted) - {"weight", "keep"} == allowed - {"weight"}
    assert sum(acted[verdict] for verdict in allowed) > 0.7 * sum(acted.values())
    amounts = (case.scores.column(name).to_numpy() for name in ("miss", "extra"))
    trifles = [row["verdict"] for row, amount in zip(rows, np.add(*amounts), strict=True) if amount < 0.03]
    assert len(trifles) > 200
    assert not set(trifles) & {"drop", "correct"}


def test_no_class_of_an_attribute_is_emptied_whoever_is_not_judged() -> None:
    case = docket(5, 400, bad=0.15, unjudged=0.3, faulty=0.1)
    wrong = [(row["miss"] or 0) + (row["extra"] or 0) > 0.2 for row in case.scores.to_pylist()]
    dim = dataclasses.replace(case, groups={"light": np.where(wrong, "dim", "normal")})
    rows, _ = dim.judge(JudgeConfig(policy="drop"))
    kept = [row["decision"] == "keep" for row, bad in zip(rows, wrong, strict=True) if bad]
    assert 0.4 <= np.mean(kept) < 0.5
    free, _ = case.judge(JudgeConfig(policy="drop"))
    assert np.mean([row["decision"] == "keep" for row, bad in zip(free, wrong, strict=True) if bad]) < 0.3


def test_where_nobody_knows_who_is_wrong_nothing_is_dropped() -> None:
    case = docket(5, 100, bad=1.0, unjudged=0.0, faulty=0.0)
    rows, summary = case.judge(JudgeConfig(gate_iou=1.0))
    assert {cluster["gate"] for cluster in summary["clusters"].values()} == {"failed"}
    assert {row["verdict"] for row in rows} == {"keep", "hold"}


# Folds ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(DOCKETS, DOCKETS.map(len), st.integers(0, 999), st.sampled_from([0.0, 0.4]))
def test_a_further_cluster_in_a_fold_of_its_own_leaves_every_other_verdict_bit_equal(
    case: Docket, count: int, seed: int, audited: float
) -> None:
    further = docket(10_000 + seed, count, bad=0.5, audited=audited, first=4)
    (rows, alone), (more, both) = case.judge(), case.beside(further).judge()
    assert more[: len(case)] == rows
    assert {name: both["clusters"][name] for name in alone["clusters"]} == alone["clusters"]
    assert both["folds"][: len(alone["folds"])] == alone["folds"]


STATED = {"nobody-labelled-but-seen", "whole-image-labelled", "mostly-wrong"}
"""Reasons of holds that no floor limits: a person must look, whatever is left."""


@settings(max_examples=40)
@given(DOCKETS, st.sampled_from(get_args(Policy)), st.sampled_from([0.0, 0.4, 0.9]))
def test_floors_hold_in_each_cluster_and_class_of_a_fold(case: Docket, policy: Policy, floor: float) -> None:
    config = JudgeConfig(policy=policy, rules=dataclasses.replace(JudgeConfig().rules, floor=floor))
    rows, _ = case.judge(config)
    fold, clusters = (case.folds.column(name).to_numpy() for name in ("fold", "cluster"))
    free = np.array([row["q"] is not None and not row["audited"] for row in rows], np.bool_)
    kept = np.array([row["decision"] == "keep" for row in rows], np.bool_)
    stated = np.array([bool(STATED & {*row["reasons"]}) for row in rows])
    for number in np.unique(fold[free]).tolist():
        for column in (clusters, case.groups["light"]):
            for value in np.unique(column[free]).tolist():
                mine = free & (fold == number) & (column == value)
                least = np.ceil(floor * mine.sum() - 1e-9)
                assert (mine & kept).sum() >= least or not (mine & ~kept & ~stated).any()


def test_only_folds_with_enough_audited_labels_are_calibrated() -> None:
    case = docket(5, 400, bad=0.3, unjudged=0.0, faulty=0.0, audited=0.3)
    fold = case.folds.column("fold").to_numpy()
    told = [row for row in case.audited.to_pylist() if fold[row["row"]] == 0]
    few = [row for row in case.audited.to_pylist() if fold[row["row"]] == 1][:7]
    partly = dataclasses.replace(case, audited=pa.Table.from_pylist([*told, *few], schema=AUDIT))
    rows, summary = partly.judge(basis=Basis(audit={**NO_AUDIT, "folders": 1, "used": len(told) + 7, "trusted": True}))
    assert [found["calibrated"] for found in summary["folds"]] == [True, False]
    assert (summary["method"], summary["calibrated"]) == ("mixed", True)
    assert [row["calibrated"] for row in rows] == (fold == 0).tolist()
    assert "Fold 1 is not calibrated: 7 audited labels, fewer than 8." in summary["notes"]
    assert not [note for note in summary["notes"] if note.startswith("Fold 0")]
    without = dataclasses.replace(partly, audited=pa.Table.from_pylist(told, schema=AUDIT)).judge()[0]
    checked = {row["row"] for row in few}
    same = [i for i in np.flatnonzero(fold == 1).tolist() if i not in checked]
    assert [rows[i]["q"] for i in same] == [without[i]["q"] for i in same]


# What a reader is told ------------------------------------------------------------------------------------------------

AUDIT_FACTS = {**NO_AUDIT, "folders": 1, "masks": 30, "used": 30, "bad": 6, "trusted": True, "reason": ""}


def test_three_starting_points_are_told_in_three_ways() -> None:
    case = docket(3, 60)
    bases = [Basis(labelled=9), Basis(labelled=9, gold_role="labelled", gold_images=9)]
    bases += [Basis(labelled=9, gold_role="given", gold_images=4, audit=AUDIT_FACTS)]
    told = [case.judge(basis=basis)[1]["notes"] for basis in bases]
    assert told[0][0].startswith("No gold: the 9 labelled images")
    assert told[1][0].startswith("The teacher was given, so the 9 labelled images")
    assert told[2][0].startswith("4 gold images")
    assert [any(note.startswith("No audit") for note in notes) for notes in told] == [True, True, False]
    assert "People masked 30 of these frames; by their masks 6 of the labels are bad." in told[2]


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"unfinished": 5}, "The audit is unfinished: 5 of its frames have no mask yet."),
        ({"not_in_run": 3}, "3 of the audit's 30 masks are of frames that this run did not choose."),
        ({"unlabelled": 2}, "2 audited frames could not be decoded again: they have no label and stay out."),
        ({"twice": 9, "contradictions": ["a", "b"]}, "Of 9 audited frames masked twice, these contradict each other"),
        ({"trusted": False, "used": 0, "reason": "many"}, "The audit is not trusted and nothing of it is used: many."),
        ({"used": 0, "bad": 0}, "Nothing of the audit is used, so no label is calibrated by it."),
    ],
)
def test_what_is_wrong_with_an_audit_is_told(facts: dict[str, Any], note: str) -> None:
    _, summary = docket(3, 60).judge(basis=Basis(audit=AUDIT_FACTS | facts))
    assert any(said.startswith(note) for said in summary["notes"])
    assert summary["audit"] == AUDIT_FACTS | facts


def test_an_audit_that_is_not_used_changes_no_verdict() -> None:
    case = docket(5, 200, bad=0.3, audited=0.5)
    rows = [{**row, "used": False} for row in case.audited.to_pylist()]
    ignored = dataclasses.replace(case, audited=pa.Table.from_pylist(rows, schema=AUDIT))
    assert ignored.judge() == dataclasses.replace(case, audited=case.audited.slice(0, 0)).judge()


def test_where_nobody_can_judge_every_label_is_kept_and_the_reason_is_told() -> None:
    case = docket(5, 50, unjudged=1.0, faulty=0.0, audited=0.2)
    rows, summary = case.judge(basis=Basis(reason="one source: its frames cannot be held out from each other"))
    assert {row["verdict"] for row in rows} == {"keep"}
    assert (summary["reason"], summary["judged"], summary["clusters"]) == (
        "one source: its frames cannot be held out from each other",
        0,
        {},
    )
    assert any(note.startswith("No label was judged: one source") for note in summary["notes"])


def small(clusters: Sequence[int], fold: Sequence[int], bad: float = 0.2) -> Docket:
    """Labels in these clusters and folds."""
    case = docket(8, len(clusters), bad=bad, unjudged=0.0, faulty=0.0)
    columns = {**{name: case.folds.column(name) for name in ("sample_id", "key")}, "cluster": clusters, "fold": fold}
    return dataclasses.replace(case, folds=pa.table(columns).select(FOLDS.names).cast(FOLDS))


def test_two_clusters_alone_judge_each_other_and_it_is_told() -> None:
    _, summary = small([0] * 20 + [1] * 20, [0] * 20 + [1] * 20).judge()
    assert "There are two clusters only: each student has seen one of them and judges the other." in summary["notes"]


def test_a_cluster_of_one_image_loses_nothing_and_is_told() -> None:
    case = small([0] * 20 + [7] + [1] * 20, [0] * 21 + [1] * 20).with_rows({20: AWRY | {"student_area": 0.3}})
    rows, summary = case.judge()
    assert rows[20]["verdict"] in ("keep", "weight")
    assert summary["clusters"]["7"]["gate"] == "uncertain"
    assert "Cluster 7 has a single label." in summary["notes"]
    assert any(note.startswith("Too little is known of cluster 7") for note in summary["notes"])


AWRY = {"miss": 0.0, "largest_miss": 0.0, "extra": 1.0, "largest_extra": 1.0, "disagreement": 1.0, "softmin": 0.0}


def test_empty_and_full_teacher_masks_are_held_for_a_person_and_told() -> None:
    seen = {"miss": 1.0, "largest_miss": 1.0, "extra": 0.0, "disagreement": 1.0, "student_area": 0.3}
    changed = {i: {"teacher_area": 0.3} for i in range(60)}
    changed |= {3: {**seen, "teacher_area": 0.0}, 4: {**AWRY, "teacher_area": 1.0, "student_area": 0.3}}
    rows, summary = small([0] * 30 + [1] * 30, [0] * 30 + [1] * 30, bad=0.0).with_rows(changed).judge()
    assert [(rows[i]["verdict"], rows[i]["reasons"]) for i in (3, 4)] == [
        ("hold", ["nobody-labelled-but-seen"]),
        ("hold", ["whole-image-labelled"]),
    ]
    told = [note for note in summary["notes"] if "held for a person" in note]
    assert len(told) == 2
    assert all(note.endswith(": 1.") for note in told)


def test_students_that_collapsed_drop_nothing_and_the_closed_gates_are_told() -> None:
    nothing = {i: AWRY | {"teacher_area": 0.3, "student_area": 0.0, "stability": 0.0} for i in range(30)}
    rows, summary = small([0] * 15 + [1] * 15 + [2] * 30, [0] * 30 + [1] * 30).with_rows(nothing).judge()
    assert {row["verdict"] for row in rows[:30]} <= {"keep", "hold"}
    assert [summary["clusters"][name]["gate"] for name in "01"] == ["failed", "failed"]
    (told,) = (note for note in summary["notes"] if note.startswith("The gate is closed in 2 of 3 clusters"))
    assert all(summary["clusters"][name]["gate_reason"] in told for name in "01")


def test_clusters_that_people_found_all_wrong_are_held_as_a_whole_and_told() -> None:
    case = small([0] * 40 + [1] * 40, [0] * 40 + [1] * 40, bad=1.0)
    told = [{"row": row, "used": True, "sampled": True, "bad": True} for row in range(12)]
    rows, summary = dataclasses.replace(case, audited=pa.Table.from_pylist(told, schema=AUDIT)).judge(
        JudgeConfig(policy="drop"), Basis(audit=AUDIT_FACTS)
    )
    assert summary["clusters"]["0"]["noise"][0] > 0.9
    assert {(row["verdict"], *row["reasons"]) for row in rows[12:40]} == {("hold", "mostly-wrong")}
    assert any(note.startswith("People found most labels of their clusters wrong") for note in summary["notes"])
    assert [row["verdict"] for row in rows[:12]] == ["keep"] * 12
    assert any(note.startswith("Most labels of clusters 0, 1 seem to be wrong") for note in summary["notes"])
    assert "Fold 0 is not calibrated: all 12 audited labels are bad." in summary["notes"]


def test_clusters_that_look_alike_across_folds_are_told() -> None:
    _, summary = docket(3, 60).judge(basis=Basis(similar=((1, 3),)))
    assert any(note.endswith("one fold would be left: 1 and 3.") for note in summary["notes"])


def test_a_cluster_whose_sources_lie_in_two_folds_is_one_entry() -> None:
    case = small([0] * 30 + [1] * 30, [0] * 25 + [1] * 35)
    rows, summary = case.judge()
    found = summary["clusters"]["0"]
    assert (found["fold"], found["labels"], found["elsewhere"]) == (0, 30, 5)
    assert sum(found[kind] for kind in KINDS) == 30
    assert {row["gate"] for row in rows[25:30]} == {"uncertain"}
    assert any(note.startswith("5 labels are judged in the fold of their source") for note in summary["notes"])
