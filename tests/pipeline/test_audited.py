"""Laws of the audit step: a human mask stays as it was drawn, nothing is left out in silence, and doubt is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evaluation.masks import iou
from manifests.audit import Audit, Drawn, Stratum, read_audit, render_audit
from manifests.mask import decode_mask, encode_mask
from pipeline.audited import AUDITED, NO_AUDIT, SIDE, AuditRules, audited_table, compare
from pipeline.errors import InputError
from pipeline.gold import Human
from pipeline.step import write_tables
from tests.pipeline.test_judge import blobs

Bools = NDArray[np.bool_]
HEIGHT, WIDTH = 48, 64
MOST = 1 << 20
NOTHING = np.zeros((HEIGHT, WIDTH), np.bool_)


def person(shift: int = 0) -> Bools:
    """A person of 24 x 20 pixels."""
    mask = NOTHING.copy()
    mask[12:36, 20 + shift : 40 + shift] = True
    return mask


# One label ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(32, 90), st.integers(32, 90))
def test_a_label_that_a_person_would_draw_alike_is_good(seed: int, height: int, width: int) -> None:
    mask = blobs(seed, height, width) >= 0.5
    found = compare(mask, mask, np.zeros_like(mask), AuditRules())
    assert (found.bad, found.iou, found.miss, found.extra) == (False, 1, 0, 0)


@given(st.integers(0, 999), st.integers(0, 999))
def test_what_a_person_leaves_out_says_nothing(one: int, other: int) -> None:
    teacher, human = blobs(one, 50, 60) >= 0.5, blobs(other, 50, 60) >= 0.5
    found = compare(teacher, human, teacher != human, AuditRules())
    assert (found.bad, found.iou, found.miss, found.extra) == (False, 1, 0, 0)


@given(st.integers(0, 999), st.integers(0, 999), st.floats(0, 0.9), st.floats(0.1, 1))
def test_stricter_rules_find_no_fewer_bad(one: int, other: int, least: float, part: float) -> None:
    pair = (blobs(one, 40, 40) >= 0.5, blobs(other, 40, 40) >= 0.5, np.zeros((40, 40), np.bool_))
    mild = compare(*pair, AuditRules(iou=least, part=part))
    strict = compare(*pair, AuditRules(iou=least + 0.1, part=part / 2))
    assert mild.bad <= strict.bad


def lacking() -> Bools:
    mask = person()
    mask[12:20, 20:30] = False
    return mask


@pytest.mark.parametrize(
    ("teacher", "human", "bad"),
    [
        (person(), person(), False),
        (person(), person(1), False),  # within the band
        (person(), person(8), True),
        (lacking(), person(), True),  # a part is missing
        (person(), lacking(), True),  # a part too much
        (NOTHING, person(), True),
        (person(), NOTHING, True),
        (~NOTHING, person(), True),
        (NOTHING, NOTHING, False),
    ],
)
def test_what_is_bad(teacher: Bools, human: Bools, bad: bool) -> None:
    assert compare(teacher, human, NOTHING, AuditRules()).bad == bad


@pytest.mark.parametrize("scale", [2, 16])
def test_size_changes_little(scale: int) -> None:
    def large(mask: Bools) -> Bools:
        return np.kron(mask, np.ones((scale, scale))) > 0

    assert WIDTH * 16 > SIDE > WIDTH * 2
    small = compare(lacking(), person(), NOTHING, AuditRules())
    found = compare(large(lacking()), large(person()), large(NOTHING), AuditRules())
    assert found.bad == small.bad
    assert found.iou == pytest.approx(small.iou, abs=0.01)


@pytest.mark.parametrize("name", ["iou", "part", "agree"])
def test_impossible_rules_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"judge.audit_{name} must be in \[0, 1\], got 1.5"):
        AuditRules(**{name: 1.5})


# The whole audit ------------------------------------------------------------------------------------------------------

COUNT = 12


def chosen(count: int = COUNT) -> pa.Table:
    columns = {
        "sample_id": [f"{i:032x}" for i in range(count)],
        "content_sha256": pa.array([bytes([i]) * 32 for i in range(count)], pa.binary(32)),
        "width": [WIDTH] * count,
        "height": [HEIGHT] * count,
    }
    return pa.table(columns)


def labels(folder: Path, masks: Mapping[int, Bools], count: int = COUNT, rows: int = 5) -> list[str]:
    """Label parts in which every row has a person, or the mask named; None has no label."""
    table = pa.table(
        {
            "row": pa.array(range(count), pa.int64()),
            "mask": [None if (m := masks.get(i, person())) is NOTHING else encode_mask(m) for i in range(count)],
        }
    )
    folder.mkdir()
    names = write_tables(folder, [table.slice(start, rows) for start in range(0, count, rows)])
    return [str(folder / name) for name in names]


def draw(
    folder: Path,
    masks: Mapping[int, Bools],
    ignore: Mapping[int, Bools] | None = None,
    *,
    sampled: bool = True,
    **wrong: Any,
) -> tuple[Any, int]:
    """An audit of frames 0 to 15, of which 12 and on are not chosen, with some masked; read again."""
    samples = tuple(
        Drawn(
            name=f"{i:04d}", sample_id=f"{i:032x}", content_sha256=(bytes([i]) * 32).hex(), width=WIDTH, height=HEIGHT
        )
        for i in range(16)
    )
    samples = tuple(dataclasses.replace(sample, **wrong) for sample in samples)
    strata = {"0": Stratum(population=16, drawn=16)}
    told = {"seed": 0, "size": 16, "fingerprint": "0" * 64}
    audit = Audit(**told, origin="stage", samples=samples, strata=strata, sampled=sampled)
    for kind, drawn in (("masks", masks), ("ignore", ignore or {})):
        (folder / kind).mkdir(parents=True)
        for number, mask in drawn.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / kind / f"{number:04d}.png")
    (folder / "audit.json").write_bytes(render_audit(audit))
    return read_audit(folder)


def human(*read: tuple[Any, int]) -> Human:
    return Human(
        folders={},
        digests={},
        audits=tuple(masks for masks, _ in read),
        unfinished=tuple(count for _, count in read),
        audit_digests=("",) * len(read),
    )


def judged(folder: Path, *read: tuple[Any, int], teacher: Mapping[int, Bools] | None = None) -> tuple[Any, Any]:
    uris = labels(folder / "label", teacher or {})
    table, facts = audited_table(human(*read), chosen(), uris, AuditRules())
    assert table.schema.equals(AUDITED)
    assert set(facts) == set(NO_AUDIT)
    return {row["row"]: row for row in table.to_pylist()}, facts


def test_human_masks_stay_as_they_were_drawn_and_bad_labels_are_found(tmp_path: Path) -> None:
    masks = {i: blobs(i, HEIGHT, WIDTH) >= 0.5 for i in range(6)} | {6: person(), 7: person(1)}
    void = {3: blobs(9, HEIGHT, WIDTH) >= 0.7, 4: NOTHING}
    rows, facts = judged(tmp_path, draw(tmp_path / "audit", masks, void))
    assert list(rows) == sorted(masks)
    for row, mask in masks.items():
        np.testing.assert_array_equal(decode_mask(rows[row]["mask"], MOST), mask)
        assert rows[row]["sample_id"] == f"{row:032x}"
        ignore = void.get(row, NOTHING)
        wanted = compare(person(), mask, ignore, AuditRules())
        assert {name: rows[row][name] for name in ("bad", "iou", "miss", "extra")} == dataclasses.asdict(wanted)
    np.testing.assert_array_equal(decode_mask(rows[3]["ignore"], MOST), void[3])
    assert [row for row in rows if rows[row]["ignore"] is not None] == [3]
    assert facts == {
        "folders": 1,
        "masks": 8,
        "unfinished": 8,
        "not_in_run": 0,
        "unlabelled": 0,
        "used": 8,
        "bad": sum(row["bad"] for row in rows.values()),
        "chosen": 0,
        "chosen_bad": 0,
        "chosen_reason": "",
        "contradictions": [],
        "twice": 0,
        "trusted": True,
        "reason": "",
    }
    assert not rows[6]["bad"]
    assert facts["bad"] >= 5


def test_masks_of_frames_of_another_run_are_counted_and_left_out(tmp_path: Path) -> None:
    rows, facts = judged(tmp_path, draw(tmp_path / "audit", dict.fromkeys((10, 12, 13, 15), person())))
    assert list(rows) == [10]
    assert (facts["masks"], facts["not_in_run"], facts["used"]) == (4, 3, 1)


def test_an_audit_without_any_mask_is_unfinished(tmp_path: Path) -> None:
    rows, facts = judged(tmp_path, draw(tmp_path / "audit", {}))
    assert rows == {}
    assert (facts["unfinished"], facts["used"], facts["trusted"]) == (16, 0, True)


def test_a_frame_that_lost_its_label_is_counted_and_left_out(tmp_path: Path) -> None:
    read = draw(tmp_path / "audit", {2: person(), 3: person()})
    rows, facts = judged(tmp_path, read, teacher={2: NOTHING})
    assert list(rows) == [3]
    assert (facts["unlabelled"], facts["used"], facts["masks"]) == (1, 1, 2)


def twice(folder: Path, against: Sequence[int]) -> tuple[Any, Any]:
    """Two people mask frames 0 to 9; the second draws something else on some of them."""
    one = draw(folder / "one", {i: person() for i in range(10)})
    two = draw(folder / "two", {i: person(12) if i in against else person(1) for i in range(10)})
    return judged(folder, one, two)


def test_two_people_who_agree_give_the_mask_of_the_folder_named_first(tmp_path: Path) -> None:
    rows, facts = twice(tmp_path, [])
    assert iou(person(), person(1)) > 0.8
    assert (facts["twice"], facts["masks"], facts["used"]) == (10, 20, 10)
    for row in rows.values():
        np.testing.assert_array_equal(decode_mask(row["mask"], MOST), person())


def test_two_people_who_contradict_each_other_are_left_out_and_named(tmp_path: Path) -> None:
    rows, facts = twice(tmp_path, [3, 7])
    assert facts["contradictions"] == [f"{3:032x}", f"{7:032x}"]
    assert (facts["trusted"], facts["used"], facts["reason"]) == (True, 8, "")
    assert [row for row in rows if rows[row]["contradicted"]] == [3, 7]
    assert [row for row in rows if not rows[row]["used"]] == [3, 7]


def test_an_audit_that_contradicts_itself_in_more_than_a_fifth_is_not_trusted(tmp_path: Path) -> None:
    rows, facts = twice(tmp_path, [3, 5, 7])
    assert (facts["trusted"], facts["used"], facts["bad"]) == (False, 0, 0)
    assert facts["reason"] == "3 of 10 frames that two people masked contradict each other, more than a fifth"
    assert not any(row["used"] for row in rows.values())


@pytest.mark.parametrize(("count", "trusted"), [(1, True), (7, True), (8, False)])
def test_few_frames_masked_twice_say_nothing_of_the_whole_audit(tmp_path: Path, count: int, trusted: bool) -> None:
    one = draw(tmp_path / "one", {i: person() for i in range(10)})
    two = draw(tmp_path / "two", {i: person(12) for i in range(count)})
    rows, facts = judged(tmp_path, one, two)
    assert (facts["trusted"], facts["twice"], len(facts["contradictions"])) == (trusted, count, count)
    assert [row for row in rows if rows[row]["used"]] == (list(range(count, 10)) if trusted else [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"content_sha256": "e" * 64}, r"of a frame whose content was eeeeeeeeeeee…, in this run sample 0+ is 0+…"),
        ({"width": WIDTH + 1}, rf"of a frame of {WIDTH + 1}x{HEIGHT} pixels, in this run sample 0+ has"),
    ],
)
def test_an_audit_of_other_pixels_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    mask = np.zeros((HEIGHT, wrong.get("width", WIDTH)), np.bool_)
    read = draw(tmp_path / "audit", {0: mask}, **wrong)
    with pytest.raises(InputError, match=rf"--audit: .*0000.png is {message}.*put the original audit.json back"):
        judged(tmp_path, read)


def test_the_cut_of_the_labels_changes_nothing(tmp_path: Path) -> None:
    read = human(draw(tmp_path / "audit", {i: blobs(i, HEIGHT, WIDTH) >= 0.5 for i in range(12)}))
    first = audited_table(read, chosen(), labels(tmp_path / "a", {}, rows=5), AuditRules())
    other = audited_table(read, chosen(), labels(tmp_path / "b", {}, rows=12), AuditRules())
    assert first[0].equals(other[0])
    assert first[1] == other[1]
