"""What our PointRend gives at every stage, under the names of the stored runs of the original."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.parity_rows import Arrays
from teachers import instance, points
from teachers.backbone import BackboneConfig, network_size, normalise, pad, resize, restore
from teachers.instance import Detections, Found, InstancePointRend
from teachers.semantic import SemanticPointRend

PointRend = SemanticPointRend | InstancePointRend


def inputs(golden: Arrays, config: BackboneConfig) -> tuple[list[Any], list[Any], Tensor]:
    """A case's images (RGB), their resized versions, and the padded batch."""
    count = sum(bool(re.fullmatch(r"image\d+", k)) for k in golden)
    images = [np.ascontiguousarray(golden[f"image{j}"][:, :, ::-1]) for j in range(count)]
    bounds = {"shortest": config.min_size_test, "longest": config.max_size_test}
    resized = [resize(x, network_size(*x.shape[:2], **bounds)) for x in images]
    return images, resized, pad([normalise(x, config) for x in resized])


def _stats(x: Tensor) -> NDArray[Any]:
    x = x.double()
    return torch.stack([x.mean(), x.std(), x.min(), x.max(), x.abs().mean()]).numpy()


def _bottom_up(model: PointRend, batch: Tensor) -> Arrays:
    return {f"{k}_stats": _stats(v) for k, v in model.backbone.bottom_up(batch).items()}


@torch.no_grad()
def semantic_arrays(model: SemanticPointRend, golden: Arrays) -> tuple[Arrays, Arrays]:
    """Every stage under the golden's names, and what tells how sure a final pixel is.

    The latter are, for each image, (H, W) float32: `margin{j}`, the person's logit less the best other one's, and
    `touched{j}`, above 0 where points reach that one side only chose.
    """
    images, resized, batch = inputs(golden, model.config)
    features = model.features(batch)
    coarse = model.coarse(features)
    out: Arrays = {k: v.numpy() for k, v in features.items()} | _bottom_up(model, batch)
    out |= {"coarse_logits": coarse.numpy(), "p6_stats": _stats(features["p5"][:, :, ::2, ::2])}
    logits, touched = coarse, torch.zeros(len(batch), *_final_size(model, coarse))
    for number, step in enumerate(model.refine(coarse, features["p2"]), start=1):
        logits = step.logits
        out |= {f"points_step{number}": step.index.numpy(), f"logits_step{number}": logits.numpy()}
        theirs = golden.get(f"points_step{number}")
        if theirs is not None and theirs.shape == step.index.shape:
            touched = touched.maximum(_reached(theirs, step.index, logits.shape[2:], touched.shape[1:]))
            out[f"point_coords_step{number}"] = _in_order(theirs, step.index, step.points)
            values = _in_order(theirs, step.index, step.point_logits.transpose(1, 2))
            out[f"point_logits_step{number}"] = values.transpose(0, 2, 1)
    extra: Arrays = {}
    for j, image in enumerate(images):
        inner, outer = resized[j].shape[:2], image.shape[:2]
        final = restore(logits[j], inner, outer)
        out |= {f"resized{j}": resized[j][:, :, ::-1]} | _semantic_final(final, model.config.person_classes[0], j)
        extra[f"margin{j}"] = _margin(final, model.config.person_classes[0]).numpy()
        extra[f"touched{j}"] = restore(touched[j][None], inner, outer)[0].numpy()
    return out, extra


def _final_size(model: SemanticPointRend, coarse: Tensor) -> tuple[int, int]:
    return coarse.shape[2] << model.config.subdivision_steps, coarse.shape[3] << model.config.subdivision_steps


def _semantic_final(final: Tensor, person: int, j: int) -> Arrays:
    best = final.argmax(dim=0).numpy()
    return {
        f"final_logits{j}": final.numpy(),
        f"final_person_logit{j}": final[person].numpy(),
        f"final_top1_logit{j}": final.amax(dim=0).numpy(),
        f"final_argmax{j}": best,
        f"person_mask{j}": best == person,
        f"person_prob{j}": final.softmax(dim=0)[person].numpy(),
    }


def _margin(final: Tensor, person: int) -> Tensor:
    others = [c for c in range(len(final)) if c != person]
    return final[person] - final[others].amax(dim=0)


@torch.no_grad()
def instance_arrays(model: InstancePointRend, golden: Arrays) -> tuple[Arrays, Arrays]:
    """Every stage under the golden's names; and what tells how sure a final pixel is.

    The latter are, for each image, `logit{j}` and `touched{j}` (as in `semantic_arrays`) of the masks, (R, H, W)
    float32, and `union_logit{j}` and `union_touched{j}` of the persons together, (H, W).

    The rows of proposals follow the golden's order, where ours is another one between nearly equal scores.
    """
    images, resized, batch = inputs(golden, model.config)
    sizes = [x.shape[:2] for x in resized]
    features = model.features(batch)
    proposals = model.proposals(features, sizes)
    x = model.box_features(features, [p.boxes for p in proposals])
    logits, deltas = model.roi_heads.box_predictor(x)
    found = model.detect(logits, deltas, proposals, sizes)
    out: Arrays = {k: v.numpy() for k, v in features.items()} | _bottom_up(model, batch)
    for number, level in enumerate(model.proposal_generator(features), start=2):
        out |= {f"rpn_p{number}_obj_stats": _stats(level.logits), f"rpn_p{number}_delta_stats": _stats(level.deltas)}
    out["num_per_image"] = np.array([len(f.boxes) for f in found])
    for j, (p, f) in enumerate(zip(proposals, found, strict=True)):
        order = _nearest(golden.get(f"proposals{j}"), p.boxes)
        out |= {f"proposals{j}": p.boxes.numpy()[order], f"objectness{j}": p.logits.numpy()[: len(order)]}
        out |= {f"resized{j}": resized[j][:, :, ::-1], f"num_proposals{j}": np.array(len(p.boxes))}
        out |= {f"net_boxes{j}": f.boxes.numpy(), f"net_scores{j}": f.scores.numpy()}
        out[f"net_classes{j}"] = f.classes.numpy()
    order = _nearest(golden.get("proposals0"), proposals[0].boxes)
    for key, value in {"box_features": x, "cls_logits": logits, "bbox_deltas": deltas}.items():
        out[key] = value.numpy()[order][: len(golden.get(key, value))]
    masks, touched = _mask_steps(model, golden, features["p2"], found, out)
    return out, _instance_final(model, out, found, masks, touched, sizes, [x.shape[:2] for x in images])


