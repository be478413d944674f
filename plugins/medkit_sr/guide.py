"""Refine a scan along the edges of another contrast of the same person, which has fine voxels already.

Within a small window one contrast is close to a linear function of the other (guided filter, He 2013). The function
is fitted on the coarse grid, where both are known, and applied on the fine grid, where only the guide is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkit.scanner import Acquisition

if TYPE_CHECKING:
    import torch

REACH = 1.0
"""Half width of a window in voxels along the scan's finest axis; along others as many mm, at least one voxel."""


def guided(
    scan: torch.Tensor, guide: torch.Tensor, acquisition: Acquisition, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fine image that the guide predicts, and how reliable that is, both (I, J, K) on the fine grid.

    Reliability is the share of the scan's local variance that the prediction explains, 0 to 1.

    scan: on the coarse grid, with noise of standard deviation `sigma`.
    guide: (I, J, K) on the fine grid.
    """
    coarse = acquisition.scanned(guide)
    widths = _widths(acquisition)
    mean_guide, mean_scan = (_smooth(image, widths) for image in (coarse, scan))
    shared = _smooth(coarse * scan, widths) - mean_guide * mean_scan
    power = _smooth(coarse.square(), widths) - mean_guide.square()
    # reduce slopes whose explained variance hardly exceeds the noise
    strength = shared.square() / (power.clamp(min=0) + 1e-12)
    slope = shared / (power + 1e-12) * (strength / (strength + sigma**2 / 4 + 1e-12))
    offset = mean_scan - slope * mean_guide
    slope, offset = (acquisition.interpolated(_smooth(image, widths)) for image in (slope, offset))
    fine = slope * guide + offset
    unexplained = (_smooth((scan - acquisition.scanned(fine)).square(), widths) - sigma**2).clamp(min=0)
    spread = (_smooth(scan.square(), widths) - mean_scan.square() - sigma**2).clamp(min=1e-12)
    return fine, acquisition.interpolated((1 - unexplained / spread).clamp(0, 1)).clamp(0, 1)


def _widths(acquisition: Acquisition) -> list[int]:
    """Return the width of a window along each axis, in voxels of the scan."""
    finest = min(acquisition.steps)
    return [2 * max(1, round(REACH * finest / step)) + 1 for step in acquisition.steps]


def _smooth(image: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """Return the means over windows; windows at the borders are smaller."""
    from torch.nn import functional

    widths = [1 if size == 1 else width for size, width in zip(image.shape, widths, strict=True)]
    padding = [width // 2 for width in widths]
    return functional.avg_pool3d(image[None, None], widths, 1, padding, count_include_pad=False)[0, 0]
