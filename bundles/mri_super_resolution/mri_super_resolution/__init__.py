"""The network that finds what a coarse scan lacks: cosine transforms of overlapping blocks, which a U-Net adds to."""

import torch
from torch import nn
from torch.nn import functional

from .cosines import CosineBlocks, UNet, begin_small, in_parts, split

__all__ = ["Sharpening", "in_parts"]


class Sharpening(nn.Module):
    """Says what images lack that were interpolated to a finer grid; their 99th percentile is about 1.

    A U-Net on the cosine transforms of overlapping blocks says by how much each coefficient is to be multiplied, and
    what is to be added to it, in units of the block's contrast: so that what it finds does not depend on how bright and
    rich in contrast the image is, and it begins where the interpolation ended.

    Args:
        told: further channels, constant in an image: how coarse the scan was.
        size: voxels of a block along an axis: 6, or another even number that is no multiple of 4.
        channels: those at half of the image's resolution, and at a quarter.
        blocks: residual blocks of two convolutions at half of the resolution, and at a quarter; even numbers.
        least: contrast that every block is taken to have.
    """

    def __init__(
        self,
        told: int = 2,
        size: int = 6,
        channels: tuple[int, int] = (64, 96),
        blocks: tuple[int, int] = (2, 2),
        least: float = 0.01,
    ) -> None:
        super().__init__()
        self.blocks, self.least = CosineBlocks(size), least
        count = self.blocks.count
        self.unet = UNet(count + 9 + told, channels, blocks)
        self.gain = nn.Conv3d(channels[0], count, 1)
        self.added = nn.Conv3d(channels[0], count, 1)
        begin_small(self, self.gain, self.added)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, I, J, K) of (B, 1 + told, I, J, K), whose sizes are multiples of 4."""
        scan, told = image[:, :1], image[:, 1:, ::2, ::2, ::2]
        found = self.blocks(scan)
        kind = found.dtype
        fine = found[:, 1:]
        contrast = fine.float().square().mean(1, keepdim=True).sqrt()
        contrast = functional.avg_pool3d(contrast, 3, 1, 1, count_include_pad=False) + self.least
        mean = found[:, :1] / self.blocks.count**0.5
        levels = 4 * functional.softsign(fine / (4 * contrast).to(kind))
        detail = functional.softsign((split(scan) - mean) / (3 * contrast))
        rest = torch.cat([mean.float(), detail, contrast.log(), told], 1)
        state = self.unet(torch.cat([levels, rest.to(kind)], 1))
        changed = torch.addcmul(self.added(state) * contrast.to(kind), self.gain(state), found)
        return self.blocks.inverse(changed)
