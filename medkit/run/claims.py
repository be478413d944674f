"""Result files: their names, when they may be written, and how they get there whole.

A case's files are made in a hidden folder beside their final place, `.<name>.<host>.<pid>.part`, synced to disk, and
renamed one by one, the sidecar last. A file under a final name is therefore always whole, whenever the run is killed.
Should that happen between two of the renames, the sidecar-to-be that still lies in that folder tells the next run
which files to take back.

While a case is worked on its name is claimed by a lock on `.<name>.claim`, which the system releases when the process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import MedkitError, OutputError
from medkit.pipe.atomic import sync
from medkit.pipe.records import Record, read_sidecar, record_from_json, sha256_of

if TYPE_CHECKING:
    from medkit.run.outputs import Targets


@dataclass(frozen=True)
class ResultFingerprint:
    """What a result depends on; a result with an equal one need not be made again."""

    source: Path
    """The case's own input."""
    inputs: Mapping[str, str]
    """Role -> sha256 of every file that the result depends on, the case's own input first."""
    settings: Mapping[str, Any]
    """Arguments, bundle, seed and the versions of the programs."""

    def made(self, record: Record) -> bool:
        """Whether `record` is of a result of the same source: the same file, or the same content moved elsewhere."""
        if self.source in record.sources[:1]:
            return True
        digests = [entry.get("sha256") for entry in record.medkit.get("inputs", {}).values()]
        return digests[:1] == list(self.inputs.values())[:1]

    def equals(self, record: Record) -> bool:
        """Whether `record` names the same inputs by digest and the same settings."""
        made_from = {role: entry.get("sha256") for role, entry in record.medkit.get("inputs", {}).items()}
        return made_from == dict(self.inputs) and settings_of(record) == _plain(self.settings)


def settings_of(record: Record) -> dict[str, Any]:
    """The settings in a record that decide whether it is outdated (threads, device, workers and qc do not)."""
    block = record.medkit
    return {
        "arguments": block.get("arguments", {}),
        "bundle": block.get("bundle"),
        "seed": block.get("seed"),
        "programs": [dict(g) for g in record.generated_by],
    }


def _plain(value: Any) -> Any:
    """`value` as it comes back from JSON."""
    return json.loads(json.dumps(value))


def is_whole(record: Record, targets: Targets) -> bool:
    """Whether a sidecar says its case went well and every output still has the content it names."""
    entries = record.medkit.get("outputs", {})
    if record.medkit.get("status") != "ok" or set(entries) != set(targets.outputs):
        return False
    return all(_has_digest(targets.outputs[role], entry.get("sha256")) for role, entry in entries.items())


def _has_digest(path: Path, digest: str | None) -> bool:
    try:
        return digest is not None and sha256_of(path) == digest
    except OSError:
        return False


def check_existing(targets: Targets, fingerprint: ResultFingerprint, *, overwrite: bool, skip_existing: bool) -> None:
    """Raises OutputError where a final name is taken by something that a case must not replace."""
    existing = [p for p in targets.names if os.path.lexists(p)]
    if not existing or overwrite:
        return
    record = read_sidecar(targets.sidecar)
    ours = record is not None and fingerprint.made(record)
    listed = {Path(e["path"]) for e in record.medkit.get("outputs", {}).values()} if record and ours else set()
    for path in existing:
        if not (skip_existing and ours and (path in listed or path == targets.sidecar)):
            raise OutputError(_refusal(path, record, ours))


