"""Shipped students are opened as data: what is broken, foreign or can run code is refused by name."""

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from students.card import Card, card_values
from students.export import export_lite, export_onnx
from students.model import save_student
from students.runtime import open_network
from tests.students.exports import SIDE, TINY, tiny


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    export_onnx(tiny(), path, side=SIDE, metadata={})
    return path.read_bytes()


@pytest.fixture
def model(exported: bytes) -> onnx.ModelProto:
    """An export that a test may spoil."""
    return onnx.load_model_from_string(exported)


def test_a_checkpoint_is_run_as_its_student_with_the_digest_of_its_file(tmp_path: Path) -> None:
    student, path = tiny(in_channels=4), tmp_path / "a.safetensors"
    save_student(path, student, student.config, {"side": str(SIDE), "training": "x"})
    network = open_network(path)
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.id == f"student-{network.sha256[:12]}"
    assert (network.side, network.in_channels) == (SIDE, 4)
    images = torch.rand(1, 4, 64, 96, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    with torch.no_grad():
        torch.testing.assert_close(network(images), student(images), atol=1e-5, rtol=0)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 4, 64, 64), (1, 3, 64, 65), (1, 3, 0, 64), (3, 64, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    student, path = tiny(), tmp_path / "a.safetensors"
    save_student(path, student, student.config, {"side": str(SIDE)})
    with pytest.raises(ValueError, match=r"images must be \(1, 3, H, W\) float32"):
        open_network(path)(torch.zeros(shape))


def test_a_checkpoint_without_a_side_is_refused(tmp_path: Path) -> None:
    student, path = tiny(), tmp_path / "a.safetensors"
    save_student(path, student, student.config, {})
    with pytest.raises(ValueError, match=r"a\.safetensors: .*must state the side"):
        open_network(path)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ptl", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"rubbish" * 50, b"PK\x05\x06" + bytes(18)])
def test_rubbish_is_refused(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"a\\{suffix}"):
        open_network(path, trusted=True)


def test_an_unknown_suffix_a_missing_file_and_no_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of \.safetensors, \.onnx"):
        open_network(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError):
        open_network(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="threads must be >= 1, got 0"):
        open_network(tmp_path / "a.onnx", threads=0)


def test_files_that_can_run_code_are_opened_only_if_the_caller_vouches_for_them(tmp_path: Path) -> None:
    path = tmp_path / "a.ptl"
    export_lite(tiny(), path, side=SIDE, metadata={})
    with pytest.raises(ValueError, match=r"a \.ptl can run code when PyTorch loads it"):
        open_network(path)
    assert open_network(path, trusted=True).side == SIDE


def test_an_onnx_model_of_someone_else_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ValueError, match="metadata must state format 'curate-student-1', got None"):
        open_network(path)


@pytest.mark.parametrize("place", ["initializer", "value", "tensors", "sparse_value", "sparse_tensors"])
def test_an_onnx_model_with_weights_elsewhere_is_refused(place: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    outside = TensorProto(name="w", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 1])
    sparse = onnx.SparseTensorProto(values=outside, indices=indices, dims=[8])
    attributes = {
        "value": onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=outside),
        "tensors": onnx.AttributeProto(name="tensors", type=onnx.AttributeProto.TENSORS, tensors=[outside]),
        "sparse_value": onnx.AttributeProto(
            name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
        ),
        "sparse_tensors": onnx.AttributeProto(
            name="sparse_tensors", type=onnx.AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse]
        ),
    }
    if place == "initializer":
        model.graph.initializer.append(outside)
    else:
        model.graph.node.append(onnx.NodeProto(op_type="Constant", output=["c"], attribute=[attributes[place]]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"a\.onnx: it keeps w in another file \(weights\.bin\), which is refused"):
        open_network(path)


def test_an_onnx_model_with_foreign_operators_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model.graph.node.append(helper.make_node("Run", ["image"], ["other"], domain="com.example"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"own operators alone, got domains \['com.example'\]"):
        open_network(path)


def test_an_onnx_model_whose_card_lies_about_its_input_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    values = card_values(Card(side=SIDE, config=replace(TINY, in_channels=4), precision="float32"), {})
    helper.set_model_props(model, values)
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"must have one input, 'image_mask' \(1, 4, H, W\)"):
        open_network(path)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0ET12" + b"x" * 100, b"rubbish" * 10])
def test_a_program_of_executorch_that_is_rubbish_is_refused(data: bytes, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    path = tmp_path / "a.pte"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable ExecuTorch program"):
        open_network(path)


def archive(card: str, *, encrypted: bool = False, damaged: bool = False) -> bytes:
    """A ZIP archive with a card, as those of PyTorch have it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/extra/card.json", card)
    data = bytearray(buffer.getvalue())
    if encrypted:
        for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(mark) + flags] |= 1
    if damaged:
        data[data.index(b"card.json") + len("card.json")] = 0xFF
    return bytes(data)


@pytest.mark.parametrize("suffix", [".pt2", ".ptl"])
@pytest.mark.parametrize(
    "data",
    [
        archive("[" * 100_000),
        archive("{}", encrypted=True),
        archive("{}", damaged=True),
        archive("[]"),
        archive("no JSON"),
        archive("{}"),
    ],
    ids=["deep", "encrypted", "damaged", "a list", "no JSON", "no student"],
)
def test_an_archive_whose_card_cannot_be_read_is_refused_by_name(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\{suffix}: its? "):
        open_network(path, trusted=True)


@pytest.mark.parametrize(
    ("card", "rule"),
    [
        (3, r"must take nothing and give one text, got int"),
        ("[" * 100_000, "must be a JSON object"),
        ("[]", "must be a JSON object, got list"),
    ],
    ids=["a number", "deep", "a list"],
)
def test_a_program_of_executorch_whose_card_is_none_is_refused(card: object, rule: str, tmp_path: Path) -> None:
    exir = pytest.importorskip("executorch.exir")
    path = tmp_path / "a.pte"
    plain = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    path.write_bytes(exir.to_edge({"forward": plain}, constant_methods={"card": card}).to_executorch().buffer)
    with pytest.raises(ValueError, match=rf"a\.pte: .*{rule}"):
        open_network(path)
