"""Super-resolution network: a U-Net changes the cosine transforms of overlapping blocks of a coarse scan."""

import torch
from torch import nn
from torch.nn import functional

from .cosines import CoefficientUNet, CosineBlocks, begin_small, bounds, in_parts, split

__all__ = ["Sharpening", "refined"]


class Sharpening(nn.Module):
    """Finds the detail that is missing in images interpolated to a finer grid; their 99th percentile is about 1.

    A U-Net on the cosine transforms of overlapping blocks finds a factor for each coefficient and a term to add to it,
    in units of the block's contrast. So the result does not depend on the brightness and contrast of the image, and
    training starts from the interpolation.

    Args:
        told: number of further channels, constant in an image, which hold how coarse the scan was.
        size: voxels of a block along an axis: 6, or another even number that is not a multiple of 4.
        channels: channels at a half and at a quarter of the image's resolution.
        blocks: residual blocks of two convolutions at a half and at a quarter of the resolution; even numbers.
        least: contrast that every block is assumed to have at least.
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
        """Return the missing detail (B, 1, I, J, K) of (B, 1 + told, I, J, K), whose sizes are multiples of 4."""
        scan, told = image[:, :1], image[:, 1:, ::2, ::2, ::2]
        found = self.blocks(scan)
        # plane by plane, since planes fit into a processor's caches; else most of the time is spent on memory access
        planes = range(found.shape[2])
        contrast = torch.cat([found[:, 1:, n : n + 1].float().square().mean(1, keepdim=True) for n in planes], 2).sqrt()
        contrast = functional.avg_pool3d(contrast, 3, 1, 1, count_include_pad=False) + self.least
        state = self.unet.body(torch.cat([self._described(scan, told, found, contrast, n) for n in planes], 2))
        changed = torch.cat([self._changed(found, contrast, state, n) for n in planes], 2)
        return self.blocks.inverse(changed)

    def _described(
        self, scan: torch.Tensor, told: torch.Tensor, found: torch.Tensor, contrast: torch.Tensor, plane: int
    ) -> torch.Tensor:
        """Return the output (B, channels, 1, J / 2, K / 2) of the U-Net's first layer in one plane of blocks."""
        found, contrast = found.narrow(2, plane, 1), contrast.narrow(2, plane, 1)
        kind = found.dtype
        mean = found[:, :1] / self.blocks.count**0.5
        levels = 4 * functional.softsign(found[:, 1:] / (4 * contrast).to(kind))
        detail = functional.softsign((split(scan.narrow(2, 2 * plane, 2)) - mean) / (3 * contrast))
        rest = torch.cat([mean.float(), detail, contrast.log(), told.narrow(2, plane, 1)], 1)
        return self.unet.head(torch.cat([levels, rest.to(kind)], 1))

    def _changed(self, found: torch.Tensor, contrast: torch.Tensor, state: torch.Tensor, plane: int) -> torch.Tensor:
        """Return what is added to the coefficients, (B, count, 1, J / 2, K / 2), in one plane of blocks."""
        found, state = found.narrow(2, plane, 1), state.narrow(2, plane, 1)
        contrast = contrast.narrow(2, plane, 1).to(found.dtype)
        return torch.addcmul(self.added(state) * contrast, self.gain(state), found)


def refined(image: torch.Tensor, network: nn.Module, most: int) -> torch.Tensor:
    """Return what `network` finds for images (B, 1 + told, I, J, K), as (B, 1, I, J, K); sizes are multiples of 8.

    The air around a head contains no detail: it does not go through the network, and the result is 0 there.
    most: largest number of voxels along an axis that go through the network at once.
    """
    whole = image[:, :1].float()
    coarse = functional.avg_pool3d(whole, 8)
    air = float(coarse.flatten().kthvalue(1 + coarse.numel() // 20).values)  # magnitudes of noise are not 0 there
    signal = (coarse > min(max(0.03, 1.4 * air), 0.1)).flatten(0, 1).any(0)
    out = torch.zeros_like(whole)
    if bool(signal.any()):
        i, j, k = bounds(signal)
        out[..., i, j, k] = in_parts(image[..., i, j, k], network, most).float()
    return out
