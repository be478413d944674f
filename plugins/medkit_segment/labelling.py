"""Turn the channels of a network into labels and their probabilities.

Volumes are (I, J, K) on the network's grid. The network's output (C, I, J, K) holds logits, the background first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medkit.space import Grid

if TYPE_CHECKING:
    import torch

_SLAB_VALUES = 1 << 24
"""Number of logits that are processed at a time: 64 MB."""
_SAME_VOXEL = 0.01
"""voxels; two grids that differ by less count as aligned."""


def most_likely(logits: torch.Tensor) -> np.ndarray:
    """Return the channel with the largest logit of each voxel, (I, J, K) uint8; the first one if several are equal."""
    import torch

    slabs = [part.max(1).indices.to(torch.uint8) for part in _slabs(logits)]
    return torch.cat(slabs).numpy()


def certainty(logits: torch.Tensor, channels: np.ndarray) -> np.ndarray:
    """Return the probability of the channel chosen for each voxel, (I, J, K) float32; 1 in the background."""
    import torch

    out = np.ones(channels.shape, np.float32)
    rows = logits.movedim(0, -1)
    first = 0
    for part in _slabs(logits):
        chosen = torch.from_numpy(channels[first : first + len(part)])
        inside = chosen > 0
        values = rows[first : first + len(part)][inside].float()
        own = values.gather(1, chosen[inside].long()[:, None])[:, 0]
        out[first : first + len(part)][inside.numpy()] = (own - values.logsumexp(1)).exp().numpy()
        first += len(part)
    return out


def probabilities(logits: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield the probabilities of each channel in turn, (I, J, K) float32."""
    import torch

    total = torch.cat([part.float().logsumexp(1) for part in _slabs(logits)])
    for channel in logits:
        yield (channel.float() - total).exp_().numpy()


def _slabs(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield parts (i, C, J, K) of the logits along the first spatial axis."""
    size = max(1, _SLAB_VALUES // max(1, logits[:, :1].numel()))
    yield from logits.movedim(0, 1).split(size)


def on_grid(labels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Resample labels (I, J, K) to `grid` with the nearest voxel, 0 outside.

    `affine` takes the labels' voxel indices to RAS+ mm. If the axes of both grids are parallel, in any order and
    direction, voxels are looked up axis by axis, which is exact and fast.
    """
    step = np.linalg.inv(affine) @ grid.affine
    axes = np.abs(step[:3, :3]).argmax(0)
    parallel = np.zeros_like(step[:3, :3])
    parallel[axes, range(3)] = step[axes, range(3)]
    deviation = np.abs(step[:3, :3] - parallel) @ np.array(grid.shape)
    if sorted(axes) != [0, 1, 2] or deviation.max() > _SAME_VOXEL:
        from medkit.images import Image
        from medkit.transforms import resample

        own = Image(labels[None], Grid(labels.shape, affine, grid.dims))
        return resample(own, grid, interpolation="nearest").data[0]
    out = np.transpose(labels, axes)
    for axis, source in enumerate(axes):
        place = step[source, axis] * np.arange(grid.shape[axis]) + step[source, 3]
        # rounding errors must not decide which voxel a place halfway between two belongs to
        index = np.floor(place + 0.5 + 1e-6).astype(np.int64)
        inside = (index >= 0) & (index < labels.shape[source])
        out = np.take(out, np.where(inside, index, 0), axis)
        if not inside.all():
            out[tuple(slice(None) if a != axis else ~inside for a in range(3))] = 0
    return np.ascontiguousarray(out)
