"""ITK's and ANTs' linear transforms as text (.tfm, .txt) and in MATLAB's level 4 form (.mat), without the itk library.

Loading ITK's own readers and writers takes nine seconds or more, so they only read the types that `_LINEAR` does not
name. Formats: `itk::TxtTransformIO`, `itk::MatlabTransformIO`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.transforms.itk import read_itk
from medkit.transforms.itk_frame import affine_from_lps, affine_to_lps, grid_note, with_noted_grids
from medkit.transforms.transform import AffineTransform, Transform, chain, is_invertible
from medkit.transforms.unmarked import is_text_matrix

_MAGIC = "#Insight Transform File V1.0"
_AFFINE = ("AffineTransform", "MatrixOffsetTransformBase")
_LINEAR = (*_AFFINE, "TranslationTransform", "IdentityTransform")
"""ITK's types that are read here: their parameters are a matrix and a translation, a translation, or nothing."""


def write_affine(path: Path, transform: AffineTransform) -> None:
    """Write an ITK transform in LPS mm: text for `.tfm` and `.txt`, MATLAB's form for `.mat`.

    Raises OutputError for another name.
    """
    suffix = path.suffix.lower()
    if suffix in (".tfm", ".txt"):
        path.write_text(_text(transform), encoding="ascii")
    elif suffix == ".mat":
        _write_matlab(path, transform)
    else:
        raise OutputError(f"{path}: expected the name of an affine transform to end in .tfm, .txt, .mat, .h5 or .hdf5")


def read_text(path: Path) -> Transform:
    """Read an ITK transform in text form, LPS mm. Raises InputError."""
    try:
        text = path.read_text(encoding="ascii")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: expected an ITK transform in text form, got something else") from error
    _refuse_text_matrix(path, text.encode())
    if not text.startswith("#Insight Transform File"):
        raise InputError(f"{path}: expected an ITK transform in text form ({_MAGIC!r} in its first line)")
    try:
        blocks = list(_blocks(text))
        parts = [_linear_block(*block) for block in blocks if not block[0].startswith("CompositeTransform")]
    except ValueError as error:
        raise InputError(f"{path}: damaged ITK transform: {error}") from error
    if not parts:
        raise InputError(f"{path}: expected a transform in it, got no transform")
    if len(parts) > 1 and len(parts) == len(blocks):
        raise InputError(f"{path}: expected one transform or a CompositeTransform, got {len(parts)} transforms")
    known = [part for part in parts if part is not None]
    return with_noted_grids(chain(known if len(known) == len(parts) else read_itk(path)), text)


def read_matlab(path: Path) -> Transform:
    """Read an ITK transform in MATLAB's level 4 form, LPS mm. Raises InputError."""
    content = path.read_bytes()
    _refuse_text_matrix(path, content)
    name, parameters, fixed = _matlab_vectors(path, content)
    try:
        found = _linear_block(name, parameters, fixed)
    except ValueError as error:
        raise InputError(f"{path}: damaged transform of ITK or ANTs in MATLAB's form: {error}") from error
    return found if found is not None else chain(read_itk(path))


def _refuse_text_matrix(path: Path, content: bytes) -> None:
    """Raise InputError for a text of 16 numbers, which several programs write with different meanings."""
    if is_text_matrix(content):
        raise InputError(
            f"{path}: expected a transform of ITK or ANTs, got a text of 16 numbers, which has one of two meanings. An "
            "FSL matrix belongs to its two images: "
            f"medkit transform convert {path.name} --from flirt --fixed F --moving M -o x.tfm. A matrix of greedy or "
            f"c3d is in RAS mm: medkit transform convert {path.name} --from ras-matrix -o x.tfm"
        )


def _text(transform: AffineTransform) -> str:
    dims = transform.dims
    matrix, offset = affine_to_lps(transform.matrix, dims)
    return (
        f"{_MAGIC}\n# {grid_note(transform)}\n#Transform 0\n"
        f"Transform: AffineTransform_double_{dims}_{dims}\n"
        f"Parameters: {_digits([*matrix.ravel(), *offset])}\nFixedParameters: {_digits([0.0] * dims)}\n"
    )


def _digits(values: Sequence[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _write_matlab(path: Path, transform: AffineTransform) -> None:
    """Write two column vectors: the parameters under the name of ITK's type, then the fixed parameters."""
    from scipy.io import savemat

    dims = transform.dims
    matrix, offset = affine_to_lps(transform.matrix, dims)
    vectors = {f"AffineTransform_double_{dims}_{dims}": np.array([*matrix.ravel(), *offset]), "fixed": np.zeros(dims)}
    savemat(path, vectors, appendmat=False, format="4", oned_as="column")


def _matlab_vectors(path: Path, content: bytes) -> tuple[str, np.ndarray, np.ndarray]:
    """Return the name of the first vector, which is ITK's type, and the values of the first two vectors."""
    from scipy.io import loadmat

    try:
        (name, parameters), (_, fixed) = list(loadmat(io.BytesIO(content), appendmat=False).items())[:2]
        return str(name), np.asarray(parameters, np.float64).ravel(), np.asarray(fixed, np.float64).ravel()
    except Exception as error:  # scipy raises many types of error for bytes that are not a MATLAB file
        raise InputError(
            f"{path}: expected a transform of ITK or ANTs in MATLAB's form (level 4), got something else or a "
            "truncated file"
        ) from error


def _blocks(text: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the type, the parameters and the fixed parameters of each transform in a text."""
    for block in re.split(r"^Transform:", text, flags=re.MULTILINE)[1:]:
        name = block.split(maxsplit=1)[0]
        values = dict(re.findall(r"^(Parameters|FixedParameters):(.*)$", block, flags=re.MULTILINE))
        yield name, _floats(values.get("Parameters", "")), _floats(values.get("FixedParameters", ""))


def _floats(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


def _linear_block(name: str, parameters: np.ndarray, fixed: np.ndarray) -> AffineTransform | None:
    """Return the transform of one block; None for a type that is left to itk. Raises ValueError for wrong numbers.

    `name` is ITK's type with its number type and dimensions, such as `AffineTransform_double_3_3`.
    """
    kind, *sizes = name.split("_")
    if kind not in _LINEAR or sizes[-1:] not in (["2"], ["3"]):
        return None
    dims = int(sizes[-1])
    matrix, offset, centre = np.eye(dims), np.zeros(dims), np.zeros(dims)
    if kind in _AFFINE:
        if len(parameters) != dims * (dims + 1) or len(fixed) not in (0, dims):
            raise ValueError(f"expected {dims * (dims + 1)} parameters of {kind}, got {len(parameters)}")
        matrix, offset = parameters[: dims * dims].reshape(dims, dims), parameters[dims * dims :]
        centre = fixed if len(fixed) else centre
    elif kind == "TranslationTransform":
        if len(parameters) != dims:
            raise ValueError(f"expected {dims} parameters of {kind}, got {len(parameters)}")
        offset = parameters
    transform = affine_from_lps(matrix, offset + centre - matrix @ centre)
    if not is_invertible(transform.matrix):
        raise ValueError("its matrix cannot be inverted")
    return transform
