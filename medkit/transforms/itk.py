"""Transform files: ITK's text and MATLAB forms written and read here, HDF5 through itk, displacement fields as NIfTI.

ITK's readers and writers take from nine seconds up to load, for ten lines of text, so these two forms are our own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import nifti
from medkit.pipe.names import H5_SUFFIXES
from medkit.space import RAS_TO_LPS, Grid, lps_affine, lps_parts, three_axes
from medkit.transforms.transform import (
    AffineTransform,
    Composite,
    DisplacementField,
    Transform,
    chain,
)

_MAGIC = "#Insight Transform File V1.0"
_DIGESTS = re.compile(r"medkit from=(\w+) to=(\w+)")
_LINEAR = ("AffineTransform", "MatrixOffsetTransformBase", "TranslationTransform", "IdentityTransform")
"""ITK's types whose text form is read here: parameters are the matrix and the translation, or a part of them."""


def write_affine(path: Path, transform: AffineTransform) -> None:
    """Write an ITK transform in LPS: text for `.tfm` and `.txt`, MATLAB's form for `.mat`, through itk for `.h5`."""
    if path.suffix in (".tfm", ".txt"):
        path.write_text(_text(transform), encoding="ascii")
    elif path.suffix == ".mat":
        path.write_bytes(_matlab(transform))
    elif path.suffix in H5_SUFFIXES:
        write_itk(path, transform)
    else:
        raise OutputError(f"{path}: expected the name of an affine transform to end in .tfm, .txt, .mat, .h5 or .hdf5")


def write_field(path: Path, transform: DisplacementField) -> None:
    """Write (I, J, K, 1, 3), for a field of the plane (I, J, 1, 1, 2): vector intent, LPS mm, float32; or `.h5`."""
    if path.suffix in H5_SUFFIXES:
        write_itk(path, transform)
        return
    if not path.name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path}: expected the name of a displacement field to end in .nii, .nii.gz or .h5")
    grid = transform.grid
    header = nifti.header_for(grid.header, grid.affine, grid.spacing)
    header["intent_code"] = 1007  # NIFTI_INTENT_VECTOR; 1006 would make ITK turn the vectors from RAS
    header["descrip"] = f"medkit from={transform.from_grid} to={transform.to_grid}".encode()
    header["pixdim"][4:6] = 1
    flips = np.diag(RAS_TO_LPS)[: grid.dims]
    vectors = transform.field[..., : grid.dims] * flips.astype(np.float32)
    nifti.write(path, vectors[:, :, :, None], header)


def _text(transform: AffineTransform) -> str:
    dims = transform.dims
    matrix, offset = _lps_parts(transform.matrix, dims)
    return (
        f"{_MAGIC}\n# medkit from={transform.from_grid} to={transform.to_grid}\n#Transform 0\n"
        f"Transform: AffineTransform_double_{dims}_{dims}\n"
        f"Parameters: {_numbers([*matrix.ravel(), *offset])}\nFixedParameters: {_numbers([0.0] * dims)}\n"
    )


def _matlab(transform: AffineTransform) -> bytes:
    """ITK's and ANTs' `.mat`: two vectors in MATLAB's level 4 format, as `itk::MatlabTransformIO` has them."""
    matrix, offset = _lps_parts(transform.matrix, transform.dims)
    name = f"AffineTransform_double_{transform.dims}_{transform.dims}"
    return _matlab_vector(name, [*matrix.ravel(), *offset]) + _matlab_vector("fixed", [0.0] * transform.dims)


def _matlab_vector(name: str, values: Sequence[float]) -> bytes:
    head = struct.pack("<5i", 0, len(values), 1, 0, len(name) + 1)
    return head + name.encode("ascii") + b"\0" + np.array(values, "<f8").tobytes()


def read_matlab(path: Path) -> Transform:
    content = path.read_bytes()
    if is_text_matrix(content):
        raise InputError(
            f"{path}: looks like an FSL matrix, which has a meaning for its two images alone: "
            f"medkit transform convert {path.name} --fixed F --moving M -o x.tfm"
        )
    try:
        name, parameters, rest = _vector_of_matlab(content)
        found = _linear_block(name, parameters, _vector_of_matlab(rest)[1])
    except (struct.error, ValueError) as error:
        raise InputError(f"{path}: expected a transform of ITK or ANTs in MATLAB's form: {error}") from error
    return found if found is not None else chain(read_itk(path))


def is_text_matrix(content: bytes) -> bool:
    """Four lines of four numbers."""
    try:
        return (
            np.array([line.split() for line in content.decode("ascii").split("\n") if line.strip()], float).size == 16
        )
    except ValueError:
        return False


