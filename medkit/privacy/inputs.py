"""The files to treat: named ones, all that lie in folders and below, and the DICOM files of zips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkit.errors import InputError, MedkitError, UsageError
from medkit.images.dicom.header import looks_like_dicom
from medkit.images.dicom.places import DICOMDIR, files_below
from medkit.images.dicom.zips import is_zip
from medkit.pipe.names import GREY_PICTURES, suffix_of
from medkit.privacy.formats.nrrd import detached_name
from medkit.privacy.names import GRADIENTS

DICOM = "dicom"
_DICOMDIR = "DICOMDIR (lists the old names)"
KINDS = {
    **dict.fromkeys((".nii.gz", ".nii"), "nifti"),
    **dict.fromkeys((".mgz", ".mgh"), "mgh"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
    **dict.fromkeys((".mha", ".mhd"), "metaimage"),
    **dict.fromkeys(GREY_PICTURES, "picture"),
    ".json": "sidecar",
    **dict.fromkeys(GRADIENTS, "gradients"),
    ".dcm": DICOM,
    ".ima": DICOM,
}
"""Ending -> kind of file; files with other endings or none are DICOM if they start so."""


@dataclass(frozen=True)
class Source:
    """A file to treat."""

    path: Path
    """The file, absolute."""
    relative: Path
    """Its path below the folder or zip that was named; for a file that was named, its name."""
    kind: str
    problem: str = ""
    """Why it cannot be treated, if that is known already."""


@dataclass
class Sources:
    """What named files and folders hold."""

    files: list[Source] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """What was found in folders and not taken, in words -> how often."""


def find_sources(paths: Sequence[Path], output: Path | None) -> Sources:
    """Return the files to treat, in the order of their names. Raises UsageError for places that contradict each other.

    Results must not lie among the inputs, where the next run would take them for inputs.
    """
    found = Sources()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        if output is not None and path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"-o {output}: lies in {path}, which is an input; name a folder elsewhere")
        if path.is_dir():
            _add_folder(path, found)
        elif is_zip(path):
            _add_zip(path, Path(), found)
        else:
            kind = _kind_of(path)
            if kind is None:
                raise UsageError(
                    f"{path}: expected DICOM, also in a zip, NIfTI, MGH, NRRD, MetaImage, PNG, JPEG or a JSON sidecar"
                )
            found.files.append(Source(path, Path(path.name), kind))
    return found


def _add_folder(folder: Path, found: Sources) -> None:
    for place, names in _walk(folder):
        detached = {detached_name(place / name) for name in names if name.lower().endswith((".nhdr", ".mhd"))}
        for name in names:
            path = place / name
            if is_zip(path):
                _add_zip(path, path.relative_to(folder), found)
                continue
            kind = _kind_of(path) if path.is_file() else None
            if name == DICOMDIR:
                found.left_out[_DICOMDIR] += 1
            elif kind is not None:
                found.files.append(Source(path, path.relative_to(folder), kind))
            elif name not in detached:  # voxels of a header, with which they are treated
                found.left_out["other file{s}"] += 1


def _add_zip(archive: Path, relative: Path, found: Sources) -> None:
    """Add the DICOM files of a zip, as other commands read them there; `relative`: the zip's path below the folder."""
    try:
        paths = list(files_below(archive))
    except InputError as error:
        found.files.append(Source(archive, relative, DICOM, problem=str(error)))
        return
    for path in paths:
        if path.name.upper() == DICOMDIR:
            found.left_out[_DICOMDIR] += 1
        elif _kind_of(path) == DICOM:
            found.files.append(Source(path, relative / path.relative_to(archive), DICOM))
        else:
            found.left_out["other file{s} in zips, of which only DICOM is read"] += 1


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below, without hidden ones, each with the names of its files."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _kind_of(path: Path) -> str | None:
    kind = KINDS.get((suffix_of(path) or path.suffix).lower())
    if kind is not None:
        return kind
    try:
        return DICOM if looks_like_dicom(path) else None
    except (MedkitError, OSError):
        return None
