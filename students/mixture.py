"""Which steps are trained on labelled images and which on the release: a pure function of the step.

```
share of labelled steps   first ╲
                                 ╲________ last
                          0     ramp     steps
```

So a young student learns from what is certain, and later sees mostly what is plentiful.
"""

import math
from dataclasses import dataclass

_SLACK = 1e-9  # a sum that should be whole may have lost its last bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The share of labelled steps, as evenly spread as whole steps allow.

    Attributes:
        first: At step 0, in [0, 1].
        last: From step `ramp` on, in [0, 1].
        ramp: Steps over which it moves linearly, >= 0.
    """

    first: float
    last: float
    ramp: float

    def __post_init__(self) -> None:
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1 and 0 <= self.ramp < math.inf):
            raise ValueError(
                f"mixture needs shares in [0, 1] and ramp >= 0, got {self.first}, {self.last}, {self.ramp}"
            )

    def labelled_before(self, step: int) -> int:
        """How many of the steps 0 .. step - 1 are labelled: the integral of the share, rounded."""
        way = min(float(step), self.ramp)
        total = self.first * way + self.last * (step - way)
        if self.ramp > 0:
            total += (self.last - self.first) * way * way / (2 * self.ramp)
        return min(step, math.floor(total + 0.5 + _SLACK))

    def source(self, step: int) -> tuple[bool, int]:
        """Whether a step is labelled, and how many steps of its kind came before it."""
        before = self.labelled_before(step)
        labelled = self.labelled_before(step + 1) > before
        return labelled, before if labelled else step - before
