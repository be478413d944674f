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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from medkit import __version__
from medkit.errors import MedkitError, OutputError, UsageError, listed
from medkit.names import (
    GREY_PICTURES,
    WRITABLE_IMAGES,
    bids_root,
    is_bids,
    join_bids,
    sidecar_path,
    space_label,
    split_bids,
    stem,
    suffix_of,
)
from medkit.records import Record, read_sidecar, record_from_json, sha256_of

_BIDS_SUFFIX = {"labels": "dseg", "mask": "mask", "transform": "xfm"}


@dataclass(frozen=True)
class Output:
    """One file that a task makes for every case."""

    role: str
    """Its key in the record's `outputs`, such as `image` or `inverse_transform`."""
    kind: str
    """What it is: one of `medkit.specs.KINDS`."""
    suffix: str
    """What is added to the input's stem: `registered` gives `<stem>_registered.nii.gz`."""
    extension: str = ".nii.gz"
    """The file's type."""
    entities: Mapping[str, str] = field(default_factory=dict)
    """BIDS entities added for BIDS-named inputs; in a value, `{suffix}` stands for the input's own suffix (`T1w`) and
    `{space}` for the label of `reference`. None given: `desc-<suffix>`."""
    reference: Path | None = None
    """The image whose space the file is in or leads to, for `{space}`."""
    extensions: Sequence[str] = ()
    """Further types it may have: an input's own where it is one of them, and any of them by `-o`."""
    as_picture: bool = False
    """Whether an input that is a grey picture (PNG, JPEG) gives a PNG, whatever `extension` says."""

    def name(self, source: Path) -> str:
        """The file name for an input: the BIDS derivative name for a BIDS-named one, else `<stem>_<suffix><ext>`."""
        own = suffix_of(source).lower()
        extension = own if own in self.extensions else self.extension
        if self.as_picture and own in GREY_PICTURES:
            extension = ".png"
        if not is_bids(source):
            return f"{stem(source)}_{self.suffix}{extension}"
        entities, bids_suffix = split_bids(source)
        space = space_label(self.reference, source) if self.reference else ""
        added = {k: v.format(suffix=bids_suffix, space=space) for k, v in self.entities.items()}
        suffix = _BIDS_SUFFIX.get(self.kind, bids_suffix if self.kind == "image" else self.suffix)
        if not added and suffix != self.suffix:
            added = {"desc": "".join(c for c in self.suffix if c.isalnum())}
        return join_bids(entities | added, suffix) + extension


@dataclass(frozen=True)
class Targets:
    """Where the files of one case go."""

    outputs: Mapping[str, Path]
    """Role -> final path, absolute; the main output first."""
    table: Path | None = None
    """The file that takes the results of all cases as rows, where a case has no files of its own."""

    @property
    def main(self) -> Path:
        """The output that the pipe passes on."""
        return next(iter(self.outputs.values())) if self.table is None else self.table

    @property
    def sidecar(self) -> Path:
        """The record beside the main output."""
        return sidecar_path(self.main)

    @property
    def names(self) -> tuple[Path, ...]:
        """All final paths of this case alone, the sidecar included."""
        return (*self.outputs.values(), self.sidecar) if self.table is None else ()


def targets_of(source: Path, outputs: Sequence[Output], output: Path | None, keep_tree: Path | None) -> Targets:
    """The final paths for one input.

    `output` is a file (for the main output; the others get names derived from it), a folder, or None for the input's
    own folder. Raises OutputError where the input does not lie below `keep_tree`.
    """
    if output is not None and is_file_name(output):
        return Targets({o.role: _derived(output, o, first=o is outputs[0]) for o in outputs})
    folder = _folder(source, output, keep_tree)
    return Targets({o.role: folder / o.name(source) for o in outputs})


def is_file_name(output: Path) -> bool:
    """Whether -o names one file: it ends in a known suffix and is not a folder."""
    return bool(suffix_of(output)) and not output.is_dir()


def _derived(main: Path, output: Output, *, first: bool) -> Path:
    if not first:
        return main.with_name(f"{stem(main)}_{output.suffix}{output.extension}")
    allowed = WRITABLE_IMAGES if output.extension in WRITABLE_IMAGES else (output.extension,)
    allowed = tuple(dict.fromkeys([*allowed, *output.extensions]))
    if suffix_of(main).lower() not in allowed:
        raise UsageError(f"--output {main}: expected a name that ends in {listed(allowed)}")
    return main


def _folder(source: Path, output: Path | None, keep_tree: Path | None) -> Path:
    if output is None:
        return source.parent
    root = keep_tree or (bids_root(source) if is_bids(source) else None)
    if root is None:
        return output
    if not source.is_relative_to(root):
        raise OutputError(f"{source}: does not lie below --keep-tree {root}")
    return output / source.parent.relative_to(root)


@dataclass(frozen=True)
class Fingerprint:
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


def check_existing(targets: Targets, fingerprint: Fingerprint, *, overwrite: bool, skip_existing: bool) -> None:
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
            _sync(self.part / path.name)
        with contextlib.suppress(FileNotFoundError):
            os.replace(targets.sidecar, self.part / _REPLACED)
        _sync(self.part)
        for path in (*reversed(list(targets.outputs.values())), targets.sidecar):
            os.replace(self.part / path.name, path)
        _sync(targets.main.parent)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_dataset(folder: Path) -> None:
    """Writes BIDS's `dataset_description.json` of a derivative dataset into `folder`, unless there is one."""
    path = folder / "dataset_description.json"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "Name": "medkit derivatives",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medkit", "Version": __version__}],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_atomically(path: Path, text: str | bytes) -> None:
    """Writes a small file whole or not at all."""
    with whole(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under `path` only when the block ends well, and then whole."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def refuse_inputs(targets: Targets, inputs: Iterator[Path] | Sequence[Path]) -> None:
    """Raises OutputError where a result would replace one of its own inputs; not even --overwrite may do that."""
    for path in inputs:
        for target in targets.names:
            if target == path or _same_file(target, path):
                raise OutputError(f"{target}: is an input of this case; choose another -o")
            if _same_file(target, sidecar_path(path)):
                raise OutputError(f"{target}: is the sidecar of {path.name}, an input of this case; choose another -o")


def _same_file(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
