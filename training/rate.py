"""The learning rate of a step."""

import math


def warm_cosine(step: int, steps: int, *, peak: float, warm_up: int, floor: float = 0.0) -> float:
    """A linear warm-up to ``peak``, then half a cosine to ``floor`` times it (Loshchilov and Hutter, ICLR 2017).

    Args:
        step: 0, 1, ..
        steps: Of the whole training.
        peak: The largest rate.
        warm_up: Steps until the peak.
        floor: Share of the peak that is left at the end.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    way = (step - warm_up) / max(1, steps - warm_up)
    return peak * (floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * way)))
