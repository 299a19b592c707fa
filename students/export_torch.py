"""A student as a file of PyTorch: ``.pt2`` (``torch.export``), or ``.ptl`` for apps with the old Lite interpreter.

Both take sides of any multiple of 32 from 64 on, and hold the card of ``students.card`` as ``extra/card.json``.

Neither may be opened if it comes from someone else: ``torch.export.load`` unpickles without limits and evaluates
expressions, and TorchScript is a program for an interpreter that was not made for hostile ones. The card can be read
without either: both files are ZIP archives.
"""

import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from students.card import Card, card_values, stored_values
from students.export_onnx import quiet, traced
from students.fuse import fuse
from students.model import Student
from training.files import write_atomically

CARD = "card.json"
_MOST_CARD = 1 << 20
# What ``zipfile`` raises of damaged, encrypted or foreign archives.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, EOFError)


def export_pt2(student: Student, path: Path, *, side: int, metadata: Mapping[str, str]) -> None:
    """Write a student with ``torch.export.save``, atomically; needs nothing but PyTorch to be run.

    Args:
        student: Any; it is not changed.
        path: The file.
        side: At which it was trained.
        metadata: More to be stated in the file.

    Raises:
        ValueError: If ``side`` is no side, or the metadata uses a name of the card.
    """
    buffer = io.BytesIO()
    with quiet():
        program = traced(fuse(student).requires_grad_(False), student)
        torch.export.save(program, buffer, extra_files=_card(student, side, metadata))
    write_atomically(path, buffer.getvalue())


def export_lite(student: Student, path: Path, *, side: int, metadata: Mapping[str, str]) -> None:
    """Write a student for PyTorch's Lite interpreter, which is no longer developed; arguments as ``export_pt2``.

    Its bytes differ from run to run, because the interpreter's format holds counters of the process.
    """
    model = fuse(student).requires_grad_(False)
    cells = max(3, student.smallest // 32)
    example = torch.zeros(1, student.config.in_channels, 32 * cells, 32 * (cells + 1))
    with quiet(), torch.no_grad():
        script: Any = torch.jit.freeze(torch.jit.trace(model, example, check_trace=False))  # type: ignore[no-untyped-call]
        data = script._save_to_buffer_for_lite_interpreter(_extra_files=_card(student, side, metadata))
    write_atomically(path, data)


def _card(student: Student, side: int, metadata: Mapping[str, str]) -> dict[str, str]:
    card = Card(side=side, config=student.config, precision="float32")
    return {CARD: json.dumps(card_values(card, metadata), sort_keys=True)}


def read_torch_card(data: bytes) -> dict[str, str]:
    """Names and values of the card of a ``.pt2`` or ``.ptl``; nothing of the file is run.

    Raises:
        ValueError: If there is none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            places = [info for info in archive.infolist() if info.filename.endswith(f"/extra/{CARD}")]
            if len(places) != 1 or places[0].file_size > _MOST_CARD:
                raise ValueError(f"it must hold one {CARD}, as exported students do; got another program")
            text = archive.read(places[0])
    except _UNREADABLE as error:
        raise ValueError(f"it is not a readable archive of PyTorch: {error!s:.200}") from error
    return stored_values(text)


def load_pt2(data: bytes) -> Callable[[Tensor], Tensor]:
    """The network of a trusted ``.pt2``."""
    with quiet():
        return torch.export.load(io.BytesIO(data)).module()


def load_lite(data: bytes) -> Callable[[Tensor], Tensor]:
    """The network of a trusted ``.ptl``."""
    from torch.jit.mobile import _load_for_lite_interpreter  # noqa: PLC0415 (deprecated: only who needs it)

    with quiet():
        return _load_for_lite_interpreter(io.BytesIO(data))  # type: ignore[no-any-return, no-untyped-call]
