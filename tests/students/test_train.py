"""Laws of a training: same bits after a kill, predictions alone, and a student that learns."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from students.data import Example
from students.losses import segmentation_loss
from students.model import StudentConfig, build_student, load_student, save_student
from students.train import Ensemble, StudentTrainConfig, train_student

TINY = StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5)
SHORT = StudentTrainConfig(steps=9, batch=4, side=64, save_seconds=0, student=TINY)

KILLED = """
import sys
from pathlib import Path
import torch
from tests.students.test_train import SHORT, ellipses
from students.train import train_student
torch.set_num_threads(1)
train_student(ellipses(12, 0), SHORT, seed=3, folder=Path(sys.argv[1]), report=lambda line: print(line, flush=True))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ellipses(count: int, seed: int, side: int = 72) -> list[Example]:
    """Bright or dark textured ellipses on a ramp, of changing size, place and image shape."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        height, width = [(side, side), (side, side * 5 // 3)][i % 2]
        target = np.zeros((height, width), np.uint8)
        centre = (int(rng.uniform(0.3, 0.7) * width), int(rng.uniform(0.3, 0.7) * height))
        axes = (int(rng.uniform(0.12, 0.28) * side), int(rng.uniform(0.2, 0.4) * side))
        cv2.ellipse(target, centre, axes, float(rng.uniform(-30, 30)), 0, 360, 1, -1)
        ramp = np.linspace(rng.uniform(40, 120), rng.uniform(40, 120), width)[None, :, None]
        colour = rng.uniform(140, 250, 3)
        image = np.where(target[..., None] > 0, colour, ramp) + rng.normal(0, 12, (height, width, 3))
        made.append(Example(image=np.clip(image, 0, 255).astype(np.uint8), target=target, gold=i % 5 == 0))
    return made


def _bytes(paths: tuple[Path, ...]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_a_training_killed_and_continued_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = train_student(ellipses(12, 0), SHORT, seed=3, folder=tmp_path / "whole")
    broken = tmp_path / "broken"
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, str(script), str(broken)], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step 4/"):
            child.send_signal(signal.SIGKILL)
            break
    child.wait(timeout=60)
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert (broken / "state.pt").exists()
    lines: list[str] = []
    again = train_student(ellipses(12, 0), SHORT, seed=3, folder=broken, report=lines.append)
    assert not lines[0].startswith(("step 1/", "step 2/", "step 3/"))
    assert _bytes(again) == _bytes(whole)
    assert not (broken / "state.pt").exists()


def test_a_finished_training_returns_at_once_and_another_one_is_refused_its_state(tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818 (not an error, an interruption)
        pass

    def kill(line: str) -> None:
        if line.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        train_student(ellipses(6, 0), SHORT, seed=1, folder=tmp_path, report=kill)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 5
    with pytest.raises(ValueError, match="is of another training"):
        train_student(ellipses(6, 0), SHORT, seed=2, folder=tmp_path)
    first = train_student(ellipses(6, 0), SHORT, seed=1, folder=tmp_path)
    lines: list[str] = []
    started = time.monotonic()
    assert train_student(ellipses(6, 0), SHORT, seed=1, folder=tmp_path, report=lines.append) == first
    assert lines == []
    assert time.monotonic() - started < 2


def test_a_spoilt_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"cannot be read .*: remove it"):
        train_student(ellipses(3, 0), SHORT, seed=1, folder=tmp_path)


def test_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 example"):
        train_student([], SHORT, seed=1, folder=tmp_path)


def test_training_leaves_threads_and_global_random_state_alone(tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    train_student(ellipses(4, 0), SHORT, seed=1, folder=tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("steps", "late"), [(400, (320, 360, 400)), (9, (7, 8, 9)), (3, (1, 2, 3))])
def test_late_checkpoints_lie_in_the_last_fifth(steps: int, late: tuple[int, ...]) -> None:
    assert StudentTrainConfig(steps=steps).late_steps() == late


@pytest.mark.parametrize("changes", [{"steps": 2}, {"batch": 0}, {"lr": 0.0}, {"ema": 1.0}, {"side": 32}])
def test_an_impossible_recipe_is_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        StudentTrainConfig(**changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    torch.set_num_threads(1)
    config = StudentTrainConfig(steps=110, batch=8, side=64, lr=0.01, ema=0.95, student=TINY)
    paths = train_student(ellipses(60, 1), config, seed=0, folder=tmp_path_factory.mktemp("student"))
    return Ensemble.load(paths)


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_student_beats_the_mean_mask_on_held_out_ellipses(learnt: Ensemble) -> None:
    held_out = ellipses(20, 99)
    truths = [example.target.astype(np.uint8) > 0 for example in held_out]
    shapes = {truth.shape for truth in truths}
    seen = [example.target.astype(np.float64) for example in ellipses(60, 1)]
    mean = {s: np.mean([t for t in seen if t.shape == s], axis=0) for s in shapes}
    prior = np.mean([max(_iou(mean[t.shape] > level, t) for level in (0.2, 0.35, 0.5)) for t in truths])
    found = learnt.predict([example.image for example in held_out])
    student = np.mean([_iou(p.probability > 0.5, t) for p, t in zip(found, truths, strict=True)])
    assert student > prior + 0.2
    assert student > 0.75


def test_a_prediction_does_not_depend_on_its_mates_and_has_the_images_own_size(learnt: Ensemble) -> None:
    images = [e.image for e in ellipses(5, 7)] + [np.zeros((1, 1, 3), np.uint8), np.zeros((301, 97, 3), np.uint8)]
    together, backwards = learnt.predict(images), learnt.predict(images[::-1])[::-1]
    for image, one, other in zip(images, together, backwards, strict=True):
        alone = learnt.predict([image])[0]
        assert one.probability.shape == image.shape[:2]
        assert one.probability.dtype == np.float32
        assert 0 <= one.probability.min() <= one.probability.max() <= 1
        assert 0 <= one.stability <= 0.5
        for same in (other, alone):
            assert np.array_equal(one.probability, same.probability)
            assert one.stability == same.stability


def test_a_mirrored_image_gives_the_mirrored_prediction(learnt: Ensemble) -> None:
    image = ellipses(1, 8, side=64)[0].image
    one, other = learnt.predict([image, image[:, ::-1].copy()])
    assert np.allclose(one.probability, other.probability[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("config", [TINY, StudentConfig(encoder="fbnetv3_b", width=0.35)])
def test_folding_the_normalisation_keeps_the_function(config: StudentConfig) -> None:
    student = build_student(config, 4)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = segmentation_loss(
        student.train()(images),
        torch.zeros(4, 1, 64, 64),
        torch.zeros(4, 1, 64, 64, dtype=torch.bool),
        torch.ones(4),
        1.0,
    )
    assert math.isfinite(loss.item())
    student.eval()
    pixels = (images[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    both = torch.from_numpy(np.stack((pixels, pixels[:, ::-1]))).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        plain = torch.sigmoid(student(both)[:, 0])
    expected = (plain[0] + plain[1].flip(-1)) / 2
    found = Ensemble([student], 64).predict([pixels])[0].probability
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 student"):
        Ensemble.load([])
    with pytest.raises(ValueError, match="at least 1 student"):
        Ensemble([], 128)


def test_a_student_with_an_encoder_of_timm_is_trained_like_any_other(tmp_path: Path) -> None:
    config = replace(SHORT, steps=3, student=StudentConfig(encoder="fbnetv3_b", width=0.35, padding="zeros"))
    paths = train_student(ellipses(4, 0), config, seed=1, folder=tmp_path)
    assert load_student(paths[0]).config == config.student
    prediction = Ensemble.load(paths).predict([ellipses(1, 0)[0].image])[0]
    assert np.isfinite(prediction.probability).all()


def test_checkpoints_of_different_sides_are_no_ensemble(tmp_path: Path) -> None:
    paths = [tmp_path / f"{side}.safetensors" for side in (64, 96)]
    for path in paths:
        save_student(path, build_student(TINY, 0), TINY, {"side": path.stem})
    with pytest.raises(ValueError, match="one training side"):
        Ensemble.load(paths)
