"""The judge's page: it says what it rests on, shows every class and note, and no label twice."""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.mask import encode_soft
from manifests.text import clean
from pipeline.audited import NO_AUDIT
from pipeline.embed import encode_jpeg
from pipeline.errors import StageError
from pipeline.judge import FOLDS, SCORED, VERDICTS, JudgeConfig
from pipeline.judge_cases import KINDS, REASONS
from pipeline.judge_notes import _audit
from pipeline.judge_report import _counts, write_judge_report
from pipeline.judge_summary import KINDS as JUDGED
from pipeline.judge_summary import Basis
from pipeline.label import LABELLED
from pipeline.verdicts import DRAWN_REASON, verdicts
from students.agreement import MOSTLY_WRONG
from tests.pipeline.chains import step
from tests.pipeline.selections import HOSTILE
from tests.pipeline.test_selection_report import _is_alone, _Page

SIDE = 64
Run = dict[str, Any]
Row = tuple[str, float | None, int]  # verdict, q, cluster


# A judged run, drawn by hand ------------------------------------------------------------------------------------------


def verdict_table(rows: Sequence[Row], reasons: Mapping[int, Sequence[str]] | None = None) -> pa.Table:
    """The verdicts of rows (verdict, q, cluster)."""
    listed = [
        {
            "sample_id": f"{at:032x}",
            "verdict": verdict,
            "decision": verdict if verdict in ("drop", "hold") else "keep",
            "reasons": list((reasons or {}).get(at, ["part-missing"] if verdict in KINDS else [])),
            "weight": 0.0 if verdict in ("drop", "hold") else 1.0,
            "q": q,
            "gate": None if q is None else "passed",
            "calibrated": None if q is None else False,
            "audited": "audited" in (reasons or {}).get(at, ()),
        }
        for at, (verdict, q, _) in enumerate(rows)
    ]
    return pa.Table.from_pylist(listed, schema=VERDICTS)


