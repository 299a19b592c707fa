"""The held-out fold follows from names alone; what identifies a run is what decides its bytes."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.recipe import TeachConfig, TeachError
from teachers.record import Plan, split

CONFIG = TeachConfig.quick()


@settings(max_examples=40)
@given(names=st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=30), one_in=st.integers(2, 12))
def test_a_split_is_disjoint_complete_and_never_empty(names: set[str], one_in: int) -> None:
    ordered = sorted(names)
    train, held = split(ordered, one_in)
    assert train
    assert held
    assert sorted(train + held) == ordered


def test_an_image_stays_on_its_side_when_others_come() -> None:
    few, many = [f"n{i}" for i in range(60)], [f"n{i}" for i in range(200)]
    assert set(split(few, 6)[1]) == set(split(many, 6)[1]) & set(few)
    assert len(split(many, 6)[1]) == pytest.approx(200 / 6, rel=0.4)


def test_one_image_alone_is_refused() -> None:
    with pytest.raises(TeachError, match="at least two labelled images"):
        split(["a"], 6)


def plan(config: TeachConfig, **change: Any) -> Plan:
    known = {"labelled": "a", "init": "", "backgrounds": ""}
    return replace(
        Plan(config=config, seed=0, digests=known, output=Path("out"), trained_on=("a",), held_out=("b",)), **change
    )


def test_a_run_is_known_by_what_its_files_hold_and_not_by_where_they_are() -> None:
    here, there = (plan(replace(CONFIG, init=p, backgrounds=q)) for p, q in (("a.pth", "b"), ("c.pth", "d")))
    here.check(there.identity(), Path("state.pt"))
    changed = plan(CONFIG, digests={"labelled": "a", "init": "1234", "backgrounds": ""})
    with pytest.raises(TeachError, match="init is '' and was '1234'"):
        here.check(changed.identity(), Path("state.pt"))


def test_every_choice_that_decides_bits_identifies_a_run_and_no_other() -> None:
    free = {f.name for f in fields(TeachConfig) if not f.metadata.get("identity", True)}
    by_content = {"init", "backgrounds"}
    assert free == {"report_every", "checkpoint_seconds", "cache_bytes"} | by_content
    names = {name.split(".")[0] for name in plan(CONFIG).identity()}
    assert names == {f.name for f in fields(TeachConfig)} - free | {"seed", "labelled"} | by_content
    plan(CONFIG).check(plan(replace(CONFIG, cache_bytes=5, report_every=9)).identity(), Path("state.pt"))


def test_what_is_no_identity_is_refused() -> None:
    with pytest.raises(TeachError, match="not readable"):
        plan(CONFIG).check([1, 2], Path("state.pt"))
