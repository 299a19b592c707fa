"""How the clusters were made: every key may be missing, no name is markup, and lines stand where their steps are."""

import copy
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import REPORT, with_attributes
from pipeline.cluster_page import made_section
from tests.pipeline.selections import HOSTILE

_CLUSTERING = {"clusters": 16, "size_entropy": 0.9, "set_aside": {"dead": 0, "duplicate": 3, "not_finite": 0}}
_CURVE = [
    {"step": 20, "loss": 3.0, "held_out_loss": 4555.6, "held_out_accuracy": 0.05},
    {"step": 40, "loss": 2.0, "held_out_loss": None, "held_out_accuracy": 0.25},
    {"step": 50, "loss": 1.0, "held_out_loss": 1.25, "held_out_accuracy": 0.75},
]
_BARE: dict[str, Any] = {
    "frames": 191,
    "sources": 96,
    "first": _CLUSTERING,
    "second": {
        **_CLUSTERING,
        "joined": 14,
        "joined_entropy": 0.8,
        "groups": 10,
        "group_entropy": 0.7,
        "grouping": "ward",
        "vectors_per_cell": 3.98,
    },
    "agreement": {"purity": 0.87, "nmi": 0.77, "ami": 0.63},
    "training": {
        "trained_on": 172,
        "held_out": 19,
        "early_stop": True,
        "steps": 50,
        "stopped_by": "patience",
        "kept_step": 40,
        "device": "cpu",
        "precision": "32",
        "curve": _CURVE,
    },
}


def _report(names: tuple[str, ...] = ("light", "pose")) -> dict[str, Any]:
    """A report with attributes as the driver makes it: the first equals the clusters, the others are chance."""
    rng = np.random.default_rng(0)
    first = np.arange(60) % 3
    paths = np.stack([first, first, np.arange(60) % 6], axis=1)
    ids = [f"{at}" for at in range(60)]
    sampled = pa.table({"sample_id": ids, "first": first, "path": paths.tolist()})
    values = {name: dict(zip(ids, rng.choice(["a", "b", "c"], 60).tolist(), strict=True)) for name in names}
    values[names[0]] = dict(zip(ids, [f"c{at}" for at in first], strict=True))
    return with_attributes(copy.deepcopy(_BARE), sampled, {**values, "nobody knows": {}})


def _text(facts: Any) -> str:
    return re.sub(r"<[^>]*>", " ", made_section(facts).replace("<wbr>", ""))


def test_the_report_of_these_tests_has_the_keys_that_the_cluster_step_writes() -> None:
    names = ("light", "pose", "nobody knows")
    for path in _paths(_report()):
        key = ".".join("*" if part in names else part for part in path if isinstance(part, str))
        assert any(known == key or known.startswith(key + ".") for known in REPORT), key


def test_every_part_is_told_with_its_numbers() -> None:
    text = " ".join(_text(_report()).split())
    for part in (
        "First embedding: k-means 16 0.90 3 duplicate",
        "Second embedding: clusters 14 0.80 –",
        "Second embedding: groups 10 0.70 –",
        "Frames of the hash sample 191 Sources they are from 96",
        "agree: NMI, AMI 0.77, 0.63",
        "Frames trained on, held out 172, 19",
        "Steps taken 50; the held-out loss no longer fell; the weights of step 40 are kept",
        "Precision 32-bit floats",
        "light 60 3 33.3 % 1.00 → 1.00 → 1.00 1.00 →",
        "nothing is known of: nobody knows",
        "training loss 3 → 1; held-out loss 4,555.6 → 1.25",
        "held-out accuracy 5.0 % → 75.0 %",
        "Losses go up to 4,555.6; those above 4 lie on the upper edge",
    ):
        assert part in text
    assert text.index("light 60") < text.index("pose 60")  # the highest AMI first


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, each in inner for path in ((*prefix, key), *_paths(each, (*prefix, key)))]


def _changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    facts = _report()
    holder: Any = facts
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return facts


@given(st.sampled_from(_paths(_report())), st.sampled_from([None, float("nan"), float("inf"), -1, 0, "x", [], {}, [3]]))
def test_a_key_of_any_value_leaves_the_rest_standing(path: tuple[Any, ...], value: Any) -> None:
    made = made_section(_changed(path, value))
    assert "nan" not in made
    assert "inf%" not in made
    others = {"first", "second", "agreement", "training"} - {path[0]}
    marks = {"first": "16", "second": "ward", "agreement": "0.77, 0.63", "training": "172, 19"}
    assert all(marks[name] in made for name in others)


@given(
    st.recursive(
        st.none() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*_BARE, *_BARE["training"], *_CLUSTERING]), inner)
        ),
        max_leaves=8,
    )
)
def test_facts_of_any_shape_make_a_section(facts: Any) -> None:
    assert made_section(facts if isinstance(facts, dict) else {"first": facts}).startswith("<section")


def test_no_report_is_told_as_none() -> None:
    assert "the cluster step reported nothing" in made_section({})


def test_no_name_of_the_report_becomes_markup() -> None:
    facts = _report((HOSTILE, "pose"))
    facts["second"]["grouping"] = facts["training"]["device"] = facts["training"]["stopped_by"] = HOSTILE
    facts["first"]["set_aside"] = {HOSTILE: 2}
    made = made_section(facts)
    assert "<script" not in made
    assert "<img" not in made


def _points(made: str, number: int) -> list[list[tuple[int, int]]]:
    """The strokes of the lines of one style, in thousandths of the chart."""
    lines = re.findall(rf'<path d="([^"]*)"[^>]*class="s{number}"', made)
    return [[(int(x), int(y)) for x, y in re.findall(r"[ML](\d+) (\d+)", line)] for line in lines]


def test_lines_stand_where_their_steps_are_and_break_where_nothing_was_measured() -> None:
    losses, accuracy = _points(made_section(_BARE), 0)
    assert losses == [(0, 250), (333, 375), (667, 500), (1000, 750)]  # of 4 nats; steps 20, 30, 40, 50
    assert accuracy == [(0, 950), (333, 850), (667, 750), (1000, 250)]
    assert _points(made_section(_BARE), 1) == [[(0, 0), (1000, 688)]]  # 4,555.6 on the edge; none at 40


@pytest.mark.parametrize("count", [1, 2, 5000])
def test_a_curve_of_any_length_fits_the_page(count: int) -> None:
    curve = [{"step": 7 * at, "loss": 1 / (at + 1), "held_out_loss": 1.0, "held_out_accuracy": 0.5}
             for at in range(count)]  # fmt: skip
    losses, _ = _points(made_section({"training": {"curve": curve}}), 0)
    assert len(losses) == min(count, 201)
