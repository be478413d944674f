"""Measures of similarity between images, labels and points on one grid.

Images are torch tensors (I, J, K) float32; planar ones have a single voxel along one axis. Nothing here imports monai,
whose metrics take seconds to import.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_WINDOW = 7
"""SSIM's window, voxels along each axis (Wang et al. 2004; scikit-image's default)."""
_SLAB = 48
"""Number of slices for which SSIM is computed at once, which bounds its memory."""
_SAMPLE = 1_000_000
"""Number of voxels from which percentiles are computed."""


def ncc(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Return the correlation coefficient of two images (I, J, K), -1 .. 1; 0 if one of them is constant."""
    import torch

    x, y = _values(a, b, mask)
    x, y = x - x.mean(), y - y.mean()
    # a float32 sum over millions of voxels, as in x @ y, is wrong in the third digit
    xx, yy, xy = (float((p * q).sum(dtype=torch.float64)) for p, q in ((x, x), (y, y), (x, y)))
    norm = math.sqrt(xx * yy)
    return xy / norm if norm > 0 else 0.0


def mse(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Return the mean squared difference of two images (I, J, K), in their squared units."""
    x, y = _values(a, b, mask)
    return float(((x - y) ** 2).mean())


def psnr(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio of two images (I, J, K) in dB; infinite if they are equal.

    `data_range` is the span that the intensities can take.
    """
    error = mse(a, b, mask)
    return 10 * math.log10(data_range**2 / error) if error > 0 else math.inf


def mutual_information(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None, bins: int = 32) -> float:
    """Return the mutual information of two images (I, J, K) in nats, from a joint histogram of `bins` x `bins`."""
    import torch

    x, y = _values(a, b, mask)
    joint = torch.bincount(_binned(x, bins) * bins + _binned(y, bins), minlength=bins * bins)
    p = joint.reshape(bins, bins).double() / x.numel()
    entropy = torch.special.entr
    return float(entropy(p.sum(0)).sum() + entropy(p.sum(1)).sum() - entropy(p).sum())


def ssim(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None, data_range: float | None = None) -> float:
    """Return the mean structural similarity of two images (I, J, K), -1 .. 1 (Wang et al. 2004).

    Uniform windows of 7 voxels along each axis that has as many, sample covariances, and no windows that cross the
    border, as in `skimage.metrics.structural_similarity`. `mask` picks the window centres. `data_range` is the span
    that the intensities can take; None: the span of the values of both images.
    """
    import torch

    axes = [axis for axis, size in enumerate(a.shape) if size >= _WINDOW]
    if data_range is None:
        data_range = float(torch.maximum(a.max(), b.max()) - torch.minimum(a.min(), b.min()))
    if not axes or data_range <= 0:
        return 1.0 if torch.equal(a, b) else 0.0
    total, count = 0.0, 0
    slab_axis = axes[0]
    last = a.shape[slab_axis] - _WINDOW + 1
    for first in range(0, last, _SLAB):
        size = min(_SLAB, last - first) + _WINDOW - 1
        x, y = (image.narrow(slab_axis, first, size).float() for image in (a, b))
        values = _structural(x, y, axes, data_range)
        if mask is not None:
            values = values[_centres(mask.narrow(slab_axis, first, size), axes) > 0]
        total, count = total + float(values.sum(dtype=torch.float64)), count + values.numel()
    return total / max(count, 1)


def similarity(fixed: torch.Tensor, moved: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, float]:
    """Return `ncc`, `mi` (nats), `mse` and `ssim` of two images (I, J, K) on one grid, with five digits each.

    For `mse` and `ssim` each image is first scaled to 0 .. 1 between its own 1st and 99th percentile, so that they
    compare scans whose units differ.
    """
    import torch

    kept = None if mask is None else mask > 0
    if kept is not None and not bool(kept.any()):
        raise ValueError("the mask keeps no voxel")
    same = fixed.shape == moved.shape
    if not same:
        raise ValueError(f"expected two images on one grid, got {tuple(fixed.shape)} and {tuple(moved.shape)}")
    fixed, moved = fixed.to(torch.float32), moved.to(torch.float32)
    x, y = rescaled(fixed), rescaled(moved)
    values = {
        "ncc": ncc(fixed, moved, kept),
        "mi": mutual_information(x, y, kept),
        "mse": mse(x, y, kept),
        "ssim": ssim(x, y, kept, data_range=1.0),
    }
    return {name: round(value, 5) for name, value in values.items()}


def rescaled(image: torch.Tensor) -> torch.Tensor:
    """Return `image` on a scale where its 1st percentile is 0 and its 99th is 1, clipped to this range."""
    flat = image.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLE)]
    low, high = (float(sample.kthvalue(1 + int(q * (sample.numel() - 1))).values) for q in (0.01, 0.99))
    if high <= low:
        low, high = float(flat.min()), float(flat.max())
    return ((image - low) / ((high - low) or 1.0)).clamp_(0, 1)


