"""Laws of the shards: every kept or held sample once, whole sources in one split, pixels and masks as they were."""

import hashlib
import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manifests.mask import components, decode_mask, encode_mask, encode_soft, mask_sha256
from manifests.schema import SHARD, check_schema
from manifests.split import split_of
from pipeline.embed import decode_jpeg
from pipeline.errors import StageError
from pipeline.judge import SCORED, VERDICTS
from pipeline.publish import (
    PLAN,
    PUBLISHED,
    SPLITS,
    Publish,
    PublishConfig,
    Shard,
    final_mask,
    publish_plan,
    publish_spans,
)
from pipeline.stage import Done, iter_tables
from students.agreement import correct
from tests.pipeline.test_assign import finish
from tests.pipeline.test_judge import as_step, blobs
from tests.pipeline.test_label import MOST, SCAN, Drawn, draw, rows_of

LABEL_ROWS = 5
VERDICT_NAMES = ("keep", "weight", "correct", "hold", "drop")
DECISION = {"keep": "keep", "weight": "keep", "correct": "keep", "hold": "hold", "drop": "drop"}


# The published mask ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(0, 999), st.integers(4, 50), st.integers(4, 50), st.sampled_from(VERDICT_NAMES))
def test_only_a_verdict_to_correct_changes_a_mask(one: int, other: int, height: int, width: int, verdict: str) -> None:
    teacher, student = blobs(one, height, width) >= 0.5, encode_soft(blobs(other, height, width))
    mask, ignore = final_mask(verdict, encode_mask(teacher), student, height, width)
    if verdict != "correct":
        np.testing.assert_array_equal(mask, teacher)
        assert ignore is None
        return
    seen = np.rint(blobs(other, height, width) * np.float32(255)).astype(np.float32) / np.float32(255)
    mended, unsure = correct(teacher, seen)
    np.testing.assert_array_equal(mask, mended)
    np.testing.assert_array_equal(np.zeros_like(teacher) if ignore is None else ignore, unsure)
    assert ignore is None or ignore.any()
    np.testing.assert_array_equal(mask[mask != teacher], (seen >= 0.5)[mask != teacher])
    assert not (unsure & (mask != teacher)).any()


def test_a_small_student_mask_corrects_a_large_label() -> None:
    teacher = np.zeros((200, 160), np.bool_)
    teacher[40:160, 40:120] = True
    student = np.zeros((50, 40), np.float32)
    student[10:40, 10:20] = 1  # the right half of the label is background
    student[42:48, 10:20] = 0.6  # and something below it may be a person
    mask, ignore = final_mask("correct", encode_mask(teacher), encode_soft(student), 200, 160)
    assert mask[50:150, 45:75].all()
    assert not mask[50:150, 90:115].any()
    assert not mask[165:].any()
    assert ignore is not None
    assert ignore[172:188, 45:75].all()
    assert not ignore[50:150, 45:75].any()


@pytest.mark.parametrize("verdict", VERDICT_NAMES)
def test_where_no_student_looked_the_label_stays(verdict: str) -> None:
    teacher = blobs(3, 30, 40) >= 0.5
    mask, ignore = final_mask(verdict, encode_mask(teacher), None, 30, 40)
    np.testing.assert_array_equal(mask, teacher)
    assert ignore is None


def test_a_label_of_another_size_than_its_frame_is_refused() -> None:
    with pytest.raises(StageError, match=r"shape \(30, 40\), its frame \(40, 30\); remove the label folder"):
        final_mask("keep", encode_mask(np.zeros((30, 40), np.bool_)), None, 40, 30)


# The plan -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Chosen frames of a few sources, their labels and verdicts."""

    chosen: pa.Table
    labels: pa.Table
    verdicts: pa.Table


