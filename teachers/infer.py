"""The configuration that the names and shapes of a checkpoint imply, and today's names for those of older files."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from teachers.backbone import IMAGENET_STD, MSRA_MEAN, parse_config
from teachers.checkpoint import CheckpointError, read_metadata
from teachers.instance import InstanceConfig
from teachers.resnet import BLOCKS
from teachers.semantic import SemanticConfig

_COARSE = "sem_seg_head.coarse_sem_seg_head."
_POINT = "sem_seg_head.point_head."
_BOTTOM_UP = "backbone.bottom_up."
_HEADS = "roi_heads."
_MASK = "roi_heads.mask_head.coarse_head."
_MASK_POINT = "roi_heads.mask_head.point_head."

#: Starts of names, by generation: until November 2020, until March 2021, and today's.
_GENERATIONS = {
    "a": re.compile(r"roi_heads\.mask_(?:coarse|point)_head\."),
    "b": re.compile(r"roi_heads\.mask_head\.coarse_head\.coarse_mask_fc\d+\."),
    "c": re.compile(r"roi_heads\.mask_head\.coarse_head\.fc\d+\."),
}
#: What a later generation calls a part; applied in turn.
_RENAMED = (
    (re.compile(r"^roi_heads\.mask_(coarse|point)_head\."), r"roi_heads.mask_head.\1_head."),
    (re.compile(r"^(roi_heads\.mask_head\.coarse_head\.)coarse_mask_fc(\d+\.)"), r"\1fc\2"),
)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under today's names, whichever of the three generations of instance models it is; "module." is stripped.

    Raises:
        CheckpointError: It mixes generations, or holds one name twice.
    """
    names = {k: k.removeprefix("module.") for k in state}
    found = {g: [k for k in names.values() if p.match(k)] for g, p in _GENERATIONS.items()}
    present = {g: keys for g, keys in found.items() if keys}
    if found["a"]:
        present.setdefault("c", [k for k in names.values() if k.startswith("roi_heads.mask_head.")])
    mixed = [min(keys) for keys in present.values() if keys]
    if len(mixed) > 1:
        raise CheckpointError(f"the weights mix names of different times: {', '.join(mixed)}; use a file as published")
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = names[key]
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        if name in out:
            raise CheckpointError(f"the weights hold {name} twice, the second time as {key}")
        out[name] = value
    return out


_CONFIGS: dict[str, type[Any]] = {"semantic": SemanticConfig, "instance": InstanceConfig}


#: Classes of a person, and the one of a rider, by architecture and number of classes; else `_PERSON`.
_CITYSCAPES = {("semantic", 19): (11, 12), ("instance", 8): (0, 1)}
_PERSON = {"semantic": 1, "instance": 0}


def person_classes(architecture: str, classes: int, *, riders: bool) -> tuple[int, ...]:
    """Which classes are persons: those of Cityscapes by its numbers of classes, else those of our own and of COCO."""
    person, rider = _CITYSCAPES.get((architecture, classes), (_PERSON[architecture], None))
    return (person, rider) if riders and rider is not None else (person,)


