"""An export is the student: the same logits up to rounding, in one file that says what it needs."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from students.card import Card, card_values, read_card
from students.data import bucket_sizes
from students.edge_pad import EdgePad2d, with_edge_pads
from students.encoder import DEEP, norms
from students.export import FORMATS, MissingPackageError, export_lite, export_onnx, export_onnx_int8, export_pt2
from students.export_executorch import export_executorch, needed
from students.fuse import fuse
from students.model import Student, build_student
from students.parity import calibration_images, compare, latency_ms
from students.presets import PRESETS
from students.prior import network_input
from students.runtime import open_network
from tests.students.exports import SIDE, TINY, pictures, pixels, tiny
from tests.students.weights import fill


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of ``tiny(in_channels=4)``."""
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    export_onnx(tiny(in_channels=4), path, side=SIDE, metadata={"training": "abc"})
    return path


FLOATS: dict[str, Callable[..., None]] = {".onnx": export_onnx, ".pt2": export_pt2, ".ptl": export_lite}


def noise(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", ["nano", "base"])
def test_folding_normalisations_leaves_the_function_and_the_student_as_they_were(preset: str) -> None:
    student = build_student(PRESETS[preset], 0)
    fill(student)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    images = noise(3, 64, 96)
    with torch.no_grad():
        expected = student.eval()(images)
        fused = fuse(student)
        torch.testing.assert_close(fused(images), expected, atol=2e-4, rtol=1e-4)
    assert not norms(fused)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_a_normalisation_without_its_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="must follow its convolution to be folded, 1 do not"):
        fuse(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("edge", ["replicate", "reflect"])
@pytest.mark.parametrize("pad", [1, 2, 3])
def test_slices_and_concatenation_pad_as_torch_does(edge: str, pad: int) -> None:
    values = noise(2, 5, 7)
    padded = EdgePad2d(pad, edge)(values)  # type: ignore[arg-type]
    assert torch.equal(padded, functional.pad(values, (pad,) * 4, mode=edge))


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
def test_a_student_padded_by_slices_says_the_same(padding: str) -> None:
    student = tiny(padding=padding)
    images = noise(3, 96, 128)
    with torch.no_grad():
        swapped = with_edge_pads(student)
        assert torch.equal(swapped(images), fuse(student)(images))
    assert padding == "zeros" or not any(getattr(m, "padding_mode", "zeros") != "zeros" for m in swapped.modules())


@pytest.mark.parametrize(
    ("suffix", "channels", "padding"),
    [(".onnx", 4, "replicate"), (".onnx", 3, "reflect"), (".pt2", 4, "replicate"), (".ptl", 4, "replicate")],
)
def test_one_file_serves_all_aspect_ratios_and_says_what_it_needs(
    suffix: str, channels: int, padding: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student, path = tiny(in_channels=channels, padding=padding), tmp_path / f"student{suffix}"
    FLOATS[suffix](student, path, side=SIDE, metadata={"training": "abc"})
    assert capfd.readouterr().out == ""
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    network = open_network(path, trusted=True)
    assert (network.side, network.in_channels, network.card.config) == (SIDE, channels, student.config)
    least = 96 if padding == "reflect" else 64
    for height, width in {(least, least), (least, 160), (160, least), (128, 96)}:
        images = noise(channels, height, width)
        with torch.no_grad():
            torch.testing.assert_close(network(images), student(images), atol=1e-4, rtol=0)


def test_an_onnx_file_is_reproducible_states_its_training_and_names_no_place_of_this_machine(
    exported: Path, tmp_path: Path
) -> None:
    export_onnx(tiny(in_channels=4), tmp_path / "b.onnx", side=SIDE, metadata={"training": "abc"})
    data = exported.read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in data
    assert str(Path(__file__).parents[2]).encode() not in data
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert values["training"] == "abc"
    assert (values["format"], values["side"], values["in_channels"]) == ("curate-student-1", str(SIDE), "4")
    assert {node.op_type for node in model.graph.node} >= {"Pad", "Conv"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_an_int8_onnx_file_is_smaller_and_close(tmp_path: Path) -> None:
    student = tiny(in_channels=4, channels=(8, 8, 16, 16, 64, 64))
    seen = pictures(6)
    calibration = calibration_images(student, seen, side=SIDE, in_channels=4)
    assert len(calibration) == 12
    assert any(bool(images[:, 3].any()) for images in calibration)
    export_onnx_int8(student, tmp_path / "b.onnx", side=SIDE, metadata={}, calibration=calibration)
    network = open_network(tmp_path / "b.onnx")
    assert network.card.precision == "int8"
    model = onnx.load(tmp_path / "b.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    whole = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert whole
    assert all(name.startswith(DEEP) for name in whole)
    parity = compare(student, network, seen, side=SIDE, in_channels=4)
    assert parity.logit_difference > 1e-6
    assert parity.iou_mean >= 0.98
    assert parity.fed_back >= 6
    with pytest.raises(ValueError, match="at least 1 calibration image"):
        export_onnx_int8(student, tmp_path / "b.onnx", side=SIDE, metadata={}, calibration=[])


def test_a_program_of_torch_says_its_card_without_being_run(tmp_path: Path) -> None:
    export_lite(tiny(), tmp_path / "a.ptl", side=SIDE, metadata={"training": "abc"})
    with zipfile.ZipFile(tmp_path / "a.ptl") as archive:
        place = next(name for name in archive.namelist() if name.endswith("extra/card.json"))
        assert json.loads(archive.read(place))["training"] == "abc"


ALONE = """
import sys
sys.path = [p for p in sys.path if p not in ("", sys.argv[3])]
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
for name in ("students", "pipeline", "evaluation", "training"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
assert (about["in_channels"], about["side"]) == ("4", "64")
frames = np.load(sys.argv[2])
rgb = frames["rgb"].astype(np.float32) / 255                               # (n, H, W, 3)
r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
y = 0.299 * r + 0.587 * g + 0.114 * b
yuv = np.stack([y, (b - y) / 1.772, (r - y) / 1.402], axis=1)              # (n, 3, H, W)
mask, masks = np.zeros((1, 1, *rgb.shape[1:3]), np.float32), []
for frame in yuv:
    image_mask = np.concatenate([frame[None], mask], axis=1).astype(np.float32)
    mask = 1 / (1 + np.exp(-session.run(["logits"], {"image_mask": image_mask})[0]))
    masks.append(mask[0, 0])
assert "torch" not in sys.modules
np.save(sys.argv[4], np.stack(masks))
"""


def test_the_onnx_file_gives_the_same_masks_without_this_project(exported: Path, tmp_path: Path) -> None:
    student = tiny(in_channels=4)
    rgb = np.stack([pixels(seed, 64, 96) for seed in range(4)])
    np.savez(tmp_path / "frames.npz", rgb=rgb)
    house = str(Path(__file__).parents[2])
    files = [str(exported), str(tmp_path / "frames.npz"), house, str(tmp_path / "masks.npy")]
    command = [sys.executable, "-c", ALONE, *files]
    subprocess.run(command, check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    theirs = np.load(tmp_path / "masks.npy")
    prior = torch.zeros(1, 1, 64, 96)
    for frame, mask in zip(rgb, theirs, strict=True):
        with torch.no_grad():
            prior = torch.sigmoid(student(network_input(torch.from_numpy(frame).permute(2, 0, 1)[None], prior)))
        assert np.abs(prior[0, 0].numpy() - mask).max() < 1e-5
        assert np.array_equal(prior[0, 0].numpy() > 0.5, mask > 0.5)
        assert 0.05 < (mask > 0.5).mean() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_an_executorch_program_has_a_method_per_size_and_says_what_the_student_says(int8: bool, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    student, path = tiny(in_channels=4), tmp_path / "a.pte"
    sizes = ((64, 64),) if int8 else ((64, 64), (64, 96))
    calibration = calibration_images(student, pictures(4), side=SIDE, in_channels=4) if int8 else []
    export_executorch(student, path, side=SIDE, metadata={}, calibration=calibration, sizes=sizes)
    network = open_network(path)
    assert (network.side, network.in_channels) == (SIDE, 4)
    assert network.card.precision == ("int8" if int8 else "float32")
    for size in sizes:
        images = next((images for images in calibration if images.shape[2:] == size), noise(4, *size))
        with torch.no_grad():
            expected = student(images)
            difference = (network(images) - expected).abs()
        if int8:
            assert 0 < float(difference.mean() / expected.std()) < 0.2
        else:
            assert float(difference.max()) < 1e-4
    with pytest.raises(ValueError, match="one of its sizes"):
        network(noise(4, 96, 96))


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'curate\[executorch\]'"):
        needed("executorch.no_such_part")


def test_the_card_refuses_reserved_names_and_contradictions() -> None:
    card = Card(side=SIDE, config=TINY, precision="float32")
    with pytest.raises(ValueError, match=r"reserved names \['side'\]"):
        card_values(card, {"side": "3"})
    values = card_values(card, {"training": "x"})
    assert read_card(values) == card
    for name, value in (("format", "x"), ("side", "63"), ("side", "²"), ("in_channels", "4"), ("precision", "half")):
        with pytest.raises(ValueError, match=name.split("_")[0]):
            read_card({**values, name: value})
    with pytest.raises(ValueError, match="side"):
        Card(side=8192, config=TINY, precision="float32")


class _Shifted:
    """A student whose masks lie a few pixels off."""

    def __init__(self, student: Student, by: int) -> None:
        self._student, self._by = student, by

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._student(images).roll(self._by, dims=3)


def test_a_comparison_finds_what_differs_and_names_the_frame() -> None:
    student, seen = tiny(in_channels=4), pictures(2)
    same = compare(student, student, seen, side=SIDE, in_channels=4)
    assert (same.iou_mean, same.logit_difference, same.fault("float32")) == (1.0, 0.0, None)
    assert same.masks == 2 * len(bucket_sizes(SIDE)) + 4
    off = compare(student, _Shifted(student, 8), seen, side=SIDE, in_channels=4)
    fault = off.fault("int8")
    assert fault is not None
    assert off.worst in fault
    assert f"{off.iou_worst:.4f}" in fault
    assert ">= 0.98" in fault
    with pytest.raises(ValueError, match="at least 1 picture"):
        compare(student, student, [], side=SIDE, in_channels=4)


def test_two_empty_masks_agree() -> None:
    empty = lambda images: torch.full((1, 1, *images.shape[2:]), -5.0)  # noqa: E731
    assert compare(empty, empty, pictures(1), side=SIDE, in_channels=3).iou_mean == 1.0


def test_the_latency_is_a_time() -> None:
    assert latency_ms(tiny(), size=(64, 64), in_channels=3, rounds=3) > 0


def test_formats_that_are_no_longer_developed_say_what_to_use() -> None:
    assert {name: one.legacy for name, one in FORMATS.items() if one.legacy} == {"ptl": "executorch"}
