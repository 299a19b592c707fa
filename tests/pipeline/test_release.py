"""Laws of the release: every item counted once, equal runs equal bytes, and every attribute says where it is from."""

import dataclasses
import datetime
import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.mask import decode_mask, mask_sha256
from manifests.release import ConservationError, Counts, Model, fingerprint, read_release
from manifests.split import split_of
from manifests.verify import verify_release
from pipeline.attributes import COMPUTED
from pipeline.config import Config
from pipeline.errors import StageError, StorageError
from pipeline.known import GIVEN, MASK
from pipeline.label import LabelConfig
from pipeline.mask_attributes import MASK_ATTRIBUTES
from pipeline.publish import SPLITS, Shard, publish_plan
from pipeline.release import Run, _cells, count_items, write
from pipeline.select import cell_name
from pipeline.stage import Done, Part, iter_tables, write_manifest
from pipeline.step import run_step, write_tables
from tests.pipeline.test_label import MOST, rows_of
from tests.pipeline.test_publish import LABEL_ROWS, Published, by_row, draw_published
from tests.pipeline.test_publish_human import audited_table

SEED = 2
STUDENT = "ab" * 32
RECORDED = 1_700_000_000_123_456_789
PROBE = {"read": 35, "undecodable": 2, "duplicate": 3, "not_sampled": 4, "sources": 6}
FAULT = {"source": "s", "stage": "probe", "error": "Truncated", "message": "m", "items": 2}
NAMES = sorted({*COMPUTED, *MASK_ATTRIBUTES, "place"})


def tables(root: Path, name: str, *parts: pa.Table) -> Done:
    """A driver step with these tables."""
    return run_step(str(root), name, 1, None, [], [], lambda folder: write_tables(folder, parts))


