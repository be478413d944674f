"""Zip files as folders: their members are read where they are, and nothing is ever unpacked to the disk."""

from __future__ import annotations

import functools
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZipFile, ZipInfo

from medkit.errors import InputError

SUFFIX = ".zip"
_LARGE = 1 << 26
"""Bytes up to which one member may be compressed as well as it likes: a mask of zeros is."""
_MOST_RATIO = 200
"""How many times larger than its compressed bytes a larger member may be; scans reach 2 to 20."""
_MOST_BYTES = 1 << 36
"""Bytes that all members together may promise."""
_ENCRYPTED = 0x1


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip by its name."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def split_member(path: Path) -> tuple[Path, str] | None:
    """Return the zip that a path runs through and the name in it; None for a path that runs through none."""
    for parent in path.parents:
        if is_zip(parent):
            return parent, path.relative_to(parent).as_posix()
    return None


def members(archive: Path) -> list[Path]:
    """Return the files in a zip, as paths below it, in the order of their names.

    Raises InputError for a zip that is damaged, encrypted, or made to do harm: see `_check`.
    """
    names = [info.filename for info in _opened(archive).infolist() if not info.is_dir()]
    return [archive / name for name in sorted(names)]


def open_member(archive: Path, name: str) -> IO[bytes]:
    """Open a member for reading. Raises InputError."""
    try:
        return _opened(archive).open(name)
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive / name}: cannot be read: {error}") from error


def size_of_member(archive: Path, name: str) -> int:
    """Return the bytes of a member, unpacked. Raises InputError."""
    try:
        return _opened(archive).getinfo(name).file_size
    except KeyError:
        raise InputError(f"{archive / name}: no such file in the zip") from None


def holds(archive: Path, name: str) -> bool:
    """Return whether a zip has a member of this name."""
    return name in _opened(archive).NameToInfo


def _opened(archive: Path) -> ZipFile:
    status = archive.stat()
    return _open(archive, status.st_mtime_ns, status.st_size, os.getpid())  # a child process has a stream of its own


@functools.lru_cache(maxsize=8)
def _open(archive: Path, modified: int, size: int, process: int) -> ZipFile:
    try:
        opened = ZipFile(archive)  # stays open while it is among the last ones
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: a zip that cannot be read: {error}") from error
    try:
        for info in opened.infolist():
            _check(archive, info)
        _check_whole(archive, opened.infolist(), size)
    except InputError:
        opened.close()
        raise
    return opened


def _check(archive: Path, info: ZipInfo) -> None:
    """Raise InputError for a member that leads out of the zip, is no file, is encrypted, or is a bomb."""
    name = PurePosixPath(info.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise InputError(f"{archive}: refused: its member {info.filename!r} leads out of it")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{archive}: refused: its member {info.filename!r} is a link or a device")
    if info.flag_bits & _ENCRYPTED:
        raise InputError(f"{archive}: is encrypted: unpack it with its password, and give the folder")
    if info.file_size > _LARGE and info.file_size > _MOST_RATIO * info.compress_size:
        raise InputError(
            f"{archive}: refused: its member {info.filename!r} promises {info.file_size} bytes out of "
            f"{info.compress_size}, as a zip bomb does"
        )


def _check_whole(archive: Path, infos: list[ZipInfo], size: int) -> None:
    """Raise InputError if the members together promise what no zip of this size can hold."""
    promised, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if packed > size or promised > max(_LARGE, min(_MOST_RATIO * size, _MOST_BYTES)):
        raise InputError(
            f"{archive}: refused: its {len(infos)} members promise {promised} bytes out of {size}, as a zip bomb does"
        )
