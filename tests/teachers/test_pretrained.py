"""A ResNet of torchvision or timm becomes our backbone exactly; what does not fit is named, field by field."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from teachers.backbone import IMAGENET_STD, normalise
from teachers.checkpoint import save_checkpoint
from teachers.pretrained import Pretrained, read_pretrained, start
from teachers.recipe import TeachConfig, TeachError
from teachers.semantic import SemanticConfig, SemanticPointRend, build
from training.files import sha256_file

HEADS: dict[str, Any] = {"fpn_out": 4, "sem_convs_dim": 32, "point_fc_dim": 4, "min_size_test": 64}
R18 = SemanticConfig(depth=18, res2_out=64, norm="BN", pixel_std=IMAGENET_STD, **HEADS)
R50 = replace(R18, depth=50, res2_out=256, stride_in_1x1=False)
X101 = replace(R50, depth=101, num_groups=32, width_per_group=8)
SMALL = SemanticConfig(depth=18, stem_out=4, res2_out=4, norm="BN", point_num_fc=2, pixel_std=IMAGENET_STD, **HEADS)


def lively(network: nn.Module) -> nn.Module:
    """The network with running statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(1.0 + torch.rand(module.running_var.shape, generator=generator))
    return network.eval()


def stored(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def read(path: Path) -> Pretrained:
    found = read_pretrained(str(path))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stored(lively(torchvision.models.resnet18()), tmp_path_factory.mktemp("r18") / "resnet18.pth")


@pytest.mark.parametrize(
    ("made", "config"),
    [
        (torchvision.models.resnet18, R18),
        (torchvision.models.resnet50, replace(R50, norm="FrozenBN")),
        (torchvision.models.resnext101_32x8d, X101),
        (lambda: timm.create_model("resnet18"), replace(R18, norm="FrozenBN")),
        (lambda: timm.create_model("resnet50"), R50),
    ],
    ids=["tv-resnet18", "tv-resnet50", "tv-resnext101_32x8d", "timm-resnet18", "timm-resnet50"],
)
def test_res5_is_layer4_of_the_same_picture(
    tmp_path: Path, made: Callable[[], nn.Module], config: SemanticConfig
) -> None:
    torch.manual_seed(0)
    network: Any = lively(made())
    model = build(config, 1).eval()
    start(model, read(stored(network, tmp_path / "weights.pth")))
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    rgb = torch.from_numpy(picture).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((rgb - mean[:, None, None]) / std[:, None, None])[None]
    act = network.relu if hasattr(network, "relu") else network.act1
    with torch.inference_mode():
        x = network.maxpool(act(network.bn1(network.conv1(x))))
        expected = network.layer4(network.layer3(network.layer2(network.layer1(x))))
        found = model.backbone.bottom_up(normalise(picture, model.config)[None])["res5"]
    scale = expected.abs().max().item()
    assert scale > 0
    assert (found - expected).abs().max().item() <= 1e-5 * max(1.0, scale)


def test_a_resnet_leaves_pyramid_and_heads_as_they_were_drawn(r18: Path) -> None:
    model, drawn = build(R18, 3), build(R18, 3).state_dict()
    fresh = start(model, read(r18))
    after = model.state_dict()
    assert set(fresh) == {k for k in drawn if not k.startswith("backbone.bottom_up.")}
    assert all(torch.equal(after[k], drawn[k]) for k in fresh)
    assert not torch.equal(after["backbone.bottom_up.stem.conv1.weight"], drawn["backbone.bottom_up.stem.conv1.weight"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"depth": 34}, r"model\.depth is 18 in the file and 34 in the config"),
        ({"res2_out": 32}, r"model\.res2_out is 64 in the file and 32 in the config"),
        ({"stem_out": 32}, r"model\.stem_out is 64 in the file and 32 in the config"),
        ({"norm": "GN"}, r"model\.norm is 'BN' in the file and 'GN' in the config"),
        ({"pixel_std": (1.0, 1.0, 1.0)}, r"model\.pixel_std is \[57\.375, .*\] in the file and \[1\.0, "),
        ({"pixel_mean": (0.0, 0.0, 0.0)}, r"model\.pixel_mean is \[103\.53, "),
    ],
)
def test_a_field_that_the_file_contradicts_is_named_with_both_values(
    r18: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(TeachError, match=named):
        start(build(replace(R18, **change), 0), read(r18))


def test_where_bottlenecks_stride_and_how_they_group_is_checked(tmp_path: Path) -> None:
    found = read(stored(torchvision.models.resnext50_32x4d(), tmp_path / "x50.pth"))
    with pytest.raises(TeachError) as error:
        start(build(replace(R50, stride_in_1x1=True), 0), found)
    for part in ("num_groups is 32 in the file and 1", "width_per_group is 4 in", "stride_in_1x1 is False in the file"):
        assert part in str(error.value)


def test_missing_surplus_and_broken_tensors_of_a_resnet_are_named(r18: Path, tmp_path: Path) -> None:
    state = dict(torch.load(r18, weights_only=True))
    changes: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
        (lambda s: s.pop("layer3.0.downsample.0.weight"), r"missing: layer3\.0\.downsample\.0\.weight"),
        (lambda s: s.pop("bn1.running_var"), r"missing: bn1\.running_var"),
        (lambda s: s.update({"layer1.0.se.conv.weight": torch.zeros(1)}), r"surplus: layer1\.0\.se\.conv\.weight"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"wrong shape: stem\.conv1\.norm\.weight \(3,\)"),
        (lambda s: s["bn1.bias"].fill_(float("nan")), r"not finite: stem\.conv1\.norm\.bias"),
    ]
    for number, (change, named) in enumerate(changes):
        changed = {k: v.clone() for k, v in state.items()}
        change(changed)
        path = tmp_path / f"{number}.pth"
        torch.save(changed, path)
        with pytest.raises(TeachError, match=named):
            start(build(R18, 0), read(path))


