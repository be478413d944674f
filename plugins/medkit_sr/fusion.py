"""Several scans of one person as one image: each sees well along other axes.

The image is looked for that, scanned as each of them was, gives that scan: projections onto the scans in turn (POCS;
Shilling 2009 for MRI), each of which is solved at once and stops at its scan's noise (see `Acquisition.corrected`).
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
"""Times that every scan has its turn; more change little (see the tests)."""


@dataclass(frozen=True)
class View:
    """One scan, the fine grid of its own that it was made of, and where that lies."""

    scan: torch.Tensor
    """(I, J, K) float32."""
    fine: torch.Tensor
    """What is known from this scan alone, on `grid`."""
    grid: Grid
    acquisition: Acquisition
    sigma: float
    """Standard deviation of its noise."""
    matrix: np.ndarray
    """(4, 4), takes points of the common space to its own, RAS+ mm."""


def fused(views: Sequence[View], grid: Grid) -> torch.Tensor:
    """The image on the common grid, (I, J, K) float32."""
    import torch

    total = torch.zeros(grid.shape)
    seen = torch.zeros(grid.shape)
    for view in views:
        there = to_common(view, grid)
        total += sampled(view.fine, there, grid.shape)
        seen += sampled(torch.ones_like(view.fine), there, grid.shape)
    image = total / seen.clamp(min=1e-3)
    inside = [covered(view, grid) for view in views]
    for _ in range(ROUNDS):
        for view, own in zip(views, inside, strict=True):
            image = image + lacking(image, view, grid, own)
    return image


def covered(view: View, grid: Grid) -> torch.Tensor:
    """Which voxels of a scan, (I, J, K) bool, the common grid covers."""
    import torch

    back = np.linalg.inv(to_common(view, grid))
    return view.acquisition.scanned(sampled(torch.ones(grid.shape), back, view.grid.shape)) > 0.99


def lacking(image: torch.Tensor, view: View, grid: Grid, inside: torch.Tensor) -> torch.Tensor:
    """What a scan has and the image lacks, on the common grid; `inside`: see `covered`."""
    import torch

    there = to_common(view, grid)
    own = sampled(image, np.linalg.inv(there), view.grid.shape)
    missing = torch.where(inside, view.scan - view.acquisition.scanned(own), 0.0)
    found = view.acquisition.corrected(torch.zeros_like(own), missing, view.sigma)
    return sampled(found, there, grid.shape)


def to_common(view: View, grid: Grid) -> np.ndarray:
    """(4, 4), takes voxels of the common grid to voxels of a scan's own fine grid."""
    out: np.ndarray = np.linalg.inv(view.grid.affine) @ view.matrix @ grid.affine
    return out


def sampled(image: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """An image (I, J, K) at other voxels: `matrix`, (4, 4), takes their indices to its own; linear, 0 outside."""
    import torch
    from torch.nn import functional

    # grid_sample has the axes in the other order and the voxels between -1 and 1
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
