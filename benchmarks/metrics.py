"""What the metrics cost: CPU milliseconds a frame, ours beside the algorithms of the official code, and optical flow.

Usage: python -m benchmarks.metrics [--rounds R] [--no-flow]

The official algorithms are written here anew from their description (boundary-iou-api: pad by one, erode by a 3 x 3
square d times, count products; davis2017-evaluation: shift, exclusive or, dilate whole images by a disk), and must give
our numbers before anything is timed. Both sides score the same drawn people, in turns, on one thread; each figure is
the least CPU time of the rounds, a mean over the people. "Fixed truth" is ours where a truth meets many predictions.
The left column of Boundary IoU gives that one number; ours gives IoU, Boundary IoU and the interior variant.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.boundary import (
    band_width,
    boundary_f,
    boundary_iou,
    contour_tolerance,
    contour_truth,
    iou_and_boundary_iou,
    match,
    overlap,
    region_truth,
)
from evaluation.flow import PRESETS, FlowConfig, flow
from evaluation.masks import iou
from evaluation.warp import believed, warped_pair

Mask = NDArray[np.bool_]
SIZES = ((360, 640), (720, 1280))
GOALS = {"IoU + Boundary IoU": 3.0, "F": 2.0}


def official_iou(a: Mask, b: Mask) -> float:
    """Jaccard index by whole-image logic."""
    return float(np.sum(a & b) / np.sum(a | b))


def official_boundary_iou(a: Mask, b: Mask) -> float:
    """Boundary IoU as its authors describe it, on uint8 masks."""
    bands = [_band(mask.view(np.uint8)) for mask in (a, b)]
    inter, union = np.sum((bands[0] * bands[1]) > 0), np.sum((bands[0] + bands[1]) > 0)
    return float(inter / union)


def _band(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = mask.shape
    d = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)
    return np.asarray(mask - eroded[1 : height + 1, 1 : width + 1], np.uint8)


def official_f(a: Mask, b: Mask) -> float:
    """Boundary F-measure as the DAVIS benchmark describes it."""
    r = math.ceil(0.008 * math.hypot(*a.shape))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disk = (x**2 + y**2 <= r**2).astype(np.uint8)
    edges = [_edge(mask) for mask in (a, b)]
    near = [cv2.dilate(edge.astype(np.uint8), disk) for edge in edges]
    precision = np.sum(edges[0] * near[1]) / np.sum(edges[0])
    recall = np.sum(edges[1] * near[0]) / np.sum(edges[1])
    return float(2 * precision * recall / (precision + recall))


def _edge(mask: Mask) -> Mask:
    right, below, both = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    both[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ both)
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def person(height: int, width: int, pose: int, rng: np.random.Generator) -> Mask:
    """A drawn person with a ragged outline: close to the camera (cut by the lower frame), an arm out, or standing."""
    plane, unit = np.zeros((height, width), np.uint8), height / 720
    middle = round(width * (0.5 + rng.uniform(-0.05, 0.05)))
    head, body = (((0.25, 80, 110), (0.85, 260, 360)), ((0.14, 42, 60), (0.55, 110, 260)))[pose == 2]
    for y, across, down in (head, body):
        axes = (round(across * unit), round(down * unit))
        cv2.ellipse(plane, (middle, round(y * height)), axes, 0, 0, 360, 1, -1)
    if pose == 1:
        hand = (middle + round(420 * unit), round(0.35 * height))
        cv2.line(plane, (middle, round(0.6 * height)), hand, 1, round(70 * unit))
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 4 * unit)
    soft = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), 6 * unit) + 0.08 * noise / noise.std()
    return np.asarray(soft > 0.5, np.bool_)


def least(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU milliseconds of each work, in turns."""
    best = dict.fromkeys(works, math.inf)
    for _ in range(rounds):
        for name, work in works.items():
            before = time.process_time_ns()
            work()
            best[name] = min(best[name], (time.process_time_ns() - before) / 1e6)
    return best


