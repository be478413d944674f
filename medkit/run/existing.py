"""Results that exist already: whether they are still valid, and whether they may be replaced."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import InputError, OutputError
from medkit.pipe.names import split_series
from medkit.pipe.records import Record, read_sidecar, sha256_of

if TYPE_CHECKING:
    from medkit.options import RunOptions
    from medkit.run.outputs import Targets
    from medkit.run.task import Task


@dataclass(frozen=True)
class ResultFingerprint:
    """Everything that a result depends on; a result with an equal fingerprint need not be made again."""

    source: Path
    """The case's own input."""
    inputs: Mapping[str, str]
    """Role -> sha256 of every file that the result depends on, the case's own input first."""
    settings: Mapping[str, Any]
    """Arguments, bundle, seed and the versions of the programs, see `settings_of_run`."""

    def has_same_source(self, record: Record) -> bool:
        """Return whether a result was made from this source: the same file, or the same content moved elsewhere."""
        if self.source in record.sources[:1]:
            return True
        digests = [entry.get("sha256") for entry in record.medkit.get("inputs", {}).values()]
        return digests[:1] == list(self.inputs.values())[:1]

    def equals(self, record: Record) -> bool:
        """Return whether a result was made from inputs with the same digests and with the same settings."""
        digests = {role: entry.get("sha256") for role, entry in record.medkit.get("inputs", {}).items()}
        return digests == dict(self.inputs) and settings_of(record) == through_json(self.settings)


def settings_of_run(task: Task, options: RunOptions) -> dict[str, Any]:
    """Return what all results of a run depend on besides their inputs."""
    chosen = {"frame": options.frame, "series": options.series}
    return {
        "arguments": dict(task.arguments) | {k: v for k, v in chosen.items() if v is not None},
        "bundle": dict(task.bundle) if task.bundle else None,
        "seed": options.seed,
        "programs": [dict(p) for p in options.programs],
    }


def settings_of_case(task: Task, options: RunOptions, record: Record) -> dict[str, Any]:
    """Return what the result of a case depends on besides its inputs: those of the run, and values of its record."""
    settings = settings_of_run(task, options)
    values = dict(task.reads(record)) if task.reads is not None else {}
    return settings | {"arguments": settings["arguments"] | {"record": values}} if values else settings


def settings_of(record: Record) -> dict[str, Any]:
    """Return the same settings as a record states them; threads, device, workers and qc do not make it outdated."""
    block = record.medkit
    return {
        "arguments": block.get("arguments", {}),
        "bundle": block.get("bundle"),
        "seed": block.get("seed"),
        "programs": [dict(g) for g in record.generated_by],
    }


def through_json(value: Any) -> Any:
    """Return a value as it comes back from a JSON file, to compare it with one that does."""
    return json.loads(json.dumps(value))


def is_there(path: Path) -> bool:
    """Return whether an input exists: a file, a folder, or a place whose DICOM series it names."""
    if path.exists():
        return True
    if split_series(path) is None:
        return False
    from medkit.images.dicom.places import exists

    return exists(path)


def file_digest(path: Path) -> str:
    """Return the sha256 of an input; a file that all cases share is read once.

    Raises InputError if it cannot be read.
    """
    try:
        if split_series(path) and (digest := _digest_of_series(path)):
            return digest
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _digest_of_series(path: Path) -> str | None:
    from medkit.images.dicom.series import digest_of  # numpy and pydicom are loaded when there is such a path

    return digest_of(path)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)


def has_digest(path: Path, digest: str | None) -> bool:
    """Return whether a file exists and has this sha256."""
    try:
        return digest is not None and sha256_of(path) == digest
    except OSError:
        return False


def is_whole(record: Record, targets: Targets) -> bool:
    """Return whether a sidecar states that its case went well, and every output still has the content it states."""
    entries = record.medkit.get("outputs", {})
    if record.medkit.get("status") != "ok" or set(entries) != set(targets.outputs):
        return False
    return all(has_digest(targets.outputs[role], entry.get("sha256")) for role, entry in entries.items())


def check_existing(targets: Targets, fingerprint: ResultFingerprint, *, overwrite: bool, skip_existing: bool) -> None:
    """Raise OutputError if a file that the case must not replace has one of its final names.

    Without `overwrite` only an outdated or damaged result of the same source is replaced, under `skip_existing`.
    """
    existing = [p for p in targets.names if os.path.lexists(p)]
    if not existing or overwrite:
        return
    record = read_sidecar(targets.sidecar)
    ours = record is not None and fingerprint.has_same_source(record)
    stated = {Path(e["path"]) for e in record.medkit.get("outputs", {}).values()} if record and ours else set()
    for path in existing:
        if not (skip_existing and ours and (path in stated or path == targets.sidecar)):
            raise OutputError(_refusal(path, record, ours))


def _refusal(path: Path, record: Record | None, ours: bool) -> str:
    if ours:
        return f"{path}: exists already; --skip-existing keeps it if it is still valid, --overwrite replaces it"
    if record is not None and record.sources:
        return (
            f"{path}: exists already and was made from {record.sources[0]}; choose another -o, --keep-tree ROOT to "
            f"mirror the inputs' folders, or --overwrite"
        )
    return f"{path}: exists already and no sidecar states that medkit made it; choose another -o, or --overwrite"
