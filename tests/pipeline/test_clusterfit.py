"""Laws of ClusterFit: killed and resumed gives equal bytes, what can be told apart is learnt, features are unit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from pipeline import clusterfit
from pipeline.clusterfit import ClusterFitConfig, ClusterFitNetwork, held_out_rows, squares, train
from pipeline.embed import encode_jpeg
from pipeline.errors import StageError
from tests.pipeline.media import texture

SMALL = ClusterFitConfig(side=32, steps=6, batch=8)


def pictures(count: int, side: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Three kinds that mirroring, cropping and jitter do not confuse: red, green stripes, blue checkers; with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side] // 4 % 2
    shapes = np.stack([np.ones((side, side)), rows, (rows + columns) % 2])
    labels = np.arange(count) % 3
    out = np.zeros((count, side, side, 3))
    for index, label in enumerate(labels):
        out[index, :, :, label] = shapes[label] * 200
    return (out + rng.uniform(0, 50, out.shape)).astype(np.uint8), labels


def trained(folder: Path, config: ClusterFitConfig = SMALL, seed: int = 0) -> bytes:
    folder.mkdir(exist_ok=True)
    x, y = pictures(24, config.side)
    return train(x, y, config, seed=seed, folder=folder).read_bytes()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ClusterFitNetwork:
    folder = tmp_path_factory.mktemp("network")
    trained(folder)
    return ClusterFitNetwork(folder / "clusterfit.safetensors")


# Training -------------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    one = trained(tmp_path / "one")
    assert trained(tmp_path / "two") == one
    assert trained(tmp_path / "three", seed=1) != one
    assert trained(tmp_path / "four", ClusterFitConfig(side=32, steps=6, batch=8, lr=0.05)) != one


def test_the_seed_also_chooses_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = clusterfit._fresh
    monkeypatch.setattr(clusterfit, "_fresh", lambda config, classes, _: fresh(config, classes, 0))
    assert trained(tmp_path / "one", seed=0) != trained(tmp_path / "two", seed=1)


@pytest.mark.parametrize("killed", [[0], [3], [1, 4], [5]])
def test_a_training_killed_and_resumed_gives_equal_bytes(tmp_path: Path, killed: list[int]) -> None:
    whole = trained(tmp_path / "whole")
    x, y = pictures(24)
    seen: list[int] = []

    def stop_at(last: int) -> None:
        def report(step: int, _: float) -> None:
            seen.append(step)
            if step == last:
                raise KeyboardInterrupt

        train(x, y, SMALL, seed=0, folder=tmp_path, checkpoint_seconds=0, report=report)

    for step in killed:
        with pytest.raises(KeyboardInterrupt):
            stop_at(step)
        assert not (tmp_path / "clusterfit.safetensors").exists()
    stop_at(-1)
    assert sorted(set(seen)) == list(range(6))
    assert len(seen) == 6 + len(killed)
    assert (tmp_path / "clusterfit.safetensors").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["clusterfit.safetensors"]


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole = trained(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("done before")

    x, y = pictures(24)
    assert train(x, y, SMALL, seed=0, folder=tmp_path, report=never).read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04" + bytes(50)])
def test_a_damaged_state_is_named_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(StageError, match=r"state.pt is damaged \(.*\); remove it and run again"):
        trained(tmp_path)


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    np_before = str(np.random.get_state())  # noqa: NPY002
    trained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert str(np.random.get_state()) == np_before  # noqa: NPY002


def test_kinds_that_differ_are_learnt(tmp_path: Path) -> None:
    config = ClusterFitConfig(side=32, steps=60, batch=24)
    x, y = pictures(60)
    losses: list[float] = []
    path = train(x, y, config, seed=0, folder=tmp_path, report=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-10:]) < 0.5 * np.log(3)
    features = ClusterFitNetwork(path)(x)
    middles = np.stack([features[:30][y[:30] == label].mean(axis=0) for label in range(3)])
    assert ((features[30:] @ middles.T).argmax(axis=1) == y[30:]).mean() > 0.9


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"ClusterFit diverged at step \d+ \(loss nan\); lower cluster.fit.lr"):
        trained(tmp_path, ClusterFitConfig(side=32, steps=40, batch=8, lr=1e30))
    assert not (tmp_path / "clusterfit.safetensors").exists()


def test_one_picture_is_enough(tmp_path: Path) -> None:
    x, _ = pictures(1)
    path = train(x, np.zeros(1, np.int64), SMALL, seed=0, folder=tmp_path)
    assert np.isfinite(ClusterFitNetwork(path)(x)).all()


def test_a_process_killed_again_and_again_goes_on_to_equal_bytes(tmp_path: Path) -> None:
    """SIGKILL while states are written after every step; early stopping on, so the best weights are part of them."""
    code = (
        "import sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from tests.pipeline.test_clusterfit import STOPPING, noise; from pipeline.clusterfit import train\n"
        "def said(step, _): print(step, flush=True); time.sleep(float(sys.argv[2]))\n"
        "train(*noise(), STOPPING, seed=0, folder=Path(sys.argv[1]), checkpoint_seconds=0, report=said)\n"
    )

    def start(folder: Path, pause: float) -> "subprocess.Popen[str]":
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", code, str(folder), str(pause)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    for killed_at in (1, 5):
        with start(tmp_path / "killed", 0.05) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) == killed_at:
                    process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "clusterfit.safetensors").exists()
    steps = {}
    for name in ("killed", "whole"):
        with start(tmp_path / name, 0) as process:
            assert process.stdout is not None
            steps[name] = [int(line) for line in process.stdout]
        assert process.returncode == 0
    assert steps["killed"][0] > 1
    assert steps["killed"][-1] == steps["whole"][-1]
    found, expected = (tmp_path / name / "clusterfit.safetensors" for name in ("killed", "whole"))
    assert found.read_bytes() == expected.read_bytes()


# Early stop -----------------------------------------------------------------------------------------------------------

STOPPING = ClusterFitConfig(side=32, steps=60, batch=8, measure_every=2, patience=3, held_out=0.25)


def noise() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures of noise with labels that nothing tells."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 32, 32, 3), np.uint8), rng.integers(0, 5, 40)


def told(path: Path) -> dict[str, Any]:
    return ClusterFitNetwork(path).training


@given(st.lists(st.integers(0, 1 << 63), min_size=1, max_size=80, unique=True), st.floats(0, 0.5))
def test_the_smallest_hashes_are_held_out_whatever_the_order(keys: list[int], share: float) -> None:
    rows = held_out_rows(np.array(keys, np.uint64), share)
    assert len(rows) == (round(share * len(keys)) if len(keys) >= 20 else 0)
    assert sorted(keys)[: len(rows)] == sorted(keys[row] for row in rows)
    assert rows.tolist() == sorted(rows.tolist())


def test_no_more_is_held_out_than_measures_well() -> None:
    assert len(held_out_rows(np.arange(20_000).astype(np.uint64), 0.1)) == 512


def test_what_is_held_out_is_not_learnt(tmp_path: Path) -> None:
    x, y = noise()
    keys = np.arange(40).astype(np.uint64)
    other = x.copy()
    other[:10] = 255 - other[:10]
    losses: dict[str, list[float]] = {"one": [], "two": []}
    for name, shown in (("one", x), ("two", other)):
        (tmp_path / name).mkdir()
        config = ClusterFitConfig(side=32, steps=6, batch=8, held_out=0.25, measure_every=3)

        def report(_: int, loss: float, name: str = name) -> None:
            losses[name].append(loss)

        path = train(shown, y, config, seed=0, folder=tmp_path / name, keys=keys, report=report)
        assert (told(path)["trained_on"], told(path)["held_out"]) == (30, 10)
    assert losses["one"] == losses["two"]
    curves = [told(tmp_path / name / "clusterfit.safetensors")["curve"] for name in losses]
    assert curves[0] != curves[1]


def test_a_training_that_learns_nothing_ends_early_with_its_best_weights(tmp_path: Path) -> None:
    x, y = noise()
    keys = np.arange(40).astype(np.uint64)
    path = train(x, y, STOPPING, seed=0, folder=tmp_path, keys=keys)
    facts = told(path)
    assert facts["stopped_by"] == "patience"
    assert facts["early_stop"]
    assert facts["steps"] < 60
    losses = [point["held_out_loss"] for point in facts["curve"]]
    best = int(np.argmin(losses))
    assert [point["step"] for point in facts["curve"]] == list(range(2, facts["steps"] + 1, 2))
    assert facts["kept_step"] == 2 * (best + 1) == facts["steps"] - 2 * 3
    assert held_out_loss(path, x[:10], y[:10]) == pytest.approx(losses[best], rel=1e-4)


@torch.no_grad()
def held_out_loss(path: Path, pictures: NDArray[np.uint8], targets: NDArray[np.int64]) -> float:
    """Mean cross-entropy of the saved weights, by hand."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["clusterfit"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    model = timm.create_model(meta["network"], num_classes=meta["classes"]).eval()
    model.load_state_dict(state)
    logits = model(((torch.from_numpy(pictures).float() - 118) / 60).permute(0, 3, 1, 2))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets)))