def dice(a: torch.Tensor, b: torch.Tensor, ignore_background: bool = True) -> dict[int, float]:
    """Return `{label: dice}`, the overlap of each label of two label images of one shape, 0 .. 1 (Dice 1945).

    Labels are whole numbers; every label of either image is listed, 0 only with `ignore_background=False`.
    """
    import torch

    x, y = torch.as_tensor(a).reshape(-1).long(), torch.as_tensor(b).reshape(-1).long()
    labels, index = torch.unique(torch.cat([x, y]), return_inverse=True)
    count = labels.numel()
    ix, iy = index[: x.numel()], index[x.numel() :]
    sizes = torch.bincount(ix, minlength=count) + torch.bincount(iy, minlength=count)
    shared = torch.bincount(ix[ix == iy], minlength=count)
    overlap = (2 * shared / sizes).tolist()
    return {int(n): float(d) for n, d in zip(labels, overlap, strict=True) if n != 0 or not ignore_background}


def target_registration_error(points_a: np.ndarray, points_b: np.ndarray) -> dict[str, float]:
    """Return the `mean` and `max` distance in mm between points (N, 3) that should coincide."""
    distances = np.linalg.norm(np.asarray(points_a, float) - np.asarray(points_b, float), axis=1)
    return {"mean": float(distances.mean()), "max": float(distances.max())}


def _values(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if mask is None:
        return a.reshape(-1), b.reshape(-1)
    kept = mask > 0
    return a[kept], b[kept]


def _binned(values: torch.Tensor, bins: int) -> torch.Tensor:
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (bins / ((high - low) or 1.0))).int().clamp_(0, bins - 1)


def _structural(x: torch.Tensor, y: torch.Tensor, axes: list[int], data_range: float) -> torch.Tensor:
    """Return the SSIM of every window inside the images."""
    size = _WINDOW ** len(axes)
    sample = size / (size - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # relative to the slab's mean, so that squares in float32 keep their digits
    shift = float(x.mean())
    x, y = x - shift, y - shift
    ux, uy = _mean(x, axes), _mean(y, axes)
    spread = sample * (_mean(x * x + y * y, axes) - ux * ux - uy * uy)
    covariance = sample * (_mean(x * y, axes) - ux * uy)
    ux, uy = ux + shift, uy + shift
    return ((2 * ux * uy + c1) * (2 * covariance + c2)) / ((ux * ux + uy * uy + c1) * (spread + c2))


def _mean(image: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Return the mean over every window inside the image: along each axis in turn, sums of 2, 4, 6 and 7 slices."""
    for axis in axes:
        count = image.shape[axis] - _WINDOW + 1
        pairs = image.narrow(axis, 0, count + 5) + image.narrow(axis, 1, count + 5)
        total = pairs.narrow(axis, 0, count) + pairs.narrow(axis, 2, count)
        image = total.add_(pairs.narrow(axis, 4, count)).add_(image.narrow(axis, 6, count))
    return image / _WINDOW ** len(axes)


def _centres(mask: torch.Tensor, axes: list[int]) -> torch.Tensor:
    for axis in axes:
        mask = mask.narrow(axis, _WINDOW // 2, mask.shape[axis] - _WINDOW + 1)
    return mask
