"""Laws of what an audit is drawn from: release and label stage give the same pictures, and damage is named."""

import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.audit import Audit
from manifests.image import upright_size
from manifests.release import fingerprint
from pipeline.audit_draw import draw_audit
from pipeline.audit_pool import _facts, open_pool
from pipeline.config import Config
from pipeline.errors import CurateError, InputError, UsageError
from pipeline.label import LabelConfig
from pipeline.release import write
from pipeline.stage import Done, iter_tables
from pipeline.step import run_step, write_tables
from tests.pipeline.test_publish import Published, by_row, draw_published
from tests.pipeline.test_release import draw_run

# A release ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return draw_published(tmp_path_factory.mktemp("audit") / "drawn")


@pytest.fixture(scope="module")
def published(made: Published) -> Done:
    return made.run("publish")


@pytest.fixture(scope="module")
def release(made: Published, published: Done) -> Path:
    return Path(write(str(made.drawn.folder), draw_run(made, published), made.shards)[0])


def pictures_of(folder: Path, audit: Audit) -> Mapping[str, bytes]:
    return {s.sample_id: (folder / "images" / f"{s.name}.jpg").read_bytes() for s in audit.samples}


def test_a_release_gives_its_own_pictures(made: Published, published: Done, release: Path, tmp_path: Path) -> None:
    pool = open_pool(release)
    assert pool.fingerprint == fingerprint((release / "release.json").read_bytes())
    decisions = made.verdicts.column("decision").to_pylist()
    facts = {one.sample_id: one for one in pool.frames}
    chosen = made.drawn.chosen.to_pylist()
    assert set(facts) == {row["sample_id"] for row in chosen}
    shown = {sample["sample_id"]: sample["image"]["bytes"] for sample in by_row(published).values()}
    for row, decision in zip(chosen, decisions, strict=True):
        one = facts[row["sample_id"]]
        assert (one.cluster, one.group) == (str(row["cluster_path"][0]), row["group_id"])
        assert (one.dropped, one.shown) == (decision == "drop", row["sample_id"] in shown)
        assert (one.width, one.height) == (row["width"], row["height"])
        assert bytes.fromhex(one.content_sha256) == row["content_sha256"]
    audit, _ = draw_audit(pool, tmp_path / "a", size=14, seed=0)
    pictures = pictures_of(tmp_path / "a", audit)
    assert 8 <= len(pictures) <= len(shown)
    assert pictures.items() <= shown.items()
    assert any(facts[sample_id].dropped for sample_id in pictures)
    for sample in audit.samples:
        assert upright_size(io.BytesIO(pictures[sample.sample_id])) == (sample.height, sample.width)


