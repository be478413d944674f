"""The bias field of one image: what keeps its kinds of tissue from being of one brightness each."""

import math

import torch
from torch.nn import functional

__all__ = ["fitted"]

SIZE = 32
"""Blocks that an image is shrunk to along an axis: a field changes slowly."""
WIDTH = 6
"""Blocks of `SIZE` that make the window which, three times over, says how smooth a field is; at first twice that."""
TURNS = 20
KINDS = 4
"""Of tissue; more of them leave more of the field, fewer take grey and white matter for one."""
DARKEST = 0.1
"""Tissue is brighter, in images whose 99th percentile is 1."""
FEWEST = 100
"""Blocks of a kind on average, below which there is nothing to go by."""


def fitted(parts: torch.Tensor) -> torch.Tensor:
    """(B, 2, I, J, K): images, and the logarithms of their bias fields, which fit the images better than those given.

    Brightness is taken for a mixture of normal distributions of its logarithm. In turns each block of voxels is given
    to kinds of tissue, and the field becomes the smooth function that brings blocks to the means of theirs (Wells et
    al. 1996), first a smoother one, then one of more detail. The mean of the field over tissue is 0.
    """
    plain = parts.as_tensor() if hasattr(parts, "as_tensor") else parts
    i, j, k = (min(SIZE, size) for size in plain.shape[2:])
    small = functional.adaptive_avg_pool3d(plain.float(), (i, j, k))
    fields = torch.stack([_of_one(image, guess) for image, guess in small])[:, None]
    found = functional.interpolate(fields, plain.shape[2:], mode="trilinear")
    return torch.cat([parts[:, :1], found.to(plain.dtype)], 1)


def _of_one(image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """(i, j, k), from an image and a guess of its field of that shape."""
    logs = image.clamp(min=1e-4).log()
    tissue = logs - field > math.log(DARKEST)
    if int(tissue.sum()) < FEWEST * KINDS:
        return field
    even = (logs - field)[tissue]
    means = even.quantile((torch.arange(KINDS, device=even.device) + 0.5) / KINDS)
    spreads = even.std().clamp(min=1e-2).expand(KINDS) / KINDS
    shares = torch.full_like(means, 1 / KINDS)
    sums = image.new_zeros(2, *image.shape)
    for turn in range(TURNS):
        even = (logs - field)[tissue][:, None]
        chances = (shares.log() - spreads.log() - 0.5 * ((even - means) / spreads).square()).softmax(1)
        counts = chances.sum(0) + 1e-6
        shares = counts / counts.sum()
        means = (chances * even).sum(0) / counts
        spreads = ((chances * (even - means).square()).sum(0) / counts + 1e-4).sqrt()
        weights = chances / spreads.square()
        sums[:, tissue] = torch.stack([(weights * (even - means)).sum(1), weights.sum(1)])
        above, weight = _smoothed(sums, WIDTH if turn >= TURNS // 2 else 2 * WIDTH)
        field = field + above / (weight + 1e-3 * weight[tissue].mean())
    return field - field[tissue].mean()


def _smoothed(values: torch.Tensor, width: int) -> torch.Tensor:
    """Three means over windows one after the other, which is nearly a Gaussian; 0 beyond the borders."""
    for axis in (1, 2, 3):
        own = 2 * (width * values.shape[axis] // SIZE // 2) + 1  # few slices are thick ones
        window = [own if n == axis else 1 for n in (1, 2, 3)]
        for _ in range(3):
            values = functional.avg_pool3d(values, window, 1, [n // 2 for n in window])
    return values
