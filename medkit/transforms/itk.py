"""Transform files through the itk library: ITK's HDF5 form, and the types that medkit does not parse itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.space import Grid, lps_affine, lps_parts, three_axes
from medkit.transforms.itk_frame import affine_from_lps, affine_to_lps, field_from_lps, field_to_lps
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform, parts_of


def read_itk(path: Path) -> list[Transform]:
    """Read a file of one transform, which may be composite: its parts in image order, RAS+ mm. Raises InputError."""
    import itk

    try:
        transforms = itk.transformread(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: expected a transform, but itk cannot read a transform from it") from error
    if len(transforms) != 1:
        raise InputError(f"{path}: expected one transform or a CompositeTransform, got {len(transforms)} transforms")
    return list(_parts_from_itk(path, transforms[0]))


def write_itk(path: Path, transform: Transform) -> None:
    """Write ITK's HDF5 form; a composite transform keeps its parts. Raises OutputError for what ITK has no type for."""
    import itk

    parts = parts_of(transform)
    dims = max(part.dims for part in parts if isinstance(part, AffineTransform | DisplacementField))
    written = [_part_to_itk(path, part, dims) for part in parts]
    if len(written) > 1:
        composite = itk.CompositeTransform[itk.D, dims].New()
        for part in written:
            composite.AddTransform(part)
        written = [composite]
    itk.transformwrite(written, str(path))


def _parts_from_itk(path: Path, transform: Any) -> Iterator[Transform]:
    """Yield the parts of ITK's transform as medkit's; those of a composite one in their stored order (image order)."""
    import itk

    transform = itk.down_cast(transform)
    kind = transform.GetTransformTypeAsString().split("_")[0]
    dims = transform.GetInputSpaceDimension()
    if kind == "CompositeTransform":
        for number in range(transform.GetNumberOfTransforms()):
            yield from _parts_from_itk(path, transform.GetNthTransform(number))
    elif kind == "DisplacementFieldTransform":
        yield _field_from_itk(path, transform, dims)
    elif transform.IsLinear() and dims in (2, 3):
        corners = [np.array(transform.TransformPoint([float(n) for n in row])) for row in np.eye(dims + 1, dims, -1)]
        yield affine_from_lps(np.array(corners[1:]).T - corners[0][:, None], corners[0])
    else:
        raise InputError(f"{path}: expected affine transforms and displacement fields, got {kind} of {dims} dimensions")


def _field_from_itk(path: Path, transform: Any, dims: int) -> DisplacementField:
    import itk

    image = transform.GetDisplacementField()
    vectors = itk.array_from_image(image)  # (K, J, I, dims), without K in the plane
    shape = three_axes([int(count) for count in vectors.shape[dims - 1 :: -1]])
    origin, spacing = (
        np.array([float(value) for value in values]) for values in (image.GetOrigin(), image.GetSpacing())
    )
    affine = lps_affine(itk.array_from_matrix(image.GetDirection()), spacing, origin)
    vectors = vectors.reshape(*shape[::-1], dims).transpose(2, 1, 0, 3)
    return DisplacementField(field_from_lps(path, vectors), Grid(shape, affine, dims))


def _part_to_itk(path: Path, transform: Transform, dims: int) -> Any:
    """Return ITK's transform for an affine transform or a displacement field. Raises OutputError for others."""
    import itk

    if isinstance(transform, AffineTransform):
        matrix, offset = affine_to_lps(transform.matrix, dims)
        result = itk.AffineTransform[itk.D, dims].New()
        result.SetParameters(_itk_parameters([*matrix.ravel(), *offset]))
        return result
    if not isinstance(transform, DisplacementField):
        raise OutputError(f"{path}: expected affine transforms and displacement fields")
    grid = transform.grid
    directions, spacing, origin = lps_parts(grid.affine, dims)
    result = itk.DisplacementFieldTransform[itk.D, dims].New()
    # this makes a field of zeros to fill: itk's wheels cannot make an image of double vectors from an array
    result.SetFixedParameters(_itk_parameters([*grid.shape[:dims], *origin, *spacing, *directions.ravel()]))
    view = itk.array_view_from_image(result.GetDisplacementField())  # (K, J, I, n), without K in the plane
    view[:] = field_to_lps(transform.field, dims).transpose(2, 1, 0, 3).reshape(view.shape)
    return result


def _itk_parameters(values: Sequence[float]) -> Any:
    import itk

    parameters = itk.OptimizerParameters[itk.D](len(values))
    for number, value in enumerate(values):
        parameters.SetElement(number, float(value))
    return parameters
