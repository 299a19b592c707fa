import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from students.latency import Latency, input_size, onnx_call, onnx_latencies, take_turns

TIMES = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


def written(path: Path, convolutions: int, sides: tuple[object, object] = ("h", "w")) -> Path:
    """A chain of 3×3 convolutions on 3 channels."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (3, 3, 3, 3), np.full(81, 0.01, np.float32))
    names = ["image", *(f"x{i}" for i in range(1, convolutions + 1))]
    nodes = [helper.make_node("Conv", [a, "w"], [b], pads=[1, 1, 1, 1]) for a, b in itertools.pairwise(names)]
    shape = ["n", 3, *sides]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_calls_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    measured = take_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert [len(latency.cpu) for latency in measured] == [3, 3]


@given(TIMES)
def test_the_minimum_is_at_most_the_median_and_both_lie_among_the_times(times: list[float]) -> None:
    measured = Latency(wall=tuple(times), cpu=tuple(times))
    assert min(times) == measured.cpu_minimum <= measured.cpu_median <= max(times)
    assert measured.wall_minimum == measured.cpu_minimum
    assert measured.wall_median == measured.cpu_median


@given(TIMES, st.floats(0.1, 10), st.lists(st.floats(1, 5), min_size=9, max_size=9))
def test_the_ratio_does_not_feel_noise_that_disturbs_a_round(
    times: list[float], factor: float, noise: list[float]
) -> None:
    disturbed = [time * slow for time, slow in zip(times, noise, strict=False)]
    other = Latency(wall=tuple(times), cpu=tuple(disturbed))
    mine = Latency(wall=tuple(times), cpu=tuple(factor * time for time in disturbed))
    assert mine.ratio(other) == pytest.approx(factor)
    assert other.ratio(other) == 1


def test_more_work_takes_longer(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{count}.onnx", count) for count in (1, 20)]
    short, long = onnx_latencies(paths, (128, 160), rounds=5)
    assert long.ratio(short) > 3
    assert long.cpu_minimum > short.cpu_minimum


def test_free_sides_take_the_size_and_fixed_ones_must_agree(tmp_path: Path) -> None:
    free, fixed = written(tmp_path / "free.onnx", 1), written(tmp_path / "fixed.onnx", 1, (64, 96))
    assert input_size(free) is None
    assert input_size(fixed) == (64, 96)
    outputs = onnx_call(free, (32, 64))()
    assert isinstance(outputs, list)
    assert outputs[0].shape == (1, 3, 32, 64)
    onnx_call(fixed, (64, 96))
    with pytest.raises(ValueError, match="made for 64x96, asked for 96x64"):
        onnx_call(fixed, (96, 64))


def test_the_image_is_a_function_of_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "one.onnx", 1)
    first, again, other = (onnx_call(path, (32, 32), seed=seed)() for seed in (1, 1, 2))
    assert np.array_equal(first, again)  # type: ignore[arg-type]
    assert not np.array_equal(first, other)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.onnx"
    path.write_bytes(b"no model")
    for use in (lambda: input_size(path), lambda: onnx_call(path, (32, 32))):
        with pytest.raises(ValueError, match=r"rubbish\.onnx: ONNX Runtime cannot load"):
            use()


@pytest.mark.parametrize(("rounds", "warm_up"), [(0, 0), (1, -1)])
def test_nonsense_rounds_are_refused(rounds: int, warm_up: int) -> None:
    with pytest.raises(ValueError, match="rounds must be >= 1"):
        take_turns([], rounds=rounds, warm_up=warm_up)


def test_latencies_of_different_rounds_are_not_compared() -> None:
    one, two = (Latency(wall=(1.0,) * n, cpu=(1.0,) * n) for n in (1, 2))
    with pytest.raises(ValueError, match="equal rounds"):
        one.ratio(two)
