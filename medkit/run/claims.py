"""The exclusive right to write the files of a case, and how they get complete under their names.

The files of a case are made in a hidden folder next to their final place, `.<name>.<host>.<pid>.part`, synced to disk,
and renamed one by one, the sidecar last. A file under a final name is therefore always complete, whenever the run is
killed. If that happens between two of the renames, the new sidecar still lies in that folder and tells the next run
which files to remove again.

While a case is worked on, its name is claimed by a lock on `.<name>.claim`, which the system releases when the process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import MedkitError, OutputError
from medkit.pipe.atomic import lock, sync
from medkit.pipe.records import Record, record_from_json
from medkit.run.existing import has_digest

if TYPE_CHECKING:
    from medkit.run.outputs import Targets

_REPLACED = ".replaced.json"
"""Name in the hidden folder of the earlier sidecar, which a commit moves there first."""


_LONGEST_NAME = 255
"""Bytes of a file's name on all common file systems."""
_LONGEST_PROCESS = "4194304"
"""The largest number of a process on Linux."""


def check_lengths(targets: Targets) -> None:
    """Raise OutputError if a result, or what is next to it while it is made, has too long a name for a file."""
    for path in targets.names:
        hidden = f".{path.name}.{socket.gethostname()}.{_LONGEST_PROCESS}.part" if path == targets.main else path.name
        over = len(os.fsencode(hidden)) - _LONGEST_NAME
        if over > 0:
            raise OutputError(f"{path}: the name of this result is {over} bytes too long; choose a shorter -o")


class Claim:
    """The exclusive right to write one case's files, and the folder they are made in.

    Use it as a context manager; entering undoes what a killed run left half done under this name. While another process
    holds the name, `pause` is called between two looks at it; without `pause`, that is an OutputError.
    """

    def __init__(self, targets: Targets, pause: Callable[[], None] | None = None) -> None:
        self.targets = targets
        self._pause = pause
        main = targets.main
        self.part = main.with_name(f".{main.name}.{socket.gethostname()}.{os.getpid()}.part")
        """The hidden folder where the files are made."""
        self.path = main.with_name(f".{main.name}.claim")
        self._descriptor: int | None = None

    def __enter__(self) -> Claim:
        try:
            self._take()
        except BaseException:  # a signal may drop the case here, where no `with` statement cleans up yet
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._release()
        except BaseException:  # a signal may come here as well, but only once
            self._release()
            raise

    def _take(self) -> None:
        folder = self.targets.main.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            found = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
            raise OutputError(f"{folder}: expected a folder for results, but {found} is none") from None
        self._descriptor, is_locked = self._open_locked()
        leftover = self._leftover()
        if leftover is not None and (is_locked or process_gone(leftover)):
            _undo(leftover, self.targets)
        # from now on the claim names the folder of this process, should it be killed
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, os.fsencode(self.part.name), 0)
        self.part.mkdir(exist_ok=True)

    def _release(self) -> None:
        """Remove the claim, its folder and what is half done; a second call has nothing left to do."""
        if self._descriptor is None:
            return
        _undo(self.part, self.targets)  # a Ctrl-C or a full disk may have ended `commit` in the middle
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
                self.path.unlink()
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)  # releases the lock

    def _open_locked(self) -> tuple[int, bool]:
        """Return a descriptor of the claim file, and whether it is locked: some network file systems know no locks."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            is_locked = True
            try:
                lock(descriptor, wait=False)
            except BlockingIOError:
                os.close(descriptor)
                if self._pause is None:
                    raise OutputError(f"{self.targets.main}: another process is writing it") from None
                self._pause()
                continue
            except OSError:
                is_locked = False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor, is_locked
            os.close(descriptor)  # its former holder removed the file between our two calls: try again

    def _leftover(self) -> Path | None:
        """Return the folder of a process that held this name before and was killed, if there is one."""
        assert self._descriptor is not None
        name = os.fsdecode(os.pread(self._descriptor, 4096, 0))
        main = self.targets.main
        plausible = name.startswith(f".{main.name}.") and name.endswith(".part") and "/" not in name
        return main.with_name(name) if plausible and main.with_name(name).is_dir() else None

    def commit(self, record: Record) -> None:
        """Move the files made in `part` to their final names, the sidecar last."""
        targets = self.targets
        sidecar = json.dumps(record.to_json(targets.sidecar.parent), indent=1) + "\n"
        (self.part / targets.sidecar.name).write_text(sidecar)
        for path in targets.names:
            for entry in files_of(self.part / path.name):
                sync(entry)
        with contextlib.suppress(FileNotFoundError):
            os.replace(targets.sidecar, self.part / _REPLACED)
        sync(self.part)
        for path in (*reversed(list(targets.outputs.values())), targets.sidecar):
            if path.is_dir():  # a folder takes the place of none that holds something
                os.replace(path, self.part / f"{path.name}{_REPLACED}")
            os.replace(self.part / path.name, path)
        sync(targets.main.parent)


class Unclaimed:
    """The stand-in for a claim, for a case that has no files of its own."""

    part = Path(os.devnull)

    def __enter__(self) -> Unclaimed:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: there is no lock."""

    def commit(self, record: Record) -> None:
        """Do nothing: there are no files."""


def claim_of(targets: Targets, pause: Callable[[], None] | None = None) -> Claim | Unclaimed:
    """Return the claim that a case needs; `pause`: see `Claim`."""
    return Claim(targets, pause) if targets.table is None else Unclaimed()


def remove_leftovers(targets: Targets) -> None:
    """Remove what a run left that was killed when this case was already done."""
    if Claim(targets).path.exists():
        with contextlib.suppress(OutputError, OSError), Claim(targets):
            pass


def _undo(leftover: Path, targets: Targets) -> None:
    """Remove what a run that was stopped during `commit` had already moved into place, and its folder.

    The new sidecar still lies in the folder exactly if that commit did not end; the files it lists by digest are
    removed, and the sidecar of an earlier result that was being replaced returns to its place.
    """
    if not targets.sidecar.exists():
        try:
            unfinished = record_from_json(json.loads((leftover / targets.sidecar.name).read_bytes()), leftover.parent)
        except (OSError, ValueError, MedkitError):
            unfinished = None
        for entry in unfinished.medkit.get("outputs", {}).values() if unfinished else ():
            if has_digest(Path(entry["path"]), entry.get("sha256")):
                _remove(Path(entry["path"]))
        with contextlib.suppress(FileNotFoundError):
            os.replace(leftover / _REPLACED, targets.sidecar)
    shutil.rmtree(leftover, ignore_errors=True)


def files_of(path: Path) -> list[Path]:
    """Return a result's files and then itself: some results are folders of files."""
    return [*(sorted(path.iterdir()) if path.is_dir() else ()), path]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def process_gone(leftover: Path) -> bool:
    """Return whether the process that a `.part` file or folder is named after ran on this host and has ended."""
    *_, pid = leftover.name.removesuffix(".part").partition(f".{socket.gethostname()}.")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):
        return False
    return False
