"""Fuse several scans of one person into one image; each scan is sharp along different axes.

The result is an image that reproduces each scan when it is scanned again in the same way. It is found by projections
onto the scans in turn (POCS; Shilling 2009 for MRI). Each projection is solved in one step and stops at its scan's
noise (see `Acquisition.corrected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.scanner import Acquisition

if TYPE_CHECKING:
    import torch

    from medkit.space import Grid

ROUNDS = 2
"""Number of projections onto each scan; more change little (see the tests)."""


@dataclass(frozen=True)
class View:
    """One scan, its version on a fine grid, and its position."""

    scan: torch.Tensor
    """(I, J, K) float32."""
    fine: torch.Tensor
    """(I, J, K) float32, what this scan shows by itself, on `grid`."""
    grid: Grid
    """Fine grid in the scan's own space."""
    acquisition: Acquisition
    """From the fine grid to the scan."""
    sigma: float
    """Standard deviation of the scan's noise."""
    matrix: np.ndarray
    """(4, 4), takes points of the common space to the scan's space, RAS+ mm."""


def fused(views: Sequence[View], grid: Grid) -> torch.Tensor:
    """Return one image of all scans on the common grid, (I, J, K) float32."""
    import torch

    total = torch.zeros(grid.shape)
    weight = torch.zeros(grid.shape)
    for view in views:
        there = to_common(view, grid)
        total += sampled(view.fine, there, grid.shape)
        weight += sampled(torch.ones_like(view.fine), there, grid.shape)
    image = total / weight.clamp(min=1e-3)
    inside = [covered(view, grid) for view in views]
    for _ in range(ROUNDS):
        for view, mask in zip(views, inside, strict=True):
            image = image + lacking(image, view, grid, mask)
    return image


def covered(view: View, grid: Grid) -> torch.Tensor:
    """Return which voxels of a scan the common grid covers, (I, J, K) bool."""
    import torch

    back = np.linalg.inv(to_common(view, grid))
    return view.acquisition.scanned(sampled(torch.ones(grid.shape), back, view.grid.shape)) > 0.99


def lacking(image: torch.Tensor, view: View, grid: Grid, inside: torch.Tensor) -> torch.Tensor:
    """Return the detail of a scan that the image lacks, on the common grid.

    inside: the scan's voxels to compare, see `covered`.
    """
    import torch

    there = to_common(view, grid)
    own = sampled(image, np.linalg.inv(there), view.grid.shape)
    missing = torch.where(inside, view.scan - view.acquisition.scanned(own), 0.0)
    found = view.acquisition.corrected(torch.zeros_like(own), missing, view.sigma)
    return sampled(found, there, grid.shape)


def to_common(view: View, grid: Grid) -> np.ndarray:
    """Return the matrix (4, 4) that takes voxel indices of the common grid to those of a scan's fine grid."""
    out: np.ndarray = np.linalg.inv(view.grid.affine) @ view.matrix @ grid.affine
    return out


def sampled(image: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Resample an image (I, J, K) to a grid of the given shape: linear, 0 outside.

    matrix: (4, 4), takes voxel indices of the result to those of the image.
    """
    import torch
    from torch.nn import functional

    # grid_sample takes the axes in reverse order and coordinates from -1 to 1
    size = np.array(image.shape)
    scale = 2 / np.maximum(size - 1, 1)
    rows = np.diag(scale) @ matrix[:3, :3]
    offset = scale * matrix[:3, 3] - 1
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    out = torch.empty(tuple(shape))
    weights = torch.from_numpy(rows.astype(np.float32))
    start = torch.from_numpy(offset.astype(np.float32))
    plane = axes[1][:, None, None] * weights[:, 1] + axes[2][:, None] * weights[:, 2] + start
    for i in range(shape[0]):
        where = (plane + axes[0][i] * weights[:, 0]).flip(-1)[None, None]
        out[i] = functional.grid_sample(image[None, None], where, align_corners=True)[0, 0, 0]
    return out
