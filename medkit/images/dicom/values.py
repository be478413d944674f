"""Values of DICOM tags, checked: numbers, spacing, directions, slope and intercept, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.types import Lut

DEGENERATE = 1e-2
"""How far from right angles and unit length the two directions of an image may be."""


def number(path: Path, dataset: Any, keyword: str) -> float | None:
    found = numbers(path, dataset, keyword, 1)
    return None if found is None else float(found[0])


def numbers(path: Path, dataset: Any, keyword: str, count: int) -> np.ndarray | None:
    """(count,) finite numbers of a tag; None where it is missing or empty. Raises InputError for anything else."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    if not values:
        return None
    numbers = np.array([float(v) for v in values])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(f"{path}: expected {count} numbers as {_title(keyword)}, got {value}")
    return numbers


def _title(keyword: str) -> str:
    """`PixelSpacing` -> `Pixel Spacing`."""
    return "".join(f" {c}" if c.isupper() and n else c for n, c in enumerate(keyword))


def spacing_of(path: Path, dataset: Any, keyword: str = "PixelSpacing") -> np.ndarray | None:
    """(2,) mm along I (between columns) and J (between rows)."""
    found = numbers(path, dataset, keyword, 2)
    if found is not None and found.min() <= 0:
        raise InputError(f"{path}: expected a {_title(keyword)} above 0 mm, got {found[0]:g} and {found[1]:g}")
    return None if found is None else found[::-1]


def plain_spacing(path: Path, dataset: Any) -> tuple[np.ndarray | None, str]:
    """Spacing at the top of the header, and what is doubtful about it."""
    found = spacing_of(path, dataset)
    if found is not None:
        return found, ""
    found = spacing_of(path, dataset, "ImagerPixelSpacing")
    if found is not None:
        return found, "the spacing is that of the detector (Imager Pixel Spacing): the body is smaller than it seems"
    ratio = numbers(path, dataset, "PixelAspectRatio", 2)
    if ratio is not None and ratio.min() > 0 and ratio[0] != ratio[1]:
        note = "no spacing is stated, only an aspect ratio: 1 mm is assumed along a row"
        return np.array([1.0, ratio[0] / ratio[1]]), note
    return None, "no spacing between pixels is stated: 1 mm is assumed, sizes are a guess"


def directions_of(path: Path, dataset: Any) -> np.ndarray | None:
    """(3, 3) LPS, columns I, J and normal. Raises InputError for directions that are no axes of an image."""
    found = numbers(path, dataset, "ImageOrientationPatient", 6)
    if found is None:
        return None
    axes = found.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > DEGENERATE or abs(axes[0] @ axes[1]) > DEGENERATE:
        raise InputError(
            f"{path}: expected two directions at right angles as Image Orientation (Patient), got {found.tolist()}"
        )
    axes = axes / lengths[:, None]
    return np.column_stack([*axes, np.cross(*axes)])


def scaling_of(path: Path, dataset: Any) -> tuple[float, float] | None:
    slope, intercept = number(path, dataset, "RescaleSlope"), number(path, dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    if slope == 0:
        raise InputError(f"{path}: expected a Rescale Slope other than 0")
    return 1.0 if slope is None else slope, intercept or 0.0


def lut_of(path: Path, dataset: Any) -> Lut | None:
    items = dataset.get("ModalityLUTSequence")
    if not items:
        return None
    count, first, bits = (int(v) for v in items[0].LUTDescriptor)
    data = items[0].LUTData
    values = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.array(data)
    count = count or 1 << 16
    if len(values) < count and isinstance(data, bytes) and bits <= 8:
        values = np.frombuffer(data, np.uint8)
    if len(values) < count:
        raise InputError(f"{path}: expected {count} entries in its modality look-up table, got {len(values)}")
    return Lut(first, values[:count])


def order_of(dataset: Any) -> dict[str, Any]:
    """What tells images at one place apart, the most informative first."""
    out: dict[str, Any] = {}
    for name, keywords in {
        "time point": ("TemporalPositionIndex", "TemporalPositionIdentifier"),
        "echo": ("EchoNumbers", "EchoTime"),
        "b value": ("DiffusionBValue",),
        "type": ("ImageType",),
        "trigger": ("TriggerTime",),
        "acquisition": ("AcquisitionNumber",),
        "time": ("AcquisitionTime", "ContentTime"),
        "number": ("InstanceNumber",),
    }.items():
        value = next((v for k in keywords if (v := dataset.get(k)) not in (None, "")), None)
        if value is not None:
            out[name] = "/".join(map(str, value)) if name == "type" else float(value)
    return out
