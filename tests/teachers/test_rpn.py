"""Anchors, box coding and proposals: against the reference, and by laws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from teachers import rpn


@pytest.fixture(scope="module")
def primitives(goldens: Path) -> dict[str, Any]:
    with np.load(goldens / "pointrend" / "primitives.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if k.startswith(("anchors", "bt_", "nms_"))}


GRIDS = ((6, 9), (3, 5), (2, 3), (1, 2), (1, 1))


@pytest.mark.parametrize("level", range(5))
def test_anchors_equal_the_reference(primitives: dict[str, Tensor], level: int) -> None:
    found = rpn.anchors(*GRIDS[level], rpn.STRIDES[level], rpn.SIZES[level])
    torch.testing.assert_close(found, primitives[f"anchors_{level}"], rtol=1e-6, atol=1e-5)
    turned = rpn.anchors(*GRIDS[level][::-1], rpn.STRIDES[level], rpn.SIZES[level])
    assert len(turned) == 3 or not torch.equal(turned, found)


def test_an_anchor_has_the_area_and_shape_of_its_level() -> None:
    boxes = rpn.anchors(2, 3, 8, 64).view(2, 3, 3, 4)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    torch.testing.assert_close(width * height, torch.full_like(width, 64.0**2))
    torch.testing.assert_close(height / width, torch.tensor(rpn.RATIOS).expand(2, 3, 3))
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    torch.testing.assert_close(centres[1, 2, 0], torch.tensor([16.0, 8.0]))


def test_decoding_equals_the_reference(primitives: dict[str, Tensor]) -> None:
    boxes, deltas = primitives["nms_boxes"], primitives["bt_deltas"]
    found = rpn.decode(deltas[:, :4], boxes, rpn.RPN_WEIGHTS)
    torch.testing.assert_close(found, primitives["bt_rpn"], rtol=1e-5, atol=1e-4)
    assert (deltas[:, 2:4] > 4.2).any()  # the bound on growth is in play
    swapped = rpn.decode(deltas[:, [1, 0, 3, 2]], boxes, rpn.RPN_WEIGHTS)
    assert (swapped - primitives["bt_rpn"]).abs().max() > 1


coordinate = st.floats(-200, 200, width=32)
side = st.floats(0.5, 300, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(pairs=st.lists(st.tuples(box, box), min_size=1, max_size=5), tenfold=st.booleans())
def test_decoding_undoes_encoding_within_the_bound_on_growth(pairs: list[Any], tenfold: bool) -> None:
    weights = (10.0, 10.0, 5.0, 5.0) if tenfold else rpn.RPN_WEIGHTS
    given_boxes, wanted = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    growth = (wanted[:, 2:] - wanted[:, :2]) / (given_boxes[:, 2:] - given_boxes[:, :2])
    found = rpn.decode(rpn.encode(wanted, given_boxes, weights), given_boxes, weights)
    inside = (growth < 1000 / 16).all(dim=1)
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-4, atol=1e-3)


def test_a_box_grows_at_most_to_62_and_a_half_times_its_size() -> None:
    found = rpn.decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]), rpn.RPN_WEIGHTS)
    torch.testing.assert_close(found, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]), rtol=1e-5, atol=1e-2)


@given(boxes=st.lists(box, min_size=1, max_size=6), height=st.integers(1, 90), width=st.integers(1, 90))
def test_cut_boxes_lie_in_the_image_and_are_what_both_have_in_common(boxes: list[Any], height: int, width: int) -> None:
    given_boxes = torch.tensor(boxes)
    found = rpn.clip(given_boxes, (height, width))
    assert bool((found >= 0).all())
    assert bool((found[:, [0, 2]] <= width).all())
    assert bool((found[:, [1, 3]] <= height).all())
    assert torch.equal(rpn.clip(found, (height, width)), found)
    apart = (given_boxes[:, 0] >= width) | (given_boxes[:, 2] <= 0)
    apart |= (given_boxes[:, 1] >= height) | (given_boxes[:, 3] <= 0)
    assert torch.equal(rpn.not_empty(found), ~apart)


def levels(seed: int, images: int = 2) -> list[rpn.Level]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for (height, width), stride, size in zip(GRIDS, rpn.STRIDES, rpn.SIZES, strict=True):
        grid = rpn.anchors(height, width, stride, size)
        logits = torch.randn(images, len(grid), generator=generator)
        deltas = 0.5 * torch.randn(images, len(grid), 4, generator=generator)
        out.append(rpn.Level(anchors=grid, logits=logits, deltas=deltas))
    return out


SIZES = [(24, 30), (20, 36)]


@given(seed=st.integers(0, 2**31), before=st.integers(1, 200), after=st.integers(1, 60))
def test_proposals_are_real_sorted_and_bounded(seed: int, before: int, after: int) -> None:
    found = rpn.propose(levels(seed), SIZES, before=before, after=after, threshold=0.7)
    assert len(found) == 2
    for one, size in zip(found, SIZES, strict=True):
        assert len(one.boxes) == len(one.logits) <= after  # none, where the best anchors lie beyond the image
        assert torch.equal(one.logits, one.logits.sort(descending=True).values)
        assert torch.equal(rpn.clip(one.boxes, size), one.boxes)
        assert bool(rpn.not_empty(one.boxes).all())


def test_proposals_equal_a_suppression_of_each_level_alone() -> None:
    given_levels = levels(4, 1)
    kept, logits = [], []
    for level in given_levels:
        boxes = rpn.clip(rpn.decode(level.deltas[0], level.anchors, rpn.RPN_WEIGHTS), SIZES[0])
        real = rpn.not_empty(boxes)
        boxes, score = boxes[real], level.logits[0][real]
        keep = nms(boxes, score, 0.6)
        kept.append(boxes[keep])
        logits.append(score[keep])
    order = torch.cat(logits).argsort(descending=True)
    found = rpn.propose(given_levels, SIZES[:1], before=10**4, after=10**4, threshold=0.6)[0]
    torch.testing.assert_close(found.boxes, torch.cat(kept)[order])
    iou = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert iou.max() > 0.6  # of different levels: there they may overlap


def test_an_image_does_not_change_the_proposals_of_another() -> None:
    both = rpn.propose(levels(1), SIZES, before=50, after=20, threshold=0.7)
    alone = [
        rpn.Level(anchors=x.anchors, logits=x.logits[1:], deltas=x.deltas[1:]) for x in levels(1)
    ]  # fmt: skip
    assert torch.equal(rpn.propose(alone, SIZES[1:], before=50, after=20, threshold=0.7)[0].boxes, both[1].boxes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    given_levels = levels(0)
    given_levels[1].logits[0, 3] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        rpn.propose(given_levels, SIZES, before=1000, after=1000, threshold=0.7)


def test_the_head_puts_an_anchors_values_where_the_anchor_is() -> None:
    torch.manual_seed(0)
    generator = rpn.ProposalGenerator(4)
    features = {k: torch.randn(1, 4, *grid) for k, grid in zip(rpn.PYRAMID, GRIDS, strict=True)}
    with torch.no_grad():
        level = generator(features)[0]
        hidden = torch.relu(generator.rpn_head.conv(features["p2"]))
        logits = generator.rpn_head.objectness_logits(hidden)[0]
        deltas = generator.rpn_head.anchor_deltas(hidden)[0]
    row, column, ratio = 4, 7, 2
    place = (row * GRIDS[0][1] + column) * 3 + ratio
    assert level.logits[0, place] == logits[ratio, row, column]
    assert torch.equal(level.deltas[0, place], deltas[4 * ratio : 4 * ratio + 4, row, column])
    centre = (level.anchors[place, :2] + level.anchors[place, 2:]) / 2
    torch.testing.assert_close(centre, torch.tensor([column * 4.0, row * 4.0]))
