"""Bundles come and go: installed from a zip or a folder into the user's folder, and packed into a zip.

A zip is a stranger's, so its names, kinds and sizes are checked before anything of it is written; nothing of it is
executed. What is installed is made whole in a hidden folder and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.bundles.archive import (
    RECORD,
    Entry,
    checked,
    copy,
    errors_said,
    folder_entries,
    is_junk,
    open_zip,
    printable,
    problems,
    zip_entries,
)
from medkit.bundles.bundle import CONFIG_SUFFIXES, WEIGHTS, read_metadata, read_record, user_folder
from medkit.bundles.safety import trust as trusted
from medkit.errors import BundleError, OutputError, UsageError, listed
from medkit.pipe.atomic import whole, write_atomically
from medkit.pipe.records import sha256_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Installed:
    """What `install` did."""

    root: Path
    """Where the bundle lies now."""
    name: str
    version: str
    task: str | None
    """The task it is for; None where neither its metadata nor the user say."""
    sha256: str
    """Of the whole bundle (see `bundle_digest`)."""
    already: bool
    """Whether the very same bundle was there before."""
    left_out: tuple[str, ...] = ()
    """Hidden files, caches and the state of a training, which are no part of a bundle."""


def bundle_files(root: Path) -> list[Entry]:
    """The files that make up a bundle, sorted by name: hidden ones, caches and `training/` left out.

    Raises BundleError for names that another system cannot hold, for devices, and for links out of the bundle; a link
    to a file of the bundle counts as a file.
    """
    entries = [_followed(e, root) for e in folder_entries(root) if not is_junk(e.name)]
    if found := list(problems(entries)):
        raise BundleError(f"{root}: {'; '.join(found[:5])}")
    return entries


def _followed(entry: Entry, root: Path) -> Entry:
    if entry.kind != "link":
        return entry
    target = (root / entry.name).resolve()
    if target.is_relative_to(root.resolve()) and target.is_file():
        return replace(entry, kind="file", size=target.stat().st_size)
    return entry


def bundle_digest(root: Path) -> str:
    """The sha256 of a whole bundle: of the sorted list of its files' sha256 and names. Raises BundleError."""
    digests = {}
    for entry in bundle_files(root):
        with entry.open() as file:
            digests[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return trusted.digest_of(digests)


# ---- install


def install(
    source: Path,
    *,
    name: str | None = None,
    task: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
    taken: Sequence[str] = (),
) -> Installed:
    """Copies the bundle in a zip or folder into the user's folder, under `name` or the name it has.

    `task` stands in for what its metadata say; `taken` are names that plugins' bundles have; `trust` remembers that
    its code may run. Raises InputError for a file that is no zip, BundleError for a bundle that is none or unsafe,
    UsageError for a name that cannot be, and OutputError where another version has the name.
    """
    with errors_said():
        if source.is_dir():
            entries = [_followed(e, source) for e in folder_entries(source)]
            return _install(source, entries, source.resolve().name, None, name, task, overwrite, trust, taken)
        with open_zip(source) as archive:
            entries = list(zip_entries(archive))
            size = source.stat().st_size
            return _install(source, entries, source.stem, size, name, task, overwrite, trust, taken)


def _install(
    source: Path, entries: list[Entry], own_name: str, archive_bytes: int | None, name: str | None, task: str | None,
    overwrite: bool, trust: bool, taken: Sequence[str],
) -> Installed:  # fmt: skip
    kept, prefix = checked(source, entries, archive_bytes)
    name = _valid_name(name or prefix.rstrip("/") or own_name, taken)
    folder = user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _recover(folder, name)
        part = folder / f".{name}.part"
        try:
            for entry in kept:
                copy(entry, part / entry.name, source)
            done = _described(part, folder / name, name, task)
            done = _put(done, part, source, overwrite)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    if trust:
        trusted.remember(done.root)
    return replace(done, left_out=tuple(e.name for e in entries if is_junk(e.name.removeprefix(prefix))))


def _valid_name(name: str, taken: Sequence[str]) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{printable(name)}: expected a word of letters, digits, '-', '_' and '.'; give one by --name")
    if name in taken:
        raise UsageError(f"{name}: a plugin brings a bundle of that name; give another by --name")
    return name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recover(folder: Path, name: str) -> None:
    """Clears away what an install left that was killed; the lock is ours, so nobody works on it."""
    old = folder / f".{name}.old"
    if old.is_dir() and not (folder / name).exists():
        os.replace(old, folder / name)
    for leftover in (old, folder / f".{name}.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _described(part: Path, root: Path, name: str, task: str | None) -> Installed:
    metadata = read_metadata(part)
    block = metadata.get("medkit")
    own = block.get("task") if isinstance(block, dict) else None
    task = task or (own if isinstance(own, str) else None)
    return Installed(root, name, str(metadata.get("version", "0.0.0")), task, bundle_digest(part), already=False)


def _put(done: Installed, part: Path, source: Path, overwrite: bool) -> Installed:
    """Renames the whole bundle into its place."""
    if os.path.lexists(done.root):
        there = read_record(done.root)
        same = there is not None and bundle_digest(done.root) == done.sha256
        if same and there is not None and there.get("task") == done.task:
            return replace(done, already=True)
        if not (overwrite or same):
            what = f"version {there.get('version')}" if there else "something that was not installed"
            raise OutputError(f"{done.root}: holds {what}; --overwrite replaces it by version {done.version}")
    record: dict[str, Any] = {
        "name": done.name, "version": done.version, "task": done.task, "sha256": done.sha256, "source": str(source),
    }  # fmt: skip
    write_atomically(part / RECORD, json.dumps(record, indent=1) + "\n")
    old = done.root.with_name(f".{done.name}.old")
    if os.path.lexists(done.root):
        os.replace(done.root, old)
    os.replace(part, done.root)
    shutil.rmtree(old, ignore_errors=True)
    return done


# ---- pack


def pack(root: Path, name: str, target: Path, *, overwrite: bool = False) -> str:
    """Writes a bundle into a zip, below a folder of its name, and gives the zip's sha256.

    The same files give the same bytes anywhere: sorted, with one date, not compressed (weights would hardly shrink,
    and compressors differ). Raises BundleError for a bundle that lacks a file, OutputError for a target that exists
    or lies in the bundle.
    """
    if missing := missing_files(root):
        raise BundleError(f"{root}: no {listed(missing)}; nobody could use what would be packed")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; --overwrite replaces it")
    if target.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{target}: lies in the bundle itself; choose another -o")
    files = bundle_files(root)
    with errors_said():
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as out, zipfile.ZipFile(out, "w") as archive:
            for entry in files:
                info = zipfile.ZipInfo(f"{name}/{entry.name}", (1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16
                info.file_size = entry.size
                with entry.open() as file, archive.open(info, "w") as member:
                    shutil.copyfileobj(file, member, 1 << 20)
        return sha256_of(target)


def missing_files(root: Path) -> list[str]:
    """The files that a bundle must have and this one has not.

    The zoo's large weights are fetched by a `large_files` list, which stands in for them.
    """
    names = ["LICENSE", "configs/metadata.json", "docs/README.md"]
    missing = [n for n in names if not (root / n).is_file()]
    if not any((root / "configs" / f"inference{s}").is_file() for s in CONFIG_SUFFIXES):
        missing.append("configs/inference.json")
    if not any((root / n).is_file() for n in (WEIGHTS, *(f"large_files{s}" for s in CONFIG_SUFFIXES))):
        missing.append(WEIGHTS)
    return missing
