"""One video, measured frame by frame as it would arrive, with two frames in memory.

H, W: height and width in pixels; pair: a frame and the one before it. A prediction is a soft mask, (H, W) float32 in
[0, 1]; a truth and its void are (H, W) bool. Void pixels are background in prediction and truth before anything is
derived from them. NaN is a number that does not exist: a metric of the truth where a frame has none, of a pair where a
frame does not follow the one before, of flow where none was given.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import packed
from evaluation.boundary import band_width, contour_tolerance, contour_truth, match, overlap, region_truth
from evaluation.flow import FlowPair
from evaluation.masks import check_mask, iou, ratio_of
from evaluation.packed import Plane
from evaluation.soft import Soft, dtssd
from evaluation.temporal import Values, mean
from evaluation.warp import WarpConfig, Warped, believed, warped_pair

Mask = NDArray[np.bool_]

LAGS = 5
FIRST = 10
VC_LENGTHS = (8, 16)
EXCLUDED = ("gap", "cut", "no_flow", "not_believed")
"""Why neighbours have no number: frames are missing or a cut lies between; no flow was given; it was believed nowhere.

The last two have `adjacent`, but nothing along the flow.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterConfig:
    """How frames are measured; stored with every result.

    Attributes:
        threshold: a soft mask is person where it is at least this.
        ratio: width of the band of Boundary IoU, as a part of the image diagonal.
        border: whether the image border is boundary in `boundary_iou` (the paper's rule); the interior variant, in
            which it is not, is always beside it.
        bound: tolerance of the boundary F-measure, as a part of the diagonal, or whole pixels from 1 on.
        warp: how masks are warped along the flow, and where it is believed.
        worst: how many of the worst frames of a video are named.
        apart: frames of a stretch of the video of which only the worst is named, so that they are not all neighbours.
    """

    threshold: float = 0.5
    ratio: float = 0.02
    border: bool = True
    bound: float = 0.008
    warp: WarpConfig = field(default_factory=WarpConfig)
    worst: int = 3
    apart: int = 15

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"measure.threshold must be in (0, 1], got {self.threshold}")
        for name, least in (("worst", 0), ("apart", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"measure.{name} must be >= {least}, got {getattr(self, name)}")
        band_width(1, 1, self.ratio)
        contour_tolerance(1, 1, self.bound)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRow:
    """One frame of a video.

    Attributes:
        video: its name.
        index: of the frame in the video.
        seconds: from the start of the video.
        labelled: whether it has a truth.
        follows: whether it makes a pair with the frame before.
        iou: with the truth, 1 where both are empty; `iou_raw` is NaN there.
        boundary_iou: of the bands, 1 where both are empty; `boundary_iou_raw` is NaN there.
        boundary_iou_interior: the same, the image border being no boundary.
        boundary_f: DAVIS F.
        band_width: of the band, in pixels.
        area_truth: share of the image; `area_found` is that of the prediction.
        adjacent: IoU of the masks of the pair; `adjacent_truth` is that of the truths.
        warped: the same along the flow, inside the image; `warped_truth` is that of the truths.
        warped_masked: the same where flow is believed; `warped_masked_truth` is that of the truths.
        valid_share: share of the image where flow is believed.
        dtssd: change of the soft masks of the pair less that of the truths, times 100.
    """

    video: str
    index: int
    seconds: float
    labelled: bool
    follows: bool
    iou: float = math.nan
    iou_raw: float = math.nan
    boundary_iou: float = math.nan
    boundary_iou_raw: float = math.nan
    boundary_iou_interior: float = math.nan
    boundary_f: float = math.nan
    band_width: int
    area_truth: float = math.nan
    area_found: float
    adjacent: float = math.nan
    adjacent_truth: float = math.nan
    warped: float = math.nan
    warped_masked: float = math.nan
    warped_truth: float = math.nan
    warped_masked_truth: float = math.nan
    valid_share: float = math.nan
    dtssd: float = math.nan


FRAME_METRICS = tuple(
    name
    for name in (column.name for column in dataclasses.fields(FrameRow))
    if name not in ("video", "index", "seconds", "labelled", "follows", "band_width")
)
"""The columns of a frame that are averaged over a video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRow:
    """One video: means over its frames and pairs.

    Attributes:
        video: its name.
        frames: how many there are.
        pairs: how many frames follow the one before.
        labelled: how many frames have a truth.
        means: of each of `FRAME_METRICS`, over the frames or pairs that have it; NaN where none has.
        adjacent_excess: `adjacent` of the truth less that of the prediction, over the pairs that have both: 0 is as
            steady as the truth, above 0 it flickers more.
        warped_excess: the same of `warped_masked`.
        vc8: VC of VSPW over 8 frames; `vc16` over 16.
        pairs_excluded: how many neighbours have no number, by reason; see `EXCLUDED`.
        worst_frames: indices of the worst frames, worst first, at most one of each stretch: of least `boundary_iou`;
            in a video without truth, of least consistency with the frame before.
        lag_loss: 1 less the IoU that the truth itself would get if it came 1, 2, … 5 frames late: what a lag costs.
        first_iou: `iou` of the first ten frames; `first_boundary_iou` likewise.
    """

    video: str
    frames: int
    pairs: int
    labelled: int
    means: Mapping[str, float]
    adjacent_excess: float
    warped_excess: float
    vc8: float
    vc16: float
    pairs_excluded: Mapping[str, int]
    worst_frames: tuple[int, ...]
    lag_loss: tuple[float, ...]
    first_iou: tuple[float, ...]
    first_boundary_iou: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """A frame as the next one needs it: masks without void, and their planes."""

    soft: Soft
    mask: Mask
    plane: Plane
    truth: Mask | None
    truth_plane: Plane | None


class ClipMeter:
    """Measures a video frame by frame.

    Args:
        video: its name.
        config: how.
    """

    def __init__(self, video: str, config: MeterConfig | None = None) -> None:
        self._video = video
        self._config = config or MeterConfig()
        self._rows: list[FrameRow] = []
        self._before: _Seen | None = None
        self._constancy = _Constancy()
        self._lag = _Lag()
        self._worst: list[tuple[float, int]] = []
        self._excluded = dict.fromkeys(EXCLUDED, 0)

    @property
    def rows(self) -> Sequence[FrameRow]:
        """The frames so far."""
        return self._rows

    @property
    def worst(self) -> tuple[int, ...]:
        """Indices of the worst frames so far, worst first; those of `ClipRow.worst_frames` in the end."""
        return tuple(index for _, index in self._worst)

    def add(
        self,
        image: NDArray[np.uint8],
        predicted: Soft,
        truth: Mask | None = None,
        void: Mask | None = None,
        *,
        index: int,
        seconds: float,
        follows: bool,
        cut: bool = False,
        flow: FlowPair | None = None,
    ) -> FrameRow:
        """Measures the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            predicted: (H, W) float32 in [0, 1].
            truth: (H, W) bool, or None where there is none.
            void: (H, W) bool, pixels that do not count, or None.
            index: of the frame; rises.
            seconds: from the start of the video.
            follows: whether no frame is missing between this one and the one before; of no meaning in the first.
            cut: whether it is the first of a new shot.
            flow: (t - 1 to t, t to t - 1), as `evaluation.flow.flow_pair` gives it; None where there is none.

        Raises:
            ValueError: another size than the image or the frame before, a soft mask that is not finite or not in
                [0, 1], or an index that does not rise; the message names video and frame.
        """
        try:
            self._check(image, predicted, index)
            now = _seen(predicted, truth, void, self._config.threshold)
            before = self._before if follows and not cut else None
            row = FrameRow(
                video=self._video,
                index=index,
                seconds=seconds,
                labelled=truth is not None,
                follows=before is not None,
                **_region(now, truth, void, self._config),
                **({} if before is None else _pair(before, now, flow, self._config.warp)),
            )
        except ValueError as error:
            raise ValueError(f"{self._video}, frame {index}: {error}") from error
        if self._rows and before is None:
            self._excluded["cut" if follows else "gap"] += 1
        self._keep(now, row, flow)
        return row

    def finish(self) -> ClipRow:
        """The video's numbers.

        Raises:
            ValueError: no frame was added.
        """
        if not self._rows:
            raise ValueError(f"{self._video} has no frames")
        values = {name: _column(self._rows, name) for name in FRAME_METRICS}
        return ClipRow(
            video=self._video,
            frames=len(self._rows),
            pairs=sum(row.follows for row in self._rows),
            labelled=sum(row.labelled for row in self._rows),
            means={name: mean(column) for name, column in values.items()},
            adjacent_excess=mean(values["adjacent_truth"] - values["adjacent"]),
            warped_excess=mean(values["warped_masked_truth"] - values["warped_masked"]),
            vc8=self._constancy.mean(8),
            vc16=self._constancy.mean(16),
            pairs_excluded=dict(self._excluded),
            worst_frames=self.worst,
            lag_loss=self._lag.losses(),
            first_iou=_first(values["iou"]),
            first_boundary_iou=_first(values["boundary_iou"]),
        )

    def _check(self, image: NDArray[np.uint8], predicted: Soft, index: int) -> None:
        if predicted.shape != image.shape[:2] or predicted.dtype != np.float32:
            raise ValueError(
                f"a soft mask must be float32 of the image's size {image.shape[:2]}, "
                f"got {predicted.shape} {predicted.dtype}"
            )
        low, high = float(predicted.min()), float(predicted.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"a soft mask must be finite and in [0, 1], got {low} to {high}")
        if self._before is not None and self._before.mask.shape != predicted.shape:
            raise ValueError(f"frames must have one size, got {self._before.mask.shape} and {predicted.shape}")
        if self._rows and index <= self._rows[-1].index:
            raise ValueError(f"indices must rise, got {self._rows[-1].index} before")

    def _keep(self, now: _Seen, row: FrameRow, flow: FlowPair | None) -> None:
        if row.follows:
            self._excluded["no_flow"] += flow is None
            self._excluded["not_believed"] += flow is not None and math.isnan(row.warped_masked)
        self._constancy.add(self._before, now, paired=row.follows)
        self._lag.add(now.truth_plane, paired=row.follows)
        self._rank(row)
        self._rows.append(row)
        self._before = now

    def _rank(self, row: FrameRow) -> None:
        """Keeps the worst frames, one of each stretch."""
        score = _score(row)
        if math.isnan(score):
            return
        rivals = [old for old in self._worst if old[1] // self._config.apart == row.index // self._config.apart]
        others = [old for old in self._worst if old not in rivals]
        best = min([*rivals, (score, row.index)])
        self._worst = sorted([*others, best])[: self._config.worst]


class _Constancy:
    """VC of VSPW on packed bits: equal to `evaluation.temporal.video_consistency`, clip by clip as frames arrive."""

    def __init__(self) -> None:
        self._changes: deque[tuple[Plane, Plane]] = deque(maxlen=max(VC_LENGTHS) - 1)
        self._values: dict[int, list[float]] = {length: [] for length in VC_LENGTHS}

    def add(self, before: _Seen | None, now: _Seen, *, paired: bool) -> None:
        """Takes the pair in; a clip counts once one more frame follows it, as in the official code."""
        if not paired or before is None or before.truth_plane is None or now.truth_plane is None:
            self._changes.clear()
            return
        for length, values in self._values.items():
            if len(self._changes) >= length - 1:
                values.append(self._share(length - 1, now.mask.size))
        self._changes.append((before.plane ^ now.plane, before.truth_plane ^ now.truth_plane))

    def _share(self, pairs: int, pixels: int) -> float:
        recent = list(self._changes)[-pairs:]
        truth = np.bitwise_or.reduce([change for _, change in recent])
        either = np.bitwise_or.reduce([truth, *(change for change, _ in recent)])
        return ratio_of(pixels - packed.count(either), pixels - packed.count(truth), empty=math.nan)

    def mean(self, length: int) -> float:
        """Mean over the clips of so many frames."""
        return mean(np.array(self._values[length], np.float64))


class _Lag:
    """IoU of the truth with itself some frames late: equal to `evaluation.temporal.lag_test`, as frames arrive."""

    def __init__(self) -> None:
        self._planes: deque[Plane | None] = deque(maxlen=LAGS + 1)
        self._values: list[list[float]] = [[] for _ in range(LAGS)]

    def add(self, plane: Plane | None, *, paired: bool) -> None:
        """Takes the truth of a frame in; a cut or a gap begins anew, and a frame alone between two says nothing."""
        if not paired:
            self._planes.clear()
        self._planes.append(plane)
        if len(self._planes) < 2:
            return
        for lag, values in enumerate(self._values, start=1):
            if len(self._planes) == 2 and self._planes[0] is not None:
                values.append(1.0)  # the first of a run is not late
            late = self._planes[max(0, len(self._planes) - 1 - lag)]  # it is held until then
            if plane is not None and late is not None:
                values.append(ratio_of(packed.count(late & plane), packed.count(late | plane), empty=1.0))

    def losses(self) -> tuple[float, ...]:
        """1 less the mean over the frames, for each lag."""
        return tuple(1 - mean(np.array(values, np.float64)) for values in self._values)


def _seen(predicted: Soft, truth: Mask | None, void: Mask | None, threshold: float) -> _Seen:
    for mask, name in ((truth, "of the truth"), (void, "void")):
        if mask is not None:
            check_mask(mask, name)
            if mask.shape != predicted.shape:
                raise ValueError(f"mask {name} must be of the image's size {predicted.shape}, got {mask.shape}")
    if void is not None:
        predicted = np.where(void, np.float32(0), predicted)
        truth = None if truth is None else truth & ~void
    mask = np.asarray(predicted >= threshold, np.bool_)
    plane = None if truth is None else packed.pack(truth)
    return _Seen(soft=predicted, mask=mask, plane=packed.pack(mask), truth=truth, truth_plane=plane)


def _region(now: _Seen, truth: Mask | None, void: Mask | None, config: MeterConfig) -> dict[str, Any]:
    """Columns of the frame alone."""
    height, width = now.mask.shape
    found = packed.count(now.plane) / now.mask.size
    if truth is None or now.truth_plane is None:
        return {"band_width": band_width(height, width, config.ratio), "area_found": found}
    both = overlap(now.mask, region_truth(truth, config.ratio, void=void))
    inner = both.boundary_iou_interior, both.boundary_iou_interior_raw
    score, raw = (both.boundary_iou, both.boundary_iou_raw) if config.border else inner
    return {
        "iou": both.iou,
        "iou_raw": ratio_of(*both.mask, empty=math.nan),
        "boundary_iou": score,
        "boundary_iou_raw": raw,
        "boundary_iou_interior": inner[0],
        "boundary_f": match(now.mask, contour_truth(truth, config.bound, void=void)).f,
        "band_width": both.d,
        "area_truth": packed.count(now.truth_plane) / now.mask.size,
        "area_found": found,
    }


def _pair(before: _Seen, now: _Seen, flow: FlowPair | None, config: WarpConfig) -> dict[str, Any]:
    """Columns of the frame and the one before."""
    columns = {"adjacent": iou(before.mask, now.mask)}
    truths = None if before.truth is None or now.truth is None else (before.truth, now.truth)
    if truths is not None:
        columns["adjacent_truth"] = iou(*truths)
        columns["dtssd"] = dtssd(before.soft, now.soft, *(truth.astype(np.float32) for truth in truths))
    if flow is not None:
        forward, backward = flow
        valid = believed(forward, backward, config)
        found = warped_pair(before.mask, now.mask, backward, valid, config)
        columns |= {"warped": found.raw_iou, "warped_masked": found.masked_iou, "valid_share": found.valid_share}
        if truths is not None:
            columns |= _truth_columns(warped_pair(*truths, backward, valid, config))
    return columns


def _truth_columns(found: Warped) -> dict[str, float]:
    return {"warped_truth": found.raw_iou, "warped_masked_truth": found.masked_iou}


def _score(row: FrameRow) -> float:
    """What a frame is ranked by; NaN where there is nothing to rank it by."""
    if row.labelled:
        return row.boundary_iou
    return row.adjacent if math.isnan(row.warped_masked) else row.warped_masked


def _column(rows: Sequence[FrameRow], name: str) -> Values:
    return np.array([getattr(row, name) for row in rows], np.float64)


def _first(values: Values) -> tuple[float, ...]:
    """The first ten values; NaN where the video is shorter."""
    known: list[float] = values[:FIRST].tolist()
    return (*known, *[math.nan] * (FIRST - len(known)))
