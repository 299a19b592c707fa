"""A student as one ONNX file for all aspect ratios: sides are any multiples of 32 from 64 on.

Padding stays ONNX's own ``Pad``; normalisations are folded before. The file names nothing outside of itself, and the
same student gives the same bytes: what the exporter notes of stacks and places is taken out.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from students.card import Card, card_values
from students.fuse import fuse
from students.hoist import hoist_padding
from students.model import STRIDE, Student
from training.files import write_atomically

OPSET = 20
INPUT = {3: "image", 4: "image_mask"}
OUTPUT = "logits"
MOST_CELLS = 128


def export_onnx(student: Student, path: Path, *, side: int, metadata: Mapping[str, str]) -> None:
    """Write a student as ONNX, atomically.

    The input is ``image`` (1, 3, H, W) or ``image_mask`` (1, 4, H, W), float32, as ``Student`` takes it; the output
    ``logits`` (1, 1, H, W). The card of ``students.card`` and ``metadata`` stand in the model's ``metadata_props``.

    Args:
        student: Any; it is not changed.
        path: The file.
        side: At which it was trained.
        metadata: More to be stated in the file.

    Raises:
        ValueError: If ``side`` is no side, or the metadata uses a name of the card.
    """
    card = Card(side=side, config=student.config, precision="float32")
    write_atomically(path, onnx_model(student, card_values(card, metadata)).SerializeToString(deterministic=True))


def onnx_model(student: Student, values: Mapping[str, str]) -> onnx.ModelProto:
    """The ONNX model of a student that states ``values``."""
    fused = fuse(student)
    hoist_padding(fused)
    with quiet():
        program = torch.onnx.export(
            traced(fused, student),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT[student.config.in_channels]],
            output_names=[OUTPUT],
        )
    assert program is not None
    model = program.model_proto
    _without_notes(model)
    _plain_resize(model)
    for name, value in values.items():
        model.metadata_props.add(key=name, value=value)
    return model


def traced(model: nn.Module, student: Student) -> ExportedProgram:
    """The program of a student, or of what was made of it, for any sides that it takes.

    What it notes of stacks and places is taken out. At a side of one cell the deepest map would be a single pixel, a
    case of its own, so a side has two or more; an example whose sides differ is not taken for a square.
    """
    least = max(2, student.smallest // STRIDE)
    cells = {2: STRIDE * Dim("rows", min=least, max=MOST_CELLS), 3: STRIDE * Dim("columns", min=least, max=MOST_CELLS)}
    example = torch.zeros(1, student.config.in_channels, STRIDE * (least + 1), STRIDE * (least + 2))
    program = torch.export.export(model, (example,), dynamic_shapes=(cells,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, warn and log; what matters they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain_resize(model: onnx.ModelProto) -> None:
    """State the last resize's coordinates as ONNX Runtime runs them fast for one channel; the same above one pixel."""
    last = [node for node in model.graph.node if node.op_type == "Resize"][-1]
    for attribute in last.attribute:
        if attribute.name == "coordinate_transformation_mode":
            attribute.s = b"pytorch_half_pixel"


def _without_notes(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
