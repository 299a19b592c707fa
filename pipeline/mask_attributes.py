"""Attributes of a frame that need to know where the people are: told from the teacher's mask, so all are estimates.

They steer coverage and evaluation. Each class comes with a confidence in [0, 1]; where nothing honest can be said,
class and confidence are None. Names and classes are the taxonomy's, but for `truncation`, which it lacks, and for
classes that a mask cannot tell (a screen behind a person), which are never given. Where light comes from is not told
at all: by luma, people in dark clothes and people with dark skin look like people with a light behind them.

Work is done at a long side of 192 pixels. h, w: height and width there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.boundary import band
from pipeline.motion import Grid, camera_part, speeds
from pipeline.silhouette import body_coverage, face_window, head_depth, largest, num_people, truncation
from pipeline.skin_tone import skin, tone_class, tone_of
from teachers.teacher import Person

Told = tuple[str | None, float | None]

MASK_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "apparent_skin_tone": ("light", "medium", "dark"),
    "background_dynamics": ("static", "moving"),
    "body_coverage": ("face_closeup", "head_shoulders", "half_body", "full_body"),
    "clothing_background_similarity": ("distinct", "similar"),
    "num_people": ("one", "two", "three_plus"),
    "skin_background_similarity": ("distinct", "similar"),
    "subject_motion": ("still", "slow", "moderate", "fast"),
    "subject_scale": ("small", "medium", "large"),
    "truncation": ("none", "bottom", "side", "top", "several"),
}
SENSITIVE: Final = frozenset({"apparent_skin_tone", "skin_background_similarity"})
"""Those that describe a protected property, as the taxonomy says: in manifest and evidence, never in shards."""

UNKNOWN: Final[Told] = (None, None)
_SIDE = 192
_FACE_SIDE = 96
_LEAST_LIGHT = 50.0  # L* of the lightest twentieth of the people
_SCALES = (0.10, 0.35)  # of the frame, as the taxonomy has them
_SUBJECT_SPEEDS = (0.02, 0.06, 0.2)  # diagonals per second: quartiles of six real clips
_MOVING_SPEED = 0.04  # diagonals per second
_PARALLAX = 0.5  # of the camera's speed: near and far things differ by as much
_MOVING_SHARE = 0.05  # of the background
_SIMILAR = 20.0  # CIELAB
_LEAST_EDGE = 20  # contour pixels that must lie free


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A frame and its mask, reduced.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        lab: the same in CIELAB, float32.
        share: (h, w) float32, how much of a pixel is mask.
        mask: (h, w) bool, at least half.
        inner: pixels that hold nothing but mask, and lie a pixel away from others.
        outer: the same for the background.
    """

    pixels: NDArray[np.uint8]
    lab: NDArray[np.float32]
    share: NDArray[np.float32]
    mask: NDArray[np.bool_]
    inner: NDArray[np.bool_]
    outer: NDArray[np.bool_]


def mask_attributes(
    pixels: NDArray[np.uint8],
    probability: NDArray[np.float32],
    persons: Sequence[Person] | None,
    grid: Grid | None,
) -> dict[str, Told]:
    """Everything that a frame, its soft mask and its motion tell of the people in it.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        probability: (H, W) float32 in [0, 1], that of a person at each pixel.
        persons: those the teacher detected; None where it knows no instances.
        grid: how the video moves, as `pipeline.motion` has it; None for stills and first frames.

    Returns:
        (class, confidence in [0, 1]) or (None, None) for every name of ``MASK_ATTRIBUTES``. An empty mask leaves all
        unknown but the background's motion.

    Raises:
        ValueError: a picture and a mask of two sizes.
    """
    if pixels.shape[:2] != probability.shape:
        raise ValueError(f"picture and mask must have one size, got {pixels.shape[:2]} and {probability.shape}")
    whole = probability >= 0.5
    told = dict.fromkeys(MASK_ATTRIBUTES, UNKNOWN)
    view = _view(pixels, whole, _SIDE)
    told |= _motion(view.share, grid, *whole.shape)
    if not view.mask.any():
        return told
    body = largest(view.mask)
    depth = head_depth(body)
    cut, cut_told = truncation(view.mask)
    return told | {
        "body_coverage": body_coverage(body, depth, cut),
        "num_people": num_people(view.mask, _seen(persons, whole)),
        "subject_scale": _scale(probability, whole),
        "truncation": cut_told,
        "apparent_skin_tone": _tone(pixels, whole, view, body, depth),
        **_similarities(view),
    }


