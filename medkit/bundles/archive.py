"""The files of a bundle in a folder or a zip: their names and kinds, unsafe names, and copying them.

Nothing here is executed. Names and contents come from strangers and are checked before anything is written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from medkit.errors import BundleError, InputError, OutputError

MAX_FILES = 10_000
"""Largest number of files in a bundle."""
MAX_BYTES = 32 << 30
"""Largest size of a bundle, unpacked; the largest bundles of MONAI's zoo have a few GB."""
MAX_RATIO = 100
"""Largest ratio of unpacked to packed bytes: configs shrink to a tenth, weights hardly at all."""
SMALL = 64 << 20
"""Bytes up to which the ratio does not matter."""

METADATA = "configs/metadata.json"
"""The file that every bundle has (MONAI Bundle Specification)."""
RECORD = ".medkit.json"
"""The file that `medkit bundle install` writes into a bundle's folder; hidden, so that no bundle brings its own."""

_CHUNK = 1 << 20
_JUNK = ("__MACOSX", "__pycache__")


@dataclass(frozen=True)
class Entry:
    """One file of a bundle."""

    name: str
    """Path below the bundle's root, with `/`."""
    kind: str
    """`file`, `link`, or `special` (a device, a socket, a pipe, something encrypted)."""
    size: int
    """Bytes, as stated by the folder or the zip's directory."""
    open: Callable[[], IO[bytes]]
    """Open the content; of a link, the content of its target."""
    target: str = ""
    """Target of a link in a folder; empty for a link in a zip."""


def folder_entries(root: Path) -> Iterator[Entry]:
    """Yield all files below a folder, sorted by name; links are entries themselves and never followed."""
    found = []
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in (*files, *links)]
    for path in sorted(found, key=lambda p: p.relative_to(root).as_posix()):
        yield _folder_entry(path, root)


def _folder_entry(path: Path, root: Path) -> Entry:
    status = path.lstat()
    name = path.relative_to(root).as_posix()
    if path.is_symlink():
        return Entry(name, "link", 0, lambda: open(path, "rb"), str(path.readlink()))
    kind = "file" if stat.S_ISREG(status.st_mode) else "special"
    return Entry(name, kind, status.st_size, lambda: open(path, "rb"))


def zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """Yield all files of a zip, under the names written in it."""
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            continue
        special = info.flag_bits & 0x1 or (stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK))
        kind = "link" if stat.S_ISLNK(mode) else "special" if special else "file"
        # orig_filename: zipfile cuts names at NUL and turns backslashes around on some systems
        yield Entry(info.orig_filename, kind, info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. Raises InputError if the file is not a zip."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: expected a zip of a bundle: {error}") from None


def is_junk(name: str) -> bool:
    """Return whether a file is not part of a bundle: hidden, a cache, or the state of a training."""
    parts = name.split("/")
    return parts[0] == "training" or any(p in _JUNK or (p.startswith(".") and p not in (".", "..")) for p in parts)


def bundle_root_in(names: Iterable[str]) -> str:
    """Return the prefix of a bundle's files in an archive: `NAME/`, or empty if they are at its top.

    Raises BundleError if `configs/metadata.json` is in neither place.
    """
    names = [n for n in names if not is_junk(n)]
    if METADATA in names:
        return ""
    tops = {n.split("/")[0] for n in names}
    if len(tops) == 1 and f"{(top := tops.pop())}/{METADATA}" in names:
        return f"{top}/"
    raise BundleError(f"no {METADATA} at its top or in its only folder")


