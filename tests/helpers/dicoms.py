"""Small DICOM series, made by pydicom, with a planted name in every header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

NAMES = ("Planted^Name", "ID-4711", "19700102", "Planted Doctor", "Planted Hospital")
"""What no output may hold."""
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
STUDY = "1.2.826.0.1.3680043.8.498.1"


def header(number: int, **tags: Any) -> Dataset:
    """Return a data set without pixels of the series `number`."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PatientName, data.PatientID, data.PatientBirthDate = NAMES[:3]
    data.ReferringPhysicianName, data.InstitutionName = NAMES[3:]
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, f"{STUDY}.{number}"
    data.SeriesNumber, data.SeriesDescription = number, "scan of Planted^Name"
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, pydicom.uid.generate_uid()
    data.Modality, data.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
    for name, value in tags.items():
        setattr(data, name, value)
    if data.Modality == "CT":
        data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def image(
    number: int, stored: np.ndarray, origin: Sequence[float], axes: Sequence[float] = AXIAL, **tags: Any
) -> Dataset:
    """Return a slice; `stored` is (columns, rows)."""
    data = header(number)
    data.Rows, data.Columns, data.PixelSpacing = stored.shape[1], stored.shape[0], [2.0, 1.5]
    data.ImagePositionPatient, data.ImageOrientationPatient = list(map(float, origin)), list(axes)
    data.SliceThickness, data.SamplesPerPixel, data.PhotometricInterpretation = 3.0, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = np.ascontiguousarray(stored.astype(np.int16).T).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if data.Modality == "CT":
        data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    return data


def write(path: Path, data: Dataset) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def write_series(folder: Path, number: int, slices: int = 4, **tags: Any) -> np.ndarray:
    """Write a series, one file for each slice, `<number>_<slice>.dcm`; return its values (columns, rows, slices)."""
    values = np.random.default_rng(number).integers(0, 900, (8, 7, slices)).astype(np.int16)
    for k in range(slices):
        data = image(number, values[:, :, k], (-10, 5, 3 * k), **{"InstanceNumber": k + 1, **tags})
        write(folder / f"{number}_{k}.dcm", data)
    return values