def draw_run(made: Published, published: Done) -> Run:
    """A run of 35 items of which 20 came to the choice and 14 were chosen."""
    root = made.drawn.folder / "steps"
    assigned = [
        Part(name=f"part-0000{i}-of-00002.parquet", rows=rows, bytes=0, sha256="") for i, rows in ((0, 13), (1, 7))
    ]
    gone = pa.table({"embed_row": pa.array([1], pa.int32()), "duplicate_of": ["x"]})
    cells = Counter(made.drawn.chosen.column("cell").to_pylist())
    stages = {
        "probe": write_manifest("probe", str(root / "probe"), [], PROBE, [FAULT]),
        "embed": write_manifest("embed", str(root / "embed"), [], {"undecodable": 1, "thinned": 1}, []),
        "dedupe": tables(root, "dedupe", gone, gone),
        "assign": write_manifest("assign", str(root / "assign"), assigned, {"capped": 2}, []),
        "chosen": tables(root, "chosen", made.drawn.chosen),
        "label": made.label,
        "score": made.score,
        "verdict": tables(root, "verdict", made.verdicts),
        "publish": published,
    }
    return Run(
        config=Config(publish=made.config, label=LabelConfig(rows=LABEL_ROWS)),
        seed=SEED,
        target=14,
        run_id="0123456789abcdef",
        counts=count_items(stages, made.verdicts.column("decision").to_pylist()),
        inputs={"sources": 6},
        recorded=RECORDED,
        given=("place",),
        embedder="clusterfit:x",
        models=(Model(role="teacher", id="t", sha256=made.drawn.sha256, source="given", licence="unknown"),),
        stages=stages,
        judge={"judged": 7, "folds": [{"fold": 0, "student_sha256": STUDENT}]},
        plan={"quotas": {**cells, "[9,9,9]": 0}},
        faults=[FAULT],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return draw_published(tmp_path_factory.mktemp("release") / "drawn")


@pytest.fixture(scope="module")
def run(made: Published) -> Run:
    return draw_run(made, made.run("publish"))


@pytest.fixture(scope="module")
def written(made: Published, run: Run) -> Path:
    return Path(write(str(made.drawn.folder), run, made.shards)[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_below(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# The whole ------------------------------------------------------------------------------------------------------------


def test_a_release_verifies_to_the_last_pixel(written: Path, made: Published) -> None:
    assert verify_release(written) == []
    release = read_release(written)
    assert release.name == written.name
    assert release.counts == Counts(read=35, undecodable=3, duplicate=6, not_sampled=12, dropped=2, held=3, kept=9)
    assert release.splits == {split: made.plan.column("split").to_pylist().count(split) for split in SPLITS}
    decisions = made.verdicts.column("decision").to_pylist()
    groups = [f"group={json.loads(cell)[0]}" for cell in made.drawn.chosen.column("cell").to_pylist()]
    kept = Counter(group for group, decision in zip(groups, decisions, strict=True) if decision == "keep")
    assert release.cells == {group: {"target": n, "actual": kept[group]} for group, n in Counter(groups).items()}


def test_a_release_written_again_or_elsewhere_is_the_same_bytes(
    written: Path, made: Published, run: Run, tmp_path: Path
) -> None:
    before = contents(written)
    assert write(str(made.drawn.folder), run, made.shards) == (str(written), fingerprint(before["release.json"]))
    assert contents(written) == before
    folder, _ = write(str(tmp_path), run, made.shards)
    assert Path(folder).name == written.name
    assert contents(Path(folder)) == before


@pytest.mark.parametrize("name", ["consent", "licence"])
def test_another_config_is_another_release(written: Path, made: Published, run: Run, tmp_path: Path, name: str) -> None:
    config = replace(run.config, publish=replace(run.config.publish, **{name: "other"}))
    folder = Path(write(str(tmp_path), replace(run, config=config), made.shards)[0])
    assert folder.name != written.name
    assert verify_release(folder) == []
    column = {"consent": "consent_status", "licence": "licence"}[name]
    assert {row[column] for row in rows_below(folder, "manifest")} == {"other"}


def test_another_version_of_the_tool_writes_beside_what_is_there(
    written: Path, made: Published, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(written)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"99.0+{name}")
    folder = Path(write(str(made.drawn.folder), run, made.shards)[0])
    assert folder != written
    assert verify_release(folder) == []
    assert contents(written) == before


def test_a_release_that_is_there_is_never_replaced(made: Published, run: Run, tmp_path: Path) -> None:
    folder = Path(write(str(tmp_path), run, made.shards)[0])
    before = contents(folder)
    other = Path(write(str(tmp_path), replace(run, run_id="another"), made.shards)[0])
    assert other != folder
    assert contents(folder) == before
    (folder / "stats.json").write_text("edited")
    write(str(tmp_path), run, made.shards)
    assert (folder / "stats.json").read_text() == "edited"  # what is committed is left alone; verify names it


def test_a_damaged_part_is_not_published_and_the_remedy_is_told(made: Published, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.stages["publish"].folder, tmp_path / "publish")
    published = replace(run.stages["publish"], folder=str(tmp_path / "publish"))
    part = Path(published.uris()[0])
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(StageError, match=r"is damaged .* remove the folder"):
        write(str(tmp_path / "out"), replace(run, stages={**run.stages, "publish": published}), made.shards)
    assert not list((tmp_path / "out").rglob("release.json"))


def test_a_release_that_cannot_be_finished_does_not_exist(made: Published, run: Run, tmp_path: Path) -> None:
    published = run.stages["publish"]
    part = Path(published.uri(published.parts[-1 - len(made.shards)].name))
    part.rename(part.with_suffix(".aside"))
    try:
        with pytest.raises(StorageError, match=part.name):
            write(str(tmp_path), run, made.shards)
        assert not list(tmp_path.rglob("release.json"))
    finally:
        part.with_suffix(".aside").rename(part)
    folder, _ = write(str(tmp_path), run, made.shards)
    assert verify_release(Path(folder)) == []


def test_a_run_that_keeps_nothing_is_a_release_without_shards(made: Published, run: Run, tmp_path: Path) -> None:
    verdicts = [{**row, "verdict": "drop", "decision": "drop", "weight": 0.0} for row in made.verdicts.to_pylist()]
    dropped = pa.Table.from_pylist(verdicts, schema=made.verdicts.schema)
    labels = pa.concat_tables(iter_tables(made.label.uris()))
    plan, shards = publish_plan(made.drawn.chosen, labels, dropped, replace(made.config, audit=0), SEED)
    assert (plan.num_rows, shards) == (0, [])
    stages = {
        **run.stages,
        "verdict": tables(tmp_path, "verdict", dropped),
        "publish": write_manifest("publish", str(tmp_path / "publish"), [], {}, []),
    }
    counts = count_items(stages, dropped.column("decision").to_pylist())
    folder = Path(write(str(tmp_path), replace(run, stages=stages, counts=counts), [])[0])
    assert verify_release(folder) == []
    assert len(rows_below(folder, "dropped")) == 14


def test_stages_of_different_lengths_are_refused(made: Published, run: Run, tmp_path: Path) -> None:
    stages = {**run.stages, "verdict": tables(tmp_path, "verdict", made.verdicts.slice(1))}
    with pytest.raises(StageError, match="disagree on the number of chosen frames; remove the folder 'stages'"):
        write(str(tmp_path), replace(run, stages=stages), made.shards)


# Counts ---------------------------------------------------------------------------------------------------------------


def staged(
    probe: dict[str, int], embed: dict[str, int], dedupe: Sequence[int], pool: Sequence[int], capped: int, root: Path
) -> dict[str, Done]:
    gone = [pa.table({"embed_row": pa.array(range(n), pa.int32())}) for n in dedupe]
    parts = tuple(Part(name=f"part-{i}", rows=rows, bytes=0, sha256="") for i, rows in enumerate(pool))
    nothing = {"folder": "", "counts": {}, "faults": (), "digest": ""}
    folder = root / "-".join(map(str, dedupe))
    names = write_tables(folder, gone)
    listed = tuple(Part(name=n, rows=t.num_rows, bytes=0, sha256="") for n, t in zip(names, gone, strict=True))
    return {
        "probe": Done(stage="probe", parts=(), **{**nothing, "counts": probe}),  # type: ignore[arg-type]
        "embed": Done(stage="embed", parts=(), **{**nothing, "counts": embed}),  # type: ignore[arg-type]
        "dedupe": Done(stage="dedupe", parts=listed, **{**nothing, "folder": str(folder)}),  # type: ignore[arg-type]
        "assign": Done(stage="assign", parts=parts, **{**nothing, "counts": {"capped": capped}}),  # type: ignore[arg-type]
    }


AMOUNT = st.integers(0, 9)


@settings(max_examples=40)
@given(st.tuples(*[AMOUNT] * 6), st.lists(AMOUNT, min_size=1, max_size=3), st.data())
def test_every_item_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, amounts: tuple[int, ...], dedupe: list[int], data: st.DataObject
) -> None:
    undecodable, duplicate, not_sampled, gone, thinned, capped = amounts
    embed = {"undecodable": gone, "thinned": thinned}
    decisions = data.draw(st.lists(st.sampled_from(["keep", "hold", "drop"]), max_size=20))
    pool = [len(decisions), data.draw(AMOUNT)]
    read = sum(amounts) + sum(dedupe) + sum(pool)
    probe = {"read": read, "undecodable": undecodable, "duplicate": duplicate, "not_sampled": not_sampled}
    root = tmp_path_factory.getbasetemp() / "counts"
    counts = count_items(staged(probe, embed, dedupe, pool, capped, root), decisions)
    assert sum(dataclasses.astuple(counts)) == 2 * read
    assert (counts.kept, counts.held, counts.dropped) == tuple(decisions.count(d) for d in ("keep", "hold", "drop"))
    assert counts.not_sampled == not_sampled + capped + pool[1]
    assert counts.duplicate == duplicate + thinned + sum(dedupe)
    with pytest.raises(ConservationError, match="counts: read is"):
        count_items(staged(probe | {"read": read + 1}, embed, dedupe, pool, capped, root), decisions)


def test_planned_and_kept_frames_are_told_per_group_and_class(run: Run) -> None:
    quotas = {cell_name((0, 1, 2), ("a", None)): 3, cell_name((4, 5, 6), ("b", "x")): 2}
    kept = pa.table({"decision": ["keep", "keep", "hold"], "quota_cell": [*quotas, next(iter(quotas))]})
    found = _cells(replace(run, plan={"attributes": ["place", "tone"], "quotas": quotas}), kept)
    assert found == {
        "group=0": {"target": 3, "actual": 1},
        "group=4": {"target": 2, "actual": 1},
        "place=a": {"target": 3, "actual": 1},
        "place=b": {"target": 2, "actual": 1},
        "tone=unknown": {"target": 3, "actual": 1},
        "tone=x": {"target": 2, "actual": 1},
    }


# Tables ---------------------------------------------------------------------------------------------------------------


def test_every_chosen_frame_is_in_manifest_or_dropped_by_its_decision(written: Path, made: Published) -> None:
    kept, gone = rows_below(written, "manifest"), rows_below(written, "dropped")
    ids = made.drawn.chosen.column("sample_id").to_pylist()
    decisions = dict(zip(ids, made.verdicts.column("decision").to_pylist(), strict=True))
    assert [row["sample_id"] for row in kept] == sorted(i for i, d in decisions.items() if d != "drop")
    assert [row["sample_id"] for row in gone] == sorted(i for i, d in decisions.items() if d == "drop")
    for row in kept + gone:
        assert row["decision"] == decisions[row["sample_id"]]
        place = {"hold": "hold", "drop": "dropped"}
        assert row["group_id"] == row["source_sha256"].hex()
        assert row["split"] == place.get(row["decision"]) or split_of(
            row["group_id"], SEED, val=made.config.val, test=made.config.test
        )
        assert row["sampling_weight"] == 3 / row["inclusion_prob"] == 6
        assert (row["run_id"], row["teacher_id"], row["subject_ids"]) == ("0123456789abcdef", "t", [])
    assert [row["embedding_row"] for row in kept] == list(range(len(kept)))
    vectors = rows_below(written, "embeddings")
    assert [row["sample_id"] for row in vectors] == [row["sample_id"] for row in kept]


def test_a_row_tells_of_the_mask_that_was_published_and_else_of_the_label(
    written: Path, made: Published, run: Run
) -> None:
    published = {sample["sample_id"]: sample for sample in by_row(run.stages["publish"]).values()}
    labels = {row["sample_id"]: row for row in rows_of(made.label)}
    seen = Counter()
    for row in rows_below(written, "manifest") + rows_below(written, "dropped"):
        sample = published.get(row["sample_id"])
        label = labels[row["sample_id"]]
        teacher = decode_mask(label["mask"], MOST)
        told = sample or label
        for name in ("mask_area_px", "mask_components"):
            assert row[name] == told[name]
        assert row["mask_sha256"] == (sample["mask_sha256"] if sample else None)
        assert (row["shard"], row["shard_row"]) == ((sample["shard"], sample["shard_row"]) if sample else (None, None))
        assert row["label_source"] == "pseudo"
        seen[row["mask_sha256"] == mask_sha256(teacher)] += 1
    assert seen[True] > 5
    assert seen[False] >= 2


def test_a_mask_that_a_person_drew_has_no_confidence_of_the_teacher(made: Published, run: Run, tmp_path: Path) -> None:
    table, masks = audited_table(made)
    labels = pa.concat_tables(iter_tables(made.label.uris()))
    verdicts = made.verdicts.set_column(
        made.verdicts.schema.get_field_index("audited"),
        made.verdicts.schema.field("audited"),
        pa.array([row in masks for row in range(made.verdicts.num_rows)]),
    )
    plan, shards = publish_plan(made.drawn.chosen, labels, verdicts, made.config, SEED, table)
    publish = replace(made, verdicts=verdicts, plan=plan, shards=shards).run("publish-human")
    stages = {**run.stages, "verdict": tables(tmp_path, "verdict", verdicts), "publish": publish}
    folder = Path(write(str(tmp_path), replace(run, stages=stages), shards)[0])
    assert verify_release(folder) == []
    ids = made.drawn.chosen.column("sample_id").to_pylist()
    human = {ids[row] for row in masks}
    for row in rows_below(folder, "manifest"):
        assert (row["label_source"] == "human") == (row["sample_id"] in human)
        assert (row["label_confidence"] is None) == (row["sample_id"] in human)
        if row["sample_id"] in human:
            assert row["boundary_uncertainty"] is None


def test_what_the_judge_says_is_there_where_a_judge_looked(written: Path, made: Published) -> None:
    verdicts = {row["sample_id"]: row for row in made.verdicts.to_pylist()}
    for row in rows_below(written, "manifest") + rows_below(written, "dropped"):
        verdict = verdicts[row["sample_id"]]
        if verdict["q"] is None:
            assert (row["judge"], row["student_id"], row["student_sha256"]) == (None, None, None)
            continue
        assert (row["student_id"], row["student_sha256"].hex()) == ("fold-0", STUDENT)
        assert row["judge"]["cluster"] == str(row["cluster_path"][0])
        facts = {name: row["judge"][name] for name in ("q", "gate", "calibrated", "miss", "fold")}
        assert facts == {"q": 0.5, "gate": "passed", "calibrated": False, "miss": 0.25, "fold": 0}
        assert row["student_iou"] == 0.5


def test_a_frame_without_a_label_says_so(made: Published, run: Run, tmp_path: Path) -> None:
    parts = list(iter_tables(made.label.uris()))
    rows = [row for part in parts for row in part.to_pylist()]
    gone = next(i for i, d in enumerate(made.verdicts.column("decision").to_pylist()) if d == "drop")
    rows[gone] = {"row": gone, "sample_id": rows[gone]["sample_id"], "fault": "gone"}
    table = pa.Table.from_pylist(rows, schema=parts[0].schema)
    plan, shards = publish_plan(made.drawn.chosen, table, made.verdicts, made.config, SEED)
    other = replace(made, label=tables(tmp_path, "label", *cut(table)), plan=plan, shards=shards)
    stages = {**run.stages, "label": other.label, "publish": other.run("publish-gone")}
    folder = Path(write(str(tmp_path), replace(run, stages=stages), shards)[0])
    assert verify_release(folder) == []
    sample = made.drawn.chosen.column("sample_id")[gone].as_py()
    (row,) = (row for row in rows_below(folder, "dropped") if row["sample_id"] == sample)
    facts = ("label_source", "mask_area_px", "mask_sha256", "label_confidence", "shard")
    assert [row[name] for name in facts] == ["none", None, None, None, None]


def cut(table: pa.Table) -> list[pa.Table]:
    return [table.slice(start, LABEL_ROWS) for start in range(0, table.num_rows, LABEL_ROWS)]


# Attributes -----------------------------------------------------------------------------------------------------------


def known(made: Published) -> dict[tuple[str, str], tuple[str | None, str, str | None]]:
    """(sample, attribute) -> (value, provenance, source): the user's word first, then the mask's, then the pixels'."""
    found = {}
    labels = pa.concat_tables(iter_tables(made.label.uris())).to_pylist()
    for row, label in zip(made.drawn.chosen.to_pylist(), labels, strict=True):
        for name in NAMES:
            told = [
                (row.get(GIVEN + name), "source", "attributes file"),
                (label.get(MASK + name), "model", "mask"),
                (row.get(name), "model", "pixels"),
                (None, "unknown", None),
            ]
            found[row["sample_id"], name] = next(t for t in told if t[0] is not None or t[1] == "unknown")
    return found


def test_an_attribute_says_whether_it_was_given_told_by_the_mask_computed_or_is_unknown(
    written: Path, made: Published
) -> None:
    expected = known(made)
    assert {provenance for _, provenance, _ in expected.values()} == {"source", "model", "unknown"}
    for row in rows_below(written, "manifest") + rows_below(written, "dropped"):
        assert sorted(row["attr"]) == NAMES
        for name, said in row["attr"].items():
            assert (said["value"], said["provenance"], said["source_id"]) == expected[row["sample_id"], name]
            assert (said["confidence"] is not None) == (said["source_id"] == "mask")


def test_what_the_user_gave_wins_over_the_pixels(made: Published, run: Run, tmp_path: Path) -> None:
    values = pa.array(["bright" if i % 2 else None for i in range(14)], pa.string())
    chosen = made.drawn.chosen.append_column(GIVEN + "lighting_level", values)
    stages = {**run.stages, "chosen": tables(tmp_path, "chosen", chosen)}
    other = replace(run, stages=stages, given=("lighting_level", "place"))
    folder = Path(write(str(tmp_path), other, made.shards)[0])
    assert verify_release(folder) == []
    expected = known(replace(made, drawn=replace(made.drawn, chosen=chosen)))
    sources = Counter()
    for row in rows_below(folder, "manifest") + rows_below(folder, "dropped"):
        said = row["attr"]["lighting_level"]
        assert (said["value"], said["provenance"], said["source_id"]) == expected[row["sample_id"], "lighting_level"]
        sources[said["provenance"]] += 1
    assert sources == {"source": 7, "model": 7}


def test_evidence_has_one_row_for_every_known_attribute(written: Path, made: Published) -> None:
    rows = rows_below(written, "evidence")
    found = {(row["sample_id"], row["name"]): (row["value"], row["provenance"], row["source_id"]) for row in rows}
    assert len(found) == len(rows)
    assert found == {key: said for key, said in known(made).items() if said[1] != "unknown"}
    assert [(row["sample_id"], row["name"]) for row in rows] == sorted(found)
    when = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    assert {row["recorded_at"] for row in rows} == {when}


# Documents ------------------------------------------------------------------------------------------------------------


def test_statistics_add_up(written: Path) -> None:
    stats = json.loads((written / "stats.json").read_bytes())
    rows = rows_below(written, "manifest") + rows_below(written, "dropped")
    for name, column in (("decisions", "decision"), ("verdicts", "verdict"), ("splits", "split")):
        assert stats[name] == Counter(row[column] for row in rows)
        assert sum(stats[name].values()) == len(rows) == 14
    assert stats["sources"] == 6
    assert stats["judge"] == {"judged": 7, "folds": [{"fold": 0, "student_sha256": STUDENT}]}
    assert sorted(stats["attributes"]) == NAMES
    for name, values in stats["attributes"].items():
        for decision in ("keep", "hold", "drop"):
            assert sum(value[decision] for value in values.values()) == stats["decisions"][decision]
        said = [row["attr"][name]["value"] for row in rows]
        assert {value: sum(n.values()) for value, n in values.items()} == Counter(v or "unknown" for v in said)


def test_config_and_lineage_name_all_that_had_a_part(written: Path, run: Run) -> None:
    config = json.loads((written / "config.json").read_bytes())
    assert (config["seed"], config["target_size"]) == (SEED, 14)
    assert config["config"]["publish"]["audit"] == 1
    lineage = json.loads((written / "lineage.json").read_bytes())
    assert {name: stage["digest"] for name, stage in lineage["stages"].items()} == {
        name: done.digest for name, done in run.stages.items()
    }
    assert lineage["set_aside"] == {"probe: Truncated": 1}
    assert lineage["first_set_aside"] == [FAULT]


def test_shards_are_copied_in_the_order_of_the_plan(written: Path, made: Published) -> None:
    def ids(shard: Shard) -> list[str]:
        path = written / "shards" / shard.split / f"{shard.number:05d}-of-{shard.shards:05d}.parquet"
        found: list[str] = pq.read_table(path, columns=["sample_id"]).column("sample_id").to_pylist()
        return found

    for shard in made.shards:
        planned = made.plan.slice(shard.start, shard.stop - shard.start).column("sample_id").to_pylist()
        assert ids(shard) == sorted(planned)
    assert len(list((written / "shards").rglob("*.parquet"))) == len(made.shards)
