"""Images with a class each, as `medkit train` finds them: class folders, a table of labels, or a datalist.

A config that has the id `class_names` learns classes. Its items become `{"image": path, "label": number}`, and the
names of the numbers go into the new bundle.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.errors import InputError, UsageError, listed
from medkit.images.dicom.header import looks_like_dicom
from medkit.pipe.names import GREY_PICTURES, IMAGE_SUFFIXES, PICTURE_SUFFIXES, split_bids, stem
from medkit.pipe.records import sha256_of
from medkit.pipe.tables import CASE, CLASS, SUBJECT, column, read_table
from medkit.training.data import has_datalist, read_datalist
from medkit.training.splits import DataList, Split, share_out

log = logging.getLogger("medkit.training")

_PARTS = {
    "training": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Part of a set -> names of the folder, or of the value in a table's column, that holds it."""
_PART_COLUMN = ("split", "part", "partition", "subset", "fold")
"""Names of the column that says which part a row belongs to."""


@dataclass(frozen=True)
class ClassSet:
    """The items of a training of classes."""

    data: DataList
    """Items with `image`, the path, and `label`, the number of the class."""
    names: tuple[str, ...]
    """Number of a class -> its name."""


@dataclass(frozen=True)
class _Found:
    """An image, as a folder or a table states it."""

    path: Path
    value: str
    """Name of its class."""
    subject: str
    """What all images of one person share; empty if not known."""
    part: str = ""
    """Key of `_PARTS`; empty if the data do not say."""


def find_classes(
    data: Path,
    labels: Path | None,
    keys: Sequence[str],
    known: Sequence[str],
    *,
    planar: bool,
    split: Split | None = None,
) -> ClassSet:
    """Return the items of a set of images with a class each, and the names of the classes.

    `data` is a folder with a folder of images for each class (also below `train`, `val` and `test`), or, with `labels`,
    a folder of images and a table with a row for each, or a datalist whose items have names or numbers as `label`.
    `keys`: those of the config, that of the image first. `known`: the bundle's own classes, which keep their numbers if
    the data have the same. `planar`: each file is an image of one plane; else a folder of DICOM files is one volume.

    Without a part that validates, one subject in five does, of each class. Images are of one subject if a table, a
    BIDS name, a folder below that of the class, or the header of DICOM files says so, or if their files are equal.
    `split`: folds, and what is held out for a test besides the data's own test part.

    Raises InputError if no layout fits, if a class has too few images, and for a table that does not fit its images.
    """
    image, label = keys[0], keys[-1]
    listing = data if data.is_file() else data / "dataset.json"
    if labels is not None:
        found = _from_table(data, labels, planar=planar)
    elif data.is_file() or has_datalist(listing):
        return _from_datalist(listing, keys, known, split or Split())
    elif data.is_dir():
        found = _from_folders(data, planar=planar)
    else:
        raise InputError(f"--data {data}: expected a folder with a folder for each class, or a datalist's .json")
    names = _names([item.value for item in found], known)
    training, validation, test = (
        tuple({image: str(f.path), label: names.index(f.value)} for f in found if (f.part or "training") == part)
        for part in _PARTS
    )
    root = data if data.is_dir() else data.parent
    shared = _parted(data, DataList(training, validation, root, test), found, keys, split or Split())
    _check_counts(data, names, shared, label)
    _say(names, shared, label)
    return ClassSet(shared, names)


