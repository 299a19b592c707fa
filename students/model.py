"""The student: a small encoder of inverted residuals and a light decoder, one logit per pixel.

```
stride   2    4    8   16   32                               32 ─▶ 16 ─▶ 8 ─▶ 4 ─▶ 2 ─▶ logit ─▶ ×2
image ─▶ e0 ─▶ e1 ─▶ e2 ─▶ e3 ─▶ e4   decoder, at each ─▶:  1×1, bilinear ×2, concat e_i, 1×1, depthwise 3×3
```

Letters: B batch, C channels, H and W the input's sides (multiples of 32). The design follows FBNetV3
(Dai et al., CVPR 2021) without squeeze-and-excitation; every padding convolution replicates the border.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from students.padding import conv

STRIDE = 32
CHANNEL_MULTIPLE = 4
FORMAT = "curate-student-1"
METADATA = "curate"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """The shape of a student; the defaults are "nano", 0.43 M parameters.

    Attributes:
        channels: Widths of the stem and the five stages at strides 2, 2, 4, 8, 16, 32.
        depths: Blocks of each of the five stages.
        expansions: Inner width of the blocks of each stage, as a multiple of the block's input.
        kernels: Depthwise kernel sides of each stage, odd.
        width: Multiple of all encoder widths (rounded to multiples of 4).
        decoder: Decoder widths at strides 16, 8, 4, 2.
        in_channels: 3 for RGB, 4 with a previous mask.
    """

    channels: tuple[int, int, int, int, int, int] = (8, 8, 16, 24, 64, 92)
    depths: tuple[int, int, int, int, int] = (1, 2, 2, 4, 4)
    expansions: tuple[int, int, int, int, int] = (1, 4, 4, 4, 4)
    kernels: tuple[int, int, int, int, int] = (3, 3, 3, 5, 5)
    width: float = 1.0
    decoder: tuple[int, int, int, int] = (32, 24, 16, 8)
    in_channels: int = 3

    def __post_init__(self) -> None:
        limits = {
            "channels": (6, 4096),
            "depths": (5, 64),
            "expansions": (5, 16),
            "kernels": (5, 31),
            "decoder": (4, 4096),
        }
        for name, (length, most) in limits.items():
            values = getattr(self, name)
            if len(values) != length or any(not isinstance(v, int) or not 1 <= v <= most for v in values):
                raise ValueError(f"student.{name} must be {length} integers in [1, {most}], got {values}")
        if not 0.1 <= self.width <= 8:
            raise ValueError(f"student.width must be in [0.1, 8], got {self.width}")
        if not 1 <= self.in_channels <= 64:
            raise ValueError(f"student.in_channels must be in [1, 64], got {self.in_channels}")

    def scaled(self) -> tuple[int, ...]:
        """Encoder widths after ``width``, multiples of 4."""
        step = CHANNEL_MULTIPLE
        return tuple(max(step, math.floor(c * self.width / step + 0.5) * step) for c in self.channels)


def config_to_json(config: StudentConfig) -> str:
    """Canonical JSON of a student's shape, as stored with its weights."""
    return json.dumps(asdict(config), sort_keys=True, separators=(",", ":"))


def config_from_json(text: str) -> StudentConfig:
    """Inverse of ``config_to_json``.

    Raises:
        ValueError: If the text is no object with exactly the fields of ``StudentConfig``.
    """
    values = json.loads(text)
    names = {field.name for field in fields(StudentConfig)}
    if not isinstance(values, dict) or set(values) != names:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"a student's config must have the keys {sorted(names)}, got {found}")
    arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return StudentConfig(**arguments)


def _unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, depthwise: bool = False) -> nn.Sequential:
    groups = inputs if depthwise else 1
    return nn.Sequential(
        conv(inputs, outputs, kernel, stride=stride, groups=groups), nn.BatchNorm2d(outputs), nn.Hardswish()
    )