def test_a_training_that_learns_takes_all_its_steps(tmp_path: Path) -> None:
    x, y = pictures(60)
    facts = told(train(x, y, ClusterFitConfig(side=32, steps=60, batch=24), seed=0, folder=tmp_path))
    assert (facts["stopped_by"], facts["steps"]) == ("steps", 60)
    assert [point["step"] for point in facts["curve"]] == [20, 40, 60]
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]
    assert facts["curve"][-1]["held_out_accuracy"] > 0.5


@pytest.mark.parametrize(("count", "share", "held_out"), [(19, 0.5, 0), (20, 0.5, 10), (40, 0.0, 0)])
def test_a_handful_of_pictures_trains_to_its_end(tmp_path: Path, count: int, share: float, held_out: int) -> None:
    x, y = pictures(count)
    config = ClusterFitConfig(side=32, steps=3, batch=8, held_out=share, measure_every=2)
    facts = told(train(x, y, config, seed=0, folder=tmp_path))
    assert (facts["held_out"], facts["trained_on"], facts["early_stop"]) == (held_out, count - held_out, held_out > 0)
    assert [("held_out_loss" in point) for point in facts["curve"]] == [held_out > 0] * 2
    assert [point["step"] for point in facts["curve"]] == [2, 3]


# Precision ------------------------------------------------------------------------------------------------------------


