"""The semantic model against Detectron2: every golden of its own comparison, losses and gradients, names and sizes."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from teachers import checkpoint
from teachers.backbone import config_json, network_size, normalise, pad, parse_config, resize, restore
from teachers.semantic import SemanticConfig, SemanticPointRend, build

CASES = ["sem_r50_c19", "sem_r50_c2_each"]
TINY = SemanticConfig(
    depth=18,
    stem_out=8,
    res2_out=8,
    norm="BN",
    fpn_out=8,
    sem_convs_dim=32,
    point_fc_dim=8,
    subdivision_num_points=200,
    min_size_test=64,
    max_size_test=128,
)


@pytest.fixture(scope="module")
def folder(goldens: Path) -> Path:
    return goldens / "pointrend"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return parsed


@pytest.fixture(scope="module")
def compare(folder: Path) -> Callable[[Path, str, dict[str, Any]], list[tuple[str, bool, str]]]:
    spec = importlib.util.spec_from_file_location("golden_compare", folder / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Path, str, dict[str, Any]], list[tuple[str, bool, str]]] = module.compare_semantic
    return function


def load(folder: Path, manifest: dict[str, Any], case: str) -> SemanticPointRend:
    config = SemanticConfig(**manifest[case]["arch"], person_classes=(manifest[case]["person_class"],))
    model = build(config, 0)
    with np.load(folder / f"{case}_weights.npz") as file:
        checkpoint.match({k: torch.from_numpy(file[k]) for k in file.files}, model)
    return model.eval()


def inputs(folder: Path, case: str, config: SemanticConfig) -> tuple[list[Any], list[Any], Tensor]:
    """The case's images (RGB), their resized versions and the padded batch."""
    with np.load(folder / f"{case}.npz") as file:
        images = [np.ascontiguousarray(file[k][:, :, ::-1]) for k in file.files if k.startswith("image")]
    size = {"shortest": config.min_size_test, "longest": config.max_size_test}
    resized = [resize(x, network_size(*x.shape[:2], **size)) for x in images]
    return images, resized, pad([normalise(x, config) for x in resized])


@torch.no_grad()
def produce(folder: Path, model: SemanticPointRend, case: str) -> dict[str, Any]:
    images, resized, batch = inputs(folder, case, model.config)
    features = model.features(batch)
    coarse = model.coarse(features)
    out: dict[str, Any] = {k: v.numpy() for k, v in features.items()} | {"coarse_logits": coarse.numpy()}
    logits = coarse
    for number, step in enumerate(model.refine(coarse, features["p2"]), start=1):
        logits = step.logits
        out |= {f"points_step{number}": step.index.numpy(), f"logits_step{number}": logits.numpy()}
    person = model.config.person_classes[0]
    for j, image in enumerate(images):
        final = restore(logits[j], resized[j].shape[:2], image.shape[:2])
        best = final.argmax(dim=0).numpy()
        out |= {f"image{j}": image[:, :, ::-1], f"resized{j}": resized[j][:, :, ::-1], f"final_argmax{j}": best}
        out |= {f"final_logits{j}": final.numpy(), f"person_mask{j}": best == person}
        out |= {f"final_person_logit{j}": final[person].numpy(), f"final_top1_logit{j}": final.amax(dim=0).numpy()}
        out[f"person_prob{j}"] = final.softmax(dim=0)[person].numpy()
    return out


@pytest.mark.parametrize("case", CASES)
def test_inference_equals_detectron2(
    folder: Path, manifest: dict[str, Any], compare: Callable[..., list[tuple[str, bool, str]]], case: str
) -> None:
    rows = compare(folder, case, produce(folder, load(folder, manifest, case), case))
    assert [f"{name}: {detail}" for name, ok, detail in rows if not ok] == []
    assert len(rows) >= 15


