"""The Detectron2 backend: PointRend as its authors run it, where Detectron2 is installed.

Detectron2 unpickles whatever a file of weights names and builds whatever a YAML tag names. Neither is used here:
weights go through `teachers.checkpoint.load_state`, YAML through the safe loader, and Detectron2 gets a state to load
and a flat list of keys and values.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from teachers import checkpoint, instance
from teachers.backbone import network_size, resize
from teachers.checkpoint import CheckpointError
from teachers.infer import person_classes, read_config, rename
from teachers.instance import Detections
from teachers.teacher import Person, Soft, TeacherError
from training.files import sha256_file

Kind = Literal["semantic", "instance"]

_MOST_BYTES = 1 << 20
_MOST_NODES = 10_000
_MOST_BASES = 16
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+")
_OURS = ("MODEL.WEIGHTS", "MODEL.DEVICE")
_STAGES = ("res2", "res3", "res4", "res5")
_LEVELS = ("p2", "p3", "p4", "p5")
_SIDES = (32, 64, 128, 256, 512)

_FIXED: dict[str, dict[str, Any]] = {
    "shared": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": list(_STAGES),
        "MODEL.FPN.IN_FEATURES": list(_STAGES),
    },
    "semantic": {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
    },
    "instance": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": True,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[side] for side in _SIDES],
        "MODEL.RPN.IN_FEATURES": [*_LEVELS, "p6"],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": list(_LEVELS),
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
        "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    },
}
"""What every PointRend sets, after Detectron2's own defaults."""

_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "shared": {
        "depth": ("MODEL.RESNETS.DEPTH",),
        "stem_out": ("MODEL.RESNETS.STEM_OUT_CHANNELS",),
        "res2_out": ("MODEL.RESNETS.RES2_OUT_CHANNELS",),
        "num_groups": ("MODEL.RESNETS.NUM_GROUPS",),
        "width_per_group": ("MODEL.RESNETS.WIDTH_PER_GROUP",),
        "stride_in_1x1": ("MODEL.RESNETS.STRIDE_IN_1X1",),
        "norm": ("MODEL.RESNETS.NORM",),
        "fpn_out": ("MODEL.FPN.OUT_CHANNELS",),
        "min_size_test": ("INPUT.MIN_SIZE_TEST",),
        "max_size_test": ("INPUT.MAX_SIZE_TEST",),
        "pixel_mean": ("MODEL.PIXEL_MEAN",),
        "pixel_std": ("MODEL.PIXEL_STD",),
        "point_fc_dim": ("MODEL.POINT_HEAD.FC_DIM",),
        "point_num_fc": ("MODEL.POINT_HEAD.NUM_FC",),
        "coarse_pred_each_layer": ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER",),
        "subdivision_steps": ("MODEL.POINT_HEAD.SUBDIVISION_STEPS",),
        "subdivision_num_points": ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS",),
    },
    "semantic": {
        "sem_convs_dim": ("MODEL.SEM_SEG_HEAD.CONVS_DIM",),
        "num_classes": ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.POINT_HEAD.NUM_CLASSES"),
    },
    "instance": {
        "num_classes": ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.POINT_HEAD.NUM_CLASSES"),
        "box_fc_dim": ("MODEL.ROI_BOX_HEAD.FC_DIM",),
        "mask_conv_dim": ("MODEL.ROI_MASK_HEAD.CONV_DIM",),
        "mask_fc_dim": ("MODEL.ROI_MASK_HEAD.FC_DIM",),
        "mask_num_fc": ("MODEL.ROI_MASK_HEAD.NUM_FC",),
        "mask_pooler_resolution": ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",),
        "coarse_resolution": ("MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION",),
        "rpn_pre_nms_topk": ("MODEL.RPN.PRE_NMS_TOPK_TEST",),
        "rpn_post_nms_topk": ("MODEL.RPN.POST_NMS_TOPK_TEST",),
        "rpn_nms_thresh": ("MODEL.RPN.NMS_THRESH",),
        "score_thresh_test": ("MODEL.ROI_HEADS.SCORE_THRESH_TEST",),
        "nms_thresh_test": ("MODEL.ROI_HEADS.NMS_THRESH_TEST",),
        "detections_per_image": ("TEST.DETECTIONS_PER_IMAGE",),
    },
}
"""What our configurations call what Detectron2 calls otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detectron2Config:
    """Settings of the Detectron2 backend.

    Attributes:
        config: A YAML file of a PointRend; empty: what the names and shapes of the weights imply.
        opts: Keys and values in turn, as on Detectron2's command line; they come last.
    """

    config: str = ""
    opts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every value that needs no Detectron2."""
        if len(self.opts) % 2:
            raise ValueError(f"teacher.detectron2.opts must be keys and values in turn, got {len(self.opts)} texts")
        for key in self.opts[::2]:
            if _KEY.fullmatch(key) is None:
                raise ValueError(f"teacher.detectron2.opts must name keys like INPUT.MIN_SIZE_TEST, got {key!r}")
            if key in _OURS:
                raise ValueError(f"teacher.detectron2.opts must not set {key}: that is --teacher and teacher.device")