def draw_judged(seed: int, count: int) -> Judged:
    rng = np.random.default_rng(seed)
    sources = np.sort(rng.integers(0, 6, count)).tolist()
    ids = [hashlib.sha256(f"{seed}-{i}".encode()).digest() for i in range(count)]
    chosen = {
        "sample_id": [i.hex()[:32] for i in ids],
        "content_sha256": pa.array(ids, pa.binary(32)),
        "source_uri": [f"s{source}" for source in sources],
        "group_id": [hashlib.sha256(bytes([s])).hexdigest() for s in sources],
        "media_kind": ["video"] * count,
        "frame_index": pa.array(range(count), pa.int32()),
        "width": pa.array([320] * count, pa.int32()),
        "height": pa.array([180] * count, pa.int32()),
        "key": pa.array(rng.integers(0, 20, count).astype(np.uint64)),
        "cluster_path": [[group, group, group] for group in rng.integers(0, 3, count).tolist()],
    }
    names = rng.choice(VERDICT_NAMES, count).tolist()
    faults = ["gone" if name == "drop" and rng.random() < 0.3 else None for name in names]
    labels = {
        "fault": pa.array(faults, pa.string()),
        "label_confidence": pa.array([None if fault else 0.75 for fault in faults], pa.float32()),
    }
    rows = [
        {"sample_id": i, "verdict": v, "decision": DECISION[v], "reasons": [], "weight": float(DECISION[v] == "keep")}
        | {"audited": False}
        for i, v in zip(chosen["sample_id"], names, strict=True)
    ]
    return Judged(
        chosen=pa.table(chosen), labels=pa.table(labels), verdicts=pa.Table.from_pylist(rows, schema=VERDICTS)
    )


PLANS = st.tuples(
    st.builds(draw_judged, st.integers(0, 9999), st.integers(0, 40)), st.integers(1, 6), st.integers(0, 4)
)


@given(PLANS, st.integers(0, 9))
def test_every_kept_or_held_row_is_in_exactly_one_shard(drawn: tuple[Judged, int, int], seed: int) -> None:
    judged, rows, audit = drawn
    config = PublishConfig(rows=rows, audit=audit, val=0.3, test=0.3)
    plan, _ = publish_plan(judged.chosen, judged.labels, judged.verdicts, config, seed)
    assert plan.schema.equals(PLAN)
    placed = plan.column("row").to_pylist()
    decisions = judged.verdicts.column("decision").to_pylist()
    sources = judged.chosen.column("group_id").to_pylist()
    assert len(set(placed)) == len(placed)
    assert {row for row, d in enumerate(decisions) if d != "drop"} == {r for r in placed if decisions[r] != "drop"}
    for row in plan.to_pylist():
        if decisions[row["row"]] == "keep":
            assert row["split"] == split_of(sources[row["row"]], seed, val=0.3, test=0.3)
        else:
            assert row["split"] == {"hold": "hold", "drop": "audit"}[decisions[row["row"]]]
        for table in (judged.chosen, judged.verdicts, judged.labels):
            for name in set(PLAN.names) & set(table.column_names):
                assert row[name] == table.column(name)[row["row"]].as_py()


@given(PLANS)
def test_the_shards_follow_each_other_and_are_full_but_the_last(drawn: tuple[Judged, int, int]) -> None:
    judged, rows, audit = drawn
    plan, shards = publish_plan(judged.chosen, judged.labels, judged.verdicts, PublishConfig(rows=rows, audit=audit), 0)
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards)][: len(shards)]
    assert sum(shard.stop - shard.start for shard in shards) == plan.num_rows
    for split, group in itertools.groupby(shards, key=lambda shard: shard.split):
        mine = list(group)
        assert [(shard.number, shard.shards) for shard in mine] == [(i, len(mine)) for i in range(len(mine))]
        assert all(shard.stop - shard.start == rows for shard in mine[:-1])
        assert 1 <= mine[-1].stop - mine[-1].start <= rows
        part = plan.slice(mine[0].start, mine[-1].stop - mine[0].start)
        assert set(part.column("split").to_pylist()) == {split}
        assert part.column("row").to_pylist() == sorted(part.column("row").to_pylist())  # sources stay together
    for shard in shards:
        assert set(plan.slice(shard.start, shard.stop - shard.start).column("shard").to_pylist()) == {shard.number}
    order = [SPLITS.index(shard.split) for shard in shards]
    assert order == sorted(order)


