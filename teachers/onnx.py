"""The ONNX backend: any network that maps an image to a person map, run by ONNX Runtime.

Letters: H, W rows and columns of an image; A, B those of the network's input; C channels of its output.

    image (H, W, 3) -> fit -> (A, B, 3) -> (x - mean) / std -> network -> person channel(s) -> fit back -> (H, W)

The file is untrusted: it is parsed from bytes that are read once, and may name no other file and no operator beyond
ONNX's own. What the settings declare is checked against the model by one run when it is loaded.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from teachers.backbone import MAX_SIDE
from teachers.checkpoint import MAX_BYTES, CheckpointError
from teachers.teacher import Soft, TeacherError
from training.onnx_files import elsewhere, read_onnx

Output = Literal["probability", "logit", "probabilities", "logits"]
Layout = Literal["NCHW", "NHWC"]

_MOST_BYTES = min(MAX_BYTES, 2**31 - 1)  # the format's own limit; larger models keep weights in other files
_STRIDE = 32
_SLACK = 1e-3
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_INPUTS: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_OTHER: dict[str, str] = {
    "probability": "logit", "logit": "probability", "probabilities": "logits", "logits": "probabilities"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxConfig:
    """What a model expects and gives; an ONNX file does not say.

    Attributes:
        height: Rows of the network's input; 0 takes the model's own, which must be fixed then.
        width: Columns, likewise.
        channels: Order of colours.
        layout: Order of the input's axes.
        output_layout: Order of the output's axes; "same" is that of the input.
        mean: Subtracted from each channel, in the order of `channels`, in 0..255.
        std: What the difference is divided by: 255 gives 0..1.
        fit: "stretch" the whole image to the input's size, or "letterbox": keep its aspect and pad with the mean.
        output: "probability" or "logit" of a person (one channel); or, over the channels of several classes,
            "probabilities" or "logits" (a softmax is taken).
        output_name: Which output; empty where the model has only one.
        person: Channels whose probabilities add up to that of a person, where the output has several.
    """

    height: int = 0
    width: int = 0
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Layout = "NCHW"
    output_layout: Literal["same", "NCHW", "NHWC"] = "same"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    fit: Literal["stretch", "letterbox"] = "stretch"
    output: Output = "probability"
    output_name: str = ""
    person: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        """Check every value that needs no model."""
        for name in ("height", "width"):
            if not 0 <= getattr(self, name) <= MAX_SIDE:
                raise ValueError(f"teacher.onnx.{name} must be in 0..{MAX_SIDE}, got {getattr(self, name)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != 3 or not all(map(math.isfinite, value)) or (name == "std" and min(value) <= 0):
                rule = "three finite values" + (" > 0" if name == "std" else "")
                raise ValueError(f"teacher.onnx.{name} must be {rule}, got {value}")
        if not self.person or min(self.person) < 0 or len(set(self.person)) != len(self.person):
            raise ValueError(f"teacher.onnx.person must be distinct channels >= 0, got {self.person}")
        self._check_choices()

    def _check_choices(self) -> None:
        choices = {
            "channels": ("RGB", "BGR"),
            "layout": get_args(Layout),
            "output_layout": ("same", *get_args(Layout)),
            "fit": ("stretch", "letterbox"),
            "output": get_args(Output),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"teacher.onnx.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


def load_onnx(path: Path, config: OnnxConfig, device: str = "cpu") -> "OnnxBackend":
    """A backend from an `.onnx` file.

    Args:
        path: The file; it must hold its weights itself.
        config: What the model expects and gives.
        device: "cpu", or "cuda" or "cuda:1" with a build of ONNX Runtime that has CUDA.

    Raises:
        CheckpointError: The file is absent, broken, too large or foreign, or names other files or operators.
        TeacherError: The model is not what the config declares, or the device is not to be had.
    """
    data = _read(path)
    _check_model(path, data)
    providers = _providers(device)
    try:
        session = onnxruntime.InferenceSession(data, _options(), providers=providers, enable_fallback=0)
    except Exception as error:  # the runtime raises many kinds, all of its own
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {_first(error)}") from error
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise TeacherError(f"teacher.device is {device!r}, but ONNX Runtime cannot start CUDA there; write cpu")
    try:
        return OnnxBackend(session, config, hashlib.sha256(data).hexdigest())
    except TeacherError as error:
        raise TeacherError(f"{path}: {error}") from error


class OnnxBackend:
    """An ONNX model behind the `teachers.teacher.Backend` protocol.

    Args:
        session: The model, loaded.
        config: What it expects and gives.
        sha256: Digest of its file.

    Raises:
        TeacherError: The model is not what the config declares.
    """

    def __init__(self, session: Any, config: OnnxConfig, sha256: str) -> None:
        self.session = session
        self.config = config
        self.sha256 = sha256
        self.id = f"onnx-{sha256[:12]}"
        self.input, self.size, self.resizable = _input(session, config)
        self.type = _type(session, config)
        self.output = _output(session, config.output_name)
        _check_output(self._run(np.zeros((*self.size, 3), np.uint8)), self.size, config)
        if config.output == "logit":
            _check_logits(self._run(_noise(self.size)), config)

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:
        """See `teachers.teacher.Backend`; images go through one by one, so that no answer depends on a batch.

        A scaled size stays a multiple of 32, or of the largest divisor that 32 and the unscaled size share.

        Raises:
            ValueError: A scale other than 1 with a model whose input size is fixed.
            TeacherError: The network fails, or gives what is no probability although it was declared as one.
        """
        size = self._scaled(scale)
        return [self._soft(index, image, size) for index, image in enumerate(images)]

    def _scaled(self, scale: float) -> tuple[int, int]:
        if scale == 1.0:
            return self.size
        if not self.resizable:
            size = " x ".join(map(str, self.size))
            raise ValueError(f"teacher.scales must be (1.0,): the input of {self.id} is fixed at {size}, got {scale}")
        height, width = (_multiple(side * scale, math.gcd(side, _STRIDE)) for side in self.size)
        return height, width

    def _soft(self, index: int, image: NDArray[np.uint8], size: tuple[int, int]) -> Soft:
        fitted, (top, left, height, width) = _fit(image, size, self.config)
        try:
            raw = self._run(fitted, inside=(top, left, height, width))
            inner = _probability(raw, self.config)
        except TeacherError as error:
            raise TeacherError(f"image {index}: {error}") from error
        if self.config.fit == "letterbox":
            inner = _resize(inner, size)[top : top + height, left : left + width]
        outer = _resize(np.ascontiguousarray(inner), image.shape[:2])
        return Soft(probability=np.clip(outer, 0.0, 1.0))

    def _run(self, fitted: NDArray[np.uint8], inside: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """The raw output (C, a, b) float32 for (A, B, 3) uint8 RGB, of which only `inside` is image."""
        values = _normalise(fitted, inside or (0, 0, *fitted.shape[:2]), self.config).astype(self.type)
        values = values if self.config.layout == "NHWC" else values.transpose(2, 0, 1)
        try:
            raw = self.session.run([self.output], {self.input: np.ascontiguousarray(values)[None]})[0]
        except Exception as error:
            size = " x ".join(map(str, fitted.shape[:2]))
            raise TeacherError(f"the network of {self.id} fails on an input of {size}: {_first(error)}") from error
        return _planes(raw, self.config)


# --- The file ----------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise CheckpointError(f"{path}: holds {size} bytes, more than the {_MOST_BYTES} allowed")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _check_model(path: Path, data: bytes) -> None:
    """Refuse what is no ONNX model, and one that names files, operators or code outside of itself."""
    try:
        model, parts = read_onnx(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path}: not a readable ONNX file: it holds no network")
    if found := elsewhere(parts):
        raise CheckpointError(f"{path}: keeps {found}, which is refused: save the model with its weights inside")
    functions = {(f.domain, f.name) for f in model.functions}
    for part in parts:
        if isinstance(part, onnx.NodeProto) and not _known(part, functions):
            raise CheckpointError(
                f"{path}: needs the operator {part.domain}::{part.op_type}, which is not ONNX's own: export the model "
                "with standard operators only"
            )


def _known(node: onnx.NodeProto, functions: set[tuple[str, str]]) -> bool:
    return node.domain in _STANDARD or (node.domain, node.op_type) in functions


def _options() -> Any:
    """One image, one order of work: the number of threads is torch's, so that it is set in one place."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind != "cuda" or not (number or "0").isdecimal():
        raise TeacherError(f"teacher.device must be cpu, cuda or cuda:1 with an ONNX model, got {device!r}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise TeacherError(
            f"teacher.device is {device!r}, but this ONNX Runtime has no CUDA: install onnxruntime-gpu, or write cpu"
        )
    # By default the algorithm is chosen by timing and products are rounded to TF32: answers would differ by run.
    settings = {"device_id": int(number or 0), "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    return [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


# --- What the model declares -------------------------------------------------------------------------------------


def _input(session: Any, config: OnnxConfig) -> tuple[str, tuple[int, int], bool]:
    """Name and (A, B) of the input, and whether both sides may change."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(repr(i.name) for i in inputs)
        raise TeacherError(f"the model must have one input, an image, but it has {len(inputs)}: {names}")
    name, shape = inputs[0].name, [n if isinstance(n, int) and n > 0 else None for n in inputs[0].shape]
    batch, *axes = shape if len(shape) == 4 else (0, None, None, None)
    (rows, columns, colours) = axes if config.layout == "NHWC" else (axes[1], axes[2], axes[0])
    if batch not in (1, None) or colours not in (3, None):
        wanted = "(1, 3, height, width)" if config.layout == "NCHW" else "(1, height, width, 3)"
        other = "NHWC" if config.layout == "NCHW" else "NCHW"
        hint = f"; teacher.onnx.layout may have to be {other!r}" if colours != 3 and 3 in axes else ""
        raise TeacherError(f"the model's input {name!r} must be {wanted}, it is {tuple(inputs[0].shape)}{hint}")
    size = _side("height", rows, config.height), _side("width", columns, config.width)
    return name, size, rows is None and columns is None


def _side(name: str, fixed: int | None, wanted: int) -> int:
    if fixed is None and not wanted:
        raise TeacherError(f"teacher.onnx.{name} must be given: the model takes inputs of any {name}")
    if fixed is not None and wanted not in (0, fixed):
        raise TeacherError(f"teacher.onnx.{name} must be 0 or {fixed}, which the model fixes, got {wanted}")
    side = fixed or wanted
    if side > MAX_SIDE:
        raise TeacherError(f"the model's input has a {name} of {side}, more than the {MAX_SIDE} allowed")
    return side


def _type(session: Any, config: OnnxConfig) -> type[np.generic]:
    found = session.get_inputs()[0].type
    if found not in _INPUTS:
        raise TeacherError(f"the model's input must hold float32, float16 or uint8, it is {found}")
    kind = _INPUTS[found]
    if kind is np.uint8 and (config.mean != (0.0, 0.0, 0.0) or config.std != (1.0, 1.0, 1.0)):
        raise TeacherError(
            "the model takes uint8 and normalises by itself: teacher.onnx.mean must be (0, 0, 0) and std (1, 1, 1), "
            f"got {config.mean} and {config.std}"
        )
    return kind


def _output(session: Any, name: str) -> str:
    names = [o.name for o in session.get_outputs()]
    if name and name not in names:
        raise TeacherError(f"teacher.onnx.output_name must be one of {', '.join(names)}, got {name!r}")
    if not name and len(names) > 1:
        raise TeacherError(f"teacher.onnx.output_name must be given, the model has several: {', '.join(names)}")
    return name or str(names[0])


def _planes(raw: Any, config: OnnxConfig) -> NDArray[np.float32]:
    """(1, C, a, b), (1, a, b, C) or, with one channel, (1, a, b) of any float -> (C, a, b) float32."""
    several = config.output in ("probabilities", "logits")
    if not isinstance(raw, np.ndarray) or raw.dtype.kind != "f":
        raise TeacherError(f"the output must be a tensor of floats, it is {getattr(raw, 'dtype', type(raw).__name__)}")
    if raw.ndim == 3 and not several:
        raw = raw[:, None] if _output_layout(config) == "NCHW" else raw[..., None]
    if raw.ndim != 4 or len(raw) != 1 or raw.size == 0:
        raise TeacherError(f"the output must be a map of one image with 4 axes, it has shape {raw.shape}")
    planes = raw[0] if _output_layout(config) == "NCHW" else raw[0].transpose(2, 0, 1)
    return np.ascontiguousarray(planes, np.float32)


def _output_layout(config: OnnxConfig) -> str:
    return config.layout if config.output_layout == "same" else config.output_layout


def _check_output(planes: NDArray[np.float32], size: tuple[int, int], config: OnnxConfig) -> None:
    """Compare the answer (C, a, b) for a black image with what is declared."""
    count, rows, columns = planes.shape
    several = config.output in ("probabilities", "logits")
    if not 0.5 <= (rows / size[0]) / (columns / size[1]) <= 2:
        raise TeacherError(
            f"for an input of {size[0]} x {size[1]} the output has {count} channels of {rows} x {columns}: "
            f"teacher.onnx.output_layout, {_output_layout(config)} now, looks wrong"
        )
    if not several and count != 1:
        raise TeacherError(
            f"the output has {count} channels where teacher.onnx.output = {config.output!r} means one; "
            "try 'probabilities' or 'logits'"
        )
    if several and (count == 1 or max(config.person) >= count):
        hint = "try 'probability' or 'logit'" if count == 1 else f"teacher.onnx.person must be below {count}"
        raise TeacherError(f"the output has {count} channel(s), teacher.onnx.person is {config.person}; {hint}")
    if not np.isfinite(_probability(planes, config)).all():
        raise TeacherError(_looks_wrong(config, "values for a black image that are not finite"))
    if config.output == "logits" and _shares(planes):
        raise TeacherError(_looks_wrong(config, "channels that add up to 1 already"))


def _check_logits(planes: NDArray[np.float32], config: OnnxConfig) -> None:
    """Logits of noise leave [0, 1], or do not vary: probabilities would become masks that are all person."""
    if planes.min() >= 0 and planes.max() <= 1 and planes.min() < planes.max():
        raise TeacherError(_looks_wrong(config, "values for noise that all lie in [0, 1]"))


def _noise(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def _shares(planes: NDArray[np.float32]) -> bool:
    return bool(planes.min() >= -_SLACK and np.abs(planes.sum(axis=0) - 1).max() <= _SLACK)


def _looks_wrong(config: OnnxConfig, found: str) -> str:
    return (
        f"the network gave {found}, so teacher.onnx.output = {config.output!r} looks wrong; "
        f"try {_OTHER[config.output]!r}"
    )


# --- From an image to the network and back -----------------------------------------------------------------------


def _fit(
    image: NDArray[np.uint8], size: tuple[int, int], config: OnnxConfig
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """(H, W, 3) uint8 -> (A, B, 3) uint8, and where the image lies in it: top, left, height, width."""
    if config.fit == "stretch":
        return _resize(image, size), (0, 0, *size)
    ratio = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (min(b, max(1, round(a * ratio))) for a, b in zip(image.shape[:2], size, strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    fitted = np.zeros((*size, 3), np.uint8)
    fitted[top : top + height, left : left + width] = _resize(image, (height, width))
    return fitted, (top, left, height, width)


def _normalise(fitted: NDArray[np.uint8], inside: tuple[int, int, int, int], config: OnnxConfig) -> NDArray[np.float32]:
    """(x - mean) / std inside, 0 (which is the mean colour) around it."""
    top, left, height, width = inside
    where = np.s_[top : top + height, left : left + width]
    pixels = fitted[where] if config.channels == "RGB" else fitted[where][:, :, ::-1]
    out = np.zeros(fitted.shape, np.float32)
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    out[where] = (pixels.astype(np.float32) - mean) / std
    return out


def _probability(planes: NDArray[np.float32], config: OnnxConfig) -> NDArray[np.float32]:
    """(C, a, b) as declared -> (a, b) float32 in [0, 1], or not finite where the network's values are not."""
    if config.output == "logit":
        return np.asarray(expit(planes[0]), np.float32)
    shares = softmax(planes, axis=0) if config.output == "logits" else planes
    person = shares[0] if config.output == "probability" else shares[list(config.person)].sum(axis=0)
    low, high = min(planes.min(), person.min()), max(planes.max(), person.max())
    if config.output != "logits" and (low < -_SLACK or high > 1 + _SLACK):
        raise TeacherError(_looks_wrong(config, f"values in [{low:.4g}, {high:.4g}]"))
    return np.asarray(np.clip(person, 0.0, 1.0), np.float32)


def _resize(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) or (H, W, 3) to `size`, bilinear without anti-aliasing, as portrait networks are trained and measured."""
    if values.shape[:2] == size:
        return values
    height, width = size
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)


def _multiple(side: float, divisor: int) -> int:
    return min(MAX_SIDE, max(divisor, round(side / divisor) * divisor))
