"""What a student costs: parameters, and multiply-accumulates (MACs) of its convolutions, counted as they run."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from students.model import Student, StudentConfig, outline

DECODER = ("rises", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The cost of one image.

    Attributes:
        parameters: Trained numbers, those of normalisations included, running statistics not.
        macs: Multiply-accumulates of all convolutions and linear layers.
        decoder_macs: Those of the decoder and the head.
    """

    parameters: int
    macs: int
    decoder_macs: int

    @property
    def decoder_share(self) -> float:
        """Part of the MACs that the decoder has, in [0, 1]."""
        return self.decoder_macs / self.macs


def summary(config: StudentConfig, height: int, width: int) -> Summary:
    """The cost of one image of ``height`` × ``width`` pixels. Nothing is computed: the network has no memory.

    Normalisations, activations, additions and resizing are not counted, as is usual.

    Raises:
        ValueError: If the student refuses images of this size.
    """
    student = outline(config).eval()
    counted = _count(student, torch.empty(1, config.in_channels, height, width, device="meta"))
    return Summary(
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        macs=sum(counted.values()),
        decoder_macs=sum(macs for name, macs in counted.items() if name.split(".")[0] in DECODER),
    )


def _count(student: Student, images: Tensor) -> dict[str, int]:
    """MACs of each convolution and linear layer by its name."""
    macs: dict[str, int] = {}
    for name, module in student.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # one product per weight that an output sees
            module.register_forward_hook(
                lambda layer, _, output, name=name: macs.update({name: output.numel() * layer.weight[0].numel()})
            )
    student(images)
    return macs
