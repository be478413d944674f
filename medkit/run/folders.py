"""Folders as inputs: the images that lie in a folder and below it, and its folders of DICOM files."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medkit.errors import InputError, MedkitError, listed
from medkit.pipe.names import IMAGE_SUFFIXES, MARKUP_SUFFIXES, PICTURE_SUFFIXES, suffix_of
from medkit.pipe.records import record_of

DICOM_SUFFIXES = (".dcm", ".ima")
"""Names of DICOM files; many have no suffix at all."""
_WORDS = {
    "image": "image{s}",
    "labels": "label image{s}",
    "mask": "mask{s}",
    "points": "file{s} of points",
    "transform": "transform{s}",
    "table": "table{s}",
}
"""Kind of file -> what a message calls it."""


@dataclass
class FolderContents:
    """What a folder holds for a task: one case for each image and for each folder of DICOM files.

    A folder that itself holds DICOM files is one case, and nothing below it is looked at.
    """

    folder: Path
    """The folder, absolute."""
    kinds: Collection[str]
    """The kinds of file that the task takes; other files are left out."""
    apart: Collection[Path] = ()
    """Folders below that are not entered, such as that of `--qc`."""
    taken: list[Path] = field(default_factory=list)
    """The images and the DICOM folders, in the order of their names; pictures only if there are no other images."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What was found but not taken, in words with `{s}` for the plural -> how often."""

    def __post_init__(self) -> None:
        if holds_dicom(self.folder):
            self.taken.append(self.folder)
            return
        pictures: list[Path] = []
        for path in self._visited():
            self._sort_in(path, pictures)
        if not self.taken:
            self.taken = pictures
        elif pictures:
            self.left_out["picture{s}"] = len(pictures)

    def _visited(self) -> Iterator[Path]:
        """Yield all files below, and in place of the files of a DICOM folder the folder; hidden ones are not seen."""
        seen = set()
        for place, folders, files in os.walk(self.folder, onerror=self._count_unreadable, followlinks=True):
            here, real = Path(place), os.path.realpath(place)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            if here != self.folder and holds_dicom(here):
                folders.clear()
                yield here
                continue
            folders[:] = sorted(n for n in folders if not n.startswith(".") and here / n not in self.apart)
            yield from (here / name for name in sorted(files) if not name.startswith("."))

    def _count_unreadable(self, error: OSError) -> None:
        self.left_out["folder{s} that cannot be read"] += 1

    def _sort_in(self, path: Path, pictures: list[Path]) -> None:
        suffix = suffix_of(path).lower()
        kind = record_of(path).kind
        if path.is_dir():
            self._take_or_count(path, kind)
        elif suffix in DICOM_SUFFIXES:
            self.left_out["DICOM file{s} without an image"] += 1
        elif path.suffix.lower() == ".json" and suffix not in MARKUP_SUFFIXES:
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


def holds_dicom(folder: Path) -> bool:
    """Return whether a DICOM image lies directly in a folder; reports and other objects without pixels do not count."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(_is_dicom_image(Path(entry.path)) for entry in entries if entry.is_file())
    return False


def _is_dicom_image(path: Path) -> bool:
    from medkit.images.dicom.header import looks_like_dicom, read_header

    suffix = suffix_of(path).lower()
    if path.name.startswith(".") or path.name == "DICOMDIR" or (suffix and suffix not in DICOM_SUFFIXES):
        return False
    try:
        return read_header(path) is not None if looks_like_dicom(path) else suffix in DICOM_SUFFIXES
    except InputError:
        return True  # the case states what is wrong with it
    except (MedkitError, OSError):
        return False