def _view(pixels: NDArray[np.uint8], whole: NDArray[np.bool_], side: int) -> _View:
    small = _reduced(pixels, side)
    share = _reduced(whole.astype(np.uint8) * np.uint8(255), side).astype(np.float32) / np.float32(255)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB), np.float32)
    return _View(
        pixels=small, lab=lab, share=share, mask=share >= 0.5, inner=_core(share == 1), outer=_core(share == 0)
    )


def _reduced(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture with a longer side of at most `side`, by area means; halving first is ten times as fast."""
    height, width = picture.shape[:2]
    while max(height, width) >= 2 * side:
        height, width = (height + 1) // 2, (width + 1) // 2
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels that touch others; beyond the frame it goes on as at its border."""
    kernel = np.ones((3, 3), np.uint8)
    return np.asarray(cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE), np.bool_)


def _seen(persons: Sequence[Person] | None, whole: NDArray[np.bool_]) -> list[float] | None:
    """Scores of the persons whose box holds some mask; None without instances."""
    if not persons:
        return None
    height, width = whole.shape
    scores = []
    for person in persons:
        x0, y0, x1, y1 = person.box
        columns = slice(max(0, math.floor(x0)), min(width, math.ceil(x1)))
        rows = slice(max(0, math.floor(y0)), min(height, math.ceil(y1)))
        if whole[rows, columns].any():
            scores.append(float(person.score))
    return scores


def _scale(probability: NDArray[np.float32], whole: NDArray[np.bool_]) -> Told:
    """The class of the mask's share; sure as far as the share of doubtful pixels cannot change it."""
    share = np.count_nonzero(whole) / whole.size
    some = probability[::2, ::2]
    doubt = np.count_nonzero((some > 0.1) & (some < 0.9)) / some.size / 2 + 0.01
    index = int(np.searchsorted(_SCALES, share, side="right"))
    distance = min(abs(share - edge) for edge in _SCALES)
    return MASK_ATTRIBUTES["subject_scale"][index], _sureness(distance / doubt)


def _sureness(deviations: float) -> float:
    """Probability of the right side of an edge that lies so many standard deviations away."""
    return 0.5 * math.erfc(-deviations / math.sqrt(2))


# Motion ---------------------------------------------------------------------------------------------------------------


def _motion(mask: NDArray[np.float32], grid: Grid | None, height: int, width: int) -> dict[str, Told]:
    """How people and background move, beside the camera."""
    if grid is None:
        return {}
    share = np.asarray(cv2.resize(mask, grid.shape[1::-1], interpolation=cv2.INTER_AREA), np.float64)
    # Flow is smooth, so what moves drags the cells beside it along.
    behind = np.clip(1 - 2 * np.asarray(cv2.dilate(share, np.ones((3, 3), np.uint8)), np.float64), 0, 1)
    # A frame full of people has no background to tell the camera by.
    known = 0.5 + 0.5 * min(1.0, float(behind.sum()) / (0.25 * behind.size))
    camera = camera_part(grid, behind, height, width)
    beside = speeds(grid - camera)
    told: dict[str, Told] = {}
    if share.max() > 0.5:
        speed = _weighted_quantile(beside, np.where(share > 0.5, share, 0), 0.75)
        told["subject_motion"] = _speed_class(speed, known)
    if behind.sum() >= 0.1 * behind.size:
        moves = beside > np.maximum(_MOVING_SPEED, _PARALLAX * speeds(camera))
        moving = float(behind[moves].sum() / behind.sum())
        sure = _sureness(abs(math.log((moving + 0.01) / (_MOVING_SHARE + 0.01))))
        told["background_dynamics"] = ("moving" if moving > _MOVING_SHARE else "static", sure * known)
    return told