def test_bfloat16_learns_with_weights_of_32_bit(tmp_path: Path) -> None:
    x, y = pictures(60)
    config = ClusterFitConfig(side=32, steps=60, batch=24, precision="bf16")
    facts = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        facts[name] = told(train(x, y, config, seed=0, folder=tmp_path / name))
    assert facts["one"] == facts["two"]
    assert facts["one"]["precision"] == "bf16"
    assert facts["one"]["curve"][-1]["loss"] < 0.5 * np.log(3)
    path = tmp_path / "one" / "clusterfit.safetensors"
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32, torch.int64}  # noqa: SIM118
    assert trained(tmp_path / "32") != trained(
        tmp_path / "16", ClusterFitConfig(side=32, steps=6, batch=8, precision="bf16")
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_refused_and_one_that_may_be_is_not_missed(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"cluster\.fit\.accelerator is 'cuda', but torch finds no GPU"):
        trained(tmp_path / "cuda", ClusterFitConfig(side=32, steps=6, batch=8, accelerator="cuda"))
    assert trained(tmp_path / "auto", ClusterFitConfig(side=32, steps=6, batch=8, accelerator="auto")) == trained(
        tmp_path / "cpu"
    )


# Features -------------------------------------------------------------------------------------------------------------


def test_features_are_unit_and_know_their_dimension(network: ClusterFitNetwork) -> None:
    x, _ = pictures(10)
    features = network(x)
    assert features.dtype == np.float32
    assert features.shape == (10, network.dimension)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert network.side == 32


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_picture_has_its_features_whatever_the_batch(network: ClusterFitNetwork, batch: int) -> None:
    x, _ = pictures(10)
    np.testing.assert_allclose(network(x, batch), network(x), atol=1e-5)


def test_no_pictures_have_no_features(network: ClusterFitNetwork) -> None:
    assert network(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, network.dimension)


def test_thumbnails_become_squares() -> None:
    shapes = [(40, 64), (64, 40), (32, 32), (8, 128)]
    found = squares([encode_jpeg(texture(i, *shape), 95) for i, shape in enumerate(shapes)], 32)
    assert found.shape == (4, 32, 32, 3)
    assert found.dtype == np.uint8
    assert np.abs(found[2].astype(int) - texture(2, 32, 32)).mean() < 6
    assert squares([], 32).shape == (0, 32, 32, 3)
    with pytest.raises(StageError, match="thumbnail does not decode"):
        squares([b"no picture"], 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 31}, "side must be >= 32"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"batch": 1}, "batch must be >= 2"),
        ({"lr": float("nan")}, "lr must be > 0"),
        ({"held_out": 0.6}, "held_out must be between 0 and 0.5, got 0.6"),
        ({"held_out": float("nan")}, "held_out must be between 0 and 0.5, got nan"),
        ({"measure_every": 0}, "measure_every must be >= 1"),
        ({"patience": 0}, "patience must be >= 1"),
        ({"precision": "16"}, "precision must be one of 32, bf16, got '16'"),
        ({"accelerator": "tpu"}, "accelerator must be one of cpu, cuda, auto, got 'tpu'"),
        ({"network": "nosuch"}, "'nosuch' is no timm model"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterFitConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [1, 7, 63])
def test_where_a_picture_stands_changes_no_bit_of_its_features(network: ClusterFitNetwork, start: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, (70, network.side, network.side, 3), np.uint8)
    assert np.array_equal(network(x)[start:], network(x[start:]))
