"""FreeSurfer's linear transforms: `.lta` (between RAS or voxels of two volumes) and tkregister's `register.dat`.

The matrix of an LTA takes points of the source (moving) to the destination (fixed), the opposite of ITK. The matrix of
a `register.dat` takes points of the anatomy (fixed) to the moving volume; both are in tkregister's RAS, which has its
origin in the middle of a volume and no oblique axes (FreeSurfer's `transform.cpp`, `registerio.cpp`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.space import Grid
from medkit.transforms.transform import AffineTransform, is_invertible

VOXELS, RAS = 0, 1
"""Types of an LTA: LINEAR_VOX_TO_VOX and LINEAR_RAS_TO_RAS."""
_TYPE_NAMES = {VOXELS: "LINEAR_VOX_TO_VOX", RAS: "LINEAR_RAS_TO_RAS"}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True, eq=False)
class FreeSurferVolume:
    """An image as FreeSurfer's files describe it."""

    path: Path
    """The image's file."""
    grid: Grid
    """Its voxels, RAS+ mm."""


def read_lta(path: Path, fixed: Grid | None = None, moving: Grid | None = None) -> AffineTransform:
    """Read a linear transform array of one transform, from fixed to moving points in RAS+ mm.

    `fixed` and `moving`, if given, are used instead of the volumes that the file describes. Raises InputError for other
    types of LTA, and for a voxel-to-voxel one whose volumes are not known.
    """
    text = _text_of(path)
    if not re.search(r"^\s*type\s*=", text, re.MULTILINE):
        raise InputError(f"{path}: expected an LTA file of FreeSurfer (`type = ...`), got something else")
    kind, count = (_after(path, text, rf"^\s*{key}\s*=", 1)[0] for key in ("type", "nxforms"))
    if kind not in _TYPE_NAMES or count != 1:
        raise InputError(
            f"{path}: expected one transform of type 0 (voxels) or 1 (RAS), got {count:g} of type {kind:g}"
        )
    matrix = _after(path, text, r"^\s*1\s+4\s+4\s*$", 16).reshape(4, 4)
    if kind == VOXELS:
        source = moving.affine if moving else _geometry(path, text, "src")
        target = fixed.affine if fixed else _geometry(path, text, "dst")
        matrix = target @ matrix @ np.linalg.inv(source)
    return _inverted(path, matrix, fixed, moving)


def write_lta(
    path: Path, transform: AffineTransform, fixed: FreeSurferVolume, moving: FreeSurferVolume, kind: int = RAS
) -> None:
    """Write an LTA of type `kind` (`VOXELS` or `RAS`) with the source `moving` and the destination `fixed`."""
    matrix = np.linalg.inv(transform.matrix)
    if kind == VOXELS:
        matrix = np.linalg.inv(fixed.grid.affine) @ matrix @ moving.grid.affine
    lines = [
        "# written by medkit",
        f"type      = {kind} # {_TYPE_NAMES[kind]}",
        "nxforms   = 1",
        "mean      = 0.0000 0.0000 0.0000",
        "sigma     = 1.0000",
        "1 4 4",
        *(_row(row) for row in matrix),
        *_volume_info("src", moving),
        *_volume_info("dst", fixed),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def read_register_dat(path: Path, fixed: Grid, moving: Grid) -> AffineTransform:
    """Read tkregister's `register.dat` of a moving volume and the anatomy `fixed`: a transform from fixed to moving.

    Raises InputError.
    """
    matrix = _after(path, _text_of(path), r"\A.*\n.*\n.*\n.*$", 16).reshape(4, 4)
    ras = moving.affine @ np.linalg.inv(tkregister_affine(moving)) @ matrix
    ras = ras @ tkregister_affine(fixed) @ np.linalg.inv(fixed.affine)
    return AffineTransform(ras, fixed.digest(), moving.digest())


def write_register_dat(path: Path, transform: AffineTransform, fixed: Grid, moving: Grid) -> None:
    """Write tkregister's `register.dat`: subject name, two voxel sizes of the moving volume (mm), contrast, matrix."""
    matrix = tkregister_affine(moving) @ np.linalg.inv(moving.affine) @ transform.matrix
    matrix = matrix @ fixed.affine @ np.linalg.inv(tkregister_affine(fixed))
    spacing = moving.spacing
    lines = ["subject-unknown", f"{spacing[0]:.6f}", f"{spacing[2]:.6f}", "0.150000", *map(_row, matrix), "round"]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def tkregister_affine(grid: Grid) -> np.ndarray:
    """Return the affine (4, 4), voxel -> tkregister's RAS mm.

    Its axes point to the left, the feet and the front; its origin is at voxel `shape / 2`.
    """
    x, y, z = grid.spacing
    affine = np.array([[-x, 0, 0, 0], [0, 0, z, 0], [0, -y, 0, 0], [0, 0, 0, 1.0]])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(grid.shape) / 2)
    return affine


def _inverted(path: Path, matrix: np.ndarray, fixed: Grid | None, moving: Grid | None) -> AffineTransform:
    """Return the transform from fixed to moving for a matrix (4, 4) from moving to fixed. Raises InputError."""
    if not is_invertible(matrix):
        raise InputError(f"{path}: expected a matrix that can be inverted")
    from_grid, to_grid = (grid.digest() if grid else None for grid in (fixed, moving))
    return AffineTransform(np.linalg.inv(matrix), from_grid, to_grid)


def _text_of(path: Path) -> str:
    """Return a file's text without comments. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return re.sub(r"#.*", "", text)


def _after(path: Path, text: str, pattern: str, count: int) -> np.ndarray:
    """Return the `count` numbers that follow a match of `pattern`, with nothing but white space and commas between.

    FastSurfer puts commas between sizes. Raises InputError.
    """
    found = re.search(rf"(?:{pattern})((?:(?:\s+|\s*,\s*){_NUMBER}){{{count}}})", text, re.MULTILINE)
    if not found:
        raise InputError(f"{path}: damaged: expected {count} numbers after {pattern!r}")
    return np.array(found.group(1).replace(",", " ").split(), float)


def _geometry(path: Path, text: str, which: str) -> np.ndarray:
    """Return the affine (4, 4), voxel -> RAS+ mm, of the volume `src` or `dst`. Raises InputError.

    The file holds the axes and the position of the middle, which is voxel `shape / 2`.
    """
    block = text.partition(f"{which} volume info")[2].partition("volume info")[0]
    if not re.search(r"valid\s*=\s*1", block):
        raise InputError(
            f"{path}: does not describe its {which} volume, so name both images (convert --fixed F --moving M)"
        )
    axes = np.stack([_after(path, block, rf"{axis}ras\s*=", 3) for axis in "xyz"], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = axes * _after(path, block, r"voxelsize\s*=", 3)
    middle = affine[:3, :3] @ (_after(path, block, r"volume\s*=", 3) / 2)
    affine[:3, 3] = _after(path, block, r"cras\s*=", 3) - middle
    return affine


def _volume_info(which: str, volume: FreeSurferVolume) -> list[str]:
    grid = volume.grid
    axes = grid.affine[:3, :3] / grid.spacing
    middle = grid.affine @ [*(np.array(grid.shape) / 2), 1]
    return [
        f"{which} volume info",
        "valid = 1  # volume info valid",
        f"filename = {volume.path}",
        f"volume = {' '.join(map(str, grid.shape))}",
        f"voxelsize = {_row(grid.spacing)}",
        *(f"{name}ras   = {_row(axis)}" for name, axis in zip("xyz", axes.T, strict=True)),
        f"cras   = {_row(middle[:3])}",
    ]


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value:.15e}" for value in values)
