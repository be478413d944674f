"""Installing bundles from a zip or a folder into the user's folder, and packing them into a zip.

A zip may come from a stranger, so its names, kinds and sizes are checked before anything is written, and nothing in it
is executed. A bundle is installed into a hidden folder first and then renamed, so it is there completely or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.bundles.archive import (
    RECORD,
    Entry,
    copy,
    entries_to_copy,
    folder_entries,
    is_junk,
    open_zip,
    printable,
    problems,
    write_errors_named,
    zip_entries,
)
from medkit.bundles.bundle import missing_files, read_metadata, read_record, stated_task, user_folder
from medkit.bundles.exported import is_exported, unpack_exported
from medkit.bundles.safety.trust import digest_of, remember
from medkit.errors import BundleError, OutputError, UsageError, listed
from medkit.pipe.atomic import locked, whole, write_atomically
from medkit.pipe.records import sha256_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Installed:
    """Result of `install`."""

    root: Path
    """The bundle's folder."""
    name: str
    version: str
    task: str | None
    """The task it is for; None if neither its metadata nor the user state one."""
    sha256: str
    """Digest of the whole bundle (see `bundle_digest`)."""
    already: bool
    """Whether the same bundle was installed before."""
    left_out: tuple[str, ...] = ()
    """Files that are not part of a bundle: hidden ones, caches and the state of a training."""


def bundle_files(root: Path) -> list[Entry]:
    """Return the files of a bundle, sorted by name, without hidden ones, caches and `training/`.

    A link to a file of the bundle counts as a file. Raises BundleError for names that another system cannot hold, for
    devices, and for links out of the bundle.
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
    """Return the sha256 of a whole bundle: of the sorted list of its files' sha256 and names. Raises BundleError."""
    digests = {}
    for entry in bundle_files(root):
        with entry.open() as file:
            digests[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return digest_of(digests)


# ---- install


def install(
    source: Path,
    *,
    name: str | None = None,
    task: str | None = None,
    overwrite: bool = False,
    trust: bool = False,
    taken: Sequence[str] = (),
    origin: Path | None = None,
) -> Installed:
    """Copy the bundle in a zip or folder into the user's folder, under `name` or the name it has.

    `task` replaces the task that its metadata state; `taken` are the names of plugins' bundles; `trust` remembers that
    its code may run; `origin` is what `source` was made of. Raises InputError if the file is not a zip, BundleError if
    it is not a bundle, or is unsafe, UsageError if the name is not allowed, and OutputError if another version has the
    name.
    """
    with write_errors_named():
        if is_exported(source) and source.is_file():
            with tempfile.TemporaryDirectory(prefix="medkit-bundle-") as unpacked:
                root = unpack_exported(source, Path(unpacked), link=False)
                entries = list(folder_entries(root))
                return _install(root, entries, root.name, None, name, task, overwrite, trust, taken, origin or source)
        if source.is_dir():
            entries = [_followed(e, source) for e in folder_entries(source)]
            return _install(source, entries, source.resolve().name, None, name, task, overwrite, trust, taken, origin)
        with open_zip(source) as archive:
            entries = list(zip_entries(archive))
            size = source.stat().st_size
            return _install(source, entries, source.stem, size, name, task, overwrite, trust, taken, origin)


def _install(
    source: Path, entries: list[Entry], own_name: str, archive_bytes: int | None, name: str | None, task: str | None,
    overwrite: bool, trust: bool, taken: Sequence[str], origin: Path | None,
) -> Installed:  # fmt: skip
    kept, prefix = entries_to_copy(source, entries, archive_bytes)
    name = _valid_name(name or prefix.rstrip("/") or own_name, taken)
    folder = user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        _recover(folder, name)
        part = folder / f".{name}.part"
        try:
            for entry in kept:
                copy(entry, part / entry.name, source)
            done = _described(part, folder / name, name, task)
            done = _put(done, part, origin or source, overwrite)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    if trust:
        remember(done.root)
    return replace(done, left_out=tuple(e.name for e in entries if is_junk(e.name.removeprefix(prefix))))


def _valid_name(name: str, taken: Sequence[str]) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{printable(name)}: expected a name of letters, digits, '-', '_' and '.'; choose one with --name"
        )
    if name in taken:
        raise UsageError(f"{name}: a plugin brings a bundle of that name; choose another with --name")
    return name


def _recover(folder: Path, name: str) -> None:
    """Remove what a killed install left; the caller holds the lock, so no other process uses it."""
    old = folder / f".{name}.old"
    if old.is_dir() and not (folder / name).exists():
        os.replace(old, folder / name)
    for leftover in (old, folder / f".{name}.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _described(part: Path, root: Path, name: str, task: str | None) -> Installed:
    metadata = read_metadata(part)
    task = task or stated_task(metadata)
    return Installed(root, name, str(metadata.get("version", "0.0.0")), task, bundle_digest(part), already=False)


def _put(done: Installed, part: Path, source: Path, overwrite: bool) -> Installed:
    """Rename the complete bundle into its place."""
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
    """Write a bundle into a zip, below a folder of its name, and return the zip's sha256.

    The same files give the same bytes on every machine: sorted, with one date, not compressed (weights would hardly
    shrink, and compressors differ). Raises BundleError if the bundle lacks a file, OutputError if the target exists or
    lies in the bundle.
    """
    if missing := missing_files(root):
        raise BundleError(f"{root}: no {listed(missing)}; a bundle without them cannot be used")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: already exists; --overwrite replaces it")
    if target.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{target}: lies in the bundle itself; choose another -o")
    files = bundle_files(root)
    with write_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as out, zipfile.ZipFile(out, "w") as archive:
            for entry in files:
                info = zipfile.ZipInfo(f"{name}/{entry.name}", (1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16
                info.file_size = entry.size
                with entry.open() as file, archive.open(info, "w") as member:
                    shutil.copyfileobj(file, member, 1 << 20)
        return sha256_of(target)