def _speed_class(speed: float, known: float) -> Told:
    index = int(np.searchsorted(_SUBJECT_SPEEDS, speed, side="right"))
    ratio = min(abs(math.log((speed + 1e-3) / edge)) for edge in _SUBJECT_SPEEDS)
    return MASK_ATTRIBUTES["subject_motion"][index], _sureness(ratio / 0.4) * known


def _weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], part: float) -> float:
    order = np.argsort(values, axis=None, kind="stable")
    total = np.cumsum(weights.ravel()[order])
    return float(values.ravel()[order[int(np.searchsorted(total, part * total[-1]))]])


# Colour ---------------------------------------------------------------------------------------------------------------


def _tone(
    pixels: NDArray[np.uint8], whole: NDArray[np.bool_], view: _View, body: NDArray[np.bool_], depth: int | None
) -> Told:
    """Apparent skin tone, from the pixels where the face of the largest person should be.

    Unknown without a head, where less than a quarter of the pixels is skin (the back of a head, a scarf), and where
    nothing of the people is of middle lightness: then the light is too faint to tell skin from shadow.
    """
    if depth is None or not view.inner.any() or np.percentile(view.lab[..., 0][view.inner], 95) < _LEAST_LIGHT:
        return UNKNOWN
    scale = whole.shape[0] / view.mask.shape[0], whole.shape[1] / view.mask.shape[1]
    top, bottom, left, right = face_window(body, depth)
    rows = slice(max(0, math.floor(top * scale[0])), math.ceil(bottom * scale[0]))
    columns = slice(max(0, math.floor(left * scale[1])), math.ceil(right * scale[1]))
    if whole[rows, columns].size == 0:
        return UNKNOWN
    face = _view(pixels[rows, columns], whole[rows, columns], _FACE_SIDE)
    bare = face.inner & skin(face.pixels, face.lab)
    if bare.sum() < 0.25 * face.inner.sum():
        return UNKNOWN
    return tone_class(tone_of(face.lab, bare))


def _similarities(view: _View) -> dict[str, Told]:
    """How skin and the rest of the people stand out from what lies behind them."""
    edges = _edges(view, view.inner & skin(view.pixels, view.lab))
    return {
        "skin_background_similarity": _similarity(edges[0]),
        "clothing_background_similarity": _similarity(edges[1]),
    }


def _edges(view: _View, bare: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """CIELAB distances (CIE 1976) across the contour, at its pixels on skin and at the others.

    The colours compared are the means, in a window, of what is surely person and surely background.
    """
    contour = band(view.mask, 1) & view.mask
    window = max(5, round(0.05 * max(view.mask.shape))) | 1
    inside, inside_share = _local(view.lab, view.inner, window)
    outside, outside_share = _local(view.lab, view.outer, window)
    skin_share = cv2.boxFilter(bare.astype(np.float32), -1, (window, window), borderType=cv2.BORDER_CONSTANT)
    both = contour & (inside_share > 0.02) & (outside_share > 0.02)
    distance = np.sqrt(((inside[both] - outside[both]) ** 2).sum(axis=1))
    on_skin = skin_share[both] > 0.5 * inside_share[both]
    return distance[on_skin], distance[~on_skin]


def _local(
    lab: NDArray[np.float32], where: NDArray[np.bool_], window: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean colour of chosen pixels in a window, (h, w, 3), and their share of it, (h, w)."""
    size, chosen = (window, window), where.astype(np.float32)
    share = cv2.boxFilter(chosen, -1, size, borderType=cv2.BORDER_CONSTANT)
    total = cv2.boxFilter(lab * chosen[..., None], -1, size, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(total / np.maximum(share, 1e-6)[..., None], np.float32), np.asarray(share, np.float32)


def _similarity(distances: NDArray[np.float32]) -> Told:
    """The class of the mean distance; surer the longer the contour and the farther from the edge of the class."""
    if len(distances) < _LEAST_EDGE:
        return UNKNOWN
    mean = float(distances.mean())
    sure = _sureness(abs(math.log(max(mean, 0.1) / _SIMILAR)) / 0.3)
    return "similar" if mean < _SIMILAR else "distinct", sure * len(distances) / (len(distances) + _LEAST_EDGE)
