"""The instance model against Detectron2 at every stage, names and shapes, laws of its masks, and that it learns."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from benchmarks.parity_stages import instance_arrays
from teachers import instance, instance_loss, points, rpn
from teachers.backbone import config_json, normalise, pad, parse_config
from teachers.checkpoint import match
from teachers.instance import (
    Detections,
    InstanceConfig,
    InstancePointRend,
    build_instance,
    paste,
    patches,
    person,
    rescale,
)
from teachers.instance_loss import Sampled, Target

CASE = "inst_r50_coco"
TINY = InstanceConfig(
    depth=18,
    stem_out=8,
    res2_out=8,
    norm="GN",
    fpn_out=16,
    num_classes=3,
    box_fc_dim=32,
    mask_conv_dim=8,
    mask_fc_dim=32,
    point_fc_dim=16,
    subdivision_steps=2,
    subdivision_num_points=60,
    rpn_pre_nms_topk=50,
    rpn_post_nms_topk=20,
    score_thresh_test=0.0,
    detections_per_image=6,
    min_size_test=64,
    max_size_test=128,
)

Compare = Callable[[Path, str, dict[str, Any]], list[tuple[str, bool, str]]]


@pytest.fixture(scope="module")
def folder(goldens: Path) -> Path:
    return goldens / "pointrend"


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict[str, Any]:
    with np.load(folder / f"{CASE}.npz") as file:
        return {k: file[k] for k in file.files}


@pytest.fixture(scope="module")
def compare(folder: Path) -> Compare:
    spec = importlib.util.spec_from_file_location("golden_compare", folder / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Compare = module.compare_instance
    return function


@pytest.fixture(scope="module")
def model(folder: Path) -> InstancePointRend:
    arch = json.loads((folder / "manifest.json").read_text())[CASE]["arch"]
    out = build_instance(InstanceConfig(**arch), 0)
    with np.load(folder / f"{CASE}_weights.npz") as file:
        match({k: torch.from_numpy(file[k]) for k in file.files}, out)
    return out.eval()


# --- Against the reference ---------------------------------------------------------------------------------------


def test_every_stage_equals_detectron2(
    folder: Path, golden: dict[str, Any], model: InstancePointRend, compare: Compare
) -> None:
    rows = compare(folder, CASE, instance_arrays(model, golden)[0])
    assert [f"{name}: {detail}" for name, ok, detail in rows if not ok] == []
    assert len(rows) == 23


def out_of_tolerance(folder: Path, golden: dict[str, Any], model: InstancePointRend, compare: Compare) -> list[str]:
    return [name for name, ok, _ in compare(folder, CASE, instance_arrays(model, golden)[0]) if not ok]


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "stride in the 3x3": ({"stride_in_1x1": False}, "p2"),
    "another mean": ({"pixel_mean": (123.675, 116.28, 103.53)}, "p2"),
    "one refinement more from a smaller start": ({"subdivision_num_points": 700}, "mask_logits_step0"),
    "more detections": ({"detections_per_image": 6}, "net_boxes0"),
    "a weaker suppression of detections": ({"nms_thresh_test": 0.95}, "net_boxes0"),
    "a weaker suppression of proposals": ({"rpn_nms_thresh": 0.95}, "coarse_mask_logits"),
    "a stronger suppression of proposals": ({"rpn_nms_thresh": 0.4}, "proposals0"),
    "fewer anchors of a level": ({"rpn_pre_nms_topk": 20}, "proposals0"),
}


@pytest.mark.parametrize("mistake", CONFIGS)
def test_the_comparison_notices_a_wrong_configuration(
    folder: Path, golden: dict[str, Any], model: InstancePointRend, compare: Compare, mistake: str
) -> None:
    change, stage = CONFIGS[mistake]
    wrong = build_instance(replace(model.config, **change), 0).eval()
    wrong.load_state_dict(model.state_dict())
    assert stage in out_of_tolerance(folder, golden, wrong, compare)


def _half_a_stride(height: int, width: int, stride: int, size: int) -> Tensor:
    return ANCHORS(height, width, stride, size) + stride / 2


def _rows_of_all_classes(logits: Tensor, classes: Tensor) -> Tensor:
    return -LOGITS(logits, classes).abs() if logits.shape[1] == 1 else LOGITS(logits, (classes + 1) % 80)


def _forgets_the_corner(boxes: Tensor, where: Tensor) -> Tensor:
    return where * (boxes[:, None, 2:] - boxes[:, None, :2])


def _certain_first(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return CHOOSE(-scores, count)


def _no_half_pixel(side: int) -> Tensor:
    return GRID(side) - 0.5 / side


ANCHORS, LOGITS, CHOOSE, GRID = rpn.anchors, points.class_logits, points.most_uncertain, points.regular_grid
CODE: dict[str, tuple[Any, str, Any, str]] = {
    "anchors in the middle of a cell": (rpn, "anchors", _half_a_stride, "proposals0"),
    "masks of the next class": (points, "class_logits", _rows_of_all_classes, "mask_logits_step0"),
    "boxes without their corner": (points, "box_points", _forgets_the_corner, "coarse_mask_logits"),
    "the certain points": (points, "most_uncertain", _certain_first, "points_step1"),
    "a grid from corner to corner": (points, "regular_grid", _no_half_pixel, "coarse_mask_logits"),
}


@pytest.mark.parametrize("mistake", CODE)
def test_the_comparison_notices_a_mistake_in_the_code(
    folder: Path,
    golden: dict[str, Any],
    model: InstancePointRend,
    compare: Compare,
    mistake: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, name, wrong, stage = CODE[mistake]
    monkeypatch.setattr(module, name, wrong)
    assert stage in out_of_tolerance(folder, golden, model, compare)


@torch.no_grad()
def test_forward_gives_what_its_stages_give(golden: dict[str, Any], model: InstancePointRend) -> None:
    resized = np.ascontiguousarray(golden["resized0"][:, :, ::-1])
    found = model(pad([normalise(resized, model.config)]), [resized.shape[:2]])[0]
    np.testing.assert_allclose(found.boxes.numpy(), golden["net_boxes0"], atol=1e-2)
    assert found.classes.tolist() == golden["net_classes0"].tolist()
    assert found.masks.shape == (5, 224, 224)
    union, boxes, scores = person(rescale(found, resized.shape[:2], (100, 140)), (100, 140), (0,), 0.5)
    assert np.array_equal((union >= 0.5).numpy(), golden["person_union0"].astype(bool))
    assert len(boxes) == len(scores) == 4


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("rcnn_R_50_FPN_coco", {}),
        ("rcnn_R_101_FPN_coco", {"depth": 101}),
        ("rcnn_X_101_32x8d_FPN_coco",
         {"depth": 101, "num_groups": 32, "width_per_group": 8, "stride_in_1x1": False}),
        ("rcnn_R_50_FPN_cityscapes", {"num_classes": 8}),
    ],
)  # fmt: skip
def test_names_and_shapes_are_those_of_the_zoo(goldens: Path, file: str, change: dict[str, Any]) -> None:
    path = goldens.parent / "specs" / "pointrend_keys" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with torch.device("meta"):
        built = InstancePointRend(InstanceConfig(**change))
    wanted = {k: shape for k, (shape, _) in json.loads(path.read_text())["keys"].items()}
    extra = re.compile(r"pixel_.*|.*cell_anchors.*")
    assert {k: list(v.shape) for k, v in built.state_dict().items()} == {
        k: v for k, v in wanted.items() if not extra.fullmatch(k)
    }


# --- Laws of inference -------------------------------------------------------------------------------------------


def images(count: int, seed: int = 0) -> Tensor:
    return 60 * torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_images_of_a_batch_do_not_change_each_other() -> None:
    model, batch, sizes = build_instance(replace(TINY, norm="FrozenBN"), 1).eval(), images(2), [(60, 96), (64, 80)]
    both = model(batch, sizes)
    for i in (0, 1):
        alone = model(batch[i : i + 1], sizes[i : i + 1])[0]
        assert torch.equal(alone.classes, both[i].classes)
        torch.testing.assert_close(alone.boxes, both[i].boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(alone.masks, both[i].masks, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_an_image_without_detections_has_none_beside_one_that_has_some() -> None:
    model = build_instance(replace(TINY, score_thresh_test=1.0), 1).eval()
    found = model(images(2), [(64, 96)] * 2)
    assert [x.masks.shape for x in found] == [(0, 28, 28)] * 2
    features = model.features(images(2))
    boxes = torch.tensor([[3.0, 4.0, 40.0, 50.0]])
    some = instance.Found(boxes=boxes, scores=torch.ones(1), classes=torch.zeros(1, dtype=torch.int64))
    none = instance.Found(boxes=boxes[:0], scores=torch.ones(0), classes=torch.zeros(0, dtype=torch.int64))
    assert [len(x) for x in model.masks(features["p2"], [none, some])] == [0, 1]


@pytest.mark.parametrize(("only", "least"), [((0,), 0.0), (None, 0.3), ((0, 2), 0.26), ((1,), 1.0)])
@torch.no_grad()
def test_asking_for_some_objects_gives_them_as_they_are_among_all(only: tuple[int, ...] | None, least: float) -> None:
    model, batch, sizes = build_instance(TINY, 1).eval(), images(2), [(64, 96)] * 2
    for every, some in zip(model(batch, sizes), model(batch, sizes, only=only, least_score=least), strict=True):
        kept = [i for i, c in enumerate(every.classes.tolist()) if (only is None or c in only)]
        wanted = every.at(torch.tensor([i for i in kept if every.scores[i] >= least], dtype=torch.int64))
        assert torch.equal(some.boxes, wanted.boxes)
        assert torch.equal(some.classes, wanted.classes)
        torch.testing.assert_close(some.masks, wanted.masks, rtol=1e-4, atol=1e-5)


def test_an_image_without_any_proposal_has_no_objects_and_can_be_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> list[rpn.Proposals]:
        return [rpn.Proposals(boxes=torch.zeros(0, 4), logits=torch.zeros(0))]

    monkeypatch.setattr(rpn, "propose", nothing)
    model = build_instance(TINY, 1)
    with torch.no_grad():
        assert model.eval()(images(1), [(64, 96)])[0].masks.shape == (0, 28, 28)
    for truth in (nobody(), target()):
        losses = model.losses(images(1), [(64, 96)], [truth], torch.Generator().manual_seed(3))
        assert all(bool(v.isfinite()) for v in losses.values())


@torch.no_grad()
def test_a_refinement_changes_chosen_points_only_and_the_first_covers_all() -> None:
    model = build_instance(TINY, 1).eval()
    fine, boxes = model.features(images(1))["p2"], [torch.tensor([[3.0, 4.0, 40.0, 50.0], [0.0, 0.0, 90.0, 60.0]])]
    classes = torch.tensor([2, 0])
    steps = list(model.refine(model.coarse(fine, boxes), fine, boxes, classes))
    assert [s.logits.shape[1] for s in steps] == [7, 14, 28]
    assert steps[0].index.tolist() == [list(range(49))] * 2
    for before, after in pairwise(steps):
        plain = functional.interpolate(before.logits[:, None], scale_factor=2.0, mode="bilinear")[:, 0]
        changed = (plain != after.logits).flatten(1)
        for row in (0, 1):
            assert set(changed[row].nonzero().flatten().tolist()) <= set(after.index[row].tolist())
        assert changed.sum() > 50


def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (build_instance(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert not all(torch.equal(v, c[k]) for k, v in a.items())


# --- Masks on the image ------------------------------------------------------------------------------------------


def detections(seed: int, count: int = 4, side: int = 14) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(count, 2, generator=generator) - 8
    boxes = torch.cat([corner, corner + 0.5 + 30 * torch.rand(count, 2, generator=generator)], dim=1)
    return Detections(
        boxes=boxes,
        scores=torch.rand(count, generator=generator).sort(descending=True).values,
        classes=torch.randint(0, 3, (count,), generator=generator),
        masks=torch.rand(count, side, side, generator=generator),
    )


def test_pasting_equals_the_reference(folder: Path) -> None:
    with np.load(folder / "primitives.npz") as file:
        boxes, masks = torch.from_numpy(file["paste_boxes"]), torch.from_numpy(file["paste_masks"])
        wanted = np.unpackbits(file["paste_out"], axis=-1).astype(bool)
    none = torch.zeros(len(boxes))
    found = paste(Detections(boxes=boxes, scores=none, classes=none.long(), masks=masks), (48, 64))
    assert np.array_equal((found >= 0.5).numpy(), wanted)
    shifted = paste(Detections(boxes=boxes + 0.5, scores=none, classes=none.long(), masks=masks), (48, 64))
    assert not np.array_equal((shifted >= 0.5).numpy(), wanted)


@given(seed=st.integers(0, 2**31), height=st.integers(1, 50), width=st.integers(1, 50), side=st.sampled_from([2, 14]))
def test_patches_hold_all_that_a_mask_is_on_the_whole_image(seed: int, height: int, width: int, side: int) -> None:
    found = detections(seed, side=side)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1)
    whole = []
    for box, mask in zip(found.boxes, found.masks, strict=True):
        where = (pixels - box[:2]) / (box[2:] - box[:2])
        whole.append(points.point_sample(mask[None, None], where[None])[0, 0])
    torch.testing.assert_close(paste(found, (height, width)), torch.stack(whole), rtol=1e-3, atol=1e-3)


@given(seed=st.integers(0, 2**31), least=st.floats(0, 1))
def test_a_person_is_the_largest_of_its_masks(seed: int, least: float) -> None:
    found = detections(seed)
    probability, boxes, scores = person(found, (40, 44), (0, 2), least)
    kept = [i for i in range(4) if found.classes[i] != 1 and found.scores[i] >= least]
    masks = paste(found, (40, 44))[kept]
    wanted = masks.amax(dim=0) if kept else torch.zeros(40, 44)
    assert torch.equal(probability, wanted)
    assert torch.equal(boxes, found.boxes[kept])
    assert torch.equal(scores, found.scores[kept])
    assert bool(((probability >= 0) & (probability <= 1)).all())


def test_a_hundred_persons_on_a_large_image_take_no_hundred_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sample = points.point_sample

    def spy(features: Tensor, where: Tensor, mode: str = "bilinear") -> Tensor:
        out = sample(features, where, mode)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(points, "point_sample", spy)
    many = detections(3, count=100)
    person(many, (3000, 4000), (0, 1, 2), 0.0)
    assert len(sizes) > 90
    assert sum(sizes) < 100 * 40 * 40


def test_a_full_mask_fills_its_box_and_nothing_else() -> None:
    boxes = torch.tensor([[2.0, 3.0, 10.0, 8.0]])
    one = Detections(
        boxes=boxes, scores=torch.ones(1), classes=torch.zeros(1, dtype=torch.int64), masks=torch.ones(1, 28, 28)
    )
    wanted = torch.zeros(12, 14, dtype=torch.bool)
    wanted[3:8, 2:10] = True
    assert torch.equal(paste(one, (12, 14))[0] >= 0.5, wanted)
    assert len(list(patches(one.at(torch.tensor([False])), (12, 14)))) == 0


@given(seed=st.integers(0, 2**31), outer=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_rescaling_goes_with_each_axis_cuts_and_drops_the_empty(seed: int, outer: tuple[int, int]) -> None:
    found, inner = detections(seed), (30, 36)
    moved = rescale(found, inner, outer)
    factor = torch.tensor([outer[1] / 36, outer[0] / 30]).repeat(2)
    cut = rpn.clip(found.boxes * factor, outer)
    kept = rpn.not_empty(cut)
    assert torch.equal(moved.boxes, cut[kept])
    assert torch.equal(moved.scores, found.scores[kept])
    assert torch.equal(moved.masks, found.masks[kept])


# --- Learning ----------------------------------------------------------------------------------------------------


def target() -> Target:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 10:50, 8:40] = True
    masks[1, 20:60, 50:90] = True
    masks[1, 20:40, 50:60] = False
    boxes = torch.tensor([[8.0, 10, 40, 50], [50, 20, 90, 60]])
    return Target(boxes=boxes, classes=torch.tensor([0, 2]), masks=masks)


def nobody() -> Target:
    return Target(
        boxes=torch.zeros(0, 4),
        classes=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 64, 96, dtype=torch.bool),
    )


NAMES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_mask_point"}


def picture() -> Tensor:
    out = 5 * torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    truth = target()
    out[0, 0][truth.masks[0]] += 80
    out[0, 2][truth.masks[1]] += 80
    return out


def test_it_learns_one_image_by_heart() -> None:
    model = build_instance(replace(TINY, score_thresh_test=0.3), 0).train()
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(90):
        losses = model.losses(picture(), [(64, 96)], [target()], generator, num_points=49)
        assert set(losses) == NAMES
        history.append({k: v.item() for k, v in losses.items()})
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    first, last = ({k: np.mean([h[k] for h in part]) for k in NAMES} for part in (history[:5], history[-5:]))
    assert sum(last.values()) < 0.4 * sum(first.values())
    assert last["loss_cls"] < first["loss_cls"]
    assert last["loss_mask_point"] < 0.5
    with torch.no_grad():
        found = model.eval()(picture(), [(64, 96)])[0]
    union = person(found, (64, 96), (0, 2), 0.3)[0] >= 0.5
    truth = target().masks.any(dim=0)
    assert (union & truth).sum() / (union | truth).sum() > 0.7


def test_every_loss_has_a_gradient_and_follows_from_the_seed() -> None:
    model = build_instance(TINY, 0).train()

    def losses() -> dict[str, Tensor]:
        return model.losses(images(2), [(64, 96)] * 2, [target(), nobody()], torch.Generator().manual_seed(3))

    once, again = losses(), losses()
    assert {k: v.item() for k, v in once.items()} == {k: v.item() for k, v in again.items()}
    sum(once.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    missing = [k for k, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert missing == []


def test_an_image_with_nobody_teaches_background_only() -> None:
    model = build_instance(TINY, 0).train()
    losses = model.losses(images(1), [(64, 96)], [nobody()], torch.Generator().manual_seed(3))
    zero = {k for k, v in losses.items() if v.item() == 0}
    assert zero == {"loss_rpn_loc", "loss_box_reg", "loss_mask", "loss_mask_point"}
    assert all(bool(v.isfinite()) for v in losses.values())


def test_matching_knows_positive_negative_and_neither() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 40], [90, 90, 99, 99], [50, 50, 53, 60]])
    index, labels = instance_loss.match(truth, boxes, low=0.3, high=0.7, keep_best=True)
    assert labels.tolist() == [1, -1, 0, 0, 1]  # the last only overlaps by 0.3, but no other is better
    assert index[[0, 1, 2, 4]].tolist() == [0, 0, 0, 1]
    assert instance_loss.match(truth, boxes, low=0.5, high=0.5, keep_best=False)[1].tolist() == [1, 1, 0, 0, 0]
    assert instance_loss.match(truth[:0], boxes, low=0.3, high=0.7, keep_best=True)[1].tolist() == [0] * 5


def test_an_object_that_no_box_touches_makes_none_of_them_positive() -> None:
    apart = torch.tensor([[0.0, 0, 5, 5], [20, 20, 30, 30]])
    _, labels = instance_loss.match(torch.tensor([[50.0, 50, 60, 60]]), apart, low=0.3, high=0.7, keep_best=True)
    assert labels.tolist() == [0, 0]


@given(labels=st.lists(st.sampled_from([-1, 0, 1]), max_size=40), count=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_draw_is_of_each_kind_without_repetition_and_full_where_it_can_be(
    labels: list[int], count: int, seed: int
) -> None:
    kinds = torch.tensor(labels, dtype=torch.int64)
    positive, negative = instance_loss.draw(kinds, count, 0.25, torch.Generator().manual_seed(seed))
    assert all(kinds[positive] == 1)
    assert all(kinds[negative] == 0)
    assert len(set(positive.tolist())) == len(positive) == min(labels.count(1), count // 4)
    assert len(set(negative.tolist())) == len(negative) == min(labels.count(0), count - len(positive))


def test_losses_of_right_answers_are_zero() -> None:
    truth = target()
    proposals = truth.boxes + torch.tensor([2.0, -1.0, 3.0, 2.0])
    sampled = [Sampled(boxes=proposals, classes=truth.classes, matched=torch.tensor([0, 1]))]
    logits = torch.full((2, 4), -50.0)
    logits[[0, 1], truth.classes] = 50.0
    deltas = torch.zeros(2, 3, 4)
    deltas[[0, 1], truth.classes] = rpn.encode(truth.boxes, proposals, (10.0, 10.0, 5.0, 5.0))
    found = instance_loss.box_losses(logits, deltas.flatten(1), sampled, [truth])
    assert {k: v.item() for k, v in found.items()} == pytest.approx({"loss_cls": 0.0, "loss_box_reg": 0.0}, abs=1e-5)
    moved = instance_loss.predicted_objects(deltas.flatten(1), sampled)[0]
    torch.testing.assert_close(moved.boxes, truth.boxes, rtol=1e-4, atol=1e-3)


def test_losses_of_boxes_are_means_over_all_and_sums_over_objects() -> None:
    truth = target()
    boxes = torch.cat([truth.boxes, torch.tensor([[0.0, 0, 5, 5]] * 6)])
    sampled = [Sampled(boxes=boxes, classes=torch.tensor([0, 2] + [3] * 6), matched=torch.tensor([0, 1] + [0] * 6))]
    found = instance_loss.box_losses(torch.zeros(8, 4), torch.full((8, 12), 0.5), sampled, [truth])
    assert found["loss_cls"].item() == pytest.approx(np.log(4), abs=1e-6)
    assert found["loss_box_reg"].item() == pytest.approx(2 * 4 * 0.5 / 8, abs=1e-6)


def test_labels_of_a_box_are_those_of_its_own_object() -> None:
    truth = target()
    objects = [Sampled(boxes=truth.boxes.flip(0), classes=torch.tensor([2, 0]), matched=torch.tensor([1, 0]))]
    labels = instance_loss.coarse_labels(objects, [truth], 4)
    assert labels[1].tolist() == [[1.0] * 4] * 4
    assert labels[0].tolist() == [[0.0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    grid = points.regular_grid(8).expand(2, -1, -1)
    soft = instance_loss.point_labels(objects, [truth], grid)
    assert soft[1].tolist() == [1.0] * 64
    assert soft[0].view(8, 8)[0, 0] == 0
    assert soft[0].mean() == pytest.approx(1 - 200 / 1600, abs=0.02)


@pytest.mark.parametrize(
    ("boxes", "masks", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(2, 8, 8), r"boxes \(2, 4\)"),
        (torch.ones(2, 4), torch.zeros(1, 8, 8), r"masks \(2, H, W\)"),
        (torch.tensor([[0.0, 0, 3, 3], [4, 4, 4, 9]]), torch.zeros(2, 8, 8), r"boxes \[1\] have none"),
    ],
)
def test_an_impossible_target_is_refused(boxes: Tensor, masks: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(boxes=boxes, classes=torch.tensor([0, 1]), masks=masks.bool())


# --- Configuration -----------------------------------------------------------------------------------------------


def test_a_configuration_survives_json() -> None:
    config = replace(TINY, person_classes=(0, 1), pixel_std=(57.375, 57.12, 58.395))
    assert parse_config(InstanceConfig, json.loads(config_json(config))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 20}, "depth must be one of"),
        ({"box_fc_dim": 0}, "box_fc_dim must be >= 1, got 0"),
        ({"mask_num_fc": 17}, r"mask_num_fc must be in 1\.\.16"),
        ({"num_classes": 0}, "num_classes must be >= 1"),
        ({"person_classes": (3,)}, "person_classes must be distinct"),
        ({"person_classes": ()}, "person_classes must be distinct"),
        ({"person_classes": (0, 0)}, "person_classes must be distinct"),
        ({"nms_thresh_test": 1.5}, r"nms_thresh_test must be in 0\.\.1, got 1\.5"),
        ({"score_thresh_test": float("nan")}, "score_thresh_test must be in"),
        ({"mask_pooler_resolution": 15}, "multiple of coarse_resolution, 7, got 15"),
        ({"subdivision_steps": 9}, "to at most 2048, got 9 from 7"),
        ({"subdivision_steps": 10**4}, "to at most 2048"),
        ({"subdivision_num_points": 4 * 28 * 28}, "must be below 3136"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
