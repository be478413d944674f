"""b-values and directions of diffusion images, from the tags of the standard and of three makers, and FSL's files.

The private tags are those that dcm2niix and NAMIC document: https://www.na-mic.org/wiki/NAMIC_Wiki:DTI:DICOM_for_DWI_and_DTI
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medkit.space import RAS_TO_LPS

_SIEMENS_B, _SIEMENS_DIRECTION = (0x0019, 0x100C), (0x0019, 0x100E)
_GE_B, _GE_DIRECTION = (0x0043, 0x1039), ((0x0019, 0x10BB), (0x0019, 0x10BC), (0x0019, 0x10BD))
_PHILIPS_B, _PHILIPS_DIRECTION = (0x2001, 0x1003), ((0x2005, 0x10B0), (0x2005, 0x10B1), (0x2005, 0x10B2))
_GE_OFFSET = 1_000_000_000
"""What GE adds to b-values on some scanners."""
_UNWEIGHTED = 5.0
"""s/mm2 up to which a volume counts as one without diffusion weighting, which has no direction."""


@dataclass(frozen=True, eq=False)
class Gradient:
    """The diffusion weighting of one volume."""

    b: float
    """s/mm2."""
    direction: np.ndarray
    """(3,) RAS+, of length 1; 0 for a volume without weighting, or averaged over directions."""


def gradients_of(headers: Sequence[Any], frames: Sequence[int], directions: Sequence[np.ndarray]) -> list[Gradient]:
    """Return the gradient of each volume; empty if no volume is weighted.

    headers: of the file that a volume's first slice lies in. frames: the number of that slice in its file.
    directions: (3, 3) LPS, columns I, J and normal of the slices.
    """
    found = [_gradient(*one) for one in zip(headers, frames, directions, strict=True)]
    weighted = any(one is not None and one.b > _UNWEIGHTED for one in found)
    return [one or Gradient(0.0, np.zeros(3)) for one in found] if weighted else []


def _gradient(header: Any, frame: int, axes: np.ndarray) -> Gradient | None:
    """Return the gradient of a slice; None if its header states none."""
    for source in (_standard, _siemens, _philips, _ge):
        found = source(header, frame, axes)
        if found is None:
            continue
        b, lps = found
        vector = np.zeros(3) if lps is None else np.asarray(lps, float)
        length = float(np.linalg.norm(vector))
        if b <= _UNWEIGHTED or not np.isfinite(length) or length < 1e-3:
            return Gradient(b, np.zeros(3))
        return Gradient(b, RAS_TO_LPS[:3, :3] @ vector / length)
    return None


_Found = tuple[float, Any] | None
"""b-value and direction in LPS, which may be None."""


def _standard(header: Any, frame: int, axes: np.ndarray) -> _Found:
    """DICOM's own tags: of enhanced files for each frame (PS3.3 C.8.13.5.9), of newer classic ones at the top."""
    group = _diffusion_group(header, frame)
    place = header if group is None else group
    b = place.get("DiffusionBValue")
    if b is None:
        return None
    items = place.get("DiffusionGradientDirectionSequence")
    vector = (items[0] if items else place).get("DiffusionGradientOrientation")
    return float(b), vector


def _diffusion_group(header: Any, frame: int) -> Any:
    for keyword, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(keyword)
        found = items[number].get("MRDiffusionSequence") if items and number < len(items) else None
        if found:
            return found[0]
    return None


def _siemens(header: Any, frame: int, axes: np.ndarray) -> _Found:
    """Siemens: private tags of the patient's frame, or on old scanners the CSA header."""
    if not _is_maker(header, "SIEMENS"):
        return None
    if _SIEMENS_B in header:
        vector = _numbers(header, _SIEMENS_DIRECTION) if _SIEMENS_DIRECTION in header else []
        return _numbers(header, _SIEMENS_B)[0], vector if len(vector) == 3 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel says of this reader that it knows Siemens' files only
        from nibabel.nicom import csareader

        try:
            csa = csareader.get_csa_header(header, "image")
        except Exception:  # a damaged CSA header is one that states nothing
            return None
    if csa is None:
        return None
    b, vector = csareader.get_scalar(csa, "B_value"), csareader.get_vector(csa, "DiffusionGradientDirection", 3)
    return None if b is None else (float(b), vector)


