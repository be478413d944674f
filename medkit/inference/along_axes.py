"""Linear resampling axis by axis, for MONAI's transforms: what most bundles spend their time in beside the network.

Where a change of spacing keeps the axes, MONAI's general way (a position for each voxel, eight neighbours of each)
gives the same within rounding at several times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import AffineTransform
from monai.transforms.spatial import functional

_STRAIGHT = 1e-9
"""Off-diagonal entries of a matrix whose axes count as kept."""


class AlongAxes(AffineTransform):
    """MONAI's `AffineTransform`, computed axis by axis where it can be."""

    def forward(
        self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """As MONAI's: src (N, C, I, J, K); theta (4, 4) takes voxels of the result to voxels of `src`."""
        if not self._straight(src, theta) or spatial_size is None:
            out: torch.Tensor = super().forward(src, theta, spatial_size)
            return out
        sizes = [int(n) for n in spatial_size]  # type: ignore[union-attr]
        shrinking_first = sorted(range(3), key=lambda axis: sizes[axis] / src.shape[axis + 2])
        for axis in shrinking_first:
            src = _resampled(
                src, axis + 2, sizes[axis], float(theta[axis, axis]), float(theta[axis, 3]), self.padding_mode
            )
        return src

    def _straight(self, src: torch.Tensor, theta: torch.Tensor) -> bool:
        if src.dim() != 5 or tuple(theta.shape) != (4, 4) or src.device.type != "cpu":
            return False
        if self.normalized or self.zero_centered or not self.reverse_indexing:
            return False
        if str(self.mode) != "bilinear" or str(self.padding_mode) not in ("zeros", "border"):
            return False
        matrix = theta[:3, :3]
        return bool((matrix - matrix.diag().diag()).abs().max() < _STRAIGHT)


def _resampled(src: torch.Tensor, dim: int, size: int, step: float, start: float, padding: Any) -> torch.Tensor:
    """`src` at start, start + step, ... along an axis, in voxels."""
    last = src.shape[dim] - 1
    place = start + step * torch.arange(size, dtype=torch.float64)
    if str(padding) == "border":
        place = place.clamp(0, last)
    if dim == src.dim() - 1:  # voxels of this axis lie side by side: a product of matrices beats picking them
        hats = (1 - (place[:, None] - torch.arange(last + 1)).abs()).clamp_(min=0)
        return src @ hats.T.to(src.dtype)
    below = place.floor()
    shape = [1] * src.dim()
    shape[dim] = size
    out = None
    for index, weight in ((below, 1 - (place - below)), (below + 1, place - below)):
        weight = torch.where((index >= 0) & (index <= last), weight, 0.0).to(src.dtype).reshape(shape)
        part = src.index_select(dim, index.clamp(0, last).long())
        out = part.mul_(weight) if out is None else out.addcmul_(part, weight)
    assert out is not None
    return out


def quicken() -> None:
    """Lets the transforms of this process resample so."""
    functional.AffineTransform = AlongAxes
