"""Latency of the shipped students beside public models, all in one run: ONNX Runtime, one CPU thread, one image.

Usage: python -m benchmarks.latency [--rounds N] [--presets nano,small] [--only-ours] [--executorch nano]

Prints a Markdown table and which goals are met. Everything takes turns in each round, so a busy machine is busy for
all; milliseconds are the process's CPU time, the median over the rounds and, nearest to a quiet machine, the minimum;
the ratios are medians of quotients within a round. All of ours are exported with random weights, 4 channels, at
256×256, which does not change the time. Models of the shared folder run as they were published, at their own input
sizes. torchvision's are built here with random weights at 256×256. ExecuTorch runs on as many threads as it likes: its
CPU time is that of all. The column "quoted" is not measured here: the figures that the goals were set from, on another
machine, most of them when it was idle.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from benchmarks.shared import SHARED
from students.cost import summary
from students.export_executorch import export_executorch, method_name, needed
from students.export_onnx import OPSET, export_onnx, quiet
from students.latency import Call, Latency, input_size, onnx_call, take_turns
from students.model import build_student
from students.padding import Padding
from students.presets import PRESETS

SIDE = 256
PADDINGS: tuple[Padding, ...] = ("replicate", "zeros")
PUBLISHED = {"prisma": "PrismaNet", "sinet": "SINet", "deeplab": "DeepLab v3, MobileNetV2"}
GOALS = {"nano": 5.0, "small": 12.0}
LEAST_OF_PRISMA = 1 / 3
QUOTED = {
    "nano, replicate": "5.0",
    "nano, zeros": "3.3",
    "small, replicate": "9.9",
    "small, zeros": "6.7",
    "base, replicate": "15.3",
    "base, zeros": "10.1",
    "large, replicate": "33.1",
    "large, zeros": "23.8",
    "PrismaNet": "37",
    "SINet": "37",
    "DeepLab v3, MobileNetV2": "227",
}
QUOTED_ALONE = (
    ("ExtremeC3Net", "0.041 M", "179", "39.6, machine busy"),
    ("PortraitNet", "2.08 M", "481", "13.0, machine busy"),
    ("MODNet", "6.49 M", "3867", "71.6, machine busy"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the table, and how it is run."""

    name: str
    size: tuple[int, int]
    parameters: int
    macs: int | None
    call: Call


class Logits(nn.Module):
    """A segmentation model of torchvision without its dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2, H, W)."""
        logits: Tensor = self.model(images)["out"]
        return logits


def ours(names: Sequence[str], folder: Path) -> Iterator[Entry]:
    """Each preset with each padding, as it is exported."""
    for name in names:
        for padding in PADDINGS:
            config = replace(PRESETS[name], in_channels=4, padding=padding)
            path = folder / f"{name}-{padding}.onnx"
            export_onnx(build_student(config, 0), path, side=SIDE, metadata={})
            cost = summary(config, SIDE, SIDE)
            call = onnx_call(path, (SIDE, SIDE))
            yield Entry(
                name=f"{name}, {padding}", size=(SIDE, SIDE), parameters=cost.parameters, macs=cost.macs, call=call
            )


def executorch(names: Sequence[str], folder: Path) -> Iterator[Entry]:
    """Presets as ExecuTorch programs, replicate padding."""
    for name in names:
        config = replace(PRESETS[name], in_channels=4)
        path = folder / f"{name}.pte"
        export_executorch(build_student(config, 0), path, side=SIDE, metadata={})
        method = needed("executorch.runtime").Runtime.get().load_program(path).load_method(method_name((SIDE, SIDE)))
        image = torch.rand(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        cost = summary(config, SIDE, SIDE)

        def call(method: Any = method, image: Tensor = image) -> object:
            return method.execute([image])

        yield Entry(
            name=f"{name}, replicate, ExecuTorch",
            size=(SIDE, SIDE),
            parameters=cost.parameters,
            macs=cost.macs,
            call=call,
        )


def published() -> Iterator[Entry]:
    """The models of the shared folder, at their own sizes."""
    for stem, name in PUBLISHED.items():
        path = SHARED / "models" / f"{stem}.onnx"
        if not path.exists():
            print(f"{path} is absent (set CURATE_SHARED)")
            continue
        size = input_size(path) or (SIDE, SIDE)
        parameters, macs = graph_cost(onnx.load(path), size)
        yield Entry(name=name, size=size, parameters=parameters, macs=macs, call=onnx_call(path, size))


def from_torchvision(folder: Path) -> Iterator[Entry]:
    """Two segmentation models of torchvision, random weights, two classes."""
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"):
        model = Logits(getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=2)).eval()
        path = folder / f"{name}.onnx"
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (torch.zeros(1, 3, SIDE, SIDE),), dynamo=True, external_data=False, verbose=False,
                opset_version=OPSET,
            )  # fmt: skip
        assert program is not None
        onnx.save(program.model_proto, path)
        _, macs = graph_cost(program.model_proto, (SIDE, SIDE))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        yield Entry(
            name=f"torchvision {name}",
            size=(SIDE, SIDE),
            parameters=parameters,
            macs=macs,
            call=onnx_call(path, (SIDE, SIDE)),
        )


