"""Students as they are shipped, each run by its own runtime behind one call.

| file | runtime | sizes |
|---|---|---|
| ``.safetensors`` | PyTorch, normalisations folded | multiples of 32 |
| ``.onnx`` | ONNX Runtime | multiples of 32, from 64 on |
| ``.pte`` | ExecuTorch, XNNPACK | those of its methods |
| ``.pt2`` | PyTorch, ``torch.export`` | multiples of 32, from 64 on |
| ``.ptl`` | PyTorch, Lite interpreter | multiples of 32 |

A file says itself at which side and with how many channels it is run (``students.card``). The first three hold data;
what PyTorch loads of the last two can run code, so they are opened only where the caller vouches for them.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor

from students.card import Card, checkpoint_card, read_card
from students.data import Fit
from students.export_executorch import Program
from students.export_onnx import INPUT
from students.export_torch import load_lite, load_pt2, read_torch_card
from students.fuse import fuse
from students.model import STRIDE, load_student, read_metadata
from training.files import sha256_file
from training.onnx_files import elsewhere, read_onnx


class Network(Protocol):
    """A student that can be run."""

    id: str
    sha256: str
    in_channels: int
    side: int
    fit: Fit

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (1, 1, H, W) float32 of images (1, C, H, W) float32, as ``students.model.Student`` takes them."""


Run = Callable[[Tensor], Tensor]
Opened = tuple[Card, Run, str]


class ShippedStudent:
    """A student of a file; see ``open_network``.

    Attributes:
        id: A short name, for records.
        sha256: Digest of the file.
        in_channels: 3 or 4.
        side: Images are seen at about side² pixels.
        fit: In which sizes.
        card: What the file says of itself.
    """

    def __init__(self, card: Card, run: Run, name: str, sha256: str) -> None:
        self.card = card
        self.side, self.fit = card.side, card.fit
        self.in_channels = card.config.in_channels
        self.sha256 = sha256
        self.id = f"{name}-{sha256[:12]}"
        self._run = run

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (1, 1, H, W) float32.

        Args:
            images: (1, C, H, W) float32; H and W are multiples of 32, or one of the sizes that the file has.

        Raises:
            ValueError: If the images are of another shape or type, or the runtime fails on them.
        """
        height, width = images.shape[-2:]
        fits = images.shape == (1, self.in_channels, height, width) and images.dtype == torch.float32
        if not fits or height % STRIDE or width % STRIDE or not height * width:
            rule = f"(1, {self.in_channels}, H, W) float32 with sides that are multiples of {STRIDE}"
            raise ValueError(f"{self.id}: images must be {rule}, got {tuple(images.shape)} {images.dtype}")
        logits = self._run(images)
        if logits.shape != (1, 1, height, width) or logits.dtype != torch.float32:
            wanted, found = (1, 1, height, width), f"{tuple(logits.shape)} {logits.dtype}"
            raise ValueError(f"{self.id}: the file must give logits {wanted} float32, got {found}; export it again")
        return logits


def open_network(path: Path, threads: int = 1, *, trusted: bool = False) -> ShippedStudent:
    """The student of a file.

    Args:
        path: A checkpoint of ``students.model``, or what was exported of one; its suffix says which.
        threads: How many the runtime may use; ExecuTorch has one pool for all that the process has opened.
        trusted: That ``.pt2`` and ``.ptl``, which can run code, come from the caller.

    Raises:
        ValueError: If the suffix is unknown, or the file is broken, foreign or not to be trusted.
        FileNotFoundError: If it does not exist.
    """
    if threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise ValueError(f"{path} must be one of {', '.join(_OPENERS)}; export the student again")
    if path.suffix in _CODE and not trusted:
        rule = f"a {path.suffix} can run code when PyTorch loads it, so it is not opened"
        raise ValueError(f"{path}: {rule}; use the .onnx or .safetensors of the same student")
    digest = sha256_file(path)
    try:
        card, run, name = opener(path, threads)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    return ShippedStudent(card, run, name, digest)


# ── PyTorch ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


def _open_safetensors(path: Path, threads: int) -> Opened:
    card = checkpoint_card(read_metadata(path))
    model = fuse(load_student(path)).requires_grad_(False)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), _torch_threads(threads):
            return torch.as_tensor(model(images))

    return card, run, "student"


# ── ONNX ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_onnx(path: Path, threads: int) -> Opened:
    data = path.read_bytes()
    _check_onnx(data)
    try:
        session = onnxruntime.InferenceSession(data, _onnx_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many kinds, all of its own
        raise ValueError(f"ONNX Runtime cannot load it: {_first(error)}") from error
    card = read_card(session.get_modelmeta().custom_metadata_map)
    channels = card.config.in_channels
    inputs = [(i.name, i.type, i.shape[:2]) for i in session.get_inputs()]
    if inputs != [(INPUT[channels], "tensor(float)", [1, channels])] or len(session.get_outputs()) != 1:
        raise ValueError(f"it must have one input, {INPUT[channels]!r} (1, {channels}, H, W) float32, got {inputs}")

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {INPUT[channels]: images.contiguous().numpy()})[0])
        except Exception as error:
            raise ValueError(f"ONNX Runtime fails on images {tuple(images.shape)}: {_first(error)}") from error

    return card, run, "onnx"


def _check_onnx(data: bytes) -> None:
    """Refuse what names files or operators outside of itself; an export has neither, nor graphs in graphs."""
    model, parts = read_onnx(data)
    if found := elsewhere(parts):
        raise ValueError(f"it keeps {found}, which is refused; export the student again")
    nested = any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if nested or foreign or model.functions or model.graph.sparse_initializer:
        found = f"domains {sorted(foreign)}" if foreign else "functions, graphs in graphs or sparse weights"
        raise ValueError(f"it must consist of ONNX's own operators alone, got {found}; export the student again")


def _onnx_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else repr(error)[:200]


# ── ExecuTorch ────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_executorch(path: Path, threads: int) -> Opened:
    program = Program(path.read_bytes(), threads)
    return read_card(program.card), program.run, "executorch"


# ── torch.export and the Lite interpreter ─────────────────────────────────────────────────────────────────────────


def _open_torch(load: Callable[[bytes], Run], name: str, path: Path, threads: int) -> Opened:
    data = path.read_bytes()
    card = read_card(read_torch_card(data))
    try:
        model = load(data)
    except Exception as error:
        raise ValueError(f"PyTorch cannot load it: {_first(error)}") from error

    def run(images: Tensor) -> Tensor:
        with torch.no_grad(), _torch_threads(threads):
            try:
                return model(images)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"it fails on images {tuple(images.shape)}: {_first(error)}") from error

    return card, run, name


_CODE = (".pt2", ".ptl")
_OPENERS: dict[str, Callable[[Path, int], Opened]] = {
    ".safetensors": _open_safetensors,
    ".onnx": _open_onnx,
    ".pte": _open_executorch,
    ".pt2": partial(_open_torch, load_pt2, "pt2"),
    ".ptl": partial(_open_torch, load_lite, "ptl"),
}
