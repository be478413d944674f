"""Linear resampling axis by axis, for MONAI's transforms: most bundles spend their time there, next to the network.

If a change of spacing keeps the axes, MONAI's general method (a position for each voxel, eight neighbours of each)
returns the same within rounding, at several times the cost.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_STRAIGHT = 1e-9
"""Largest off-diagonal entry of a matrix that counts as keeping the axes."""


@functools.cache
def along_axes() -> type:
    """Return a version of MONAI's `AffineTransform` that resamples axis by axis where that is possible."""
    from monai.networks.layers import AffineTransform

    class AlongAxes(AffineTransform):
        def forward(
            self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int] | int | None = None
        ) -> torch.Tensor:
            """Resample src (N, C, I, J, K) as MONAI does; theta (4, 4) takes voxels of the result to those of src."""
            if spatial_size is None or isinstance(spatial_size, int) or not _keeps_axes(self, src, theta):
                out: torch.Tensor = super().forward(src, theta, spatial_size)
                return out
            sizes = [int(n) for n in spatial_size]
            for axis in sorted(range(3), key=lambda axis: sizes[axis] / src.shape[axis + 2]):  # shrinking ones first
                step, start = float(theta[axis, axis]), float(theta[axis, 3])
                src = resampled(src, axis + 2, sizes[axis], step, start, border=str(self.padding_mode) == "border")
            return src

    return AlongAxes


def _keeps_axes(transform: Any, src: torch.Tensor, theta: torch.Tensor) -> bool:
    if src.dim() != 5 or tuple(theta.shape) != (4, 4) or src.device.type != "cpu":
        return False
    if transform.normalized or transform.zero_centered or not transform.reverse_indexing:
        return False
    if str(transform.mode) != "bilinear" or str(transform.padding_mode) not in ("zeros", "border"):
        return False
    matrix = theta[:3, :3]
    return bool((matrix - matrix.diag().diag()).abs().max() < _STRAIGHT)


def resampled(src: torch.Tensor, dim: int, size: int, step: float, start: float, *, border: bool) -> torch.Tensor:
    """Return `src` (N, C, I, J, K), sampled along `dim` at the `size` positions start, start + step, ... in voxels.

    Outside the image the values are 0, or with `border` those of the image's border.
    """
    import torch

    last = src.shape[dim] - 1
    position = start + step * torch.arange(size, dtype=torch.float64)
    if border:
        position = position.clamp(0, last)
    if dim == src.dim() - 1:  # voxels along this axis are adjacent in memory: a matrix product beats indexing
        hats = (1 - (position[:, None] - torch.arange(last + 1)).abs()).clamp_(min=0)
        return src @ hats.T.to(src.dtype)
    below = position.floor()
    shape = [1] * src.dim()
    shape[dim] = size
    rows = src.flatten(0, dim - 1)  # from outer axes torch selects plane by plane, starting its threads for each
    parts = []
    for index, weight in ((below, 1 - (position - below)), (below + 1, position - below)):
        weight = torch.where((index >= 0) & (index <= last), weight, 0.0).to(src.dtype).reshape(shape)
        chosen = rows.index_select(1, index.clamp(0, last).long()).unflatten(0, src.shape[:dim])
        parts.append((chosen, weight))
    (low, low_weight), (high, high_weight) = parts
    return low.mul_(low_weight).addcmul_(high, high_weight)


def patch_monai() -> None:
    """Make MONAI's transforms in this process resample axis by axis."""
    from monai.transforms.spatial import functional

    functional.AffineTransform = along_axes()
