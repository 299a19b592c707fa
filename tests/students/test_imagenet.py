"""Laws of the encoders taken from timm: golden maps, loading of checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from students.encoder import Encoder
from students.imagenet import load_imagenet
from students.model import Student, StudentConfig, build_student
from students.presets import BASE
from students.prior import network_input
from tests.students.weights import fill

TINY = StudentConfig(encoder="fbnetv3_b", width=0.35, padding="zeros")
VARIANTS: tuple[Encoder, ...] = ("fbnetv3_b", "fbnetv3_d", "fbnetv3_g")


def _write(model: nn.Module, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def _denormalised(values: Tensor, config: StudentConfig) -> Tensor:
    mean, deviation = (torch.tensor(v)[:, None, None] for v in config.normalisation)
    return values * deviation + mean


def _taps(student: Student, images: Tensor) -> dict[str, Tensor]:
    """Maps by timm's names, from the student's own forward pass."""
    maps: dict[str, Tensor] = {}
    joined = student.stages[3]
    assert isinstance(joined, nn.Sequential)
    places = {"stem": student.stem, "blocks.3": joined[0], "blocks.4": joined[1]}
    places |= {f"blocks.{i}": student.stages[i] for i in range(3)} | {"blocks.5": student.stages[4]}
    for name, module in places.items():
        module.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output.clone()}))
    with torch.inference_mode():
        student.eval().encode(images)
    return maps


def _assert_close(found: Tensor, wanted: np.ndarray) -> None:
    assert tuple(found.shape) == wanted.shape
    assert float(np.abs(found.numpy() - wanted).max()) <= 1e-4 * float(np.abs(wanted).max())


def _explicit(goldens: Path) -> dict[str, np.ndarray]:
    path = goldens / "student" / "timm_fbnetv3_b_x0.35_explicit_seed0.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.parametrize("variant", ["fbnetv3_b", "fbnetv3_g"])
def test_every_map_of_the_full_encoder_is_timms(goldens: Path, tmp_path: Path, variant: Encoder) -> None:
    path = goldens / "student" / f"timm_{variant}_formula_seed0_96x64.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    model = timm.create_model(variant, pretrained=False)
    fill(model)
    config = replace(BASE, encoder=variant, padding="zeros")
    student = build_student(config, 0)
    load_imagenet(student, _write(model, tmp_path / "timm.safetensors"))
    with np.load(path) as stored:
        maps = _taps(student, _denormalised(torch.from_numpy(stored["input"]), config))
        assert set(maps) == {"stem", *(f"blocks.{i}" for i in range(6))}
        for name, found in maps.items():
            _assert_close(found, stored[name])


def test_a_narrow_encoder_has_the_maps_of_its_stored_weights(goldens: Path, tmp_path: Path) -> None:
    stored = _explicit(goldens)
    weights = {key[3:]: torch.from_numpy(value) for key, value in stored.items() if key.startswith("w::")}
    path = tmp_path / "timm.pth"
    torch.save(weights, path)
    student = build_student(TINY, 0)
    assert not any(key.endswith("num_batches_tracked") for key in weights)
    load_imagenet(student, path)
    maps = _taps(student, _denormalised(torch.from_numpy(stored["input"]), TINY))
    for name, tap in zip(
        ("feat_0_stride2", "feat_1_stride4", "feat_2_stride8", "feat_3_stride16"), (0, 1, 2, 4), strict=True
    ):
        _assert_close(maps[f"blocks.{tap}"], stored[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoints_keep_their_meaning_in_either_format(tmp_path: Path, variant: Encoder) -> None:
    model = timm.create_model(variant, pretrained=False, channel_multiplier=0.35).eval()
    fill(model, 4)
    config = replace(TINY, encoder=variant)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "timm.pth")
    one, other = build_student(config, 0), build_student(config, 1)
    load_imagenet(one, _write(model, tmp_path / "timm.safetensors"))
    load_imagenet(other, tmp_path / "timm.pth")
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(model.default_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        x = model.blocks[:6](model.bn1(model.conv_stem((images - mean) / deviation)))
        for student in (one, other):
            found = student.eval().encode(images)[4]
            assert float((found - x).abs().max()) <= 1e-5 * float(x.abs().max())
    decoder = [key for key in one.state_dict() if key.startswith(("rises.", "head."))]
    assert any(not torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in decoder)


def test_a_student_of_four_channels_gets_the_weights_folded(tmp_path: Path) -> None:
    model = timm.create_model("fbnetv3_b", pretrained=False, channel_multiplier=0.35)
    fill(model, 4)
    path = _write(model, tmp_path / "timm.safetensors")
    config = replace(TINY, padding="replicate")
    rgb, yuv = build_student(config, 0).eval(), build_student(replace(config, in_channels=4), 0).eval()
    load_imagenet(rgb, path)
    load_imagenet(yuv, path)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = rgb.encode(images), yuv.encode(network_input(images, torch.zeros_like(images[:, :1])))
    for one, other in zip(wanted, found, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max())


def test_weights_of_another_width_or_network_are_refused_by_key(tmp_path: Path) -> None:
    narrow = _write(timm.create_model("fbnetv3_b", channel_multiplier=0.35), tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match=r"mis-shaped: stages\.1\..* and \d+ more"):
        load_imagenet(build_student(replace(TINY, width=0.5), 0), narrow)
    with pytest.raises(ValueError, match="missing: "):
        load_imagenet(build_student(replace(TINY, encoder="fbnetv3_g"), 0), narrow)
    other = _write(timm.create_model("mobilenetv2_050"), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"no FBNetV3 of timm|no fbnetv3_b"):
        load_imagenet(build_student(TINY, 0), other)
    with pytest.raises(ValueError, match="got 'table'"):
        load_imagenet(build_student(StudentConfig(), 0), narrow)


@pytest.mark.parametrize("name", ["rubbish.pth", "rubbish.safetensors"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_imagenet(build_student(TINY, 0), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_imagenet(build_student(TINY, 0), tmp_path / f"absent-{name}")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_imagenet(build_student(TINY, 0), tmp_path / "module.pth")
