"""Laws from embeddings to the selection: every frame has one cell, and the same frames are taken for any cut."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.assign import (
    GIVEN,
    Assign,
    ClusterConfig,
    Select,
    Weights,
    _smallest_of_family,
    balanced_attributes,
    cell_counts,
    choose,
    cluster,
    dedupe,
    effective,
    given_names,
    group_column,
    load_tree,
    plan_selection,
)
from pipeline.attributes import COMPUTED, Given
from pipeline.clusterfit import ClusterFitConfig
from pipeline.duplicates import DuplicateConfig
from pipeline.embed import Embed, EmbedConfig, vectors_of
from pipeline.errors import InputError
from pipeline.frames import ScanConfig
from pipeline.hierarchy import TreeConfig
from pipeline.probe import Probe
from pipeline.select import SelectConfig, cell_name, selection_key
from pipeline.sources import list_sources
from pipeline.stage import Done, Part, Span, Task, Work, collect, iter_tables, read_span, run_task, write_manifest
from pipeline.step import write_json, write_tables
from tests.pipeline.media import jpeg, moving, video

SCAN = ScanConfig()
SMALL = ClusterConfig(fit_per_cluster=6, per_cluster=6, fit=ClusterFitConfig(side=32, steps=4, batch=8))
SEED = 5


def finish(work: Work, folder: Path, spans: Sequence[tuple[Span, ...]]) -> Done:
    """A stage without Beam: its tasks one by one."""
    function = work.open()
    for index, span in enumerate(spans):
        run_task(function, Task(index=index, count=len(spans), folder=str(folder), spans=span))
    return collect(work.name, str(folder), len(spans))


def step(name: str, folder: Path, tables: Sequence[pa.Table]) -> Done:
    """A driver step of tables; nothing but its uris and rows are looked at."""
    folder.mkdir()
    names = write_tables(folder, tables)
    parts = [Part(name=n, rows=t.num_rows, bytes=0, sha256="") for n, t in zip(names, tables, strict=True)]
    return write_manifest(name, str(folder), parts, {}, [])


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All stages up to the choice, over the same sources cut into tasks in one way."""

    probed: Done
    embedded: Done
    deduped: Done
    clustered: Path
    assigned: Done
    work: Assign


def chain(folder: Path, inputs: Path, cuts: Sequence[int], given: Path | None = None) -> Chain:
    folder.mkdir()
    sources, _ = list_sources([str(inputs)])
    listed = str(folder / "sources.parquet")
    pq.write_table(sources, listed)
    edges = [0, *cuts, sources.num_rows]
    spans = [(Span(uri=listed, start=a, stop=b),) for a, b in itertools.pairwise(edges)]
    probed = finish(Probe(config=SCAN), folder / "probe", spans)
    embed = Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None)
    embedded = finish(embed, folder / "embed", [(Span(uri=uri),) for uri in probed.uris()])
    deduped = step("dedupe", folder / "dedupe", dedupe(embedded, probed, DuplicateConfig()))
    clustered = folder / "cluster"
    clustered.mkdir()
    said: list[str] = []
    cluster(embedded, deduped, SMALL, seed=SEED, folder=clustered, report=said.append)
    assert said
    work = Assign(
        network=Weights(uri=str(clustered / "clusterfit.safetensors"), sha256="n"),
        tree=Weights(uri=str(clustered / "tree.safetensors"), sha256="t"),
        given=Weights(uri=str(given), sha256="g") if given else None,
        sources=listed,
        balanced=("lighting_level", "sharpness"),
        seed=SEED,
    )
    triples = zip(embedded.uris(), probed.uris(), deduped.uris(), strict=True)
    assigned = finish(work, folder / "assign", [tuple(Span(uri=uri) for uri in triple) for triple in triples])
    return Chain(probed=probed, embedded=embedded, deduped=deduped, clustered=clustered, assigned=assigned, work=work)


def taken(folder: Path, assigned: Done, target: int) -> tuple[pa.Table, dict[str, Any]]:
    folder.mkdir()
    plan = plan_selection(assigned, target, SelectConfig())
    write_json(folder, "plan.json", plan)
    work = Select(plan=Weights(uri=str(folder / "plan.json"), sha256="p"))
    selected = finish(work, folder / "select", [(Span(uri=uri),) for uri in assigned.uris()])
    return choose(selected, plan, {}), plan


def rows_of(done: Done) -> pa.Table:
    return pa.concat_tables(iter_tables(done.uris()))


