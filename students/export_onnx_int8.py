"""A student as ONNX with 8-bit integers: smaller by a factor of about three, on most computers not faster.

Static quantisation (QDQ): weights per channel, activations per tensor, with the ranges of the calibration images. Only
the convolutions at strides 16 and 32 are quantised: nine tenths of the weights are there, and what 256 levels lose at
higher resolutions moves the outline.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from students.card import Card, card_values
from students.encoder import DEEP
from students.export_onnx import INPUT, onnx_model, quiet
from students.model import Student
from training.files import write_atomically


def export_onnx_int8(
    student: Student,
    path: Path,
    *,
    side: int,
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor],
    stages: Sequence[str] = DEEP,
) -> None:
    """Write a student as ONNX of 8-bit integers, atomically; inputs and outputs as those of ``export_onnx``.

    Args:
        student: Any; it is not changed.
        path: The file.
        side: At which it was trained.
        metadata: More to be stated in the file.
        calibration: Images (1, C, H, W) float32 as the student will see them, at least one.
        stages: Parts of the network whose convolutions are quantised.

    Raises:
        ValueError: If there is no calibration image, ``side`` is no side, or the metadata uses a name of the card.
    """
    if not calibration:
        raise ValueError("int8 needs at least 1 calibration image, got 0")
    values = card_values(Card(side=side, config=student.config, precision="int8"), metadata)
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        plain.write_bytes(onnx_model(student, {}).SerializeToString())
        quantize_static(
            plain,
            made,
            _Images(INPUT[student.config.in_channels], calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_fine(plain, stages),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(made)
    del model.metadata_props[:]
    for name, value in values.items():
        model.metadata_props.add(key=name, value=value)
    write_atomically(path, model.SerializeToString(deterministic=True))


def _fine(plain: Path, stages: Sequence[str]) -> list[str]:
    """The names of the convolutions that stay as they are."""
    convolutions = [node for node in onnx.load(plain).graph.node if node.op_type == "Conv"]
    return [node.name for node in convolutions if not node.input[1].startswith(tuple(f"{stage}." for stage in stages))]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Sequence[Tensor]) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{name: image.numpy()} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)
