"""Which teacher: the choice of a backend and how it is run, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from teachers import checkpoint
from teachers.backbone import MAX_SIDE, STRIDE
from teachers.checkpoint import CheckpointError
from teachers.detectron2 import Detectron2Config, load_detectron2
from teachers.infer import person_classes, read_config, rename
from teachers.instance import InstancePointRend
from teachers.onnx import OnnxConfig, load_onnx
from teachers.pointrend import PointRend, PointRendBackend
from teachers.semantic import SemanticPointRend
from teachers.teacher import Backend, Labeller, Teacher, TeacherError
from training.files import sha256_file

#: Numbers of classes by which a foreign model's data set is known: our own two, Cityscapes, COCO.
_KNOWN = {"semantic": (2, 19), "instance": (1, 8, 80)}
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """How a teacher is run.

    Attributes:
        backend: "pointrend" (ours), "detectron2" (an installed Detectron2), "onnx", or "auto": by the file's suffix.
        device: Where it runs: "cpu", "cuda", "cuda:1", or "auto" (a GPU if there is one; bits then depend on it).
        precision: Arithmetic of a PointRend: "float32", "bfloat16" or "float16".
        compile: Whether torch compiles the network first, which takes a while.
        person_classes: Classes that are persons; empty takes those of the model.
        riders: Whether riders of a Cityscapes model count as persons.
        person_score: Least score of a detected person, for models that detect instances.
        min_size: Shorter edge of a PointRend's input; 0 keeps that of the checkpoint.
        flip: Test-time augmentation: average with the mirrored image (twice the cost).
        scales: Test-time augmentation: average over these factors of the input size (the cost goes with their squares).
        temperature: Divides the person's log-odds; 0 takes the one that training stored, or 1.
        onnx: What an ONNX model expects and gives.
        detectron2: Settings of the Detectron2 backend.
    """

    backend: Literal["auto", "pointrend", "detectron2", "onnx"] = "auto"
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    person_classes: tuple[int, ...] = ()
    riders: bool = False
    person_score: float = 0.5
    min_size: int = 0
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    temperature: float = 0.0
    onnx: OnnxConfig = field(default_factory=OnnxConfig)
    detectron2: Detectron2Config = field(default_factory=Detectron2Config)

    def __post_init__(self) -> None:
        """Check every value that needs no file."""
        if not 0 <= self.person_score <= 1:
            raise ValueError(f"teacher.person_score must be in [0, 1], got {self.person_score}")
        if self.min_size and not STRIDE < self.min_size <= MAX_SIDE:
            raise ValueError(f"teacher.min_size must be 0 or in {STRIDE + 1}..{MAX_SIDE}, got {self.min_size}")
        if not self.scales or not all(0.1 <= s <= 10 for s in self.scales) or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"teacher.scales must be distinct factors in 0.1..10, got {self.scales}")
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"teacher.temperature must be in 0..100, got {self.temperature}")


def load_teacher(path: Path, config: TeacherConfig | None = None) -> Teacher:
    """A teacher from a file of weights: our safetensors, a zoo `.pkl` or `.pth`, or an `.onnx`.

    Raises:
        CheckpointError: The file is broken, hostile, or does not fit the network it names.
        TeacherError: What the config asks for cannot run here.
        ValueError: The config does not fit the model.
    """
    config = config or TeacherConfig()
    name = config.backend
    if name == "auto":
        name = "onnx" if path.suffix == ".onnx" else "pointrend"
    backend, stored = TEACHERS[name](path, replace(config, device=_device(config.device)))
    return Labeller(backend=backend, flip=config.flip, scales=config.scales, temperature=config.temperature or stored)


def load_model(path: Path) -> tuple[PointRend, float]:
    """A PointRend and its stored temperature (1 where none is), from any file of weights that `load_state` reads.

    Raises:
        CheckpointError: The file is broken, hostile, or does not fit the network it names.
    """
    state = checkpoint.load_state(path)
    stored = checkpoint.read_metadata(path) if path.suffix == ".safetensors" else None
    try:
        config = read_config(path, state)
        with torch.device("meta"):  # no memory is taken for what a file only claims to hold
            model = _MODELS[config.architecture](config)
        checkpoint.match(rename(state), model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    temperature = (stored or {}).get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 0 < temperature < 1e6:
        raise CheckpointError(f"{path}: its stored temperature must be a number > 0, got {temperature!r}")
    return model, float(temperature)


def _pointrend(path: Path, config: TeacherConfig) -> tuple[Backend, float]:
    model, temperature = load_model(path)
    model.config = adapted(path, model.config, config)
    sha256 = sha256_file(path)
    backend = PointRendBackend(
        model,
        sha256,
        device=config.device,
        precision=_PRECISIONS[config.precision],
        person_score=config.person_score,
        compiled=config.compile,
    )
    return backend, temperature


def _check_persons(path: Path, model: Any, config: TeacherConfig) -> None:
    """Which class is a person, a foreign model of another data set does not say."""
    ours = path.suffix == ".safetensors" and checkpoint.read_metadata(path) is not None
    if not ours and not config.person_classes and model.num_classes not in _KNOWN[model.architecture]:
        raise ValueError(
            f"the model knows {model.num_classes} classes, and not which of them are persons; "
            "set teacher.person_classes"
        )
    if config.riders and person_classes(model.architecture, model.num_classes, riders=True)[1:] == ():
        raise ValueError("teacher.riders is for models of Cityscapes, this one knows no riders; remove it")


def _refuse_unused(config: TeacherConfig, backend: str, names: Sequence[str]) -> None:
    default = TeacherConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            raise ValueError(f"teacher.{name} is not for the backend {backend}; remove it")


def _onnx(path: Path, config: TeacherConfig) -> tuple[Backend, float]:
    _refuse_unused(config, "onnx", ("precision", "compile", "min_size", "riders", "person_classes"))
    backend = load_onnx(path, config.onnx, device=config.device)
    if config.scales != (1.0,) and not backend.resizable:
        raise ValueError(f"teacher.scales must be (1.0,) for a model of a fixed input size, got {config.scales}")
    return backend, 1.0


def _detectron2(path: Path, config: TeacherConfig) -> tuple[Backend, float]:
    _refuse_unused(config, "detectron2", ("precision", "compile", "min_size", "person_classes"))
    backend = load_detectron2(
        path, config.detectron2, device=config.device, person_score=config.person_score, riders=config.riders
    )
    return backend, 1.0


TEACHERS: dict[str, Callable[[Path, TeacherConfig], tuple[Backend, float]]] = {
    "pointrend": _pointrend,
    "onnx": _onnx,
    "detectron2": _detectron2,
}
"""Name of a backend -> its loader, giving the backend and the temperature stored with its weights."""

_MODELS: dict[str, Callable[[Any], PointRend]] = {"semantic": SemanticPointRend, "instance": InstancePointRend}


def adapted(path: Path, config: Any, wanted: TeacherConfig) -> Any:
    """The model's config with other classes as persons and another input size, where these are wanted.

    Raises:
        ValueError: The file does not say which classes are persons, and neither does `wanted`; or no such class.
    """
    _check_persons(path, config, wanted)
    if wanted.person_classes:
        config = replace(config, person_classes=wanted.person_classes)
    if wanted.riders:
        more = person_classes(config.architecture, config.num_classes, riders=True)
        config = replace(config, person_classes=tuple(dict.fromkeys((*config.person_classes, *more))))
    if wanted.min_size:
        longest = round(config.max_size_test * wanted.min_size / config.min_size_test)
        if longest > MAX_SIDE:
            most = MAX_SIDE * config.min_size_test // config.max_size_test
            raise ValueError(f"teacher.min_size must be <= {most} for this checkpoint, got {wanted.min_size}")
        config = replace(config, min_size_test=wanted.min_size, max_size_test=max(longest, wanted.min_size))
    return config


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TeacherError(f"teacher.device {name!r} is no device; write cpu, cuda, cuda:1 or auto") from error
    kind = device.type
    if kind not in ("cpu", "cuda"):
        raise TeacherError(f"teacher.device must be cpu, cuda, cuda:1 or auto, got {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise TeacherError(f"teacher.device is {name!r}, but torch finds no GPU here; write cpu or auto")
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TeacherError(f"teacher.device is {name!r}, but torch finds {torch.cuda.device_count()} GPUs here")
    return name
