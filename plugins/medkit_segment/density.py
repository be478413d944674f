"""Densities of structures in a CT, and the volume of the lungs against the height of the patient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.images import files_of, is_dicom_path, open_file
from medkit_segment.upright import in_memory

if TYPE_CHECKING:
    from medkit.images import Image

EMPHYSEMA = -950.0
"""HU; the share of a lung below it measures emphysema."""
DISEASE = -600.0
"""HU; the share of a lung above it measures consolidation, ground glass and fibrosis, and vessels."""
AIRLESS = 0.25
"""Share of a lung above `DISEASE` from which a person should look; healthy lungs have about 0.1."""
GAS = -960.0
"""HU; the mean of lung tissue around a voxel is higher, also where a lung is inflated."""
GAS_ML = 3.0
"""Volume of a piece of gas from which a person should look."""
FULL_OF_GAS = 0.1
"""Share of a lung below `EMPHYSEMA` from which gas is nothing special: the table shows the emphysema."""
GAS_MM = 2.0
"""Spacing on which pieces of gas are looked for."""
COLUMNS = ("volume_l", "mean_hu", "share_below_-950", "share_above_-600")
"""Columns of tables for CT."""


@dataclass(frozen=True)
class Density:
    """What the voxels of one structure hold."""

    volume_l: float
    mean_hu: float
    below_950: float
    """Share of its voxels below `EMPHYSEMA`, 0 to 1."""
    above_600: float
    """Share of its voxels above `DISEASE`, 0 to 1."""

    def cells(self) -> dict[str, str]:
        """Return the cells of `COLUMNS`."""
        numbers = (f"{self.volume_l:.3f}", f"{self.mean_hu:.1f}", f"{self.below_950:.4f}", f"{self.above_600:.4f}")
        return dict(zip(COLUMNS, numbers, strict=True))


def densities(values: np.ndarray, labels: np.ndarray, voxel_mm3: float) -> dict[int, Density]:
    """Return label -> density for the labels that occur; `values` HU and `labels` are (I, J, K)."""
    size = int(labels.max()) + 1
    count, below, above = (np.zeros(size, np.int64) for _ in range(3))
    total = np.zeros(size)
    order = in_memory(values)
    for own, slab in zip(labels.transpose(order), values.transpose(order), strict=True):
        flat, numbers = own.ravel(), slab.ravel()
        count += np.bincount(flat, minlength=size)
        total += np.bincount(flat, numbers, minlength=size)
        below += np.bincount(flat[numbers < EMPHYSEMA], minlength=size)
        above += np.bincount(flat[numbers > DISEASE], minlength=size)
    return {
        n: Density(count[n] * voxel_mm3 / 1e6, total[n] / count[n], below[n] / count[n], above[n] / count[n])
        for n in range(1, size)
        if count[n]
    }


def is_hounsfield(image: Image) -> bool:
    """Return whether the values of an image are Hounsfield units."""
    from medkit.images import is_ct

    return image.data.shape[0] == 1 and is_ct(image.data[0][::2, ::2, ::2].astype(np.float32))


@dataclass(frozen=True)
class Person:
    """What a scan's header or sidecar says about the size of the patient."""

    height_m: float | None
    sex: str | None
    """`M`, `F`, or None."""

    def predicted_l(self) -> float | None:
        """Return the total lung capacity that healthy adults of this height and sex have; None if both aren't known.

        Quanjer et al., Lung volumes and forced ventilatory flows, Eur Respir J 6 (suppl. 16), 1993.
        """
        if self.height_m is None or self.sex is None:
            return None
        return 7.99 * self.height_m - 7.08 if self.sex == "M" else 6.60 * self.height_m - 5.79


def person_of(path: Path) -> Person:
    """Return what the JSON beside an image (BIDS, dcm2niix) or the header of a DICOM file or folder states."""
    stated = _from_dicom(path) if is_dicom_path(path) else _from_json(path)
    try:
        height = float(stated.get("PatientSize") or 0)
    except (TypeError, ValueError):
        height = 0.0
    height = height / 100 if height > 3 else height
    sex = str(stated.get("PatientSex") or "").upper()[:1]
    return Person(height if 1.0 < height < 2.5 else None, sex if sex in ("M", "F") else None)


def _from_json(path: Path) -> Mapping[str, Any]:
    name = path.name.removesuffix(".gz")
    try:
        found = json.loads((path.with_name(f"{name.rsplit('.', 1)[0]}.json")).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _from_dicom(path: Path) -> Mapping[str, Any]:
    import pydicom

    try:
        with open_file(files_of(path)[0]) as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["PatientSize", "PatientSex"])
    except (InputError, IndexError, pydicom.errors.InvalidDicomError):
        return {}
    return {key: header.get(key) for key in ("PatientSize", "PatientSex")}


def airless(named: Mapping[str, Density]) -> list[str]:
    """Return phrases for lungs that hold little air."""
    shares = {name: one.above_600 for name, one in named.items() if name.startswith("lung_")}
    return [
        f"{share:.0%} of {name} hold little air: consolidation, fluid, or an organ beside the lung"
        for name, share in shares.items()
        if share > AIRLESS
    ]


def gas(
    values: np.ndarray, labels: np.ndarray, found: Mapping[int, Density], names: Mapping[int, str], mm: Sequence[float]
) -> list[str]:
    """Return phrases for lungs that hold gas without lung tissue, as bowel does.

    `values` HU and `labels`: (I, J, K), `mm` between voxels; `found` and `names`: label -> density and structure.
    """
    from scipy import ndimage

    steps = [max(1, round(GAS_MM / size)) for size in mm]
    few = tuple(slice(None, None, step) for step in steps)
    own = labels[few]
    voxel_ml = float(np.prod(np.multiply(mm, steps))) / 1000
    out = []
    for label, name in names.items():
        if not name.startswith("lung_") or label not in found or found[label].below_950 > FULL_OF_GAS:
            continue
        for place in ndimage.find_objects((own == label).astype(np.uint8)):
            lung = own[place] == label
            # the mean over lung voxels only, so that neither walls nor tables count
            weight = ndimage.uniform_filter(lung.astype(np.float32), 3)
            total = ndimage.uniform_filter(np.where(lung, values[few][place], 0).astype(np.float32), 3)
            pieces, _ = ndimage.label(lung & (total < GAS * weight))
            largest = int(np.bincount(pieces.ravel())[1:].max(initial=0)) * voxel_ml
            if largest > GAS_ML:
                out.append(f"{largest:.0f} ml of gas in {name}: bowel, a bulla, or air beside the lung")
    return out


def lung_metrics(found: Mapping[str, Density], person: Person) -> dict[str, float]:
    """Return figures of both lungs together; `found`: name of a structure -> its density."""
    lungs = [found[name] for name in ("lung_left", "lung_right") if name in found]
    if not lungs:
        return {}
    total = sum(lung.volume_l for lung in lungs)
    out = {"lungs_l": total}
    for key in ("mean_hu", "below_950", "above_600"):
        out[f"lungs_{key}"] = sum(getattr(lung, key) * lung.volume_l for lung in lungs) / total
    if person.height_m is not None:
        out |= {"height_m": person.height_m, "lungs_l_per_m": total / person.height_m}
    if (usual := person.predicted_l()) is not None:
        out |= {"predicted_total_lung_capacity_l": usual, "lungs_share_of_predicted": total / usual}
    return {key: round(value, 4) for key, value in out.items()}
