"""The grid of a result. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import InputError, size_text

if TYPE_CHECKING:
    from medkit.space import Grid

AXES = ("all", "slices", "plane")
SCALES = ("2", "4")
MOST_VOXELS = 2_000_000_000
"""Largest number of voxels of a result; no scanner has as many, so a larger number comes from a wrong option."""


@dataclass(frozen=True)
class Target:
    """How fine a result should be."""

    spacing: float | None = None
    """mm; None if `scale` is given."""
    scale: int | None = None
    """How many times finer; None if `spacing` is given."""
    axes: str = "all"
    """Axes to make finer, one of `AXES`."""

    def common(self, scans: Sequence[Grid], path: Path) -> Grid:
        """Return the grid for one image of several scans: isotropic, over the first scan's field of view.

        Its spacing is `spacing`, or else the finest one of the scans. Raises InputError for a plane, and if no scan has
        an axis coarser than `spacing`.
        """
        from medkit.scanner import refined

        if any(scan.is_planar for scan in scans):
            raise InputError(f"{path}: --fuse: expected volumes, got a plane")
        finest = self.spacing or min(float(scan.spacing.min()) for scan in scans)
        if self.spacing and all(refined(scan, [finest] * 3).shape == scan.shape for scan in scans):
            raise InputError(_nothing_coarser(path, scans[0], self.spacing))
        return checked(refined(scans[0], [finest] * 3), path)

    def grid(self, scan: Grid, path: Path) -> Grid:
        """Return the grid for a scan (see `medkit.scanner.refined`). Raises InputError if no axis becomes finer."""
        from medkit.scanner import refined

        own = scan.spacing
        across = int(own.argmax())
        wanted = [
            float(mm)
            if scan.shape[axis] == 1
            or (self.axes == "slices" and axis != across)
            or (self.axes == "plane" and axis == 2)
            else self.spacing or float(mm) / (self.scale or 1)
            for axis, mm in enumerate(own)
        ]
        if self.axes == "slices" and scan.is_planar:
            raise InputError(f"{path}: --axes slices: expected a volume, but the image is a plane")
        fine = refined(scan, wanted)
        if fine.shape == scan.shape:
            raise InputError(_nothing_coarser(path, scan, self.spacing))
        return checked(fine, path)


def _nothing_coarser(path: Path, scan: Grid, spacing: float | None) -> str:
    than = "" if spacing is None else f" than {spacing:g} mm"
    return f"{path}: has voxels of {size_text(scan.spacing, '.3g')} mm already, nothing coarser{than}"


def checked(fine: Grid, path: Path) -> Grid:
    """Return the grid. Raises InputError if it has more than `MOST_VOXELS` voxels."""
    if fine.shape[0] * fine.shape[1] * fine.shape[2] > MOST_VOXELS:
        raise InputError(f"{path}: would become {size_text(fine.shape)} voxels; choose a larger --spacing")
    return fine
