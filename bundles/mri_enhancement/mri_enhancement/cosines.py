"""Cosine transforms of overlapping blocks of images, and networks of residual blocks on them."""

import math

import torch
from monai.inferers import sliding_window_inference
from torch import nn
from torch.nn import functional

__all__ = ["CoefficientUNet", "CosineBlocks", "Residual", "begin_small", "bounds", "in_parts", "split"]


def split(image: torch.Tensor) -> torch.Tensor:
    """Return the voxels of every block of 2 x 2 x 2 of images (B, 1, I, J, K), as (B, 8, I / 2, J / 2, K / 2)."""
    b, _, i, j, k = image.shape
    blocks = image.reshape(b, i // 2, 2, j // 2, 2, k // 2, 2).permute(0, 2, 4, 6, 1, 3, 5)
    return blocks.reshape(b, 8, i // 2, j // 2, k // 2)


def joined(blocks: torch.Tensor) -> torch.Tensor:
    """Return the inverse of `split`."""
    b, _, i, j, k = blocks.shape
    return blocks.reshape(b, 2, 2, 2, i, j, k).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, 1, 2 * i, 2 * j, 2 * k)


class CosineBlocks(nn.Module):
    """Orthonormal cosine transforms of blocks of `size` voxels along each axis, which start at every second voxel.

    `size` is 6, or another even number that is not a multiple of 4. The inverse restores an image exactly.
    """

    basis: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, size**3
        self.register_buffer("basis", split(_cosines(size)), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return coefficients (B, size^3, I / 2, J / 2, K / 2) of images (B, 1, I, J, K), lowest frequency first."""
        padded = functional.pad(image, [self.size // 2 - 1] * 6, mode="replicate")
        return functional.conv3d(split(padded), self.basis)

    @torch.jit.export
    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, I, J, K) float32, the mean of the blocks that cover each voxel."""
        half = self.size // 2
        covered = torch.ones_like(coefficients[:1, :1])
        shares = functional.conv_transpose3d(covered, covered.new_ones(1, 1, half, half, half)).float()
        image = joined(functional.conv_transpose3d(coefficients, self.basis).float() / shares)
        margin = half - 1
        return image[..., margin:-margin, margin:-margin, margin:-margin]


class Residual(nn.Module):
    """Two convolutions whose output is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, *space) for an input of that shape."""
        return x + self.second(functional.leaky_relu(self.first(x), 0.01))


class CoefficientUNet(nn.Module):
    """Residual blocks at two resolutions; half of those of the first come before those of the second, half after.

    Args:
        given: channels of the input.
        channels: channels at the two resolutions.
        blocks: blocks at each resolution; the first number is even.
    """

    def __init__(self, given: int, channels: tuple[int, int], blocks: tuple[int, int]) -> None:
        super().__init__()
        high, low = channels
        self.head = nn.Conv3d(given, high, 1)
        self.before = nn.Sequential(*[Residual(high) for _ in range(blocks[0] // 2)])
        inner = [Residual(low) for _ in range(blocks[1])]
        ends = nn.Conv3d(high, low, 2, 2, bias=False), nn.ConvTranspose3d(low, high, 2, 2, bias=False)
        self.context = nn.Sequential(ends[0], *inner, ends[1])
        self.after = nn.Sequential(*[Residual(high) for _ in range(blocks[0] // 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels[0], *space) for (B, given, *space) with even sizes."""
        return self.body(self.head(x))

    @torch.jit.export
    def body(self, state: torch.Tensor) -> torch.Tensor:
        """Return the output for the output of the first layer, `head`, which may be applied part by part."""
        state = self.before(state)
        return self.after(state + self.context(state))


def begin_small(network: nn.Module, *last: nn.Conv3d) -> None:
    """Draw initial weights with which signals pass, residual blocks change little and `last` layers return little."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=0.01)
    for module in network.modules():
        if isinstance(module, Residual):
            module.second.weight.data.mul_(0.1)
    for layer in last:
        for parameter in layer.parameters():
            parameter.data.mul_(0.05)


def in_parts(image: torch.Tensor, network: nn.Module, most: int, overlap: int = 16) -> torch.Tensor:
    """Return a network's output for images (B, C, I, J, K), computed in equal, overlapping parts.

    Parts have up to `most` voxels along an axis. Sizes of images are multiples of 8.
    """
    counts = [math.ceil(max(1, n - overlap) / (most - overlap)) for n in image.shape[2:]]
    sizes = [8 * math.ceil((n + (c - 1) * overlap) / c / 8) for n, c in zip(image.shape[2:], counts, strict=True)]
    shares = [overlap / size if c > 1 else 0.0 for size, c in zip(sizes, counts, strict=True)]
    found: torch.Tensor = sliding_window_inference(image, sizes, 1, network, overlap=shares, mode="gaussian")
    return found


def bounds(signal: torch.Tensor, margin: int = 16) -> tuple[slice, slice, slice]:
    """Return the box, in voxels, around the blocks of 8^3 voxels (I, J, K) that are true, with a margin in voxels."""
    box = []
    for axis, size in enumerate(signal.shape):
        seen = signal.transpose(0, axis).flatten(1).any(1).nonzero()
        box.append(slice(max(0, 8 * int(seen.min()) - margin), min(8 * size, 8 * int(seen.max()) + 8 + margin)))
    return box[0], box[1], box[2]


def _cosines(size: int) -> torch.Tensor:
    """Return the cosine basis (size^3, 1, size, size, size)."""
    steps = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * steps + 1) * steps[:, None] / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return torch.einsum("ai,bj,ck->abcijk", basis, basis, basis).reshape(size**3, 1, size, size, size).float()
