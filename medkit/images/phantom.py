"""A small synthetic body, for tests and checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np


def make_image(
    path: Path,
    shape: Sequence[int],
    spacing: Sequence[float],
    orientation: str = "RAS",
    oblique_degrees: float = 0.0,
    seed: int = 0,
    kind: Literal["blobs", "labels"] = "blobs",
) -> Path:
    """Write a NIfTI of a body with blobs in it (int16), or of the labels 0 to 3 of the same anatomy (uint8).

    `shape` (two or three axes), `spacing` (mm) and `orientation` are those of the axes of the file, before the grid is
    rotated by `oblique_degrees` about z, then x. The anatomy fills the field of view and only depends on `seed`, so
    files of one seed show the same in any orientation. Returns `path`.
    """
    import numpy as np

    sizes = np.array([*shape, 1][:3])
    steps = _directions(orientation) * [*spacing, 1.0][:3]
    points = (np.indices(tuple(sizes)).reshape(3, -1).T - (sizes - 1) / 2) @ steps.T
    values = _anatomy(points / (np.abs(steps) @ sizes / 2), seed)
    if kind == "labels":
        data = np.digitize(values, [150, 400, 700]).astype(np.uint8)
    else:
        data = (values + np.random.default_rng(seed).normal(0, 5, values.shape)).round().astype(np.int16)
    _write(path, data.reshape(tuple(shape)), _affine(sizes, steps, oblique_degrees))
    return path


def _write(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI with sform and qform, whose folder is made if it is missing."""
    import nibabel

    image = nibabel.Nifti1Image(data, affine)
    for set_form in (image.set_sform, image.set_qform):
        set_form(affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)


def _directions(orientation: str) -> np.ndarray:
    """Return (3, 3), whose column a is the RAS+ direction of the file's axis a."""
    import numpy as np

    out = np.zeros((3, 3))
    for axis, letter in enumerate(orientation):
        world, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[letter]
        out[world, axis] = sign
    return out


def _affine(sizes: np.ndarray, steps: np.ndarray, oblique_degrees: float) -> np.ndarray:
    """Return the affine (4, 4), voxel -> RAS+ mm, of a grid with `steps` (3, 3) mm that is then rotated."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zx", [oblique_degrees, oblique_degrees], degrees=True).as_matrix() @ steps
    affine[:3, 3] = [4.0, -7.0, 11.0] - affine[:3, :3] @ ((sizes - 1) / 2)
    return affine


def _anatomy(points: np.ndarray, seed: int) -> np.ndarray:
    """Return values (N,) at points (N, 3), -1 to 1 over the field of view: an ellipsoid with soft edges and blobs."""
    import numpy as np

    random = np.random.default_rng(seed)
    values = 300 / (1 + np.exp(12 * (np.linalg.norm(points / 0.8, axis=1) - 1)))
    for _ in range(8):
        centre, width, height = random.uniform(-0.5, 0.5, 3), random.uniform(0.1, 0.25), random.uniform(200, 600)
        values += height * np.exp(-((points - centre) ** 2).sum(axis=1) / (2 * width**2))
    return values
