"""The series among DICOM files, and the paths that name one of several: `FOLDER#series=NUMBER`."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError
from medkit.images.dicom.header import Header, header_of, looks_like_dicom
from medkit.images.dicom.places import SUFFIXES, files_below, holds_files, is_copy, may_be_dicom, read_file
from medkit.images.dicom.types import DicomFile
from medkit.pipe.names import join_series, split_series, suffix_of
from medkit.pipe.records import sha256_of


@dataclass(frozen=True, eq=False)
class Series:
    """The files of one series."""

    uid: str
    """Series Instance UID; empty if the files state none."""
    number: str
    """Series Number; empty if the files state none."""
    headers: tuple[Header, ...]
    """One for each file, in the order of their paths."""
    copies: tuple[Path, ...] = ()
    """Files left out because they are copies of others."""

    @property
    def first(self) -> Header:
        """The header that speaks for all: that of the first image, or of the first file."""
        return next((header for header in self.headers if header.image), self.headers[0])

    @property
    def images(self) -> list[DicomFile]:
        """The images that can be read."""
        return [header.image for header in self.headers if header.image]

    @property
    def problems(self) -> list[str]:
        """Why files of it cannot be read."""
        return [header.problem for header in self.headers if header.problem]

    @property
    def files(self) -> list[Path]:
        """The paths of its files."""
        return [header.path for header in self.headers]

    @functools.cached_property
    def folders(self) -> set[Path]:
        """The folders in which its files lie."""
        return {header.path.parent for header in self.headers}


def is_candidate(path: Path) -> bool:
    """Return whether a file is to be read as DICOM: by its name, or its first bytes; False if it cannot be opened."""
    try:
        return may_be_dicom(path) and (suffix_of(path).lower() in SUFFIXES or looks_like_dicom(path))
    except InputError:
        return False


def series_among(files: Iterable[Path]) -> list[Series]:
    """Return the series of DICOM files in the order of their numbers; only headers are read.

    Files that state no series are one for each folder. Damaged ones among them belong to the series in their folder if
    there is only one, and else are one series each.
    """
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for path in files:
        header = header_of(path)
        uid = header.series[0]
        groups[uid, "" if uid else str(path.parent)].append(header)
    _join_damaged(groups)
    found = [_without_copies(uid, headers) for (uid, _), headers in groups.items()]
    return sorted(found, key=lambda one: (as_number(one.number), one.number, one.uid, str(one.files[0])))


def _join_damaged(groups: dict[tuple[str, str], list[Header]]) -> None:
    for _, folder in [key for key in groups if not key[0]]:
        if any(header.image for header in groups["", folder]):
            continue
        beside = [
            key for key, headers in groups.items() if key[0] and any(str(h.path.parent) == folder for h in headers)
        ]
        damaged = groups.pop(("", folder))
        if len(beside) == 1:
            groups[beside[0]] += damaged
        elif not beside:
            groups["", folder] = damaged
        else:
            groups.update({("", str(header.path)): [header] for header in damaged})


def _without_copies(uid: str, headers: list[Header]) -> Series:
    """Return a series with each object once, from the file that comes first."""
    kept: dict[tuple[str, int] | Path, Header] = {}
    copies = []
    for header in headers:
        key = header.instance if header.instance[0] else header.path
        other = kept.setdefault(key, header)
        if other is header:
            continue
        if is_copy(other.path, header.path):
            copies.append(header.path)
        else:  # against the standard: another object under the same UID
            kept[header.path] = header
    return Series(uid, _usual_number(headers), tuple(kept.values()), tuple(copies))


def _usual_number(headers: Iterable[Header]) -> str:
    return Counter(header.series[1] for header in headers).most_common(1)[0][0]


def as_number(text: str) -> float:
    """Return a number to sort by; what is no number comes last."""
    return float(text) if text.isdigit() else float("inf")


def labels_of(found: Iterable[Series]) -> Mapping[str, str]:
    """Return UID -> label in paths: the series' number, and of series that share one the number and part of a digest.

    The digest is that of the UID, so that a label stays the same when further series come.
    """
    known = [one for one in found if one.uid]
    count = Counter(one.number for one in known)
    return {
        one.uid: one.number if count[one.number] == 1 and one.number.isdigit() else _long_label(one) for one in known
    }


def _long_label(one: Series) -> str:
    return f"{one.number if one.number.isdigit() else 'x'}-{hashlib.sha256(one.uid.encode()).hexdigest()[:6]}"


def path_of(found: Series, known: Iterable[Series]) -> Path:
    """Return the path of a series: its folder if no other image lies there, else `PLACE#series=LABEL`.

    The place is the deepest folder or zip that holds all of its files. Of damaged files that belong to no series it is
    the first file. `known`: all series.
    """
    known = list(known)
    place = min(found.folders, key=lambda folder: len(folder.parts))
    while not (holds_files(place) and all(folder.is_relative_to(place) for folder in found.folders)):
        place = place.parent
    others = [one for one in known if one is not found and (one.images or one.problems)]
    copied = any(path.parent == place for path in found.copies)
    alone = found.folders == {place} and not copied and not any(place in one.folders for one in others)
    if (place.is_dir() and alone) or (place.is_dir() and not found.uid and found.images):
        return place
    if not found.uid:
        return found.files[0]
    below = [one for one in known if any(folder.is_relative_to(place) for folder in one.folders)]
    return join_series(place, labels_of(below)[found.uid])


def series_at(path: Path) -> Series | None:
    """Return the series that a path of the form `PLACE#series=LABEL` names; None for other paths.

    LABEL is what `labels_of` returns, or the UID. Raises InputError if there is no such series, or if a file of it
    cannot be read.
    """
    named = None if path.exists() else split_series(path)
    if named is None or not holds_files(named[0]):
        return None
    place, label = named
    known = series_among(file for file in files_below(place) if is_candidate(file))
    labels = labels_of(known)
    found = [one for one in known if one.uid and label in (one.uid, labels[one.uid])]
    if not found:
        there = ", ".join(labels.values()) or "none"
        raise InputError(f"{place}: has no series {label}; it has {there} (see medkit dicom list)")
    if problems := found[0].problems:
        raise InputError(problems[0])
    return found[0]


def digest_of(path: Path) -> str | None:
    """Return the sha256 of the series that a path names: of its files' sorted digests, as for a folder of them.

    None for other paths. Raises InputError.
    """
    found = series_at(path)
    if found is None:
        return None
    return digest_of_files(found.files)


def digest_of_files(files: Iterable[Path]) -> str:
    """Return the sha256 of the sorted digests of files, which may lie in a zip. Raises InputError, OSError."""
    digests = sorted(
        sha256_of(file) if file.is_file() else hashlib.sha256(read_file(file)).hexdigest() for file in files
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()
