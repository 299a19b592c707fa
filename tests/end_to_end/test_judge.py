"""Three runs of one pool, without gold, without an audit and with both: what people drew arrives bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from manifests.audit import Audit, Drawn, Stratum, render_audit
from manifests.mask import decode_mask, encode_mask, mask_sha256
from manifests.verify import verify_release
from pipeline.cli import main
from pipeline.world import read_truth
from students.data import bucket_sizes
from students.shards import open_shards
from tests.end_to_end.conftest import arguments

AUDITED, UNFINISHED = 20, 2


@dataclass(frozen=True, kw_only=True)
class Made:
    """A run: its release, judge.json and what the command said."""

    release: Path
    judge: dict[str, Any]
    page: str
    said: str

    def rows(self) -> list[dict[str, Any]]:
        """The rows of manifest/ and dropped/."""
        files = [path for kind in ("manifest", "dropped") for path in sorted((self.release / kind).glob("*.parquet"))]
        return [row for path in files for row in pq.read_table(path).to_pylist()]

    def samples(self) -> dict[str, dict[str, Any]]:
        """Every published sample by its id."""
        files = sorted((self.release / "shards").rglob("*.parquet"))
        return {row["sample_id"]: row for path in files for row in pq.read_table(path).to_pylist()}


def truth_of(world: Path, row: dict[str, Any]) -> NDArray[np.bool_]:
    source = Path(row["source_uri"])
    suffix = ".npz" if source.suffix == ".mp4" else ".png"
    return np.asarray(read_truth(world / "truth" / f"{source.stem}{suffix}")[row["frame_index"]] > 0)


def draw_audit(folder: Path, world: Path, rows: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.bool_]]:
    """An audit of the frames, the first ``AUDITED`` of them masked by their truth; and one of another pool."""
    other = {"sample_id": "f" * 32, "content_sha256": bytes(32), "width": 8, "height": 8}
    drawn = tuple(
        Drawn(
            name=f"{number:04d}",
            sample_id=row["sample_id"],
            content_sha256=row["content_sha256"].hex(),
            width=row["width"],
            height=row["height"],
        )
        for number, row in enumerate([other, *rows])
    )
    strata = {"0": Stratum(population=100, drawn=len(drawn))}
    audit = Audit(seed=0, size=len(drawn), origin="release", fingerprint="0" * 64, samples=drawn, strata=strata)
    (folder / "masks").mkdir(parents=True)
    (folder / "ignore").mkdir()
    (folder / "audit.json").write_bytes(render_audit(audit))
    (folder / "masks" / "0000.png").write_bytes(encode_mask(np.ones((8, 8), np.bool_)))
    masks = {}
    for one, row in zip(drawn[1 : AUDITED + 1], rows, strict=False):
        masks[one.sample_id] = truth_of(world, row)
        (folder / "masks" / f"{one.name}.png").write_bytes(encode_mask(masks[one.sample_id]))
    void = np.zeros((rows[0]["height"], rows[0]["width"]), np.bool_)
    void[:9, :11] = True
    (folder / "ignore" / "0001.png").write_bytes(encode_mask(void))
    return masks


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The three runs, and the human masks that the last was given."""

    bare: Made
    gold: Made
    both: Made
    masks: dict[str, NDArray[np.bool_]]
    stages: Path


