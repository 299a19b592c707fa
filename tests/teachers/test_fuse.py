"""A network made for inference answers as the one it was made of: folded, by Winograd, in another type."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.parity_stages import instance_arrays, semantic_arrays
from benchmarks.pointrend_parity import load_model
from teachers import fuse, winograd
from teachers.fuse import fold, quicken
from teachers.instance import InstancePointRend
from teachers.points import PointHead
from teachers.resnet import BatchNorm, Conv
from teachers.semantic import SemanticConfig, SemanticPointRend, build

TINY = SemanticConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
    subdivision_num_points=200, min_size_test=64, max_size_test=128,
)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def disturb(model: nn.Module) -> None:
    """Give batch normalisation statistics and weights that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            for x, low, high in (
                (module.weight.data, 0.5, 2.0), (module.bias.data, -1.0, 1.0),
                (module.running_mean, -1.0, 1.0), (module.running_var, 0.2, 3.0),
            ):  # fmt: skip
                x.copy_(torch.rand(x.shape, generator=generator) * (high - low) + low)


# --- Folding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
def test_folding_changes_no_answer_and_leaves_no_batch_normalisation(norm: Any) -> None:
    model = build(replace(TINY, norm=norm), 0).eval().double()
    disturb(model)
    folded = fold(model)
    with torch.no_grad():
        x = noise(1, 3, 64, 96).double()
        for a, b in zip(model.backbone(x).values(), folded.backbone(x).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, BatchNorm) for m in folded.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in folded.modules())


def test_what_is_folded_is_a_copy_and_cannot_be_trained() -> None:
    model = build(TINY, 0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quick = quicken(model)
    assert model.training
    assert not quick.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in [*quick.parameters(), *fold(model).parameters()])
    assert not quick(noise(1, 3, 64, 64)).requires_grad


# --- Winograd ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), tile=st.sampled_from([2, 4]), height=st.integers(1, 40), width=st.integers(1, 40),
    images=st.integers(1, 2), channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)  # fmt: skip
def test_winograd_is_the_convolution_at_every_size(
    seed: int, tile: int, height: int, width: int, images: int, channels: tuple[int, int]
) -> None:
    inputs, outputs = channels
    x = noise(images, inputs, height, width, seed=seed).double()
    weight, bias = noise(outputs, inputs, 3, 3, seed=seed + 1).double(), noise(outputs, seed=seed + 2).double()
    values, matrices = winograd.transform_filter(weight, tile), winograd.transform_matrices(tile)
    found = winograd.convolve(x, values, bias, *matrices)
    torch.testing.assert_close(found, functional.conv2d(x, weight, bias, padding=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tile", "factor"), [(2, 4.0), (4, 25.0)])
def test_winograd_loses_little_more_than_the_direct_convolution(tile: int, factor: float) -> None:
    x, weight, bias = noise(1, 128, 30, 40).relu(), noise(128, 128, 3, 3) / 24, noise(128)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    values, matrices = winograd.transform_filter(weight, tile), winograd.transform_matrices(tile)
    found = winograd.convolve(x, values.float(), bias, *(m.float() for m in matrices))
    direct = functional.conv2d(x, weight, bias, padding=1)
    assert (found - exact).abs().max() < factor * (direct - exact).abs().max()


# --- Layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 4), (7, 2, 1)])
def test_a_quick_convolution_is_the_convolution(kernel: int, stride: int, groups: int) -> None:
    conv = Conv(8, 16, kernel, stride=stride, groups=groups).eval()
    quick = quicken(nn.Sequential(conv))
    x = noise(2, 8, 24, 40)
    torch.testing.assert_close(quick(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("each", [False, True])
def test_a_quick_point_head_is_the_point_head(each: bool) -> None:
    head = PointHead(fine=12, classes=3, width=16, layers=3, coarse_each_layer=each)
    head.predictor.weight.data.mul_(100)
    quick = quicken(nn.ModuleDict({"head": head}))["head"]
    fine, coarse = noise(2, 12, 50), noise(2, 3, 50, seed=1)
    torch.testing.assert_close(quick(fine, coarse), head(fine, coarse), rtol=1e-4, atol=1e-5)


def test_logits_are_float32_whatever_the_precision() -> None:
    quick = quicken(build(TINY, 0), precision=torch.bfloat16)
    features = quick.features(noise(1, 3, 64, 64))
    assert {x.dtype for x in features.values()} == {torch.bfloat16}
    predictor = quick.sem_seg_head.coarse_sem_seg_head.predictor.quick
    assert predictor is not None
    assert predictor.weight.dtype == torch.float32
    assert quick(noise(1, 3, 64, 64)).dtype == torch.float32


# --- Against Detectron2 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(goldens: Path) -> Path:
    return goldens / "pointrend"


@pytest.fixture(scope="module")
def compare(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_compare", folder / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tile", [0, 2, 4])
@pytest.mark.parametrize("case", ["sem_r50_c19", "sem_r50_c2_each", "inst_r50_coco"])
def test_a_quick_network_stays_inside_the_tolerances_of_detectron2(
    folder: Path, compare: ModuleType, monkeypatch: pytest.MonkeyPatch, case: str, tile: int
) -> None:
    monkeypatch.setattr(fuse, "_WIDE", 1)  # these networks are narrow
    plain = load_model(folder, case, json.loads((folder / "manifest.json").read_text())[case])
    model: SemanticPointRend | InstancePointRend = quicken(plain, tile=tile)
    assert any(isinstance(m, fuse.WinogradConv) for m in model.modules()) == bool(tile)
    with np.load(folder / f"{case}.npz") as file:
        golden = {k: file[k] for k in file.files}
    if isinstance(model, SemanticPointRend):
        rows = compare.compare_semantic(folder, case, golden | semantic_arrays(model, golden)[0])
    else:
        rows = compare.compare_instance(folder, case, golden | instance_arrays(model, golden)[0])
    assert [f"{name}: {detail}" for name, ok, detail in rows if not ok] == []
    assert len(rows) >= 15
