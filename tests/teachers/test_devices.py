"""Two processes on one CPU train as one does; only the first writes; the caller learns what went wrong."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from manifests.labelled import labelled_sha256, read_labelled
from teachers.augment import AugmentConfig
from teachers.crops import Feed, Scenes
from teachers.recipe import TeachConfig, TeachError
from teachers.record import Plan, split
from teachers.train import _Run, _train, teach
from training.devices import DeviceError, Devices, Report, spread

QUICK = TeachConfig.quick()
CONFIG = replace(
    QUICK,
    model=replace(QUICK.model, stem_out=8, res2_out=8, fpn_out=16, point_fc_dim=16, min_size_test=64, max_size_test=96),
    augment=AugmentConfig(crop=64, short_side=56),
    steps=4,
    batch=4,
    points=128,
    warm_up=2,
    learning_rate=1e-3,
    compose=0.3,
    validate_every=2,
    report_every=1,
    checkpoint_seconds=0.0,
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright discs; half of the images are ignored in a part that differs, so that the shares of a batch differ."""
    folder = tmp_path_factory.mktemp("labelled")
    for part in ("images", "masks", "ignore"):
        (folder / part).mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        mask = np.zeros((72, 96), np.uint8)
        cv2.circle(mask, (int(rng.integers(20, 76)), int(rng.integers(20, 52))), 15, (255,), -1)
        image = np.clip(rng.normal(60, 20, (72, 96, 3)) + 120 * (mask > 0)[:, :, None], 0, 255).astype(np.uint8)
        ignore = np.zeros((72, 96), np.uint8)
        ignore[:, : 8 * (i % 2) * (i // 2)] = 255
        for part, picture in (("images", image), ("masks", mask), ("ignore", ignore)):
            assert cv2.imwrite(str(folder / part / f"s{i:02}.png"), picture)
    return folder


def silent(_: str) -> None:
    pass


def train_and_keep(plan: Plan, labelled: Path, folder: Path, fabric: Any, report: Report) -> None:
    """What a process of a training does, and each leaves its weights, its losses and the number of its rows."""
    rank = fabric.global_rank
    scenes = Scenes(read_labelled(labelled), plan.trained_on, (), plan.config)
    run = _Run(plan, fabric, report)
    _train(run, Feed(scenes, plan.seed, range(rank, plan.config.batch, fabric.world_size), 0), report)
    torch.save({"model": run.model.state_dict(), "average": run.average.state_dict(), "rows": run.rows},
               folder / f"{rank}.pt")  # fmt: skip


def weights(labelled: Path, folder: Path, devices: int) -> list[dict[str, Any]]:
    config = replace(CONFIG, devices=devices)
    samples = read_labelled(labelled)
    trained_on, held_out = split([s.name for s in samples], config.held_out_one_in)
    folder.mkdir()
    (folder / "out").mkdir()
    plan = Plan(config=config, seed=3, digests={"labelled": labelled_sha256(samples)}, output=folder / "out",
                trained_on=trained_on, held_out=held_out)  # fmt: skip
    spread(partial(train_and_keep, plan, labelled, folder), Devices(devices=config.devices, section="teach"), silent)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_end_with_equal_weights_that_are_those_of_one(labelled: Path, tmp_path: Path) -> None:
    """Equal to each other bit by bit, and to one process up to the rounding of sums that AdamW enlarges: 1e-3."""
    (one,) = weights(labelled, tmp_path / "one", 1)
    first, second = weights(labelled, tmp_path / "two", 2)
    for part in ("model", "average"):
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
        apart = sum(float((value - first[part][name]).square().sum()) for name, value in one[part].items())
        size = sum(float(value.square().sum()) for value in one[part].values())
        assert (apart / size) ** 0.5 < 1e-3
    assert (len(first["rows"]), len(second["rows"])) == (CONFIG.steps, 0)
    assert first["rows"][0] == pytest.approx(one["rows"][0], rel=1e-5, nan_ok=True)  # equal weights, equal losses
    assert first["rows"][-1][:3] == pytest.approx(one["rows"][-1][:3], rel=1e-2)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_two_processes_are_ended_with_the_caller_and_go_on(labelled: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("step 2 "):
            raise KilledError

    config = replace(CONFIG, devices=2)
    with pytest.raises(KilledError):
        teach(labelled, tmp_path, config, seed=3, report=stop)
    assert not (tmp_path / "result.json").exists()
    lines: list[str] = []
    result = teach(labelled, tmp_path, config, seed=3, report=lines.append)
    assert lines[0].startswith("going on from step ")
    assert result.steps == CONFIG.steps


def fail_in_the_second(fabric: Any, report: Report) -> None:
    report("begun")
    if fabric.global_rank == 1:
        raise TeachError("the second of them stumbled")
    fabric.barrier()


@pytest.mark.slow
def test_what_stops_one_process_stops_all_and_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="process 1 of 2: the second of them stumbled"):
        spread(fail_in_the_second, Devices(devices=2), silent)
    assert "lightning" not in "".join(capfd.readouterr()).lower()


def test_one_device_says_nothing_on_the_terminal(
    labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, steps=1, precision="bf16-mixed")
    teach(labelled, tmp_path, config, seed=3, report=silent)
    assert capfd.readouterr() == ("", "")
    shutil.rmtree(tmp_path)
