"""Where DICOM files lie: in folders, in zips, and one series of several (`FOLDER#series=NUMBER`)."""

from __future__ import annotations

import contextlib
import filecmp
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from medkit.errors import InputError
from medkit.images.dicom import zips
from medkit.images.nifti import opened
from medkit.pipe.names import split_series, suffix_of

SUFFIXES = (".dcm", ".ima")
"""Names of DICOM files; many have no suffix at all."""
DICOMDIR = "DICOMDIR"
"""Name of the file that lists what lies on a CD."""


def exists(path: Path) -> bool:
    """Return whether there is a file or folder, a member of a zip, or a place whose series a path names."""
    if path.exists():
        return True
    if named := split_series(path):
        return named[0].is_dir() or zips.is_zip(named[0])
    member = zips.split_member(path)
    if member is None:
        return False
    with contextlib.suppress(InputError):
        return zips.holds(*member)
    return False


def holds_files(path: Path) -> bool:
    """Return whether DICOM files may lie in a place: a folder or a zip."""
    return path.is_dir() or zips.is_zip(path)


def is_dicom_path(path: Path) -> bool:
    """Return whether a path is that of DICOM files: by a file's name, or a folder, a zip, or a series in these."""
    named = path.suffix.lower() in SUFFIXES or holds_files(path)
    return named or (split_series(path) is not None and exists(path))


def open_file(path: Path) -> IO[bytes]:
    """Open a file, or a member of a zip, for reading. Raises InputError."""
    try:
        return opened(path)
    except InputError as error:
        member = zips.split_member(path) if isinstance(error.__cause__, NotADirectoryError) else None
        if member is None:
            raise
        return zips.open_member(*member)


def read_file(path: Path) -> bytes:
    """Return all bytes of a file or a member of a zip, whose checksum is checked. Raises InputError."""
    try:
        with open_file(path) as stream:
            return stream.read()
    except InputError:
        raise
    except Exception as error:  # zlib and zipfile have errors of several types for damaged members
        raise InputError(f"{path}: cannot be read: {error}") from error


def size_of(path: Path) -> int:
    """Return the bytes of a file or of a member of a zip. Raises InputError, OSError."""
    member = None if path.exists() else zips.split_member(path)
    return path.stat().st_size if member is None else zips.size_of_member(*member)


def is_copy(one: Path, other: Path) -> bool:
    """Return whether two files of one size have the same content. Raises InputError."""
    if one.is_file() and other.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return read_file(one) == read_file(other)


@dataclass(frozen=True)
class Stamp:
    """What changes with a file's content, so that what was read of it need not be read again."""

    modified: int
    size: int


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file; of a member of a zip, that of the zip. Raises InputError if there is none."""
    try:
        status = path.stat()
    except NotADirectoryError:
        member = zips.split_member(path)
        if member is None:
            raise InputError(f"{path}: no such file") from None
        status = member[0].stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    return Stamp(status.st_mtime_ns, status.st_size)


def files_in(place: Path) -> list[Path]:
    """Return the files directly in a folder, or all in a zip; a file stands for itself. Hidden ones are left out.

    Raises InputError for a zip that cannot be used.
    """
    if place.is_dir():
        return sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    return list(_shown(place)) if zips.is_zip(place) else [place]


def files_below(place: Path) -> Iterator[Path]:
    """Yield the files in a folder and below, or in a zip; hidden files and folders are left out.

    Links are followed, but not in circles. Raises InputError for a zip that cannot be used.
    """
    if zips.is_zip(place):
        yield from _shown(place)
        return
    seen = set()
    for here, folders, files in os.walk(place, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(here) / name for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _shown(archive: Path) -> Iterator[Path]:
    for path in zips.members(archive):
        parts = path.relative_to(archive).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield path


def may_be_dicom(path: Path) -> bool:
    """Return whether a name is that of a DICOM file or says nothing; a DICOMDIR holds no image."""
    suffix = suffix_of(path).lower()
    known = suffix and suffix not in SUFFIXES
    return not (known or path.name.startswith(".") or path.name.upper() == DICOMDIR)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield a path that libraries can open: a member of a zip becomes a file without a name, which ends with us."""
    if path.exists():
        yield path
        return
    import tempfile

    with tempfile.TemporaryFile() as file:
        file.write(read_file(path))
        file.flush()
        yield Path(f"/dev/fd/{file.fileno()}")


def in_memory(path: Path) -> io.BytesIO:
    """Return the content of a file or a member of a zip as a stream. Raises InputError."""
    return io.BytesIO(read_file(path))
