"""The primitives of our PointRend beside what the original's gave for the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms

from benchmarks.parity_rows import Arrays, Row, close, pixels, same_sets
from teachers import points, roi, rpn
from teachers.backbone import network_size, resize, restore
from teachers.instance import Detections, paste

CASE = "primitives"
TOLERANCE = 1e-5

Info = Mapping[str, Any]


def _close(stage: str, wanted: Any, ours: Tensor, tolerance: float = TOLERANCE) -> Row:
    """Relative to values above 1."""
    scale = np.maximum(1.0, np.abs(np.asarray(wanted, np.float64)))
    return close(CASE, stage, wanted / scale, np.asarray(ours.detach().numpy(), np.float64) / scale, tolerance)


def compare(arrays: Arrays, info: Info) -> list[Row]:
    """Every primitive whose arrays are there.

    Raises:
        KeyError: Some of a primitive's arrays are there, others are not.
    """
    return [row for key, rows in PRIMITIVES.items() if key in arrays for row in rows(arrays, info)]


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


def _samples(a: Arrays, _: Info) -> Iterator[Row]:
    for inputs, where, out, mode in (
        ("ps_in", "ps_coords", "ps_out", "bilinear"),
        ("ps_in", "ps_grid", "ps_grid_out", "bilinear"),
        ("psn_in", "psn_coords", "psn_out", "nearest"),
    ):
        yield _close(out, a[out], points.point_sample(_tensor(a[inputs]), _tensor(a[where]), mode))


def _grids(a: Arrays, _: Info) -> Iterator[Row]:
    for key in (k for k in a if k.startswith("regular_grid_")):
        yield _close(key, a[key], points.regular_grid(int(key.rsplit("_", 1)[1])), 1e-6)


def _uncertainty(a: Arrays, _: Info) -> Iterator[Row]:
    for key in ("unc_sem", "unc_sem_pts"):
        yield _close(f"{key}_out", a[f"{key}_out"], points.uncertainty(_tensor(a[f"{key}_in"])))
    found = points.class_uncertainty(_tensor(a["unc_inst_in"]), _tensor(a["unc_inst_classes"]).long())
    yield _close("unc_inst_out", a["unc_inst_out"], found)
    one = _tensor(a["unc_inst1_in"])
    zeros = torch.zeros(len(one), dtype=torch.int64)
    yield _close("unc_inst1_out", a["unc_inst1_out"], points.class_uncertainty(one, zeros))


def _most_uncertain(a: Arrays, _: Info) -> Iterator[Row]:
    for key in (k for k in a if k.startswith("grid_idx_")):
        count = int(key.rsplit("_", 1)[1])
        index, where = points.most_uncertain(_tensor(a["grid_in"]), count)
        yield same_sets(CASE, key, a[key], index.numpy(), 0)
        by_place = [np.argsort(x, axis=1)[..., None] for x in (a[key], index.numpy())]
        wanted = np.take_along_axis(a[f"grid_coords_{count}"], by_place[0], axis=1)
        yield _close(f"grid_coords_{count}", wanted, _tensor(np.take_along_axis(where.numpy(), by_place[1], axis=1)))


def _random(a: Arrays, info: Info) -> Iterator[Row]:
    for name in (k for k in info if k.startswith("rnd_")):
        draw = info[name]
        found = points.uncertain_points(
            _tensor(a["rnd_in"]), points.uncertainty, draw["num_points"],
            oversample=draw["oversample_ratio"], importance=draw["importance_sample_ratio"],
            generator=torch.Generator().manual_seed(draw["torch_manual_seed"]),
        ).numpy()  # fmt: skip
        chosen = int(draw["importance_sample_ratio"] * draw["num_points"])
        wanted = a[f"{name}_out"]
        sides = [[sorted(row[:chosen]) + row[chosen:] for row in x.tolist()] for x in (wanted, found)]
        yield _close(f"{name}_out", np.array(sides[0]), _tensor(sides[1]), 1e-6)


def _losses(a: Arrays, _: Info) -> Iterator[Row]:
    logits = _tensor(a["loss_point_logits"]).requires_grad_()
    labels = _tensor(a["loss_targets"])
    loss = points.point_loss(logits, labels, _tensor(a["loss_points"]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    yield _close("loss_point", a["loss_point"], loss)
    yield _close("loss_point_grad", a["loss_point_grad"], logits.grad, 1e-7)
    full = functional.interpolate(
        _tensor(a["loss_coarse_logits"]), scale_factor=4.0, mode="bilinear", align_corners=False
    )
    yield _close("loss_coarse", a["loss_coarse"], points.cross_entropy(full, labels.long()))


def _heads(a: Arrays, _: Info) -> Iterator[Row]:
    for each in (0, 1):
        prefix = f"head_each{each}_"
        state = {k.removeprefix(f"{prefix}w."): _tensor(v) for k, v in a.items() if k.startswith(f"{prefix}w.")}
        fine, coarse = _tensor(a[f"{prefix}fine"]), _tensor(a[f"{prefix}coarse"])
        head = points.PointHead(
            fine=fine.shape[1],
            classes=coarse.shape[1],
            width=state["fc1.weight"].shape[0],
            layers=len(state) // 2 - 1,
            coarse_each_layer=bool(each),
        )
        head.load_state_dict(state)
        yield _close(f"{prefix}out", a[f"{prefix}out"], head(fine, coarse))


def _post(a: Arrays, info: Info) -> Iterator[Row]:
    found = restore(_tensor(a["post_in"]), tuple(info["post"]["image_size"]), tuple(info["post"]["out"]))
    yield _close("post_out", a["post_out"], found)


def _instances(a: Arrays, info: Info) -> Iterator[Row]:
    boxes, where = _tensor(a["inst_boxes"]), _tensor(a["inst_box_points"])
    counts, scales = info["inst"]["boxes_per_image"], info["inst"]["feature_scales"]
    split = torch.split(boxes, counts)
    yield _close("inst_points_image", a["inst_points_image"], points.box_points(boxes, where))
    levels = [
        points.sample_in_boxes(_tensor(a[f"inst_feat{i}"]), round(1 / scale), split, where)
        for i, scale in enumerate(scales)
    ]
    yield _close("inst_feats_out", a["inst_feats_out"], torch.cat(levels, dim=1))
    width = int(a["inst_gt_shape"][-1])
    masks = _tensor(np.unpackbits(a["inst_gt_masks"], axis=-1)[..., :width].astype(bool))
    labels = points.mask_labels(masks, boxes, where)
    yield _close("inst_point_labels", a["inst_point_labels"], labels)
    classes = _tensor(a["inst_gt_classes"]).long()
    loss = points.mask_loss(_tensor(a["inst_point_logits"]), labels, classes)
    yield _close("inst_point_loss", a["inst_point_loss"], loss)


def _align(a: Arrays, info: Info) -> Iterator[Row]:
    how = info["roi_align"]
    found = roi.align(_tensor(a["ra_in"]), _tensor(a["ra_rois"]), how["output"], how["spatial_scale"])
    yield _close("ra_out", a["ra_out"], found)


def _nms(a: Arrays, _: Info) -> Iterator[Row]:
    boxes, scores, ids = _tensor(a["nms_boxes"]), _tensor(a["nms_scores"]), _tensor(a["nms_ids"]).long()
    for key in (k for k in a if k.startswith("nms_keep_")):
        found = batched_nms(boxes, scores, ids, int(key.rsplit("_", 1)[1]) / 10)
        yield close(CASE, key, a[key], found.numpy(), 0)


def _boxes(a: Arrays, _: Info) -> Iterator[Row]:
    deltas, boxes = _tensor(a["bt_deltas"]), _tensor(a["nms_boxes"])
    found = rpn.decode(deltas[:, :4], boxes, rpn.RPN_WEIGHTS)
    yield _close("bt_rpn", a["bt_rpn"], found)
    yield _close("bt_box", a["bt_box"], roi.class_boxes(deltas, boxes).flatten(1))


def _anchors(a: Arrays, _: Info) -> Iterator[Row]:
    for i, (stride, size) in enumerate(zip(rpn.STRIDES, rpn.SIZES, strict=True)):
        wanted = a[f"anchors_{i}"]
        centres = (wanted[:, :2] + wanted[:, 2:]) / 2
        columns, rows = (round(float(x) / stride) + 1 for x in centres.max(axis=0))
        yield _close(f"anchors_{i}", wanted, rpn.anchors(rows, columns, stride, size))


def _paste(a: Arrays, info: Info) -> Iterator[Row]:
    boxes, masks = _tensor(a["paste_boxes"]), _tensor(a["paste_masks"])
    height, width = info["paste"]["image_hw"]
    nothing = torch.zeros(len(boxes))
    found = paste(Detections(boxes=boxes, scores=nothing, classes=nothing.long(), masks=masks), (height, width))
    wanted = np.unpackbits(a["paste_out"], axis=-1)[..., :width].astype(bool)
    yield pixels(CASE, "paste_out", wanted, (found >= info["paste"]["threshold"]).numpy(), 0)


def _resize(a: Arrays, info: Info) -> Iterator[Row]:
    for key in ("pil_up", "pil_down"):
        yield close(CASE, key, a[key], resize(a["pil_in"], a[key].shape[:2]), 0)
    rows = np.array(info["resize_shapes"])
    found = [network_size(h, w, shortest=s, longest=most) for h, w, s, most in rows[:, :4].tolist()]
    yield close(CASE, "resize_shapes", rows[:, 4:], np.array(found), 0)


#: The first array of each primitive -> its comparison.
PRIMITIVES: dict[str, Callable[[Arrays, Info], Iterator[Row]]] = {
    "ps_in": _samples,
    "regular_grid_7": _grids,
    "unc_sem_in": _uncertainty,
    "grid_in": _most_uncertain,
    "rnd_in": _random,
    "loss_targets": _losses,
    "head_each0_fine": _heads,
    "post_in": _post,
    "inst_boxes": _instances,
    "ra_in": _align,
    "nms_boxes": _nms,
    "bt_deltas": _boxes,
    "anchors_0": _anchors,
    "paste_boxes": _paste,
    "pil_in": _resize,
}