def _vector_of_matlab(content: bytes) -> tuple[str, np.ndarray, bytes]:
    """Name and values of the first vector of a MATLAB level 4 file, and what follows it. ValueError, struct.error."""
    kind, rows, columns, imaginary, length = struct.unpack_from("<5i", content)
    if kind not in (0, 10, 100, 110) or imaginary or rows < 0 or columns < 0 or not 0 < length <= 128:
        raise ValueError("got something else")
    start = 20 + length
    dtype = np.dtype("<f8" if kind % 100 == 0 else "<f4")
    end = start + rows * columns * dtype.itemsize
    if end > len(content):
        raise ValueError(f"truncated: {len(content)} bytes")
    name = content[20 : start - 1].decode("ascii", "replace")
    return name, np.frombuffer(content[start:end], dtype).astype(np.float64), content[end:]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _lps_parts(matrix: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    return lps[:dims, :dims], lps[:dims, 3]


def _from_lps(matrix: np.ndarray, offset: np.ndarray) -> AffineTransform:
    """From ITK's (n, n) matrix and (n,) offset, n = 2 or 3."""
    dims = len(offset)
    lps = np.eye(4)
    lps[:dims, :dims], lps[:dims, 3] = matrix, offset
    return AffineTransform(RAS_TO_LPS @ lps @ RAS_TO_LPS, dims=dims)


def read_text(path: Path) -> Transform:
    try:
        text = path.read_text(encoding="ascii")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected an ITK transform in text form, got something else") from error
    if not text.startswith("#Insight Transform File"):
        raise InputError(f"{path}: expected an ITK transform in text form ({_MAGIC!r} in its first line)")
    try:
        blocks = list(_blocks(text))
        parts = [_linear_block(*block) for block in blocks if not block[0].startswith("CompositeTransform")]
    except ValueError as error:
        raise InputError(f"{path}: damaged ITK transform: {error}") from error
    if not parts:
        raise InputError(f"{path}: no transform in it")
    if len(parts) > 1 and len(parts) == len(blocks):
        raise InputError(f"{path}: expected one transform or a CompositeTransform, got {len(parts)} transforms")
    known = [part for part in parts if part is not None]
    return _with_digests(chain(known if len(known) == len(parts) else read_itk(path)), text)


def _blocks(text: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Type, parameters and fixed parameters of each transform in the text."""
    for block in re.split(r"^Transform:", text, flags=re.MULTILINE)[1:]:
        name = block.split(maxsplit=1)[0]
        values = dict(re.findall(r"^(Parameters|FixedParameters):(.*)$", block, flags=re.MULTILINE))
        yield name, floats(values.get("Parameters", "")), floats(values.get("FixedParameters", ""))


def floats(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


def _linear_block(name: str, parameters: np.ndarray, fixed: np.ndarray) -> AffineTransform | None:
    """The transform of one block of text; None for a type that is left to itk."""
    kind, *sizes = name.split("_")
    if kind not in _LINEAR or sizes[-1:] not in (["2"], ["3"]):
        return None
    dims = int(sizes[-1])
    matrix, offset, centre = np.eye(dims), np.zeros(dims), np.zeros(dims)
    if kind in _LINEAR[:2]:
        if len(parameters) != dims * (dims + 1) or len(fixed) not in (0, dims):
            raise ValueError(f"expected {dims * (dims + 1)} parameters of {kind}, got {len(parameters)}")
        matrix, offset = parameters[: dims * dims].reshape(dims, dims), parameters[dims * dims :]
        centre = fixed if len(fixed) else centre
    elif kind == "TranslationTransform":
        if len(parameters) != dims:
            raise ValueError(f"expected {dims} parameters of {kind}, got {len(parameters)}")
        offset = parameters
    return checked(_from_lps(matrix, offset + centre - matrix @ centre))


def checked(transform: AffineTransform) -> AffineTransform:
    if not np.isfinite(transform.matrix).all() or abs(np.linalg.det(transform.matrix)) < 1e-9:
        raise ValueError("its matrix cannot be inverted")
    return transform


def _with_digests(transform: Transform, text: str) -> Transform:
    found = _DIGESTS.search(text)
    if not found:
        return transform
    from_grid, to_grid = (None if digest == "None" else digest for digest in found.groups())
    if isinstance(transform, Composite):
        *first, last = transform.transforms
        parts = (_named(first[0], None, to_grid), *first[1:], _named(last, from_grid, None))
        return Composite(parts)
    return _named(transform, from_grid, to_grid)


def _named(transform: Any, from_grid: str | None, to_grid: str | None) -> Any:
    from dataclasses import replace

    return replace(transform, from_grid=from_grid, to_grid=to_grid)


def read_field_nifti(path: Path) -> DisplacementField:
    from medkit.space import check_grid

    header, voxels = nifti.read(path)
    if is_fsl_warp(voxels.shape):
        raise InputError(
            f"{path}: looks like a warp of FSL, which has a meaning for its two images alone: "
            f"medkit transform convert {path.name} --fixed F --moving M -o x.nii.gz"
        )
    vectors = voxels.ndim == 5 and voxels.shape[3] == 1 and voxels.shape[4] in (2, 3)
    if not vectors or voxels.dtype.kind != "f":
        raise InputError(
            f"{path}: expected a displacement field (I, J, K, 1, 3) of floats, got {voxels.shape} {voxels.dtype}"
        )
    affine, _ = nifti.affine_of(path, header)
    dims = voxels.shape[4]
    grid = Grid(voxels.shape[:3], affine, dims, nifti.geometry_fields(header))
    check_grid(path, grid)
    flips = np.diag(RAS_TO_LPS)[:dims] if int(header["intent_code"]) != 1006 else np.ones(dims)
    field = _field_of(path, voxels[:, :, :, 0], flips)
    return _with_digests(DisplacementField(field, grid), bytes(header["descrip"]).decode("latin-1"))  # type: ignore[return-value]


def is_fsl_warp(shape: Sequence[int]) -> bool:
    """Whether a NIfTI file of this shape can be FSL's: three frames, where ITK has a fifth axis."""
    return len(shape) == 4 and shape[3] == 3


def _field_of(path: Path, vectors: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """(I, J, K, 2 or 3) of any frame -> (I, J, K, 3) float32 RAS+ mm, vectors whole and axis I fastest in memory."""
    field = np.zeros((*vectors.shape[2::-1], 3), np.float32).transpose(2, 1, 0, 3)
    np.multiply(vectors, flips, out=field[..., : vectors.shape[3]], casting="same_kind")
    if not np.isfinite(field).all():
        raise InputError(f"{path}: expected finite displacements, got NaN or infinity")
    return field


def read_field_itk(path: Path) -> DisplacementField:
    from medkit.images.itk import grid_of, read_header, read_voxels

    reader = read_header(path)
    grid = grid_of(path, reader)
    voxels = read_voxels(path, reader)
    if voxels.shape[3:] != (1, grid.dims) or voxels.dtype.kind != "f":
        raise InputError(f"{path}: expected a displacement field of floats, got {voxels.shape} {voxels.dtype}")
    return DisplacementField(_field_of(path, voxels[:, :, :, 0], np.diag(RAS_TO_LPS)[: grid.dims]), grid)


def read_itk(path: Path) -> list[Transform]:
    import itk

    try:
        transforms = itk.transformread(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: itk cannot read a transform from it") from error
    if len(transforms) != 1:
        raise InputError(f"{path}: expected one transform or a CompositeTransform, got {len(transforms)} transforms")
    return list(_parts_of(path, transforms[0]))


def _parts_of(path: Path, transform: Any) -> Iterator[Transform]:
    """ITK's transform as ours, a composite one in its stored order, which is image order."""
    import itk

    transform = itk.down_cast(transform)
    kind = transform.GetTransformTypeAsString().split("_")[0]
    dims = transform.GetInputSpaceDimension()
    if kind == "CompositeTransform":
        for number in range(transform.GetNumberOfTransforms()):
            yield from _parts_of(path, transform.GetNthTransform(number))
    elif kind == "DisplacementFieldTransform":
        yield _field_from_itk(path, transform, dims)
    elif transform.IsLinear() and dims in (2, 3):
        corners = [np.array(transform.TransformPoint([float(n) for n in row])) for row in np.eye(dims + 1, dims, -1)]
        yield _from_lps(np.array(corners[1:]).T - corners[0][:, None], corners[0])
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
    return DisplacementField(_field_of(path, vectors, np.diag(RAS_TO_LPS)[:dims]), Grid(shape, affine, dims))


def write_itk(path: Path, transform: Transform) -> None:
    """Write ITK's HDF5 form, a composite one with its parts as they are. OutputError for what ITK has no type for."""
    import itk

    parts = transform.transforms if isinstance(transform, Composite) else (transform,)
    dims = max(part.dims for part in parts if isinstance(part, AffineTransform | DisplacementField))
    written = [_itk_of(path, part, dims) for part in parts]
    if len(written) > 1:
        composite = itk.CompositeTransform[itk.D, dims].New()
        for part in written:
            composite.AddTransform(part)
        written = [composite]
    itk.transformwrite(written, str(path))


def _itk_of(path: Path, transform: Transform, dims: int) -> Any:
    import itk

    if isinstance(transform, AffineTransform):
        matrix, offset = _lps_parts(transform.matrix, dims)
        result = itk.AffineTransform[itk.D, dims].New()
        result.SetParameters(_itk_parameters([*matrix.ravel(), *offset]))
        return result
    if not isinstance(transform, DisplacementField):
        raise OutputError(f"{path}: expected affine transforms and displacement fields")
    grid = transform.grid
    directions, spacing, origin = lps_parts(grid.affine, dims)
    result = itk.DisplacementFieldTransform[itk.D, dims].New()
    # makes a field of zeros: itk's wheels cannot make an image of double vectors from an array
    result.SetFixedParameters(_itk_parameters([*grid.shape[:dims], *origin, *spacing, *directions.ravel()]))
    vectors = transform.field[..., :dims] * np.diag(RAS_TO_LPS)[:dims]
    view = itk.array_view_from_image(result.GetDisplacementField())  # (K, J, I, n), without K in the plane
    view[:] = vectors.transpose(2, 1, 0, 3).reshape(view.shape)
    return result


def _itk_parameters(values: Sequence[float]) -> Any:
    import itk

    parameters = itk.OptimizerParameters[itk.D](len(values))
    for number, value in enumerate(values):
        parameters.SetElement(number, float(value))
    return parameters