def problems(entries: Iterable[Entry], archive_bytes: int | None = None) -> Iterator[str]:
    """Yield why files must not be written into a folder: unsafe names, links, devices, two names for one file, size.

    `archive_bytes` is the size of the zip that holds them; None if they are in a folder.
    """
    entries = list(entries)
    for entry in entries:
        if reason := unsafe_reason(entry.name):
            yield f"{printable(entry.name)}: {reason}"
        elif entry.kind != "file":
            yield f"{printable(entry.name)}: is a {entry.kind}" + (" file" if entry.kind == "special" else "")
    yield from _collisions([e.name for e in entries])
    total = sum(e.size for e in entries)
    if len(entries) > MAX_FILES:
        yield f"{len(entries)} files, expected at most {MAX_FILES}"
    if total > MAX_BYTES:
        yield f"{total >> 20} MB, expected at most {MAX_BYTES >> 20}"
    if archive_bytes is not None and total > max(SMALL, MAX_RATIO * archive_bytes):
        yield f"{archive_bytes} bytes that unpack to {total}: more than {MAX_RATIO} times as many"


def unsafe_reason(name: str) -> str | None:
    """Return why a name must not be written below a folder; None if it may."""
    if not name or name.startswith("/") or name[1:2] == ":":
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash, which separates folders on some systems"
    if ".." in PurePosixPath(name).parts:
        return "leads out of the bundle"
    if name != PurePosixPath(name).as_posix() or name == ".":
        return "is not a plain path"
    if not name.isprintable():
        return "has a control character"
    return None


def _collisions(names: list[str]) -> Iterator[str]:
    """Yield names that are one file where case or Unicode form does not count, and files that are folders of others."""
    by_key: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in by_key:
            yield f"{printable(name)}: is the same file as {printable(by_key[key])} where case does not count"
        by_key[key] = name
    for key, name in by_key.items():
        for parent in PurePosixPath(key).parents:
            if (above := parent.as_posix()) in by_key:
                yield f"{printable(by_key[above])}: is a file and the folder of {printable(name)}"


def printable(text: str) -> str:
    r"""Return a stranger's text for the terminal, with control characters written as escapes.

    >>> printable("a" + chr(27) + "[31m")
    'a\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# ---- copying


@contextlib.contextmanager
def write_errors_named(target: object = "the bundle") -> Iterator[None]:
    """Turn errors of the file system, such as a full disk, into an OutputError that names the file, or `target`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{error.filename or target}: {error.strerror or error}") from error


def entries_to_copy(source: Path, entries: list[Entry], archive_bytes: int | None) -> tuple[list[Entry], str]:
    """Return the entries to copy, named from the bundle's root on, and the prefix that they had.

    Raises BundleError for unsafe files, and if `source` is not a bundle.
    """
    # in an archive the names of files that are left out are checked too: one with unsafe names is an attack;
    # a folder may have hidden files of any kind, which belong to its owner
    considered = entries if archive_bytes is not None else [e for e in entries if not is_junk(e.name)]
    if found := list(problems(considered, archive_bytes)):
        more = f"; {len(found) - 5} more" if len(found) > 5 else ""
        raise BundleError(f"{source}: {'; '.join(found[:5])}{more}")
    try:
        prefix = bundle_root_in(e.name for e in entries)
    except BundleError as error:
        raise BundleError(f"{source}: not a bundle: {error}") from None
    named = [replace(e, name=e.name[len(prefix) :]) for e in entries if e.name.startswith(prefix)]
    return [e for e in named if not is_junk(e.name)], prefix


def copy(entry: Entry, path: Path, source: Path) -> None:
    """Write one entry of `source` to `path`, up to its stated size. Raises BundleError if it is larger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.size
    try:
        with entry.open() as file, open(path, "xb") as out:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0:  # a zip's directory may lie about sizes
                    raise BundleError(f"{source}: {entry.name} is larger than the zip states")
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: {entry.name} cannot be read: {error}") from None


def unpack(source: Path, folder: Path) -> Path:
    """Copy the bundle in a zip into `folder`, below the name it has in the zip, and return its root.

    Raises InputError, BundleError and OutputError, as `medkit.bundles.store.install` does.
    """
    with write_errors_named(), open_zip(source) as archive:
        kept, prefix = entries_to_copy(source, list(zip_entries(archive)), source.stat().st_size)
        root = folder / (Path(prefix).name or source.stem)
        for entry in kept:
            copy(entry, root / entry.name, source)
        return root
