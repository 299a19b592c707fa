"""What a file's names and shapes say: every zoo layout, every generation of names, and what is no PointRend."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from teachers.backbone import IMAGENET_STD
from teachers.checkpoint import CheckpointError, match
from teachers.infer import infer_config, rename
from teachers.instance import InstanceConfig, InstancePointRend
from teachers.semantic import SemanticConfig, SemanticPointRend

X101 = {
    "depth": 101, "num_groups": 32, "width_per_group": 8, "stride_in_1x1": False, "pixel_std": IMAGENET_STD,
}  # fmt: skip
ZOO: dict[str, SemanticConfig | InstanceConfig] = {
    "rcnn_R_50_FPN_coco": InstanceConfig(),
    "rcnn_R_101_FPN_coco": InstanceConfig(depth=101),
    "rcnn_X_101_32x8d_FPN_coco": InstanceConfig(**X101),  # type: ignore[arg-type]
    "rcnn_R_50_FPN_cityscapes": InstanceConfig(num_classes=8, min_size_test=1024, max_size_test=2048),
    "semantic_R_101_FPN_cityscapes": SemanticConfig(depth=101, num_classes=19, person_classes=(11,)),
    "semantic_R_50_FPN_cityscapes_derived": SemanticConfig(num_classes=19, person_classes=(11,)),
}
TINY = InstanceConfig(
    depth=50, stem_out=4, res2_out=8, width_per_group=2, fpn_out=12, num_classes=5, box_fc_dim=10, mask_conv_dim=8,
    mask_fc_dim=6, mask_num_fc=3, mask_pooler_resolution=12, coarse_resolution=4, point_fc_dim=9, point_num_fc=2,
)  # fmt: skip


def meta(config: SemanticConfig | InstanceConfig) -> SemanticPointRend | InstancePointRend:
    with torch.device("meta"):
        return SemanticPointRend(config) if isinstance(config, SemanticConfig) else InstancePointRend(config)


def state_of(config: SemanticConfig | InstanceConfig) -> dict[str, Tensor]:
    return dict(meta(config).state_dict())


@pytest.mark.parametrize("file", ZOO)
def test_every_zoo_layout_gives_its_configuration_and_a_network_of_exactly_its_names(goldens: Path, file: str) -> None:
    path = goldens.parent / "specs" / "pointrend_keys" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    keys = json.loads(path.read_text())["keys"]
    state = {k: torch.empty(shape, device="meta") for k, (shape, _) in keys.items() if not k.startswith("pixel_")}
    config = infer_config(state)
    assert config == ZOO[file]
    built = state_of(config)
    plain = {k: v for k, v in rename(state).items() if "cell_anchors" not in k}
    assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in plain.items()}


def test_the_zoo_has_no_layout_that_is_not_tested(goldens: Path) -> None:
    folder = goldens.parent / "specs" / "pointrend_keys"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    assert {p.stem for p in folder.glob("*.json")} == set(ZOO)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_a_configuration_is_inferred_from_shapes(depth: int, groups: int, each: bool) -> None:
    deep = depth >= 50
    config = replace(
        TINY,
        depth=depth,
        num_groups=groups if deep else 1,
        width_per_group=2 if deep else 64,
        stride_in_1x1=groups == 1 or not deep,
        pixel_std=IMAGENET_STD if deep and groups > 1 else (1.0, 1.0, 1.0),
        coarse_pred_each_layer=each,
    )
    assert infer_config(state_of(config)) == config


@pytest.mark.parametrize("narrow", [8, 12, 20])
def test_a_coarse_head_is_narrowed_only_where_the_pyramid_is_wider(narrow: int) -> None:
    config = replace(TINY, mask_conv_dim=narrow)
    state = state_of(config)
    assert any("reduce_channel_dim_conv" in k for k in state) == (narrow < TINY.fpn_out)
    assert infer_config(state) == config


def test_a_stored_normalisation_is_believed() -> None:
    state = state_of(TINY) | {"pixel_mean": torch.full((3, 1, 1), 5.0), "pixel_std": torch.full((3, 1, 1), 2.0)}
    assert infer_config(state) == replace(TINY, pixel_mean=(5.0, 5.0, 5.0), pixel_std=(2.0, 2.0, 2.0))


# --- Generations -------------------------------------------------------------------------------------------------


def older(state: dict[str, Tensor], generation: str) -> dict[str, Tensor]:
    """Names of 2021 -> those of the summer (a) or the winter (b) before."""
    out = {}
    for key, value in state.items():
        name = re.sub(r"(mask_head\.coarse_head\.)fc(\d)", r"\1coarse_mask_fc\2", key)
        if generation == "a":
            name = re.sub(r"mask_head\.(coarse|point)_head\.", r"mask_\1_head.", name)
        out[name] = value
    return out


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("generation", ["a", "b", "c"])
def test_every_generation_becomes_todays(generation: str, prefix: str) -> None:
    state = state_of(TINY)
    given = {f"{prefix}{k}": v for k, v in (state if generation == "c" else older(state, generation)).items()}
    assert (set(given) == set(state)) == (generation == "c" and not prefix)
    found = rename(given)
    assert found.keys() == state.keys()
    assert all(found[k] is state[k] for k in state)
    assert rename(found) == found
    assert infer_config(given) == TINY


def test_names_of_generation_a_are_those_of_the_first_files() -> None:
    names = set(older(state_of(InstanceConfig()), "a"))
    part = {k.removeprefix("roi_heads.").rsplit(".", 1)[0] for k in names if k.startswith("roi_heads.mask_")}
    assert part == {
        *(f"mask_coarse_head.{k}" for k in ("coarse_mask_fc1", "coarse_mask_fc2", "prediction")),
        "mask_coarse_head.reduce_spatial_dim_conv",
        *(f"mask_point_head.{k}" for k in ("fc1", "fc2", "fc3", "predictor")),
    }


def test_a_renamed_file_fits_the_network() -> None:
    source = InstancePointRend(TINY)
    target = meta(TINY)
    match(rename(older(dict(source.state_dict()), "a")), target)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


MASK = "roi_heads.mask_head.coarse_head."


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({f"{MASK}coarse_mask_fc1.weight": f"{MASK}fc1.weight"}, ("coarse_mask_fc1.weight", "fc1.bias")),
        ({"roi_heads.mask_coarse_head.prediction.bias": f"{MASK}prediction.bias"},
         ("mask_coarse_head.prediction.bias", f"{MASK}fc1.bias")),
        ({"roi_heads.mask_point_head.fc1.bias": "roi_heads.mask_head.point_head.fc1.bias"},
         ("mask_point_head.fc1.bias", f"{MASK}fc1.bias")),
    ],
)  # fmt: skip
def test_a_mixture_of_generations_is_refused_with_its_names(change: dict[str, str], names: tuple[str, ...]) -> None:
    state = state_of(TINY)
    for new, old in change.items():
        state[new] = state.pop(old)
    with pytest.raises(CheckpointError, match="mix names of different times") as error:
        infer_config(state)
    assert all(n in str(error.value) for n in names)


def test_one_name_twice_is_refused() -> None:
    state = state_of(TINY)
    state["module.backbone.fpn_output2.bias"] = state["backbone.fpn_output2.bias"]
    with pytest.raises(CheckpointError, match=r"backbone\.fpn_output2\.bias twice"):
        rename(state)


# --- No PointRend ------------------------------------------------------------------------------------------------


def _without(part: str) -> dict[str, Tensor]:
    return {k: v for k, v in state_of(TINY).items() if part not in k}


def _square() -> dict[str, Tensor]:
    key = "roi_heads.mask_head.coarse_head.prediction.weight"
    return state_of(TINY) | {key: torch.empty(5 * 15, 6, device="meta")}


FOREIGN: dict[str, tuple[Any, str]] = {
    "torchvision": (lambda: {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, r"conv1\.weight, fc\.bias"),
    "nothing": (dict, "hold nothing"),
    "a mask head without points": (lambda: _without("point_head"), r"point_head\.fc1\.weight is missing"),
    "no box head": (lambda: _without("box_head"), r"box_head\.fc1\.weight is missing"),
    "another backbone": (lambda: _without("res4"), "no ResNet has"),
    "no pyramid": (lambda: _without("fpn"), r"fpn_output2\.weight is missing"),
    "masks that are not square": (_square, "must give 5 square masks, got 75"),
    "semantic without its head": (lambda: {"sem_seg_head.x": torch.zeros(1)}, "a semantic PointRend"),
    "two heads": (lambda: state_of(TINY) | {"sem_seg_head.x": torch.zeros(1)}, r"sem_seg_head\.x, roi_heads\."),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_pointrend_is_refused_with_names(kind: str) -> None:
    make, message = FOREIGN[kind]
    with pytest.raises(CheckpointError, match=message):
        infer_config(make())


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(0, 0, 0, 0), torch.zeros(3)])
@pytest.mark.parametrize(
    "end",
    [
        "stem.conv1", "res2.0.conv2", "res2.0.conv3", "fpn_output2", "cls_score", "box_head.fc1", "prediction",
        "reduce_spatial_dim_conv", "coarse_head.fc2", "point_head.fc1", "predictor",
    ],
)  # fmt: skip
def test_weights_of_impossible_shapes_are_refused(end: str, value: Tensor) -> None:
    state = state_of(TINY)
    key = next(k for k in state if k.endswith(f"{end}.weight"))
    with pytest.raises(CheckpointError, match=f"{re.escape(key)} must have|does not fit"):
        _fit(state | {key: value})


def test_a_box_head_without_a_class_is_refused_by_name() -> None:
    key = "roi_heads.box_predictor.cls_score.weight"
    with pytest.raises(CheckpointError, match=f"{re.escape(key)} must have a row per class"):
        infer_config(state_of(TINY) | {key: torch.zeros(1, 10)})


@pytest.mark.parametrize("name", ["pixel_mean", "pixel_std"])
def test_a_normalisation_of_other_than_three_values_is_refused_in_a_few_words(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} must hold three values, got shape \(5000,\)") as error:
        infer_config(state_of(TINY) | {name: torch.zeros(5000)})
    assert len(str(error.value)) < 200


def _fit(state: dict[str, Tensor]) -> None:
    """What loading a file does, on the meta device; finiteness cannot be asked there, so shapes are compared."""
    wanted = state_of(infer_config(state))
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in state.items()}:
        raise CheckpointError("does not fit")
