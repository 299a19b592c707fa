"""Laws of the second round: exactly N of the first choice, chosen by their masks, with their own labels."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.again import Relabel, choose_from, first_target, relabel_spans
from pipeline.assign import balanced_attributes
from pipeline.errors import InputError
from pipeline.known import MASK, effective, mask_columns, with_masks
from pipeline.mask_attributes import MASK_ATTRIBUTES, SENSITIVE
from pipeline.quota import SelectConfig
from pipeline.stage import Done, iter_tables
from tests.pipeline.chains import finish
from tests.pipeline.test_label import Drawn, draw

TWO = SelectConfig(rounds=2, attributes=("subject_scale",), source_weight=0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("again") / "drawn")


@pytest.fixture(scope="module")
def labelled(drawn: Drawn) -> Done:
    return drawn.label("whole", rows=5)


def masks(rows: int, **classes: list[str | None]) -> pa.Table:
    """What a label table says of masks."""
    known = {MASK + name: values for name, values in classes.items()}
    text, number = pa.nulls(rows, pa.string()), pa.nulls(rows, pa.float32())
    return pa.table({name: known.get(name, text if name.startswith(MASK) else number) for name in mask_columns()})


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["small", "large", None]), min_size=14, max_size=14), st.integers(0, 14))
def test_exactly_the_target_stays_in_its_order(drawn: Drawn, classes: list[str | None], target: int) -> None:
    stay, plan = choose_from(drawn.chosen, masks(14, subject_scale=classes), target, TWO, None)
    assert stay.num_rows == target == sum(plan["quotas"].values())
    rows = stay.column("first_row").to_pylist()
    assert rows == sorted(set(rows))
    assert (
        stay.column("sample_id").to_pylist()
        == drawn.chosen.column("sample_id").take(pa.array(rows, pa.int64())).to_pylist()
    )
    assert Counter(stay.column("cell").to_pylist()) == {cell: n for cell, n in plan["quotas"].items() if n}
    for cell, prob in zip(stay.column("cell").to_pylist(), stay.column("inclusion_prob").to_pylist(), strict=True):
        assert prob == pytest.approx(0.5 * plan["quotas"][cell] / plan["counts"][cell])


def test_what_masks_tell_is_balanced(drawn: Drawn) -> None:
    classes = ["large" if row in (3, 9) else "small" for row in range(14)]
    config = SelectConfig(
        rounds=2, attributes=("subject_scale",), group_weight=0, cluster_weight=0, prototype_weight=0,
        source_weight=0, unknown=0,
    )  # fmt: skip
    stay, plan = choose_from(drawn.chosen, masks(14, subject_scale=classes), 4, config, None)
    assert Counter(classes[row] for row in stay.column("first_row").to_pylist()) == {"small": 2, "large": 2}
    (target,) = plan["targets"]
    assert [(row["class"], row["reason"]) for row in target["classes"]] == [
        ("small", None), ("medium", "absent"), ("large", None), (None, None)
    ]  # fmt: skip


def test_the_labels_of_what_stays_are_its_own(drawn: Drawn, labelled: Done, tmp_path: Path) -> None:
    every = pa.concat_tables(iter_tables(labelled.uris()))
    stay, _ = choose_from(drawn.chosen, every.select(mask_columns()), 8, TWO, None)
    uri = str(tmp_path / "again.parquet")
    pq.write_table(stay, uri, row_group_size=3)
    first = stay.column("first_row").to_pylist()
    done = finish(Relabel(), tmp_path / "relabel", relabel_spans(uri, first, labelled.uris(), 5))
    tables = list(iter_tables(done.uris()))
    assert [part.num_rows for part in tables] == [5, 3]
    found = pa.concat_tables(tables)
    assert found.schema.equals(every.schema)
    assert found.column("row").to_pylist() == list(range(8))
    wanted = every.take(pa.array(first, pa.int64()))
    assert found.drop_columns(["row"]).equals(wanted.drop_columns(["row"]))


def test_a_mask_goes_before_the_pixels_and_the_user_before_the_mask(drawn: Drawn) -> None:
    rows = with_masks(drawn.chosen, masks(14, num_people=["one"] * 13 + [None]))
    assert effective(rows, "num_people").to_pylist() == ["one"] * 13 + [None]
    given_too = rows.append_column("given.num_people", pa.array(["two"] + [None] * 13, pa.string()))
    assert effective(given_too, "num_people").to_pylist() == ["two"] + ["one"] * 12 + [None]


def test_what_masks_tell_of_skin_is_balanced_only_where_it_is_named() -> None:
    config = SelectConfig(rounds=2, source_weight=0)
    every = set(balanced_attributes(config, None, masks=True))
    assert set(MASK_ATTRIBUTES) - every == SENSITIVE
    assert not set(MASK_ATTRIBUTES) & set(balanced_attributes(config, None))
    named = SelectConfig(rounds=2, attributes=("apparent_skin_tone", "sharpness"), source_weight=0)
    assert balanced_attributes(named, None, masks=True) == ("apparent_skin_tone", "sharpness")
    assert balanced_attributes(named, None) == ("sharpness",)
    with pytest.raises(InputError, match=r"'apparent_skin_tone', which is not known; it is told by masks, which needs"):
        balanced_attributes(SelectConfig(attributes=("apparent_skin_tone",)), None)


@pytest.mark.parametrize(("rounds", "pool", "expected"), [(1, 500, 100), (2, 500, 250), (2, 180, 180), (2, 100, 100)])
def test_the_first_of_two_rounds_takes_more_but_no_more_than_there_is(rounds: int, pool: int, expected: int) -> None:
    assert first_target(SelectConfig(rounds=rounds, oversample=2.5), 100, pool) == expected


def test_targets_of_masks_wait_for_the_second_round(drawn: Drawn) -> None:
    config = SelectConfig(
        rounds=2, attributes=("sharpness", "subject_scale"), targets={"subject_scale": {"large": 1}}, source_weight=0
    )
    known = masks(14, subject_scale=["large"] * 6 + ["small"] * 8)
    stay, _ = choose_from(drawn.chosen, known, 6, config, None)
    assert np.isin(stay.column("first_row").to_numpy(), np.arange(6)).sum() >= 4
