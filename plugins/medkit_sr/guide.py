"""A scan made finer along the edges of another contrast of the same person that is fine already.

Within a small window one contrast is about a linear function of the other (the guided filter: He 2013). The function
is found where both are known, at the resolution of the coarse scan, and used where only the guide is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkit.scanner import Acquisition

if TYPE_CHECKING:
    import torch

REACH = 1.0
"""Half a window, in voxels of the scan along its finest axis; along others as many millimetres, one voxel at least."""


def guided(
    scan: torch.Tensor, guide: torch.Tensor, acquisition: Acquisition, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the guide, (I, J, K) on the fine grid, says of the fine image behind a scan with noise of `sigma`.

    And how far that is to be believed, 0 to 1: the share of the scan's local variance that it explains.
    """
    seen = acquisition.scanned(guide)
    widths = _widths(acquisition)
    mean_guide, mean_scan = (_smooth(image, widths) for image in (seen, scan))
    shared = _smooth(seen * scan, widths) - mean_guide * mean_scan
    power = _smooth(seen.square(), widths) - mean_guide.square()
    # a slope is worth as much as what it explains stands out of the noise
    strength = shared.square() / (power.clamp(min=0) + 1e-12)
    slope = shared / (power + 1e-12) * (strength / (strength + sigma**2 / 4 + 1e-12))
    offset = mean_scan - slope * mean_guide
    slope, offset = (acquisition.interpolated(_smooth(image, widths)) for image in (slope, offset))
    fine = slope * guide + offset
    unexplained = (_smooth((scan - acquisition.scanned(fine)).square(), widths) - sigma**2).clamp(min=0)
    spread = (_smooth(scan.square(), widths) - mean_scan.square() - sigma**2).clamp(min=1e-12)
    return fine, acquisition.interpolated((1 - unexplained / spread).clamp(0, 1)).clamp(0, 1)


def _widths(acquisition: Acquisition) -> list[int]:
    finest = min(acquisition.steps)
    return [2 * max(1, round(REACH * finest / step)) + 1 for step in acquisition.steps]


def _smooth(image: torch.Tensor, widths: list[int]) -> torch.Tensor:
    """Means over windows, which are smaller at the borders."""
    from torch.nn import functional

    widths = [1 if size == 1 else width for size, width in zip(image.shape, widths, strict=True)]
    padding = [width // 2 for width in widths]
    return functional.avg_pool3d(image[None, None], widths, 1, padding, count_include_pad=False)[0, 0]