def regions(height: int, width: int, rounds: int) -> None:
    """Prints what a frame's metrics cost."""
    rng = np.random.default_rng(0)
    people = [(person(height, width, pose, rng), person(height, width, pose, rng)) for pose in (0, 1, 2)]
    _check(people)
    sums: dict[str, float] = {}
    for a, b in people:
        regions_of, contours_of = region_truth(b), contour_truth(b)
        works: dict[str, Callable[[], object]] = {
            "official IoU": partial(official_iou, a, b),
            "official Boundary IoU": partial(official_boundary_iou, a, b),
            "official F": partial(official_f, a, b),
            "IoU": partial(iou, a, b),
            "both": partial(iou_and_boundary_iou, a, b),
            "both, fixed": partial(overlap, a, regions_of),
            "F": partial(boundary_f, a, b),
            "F, fixed": partial(match, a, contours_of),
        }
        for name, spent in least(works, rounds).items():
            sums[name] = sums.get(name, 0.0) + spent / len(people)
    print(f"\n{height} x {width}: band {band_width(height, width)} px, tolerance {contour_tolerance(height, width)} px")
    print(f"{'':<24}{'official':>10}{'ours':>10}{'ratio':>8}{'fixed truth':>14}{'ratio':>8}")
    _line("IoU", sums["official IoU"], sums["IoU"], None)
    _line("IoU + Boundary IoU", sums["official Boundary IoU"], sums["both"], sums["both, fixed"])
    _line("F", sums["official F"], sums["F"], sums["F, fixed"])


def _check(people: Sequence[tuple[Mask, Mask]]) -> None:
    for a, b in people:
        ours = iou(a, b), boundary_iou(a, b), boundary_f(a, b)
        official = official_iou(a, b), official_boundary_iou(a, b), official_f(a, b)
        if not np.allclose(ours, official, rtol=0, atol=1e-12):
            raise SystemExit(f"the two sides do not agree: {ours} and {official}")


def _line(name: str, official: float, ours: float, fixed: float | None) -> None:
    tail = f"{fixed:>11.3f} ms{official / fixed:>7.1f}x" if fixed is not None else " " * 22
    goal = f"   (goal {GOALS[name]:.0f}x at 720 x 1280)" if name in GOALS else ""
    print(f"{name:<24}{official:>7.3f} ms{ours:>7.3f} ms{official / ours:>7.1f}x{tail}{goal}")


def motion(height: int, width: int, rounds: int) -> None:
    """Prints what the flow of a frame costs, and what is made of it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
    before = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    now = np.roll(before, (3, 7), (0, 1))
    a, b = person(height, width, 1, rng), person(height, width, 1, rng)
    forward, backward = flow(before, now), flow(now, before)
    valid = believed(forward, backward)
    works: dict[str, Callable[[], object]] = {
        f"DIS {preset}, {what} size": partial(flow, before, now, config)
        for preset in PRESETS
        for what, config in (("full", _full(preset)), ("half", _half(preset)))
    }
    works["forward-backward check"] = partial(believed, forward, backward)
    works["warp and compare a pair"] = partial(warped_pair, a, b, backward, valid)
    works["IoU, Boundary IoU and F"] = partial(_scores, a, b)
    print(f"\n{height} x {width}, one direction; the default is {FlowConfig().preset(height, width)}")
    spent = least(works, rounds)
    for name, milliseconds in spent.items():
        print(f"{name:<24}{milliseconds:>10.2f} ms")
    size = "half" if FlowConfig().size(height, width) != (height, width) else "full"
    flows = 2 * spent[f"DIS {FlowConfig().preset(height, width)}, {size} size"]
    rest = spent["forward-backward check"] + 2 * spent["warp and compare a pair"] + spent["IoU, Boundary IoU and F"]
    print(f"a frame of a video: flow both ways {flows:.1f} ms, all metrics of prediction and truth {rest:.1f} ms")


def _scores(a: Mask, b: Mask) -> None:
    iou_and_boundary_iou(a, b)
    boundary_f(a, b)


def _full(preset: str) -> FlowConfig:
    return FlowConfig(short_side=1 << 20, below=preset)


def _half(preset: str) -> FlowConfig:
    return FlowConfig(short_side=1, above=preset)


def main() -> None:
    """Prints both tables; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-flow", action="store_true")
    values = parser.parse_args()
    cv2.setNumThreads(1)
    for height, width in SIZES:
        regions(height, width, values.rounds)
    for height, width in SIZES if not values.no_flow else ():
        motion(height, width, max(1, values.rounds // 6))


if __name__ == "__main__":
    main()
