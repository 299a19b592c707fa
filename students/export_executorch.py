"""A student as one ExecuTorch program: a method per aspect ratio, which share the weights.

Methods are named by their size, such as ``h160w256``: the five of ``students.data.bucket_sizes``. XNNPACK runs them
whole; padding is done by slices (``students.edge_pad``). The method ``card`` takes nothing and gives the card of
``students.card`` as JSON; ``side`` and ``in_channels`` give integers.

int8: weights per channel, activations per tensor, ranges from the calibration images.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from students.card import Card, card_values, stored_values
from students.data import Size, bucket_sizes
from students.edge_pad import with_edge_pads
from students.encoder import DEEP
from students.export_onnx import quiet, traced
from students.model import Student
from training.files import write_atomically

CARD = "card"
EXTRA = "curate[executorch]"


class MissingPackageError(ValueError):
    """A format needs a package that is not installed."""


def method_name(size: Size) -> str:
    """Of the method for a size (H, W)."""
    return f"h{size[0]}w{size[1]}"


def export_executorch(
    student: Student,
    path: Path,
    *,
    side: int,
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor] = (),
    stages: Sequence[str] = DEEP,
    sizes: Sequence[Size] | None = None,
) -> None:
    """Write a student as an ExecuTorch program, atomically.

    Each method takes (1, C, H, W) float32, as ``Student`` does, and gives logits (1, 1, H, W).

    Args:
        student: Any; it is not changed.
        path: The file.
        side: At which it was trained.
        metadata: More to be stated in the file.
        calibration: Images (1, C, H, W); with them the program is int8, without float32.
        stages: Parts of the network that are quantised.
        sizes: Of the methods, (H, W); the five buckets of the side by default.

    Raises:
        MissingPackageError: If ExecuTorch is not installed.
        ValueError: If ``side`` is no side, the metadata uses a name of the card, or the student refuses a size.
    """
    exir, partition = needed("executorch.exir"), needed("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    card = Card(side=side, config=student.config, precision="int8" if calibration else "float32")
    constants: dict[str, Any] = {"side": side, "in_channels": student.config.in_channels}
    constants |= {CARD: json.dumps(card_values(card, metadata), sort_keys=True)}
    with quiet():
        model: nn.Module = with_edge_pads(student).requires_grad_(False)
        if calibration:
            model = _quantised(model, student, calibration, stages)
        programs = {method_name(size): _program(model, student, size) for size in sizes or bucket_sizes(side)}
        lowered = exir.to_edge_transform_and_lower(
            programs,
            partitioner={name: [partition.XnnpackPartitioner()] for name in programs},
            constant_methods=constants,
        )
        data = lowered.to_executorch().buffer
    write_atomically(path, bytes(data))


def needed(name: str) -> Any:
    """A module of a package that only this format needs.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"ExecuTorch is needed and cannot be imported; pip install '{EXTRA}'") from error


def _program(model: nn.Module, student: Student, size: Size) -> Any:
    return torch.export.export(model, (torch.zeros(1, student.config.in_channels, *size),))


def _quantised(model: nn.Module, student: Student, calibration: Sequence[Tensor], stages: Sequence[str]) -> nn.Module:
    """A network of simulated int8, one set of ranges for all sizes (PT2E static quantisation)."""
    xnnpack = needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = needed("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = xnnpack.XNNPACKQuantizer()
    for stage in stages:  # see export_onnx_int8
        quantizer.set_module_name(stage, xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    prepared = pt2e.prepare_pt2e(traced(model, student).module(), quantizer)
    with torch.no_grad():
        for images in calibration:
            prepared(images)
    converted: nn.Module = pt2e.convert_pt2e(prepared)
    return converted


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Program:
    """A program that was exported; it holds no more than one method's arena at a time.

    Attributes:
        card: Names and values of its card.
        sizes: Of its methods.
    """

    def __init__(self, data: bytes, threads: int) -> None:
        """Load a program.

        Raises:
            MissingPackageError: If ExecuTorch is not installed.
            ValueError: If it is broken, or was not exported here.
        """
        runtime, library = needed("executorch.runtime"), needed("executorch.extension.pybindings.portable_lib")
        if data[4:8] != b"ET12":
            raise ValueError("it is not a readable ExecuTorch program: its bytes 4 to 8 must be ET12")
        try:
            self._program = runtime.Runtime.get().load_program(data)
        except Exception as error:  # the runtime raises many kinds, all of its own
            raise ValueError(f"it is not a readable ExecuTorch program: {error!s:.200}") from error
        if library._threadpool_get_thread_count() != threads:
            library._unsafe_reset_threadpool(threads)
        self.card = self._card()
        self.sizes = {name for name in self._program.method_names if name.startswith("h")}

    def _card(self) -> dict[str, str]:
        if CARD not in self._program.method_names:
            raise ValueError(f"it must have a method {CARD!r}, as exported students have; got another program")
        try:
            meta = self._program.metadata(CARD)
            takes, gives = meta.num_inputs(), meta.num_outputs()
            found = self._program.load_method(CARD).execute([]) if (takes, gives) == (0, 1) else None
        except Exception as error:  # the runtime raises many kinds, all of its own
            raise ValueError(f"ExecuTorch fails in {CARD}: {error!s:.200}") from error
        if found is None or not isinstance(found[0], str):
            got = f"{takes} in, {gives} out" if found is None else type(found[0]).__name__
            raise ValueError(f"its method {CARD!r} must take nothing and give one text, got {got}")
        return stored_values(found[0])

    def run(self, images: Tensor) -> Tensor:
        """Logits of (1, C, H, W) float32.

        Raises:
            ValueError: If there is no method for the size, or it fails.
        """
        name = method_name((images.shape[2], images.shape[3]))
        if name not in self.sizes:
            raise ValueError(f"images must be of one of its sizes {sorted(self.sizes)}, got {name}")
        wanted = self._program.metadata(name)
        if wanted.num_inputs() != 1 or tuple(wanted.input_tensor_meta(0).sizes()) != tuple(images.shape):
            raise ValueError(f"its method {name} must take images {tuple(images.shape)}")
        try:
            logits: Tensor = self._program.load_method(name).execute([images.contiguous()])[0]
        except Exception as error:
            raise ValueError(f"ExecuTorch fails in {name}: {error!s:.200}") from error
        return logits.clone()  # its memory is the runtime's
