"""BIDS datasets as inputs: whether a folder is one, and which of its images to work on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.errors import InputError, UsageError, listed
from medkit.pipe.names import IMAGE_SUFFIXES, is_bids, kind_of_name, split_bids, suffix_of

DESCRIPTION = "dataset_description.json"
"""The file that makes a folder a BIDS dataset."""
_IMAGES = (".nii", ".nii.gz")
"""Suffixes of images in BIDS datasets."""
_NOT_SCANS = ("defacemask",)
"""BIDS suffixes of label images that `kind_of_name` takes for scans."""


@dataclass(frozen=True)
class Selection:
    """Which images of a dataset to take; empty means all, unless stated."""

    participants: Sequence[str] = ()
    """Labels, without `sub-`."""
    sessions: Sequence[str] = ()
    """Labels, without `ses-`."""
    datatypes: Sequence[str] = ("anat",)
    """Names of the folders of images, such as `anat`."""
    suffixes: Sequence[str] = ()
    """BIDS suffixes, such as `T1w`; if empty, all but those of label images and transforms."""


@dataclass
class DatasetImages:
    """The images that were selected in a dataset, and what was found besides."""

    taken: list[Path] = field(default_factory=list)
    """Absolute paths, in the order of their names."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Datatype and BIDS suffix, such as `func/bold`, of images that were not selected -> how many."""
    misnamed: list[Path] = field(default_factory=list)
    """Images in other formats or places than BIDS has, or with names of another participant or session."""
    without_session: list[str] = field(default_factory=list)
    """Participants, as `sub-<label>`, that have none of the selected sessions."""


def check_dataset(dataset: Path) -> None:
    """Raise InputError unless a folder has a `dataset_description.json` with the keys that BIDS requires."""
    description = read_description(dataset)
    if description is None:
        raise InputError(f"{dataset}: is no BIDS dataset: it has no {DESCRIPTION}")
    missing = [key for key in ("Name", "BIDSVersion") if not isinstance(description.get(key), str)]
    if missing:
        raise InputError(f"{dataset / DESCRIPTION}: expected a text as {listed(missing)}")


def check_output(dataset: Path, output: Path) -> None:
    """Raise UsageError if results would lie among raw images, or among the results of another program."""
    if output.exists() and output.samefile(dataset):
        raise UsageError(f"{output}: is the dataset itself; name a folder for the results, such as derivatives/medkit")
    description = read_description(output)
    if description is None:
        return
    programs = description.get("GeneratedBy")
    first = programs[0] if isinstance(programs, list) and programs else None
    if not isinstance(first, dict) or first.get("Name") != "medkit":
        raise UsageError(f"{output}: is a dataset that medkit has not made; name another folder for the results")


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return the content of a dataset's `dataset_description.json`; None if there is none. Raises InputError."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def find_images(dataset: Path, selection: Selection) -> DatasetImages:
    """Return the images of a dataset that a selection names; only `sub-<label>` folders are looked at.

    Raises InputError if there are no participants, and UsageError for labels that no folder has.
    """
    subjects = _labelled(dataset, "sub-")
    if not subjects:
        raise InputError(f"{dataset}: has no folders sub-<label>")
    _refuse_unknown("participant", selection.participants, subjects, dataset)
    chosen = {label: subjects[label] for label in subjects if label in (selection.participants or subjects)}
    sessions = {label: _labelled(folder, "ses-") for label, folder in chosen.items()}
    _refuse_unknown("session", selection.sessions, {s for of_one in sessions.values() for s in of_one}, dataset)
    found = DatasetImages()
    for label, folder in chosen.items():
        visits = {s: place for s, place in sessions[label].items() if s in (selection.sessions or sessions[label])}
        if selection.sessions and not visits:
            found.without_session.append(f"sub-{label}")
        for session, place in visits.items():
            _sort_in(place, {"sub": label, "ses": session}, selection, found)
        if not selection.sessions:
            _sort_in(folder, {"sub": label}, selection, found)
    return found


def _labelled(folder: Path, prefix: str) -> dict[str, Path]:
    """Return label -> folder, in the order of the labels."""
    places = sorted(path for path in folder.iterdir() if path.name.startswith(prefix) and path.is_dir())
    return {path.name.removeprefix(prefix): path for path in places}


def _refuse_unknown(what: str, asked: Sequence[str], known: Collection[str], dataset: Path) -> None:
    if unknown := [label for label in asked if label not in known]:
        there = f"there are {', '.join(sorted(known))}" if known else f"it has no {what}s"
        raise UsageError(f"{dataset}: no {what} {listed(unknown)}; {there}")


def _sort_in(place: Path, folders: dict[str, str], selection: Selection, found: DatasetImages) -> None:
    """Sort the images of one participant or session into `found`; `folders`: the entities that its folders state."""
    for path in _images_below(place):
        if not is_bids(path) or path.parent == place or suffix_of(path) not in _IMAGES:
            found.misnamed.append(path)
            continue
        entities, suffix = split_bids(path)
        datatype = path.parent.name
        wanted = suffix in selection.suffixes if selection.suffixes else _is_scan(path, suffix)
        if {key: entities[key] for key in ("sub", "ses") if key in entities} != folders:
            found.misnamed.append(path)
        elif wanted and datatype in selection.datatypes:
            found.taken.append(path)
        else:
            found.left_out[f"{datatype}/{suffix}"] += 1


def _images_below(place: Path) -> Iterator[Path]:
    """Yield the images of a participant or session: those in its folders of datatypes, and those beside them."""
    folders = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("ses-"))
    for folder in (place, *folders):
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        yield from (path for path in names if suffix_of(path).lower() in IMAGE_SUFFIXES)


def _is_scan(path: Path, suffix: str) -> bool:
    return kind_of_name(path) == "image" and suffix not in _NOT_SCANS
