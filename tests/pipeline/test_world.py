import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import world as world_module
from pipeline.brush import RGB
from pipeline.camera import frame_size, render
from pipeline.figure import Figure
from pipeline.scene import CLASSES, EMPTY_SHARE, Scene, attributes, draw_scene
from pipeline.world import UNKNOWN_SHARE, World, draw_world, read_truth
from tests.conftest import SHARED

SIZE = (90, 160)
indices = st.integers(0, 1 << 20)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "drawn"
    return draw_world(folder, seed=3, videos=2, images=8, labelled=6)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _clean(scene: Scene) -> Scene:
    """The scene in plain light through a perfect camera, which spreads no pixel into its neighbours."""
    light = replace(scene.light, gain=1.0, direction="frontal", temperature="neutral")
    return replace(scene, light=light, camera=replace(scene.camera, noise=0.0, blur=0.0, streak=0.0, quality=0))


def _inverted(paint: RGB) -> RGB:
    red, green, blue = (255 - c for c in paint)
    return red, green, blue


def _repainted(person: Figure) -> Figure:
    return replace(
        person,
        skin=_inverted(person.skin),
        hair=_inverted(person.hair),
        top=_inverted(person.top),
        bottom=_inverted(person.bottom),
        headwear_paint=_inverted(person.headwear_paint),
    )


@given(indices, st.floats(0, 4))
@settings(max_examples=15)
def test_equal_arguments_draw_equal_bits(index: int, time: float) -> None:
    scene = draw_scene(5, index)
    assert scene == draw_scene(5, index)
    first, second = render(scene, time, height_width=SIZE), render(scene, time, height_width=SIZE)
    assert first[0].shape == (*SIZE, 3)
    assert first[0].dtype == np.uint8
    assert first[1].shape == SIZE
    assert first[1].dtype == np.bool_
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_seed_and_index_both_choose_the_scene() -> None:
    scenes = {draw_scene(seed, index) for seed in range(4) for index in range(4)}
    assert len(scenes) == 16


@given(indices)
@settings(max_examples=40)
def test_repainting_the_people_changes_pixels_in_the_mask_only(index: int) -> None:
    scene = _clean(draw_scene(1, index, skew=0.3))
    painted = replace(scene, figures=tuple(_repainted(person) for person in scene.figures))
    before, mask = render(scene, 0.7, height_width=SIZE)
    after, same = render(painted, 0.7, height_width=SIZE)
    np.testing.assert_array_equal(mask, same)
    change = np.abs(before.astype(int) - after).max(axis=2)
    assert change[~mask].max(initial=0) <= 145, "a pixel outside the mask is less than half a person"
    reach = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
    assert (change[~reach] > 0).sum() <= 0.003 * mask.size, "only slivers thinner than half a pixel lie further out"