MISTAKES: dict[str, dict[str, Any]] = {
    "stride in the 3x3": {"stride_in_1x1": False},
    "another mean": {"pixel_mean": (123.675, 116.28, 103.53)},
    "one refinement": {"subdivision_steps": 1},
    "fewer points": {"subdivision_num_points": 300},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices_a_mistake(
    folder: Path, manifest: dict[str, Any], compare: Callable[..., list[tuple[str, bool, str]]], mistake: str
) -> None:
    right = load(folder, manifest, CASES[0])
    wrong = build(replace(right.config, **MISTAKES[mistake]), 0).eval()
    wrong.load_state_dict(right.state_dict())
    rows = compare(folder, CASES[0], produce(folder, wrong, CASES[0]))
    assert not all(ok for _, ok, _ in rows)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_detectron2(folder: Path, manifest: dict[str, Any], case: str) -> None:
    model = load(folder, manifest, case).train()
    _, _, batch = inputs(folder, case, model.config)
    train = manifest[case]["train"]
    with np.load(folder / f"{case}_train.npz") as file:
        wanted = {k: file[k] for k in file.files}
    labels = torch.full((len(batch), *batch.shape[2:]), train["ignore"], dtype=torch.uint8)
    for j in range(len(batch)):
        label = torch.from_numpy(wanted[f"sem_seg{j}"])
        labels[j, : label.shape[0], : label.shape[1]] = label
    losses = model.losses(
        batch, labels, num_points=train["TRAIN_NUM_POINTS"], oversample=train["OVERSAMPLE_RATIO"],
        importance=train["IMPORTANCE_SAMPLE_RATIO"],
        generator=torch.Generator().manual_seed(train["torch_manual_seed"]),
    )  # fmt: skip
    sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(train["losses"], rel=1e-4)
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(wanted["grad_names"].tolist())
    norms = [gradients[k].norm().item() for k in wanted["grad_names"].tolist()]
    np.testing.assert_allclose(norms, wanted["grad_norms"], rtol=1e-3, atol=1e-5)
    stem = gradients["backbone.bottom_up.stem.conv1.weight"].numpy()
    np.testing.assert_allclose(stem, wanted["grad_stem"], rtol=1e-2, atol=1e-3 * np.abs(wanted["grad_stem"]).max())


@pytest.mark.parametrize(
    ("file", "depth"), [("semantic_R_50_FPN_cityscapes_derived", 50), ("semantic_R_101_FPN_cityscapes", 101)]
)
def test_names_and_shapes_are_those_of_the_zoo(goldens: Path, file: str, depth: int) -> None:
    path = goldens.parent / "specs" / "pointrend_keys" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    keys = json.loads(path.read_text())["keys"]
    with torch.device("meta"):
        model = SemanticPointRend(SemanticConfig(depth=depth, num_classes=19, person_classes=(11,)))
    found = {k: list(v.shape) for k, v in model.state_dict().items()}
    wanted = {k: shape for k, (shape, _) in keys.items()}
    wanted = {k: v for k, v in wanted.items() if not k.startswith("pixel_")}
    assert found == wanted


def test_network_sizes_equal_detectron2(manifest: dict[str, Any]) -> None:
    rows = manifest["primitives"]["resize_shapes"]
    assert len(rows) == 44
    for height, width, shortest, longest, new_height, new_width in rows:
        assert network_size(height, width, shortest=shortest, longest=longest) == (new_height, new_width)


def test_resizing_and_restoring_equal_detectron2(folder: Path, manifest: dict[str, Any]) -> None:
    with np.load(folder / "primitives.npz") as file:
        for name in ("pil_up", "pil_down"):
            assert np.array_equal(resize(file["pil_in"], file[name].shape[:2]), file[name])
        post = manifest["primitives"]["post"]
        found = restore(torch.from_numpy(file["post_in"]), tuple(post["image_size"]), tuple(post["out"]))
        np.testing.assert_allclose(found.numpy(), file["post_out"], atol=1e-5)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), shortest=st.integers(32, 800))
def test_a_network_input_keeps_within_its_bounds(height: int, width: int, shortest: int) -> None:
    found = network_size(height, width, shortest=shortest, longest=2 * shortest)
    assert 1 <= min(found) <= shortest
    assert max(found) <= 2 * shortest


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
def test_logits_have_the_size_of_the_padded_input(depth: int, norm: Any) -> None:
    config = replace(TINY, depth=depth, norm=norm, width_per_group=4, res2_out=16)
    with torch.no_grad():
        assert build(config, 1).eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_however_often_it_is_refined_an_answer_lies_where_its_image_does(steps: int) -> None:
    images = torch.zeros(1, 3, 64, 96)
    images[:, :, :32, :48] = 3.0
    twice, other = build(TINY, 1).eval(), build(replace(TINY, subdivision_steps=steps), 1).eval()
    with torch.no_grad():
        wanted, found = (model(images).diff(dim=1).flatten() for model in (twice, other))
    assert found.shape == wanted.shape
    assert torch.corrcoef(torch.stack([wanted, found]))[0, 1] > 0.9


def test_a_frozen_state_loads_into_a_learning_network_and_says_the_same() -> None:
    frozen, learning = build(replace(TINY, norm="FrozenBN"), 3).eval(), build(TINY, 4).eval()
    learning.load_state_dict(frozen.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(frozen(image), learning(image))
    assert len(list(learning.parameters())) > len(list(frozen.parameters()))


def test_first_weights_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = build(TINY, 1), build(TINY, 1), build(TINY, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.backbone.bottom_up.stem.conv1.weight, c.backbone.bottom_up.stem.conv1.weight)


@torch.no_grad()
def test_refinement_changes_chosen_points_only() -> None:
    model = build(TINY, 1).eval()
    features = model.features(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    coarse = model.coarse(features)
    step = next(iter(model.refine(coarse, features["p2"])))
    plain = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    changed = (step.logits != plain).any(dim=1).flatten().nonzero().flatten().tolist()
    assert set(changed) <= set(step.index[0].tolist())
    assert len(changed) > 150


def test_a_configuration_survives_json() -> None:
    config = replace(TINY, num_classes=19, person_classes=(11, 12), pixel_std=(57.375, 57.12, 58.395))
    assert parse_config(SemanticConfig, json.loads(config_json(config))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 20}, "depth must be one of"),
        ({"fpn_out": 0}, "fpn_out must be >= 1, got 0"),
        ({"sem_convs_dim": 48}, "multiple of 32, got 48"),
        ({"num_classes": 1}, "num_classes must be >= 2"),
        ({"person_classes": (2,)}, "person_classes must be distinct"),
        ({"person_classes": ()}, "person_classes must be distinct"),
        ({"norm": "SyncBN"}, "norm must be one of"),
        ({"min_size_test": 200}, "min_size_test must be <= 128, got 200"),
        ({"subdivision_steps": 60}, r"subdivision_steps must be in 0\.\.6"),
        ({"point_num_fc": 10**9}, "point_num_fc must be <= 16"),
        ({"pixel_mean": (1.0, float("nan"), 1.0)}, "must be finite"),
        ({"pixel_mean": (1.0, 1.0), "pixel_std": (1.0,) * 4}, "need three values each, got 2 and 4"),
        ({"person_classes": (True,)}, "distinct classes below 2"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "std > 0"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("values", [{"depht": 18}, {"depth": "18"}, {"depth": True}, {"pixel_mean": 3.0}])
def test_a_stored_configuration_with_unknown_or_mistyped_values_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown keys|must be"):
        parse_config(SemanticConfig, values)
