"""A chest in Hounsfield units, with known lungs, for tests: made at any spacing, orientation and field of view."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

LUNGS = {2: (-75.0, 5.0, 0.0), 3: (75.0, 5.0, 0.0)}
"""Label -> centre of the lung, RAS+ mm: 2 is the left one."""
RADII = (55.0, 75.0, 110.0)
"""mm; half-axes of a lung."""


@dataclass(frozen=True)
class Chest:
    """Where and how a chest is made."""

    spacing: tuple[float, float, float] = (2.5, 2.5, 2.5)
    low: tuple[float, float, float] = (-185.0, -145.0, -150.0)
    high: tuple[float, float, float] = (185.0, 145.0, 150.0)
    """Corners of the field of view, RAS+ mm."""
    orientation: str = "RAS"
    lung: float = -850.0
    """HU of the lungs between their vessels."""
    blood: float = 45.0
    """HU of heart and vessels."""
    touching: bool = False
    """Whether a bridge of lung in front of the heart joins the lungs."""
    foam: bool = False
    """Whether the table is filled with foam as dense as a lung, which touches the back."""
    shift: float = 0.0
    """HU by which all values are off."""
    noise: float = 15.0

    def write(self, path: Path) -> np.ndarray:
        """Write a NIfTI, and return the true labels of the lungs on its grid."""
        axes = [np.arange(a, b, s) + s / 2 for a, b, s in zip(self.low, self.high, self.spacing, strict=True)]
        values, lungs = self._made(*np.meshgrid(*axes, indexing="ij", sparse=True))
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [axis[0] for axis in axes]
        rng = np.random.default_rng(0)
        values = np.clip(values + self.shift + rng.normal(0, self.noise, values.shape), -1100, 3071).astype(np.int16)
        image = nibabel.Nifti1Image(values, affine)
        truth = nibabel.Nifti1Image(lungs, affine)
        turn = nibabel.orientations.axcodes2ornt(self.orientation)
        image.as_reoriented(turn).to_filename(path)
        return np.asarray(truth.as_reoriented(turn).dataobj)

    def _made(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
        values = np.full(shape, -1000.0, np.float32)
        body = (x / 165) ** 2 + (y / 115) ** 2 < 1
        if self.foam:
            values[np.broadcast_to((abs(x) < 180) & (y < -100) & (y > -140), shape)] = -890
        values[np.broadcast_to(body, shape)] = 40
        values[np.broadcast_to((abs(x) < 180) & (y < -120) & (y > -124), shape)] = 300  # the table
        lungs = np.zeros(shape, np.uint8)
        for label, centre in LUNGS.items():
            lungs[sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, RADII, strict=True)) < 1] = label
        if self.touching:
            bridge = np.broadcast_to((abs(x) < 60) & (y > 40) & (y < 55) & (abs(z) < 30), shape) & (lungs == 0)
            lungs[bridge] = np.where(np.broadcast_to(x, shape)[bridge] < 0, 2, 3)
        values[lungs > 0] = self.lung
        vessels = (np.sin(x / 4) * np.sin(y / 4) * np.sin(z / 5) > 0.75) & (lungs > 0)
        values[vessels] = self.blood
        values[((x - 8) / 38) ** 2 + ((y - 15) / 35) ** 2 + ((z + 30) / 45) ** 2 < 1] = self.blood
        lungs[((x - 8) / 38) ** 2 + ((y - 15) / 35) ** 2 + ((z + 30) / 45) ** 2 < 1] = 0
        return self._with_airway_and_bones(values, lungs, x, y, z), lungs

    def _with_airway_and_bones(
        self, values: np.ndarray, lungs: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> np.ndarray:
        for radius, inside in ((10.5, 40.0), (8.0, -1000.0)):
            tube = (x**2 + (y + 20) ** 2 < radius**2) & (z > 30)
            # both main bronchi, down and to the sides into the lungs
            tube = tube | ((y + 20) ** 2 + (z - 30 + abs(x) / 2) ** 2 < (radius - 2) ** 2) & (abs(x) < 35)
            values[tube] = inside
            lungs[tube] = 0
        body = ((x / 20) ** 2 + ((y + 62) / 17) ** 2 < 1) & (z == z)
        canal = ((x / 9) ** 2 + ((y + 86) / 8) ** 2 < 1) & (z == z)
        arch = ((x / 14) ** 2 + ((y + 87) / 14) ** 2 < 1) & (z == z)
        values[body] = 220
        values[arch] = 600
        values[canal] = 30
        ring = ((x / 148) ** 2 + (y / 102) ** 2 < 1) & ((x / 142) ** 2 + (y / 96) ** 2 > 1) & (np.mod(z, 30) < 9)
        values[ring] = 700
        lungs[body | arch | ring] = 0
        return values


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * float(np.count_nonzero(one & other)) / max(1, int(one.sum() + other.sum()))