def test_a_network_that_is_no_plain_resnet_is_refused(tmp_path: Path) -> None:
    for name, network in (("d", timm.create_model("resnet18d")), ("v", torchvision.models.squeezenet1_1())):
        path = stored(network, tmp_path / f"{name}.pth")
        with pytest.raises(TeachError, match=r"plain ResNet|neither a semantic PointRend"):
            start(build(R18, 0), read(path))


def saved(config: SemanticConfig, path: Path, seed: int = 7) -> tuple[Path, SemanticPointRend]:
    model = build(config, seed)
    if path.suffix == ".safetensors":
        save_checkpoint(path, model, config, {})
    else:
        torch.save({"model": model.state_dict(), "iteration": 3}, path)
    return path, model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_of_as_many_classes_is_taken_whole(tmp_path: Path, suffix: str) -> None:
    config = SMALL if suffix == ".safetensors" else replace(SMALL, pixel_std=(1.0, 1.0, 1.0))
    path, other = saved(config, tmp_path / f"weights{suffix}")
    model = build(config, 1)
    assert start(model, read(path)) == ()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("each_layer", [False, True])
def test_another_number_of_classes_starts_afresh_only_what_depends_on_it(tmp_path: Path, each_layer: bool) -> None:
    config = replace(SMALL, coarse_pred_each_layer=each_layer)
    path, other = saved(replace(config, num_classes=19, person_classes=(11,)), tmp_path / "nineteen.safetensors")
    model, drawn, theirs = build(config, 1), build(config, 1).state_dict(), other.state_dict()
    fresh = start(model, read(path))
    coarse, head = "sem_seg_head.coarse_sem_seg_head.predictor.", "sem_seg_head.point_head."
    whole = {f"{coarse}weight", f"{coarse}bias", f"{head}predictor.weight", f"{head}predictor.bias"}
    parts = {f"{head}fc1.weight", f"{head}fc2.weight"} if each_layer else {f"{head}fc1.weight"}
    assert {key.split(" ")[0] for key in fresh} == whole | parts
    assert f"{head}fc1.weight (columns 4..5)" in fresh
    for key, value in model.state_dict().items():
        if key in whole:
            assert torch.equal(value, drawn[key])
        elif key in parts:
            assert torch.equal(value[:, :4], theirs[key][:, :4])
            assert torch.equal(value[:, 4:], drawn[key][:, 4:])
        else:
            assert torch.equal(value, theirs[key])


