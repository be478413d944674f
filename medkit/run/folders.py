"""Folders and zips as inputs: the images that lie in a folder and below it, and the series of its DICOM files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import listed
from medkit.pipe.names import IMAGE_SUFFIXES, MARKUP_SUFFIXES, PICTURE_SUFFIXES, suffix_of
from medkit.pipe.records import record_of

if TYPE_CHECKING:
    from medkit.studies.choosing import Choice
    from medkit.studies.finding import FoundSeries
    from medkit.studies.needs import SeriesNeeds

_WORDS = {
    "image": "image{s}",
    "labels": "label image{s}",
    "mask": "mask{s}",
    "points": "file{s} of points",
    "transform": "transform{s}",
    "table": "table{s}",
}
"""Kind of file -> what a message calls it."""


def place_of(path: Path) -> Path | None:
    """Return the folder or zip that a path stands for as an input; None for a file.

    A DICOMDIR stands for its folder.
    """
    if path.is_dir():
        return path
    if path.name.upper() == "DICOMDIR" and path.is_file():
        return path.parent
    return path if path.suffix.lower() == ".zip" and path.is_file() else None


def is_one_case(folder: Path) -> bool:
    """Return whether a folder itself holds the images of one DICOM series, and nothing else does below it."""
    from medkit.studies.finding import find_series

    return find_series(folder).is_one_case(folder, any_number=False)


@dataclass
class FolderContents:
    """What a folder holds for a task: one case for each image and for each DICOM series that the task takes.

    Where DICOM images lie, other files are not looked at. A folder that holds a single series is that case.
    """

    folder: Path
    """The folder, absolute, or a zip of DICOM files."""
    kinds: Collection[str]
    """The kinds of file that the task takes; other files are left out."""
    needs: SeriesNeeds
    """The series that the task takes."""
    asked: str | None = None
    """UID or number of the only series to take (`--series`)."""
    apart: Collection[Path] = ()
    """Folders below that are not entered, such as that of `--qc`."""
    taken: list[Path] = field(default_factory=list)
    """The images and the DICOM series, in the order of their names; pictures only if there are no other images."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What was found but not taken, in words with `{s}` for the plural -> how often."""
    notes: list[str] = field(default_factory=list)
    """Each series that was left out and why, and what is wrong with the folder, in sentences."""
    refusal: str = ""
    """Why there is no case though there are DICOM series, in words; else empty."""

    def __post_init__(self) -> None:
        """Look through the folder. Raises InputError for a zip that cannot be used."""
        from medkit.studies.choosing import choose  # numpy and the readers are loaded when there is a folder
        from medkit.studies.finding import series_of_files, series_of_zip

        if not self.folder.is_dir():
            found = series_of_zip(self.folder)
            self._take_series(found, choose(found.series, self.needs, self.asked))
            return
        files = list(self._visited())
        found = series_of_files(files)
        if found.is_one_case(self.folder, any_number=self.asked is not None):
            self.taken.append(self.folder)
            return
        self._take_series(found, choose(found.series, self.needs, self.asked))
        self._take_others((path for path in files if path not in found.files), found.folders)

    def _take_others(self, files: Iterable[Path], places: Collection[Path]) -> None:
        """Take the images that are not DICOM; `places`: the folders of DICOM images."""
        pictures: list[Path] = []
        for path in files:
            if not any(parent in places for parent in path.parents):
                self._sort_in(path, pictures)
        if not self.taken:
            self.taken = pictures
        elif pictures:
            self.left_out["picture{s}"] = len(pictures)
        if self.taken:
            self.refusal = ""

    def _take_series(self, found: FoundSeries, choice: Choice) -> None:
        for path in choice.taken:
            self._take_or_count(path, record_of(path).kind)
        self.notes = [*found.notes, *(f"left out {text}" for text in choice.left_out)]
        if found.series and not choice.taken:
            lines = "".join(f"\n  {text}" for text in choice.left_out)
            count = len(found.series)
            self.refusal = f"{self.folder}: {self.needs.task} takes none of its {count} DICOM series:{lines}"

    def _visited(self) -> Iterator[Path]:
        """Yield all files in the folder and below; hidden ones are not seen."""
        seen = set()
        for place, folders, files in os.walk(self.folder, onerror=self._count_unreadable, followlinks=True):
            here, real = Path(place), os.path.realpath(place)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(n for n in folders if not n.startswith(".") and here / n not in self.apart)
            yield from (here / name for name in sorted(files) if not name.startswith("."))

    def _count_unreadable(self, error: OSError) -> None:
        self.left_out["folder{s} that cannot be read"] += 1

    def _sort_in(self, path: Path, pictures: list[Path]) -> None:
        suffix = suffix_of(path).lower()
        kind = record_of(path).kind
        if path.suffix.lower() == ".json" and suffix not in MARKUP_SUFFIXES:
            pass  # sidecars describe other files
        elif not suffix or (kind == "image" and suffix not in (*IMAGE_SUFFIXES, *PICTURE_SUFFIXES)):
            self.left_out["other file{s}"] += 1
        elif suffix in PICTURE_SUFFIXES and kind in self.kinds:
            pictures.append(path)
        else:
            self._take_or_count(path, kind)

    def _take_or_count(self, path: Path, kind: str) -> None:
        if kind in self.kinds:
            self.taken.append(path)
        else:
            self.left_out[_WORDS[kind]] += 1

    def summary(self) -> str:
        """Return in words what was taken and what was left out, or an empty string if all files were taken."""
        parts = [f"{n} {what.format(s='' if n == 1 else 's')}" for what, n in sorted(self.left_out.items())]
        return f"{len(self.taken)} taken, left out: {listed(parts)}" if parts else ""