@given(PLANS)
def test_the_audit_holds_the_smallest_hashes_of_dropped_labels_of_each_group(drawn: tuple[Judged, int, int]) -> None:
    judged, rows, audit = drawn
    plan, _ = publish_plan(judged.chosen, judged.labels, judged.verdicts, PublishConfig(rows=rows, audit=audit), 0)
    taken = {row["row"] for row in plan.to_pylist() if row["split"] == "audit"}
    paths, keys = (judged.chosen.column(name).to_pylist() for name in ("cluster_path", "key"))
    decisions = judged.verdicts.column("decision").to_pylist()
    faults = judged.labels.column("fault").to_pylist()
    able = [row for row, d in enumerate(decisions) if d == "drop" and faults[row] is None]
    assert taken <= set(able)
    for group in {path[0] for path in paths}:
        mine = sorted((row for row in able if paths[row][0] == group), key=lambda row: (keys[row], row))
        assert taken & set(mine) == set(mine[:audit])


@given(PLANS, st.integers(0, 9))
def test_a_plan_made_again_is_the_same(drawn: tuple[Judged, int, int], seed: int) -> None:
    judged, rows, audit = drawn
    config = PublishConfig(rows=rows, audit=audit)
    once = publish_plan(judged.chosen, judged.labels, judged.verdicts, config, seed)
    again = publish_plan(judged.chosen, judged.labels, judged.verdicts, config, seed)
    assert once[0].equals(again[0])
    assert once[1] == again[1]


