"""Laws of an evaluation: what a model is, not how it was run, decides its numbers; nothing is skipped in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluation import flow as flow_module
from evaluation.measures import measure_of
from evaluation.taxonomy import default_taxonomy
from pipeline import measure
from pipeline.clip_formats import Clip
from pipeline.clips import find_clips, read_clip
from pipeline.config import Config
from pipeline.errors import InputError, StageError
from pipeline.evaluate import Evaluated, evaluate, read_coverage
from pipeline.evaluate_config import EvaluateConfig
from pipeline.measure import FRAMES, VIDEOS, measure_clip
from pipeline.segmenters import open_segmenter
from teachers.backend import TeacherConfig
from teachers.onnx import OnnxConfig
from tests.pipeline.evaluations import (
    CLIPS,
    FRAMES_EACH,
    MODELS,
    QUIET,
    World,
    draw,
    rows,
    untimed,
    walk,
    write_clip,
    write_model,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: World) -> dict[str, Evaluated]:
    """Every model, measured along the flow into one output."""
    return {name: world.run(name, flow=True) for name in MODELS}


# Laws -----------------------------------------------------------------------------------------------------------------


def test_a_model_that_predicts_the_truth_scores_one_and_has_no_excess(done: dict[str, Evaluated]) -> None:
    for row in rows(done["truth"]):
        assert [row[name] for name in ("iou", "boundary_iou", "boundary_iou_interior", "boundary_f")] == [1.0] * 4
        assert [row[name] for name in ("adjacent_excess", "warped_excess", "dtssd")] == [0.0] * 3
        assert row["vc8"] == 1
        assert row["labelled"] == row["frames"] == FRAMES_EACH
        assert row["pairs"] == FRAMES_EACH - 1


def test_a_model_that_lags_is_steady_and_loses_what_the_lag_test_says(done: dict[str, Evaluated]) -> None:
    for row, truth in zip(rows(done["late"]), rows(done["truth"]), strict=True):
        assert row["iou"] == pytest.approx(1 - truth["lag_loss"][1])
        assert row["iou"] < 0.8
        assert row["adjacent_excess"] <= 0


def test_a_frozen_model_is_perfectly_steady_and_wrong(done: dict[str, Evaluated]) -> None:
    for row in rows(done["frozen"]):
        assert row["adjacent"] == 1
        assert row["iou"] < 0.5
        assert row["adjacent_excess"] < 0


def test_the_iou_of_videos_agrees_with_numpy(world: World, done: dict[str, Evaluated]) -> None:
    for model in ("noisy", "late"):
        for name, row in zip(CLIPS, rows(done[model]), strict=True):
            shares = []
            for path in sorted((world.videos / name / "masks").iterdir()):
                truth, found = (np.asarray(Image.open(p)) > 0 for p in (path, world.model(model) / name / path.name))
                shares.append((truth & found).sum() / (truth | found).sum())
            assert row["video"] == name
            assert row["iou"] == pytest.approx(np.mean(shares), abs=1e-12)
            assert row["seconds_per_frame"] > 0


def test_the_tables_have_their_schemas_and_the_record_says_what_they_are(
    done: dict[str, Evaluated],
) -> None:
    evaluated = done["noisy"]
    assert pq.read_schema(evaluated.folder / "frames.parquet").names == FRAMES.names
    assert pq.read_schema(evaluated.folder / "videos.parquet").equals(VIDEOS)
    record = json.loads((evaluated.folder / "evaluation.json").read_bytes())
    assert record == json.loads(json.dumps(evaluated.record))
    assert record["counts"] == {"videos": 3, "frames": 30, "labelled": 30, "pairs": 27}
    assert record["settings"]["meter"]["ratio"] == 0.02
    assert sorted(record["videos"]["digests"]) == list(CLIPS)
    assert record["model"]["id"] in evaluated.report.read_text()
    assert {path.parent for path in evaluated.folder.parent.glob("*/evaluation.json")} == {
        item.folder for item in done.values()
    }
    assert len(rows(evaluated, "frames")) == 30
    assert {row["video"] for row in rows(evaluated, "pictures")} == set(CLIPS)
    assert evaluated.overall[0].metric == "iou"


def test_workers_never_change_the_result(world: World, done: dict[str, Evaluated]) -> None:
    other = world.run("noisy", "two", flow=True, workers=2)
    assert untimed(other) == untimed(done["noisy"])
    for name in ("frames", "classes", "worst", "pictures"):
        assert rows(other, name) == rows(done["noisy"], name)


def test_names_and_order_of_clips_change_no_number(world: World, done: dict[str, Evaluated], tmp_path: Path) -> None:
    swapped = dict(zip(CLIPS, ("z", "y", "x"), strict=True))
    for name, other in swapped.items():
        shutil.copytree(world.videos / name, tmp_path / "videos" / other)
        shutil.copytree(world.model("noisy") / name, tmp_path / "noisy" / other)
    other_world = World(folder=tmp_path)
    found = {row.pop("video"): row for row in untimed(other_world.run("noisy", flow=True))}
    for row in untimed(done["noisy"]):
        assert found[swapped[row.pop("video")]] == row


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    world: World, done: dict[str, Evaluated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, seen = measure_clip, []

    def dying(clip: Clip, *rest: Any) -> Any:
        seen.append(clip.name)
        if clip.name == "carl" and seen.count("carl") == 1:
            raise RuntimeError("power cut")
        return true(clip, *rest)

    monkeypatch.setattr(measure, "measure_clip", dying)
    output = str(tmp_path / "out")
    with pytest.raises(StageError, match="power cut"):
        world.run("noisy", output, flow=True)
    assert not list(Path(output).glob("*/evaluation.json"))
    first = list(seen)
    resumed = world.run("noisy", output, flow=True)
    committed = set(first) - {"carl"}
    assert sorted(seen[len(first) :]) == sorted(set(CLIPS) - committed)
    assert untimed(resumed) == untimed(done["noisy"])
    assert rows(resumed, "frames") == rows(done["noisy"], "frames")
    seen.clear()
    assert untimed(world.run("noisy", output, flow=True)) == untimed(resumed)
    assert not seen


def test_another_setting_of_the_comparison_measures_nothing_anew(
    world: World, done: dict[str, Evaluated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure_clip", lambda *_: pytest.fail("measured again"))
    again = world.run("noisy", flow=True, config=EvaluateConfig(seed=5, margin=0.05))
    assert again.folder != done["noisy"].folder
    assert untimed(again) == untimed(done["noisy"])


def test_flow_is_computed_once_for_all_models(
    world: World, done: dict[str, Evaluated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = world.folder / "out" / "flow"
    assert len(list(kept.glob("*.flow"))) == 3
    monkeypatch.setattr(flow_module, "_dis", lambda *_: pytest.fail("computed again"))
    again = world.run("noisy", str(tmp_path), flow=True, flow_cache=kept)
    assert untimed(again) == untimed(done["noisy"])


def test_without_flow_the_rest_is_the_same(world: World, done: dict[str, Evaluated], tmp_path: Path) -> None:
    plain = world.run("noisy", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "flow").exists()
    along = ("warped", "warped_masked", "warped_truth", "warped_masked_truth", "valid_share", "warped_excess")
    for row, full in zip(untimed(plain), untimed(done["noisy"]), strict=True):
        assert all(row[name] is None for name in along)
        assert row["pairs_excluded"] == {**full["pairs_excluded"], "no_flow": FRAMES_EACH - 1}
        other = {*along, "pairs_excluded"}
        assert {k: v for k, v in row.items() if k not in other} == {k: v for k, v in full.items() if k not in other}


def test_videos_without_labels_get_consistency_alone(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.videos / "anna", tmp_path / "videos" / "anna")
    write_clip(tmp_path / "videos" / "ben", walk(1), labelled=False)
    for name in ("anna", "ben"):
        shutil.copytree(world.model("noisy") / name, tmp_path / "noisy" / name)
    evaluated = World(folder=tmp_path).run("noisy")
    labelled, bare = rows(evaluated)
    assert labelled["iou"] > 0
    assert bare["labelled"] == 0
    assert bare["iou"] is None
    assert bare["adjacent"] > 0
    assert ["iou", "ben"] in evaluated.record["excluded"]
    assert ["adjacent", "ben"] not in evaluated.record["excluded"]
    assert bare["worst_frames"]


def test_no_pair_spans_a_cut(tmp_path: Path) -> None:
    frames = [*walk(0)[:5], *[(255 - image // 4, mask) for image, mask in walk(3)[5:]]]
    write_clip(tmp_path / "videos" / "cut", frames)
    write_model(tmp_path / "truth", MODELS["truth"], {"cut": frames})
    (row,) = rows(World(folder=tmp_path).run("truth", flow=True))
    assert row["pairs_excluded"] == {"gap": 0, "cut": 1, "no_flow": 0, "not_believed": 0}
    assert row["pairs"] == FRAMES_EACH - 2


# Classes --------------------------------------------------------------------------------------------------------------


def attributes(folder: Path, text: str) -> Path:
    path = folder / "attributes.csv"
    path.write_text(text)
    return path


def test_classes_are_compared_where_attributes_are_given(world: World, tmp_path: Path) -> None:
    level = default_taxonomy().category("lighting_level").classes[0]
    gender = default_taxonomy().category("apparent_gender").classes[0]
    text = f"video,subject_id,lighting_level,apparent_gender\nanna,p,{level},{gender}\nben,p,,{gender}\ncarl,q,,\n"
    evaluated = world.run("noisy", attributes=attributes(tmp_path, text))
    found = {(row["metric"], row["category"], row["group"]): row for row in rows(evaluated, "classes")}
    row = found["iou", "apparent_gender", gender]
    assert (row["videos"], row["subjects"], row["flag"], row["sensitive"]) == (2, 1, "insufficient", True)
    means = {item["video"]: item["iou"] for item in rows(evaluated)}
    assert row["mean"] == pytest.approx((means["anna"] + means["ben"]) / 2)
    assert found["iou", "apparent_gender", "unknown"]["mean"] == pytest.approx(means["carl"])
    assert found["iou", "lighting_level", "unknown"]["videos"] == 2
    assert [item["subject_id"] for item in rows(evaluated)] == ["p", "p", "q"]
    worst = {(row["metric"], row["category"], row["at_least"]): row for row in rows(evaluated, "worst")}
    assert ("adjacent_excess", "lighting_level", 1) in worst


def test_the_worst_class_is_one_in_table_and_report_also_where_less_is_better(world: World, tmp_path: Path) -> None:
    text = "video,lighting_level\nanna,dim\nben,bright\ncarl,bright\n"
    for clip in CLIPS:
        shutil.copytree(world.model("truth" if clip == "anna" else "noisy") / clip, tmp_path / "mixed" / clip)
    shutil.copytree(world.videos, tmp_path / "videos")
    evaluated = World(folder=tmp_path).run("mixed", attributes=attributes(tmp_path, text))
    worst = {row["metric"]: row for row in rows(evaluated, "worst") if row["at_least"] == 1}
    page = evaluated.report.read_text()
    for metric in ("iou", "adjacent_excess", "dtssd"):
        assert (worst[metric]["worst"], worst[metric]["best"]) == ("bright", "dim")
        part = page[page.index(f"<h3>{measure_of(metric).label}</h3>") :]
        assert "<strong>bright</strong>" in part[: part.index("</table>")]
    alone = [row for row in rows(evaluated, "worst") if row["at_least"] > 1]
    assert {(row["worst"], row["best"]) for row in alone} == {(None, None)}


def test_the_headline_is_made_with_the_settings_also_without_attributes(world: World) -> None:
    config = EvaluateConfig(confidence=0.8)
    assert "80 % interval" in world.run("noisy", flow=True, config=config).report.read_text()


def test_one_video_of_one_subject_in_one_class_says_why_it_has_no_interval(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.videos / "anna", tmp_path / "videos" / "anna")
    shutil.copytree(world.model("noisy") / "anna", tmp_path / "noisy" / "anna")
    level = default_taxonomy().category("lighting_level").classes[0]
    path = attributes(tmp_path, f"video,subject_id,lighting_level\nanna,p,{level}\n")
    evaluated = World(folder=tmp_path).run("noisy", attributes=path)
    assert evaluated.record["notes"] == ["one subject only: no interval and no test is possible"]
    (row,) = [r for r in rows(evaluated, "classes") if (r["metric"], r["group"]) == ("iou", level)]
    assert row["interval_low"] is None
    assert "1 subject" in row["reason"]
    assert row["mean"] == rows(evaluated)[0]["iou"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video,lighting_levle\nanna,low\n", "no category 'lighting_levle'; the nearest is 'lighting_level'"),
        ("video,lighting_level\nanna,gloomy\n", "lighting_level of video 'anna' is 'gloomy', which is no class"),
        ("video,subject_id,apparent_gender\nanna,p,A\nben,p,B\n", "subject 'p'"),
        ("video,lighting_level\ndora,low\n", "'dora' is no clip"),
    ],
)
def test_a_bad_attribute_is_refused_before_anything_is_measured(
    world: World, tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = default_taxonomy().category("apparent_gender").classes
    monkeypatch.setattr(measure, "measure_clip", lambda *_: pytest.fail("measured"))
    path = attributes(tmp_path, text.replace(",A\n", f",{first}\n").replace(",B\n", f",{second}\n"))
    with pytest.raises(InputError, match=said):
        world.run("noisy", str(tmp_path / "out"), attributes=path)


def test_the_coverage_of_a_release_is_the_share_of_what_was_kept(tmp_path: Path) -> None:
    table = {"lighting": {"low": {"keep": 1, "hold": 5, "drop": 0}, "high": {"keep": 3, "hold": 0, "drop": 9}}}
    (tmp_path / "stats.json").write_text(json.dumps({"attributes": table}))
    assert read_coverage(tmp_path) == {"lighting": {"low": 0.25, "high": 0.75}}
    (tmp_path / "stats.json").write_text("[]")
    with pytest.raises(InputError, match="must be a release"):
        read_coverage(tmp_path)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_missing_and_surplus_predictions_are_named(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.model("noisy"), tmp_path / "few")
    (tmp_path / "few" / "ben" / "00004.png").unlink()
    shutil.copytree(world.model("noisy"), tmp_path / "many")
    shutil.copy(tmp_path / "many" / "ben" / "00004.png", tmp_path / "many" / "ben" / "00099.png")
    shutil.copytree(world.model("noisy"), tmp_path / "lacks")
    shutil.rmtree(tmp_path / "lacks" / "ben")
    for name, said in (("few", "00004"), ("many", "00099"), ("lacks", "ben")):
        with pytest.raises((InputError, StageError), match=said):
            evaluate(tmp_path / name, world.videos, None, str(tmp_path / "out"), flow=False, console=QUIET)


@pytest.mark.parametrize(("folder", "flag"), [("videos", "--videos"), ("noisy", "--model")])
def test_an_output_within_what_is_read_is_refused(world: World, folder: str, flag: str) -> None:
    with pytest.raises(InputError, match=f"is inside {flag}"):
        world.run("noisy", str(world.folder / folder / "out"))
    assert not (world.folder / folder / "out").exists()


def test_a_single_unlabelled_frame_is_nothing_to_measure(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "still", walk(0)[:1], labelled=False)
    write_model(tmp_path / "truth", MODELS["truth"], {"still": walk(0)[:1]})
    with pytest.raises(InputError, match="neither a truth nor two frames in a row"):
        World(folder=tmp_path).run("truth")


# Real clips and models ------------------------------------------------------------------------------------------------

REAL = {
    "prisma": TeacherConfig(backend="onnx", onnx=OnnxConfig()),
    "sinet": TeacherConfig(
        backend="onnx",
        onnx=OnnxConfig(
            channels="BGR",
            mean=(102.890434, 111.25247, 126.91212),
            std=tuple(255 * s for s in (62.93292, 62.82138, 66.355705)),  # type: ignore[arg-type]
            output="probabilities",
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_models_on_real_clips_agree_with_numpy(name: str, data: Path, tmp_path: Path) -> None:
    model = data.parent / "models" / f"{name}.onnx"
    if not model.is_file():
        pytest.skip(f"{model} is absent")
    for clip in ("schoolgirls", "talk_composite"):
        for part in ("frames", "masks"):
            for path in sorted((data / "labelled_clips" / clip / part).iterdir())[:4]:
                target = tmp_path / "videos" / clip / part / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    evaluated = evaluate(
        model, tmp_path / "videos", None, str(tmp_path / "out"), teacher=REAL[name], flow=True, console=QUIET
    )
    segmenter = open_segmenter(model, Config(teacher=REAL[name]))
    for found_clip, row in zip(find_clips(tmp_path / "videos"), rows(evaluated), strict=True):
        shares = []
        for frame in read_clip(found_clip):
            assert frame.truth is not None
            found = segmenter(frame) >= 0.5
            shares.append((found & frame.truth).sum() / (found | frame.truth).sum())
        assert row["iou"] == pytest.approx(np.mean(shares), abs=1e-12)
        assert 0 < row["warped_masked"] <= 1
        assert row["pairs_excluded"]["not_believed"] == 0
    assert rows(evaluated)[1]["iou"] > 0.95  # a portrait, which these models are made for