def graph_cost(model: onnx.ModelProto, size: tuple[int, int]) -> tuple[int, int | None]:
    """Float weights of an ONNX model, and multiply-accumulates of its convolutions; None where a shape is unknown."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1}
    model = onnx.ModelProto.FromString(model.SerializeToString())
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, value in zip(dims, (1, dims[1].dim_value, *size), strict=True):
        dim.dim_value = value
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    macs = 0
    for node in inferred.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            # one product per weight that an output sees, or, transposed, that an input feeds
            seen = shapes.get(node.output[0] if node.op_type == "Conv" else node.input[0], [0])
            if 0 in seen or node.input[1] not in weights:
                return sum(math.prod(shape) for shape in weights.values()), None
            macs += math.prod(seen) * math.prod(weights[node.input[1]][1:])
    return sum(math.prod(shape) for shape in weights.values()), macs


def table(entries: Sequence[Entry], measured: Sequence[Latency]) -> Iterator[str]:
    """Lines of Markdown."""
    found = dict(zip((entry.name for entry in entries), measured, strict=True))
    bases = [name for name in ("nano, replicate", "small, replicate") if name in found]
    head = ["model", "input", "parameters", "MMAC", "CPU ms median", "CPU ms least", "wall ms median"]
    head += [f"× {base.split(',')[0]}" for base in bases] + ["quoted ms"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for entry in entries:
        taken = found[entry.name]
        cells = [entry.name, f"{entry.size[0]}×{entry.size[1]}", f"{entry.parameters / 1e6:.2f} M"]
        cells += ["–" if entry.macs is None else f"{entry.macs / 1e6:.0f}"]
        cells += [f"{ms:.1f}" for ms in (taken.cpu_median, taken.cpu_minimum, taken.wall_median)]
        cells += [f"{taken.ratio(found[base]):.2f}" for base in bases]
        yield f"| {' | '.join([*cells, QUOTED.get(entry.name, '')])} |"
    for name, parameters, macs, quoted in QUOTED_ALONE:
        cells = [name, "256×256", parameters, macs, *[""] * (3 + len(bases)), quoted]
        yield f"| {' | '.join(cells)} |"


def verdicts(entries: Sequence[Entry], measured: Sequence[Latency]) -> Iterator[str]:
    """Which goals are met, replicate padding."""
    found = dict(zip((entry.name for entry in entries), measured, strict=True))
    for name, goal in GOALS.items():
        if taken := found.get(f"{name}, replicate"):
            met = "met" if taken.cpu_median <= goal else "met by the least" if taken.cpu_minimum <= goal else "missed"
            yield f"{name} within {goal:g} ms: {met} ({taken.cpu_median:.2f}, least {taken.cpu_minimum:.2f})"
    small, prisma = found.get("small, replicate"), found.get("PrismaNet")
    if small and prisma:
        ratio = small.ratio(prisma)
        yield f"small within a third of PrismaNet: {'met' if ratio <= LEAST_OF_PRISMA else 'missed'} ({ratio:.3f})"


def main() -> None:
    """Print the table and the goals."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--presets", default=",".join(PRESETS), help="names, separated by commas")
    parser.add_argument("--only-ours", action="store_true", help="leave other models out")
    parser.add_argument("--executorch", default="", help="presets to run in ExecuTorch too, separated by commas")
    options = parser.parse_args()
    names, also = options.presets.split(","), [name for name in options.executorch.split(",") if name]
    if options.rounds < 1 or not {*names, *also} <= set(PRESETS):
        parser.error(f"--rounds must be >= 1 and presets of {', '.join(PRESETS)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        entries = [*ours(names, Path(folder)), *executorch(also, Path(folder))]
        if not options.only_ours:
            entries += [*published(), *from_torchvision(Path(folder))]
        measured = take_turns([entry.call for entry in entries], rounds=options.rounds)
    print("\n".join(table(entries, measured)))
    print()
    print("\n".join(verdicts(entries, measured)))


if __name__ == "__main__":
    main()
