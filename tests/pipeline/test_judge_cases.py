"""The labels on the judge's page: which are shown, in what colours, and what is read for it."""

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from evaluation.picture import EXTRA, FOUND, MISSED
from pipeline.embed import decode_jpeg
from pipeline.judge_cases import COLOURS, KINDS, UNFLAGGED, choose_cases, panels
from tests.pipeline.test_judge_report import EVERY, Row, drawn, shown, squares, verdict_table, written
from tests.pipeline.test_selection_report import _Page

ROWS = st.lists(
    st.tuples(
        st.sampled_from([*KINDS, "keep"]),
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(ROWS, st.integers(0, 30), st.randoms(use_true_random=False))
def test_no_case_stands_twice_and_the_order_of_the_rows_changes_nothing(
    rows: list[Row], cases: int, random: Any
) -> None:
    table, clusters = verdict_table(rows), np.array([row[2] for row in rows], np.int64)
    chosen = choose_cases(table, clusters, cases)
    assert len(set(chosen)) == len(chosen)
    kinds = Counter(rows[at][0] for at in chosen)
    assert all(rows[at][1] is not None for at in chosen)
    there = Counter(row[0] for row in rows if row[1] is not None)
    flagged = sum(there[kind] for kind in KINDS)
    assert sum(kinds[kind] for kind in KINDS) == min(cases, flagged)
    assert kinds["keep"] == (min(UNFLAGGED, there["keep"]) if cases else 0)
    for kind in KINDS:  # none has more than another that still had some
        assert all(kinds[kind] <= kinds[other] + 1 or kinds[other] == there[other] for other in KINDS)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = choose_cases(table.take(pa.array(order, pa.int64())), clusters[order], cases)
    assert [order[at] for at in shuffled] == chosen


@given(ROWS, st.integers(1, 30))
def test_of_each_verdict_no_cluster_is_shown_again_before_every_other_and_the_worst_come_first(
    rows: list[Row], cases: int
) -> None:
    chosen = choose_cases(verdict_table(rows), np.array([row[2] for row in rows], np.int64), cases)
    for kind in (*KINDS, "keep"):
        mine = [at for at in chosen if rows[at][0] == kind]
        there = [at for at, row in enumerate(rows) if row[0] == kind and row[1] is not None]
        shown_of, size = (Counter(rows[at][2] for at in part) for part in (mine, there))
        for cluster, many in shown_of.items():
            assert all(many <= shown_of[other] + 1 or shown_of[other] == size[other] for other in size)
            mine_q = [rows[at][1] or 0.0 for at in mine if rows[at][2] == cluster]
            left_q = [rows[at][1] or 0.0 for at in there if rows[at][2] == cluster and at not in mine]
            assert mine_q == sorted(mine_q, reverse=True)
            assert not left_q or min(mine_q) >= max(left_q)


def test_a_label_that_a_person_drew_is_no_case(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", EVERY, reasons={4: ["audited", "teacher-wrong"]})
    assert sorted(shown(written(tmp_path / "a", run))) == [0, 1, 2, 3, 5]


def test_miss_extra_and_what_both_see_have_their_colours_in_the_picture(tmp_path: Path) -> None:
    picture, teacher, student = squares()
    plain, other, difference = panels(picture, teacher, student)
    places = {"extra": (32, 14), "both": (32, 32), "miss": (32, 50), "none": (4, 4)}
    paint = {"extra": (EXTRA, 0.75), "both": (FOUND, 0.3), "miss": (MISSED, 0.75), "none": ((128,) * 3, 0.0)}
    expected = {key: np.array(colour) * share + 128 * (1 - share) for key, (colour, share) in paint.items()}
    for key, at in places.items():
        assert np.abs(difference[at] - expected[key]).max() <= 1, key
    assert (plain[32, 14] == plain[32, 32]).all()
    assert (plain[32, 50] == 128).all()
    assert (other[32, 14] == 128).all()
    assert (other[32, 50] == other[32, 32]).all()
    assert {colour for _, colour in COLOURS} == {FOUND, MISSED, EXTRA}
    text = written(tmp_path / "a", drawn(tmp_path / "run", EVERY))
    jpegs = [base64.b64decode(image["src"].partition(",")[2]) for image in _Page(text).named("img")]
    assert len(jpegs) == 3 * len(shown(text)) == 18
    for jpeg in jpegs[2::3]:
        pixels = decode_jpeg(jpeg).astype(np.float64)
        for key, (y, x) in places.items():
            assert np.abs(pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1)) - expected[key]).max() < 12, key


def test_pictures_are_read_of_the_parts_that_are_shown_alone(tmp_path: Path) -> None:
    rows: list[Row] = [("keep", 0.0, 0)] * 20
    rows[3] = rows[4] = ("drop", 0.9, 0)
    run = drawn(tmp_path / "run", rows, parts=5)
    for done in (run["labels"], run["scores"]):
        for uri in done.uris()[3:]:
            Path(uri).unlink()
    assert shown(written(tmp_path / "a", run)) == [3, 4, 0, 1, 2, 5, 6, 7, 8, 9]


def test_a_page_of_the_most_cases_with_the_worst_pictures_is_below_three_megabytes(tmp_path: Path) -> None:
    rows: list[Row] = [((*KINDS, "keep")[at % 5], 0.5, at % 7) for at in range(60)]
    text = written(tmp_path / "a", drawn(tmp_path / "run", rows, noise=300))
    assert len(shown(text)) == 24 + UNFLAGGED
    assert len(text.encode()) < 3_000_000
