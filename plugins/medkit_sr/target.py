"""Which grid a result lies on; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import InputError

if TYPE_CHECKING:
    from medkit.space import Grid

AXES = ("all", "slices", "plane")
SCALES = ("2", "4")
MOST_VOXELS = 2_000_000_000
"""More than any scanner's field of view has at the finest spacing; a larger number is a slip of the pen."""


@dataclass(frozen=True)
class Target:
    """How fine a result is to be."""

    spacing: float | None = None
    """mm; or `scale`."""
    scale: int | None = None
    axes: str = "all"
    """One of `AXES`."""

    def common(self, scans: Sequence[Grid], path: Path) -> Grid:
        """The grid for scans that become one: cubes over the first one's field of view, as fine as any of them sees.

        Raises InputError for a plane.
        """
        from medkit.scanner import refined

        if any(scan.is_planar for scan in scans):
            raise InputError(f"{path}: --fuse: expected volumes, got a plane")
        finest = self.spacing or min(float(scan.spacing.min()) for scan in scans)
        return checked(refined(scans[0], [finest] * 3), path)

    def grid(self, scan: Grid, path: Path) -> Grid:
        """The grid for a scan (see `medkit.scanner.acquisition.refined`). Raises InputError where there is nothing to do."""
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
            raise InputError(f"{path}: --axes slices: is a plane, which has no slices")
        fine = refined(scan, wanted)
        if fine.shape == scan.shape:
            asked = " x ".join(f"{mm:.3g}" for mm in own)
            raise InputError(f"{path}: has voxels of {asked} mm already, nothing coarser than {self.spacing:g} mm")
        return checked(fine, path)


def checked(fine: Grid, path: Path) -> Grid:
    """The grid. Raises InputError where it has more voxels than any result can be meant to have."""
    if fine.shape[0] * fine.shape[1] * fine.shape[2] > MOST_VOXELS:
        raise InputError(f"{path}: would become {' x '.join(map(str, fine.shape))} voxels; choose a larger --spacing")
    return fine
