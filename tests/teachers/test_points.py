"""Each primitive against what Detectron2 gave, and laws that need no reference."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from teachers import points

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def primitives(goldens: Path) -> Arrays:
    with np.load(goldens / "pointrend" / "primitives.npz") as file:
        return {k: file[k] for k in file.files}


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def assert_close(found: Tensor, wanted: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.detach(), tensor(wanted), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("inputs", "where", "out", "mode"),
    [
        ("ps_in", "ps_coords", "ps_out", "bilinear"),
        ("ps_in", "ps_grid", "ps_grid_out", "bilinear"),
        ("psn_in", "psn_coords", "psn_out", "nearest"),
    ],
)
def test_sampling_equals_the_reference(primitives: Arrays, inputs: str, where: str, out: str, mode: str) -> None:
    found = points.point_sample(tensor(primitives[inputs]), tensor(primitives[where]), mode)
    assert_close(found, primitives[out])


@pytest.mark.parametrize("side", [7, 14, 28])
def test_the_regular_grid_equals_the_reference(primitives: Arrays, side: int) -> None:
    assert_close(points.regular_grid(side), primitives[f"regular_grid_{side}"], atol=1e-7)


@pytest.mark.parametrize("name", ["unc_sem", "unc_sem_pts"])
def test_uncertainty_equals_the_reference(primitives: Arrays, name: str) -> None:
    assert_close(points.uncertainty(tensor(primitives[f"{name}_in"])), primitives[f"{name}_out"], atol=1e-6)


def test_uncertainty_of_two_classes_equals_that_of_the_general_rule() -> None:
    logits = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(0))
    third = torch.full((3, 1, 40), -1e9)
    assert torch.equal(points.uncertainty(logits), points.uncertainty(torch.cat([logits, third], dim=1)))


@pytest.mark.parametrize("count", [1, 50, 500])
def test_the_most_uncertain_pixels_equal_the_reference(primitives: Arrays, count: int) -> None:
    index, where = points.most_uncertain(tensor(primitives["grid_in"]), count)
    wanted, coords = primitives[f"grid_idx_{count}"], primitives[f"grid_coords_{count}"]
    assert [set(row) for row in index.tolist()] == [set(row) for row in wanted.tolist()]
    by_index = [dict(zip(i, c, strict=True)) for i, c in zip(wanted.tolist(), coords.tolist(), strict=True)]
    for image in range(len(index)):
        for i, point in zip(index[image].tolist(), where[image].tolist(), strict=True):
            assert point == pytest.approx(by_index[image][i], abs=1e-7)


def test_sampling_at_the_centre_of_a_chosen_pixel_gives_that_pixel() -> None:
    scores = torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(1))
    index, where = points.most_uncertain(scores, 20)
    assert_close(points.point_sample(scores, where)[:, 0], scores.flatten(1).gather(1, index).numpy())


@pytest.mark.parametrize(
    ("case", "count", "oversample", "importance"),
    [("a", 60, 3, 0.75), ("b", 40, 2, 1.0), ("c", 30, 3, 0.0), ("d", 33, 3, 0.75)],
)
def test_training_points_equal_the_reference_for_its_seed(
    primitives: Arrays, case: str, count: int, oversample: int, importance: float
) -> None:
    found = points.uncertain_points(
        tensor(primitives["rnd_in"]), points.uncertainty, count,
        oversample=oversample, importance=importance, generator=torch.Generator().manual_seed(1060),
    )  # fmt: skip
    chosen, wanted = int(importance * count), tensor(primitives[f"rnd_{case}_out"])
    assert torch.equal(found[:, chosen:], wanted[:, chosen:])  # the uniform part keeps its order
    for mine, theirs in zip(found[:, :chosen].tolist(), wanted[:, :chosen].tolist(), strict=True):
        assert sorted(mine) == sorted(theirs)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), share=st.floats(0, 1))
def test_training_points_lie_inside_and_follow_from_the_seed(seed: int, count: int, share: float) -> None:
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return points.uncertain_points(
            logits, points.uncertainty, count, oversample=3, importance=share, generator=generator
        )

    found = draw()
    assert found.shape == (2, count, 2)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.equal(found, draw())


def test_the_point_loss_and_its_gradient_equal_the_reference(primitives: Arrays) -> None:
    logits = tensor(primitives["loss_point_logits"]).requires_grad_()
    labels, where = tensor(primitives["loss_targets"]), tensor(primitives["loss_points"])
    found = points.point_sample(labels[:, None].float(), where, "nearest")[:, 0]
    assert_close(found.int(), primitives["loss_point_targets"])
    loss = points.point_loss(logits, labels, where)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss, primitives["loss_point"])
    assert logits.grad is not None
    assert_close(logits.grad, primitives["loss_point_grad"], atol=1e-7)


def test_the_coarse_loss_equals_the_reference(primitives: Arrays) -> None:
    coarse = tensor(primitives["loss_coarse_logits"])
    full = functional.interpolate(coarse, scale_factor=4.0, mode="bilinear", align_corners=False)
    loss = points.cross_entropy(full, tensor(primitives["loss_targets"]).long())
    assert_close(loss, primitives["loss_coarse"])


def test_a_loss_without_any_label_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 2, 8, requires_grad=True)
    loss = points.cross_entropy(logits, torch.full((1, 8), points.IGNORE))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_an_ignored_pixel_changes_no_loss_whatever_its_logits() -> None:
    logits = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, 1, 255, 1, 0, 255, 1, 1]])
    before = points.cross_entropy(logits, targets)
    logits[:, :, 2] = 100.0
    assert torch.equal(before, points.cross_entropy(logits, targets))
    assert math.isfinite(before.item())


@pytest.mark.parametrize("each", [0, 1])
def test_the_point_head_equals_the_reference(primitives: Arrays, each: int) -> None:
    head = points.PointHead(fine=16, classes=7, width=24, layers=3, coarse_each_layer=bool(each))
    prefix = f"head_each{each}_w."
    head.load_state_dict({k.removeprefix(prefix): tensor(v) for k, v in primitives.items() if k.startswith(prefix)})
    with torch.no_grad():
        found = head(tensor(primitives[f"head_each{each}_fine"]), tensor(primitives[f"head_each{each}_coarse"]))
    assert_close(found, primitives[f"head_each{each}_out"])


def test_uncertainty_of_a_class_equals_the_reference(primitives: Arrays) -> None:
    found = points.class_uncertainty(tensor(primitives["unc_inst_in"]), tensor(primitives["unc_inst_classes"]).long())
    assert_close(found, primitives["unc_inst_out"], atol=1e-6)
    one = points.class_uncertainty(tensor(primitives["unc_inst1_in"]), torch.tensor([7, 0, 3]))
    assert_close(one, primitives["unc_inst1_out"], atol=1e-6)


def boxes_and_points(primitives: Arrays) -> tuple[tuple[Tensor, ...], Tensor]:
    return torch.split(tensor(primitives["inst_boxes"]), [2, 3]), tensor(primitives["inst_box_points"])


def test_points_of_boxes_and_features_there_equal_the_reference(primitives: Arrays) -> None:
    boxes, where = boxes_and_points(primitives)
    assert_close(points.box_points(torch.cat(boxes), where), primitives["inst_points_image"], atol=1e-4)
    levels = [points.sample_in_boxes(tensor(primitives[f"inst_feat{i}"]), 4 * 2**i, boxes, where) for i in (0, 1)]
    assert_close(torch.cat(levels, dim=1), primitives["inst_feats_out"])


@pytest.mark.parametrize("mistake", ["one size for all", "images swapped", "wrong stride"])
def test_the_reference_notices_a_mistake_in_sampling_boxes(primitives: Arrays, mistake: str) -> None:
    boxes, where = boxes_and_points(primitives)
    features = tensor(primitives["inst_feat0"])
    wanted = tensor(primitives["inst_feats_out"])[:, : features.shape[1]]
    right = points.sample_in_boxes(features, 4, boxes, where)
    if mistake == "one size for all":
        wrong = points.sample_in_boxes(features, 4, boxes, where.flip(2))
    elif mistake == "images swapped":
        wrong = points.sample_in_boxes(features.flip(0), 4, boxes, where)
    else:
        wrong = points.sample_in_boxes(features, 8, boxes, where)
    torch.testing.assert_close(right, wanted)
    assert (wrong - wanted).abs().max() > 1e-2


def test_labels_and_loss_of_mask_points_equal_the_reference(primitives: Arrays) -> None:
    boxes, where = boxes_and_points(primitives)
    width = int(primitives["inst_gt_shape"][-1])
    masks = tensor(np.unpackbits(primitives["inst_gt_masks"], axis=-1)[..., :width].astype(bool))
    labels = points.mask_labels(masks, torch.cat(boxes), where)
    assert_close(labels, primitives["inst_point_labels"])
    classes = tensor(primitives["inst_gt_classes"]).long()
    assert_close(points.mask_loss(tensor(primitives["inst_point_logits"]), labels, classes),
                 primitives["inst_point_loss"])  # fmt: skip


def test_a_mask_loss_of_no_box_is_zero_with_zero_gradient() -> None:
    logits = torch.zeros(0, 3, 5, requires_grad=True)
    loss = points.mask_loss(logits, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None


@given(seed=st.integers(0, 2**31))
def test_only_the_own_class_matters_for_mask_loss_and_uncertainty(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(4, 3, 6, generator=generator), torch.rand(4, 6, generator=generator)
    classes = torch.randint(0, 3, (4,), generator=generator)
    other = logits + torch.randn(4, 3, 6, generator=generator)
    rows = torch.arange(4)
    other[rows, classes] = logits[rows, classes]
    assert torch.equal(points.mask_loss(logits, labels, classes), points.mask_loss(other, labels, classes))
    assert torch.equal(points.class_uncertainty(logits, classes), points.class_uncertainty(other, classes))
