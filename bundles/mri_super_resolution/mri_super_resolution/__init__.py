"""The network that finds what a coarse scan lacks: cosine transforms of overlapping blocks, which a U-Net adds to."""

import torch
from torch import nn
from torch.nn import functional

from .cosines import CoefficientUNet, CosineBlocks, begin_small, bounds, in_parts, split

__all__ = ["Sharpening", "refined"]


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
        self.unet = CoefficientUNet(count + 9 + told, channels, blocks)
        self.gain = nn.Conv3d(channels[0], count, 1)
        self.added = nn.Conv3d(channels[0], count, 1)
        begin_small(self, self.gain, self.added)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, I, J, K) of (B, 1 + told, I, J, K), whose sizes are multiples of 4."""
        scan, told = image[:, :1], image[:, 1:, ::2, ::2, ::2]
        found = self.blocks(scan)
        # plane by plane, which fit into a processor's caches: else it would wait for its memory most of the time
        planes = range(found.shape[2])
        contrast = torch.cat([found[:, 1:, n : n + 1].float().square().mean(1, keepdim=True) for n in planes], 2).sqrt()
        contrast = functional.avg_pool3d(contrast, 3, 1, 1, count_include_pad=False) + self.least
        state = self.unet.body(torch.cat([self._described(scan, told, found, contrast, n) for n in planes], 2))
        changed = torch.cat([self._changed(found, contrast, state, n) for n in planes], 2)
        return self.blocks.inverse(changed)

    def _described(
        self, scan: torch.Tensor, told: torch.Tensor, found: torch.Tensor, contrast: torch.Tensor, plane: int
    ) -> torch.Tensor:
        """(B, channels, 1, J / 2, K / 2) what the U-Net begins with, in one plane of blocks."""
        found, contrast = found.narrow(2, plane, 1), contrast.narrow(2, plane, 1)
        kind = found.dtype
        mean = found[:, :1] / self.blocks.count**0.5
        levels = 4 * functional.softsign(found[:, 1:] / (4 * contrast).to(kind))
        detail = functional.softsign((split(scan.narrow(2, 2 * plane, 2)) - mean) / (3 * contrast))
        rest = torch.cat([mean.float(), detail, contrast.log(), told.narrow(2, plane, 1)], 1)
        return self.unet.head(torch.cat([levels, rest.to(kind)], 1))

    def _changed(self, found: torch.Tensor, contrast: torch.Tensor, state: torch.Tensor, plane: int) -> torch.Tensor:
        """(B, count, 1, J / 2, K / 2): what is added to the coefficients."""
        found, state = found.narrow(2, plane, 1), state.narrow(2, plane, 1)
        contrast = contrast.narrow(2, plane, 1).to(found.dtype)
        return torch.addcmul(self.added(state) * contrast, self.gain(state), found)


def refined(image: torch.Tensor, network: nn.Module, most: int) -> torch.Tensor:
    """(B, 1, I, J, K) what `network` finds of images (B, 1 + told, I, J, K) whose sizes are multiples of 8.

    In the air around a head there is nothing to be found: it does not go through the network, and 0 stands there.
    `most`: voxels along an axis that go through it at once.
    """
    whole = image[:, :1].float()
    coarse = functional.avg_pool3d(whole, 8)
    air = float(coarse.flatten().kthvalue(1 + coarse.numel() // 20).values)  # noise of magnitudes is not 0 there
    signal = (coarse > min(max(0.03, 1.4 * air), 0.1)).flatten(0, 1).any(0)
    out = torch.zeros_like(whole)
    if bool(signal.any()):
        i, j, k = bounds(signal)
        out[..., i, j, k] = in_parts(image[..., i, j, k], network, most).float()
    return out
