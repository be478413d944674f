"""Estimates the bias field of an image: the smooth factor that keeps each kind of tissue from one brightness."""

import math

import torch
from torch.nn import functional

__all__ = ["fitted"]

SIZE = 32
"""Blocks to which an image is reduced along each axis, since a field changes slowly."""
WIDTH = 6
"""Blocks in the window of the mean that, applied three times, smooths the field; twice as many at first."""
TURNS = 20
"""Iterations."""
KINDS = 4
"""Kinds of tissue; more of them leave more of the field, fewer merge grey and white matter."""
DARKEST = 0.1
"""Lower bound of tissue, in images whose 99th percentile is 1."""
FEWEST = 100
"""Fewest blocks per kind, on average, that allow an estimate."""


def fitted(parts: torch.Tensor) -> torch.Tensor:
    """Return images and improved logarithms of their bias fields, (B, 2, I, J, K), for images and first estimates.

    The logarithm of brightness is modelled as a mixture of normal distributions. Alternately, blocks of voxels are
    assigned to kinds of tissue, and the field becomes the smooth function that brings the blocks to the means of their
    kinds (Wells et al. 1996); it is smoother in the first iterations. The mean of the field over tissue is 0.
    """
    plain = parts.as_tensor() if hasattr(parts, "as_tensor") else parts
    i, j, k = (min(SIZE, size) for size in plain.shape[2:])
    small = functional.adaptive_avg_pool3d(plain.float(), (i, j, k))
    fields = torch.stack([_of_one(image, guess) for image, guess in small])[:, None]
    found = functional.interpolate(fields, plain.shape[2:], mode="trilinear")
    return torch.cat([parts[:, :1], found.to(plain.dtype)], 1)


def _of_one(image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Return the log field (i, j, k) of an image of that shape, from a first estimate."""
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
    """Return three successive means over windows, which is nearly a Gaussian; 0 beyond the borders."""
    for axis in (1, 2, 3):
        own = 2 * (width * values.shape[axis] // SIZE // 2) + 1  # few slices are thick slices
        window = [own if n == axis else 1 for n in (1, 2, 3)]
        for _ in range(3):
            values = functional.avg_pool3d(values, window, 1, [n // 2 for n in window])
    return values
