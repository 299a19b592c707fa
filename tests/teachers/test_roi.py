"""Pooling from boxes, and detections: against the reference, and by laws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, roi_align

from teachers import roi


@pytest.fixture(scope="module")
def primitives(goldens: Path) -> dict[str, Any]:
    with np.load(goldens / "pointrend" / "primitives.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if k.startswith(("ra_", "bt_", "nms_"))}


def test_roi_align_equals_the_reference_and_its_unshifted_version_does_not(primitives: dict[str, Tensor]) -> None:
    found = roi.align(primitives["ra_in"], primitives["ra_rois"], 7, 0.25)
    torch.testing.assert_close(found, primitives["ra_out"], rtol=1e-5, atol=1e-5)
    for wrong in ({"aligned": False}, {"aligned": True, "sampling_ratio": 2}):
        other = roi_align(primitives["ra_in"], primitives["ra_rois"], 7, spatial_scale=0.25, **wrong)
        assert (other - primitives["ra_out"]).abs().max() > 1e-3


def test_boxes_of_classes_equal_the_reference(primitives: dict[str, Tensor]) -> None:
    found = roi.class_boxes(primitives["bt_deltas"], primitives["nms_boxes"])
    torch.testing.assert_close(found.flatten(1), primitives["bt_box"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tenths", [5, 7])
def test_suppression_by_class_equals_the_reference(primitives: dict[str, Tensor], tenths: int) -> None:
    boxes, scores, ids = (primitives[f"nms_{k}"] for k in ("boxes", "scores", "ids"))
    keep = batched_nms(boxes, scores, ids.long(), tenths / 10)
    assert keep.tolist() == primitives[f"nms_keep_0{tenths}"].tolist()
    assert batched_nms(boxes, scores, torch.zeros_like(ids), tenths / 10).tolist() != keep.tolist()


@pytest.mark.parametrize(
    ("edge", "level"), [(0, 2), (1, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (9999, 5)]
)
def test_a_box_is_read_from_the_level_of_its_size(edge: float, level: int) -> None:
    assert roi.level_of(torch.tensor([[10.0, 20.0, 10.0 + edge, 20.0 + edge]])).tolist() == [level]


def pyramid(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(2, 3, 256 >> (i - 2), 256 >> (i - 2), generator=generator) for i in range(2, 6)}


def test_pooling_reads_each_box_from_its_own_image_and_level_and_keeps_their_order() -> None:
    features = pyramid()
    boxes = [torch.tensor([[0.0, 0, 500, 600], [5, 6, 40, 50]]), torch.tensor([[9.0, 9, 200, 150], [0, 0, 300, 300]])]
    found = roi.pool(features, boxes)
    for row, (image, box) in enumerate([(0, boxes[0][0]), (0, boxes[0][1]), (1, boxes[1][0]), (1, boxes[1][1])]):
        level = int(roi.level_of(box[None]))
        rois = torch.cat([torch.tensor([float(image)]), box])[None]
        alone = roi_align(features[f"p{level}"], rois, 7, spatial_scale=1 / 2**level, aligned=True)
        torch.testing.assert_close(found[row], alone[0])


def test_pooling_of_no_box_is_empty_and_gradients_reach_the_level_that_was_read() -> None:
    features = {k: v.requires_grad_() for k, v in pyramid().items()}
    assert roi.pool(features, [torch.zeros(0, 4), torch.zeros(0, 4)]).shape == (0, 3, 7, 7)
    roi.pool(features, [torch.tensor([[0.0, 0, 230, 230]]), torch.zeros(0, 4)]).sum().backward()  # type: ignore[no-untyped-call]
    grads = {k: v.grad for k, v in features.items()}
    assert grads["p4"] is not None
    assert float(grads["p4"].abs().sum()) > 0
    assert all(grads[k] is None or not grads[k].any() for k in ("p2", "p3", "p5"))  # type: ignore[union-attr]


def scene(seed: int, rows: int = 30, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes + 1, generator=generator)
    corner = 60 * torch.rand(rows, classes, 2, generator=generator) - 5
    return logits, torch.cat([corner, corner + 5 + 40 * torch.rand(rows, classes, 2, generator=generator)], dim=-1)


@given(seed=st.integers(0, 2**31), least=st.floats(0, 1), most=st.integers(1, 40))
def test_detections_are_probable_apart_sorted_and_few(seed: int, least: float, most: int) -> None:
    logits, boxes = scene(seed)
    found, scores, classes = roi.detect(logits, boxes, (50, 60), least=least, threshold=0.5, most=most)
    assert len(found) == len(scores) == len(classes) <= most
    assert bool((scores > least).all())
    assert torch.equal(scores, scores.sort(descending=True).values)
    assert bool((classes < 4).all())
    iou = box_iou(found, found).fill_diagonal_(0).nan_to_num()  # a box beyond the image is empty
    assert bool((iou[classes[:, None] == classes] <= 0.5).all())
    assert bool((found >= 0).all())
    assert bool((found[:, [0, 2]] <= 60).all())


def test_the_last_class_is_the_background() -> None:
    logits = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    boxes = torch.tensor([[[0.0, 0, 9, 9]] * 2, [[20.0, 20, 40, 40]] * 2])
    found, scores, classes = roi.detect(logits, boxes, (50, 50), least=0.05, threshold=0.5, most=10)
    assert found.tolist() == [[20.0, 20.0, 40.0, 40.0]]
    assert classes.tolist() == [0]
    assert scores.item() == pytest.approx(0.99975, abs=1e-5)


def test_a_class_may_lie_on_another_but_not_on_itself() -> None:
    logits = torch.tensor([[4.0, 4.0, 0.0], [3.9, 0.0, 0.0]])
    boxes = torch.tensor([[[0.0, 0, 20, 20]] * 2, [[1.0, 0, 20, 20]] * 2])
    _, _, classes = roi.detect(logits, boxes, (50, 50), least=0.3, threshold=0.5, most=10)
    assert sorted(classes.tolist()) == [0, 1]


def test_detections_that_are_not_finite_are_refused() -> None:
    logits, boxes = scene(0)
    logits[3, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        roi.detect(logits, boxes, (50, 60), least=0.05, threshold=0.5, most=10)
