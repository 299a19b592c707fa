"""The formats a student is shipped in, by name.

| format | file | runtime | sizes |
|---|---|---|---|
| ``onnx`` | ``.onnx`` | ONNX Runtime and others | any multiples of 32 |
| ``onnx-int8`` | ``.int8.onnx`` | ONNX Runtime | any multiples of 32 |
| ``executorch`` | ``.pte`` | ExecuTorch, XNNPACK | five aspect ratios |
| ``executorch-int8`` | ``.int8.pte`` | ExecuTorch, XNNPACK | five aspect ratios |
| ``pt2`` | ``.pt2`` | PyTorch | any multiples of 32 |
| ``ptl`` | ``.ptl`` | PyTorch Lite, no longer developed | any multiples of 32 |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from students.card import Precision
from students.encoder import DEEP
from students.export_executorch import MissingPackageError, export_executorch
from students.export_onnx import export_onnx
from students.export_onnx_int8 import export_onnx_int8
from students.export_torch import export_lite, export_pt2
from students.model import Student

__all__ = [
    "FORMATS", "Format", "MissingPackageError", "export_executorch", "export_lite", "export_onnx", "export_onnx_int8",
    "export_pt2",
]  # fmt: skip


class Exporter(Protocol):
    """Writes a student to a file."""

    def __call__(
        self,
        student: Student,
        path: Path,
        *,
        side: int,
        metadata: Mapping[str, str],
        calibration: Sequence[Tensor],
        stages: Sequence[str],
    ) -> None:
        """Write it; ``calibration`` and ``stages``, what is quantised, are empty for float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One way to ship a student.

    Attributes:
        suffix: Of the file.
        precision: Of weights and arithmetic; int8 needs calibration images.
        export: Writes the file.
        attempts: What is quantised, from the smallest file on; the first that agrees with the student is kept.
        legacy: What to use instead, if it is no longer developed.
    """

    suffix: str
    precision: Precision
    export: Exporter
    attempts: tuple[tuple[str, ...], ...] = ((),)
    legacy: str = ""


def _float32(write: Callable[..., None]) -> Exporter:
    """The exporter of a format that is not calibrated."""

    def export(
        student: Student,
        path: Path,
        *,
        side: int,
        metadata: Mapping[str, str],
        calibration: Sequence[Tensor],
        stages: Sequence[str],
    ) -> None:
        assert not calibration
        assert not stages
        write(student, path, side=side, metadata=metadata)

    return export


_INT8 = (DEEP, DEEP[1:])

FORMATS = {
    "onnx": Format(suffix=".onnx", precision="float32", export=_float32(export_onnx)),
    "onnx-int8": Format(suffix=".int8.onnx", precision="int8", export=export_onnx_int8, attempts=_INT8),
    "executorch": Format(suffix=".pte", precision="float32", export=_float32(export_executorch)),
    "executorch-int8": Format(suffix=".int8.pte", precision="int8", export=export_executorch, attempts=_INT8),
    "pt2": Format(suffix=".pt2", precision="float32", export=_float32(export_pt2)),
    "ptl": Format(suffix=".ptl", precision="float32", export=_float32(export_lite), legacy="executorch"),
}
