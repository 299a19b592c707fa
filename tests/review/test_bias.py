import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.classical import wilson_interval
from review.bias import FLOOR, NO_REASON, RARER, STACKED, VALUES, bias, stacked, who_says
from review.catalog import Catalog
from review.coding import Codes, Lists
from review.columns import Once
from tests.review import releases


class Table:
    """Columns that a test states itself."""

    def __init__(self, values, decisions, reasons=(), provenance=None):
        self.rows = len(values)
        self.once = Once()
        self._values = _codes(values)
        self._decisions = _codes(decisions)
        self._provenance = _codes(provenance or ["unknown" if v is None else "model" for v in values])
        self._reasons = _lists(reasons or [["r"] if d != "keep" else [] for d in decisions])

    def words(self, name):
        return {"decision": self._decisions}[name]

    def attribute(self, _):
        return self._values

    def provenance(self, _):
        return self._provenance

    def reasons(self):
        return self._reasons


def _codes(items):
    values = sorted({item for item in items if item is not None})
    return Codes(codes=np.array([-1 if i is None else values.index(i) for i in items], np.int16), values=tuple(values))


def _lists(items):
    values = sorted({word for row in items for word in row})
    starts = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    return Lists(
        starts=starts,
        codes=np.array([values.index(word) for row in items for word in row], np.int16),
        values=tuple(values),
    )


DECISIONS = st.sampled_from(("keep", "drop", "hold"))
ROWS = st.lists(
    st.tuples(st.none() | st.sampled_from("abcde"), DECISIONS, st.lists(st.sampled_from("xy"), max_size=2)),
    max_size=120,
)


@given(ROWS)
def test_rows_add_up_to_the_pool_and_reasons_to_what_was_removed(rows):
    table = Table(*map(list, zip(*rows, strict=True))) if rows else Table([], [])
    body = bias(table, ["light"])
    overall = body["overall"]
    assert overall["removed"] == overall["dropped"] + overall["held"] == sum(d != "keep" for _, d, _ in rows)
    assert sum(row["n"] for row in body["rows"]) == overall["n"] == len(rows)
    for row in body["rows"]:
        mine = [(d, r) for v, d, r in rows if v == row["value"]]
        assert row["n"] == len(mine)
        assert row["removed"] == sum(d != "keep" for d, _ in mine) == sum(row["reasons"].values())
        assert row["reasons"] == Counter(" + ".join(r) or NO_REASON for d, r in mine if d != "keep")
    json.dumps(body, allow_nan=False)


@given(ROWS)
def test_not_known_is_always_shown(rows):
    table = Table(*map(list, zip(*rows, strict=True))) if rows else Table([], [])
    assert [row["value"] for row in bias(table, ["light"])["rows"]].count(None) == 1


def pool(n, removed, others=5000, others_removed=500):
    return Table(
        ["a"] * n + ["b"] * others,
        ["drop"] * removed
        + ["keep"] * (n - removed)
        + ["hold"] * others_removed
        + ["keep"] * (others - others_removed),
    )


@pytest.mark.parametrize("removed", range(0, 101, 5))
def test_a_value_is_flagged_exactly_where_its_interval_excludes_the_pool(removed):
    body = bias(pool(100, removed), ["light"])
    row = next(row for row in body["rows"] if row["value"] == "a")
    assert tuple(row["interval"]) == wilson_interval(removed, 100, 0.95)
    low, high = row["interval"]
    assert row["flagged"] == (not low <= body["overall"]["rate"] <= high)
    assert row["rate"] == removed / 100


def test_nothing_is_claimed_of_too_few_rows():
    for n in (FLOOR - 1, FLOOR):
        row = next(row for row in bias(pool(n, n), ["light"])["rows"] if row["value"] == "a")
        assert row["claim"] == row["flagged"] == (n >= FLOOR)


def test_many_values_are_added_up_and_told():
    values = [f"v{n:03d}" for n in range(VALUES + 40) for _ in range(2 + (n < VALUES))]
    body = bias(Table(values, ["drop"] * len(values)), ["light"])
    rest = [row for row in body["rows"] if row.get("rest")]
    assert len(body["rows"]) == VALUES + 2
    assert [(row["value"], row["n"]) for row in rest] == [("40 more values", 80)]
    assert sum(row["n"] for row in body["rows"]) == len(values)


def test_rare_reasons_are_added_up():
    reasons = _lists([[f"reason {n}"] for n in range(STACKED + 5) for _ in range(n + 1)])
    found = stacked(reasons, np.ones(len(reasons.starts) - 1, np.bool_))
    counts = found.counts()
    assert len(found.values) == STACKED + 1
    assert counts[RARER] == sum(range(1, 6))
    assert sum(counts.values()) == len(reasons.starts) - 1


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"model": 3, "human": 0}, "model"),
        ({"model": 3, "human": 1}, "mixed"),
        ({}, "unknown"),
        ({"unknown": 4}, "unknown"),
    ],
)
def test_who_says_a_value(counts, told):
    assert who_says(counts) == told


def test_a_release_says_who_told_and_why(tmp_path):
    catalog = Catalog.open(releases.write(tmp_path, releases.figures(36)))
    body = catalog.bias("apparent_skin_tone")
    assert {row["value"]: row["provenance"] for row in body["rows"]} == {
        None: "unknown",
        "dark": "model",
        "medium": "model",
        "light": "model",
    }
    assert set().union(*(row["reasons"] for row in body["rows"])) == {"gate failed", "probably wrong"}
    every = catalog.bias()
    assert {row["attribute"] for row in every["rows"]} == set(releases.ATTRIBUTES)
    assert [row for row in every["rows"] if row["attribute"] == "apparent_skin_tone"] == body["rows"]


def test_each_reason_counts_each_row_that_has_it(tmp_path):
    reasons = [[], ["a"], ["a", "b"], ["b", "a", "c"]]
    samples = [
        dataclasses.replace(one, row={"decision_reasons": reasons[one.number % 4]}) for one in releases.figures(40)
    ]
    body = Catalog.open(releases.write(tmp_path, samples)).reasons()
    for row in body["reasons"]:
        if row["reason"] == NO_REASON:
            mine = [s for s in samples if s.decision != "keep" and not s.row["decision_reasons"]]
        else:
            mine = [s for s in samples if row["reason"] in s.row["decision_reasons"]]
        counts = Counter(s.decision for s in mine)
        assert (row["n"], row["kept"], row["held"], row["dropped"]) == (
            len(mine),
            counts["keep"],
            counts["hold"],
            counts["drop"],
        )
    assert {row["reason"] for row in body["reasons"]} == {"a", "b", "c", NO_REASON}
