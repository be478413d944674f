"""Denoising network: cosine transforms of overlapping blocks, shrunk by a U-Net."""

import math

import torch
from torch import nn
from torch.nn import functional

from .cosines import CoefficientUNet, CosineBlocks, begin_small, bounds, in_parts, split
from .tissues import fitted

__all__ = ["LocalNoise", "Shrinkage", "enhanced", "fitted", "in_parts", "scale"]


class LocalNoise(nn.Module):
    """Estimates the standard deviation of an image's noise around every second voxel along each axis.

    The diagonal detail of Haar wavelets contains little but noise (Donoho & Johnstone 1994). Its median over tissue is
    the strength in the whole image. The local strength is its mean over about `reach` voxels, which is drawn towards
    the strength in the whole image where there is little tissue.
    """

    signs: torch.Tensor

    def __init__(self, reach: int = 40, tissue: float = 0.15, least: float = 0.002) -> None:
        """tissue: voxels above it are tissue, in images whose 99th percentile is 1; least: smallest noise assumed."""
        super().__init__()
        self.reach, self.tissue, self.least = reach, tissue, least
        signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, -1]) / math.sqrt(8)
        self.register_buffer("signs", signs.reshape(1, 8, 1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the noise (B, 1, I / 2, J / 2, K / 2) of images (B, 1, I, J, K)."""
        blocks = split(image)
        detail = (blocks * self.signs).sum(1, keepdim=True).abs()
        alive = detail > 1e-6  # padding has no noise, whatever it repeats
        tissue = alive & (blocks.mean(1, keepdim=True) > self.tissue)
        return torch.stack([self._of_one(detail[n], alive[n], tissue[n]) for n in range(len(image))])

    def _of_one(self, detail: torch.Tensor, alive: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
        seen = tissue if bool(tissue.any()) else alive
        whole = self._median(detail[seen]) / 0.6745  # of the absolute value of a standard normal variable
        weights = seen.to(detail.dtype)
        parts = torch.cat([detail.clamp(max=5 * whole) * weights, weights])  # edges are few and count little
        _, i, j, k = detail.shape
        parts = functional.adaptive_avg_pool3d(parts, (max(1, i // 4), max(1, j // 4), max(1, k // 4)))
        # the mean over `reach` voxels, of every eighth voxel, as many to either side
        aside = self.reach // 16
        parts = functional.pad(parts, [aside] * 6)
        parts = functional.avg_pool3d(parts, 2 * aside + 1, 1)
        prior = 0.02
        local = (parts[:1] / 0.7979 + prior * whole) / (parts[1:] + prior)  # 0.7979: as 0.6745, of the mean
        return functional.interpolate(local[None], detail.shape[1:], mode="trilinear")[0]

    def _median(self, details: torch.Tensor) -> float:
        if details.numel() == 0:
            return self.least
        return max(self.least, float(details[:: 1 + details.numel() // 200_000].median()))


class Shrinkage(nn.Module):
    """Removes noise of any strength from images whose 99th percentile is about 1.

    A block of `size` voxels along each axis starts at every second voxel; 27 of them overlap if `size` is 6. Their
    cosine transforms are multiplied by factors from 0 to 1, and their overlapping inverses are averaged, as in
    classical shrinkage (the second half of BM4D). The factors are those of a threshold. A small U-Net of residual
    blocks, whose input are the magnitudes divided by the noise, moves the threshold up and down and adds what
    shrinkage loses, in units of the noise. Training starts from classical shrinkage, so that it takes hours on two
    cores. Without noise the image does not change.

    Args:
        size: voxels of a block along an axis: 6, or another even number that is not a multiple of 4.
        channels: channels at a half and at a quarter of the image's resolution.
        blocks: residual blocks of two convolutions at a half and at a quarter of the resolution; even numbers.
    """

    def __init__(self, size: int = 6, channels: tuple[int, int] = (64, 96), blocks: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.noise, self.blocks = LocalNoise(), CosineBlocks(size)
        count = self.blocks.count
        self.unet = CoefficientUNet(2 * count + 9, channels, blocks)
        self.moved = nn.Conv3d(channels[0], count, 1)
        self.added = nn.Conv3d(channels[0], count, 1)
        begin_small(self, self.moved, self.added)
        self.slope = nn.Parameter(torch.full((1, count, 1, 1, 1), 3.0))
        self.threshold = nn.Parameter(torch.full((1, count, 1, 1, 1), 2.5))
        self.threshold.data[:, 0] = -5  # the mean of a block stays

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return images (B, 1, I, J, K) without noise; their sizes are multiples of 4."""
        with torch.no_grad():
            noise = self.noise(image.float())
        found = self.blocks(image)
        # plane by plane, since planes fit into a processor's caches; else most of the time is spent on memory access
        planes = range(found.shape[2])
        state = self.unet.body(torch.cat([self._described(image, found, noise, plane) for plane in planes], 2))
        gone = torch.cat([self._gone(found, noise, state, plane) for plane in planes], 2)
        # the noise is subtracted from the image, so that the rest of the image keeps all its digits
        return image - self.blocks.inverse(gone)

    def _described(self, image: torch.Tensor, found: torch.Tensor, noise: torch.Tensor, plane: int) -> torch.Tensor:
        """Return the output (B, channels, 1, J / 2, K / 2) of the U-Net's first layer in one plane of blocks."""
        found, noise = found.narrow(2, plane, 1), noise.narrow(2, plane, 1)
        squashed = functional.softsign(found / (3 * noise).to(found.dtype))
        mean = found[:, :1] / self.blocks.count**0.5
        detail = functional.softsign((split(image.narrow(2, 2 * plane, 2)) - mean) / (3 * noise))
        kind = found.dtype
        return self.unet.head(torch.cat([squashed.abs(), squashed, detail.to(kind), noise.log().to(kind)], 1))

    def _gone(self, found: torch.Tensor, noise: torch.Tensor, state: torch.Tensor, plane: int) -> torch.Tensor:
        """Return what is subtracted from the coefficients, (B, count, 1, J / 2, K / 2), in one plane of blocks."""
        found, state = found.narrow(2, plane, 1), state.narrow(2, plane, 1)
        kind = found.dtype
        own = noise.narrow(2, plane, 1).to(kind)
        levels = found / own
        beyond = torch.addcmul(self.moved(state), self.slope.to(kind), levels.abs() - self.threshold.to(kind))
        return (levels * torch.sigmoid(-beyond) - self.added(state)) * own


def enhanced(
    image: torch.Tensor, network: nn.Sequential, most: int, *, denoised: bool = True, unbiased: bool = True
) -> torch.Tensor:
    """Return images without noise and the logarithms of their bias fields, (B, 2, I, J, K).

    Args:
        image: (B, 1, I, J, K), with sizes that are multiples of 32.
        network: two parts; the first removes noise, the second adds a channel with a first estimate of the field.
        most: largest number of voxels along an axis that go through the first part at once.
        denoised: if false, the noise stays and the first part is not computed.
        unbiased: if false, the field is 0 and the second part is not computed.
    """
    clean = _denoised(image, network[0], most) if denoised else image
    return fitted(network[1](clean)) if unbiased else torch.cat([clean, torch.zeros_like(clean)], 1)


def _denoised(image: torch.Tensor, network: nn.Module, most: int) -> torch.Tensor:
    """Remove noise; air around the head, up to half of a scan, is smoothed and does not go through the network."""
    whole = image.float()
    coarse = functional.avg_pool3d(whole, 8)
    noise = float(network.get_submodule("noise")(whole).median())
    signal = (coarse > max(0.03, 1.75 * noise)).flatten(0, 1).any(0)  # magnitudes of pure noise have a mean of 1.25
    if not bool(signal.any()):
        return in_parts(image, network, most)
    out = functional.interpolate(functional.avg_pool3d(coarse, 3, 1, 1, count_include_pad=False), image.shape[2:])
    i, j, k = bounds(signal)
    out[..., i, j, k] = in_parts(image[..., i, j, k], network, most)
    return out


def scale(image: torch.Tensor) -> float:
    """Return the 99th percentile of every seventh voxel among those brighter than 0; 1 if no voxel is."""
    some = (image.as_tensor() if hasattr(image, "as_tensor") else image).reshape(-1)[::7]
    some = some[some > 0]
    return max(float(some.kthvalue(max(1, round(0.99 * len(some)))).values), 1e-6) if len(some) else 1.0
