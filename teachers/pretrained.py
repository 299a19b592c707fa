"""First weights from a file: a whole PointRend, or a ResNet of torchvision or timm for its backbone.

A torchvision ResNet and ours are one network under other names:

    conv1, bn1                  stem.conv1, stem.conv1.norm      its input channels reversed: ours is fed BGR
    layer1 .. layer4            res2 .. res5
    layer1.0.bn2                res2.0.conv2.norm
    layer1.0.downsample.0, .1   res2.0.shortcut, res2.0.shortcut.norm
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from teachers import checkpoint
from teachers.backbone import IMAGENET_STD, MSRA_MEAN
from teachers.checkpoint import CheckpointError
from teachers.infer import read_config, rename
from teachers.recipe import TeachError
from teachers.resnet import BLOCKS
from teachers.semantic import SemanticConfig, SemanticPointRend
from training.files import sha256_file

_TIMM = "timm:"
_COARSE = "sem_seg_head.coarse_sem_seg_head.predictor."
_POINT = "sem_seg_head.point_head."
_BACKBONE = ("depth", "stem_out", "res2_out", "num_groups", "width_per_group", "stride_in_1x1")
_HEADS = ("fpn_out", "sem_convs_dim", "point_fc_dim", "point_num_fc", "coarse_pred_each_layer")
_PIXELS = ("pixel_mean", "pixel_std")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pretrained:
    """Weights to start from.

    Attributes:
        source: Where they are from, for messages.
        sha256: Digest of the file, or of the tensors that were downloaded.
        kind: A whole "pointrend", or a "resnet" with the names of torchvision.
        tensors: By their names in the file.
        fields: What the file fixes of a `SemanticConfig`, by its names.
    """

    source: str
    sha256: str
    kind: Literal["pointrend", "resnet"]
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, Any]


def read_pretrained(init: str) -> Pretrained | None:
    """Read what `teach.init` names; None for "".

    Raises:
        TeachError: The file is broken or holds neither of the two; or it cannot be downloaded.
    """
    if not init:
        return None
    try:
        return _downloaded(init.removeprefix(_TIMM)) if init.startswith(_TIMM) else _read(Path(init))
    except CheckpointError as error:
        raise TeachError(f"teach.init: {error}") from error


def start(model: SemanticPointRend, pretrained: Pretrained) -> tuple[str, ...]:
    """Copy the weights into a freshly drawn model.

    A checkpoint with another number of classes gives all but what depends on it: both predictors and, in the point
    head, the input columns for the coarse logits.

    Returns:
        The keys that keep their first weights, some with the columns that do; FPN and heads are named for a ResNet.

    Raises:
        TeachError: An architecture field of the config is not the file's, or the weights do not fit key by key.
    """
    try:
        _check_fields(pretrained, model.config)
        return _whole(model, pretrained) if pretrained.kind == "pointrend" else _bottom_up(model, pretrained)
    except CheckpointError as error:
        raise TeachError(f"teach.init {pretrained.source}: {error}") from error


# --- Reading -----------------------------------------------------------------------------------------------------


def _read(path: Path) -> Pretrained:
    tensors = checkpoint.load_state(path)
    sha256 = sha256_file(path)
    if "layer1.0.conv1.weight" in tensors:
        fields = _resnet_fields(tensors, path)
        return Pretrained(source=str(path), sha256=sha256, kind="resnet", tensors=tensors, fields=fields)
    named = checkpoint.clean(rename(tensors))
    if any(k.startswith("roi_heads.") for k in named):
        raise CheckpointError(f"{path}: holds an instance model; a semantic PointRend or a ResNet is wanted")
    if not any(k.startswith("sem_seg_head.") for k in named):
        raise CheckpointError(
            f"{path}: holds neither a semantic PointRend (sem_seg_head.*) nor a ResNet with the names of torchvision "
            f"(conv1, layer1.0.conv1, ..); its first key is {min(tensors, default='none')!r}"
        )
    try:
        config = read_config(path, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fields = {name: getattr(config, name) for name in (*_BACKBONE, *_HEADS, *_PIXELS, "norm", "num_classes")}
    return Pretrained(source=str(path), sha256=sha256, kind="pointrend", tensors=named, fields=fields)


def _downloaded(name: str) -> Pretrained:
    try:
        network: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # network, names and weights fail in many ways
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TeachError(
            f"teach.init: timm gives no weights {name!r} here: {first}; give a file instead, or name another"
        ) from error
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    fields = _resnet_fields(tensors, f"timm:{name}")
    given: dict[str, Any] = network.pretrained_cfg
    fields |= {
        "pixel_mean": tuple(round(255 * x, 6) for x in reversed(given["mean"])),
        "pixel_std": tuple(round(255 * x, 6) for x in reversed(given["std"])),
    }
    digest = hashlib.sha256(save(tensors)).hexdigest()
    return Pretrained(source=f"timm:{name}", sha256=digest, kind="resnet", tensors=tensors, fields=fields)


def _resnet_fields(tensors: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """What names and shapes of a torchvision ResNet say; its pixels are those of ImageNet, in our order."""
    counts = tuple(len({k.split(".")[1] for k in tensors if k.startswith(f"layer{i}.")}) for i in range(1, 5))
    deep = "layer1.0.conv3.weight" in tensors
    depths = [d for d, blocks in BLOCKS.items() if blocks == counts and (d >= 50) == deep]
    try:
        middle = tensors["layer1.0.conv2.weight"].shape
        fields: dict[str, Any] = {
            "depth": depths[0],
            "stem_out": tensors["conv1.weight"].shape[0],
            "res2_out": tensors[f"layer1.0.conv{3 if deep else 2}.weight"].shape[0],
        }
        if deep:
            groups = middle[0] // middle[1]
            fields |= {"num_groups": groups, "width_per_group": middle[1], "stride_in_1x1": False}
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{source}: must be a plain ResNet-18, 34, 50, 101 or 152; its blocks are {counts} and {error} is amiss"
        ) from error
    return fields | {"norm": "BN", "pixel_mean": MSRA_MEAN, "pixel_std": IMAGENET_STD}


# --- Fitting -----------------------------------------------------------------------------------------------------


def _check_fields(pretrained: Pretrained, config: SemanticConfig) -> None:
    """Refuse a config that describes another network than the file's, naming every difference."""
    differing = [
        f"model.{name} is {_shown(value)} in the file and {_shown(getattr(config, name))} in the config"
        for name, value in pretrained.fields.items()
        if name != "num_classes" and not _agree(name, value, config)
    ]
    if differing:
        raise CheckpointError(f"{'; '.join(differing)}: set [teach.model] to the file's values")