def load_detectron2(
    path: Path, config: Detectron2Config, *, device: str, person_score: float, riders: bool
) -> "Detectron2Backend":
    """A backend from a file of weights of a semantic or instance PointRend.

    Args:
        path: A zoo `.pkl`, a `.pth`, or our safetensors.
        config: Which architecture, and other keys.
        device: Where it runs, as torch names it.
        person_score: Least score of a detected person (instance model).
        riders: Whether riders of a Cityscapes model count as persons.

    Raises:
        TeacherError: Detectron2 is not installed or refuses the configuration, or its YAML file is unusable.
        CheckpointError: The file is broken, hostile, or does not fit the network.
    """
    detectron2 = _detectron2()
    state = checkpoint.load_state(path)
    try:
        if config.config:
            keys = flat(read_yaml(Path(config.config), detectron2.packaged))
        else:
            architecture = read_config(path, state)
            keys = options(architecture.architecture, asdict(architecture))
        cfg = detectron2.configured([*keys, *config.opts, "MODEL.DEVICE", device])
        model = detectron2.build(cfg)
        checkpoint.match(rename(state), model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Detectron2Backend(model, cfg, sha256_file(path), person_score=person_score, riders=riders)


def settings(config: Detectron2Config) -> dict[str, Any]:
    """The YAML file of a config with its bases, for records: what a change of its content changes.

    Raises:
        TeacherError: Detectron2 is not installed, or the file is unusable.
    """
    return read_yaml(Path(config.config), _detectron2().packaged) if config.config else {}


class Detectron2Backend:
    """A model of Detectron2 behind the `teachers.teacher.Backend` protocol.

    Args:
        model: A SemanticSegmentor or GeneralizedRCNN with its weights.
        cfg: Its configuration.
        sha256: Digest of its file.
        person_score: Least score of a detected person (instance model).
        riders: Whether riders of a Cityscapes model count as persons.

    Raises:
        TeacherError: The configuration is of neither kind, or has no input size.
    """

    def __init__(self, model: Any, cfg: Any, sha256: str, *, person_score: float, riders: bool) -> None:
        self.model = model.eval()
        self.kind = kind_of(cfg.MODEL.META_ARCHITECTURE)
        heads = cfg.MODEL.SEM_SEG_HEAD if self.kind == "semantic" else cfg.MODEL.ROI_HEADS
        self.classes = person_classes(self.kind, heads.NUM_CLASSES, riders=riders)
        self.shortest, self.longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        if min(self.shortest, self.longest) < 1:
            raise TeacherError(
                f"INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST must be >= 1, got {self.shortest}, {self.longest}"
            )
        self.format = cfg.INPUT.FORMAT
        self.person_score = person_score
        self.sha256 = sha256
        self.id = f"detectron2-{self.kind}-{sha256[:12]}"

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:
        """See `teachers.teacher.Backend`; images go through one by one, so that no answer depends on a batch."""
        shortest, longest = (max(1, round(x * scale)) for x in (self.shortest, self.longest))
        sizes = [network_size(*x.shape[:2], shortest=shortest, longest=longest) for x in images]
        run = self._semantic if self.kind == "semantic" else self._instances
        with torch.inference_mode():
            return [run(image, size) for image, size in zip(images, sizes, strict=True)]

    def _input(self, image: NDArray[np.uint8], size: tuple[int, int]) -> dict[str, Any]:
        resized = resize(image, size)
        ordered = resized if self.format == "RGB" else resized[:, :, ::-1]
        values = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1))).to(torch.float32)
        return {"image": values, "height": image.shape[0], "width": image.shape[1]}

    def _semantic(self, image: NDArray[np.uint8], size: tuple[int, int]) -> Soft:
        logits = self.model([self._input(image, size)])[0]["sem_seg"]
        share = logits.float().softmax(dim=0)[list(self.classes)].sum(dim=0)
        return Soft(probability=share.clamp(max=1.0).cpu().numpy())

    def _instances(self, image: NDArray[np.uint8], size: tuple[int, int]) -> Soft:
        # Not post-processed: that would cut the masks at 0.5.
        found = self.model.inference([self._input(image, size)], do_postprocess=False)[0]
        boxes = found.pred_boxes.tensor.float()
        masks = found.pred_masks[:, 0].float() if found.has("pred_masks") else boxes.new_zeros((len(boxes), 1, 1))
        detections = Detections(boxes=boxes, scores=found.scores.float(), classes=found.pred_classes, masks=masks)
        outer = image.shape[0], image.shape[1]
        scaled = instance.rescale(detections, size, outer)
        probability, kept, scores = instance.person(scaled, outer, self.classes, self.person_score)
        persons = [
            Person(box=(x0, y0, x1, y1), score=score)
            for (x0, y0, x1, y1), score in zip(kept.tolist(), scores.tolist(), strict=True)
        ]
        return Soft(probability=probability.cpu().numpy(), persons=tuple(persons))