def draw(folder: Path) -> None:
    """Five videos, of which two are one, ten stills, of which three repeat others, and one file without a frame."""
    folder.mkdir()
    for seed in range(4):
        (folder / f"v{seed}.mp4").write_bytes(video(moving(40, seed=seed)))
    (folder / "v9 again.mp4").write_bytes((folder / "v0.mp4").read_bytes())
    for seed in range(10, 17):
        (folder / f"s{seed}.jpg").write_bytes(jpeg(seed, quality=95))
    for seed in (10, 11, 12):
        (folder / f"t{seed}.jpg").write_bytes(jpeg(seed, quality=60))
    (folder / "broken.jpg").write_bytes(jpeg(1)[:200])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assign") / "in"
    draw(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.mktemp("assign") / "whole", inputs, [])


@pytest.fixture(scope="module")
def cut(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The first task holds nothing but the broken file, so one part has no rows."""
    return chain(tmp_path_factory.mktemp("assign") / "cut", inputs, [1, 4, 9])


# Duplicates -----------------------------------------------------------------------------------------------------------


def test_what_repeats_another_source_is_left_out_and_the_first_stays(whole: Chain) -> None:
    embedded = rows_of(whole.embedded)
    uris, ids = embedded.column("source_uri").to_pylist(), embedded.column("sample_id").to_pylist()
    (table,) = iter_tables(whole.deduped.uris())
    gone = table.to_pylist()
    again = sorted(Path(uris[row["embed_row"]]).name for row in gone)
    assert again == ["t10.jpg", "t11.jpg", "t12.jpg", *["v9 again.mp4"] * uris.count(uris[-1])]
    dropped = {row["embed_row"] for row in gone}
    kept = {ids[row] for row in range(len(ids)) if row not in dropped}
    assert {row["duplicate_of"] for row in gone} <= kept


def test_the_same_frames_repeat_whatever_the_cut(whole: Chain, cut: Chain) -> None:
    def repeated(stages: Chain) -> Counter[str]:
        found: Counter[str] = Counter()
        for part, gone in zip(stages.embedded.uris(), stages.deduped.uris(), strict=True):
            uris = read_span(Span(uri=part)).column("source_uri").to_pylist()
            found.update(uris[row] for row in read_span(Span(uri=gone)).column("embed_row").to_pylist())
        return found

    assert cut.embedded.parts[0].rows == 0
    assert repeated(cut) == repeated(whole)


def test_copies_and_small_versions_go_and_mirrored_pictures_stay(data: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("images/hsd_086.jpg", "bad/dup_exact.jpg", "bad/dup_flip.jpg", "bad/dup_small_q30.jpg"):
        target = tmp_path / "in" / (name if name.startswith("bad") else "a.jpg").replace("/", "_")
        target.write_bytes((data / name).read_bytes())
    sources, _ = list_sources([str(tmp_path / "in")])
    pq.write_table(sources, tmp_path / "sources.parquet")
    probed = finish(Probe(config=SCAN), tmp_path / "probe", [(Span(uri=str(tmp_path / "sources.parquet")),)])
    embed = Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None)
    embedded = finish(embed, tmp_path / "embed", [(Span(uri=probed.uris()[0]),)])
    (table,) = dedupe(embedded, probed, DuplicateConfig())
    uris = sources.column("uri").to_pylist()
    gone = [Path(uris[row]).name for row in table.column("embed_row").to_pylist()]
    assert gone == ["bad_dup_exact.jpg", "bad_dup_small_q30.jpg"]


# Clusters and cells ---------------------------------------------------------------------------------------------------


def test_every_frame_that_is_no_duplicate_has_one_cell(whole: Chain) -> None:
    table = rows_of(whole.assigned)
    assert table.num_rows == whole.embedded.rows - whole.deduped.rows
    assert cell_counts(whole.assigned) == Counter(table.column("cell").to_pylist())
    tree = load_tree(whole.work.tree.uri)
    vectors = vectors_of(table)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    for row, vector in zip(table.to_pylist(), vectors, strict=True):
        group, cell = row["cluster_path"]
        assert group == tree.parents[cell]
        assert float(vector @ tree.cells[cell]) >= float((tree.cells @ vector).max()) - 5e-3
        assert 0 <= row["cluster_distance"] <= 2
        assert row["key"] == selection_key(SEED, row["sample_id"])
        assert row["cell"] == cell_name((group, cell), (row["lighting_level"], row["sharpness"]))
    assert group_column(table).tolist() == [path[0] for path in table.column("cluster_path").to_pylist()]


def test_the_cut_into_tasks_changes_no_byte_of_the_network_and_the_tree(whole: Chain, cut: Chain) -> None:
    for name in ("clusterfit.safetensors", "tree.safetensors", "report.json"):
        assert (whole.clustered / name).read_bytes() == (cut.clustered / name).read_bytes()


def test_the_cut_into_tasks_changes_no_cell(whole: Chain, cut: Chain) -> None:
    def cells(stages: Chain) -> dict[str, str]:
        table = rows_of(stages.assigned)
        return dict(zip(table.column("sample_id").to_pylist(), table.column("cell").to_pylist(), strict=True))

    assert cells(whole) == cells(cut)
    assert cell_counts(whole.assigned) == cell_counts(cut.assigned)


def test_the_report_tells_how_the_clusters_are(whole: Chain) -> None:
    facts = json.loads((whole.clustered / "report.json").read_text())
    assert facts["frames"] == whole.assigned.rows
    assert facts["second"]["clusters"] == round(facts["frames"] / 6)
    assert facts["second"]["grouping"] == "ward"
    for level in ("first", "second"):
        assert facts[level]["set_aside"] == {"dead": 0, "duplicate": 0, "not_finite": 0}
    for figure in (facts["first"]["size_entropy"], facts["second"]["size_entropy"], facts["purity_of_second_in_first"]):
        assert 0 <= figure <= 1


def test_the_fit_may_see_a_sample_only(whole: Chain, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, sample=8)
    cluster(whole.embedded, whole.deduped, config, seed=SEED, folder=tmp_path, report=lambda _: None)
    assert json.loads((tmp_path / "report.json").read_text())["frames"] == 8


def test_the_resampled_tree_is_the_same_for_any_cut(whole: Chain, cut: Chain, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, tree=TreeConfig(method="resampled", resamples=2))
    for name, stages in (("whole", whole), ("cut", cut)):
        (tmp_path / name).mkdir()
        cluster(stages.embedded, stages.deduped, config, seed=SEED, folder=tmp_path / name, report=lambda _: None)
    assert json.loads((tmp_path / "whole" / "report.json").read_text())["second"]["grouping"] == "resampled"
    for name in ("tree.safetensors", "report.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_no_frame_is_nothing_to_cluster(whole: Chain, tmp_path: Path) -> None:
    rows = pa.table(
        {"embed_row": pa.array(range(whole.embedded.rows), pa.int32()), "duplicate_of": ["x"] * whole.embedded.rows}
    )
    none = step("dedupe", tmp_path / "none", [rows])
    with pytest.raises(InputError, match="no frame is left after decoding"):
        cluster(whole.embedded, none, SMALL, seed=0, folder=tmp_path, report=lambda _: None)


# The choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1, 7, 20])
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
    assert nowhere not in plan["thresholds"]
    assert sum(plan["quotas"].values()) == whole.assigned.rows
    with pytest.raises(InputError, match="is above what exists"):
        plan_selection(assigned, whole.assigned.rows + 1, SelectConfig())


def test_a_target_above_what_exists_is_refused(whole: Chain) -> None:
    with pytest.raises(InputError, match="is above what exists"):
        plan_selection(whole.assigned, whole.assigned.rows + 1, SelectConfig())


# Given attributes -----------------------------------------------------------------------------------------------------


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
        assert json.loads(table.column("cell")[row].as_py())[2:] == [light[row], place[row]]
    assert effective(table, "nowhere").null_count == table.num_rows
    assert GIVEN + "place" in table.column_names


def test_attributes_to_balance_are_known_ones() -> None:
    given = Given(names=("place",), values={})
    assert balanced_attributes(SelectConfig(), None) == tuple(sorted(COMPUTED))
    assert balanced_attributes(SelectConfig(), given) == tuple(sorted([*COMPUTED, "place"]))
    assert balanced_attributes(SelectConfig(attributes=("sharpness", "place")), given) == ("place", "sharpness")
    with pytest.raises(
        InputError, match=r"select\.attributes names 'place', which is not known; known are aspect_ratio"
    ):
        balanced_attributes(SelectConfig(attributes=("place",)), None)


@pytest.mark.parametrize("name", ["sample", "fit_per_cluster", "per_cluster", "most"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cluster.{name} must be >= 1, got 0"):
        ClusterConfig(**{name: 0})  # type: ignore[arg-type]


def test_families_join_what_shares_a_duplicate_and_take_the_smallest_name() -> None:
    digests = {uri: f"{9 - i}{uri}" for i, uri in enumerate("abcdef")}
    found = _smallest_of_family([("a", "b"), ("c", "b"), ("e", "f")], digests)
    assert found == {"a": "7c", "b": "7c", "c": "7c", "e": "4f", "f": "4f"}
    assert _smallest_of_family([], digests) == {}
