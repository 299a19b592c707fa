"""Laws of padding: what stands outside a map, in networks that others built too."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from students.padding import Padding, conv, pad_with, smallest_side


def _padding(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        conv(3, 8, 4)


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
def test_every_convolution_of_a_foreign_network_is_replaced_and_keeps_its_parameters(padding: Padding) -> None:
    model = timm.create_model("fbnetv3_b", features_only=True, channel_multiplier=0.35)
    old, parameters = _padding(model), dict(model.named_parameters())
    pad_with(model, padding)
    new = _padding(model)
    assert len(new) == len(old) > 20
    assert any(m.groups > 1 for m in new)
    for before, after in zip(old, new, strict=True):
        assert after is not before
        assert after.padding_mode == padding
        assert after.weight is before.weight
        assert (after.stride, after.groups, after.padding) == (before.stride, before.groups, before.padding)
    assert {k: id(v) for k, v in model.named_parameters()} == {k: id(v) for k, v in parameters.items()}


def test_zeros_are_what_the_foreign_network_did_before() -> None:
    model = timm.create_model("fbnetv3_b", features_only=True, channel_multiplier=0.35).eval()
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(images)
        pad_with(model, "zeros")
        assert all(torch.equal(a, b) for a, b in zip(before, model(images), strict=True))
        pad_with(model, "replicate")
        assert not torch.equal(before[0], model(images)[0])


def test_replication_is_a_valid_convolution_of_the_extended_image() -> None:
    layer = conv(3, 4, 5, stride=2)
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    for padding in ("replicate", "reflect"):
        holder = nn.Sequential(layer)
        pad_with(holder, padding)  # type: ignore[arg-type]
        wide = nn.functional.pad(image, (2, 2, 2, 2), mode=padding)
        assert torch.equal(holder(image), nn.functional.conv2d(wide, layer.weight, stride=2))


@pytest.mark.parametrize(
    "layer",
    [
        Conv2dSame(3, 4, 3, stride=2),
        nn.Conv2d(3, 4, 4, padding=2),
        nn.Conv2d(3, 4, (3, 5), padding=(1, 2)),
        nn.Conv2d(3, 4, 3, padding=0),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 4, 3, padding="same"),
    ],
)
def test_what_cannot_be_replaced_without_moving_the_map_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"first\.0 must be a plain Conv2d"):
        pad_with(nn.ModuleDict({"first": nn.Sequential(layer)}), "replicate")


def test_the_smallest_side_is_the_least_at_which_reflection_works() -> None:
    body = nn.Sequential(conv(1, 1, 3, stride=2), conv(1, 1, 7, stride=2), conv(1, 1, 3))
    pad_with(body, "reflect")
    side = smallest_side([(1, body)])
    assert side == 8
    assert body(torch.zeros(1, 1, side, side)).shape == (1, 1, 2, 2)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        body(torch.zeros(1, 1, side - 2, side - 2))
