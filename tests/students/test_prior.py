"""Laws of priors and of two-step rollouts."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.masks import iou
from students.prior import (
    KINDS,
    Kind,
    PriorConfig,
    Soft,
    draw_prior,
    moved,
    nearest_valid,
    network_input,
    own_prior,
    prior_generator,
    prior_of_kind,
    rollout,
    still_motion,
)
from students.yuv import rgb_to_yuv

MADE = KINDS[:-1]
SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))
MASKS = arrays(np.float32, SIDES, elements=st.sampled_from([0.0, 0.0, 0.25, 0.75, 1.0, 1.0]))
SEEDS = st.integers(0, 2**32)
CONFIG = PriorConfig()
OWN = PriorConfig(**(dict.fromkeys(MADE, 0.0) | {"own": 1.0}))
STILL = {"still_turn": 0.0, "still_zoom": 0.0, "still_shift": 0.0, "shift": 0.0, "zoom": 0.0}


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _disc(height: int = 60, width: int = 80, radius: float = 14, at: tuple[float, float] = (30, 40)) -> Soft:
    """A person well inside the frame, with a soft outline."""
    y, x = np.mgrid[:height, :width]
    return np.clip(radius - np.hypot(y - at[0], x - at[1]) + 0.5, 0, 1).astype(np.float32)


def _centre(mask: Soft) -> NDArray[np.float64]:
    return np.argwhere(mask > 0.5).mean(axis=0)


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(MASKS, st.sampled_from(MADE), SEEDS)
def test_a_prior_is_a_new_mask_of_the_same_shape_in_0_to_1(mask: Soft, kind: Kind, seed: int) -> None:
    before = mask.copy()
    made = prior_of_kind(kind, mask, CONFIG, _rng(seed))
    assert made.shape == mask.shape
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    assert not np.shares_memory(made, mask)
    assert np.array_equal(mask, before)


@given(MASKS, SEEDS)
def test_each_kind_is_what_it_is_called(mask: Soft, seed: int) -> None:
    made = {kind: prior_of_kind(kind, mask, CONFIG, _rng(seed)) for kind in MADE}
    assert not made["empty"].any()
    assert bool((made["full"] == 1).all())
    assert np.array_equal(made["true"], mask)
    assert bool((made["thin"] <= mask).all())
    assert bool((mask <= made["thick"]).all())
    assert bool(((made["torn"] == mask) | (made["torn"] == 0)).all())
    if mask.max() > 0.5:
        assert made["torn"].sum() < mask.sum()


@given(SIDES, st.sampled_from(MADE), SEEDS)
def test_a_frame_without_a_person_has_a_prior_without_one(size: tuple[int, int], kind: Kind, seed: int) -> None:
    made = prior_of_kind(kind, np.zeros(size, np.float32), CONFIG, _rng(seed))
    assert made.any() == (kind == "full")


@given(MASKS, MASKS, SEEDS)
def test_a_stale_prior_is_the_earlier_mask_where_there_is_one(mask: Soft, other: Soft, seed: int) -> None:
    earlier = np.resize(other, mask.shape)
    assert np.array_equal(prior_of_kind("stale", mask, CONFIG, _rng(seed), earlier), earlier)
    for kind in set(MADE) - {"stale"}:
        alone = prior_of_kind(kind, mask, CONFIG, _rng(seed))
        assert np.array_equal(prior_of_kind(kind, mask, CONFIG, _rng(seed), earlier), alone)


@given(SEEDS)
def test_a_shifted_person_keeps_its_size_and_goes_no_further_than_the_limit(seed: int) -> None:
    mask = _disc()
    made = prior_of_kind("shifted", mask, CONFIG, _rng(seed))
    assert made.sum() == pytest.approx(mask.sum(), rel=0.01)
    reach = CONFIG.shift * np.array(mask.shape)
    assert bool((np.abs(_centre(made) - _centre(mask)) <= reach + 0.5).all())


@given(SEEDS, st.floats(18, 42), st.floats(22, 58))
def test_a_scaled_person_keeps_its_place_and_changes_size_within_the_limit(seed: int, y: float, x: float) -> None:
    mask = _disc(radius=9, at=(y, x))
    made = prior_of_kind("scaled", mask, CONFIG, _rng(seed))
    assert np.abs(_centre(made) - _centre(mask)).max() < 0.6
    assert abs(math.log(made.sum() / mask.sum())) <= 2 * CONFIG.zoom + 0.02


@given(SEEDS)
def test_a_still_moves_little(seed: int) -> None:
    mask = _disc()
    made = prior_of_kind("stale", mask, CONFIG, _rng(seed)) > 0.5
    truth = mask > 0.5
    assert (made & truth).sum() / (made | truth).sum() > 0.5


@given(MASKS, st.sampled_from(["stale", "shifted", "scaled"]), SEEDS)
def test_without_strength_nothing_moves(mask: Soft, kind: Kind, seed: int) -> None:
    made = prior_of_kind(kind, mask, PriorConfig(**STILL), _rng(seed))
    assert np.abs(made - mask).max() < 1e-6


@given(SIDES, SEEDS)
def test_a_still_and_its_mask_move_together(size: tuple[int, int], seed: int) -> None:
    mask = _rng(seed).random(size).astype(np.float32)
    image = np.stack((mask, mask**2, 1 - mask), axis=-1)
    matrix = still_motion(*size, CONFIG, _rng(seed))
    assert np.array_equal(moved(image, matrix)[..., 0], moved(mask, matrix))
    assert moved(np.zeros((*size, 3), np.uint8), matrix).dtype == np.uint8


def test_a_person_cut_by_the_frame_goes_on_outside() -> None:
    mask = np.zeros((40, 40), np.float32)
    mask[10:, 10:30] = 1
    up = np.array([[1, 0, 0], [0, 1, -8]], np.float64)
    assert bool((moved(mask, up)[-1] == mask[-1]).all())


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kinds_come_as_often_as_they_should() -> None:
    n, mask = 6000, _disc(12, 16, 4, (6, 8))
    seen = Counter(draw_prior(mask, CONFIG, prior_generator(3, str(i), 0)).kind for i in range(n))
    for kind in KINDS:
        p = getattr(CONFIG, kind)
        assert abs(seen[kind] - n * p) < 5 * math.sqrt(n * p * (1 - p)), kind
    assert CONFIG.empty == 0.3


def test_a_kind_without_probability_is_never_drawn() -> None:
    config = PriorConfig(**(dict.fromkeys(KINDS, 0.0) | {"empty": 0.5, "torn": 0.5}))
    mask = _disc(12, 16, 4, (6, 8))
    assert {draw_prior(mask, config, prior_generator(0, str(i), 1)).kind for i in range(200)} == {"empty", "torn"}


@given(st.integers(0, 99), st.text(max_size=5), st.integers(0, 99))
def test_a_prior_is_a_function_of_seed_sample_and_epoch(seed: int, sample: str, epoch: int) -> None:
    mask = _disc()
    one, other = (draw_prior(mask, CONFIG, prior_generator(seed, sample, epoch)) for _ in range(2))
    assert one.kind == other.kind
    assert np.array_equal(one.mask, other.mask)
    numbers = {
        prior_generator(*key).random()
        for key in ((seed, sample, epoch), (seed + 1, sample, epoch), (seed, sample + "1", epoch), (seed, sample, -1))
    }
    assert len(numbers) == 4


def test_own_starts_as_any_other_of_the_earlier_frame() -> None:
    mask, earlier = _disc(), _disc(at=(20, 25))
    half = {kind: getattr(CONFIG, kind) / 2 for kind in MADE} | {"own": 0.6}
    config = PriorConfig(**half)
    drawn = [draw_prior(mask, config, prior_generator(0, str(i), 0), earlier) for i in range(600)]
    starts = [prior.mask for prior in drawn if prior.kind == "own"]
    assert len(starts) > 300
    empty = np.mean([not start.any() for start in starts])
    assert abs(empty - 0.3 / 0.8) < 5 * math.sqrt(0.24 / len(starts))
    assert any(np.array_equal(start, earlier) for start in starts)
    assert not any(np.array_equal(start, mask) for start in starts)


def test_own_without_other_kinds_starts_empty() -> None:
    prior = draw_prior(_disc(), OWN, _rng(0))
    assert prior.kind == "own"
    assert not prior.mask.any()


def test_impossible_configs_masks_and_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must sum to 1, got 1\.2"):
        PriorConfig(empty=0.5)
    with pytest.raises(ValueError, match=r"prior.torn must be a probability in \[0, 1\]"):
        PriorConfig(torn=-0.1)
    with pytest.raises(ValueError, match=r"prior.thickness must be in \[0, 0.5\], got nan"):
        PriorConfig(thickness=math.nan)
    with pytest.raises(ValueError, match=r"prior\.tears must be >= 1"):
        PriorConfig(tears=0)
    with pytest.raises(ValueError, match="'own' comes from own_prior"):
        prior_of_kind("own", _disc(), CONFIG, _rng(0))
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) float32"):
        draw_prior(np.zeros((4, 4), np.float64), CONFIG, _rng(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]"):
        prior_of_kind("true", np.full((4, 4), 255, np.float32), CONFIG, _rng(0))
    with pytest.raises(ValueError, match="one shape, got"):
        prior_of_kind("true", _disc(), CONFIG, _rng(0), np.zeros((4, 4), np.float32))
    assert get_args(Kind) == KINDS


# ── padding ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(SIDES, SIDES, SEEDS)
def test_around_a_box_the_nearest_pixel_is_replicate_padding(
    size: tuple[int, int], more: tuple[int, int], seed: int
) -> None:
    inside = _rng(seed).random(size).astype(np.float32)
    padded = np.pad(inside, ((0, more[0]), (0, more[1])), mode="edge")
    valid = np.zeros(padded.shape, bool)
    valid[: size[0], : size[1]] = True
    noise = np.where(valid, padded, _rng(seed + 1).random(padded.shape))
    assert np.array_equal(noise.ravel()[nearest_valid(valid)], np.where(valid, noise, padded))


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_pixel_takes_the_nearest_valid_one(valid: NDArray[np.bool_]) -> None:
    source = nearest_valid(valid)
    points = np.argwhere(valid)
    for index, place in np.ndenumerate(source):
        y, x = divmod(int(place), valid.shape[1])
        if not len(points) or valid[index]:
            assert (y, x) == index
        else:
            distances = ((points - index) ** 2).sum(axis=1)
            assert valid[y, x]
            assert (y - index[0]) ** 2 + (x - index[1]) ** 2 == distances.min()


# ── rollouts ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Net(nn.Module):
    """A small network with batch norm, one of which is frozen; it records how it was called."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 1)
        )
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, 0.5, generator=generator)
        self.calls: list[tuple[bool, bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((torch.is_grad_enabled(), self.training, x.detach()))
        logits: Tensor = self.layers(x)
        return logits


def _network() -> _Net:
    net = _Net().train()
    net.layers[3].eval()
    return net


def _frames(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    previous, frame = (torch.rand((3, 3, 8, 10), generator=generator) for _ in range(2))
    return previous, frame, torch.rand((3, 1, 8, 10), generator=generator)


def _statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_the_network_sees_y_u_v_and_the_mask() -> None:
    previous, _, before = _frames()
    seen = network_input(previous, before)
    assert torch.equal(seen[:, :3], rgb_to_yuv(previous))
    assert torch.equal(seen[:, 3:], before)
    with pytest.raises(ValueError, match="images and prior must have shapes"):
        network_input(previous, before[:, :, :4])
    with pytest.raises(ValueError, match="images and prior must have shapes"):
        network_input(previous, before[:1])


def test_the_first_step_has_no_gradient_and_moves_no_statistic_and_leaves_every_mode() -> None:
    net, (previous, _, before) = _network(), _frames()
    statistics, modes = _statistics(net), [module.training for module in net.modules()]
    prior = own_prior(net, previous, before)
    assert not prior.requires_grad
    assert [call[:2] for call in net.calls] == [(False, False)]
    assert [module.training for module in net.modules()] == modes
    assert len(set(modes)) == 2
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, statistics[name])
    net.eval()
    with torch.no_grad():
        assert torch.equal(prior, torch.sigmoid(net(network_input(previous, before))))


def test_the_gradient_is_that_of_the_second_step_alone() -> None:
    previous, frame, before = _frames()
    net, twin = _network(), _network()
    rollout(net, previous, frame, before).square().mean().backward()  # type: ignore[no-untyped-call]
    prior = own_prior(twin, previous, before)
    twin(network_input(frame, prior)).square().mean().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
        assert bool((ours.grad != 0).any())
    assert [call[:2] for call in net.calls] == [(False, False), (True, True)]


def test_the_second_step_sees_the_first_ones_mask_and_trains_as_any_step() -> None:
    previous, frame, before = _frames()
    net = _network()
    statistics = _statistics(net)
    rollout(net, previous, frame, before)
    second = net.calls[1][2]
    assert torch.equal(second[:, :3], rgb_to_yuv(frame))
    expected = own_prior(_network(), previous, before)
    assert torch.equal(second[:, 3:], expected)
    assert not torch.equal(net.get_buffer("layers.1.running_mean"), statistics["layers.1.running_mean"])
    assert torch.equal(net.get_buffer("layers.3.running_mean"), statistics["layers.3.running_mean"])


def test_the_batch_mates_of_the_first_step_do_not_matter() -> None:
    previous, _, before = _frames()
    together = own_prior(_network(), previous, before)
    for i in range(3):
        alone = own_prior(_network(), previous[i : i + 1], before[i : i + 1])
        assert (alone - together[i : i + 1]).abs().max() < 1e-6


def test_padding_repeats_the_networks_own_mask() -> None:
    previous, _, before = _frames()
    valid = np.zeros((8, 10), bool)
    valid[:5, :7] = True
    sources = torch.from_numpy(nearest_valid(valid)).expand(3, 1, 8, 10)
    plain, repeated = own_prior(_network(), previous, before), own_prior(_network(), previous, before, sources)
    expected = np.pad(plain[:, :, :5, :7].numpy(), ((0, 0), (0, 0), (0, 3), (0, 3)), mode="edge")
    assert np.array_equal(repeated.numpy(), expected)


def test_any_callable_will_do_and_an_error_restores_the_modes() -> None:
    previous, frame, before = _frames()
    logits = rollout(lambda x: x[:, 3:] * 2, previous, frame, before)
    assert torch.equal(logits, torch.sigmoid(before * 2) * 2)
    net = _network()
    with pytest.raises(ValueError, match=r"must give logits \(3, 1, 8, 10\), got \(3, 3, 8, 10\)"):
        own_prior(lambda x: x[:, :3], previous, before)
    with pytest.raises(ValueError, match="images and prior"):
        own_prior(net, previous[:, :, :4], before)
    net.layers[0] = nn.Conv2d(5, 6, 3)
    with pytest.raises(RuntimeError):
        own_prior(net, previous, before)
    assert net.training
    assert net.layers[1].training
    assert not net.layers[3].training


# ── what it is for ────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _scene(step: int) -> tuple[Tensor, Soft]:
    """A person a little lighter than the background, in noise: a pixel alone does not say what it is."""
    rng = _rng(step)
    mask = _disc(32, 32, 8, (rng.uniform(10, 22), rng.uniform(10, 22)))
    image = 0.4 + 0.2 * mask[..., None] + rng.normal(0, 0.08, (32, 32, 3))
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None], mask


def _prior(net: nn.Module, step: int, config: PriorConfig) -> Tensor:
    image, mask = _scene(step)
    prior = draw_prior(mask, config, prior_generator(0, str(step), 0))
    given = torch.from_numpy(prior.mask)[None, None]
    return own_prior(net, image, given) if prior.kind == "own" else given


def _trained(config: PriorConfig) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Conv2d(4, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 1, 1))
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.2, generator=generator)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for batch in range(160):
        steps = range(8 * batch, 8 * batch + 8)
        images = torch.cat([_scene(step)[0] for step in steps])
        target = torch.stack([torch.from_numpy(_scene(step)[1])[None] for step in steps])
        logits = net(network_input(images, torch.cat([_prior(net, step, config) for step in steps])))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.eval()