@pytest.fixture(scope="module")
def runs(world: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("judge")
    labelled = folder / "world" / "labelled"
    shutil.copytree(world / "labelled", labelled)
    for kind in ("images", "masks"):  # some of the labelled frames are the gold
        (folder / "gold" / kind).mkdir(parents=True)
        for path in sorted((labelled / kind).iterdir())[:6]:
            path.rename(folder / "gold" / kind / path.name)
    flags = arguments(world, config, folder / "out", "--workers", "2")
    flags[flags.index("--labelled") + 1] = str(labelled)

    def run(*more: str) -> Made:
        before = {path.name for path in (folder / "out" / "releases").glob("*")}
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main([*flags, *more]) == 0
        (release,) = (p for p in (folder / "out" / "releases").iterdir() if p.name not in before)
        judge = json.loads((folder / "out" / "judge.json").read_bytes())
        page = (folder / "out" / "judge.html").read_text()
        return Made(release=release, judge=judge, page=page, said=told.getvalue())

    bare = run()
    gold = run("--gold", str(folder / "gold"))
    rows = sorted(gold.rows(), key=lambda row: row["sample_id"])[: AUDITED + UNFINISHED]
    masks = draw_audit(folder / "audit", world, rows)
    both = run("--gold", str(folder / "gold"), "--audit", str(folder / "audit"))
    return Runs(bare=bare, gold=gold, both=both, masks=masks, stages=folder / "out" / "stages")


def test_each_run_is_a_good_release_and_says_what_it_rests_on(runs: Runs) -> None:
    starts = ["No gold: the 14 labelled images", "6 gold images", "6 gold images"]
    notes = []
    for made, start in zip((runs.bare, runs.gold, runs.both), starts, strict=True):
        assert verify_release(made.release) == []
        assert json.loads((made.release / "stats.json").read_bytes())["judge"] == made.judge
        assert made.judge["format"] == 2
        assert made.judge["notes"][0].startswith(start)
        assert "<html" in made.page
        assert "gates closed; see" in made.said
        notes.append(made.judge["notes"])
    assert notes[0] != notes[1] != notes[2]
    assert len({made.page for made in (runs.bare, runs.gold, runs.both)}) == 3
    assert any(note.startswith("No audit") for note in notes[1])
    assert "not calibrated (no audit was given)" in runs.gold.said
    facts = {"folders": 1, "masks": AUDITED + 1, "unfinished": UNFINISHED, "not_in_run": 1, "used": AUDITED}
    assert facts.items() <= runs.both.judge["audit"].items()
    for note in (f"People masked {AUDITED}", "The audit is unfinished: 2", "1 of the audit's 21 masks"):
        assert any(said.startswith(note) for said in runs.both.judge["notes"])


def test_what_people_drew_is_the_label_bit_for_bit_and_the_teachers_mask_stays_beside_it(runs: Runs) -> None:
    rows, samples, before = {r["sample_id"]: r for r in runs.both.rows()}, runs.both.samples(), runs.gold.samples()
    differ = 0
    for name, mask in runs.masks.items():
        row, sample = rows[name], samples[name]
        assert (row["verdict"], row["decision"], row["label_source"], row["decision_by"]) == (
            "keep",
            "keep",
            "human",
            "audit",
        )
        assert row["decision_reasons"][0] == "audited"
        assert (sample["label_source"], sample["weight"], sample["label_confidence"]) == ("human", 1, None)
        np.testing.assert_array_equal(decode_mask(sample["mask"]["bytes"], mask.size), mask)
        assert row["mask_sha256"] == sample["mask_sha256"] == mask_sha256(mask)
        assert row["mask_area_px"] == mask.sum()
        teacher = (before[name]["teacher_mask"] or before[name]["mask"])["bytes"] if name in before else None
        if sample["teacher_mask"] is not None and teacher is not None:
            assert sample["teacher_mask"]["bytes"] == teacher
            differ += 1
    assert differ >= 5
    void = [name for name in runs.masks if samples[name]["ignore"] is not None]
    assert void == [next(iter(runs.masks))]
    assert decode_mask(samples[void[0]]["ignore"]["bytes"], 1 << 24).sum() == 9 * 11
    assert all(row["label_source"] == "pseudo" for name, row in rows.items() if name not in runs.masks)


def test_gold_and_an_audit_leave_what_came_before_them_as_it_was(runs: Runs) -> None:
    made = {name: len(list((runs.stages / name).iterdir())) for name in ("teach", "label", "fold", "audit", "verdict")}
    assert made == {"teach": 1, "label": 1, "fold": 2, "audit": 1, "verdict": 3}


def test_every_judged_row_names_its_student(runs: Runs) -> None:
    for made in (runs.bare, runs.gold, runs.both):
        named = {fold["fold"]: fold["student_sha256"] for fold in made.judge["folds"]}
        assert len(set(named.values())) == len(named) >= 2
        for row in made.rows():
            assert (row["judge"] is None) == (row["student_id"] is None) == (row["student_sha256"] is None)
            if row["judge"] is not None:
                assert row["student_id"] == f"fold-{row['judge']['fold']}"
                assert row["student_sha256"].hex() == named[row["judge"]["fold"]]
    assert runs.gold.judge["folds"] != runs.bare.judge["folds"]  # gold trained them
    assert [f["student_sha256"] for f in runs.both.judge["folds"]] == [
        f["student_sha256"] for f in runs.gold.judge["folds"]
    ]  # the audit trained none


def test_the_trainers_reader_opens_the_release_and_takes_human_masks_for_gold(runs: Runs) -> None:
    shards = open_shards(runs.both.release)
    named = dict(zip(shards.names.to_pylist(), shards.gold.tolist(), strict=True))
    assert named
    assert all(gold == (name in runs.masks) for name, gold in named.items())
    ((first, *_),) = shards.read([list(range(len(shards)))])
    assert first.image
    assert shards.schedule(sizes=bucket_sizes(64), batch=2, seed=0)


def test_a_gold_image_that_is_also_labelled_is_refused_before_any_work(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(world, config, tmp_path / "out", "--gold", str(world / "labelled"))) == 1
    assert "an image of --gold must not be in --labelled" in capsys.readouterr().err
    assert not list(tmp_path.rglob("part-*.parquet"))
    assert main(arguments(world, config, tmp_path / "out", "--plan", "--gold", str(world / "labelled"))) == 1