def _names(values: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes in the order of their numbers: as the bundle has them, else sorted."""
    own = set(values)
    if own == set(known):
        return tuple(known)
    numbers = all(re.fullmatch(r"\d+", value) for value in own)
    return tuple(sorted(own, key=int if numbers else str.casefold))


# ---- a datalist


def _from_datalist(path: Path, keys: Sequence[str], known: Sequence[str], split: Split) -> ClassSet:
    """Return the items of a datalist whose labels are numbers, or names, of classes. Raises InputError."""
    image, label = keys[0], keys[-1]
    found, content = read_datalist(path, [image])
    # images of a challenge's test set have no labels
    parts = (found.training, found.validation, tuple(item for item in found.test if label in item))
    every = tuple(item for part in parts for item in part)
    if faults := list(_item_faults(every, image, label)):
        raise InputError("\n".join(f"{path}: {fault}" for fault in faults))
    values = [_as_text(item[label], path) for item in every]
    stated = content.get("class_names") if isinstance(content, Mapping) else None
    names = tuple(map(str, stated)) if isinstance(stated, list) else _of_numbers(values, known) or _names(values, known)
    if strange := sorted(set(values) - set(names) - {str(n) for n in range(len(names))}):
        raise InputError(f"{path}: class {strange[0]}: expected one of {listed(names)}, or its number from 0 on")
    numbers = iter([names.index(value) if value in names else int(value) for value in values])
    training, validation, test = (tuple({**item, label: next(numbers)} for item in part) for part in parts)
    data = DataList(training, validation, found.root, test)
    if validation and not split.folds and split.test_fraction is None:
        return ClassSet(data, names)
    own = [
        _Found(Path(item[image]), names[item[label]], _stated_subject(item) or _subject(Path(item[image]), None), part)
        for part, items in (("", training), ("validation", validation))
        for item in items
    ]
    return ClassSet(_parted(path, data, own, keys, split), names)


def _item_faults(items: Sequence[Mapping[str, Any]], image: str, label: str) -> Iterator[str]:
    for number, item in enumerate(items):
        if label not in item:
            yield f"item {number} has no {label}, the name or the number of its class"
        if not Path(str(item.get(image, ""))).exists():
            yield f"item {number} names the {image} {item.get(image)}, which does not exist"


def _stated_subject(item: Mapping[str, Any]) -> str:
    name = column(item, SUBJECT)
    return str(item[name]) if name is not None and item[name] is not None else ""


def _as_text(value: Any, path: Path) -> str:
    if isinstance(value, bool | list | dict) or value is None:
        raise InputError(f"{path}: expected the name or the number of a class as label, got {value!r}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _of_numbers(values: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the bundle's own names if all values are numbers of its classes; empty if not."""
    if known and all(value.isdigit() and int(value) < len(known) for value in values):
        pairs = ", ".join(f"{number} is {name}" for number, name in enumerate(known))
        log.info(
            "classes are those of the bundle, by their numbers: %s; class_names in the datalist names others", pairs
        )
        return tuple(known)
    return ()


# ---- folders


def _from_folders(data: Path, *, planar: bool) -> list[_Found]:
    """Return the images of class folders, of all parts. Raises InputError."""
    folders = _folders(data)
    parts = {part: folder for folder in folders for part, names in _PARTS.items() if folder.name.lower() in names}
    if "training" in parts and len(parts) == len(folders):
        places = [(part, folder) for part, each in parts.items() for folder in _folders(each)]
        places = [("" if part == "training" else part, folder) for part, folder in places]
    else:
        places = [("", folder) for folder in folders]
    found = [
        _Found(image, folder.name, _subject(image, folder), part)
        for part, folder in places
        for image in _images(folder, planar=planar)
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


def _images(folder: Path, *, planar: bool) -> list[Path]:
    """Return the images in a folder and below it; if not `planar`, a folder of DICOM files is one of them."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            series = [p for p in path.iterdir() if p.is_file() and _is_dicom(p)]
            found += [path] if series and not planar else _images(path, planar=planar)
        elif path.name.lower().endswith((*IMAGE_SUFFIXES, *PICTURE_SUFFIXES)) or (not path.suffix and _is_dicom(path)):
            found.append(path)
    return found


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in (".dcm", ".ima") or (not path.suffix and looks_like_dicom(path))


# ---- a table


def _from_table(data: Path, table: Path, *, planar: bool) -> list[_Found]:
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
    images = _images(data, planar=planar)
    lookup = _Lookup(images, data, table.parent)
    found = []
    for number, row in enumerate(rows, start=2):
        if not row[str(value)]:
            raise InputError(f"{table}: line {number}: no class for {row[str(case)]}")
        path = lookup(row[str(case)], f"{table}: line {number}")
        person = row[subject] if subject else _subject(path, None)
        stated = row[part].lower() if part else ""
        found.append(_Found(path, row[str(value)], person, _part(stated, f"{table}: line {number}")))
    if twice := [path for path, count in Counter(item.path for item in found).items() if count > 1]:
        raise InputError(f"{table}: {twice[0]} has several rows")
    if left := sorted(set(images) - {item.path for item in found}):
        log.warning("%d of %d images have no row in %s and are left out, such as %s",
                    len(left), len(images), table.name, left[0].name)  # fmt: skip
    return found


def _part(text: str, place: str) -> str:
    if not text:
        return ""
    for part, names in _PARTS.items():
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


# ---- subjects, and who validates


def _subject(image: Path, folder: Path | None) -> str:
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


def _parted(data: Path, items: DataList, found: Sequence[_Found], keys: Sequence[str], split: Split) -> DataList:
    """Return which items train, validate and are the test; no subject trains and validates. Raises InputError.

    `found`: the images of the items, with their subjects.
    """
    subjects = _subjects(found)
    items = replace(items, subjects={str(path): name for path, name in subjects.items()})
    sides = [[item for item in found if (item.part or "training") == name] for name in ("training", "validation")]
    both = {subjects[item.path] for item in sides[0]} & {subjects[item.path] for item in sides[1]}
    if both and not split.folds:
        some = next(item.path for item in sides[1] if subjects[item.path] in both)
        raise InputError(f"{data}: {some.name} validates, and an image of the same person, or an equal one, trains")
    draws = not items.validation or split.folds or split.test_fraction is not None
    if draws and not any(item.subject for item in found):
        log.warning(
            "nothing says which images are of one person, so each counts as one: a column `subject`, a folder for each "
            "person, or BIDS names would; else the figures of the validation may be too good"
        )
    for name, held in _by_class([item for item in found if item.part != "test"], subjects).items():
        if draws and len(held) < 2:
            raise InputError(f"{data}: class {name}: expected images of two persons or more, since one validates")
    return share_out(items, keys, split, by=keys[-1])


def _subjects(found: Sequence[_Found]) -> dict[Path, str]:
    """Return image -> its subject, where equal files are of one. Raises InputError if equal files differ in class."""
    digests = {item.path: sha256_of(item.path) for item in found}
    first: dict[str, _Found] = {}
    joined: dict[str, str] = {}

    def last(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    own = {item.path: item.subject or f"file {digests[item.path]}" for item in found}
    for item in found:
        other = first.setdefault(digests[item.path], item)
        if other.value != item.value:
            raise InputError(
                f"{item.path}: class {item.value}, but the equal file {other.path} has class {other.value}"
            )
        one, two = last(own[other.path]), last(own[item.path])
        if one != two:
            joined[two] = one
    return {path: last(name) for path, name in own.items()}


def _by_class(found: Iterable[_Found], subjects: Mapping[Path, str]) -> dict[str, set[str]]:
    """Return class -> the subjects that have images of it."""
    out: dict[str, set[str]] = {}
    for item in found:
        out.setdefault(item.value, set()).add(subjects[item.path])
    return out


def _check_counts(data: Path, names: Sequence[str], items: DataList, label: str) -> None:
    for part, of in (("train on", items.training), ("validate on", items.validation)):
        counts = Counter(item[label] for item in of)
        if missing := [name for number, name in enumerate(names) if not counts[number]]:
            raise InputError(
                f"--data {data}: no image of class {missing[0]} is left to {part}; more persons are needed"
            )


def _say(names: Sequence[str], items: DataList, label: str) -> None:
    counts = [Counter(item[label] for item in part) for part in (items.training, items.validation)]
    parts = [f"{name} {counts[0][number]} + {counts[1][number]}" for number, name in enumerate(names)]
    log.info("classes, images to train + to validate: %s", ", ".join(parts))


def is_planar(data: Path) -> bool | None:
    """Return whether the first image of a set is one plane; None if there is no image that can be looked at."""
    from medkit.errors import MedkitError
    from medkit.images.image import read_grid

    path = _first_image(data)
    if path is None:
        return None
    if path.name.lower().endswith(PICTURE_SUFFIXES) and not path.name.lower().endswith(GREY_PICTURES):
        return True
    try:
        return read_grid(path).shape[2] == 1
    except MedkitError:
        return None


def _first_image(data: Path) -> Path | None:
    if data.is_dir() and not has_datalist(data / "dataset.json"):
        return next(iter(_images(data, planar=False)), None)
    listing = data if data.is_file() else data / "dataset.json"
    found, _ = read_datalist(listing, ["image"])
    first = found.training[0].get("image")
    return Path(first) if isinstance(first, str) else None