def test_the_output_of_a_run_stands_for_its_release(made: Published, release: Path, tmp_path: Path) -> None:
    assert open_pool(made.drawn.folder).frames == open_pool(release).frames
    shutil.copytree(release, tmp_path / "releases" / "one")
    shutil.copytree(release, tmp_path / "releases" / "two")
    with pytest.raises(InputError, match=r"holds 2 releases: .*name one of them"):
        open_pool(tmp_path)
    with pytest.raises(UsageError, match="--config is about a label stage"):
        open_pool(release, Config())


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["manifest", "shards"])
@pytest.mark.parametrize("how", ["flipped", "gone", "cut"])
def test_a_damaged_release_is_named_and_gives_no_folder(release: Path, tmp_path: Path, part: str, how: str) -> None:
    shutil.copytree(release, tmp_path / "r")
    for path in sorted((tmp_path / "r" / part).rglob("*.parquet")):
        if how == "gone":
            path.unlink()
        elif how == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        else:
            flip(path, 0.1)
    with pytest.raises(CurateError, match=rf"{part}.*(cannot be read|damaged)|cannot read .*{part}"):
        draw_audit(open_pool(tmp_path / "r"), tmp_path / "a", size=14, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_an_edited_release_file_is_refused(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "r")
    with (tmp_path / "r" / "release.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="canonical form"):
        open_pool(tmp_path / "r")


# A label stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(made: Published, tmp_path: Path) -> Path:
    """A run that has come to the end of its label stage."""
    root = tmp_path / "out"
    shutil.copytree(made.label.folder, root / "stages" / "label" / "abc")
    chosen = made.drawn.chosen
    run_step(str(root / "stages"), "chosen", 1, None, [], [], lambda folder: write_tables(folder, [chosen]))
    other = chosen.slice(1)
    run_step(str(root / "stages"), "chosen", 1, "other", [], [], lambda folder: write_tables(folder, [other]))
    (root / "stages" / "chosen" / "unfinished").mkdir()
    return root


def test_a_label_stage_gives_the_pictures_that_a_release_would(
    made: Published, published: Done, release: Path, output: Path, tmp_path: Path
) -> None:
    pool = open_pool(output)
    assert (pool.origin, pool.fingerprint) == ("stage", made.label.digest)
    assert open_pool(output / "stages" / "label" / "abc").frames == pool.frames
    faults = [fault for part in iter_tables(made.label.uris()) for fault in part.column("fault").to_pylist()]
    assert faults.count(None) == len(pool.frames) == 14
    audit, _ = draw_audit(pool, tmp_path / "a", size=9, seed=0)
    found = pictures_of(tmp_path / "a", audit)
    assert len(found) == 9
    shown = {sample["sample_id"]: sample["image"]["bytes"] for sample in by_row(published).values()}
    both = found.keys() & shown.keys()
    assert len(both) >= 8
    assert all(found[sample_id] == shown[sample_id] for sample_id in both)
    facts = {one.sample_id: (one.content_sha256, one.width, one.height) for one in open_pool(release).frames}
    assert all(facts[s.sample_id] == (s.content_sha256, s.width, s.height) for s in audit.samples)


def test_the_config_of_the_run_sets_the_quality(output: Path, tmp_path: Path) -> None:
    config = Config()
    poor = replace(config, publish=replace(config.publish, quality=20), label=LabelConfig())
    audits = [
        draw_audit(open_pool(output, given_), tmp_path / name, size=14, seed=0)[0]
        for name, given_ in (("good", None), ("poor", poor))
    ]
    good, bad = (pictures_of(tmp_path / name, audit) for name, audit in zip(("good", "poor"), audits, strict=True))
    assert all(len(bad[sample_id]) < len(good[sample_id]) for sample_id in good)


def test_a_source_that_is_gone_is_named_and_gives_no_folder(output: Path, made: Published, tmp_path: Path) -> None:
    source = made.drawn.folder / "in" / "two.mp4"
    source.rename(source.with_suffix(".aside"))
    try:
        with pytest.raises(InputError, match=r"two.mp4: .*put the source back"):
            draw_audit(open_pool(output), tmp_path / "a", size=14, seed=0)
    finally:
        source.with_suffix(".aside").rename(source)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_label_stage_without_its_choice_or_end_is_refused(output: Path) -> None:
    stage = output / "stages" / "label" / "abc"
    with pytest.raises(InputError, match="must be a finished label stage, it is a stage 'chosen'"):
        open_pool(next(path.parent for path in output.glob("stages/chosen/*/_MANIFEST.json")))
    shutil.copytree(stage, output / "stages" / "label" / "def")
    with pytest.raises(InputError, match=r"holds 2 finished label stages: .*name one of them"):
        open_pool(output)
    shutil.rmtree(output / "stages" / "label" / "def")
    shutil.rmtree(output / "stages" / "chosen")
    with pytest.raises(InputError, match="the choice that it labels must lie in"):
        open_pool(output)
    (stage / "_MANIFEST.json").unlink()
    with pytest.raises(InputError, match="no finished label stage; run first"):
        open_pool(output)
    with pytest.raises(InputError, match="no finished label stage; run first"):
        open_pool(output / "absent")


def test_two_choices_of_the_same_frames_in_other_clusters_are_told_apart(output: Path, made: Published) -> None:
    chosen = made.drawn.chosen
    paths = chosen.column("cluster_path").combine_chunks()
    moved = chosen.set_column(
        chosen.column_names.index("cluster_path"), chosen.schema.field("cluster_path"), paths[::-1]
    )
    run_step(str(output / "stages"), "chosen", 1, "same", [], [], lambda folder: write_tables(folder, [chosen]))
    assert len(open_pool(output).frames) == 14
    run_step(str(output / "stages"), "chosen", 1, "moved", [], [], lambda folder: write_tables(folder, [moved]))
    with pytest.raises(InputError, match="choose the same frames in other clusters"):
        open_pool(output)


def test_the_second_of_two_rounds_goes_first(output: Path, made: Published) -> None:
    stages = output / "stages"
    shutil.copytree(made.label.folder, stages / "relabel" / "xyz")
    manifest = stages / "relabel" / "xyz" / "_MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"stage":"label"', '"stage":"relabel"'))
    with pytest.raises(InputError, match=r"must lie in .*rechosen"):
        open_pool(output)
    chosen = made.drawn.chosen
    run_step(str(stages), "rechosen", 1, None, [], [], lambda folder: write_tables(folder, [chosen]))
    assert len(open_pool(output).frames) == 14


@pytest.mark.parametrize(("lacking", "value"), [("cluster_path", []), ("cluster_path", None), ("content_sha256", None)])
def test_a_row_without_a_cluster_or_a_hash_is_refused_by_its_sample(lacking: str, value: object) -> None:
    row = {"sample_id": "ab", "width": 4, "height": 3, "group_id": "g", "cluster_path": [7, 1], "content_sha256": b"x"}
    assert _facts(row)["cluster"] == "7"
    with pytest.raises(InputError, match=f"sample ab has no {lacking}, so it cannot be drawn"):
        _facts({**row, lacking: value})
