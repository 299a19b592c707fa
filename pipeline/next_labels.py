"""Which labels a person should draw first: what each of them is expected to mend, and a greedy list.

Letters: N judged labels; q_i the probability that label i is corrupt; d_i = 1 - IoU of the label with the student of
its fold. A drawn label is mended itself: its gain is q_i d_i, in *labels mended*. One of which nothing was right is 1,
one that lacks a tenth .1. What a list like this finds opens no gate, for it is no random sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """The labels that a person could draw, in the order of their sample ids.

    Attributes:
        q: (N,) float64 in [0, 1].
        distance: (N,) float64 in [0, 1], 1 - IoU of label and student.
        source: (N,) int64, number of the source.
    """

    q: Floats
    distance: Floats
    source: Ints

    def __post_init__(self) -> None:
        shapes = {values.shape for values in (self.q, self.distance, self.source)}
        if shapes != {(len(self.q),)}:
            raise ValueError(f"q, distance and source must have one shape (N,), got {sorted(shapes)}")
        for name in ("q", "distance"):
            values = getattr(self, name)
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name} must be in [0, 1]; is the release damaged?")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelList:
    """The labels to draw first, best first; K of them.

    Attributes:
        rows: (K,) int64 into the candidates.
        gain: (K,) float64, labels mended by drawing this one; never rises.
    """

    rows: Ints
    gain: Floats


def label_first(candidates: Candidates, labels: int) -> LabelList:
    """The ``labels`` candidates with the largest gain, fewer where there are fewer.

    At most a third of the list is from one source as long as others are left. Equal gains go by sample id, so the order
    of the rows of a release cannot show in the list.

    Raises:
        ValueError: ``labels`` is below 1.
    """
    if labels < 1:
        raise ValueError(f"labels must be >= 1, got {labels}")
    gain = candidates.q * candidates.distance
    order = np.argsort(-gain, kind="stable")
    most = min(labels, len(gain))
    within = _rank_in_source(candidates.source[order]) < max(1, most // 3)
    chosen = np.concatenate([np.flatnonzero(within), np.flatnonzero(~within)])[:most]
    rows = order[np.sort(chosen)]
    return LabelList(rows=rows, gain=gain[rows])


def _rank_in_source(source: Ints) -> Ints:
    """(N,) how many of the same source come before each."""
    order = np.argsort(source, kind="stable")
    starts = np.flatnonzero(np.diff(source[order], prepend=source[order][:1] - 1))
    rank = np.empty(len(source), np.int64)
    rank[order] = np.arange(len(source)) - np.repeat(starts, np.diff(starts, append=len(source)))
    return rank
