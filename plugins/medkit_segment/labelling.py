"""From the channels of a network to labels, and how sure it is of them.

Volumes are (I, J, K) on the network's grid; the channels of an answer, (C, I, J, K), are logits, the background first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medkit.space import Grid

if TYPE_CHECKING:
    import torch

_SLAB_VALUES = 1 << 24
"""Logits that are turned into probabilities at a time: 64 MB."""
_SAME_VOXEL = 0.01
"""voxels; grids that are apart by less hold the same voxels."""


def most_likely(logits: torch.Tensor) -> np.ndarray:
    """(I, J, K) uint8: the channel that is largest, the first of equal ones."""
    import torch

    slabs = [part.max(1).indices.to(torch.uint8) for part in _slabs(logits)]
    return torch.cat(slabs).numpy()


def certainty(logits: torch.Tensor, channels: np.ndarray) -> np.ndarray:
    """(I, J, K) float32: the probability of the channel chosen for each voxel; 1 where that is the background."""
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
    """The probability of each channel, (I, J, K) float32, one after the other."""
    import torch

    total = torch.cat([part.float().logsumexp(1) for part in _slabs(logits)])
    for channel in logits:
        yield (channel.float() - total).exp_().numpy()


def _slabs(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Parts (i, C, J, K) along the first axis of space."""
    size = max(1, _SLAB_VALUES // max(1, logits[:, :1].numel()))
    yield from logits.movedim(0, 1).split(size)


def on_grid(labels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Labels (I, J, K), whose voxels `affine` takes to RAS+ mm, on `grid`: the nearest voxel, 0 outside.

    Where the axes of both run along each other, in any order and direction, only axes are looked up: exact and quick.
    """
    step = np.linalg.inv(affine) @ grid.affine
    axes = np.abs(step[:3, :3]).argmax(0)
    turned = np.zeros_like(step[:3, :3])
    turned[axes, range(3)] = step[axes, range(3)]
    reach = np.abs(step[:3, :3] - turned) @ np.array(grid.shape)
    if sorted(axes) != [0, 1, 2] or reach.max() > _SAME_VOXEL:
        from medkit.images import Image
        from medkit.transforms import resample

        own = Image(labels[None], Grid(labels.shape, affine, grid.dims))
        return resample(own, grid, interpolation="nearest").data[0]
    out = np.transpose(labels, axes)
    for axis, source in enumerate(axes):
        place = step[source, axis] * np.arange(grid.shape[axis]) + step[source, 3]
        # a place in the middle between two voxels is not left to rounding errors
        index = np.floor(place + 0.5 + 1e-6).astype(np.int64)
        inside = (index >= 0) & (index < labels.shape[source])
        out = np.take(out, np.where(inside, index, 0), axis)
        if not inside.all():
            out[tuple(slice(None) if a != axis else ~inside for a in range(3))] = 0
    return np.ascontiguousarray(out)
