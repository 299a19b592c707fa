"""Laws of untrusted ONNX files: nothing that a file holds stays out of view."""

import onnx
import pytest
from onnx import TensorProto, helper

from training.onnx_files import elsewhere, read_onnx

OUTSIDE = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
INSIDE = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])


def graph(value: TensorProto, depth: int) -> onnx.GraphProto:
    """A constant within so many branches."""
    node = helper.make_node("Constant", [], ["c"], value=value)
    for _ in range(depth):
        inner = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["c"], ["c"], then_branch=inner)
    return helper.make_graph([node], "g", [], [])


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_a_tensor_elsewhere_is_found_at_any_depth_and_one_inside_is_none(depth: int) -> None:
    for value, found in ((INSIDE, None), (OUTSIDE, "w in another file (unnamed)")):
        _, parts = read_onnx(helper.make_model(graph(value, depth)).SerializeToString())
        assert elsewhere(parts) == found


def test_tensors_of_functions_and_of_a_training_are_seen() -> None:
    body = [helper.make_node("Constant", [], ["y"], value=OUTSIDE)]
    function = helper.make_function("own", "F", [], ["y"], body, [helper.make_opsetid("", 20)])
    trained = helper.make_model(graph(INSIDE, 0))
    trained.training_info.add().algorithm.CopyFrom(graph(OUTSIDE, 0))
    for model in (helper.make_model(graph(INSIDE, 0), functions=[function]), trained):
        assert elsewhere(read_onnx(model.SerializeToString())[1]) == "w in another file (unnamed)"


@pytest.mark.parametrize("data", [b"rubbish", b"\x3a\xff"])
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        read_onnx(data)
