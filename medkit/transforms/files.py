"""Reading and writing transforms in every format medkit knows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.pipe.names import FIELD_SUFFIXES, H5_SUFFIXES, TRANSFORM_SUFFIXES
from medkit.space import Grid
from medkit.transforms import itk
from medkit.transforms.freesurfer import read_lta
from medkit.transforms.resampling import to_displacement_field
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField, Transform, chain, grid_of_field


def read_transform(path: Path) -> Transform:
    """Read a transform file of ITK, ANTs, MINC or FreeSurfer (LTA), or a displacement field.

    The name ends in one of `TRANSFORM_SUFFIXES` or `FIELD_SUFFIXES`. A file of several transforms gives their
    composition. The digests of the grids it leads between are those that medkit wrote into the file, else None.
    Raises InputError, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file")
    if path.name.endswith((".nii", ".nii.gz")):
        return itk.read_field_nifti(path)
    if path.name.endswith(FIELD_SUFFIXES):
        return itk.read_field_itk(path)
    if path.suffix in (".tfm", ".txt"):
        return itk.read_text(path)
    if path.suffix == ".xfm":
        return read_minc(path)
    if path.suffix == ".mat":
        return itk.read_matlab(path)
    if path.suffix == ".lta":
        return read_lta(path)
    if path.suffix in H5_SUFFIXES:
        return chain(itk.read_itk(path))
    raise InputError(f"{path}: expected a transform that ends in {', '.join((*TRANSFORM_SUFFIXES, *FIELD_SUFFIXES))}")


def write_transform(transform: Transform, path: Path) -> None:
    """Write a file that ANTs and SimpleITK read. Raises OutputError for a name that cannot hold the transform.

    Affine: ITK's text in LPS, or for `.mat`, `.h5` and `.hdf5` ITK's binary forms. Displacement field: NIfTI, vector
    intent, LPS mm, float32, or `.h5`. Composite: `.h5` keeps all parts; else one displacement field on the grid of the
    last transform, which must be a field (see `to_displacement_field` for other grids).
    """
    path = Path(path)
    if path.suffix in H5_SUFFIXES and isinstance(transform, Composite):
        itk.write_itk(path, transform)
    elif isinstance(transform, AffineTransform):
        itk.write_affine(path, transform)
    elif isinstance(transform, DisplacementField):
        itk.write_field(path, transform)
    elif isinstance(transform, Composite) and isinstance(last := transform.transforms[-1], DisplacementField):
        itk.write_field(path, to_displacement_field(transform, last.grid))
    elif isinstance(transform, Composite):
        raise OutputError(f"{path}: a composite transform is written as a displacement field on the fixed grid")
    else:
        raise OutputError(f"{path}: the inverse of a displacement field is written as a field on a grid of its own")


def read_minc(path: Path) -> Transform:
    """A linear MNI `.xfm`, RAS+ mm.

    Its matrix takes points of the source (moving) to the target (fixed), as `mincresample` and FreeSurfer use it: the
    opposite of ITK, so it is inverted. itk's wheels have no reader for it.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"Linear_Transform\s*=\s*([^;]*);", text)
    numbers = itk.floats(found.group(1)) if found else np.empty(0)
    if not text.startswith("MNI Transform File") or len(numbers) != 12 or "Grid_Transform" in text:
        raise InputError(f"{path}: expected a linear MNI transform of three rows, got something else")
    try:
        return itk.checked(AffineTransform(np.vstack([numbers.reshape(3, 4), [0, 0, 0, 1]]))).inverse()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


@dataclass(frozen=True, eq=False)
class TransformFile:
    """A transform as a task's output: it takes the form of its file's name.

    Affine text, ITK's HDF5, or a displacement field.
    """

    transform: Transform
    grid: Grid | None = None
    """Where a displacement field is to lie; None: where the transform's own first field lies."""

    def write(self, path: Path) -> None:
        """Raises OutputError for a name that cannot hold the transform."""
        grid = self.grid or grid_of_field(self.transform)
        if path.name.endswith((".nii", ".nii.gz")):
            if grid is None:
                raise OutputError(f"{path.name}: a displacement field needs --reference, the fixed image")
            field = to_displacement_field(self.transform, grid)
            write_transform(replace(field, from_grid=field.from_grid or grid.digest()), path)
        elif path.suffix in H5_SUFFIXES or isinstance(self.transform, AffineTransform):
            write_transform(self.transform, path)
        else:
            raise OutputError(
                f"{path.name}: expected a name that ends in .nii.gz or .h5, as a displacement field is part of it"
            )
