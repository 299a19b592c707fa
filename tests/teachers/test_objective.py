"""One batch gives one gradient, on one device or shared by several; ignored pixels give none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.objective import Objective
from teachers.semantic import SemanticConfig, build

TINY = SemanticConfig(
    depth=18, stem_out=4, res2_out=4, norm="GN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8, min_size_test=64
)
BATCH, POINTS, SEED = 4, 60, 5


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels; the later an image, the more of it is ignored, the last one all."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 2, (BATCH, 64, 64), generator=generator, dtype=torch.uint8)
    for index in range(BATCH):
        labels[index, : 64 * index // (BATCH - 1)] = 255
    return images, labels


def gradients(run: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    model = build(TINY, 0).train()
    run(model).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return gradients(lambda m: Objective(m, num_points=POINTS, batch=BATCH)(images, labels, SEED)[0].sum())


def test_on_one_device_these_are_the_networks_own_losses() -> None:
    images, labels = batch()
    model = build(TINY, 0).train()
    generator = torch.Generator().manual_seed(SEED)
    expected = model.losses(images, labels, num_points=POINTS, generator=generator)
    losses, counts = Objective(model, num_points=POINTS, batch=BATCH)(images, labels, SEED)
    assert torch.equal(losses, torch.stack([expected["loss_sem_seg"], expected["loss_sem_seg_point"]]))
    assert counts[0] == (labels != 255).sum()
    assert 0 < counts[1] < BATCH * POINTS


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_shares_weighted_by_their_counts_add_up_to_the_gradient_of_the_whole(devices: int) -> None:
    images, labels = batch()
    expected = whole(images, labels)
    counts_of_all = Objective(build(TINY, 0).train(), num_points=POINTS, batch=BATCH)(images, labels, SEED)[1]

    def part(model: Any, rank: int) -> Tensor:
        objective = Objective(model, num_points=POINTS, batch=BATCH, rank=rank, devices=devices)
        losses, counts = objective(images[rank::devices], labels[rank::devices], SEED)
        weighted: Tensor = (losses * counts / counts_of_all).sum()
        return weighted

    parts = [gradients(partial(part, rank=rank)) for rank in range(devices)]
    for name, value in expected.items():
        total = torch.stack([part[name] for part in parts]).sum(dim=0)
        assert float((total - value).norm()) <= 1e-4 * float(value.norm()) + 1e-7, name


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_truth_under_ignored_pixels_is_never_seen(seed: int) -> None:
    """What a label is before it is ignored changes no gradient; that of a pixel that counts does."""
    images, labels = batch(seed)
    ignore = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    flipped = torch.where(labels == 255, labels, 1 - labels)
    expected = whole(images, torch.where(ignore, torch.full_like(labels, 255), labels))
    hidden = whole(images, torch.where(ignore, torch.full_like(labels, 255), torch.where(ignore, flipped, labels)))
    assert all(torch.equal(value, hidden[name]) for name, value in expected.items())
    shown = whole(images, torch.where(ignore, flipped, labels))
    assert not all(torch.equal(value, shown[name]) for name, value in expected.items())


def test_the_gradient_at_an_ignored_pixel_is_nought() -> None:
    """With respect to the coarse logits before they are enlarged: nothing comes from a block that is all ignored."""
    images, labels = batch()
    labels[:] = 1
    labels[:, :, :40] = 255
    model = build(TINY, 0).train()
    seen: list[Tensor] = []
    coarse = model.coarse

    def watched(features: dict[str, Tensor]) -> Tensor:
        out = coarse(features)
        out.retain_grad()
        seen.append(out)
        return out

    model.coarse = watched  # type: ignore[method-assign]
    losses, _ = Objective(model, num_points=POINTS, batch=BATCH)(images, labels, SEED)
    losses[0].backward()  # type: ignore[no-untyped-call]
    assert seen[0].grad is not None
    assert not seen[0].grad[:, :, :, :9].any()
    assert seen[0].grad[:, :, :, 11:].any()


def test_a_batch_that_is_all_ignored_gives_no_loss_and_no_gradient() -> None:
    images, labels = batch()
    labels[:] = 255
    found = whole(images, labels)
    assert found
    assert not any(value.any() for value in found.values())
