"""Finding the series in folders, zips and on CDs with a DICOMDIR; only headers are read."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError
from medkit.images.dicom.places import DICOMDIR, exists, files_below, in_memory
from medkit.images.dicom.series import Series, is_candidate, series_among, series_at
from medkit.images.dicom.zips import is_zip
from medkit.studies.summary import PROJECTIONS


@dataclass(frozen=True, eq=False)
class FoundSeries:
    """The series that lie in a place."""

    series: list[Series]
    """In the order of their numbers."""
    notes: list[str]
    """What is wrong with the place, in sentences."""

    @functools.cached_property
    def files(self) -> set[Path]:
        """The DICOM files."""
        return {path for one in self.series for path in (*one.files, *one.copies)}

    @property
    def folders(self) -> set[Path]:
        """The folders in which DICOM images lie, readable or not."""
        return {folder for one in self._images for folder in one.folders}

    def is_one_case(self, folder: Path, *, any_number: bool) -> bool:
        """Return whether a folder itself holds the images of one series and no others; `any_number`: or of several.

        X-rays of one series are several cases, and copies of files have to be left out.
        """
        here = [one for one in self._images if folder in one.folders]
        if any_number or not here:
            return bool(here)
        views = here[0].first.modality in PROJECTIONS and len(here[0].images) > 1
        several = views or any(path.parent == folder for path in here[0].copies)
        return len(self._images) == 1 and here[0].folders == {folder} and not several

    @property
    def _images(self) -> list[Series]:
        return [one for one in self.series if one.images or one.problems]


def find_series(place: Path) -> FoundSeries:
    """Return the series in a folder and below, in a zip, of a DICOMDIR, of one file, or the one that a path names.

    Raises InputError if there is no such place, or if it cannot be read.
    """
    if not exists(place):
        raise InputError(f"{place}: no such file or folder")
    if named := series_at(place):
        return FoundSeries([named], [])
    place = place_of_dicomdir(place)
    return series_of_zip(place) if is_zip(place) else series_of_files(files_below(place) if place.is_dir() else [place])


def series_of_zip(archive: Path) -> FoundSeries:
    """Return the series in a zip. Raises InputError for one that cannot be used."""
    return series_of_files(files_below(archive))


def series_of_files(files: Iterable[Path]) -> FoundSeries:
    """Return the series among files of any kind."""
    files = list(files)
    notes = [note for path in files if path.name.upper() == DICOMDIR for note in missing_files(path)]
    found = series_among(path for path in files if is_candidate(path))
    if copies := [path for one in found for path in one.copies]:
        notes.append(f"{len(copies)} files are copies of others, and left out, such as {copies[0]}")
    return FoundSeries(found, notes)


def place_of_dicomdir(path: Path) -> Path:
    """Return the folder of a DICOMDIR, for which it stands; another path as it is."""
    return path.parent if path.name.upper() == DICOMDIR and path.is_file() else path


def missing_files(path: Path) -> Iterator[str]:
    """Yield a sentence if a DICOMDIR cannot be read, or names files that are not there."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = pydicom.dcmread(in_memory(path), force=True).get("DirectoryRecordSequence") or ()
            names = [record.ReferencedFileID for record in records if record.get("ReferencedFileID")]
    except Exception as error:  # pydicom raises errors of many types for torn files
        yield f"{path}: a DICOMDIR that cannot be read: {type(error).__name__}"
        return
    parts = [[name] if isinstance(name, str) else list(name) for name in names]
    missing = [name for name in parts if not _is_there(path.parent, name)]
    if missing:
        first = "/".join(missing[0])
        yield f"{path}: {len(missing)} of the {len(parts)} files that it names are not there, such as {first}"


def _is_there(folder: Path, parts: list[str]) -> bool:
    """Return whether a file exists; some systems show the names on a CD in lower case."""
    return any(exists(folder.joinpath(*names)) for names in (parts, [part.lower() for part in parts]))
