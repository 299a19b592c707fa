"""The student: an encoder with nearly all of the compute and a light decoder, one logit per pixel.

```
stride   2    4    8   16   32                               32 ─▶ 16 ─▶ 8 ─▶ 4 ─▶ 2 ─▶ logit ─▶ ×2
image ─▶ e0 ─▶ e1 ─▶ e2 ─▶ e3 ─▶ e4   decoder, at each ─▶:  1×1, bilinear ×2, concat e_i, 1×1, depthwise 3×3
```

Letters: B batch, C channels, H and W the input's sides (multiples of 32). The design follows FBNetV3
(Dai et al., CVPR 2021); every padding convolution replicates the border, unless told otherwise.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from students.encoder import Encoder, fbnet_stages, norms, out_channels, shortcuts, table_stages, unit
from students.fold import Triple, fold_yuv
from students.padding import Padding, conv, pad_with, smallest_side
from training.files import write_atomically

STRIDE = 32
CHANNEL_MULTIPLE = 4
FORMAT = "curate-student-1"
METADATA = "curate"
TABLE = ("channels", "depths", "expansions", "kernels")
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """The shape of a student; the defaults are "nano", 0.43 M parameters.

    Attributes:
        channels: Widths of the stem and the five stages at strides 2, 2, 4, 8, 16, 32.
        depths: Blocks of each of the five stages.
        expansions: Inner width of the blocks of each stage, as a multiple of the block's input.
        kernels: Depthwise kernel sides of each stage, odd.
        width: Multiple of all encoder widths (rounded to multiples of 4, or as timm does).
        decoder: Decoder widths at strides 16, 8, 4, 2.
        in_channels: 3 for RGB; 4 for Y, U, V and the previous mask.
        encoder: `table` for the four keys above, or a network of timm, which leaves them at their defaults.
        padding: What convolutions see outside of a map; `reflect` needs larger images.
    """

    channels: tuple[int, int, int, int, int, int] = (8, 8, 16, 24, 64, 92)
    depths: tuple[int, int, int, int, int] = (1, 2, 2, 4, 4)
    expansions: tuple[int, int, int, int, int] = (1, 4, 4, 4, 4)
    kernels: tuple[int, int, int, int, int] = (3, 3, 3, 5, 5)
    width: float = 1.0
    decoder: tuple[int, int, int, int] = (32, 24, 16, 8)
    in_channels: int = 3
    encoder: Encoder = "table"
    padding: Padding = "replicate"

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
        if type(self.in_channels) is not int or self.in_channels not in (3, 4):
            raise ValueError(f"student.in_channels must be 3 (RGB) or 4 (YUV and mask), got {self.in_channels}")
        self._check_words()

    def _check_words(self) -> None:
        for name, kind in (("encoder", Encoder), ("padding", Padding)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"student.{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        if self.encoder != "table":
            for name in TABLE:
                if getattr(self, name) != _DEFAULTS[name]:
                    raise ValueError(f"student.{name} must be left out with encoder {self.encoder}, which has its own")

    @property
    def normalisation(self) -> tuple[Triple, Triple]:
        """Mean and deviation per channel of the RGB network: ImageNet's where weights of timm may be loaded."""
        return CENTRED if self.encoder == "table" else IMAGENET

    def scaled(self) -> tuple[int, ...]:
        """Widths of a table's stem and stages after ``width``, multiples of 4."""
        step = CHANNEL_MULTIPLE
        return tuple(max(step, math.floor(c * self.width / step + 0.5) * step) for c in self.channels)


_DEFAULTS = {field.name: field.default for field in fields(StudentConfig)}


