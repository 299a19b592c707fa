"""Weights in and out: safetensors of our own, and the zoo's `.pkl` and `.pth`, read without running what they hold.

Detectron2 unpickles whatever a file names and drops keys that do not fit; here nothing but numbers is built from a
file, and a file that does not fit the network key by key is refused.
"""

import hashlib
import json
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from teachers.backbone import BackboneConfig, config_json
from training.files import write_atomically

#: A larger file is not read: the largest zoo model has 0.5 GB.
MAX_BYTES = 4 * 2**30
METADATA_KEY = "curate"
_ZOO_NAME = re.compile(r"model_final_([0-9a-f]{6})\.pkl")
_HARMLESS = re.compile(r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+")


class CheckpointError(ValueError):
    """A file of weights that is broken, hostile, or made for another network."""


# --- Reading -----------------------------------------------------------------------------------------------------


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pkl` (Detectron2's zoo), `.pth` or `.safetensors`, by name, on the CPU.

    A zoo file's name carries the first six digits of its MD5 (`model_final_c7f38d.pkl`), which are checked.

    Raises:
        CheckpointError: On an unknown suffix, a file that is absent, truncated or larger than `MAX_BYTES`, or one
            that holds anything but named tensors of numbers.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise CheckpointError(f"{path}: weights must end in {', '.join(_READERS)}, got {path.suffix!r}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: holds {size} bytes, more than the {MAX_BYTES} allowed")
    try:
        state = reader(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    strange = [f"{k} ({fault})" for k, v in state.items() if (fault := _fault(v))]
    if strange:
        raise CheckpointError(f"{path}: must hold plain tensors of floats or integers; not so: {_listed(strange)}")
    return state


def _fault(tensor: Tensor) -> str:
    """Why a tensor is no array of numbers with a place for each in memory; only a `.pth` can hold such."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"{tuple(tensor.shape)} without as many values"
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_complex() or tensor.dtype == torch.bool else ""


def _read_pickle(path: Path) -> dict[str, Tensor]:
    named = _ZOO_NAME.fullmatch(path.name)
    with path.open("rb") as file:
        if named and not (found := hashlib.file_digest(file, "md5").hexdigest()).startswith(named[1]):
            raise CheckpointError(f"{path}: its MD5 must start with {named[1]}, got {found}: download it again")
        file.seek(0)
        try:
            loaded = _Unpickler(file).load()
            model = loaded["model"] if isinstance(loaded, dict) and "model" in loaded else loaded
            if not isinstance(model, dict):
                raise CheckpointError(f"must hold a dictionary of arrays, got {type(model).__name__}")
            return {_name(k): torch.from_numpy(_numbers(k, v)) for k, v in model.items()}
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:  # a hostile pickle may raise anything
            raise CheckpointError(f"{path}: not a readable pickle of arrays: {error!r}") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        _check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # torch raises many kinds for broken or refused files
        raise CheckpointError(f"{path}: {_refusal(error)}") from error
    model = loaded["model"] if isinstance(loaded, dict) and "model" in loaded else loaded
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: must hold a dictionary of tensors, got {type(model).__name__}")
    wrong = [str(k) for k, v in model.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: must hold tensors by name; these are none: {_listed(wrong)}")
    return dict(model)


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks beyond the limit."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: unpacks to {size} bytes, more than the {MAX_BYTES} allowed")


def _refusal(error: Exception) -> str:
    """What torch found, without its advice to trust the file."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"names {named[1]}, which weights have no need of: refused, nothing was run"
    return f"not a readable file of weights, perhaps truncated ({type(error).__name__}): fetch or save it again"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".pkl": _read_pickle,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` stored beside the weights of a safetensors file; None where it did not write it.

    Raises:
        CheckpointError: The file is broken, or what is stored is not a JSON object.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            stored = (file.metadata() or {}).get(METADATA_KEY)
        parsed = None if stored is None else json.loads(stored)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    if parsed is not None and not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: its metadata must be a JSON object, got {type(parsed).__name__}")
    return parsed


# --- The pickle reader: an array is rebuilt here, from a shape and bytes; no code named by the file is called. ---


class _DType:
    """Stands for `numpy.dtype`: remembers a name and a byte order."""

    def __init__(self, name: object, *_flags: object) -> None:
        if not isinstance(name, str) or re.fullmatch(r"[fiu][1248]", name) is None:
            raise CheckpointError(f"arrays must hold floats or integers, got dtype {name!r}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise CheckpointError(f"unknown byte order {state[1]!r}")
        self.order = state[1]


class _Array:
    """Stands for `numpy.ndarray`: checks and keeps what a pickled array is made of."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        kind = np.dtype(dtype.order + dtype.name)
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
            raise CheckpointError(f"an array's shape must be up to 8 sizes, got {shape!r}")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
            raise CheckpointError(f"an array of shape {shape} and type {kind} does not match its bytes")
        self.value = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _reconstruct(_kind: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise CheckpointError(f"bytes must be encoded as latin1, got {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise CheckpointError(f"names {module}.{name}, which weights have no need of: refused, nothing was run")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError(f"refers to the outside ({pid!r}): refused")


def _name(key: object) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"names must be text, got {key!r}")
    return key


def _numbers(key: str, value: object) -> NDArray[Any]:
    if not isinstance(value, _Array):
        raise CheckpointError(f"{key} must be an array of numbers, got {type(value).__name__}")
    return value.value.astype(value.value.dtype.newbyteorder("="), order="C")


# --- Fitting -----------------------------------------------------------------------------------------------------


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without "module.", and without what old files hold beside the weights (pixel mean, anchors)."""
    named = {k.removeprefix("module."): v for k, v in state.items()}
    return {k: v for k, v in named.items() if _HARMLESS.fullmatch(k) is None}


def match(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy a state into a model it fits exactly; a model on the meta device takes the tensors themselves.

    "module." is stripped and harmless extras of old files are dropped. Where a file has no running statistics at all
    (very old FrozenBN), mean 0 and variance 1 are taken, as Detectron2 does.

    Raises:
        CheckpointError: Naming every missing, surplus, mis-shaped and non-finite tensor.
    """
    wanted = model.state_dict()
    given = clean(state)
    if not any(k.endswith("running_mean") for k in given):
        given |= _missing_statistics(given, wanted)
    both = sorted(set(wanted) & set(given))
    fitted = {k: given[k].to(wanted[k].dtype) for k in both}
    problems = {
        "missing": sorted(set(wanted) - set(given)),
        "surplus": sorted(set(given) - set(wanted)),
        "wrong shape": [
            f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in both
            if given[k].shape != wanted[k].shape
        ],
        "not finite": [k for k in both if not bool(torch.isfinite(fitted[k]).all())],
    }
    found = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"the weights do not fit the network; {'; '.join(found)}")
    unmade = any(v.is_meta for v in wanted.values())
    model.load_state_dict(fitted, assign=unmade)


def _missing_statistics(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    frozen = [k.removesuffix("running_mean") for k in wanted if k.endswith("running_mean")]
    present = [k for k in frozen if f"{k}weight" in given]
    zeros = {f"{k}running_mean": torch.zeros_like(given[f"{k}weight"]) for k in present}
    return zeros | {f"{k}running_var": torch.ones_like(given[f"{k}weight"]) for k in present}


# --- Writing -----------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: Path, model: nn.Module, config: BackboneConfig, metadata: Mapping[str, str | int | float]
) -> str:
    """Write weights and configuration as safetensors, whole or not at all; equal inputs give equal bytes.

    Args:
        path: Where; its folder exists.
        model: Its state is written, in float32 as it is.
        config: Stored as JSON, so that `teachers.backend.load_teacher` needs nothing else.
        metadata: What else to remember (steps, scores).

    Returns:
        The SHA-256 of the file.
    """
    # One entry only: the writer does not keep the order of several, and equal weights must give equal bytes.
    header = json.dumps(
        {"config": json.loads(config_json(config)), "architecture": config.architecture, **metadata}, sort_keys=True
    )
    state = model.state_dict()  # tensors may share memory, which the format has no room for
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    data = save_safetensors(tensors, {METADATA_KEY: header})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
