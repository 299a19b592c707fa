"""Laws of the student network and of its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from students.encoder import out_channels, shortcuts
from students.model import (
    Student,
    StudentConfig,
    build_student,
    config_from_json,
    config_to_json,
    load_student,
    read_metadata,
    save_student,
)
from students.padding import Padding
from students.presets import PRESETS
from tests.students.weights import fill

TINY = StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5)
NARROW = StudentConfig(encoder="fbnetv3_b", width=0.35)


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


def _filled(config: StudentConfig) -> Student:
    """Every layer has a say, the shortcut blocks too."""
    student = build_student(config, 0).eval()
    fill(student, 1)
    return student


def _taps(student: Student, images: Tensor) -> list[Tensor]:
    """The maps of every block, of every decoder step, and the logits."""
    maps: list[Tensor] = []
    parts = [student.stem, *student.rises]
    parts += [block for stage in student.stages for block in stage]  # type: ignore[union-attr]
    handles = [part.register_forward_hook(lambda _, __, output: maps.append(output.clone())) for part in parts]
    with torch.inference_mode():
        maps.append(student(images))
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize("padding", ["replicate", "reflect"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_no_preset_sees_the_border_whatever_its_weights(name: str, padding: Padding) -> None:
    student = _filled(replace(PRESETS[name], padding=padding))
    for colour in ((0.0, 0.0, 0.0), (0.2, 0.9, 0.4)):
        image = torch.tensor(colour)[None, :, None, None].expand(1, 3, 96, 160)
        maps = _taps(student, image)
        assert len(maps) > 10
        assert all(_spread(level) <= 1e-5 for level in maps)


@pytest.mark.parametrize("name", list(PRESETS))
def test_zero_padding_would_break_the_border_law(name: str) -> None:
    student = _filled(replace(PRESETS[name], padding="zeros"))
    assert all(_spread(level) > 1e-3 for level in _taps(student, torch.full((1, 3, 96, 160), 0.9)))


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_every_convolution_that_pads_does_so_in_the_stated_way(name: str, padding: Padding) -> None:
    padding_ones = 0
    for module in build_student(replace(PRESETS[name], padding=padding), 0).modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            padding_ones += 1
            assert type(module) is nn.Conv2d
            assert module.padding_mode == padding
            assert module.padding == (module.kernel_size[0] // 2,) * 2
    assert padding_ones > 15


@pytest.mark.parametrize("config", [TINY, NARROW])
def test_weights_can_be_exchanged_between_paddings_and_change_the_border_alone(config: StudentConfig) -> None:
    one = _filled(config)
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for padding in ("reflect", "zeros"):
        other = build_student(replace(config, padding=padding), 7).eval()  # type: ignore[arg-type]
        shapes = {key: value.shape for key, value in one.state_dict().items()}
        assert shapes == {key: value.shape for key, value in other.state_dict().items()}
        other.load_state_dict(one.state_dict())
        with torch.inference_mode():
            inner = (one.stem(images) - other.stem(images)).abs().amax(dim=(0, 1))
            assert float(inner[1:-1, 1:-1].max()) < 1e-6
            assert float(inner.max()) > 0.01


@pytest.mark.parametrize(("config", "smallest"), [(StudentConfig(), 96), (NARROW, 96), (TINY, 64)])
def test_reflection_refuses_images_too_small_for_it_and_takes_all_others(config: StudentConfig, smallest: int) -> None:
    student = build_student(replace(config, padding="reflect"), 0).eval()
    assert student.smallest == smallest
    with torch.inference_mode():
        assert student(torch.zeros(1, 3, smallest, smallest)).shape == (1, 1, smallest, smallest)
        for shape in ((smallest - 32, 256), (256, smallest - 32)):
            with pytest.raises(ValueError, match=rf">= {smallest} to be padded by reflection"):
                student(torch.zeros(1, 3, *shape))
            assert build_student(config, 0).eval()(torch.zeros(1, 3, *shape)).shape == (1, 1, *shape)


@pytest.mark.parametrize("kernel", [3, 7])
def test_the_refused_size_follows_from_the_kernels(kernel: int) -> None:
    config = replace(TINY, kernels=(3, 3, 3, 3, kernel), depths=(1, 1, 1, 1, 2), padding="reflect")
    student = build_student(config, 0).eval()
    assert student.smallest == {3: 64, 7: 128}[kernel]
    with torch.inference_mode():
        student(torch.zeros(1, 3, student.smallest, student.smallest))
        student.smallest = 32  # without the check torch refuses, far from the cause
        with pytest.raises(RuntimeError, match=r"[Pp]adding"):
            student(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("width", [0.35, 0.5, 1.0, 1.25])
@pytest.mark.parametrize("variant", ["fbnetv3_b", "fbnetv3_d", "fbnetv3_g"])
def test_widths_of_a_timm_encoder_are_rounded_as_timm_does(variant: str, width: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(variant, features_only=True, channel_multiplier=width)
        student = Student(StudentConfig(encoder=variant, width=width))  # type: ignore[arg-type]
    channels = model.feature_info.channels()
    assert [out_channels(stage) for stage in student.stages][:4] == channels[:4]
    parts = {f"blocks.{i}": tuple(p.shape) for i, b in enumerate(model.blocks[:6]) for p in b.parameters()}
    assert len(parts) == 6
    timms = sorted(tuple(p.shape) for b in model.blocks[:6] for p in b.parameters())
    assert timms == sorted(tuple(p.shape) for stage in student.stages for p in stage.parameters())


def test_blocks_with_a_shortcut_start_as_the_identity() -> None:
    for config in (StudentConfig(), NARROW):
        student = build_student(config, 0).eval()
        blocks = shortcuts(student)
        assert len(blocks) > 5
        for block in blocks:
            channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
            x = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
            assert torch.equal(block(x.clone()), x)


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


@pytest.mark.parametrize("config", [TINY, NARROW, replace(TINY, in_channels=4)])
def test_weights_are_a_function_of_the_seed_and_leave_the_global_random_state_alone(config: StudentConfig) -> None:
    before = torch.get_rng_state()
    one, same, other = (build_student(config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(bool(torch.isfinite(value).all()) for value in one.values())


@pytest.mark.parametrize(
    "config", [TINY, NARROW, replace(NARROW, padding="reflect", in_channels=4), replace(TINY, padding="zeros")]
)
def test_a_saved_student_returns_bit_equal_with_its_config_and_metadata(tmp_path: Path, config: StudentConfig) -> None:
    student = build_student(config, 7).eval()
    path = tmp_path / "student.safetensors"
    save_student(path, student, config, {"step": "12"})
    loaded = load_student(path)
    images = torch.rand(1, config.in_channels, 96, 96, generator=torch.Generator().manual_seed(0))
    assert loaded.config == config
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


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("config", [TINY, NARROW, *PRESETS.values()])
def test_a_config_survives_json(config: StudentConfig, padding: Padding) -> None:
    config = replace(config, padding=padding)
    assert config_from_json(config_to_json(config)) == config


def test_files_from_before_there_was_a_choice_stay_valid() -> None:
    text = (
        '{"channels":[8,8,16,24,64,92],"decoder":[32,24,16,8],"depths":[1,2,2,4,4],"expansions":[1,4,4,4,4],'
        '"in_channels":3,"kernels":[3,3,3,5,5],"width":1.0}'
    )
    assert config_to_json(StudentConfig()) == text
    assert config_from_json(text) == StudentConfig() == PRESETS["nano"]


@pytest.mark.parametrize(
    "changes", [{"depth": 3}, {"channels": [8] * 6}, {"encoder": "resnet50"}, {"padding": "same"}, {"width": None}]
)
def test_a_config_with_other_keys_or_words_is_refused(changes: dict[str, object]) -> None:
    values = json.loads(config_to_json(NARROW)) | changes
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=r"must have the keys|must be one of"):
        config_from_json(json.dumps(values))
    with pytest.raises(ValueError, match="must have the keys"):
        config_from_json("[]")


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": (8, 8)},
        {"depths": (1, 1, 1, 1, 9999)},
        {"decoder": (8, 8, 8, 0)},
        {"width": 0.0},
        {"in_channels": 0},
        {"in_channels": 5},
        {"encoder": "fbnetv3_a"},
        {"padding": "same"},
        {"kernels": (5, 5, 5, 5, 5), "encoder": "fbnetv3_b"},
    ],
)
def test_an_impossible_config_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"student.{next(iter(changes))} must be"):
        StudentConfig(**changes)  # type: ignore[arg-type]


def test_reserved_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reserved"):
        save_student(tmp_path / "x.safetensors", build_student(TINY, 0), TINY, {"format": "other"})


@pytest.mark.parametrize(
    "changes", [{"width": "a"}, {"width": None}, {"channels": 5}, {"in_channels": 3.0}, {"decoder": ["a"] * 4}]
)
def test_a_config_of_wrong_types_is_refused_by_name(changes: dict[str, object]) -> None:
    values = json.loads(config_to_json(StudentConfig())) | changes
    with pytest.raises(ValueError, match="student"):
        config_from_json(json.dumps(values))


def test_a_config_nested_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="flat JSON object"):
        config_from_json("[" * 100_000)