def test_a_checkpoint_of_another_architecture_is_refused_field_by_field(tmp_path: Path) -> None:
    path, _ = saved(SMALL, tmp_path / "weights.safetensors")
    with pytest.raises(TeachError, match=r"model\.fpn_out is 4 in the file and 8 in the config.*\[teach\.model\]"):
        start(build(replace(SMALL, fpn_out=8), 0), read(path))
    with pytest.raises(TeachError, match=r"model\.norm is 'BN' in the file and 'GN'"):
        start(build(replace(SMALL, norm="GN"), 0), read(path))


def test_a_checkpoint_with_a_key_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    config = replace(SMALL, pixel_std=(1.0, 1.0, 1.0))
    for classes in (2, 5):
        state = build(replace(config, num_classes=classes), 0).state_dict()
        state["sem_seg_head.more"] = torch.zeros(2)
        del state["backbone.fpn_lateral3.bias"]
        torch.save(state, tmp_path / "changed.pth")
        with pytest.raises(TeachError, match=r"missing: backbone\.fpn_lateral3\.bias; surplus: sem_seg_head\.more"):
            start(build(config, 0), read(tmp_path / "changed.pth"))


def test_a_file_that_holds_neither_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(TeachError, match=r"neither a semantic PointRend .* nor a ResNet.*'weight'"):
        read(tmp_path / "other.pth")
    torch.save({"roi_heads.box_head.fc1.weight": torch.zeros(3)}, tmp_path / "instance.pth")
    with pytest.raises(TeachError, match="instance model"):
        read(tmp_path / "instance.pth")
    with pytest.raises(TeachError, match="cannot be read"):
        read(tmp_path / "absent.pth")
    with pytest.raises(TeachError, match="must end in"):
        read(tmp_path / "weights.bin")


def test_a_file_whose_shapes_are_impossible_is_named(tmp_path: Path) -> None:
    state = build(SMALL, 0).state_dict() | {"pixel_mean": torch.zeros(2)}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(TeachError, match=r"odd\.pth: .*pixel_mean must hold three values"):
        read(tmp_path / "odd.pth")


def test_the_digest_is_that_of_the_content(r18: Path, tmp_path: Path) -> None:
    copy = tmp_path / "moved.pth"
    copy.write_bytes(r18.read_bytes())
    assert read(copy).sha256 == read(r18).sha256 == sha256_file(r18)


def test_a_zoo_checkpoint_starts_a_teacher(goldens: Path) -> None:
    path = next((goldens / "pointrend" / "zoo_format").glob("model_final_*.pkl"))
    found = read(path)
    fields = {k: v for k, v in found.fields.items() if k != "num_classes"}
    model = build(SemanticConfig(**fields, min_size_test=64), 0)
    fresh = start(model, found)
    assert len(fresh) in (0, 5)
    key = "backbone.fpn_output2.weight"
    assert torch.equal(model.state_dict()[key], found.tensors[key])


def test_without_a_network_a_download_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's client tries again and again
    for name in ("resnet18.a1_in1k", "no_such_network"):
        with pytest.raises(TeachError, match=f"timm gives no weights '{name}' here") as error:
            read_pretrained(f"timm:{name}")
        assert "\n" not in str(error.value)


def test_frozen_statistics_need_a_file_to_be_from() -> None:
    frozen = replace(R18, norm="FrozenBN")
    with pytest.raises(ValueError, match=r"teach\.model\.norm"):
        TeachConfig(model=frozen)
    assert TeachConfig(model=frozen, init="resnet18.pth").model.norm == "FrozenBN"


def test_nothing_is_read_where_nothing_is_named() -> None:
    assert read_pretrained("") is None
