"""Which students fit a latency, and which of them to prefer: candidates, predictions, the Pareto front.

Nothing is measured or trained here. A pool of candidates is drawn from a space; a linear model of what convolutions
cost, fitted to a few measured ones, says which of the others are worth measuring; of those measured, and scored, none
that another one beats in both is kept.

Letters: N candidates, F features.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn

from students.model import STRIDE, StudentConfig, config_to_json, outline
from students.padding import Padding
from students.presets import NANO, SMALL

FEATURES = ("pointwise MMAC", "spatial MMAC", "million outputs", "layers", "one")
_AT = 64  # side at which costs are counted; they grow with the area
_SHARES = (1.0, 0.75, 0.5, 0.0)  # a front needs candidates below the budget as well
_RUNGS = (4, 2, 1)
_FINALISTS = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A student at an input size.

    Attributes:
        config: Its shape.
        side: Images are seen at about side² pixels.
    """

    config: StudentConfig
    side: int

    @property
    def key(self) -> str:
        """A short name that is a function of shape and side."""
        return hashlib.sha256(f"{config_to_json(self.config)}|{self.side}".encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What is searched: each table, changed in all combinations.

    Attributes:
        tables: Students with a table; their ``width`` and padding are replaced.
        widths: Multiples of the encoder's widths.
        deeper: Blocks more in each of the last three stages; none falls below 1.
        kernels: Side of the depthwise kernels at strides 8, 16, 32; 0 leaves the table's.
        decoders: Multiples of the decoder's widths (rounded to multiples of 4).
        sides: Sides of the input, multiples of 32.
        paddings: What convolutions see outside of a map.
    """

    tables: tuple[StudentConfig, ...] = (NANO, SMALL)
    widths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    deeper: tuple[int, ...] = (-1, 0, 1)
    kernels: tuple[int, ...] = (0, 3, 5)
    decoders: tuple[float, ...] = (0.5, 1.0, 1.5)
    sides: tuple[int, ...] = (128, 160, 192, 224, 256, 288, 320)
    paddings: tuple[Padding, ...] = ("replicate",)

    def __post_init__(self) -> None:
        for axis in fields(self):
            values = getattr(self, axis.name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"space.{axis.name} must have values, each once, got {values}")
        wrong = [side for side in self.sides if side < 2 * STRIDE or side % STRIDE]
        if wrong:
            raise ValueError(f"space.sides must be multiples of {STRIDE} from {2 * STRIDE} on, got {wrong}")
        if any(table.encoder != "table" for table in self.tables):
            raise ValueError("space.tables must be students with encoder = table; timm's have no table to change")

    def __len__(self) -> int:
        """Shapes, before the equal ones among them are joined; each at every side."""
        return math.prod(len(values) for values in self._axes())

    def _axes(self) -> tuple[tuple[object, ...], ...]:
        return self.tables, self.widths, self.deeper, self.kernels, self.decoders, self.paddings

    def shape(self, index: int) -> StudentConfig:
        """The shape of a number below ``len``, with 4 channels, as it is shipped.

        Raises:
            IndexError: If there is no such number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"a shape's number must be in [0, {len(self)}), got {index}")
        places = np.unravel_index(index, tuple(len(axis) for axis in self._axes()))
        at = [int(place) for place in places]
        table, kernel = self.tables[at[0]], self.kernels[at[3]]
        kernels = table.kernels if kernel == 0 else (*table.kernels[:2], kernel, kernel, kernel)
        depths = (*table.depths[:2], *(max(1, depth + self.deeper[at[2]]) for depth in table.depths[2:]))
        return replace(
            table,
            width=self.widths[at[1]],
            depths=depths,  # type: ignore[arg-type]
            kernels=kernels,
            decoder=tuple(_rounded(self.decoders[at[4]] * width) for width in table.decoder),  # type: ignore[arg-type]
            padding=self.paddings[at[5]],
            in_channels=4,
        )

    def plain(self) -> tuple[StudentConfig, ...]:
        """The tables as they are, with 4 channels."""
        return tuple(replace(table, in_channels=4) for table in self.tables)


def _rounded(width: float) -> int:
    return max(4, math.floor(width / 4 + 0.5) * 4)


def draw(space: Space, count: int, seed: int) -> tuple[Candidate, ...]:
    """The tables and ``count`` other shapes of a space, each at every side: a function of (space, count, seed).

    Raises:
        ValueError: If count or seed is negative.
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must be >= 0, got {count} and {seed}")
    order = np.random.default_rng(seed).permutation(len(space))
    shapes = dict.fromkeys(space.plain())
    for index in order:
        if len(shapes) >= len(space.tables) + count:
            break
        shapes[space.shape(int(index))] = None
    return tuple(Candidate(config=shape, side=side) for shape in shapes for side in space.sides)


# ── What it costs ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one image costs a student.

    Attributes:
        parameters: Trained numbers.
        pointwise: Multiply-accumulates of 1×1 convolutions.
        spatial: Multiply-accumulates of the others.
        outputs: Numbers that convolutions write.
        layers: Convolutions.
    """

    parameters: int
    pointwise: int
    spatial: int
    outputs: int
    layers: int

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.pointwise + self.spatial