def _mask_steps(
    model: InstancePointRend, golden: Arrays, fine: Tensor, found: Sequence[Found], out: Arrays
) -> tuple[Tensor, Tensor]:
    """Fill in the stages of all masks; give final probabilities and what differently chosen points reach, (R, S, S)."""
    boxes, classes = [f.boxes for f in found], torch.cat([f.classes for f in found])
    side = instance.mask_side(model.config)
    touched = torch.zeros(len(classes), side, side)
    if not len(classes):
        return touched, touched
    coarse = model.coarse(fine, boxes)
    out["coarse_mask_logits"] = points.class_logits(coarse, classes)[:, 0].numpy()
    logits = coarse
    for number, step in enumerate(model.refine(coarse, fine, boxes, classes)):
        logits = step.logits
        out |= {f"points_step{number}": step.index.numpy(), f"mask_logits_step{number}": logits.numpy()}
        out[f"mask_prob_step{number}_u8"] = (logits.sigmoid() * 255).round().numpy()
        theirs = golden.get(f"points_step{number}")
        if theirs is not None and theirs.shape == step.index.shape:
            touched = touched.maximum(_reached(theirs, step.index, logits.shape[1:], (side, side)))
    return logits.sigmoid(), touched


def _instance_final(
    model: InstancePointRend,
    out: Arrays,
    found: Sequence[Found],
    masks: Tensor,
    touched: Tensor,
    sizes: Sequence[tuple[int, int]],
    outer: Sequence[tuple[int, int]],
) -> Arrays:
    extra: Arrays = {}
    counts = [len(f.boxes) for f in found]
    both = zip(torch.split(masks, counts), torch.split(touched, counts), strict=True)
    for j, (f, (mine, reach)) in enumerate(zip(found, both, strict=True)):
        scaled, there = (
            instance.rescale(Detections(boxes=f.boxes, scores=f.scores, classes=f.classes, masks=m), sizes[j], outer[j])
            for m in (mine, reach)
        )
        soft = instance.paste(scaled, outer[j])
        out |= {f"boxes{j}": scaled.boxes.numpy(), f"scores{j}": scaled.scores.numpy()}
        out |= {f"classes{j}": scaled.classes.numpy(), f"masks{j}": (soft >= 0.5).numpy()}
        union, reached = (instance.person(x, outer[j], model.config.person_classes, 0.0)[0] for x in (scaled, there))
        out[f"person_union{j}"] = (union >= 0.5).numpy()
        extra |= {f"logit{j}": soft.logit().numpy(), f"touched{j}": instance.paste(there, outer[j]).numpy()}
        extra |= {f"union_logit{j}": union.logit().numpy(), f"union_touched{j}": reached.numpy()}
    return extra


def _reached(theirs: NDArray[Any], ours: Tensor, shape: Sequence[int], final: Sequence[int]) -> Tensor:
    """Where points chosen by one side only reach on the final map: (N, H, W) float32, 0 or 1."""
    flat = torch.zeros(2, len(ours), shape[0] * shape[1])
    flat[0].scatter_(1, torch.from_numpy(theirs.astype(np.int64)), 1.0)
    flat[1].scatter_(1, ours, 1.0)
    differs = (flat[0] != flat[1]).float().view(len(ours), 1, *shape)
    # Each later doubling spreads a value by half a cell of its own: by less than one of these cells in all.
    spread = functional.max_pool2d(differs, kernel_size=3, stride=1, padding=1)
    return functional.interpolate(spread, size=tuple(final), mode="nearest")[:, 0]


def _in_order(theirs: NDArray[Any], ours: Tensor, values: Tensor) -> NDArray[Any]:
    """Our values (N, P, ...) of the points that the original chose, in its order; NaN where we chose others."""
    out = np.full(values.shape, np.nan, np.float32)
    for i in range(len(theirs)):
        place = {index: k for k, index in enumerate(ours[i].tolist())}
        for k, index in enumerate(theirs[i].tolist()):
            if index in place:
                out[i, k] = values[i, place[index]].numpy()
    return out


def _nearest(theirs: NDArray[Any] | None, ours: Tensor) -> NDArray[Any]:
    """For each of the original's boxes the nearest of ours at most two ranks away, as equal scores may change places.

    All of ours where it stored none.
    """
    if theirs is None or not len(ours):
        return np.arange(len(ours))
    near = torch.cdist(torch.from_numpy(theirs).double(), ours.double(), p=1).argmin(dim=1).numpy()
    ranks = np.minimum(np.arange(len(theirs)), len(ours) - 1)
    return np.where(np.abs(near - ranks) <= 2, near, ranks)
