"""MONAI's DynUNet with the same names of parameters, in torch only: importing MONAI would slow registrations down.

A test of medkit checks that both are equal.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

__all__ = ["RegistrationUNet"]


class RegistrationUNet(nn.Module):
    """A DynUNet with kernels of 3, strides of 2 and affine instance norms (Isensee 2021).

    Args:
        given: channels of the input.
        made: channels of the output, which has the resolution of the first level.
        channels: channels of the levels.
        stride: stride of the first level.
        last: initial standard deviation of the last layer's weights; None: torch's own.
    """

    def __init__(self, given: int, made: int, channels: list[int], stride: int, last: float | None = None) -> None:
        super().__init__()
        self.input_block = Block(given, channels[0], stride)
        steps = list(zip(channels[:-1], channels[1:]))  # noqa: B905, RUF007
        self.downsamples = nn.ModuleList([Block(fine, coarse, 2) for fine, coarse in steps[:-1]])
        self.bottleneck = Block(steps[-1][0], steps[-1][1], 2)
        self.upsamples = nn.ModuleList([Up(coarse, fine) for fine, coarse in steps[::-1]])
        end = nn.Conv3d(channels[0], made, 1)
        if last is not None:
            nn.init.normal_(end.weight, 0.0, last)
            nn.init.zeros_(end.bias)  # type: ignore[arg-type]
        self.output_block = nn.Sequential(OrderedDict(conv=named(end)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, made, I / stride, ...) for (B, given, I, ...)."""
        out = self.input_block(image)
        levels = [out]
        for down in self.downsamples:
            out = down(out)
            levels.append(out)
        out = self.bottleneck(out)
        for up in self.upsamples:
            out = up(out, levels.pop())
        return self.output_block(out)


class Block(nn.Module):
    """Two convolutions, the first one with a stride, each with a normalisation."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = named(nn.Conv3d(given, made, 3, stride, 1, bias=False))
        self.conv2 = named(nn.Conv3d(made, made, 3, 1, 1, bias=False))
        self.norm1 = nn.InstanceNorm3d(made, affine=True)
        self.norm2 = nn.InstanceNorm3d(made, affine=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, made, I / stride, ...)."""
        out = functional.leaky_relu(self.norm1(self.conv1(image)), 0.01)
        return functional.leaky_relu(self.norm2(self.conv2(out)), 0.01)


class Up(nn.Module):
    """Doubles the resolution and joins the level of that resolution from the way down."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.transp_conv = named(nn.ConvTranspose3d(given, made, 2, 2, bias=False))
        self.conv_block = Block(2 * made, made, 1)

    def forward(self, image: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Return (B, made, ...) of the level's size."""
        return self.conv_block(torch.cat([self.transp_conv(image), level], 1))


def named(layer: nn.Module) -> nn.Sequential:
    """Return a layer under MONAI's name for it."""
    return nn.Sequential(OrderedDict(conv=layer))
