"""Laws of the cluster step: equal bytes for any cut of the input, and a report of what was found."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import clusterfit
from pipeline.cluster import REPORT, ClusterConfig, cluster, load_tree, with_attributes
from pipeline.errors import InputError
from pipeline.hierarchy import TreeConfig
from pipeline.kmeans import farthest_seeds
from tests.pipeline.chains import SEED, SMALL, Chain, step


def test_the_cut_into_tasks_changes_no_byte_of_the_network_and_the_tree(whole: Chain, cut: Chain) -> None:
    for name in ("clusterfit.safetensors", "tree.safetensors", "report.json"):
        assert (whole.clustered / name).read_bytes() == (cut.clustered / name).read_bytes()


def test_the_report_tells_how_the_clusters_are(whole: Chain) -> None:
    facts = json.loads((whole.clustered / "report.json").read_text())
    assert facts["frames"] == whole.assigned.rows
    assert facts["second"]["clusters"] == round(facts["frames"] / 4)
    assert facts["second"]["grouping"] == "ward"
    for level in ("first", "second"):
        assert facts[level]["set_aside"] == {"dead": 0, "duplicate": 0, "not_finite": 0}
    for figure in (facts["first"]["size_entropy"], facts["second"]["size_entropy"], facts["agreement"]["nmi"]):
        assert 0 <= figure <= 1


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """The keys of a report, joined by points; the names of attributes are stars."""
    if isinstance(value, list):
        for item in value:
            yield from keys_of(item, path)
    elif not isinstance(value, dict):
        yield path
    else:
        for key, item in value.items():
            name = "*" if path.endswith("attributes") else key
            yield from keys_of(item, f"{path}.{name}" if path else name)


def test_the_report_tells_what_the_clusters_know_of_attributes_and_every_key_is_explained(
    whole: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusterfit, "_LEAST_FRAMES", 4)
    config = dataclasses.replace(SMALL, fit=dataclasses.replace(SMALL.fit, measure_every=2, held_out=0.5))
    names = cluster(whole.embedded, whole.deduped, config, seed=SEED, folder=tmp_path, report=lambda _: None)
    sampled = pq.read_table(tmp_path / names[-1])
    ids = sampled.column("sample_id").to_pylist()
    parity: dict[str, str | None] = {i: "even" if int(i, 16) % 2 else "odd" for i in ids}
    partly = {i: None if row < 2 else value for row, (i, value) in enumerate(parity.items()) if row != 2}
    values = {"parity": parity, "partly": partly, "nothing": {}, "one": dict.fromkeys(ids, "same")}
    facts = with_attributes(json.loads((tmp_path / "report.json").read_text()), sampled, values)
    assert set(keys_of(facts)) == set(REPORT)
    n = facts["frames"]
    for level in (facts["first"], facts["second"], facts["second"]["by_cluster"]):
        told = level["attributes"]
        assert {name: (a["known"], a["unknown"], a["classes"]) for name, a in told.items()} == {
            "parity": (n, 0, 2),
            "partly": (n - 3, 3, 2),
            "nothing": (0, n, 0),
            "one": (n, 0, 1),
        }
        assert told["nothing"]["ami"] is None
        assert told["one"]["purity"] == told["one"]["commonest"] == 1
        assert 0.5 <= told["parity"]["commonest"] <= told["parity"]["purity"] <= 1
        assert told["parity"]["ami"] <= told["parity"]["nmi"] + 1e-9


def test_the_tree_on_disk_numbers_the_cells_of_a_group_farthest_first(whole: Chain, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, per_cluster=1)
    cluster(whole.embedded, whole.deduped, config, seed=SEED, folder=tmp_path, report=lambda _: None)
    tree = load_tree(str(tmp_path / "tree.safetensors"))
    sizes = []
    for group in range(tree.groups.max() + 1):
        cells = tree.cells[tree.groups == group]
        assert farthest_seeds(cells, len(cells)).tolist() == list(range(len(cells)))
        sizes.append(len(cells))
    assert max(sizes) > 2


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


@pytest.mark.parametrize("name", ["sample", "fit_per_cluster", "per_cluster", "most"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cluster.{name} must be >= 1, got 0"):
        ClusterConfig(**{name: 0})  # type: ignore[arg-type]
