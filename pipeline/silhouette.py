"""What the shape of a mask tells: how many people, how much of a body, which borders cut it, where a head is.

h, w: height and width of the (reduced) frame. A mask is (h, w) bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Told = tuple[str | None, float | None]

COVERAGES: Final = ("face_closeup", "head_shoulders", "half_body", "full_body")
_HEADS = (1.05, 2.4, 5.0)  # visible heights of the head up to which the first three classes go
_HEAD = 1.3  # height of a head, by its width
_SLENDER = 2.2
_PEOPLE: Final = ("one", "two", "three_plus")
_RIGHT = (0.87, 0.67, 0.83)
_COUNTED = 0.7  # score of a person that counts
_LEAST_PART = 0.08  # of the largest component: what is smaller is a hand or a mistake
_LEAST_CUT = 0.02  # of a side


def largest(mask: Mask) -> Mask:
    """The largest 8-connected component; the first of equals. An empty mask is its own."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if len(stats) < 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), np.bool_)


def num_people(mask: Mask, scores: Sequence[float] | None) -> Told:
    """How many people, from the scores of detected ones, else from connected components.

    Args:
        mask: not empty.
        scores: of the detected persons; None or empty where there are none.

    Returns:
        The class, and as confidence: with scores the least certain of the decisions that make the count; without, how
        often components were right (228 of 260, 5 of 7, 4 of 4 labelled photographs, Laplace's rule). People who touch
        are one component, so most pairs are missed: where groups are common, `one` is right less often.
    """
    if scores:
        counted = [score for score in scores if score >= _COUNTED] or [max(scores)]
        others = [score for score in scores if score < _COUNTED and len(scores) > 1]
        sure = min([*counted[:3], *(1 - score for score in others)])
        return _PEOPLE[min(len(counted), 3) - 1], max(0.0, min(1.0, sure))
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    count = int((areas >= _LEAST_PART * areas.max()).sum())
    return _PEOPLE[min(count, 3) - 1], _RIGHT[min(count, 3) - 1]


def truncation(mask: Mask) -> tuple[frozenset[str], Told]:
    """Which borders of the frame cut a mask.

    A border cuts where the mask runs along it for 2 % of its length; sure as far as the run is longer or absent.

    Returns:
        The borders, of top, bottom, left and right, and the class.
    """
    lines = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    runs = {name: float(line.mean()) for name, line in lines.items()}
    cut = frozenset(name for name, run in runs.items() if run >= _LEAST_CUT)
    doubt = min(abs(run - _LEAST_CUT) for run in runs.values())
    sure = 0.5 + 0.5 * min(1.0, doubt / _LEAST_CUT)
    if not cut:
        return cut, ("none", sure)
    if len(cut) > 1:
        return cut, ("several", sure)
    (only,) = cut
    return cut, ("side" if only in ("left", "right") else only, sure)


def head_depth(body: Mask) -> int | None:
    """Rows from the top of a silhouette to about the mouth, by its outline alone.

    Going down the run of pixels below the top, it first widens faster than it deepens; where it has become as deep as
    it was wide so far, most of a head lies above. None where that never happens (a close-up, a group, one who lies).
    """
    rows = np.flatnonzero(body.any(axis=1))
    if not len(rows):
        return None
    edges = np.diff(np.pad(body[rows[0] : rows[-1] + 1].astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (row_of, starts), (_, stops) = np.nonzero(edges > 0), np.nonzero(edges < 0)
    bounds = np.searchsorted(row_of, np.arange(len(edges) + 1))
    middle, widest = float(np.flatnonzero(body[rows[0]]).mean()), 0
    for depth in range(1, len(edges) + 1):
        runs = slice(bounds[depth - 1], bounds[depth])
        left, right = _nearest_run(starts[runs].tolist(), stops[runs].tolist(), middle)
        widest = max(widest, right - left)
        middle = (left + right - 1) / 2
        if depth >= max(widest, 3):
            return depth
    return None


def _nearest_run(starts: list[int], stops: list[int], place: float) -> tuple[int, int]:
    """The run that holds a place or is nearest to it; of equally near ones the wider."""
    runs = zip(starts, stops, strict=True)
    return min(runs, key=lambda run: (max(run[0] - place, place - run[1] + 1, 0.0), run[0] - run[1]))


def face_window(body: Mask, depth: int) -> tuple[float, float, float, float]:
    """Where the face should be: top, bottom, left, right in pixels, below the hair and within the head's middle.

    Args:
        body: a silhouette, not empty.
        depth: of its head, as `head_depth` tells it.
    """
    top = int(np.argmax(body.any(axis=1)))
    columns = np.sort(np.nonzero(body[top : top + depth])[1])
    middle = (int(columns[(len(columns) - 1) // 2]) + int(columns[len(columns) // 2]) + 1) / 2
    return top + 0.35 * depth, top + 1.15 * depth, middle - 0.35 * depth, middle + 0.35 * depth


def body_coverage(body: Mask, depth: int | None, cut: frozenset[str]) -> Told:
    """How much of a body is shown, in heights of its head: below 1.05, 2.4 and 5 of them, or more.

    A silhouette that ends above the lower border and is at least 2.2 times as high as wide is all of a body.

    Args:
        body: the largest component.
        depth: of its head, as `head_depth` tells it.
        cut: the borders that cut the mask.

    Returns:
        The class, and a confidence of at most 0.9 that falls toward the edges of a class, and where the frame cuts the
        head. Without a head (a group, one who lies, a face that fills the frame) it is unknown.
    """
    rows = np.flatnonzero(body.any(axis=1))
    if len(rows) < 8 or depth is None:
        return None, None
    height = int(rows[-1] - rows[0] + 1)
    wide = float(np.percentile(body[rows].sum(axis=1), 95))
    slender = height / wide / _SLENDER
    if "bottom" not in cut and slender >= 1:
        return "full_body", 0.9 * _sure(math.log(slender))
    heads = height / (_HEAD * depth)
    index = int(np.searchsorted(_HEADS, heads, side="right"))
    sure = _sure(min(abs(math.log(heads / edge)) for edge in _HEADS))
    return COVERAGES[index], 0.9 * sure * (0.7 if "top" in cut else 1.0)


def _sure(distance: float) -> float:
    """Probability of the right side of an edge, for a logarithm that is off by 0.3 (standard deviation)."""
    return 0.5 * math.erfc(-distance / 0.3 / math.sqrt(2))
