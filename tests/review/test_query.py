import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from review.query import MAX_VALUES, NUMBERS, SORTS, WORDS, Query, QueryError, parse_query

BOUND = st.none() | st.floats(-1e9, 1e9) | st.integers(-5, 5)
WORD_LISTS = {key: st.lists(st.sampled_from(words)) for key, words in WORDS.items()}
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        **WORD_LISTS,
        "reason": st.lists(st.text(), max_size=4),
        "attr": st.dictionaries(st.text(), st.lists(st.none() | st.text(), max_size=4), max_size=3),
        "range": st.dictionaries(
            st.sampled_from(NUMBERS),
            st.tuples(BOUND, BOUND).map(lambda b: sorted(b) if None not in b else list(b)),
            max_size=3,
        ),
        "cluster": st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=4),
        "cell": st.text(),
        "group": st.text(),
        "id": st.text("0123456789abcdef", min_size=1, max_size=32),
        "sort": st.sampled_from(SORTS),
        "descending": st.booleans(),
    },
)


@given(FILTERS)
def test_a_query_survives_json(value):
    query = parse_query(json.loads(json.dumps(value)))
    assert parse_query(json.loads(json.dumps(query.to_json()))) == query


def test_nothing_asks_for_everything():
    assert parse_query(None) == parse_query({}) == Query()
    assert Query().to_json() == {}


def test_equal_questions_are_equal_whatever_the_order():
    one = parse_query({"decision": ["hold", "drop"], "attr": {"b": ["x", None, "x"], "a": ["y"]}})
    two = parse_query({"attr": {"a": ["y"], "b": [None, "x"]}, "decision": ["drop", "hold", "drop"]})
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"decisions": []}, "decision"),
        ({"decision": ["holds"]}, "hold"),
        ({"split": ["training"]}, "train"),
        ({"state": ["approved"]}, "approve"),
        ({"sort": "student_iuo"}, "student_iou"),
        ({"range": {"label_confidenc": [0, 1]}}, "label_confidence"),
    ],
)
def test_an_unknown_word_is_refused_with_the_nearest(value, told):
    with pytest.raises(QueryError, match=f"did you mean '{told}'"):
        parse_query(value)


@pytest.mark.parametrize(
    "value",
    [
        [],
        "hold",
        {"decision": "hold"},
        {"decision": [1]},
        {"decision": [None]},
        {"attr": ["x"]},
        {"attr": {"x": "y"}},
        {"attr": {"x": [1]}},
        {"range": {"q": [0]}},
        {"range": {"q": [0, 1, 2]}},
        {"range": {"q": ["0", 1]}},
        {"range": {"q": [True, 1]}},
        {"range": {"q": [1, 0]}},
        {"range": {"q": [float("nan"), None]}},
        {"range": {"q": [float("inf"), None]}},
        {"range": {"q": [10**400, None]}},
        {"cluster": ["0"]},
        {"cluster": [True]},
        {"cluster": [1 << 31]},
        {"id": ""},
        {"id": "ABC"},
        {"id": "0" * 33},
        {"id": "0\n"},
        {"id": 5},
        {"cell": ["x"]},
        {"descending": 1},
        {"sort": ["q"]},
        {"sort": {}},
        {"reason": ["x"] * (MAX_VALUES + 1)},
        {"attr": {str(n): [] for n in range(MAX_VALUES + 1)}},
        {"group": "\ud800"},
        {"reason": ["\udfff"]},
        {"attr": {"\ud800": ["x"]}},
        {"attr": {"x": ["\ud800"]}},
        {"range": {"\ud800": [0, 1]}},
        {"\ud800": []},
    ],
)
def test_what_is_no_query_is_refused(value):
    with pytest.raises(QueryError):
        parse_query(value)


@pytest.mark.parametrize("key", ["decision", "attr", "range", "cluster", "id", "sort", "descending", "unknown"])
@pytest.mark.parametrize("levels", [10, 900, 20_000])
def test_a_value_of_many_levels_is_refused_like_any_other(key, levels):
    value = []
    for _ in range(levels):
        value = [value]
    with pytest.raises(QueryError):
        parse_query({key: value})


def test_a_message_stays_short_whatever_it_is_about():
    with pytest.raises(QueryError) as error:
        parse_query({"x" * 1_000_000: []})
    assert len(str(error.value)) < 1000
