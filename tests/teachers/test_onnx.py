"""ONNX models: what is declared is what is computed, and a file that is not plain is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import expit

from evaluation.masks import iou
from teachers import onnx as backend
from teachers.checkpoint import CheckpointError
from teachers.onnx import OnnxConfig, load_onnx
from teachers.teacher import TeacherError
from training.files import sha256_file

Weights = list[list[float]]

#: One output channel that is the first, second or third input channel.
PICK: list[Weights] = [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
HALVES: Weights = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def kernel(weights: Weights) -> NDArray[np.float32]:
    return np.array(weights, np.float32)[:, :, None, None]


def conv(
    path: Path,
    weights: Weights,
    size: tuple[Any, Any] = (6, 8),
    *,
    bias: float = 0.0,
    nhwc: bool = False,
    batch: Any = 1,
    kind: int = TensorProto.FLOAT,
    after: str = "",
) -> Path:
    """A model of one 1x1 convolution, or in NHWC one matrix product, with a softmax or the like `after` it."""
    matrix = np.array(weights, np.float32)
    matrix, offset = (x.astype(helper.tensor_dtype_to_np_dtype(kind)) for x in (matrix, np.array([bias], np.float32)))
    values = [numpy_helper.from_array(matrix.T if nhwc else matrix[:, :, None, None], "w")]
    values.append(numpy_helper.from_array(offset, "b"))
    nodes = [
        helper.make_node("MatMul" if nhwc else "Conv", ["image", "w"], ["sum"]),
        helper.make_node("Add", ["sum", "b"], ["raw" if after else "mask"]),
    ]
    if after:
        nodes.append(helper.make_node(after, ["raw"], ["mask"], axis=3 if nhwc else 1))
    shape = [batch, *size, 3] if nhwc else [batch, 3, *size]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("mask", kind, None)],
        values,
    )
    return saved(path, graph)


def saved(path: Path, graph: onnx.GraphProto, **more: Any) -> Path:
    opsets = [helper.make_opsetid("", 17), *more.pop("opsets", [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, **more), path)
    return path


def answer(path: Path, image: NDArray[np.uint8], config: OnnxConfig, scale: float = 1.0) -> NDArray[np.float32]:
    (found,) = load_onnx(path, config).soft([image], scale)
    assert found.persons is None
    assert found.probability.dtype == np.float32
    return found.probability


# --- What is declared is computed --------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("nhwc", [False, True])
def test_the_named_channel_arrives_in_the_declared_order_and_layout(
    tmp_path: Path, channel: int, channels: Any, nhwc: bool
) -> None:
    path, image = conv(tmp_path / "m.onnx", PICK[channel], nhwc=nhwc), photo(6, 8)
    config = OnnxConfig(channels=channels, layout="NHWC" if nhwc else "NCHW")
    wanted = image[:, :, channel if channels == "RGB" else 2 - channel] / np.float32(255)
    np.testing.assert_allclose(answer(path, image, config), wanted, rtol=0, atol=1e-6)


def test_mean_and_deviation_belong_to_the_channels_as_the_network_sees_them(tmp_path: Path) -> None:
    image, mean, std = photo(6, 8), (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)
    for channel in range(3):
        path = conv(tmp_path / f"{channel}.onnx", PICK[channel])
        config = OnnxConfig(channels="BGR", mean=mean, std=std, output="logit")
        wanted = expit((image[:, :, 2 - channel] - mean[channel]) / std[channel])
        np.testing.assert_allclose(answer(path, image, config), wanted, rtol=0, atol=1e-6)


KINDS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "probability": lambda x: x[..., 0],
    "logit": lambda x: 1 / (1 + np.exp(-2 * x[..., 0])),
    "probabilities": lambda x: 0.5 * (x[..., 0] + x[..., 2]),
    "logits": lambda x: np.exp(0.5 * x)[..., [0, 2]].sum(-1) / np.exp(0.5 * x).sum(-1),
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("number", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_every_kind_of_output_gives_the_probability_of_its_definition(tmp_path: Path, kind: Any, number: int) -> None:
    once: Weights = [[2.0, 0.0, 0.0]] if kind == "logit" else PICK[0]  # logits within [0, 1] would be refused
    path = conv(tmp_path / "m.onnx", HALVES if kind.endswith("s") else once, kind=number)
    image = photo(6, 8)
    found = answer(path, image, OnnxConfig(output=kind, person=(0, 2)))
    np.testing.assert_allclose(found, KINDS[kind](image / 255), rtol=0, atol=2e-3 if number != 1 else 1e-6)


def test_the_output_may_have_another_layout_than_the_input_or_no_axis_for_its_one_channel(tmp_path: Path) -> None:
    image = photo(6, 8)
    for name, node in (
        ("turned", helper.make_node("Transpose", ["plane"], ["mask"], perm=[0, 2, 3, 1])),
        ("squeezed", helper.make_node("Squeeze", ["plane", "axis"], ["mask"])),
    ):
        graph = helper.make_graph(
            [helper.make_node("Conv", ["image", "w"], ["plane"]), node],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
            [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(kernel(PICK[1]), "w"),
                numpy_helper.from_array(np.array([1]), "axis"),
            ],
        )
        path = saved(tmp_path / f"{name}.onnx", graph)
        found = answer(path, image, OnnxConfig(output_layout="NHWC" if name == "turned" else "same"))
        np.testing.assert_allclose(found, image[:, :, 1] / np.float32(255), rtol=0, atol=1e-6)


def test_a_network_that_takes_bytes_gets_them_unchanged(tmp_path: Path) -> None:
    image = photo(6, 8)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["values", "w"], ["mask"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel([[1 / 255, 0, 0]]), "w")],
    )
    path = saved(tmp_path / "m.onnx", graph)
    found = answer(path, image, OnnxConfig(std=(1.0, 1.0, 1.0)))
    np.testing.assert_allclose(found, image[:, :, 0] / 255, rtol=0, atol=1e-6)
    with pytest.raises(TeacherError, match=r"takes uint8 and normalises by itself: .*mean must be \(0, 0, 0\)"):
        load_onnx(path, OnnxConfig())


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_map_that_is_linear_in_place_survives_the_way_to_the_network_and_back(tmp_path: Path, fit: Any) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0], (64, 64))
    for height, width in ((100, 50), (50, 100), (128, 128), (30, 20)):
        ramp = np.linspace(20, 230, height)[:, None] + np.linspace(-15, 15, width)
        image = np.repeat(np.round(ramp)[..., None], 3, axis=2).astype(np.uint8)
        found = answer(path, image, OnnxConfig(fit=fit))
        assert found.shape == (height, width)
        inner = np.s_[3:-3, 3:-3]  # bilinear sampling repeats the outermost pixels
        np.testing.assert_allclose(found[inner], ramp[inner] / 255, rtol=0, atol=0.012)


def test_a_letterbox_is_padded_with_the_mean_colour_and_the_padding_is_cut_away(tmp_path: Path) -> None:
    config = OnnxConfig(fit="letterbox", mean=(50.0, 50.0, 50.0), std=(100.0, 100.0, 100.0), output="logit")
    fitted, inside = backend._fit(np.full((40, 20, 3), 250, np.uint8), (16, 16), config)
    assert inside == (0, 4, 16, 8)
    values = backend._normalise(fitted, inside, config)
    assert (values[:, 4:12] == 2).all()
    assert (values[:, :4] == 0).all()
    assert (values[:, 12:] == 0).all()
    path = conv(tmp_path / "m.onnx", PICK[0], (16, 16))
    found = answer(path, np.full((40, 20, 3), 250, np.uint8), config)
    np.testing.assert_allclose(found, np.full((40, 20), expit(2.0)), atol=1e-6)


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_a_letterbox_lies_inside_touches_two_sides_and_keeps_the_aspect(h: int, w: int, a: int, b: int) -> None:
    fitted, (top, left, height, width) = backend._fit(photo(h, w), (a, b), OnnxConfig(fit="letterbox"))
    assert fitted.shape == (a, b, 3)
    assert height >= 1
    assert width >= 1
    assert 0 <= top <= a - height
    assert 0 <= left <= b - width
    assert height == a or width == b
    assert abs(height - h * min(a / h, b / w)) <= 1
    assert abs(width - w * min(a / h, b / w)) <= 1


def test_an_answer_depends_neither_on_the_other_images_nor_on_when_it_is_asked(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0], (32, 24), batch="N")
    images = [photo(30, 50, 1), photo(64, 20, 2), photo(1, 1, 3), photo(3, 90, 4)]
    together = load_onnx(path, OnnxConfig()).soft(images, 1.0)
    for image, found in zip(images, together, strict=True):
        assert found.probability.shape == image.shape[:2]
        assert np.array_equal(answer(path, image, OnnxConfig()), found.probability)
    assert load_onnx(path, OnnxConfig()).soft([], 1.0) == []


def test_a_backend_is_named_after_the_bytes_of_its_file(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    model = load_onnx(path, OnnxConfig())
    assert model.sha256 == sha256_file(path)
    assert model.id == f"onnx-{model.sha256[:12]}"


def test_a_scale_changes_the_size_that_a_free_network_sees_in_steps_it_can_take(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0], ("h", "w"))
    model = load_onnx(path, OnnxConfig(height=320, width=72))
    assert [model._scaled(s) for s in (1.0, 1.2, 0.48, 0.01)] == [(320, 72), (384, 88), (160, 32), (32, 8)]
    image = photo(200, 100)
    half, whole = (answer(path, image, OnnxConfig(height=200, width=100), s) for s in (0.5, 1.0))
    np.testing.assert_allclose(whole, image[:, :, 0] / np.float32(255), atol=1e-6)
    assert not np.array_equal(half, whole)


# --- Real models -------------------------------------------------------------------------------------------------

SINET = OnnxConfig(
    channels="BGR",
    mean=(102.890434, 111.25247, 126.91212),
    std=(62.93292 * 255, 62.82138 * 255, 66.355705 * 255),
    output="probabilities",
)
DEEPLAB = OnnxConfig(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5), output="logits")


@pytest.mark.parametrize(
    ("name", "config", "source", "wanted"),
    [
        ("prisma", OnnxConfig(), "hsd", 0.901),
        ("prisma", OnnxConfig(), "ccp", 0.844),
        ("sinet", SINET, "hsd", 0.836),
        ("sinet", SINET, "ccp", 0.796),
        ("deeplab", DEEPLAB, "hsd", 0.860),
    ],
)
def test_a_real_model_scores_what_was_measured_without_this_code(
    data: Path, name: str, config: OnnxConfig, source: str, wanted: float
) -> None:
    """The oracle: mean IoU on the first 40 photographs of a source, measured by whoever packed the models."""
    path = data.parent / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    model, scores = load_onnx(path, config), []
    for photograph in sorted((data / "images").glob(f"{source}_*.jpg"))[:40]:
        image = np.asarray(Image.open(photograph).convert("RGB"))
        mask = np.asarray(Image.open(data / "masks" / f"{photograph.stem}.png").convert("L")) > 127
        scores.append(iou(model.soft([image], 1.0)[0].probability >= 0.5, mask))
    assert len(scores) == 40
    assert np.mean(scores) == pytest.approx(wanted, abs=6e-4)  # given to three digits


# --- What does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ({"size": ("h", 8)}, {}, "teacher.onnx.height must be given"),
        ({"size": (6, "w")}, {}, "teacher.onnx.width must be given"),
        ({}, {"height": 7}, "teacher.onnx.height must be 0 or 6, which the model fixes, got 7"),
        ({"size": (6, 9000)}, {}, "width of 9000, more than the 8192 allowed"),
        ({"nhwc": True}, {}, r"must be \(1, 3, height, width\), it is \(1, 6, 8, 3\); .*layout may have to be 'NHWC'"),
        ({}, {"layout": "NHWC"}, r"must be \(1, height, width, 3\).*layout may have to be 'NCHW'"),
        ({"batch": 4}, {}, r"must be \(1, 3, height, width\), it is \(4, 3, 6, 8\)$"),
        (
            {"kind": TensorProto.DOUBLE, "nhwc": True},
            {"layout": "NHWC"},
            r"must hold float32, float16 or uint8, it is tensor\(double\)",
        ),
        ({}, {"output_name": "masks"}, "teacher.onnx.output_name must be one of mask, got 'masks'"),
        ({"weights": HALVES}, {}, "output has 3 channels .* try 'probabilities' or 'logits'"),
        ({"weights": HALVES}, {"output": "logits", "person": (1, 3)}, "teacher.onnx.person must be below 3"),
        ({}, {"output": "logits"}, "1 channel.* try 'probability' or 'logit'"),
        ({}, {"output_layout": "NHWC"}, "output_layout, NHWC now, looks wrong"),
        ({"bias": -3.0}, {}, r"values in \[-3, -3\], so .* 'probability' looks wrong; try 'logit'"),
        ({"weights": HALVES, "bias": 7.0}, {"output": "probabilities"}, "'probabilities' looks wrong; try 'logits'"),
        ({"weights": HALVES, "bias": 1.0}, {"output": "probabilities", "person": (0, 1)}, r"values in \[1, 2\]"),
        ({"weights": HALVES, "after": "Softmax"}, {"output": "logits"}, "add up to 1 already.* try 'probabilities'"),
        ({"bias": float("nan")}, {}, "not finite.* 'probability' looks wrong"),
        ({"bias": float("nan")}, {"output": "logit"}, "not finite"),
    ],
)
def test_a_model_that_is_not_what_was_declared_is_refused_when_it_is_loaded(
    tmp_path: Path, model: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    path = conv(tmp_path / "m.onnx", **{"weights": PICK[0], **model})
    with pytest.raises(TeacherError, match=message) as error:
        load_onnx(path, OnnxConfig(**config))
    assert str(error.value).startswith(str(path))


def test_where_there_are_several_outputs_one_must_be_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", f"w{i}"], [f"mask{i}"]) for i in (0, 2)],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info(f"mask{i}", TensorProto.FLOAT, None) for i in (0, 2)],
        [numpy_helper.from_array(kernel(PICK[i]), f"w{i}") for i in (0, 2)],
    )
    path, image = saved(tmp_path / "m.onnx", graph), photo(6, 8)
    with pytest.raises(TeacherError, match="output_name must be given, the model has several: mask0, mask2"):
        load_onnx(path, OnnxConfig())
    for i in (0, 2):
        found = answer(path, image, OnnxConfig(output_name=f"mask{i}"))
        np.testing.assert_allclose(found, image[:, :, i] / np.float32(255), atol=1e-6)


def test_a_value_that_is_no_probability_is_refused_on_any_image_by_its_index(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    model = load_onnx(path, OnnxConfig(std=(100.0, 100.0, 100.0)))
    black, white = np.zeros((6, 8, 3), np.uint8), np.full((6, 8, 3), 255, np.uint8)
    with pytest.raises(TeacherError, match=r"image 1: .*values in \[2.55, 2.55\].*try 'logit'"):
        model.soft([black, white], 1.0)


def test_another_scale_with_a_fixed_input_is_refused(tmp_path: Path) -> None:
    model = load_onnx(conv(tmp_path / "m.onnx", PICK[0]), OnnxConfig())
    with pytest.raises(ValueError, match=r"teacher.scales must be \(1.0,\): the input of onnx-.* is fixed at 6 x 8"):
        model.soft([photo(6, 8)], 0.5)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(TeacherError, match=r"teacher.device"):
        load_onnx(conv(tmp_path / "m.onnx", PICK[0]), OnnxConfig(), device)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": -1}, "height must be in 0..8192, got -1"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be three finite values > 0"),
        ({"mean": (1.0, float("nan"), 1.0)}, "mean must be three finite values"),
        ({"mean": (1.0, 2.0)}, "mean must be three finite values"),
        ({"person": ()}, "person must be distinct channels"),
        ({"person": (1, 1)}, "person must be distinct channels"),
        ({"output": "mask"}, "output must be one of probability, logit, probabilities, logits, got 'mask'"),
        ({"fit": "crop"}, "fit must be one of stretch, letterbox"),
    ],
)
def test_settings_that_no_model_can_meet_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"teacher.onnx.{message}"):
        OnnxConfig(**values)


# --- Hostile files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"m\.onnx: "):
        load_onnx(path, OnnxConfig())


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"<html>not found</html>", b"\x80\x02}q\x00.", b"ORTM" * 9]
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.onnx: not a readable ONNX file"):
        load_onnx(path, OnnxConfig())


def test_an_absent_or_oversized_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.onnx: cannot be read"):
        load_onnx(tmp_path / "absent.onnx", OnnxConfig())
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # a hole: takes no space
    with pytest.raises(CheckpointError, match=r"big\.onnx: holds 2147483648 bytes, more than"):
        load_onnx(path, OnnxConfig())


def tensor_outside(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(kernel(PICK[0]), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
def test_weights_in_another_file_are_refused_wherever_they_are_named(tmp_path: Path, location: str, place: str) -> None:
    (tmp_path / "weights.bin").write_bytes(kernel(PICK[0]).tobytes())
    outside = tensor_outside(location)
    nodes = [helper.make_node("Conv", ["image", "w"], ["mask"])]
    constant = helper.make_node("Constant", [], ["w"], value=outside)
    if place == "constant":
        nodes.insert(0, constant)
    elif place == "branch":
        inner = helper.make_graph(
            [constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)]
        )
        truth = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        nodes = [truth, helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner), *nodes]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
        [outside] if place == "initializer" else [],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    with pytest.raises(CheckpointError, match=f"m.onnx: keeps w in another file .{location}., which is refused"):
        load_onnx(path, OnnxConfig())


def custom(tmp_path: Path, functions: list[onnx.FunctionProto]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("First", ["image"], ["mask"], domain="my.ops")],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
    )
    return saved(tmp_path / "m.onnx", graph, opsets=[helper.make_opsetid("my.ops", 1)], functions=functions)


def test_an_operator_of_another_domain_is_refused_unless_the_file_defines_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs the operator my\.ops::First, which is not ONNX's own: export"):
        load_onnx(custom(tmp_path, []), OnnxConfig())
    weights = numpy_helper.from_array(kernel(PICK[0]))
    body = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    first = helper.make_function("my.ops", "First", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    path, image = custom(tmp_path, [first]), photo(6, 8)
    np.testing.assert_allclose(answer(path, image, OnnxConfig()), image[:, :, 0] / np.float32(255), atol=1e-6)


def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"m\.onnx: ONNX Runtime cannot load it"):
        load_onnx(path, OnnxConfig())


@pytest.mark.parametrize("name", [b"image", b"mask", b"Conv"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    data = path.read_bytes()
    assert name in data
    path.write_bytes(data.replace(name, name[:-1] + b"\x9f"))
    with pytest.raises(CheckpointError, match=r"m\.onnx: not a readable ONNX file: .* is no text"):
        load_onnx(path, OnnxConfig())


def test_a_file_with_any_byte_changed_is_refused_or_gives_probabilities(tmp_path: Path) -> None:
    path = conv(tmp_path / "m.onnx", PICK[0])
    data, rng, image = path.read_bytes(), np.random.default_rng(0), photo(6, 8)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(changed))
        try:
            found = answer(path, image, OnnxConfig(output="logit"))
            assert 0 <= np.nanmin(found) <= np.nanmax(found) <= 1
            outcomes.add("answered")
        except (CheckpointError, TeacherError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"answered", "CheckpointError", "TeacherError"}


def test_probabilities_that_are_declared_as_logits_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["raw"]), helper.make_node("Sigmoid", ["raw"], ["mask"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel(PICK[0]), "w")],
    )
    path = saved(tmp_path / "sure.onnx", graph)
    load_onnx(path, OnnxConfig(output="probability"))
    with pytest.raises(TeacherError, match=r"values for noise that all lie in \[0, 1\].*'probability'"):
        load_onnx(path, OnnxConfig(output="logit"))
