"""Images with the name of a class, as class folders or a table of labels state it, and whose images they are."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError, UsageError, listed
from medkit.images.dicom.header import looks_like_dicom
from medkit.pipe.names import IMAGE_SUFFIXES, PICTURE_SUFFIXES, split_bids, stem
from medkit.pipe.tables import CASE, CLASS, SUBJECT, column, read_table

log = logging.getLogger("medkit.training")

PARTS = {
    "training": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Part of a set -> names of the folder, or of the value in a table's column, that holds it."""
_PART_COLUMN = ("split", "part", "partition", "subset", "fold")
"""Names of the column that says which part a row belongs to."""


@dataclass(frozen=True)
class ClassImage:
    """An image, as a folder or a table states it."""

    path: Path
    value: str
    """Name of its class."""
    subject: str
    """What all images of one person share; empty if not known."""
    part: str = ""
    """Key of `PARTS`; empty if the data do not say."""


# ---- folders


def from_folders(data: Path, *, planar: bool) -> list[ClassImage]:
    """Return the images of class folders, of all parts. Raises InputError."""
    folders = _folders(data)
    parts = {part: folder for folder in folders for part, names in PARTS.items() if folder.name.lower() in names}
    if "training" in parts and len(parts) == len(folders):
        places = [(part, folder) for part, each in parts.items() for folder in _folders(each)]
        places = [("" if part == "training" else part, folder) for part, folder in places]
    else:
        places = [("", folder) for folder in folders]
    found = [
        ClassImage(image, folder.name, subject_of(image, folder), part)
        for part, folder in places
        for image in images_in(folder, planar=planar)
    ]
    if len({item.value for item in found}) < 2:
        raise InputError(
            f"--data {data}: expected a folder of images for each of two classes or more, such as normal/ and "
            f"pneumonia/, a datalist dataset.json, or --labels TABLE; got {listed([f.name + '/' for f in folders[:5]])}"
            if folders
            else f"--data {data}: expected a folder of images for each class, or --labels TABLE; there is no folder"
        )
    if empty := sorted({folder.name for _, folder in places} - {item.value for item in found}):
        raise InputError(f"{data / empty[0]}: expected images of the class {empty[0]}, got none")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(folder: Path, *, planar: bool) -> list[Path]:
    """Return the images in a folder and below it; if not `planar`, a folder of DICOM files is one of them."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            series = [p for p in path.iterdir() if p.is_file() and _is_dicom(p)]
            found += [path] if series and not planar else images_in(path, planar=planar)
        elif path.name.lower().endswith((*IMAGE_SUFFIXES, *PICTURE_SUFFIXES)) or (not path.suffix and _is_dicom(path)):
            found.append(path)
    return found


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in (".dcm", ".ima") or (not path.suffix and looks_like_dicom(path))


# ---- a table


def from_table(data: Path, table: Path, *, planar: bool) -> list[ClassImage]:
    """Return the images that a table gives a class. Raises InputError and UsageError."""
    if not data.is_dir():
        raise UsageError(f"--labels {table}: needs a folder of images as --data, got {data}")
    rows = read_table(table)
    case = column(rows[0], CASE)
    value = column([name for name in rows[0] if name != case], CLASS)
    for column_name, what, names in ((case, "names the images", CASE), (value, "holds their classes", CLASS)):
        if column_name is None:
            raise InputError(f"{table}: no column that {what} ({', '.join(names)}); there is {', '.join(rows[0])}")
    subject = column([name for name in rows[0] if name not in (case, value)], SUBJECT)
    part = column([name for name in rows[0] if name not in (case, value, subject)], _PART_COLUMN)
    images = images_in(data, planar=planar)
    lookup = _Lookup(images, data, table.parent)
    found = []
    for number, row in enumerate(rows, start=2):
        if not row[str(value)]:
            raise InputError(f"{table}: line {number}: no class for {row[str(case)]}")
        path = lookup(row[str(case)], f"{table}: line {number}")
        person = row[subject] if subject else subject_of(path, None)
        stated = row[part].lower() if part else ""
        found.append(ClassImage(path, row[str(value)], person, _part(stated, f"{table}: line {number}")))
    if twice := [path for path, count in Counter(item.path for item in found).items() if count > 1]:
        raise InputError(f"{table}: {twice[0]} has several rows")
    if left := sorted(set(images) - {item.path for item in found}):
        log.warning("%d of %d images have no row in %s and are left out, such as %s",
                    len(left), len(images), table.name, left[0].name)  # fmt: skip
    return found


def _part(text: str, place: str) -> str:
    if not text:
        return ""
    for part, names in PARTS.items():
        if text in names:
            return part
    raise InputError(f"{place}: expected train, validation or test as the part of the set, got {text}")


class _Lookup:
    """Find the image that a cell of a table names: a path, a file name, or a stem."""

    def __init__(self, images: Sequence[Path], data: Path, beside: Path) -> None:
        self.folders = (data, beside)
        self.known = set(images)
        self.by_name: dict[str, list[Path]] = {}
        for path in images:
            for name in {path.name, stem(path), path.stem}:
                self.by_name.setdefault(name, []).append(path)

    def __call__(self, text: str, place: str) -> Path:
        """Return the image. Raises InputError, which begins with `place`, if there is none, or if there are several."""
        for folder in self.folders:
            if (path := Path(folder / text)) in self.known:
                return path
        found = self.by_name.get(Path(text).name, [])
        if len(found) == 1:
            return found[0]
        several = f"several: {listed([str(path) for path in found[:3]])}" if found else "none"
        raise InputError(f"{place}: expected one image called {text} in {self.folders[0]}, got {several}")


def subject_of(image: Path, folder: Path | None) -> str:
    """Return what names the person of an image; empty if nothing does. `folder`: the one of its class."""
    if bids := split_bids(image)[0].get("sub"):
        return f"sub-{bids}"
    if folder is not None and image.parent != folder:
        return str(image.parent.relative_to(folder))
    if (file := _dicom_file(image)) is not None:
        return _patient(file)
    return ""


def _dicom_file(image: Path) -> Path | None:
    if image.is_dir():
        return next((path for path in sorted(image.iterdir()) if path.is_file() and _is_dicom(path)), None)
    return image if _is_dicom(image) else None


def _patient(path: Path) -> str:
    """Return a digest of a DICOM file's patient; it is only compared, and never written."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "StudyInstanceUID"])
    except (InvalidDicomError, OSError):
        return ""
    text = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    return hashlib.sha256(text.encode()).hexdigest() if text else ""