def _agree(name: str, value: Any, config: SemanticConfig) -> bool:
    wanted: Any = getattr(config, name)
    if name == "norm":  # frozen or not, batch normalisation has the same tensors
        return bool((value == "GN") == (wanted == "GN"))
    if name in ("num_groups", "width_per_group", "stride_in_1x1") and config.depth < 50:
        return True  # basic blocks have none
    if name in _PIXELS:
        return all(abs(a - b) < 1e-3 for a, b in zip(value, wanted, strict=True))
    return bool(value == wanted)


def _shown(value: object) -> str:
    return repr([round(x, 3) for x in value] if isinstance(value, tuple) else value)


def _whole(model: SemanticPointRend, pretrained: Pretrained) -> tuple[str, ...]:
    """All of a checkpoint but what depends on the number of classes, where that differs."""
    given = dict(pretrained.tensors)
    fresh: tuple[str, ...] = ()
    if pretrained.fields["num_classes"] != model.config.num_classes:
        fresh = tuple(_refresh(given, model, pretrained.fields["num_classes"]))
    checkpoint.match(given, model)
    return fresh


def _refresh(given: dict[str, Tensor], model: SemanticPointRend, classes: int) -> list[str]:
    """Put the model's own first weights where a number of classes shapes a tensor; returns what was put."""
    own, config, fresh = model.state_dict(), model.config, []
    for key in (f"{head}{part}" for head in (_COARSE, f"{_POINT}predictor.") for part in ("weight", "bias")):
        given[key] = own[key]
        fresh.append(key)
    for index in range(1, config.point_num_fc + 1 if config.coarse_pred_each_layer else 2):
        key = f"{_POINT}fc{index}.weight"
        kept = config.fpn_out if index == 1 else config.point_fc_dim
        if key in given and given[key].dim() == 3 and given[key].shape[1] == kept + classes:
            given[key] = torch.cat([given[key][:, :kept], own[key][:, kept:]], dim=1)
            fresh.append(f"{key} (columns {kept}..{own[key].shape[1] - 1})")
    return fresh


def _bottom_up(model: SemanticPointRend, pretrained: Pretrained) -> tuple[str, ...]:
    """A ResNet's state into the backbone's bottom-up network."""
    network = model.backbone.bottom_up
    wanted = {_theirs(key): key for key in network.state_dict()}
    given = {
        k: v for k, v in pretrained.tensors.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")
    }
    problems = {"missing": sorted(wanted.keys() - given), "surplus": sorted(given.keys() - wanted)}
    found = [f"{kind}: {', '.join(names[:12])}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"the weights are not those of a plain ResNet; {'; '.join(found)}")
    named = {wanted[k]: v for k, v in given.items()}
    named["stem.conv1.weight"] = named["stem.conv1.weight"].flip(1)
    checkpoint.match(named, network)
    return tuple(key for key in model.state_dict() if not key.startswith("backbone.bottom_up."))


def _theirs(key: str) -> str:
    """The name in torchvision of one of our ResNet's tensors."""
    key = re.sub(r"^stem\.conv1", "conv1", key)
    key = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", key)
    key = re.sub(r"conv(\d)\.norm", r"bn\1", key)
    key = key.replace("shortcut.norm", "downsample.1")
    return key.replace("shortcut.", "downsample.0.")
