"""Laws of the assigned frames and the choice: every frame has one cell, and the same frames are taken for any cut."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.assign import (
    balanced_attributes,
    cell_counts,
    group_column,
    plan_cells,
    plan_of,
    plan_selection,
    write_plan,
)
from pipeline.attributes import COMPUTED, Given
from pipeline.cluster import load_tree
from pipeline.embed import vectors_of
from pipeline.errors import InputError
from pipeline.known import GIVEN, effective, given_names
from pipeline.quota import OF_SOURCE, SelectConfig
from pipeline.select import cell_name, selection_key
from pipeline.stage import Span
from pipeline.step import Weights, run_step
from tests.pipeline.chains import BALANCED, SEED, Chain, finish, rows_of, taken

PLAIN = SelectConfig(source_weight=0)


def test_every_frame_that_is_no_duplicate_has_one_cell(whole: Chain) -> None:
    table = rows_of(whole.assigned)
    assert table.num_rows == whole.embedded.rows - whole.deduped.rows
    assert cell_counts(whole.assigned) == Counter(table.column("cell").to_pylist())
    tree = load_tree(whole.work.tree.uri)
    vectors = vectors_of(table)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    for row, vector in zip(table.to_pylist(), vectors, strict=True):
        group, cluster, cell = row["cluster_path"]
        assert (group, cluster) == (tree.groups[cell], tree.clusters[cell])
        assert float(vector @ tree.cells[cell]) >= float((tree.cells @ vector).max()) - 5e-3
        assert 0 <= row["cluster_distance"] <= 2
        assert row["key"] == selection_key(SEED, row["sample_id"])
        assert row["cell"] == cell_name((group, cluster, cell), (row["lighting_level"], row["sharpness"]))
    assert group_column(table).tolist() == [path[0] for path in table.column("cluster_path").to_pylist()]


def test_the_cut_into_tasks_changes_no_cell(whole: Chain, cut: Chain) -> None:
    def cells(stages: Chain) -> dict[str, str]:
        table = rows_of(stages.assigned)
        return dict(zip(table.column("sample_id").to_pylist(), table.column("cell").to_pylist(), strict=True))

    assert cells(whole) == cells(cut)
    assert cell_counts(whole.assigned) == cell_counts(cut.assigned)


@pytest.mark.parametrize("target", [1, 7, 15])
def test_the_choice_is_exact_and_the_same_for_any_cut(whole: Chain, cut: Chain, tmp_path: Path, target: int) -> None:
    chosen, plan = taken(tmp_path / "whole", whole.assigned, target)
    other, _ = taken(tmp_path / "cut", cut.assigned, target)
    assert chosen.num_rows == target
    inexact = ["vector", "cluster_distance"]  # their last bits depend on the frames that share a batch
    assert chosen.drop_columns(inexact).equals(other.drop_columns(inexact))
    np.testing.assert_allclose(vectors_of(chosen), vectors_of(other), atol=2e-3)
    assert Counter(chosen.column("cell").to_pylist()) == {c: n for c, n in plan["quotas"].items() if n}
    for cell, share in zip(chosen.column("cell").to_pylist(), chosen.column("inclusion_prob").to_pylist(), strict=True):
        assert share == plan["quotas"][cell] / plan["counts"][cell]
    assert sum(1 / p for p in chosen.column("inclusion_prob").to_pylist()) <= whole.assigned.rows + 1e-9


def test_the_frames_of_a_source_stand_together_in_their_order(whole: Chain, tmp_path: Path) -> None:
    chosen, _ = taken(tmp_path / "t", whole.assigned, whole.assigned.rows)
    uris, frames = chosen.column("source_uri").to_pylist(), chosen.column("frame_index").to_pylist()
    starts = [uri for i, uri in enumerate(uris) if i == 0 or uris[i - 1] != uri]
    assert len(starts) == len(set(starts))
    assert all(frames[i] > frames[i - 1] for i in range(1, len(uris)) if uris[i] == uris[i - 1])


def test_frames_that_belong_nowhere_are_counted_and_get_no_quota(whole: Chain) -> None:
    nowhere = cell_name((-1, -1), ("dim", None))
    counts = {f"cell:{cell}": n for cell, n in {**cell_counts(whole.assigned), nowhere: 4}.items()}
    assigned = dataclasses.replace(whole.assigned, counts=counts)
    plan = plan_selection(assigned, whole.assigned.rows, SelectConfig())
    assert plan["counts"][nowhere] == 4
    assert nowhere not in plan["quotas"]
    assert sum(plan["quotas"].values()) == whole.assigned.rows
    with pytest.raises(InputError, match="is above what exists"):
        plan_selection(assigned, whole.assigned.rows + 1, SelectConfig())


def test_a_target_above_what_exists_is_refused(whole: Chain) -> None:
    with pytest.raises(InputError, match="is above what exists"):
        plan_selection(whole.assigned, whole.assigned.rows + 1, SelectConfig())


def test_what_the_user_gave_goes_before_what_was_computed(whole: Chain, tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("source,lighting_level,place\nv1.mp4,given dim,kitchen\ns12.jpg,,office\n")
    given = Weights(uri=str(tmp_path / "given.csv"), sha256="g")
    work = dataclasses.replace(whole.work, given=given, balanced=("lighting_level", "place"))
    spans = [(Span(uri=whole.embedded.uris()[0]), Span(uri=whole.probed.uris()[0]), Span(uri=whole.deduped.uris()[0]))]
    table = rows_of(finish(work, tmp_path / "assign", spans))
    assert given_names(table) == ["lighting_level", "place"]
    assert given_names(rows_of(whole.assigned)) == []
    before = rows_of(whole.assigned).column("lighting_level").to_pylist()
    assert table.column("lighting_level").to_pylist() == before
    light, place = (effective(table, name).to_pylist() for name in ("lighting_level", "place"))
    for row, uri in enumerate(table.column("source_uri").to_pylist()):
        name = Path(uri).name
        assert light[row] == ("given dim" if name == "v1.mp4" else before[row])
        assert place[row] == {"v1.mp4": "kitchen", "s12.jpg": "office"}.get(name)
        assert json.loads(table.column("cell")[row].as_py())[3:] == [light[row], place[row]]
    assert effective(table, "nowhere").null_count == table.num_rows
    assert GIVEN + "place" in table.column_names


def test_attributes_to_balance_are_known_ones() -> None:
    given = Given(names=("place",), values={})
    assert balanced_attributes(SelectConfig(), given) == tuple(sorted([*COMPUTED, "place", OF_SOURCE]))
    assert balanced_attributes(PLAIN, None) == tuple(sorted(COMPUTED))
    assert balanced_attributes(PLAIN, given) == tuple(sorted([*COMPUTED, "place"]))
    assert balanced_attributes(SelectConfig(attributes=("sharpness", "place"), source_weight=0), given) == (
        "place",
        "sharpness",
    )
    with pytest.raises(
        InputError,
        match=r"\[select\] names 'place', which is not known; known are aspect_ratio",
    ):
        balanced_attributes(SelectConfig(attributes=("place",)), None)


def test_a_plan_is_read_as_it_was_written(whole: Chain, tmp_path: Path) -> None:
    nowhere = cell_name((-1, -1, -1), ("dim", None))
    counts = {**cell_counts(whole.assigned), nowhere: 4}
    plan = plan_cells(counts, 7, SelectConfig(), BALANCED, None)
    done = run_step(str(tmp_path), "plan", 1, None, [], [], lambda folder: write_plan(folder, plan))
    assert plan_of(done) == json.loads(json.dumps(plan))


@pytest.mark.parametrize("name", [OF_SOURCE, "group", "cluster", "prototype"])
def test_an_attribute_of_the_plans_own_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}', the plan has its own; rename the column"):
        balanced_attributes(SelectConfig(), Given(names=(name,), values={}))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SelectConfig(attributes=("lighting_level",), pairs=(("lighting_level", "sharpness"),)), "sharpness"),
        (SelectConfig(targets={"typo": "uniform"}), "typo"),
        (
            SelectConfig(pairs=(("lighting_level", "sharpness"),), targets={"sharpness+lighting_level": "uniform"}),
            "sharp",
        ),
        (SelectConfig(rounds=2, targets={"apparent_skin_tone": "uniform"}), "apparent_skin_tone"),
    ],
)
def test_what_is_not_balanced_in_the_end_has_no_target(config: SelectConfig, name: str) -> None:
    with pytest.raises(InputError, match=rf"\[select\] pairs or targets name '{name}.*', which is not balanced"):
        balanced_attributes(config, None)


def test_no_other_column_of_a_row_is_an_attribute(whole: Chain) -> None:
    rows = rows_of(whole.assigned).append_column(GIVEN + "width", pa.array([None] * whole.assigned.rows, pa.string()))
    assert effective(rows, "width").null_count == effective(rows, "source_uri").null_count == whole.assigned.rows
