"""Temporal metrics: how steady the masks of a video are, beside how steady the truth is.

H, W: height and width in pixels; T: frames of a video; pair t: frames t and t + 1. Masks are (H, W) bool.
A flow field is (H, W, 2) float32, (dx, dy) in pixels, as `evaluation.flow` gives it.

Steadiness alone is worth nothing: a frozen mask scores 1. So it stands beside IoU, beside the same number of the truth
(`excess`), and beside what a mask that lags would get (`lag_test`). No pair spans a cut or a missing frame: every
function takes `paired`, (T - 1,) bool, made by `paired_frames`; results have NaN where there is no pair. Numbers of a
video are means over its pairs; those of a data set are means over its videos.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.masks import check_pair, iou, ratio_of
from evaluation.warp import Field, WarpConfig, believed, warped_pair

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]
Pairs = NDArray[np.bool_]

HISTOGRAM_CUT = 0.15
THUMBNAIL_CUT = 0.12
_THUMBNAIL = (32, 18)
_MAX_RUN = 65535
_END = object()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Steadiness:
    """How steady a video's masks are, pair by pair: (T - 1,) float64 each, in [0, 1], NaN where there is no number.

    Attributes:
        config: how the masks were warped.
        paired: (T - 1,) bool, which pairs count.
        adjacent: IoU of the two masks as they are.
        raw: IoU along the flow, inside the image.
        masked: IoU along the flow, where it is believed.
        valid_share: share of the image where it is believed.
    """

    config: WarpConfig
    paired: Pairs
    adjacent: Values
    raw: Values
    masked: Values
    valid_share: Values

    @property
    def excluded(self) -> int:
        """Pairs that have no `masked` value because the flow was believed nowhere."""
        return int(np.count_nonzero(self.paired & np.isnan(self.masked)))

    @property
    def means(self) -> dict[str, float]:
        """The video's numbers: the mean of each over its pairs; NaN where there is none."""
        return {name: mean(getattr(self, name)) for name in ("adjacent", "raw", "masked", "valid_share")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Excess:
    """Steadiness of the truth minus that of the prediction, over the pairs where both have a number.

    0 is as steady as the truth; above 0 the prediction flickers more; below 0 it is stiller than the person.

    Attributes:
        adjacent: of the masks as they are.
        raw: along the flow, inside the image.
        masked: along the flow, where it is believed.
    """

    adjacent: float
    raw: float
    masked: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LagTest:
    """What a mask that is `lag` frames late gets: steady as the truth, and wrong.

    Attributes:
        lag: frames.
        iou: mean IoU of the late masks with the truth; 1 - iou is what the lag costs.
        adjacent: their mean adjacent consistency.
        truth_adjacent: that of the truth.
    """

    lag: int
    iou: float
    adjacent: float
    truth_adjacent: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """Mean over videos at each frame index.

    Attributes:
        means: (N,) float64, NaN where no video has a value.
        counts: (N,) int64, how many videos have one.
    """

    means: Values
    counts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """The DAVIS statistics of a video's per-frame values.

    Attributes:
        mean: over the frames that have a value.
        recall: share of all frames above 0.5; a frame without a value is not.
        decay: mean of the first quarter minus mean of the last.
    """

    mean: float
    recall: float
    decay: float


def mean(values: Values) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def paired_frames(indices: Sequence[int] | NDArray[np.int64], *, step: int = 1, cuts: Iterable[int] = ()) -> Pairs:
    """Which of the frames at hand may be paired with the next: (T - 1,) bool.

    Args:
        indices: (T,) numbers in the source of the frames at hand, rising.
        step: the distance of neighbours (where every second frame was taken, 2); a larger one is a gap.
        cuts: numbers in the source of the first frames of new shots.

    Raises:
        ValueError: indices that do not rise, or step < 1.
    """
    numbers = np.asarray(indices, np.int64)
    apart = np.diff(numbers)
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")
    if (apart < 1).any():
        raise ValueError(f"indices must rise, got {numbers[:-1][apart < 1][0]} before {numbers[1:][apart < 1][0]}")
    starts = np.sort(np.fromiter(cuts, np.int64))
    shot = np.searchsorted(starts, numbers, side="right")
    return np.asarray((apart == step) & (np.diff(shot) == 0), np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """What is kept of a frame to tell whether the next one starts a new shot.

    Attributes:
        histogram: (32,) float64, share of the pixels in each bin of luma; sum 1.
        thumbnail: (18, 32) float32 luma in [0, 1].
    """

    histogram: Values
    thumbnail: NDArray[np.float32]


def look(frame: NDArray[np.uint8]) -> Look:
    """Luma histogram and thumbnail of a frame.

    Args:
        frame: (H, W, 3) uint8 RGB.

    Raises:
        ValueError: a frame of another shape or type, or without pixels.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or frame.dtype != np.uint8:
        raise ValueError(f"frames must be (H, W, 3) uint8 with H, W >= 1, got {frame.shape} {frame.dtype}")
    grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    small = np.asarray(cv2.resize(grey, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.float32)
    counts = cv2.calcHist([grey], [0], None, [32], [0, 256]).ravel()
    return Look(histogram=counts.astype(np.float64) / grey.size, thumbnail=small / np.float32(255))


def is_cut(before: Look, now: Look, *, histogram: float = HISTOGRAM_CUT, thumbnail: float = THUMBNAIL_CUT) -> bool:
    """Whether a new shot starts between two frames, from luma alone.

    Args:
        before: of the earlier frame.
        now: of the later one.
        histogram: greatest half sum of absolute differences of the histograms within a shot, in [0, 1].
        thumbnail: greatest mean absolute difference of the thumbnails within a shot, in [0, 1].
    """
    moved = np.abs(before.histogram - now.histogram).sum() / 2
    return bool(moved > histogram or np.abs(before.thumbnail - now.thumbnail).mean() > thumbnail)


def cuts(
    frames: Iterable[NDArray[np.uint8]], *, histogram: float = HISTOGRAM_CUT, thumbnail: float = THUMBNAIL_CUT
) -> list[int]:
    """Positions of the first frames of new shots, as `is_cut` tells them.

    Ordinary motion of people stays below 0.07 in both differences. A flash or a jump of exposure counts as two cuts,
    which costs two pairs; a dissolve is not found.

    Args:
        frames: (H, W, 3) uint8 RGB, in order.
        histogram: see `is_cut`.
        thumbnail: see `is_cut`.

    Raises:
        ValueError: as `look`.
    """
    pairs = itertools.pairwise(look(frame) for frame in frames)
    return [
        t for t, (before, now) in enumerate(pairs, 1) if is_cut(before, now, histogram=histogram, thumbnail=thumbnail)
    ]


def adjacent(masks: Iterable[Mask | None], paired: Pairs) -> Values:
    """IoU of each mask and the next: (T - 1,) float64, NaN where not paired.

    Args:
        masks: T masks of one size, in order.
        paired: (T - 1,) bool.

    Raises:
        ValueError: a mask is missing (None) or of another size, or there are more or fewer than T.
    """
    pairs = _together(paired, masks=itertools.pairwise(_each(masks, "masks")))
    return np.array([iou(a, b) if use else math.nan for use, (a, b) in pairs], np.float64)


def steadiness(
    tracks: Mapping[str, Iterable[Mask | None]],
    flows: Iterable[tuple[Field, Field]],
    paired: Pairs,
    config: WarpConfig | None = None,
) -> dict[str, Steadiness]:
    """Steadiness of each track of a video, in one pass over the flow and with two frames in memory.

    Args:
        tracks: T masks of each name, such as prediction and truth.
        flows: T - 1 pairs (t to t + 1, t + 1 to t), as `evaluation.flow.FlowCache.pairs` gives them.
        paired: (T - 1,) bool.
        config: how to warp.

    Raises:
        ValueError: a mask is missing (None), sizes differ, or there are more or fewer than T masks or T - 1 flows.
    """
    config = config or WarpConfig()
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in tracks}
    masks = _in_step({name: _each(track, name) for name, track in tracks.items()})
    for use, (before, now), (forward, backward) in _together(paired, masks=itertools.pairwise(masks), flows=flows):
        valid = believed(forward, backward, config) if use else None
        for name, previous, current in zip(tracks, before, now, strict=True):
            rows[name].append(_row(previous, current, backward, valid, config))
    return {name: _steadiness(values, paired, config) for name, values in rows.items()}


def excess(prediction: Steadiness, truth: Steadiness) -> Excess:
    """Steadiness of the truth minus that of the prediction.

    Raises:
        ValueError: of two videos, or warped in two ways.
    """
    if prediction.config != truth.config or not np.array_equal(prediction.paired, truth.paired):
        raise ValueError("prediction and truth must have the same pairs and warp settings; score both in one call")
    names = ("adjacent", "raw", "masked")
    return Excess(**{name: mean(getattr(truth, name) - getattr(prediction, name)) for name in names})


def video_consistency(
    masks: Iterable[Mask | None], truths: Iterable[Mask | None], paired: Pairs, length: int
) -> Values:
    """VC of VSPW (Miao et al., CVPR 2021): of the pixels constant in the truth, the share constant in the masks.

    As the official code does, it looks at the clips of `length` frames that have one more frame after them, so the
    last frame of every unbroken run is not used, and it does not ask whether the masks are right.

    Returns:
        (N,) float64, one for each clip in order; NaN where no pixel of the truth is constant.

    Raises:
        ValueError: length < 2, a mask is missing (None), sizes differ, or there are more or fewer than T.
    """
    if length < 2:
        raise ValueError(f"length must be >= 2 frames, got {length}")
    values: list[float] = []
    frames = _in_step({"masks": _each(masks, "masks"), "truths": _each(truths, "truths")})
    still: tuple[NDArray[np.uint16], ...] | None = None
    since = 0
    for use, (before, now) in _together(paired, masks=itertools.pairwise(frames)):
        check_pair(*now)
        still = still or tuple(np.zeros(mask.shape, np.uint16) for mask in before)
        if since >= length - 1 and use:
            constant = still[1] >= length - 1
            both = int(np.count_nonzero(constant & (still[0] >= length - 1)))
            values.append(ratio_of(both, int(np.count_nonzero(constant)), empty=math.nan))
        since = since + 1 if use else 0
        for count, a, b in zip(still, before, now, strict=True):
            _count_still(count, a, b)
    return np.array(values, np.float64)


def lagged(masks: Sequence[Mask], lag: int) -> list[Mask]:
    """The masks `lag` frames late; the first is held until then.

    Raises:
        ValueError: lag < 0.
    """
    if lag < 0:
        raise ValueError(f"lag must be >= 0 frames, got {lag}")
    return [masks[max(0, t - lag)] for t in range(len(masks))]


def lag_test(truths: Sequence[Mask], paired: Pairs, lag: int) -> LagTest:
    """What the truth would get if it came `lag` frames late: the loss that steadiness does not show.

    After each cut or gap it begins anew; a frame alone between two of them says nothing.

    Raises:
        ValueError: lag < 0, sizes differ, or there are more or fewer than T masks.
    """
    truth_adjacent = mean(adjacent(truths, paired))
    runs = [truths[start:stop] for start, stop in _runs(paired)]
    late = [mask for run in runs for mask in lagged(run, lag)]
    values = [iou(a, b) for run in runs if len(run) > 1 for a, b in zip(lagged(run, lag), run, strict=True)]
    return LagTest(
        lag=lag,
        iou=mean(np.array(values, np.float64)),
        adjacent=mean(adjacent(late, paired)),
        truth_adjacent=truth_adjacent,
    )


def _runs(paired: Pairs) -> Iterator[tuple[int, int]]:
    """First frame, and the one behind the last, of every stretch without cut or gap."""
    return itertools.pairwise([0, *(np.flatnonzero(~paired) + 1).tolist(), len(paired) + 1])


def curve(videos: Sequence[Values], frames: int = 10) -> Curve:
    """Mean over videos at each of the first `frames` indices: how a tracker that starts empty gets going.

    Args:
        videos: per-frame (or per-pair) values of each, NaN where there is none; may be of any length.
        frames: how many indices.

    Raises:
        ValueError: frames < 1.
    """
    if frames < 1:
        raise ValueError(f"frames must be >= 1, got {frames}")
    table = np.full((len(videos), frames), np.nan)
    for row, values in zip(table, videos, strict=True):
        row[: min(frames, len(values))] = values[:frames]
    means = np.array([mean(column) for column in table.T], np.float64)
    return Curve(means=means, counts=np.count_nonzero(~np.isnan(table), axis=0).astype(np.int64))


def statistics(values: Values) -> Statistics:
    """Mean, recall and decay of per-frame values (Perazzi et al., CVPR 2016); the quarters share their end frames.

    Raises:
        ValueError: no values.
    """
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values must have shape (T,) with T >= 1, got {values.shape}")
    ends = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    return Statistics(
        mean=mean(values),
        recall=float((values > 0.5).mean()),
        decay=mean(values[ends[0] : ends[1] + 1]) - mean(values[ends[3] : ends[4] + 1]),
    )


def _each(masks: Iterable[Mask | None], name: str) -> Iterator[Mask]:
    for t, mask in enumerate(masks):
        if mask is None:
            raise ValueError(f"{name}: frame {t} has no mask; predict it, or leave it out and say so in paired")
        yield mask


def _in_step(streams: Mapping[str, Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    """The items of several streams side by side; all must end together."""
    for place, items in enumerate(itertools.zip_longest(*streams.values(), fillvalue=_END)):
        short = [name for name, item in zip(streams, items, strict=True) if item is _END]
        if short:
            raise ValueError(
                f"{', '.join(streams)} must be equally long (T masks, T - 1 pairs); {short} end at {place}"
            )
        yield items


def _together(paired: Pairs, **streams: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Whether each pair counts, and the pair's items."""
    if paired.ndim != 1 or paired.dtype != np.bool_:
        raise ValueError(f"paired must have shape (T - 1,) and be bool, got {paired.shape} {paired.dtype}")
    return _in_step({"paired": paired.tolist(), **streams})


def _row(previous: Mask, current: Mask, backward: Field, valid: Mask | None, config: WarpConfig) -> tuple[float, ...]:
    """Adjacent, raw, masked and valid share of one pair; NaN where it does not count."""
    if valid is None:
        return (math.nan,) * 4
    warped = warped_pair(previous, current, backward, valid, config)
    return iou(previous, current), warped.raw_iou, warped.masked_iou, warped.valid_share


def _steadiness(rows: Sequence[tuple[float, ...]], paired: Pairs, config: WarpConfig) -> Steadiness:
    adjacent_, raw, masked, share = np.array(rows, np.float64).reshape(-1, 4).T
    return Steadiness(config=config, paired=paired, adjacent=adjacent_, raw=raw, masked=masked, valid_share=share)


def _count_still(count: NDArray[np.uint16], before: Mask, now: Mask) -> None:
    """How many frames a pixel has been as it is, in place."""
    count += count < _MAX_RUN
    count *= before == now