def _score(net: nn.Module, prior_of: Callable[[int], Soft]) -> float:
    """Mean IoU on new scenes."""
    scores = []
    for step in range(10_000, 10_020):
        image, mask = _scene(step)
        with torch.no_grad():
            logits = net(network_input(image, torch.from_numpy(prior_of(step))[None, None]))
        scores.append(iou(logits[0, 0].numpy() > 0, mask > 0.5))
    return float(np.mean(scores))


@pytest.mark.slow
def test_a_network_that_only_saw_true_priors_copies_them_and_one_that_saw_drawn_ones_does_not() -> None:
    believer = _trained(PriorConfig(**(dict.fromkeys(KINDS, 0.0) | {"true": 1.0})))
    doubter = _trained(CONFIG)
    priors: dict[str, Callable[[int], Soft]] = {
        "true": lambda step: _scene(step)[1],
        "elsewhere": lambda step: _scene(step + 500)[1],
        "empty": lambda _: np.zeros((32, 32), np.float32),
    }
    copied = {name: _score(believer, prior_of) for name, prior_of in priors.items()}
    doubted = {name: _score(doubter, prior_of) for name, prior_of in priors.items()}
    assert copied["true"] > 0.95
    assert copied["elsewhere"] < 0.5
    assert copied["empty"] < 0.1
    assert doubted["true"] > 0.85
    assert doubted["elsewhere"] > 0.7
    assert doubted["empty"] > 0.7
