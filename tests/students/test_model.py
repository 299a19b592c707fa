"""Laws of the student network and of its files."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from students.model import (
    StudentConfig,
    build_student,
    config_from_json,
    config_to_json,
    load_student,
    read_metadata,
    save_student,
)
from students.padding import conv

TINY = StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5)


def _spread(maps: Tensor) -> float:
    return float((maps.amax(dim=(2, 3)) - maps.amin(dim=(2, 3))).max())


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (0.2, 0.9, 0.4), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("config", [StudentConfig(), TINY])
def test_a_constant_image_gives_constant_maps_up_to_the_border(
    config: StudentConfig, colour: tuple[float, float, float]
) -> None:
    student = build_student(config, 3).eval()
    image = torch.tensor(colour)[None, :, None, None].expand(1, 3, 96, 160)
    with torch.inference_mode():
        maps = student.encode(image)
        assert all(_spread(level) < 2e-6 for level in maps)
        assert _spread(student(image)) < 2e-6


def test_zero_padding_would_break_the_border_law() -> None:
    student = build_student(StudentConfig(), 3).eval()
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    with torch.inference_mode():
        assert _spread(student.encode(torch.full((1, 3, 96, 160), 0.9))[0]) > 0.01


def test_every_convolution_that_pads_replicates() -> None:
    for module in build_student(StudentConfig(), 0).modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            assert module.padding_mode == "replicate"
            assert module.padding == (module.kernel_size[0] // 2,) * 2


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        conv(3, 8, 4)


def test_logits_have_the_resolution_of_the_input_and_maps_that_of_their_strides() -> None:
    student = build_student(TINY, 0).eval()
    images = torch.zeros(2, 3, 64, 96)
    assert student(images).shape == (2, 1, 64, 96)
    assert [tuple(level.shape[2:]) for level in student.encode(images)] == [
        (64 // s, 96 // s) for s in (2, 4, 8, 16, 32)
    ]


def test_nano_has_about_450_thousand_parameters() -> None:
    assert 400_000 < sum(p.numel() for p in build_student(StudentConfig(), 0).parameters()) < 500_000


@pytest.mark.parametrize("shape", [(1, 3, 64, 90), (1, 4, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image"):
        build_student(TINY, 0)(torch.zeros(shape))


def test_weights_are_a_function_of_the_seed_and_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (build_student(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(bool(torch.isfinite(value).all()) for value in one.values())


def test_a_saved_student_returns_bit_equal_with_its_config_and_metadata(tmp_path: Path) -> None:
    student = build_student(TINY, 7).eval()
    path = tmp_path / "student.safetensors"
    save_student(path, student, TINY, {"step": "12"})
    loaded = load_student(path)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert loaded.config == TINY
    assert not loaded.training
    assert torch.equal(student(images), loaded(images))
    assert read_metadata(path)["step"] == "12"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.safetensors"]


@pytest.mark.parametrize("kind", ["missing", "surplus", "mis-shaped", "wrong dtype", "non-finite"])
def test_a_file_that_does_not_fit_is_refused_and_its_keys_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "student.safetensors"
    save_student(path, build_student(TINY, 0), TINY, {})
    tensors, key = load_file(path), "head.weight"
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    if kind == "missing":
        del tensors[key]
    elif kind == "surplus":
        key = "tail.weight"
        tensors[key] = torch.zeros(1)
    elif kind == "mis-shaped":
        tensors[key] = torch.zeros(3)
    elif kind == "wrong dtype":
        tensors[key] = tensors[key].double()
    else:
        tensors[key][0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=f"{kind}: {key}"):
        load_student(path)


def test_a_file_that_is_no_student_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no student"):
        load_student(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_student(path)


def test_a_config_survives_json_and_unknown_keys_are_refused() -> None:
    assert config_from_json(config_to_json(TINY)) == TINY
    with pytest.raises(ValueError, match="must have the keys"):
        config_from_json('{"depth": 3}')


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": (8, 8)},
        {"depths": (1, 1, 1, 1, 9999)},
        {"decoder": (8, 8, 8, 0)},
        {"width": 0.0},
        {"in_channels": 0},
    ],
)
def test_an_impossible_config_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"student.{next(iter(changes))} must be"):
        StudentConfig(**changes)  # type: ignore[arg-type]


def test_reserved_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reserved"):
        save_student(tmp_path / "x.safetensors", build_student(TINY, 0), TINY, {"format": "other"})
