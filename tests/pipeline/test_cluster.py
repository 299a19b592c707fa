"""Laws of the cluster step: equal bytes for any cut of the input, and a report of what was found."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.cluster import ClusterConfig, cluster
from pipeline.errors import InputError
from pipeline.hierarchy import TreeConfig
from tests.pipeline.chains import SEED, SMALL, Chain, step


def test_the_cut_into_tasks_changes_no_byte_of_the_network_and_the_tree(whole: Chain, cut: Chain) -> None:
    for name in ("clusterfit.safetensors", "tree.safetensors", "report.json"):
        assert (whole.clustered / name).read_bytes() == (cut.clustered / name).read_bytes()


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


@pytest.mark.parametrize("name", ["sample", "fit_per_cluster", "per_cluster", "most"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cluster.{name} must be >= 1, got 0"):
        ClusterConfig(**{name: 0})  # type: ignore[arg-type]