def _philips(header: Any, frame: int, axes: np.ndarray) -> _Found:
    """Philips: private tags of the patient's frame; right to left, back to front, foot to head."""
    if not _is_maker(header, "PHILIPS") or _PHILIPS_B not in header:
        return None
    vector = [_numbers(header, tag)[0] for tag in _PHILIPS_DIRECTION if tag in header]
    return _numbers(header, _PHILIPS_B)[0], vector if len(vector) == 3 else None


def _ge(header: Any, frame: int, axes: np.ndarray) -> _Found:
    """GE: in the frame of frequency, phase and slice, as dcm2niix turns it (its geCorrectBvecs)."""
    if not _is_maker(header, "GE MEDICAL") or _GE_B not in header:
        return None
    b = _numbers(header, _GE_B)[0] % _GE_OFFSET
    along = str(header.get("InPlanePhaseEncodingDirection") or "").strip().upper()[:1]
    if any(tag not in header for tag in _GE_DIRECTION) or along not in ("R", "C"):
        return b, None
    first, second, third = (_numbers(header, tag)[0] for tag in _GE_DIRECTION)
    if along == "R":
        first, second = second, -first
    normal = int(np.abs(axes[:, 2]).argmax())
    signs = ((1, 1, -1), (-1, 1, 1), (-1, -1, 1))[normal]
    return b, axes @ (np.array([first, second, third]) * signs)


def doubt_of(header: Any, gradients: Sequence[Gradient]) -> str:
    """Return what is doubtful about the directions; mostly nothing."""
    position = str(header.get("PatientPosition") or "").upper()
    if gradients and _is_maker(header, "GE MEDICAL") and position != "HFS":
        return (
            f"GE's diffusion directions are known for head first supine, here it is {position or 'not stated'}: check"
        )
    if any(one.b > _UNWEIGHTED and not one.direction.any() for one in gradients):
        return "a volume is weighted but has no direction: an average over directions, or the header lacks it"
    return ""


def _is_maker(header: Any, name: str) -> bool:
    return str(header.get("Manufacturer") or "").upper().startswith(name)


def _numbers(header: Any, tag: tuple[int, int]) -> list[float]:
    """Return the numbers of a private tag; those of a type that the file does not state are bytes."""
    value = header[tag].value
    if isinstance(value, bytes):
        text = value.decode("latin-1").strip("\0 ")
        if text and all(c in "0123456789.+-eE\\ " for c in text):
            return [float(word) for word in text.split("\\")]
        kind = {2: "<u2", 4: "<f4"}.get(len(value), "<f8")
        return [float(one) for one in np.frombuffer(value[: len(value) // 8 * 8] if kind == "<f8" else value, kind)]
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return [float(one) for one in values] or [0.0]


def fsl_vectors(gradients: Sequence[Gradient], affine: np.ndarray) -> np.ndarray:
    """Return the directions (3, T) as FSL has them: along the image's axes, the first one turned round if it has to be.

    affine: (4, 4) of the image, voxel -> RAS+ mm. FSL's frame is radiological: a positive determinant turns I round.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    vectors = np.linalg.inv(axes) @ np.array([one.direction for one in gradients]).T
    if np.linalg.det(axes) > 0:
        vectors[0] *= -1
    length = np.linalg.norm(vectors, axis=0)
    return np.asarray(np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0))


def fsl_files(gradients: Sequence[Gradient], affine: np.ndarray) -> tuple[str, str]:
    """Return the texts of the `.bval` and `.bvec` files."""
    values = " ".join(f"{one.b:g}" for one in gradients)
    rows = [" ".join(f"{value + 0.0:.6g}" for value in row) for row in fsl_vectors(gradients, affine)]
    return values + "\n", "\n".join(rows) + "\n"
