"""How long a network takes on this machine, told from the noise of what else it does.

One thread. All candidates take turns in every round, so whatever else runs disturbs all alike, and two of them are
compared by the median of their quotients within a round. CPU time leaves out the waiting for a core, not the slowing
down of caches that are shared: of the milliseconds the minimum comes nearest to a quiet machine.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

Call = Callable[[], object]
Size = tuple[int, int]
WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times of one network in milliseconds per image, one entry per round.

    Attributes:
        wall: Of the clock on the wall.
        cpu: Of this process on all cores.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.wall or len(self.wall) != len(self.cpu):
            raise ValueError(f"latency needs as many wall as cpu times, got {len(self.wall)} and {len(self.cpu)}")

    @property
    def wall_median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.wall)

    @property
    def wall_minimum(self) -> float:
        """Milliseconds."""
        return min(self.wall)

    @property
    def cpu_median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.cpu)

    @property
    def cpu_minimum(self) -> float:
        """Milliseconds."""
        return min(self.cpu)

    def ratio(self, other: "Latency") -> float:
        """How many times as long as another of the same rounds: the median of the rounds' quotients of CPU time.

        Raises:
            ValueError: If the other has another number of rounds.
        """
        if len(other.cpu) != len(self.cpu):
            raise ValueError(f"two latencies of one run have equal rounds, got {len(self.cpu)} and {len(other.cpu)}")
        return statistics.median(mine / theirs for mine, theirs in zip(self.cpu, other.cpu, strict=True))


def take_turns(calls: Sequence[Call], *, rounds: int, warm_up: int = WARM_UP) -> tuple[Latency, ...]:
    """Call each once per round, and time it.

    Args:
        calls: What is timed; each runs one image on one thread.
        rounds: That count, at least 1.
        warm_up: Rounds before them that do not.

    Raises:
        ValueError: If a number is out of range.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"rounds must be >= 1 and warm_up >= 0, got {rounds} and {warm_up}")
    taken: list[list[tuple[float, float]]] = [[] for _ in calls]
    for _ in range(warm_up + rounds):
        for call, times in zip(calls, taken, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(_latency(times[warm_up:]) for times in taken)


def _latency(times: Sequence[tuple[float, float]]) -> Latency:
    wall, cpu = zip(*times, strict=True)
    # a call below the clock's step must not give 0, which nothing can be divided by
    return Latency(wall=tuple(1e3 * max(w, 1e-9) for w in wall), cpu=tuple(1e3 * max(c, 1e-9) for c in cpu))


def onnx_call(path: Path, size: Size, *, seed: int = 0) -> Call:
    """A call that runs an ONNX model on one random image, one thread, in ONNX Runtime.

    Args:
        path: A model of one float32 input (N, C, H, W); N and sides may be free.
        size: (H, W) of the image.
        seed: Of its pixels, uniform in [0, 1).

    Raises:
        ValueError: If the model cannot be loaded, has another kind of input, or refuses the size.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many kinds, all of its own
        raise ValueError(f"{path}: ONNX Runtime cannot load it: {str(error)[:200]}; export the model again") from error
    shape = _shape(path, session.get_inputs(), size)
    feed = {session.get_inputs()[0].name: np.random.default_rng(seed).random(shape, dtype=np.float32)}

    def call() -> object:
        return session.run(None, feed)

    try:
        call()
    except Exception as error:
        raise ValueError(f"{path}: the model must run at {size[0]}x{size[1]}: {str(error)[:200]}") from error
    return call


def onnx_latencies(paths: Sequence[Path], size: Size, *, rounds: int, seed: int = 0) -> tuple[Latency, ...]:
    """Latency of each ONNX model at one size (H, W), taking turns; errors as ``onnx_call`` and ``take_turns``."""
    return take_turns([onnx_call(path, size, seed=seed) for path in paths], rounds=rounds)


def input_size(path: Path) -> Size | None:
    """The (H, W) that an ONNX model is made for; None where its sides are free.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{path}: ONNX Runtime cannot load it: {str(error)[:200]}; export the model again") from error
    height, width = session.get_inputs()[0].shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what matters is raised
    for kind in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{kind}.allow_spinning", "0")
    return options


def _shape(path: Path, inputs: Sequence[Any], size: Size) -> tuple[int, ...]:
    found = [(i.name, i.type, i.shape) for i in inputs]
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise ValueError(f"{path}: the model must have one float32 input (N, C, H, W), got {found}")
    batch, channels, *sides = inputs[0].shape
    if not isinstance(channels, int):
        raise ValueError(f"{path}: the model must state its input's channels, got {inputs[0].shape}")
    wrong = [side for side, wanted in zip(sides, size, strict=True) if isinstance(side, int) and side != wanted]
    if wrong:
        raise ValueError(f"{path}: the model is made for {sides[0]}x{sides[1]}, asked for {size[0]}x{size[1]}")
    return (batch if isinstance(batch, int) else 1, channels, *size)