# --- Keys and values ---------------------------------------------------------------------------------------------


def options(kind: str, architecture: Mapping[str, Any]) -> list[Any]:
    """Keys and values in turn that make Detectron2 build an architecture, after its defaults and PointRend's.

    Args:
        kind: "semantic" or "instance".
        architecture: The fields of a `SemanticConfig` or an `InstanceConfig`; what is left out keeps its default.

    Raises:
        KeyError: A field that Detectron2 has no key for.
    """
    names = _NAMES["shared"] | _NAMES[kind]
    values = _FIXED["shared"] | _FIXED[kind]
    for name, value in architecture.items():
        if name != "person_classes":  # that is read from the answer, not built
            plain = list(value) if isinstance(value, tuple) else value
            values |= dict.fromkeys(names[name], plain)
    return [item for pair in values.items() for item in pair]


def flat(tree: Mapping[str, Any], above: str = "") -> list[Any]:
    """Keys and values in turn of a tree: {"MODEL": {"MASK_ON": True}} -> ["MODEL.MASK_ON", True]."""
    out: list[Any] = []
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            out += flat(value, f"{key}.")
        elif key not in _OURS:
            out += [key, value]
    return out


def kind_of(architecture: str) -> Kind:
    """Semantic or instance, by Detectron2's name.

    Raises:
        TeacherError: It is neither.
    """
    kinds: dict[str, Kind] = {"SemanticSegmentor": "semantic", "GeneralizedRCNN": "instance"}
    if architecture not in kinds:
        raise TeacherError(f"MODEL.META_ARCHITECTURE must be one of {', '.join(kinds)}, got {architecture!r}")
    return kinds[architecture]


# --- YAML --------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, packaged: Path | None = None) -> dict[str, Any]:
    """A configuration of Detectron2 as a tree, its `_BASE_` files below it.

    A `_BASE_` is read from the folder of `path` or below. One that leads out of it, as those of the PointRend project
    do (`../../../../configs/Base-RCNN-FPN.yaml`), is looked up in Detectron2's packaged configs by the part behind
    `configs/`, and nowhere else.

    Args:
        path: The file.
        packaged: Folder of Detectron2's packaged configs.

    Raises:
        TeacherError: A file is absent, too large, no safe YAML, of an old version, or has a base elsewhere.
    """
    return _read_yaml(path, (path.parent.resolve(), packaged.resolve() if packaged else None), 0)


def _read_yaml(path: Path, roots: tuple[Path, Path | None], depth: int) -> dict[str, Any]:
    if depth > _MOST_BASES:
        raise TeacherError(f"{path}: more than {_MOST_BASES} configs build on one another, perhaps in a circle")
    tree = _parse_yaml(path)
    base = tree.pop("_BASE_", None)
    if base is None:
        return tree
    return merged(_read_yaml(_base(path, base, roots), roots, depth + 1), tree)


