"""`--sequence`: planes one after the other, in time or beside each other; each is made finer with its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medkit.case import Case
from medkit.errors import InputError

if TYPE_CHECKING:
    from medkit.images import Image

ACROSS = 2
"""The axis of the planes of a stack."""


def stacked(case: Case) -> Image:
    """The frames of a case as the planes of one image: the third axis of a volume, or the fourth of planes over time.

    Raises InputError for a single plane, and for volumes over time.
    """
    from medkit.images import Image, read_image
    from medkit.space import Grid

    count = _frames(case)
    if count == 1:
        image = case.image()
        if image.grid.shape[ACROSS] == 1:
            raise InputError(f"{case.path}: --sequence: expected planes one after the other, got one")
        return image
    frames = [read_image(case.path, frame=number) for number in range(count)]
    first = frames[0]
    if first.grid.shape[ACROSS] != 1:
        shape = " x ".join(map(str, (*first.grid.shape, count)))
        raise InputError(f"{case.path}: --sequence: expected planes over time, got volumes ({shape})")
    grid = Grid((*first.grid.shape[:2], count), first.grid.affine, 3)
    data = np.concatenate([frame.data for frame in frames], axis=3)
    return Image(data, grid, first.path, first.dtype, first.warnings)


def over_time(case: Case) -> bool:
    """Whether the frames of a case are its fourth axis."""
    return _frames(case) > 1


def unstacked(image: Image) -> Image:
    """Planes over time, (1, I, J, T), as frames, (T, I, J, 1)."""
    from medkit.space import Grid

    grid = image.grid
    return image.with_data(image.data[0].transpose(2, 0, 1)[..., None], Grid((*grid.shape[:2], 1), grid.affine, 3))


def _frames(case: Case) -> int:
    """Frames of a NIfTI file; 1 of any other."""
    if case.path.is_dir() or not case.path.name.endswith((".nii", ".nii.gz")):
        return 1
    from medkit import nifti

    shape = nifti.promised_shape(case.path, nifti.read_header(case.path))
    return int(np.prod(shape[3:]))