@settings(max_examples=50)
@given(PLANS, st.integers(1, 7))
def test_a_shard_reads_exactly_the_parts_that_hold_its_rows(drawn: tuple[Judged, int, int], label_rows: int) -> None:
    judged, rows, audit = drawn
    plan, shards = publish_plan(judged.chosen, judged.labels, judged.verdicts, PublishConfig(rows=rows, audit=audit), 0)
    assume(shards)
    where = plan.column("row").to_pylist()
    parts = -(-judged.chosen.num_rows // label_rows)
    labels, scores = [[f"{kind}{part}" for part in range(parts)] for kind in ("label", "score")]
    for shard in shards:
        first, *pairs = publish_spans("plan", shard, where, labels, scores, label_rows)
        assert (first.uri, first.start, first.stop) == ("plan", shard.start, shard.stop)
        needed = sorted({row // label_rows for row in where[shard.start : shard.stop]})
        assert [span.uri for span in pairs] == [f"{kind}{part}" for part in needed for kind in ("label", "score")]


# The stage ------------------------------------------------------------------------------------------------------------


def score_tables(drawn: Drawn) -> list[pa.Table]:
    """Scores in which a student says the right half of every second frame is a person; the others have none."""
    rows = []
    for row in range(drawn.chosen.num_rows):
        student = np.zeros((32, 48), np.float32)
        student[:, 24:] = 0.9
        student[:8, :24] = 0.6
        saw = {"student": encode_soft(student), "student_iou": 0.5, "miss": 0.25} if row % 2 == 0 else {}
        name = drawn.chosen.column("sample_id")[row].as_py()
        rows.append({"row": row, "sample_id": name, "fold": 0 if saw else -1, **saw})
    table = pa.Table.from_pylist(rows, schema=SCORED)
    return [table.slice(start, LABEL_ROWS) for start in range(0, table.num_rows, LABEL_ROWS)]


def verdict_table(drawn: Drawn) -> pa.Table:
    """Verdicts of all five kinds, in turns."""
    rows = []
    for i, name in enumerate(drawn.chosen.column("sample_id").to_pylist()):
        verdict = VERDICT_NAMES[i % 5]
        weight = {"keep": 1.0, "correct": 1.0, "weight": 0.625}.get(verdict, 0.0)
        facts: dict[str, Any] = {"verdict": verdict, "decision": DECISION[verdict], "weight": weight, "reasons": ["r"]}
        facts["audited"] = False
        judged = {"q": 0.5, "gate": "passed", "calibrated": False} if i % 2 == 0 else {}
        rows.append({"sample_id": name, **facts, **judged})
    return pa.Table.from_pylist(rows, schema=VERDICTS)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A publish stage and what it was made of."""

    drawn: Drawn
    label: Done
    score: Done
    verdicts: pa.Table
    plan: pa.Table
    shards: list[Shard]
    config: PublishConfig

    def run(self, name: str) -> Done:
        """The publish stage in a folder of that name."""
        uri = str(self.drawn.folder / "plan.parquet")
        pq.write_table(self.plan, uri)
        where = self.plan.column("row").to_pylist()
        spans = [
            publish_spans(uri, shard, where, self.label.uris(), self.score.uris(), LABEL_ROWS) for shard in self.shards
        ]
        return finish(Publish(config=self.config, scan=SCAN, label_rows=LABEL_ROWS), self.drawn.folder / name, spans)


def draw_published(folder: Path) -> Published:
    """All that a publish stage needs, on drawn frames."""
    drawn = draw(folder)
    label = drawn.label("label", rows=LABEL_ROWS)
    table, config = verdict_table(drawn), PublishConfig(rows=3, audit=1, val=0.25, test=0.25)
    labels = pa.concat_tables(iter_tables(label.uris()))
    plan, shards = publish_plan(drawn.chosen, labels, table, config, 2)
    score = as_step("score", folder / "score", score_tables(drawn))
    return Published(drawn=drawn, label=label, score=score, verdicts=table, plan=plan, shards=shards, config=config)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return draw_published(tmp_path_factory.mktemp("publish") / "drawn")


@pytest.fixture(scope="module")
def done(made: Published) -> Done:
    return made.run("publish")


def test_a_shard_holds_its_rows_of_the_plan_sorted_by_id(made: Published, done: Done) -> None:
    assert len({shard.split for shard in made.shards}) >= 3
    shards, sides = list(iter_tables(done.uris())), list(iter_tables(done.uris("rows")))
    assert len(shards) == len(sides) == len(made.shards)
    for shard, table, side in zip(made.shards, shards, sides, strict=True):
        part = made.plan.slice(shard.start, shard.stop - shard.start)
        check_schema(table.schema, "shard")
        assert table.schema.equals(SHARD)
        assert side.schema.equals(PUBLISHED)
        ids = table.column("sample_id").to_pylist()
        assert ids == sorted(part.column("sample_id").to_pylist()) == side.column("sample_id").to_pylist()
        assert side.column("shard_row").to_pylist() == list(range(len(ids)))
        assert sorted(side.column("row").to_pylist()) == part.column("row").to_pylist()
        for row, fact in zip(table.to_pylist(), side.to_pylist(), strict=True):
            planned = made.plan.filter(pa.array([r == fact["row"] for r in made.plan.column("row").to_pylist()]))
            wanted = planned.to_pylist()[0]
            for name in ("sample_id", "weight", "label_confidence", "content_sha256"):
                assert row[name] == wanted[name]
            assert (fact["split"], fact["shard"]) == (wanted["split"], wanted["shard"]) == (shard.split, shard.number)
            assert row["mask_sha256"] == fact["mask_sha256"]
            assert row["label_source"] == "pseudo"


def by_row(done: Done) -> dict[int, dict[str, Any]]:
    """Samples of a publish stage by chosen row."""
    found: dict[int, dict[str, Any]] = {}
    for table, side in zip(iter_tables(done.uris()), iter_tables(done.uris("rows")), strict=True):
        pairs = zip(table.to_pylist(), side.to_pylist(), strict=True)
        found |= {fact["row"]: {**fact, **row} for row, fact in pairs}
    return found


def test_a_picture_is_its_frame_and_a_mask_its_label(made: Published, done: Done) -> None:
    frames, labels = made.drawn.frames(), rows_of(made.label)
    scores = rows_of(made.score)
    kinds = Counter()
    for row, sample in by_row(done).items():
        frame, verdict = frames[row], VERDICT_NAMES[row % 5]
        image = decode_jpeg(sample["image"]["bytes"])
        assert image.shape == frame.shape == (sample["height"], sample["width"], 3)
        assert np.abs(image.astype(int) - frame).mean() < 4
        mask = decode_mask(sample["mask"]["bytes"], MOST)
        teacher = decode_mask(labels[row]["mask"], MOST)
        changed = mask != teacher
        if verdict == "correct" and scores[row]["student"] is not None:
            wanted, unsure = final_mask("correct", labels[row]["mask"], scores[row]["student"], *frame.shape[:2])
            np.testing.assert_array_equal(mask, wanted)
            assert (sample["ignore"] is None) == (unsure is None)
            assert changed.any()
        else:
            assert not changed.any()
            assert sample["ignore"] is None
        assert sample["mask_sha256"] == mask_sha256(mask)
        assert (sample["mask_area_px"], sample["mask_components"]) == (mask.sum(), components(mask))
        told = sample["teacher_mask"]
        assert (told is not None) == changed.any()
        if told is not None:
            np.testing.assert_array_equal(decode_mask(told["bytes"], MOST), teacher)
        kinds[verdict] += 1
    assert set(kinds) == set(VERDICT_NAMES)


def test_shards_written_again_are_the_same_bytes(made: Published, done: Done) -> None:
    again = made.run("again")
    assert [part.sha256 for part in again.parts] == [part.sha256 for part in done.parts]
    assert again.digest == done.digest


def test_a_lower_quality_makes_smaller_pictures(made: Published, done: Done) -> None:
    poor = Published(
        drawn=made.drawn,
        label=made.label,
        score=made.score,
        verdicts=made.verdicts,
        plan=made.plan,
        shards=made.shards,
        config=PublishConfig(rows=3, audit=1, val=0.25, test=0.25, quality=20),
    )
    sizes = {row: len(sample["image"]["bytes"]) for row, sample in by_row(done).items()}
    for row, sample in by_row(poor.run("poor")).items():
        assert len(sample["image"]["bytes"]) < sizes[row]


@pytest.mark.parametrize("gone", [True, False])
def test_a_frame_that_changed_stops_the_shard_and_names_source_and_remedy(tmp_path: Path, gone: bool) -> None:
    made = draw_published(tmp_path / "drawn")
    source = tmp_path / "drawn" / "in" / "two.mp4"
    if gone:
        source.unlink()
    else:
        source.write_bytes((tmp_path / "drawn" / "in" / "one.mp4").read_bytes())
    with pytest.raises(
        StageError, match=r"two.mp4: .*; put the source back, or remove it from the input and run again"
    ):
        made.run("publish")
    failed = [path.read_text() for path in (tmp_path / "drawn" / "publish" / "_failed").iterdir()]
    assert "two.mp4" in json.loads(failed[0])["message"]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, r"publish needs rows >= 1.*got 0, 50, 95"),
        ({"audit": -1}, r"audit >= 0.*got 2048, -1, 95"),
        ({"quality": 0}, r"quality in 1..100; got 2048, 50, 0"),
        ({"quality": 101}, r"quality in 1..100; got 2048, 50, 101"),
        ({"val": 0.5, "test": 0.5}, r"leave a train split; got 0.5, 0.5"),
        ({"val": -0.1}, r"must be >= 0.*got -0.1, 0.05"),
        ({"test": math.nan}, r"publish.val and publish.test must be"),
        ({"licence": ""}, r"publish.licence and publish.consent must not be empty; say 'unknown'"),
        ({"consent": ""}, r"must not be empty"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PublishConfig(**values)
