"""Images with a class each, as `medkit train` finds them: class folders, a table of labels, or a datalist.

A config that has the id `class_names` learns classes. Its items become `{"image": path, "label": number}`, and the
names of the numbers go into the new bundle.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.errors import InputError, listed
from medkit.pipe.names import GREY_PICTURES, PICTURE_SUFFIXES
from medkit.pipe.records import sha256_of
from medkit.pipe.tables import SUBJECT, column
from medkit.training.class_images import PARTS, ClassImage, from_folders, from_table, images_in, subject_of
from medkit.training.data import has_datalist, read_datalist
from medkit.training.splits import DataList, Split, share_out

log = logging.getLogger("medkit.training")


@dataclass(frozen=True)
class ClassSet:
    """The items of a training of classes."""

    data: DataList
    """Items with `image`, the path, and `label`, the number of the class."""
    names: tuple[str, ...]
    """Number of a class -> its name."""


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
        found = from_table(data, labels, planar=planar)
    elif data.is_file() or has_datalist(listing):
        return _from_datalist(listing, keys, known, split or Split())
    elif data.is_dir():
        found = from_folders(data, planar=planar)
    else:
        raise InputError(f"--data {data}: expected a folder with a folder for each class, or a datalist's .json")
    names = _names([item.value for item in found], known)
    training, validation, test = (
        tuple({image: str(f.path), label: names.index(f.value)} for f in found if (f.part or "training") == part)
        for part in PARTS
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
        ClassImage(
            Path(item[image]), names[item[label]], _stated_subject(item) or subject_of(Path(item[image]), None), part
        )
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


# ---- who validates


def _parted(data: Path, items: DataList, found: Sequence[ClassImage], keys: Sequence[str], split: Split) -> DataList:
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


def _subjects(found: Sequence[ClassImage]) -> dict[Path, str]:
    """Return image -> its subject, where equal files are of one. Raises InputError if equal files differ in class."""
    digests = {item.path: sha256_of(item.path) for item in found}
    first: dict[str, ClassImage] = {}
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


def _by_class(found: Iterable[ClassImage], subjects: Mapping[Path, str]) -> dict[str, set[str]]:
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
        return next(iter(images_in(data, planar=False)), None)
    listing = data if data.is_file() else data / "dataset.json"
    found, _ = read_datalist(listing, ["image"])
    first = found.training[0].get("image")
    return Path(first) if isinstance(first, str) else None
