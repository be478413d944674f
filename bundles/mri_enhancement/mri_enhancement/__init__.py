"""The network that denoises: cosine transforms of overlapping blocks, shrunk as far as a U-Net says."""

import math

import torch
from torch import nn
from torch.nn import functional

from .cosines import CoefficientUNet, CosineBlocks, begin_small, bounds, in_parts, split
from .tissues import fitted

__all__ = ["LocalNoise", "Shrinkage", "enhanced", "fitted", "in_parts", "scale"]


class LocalNoise(nn.Module):
    """The standard deviation of an image's noise around each voxel, of every second one along each axis.

    The diagonal detail of Haar wavelets, which holds little else (Donoho & Johnstone 1994): over tissue its median is
    the strength in the whole, and its mean over some `reach` voxels, drawn towards that where there is little tissue,
    the strength there.
    """

    signs: torch.Tensor

    def __init__(self, reach: int = 40, tissue: float = 0.15, least: float = 0.002) -> None:
        """`tissue`: what is brighter, of images whose 99th percentile is 1; `least` noise is always assumed."""
        super().__init__()
        self.reach, self.tissue, self.least = reach, tissue, least
        signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, -1]) / math.sqrt(8)
        self.register_buffer("signs", signs.reshape(1, 8, 1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, I / 2, J / 2, K / 2) of images (B, 1, I, J, K)."""
        blocks = split(image)
        detail = (blocks * self.signs).sum(1, keepdim=True).abs()
        alive = detail > 1e-6  # padding is not, whatever it repeats
        tissue = alive & (blocks.mean(1, keepdim=True) > self.tissue)
        return torch.stack([self._of_one(detail[n], alive[n], tissue[n]) for n in range(len(image))])

    def _of_one(self, detail: torch.Tensor, alive: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
        seen = tissue if bool(tissue.any()) else alive
        whole = self._median(detail[seen]) / 0.6745  # of the absolute value of a standard normal variable
        weights = seen.to(detail.dtype)
        parts = torch.cat([detail.clamp(max=5 * whole) * weights, weights])  # edges, which are few, count little
        _, i, j, k = detail.shape
        parts = functional.adaptive_avg_pool3d(parts, (max(1, i // 4), max(1, j // 4), max(1, k // 4)))
        # the mean of `reach` voxels: of every eighth, as many to either side
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
    """Takes noise of any strength out of images whose 99th percentile is about 1.

    Every second voxel along each axis begins a block of `size` voxels along each, 27 of which overlap where `size` is
    6. Their cosine transforms are multiplied with factors from 0 to 1, and their overlapping inverses averaged, as in
    classical shrinkage (BM4D's second half); the factors are those of a threshold, which a small U-Net of residual
    blocks on all magnitudes over the noise moves up and down, and it adds what it knows to be lost, in units of the
    noise. It begins where classical shrinkage ends, so that it learns in hours on two cores; and where there is no
    noise, nothing happens.

    Args:
        size: voxels of a block along an axis: 6, or another even number that is no multiple of 4.
        channels: those at half of the image's resolution, and at a quarter.
        blocks: residual blocks of two convolutions at half of the resolution, and at a quarter; even numbers.
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
        """(B, 1, I, J, K) without noise, of images (B, 1, I, J, K) whose sizes are multiples of 4."""
        with torch.no_grad():
            noise = self.noise(image.float())
        found = self.blocks(image)
        # plane by plane, which fit into a processor's caches: else it would wait for its memory most of the time
        planes = range(found.shape[2])
        state = self.unet.body(torch.cat([self._described(image, found, noise, plane) for plane in planes], 2))
        gone = torch.cat([self._gone(found, noise, state, plane) for plane in planes], 2)
        # it is taken from the image, and not the image put together from what stays: so that keeps all its digits
        return image - self.blocks.inverse(gone)

    def _described(self, image: torch.Tensor, found: torch.Tensor, noise: torch.Tensor, plane: int) -> torch.Tensor:
        """(B, channels, 1, J / 2, K / 2) what the U-Net begins with, in one plane of blocks."""
        found, noise = found.narrow(2, plane, 1), noise.narrow(2, plane, 1)
        squashed = functional.softsign(found / (3 * noise).to(found.dtype))
        mean = found[:, :1] / self.blocks.count**0.5
        detail = functional.softsign((split(image.narrow(2, 2 * plane, 2)) - mean) / (3 * noise))
        kind = found.dtype
        return self.unet.head(torch.cat([squashed.abs(), squashed, detail.to(kind), noise.log().to(kind)], 1))

    def _gone(self, found: torch.Tensor, noise: torch.Tensor, state: torch.Tensor, plane: int) -> torch.Tensor:
        """(B, count, 1, J / 2, K / 2): what is taken from the coefficients."""
        found, state = found.narrow(2, plane, 1), state.narrow(2, plane, 1)
        kind = found.dtype
        own = noise.narrow(2, plane, 1).to(kind)
        levels = found / own
        beyond = torch.addcmul(self.moved(state), self.slope.to(kind), levels.abs() - self.threshold.to(kind))
        return (levels * torch.sigmoid(-beyond) - self.added(state)) * own


def enhanced(
    image: torch.Tensor, network: nn.Sequential, most: int, *, denoised: bool = True, unbiased: bool = True
) -> torch.Tensor:
    """(B, 2, I, J, K): images (B, 1, I, J, K) without noise, and the logarithms of their bias fields.

    Args:
        image: its sizes are multiples of 32.
        network: of two parts: what takes noise away, and what adds a channel with a guess of the field.
        most: voxels along an axis that go through the first part at once.
        denoised: if not, the noise stays, and the first part is not computed.
        unbiased: if not, the field is 0, and the second part is not computed.
    """
    clean = _denoised(image, network[0], most) if denoised else image
    return fitted(network[1](clean)) if unbiased else torch.cat([clean, torch.zeros_like(clean)], 1)


def _denoised(image: torch.Tensor, network: nn.Module, most: int) -> torch.Tensor:
    """Air around the head, up to half of a scan, is smoothed, and does not go through the network."""
    whole = image.float()
    coarse = functional.avg_pool3d(whole, 8)
    noise = float(network.get_submodule("noise")(whole).median())
    signal = (coarse > max(0.03, 1.75 * noise)).flatten(0, 1).any(0)  # magnitudes of noise alone have a mean of 1.25
    if not bool(signal.any()):
        return in_parts(image, network, most)
    out = functional.interpolate(functional.avg_pool3d(coarse, 3, 1, 1, count_include_pad=False), image.shape[2:])
    i, j, k = bounds(signal)
    out[..., i, j, k] = in_parts(image[..., i, j, k], network, most)
    return out


def scale(image: torch.Tensor) -> float:
    """The 99th percentile of what is brighter than 0, of every seventh voxel; 1 where nothing is."""
    some = (image.as_tensor() if hasattr(image, "as_tensor") else image).reshape(-1)[::7]
    some = some[some > 0]
    return max(float(some.kthvalue(max(1, round(0.99 * len(some)))).values), 1e-6) if len(some) else 1.0