def _parse_yaml(path: Path) -> dict[str, Any]:
    try:
        yaml = importlib.import_module("yaml")
        if path.stat().st_size > _MOST_BYTES:
            raise TeacherError(f"{path}: has {path.stat().st_size} bytes, a config has at most {_MOST_BYTES}")
        tree = yaml.safe_load(path.read_text("utf-8"))
    except ImportError as error:
        raise TeacherError(f"{path}: reading it needs PyYAML, which is not installed: pip install pyyaml") from error
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise TeacherError(f"{path}: not a plain YAML file, nothing was run: {what}") from error
    _check_tree(path, tree)
    return dict(tree)


def _check_tree(path: Path, tree: Any) -> None:
    """Refuse what is no tree of sections with textual keys, is of an old version, or unfolds beyond measure."""
    if not isinstance(tree, dict):
        raise TeacherError(f"{path}: must hold sections, got {type(tree).__name__}")
    waiting, seen = [tree], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > _MOST_NODES:
            raise TeacherError(f"{path}: holds more than {_MOST_NODES} values")
        if isinstance(part, dict):
            strange = [k for k in part if not isinstance(k, str)]
            if strange:
                raise TeacherError(f"{path}: keys must be text, got {strange[0]!r}")
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    if tree.get("VERSION", 2) != 2:
        raise TeacherError(f"{path}: must be of VERSION 2, got {tree['VERSION']!r}; convert it with Detectron2")


def _base(path: Path, base: object, roots: tuple[Path, Path | None]) -> Path:
    if not isinstance(base, str) or Path(base).is_absolute() or base.startswith("~") or "://" in base:
        raise TeacherError(f"{path}: _BASE_ must be a relative path, got {base!r}")
    below, packaged = roots
    choices = [(path.parent / base, root) for root in roots]
    if packaged is not None and "configs/" in base:
        choices.append((packaged / base.rpartition("configs/")[2], packaged))
    for choice, root in choices:
        if root is not None and (found := _file_below(choice, root)) is not None:
            return found
    places = f"below {below}" + (f" or {packaged}" if packaged else "")
    raise TeacherError(f"{path}: its _BASE_ must be a file {places}, and {base!r} is none")


def _file_below(path: Path, root: Path) -> Path | None:
    try:
        resolved = path.resolve()
        return resolved if resolved.is_relative_to(root) and resolved.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A tree over another: values of `more` replace those of `base`, sections are merged."""
    out = dict(base)
    for key, value in more.items():
        below = out.get(key)
        out[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out


# --- Detectron2 itself -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Detectron2:
    """The few things that are used of it."""

    config: Any
    modeling: Any
    point_rend: Any
    packaged: Path

    def configured(self, keys: list[Any]) -> Any:
        """Its defaults, PointRend's, and then keys and values in turn."""
        cfg = self.config.get_cfg()
        self.point_rend.add_pointrend_config(cfg)
        try:
            cfg.merge_from_list(keys)
        except (AssertionError, KeyError, ValueError) as error:
            raise TeacherError(f"Detectron2 refuses its configuration: {error}") from error
        return cfg

    def build(self, cfg: Any) -> Any:
        """The network, without weights, ready to answer."""
        try:
            return self.modeling.build_model(cfg).eval()
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise TeacherError(f"Detectron2 cannot build the network that is configured: {error!r}") from error


def _detectron2() -> _Detectron2:
    try:
        zoo = importlib.import_module("detectron2.model_zoo")
        return _Detectron2(
            config=importlib.import_module("detectron2.config"),
            modeling=importlib.import_module("detectron2.modeling"),
            point_rend=importlib.import_module("detectron2.projects.point_rend"),
            packaged=Path(str(zoo.__file__)).parent / "configs",
        )
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"backend 'detectron2' needs Detectron2, which is not installed ({error}): install it as "
            'https://detectron2.readthedocs.io/tutorials/install.html says, or write backend = "pointrend", which '
            "reads the same files"
        ) from error
    except ImportError as error:
        raise TeacherError(
            f"backend 'detectron2' needs Detectron2, which cannot be imported ({error}): build it for this version of "
            'torch, or write backend = "pointrend", which reads the same files'
        ) from error
