"""A training ends with the same bytes however often it was stopped, refuses another's state, and learns."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.masks import iou
from manifests.image import decode_image
from manifests.labelled import LabelledError, load_labelled, read_labelled
from teachers.augment import AugmentConfig
from teachers.backend import load_teacher
from teachers.checkpoint import load_state, read_metadata
from teachers.recipe import TeachConfig, TeachError
from teachers.record import TeachResult
from teachers.train import FILES, LOSSES, learning_rate, teach
from training.curve import columns
from training.devices import Devices, accelerator_of

QUICK = TeachConfig.quick()
TINY = replace(
    QUICK,
    model=replace(QUICK.model, stem_out=8, res2_out=8, fpn_out=16, point_fc_dim=16, min_size_test=64, max_size_test=96),
    augment=AugmentConfig(crop=64, short_side=56),
    steps=6,
    batch=4,
    points=128,
    warm_up=2,
    validate_every=3,
    report_every=1,
    checkpoint_seconds=0.0,
)


def draw(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An ellipse brighter and warmer than a noisy slope; its label is 0 and 255."""
    rng = np.random.default_rng(seed)
    height, width = 72, 96
    slope = np.linspace(30, 110, width)[None, :, None] * rng.uniform(0.6, 1.3, 3)
    image = slope + rng.normal(0, 12, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    centre = (int(rng.integers(20, 76)), int(rng.integers(18, 54)))
    axes = (int(rng.integers(8, 20)), int(rng.integers(10, 26)))
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, (255,), -1)
    image[mask > 0] = rng.normal((215, 160, 90), 12, (np.count_nonzero(mask), 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for i in range(24):
        image, mask = draw(i)
        assert cv2.imwrite(str(folder / "images" / f"s{i:02}.png"), image[:, :, ::-1])
        assert cv2.imwrite(str(folder / "masks" / f"s{i:02}.png"), mask)
    return folder


@pytest.fixture(scope="module")
def straight(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TeachResult]:
    output = tmp_path_factory.mktemp("straight")
    return output, teach(labelled, output, TINY, seed=1, report=lambda _: None)


class KilledError(Exception):
    pass


def killer(at: int) -> Callable[[str], None]:
    def report(line: str) -> None:
        if line.startswith(f"step {at} "):
            raise KilledError

    return report


@pytest.mark.parametrize("stops", [(3,), (1, 2, 5), (6,)])
def test_a_run_killed_and_continued_ends_with_the_bytes_of_one_that_was_not(
    labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    for stop in stops:
        with pytest.raises(KilledError):
            teach(labelled, tmp_path, TINY, seed=1, report=killer(stop))
        assert not (tmp_path / "teacher.safetensors").exists()
    lines: list[str] = []
    found = teach(labelled, tmp_path, TINY, seed=1, report=lines.append)
    assert lines[0] == f"going on from step {stops[-1]} of 6"
    folder, wanted = straight
    assert replace(found, checkpoint=wanted.checkpoint) == wanted
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_another_seed_gives_another_teacher(labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path) -> None:
    other = teach(labelled, tmp_path, replace(TINY, steps=3), seed=2, report=lambda _: None)
    assert other.sha256 != straight[1].sha256


def test_a_finished_folder_returns_at_once(labelled: Path, straight: tuple[Path, TeachResult]) -> None:
    folder, wanted = straight
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    lines: list[str] = []
    assert teach(labelled, folder, TINY, seed=1, report=lines.append) == wanted
    assert len(lines) == 1
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "seed", "named"),
    [
        ({"steps": 7}, 1, "steps is 7 and was 6"),
        ({"learning_rate": 0.5}, 1, "learning_rate is 0.5 and was 0.02"),
        ({"augment": replace(TINY.augment, light=0.25)}, 1, "augment.light is 0.25 and was 0.5"),
        ({}, 2, "seed is 2 and was 1"),
    ],
)
def test_the_state_of_another_run_is_refused_with_what_differs(
    labelled: Path,
    straight: tuple[Path, TeachResult],
    tmp_path: Path,
    finished: bool,
    change: Any,
    seed: int,
    named: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight[0], folder)
    if not finished:
        (folder / "result.json").unlink()
    with pytest.raises(TeachError, match=named):
        teach(labelled, folder, replace(TINY, **change), seed=seed, report=lambda _: None)


def test_a_changed_label_is_another_run(labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "labelled")
    mask = np.zeros((72, 96), np.uint8)
    assert cv2.imwrite(str(tmp_path / "labelled" / "masks" / "s03.png"), mask)
    with pytest.raises(TeachError, match=r"labelled is .* and was "):
        teach(tmp_path / "labelled", straight[0], TINY, seed=1, report=lambda _: None)


@pytest.mark.parametrize("name", ["state.pt", "result.json", "teacher.safetensors"])
def test_a_broken_file_in_the_folder_is_refused_with_a_remedy(
    labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight[0], folder)
    if name == "state.pt":
        (folder / "result.json").unlink()
    (folder / name).write_bytes((folder / name).read_bytes()[:-50])
    with pytest.raises(TeachError, match="remove"):
        teach(labelled, folder, TINY, seed=1, report=lambda _: None)


def test_the_folder_holds_what_it_promises(straight: tuple[Path, TeachResult]) -> None:
    folder, result = straight
    with (folder / "curve.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == columns(LOSSES)
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(1, 7)]
    assert [bool(row[4]) for row in rows[1:]] == [False, False, True, False, False, True]
    best = max(float(row[4]) for row in rows[1:] if row[4])
    assert result.held_out_iou == pytest.approx(best, abs=1e-6)
    metadata = read_metadata(result.checkpoint)
    assert metadata is not None
    assert metadata["held_out_iou"] == result.held_out_iou
    for name in ("held_out_boundary_iou", "temperature", "labelled_sha256", "init_sha256"):
        assert name in metadata
    assert metadata["temperature"] == result.temperature
    record = json.loads((folder / "result.json").read_text())
    assert record["sha256"] == result.sha256
    assert tuple(record["held_out"]) == result.held_out
    assert np.mean([one["iou"] for one in record["held_out"].values()]) == pytest.approx(result.held_out_iou)
    boundary = np.mean([one["boundary_iou"] for one in record["held_out"].values()])
    assert boundary == pytest.approx(result.held_out_boundary_iou)
    assert result.ece_after <= result.ece_before + 0.01
    assert set(result.trained_on) & set(result.held_out) == set()
    assert {path.name for path in folder.iterdir()} == {*FILES, "state.pt"}
    for name in ("curve.png", "overlays.jpg", "reliability.png"):
        assert min(decode_image((folder / name).read_bytes()).pixels.shape[:2]) > 100


def test_the_teacher_is_the_one_that_was_validated(labelled: Path, straight: tuple[Path, TeachResult]) -> None:
    _, result = straight
    assert held_out_iou(labelled, result) == pytest.approx(result.held_out_iou, abs=1e-3)


def held_out_iou(labelled: Path, result: TeachResult) -> float:
    teacher = load_teacher(result.checkpoint)
    scores = []
    for sample in read_labelled(labelled):
        if sample.name in result.held_out:
            image, mask, ignore = load_labelled(sample)
            scores.append(iou(teacher.predict([image])[0].probability >= 0.5, mask, ignore))
    return float(np.mean(scores))


@pytest.mark.slow
def test_a_short_training_beats_the_mean_mask(labelled: Path, tmp_path: Path) -> None:
    config = replace(
        TINY, steps=60, batch=6, validate_every=30, ema=0.9, warm_up=10, report_every=60, learning_rate=0.02
    )
    result = teach(labelled, tmp_path, config, seed=0, report=lambda _: None)
    samples = read_labelled(labelled)
    masks = {s.name: load_labelled(s)[1] for s in samples}
    mean = np.mean([masks[name] for name in result.trained_on], axis=0)
    prior = max(
        float(np.mean([iou(mean >= cut, masks[name]) for name in result.held_out]))
        for cut in np.linspace(0.05, 0.6, 12)
    )
    assert result.held_out_iou > prior + 0.2
    assert result.held_out_iou > 0.6


def test_pixels_to_ignore_teach_nothing(labelled: Path, tmp_path: Path) -> None:
    """Two sets that differ only where they are ignored give the same weights."""
    digests = []
    for fill in (0, 255):
        folder = tmp_path / str(fill)
        shutil.copytree(labelled, folder)
        (folder / "ignore").mkdir()
        ignore = np.zeros((72, 96), np.uint8)
        ignore[:, :48] = 255
        for path in sorted((folder / "masks").iterdir()):
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            mask[:, :48] = fill
            assert cv2.imwrite(str(path), mask)
            assert cv2.imwrite(str(folder / "ignore" / path.name), ignore)
        result = teach(folder, tmp_path / f"out{fill}", replace(TINY, steps=2), seed=0, report=lambda _: None)
        digests.append({k: v.sum().item() for k, v in load_state(result.checkpoint).items()})
    assert digests[0] == digests[1]


def test_images_that_do_not_fit_the_cache_change_nothing(
    labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path
) -> None:
    found = teach(labelled, tmp_path, replace(TINY, cache_bytes=40_000), seed=1, report=lambda _: None)
    assert found.sha256 == straight[1].sha256


def test_training_leaves_the_global_generator_and_the_threads_alone(labelled: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    teach(labelled, tmp_path, replace(TINY, steps=1), seed=1, report=lambda _: None)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_the_stored_temperature_is_applied_by_the_loaded_teacher(straight: tuple[Path, TeachResult]) -> None:
    teacher: Any = load_teacher(straight[1].checkpoint)
    assert teacher.temperature == straight[1].temperature


def test_compositions_change_what_is_learnt_and_are_resumed_to_the_same_bytes(labelled: Path, tmp_path: Path) -> None:
    """With pictures from a folder, too; where that folder lies does not matter."""
    rng = np.random.default_rng(0)
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for i in range(3):
            picture = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8) if place == "here" else None
            path = tmp_path / place / f"b{i}.png"
            assert (
                cv2.imwrite(str(path), picture)
                if picture is not None
                else shutil.copy(tmp_path / "here" / path.name, path)
            )
    composed = replace(TINY, compose=0.8, steps=3, backgrounds=str(tmp_path / "here"))
    first = teach(labelled, tmp_path / "a", composed, seed=1, report=lambda _: None)
    with pytest.raises(KilledError):
        teach(labelled, tmp_path / "b", composed, seed=1, report=killer(2))
    moved = replace(composed, backgrounds=str(tmp_path / "there"))
    second = teach(labelled, tmp_path / "b", moved, seed=1, report=lambda _: None)
    assert (tmp_path / "a" / "result.json").read_bytes() == (tmp_path / "b" / "result.json").read_bytes()
    assert first.sha256 == second.sha256
    plain = teach(labelled, tmp_path / "c", replace(TINY, steps=3), seed=1, report=lambda _: None)
    assert plain.sha256 != first.sha256


def test_training_starts_from_a_checkpoint_and_says_what_is_fresh(
    labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path
) -> None:
    checkpoint = straight[1].checkpoint
    config = replace(TINY, steps=1, init=str(checkpoint), learning_rate=1e-9)
    lines: list[str] = []
    result = teach(labelled, tmp_path / "same", config, seed=5, report=lines.append)
    assert lines[0].endswith("0 keys afresh")
    before, after = load_state(checkpoint), load_state(result.checkpoint)
    assert all(torch.allclose(after[k], v, atol=1e-6) for k, v in before.items())
    metadata = read_metadata(result.checkpoint)
    assert metadata is not None
    assert metadata["init_sha256"] == straight[1].sha256
    more = replace(config, model=replace(config.model, num_classes=3))
    lines.clear()
    teach(labelled, tmp_path / "more", more, seed=5, report=lines.append)
    assert lines[0].endswith("5 keys afresh")
    assert "  afresh: sem_seg_head.coarse_sem_seg_head.predictor.weight" in lines
    wider = replace(config, model=replace(config.model, fpn_out=32))
    with pytest.raises(TeachError, match=r"teach\.init .*model\.fpn_out is 16 in the file and 32 in the config"):
        teach(labelled, tmp_path / "wider", wider, seed=5, report=lambda _: None)


def test_lower_precision_trains_to_nearly_the_same(labelled: Path, tmp_path: Path) -> None:
    rows = {}
    for precision in ("32-true", "bf16-mixed"):
        config = replace(TINY, steps=2, precision=precision)  # type: ignore[arg-type]
        teach(labelled, tmp_path / precision, config, seed=1, report=lambda _: None)
        with (tmp_path / precision / "curve.csv").open() as file:
            rows[precision] = [float(row["loss_coarse"]) for row in csv.DictReader(file)]
    assert rows["32-true"] != rows["bf16-mixed"]
    assert rows["32-true"] == pytest.approx(rows["bf16-mixed"], rel=0.02)


def test_a_fold_that_is_ignored_as_a_whole_is_refused(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "labelled")
    (tmp_path / "labelled" / "ignore").mkdir()
    for path in (tmp_path / "labelled" / "masks").iterdir():
        assert cv2.imwrite(str(tmp_path / "labelled" / "ignore" / path.name), np.full((72, 96), 255, np.uint8))
    with pytest.raises(TeachError, match="held-out images are ignored"):
        teach(tmp_path / "labelled", tmp_path / "out", replace(TINY, steps=1), seed=0, report=lambda _: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(labelled: Path, tmp_path: Path) -> None:
    for change, named in (
        ({"accelerator": "cuda"}, "torch finds 0 GPUs"),
        ({"accelerator": "auto", "precision": "16-mixed"}, "needs a GPU"),
    ):
        changed = replace(TINY, **change)  # type: ignore[arg-type]
        with pytest.raises(TeachError, match=named):
            teach(labelled, tmp_path / "out", changed, seed=0, report=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_auto_takes_the_cpu_where_there_is_no_gpu_and_trains_alike(
    labelled: Path, straight: tuple[Path, TeachResult], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        assert accelerator_of(Devices(accelerator="auto")) == "cuda"
        return
    result = teach(labelled, tmp_path, replace(TINY, accelerator="auto"), seed=1, report=lambda _: None)
    assert {k: v.sum().item() for k, v in load_state(result.checkpoint).items()} == {
        k: v.sum().item() for k, v in load_state(straight[1].checkpoint).items()
    }


def test_an_unusable_labelled_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelledError):
        teach(tmp_path / "absent", tmp_path / "out", TINY, seed=0, report=lambda _: None)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, QUICK) for step in range(QUICK.steps)]
    peak = QUICK.warm_up - 1
    assert rates[peak] == pytest.approx(QUICK.learning_rate)
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak + 1 :]))
    assert rates[-1] < 0.001 * QUICK.learning_rate


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"ema": 1.0},
     {"compose": 2.0}, {"held_out_one_in": 1}, {"checkpoint_seconds": -1.0}, {"devices": 0}, {"devices": 9},
     {"model": replace(QUICK.model, norm="FrozenBN")}, {"precision": "16-mixed"}, {"precision": "64"},
     {"accelerator": "tpu"},
     {"model": replace(QUICK.model, person_classes=(0,))}],
    ids=str,
)  # fmt: skip
def test_an_impossible_configuration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"teach\."):
        replace(TINY, **change)


def test_a_single_crop_of_one_pixel_in_the_last_stage_is_refused_before_it_fails() -> None:
    small = replace(TINY.augment, crop=32)
    assert replace(TINY, augment=small, batch=2).augment.crop == 32
    with pytest.raises(ValueError, match=r"teach\.augment\.crop must be >= 64 where a device sees one crop"):
        replace(TINY, augment=small, batch=1)
    with pytest.raises(ValueError, match="one crop"):
        replace(TINY, augment=small, batch=3, devices=2)