def config_to_json(config: StudentConfig) -> str:
    """Canonical JSON of a student's shape, as stored with its weights.

    What says nothing is left out: ``encoder`` and ``padding`` where they are the default (files from before they
    existed stay valid), and the table of an encoder that has its own.
    """
    needless = {name for name in ("encoder", "padding") if getattr(config, name) == _DEFAULTS[name]}
    needless |= set(TABLE) if config.encoder != "table" else set()
    values = {name: value for name, value in asdict(config).items() if name not in needless}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def config_from_json(text: str) -> StudentConfig:
    """Inverse of ``config_to_json``.

    Raises:
        ValueError: If the text is no object with exactly the keys that ``config_to_json`` writes.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("a student's config must be a flat JSON object") from error
    optional = {"encoder", "padding"}
    own_table = isinstance(values, dict) and values.get("encoder", "table") != "table"
    needed = set(_DEFAULTS) - optional - (set(TABLE) if own_table else set())
    if not isinstance(values, dict) or not needed <= set(values) <= needed | optional:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"a student's config must have the keys {sorted(needed)}, got {found}")
    arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return StudentConfig(**arguments)
    except TypeError as error:
        raise ValueError(f"a student's config has a value of the wrong type: {error}") from error


class Rise(nn.Module):
    """One decoder step: to twice the resolution, joined with the encoder's map of that resolution."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.reduce = unit(inputs, width, 1)
        self.join = unit(width + skip, width, 1)
        self.smooth = unit(width, width, 3, depthwise=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, skip, 2H, 2W) to (B, width, 2H, 2W)."""
        x = functional.interpolate(self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        y: Tensor = self.smooth(self.join(torch.cat((x, skip), dim=1)))
        return y


class Student(nn.Module):
    """Images (B, C, H, W) float to logits (B, 1, H, W); H and W are multiples of 32.

    With 3 channels they are RGB in [0, 1]; with 4 what ``students.fold.join_mask`` gives.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        width, stages = _encoder(config)
        self.stem = unit(config.in_channels, width, 3, stride=2)
        self.stages = nn.ModuleList(stages)
        skips = [out_channels(stage) for stage in stages]
        below = (skips[4], *config.decoder[:3])
        self.rises = nn.ModuleList(Rise(below[i], skips[3 - i], config.decoder[i]) for i in range(4))
        self.head = conv(config.decoder[3], 1, 1, bias=True)
        pad_with(self, config.padding)
        self.smallest = self._smallest()

    def _smallest(self) -> int:
        """The least image side, a multiple of 32."""
        if self.config.padding != "reflect":
            return STRIDE
        parts: list[tuple[int, nn.Module]] = [(1, self.stem)]
        parts += [(max(2, 2**i), stage) for i, stage in enumerate(self.stages)]
        parts += [(2 ** (4 - i), rise.smooth) for i, rise in enumerate(self.rises)]  # type: ignore[misc]
        return math.ceil(smallest_side(parts) / STRIDE) * STRIDE

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encoder maps at strides 2, 4, 8, 16, 32.

        Raises:
            ValueError: If the images are not (B, in_channels, H, W) with sides that are multiples of 32, and large
                enough to be reflected where the padding is "reflect".
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"images must have shape (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE or 0 in images.shape:
            raise ValueError(
                f"image sides must be multiples of {STRIDE} above 0, got {tuple(images.shape[2:])}; pad them"
            )
        if images.shape[2] < self.smallest or images.shape[3] < self.smallest:
            rule = f"image sides must be >= {self.smallest} to be padded by reflection"
            raise ValueError(f"{rule}, got {tuple(images.shape[2:])}; use larger images or padding = replicate")
        x = self.stem(self._normalised(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def _normalised(self, images: Tensor) -> Tensor:
        if self.config.in_channels == 4:
            return images  # the stem's weights hold the normalisation
        mean, deviation = self.config.normalisation
        return (images - _constant(mean, images)) / _constant(deviation, images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of the images (B, C, H, W); errors as ``encode``."""
        maps = self.encode(images)
        x = maps[4]
        for i, rise in enumerate(self.rises):
            x = rise(x, maps[3 - i])
        return functional.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def _constant(values: Triple, like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def _encoder(config: StudentConfig) -> tuple[int, list[nn.Sequential]]:
    """Width of the stem, and the five stages."""
    if config.encoder != "table":
        return fbnet_stages(config.encoder, config.width)
    widths = config.scaled()
    return widths[0], table_stages(widths, config.depths, config.expansions, config.kernels)


def outline(config: StudentConfig) -> Student:
    """A student without memory; the meta device keeps constructors away from the global random state."""
    with torch.device("meta"):
        return Student(config)


def build_student(config: StudentConfig, seed: int) -> Student:
    """A student with fresh weights, a function of (config, seed); the global random state is not touched.

    Convolutions: normal with variance 2 / fan-out per group (He et al., 2015); the last normalisation of a
    shortcut block starts at 0, so the block starts as the identity (Goyal et al., 2017). With 4 channels it is the
    RGB student of that seed, folded: it says the same of an image without a mask.
    """
    if config.in_channels == 4:
        rgb = build_student(replace(config, in_channels=3), seed)
        folded = outline(config)
        folded.load_state_dict(fold_yuv(rgb.state_dict(), config.normalisation), assign=True)
        return folded
    student = outline(config).to_empty(device="cpu")
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
        for block in shortcuts(student):
            norms(block)[-1].weight.zero_()
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
    write_atomically(path, save(tensors, metadata={METADATA: header}))


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
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no student: its metadata {METADATA!r} is no JSON") from error
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
    student = outline(config_from_json(read_metadata(path)["student"]))
    expected = student.state_dict()
    with safe_open(path, framework="pt") as handle:
        found = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    problems = mismatches(expected, found)
    if problems:
        raise ValueError(f"{path} does not fit its own config: " + "; ".join(problems))
    student.load_state_dict(found, assign=True)
    return student.eval()


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps the found tensors from being the expected ones, one line per kind with its first keys."""
    shared = sorted(set(expected) & set(found))
    kinds = {
        "missing": sorted(set(expected) - set(found)),
        "surplus": sorted(set(found) - set(expected)),
        "mis-shaped": [key for key in shared if expected[key].shape != found[key].shape],
        "wrong dtype": [key for key in shared if expected[key].dtype != found[key].dtype],
        "non-finite": [key for key in shared if not bool(torch.isfinite(found[key]).all())],
    }
    return [f"{kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]


def _listed(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
