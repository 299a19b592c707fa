"""What an interrupted training goes on from, and whether it is the same training."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.files import write_atomically


class StateError(ValueError):
    """A state is broken, or of another training."""


def check_identity(mine: Mapping[str, Any], stored: object, path: Path) -> None:
    """Refuse what another training wrote, naming what differs.

    Args:
        mine: Flat values of this training, as JSON has them.
        stored: What `path` holds.
        path: For the message.

    Raises:
        StateError: They differ, or `stored` is no mapping.
    """
    if not isinstance(stored, dict):
        raise StateError(f"{path} is not readable as a training's: remove {path.parent} to start again")
    differing = [
        f"{key} is {mine.get(key)!r} and was {stored.get(key)!r}"
        for key in sorted(set(mine) | set(stored), key=str)
        if mine.get(key) != stored.get(key)
    ]
    if differing:
        raise StateError(
            f"{path} is of another training: {'; '.join(differing)}; choose another output folder or remove this one"
        )


def write_state(path: Path, identity: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Write tensors, numbers and text, to be read by `read_state`; never half of it."""
    buffer = io.BytesIO()
    torch.save({"identity": json.dumps(identity, sort_keys=True), **parts}, buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None where there is none.

    Raises:
        StateError: It is broken, or of another training.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        stored = json.loads(state["identity"])
    except Exception as error:  # torch raises many kinds for a broken file
        raise StateError(f"{path} cannot be read ({error!r}): remove it to start again") from error
    check_identity(identity, stored, path)
    return state
