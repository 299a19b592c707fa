"""Our metrics beside the recorded numbers of the official implementations, metric by metric.

Usage: python -m benchmarks.metrics_parity [DIR]

DIR is a folder laid out like ``$CURATE_SHARED/goldens/evaluation`` (the default): ``masks_boundary_davis.npz``,
``temporal.npz`` and ``temporal.json``. Prints, for each metric, how many numbers were compared, how many differ by
more than the allowance, and the worst difference. Exit status: 0 all agree, 1 some differ, 2 the folder is unusable.

Not compared, because the house has no such metric: ``etc_*`` and ``vspw_*`` (flow consistency of two papers by their
own warps), ``conn`` (connectivity error). ``stN/MRD`` decay is compared where it is a number: from 256 frames on the
official one is NaN by an overflow.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.shared import SHARED
from evaluation.boundary import (
    band_width,
    boundary,
    contour_truth,
    iou_and_boundary_iou,
    match,
)
from evaluation.masks import iou, overlap_counts
from evaluation.soft import dtssd, gradient_error, mad, mse
from evaluation.temporal import adjacent, statistics, video_consistency
from evaluation.warp import warp, warped_pair

Arrays = Mapping[str, NDArray[Any]]
Case = dict[str, Any]
Compared = Iterator[tuple[str, ArrayLike, ArrayLike]]

# How far a number may be off; counts, pixels and all that is not listed must be equal. The recorded soft metrics were
# summed in float32, and statistics in another order.
ALLOWANCE = {
    "soft MAD": 1e-4,
    "soft MSE": 1e-4,
    "soft gradient error": 1e-6,
    "soft dtSSD": 1e-5,
    "statistics mean": 1e-12,
    "statistics decay": 1e-12,
}


class UnusableError(Exception):
    """The folder cannot be read as goldens."""


@dataclass(slots=True)
class Tally:
    """What became of one metric.

    Attributes:
        compared: numbers.
        mismatches: of them, those off by more than the allowance.
        worst: the largest difference.
    """

    compared: int = 0
    mismatches: int = 0
    worst: float = 0.0

    def add(self, got: ArrayLike, expected: ArrayLike, allowance: float) -> None:
        """Counts numbers; NaN equals NaN, and nothing else."""
        a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        if a.shape != b.shape:
            self.compared, self.mismatches, self.worst = self.compared + b.size, self.mismatches + b.size, np.inf
            return
        known = ~(np.isnan(a) & np.isnan(b))
        off = np.nan_to_num(np.abs(a - b)[known], nan=np.inf)
        self.compared += a.size
        self.mismatches += int((off > allowance).sum())
        self.worst = max(self.worst, float(off.max(initial=0)))


def compare(folder: Path) -> dict[str, Tally]:
    """The tally of every metric, in order.

    Raises:
        UnusableError: a file is missing, damaged or laid out otherwise.
    """
    tallies: dict[str, Tally] = {}
    for part in (_regions, _contours, _motion, _clips, _statistics, _soft):
        for name, got, expected in part(folder):
            tallies.setdefault(name, Tally()).add(got, expected, ALLOWANCE.get(name, 0.0))
    return tallies


def _regions(folder: Path) -> Compared:
    for case in _masks(folder):
        gt, pred, void = case["gt"], case["pred"], case["void"]
        yield "IoU", iou(pred, gt), case["davis_J"]
        yield "IoU, void", iou(pred, gt, void), case["davis_J_void"]
        for index, ratio in enumerate(case["ratios"].tolist()):
            both = iou_and_boundary_iou(pred, gt, ratio)
            yield "band width", both.d, case["dilation_px"][index]
            yield "mask pixels", both.mask, (case["mask_inter"], case["mask_union"])
            yield "band pixels", both.band, (case["boundary_inter"][index], case["boundary_union"][index])
            yield "Boundary IoU, raw", both.boundary_iou_raw, case["boundary_iou_raw"][index]
        both = iou_and_boundary_iou(pred, gt)
        least = 0.0 if both.mask[1] == 0 else min(both.iou, both.boundary_iou)
        yield "min(IoU, Boundary IoU), COCO", least, case["coco_boundary_min"]
        d = band_width(*gt.shape)
        yield "bands, pixel by pixel", boundary(gt, d), case["gt_boundary_r002"]
        yield "bands, pixel by pixel", boundary(pred, d), case["pred_boundary_r002"]


def _contours(folder: Path) -> Compared:
    for case in _masks(folder):
        gt, pred, void = case["gt"], case["pred"], case["void"]
        matched = match(pred, contour_truth(gt))
        yield "contour pixels", (matched.true, matched.predicted), case["seg2bmap_area"]
        yield "F, 0.008 of the diagonal", matched.f, case["davis_F"]
        yield "F, 1 px", match(pred, contour_truth(gt, 1)).f, case["davis_F_th1"]
        yield "F, 3 px", match(pred, contour_truth(gt, 3)).f, case["davis_F_th3"]
        yield "F, void", match(pred, contour_truth(gt, void=void)).f, case["davis_F_void"]


def _motion(folder: Path) -> Compared:
    arrays, about = _temporal(folder)
    for entry in _entries(about, "videos"):
        video = _video(arrays, entry)
        for t, (before, now) in enumerate(zip(video["pred"][:-1], video["pred"][1:], strict=True)):
            yield "adjacent, pixels", overlap_counts(before, now), video["adj_iu"][t]
            yield from _warps(video, t)
        paired = np.ones(len(video["pred"]) - 1, np.bool_)
        yield "adjacent, IoU", adjacent(video["pred"], paired), video["adj_davis_J"]
        for name, nearest in (("near", True), ("bil", False)):
            yield f"{name}: warped mask", warp(video["pred"][0], video["flow"], nearest=nearest)[0], video[f"{name}_0"]


def _warps(video: Case, t: int) -> Compared:
    pred, truth, flow = video["pred"], video["gt"], video["flow"]
    everywhere = np.ones(pred[0].shape, np.bool_)
    moved, inside = warp(pred[t], flow, nearest=True)
    yield "near: valid pixels", np.count_nonzero(inside), video["valid_px"][t]
    yield "near: pixels, inside", overlap_counts(moved, pred[t + 1], ~inside), video["near_iu"][t]
    yield "near: pixels, anywhere", overlap_counts(moved, pred[t + 1]), video["near_all_iu"][t]
    moved, inside = warp(truth[t], flow, nearest=True)
    yield "near: pixels of the truth", overlap_counts(moved, truth[t + 1], ~inside), video["gtnear_iu"][t]
    yield "bil: pixels, inside", warped_pair(pred[t], pred[t + 1], flow, everywhere).raw, video["bil_iu"][t]


def _clips(folder: Path) -> Compared:
    arrays, about = _temporal(folder)
    for entry in _entries(about, "vc"):
        shape = entry["T"], entry["h"], entry["w"]
        gt, pred = (_part(arrays, f"{entry['key']}/{name}", shape) for name in ("gt", "pred"))
        for length in (2, 3, 8, 16):
            got = video_consistency(pred, gt, np.ones(shape[0] - 1, np.bool_), length)
            yield f"VC{length}", got, _column(arrays, f"{entry['key']}/vc{length}")


def _statistics(folder: Path) -> Compared:
    arrays, about = _temporal(folder)
    for entry in _entries(about, "db_statistics"):
        got = statistics(_column(arrays, f"{entry['key']}/x"))
        mean, recall, decay = _column(arrays, f"{entry['key']}/MRD")
        yield "statistics mean", got.mean, mean
        yield "statistics recall", got.recall, recall
        if not np.isnan(decay):
            yield "statistics decay", got.decay, decay


def _soft(folder: Path) -> Compared:
    arrays, about = _temporal(folder)
    for entry in _entries(about, "alpha"):
        column = {name: _column(arrays, f"{entry['key']}/{name}") for name in ("mad", "mse", "grad", "dtssd")}
        gt, pred = (
            _column(arrays, f"{entry['key']}/{n}").astype(np.float32) / np.float32(255) for n in ("gt8", "pred8")
        )
        for t, (p, g) in enumerate(zip(pred, gt, strict=True)):
            yield "soft MAD", mad(p, g), column["mad"][t]
            yield "soft MSE", mse(p, g), column["mse"][t]
            yield "soft gradient error", gradient_error(p, g), column["grad"][t]
            if t:
                yield "soft dtSSD", dtssd(pred[t - 1], p, gt[t - 1], g), column["dtssd"][t]


def _masks(folder: Path) -> Iterator[Case]:
    """The cases of the region file, unpacked."""
    arrays = _arrays(folder / "masks_boundary_davis.npz")
    ends, heights, widths = (_column(arrays, name) for name in ("bits_offset", "h", "w"))
    if not len(heights):
        raise UnusableError("masks_boundary_davis.npz holds no case")
    for index in range(len(heights)):
        case: Case = {"ratios": _column(arrays, "ratios")}
        for name, column in arrays.items():
            if "_bits" in name:
                bits = column[ends[index] : ends[index + 1]]
                case[name.replace("_bits", "")] = _bits(bits, (int(heights[index]), int(widths[index])), name)
            elif len(column) == len(heights):
                case[name] = column[index]
        yield case


def _video(arrays: Arrays, entry: Mapping[str, Any]) -> Case:
    """A moving video: masks, recorded numbers, and the flow on the grid of frame t + 1."""
    key, height, width = entry["key"], entry["h"], entry["w"]
    names = ("adj_iu", "adj_davis_J", "near_iu", "near_all_iu", "gtnear_iu", "bil_iu", "valid_px")
    case: Case = {name: _column(arrays, f"{key}/{name}") for name in names}
    for name in ("gt", "pred"):
        case[name] = _part(arrays, f"{key}/{name}", (entry["T"], height, width))
    for name in ("near", "bil"):
        case[f"{name}_0"] = _part(arrays, f"{key}/{name}_warp0", (height, width))
    (a, b, c), (d, e, f) = _column(arrays, f"{key}/bwd_affine")
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    case["flow"] = np.dstack([a * x + b * y + c - x, d * x + e * y + f - y]).astype(np.float32)
    return case


def _temporal(folder: Path) -> tuple[Arrays, Mapping[str, Any]]:
    try:
        about = json.loads((folder / "temporal.json").read_text())
    except (OSError, ValueError) as error:
        raise UnusableError(f"{folder / 'temporal.json'}: {error}") from error
    return _arrays(folder / "temporal.npz"), about


def _entries(about: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = about.get(name) if isinstance(about, dict) else None
    if not found:
        raise UnusableError(f"temporal.json has no {name!r}")
    return list(found)


def _arrays(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UnusableError(f"{path}: {error}") from error


def _column(arrays: Arrays, name: str) -> NDArray[Any]:
    if name not in arrays:
        raise UnusableError(f"the array {name!r} is missing")
    return arrays[name]


def _part(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return _bits(_column(arrays, name), shape, name)


def _bits(packed: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    size = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.size * 8 < size:
        raise UnusableError(f"the array {name!r} is too short for a mask of shape {shape}")
    return np.unpackbits(packed)[:size].reshape(shape).view(np.bool_)


def main() -> None:
    """Prints the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=SHARED / "goldens" / "evaluation")
    try:
        tallies = compare(parser.parse_args().folder)
    except (UnusableError, LookupError) as error:
        print(f"unusable: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{'metric':<32}{'compared':>10}{'mismatches':>12}{'worst':>12}{'allowed':>10}")
    for name, tally in tallies.items():
        allowed = ALLOWANCE.get(name, 0.0)
        print(f"{name:<32}{tally.compared:>10}{tally.mismatches:>12}{tally.worst:>12.3g}{allowed:>10.0e}")
    sys.exit(1 if any(tally.mismatches for tally in tallies.values()) else 0)


if __name__ == "__main__":
    main()
