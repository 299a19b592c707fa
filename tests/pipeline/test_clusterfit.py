"""Laws of ClusterFit: killed and resumed gives equal bytes, what can be told apart is learnt, features are unit."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import clusterfit
from pipeline.clusterfit import ClusterFitConfig, ClusterFitNetwork, squares, train
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
    import torch

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
        ({"network": "nosuch"}, "'nosuch' is no timm model"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterFitConfig(**settings)  # type: ignore[arg-type]