def read_config(path: Path, state: Mapping[str, Tensor]) -> SemanticConfig | InstanceConfig:
    """The configuration that a safetensors of ours stores, or that any other file's names and shapes imply.

    Raises:
        CheckpointError: It is unusable, or the state is not that of a PointRend.
    """
    stored = read_metadata(path) if path.suffix == ".safetensors" else None
    if stored is None:
        return infer_config(state)
    try:
        config: SemanticConfig | InstanceConfig = parse_config(_CONFIGS[stored["architecture"]], stored["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its stored configuration is unusable: {error!r}") from error
    return config


def infer_config(state: Mapping[str, Tensor]) -> SemanticConfig | InstanceConfig:
    """The configuration that a zoo file's names and shapes imply.

    They say neither the stride's place nor the normalisation of pixels nor the test size. Groups above 1 mean X-101
    (stride in the 3x3, division by a deviation) unless the file holds pixel_std. The test size is the zoo's: 1024 to
    2048 for a semantic model and for 8 classes (Cityscapes), 800 to 1333 for other instance models. A person is class
    11 of 19 in a semantic model, otherwise 1; in an instance model class 0.

    Raises:
        CheckpointError: The state is that of no PointRend; the message names keys.
    """
    given = rename(state)
    kinds = [k for k in ("sem_seg_head.", _HEADS) if any(name.startswith(k) for name in given)]
    if len(kinds) != 1:
        held = sorted(k for k in given if k.startswith(tuple(kinds))) if kinds else sorted(given)
        wanted = "names of one head, sem_seg_head.* or roi_heads.*"
        raise CheckpointError(f"not the weights of a PointRend, which has {wanted}; these hold {_some(held, kinds)}")
    kind, article = ("semantic", "a") if kinds[0] != _HEADS else ("instance", "an")
    try:
        shared = _infer_backbone(given) | _infer_pixels(given)
        if kind == "semantic":
            return SemanticConfig(**shared, **_infer_semantic(given))
        return InstanceConfig(**shared, **_infer_instance(given))
    except KeyError as error:
        raise CheckpointError(f"not the weights of {article} {kind} PointRend: {error.args[0]} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"not the weights of {article} {kind} PointRend: {error}") from error


def _shape(given: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    shape = tuple(given[key].shape)
    if len(shape) != axes or min(shape) < 1:
        raise ValueError(f"{key} must have {axes} axes and values, got shape {shape}")
    return shape


def _some(names: list[str], kinds: list[str]) -> str:
    chosen = [next(n for n in names if n.startswith(k)) for k in kinds] if kinds else names[:4]
    return ", ".join(chosen) or "nothing"


def _infer_backbone(given: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = tuple(
        len({k.split(".")[3] for k in given if k.startswith(f"{_BOTTOM_UP}{stage}.")})
        for stage in ("res2", "res3", "res4", "res5")
    )
    deep = f"{_BOTTOM_UP}res2.0.conv3.weight" in given
    depths = [d for d, counts in BLOCKS.items() if counts == blocks and (d >= 50) == deep]
    if not depths:
        raise ValueError(f"no ResNet has {blocks} blocks in {_BOTTOM_UP}res2 to res5")
    groups = _groups(given)
    return {
        "depth": depths[0],
        "stem_out": _shape(given, f"{_BOTTOM_UP}stem.conv1.weight", 4)[0],
        "res2_out": _shape(given, f"{_BOTTOM_UP}res2.0.conv{3 if deep else 2}.weight", 4)[0],
        "num_groups": groups if deep else 1,
        "width_per_group": _shape(given, f"{_BOTTOM_UP}res2.0.conv2.weight", 4)[1]
        if deep
        else SemanticConfig().width_per_group,
        "stride_in_1x1": groups == 1,
        "fpn_out": _shape(given, "backbone.fpn_output2.weight", 4)[0],
    }


def _groups(given: Mapping[str, Tensor]) -> int:
    outputs, inputs, _, _ = _shape(given, f"{_BOTTOM_UP}res2.0.conv2.weight", 4)
    return outputs // inputs


def _infer_pixels(given: Mapping[str, Tensor]) -> dict[str, Any]:
    std = IMAGENET_STD if _groups(given) > 1 else (1.0, 1.0, 1.0)
    return {
        "pixel_mean": _pixels(given, "pixel_mean") if "pixel_mean" in given else MSRA_MEAN,
        "pixel_std": _pixels(given, "pixel_std") if "pixel_std" in given else std,
    }


def _pixels(given: Mapping[str, Tensor], key: str) -> tuple[float, ...]:
    if given[key].numel() != 3:
        raise ValueError(f"{key} must hold three values, got shape {tuple(given[key].shape)}")
    return tuple(given[key].flatten().tolist())


def _infer_point_head(given: Mapping[str, Tensor], prefix: str, classes: int) -> dict[str, Any]:
    width = _shape(given, f"{prefix}fc1.weight", 3)[0]
    return {
        "point_fc_dim": width,
        "point_num_fc": _layers(given, prefix),
        "coarse_pred_each_layer": _shape(given, f"{prefix}predictor.weight", 3)[1] == width + classes,
    }


def _layers(given: Mapping[str, Tensor], prefix: str) -> int:
    return sum(bool(re.fullmatch(re.escape(prefix) + r"fc\d+\.weight", k)) for k in given)


def _infer_semantic(given: Mapping[str, Tensor]) -> dict[str, Any]:
    classes = _shape(given, f"{_COARSE}predictor.weight", 4)[0]
    return _infer_point_head(given, _POINT, classes) | {
        "sem_convs_dim": _shape(given, f"{_COARSE}p2.0.weight", 4)[0],
        "num_classes": classes,
        "person_classes": person_classes("semantic", classes, riders=False),
    }


def _infer_instance(given: Mapping[str, Tensor]) -> dict[str, Any]:
    classes = _shape(given, f"{_HEADS}box_predictor.cls_score.weight", 2)[0] - 1
    if classes < 1:
        raise ValueError(f"{_HEADS}box_predictor.cls_score.weight must have a row per class and one for none, got 1")
    narrowed = _shape(given, f"{_MASK}reduce_spatial_dim_conv.weight", 4)
    predictions, hidden = _shape(given, f"{_MASK}prediction.weight", 2)
    side = math.isqrt(predictions // classes)
    if side * side * classes != predictions:
        raise ValueError(f"{_MASK}prediction.weight must give {classes} square masks, got {predictions} values")
    shortest, longest = (1024, 2048) if classes == 8 else (800, 1333)
    return _infer_point_head(given, _MASK_POINT, classes) | {
        "num_classes": classes,
        "box_fc_dim": _shape(given, f"{_HEADS}box_head.fc1.weight", 2)[0],
        "mask_conv_dim": narrowed[0],
        "mask_fc_dim": hidden,
        "mask_num_fc": _layers(given, _MASK),
        "coarse_resolution": side,
        "mask_pooler_resolution": side * narrowed[2],
        "min_size_test": shortest,
        "max_size_test": longest,
    }