@functools.lru_cache(maxsize=4096)
def _work(config: StudentConfig) -> Work:
    student = outline(replace(config, padding="zeros")).eval().to_empty(device="cpu")  # padding is not counted
    counted = {"pointwise": 0, "spatial": 0, "outputs": 0, "layers": 0}

    def count(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        kind = "pointwise" if layer.kernel_size == (1, 1) else "spatial"
        counted[kind] += output.numel() * layer.weight[0].numel()
        counted["outputs"] += output.numel()
        counted["layers"] += 1

    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():  # weights are whatever the memory held, and quicker so than without memory
        student(torch.zeros(1, config.in_channels, _AT, _AT))
    return Work(parameters=sum(p.numel() for p in student.parameters()), **counted)


def work(candidate: Candidate) -> Work:
    """What an image of side × side pixels costs; counted at one size, as all but the layers grow with the area."""
    at = _work(candidate.config)
    area = (candidate.side / _AT) ** 2
    scaled = {name: round(getattr(at, name) * area) for name in ("pointwise", "spatial", "outputs")}
    return replace(at, **scaled)


def capacity(candidate: Candidate) -> float:
    """Millions of multiply-accumulates times millions of pixels: what is preferred where there is no data.

    A stand-in for quality: more compute on more pixels in the same time. It says nothing of people.
    """
    return work(candidate).macs / 1e6 * candidate.side**2 / 1e6


def features(candidates: Sequence[Candidate]) -> Floats:
    """(N, F) float64 of what ``FEATURES`` names."""
    rows = []
    for candidate in candidates:
        found = work(candidate)
        rows.append((found.pointwise / 1e6, found.spatial / 1e6, found.outputs / 1e6, float(found.layers), 1.0))
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES))


def fit_latency(rows: Floats, milliseconds: Sequence[float]) -> Floats:
    """(F,) weights >= 0 whose relative errors on the measured (N, F) rows have the least squares.

    Raises:
        ValueError: If nothing was measured, or a time is not above 0.
    """
    times = np.asarray(milliseconds, np.float64)
    if rows.shape != (len(times), len(FEATURES)) or not len(times) or not (times > 0).all():
        raise ValueError(f"a fit needs (N, {len(FEATURES)}) rows and N >= 1 times above 0, got {rows.shape}, {times}")
    found: Floats = nnls(rows / times[:, None], np.ones(len(times)))[0]
    return found


def promising(
    candidates: Sequence[Candidate], predicted: Sequence[float], budget: float, *, count: int
) -> tuple[Candidate, ...]:
    """The candidates to measure next, at most ``count``, predicted within the budget; best first.

    In turn from each side and each part of the budget (near it, three quarters of it, half), the one of most compute:
    nobody knows yet which side is right, and a front has members below the budget.
    """
    groups: dict[tuple[int, int], list[Candidate]] = {}
    for candidate, ms in zip(candidates, predicted, strict=True):
        if ms <= budget:
            part = next(place for place, share in enumerate(_SHARES) if ms > share * budget or share == 0) - 1
            groups.setdefault((part, -candidate.side), []).append(candidate)
    for members in groups.values():
        members.sort(key=lambda one: (-work(one).macs, one.key))
    return tuple(_in_turn([groups[name] for name in sorted(groups)], count))


def _in_turn(queues: Sequence[Sequence[Candidate]], count: int) -> Iterator[Candidate]:
    longest = max((len(queue) for queue in queues), default=0)
    everyone = [queue[rank] for rank in range(longest) for queue in queues if rank < len(queue)]
    return iter(everyone[:count])


# ── Which to prefer ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measured candidate.

    Attributes:
        name: Unique among the points.
        latency: Milliseconds; less is better.
        score: More is better.
    """

    name: str
    latency: float
    score: float


def dominates(a: Point, b: Point) -> bool:
    """Whether a is as good as b in both, and better in one."""
    return a.latency <= b.latency and a.score >= b.score and (a.latency < b.latency or a.score > b.score)


def front(points: Sequence[Point], budget: float = math.inf) -> tuple[Point, ...]:
    """The points within the budget that no other one dominates, by latency (the Pareto front)."""
    within = sorted((p for p in points if p.latency <= budget), key=lambda p: (p.latency, -p.score, p.name))
    kept: list[Point] = []
    for point in within:
        if not kept or point.score > kept[-1].score or _equal(point, kept[-1]):
            kept.append(point)
    return tuple(kept)


def _equal(a: Point, b: Point) -> bool:
    return a.latency == b.latency and a.score == b.score


def survivors(points: Sequence[Point], count: int) -> tuple[Point, ...]:
    """The ``count`` points to go on with: whole fronts, one after the other, and of the last its best scores."""
    left, kept = list(points), list[Point]()
    while left and len(kept) < count:
        layer = front(left)
        kept += sorted(layer, key=lambda p: (-p.score, p.latency, p.name))[: count - len(kept)]
        left = [point for point in left if point not in layer]
    return tuple(kept)


def rungs(candidates: int, steps: int) -> tuple[tuple[int, int], ...]:
    """Successive halving (Jamieson & Talwalkar, AISTATS 2016): (training steps, candidates trained so long), ascending.

    All are trained for a quarter of the steps, half of them for half, a quarter, at least 3, for all.

    Raises:
        ValueError: If there is no candidate or no step.
    """
    if candidates < 1 or steps < 1:
        raise ValueError(f"candidates and steps must be >= 1, got {candidates} and {steps}")
    levels: dict[int, int] = {}
    for level, divisor in enumerate(_RUNGS):
        levels[max(1, steps // divisor)] = min(candidates, max(_FINALISTS, math.ceil(candidates / 2**level)))
    return tuple(levels.items())


def to_toml(candidate: Candidate) -> str:
    """What a config needs for it to be trained: the sections ``[train]`` and ``[train.model]``."""
    plain = asdict(StudentConfig())
    shape = {name: value for name, value in asdict(candidate.config).items() if value != plain[name]}
    channels = shape.pop("in_channels", 3)  # the recipe states it in a word of its own
    top = {"preset": "custom", "side": candidate.side} | ({} if channels == 4 else {"mask_channel": False})
    return "\n".join(["[train]", *_lines(top), "", "[train.model]", *_lines(shape), ""])


def _lines(values: Mapping[str, object]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in values.items()]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
