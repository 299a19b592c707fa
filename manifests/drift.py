"""How far two distributions of one column lie apart: the largest difference of a share, and the divergence.

Null is a value of its own: what became unknown is a drift too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manifests.release import Json
from manifests.scan import Words
from manifests.text import cut

WORDS = (
    "split",
    "verdict",
    "label_source",
    "media_kind",
    "aspect_bucket",
    "licence",
    "consent_status",
    "judge.cluster",
)
"""Columns of words whose drift is told, besides the decision and the attributes."""
AREA = "mask_area_share"
"""The area of the mask over that of the frame."""
NUMBERS = (
    "label_confidence",
    "boundary_uncertainty",
    "student_iou",
    "student_boundary_iou",
    "temporal_iou",
    AREA,
    "mask_components",
    "n_persons",
    "judge.q",
    "cluster_distance",
    "sampling_weight",
)
"""Columns of numbers whose drift is told."""
BINS = 40
MAX_VALUES = 50
"""Values of a column that are told one by one; the rest is one."""
REST = "(other values)"

Mask = NDArray[np.bool_]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drift:
    """How a column is distributed in A and in B.

    Attributes:
        column: its name.
        of: the rows counted.
        rows: how many of them in A and in B.
        linf: the largest difference of a share, in [0, 1].
        js: Jensen-Shannon divergence to base 2, in [0, 1].
        values: what is counted; None is null. Of numbers, the bins and then None.
        shares: (values, 2) of the rows, in A and in B.
        edges: of the bins, None for words.
    """

    column: str
    of: str
    rows: tuple[int, int]
    linf: float
    js: float
    values: tuple[str | None, ...]
    shares: Shares
    edges: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Json]:
        """The drift as `manifests.diff.Difference.to_json` tells it; rare values are one."""
        order = list(range(len(self.values)))
        if self.edges is None:
            order = np.argsort(-self.shares.max(1), kind="stable").tolist()
        values: list[Json] = [
            {"value": self.values[i], "a": float(self.shares[i, 0]), "b": float(self.shares[i, 1])}
            for i in order[:MAX_VALUES]
        ]
        if rest := order[MAX_VALUES:]:
            a, b = self.shares[rest].sum(0).tolist()
            values.append({"value": REST, "a": a, "b": b})
        return {
            "column": self.column,
            "of": self.of,
            "a": self.rows[0],
            "b": self.rows[1],
            "linf": self.linf,
            "js": self.js,
            "edges": None if self.edges is None else list(self.edges),
            "values": values,
        }


def divergence(p: Shares, q: Shares) -> float:
    """Jensen-Shannon divergence of two distributions to base 2: 0 for equal ones, 1 where nothing is shared.

    Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991), eq. 4.1.

    Args:
        p: (K,) shares; all zero where there is no row, which is as far from q as can be unless that has none either.
        q: (K,) shares.
    """
    if not (p.any() and q.any()):
        return float(p.any() or q.any())
    middle = (p + q) / 2
    return float(max(0.0, sum(_entropy_gap(part, middle) for part in (p, q)) / 2))


def _entropy_gap(p: Shares, middle: Shares) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / middle[some])).sum())


def drift_of_words(column: str, words: Words, rows: Sequence[Mask] | None) -> Drift:
    """The drift of a column of words.

    Args:
        column: its name.
        words: of A and B.
        rows: of A and B (N,) which count: the kept ones; None for all.
    """
    size = len(words.values) + 1
    chosen = [codes if rows is None else codes[rows[side]] for side, codes in enumerate(words.codes)]
    counts = [np.bincount(codes.astype(np.int64) + 1, minlength=size) for codes in chosen]
    values = (None, *(cut(value) for value in words.values))
    present = (counts[0] + counts[1]) > 0
    found = tuple(value for value, there in zip(values, present.tolist(), strict=True) if there)
    return _drift(column, rows is not None, np.stack(counts, 1)[present], found, None)


def drift_of_numbers(column: str, a: NDArray[np.float32], b: NDArray[np.float32], rows: Sequence[Mask]) -> Drift:
    """The drift of a column of numbers over BINS bins from the least to the greatest value of both.

    Args:
        column: its name.
        a: (N,) values in A, NaN for null.
        b: (N,) values in B.
        rows: of A and B (N,) which count.
    """
    chosen = [values[rows[side]] for side, values in enumerate((a, b))]
    known = [values[~np.isnan(values)].astype(np.float64) for values in chosen]
    both = [values for values in known if len(values)]
    low, high = min((float(v.min()) for v in both), default=0.0), max((float(v.max()) for v in both), default=0.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [
        np.append(np.histogram(there, BINS, (edges[0], edges[-1]))[0], len(values) - len(there))
        for there, values in zip(known, chosen, strict=True)
    ]
    names = tuple(f"{edges[i]:.4g} to {edges[i + 1]:.4g}" for i in range(BINS))
    return _drift(column, True, np.stack(counts, 1), (*names, None), tuple(edges.tolist()))


def _drift(
    column: str,
    kept: bool,
    counts: NDArray[np.int64],
    values: tuple[str | None, ...],
    edges: tuple[float, ...] | None,
) -> Drift:
    total = counts.sum(0)
    shares = counts / np.maximum(total, 1)
    return Drift(
        column=column,
        of="kept rows" if kept else "all rows",
        rows=(int(total[0]), int(total[1])),
        linf=float(np.abs(shares[:, 0] - shares[:, 1]).max(initial=0.0)),
        js=divergence(shares[:, 0], shares[:, 1]),
        values=values,
        shares=shares,
        edges=edges,
    )