class InvertedResidual(nn.Module):
    """1×1 expand, depthwise k×k, 1×1 project; a shortcut where shape allows (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [_unit(inputs, inner, 1)] if expansion > 1 else []
        layers += [_unit(inner, inner, kernel, stride=stride, depthwise=True)]
        layers += [nn.Sequential(conv(inner, outputs, 1), nn.BatchNorm2d(outputs))]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class Rise(nn.Module):
    """One decoder step: to twice the resolution, joined with the encoder's map of that resolution."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.reduce = _unit(inputs, width, 1)
        self.join = _unit(width + skip, width, 1)
        self.smooth = _unit(width, width, 3, depthwise=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, skip, 2H, 2W) to (B, width, 2H, 2W)."""
        x = functional.interpolate(self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        y: Tensor = self.smooth(self.join(torch.cat((x, skip), dim=1)))
        return y


class Student(nn.Module):
    """Images (B, C, H, W) float in [0, 1] to logits (B, 1, H, W); H and W are multiples of 32."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.scaled()
        self.stem = _unit(config.in_channels, widths[0], 3, stride=2)
        self.stages = nn.ModuleList(
            _stage(config, i, widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(5)
        )
        below = (widths[5], *config.decoder[:3])
        self.rises = nn.ModuleList(Rise(below[i], widths[4 - i], config.decoder[i]) for i in range(4))
        self.head = conv(config.decoder[3], 1, 1, bias=True)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder maps at strides 2, 4, 8, 16, 32.

        Raises:
            ValueError: If the images are not (B, in_channels, H, W) with sides that are multiples of 32.
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"images must have shape (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE or 0 in images.shape:
            raise ValueError(
                f"image sides must be multiples of {STRIDE} above 0, got {tuple(images.shape[2:])}; pad them"
            )
        x = self.stem((images - 0.5) * 4.0)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of the images (B, C, H, W); errors as ``encode``."""
        maps = self.encode(images)
        x = maps[4]
        for i, rise in enumerate(self.rises):
            x = rise(x, maps[3 - i])
        return functional.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def _stage(config: StudentConfig, index: int, inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    blocks = [
        InvertedResidual(
            inputs if block == 0 else outputs,
            outputs,
            kernel=config.kernels[index],
            stride=stride if block == 0 else 1,
            expansion=config.expansions[index],
        )
        for block in range(config.depths[index])
    ]
    return nn.Sequential(*blocks)


def _shape_of(config: StudentConfig) -> Student:
    """A student without memory; the meta device keeps constructors away from the global random state."""
    with torch.device("meta"):
        return Student(config)


def build_student(config: StudentConfig, seed: int) -> Student:
    """A student with fresh weights, a function of (config, seed); the global random state is not touched.

    Convolutions: normal with variance 2 / fan-out per group (He et al., 2015); the last normalisation of a
    shortcut block starts at 0, so the block starts as the identity (Goyal et al., 2017).
    """
    student = _shape_of(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for module in student.modules():
            if isinstance(module, InvertedResidual) and module.shortcut:
                module.body[-1][1].weight.zero_()  # type: ignore[index, union-attr, operator]
        student.head.weight.mul_(0.1)
    return student


def save_student(path: Path, model: nn.Module, config: StudentConfig, metadata: Mapping[str, str]) -> None:
    """Write weights, shape and metadata as safetensors; atomic, and equal inputs give equal bytes.

    All metadata stands in one JSON value, because safetensors writes several in no certain order.

    Raises:
        ValueError: If the metadata uses the reserved keys "format" or "student".
    """
    if reserved := {"format", "student"} & set(metadata):
        raise ValueError(f"metadata must not use the reserved keys {sorted(reserved)}")
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    header = json.dumps({**metadata, "format": FORMAT, "student": config_to_json(config)}, sort_keys=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={METADATA: header})
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a student file, its "format" and "student" (JSON of the shape) included.

    Raises:
        ValueError: If the file is not safetensors or not a student.
        FileNotFoundError: If it does not exist.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            text: str = (handle.metadata() or {}).get(METADATA, "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or "student" not in metadata:
        raise ValueError(
            f"{path} is no student: its metadata {METADATA!r} must state format {FORMAT!r}, got {text[:80]}"
        )
    return {str(key): str(value) for key, value in metadata.items()}


def load_student(path: Path) -> Student:
    """The student of a file written by ``save_student``, in evaluation mode.

    Raises:
        ValueError: If the file is no student, or its tensors are missing, surplus, mis-shaped, of another dtype
            or not finite; the message names the keys.
        FileNotFoundError: If it does not exist.
    """
    student = _shape_of(config_from_json(read_metadata(path)["student"]))
    expected = student.state_dict()
    with safe_open(path, framework="pt") as handle:
        found = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    problems = _problems(expected, found)
    if problems:
        raise ValueError(f"{path} does not fit its own config: " + "; ".join(problems))
    student.load_state_dict(found, assign=True)
    return student.eval()


def _problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps the found tensors from being the expected ones, one line per kind with its keys."""
    shared = sorted(set(expected) & set(found))
    kinds = {
        "missing": sorted(set(expected) - set(found)),
        "surplus": sorted(set(found) - set(expected)),
        "mis-shaped": [key for key in shared if expected[key].shape != found[key].shape],
        "wrong dtype": [key for key in shared if expected[key].dtype != found[key].dtype],
        "non-finite": [key for key in shared if not bool(torch.isfinite(found[key]).all())],
    }
    return [f"{kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys]
