"""ImageNet weights of timm's FBNetV3 for a student's encoder, from a local file."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from students.encoder import PLACES
from students.fold import fold_yuv
from students.model import Student, mismatches

LEFT_OUT = ("blocks.6.", "conv_head.", "norm_head.", "classifier.")
ENCODER = ("stem.", "stages.")


def load_imagenet(student: Student, path: Path) -> None:
    """Put a timm checkpoint of the student's own FBNetV3 into its encoder; the decoder stays as it is.

    Weights keep their meaning: the encoder's maps are those of timm's network for a picture normalised as timm does
    (with padding "zeros"; other paddings change the border alone). The last 1×1 expansion, the head and the classifier
    of the file are left out. A student of 4 channels gets the weights folded, see ``students.fold``.

    Args:
        student: With ``encoder`` a network of timm; changed in place.
        path: ``.safetensors``, or a file of ``torch.save`` that holds tensors alone (``.pth``, ``.pt``, ``.bin``).

    Raises:
        ValueError: If the student's encoder is a table, or the file cannot be read, needs more than tensors to be
            loaded, or does not hold exactly this encoder; the message names the keys.
        FileNotFoundError: If the file does not exist.
    """
    if student.config.encoder == "table":
        raise ValueError("ImageNet weights of timm need student.encoder to be a network of timm, got 'table'")
    state = _renamed(_read(path), path)
    if student.config.in_channels == 4:
        state = fold_yuv(state, student.config.normalisation)
    expected = {key: value for key, value in student.state_dict().items() if key.startswith(ENCODER)}
    counts = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = counts | state  # checkpoints need not say how many batches they saw
    problems = mismatches(expected, state)
    if problems:
        raise ValueError(f"{path} is no {student.config.encoder} of this width: " + "; ".join(problems))
    student.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file as stored, floats as float32."""
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no readable checkpoint of tensors alone: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, or one under 'state_dict'")
    return {str(key): value.float() if value.is_floating_point() else value for key, value in found.items()}


def _renamed(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The student's keys for timm's; what the encoder has no place for is left out or refused."""
    state, unknown = {}, []
    for key, value in found.items():
        place = next((prefix for prefix in PLACES if key.startswith(prefix)), None)
        if place is not None:
            state[PLACES[place] + key.removeprefix(place)] = value
        elif not key.startswith(LEFT_OUT):
            unknown.append(key)
    if unknown:
        raise ValueError(f"{path} is no FBNetV3 of timm, unknown keys: {', '.join(sorted(unknown)[:8])}")
    return state
