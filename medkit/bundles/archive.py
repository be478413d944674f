"""The files of a bundle in a folder or a zip: their names and kinds, what makes names unsafe, and copying them.

Nothing here is executed; names and contents come from strangers, and are checked before anything is written.
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
MAX_BYTES = 32 << 30
"""The largest bundles of MONAI's zoo have a few GB."""
MAX_RATIO = 100
"""What a zip may grow by; configs shrink to a tenth and weights hardly at all."""
SMALL = 64 << 20
"""Below this many bytes the ratio does not matter."""

RECORD = ".medkit.json"
"""What `medkit bundle install` writes into a bundle's folder about it; hidden, so that no bundle brings its own."""

_CHUNK = 1 << 20
_JUNK = ("__MACOSX", "__pycache__")


@dataclass(frozen=True)
class Entry:
    """One file of a bundle."""

    name: str
    """Its path below the bundle's root, with `/`."""
    kind: str
    """`file`, `link`, or `special` (a device, a socket, a pipe, something encrypted)."""
    size: int
    """Bytes, as the folder or the zip's directory says."""
    open: Callable[[], IO[bytes]]
    """Opens the content; for a link that of its target."""
    target: str = ""
    """Where a link leads to; empty where it is in a zip."""


def folder_entries(root: Path) -> Iterator[Entry]:
    """All files below a folder, sorted by name; links are given as such and never followed."""
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
    """All files of a zip, by the names that stand in it."""
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            continue
        special = info.flag_bits & 0x1 or (stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK))
        kind = "link" if stat.S_ISLNK(mode) else "special" if special else "file"
        # orig_filename: zipfile cuts names at NUL and turns backslashes around on some systems
        yield Entry(info.orig_filename, kind, info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip at a path. Raises InputError for a file that is none."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: no zip of a bundle: {error}") from None


def is_junk(name: str) -> bool:
    """Whether a file is no part of a bundle: hidden, a cache, or the state of a training."""
    parts = name.split("/")
    return parts[0] == "training" or any(p in _JUNK or (p.startswith(".") and p not in (".", "..")) for p in parts)


def bundle_root_in(names: Iterable[str]) -> str:
    """The prefix of a bundle's files in an archive: `NAME/`, or empty where they lie at its top.

    Raises BundleError where `configs/metadata.json` is in neither place.
    """
    names = [n for n in names if not is_junk(n)]
    if "configs/metadata.json" in names:
        return ""
    tops = {n.split("/")[0] for n in names}
    if len(tops) == 1 and f"{(top := tops.pop())}/configs/metadata.json" in names:
        return f"{top}/"
    raise BundleError("no configs/metadata.json at its top or in its only folder")


def problems(entries: Iterable[Entry], archive_bytes: int | None = None) -> Iterator[str]:
    """Why files must not be written into a folder: unsafe names, links, devices, two names for one file, sheer size.

    `archive_bytes` is the size of the zip that they are in; None: they are in a folder.
    """
    entries = list(entries)
    for entry in entries:
        if reason := unsafe(entry.name):
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


def unsafe(name: str) -> str | None:
    """Why a name must not be written below a folder; None where it may."""
    if not name or name.startswith("/") or name[1:2] == ":":
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash, which separates folders on some systems"
    if ".." in PurePosixPath(name).parts:
        return "leads out of the bundle"
    if name != PurePosixPath(name).as_posix() or name == ".":
        return "is no plain path"
    if not name.isprintable():
        return "has a control character"
    return None


def _collisions(names: list[str]) -> Iterator[str]:
    """Names that are one file where case or composition do not count, and files that are folders of others."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            yield f"{printable(name)}: is one file with {printable(seen[key])} where case does not count"
        seen[key] = name
    for key, name in seen.items():
        for parent in PurePosixPath(key).parents:
            if (above := parent.as_posix()) in seen:
                yield f"{printable(seen[above])}: is a file and the folder of {printable(name)}"


def printable(text: str) -> str:
    r"""Text of a stranger for the terminal: control characters are written as escapes.

    >>> printable("a" + chr(27) + "[31m")
    'a\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# ---- copying


@contextlib.contextmanager
def errors_said() -> Iterator[None]:
    """A full disk or a folder that is not ours is an error that users can act on."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{error.filename or 'the bundle'}: {error.strerror or error}") from error


def checked(source: Path, entries: list[Entry], archive_bytes: int | None) -> tuple[list[Entry], str]:
    """The entries to copy, named from the bundle's root on, and the prefix they had."""
    # the names of what is left out are checked as well: an archive that has such names is not to be dealt with;
    # not so in a folder, where a hidden file may be anything of its owner
    considered = entries if archive_bytes is not None else [e for e in entries if not is_junk(e.name)]
    if found := list(problems(considered, archive_bytes)):
        more = f"; {len(found) - 5} more" if len(found) > 5 else ""
        raise BundleError(f"{source}: {'; '.join(found[:5])}{more}")
    try:
        prefix = bundle_root_in(e.name for e in entries)
    except BundleError as error:
        raise BundleError(f"{source}: no bundle: {error}") from None
    named = [replace(e, name=e.name[len(prefix) :]) for e in entries if e.name.startswith(prefix)]
    return [e for e in named if not is_junk(e.name)], prefix


def copy(entry: Entry, path: Path, source: Path) -> None:
    """Writes one entry of `source` to `path`, no more than it says it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.size
    try:
        with entry.open() as file, open(path, "xb") as out:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0:  # a zip's directory may lie about sizes
                    raise BundleError(f"{source}: {entry.name} is larger than it says")
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: {entry.name} cannot be read: {error}") from None


def unpack(source: Path, folder: Path) -> Path:
    """Copies the bundle in a zip into `folder`, below the name it has there; gives its root. Raises as `install`."""
    with errors_said(), open_zip(source) as archive:
        kept, prefix = checked(source, list(zip_entries(archive)), source.stat().st_size)
        root = folder / (Path(prefix).name or source.stem)
        for entry in kept:
            copy(entry, root / entry.name, source)
        return root