@given(indices)
@settings(max_examples=15)
def test_a_mask_is_that_of_the_same_drawing_four_times_as_large(index: int) -> None:
    scene = draw_scene(1, index)
    mask = render(scene, 0.3, height_width=(180, 320))[1]
    large = render(scene, 0.3, height_width=(720, 1280))[1].astype(np.float32)
    shrunk = cv2.resize(large, (320, 180), interpolation=cv2.INTER_AREA) >= 0.5
    assert (mask & shrunk).sum() >= 0.9 * (mask | shrunk).sum()
    grown = cv2.dilate(shrunk.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
    assert (mask & ~grown).sum() <= 0.03 * mask.sum(), "the masks differ by less than a pixel, but for single hairs"


def test_repainting_the_people_changes_most_of_the_mask() -> None:
    shares = []
    for index in range(40):
        scene = _clean(draw_scene(2, index))
        painted = replace(scene, figures=tuple(_repainted(person) for person in scene.figures))
        before, mask = render(scene, 0.0, height_width=SIZE)
        after, _ = render(painted, 0.0, height_width=SIZE)
        if mask.any():
            shares.append((before != after).any(axis=2)[mask].mean())
    assert np.mean(shares) > 0.85


@given(indices)
@settings(max_examples=15)
def test_nobody_drawn_means_an_empty_mask_and_no_attribute_of_people(index: int) -> None:
    scene = replace(draw_scene(1, index), figures=())
    assert not render(scene, 1.0, height_width=SIZE)[1].any()
    assert not {"num_people", "apparent_skin_tone", "body_pose", "subject_motion"} & set(attributes(scene))


def test_some_scenes_have_nobody() -> None:
    empty = np.mean([not draw_scene(4, index).figures for index in range(600)])
    assert EMPTY_SHARE / 2 < empty < EMPTY_SHARE * 2


@given(indices)
@settings(max_examples=20)
def test_every_person_counted_is_seen(index: int) -> None:
    scene = draw_scene(1, index, skew=0.0)
    seen = [render(replace(scene, figures=(person,)), 0.0, height_width=SIZE)[1].sum() for person in scene.figures]
    assert all(pixels > 40 for pixels in seen)
    if scene.figures:
        assert attributes(scene)["num_people"] == ("one", "two", "three_plus")[len(scene.figures) - 1]


@given(indices, st.floats(0, 2))
@settings(max_examples=60)
def test_attributes_are_classes_of_the_table(index: int, skew: float) -> None:
    for name, value in attributes(draw_scene(9, index, skew=skew)).items():
        assert value in CLASSES[name]


@pytest.mark.skipif(not (SHARED / "specs" / "taxonomy.json").is_file(), reason="the taxonomy is absent")
def test_every_class_is_of_the_taxonomy() -> None:
    entries = json.loads((SHARED / "specs" / "taxonomy.json").read_text())
    taxonomy = {entry["category"]: set(entry["classes"]) for entry in entries}
    for name, classes in CLASSES.items():
        assert set(classes) <= taxonomy[name]


def test_no_skew_draws_every_class() -> None:
    drawn = [attributes(draw_scene(0, index, skew=0.0)) for index in range(400)]
    for name, classes in CLASSES.items():
        assert {row[name] for row in drawn if name in row} == set(classes), name


def test_skew_makes_a_long_tail() -> None:
    def counts(name: str, skew: float) -> list[int]:
        drawn = Counter(attributes(draw_scene(0, index, skew=skew)).get(name, "") for index in range(300))
        return [drawn[value] for value in CLASSES[name]]

    for name in ("apparent_skin_tone", "lighting_level", "aspect_ratio", "background_complexity"):
        skewed, flat = counts(name, 1.0), counts(name, 0.0)
        assert skewed[0] > 3.5 * skewed[-1] > 0, name
        assert max(flat) < 2 * min(flat), name


def test_a_scene_darkens_from_bright_to_normal_to_dim() -> None:
    """By class over many scenes, and scene by scene when the exposure alone is lowered."""
    lumas: dict[str, list[float]] = {level: [] for level in CLASSES["lighting_level"]}
    for index in range(100):
        scene = draw_scene(6, index, skew=0.0)
        frame, _ = render(scene, 0.0, height_width=SIZE)
        lumas[scene.light.level].append(float(frame.mean()))
        darker = replace(scene, light=replace(scene.light, gain=scene.light.gain / 2))
        assert render(darker, 0.0, height_width=SIZE)[0].mean() < frame.mean()
    means = {level: float(np.mean(values)) for level, values in lumas.items()}
    assert means["dim"] * 1.5 < means["normal"]
    assert means["normal"] * 1.15 < means["bright"]


def _mean_of(colour: Callable[[Scene, NDArray[np.uint8]], float], name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for index in range(150):
        scene = draw_scene(8, index, skew=0.0)
        if scene.figures:
            frame, _ = render(scene, 0.0, height_width=SIZE)
            found.setdefault(attributes(scene)[name], []).append(colour(scene, frame))
    return {value: float(np.mean(numbers)) for value, numbers in found.items()}


def test_warm_light_is_redder_and_cool_light_bluer() -> None:
    def warmth(_: Scene, frame: NDArray[np.uint8]) -> float:
        return float(frame[..., 0].mean() / (frame[..., 2].mean() + 1))

    means = _mean_of(warmth, "color_temperature")
    assert means["warm"] > means["neutral"] > means["cool"]


def test_faster_subjects_change_more_of_their_mask() -> None:
    def flow(scene: Scene, _: NDArray[np.uint8]) -> float:
        still = replace(scene, camera=replace(scene.camera, motion="static"))
        masks = [render(still, tick / 5, height_width=SIZE)[1] for tick in range(4)]
        moved = sum(int((a ^ b).sum()) for a, b in pairwise(masks))
        return moved / max(1, int(masks[0].sum()))

    means = _mean_of(flow, "subject_motion")
    assert means["still"] < means["slow"] < means["moderate"] < means["fast"]


def test_closer_framing_fills_more_of_the_frame() -> None:
    def share(scene: Scene, _: NDArray[np.uint8]) -> float:
        alone = replace(scene, figures=scene.figures[:1])
        return float(render(alone, 0.0, height_width=SIZE)[1].mean())

    means = _mean_of(share, "body_coverage")
    assert means["full_body"] < means["half_body"] < means["head_shoulders"] < means["face_closeup"]


def test_a_camera_that_moves_moves_the_background() -> None:
    scene = next(s for s in (draw_scene(1, n) for n in range(99)) if not s.figures and s.room.complexity != "plain")
    for motion in CLASSES["camera_motion"]:
        taken = _clean(replace(scene, camera=replace(scene.camera, motion=motion)))
        first, later = (render(taken, time, height_width=SIZE)[0] for time in (0.0, 0.5))
        assert np.array_equal(first, later) == (motion == "static")


def test_dark_and_light_skin_differ_in_the_figure() -> None:
    people = [draw_scene(1, index, skew=0.0).figures for index in range(200)]
    lumas = {
        tone: [sum(p[0].skin) for p in people if p and p[0].skin_tone == tone] for tone in ("light", "medium", "dark")
    }
    assert min(lumas["light"]) > max(lumas["medium"]) > min(lumas["medium"]) > max(lumas["dark"])


@pytest.mark.parametrize("arguments", [{"seed": -1, "index": 0}, {"seed": 0, "index": -1}])
def test_a_negative_number_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be >= 0, got -1"):
        draw_scene(**arguments)


def test_a_frame_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be >= 16, got 8x160"):
        render(draw_scene(0, 0), 0.0, height_width=(8, 160))


def test_the_world_is_drawn_byte_for_byte_again(small: World, tmp_path: Path) -> None:
    again = draw_world(tmp_path / "again", seed=3, videos=2, images=8, labelled=6)
    assert _contents(again.folder) == _contents(small.folder)
    other = draw_world(tmp_path / "other", seed=4, videos=0, images=1, labelled=0)
    assert _contents(other.folder)["unlabelled/image_0000.jpg"] != _contents(small.folder)["unlabelled/image_0000.jpg"]


def test_videos_hold_the_frames_and_truth_that_were_drawn(small: World) -> None:
    total = 0
    for path in sorted(small.unlabelled.glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        masks = read_truth(small.truth / f"{path.stem}.npz")
        assert masks.shape == (len(frames), *frames[0].shape[:2])
        assert 30 <= len(frames) <= 60
        total += len(frames)
        scene = draw_scene(3, int(path.stem[-4:]))
        for tick in (0, len(frames) - 1):
            frame, mask = render(scene, tick / 15, height_width=frame_size(scene))
            np.testing.assert_array_equal(mask, masks[tick])
            assert np.abs(frame.astype(float) - frames[tick]).mean() < 8
    assert total == small.frames > 0


def test_every_source_has_truth_and_a_row(small: World) -> None:
    with small.attributes_csv.open() as file:
        rows = list(csv.DictReader(file))
    sources = sorted(path.name for path in small.unlabelled.iterdir())
    assert [row["source"] for row in rows] == sources
    assert len(sources) == 10
    assert list(rows[0]) == ["source", *CLASSES]
    for source in sources:
        stem = Path(source).stem
        assert read_truth(small.truth / (f"{stem}.png" if stem.startswith("image") else f"{stem}.npz")).ndim == 3


def test_labelled_images_have_masks_of_their_size_in_two_values(small: World) -> None:
    images = sorted(small.labelled_images.iterdir())
    assert len(images) == 6
    for path in images:
        frame = cv2.imread(str(path))
        mask = cv2.imread(str(small.labelled_masks / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        assert frame is not None
        assert mask is not None
        assert frame.shape[:2] == mask.shape
        assert set(np.unique(mask)) <= {0, 255}


def test_annotators_leave_a_tenth_unknown_and_else_tell_the_truth(tmp_path: Path) -> None:
    world = draw_world(tmp_path / "world", seed=0, videos=0, images=60, labelled=0)
    with world.attributes_csv.open() as told, (world.truth / "attributes.csv").open() as known:
        pairs = [
            (said, true)
            for row, truth in zip(csv.DictReader(told), csv.DictReader(known), strict=True)
            for said, true in zip(row.values(), truth.values(), strict=True)
            if true
        ]
    assert all(said in {"", true} for said, true in pairs)
    unknown = np.mean([said == "" for said, _ in pairs])
    assert UNKNOWN_SHARE / 2 < unknown < UNKNOWN_SHARE * 2


def test_a_killed_drawing_is_drawn_again(small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "world"
    with monkeypatch.context() as patch:
        patch.setattr(world_module, "_write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_world(folder, seed=3, videos=2, images=8, labelled=6)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".world.part"]
    draw_world(folder, seed=3, videos=2, images=8, labelled=6)
    assert _contents(folder) == _contents(small.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_finished_world_is_returned_untouched(small: World) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in small.folder.rglob("*")}
    assert draw_world(small.folder, seed=3, videos=2, images=8, labelled=6) == small
    assert {path: path.stat().st_mtime_ns for path in small.folder.rglob("*")} == stamps


def test_other_arguments_or_a_foreign_folder_are_refused(small: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a world of seed 3 instead of 4, images 8 instead of 9; remove it"):
        draw_world(small.folder, seed=4, videos=2, images=9, labelled=6)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has no world\.json"):
        draw_world(tmp_path, seed=0, videos=0, images=0, labelled=0)
    shutil.copytree(small.folder, tmp_path / "old")
    marker = tmp_path / "old" / "world.json"
    marker.write_text(marker.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(ValueError, match=r"version 0 instead of 1"):
        draw_world(tmp_path / "old", seed=3, videos=2, images=8, labelled=6)


def test_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"world\.images must be >= 0, got -1"):
        draw_world(tmp_path / "world", seed=0, videos=0, images=-1, labelled=0)