class Claim:
    """The exclusive right to write one case's files, and the folder they are made in.

    Use it as a context manager; entering undoes what a killed run left half done under this name. Raises OutputError
    where another process holds the name.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        main = targets.main
        self.part = main.with_name(f".{main.name}.{socket.gethostname()}.{os.getpid()}.part")
        self.path = main.with_name(f".{main.name}.claim")
        self._descriptor: int | None = None

    def __enter__(self) -> Claim:
        try:
            self._take()
        except BaseException:  # a signal may drop the case here, where no `with` undoes anything yet
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._release()
        except BaseException:  # or here; it comes once
            self._release()
            raise

    def _take(self) -> None:
        self.targets.main.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor, locked = self._lock()
        leftover = self._leftover()
        if leftover is not None and (locked or _process_gone(leftover)):
            _undo(leftover, self.targets)
        # from now on the claim says where the files of this process are to be found, should it be killed
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, os.fsencode(self.part.name), 0)
        self.part.mkdir(exist_ok=True)

    def _release(self) -> None:
        """Removes the claim and its folder, and what is half done; a second call finds nothing to do."""
        if self._descriptor is None:
            return
        _undo(self.part, self.targets)  # a Ctrl-C or a full disk may have come in the middle of `commit`
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self.path.stat()):
                self.path.unlink()
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)  # releases the lock

    def _lock(self) -> tuple[int, bool]:
        """A descriptor of the claim file, and whether it is locked: some network file systems know no locks."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            locked = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                locked = False
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    raise OutputError(f"{self.targets.main}: another process is writing it") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return descriptor, locked
            os.close(descriptor)  # its former holder removed it between our two calls: once more

    def _leftover(self) -> Path | None:
        """The folder of the process that held this name before and was killed."""
        assert self._descriptor is not None
        name = os.fsdecode(os.pread(self._descriptor, 4096, 0))
        main = self.targets.main
        plausible = name.startswith(f".{main.name}.") and name.endswith(".part") and "/" not in name
        return main.with_name(name) if plausible and main.with_name(name).is_dir() else None

    def commit(self, record: Record) -> None:
        """Puts the files made in `part` under their final names, the sidecar last."""
        targets = self.targets
        sidecar = json.dumps(record.to_json(targets.sidecar.parent), indent=1) + "\n"
        (self.part / targets.sidecar.name).write_text(sidecar)
        for path in targets.names:
            sync(self.part / path.name)
        with contextlib.suppress(FileNotFoundError):
            os.replace(targets.sidecar, self.part / _REPLACED)
        sync(self.part)
        for path in (*reversed(list(targets.outputs.values())), targets.sidecar):
            os.replace(self.part / path.name, path)
        sync(targets.main.parent)


_REPLACED = ".replaced.json"


class Unclaimed:
    """Stands for the claim of a case that has no files of its own."""

    part = Path(os.devnull)

    def __enter__(self) -> Unclaimed:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of nothing."""

    def commit(self, record: Record) -> None:
        """Puts nothing in place."""


def claim_of(targets: Targets) -> Claim | Unclaimed:
    """The claim that a case needs."""
    return Claim(targets) if targets.table is None else Unclaimed()


def remove_leftovers(targets: Targets) -> None:
    """Removes what a run left behind that was killed when this case was already done."""
    if Claim(targets).path.exists():
        with contextlib.suppress(OutputError, OSError), Claim(targets):
            pass


def _undo(leftover: Path, targets: Targets) -> None:
    """Takes back what a run that was stopped during `commit` had already put in place, and removes the folder.

    The new sidecar still lies in the leftover folder exactly if that commit did not end; the files it lists by digest
    are removed, and the sidecar of an earlier result that was being replaced returns to its place.
    """
    if not targets.sidecar.exists():
        try:
            unfinished = record_from_json(json.loads((leftover / targets.sidecar.name).read_bytes()), leftover.parent)
        except (OSError, ValueError, MedkitError):
            unfinished = None
        for entry in unfinished.medkit.get("outputs", {}).values() if unfinished else ():
            if _has_digest(Path(entry["path"]), entry.get("sha256")):
                Path(entry["path"]).unlink()
        with contextlib.suppress(FileNotFoundError):
            os.replace(leftover / _REPLACED, targets.sidecar)
    shutil.rmtree(leftover, ignore_errors=True)


def _process_gone(leftover: Path) -> bool:
    """Whether the process that a `.part` folder is named after ran on this host and has ended."""
    *_, host_and_pid = leftover.name.removesuffix(".part").partition(f".{socket.gethostname()}.")
    try:
        os.kill(int(host_and_pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):
        return False
    return False


def _refusal(path: Path, record: Record | None, ours: bool) -> str:
    if ours:
        return f"{path}: exists already; --skip-existing keeps it if it is still valid, --overwrite replaces it"
    if record is not None and record.sources:
        return (
            f"{path}: exists already and was made from {record.sources[0]}; choose another -o, --keep-tree ROOT to "
            f"mirror the inputs' folders, or --overwrite"
        )
    return f"{path}: exists already and no sidecar says that medkit made it; choose another -o, or --overwrite"