def squares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey picture; a teacher's square in the left half, a student's, as high, 16 pixels further right."""
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    teacher, student = np.zeros((2, SIDE, SIDE), np.bool_)
    teacher[16:48, 8:40] = student[16:48, 24:56] = True
    return picture, teacher, student


def drawn(folder: Path, rows: Sequence[Row], *, noise: int = 0, parts: int = 4, **changed: Any) -> Run:
    """Arguments of the report for rows (verdict, q, cluster); pictures of noise have ``noise`` pixels a side."""
    folder.mkdir()
    picture, teacher, student = squares()
    if noise:
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (noise, noise, 3)).astype(np.uint8)
        teacher, student = rng.random((2, noise, noise)) < 0.5
    jpeg = encode_jpeg(picture, 95)
    soft, other = (encode_soft(mask.astype(np.float32)) for mask in (teacher, student))
    measured = dict.fromkeys(SCORED.names[6:], 0.125) | {"student_iou": 0.5, "student_boundary_iou": 0.5}
    ids = [f"{at:032x}" for at in range(len(rows))]
    labels = [{"row": at, "sample_id": name, "picture": jpeg, "soft": soft} for at, name in enumerate(ids)]
    scores = [
        {"row": at, "sample_id": name, "fold": 0, **({"student": other, **measured} if q is not None else {})}
        for at, (name, (_, q, _)) in enumerate(zip(ids, rows, strict=True))
    ]
    folds = [{"sample_id": name, "cluster": row[2], "fold": 0, "key": 0} for name, row in zip(ids, rows, strict=True)]
    table = verdict_table(rows, changed.pop("reasons", None))
    return {
        "summary": summary_of(rows) | changed,
        "verdicts": table,
        "labels": step("label", folder / "label", cut(pa.Table.from_pylist(labels, schema=LABELLED), parts)),
        "scores": step("score", folder / "score", cut(pa.Table.from_pylist(scores, schema=SCORED), parts)),
        "folds": pa.Table.from_pylist(folds, schema=FOLDS),
        "title": "What the judge found",
    }


def cut(table: pa.Table, parts: int) -> list[pa.Table]:
    size = max(1, -(-table.num_rows // parts))
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """judge.json of a run with neither gold nor audit."""
    judged = [row for row in rows if row[1] is not None]
    clusters = {
        str(cluster): {
            "fold": 0,
            "labels": sum(row[2] == cluster for row in judged),
            "audited": 0,
            "bad": 0,
            "gate": "passed",
            "gate_reason": "median IoU of student and teacher is 0.80",
            "auroc": None,
            "noise": [0.2, 0.1, 0.4],
            **counts([row for row in judged if row[2] == cluster]),
            "spared": 0,
        }
        for cluster in sorted({row[2] for row in judged})
    }
    return {
        "format": 2,
        "labels": len(rows),
        "judged": len(judged),
        "calibrated": False,
        "method": "mixture" if judged else "none",
        "reason": "" if judged else "one source: its frames cannot be held out from each other",
        "policy": "auto",
        "gold": {"images": 0, "role": "none"},
        "labelled": 40,
        "audit": {**NO_AUDIT},
        "folds": [fold_of(clusters)] if judged else [],
        "clusters": clusters,
        "groups": {"lighting_level": {"dark": group_of(20, 6), "bright": group_of(80, 2), "unknown": group_of(60, 2)}},
        "notes": ["No gold was given.", "No audit was given."],
    }  # fmt: skip


def fold_of(clusters: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    listed = [int(key) for key in clusters]
    return {
        "fold": 0, "clusters": listed, "labels": 8, "method": "mixture", "calibrated": False, "audited": 0,
        "student_sha256": "ab" * 32,
    } | changed  # fmt: skip


def counts(rows: Sequence[Row]) -> dict[str, int]:
    found = Counter(row[0] for row in rows)
    return {kind: found[kind] for kind in JUDGED}


def group_of(labels: int, dropped: int) -> dict[str, Any]:
    rate = 1 - dropped / labels
    return {
        "labels": labels, "keep": labels - dropped, "weight": 0, "correct": 0, "hold": 0, "drop": dropped,
        "noise": [0.1, 0.05, 0.2], "kept": [rate, rate - 0.03, min(1.0, rate + 0.02)], "kept_by_one_threshold": 0.5,
    }  # fmt: skip


def with_audit(summary: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """The summary of the same run with a gold set and an audit."""
    out = copy.deepcopy(dict(summary))
    out["audit"] |= {"folders": 1, "masks": 30, "used": 30, "bad": 9, "trusted": True} | changed
    out["folds"] = [dict(fold, calibrated=True, audited=30, method="audit") for fold in out["folds"]]
    return out | {"calibrated": True, "method": "audit", "gold": {"images": 25, "role": "given"}, "notes": []}


EVERY: list[Row] = [
    ("drop", 0.9, 0),
    ("correct", 0.8, 1),
    ("hold", 0.7, 0),
    ("weight", 0.6, 1),
    ("keep", 0.2, 0),
    ("keep", 0.1, 1),
    ("keep", None, 2),
    ("drop", None, 2),
]


def written(folder: Path, run: Run, **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    assert write_judge_report(folder, **run, **options) == ["judge.html"]
    return (folder / "judge.html").read_text()


def shown(text: str) -> list[int]:
    """The rows of the cases, from the sample ids below them."""
    return [int(name, 16) for name in re.findall(r'<span class="meta">([0-9a-f]{32})</span>', text)]


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself_and_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", EVERY)
    first = written(tmp_path / "a", run)
    assert first == written(tmp_path / "b", run)
    _is_alone(_Page(first))


def test_the_page_holds_every_note_every_class_and_every_cluster(tmp_path: Path) -> None:
    notes = [f"note {at} of this run" for at in range(40)]
    groups = {"lighting_level": {f"class {at}": group_of(40, at) for at in range(20)}}
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY, notes=notes, groups=groups))
    assert [text.count(f"<li>{note}</li>") for note in notes] == [1] * 40
    assert Counter(re.findall(r'<th scope="row">(class \d+)', text)) == dict.fromkeys(groups["lighting_level"], 1)
    assert [row[0] for row in rows_of_table(text, "Closed gates first")] == ["0", "1"]
    lines = [re.match("[a-z ]+", row) for row in rows_of_table(text, "Each label once")]
    assert {line.group() for line in lines if line} == {*JUDGED, "audited", "not judged", "no label"}


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    groups = {HOSTILE: {HOSTILE: group_of(40, 3), "b": group_of(40, 3)}, HOSTILE + "2": {HOSTILE: group_of(80, 6)}}
    run = drawn(tmp_path / "run", EVERY, groups=groups, notes=[HOSTILE], policy=HOSTILE, reasons={0: [HOSTILE]})
    run["summary"]["audit"] |= {"contradictions": [HOSTILE], "folders": 1, "masks": 1, "reason": HOSTILE}
    run["summary"]["clusters"]["0"]["gate_reason"] = HOSTILE
    page = _Page(written(tmp_path / "a", run | {"title": HOSTILE}))
    _is_alone(page)
    start = clean(HOSTILE)[:10]  # long names lose their middle
    whole = 2 + 1 + 1 + 2 + 1 + 2  # title, note, policy, audit, gate, reason of a verdict
    assert page.text.count(start) == whole + 2 * 2  # and two attributes with a class each
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.named("img"))


def judged(folder: Path, basis: Basis, audited: pa.Table | None = None) -> Run:
    """A run of 64 labels in 4 clusters and 2 folds, a quarter of them bad, as the judge itself sees it."""
    ids, clusters = [f"{at:032x}" for at in range(64)], np.arange(64) % 4
    differ = np.where(np.arange(64) % 16 < 4, 0.4, 0.01) + np.random.default_rng(0).random(64) * 0.02
    plain = dict.fromkeys(SCORED.names[6:], 0.01) | {"softmin": 0.9, "student_iou": 0.9, "student_boundary_iou": 0.9}
    rows = [
        {"row": at, "sample_id": name, "fold": at % 2, **plain, "miss": d, "largest_miss": d, "disagreement": d}
        for at, (name, d) in enumerate(zip(ids, differ.tolist(), strict=True))
    ]
    folds = {"sample_id": ids, "cluster": clusters, "fold": clusters % 2, "key": np.arange(64)}
    groups = {"lighting_level": np.array(["dark", "bright"])[(np.arange(64) % 16 < 4).astype(int)]}
    run = drawn(folder, [("keep", 0.5, int(cluster)) for cluster in clusters])
    run["folds"] = pa.table(folds).cast(FOLDS)
    scores, labels = pa.Table.from_pylist(rows, schema=SCORED), pa.table({"fault": pa.nulls(64, pa.string())})
    run["verdicts"], run["summary"] = verdicts(
        scores, labels, run["folds"], groups, JudgeConfig(), audited=audited, basis=basis
    )
    return run


def test_reasons_of_clusters_held_as_a_whole_and_of_listed_frames_are_told_in_words() -> None:
    assert "all of it that nobody checked is held" in REASONS[MOSTLY_WRONG]
    assert "chosen from a list" in REASONS[DRAWN_REASON]


def test_that_nothing_of_an_audit_is_used_is_said_once() -> None:
    facts = {**NO_AUDIT, "folders": 2, "masks": 20, "twice": 10}
    (told,) = _audit({**facts, "reason": "3 of 10 contradict"})
    assert told == "The audit is not trusted and nothing of it is used: 3 of 10 contradict."
    (told,) = _audit({**facts, "trusted": True, "reason": ""})
    assert told == "Nothing of the audit is used, so no label is calibrated by it."


def test_no_gold_no_audit_and_both_are_three_different_pages(tmp_path: Path) -> None:
    rows = np.arange(32)
    bad = rows % 16 < 4
    audited = pa.table({"row": rows, "used": [True] * 32, "sampled": [True] * 32, "bad": bad})
    facts = {**NO_AUDIT, "folders": 1, "masks": 32, "used": 32, "bad": int(bad.sum()), "trusted": True, "reason": ""}
    gold = Basis(gold_images=25, gold_role="given", labelled=40)
    runs = {
        "neither": judged(tmp_path / "1", Basis(labelled=40)),
        "no gold": judged(tmp_path / "2", Basis(labelled=40, audit=facts), audited),
        "no audit": judged(tmp_path / "3", gold),
        "both": judged(tmp_path / "4", dataclasses.replace(gold, audit=facts), audited),
    }
    texts = {name: _Page(written(tmp_path / "a", run)).text for name, run in runs.items()}
    assert len(set(texts.values())) == 4
    for name, run in runs.items():
        assert all(clean(note) in texts[name] for note in run["summary"]["notes"])
    assert [name for name, text in texts.items() if "Gold: none.missing" in text] == ["neither", "no gold"]
    assert [name for name, text in texts.items() if "Audit: none.missing" in text] == ["neither", "no audit"]
    assert [name for name, text in texts.items() if "q is fitted to them" in text] == ["no gold", "both"]
    assert [name for name, text in texts.items() if "Calibratedyes2 of 2 folds" in text] == ["no gold", "both"]
    assert f"32 audited labels, {bad.sum()} bad" in texts["both"]


@pytest.mark.parametrize(
    ("audit", "calibrated", "said"),
    [
        ({"trusted": False, "reason": "6 of 20 samples contradict"}, False, "not trusted"),
        ({"used": 3, "bad": 0}, False, "could not calibrate q"),
        ({"used": 0, "masks": 0, "bad": 0, "unfinished": 12}, False, "0 drawn, 12 not yet"),
    ],
)
def test_an_audit_that_calibrates_nothing_is_not_called_calibration(
    tmp_path: Path, audit: dict[str, Any], calibrated: bool, said: str
) -> None:
    run = drawn(tmp_path / "run", EVERY)
    summary = with_audit(run["summary"], **audit) | {"calibrated": calibrated}
    summary["folds"] = run["summary"]["folds"]
    page = _Page(written(tmp_path / "a", run | {"summary": summary}))
    assert said in page.text
    assert audit.get("reason", "") in page.text
    assert "Calibratedno" in page.text
    assert "q is fitted to them" not in page.text


def test_where_some_folds_are_calibrated_the_page_says_in_part(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", EVERY)
    summary = with_audit(run["summary"])
    summary["folds"] = [fold_of({"0": {}}, calibrated=True, method="audit"), fold_of({"1": {}}, fold=1)]
    assert "Calibratedin part1 of 2 folds" in _Page(written(tmp_path / "a", run | {"summary": summary})).text


# Verdicts, classes, clusters ------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(EVERY), max_size=30), st.sets(st.integers(0, 29)))
def test_every_label_is_in_one_line_of_the_verdicts(rows: list[Row], drawn_by_people: set[int]) -> None:
    reasons = {at: ["audited"] for at in drawn_by_people if at < len(rows)}
    found = _counts(verdict_table(rows, reasons))
    assert sum(found.values()) == len(rows)
    assert found["audited"] == len(reasons)
    plain = [row for at, row in enumerate(rows) if at not in reasons]
    assert {kind: found[kind] for kind in JUDGED} == counts([row for row in plain if row[1] is not None])
    unjudged = Counter(row[0] for row in plain if row[1] is None)
    assert (found["not judged"], found["no label"]) == (unjudged["keep"], unjudged["drop"])


def rows_of_table(text: str, caption: str) -> list[str]:
    """The rows, as text, of the first table whose caption holds the words."""
    body = next(part for part in text.split("<table>")[1:] if caption in part.split("</caption>")[0])
    return [
        re.sub(r"<[^>]+>", "", row)
        for row in re.findall(r"<tr>(.*?)</tr>", body.split("<tbody>")[1].split("</tbody>")[0])
    ]


def test_classes_are_marked_where_their_interval_excludes_the_overall_rate_and_where_they_are_few(
    tmp_path: Path,
) -> None:
    classes = {"dark": group_of(20, 10), "normal": group_of(100, 9), "bright": group_of(100, 0)}
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY, groups={"lighting_level": classes}))
    found = {re.split(r"few|below|above|\d", row)[0]: row for row in rows_of_table(text, "of all judged labels stay")}
    assert {name for name, row in found.items() if "below overall" in row} == {"dark"}
    assert {name for name, row in found.items() if "above overall" in row} == {"bright"}
    assert {name for name, row in found.items() if "few" in row} == {"dark"}
    assert "20 → 10" in found["dark"]
    assert "9.1 % → 5.0 %" in found["dark"]  # of 220, of 201
    assert "50.0 % (47.0–52.0)" in found["dark"]
    listed = [re.sub(r"<[^>]+>", "", line) for line in re.findall(r"<li>(<strong>lighting.*?)</li>", text)]
    assert listed == [
        "lighting_level = dark: 50.0 % (47.0–52.0) of 20 labels stay, of all 91.4 %, few labelsbelow",
        "lighting_level = bright: 100.0 % (97.0–100.0) of 100 labels stay, of all 91.4 %above",
    ]


def test_of_very_many_classes_those_with_the_most_labels_and_unknown_are_shown(tmp_path: Path) -> None:
    classes = {f"c{at:02}": group_of(40 + at, 2) for at in range(70)} | {"unknown": group_of(2, 0)}
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY, groups={"setting": classes}))
    assert re.findall(r'<th scope="row">(c\d\d|unknown)', text) == [*(f"c{at}" for at in range(11, 70)), "unknown"]
    assert "11 more classes" in text


def test_of_many_marked_classes_those_below_are_listed_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    groups = {f"a{at:02}": {"low": group_of(50, 25), "high": group_of(50, 0)} for at in range(20)}
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY, groups=groups))
    listed = re.findall(r"<li><strong>(a\d\d) = (\w+)</strong>", text)
    assert listed == [(name, "low") for name in groups] + [(name, "high") for name in list(groups)[:4]]
    assert "16 more are marked in the tables." in text
    assert text.count('<details open="open">') == 20


def test_unknown_stands_last_and_an_attribute_of_one_class_is_named_but_left_out(tmp_path: Path) -> None:
    groups = {
        "lighting_level": {"unknown": group_of(90, 1), "z": group_of(40, 1), "a": group_of(40, 1)},
        "hair_texture": {"unknown": group_of(90, 3)},
    }
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY, groups=groups))
    assert [row[0] for row in rows_of_table(text, "of all judged labels stay")] == ["a", "z", "u"]
    assert "hair_texture (unknown)" in _Page(text).text
    assert text.count("of all judged labels stay</caption>") == 1


def test_closed_gates_stand_first_then_uncertain_ones_then_by_noise(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", EVERY)
    plain = run["summary"]["clusters"]["0"]
    gates = {
        "3": ("passed", 0.5),
        "4": ("uncertain", 0.1),
        "5": ("failed", 0.2),
        "6": ("failed", 0.3),
        "7": ("passed", 0.6),
    }
    run["summary"]["clusters"] = {
        key: plain | {"gate": gate, "noise": [noise, noise - 0.1, noise + 0.1]} for key, (gate, noise) in gates.items()
    }
    text = written(tmp_path / "a", run)
    assert [row[0] for row in rows_of_table(text, "Closed gates first")] == ["6", "5", "4", "7", "3"]


# Runs with little in them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "changed", "said"),
    [
        ([("keep", None, 0), ("drop", None, 0)], {"groups": {}}, "no label was judged: one source"),
        ([], {"groups": {}}, "there is no label."),
        ([("keep", 0.5, 0)], {"groups": {}}, "no attribute of a judged label is known."),
        ([("keep", 0.5, 0)], {"groups": {"a": {"unknown": group_of(1, 0)}}}, "each attribute has one class."),
        ([("keep", 0.5, 0)], {}, "No judged label was dropped, corrected, held or weighed down."),
        ([("drop", 0.5, 7)], {}, "Dropped 1 shown"),
    ],
)
def test_a_run_with_little_in_it_says_what_it_lacks(
    tmp_path: Path, rows: list[Row], changed: dict[str, Any], said: str
) -> None:
    page = _Page(written(tmp_path / "a", drawn(tmp_path / "run", rows, **changed)))
    _is_alone(page)
    assert said in page.text


def test_no_cases_asked_for_gives_a_page_without_pictures(tmp_path: Path) -> None:
    page = _Page(written(tmp_path / "a", drawn(tmp_path / "run", EVERY), cases=0))
    assert not page.named("img")
    assert "no pictures were asked for" in page.text


def _other_format(run: Run) -> None:
    run["summary"]["format"] = 1


def _short_folds(run: Run) -> None:
    run["folds"] = run["folds"].slice(1)


def _other_label_stage(run: Run) -> None:
    run["labels"] = dataclasses.replace(run["labels"], parts=run["labels"].parts[1:])


def _other_ids(run: Run) -> None:
    run["verdicts"] = run["verdicts"].set_column(0, VERDICTS.field(0), [run["verdicts"].column(0).to_pylist()[::-1]])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_other_format, ValueError, "must have format 2, got 1"),
        (_short_folds, ValueError, "folds and verdicts must have one length, got 7 and 8"),
        (_other_label_stage, StageError, "stage label has 6 rows, the verdicts 8"),
        (_other_ids, StageError, "is not 0000"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, spoil: Callable[[Run], None], error: type[Exception], message: str
) -> None:
    run = drawn(tmp_path / "run", EVERY)
    spoil(run)
    with pytest.raises(error, match=message):
        written(tmp_path / "a", run)
    with pytest.raises(ValueError, match="cases must be >= 0, got -1"):
        written(tmp_path / "b", drawn(tmp_path / "other", EVERY), cases=-1)
