"""Which labels a person should draw first: what each of them is expected to mend, and a greedy list.

Letters: N judged labels; q_i the probability that label i is corrupt; d_i = 1 - IoU of the label with the student of
its fold; C clusters. The unit is *labels mended*: a label of which nothing was right is 1, one that lacks a tenth .1.

::

    direct_i = q_i d_i                            a drawn label is mended itself
    L_c      = labels until 5 bad and 5 good      in a cluster whose gate is not passed
    E_c      = sum of q_j d_j beyond those L_c    what an open gate could mend
    unlock_c = p E_c / L_c                        for each of the first L_c labels drawn in c

p is the share of audited gates that opened, (opened + 1/2) / (audited + 1). Small clusters with closed gates are taken
together (``pool_small``). Within a cluster labels are taken by falling direct gain, so the gain of its next label never
rises, and the greedy list is the sorted union of all clusters.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ENOUGH = 5  # bad and good audited labels that the judge's gate asks for
RAREST = 0.02  # a noise rate is held this far from 0 and 1, or no number of labels would do

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateState:
    """What the judge says of the gate of a cluster, or of the small clusters of a fold together.

    Attributes:
        name: of what the gate guards, in words.
        fold: number of the students that judged it.
        outcome: "passed", "failed" or "uncertain".
        audited: labels that a person has checked.
        bad: how many of them were corrupt.
        noise: estimated share of corrupt labels, in [0, 1].
    """

    name: str
    fold: int
    outcome: str
    audited: int
    bad: int
    noise: float

    def __post_init__(self) -> None:
        if self.outcome not in ("passed", "failed", "uncertain"):
            raise ValueError(f"gate must be passed, failed or uncertain, got {self.outcome!r}")
        if not 0 <= self.bad <= self.audited:
            raise ValueError(f"bad must be from 0 to the {self.audited} audited labels, got {self.bad}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be in [0, 1], got {self.noise}")

    @property
    def needed(self) -> int:
        """Labels still to be drawn until the gate can be expected to open; 0 where it is passed.

        As many as bring 5 bad and 5 good ones at the estimated noise. A gate that failed on as many of its own needs
        its evidence doubled.
        """
        if self.outcome == "passed":
            return 0
        good = self.audited - self.bad
        if min(self.bad, good) >= ENOUGH:
            return self.audited
        rate = min(max(self.noise, RAREST), 1 - RAREST)
        return math.ceil(max((ENOUGH - self.bad) / rate, (ENOUGH - good) / (1 - rate), 1) - 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """The labels that a person could draw, in the order of their sample ids.

    Attributes:
        q: (N,) float64 in [0, 1].
        distance: (N,) float64 in [0, 1], 1 - IoU of label and student.
        cluster: (N,) int64, number of the cluster, or of the small clusters of a fold, in ``gates``.
        source: (N,) int64, number of the source.
        gates: C gates.
    """

    q: Floats
    distance: Floats
    cluster: Ints
    source: Ints
    gates: Sequence[GateState]

    def __post_init__(self) -> None:
        shapes = {values.shape for values in (self.q, self.distance, self.cluster, self.source)}
        if shapes != {(len(self.q),)}:
            raise ValueError(f"q, distance, cluster and source must have one shape (N,), got {sorted(shapes)}")
        for name in ("q", "distance"):
            values = getattr(self, name)
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name} must be in [0, 1]; is the release damaged?")
        if len(self.q) and not 0 <= self.cluster.min() <= self.cluster.max() < len(self.gates):
            raise ValueError(f"cluster must be a number below {len(self.gates)}, the number of gates")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelList:
    """The labels to draw first, best first; K of them.

    Attributes:
        rows: (K,) int64 into the candidates.
        direct: (K,) float64, labels mended by drawing this one.
        unlock: (K,) float64, labels mended by opening its gate, its share of it.
        left: (K,) int64, labels that its gate still needed before it was drawn; 0 where it has all.
    """

    rows: Ints
    direct: Floats
    unlock: Floats
    left: Ints

    @property
    def gain(self) -> Floats:
        """(K,) float64, direct + unlock; never rises."""
        return self.direct + self.unlock


def chance_to_open(gates: Sequence[GateState]) -> float:
    """The chance that a gate opens once it is audited, from those that were; 1/2 where none was."""
    audited = [gate.outcome == "passed" for gate in gates if gate.audited]
    return (sum(audited) + 0.5) / (len(audited) + 1)


def label_first(candidates: Candidates, labels: int) -> LabelList:
    """The ``labels`` candidates with the largest gain, fewer where there are fewer.

    At most a third of the list is from one source as long as others are left. Equal gains go by sample id, so the order
    of the rows of a release cannot show in the list.

    Raises:
        ValueError: ``labels`` is below 1.
    """
    if labels < 1:
        raise ValueError(f"labels must be >= 1, got {labels}")
    most = min(labels, len(candidates.q))
    draw = _Draw(candidates)
    every = np.arange(len(candidates.q))
    chosen = draw.greedy(every, most, cap=max(1, most // 3))
    if len(chosen) < most:
        rest = np.setdiff1d(every, chosen)
        chosen += draw.greedy(rest, most - len(chosen), drawn=np.bincount(candidates.cluster[chosen]))
    return draw.listed(draw.greedy(np.sort(np.array(chosen, np.int64)), most))


def pool_small(gates: Sequence[GateState], sizes: Ints) -> tuple[list[GateState], Ints]:
    """Puts together, fold by fold, the closed clusters that are too small to open their gates alone.

    The judge does the same: a cluster without 5 bad and 5 good audited labels of its own is judged by the pool of all
    such clusters.

    Args:
        gates: C gates, one per cluster.
        sizes: (C,) int64, labels that can still be drawn.

    Returns:
        The gates, pools last; and (C,) int64, the number among them of each cluster's.
    """
    small: dict[int, list[int]] = {}
    for i, gate in enumerate(gates):
        if gate.outcome != "passed" and sizes[i] <= gate.needed:
            small.setdefault(gate.fold, []).append(i)
    pools = [members for _, members in sorted(small.items()) if len(members) > 1]
    pooled = {i for members in pools for i in members}
    alone = [i for i in range(len(gates)) if i not in pooled]
    number = np.zeros(len(gates), np.int64)
    for place, members in enumerate([*([i] for i in alone), *pools]):
        number[members] = place
    return [*(gates[i] for i in alone), *(_pool([gates[i] for i in m], sizes[m]) for m in pools)], number


def _pool(gates: Sequence[GateState], sizes: Ints) -> GateState:
    weight = sizes + 1.0 / len(gates)  # also where nothing is left to draw
    return GateState(
        name=f"the {len(gates)} small clusters of fold {gates[0].fold}",
        fold=gates[0].fold,
        outcome="uncertain",
        audited=sum(gate.audited for gate in gates),
        bad=sum(gate.bad for gate in gates),
        noise=min(1.0, float(np.average([gate.noise for gate in gates], weights=weight))),
    )


class _Draw:
    """Gains of the candidates, and greedy choices among them."""

    def __init__(self, candidates: Candidates) -> None:
        self.cluster, self.source = candidates.cluster, candidates.source
        self.direct = candidates.q * candidates.distance
        count = len(candidates.gates)
        self.needed = np.array([gate.needed for gate in candidates.gates], np.int64)
        order, start, _ = self._by_cluster(np.arange(len(self.direct)))
        rank = np.arange(len(order)) - start[self.cluster[order]]
        beyond = order[rank >= self.needed[self.cluster[order]]]
        error = np.bincount(self.cluster[beyond], self.direct[beyond], count)
        chance = chance_to_open(candidates.gates)
        self.unlock = np.where(self.needed > 0, chance * error / np.maximum(self.needed, 1), 0.0)

    def _by_cluster(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """The rows by cluster and falling direct gain, and where each of the C clusters starts and stops."""
        order = rows[np.lexsort((-self.direct[rows], self.cluster[rows]))]
        sizes = np.bincount(self.cluster[order], minlength=len(self.needed))
        stop = np.cumsum(sizes)
        return order, stop - sizes, stop

    def greedy(self, rows: Ints, most: int, *, cap: int | None = None, drawn: Ints | None = None) -> list[int]:
        """Up to ``most`` of the rows (ascending), the largest gain first.

        Args:
            rows: candidates.
            most: how many.
            cap: most of one source; None for no limit.
            drawn: labels per cluster that are drawn already.
        """
        order, start, stop = self._by_cluster(rows)
        seen = np.zeros(len(start), np.int64)
        if drawn is not None:
            seen[: len(drawn)] = drawn
        heap = [self._head(order, int(at), seen) for at, end in zip(start, stop, strict=True) if at < end]
        heapq.heapify(heap)
        taken: dict[int, int] = {}
        chosen: list[int] = []
        while heap and len(chosen) < most:
            _, row, at = heap[0]
            cluster, source = int(self.cluster[row]), int(self.source[row])
            if cap is None or taken.get(source, 0) < cap:
                chosen.append(row)
                taken[source] = taken.get(source, 0) + 1
                seen[cluster] += 1
            if at + 1 < stop[cluster]:
                heapq.heapreplace(heap, self._head(order, at + 1, seen))
            else:
                heapq.heappop(heap)
        return chosen

    def _head(self, order: Ints, at: int, seen: Ints) -> tuple[float, int, int]:
        row = int(order[at])
        cluster = self.cluster[row]
        opens = self.unlock[cluster] if seen[cluster] < self.needed[cluster] else 0.0
        return -float(self.direct[row] + opens), row, at

    def listed(self, chosen: Sequence[int]) -> LabelList:
        """The gains of the chosen rows, in the order in which they are drawn."""
        rows = np.array(chosen, np.int64)
        clusters = self.cluster[rows]
        seen: dict[int, int] = {}
        before = np.zeros(len(rows), np.int64)
        for i, cluster in enumerate(clusters.tolist()):
            before[i] = seen.get(cluster, 0)
            seen[cluster] = before[i] + 1
        left = np.maximum(self.needed[clusters] - before, 0)
        unlock = np.where(left > 0, self.unlock[clusters], 0.0)
        return LabelList(rows=rows, direct=self.direct[rows], unlock=unlock, left=left)


def gates_of(summary: Mapping[str, Mapping[str, object]], names: Sequence[str]) -> list[GateState]:
    """The gates of the named clusters, from the part ``clusters`` of the judge's summary.

    Raises:
        ValueError: a cluster is not in it, or what it says of its gate is no gate.
    """
    gates = []
    for name in names:
        said = summary.get(name)
        if not isinstance(said, Mapping):
            raise ValueError(f"cluster {name!r} has judged labels but is not in the judge's summary")
        gates.append(_gate_of(name, said))
    return gates


def _gate_of(name: str, said: Mapping[str, object]) -> GateState:
    noise, audited, bad, fold = (said.get(key) for key in ("noise", "audited", "bad", "fold"))
    rate = noise[0] if isinstance(noise, list) and noise else None
    if not isinstance(rate, int | float) or not (type(audited) is type(bad) is type(fold) is int):
        raise ValueError(f"cluster {name!r} must state fold, audited, bad and noise, got {dict(said)}")
    try:
        return GateState(
            name=f"cluster {name}",
            fold=fold,
            outcome=str(said.get("gate")),
            audited=audited,
            bad=bad,
            noise=float(rate),
        )
    except ValueError as error:
        raise ValueError(f"cluster {name!r}: {error}") from error
