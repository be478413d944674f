"""Reading the structures of a DICOM RT Structure Set (RTSTRUCT)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.dicom_objects import from_dicom
from medkit.errors import InputError, listed
from medkit_contours.polygons import Contour, ContourSet, Structure, area_vector

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Types of contours that enclose an area; several in a plane count by the even-odd rule."""
_SAME = 1e-2
"""mm between planes that are one."""
_TILT = 0.02
"""Largest distance of a point from the plane of its contour, as a share of the contour's extent."""


@dataclass(frozen=True, eq=False)
class StructureSet:
    """What an RTSTRUCT holds."""

    contours: ContourSet
    notes: tuple[str, ...]
    """What was left out, in sentences."""
    doubts: Mapping[int, str]
    """Structure's number -> what a person should look at, in words."""


def is_structure_set(path: Path) -> bool:
    """Return whether a file is an RTSTRUCT, or a folder holds nothing but one."""
    return bool(_files(path))


def read_structure_set(path: Path) -> StructureSet:
    """Read a file, or a folder with one RTSTRUCT. Raises InputError."""
    files = _files(path)
    if len(files) != 1:
        names = f": {listed([one.name for one in files[:5]])}" if files else ""
        raise InputError(f"{path}: expected one RTSTRUCT, got {len(files) or 'none'}{names}")
    dataset = _read(files[0])
    try:
        return _parsed(files[0], dataset)
    except InputError:
        raise
    except Exception as error:  # pydicom converts values when they are asked for, with errors of many types
        raise InputError(f"{files[0]}: an RTSTRUCT that cannot be read: {type(error).__name__}: {error}") from error


def _files(path: Path) -> list[Path]:
    names = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
    return [name for name in names if _modality(name) == "RTSTRUCT"]


def _modality(path: Path) -> str:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True).get("Modality"))
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError):
        return ""


def _read(path: Path) -> Any:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)


def _parsed(path: Path, dataset: Any) -> StructureSet:
    names = {int(one.ROINumber): str(one.get("ROIName") or "") for one in dataset.get("StructureSetROISequence") or []}
    numbers = _labels(list(names))
    notes: list[str] = []
    structures = []
    for item in dataset.get("ROIContourSequence") or []:
        roi = int(item.ReferencedROINumber)
        name = names.get(roi) or f"ROI {roi}"
        contours = tuple(_contours(path, item, name, notes))
        if contours:
            structures.append(Structure(numbers.get(roi, roi), name, contours))
    if not structures:
        raise InputError(f"{path}: expected an RTSTRUCT with closed contours, got none")
    normal = _normal(path, structures)
    structures = [replace(one, step=_step([one], normal)) for one in structures]
    doubts = {one.number: doubt for one in structures if (doubt := _gap(one, structures, normal))}
    return StructureSet(ContourSet(tuple(structures), normal, _step(structures, normal)), tuple(notes), doubts)


def _labels(numbers: list[int]) -> dict[int, int]:
    """Return ROI number -> label: the number itself, or counted from 1 if one of them cannot be a label."""
    usable = all(0 < number < 1 << 16 for number in numbers)
    return {number: number if usable else count for count, number in enumerate(sorted(numbers), start=1)}


def _contours(path: Path, item: Any, name: str, notes: list[str]) -> Iterator[Contour]:
    """Yield the closed contours of a structure; add a note if it has others."""
    others: dict[str, int] = {}
    for one in item.get("ContourSequence") or []:
        kind = str(one.get("ContourGeometricType") or "")
        values = np.array(one.get("ContourData") or [], float)
        if kind not in CLOSED or len(values) < 9:
            others[kind or "unknown"] = others.get(kind or "unknown", 0) + 1
            continue
        if len(values) % 3 or not np.isfinite(values).all():
            raise InputError(f"{path}: {name}: expected contours of finite x, y and z, got {len(values)} numbers")
        points = from_dicom(values.reshape(-1, 3))
        same = len(points) > 3 and np.allclose(points[0], points[-1], atol=1e-6)
        yield Contour(points[:-1] if same else points, False, None)
    notes += [f"{name}: {count} contours of type {kind} enclose nothing: left out" for kind, count in others.items()]


def _normal(path: Path, structures: list[Structure]) -> np.ndarray:
    """Return the unit vector (3,) RAS+ across all contours. Raises InputError if they are not parallel."""
    contours = [one.points for structure in structures for one in structure.contours]
    crosses = np.array([area_vector(points) for points in contours])
    normal = crosses[int(np.linalg.norm(crosses, axis=1).argmax())]
    normal = normal / (np.linalg.norm(normal) or 1.0)
    normal = normal * (np.sign(normal[np.abs(normal).argmax()]) or 1.0)
    for points in contours:
        extent = float(np.linalg.norm(np.ptp(points, axis=0)))
        if np.ptp(points @ normal) > max(_TILT * extent, 2 * _SAME):
            raise InputError(f"{path}: expected contours in parallel planes, got one that is tilted or not flat")
    return normal


def _heights(structure: Structure, normal: np.ndarray) -> np.ndarray:
    """Return the sorted places, mm along the normal, of the planes that hold contours of a structure."""
    found = np.sort([float((one.points @ normal).mean()) for one in structure.contours])
    return found[np.diff(found, prepend=-np.inf) > _SAME]


def _step(structures: list[Structure], normal: np.ndarray) -> float | None:
    """Return the usual distance of neighbouring planes, mm; None if no structure has contours in three planes."""
    gaps = [np.diff(_heights(one, normal)) for one in structures]
    known = [found for found in gaps if len(found) > 1]
    return float(np.median(np.concatenate(known))) if known else None


def _gap(structure: Structure, structures: list[Structure], normal: np.ndarray) -> str:
    """Return in words which gaps between the contours of a structure stay empty, or an empty text.

    A gap in which another structure has contours is no doubt: there are images in it, without this structure.
    """
    if not structure.step:
        return ""
    heights, drawn = _heights(structure, normal), np.concatenate([_heights(one, normal) for one in structures])
    wide = [
        high - low
        for low, high in itertools.pairwise(heights)
        if high - low > 1.5 * structure.step and not ((drawn > low + _SAME) & (drawn < high - _SAME)).any()
    ]
    if not wide:
        return ""
    return f"{structure.name}: gaps between contours stay empty: {len(wide)} of up to {max(wide):.3g} mm"
