"""Laws of the boundary cross entropy and its goldens."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from students.losses import band, band_width, boundary_band, dilate, erode, inner, segmentation_loss, soft_dice

NONE = torch.zeros(1, dtype=torch.bool)


def _blob(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3) > 0


def _loss(logits: Tensor, target: Tensor, boundary: float = 1.0, two_sided: bool = True) -> Tensor:
    ignore = torch.zeros_like(target, dtype=torch.bool)
    return segmentation_loss(logits, target, ignore, torch.ones(len(logits)), boundary, two_sided=two_sided)


def _square(top: int, left: int, height: int, width: int, shape: tuple[int, int] = (160, 256)) -> Tensor:
    mask = torch.zeros(1, 1, *shape)
    mask[..., top : top + height, left : left + width] = 1
    return mask


@pytest.mark.parametrize("case", range(6))
def test_bands_and_means_equal_the_goldens(goldens: Path, case: int) -> None:
    archive = np.load(goldens / "student" / "boundary_ce.npz")
    truth, logits, bgt, bpred, union = (
        torch.from_numpy(archive[f"{case}_{name}"]) for name in ("gt", "logits", "bgt", "bpred", "band")
    )
    scalars = dict(zip(archive["scalar_names"].tolist(), archive[f"{case}_scalars"].tolist(), strict=True))
    d = band_width(*truth.shape)
    assert d == scalars["d"]
    assert torch.equal(inner(truth > 0, d), bgt > 0)
    assert torch.equal(inner(logits > 0, d), bpred > 0)
    assert torch.equal(band(truth > 0, logits > 0, d), union > 0)
    assert band(truth > 0, logits > 0, d, two_sided=False).double().mean().item() == pytest.approx(
        scalars["union_area_fraction"]
    )
    one, target = logits[None, None], truth[None, None].double()
    ignore = torch.zeros_like(target, dtype=torch.bool)
    plain = segmentation_loss(one, target, ignore, torch.ones(1), 0.0)
    assert plain.item() == pytest.approx(scalars["ce_mean"], rel=1e-5)
    for name, both in (("ce_mean_over_union_of_boundaries", False), ("ce_mean_over_two_sided_band_union", True)):
        total = segmentation_loss(one, target, ignore, torch.ones(1), 1.0, two_sided=both)
        assert total.item() - plain.item() == pytest.approx(scalars[name], rel=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 10_000))
def test_sliding_minimum_erodes_and_dilates_like_opencv(height: int, width: int, d: int, seed: int) -> None:
    mask = _blob(height, width, seed)
    kernel = np.ones((2 * d + 1, 2 * d + 1), np.uint8)
    pixels = mask.astype(np.uint8)
    eroded = cv2.erode(pixels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    grown = cv2.dilate(pixels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    assert np.array_equal(erode(torch.from_numpy(mask), d).numpy(), eroded > 0)
    assert np.array_equal(dilate(torch.from_numpy(mask), d).numpy(), grown > 0)


def test_a_false_island_far_away_is_punished_on_every_pixel_and_a_trimap_does_not_see_it() -> None:
    truth = _square(10, 10, 60, 60)
    island = torch.clamp(truth + _square(95, 130, 10, 10), max=1)
    calm, logits = truth * 8 - 4, (island * 8 - 4).requires_grad_()
    ignore = torch.zeros_like(truth, dtype=torch.bool)
    boundary_term = _loss(logits, truth) - _loss(logits, truth, boundary=0)
    before = _loss(calm, truth) - _loss(calm, truth, boundary=0)
    assert boundary_term.item() > 5 * before.item()
    gradient = torch.autograd.grad(boundary_term, logits)[0]
    assert int((gradient[..., 95:105, 130:140] != 0).sum()) == 100
    trimap = band(truth > 0.5, truth > 0.5, 6)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    still = functional.binary_cross_entropy_with_logits(calm, truth, reduction="none")
    assert entropy[trimap].mean().item() == pytest.approx(still[trimap].mean().item())
    assert boundary_band(logits, truth, ignore)[..., 95:105, 130:140].all()


@pytest.mark.parametrize(("two_sided", "pixels"), [(True, 100), (False, 0)])
def test_a_deep_hole_gets_boundary_gradient_only_when_two_sided(two_sided: bool, pixels: int) -> None:
    truth = _square(10, 10, 100, 140)
    hole = _square(55, 75, 10, 10)
    logits = ((truth - hole) * 8 - 4).requires_grad_()
    ignore = torch.zeros_like(truth, dtype=torch.bool)
    inside = boundary_band(logits, truth, ignore, two_sided=two_sided)[hole > 0]
    assert int(inside.sum()) == pixels
    term = _loss(logits, truth, two_sided=two_sided) - _loss(logits, truth, boundary=0)
    assert int((torch.autograd.grad(term, logits)[0][hole > 0] != 0).sum()) == pixels


def test_without_any_boundary_the_boundary_term_is_nothing_and_its_gradient_finite() -> None:
    empty = torch.zeros(2, 1, 32, 48)
    logits = torch.full_like(empty, -5.0).requires_grad_()
    term = _loss(logits, empty) - _loss(logits, empty, boundary=0)
    assert term.item() == 0
    gradient = torch.autograd.grad(_loss(logits, empty), logits)[0]
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 9)])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_tiny_images_are_finite(shape: tuple[int, int], value: float) -> None:
    target = torch.ones(1, 1, *shape)
    logits = torch.full_like(target, value).requires_grad_()
    loss = _loss(logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(loss))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_half_precision_logits_of_several_hundred_stay_finite() -> None:
    truth = _square(10, 10, 60, 60)
    logits = ((1 - truth) * 1400 - 700).half().requires_grad_()
    loss = _loss(logits, truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1400, rel=1e-3)
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_padding_an_image_with_ignore_does_not_change_its_loss(seed: int, down: int, right: int, full: bool) -> None:
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(_blob(30, 40, seed).astype(np.float32))[None, None]
    logits = torch.from_numpy(rng.standard_normal((1, 1, 30, 40)).astype(np.float32))
    padded_ignore = functional.pad(torch.zeros_like(target), (0, right, 0, down), value=1.0).bool()
    padded = segmentation_loss(
        functional.pad(logits, (0, right, 0, down), value=3.0),
        functional.pad(target, (0, right, 0, down), value=float(full)),
        padded_ignore,
        torch.ones(1),
        1.0,
    )
    assert padded.item() == pytest.approx(_loss(logits, target).item(), rel=1e-5)


def test_the_gradient_is_that_of_the_cross_entropy_with_the_band_frozen() -> None:
    target = torch.from_numpy(_blob(40, 56, 1).astype(np.float32))[None, None]
    logits = torch.randn(1, 1, 40, 56, generator=torch.Generator().manual_seed(2)).requires_grad_()
    pixels = boundary_band(logits, target, torch.zeros_like(target, dtype=torch.bool))
    difference = torch.sigmoid(logits.detach()) - target
    expected = difference / difference.numel() + torch.where(pixels, difference, 0.0) / pixels.sum()
    gradient = torch.autograd.grad(_loss(logits, target), logits)[0]
    assert torch.allclose(gradient, expected, atol=1e-8)


@given(st.floats(0, 4), st.floats(0, 4))
def test_each_image_counts_by_its_weight(first: float, second: float) -> None:
    target = torch.from_numpy(np.stack([_blob(24, 24, 1), _blob(24, 24, 2)]).astype(np.float32))[:, None]
    logits = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(3))
    ignore = torch.zeros_like(target, dtype=torch.bool)
    together = segmentation_loss(logits, target, ignore, torch.tensor([first, second]), 1.0)
    alone = [_loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(2)]
    assert together.item() == pytest.approx((first * alone[0] + second * alone[1]) / 2, rel=1e-4, abs=1e-6)


def test_ignored_pixels_get_no_gradient_and_make_no_band() -> None:
    target = _square(10, 10, 60, 60)
    ignore = _square(0, 40, 160, 60) > 0
    logits = torch.randn(1, 1, 160, 256, generator=torch.Generator().manual_seed(4)).requires_grad_()
    loss = segmentation_loss(logits, target, ignore, torch.ones(1), 1.0)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert bool((gradient[ignore] == 0).all())
    assert bool((gradient[~ignore] != 0).all())


def test_shapes_that_differ_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="share one shape"):
        segmentation_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), NONE, torch.ones(1), 1.0)


# ── dice ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw(count: int, seed: int, height: int = 20, width: int = 28) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of any size, soft targets, and ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, height, width)
    logits = torch.randn(shape, generator=generator) * 10 ** torch.randint(-1, 3, (1,), generator=generator)
    target = torch.rand(shape, generator=generator).round(decimals=1)
    return logits, target, torch.rand(shape, generator=generator) < 0.2


def test_without_dice_the_loss_has_the_bits_it_had() -> None:
    for seed in range(10):
        logits, target, ignore = _draw(3, seed)
        ignore[1] = True
        weight = torch.tensor([0.3, 1.0, 2.0])
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        expected = torch.tensor(0.0)
        for factor, pixels in ((1.0, ~ignore), (0.7, boundary_band(logits, target, ignore))):
            counts = pixels.sum(dim=(1, 2, 3))
            means = torch.where(pixels, entropy, 0.0).sum(dim=(1, 2, 3)) / counts.clamp(min=1)
            expected = expected + factor * ((means * weight).sum() / (counts > 0).sum().clamp(min=1))
        assert torch.equal(segmentation_loss(logits, target, ignore, weight, 0.7), expected)
        assert torch.equal(segmentation_loss(logits, target, ignore, weight, 0.7, dice=0.0), expected)


@given(st.integers(0, 10_000))
def test_dice_lies_between_0_and_1(seed: int) -> None:
    dice = soft_dice(*_draw(3, seed))
    assert dice.shape == (3,)
    assert bool(((dice >= 0) & (dice <= 1)).all())


def test_dice_of_a_perfect_prediction_is_0_and_of_its_inverse_nearly_1() -> None:
    target = torch.from_numpy(_blob(40, 56, 1).astype(np.float32))[None, None]
    ignore = torch.zeros_like(target, dtype=torch.bool)
    assert soft_dice(target * 200 - 100, target, ignore).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice(100 - target * 200, target, ignore).item() > 0.99
    soft = torch.rand(1, 1, 40, 56, generator=torch.Generator().manual_seed(1)) * 0.98 + 0.01
    assert soft_dice(torch.logit(soft), soft, ignore).item() == pytest.approx(0, abs=1e-6)


def test_dice_equals_its_formula_on_a_small_case() -> None:
    logits, target = torch.tensor([[[[0.0, 0.0, 9.0]]]]), torch.tensor([[[[1.0, 0.0, 1.0]]]])
    ignore = torch.tensor([[[[False, False, True]]]])
    assert soft_dice(logits, target, ignore).item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))


@pytest.mark.parametrize("level", [-100.0, -5.0, 100.0])
def test_dice_without_a_person_or_without_a_valid_pixel_is_finite(level: float) -> None:
    logits = torch.full((2, 1, 8, 8), level, requires_grad=True)
    target, ignore = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    ignore[1] = True
    dice = soft_dice(logits, target, ignore)
    assert dice[1].item() == 0
    assert dice[0].item() == pytest.approx(0 if level < 0 else 1, abs=0.02)
    loss = segmentation_loss(logits, target, ignore, torch.ones(2), 1.0, dice=1.0)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient[1] == 0).all())


@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(0, 20))
def test_padding_an_image_with_ignore_does_not_change_its_dice(seed: int, down: int, right: int) -> None:
    logits, target, ignore = _draw(2, seed)
    padding = (0, right, 0, down)
    padded = soft_dice(
        functional.pad(logits, padding, value=3.0),
        functional.pad(target, padding, value=1.0),
        functional.pad(ignore, padding, value=True),
    )
    assert torch.allclose(padded, soft_dice(logits, target, ignore), rtol=1e-5, atol=1e-6)


def test_dice_joins_the_loss_by_its_factor_and_each_images_weight() -> None:
    logits, target, ignore = _draw(3, 5)
    ignore[2] = True
    weight = torch.tensor([0.5, 2.0, 7.0])
    plain = segmentation_loss(logits, target, ignore, weight, 1.0)
    dice = soft_dice(logits, target, ignore)
    for factor in (0.25, 3.0):
        total = segmentation_loss(logits, target, ignore, weight, 1.0, dice=factor)
        expected = plain + factor * (0.5 * dice[0] + 2.0 * dice[1]) / 2
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_dice_of_half_precision_logits_is_finite_with_its_gradient() -> None:
    truth = _square(10, 10, 60, 60)
    logits = ((1 - truth) * 1400 - 700).half().requires_grad_()
    ignore = torch.zeros_like(truth, dtype=torch.bool)
    loss = segmentation_loss(logits, truth, ignore, torch.ones(1), 1.0, dice=1.0)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


def test_a_negative_or_undefined_factor_is_refused() -> None:
    for boundary, dice in ((-1.0, 0.0), (0.0, -1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="boundary >= 0 and dice >= 0"):
            segmentation_loss(*_draw(1, 0), torch.ones(1), boundary, dice=dice)
