"""Thinning in time: of frames of one source that show nearly the same, one stays and stands for the others.

::

    frames      K  .  .  K  .  .  .  .  K  K  .  K      K kept, . left out
    because   first    moved        still  new   moved
    stands for  3        5              1  2     1

N frames, D values of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinConfig:
    """When a frame is too near, in time and in looks, to the last one kept of its source.

    With ``gap_seconds = 0`` and ``still_seconds = 0`` every frame stays. ``moved`` is in units of the embedding: at
    0.005 of ``descriptor`` an arm that is raised and a head that turns are movements, blinking and noise are not;
    another embedder needs a value of its own.

    Attributes:
        gap_seconds: no two frames of a scene are nearer in time than this.
        moved: a frame past the gap stays if the cosine distance (0..2) of its embedding to that of the last one kept
            is at least this; 0: all of them stay.
        still_seconds: and stays anyway if so much time has passed since the last one kept; a gap that is longer holds.
    """

    gap_seconds: float = 0.5
    moved: float = 0.005
    still_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gap_seconds", "still_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"thin.{name} must be >= 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.moved <= 2:
            raise ValueError(f"thin.moved must be in [0, 2], got {self.moved}")


def thin(
    pts_us: NDArray[np.int64] | None,
    scenes: NDArray[np.int32],
    vectors: NDArray[np.floating],
    config: ThinConfig,
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Decides which frames of one source stay.

    The first frame of the source and the first of a scene stay. Any other stays if the last one kept is at least
    ``gap_seconds`` before it, and it has moved or ``still_seconds`` have passed (see ``ThinConfig``).

    Cosines are taken in float64: of float16 vectors of unit length they are exact in any order of summation, so a
    decision is a function of what is stored.

    Args:
        pts_us: (N,) times in microseconds, growing; None for frames without a time (a still, rows of a table), which
            all stay.
        scenes: (N,) number of the scene of each frame; the frames of a scene stand together.
        vectors: (N, D) embeddings, not zero, of any length.
        config: the thresholds.

    Returns:
        (N,) whether a frame stays, and (N,) int32 how many frames it stands for: itself and those left out between
        it and the next one kept, 0 where it is left out. They sum to N.

    Raises:
        ValueError: the times do not grow.
    """
    count = len(vectors)
    if pts_us is None:
        return np.ones(count, np.bool_), np.ones(count, np.int32)
    if (np.diff(pts_us) <= 0).any():
        raise ValueError("times of the frames of a source must grow")
    unit = np.asarray(vectors, np.float64)
    lengths = np.einsum("nd,nd->n", unit, unit)
    kept = np.zeros(count, np.bool_)
    last = -1
    for frame in range(count):
        if last < 0 or scenes[frame] != scenes[last]:
            stays = True
        else:
            seconds = (int(pts_us[frame]) - int(pts_us[last])) / 1e6
            cosine = min(1.0, float(unit[frame] @ unit[last]) / float(np.sqrt(lengths[frame] * lengths[last])))
            stays = seconds >= config.gap_seconds and (seconds >= config.still_seconds or 1 - cosine >= config.moved)
        if stays:
            kept[frame], last = True, frame
    starts = np.flatnonzero(kept)
    stands_for = np.zeros(count, np.int32)
    stands_for[starts] = np.diff(starts, append=count)
    return kept, stands_for
