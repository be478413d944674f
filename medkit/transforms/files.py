"""Reading and writing transforms in every format that medkit knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from medkit.errors import InputError, OutputError
from medkit.pipe.names import FIELD_SUFFIXES, H5_SUFFIXES, TRANSFORM_SUFFIXES
from medkit.space import Grid
from medkit.transforms.freesurfer import read_lta
from medkit.transforms.itk import read_itk, write_itk
from medkit.transforms.itk_fields import read_field_itk, read_field_nifti, write_field
from medkit.transforms.itk_linear import read_matlab, read_text, write_affine
from medkit.transforms.minc import read_minc
from medkit.transforms.resampling import to_displacement_field
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField, Transform, chain, grid_of_field

_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Transform]], ...] = (
    ((".nii.gz", ".nii"), read_field_nifti),
    (FIELD_SUFFIXES, read_field_itk),
    ((".tfm", ".txt"), read_text),
    ((".mat",), read_matlab),
    (H5_SUFFIXES, lambda path: chain(read_itk(path))),
    ((".xfm",), read_minc),
    ((".lta",), read_lta),
)
"""Endings of file names, and the function that reads such files; the first match counts."""


def read_transform(path: Path) -> Transform:
    """Read a transform file of ITK, ANTs, MINC or FreeSurfer (LTA), or a displacement field.

    The transform takes fixed points to moving points, RAS+ mm. The name must end in one of `TRANSFORM_SUFFIXES` or
    `FIELD_SUFFIXES`. Several transforms in a file are composed. The digests of the two grids are those that medkit
    wrote into the file, else None. Raises InputError, which names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file")
    for suffixes, read in _READERS:
        if path.name.lower().endswith(suffixes):
            return read(path)
    raise InputError(f"{path}: expected a transform that ends in {', '.join((*TRANSFORM_SUFFIXES, *FIELD_SUFFIXES))}")


def write_transform(transform: Transform, path: Path) -> None:
    """Write a file that ANTs and SimpleITK read. Raises OutputError for a name that cannot hold the transform.

    `.h5` and `.hdf5` are ITK's HDF5 form, which keeps all parts of a composite transform. For other names an affine
    transform becomes ITK's text in LPS mm, or for `.mat` ITK's binary form; a displacement field becomes NIfTI with
    vector intent, LPS mm, float32; a composite transform becomes one displacement field on the grid of its last
    transform, which must be a field (see `to_displacement_field` for other grids).
    """
    path = Path(path)
    if path.suffix in H5_SUFFIXES and isinstance(transform, AffineTransform | DisplacementField | Composite):
        write_itk(path, transform)
    elif isinstance(transform, AffineTransform):
        write_affine(path, transform)
    elif isinstance(transform, DisplacementField):
        write_field(path, transform)
    elif isinstance(transform, Composite) and isinstance(last := transform.transforms[-1], DisplacementField):
        write_field(path, to_displacement_field(transform, last.grid))
    elif isinstance(transform, Composite):
        raise OutputError(f"{path}: a composite transform is written as a displacement field on the fixed grid")
    else:
        raise OutputError(
            f"{path}: the inverse of a displacement field has no grid of its own: sample it on the moving grid first "
            "(`to_displacement_field`)"
        )


@dataclass(frozen=True, eq=False)
class TransformFile:
    """A transform as an output of a task. Its file name decides the format.

    Affine transforms become text or ITK's binary forms; others ITK's HDF5 or a displacement field.
    """

    transform: Transform
    """The transform to write."""
    grid: Grid | None = None
    """Grid of a displacement field that is written; None: the grid of the transform's own first field."""

    def write(self, path: Path) -> None:
        """Write the file. Raises OutputError for a name that cannot hold the transform."""
        grid = self.grid or grid_of_field(self.transform)
        if path.name.lower().endswith((".nii", ".nii.gz")):
            if grid is None:
                raise OutputError(f"{path.name}: a displacement field needs --reference, the fixed image")
            field = to_displacement_field(self.transform, grid)
            write_transform(replace(field, from_grid=field.from_grid or grid.digest()), path)
        elif path.suffix in H5_SUFFIXES or isinstance(self.transform, AffineTransform):
            write_transform(self.transform, path)
        else:
            raise OutputError(
                f"{path.name}: expected a name that ends in .nii.gz or .h5, because the transform contains a "
                "displacement field"
            )
