"""Records: the description of a case, in a pipe and in the sidecar next to its main output.

A record and a sidecar are the same JSON object (see docs/pipes-and-records.md). Paths are absolute in the record, and
relative to the sidecar's folder in the sidecar, so that a moved folder still works.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medkit.errors import InputError, MedkitError, UsageError, listed
from medkit.pipe.names import kind_of_name, sidecar_path
from medkit.specs import KINDS

_OWN_KEYS = {"path", "kind", "Sources", "SpatialReference", "Description", "GeneratedBy", "medkit", "inputs"}


@dataclass(frozen=True)
class Record:
    """One case: a file, what it is, and where it came from."""

    path: Path
    """The file, absolute: a task's main output, or an input that no task has worked on."""
    kind: str = "image"
    """What the file is: one of `medkit.specs.KINDS`."""
    sources: tuple[Path, ...] = ()
    """The files it was made from, the case's own input first."""
    spatial_reference: Path | None = None
    """The image whose grid it lies on."""
    description: str = ""
    """One sentence for people."""
    generated_by: tuple[Mapping[str, str], ...] = ()
    """The programs that made it, each with Name and Version (BIDS)."""
    medkit: Mapping[str, Any] = field(default_factory=dict)
    """Status, outputs with digests, arguments, metrics, warnings and so on."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Role -> file: named inputs that the sender of the record adds, such as `moving_labels`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys that medkit does not know, passed on unchanged."""

    @property
    def failed(self) -> bool:
        """Whether this or an earlier stage failed on this case."""
        return self.medkit.get("status") == "failed"

    @property
    def planned(self) -> bool:
        """Whether the file is a result that `--dry-run` foresees, and that may not exist yet."""
        return self.medkit.get("status") == "planned"

    def to_json(self, relative_to: Path | None = None) -> dict[str, Any]:
        """Return the JSON object; with `relative_to`, its paths are relative to that folder."""

        def shown(path: Path) -> str:
            return str(path) if relative_to is None else os.path.relpath(path, relative_to)

        out: dict[str, Any] = {"path": shown(self.path), "kind": self.kind}
        if self.sources:
            out["Sources"] = [shown(p) for p in self.sources]
        if self.spatial_reference:
            out["SpatialReference"] = shown(self.spatial_reference)
        if self.description:
            out["Description"] = self.description
        if self.generated_by:
            out["GeneratedBy"] = [dict(g) for g in self.generated_by]
        if self.inputs:
            out["inputs"] = {role: shown(p) for role, p in self.inputs.items()}
        if self.medkit:
            out["medkit"] = _plain(_map_paths(self.medkit, lambda p: shown(Path(p))))
        return out | dict(self.extra)

    def line(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(self.to_json(), ensure_ascii=True)


def _map_paths(block: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return the `medkit` block with `change` applied to the paths in its outputs, inputs and command."""
    out = dict(block)
    for key in ("outputs", "inputs"):
        if key in out:
            out[key] = {role: dict(entry) | {"path": change(entry["path"])} for role, entry in out[key].items()}
    if isinstance(out.get("command"), list):
        out["command"] = [_map_word(word, change) for word in out["command"]]
    return out


def _map_word(word: Any, change: Callable[[str], str]) -> Any:
    """Return a word of a command; one that stands for a file has its paths changed."""
    if not (isinstance(word, Mapping) and isinstance(word.get("path"), str)):
        return word
    inputs = word.get("inputs")
    brought = {role: change(str(path)) for role, path in inputs.items()} if isinstance(inputs, Mapping) else {}
    return {**word, "path": change(word["path"])} | ({"inputs": brought} if brought else {})


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: numpy's numbers as Python's, and None for NaN and infinite numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def absolute(path: str | Path, base: Path | None = None) -> Path:
    """Return an absolute path without `..`; symbolic links are not followed.

    Raises UsageError for a relative path if the working directory was removed.
    """
    joined = os.path.join(base or "", path)  # noqa: PTH118 - resolve() would follow links
    try:
        return Path(os.path.abspath(joined))  # noqa: PTH100
    except FileNotFoundError:
        raise UsageError(f"{path}: the working directory is gone; give absolute paths, or change to a folder") from None


def record_from_json(data: Any, base: Path | None = None) -> Record:
    """Return the record that a JSON object describes; its paths are relative to `base`, None: the working directory.

    Raises MedkitError if a key that medkit relies on has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise MedkitError("expected a JSON object")
    inputs = data.get("inputs", {})
    path = data.get("path")
    if path is None and isinstance(inputs, Mapping) and inputs:
        path = next(iter(inputs.values()))
    expected = (
        ("path", isinstance(path, str) and path != "", "a non-empty string"),
        ("kind", data.get("kind", "image") in KINDS, "one of " + ", ".join(KINDS)),
        ("Sources", _strings(data.get("Sources", [])), "a list of paths"),
        ("inputs", isinstance(inputs, Mapping) and _strings(list(inputs.values())), "an object of paths"),
        ("medkit", _block(data.get("medkit", {})), "an object whose outputs and inputs have paths"),
    )
    for key, holds, what in expected:
        if not holds:
            raise MedkitError(f'"{key}" is not {what}')
    reference = data.get("SpatialReference")
    return Record(
        path=absolute(str(path), base),
        kind=data.get("kind") or kind_of_name(Path(str(path))),
        sources=tuple(absolute(p, base) for p in data.get("Sources", [])),
        spatial_reference=absolute(reference, base) if isinstance(reference, str) else None,
        description=str(data.get("Description", "")),
        generated_by=tuple(g for g in data.get("GeneratedBy", ()) if isinstance(g, Mapping)),
        medkit=_map_paths(data.get("medkit", {}), lambda p: str(absolute(p, base))),
        inputs={role: absolute(p, base) for role, p in inputs.items()},
        extra={k: v for k, v in data.items() if k not in _OWN_KEYS},
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _block(value: Any) -> bool:
    """Return whether a `medkit` block has what medkit relies on: paths in its outputs and inputs."""
    if not isinstance(value, Mapping):
        return False
    files = [value.get(key, {}) for key in ("outputs", "inputs")]
    if not all(isinstance(f, Mapping) for f in files):
        return False
    entries = [entry for f in files for entry in f.values()]
    return all(isinstance(e, Mapping) and isinstance(e.get("path"), str) for e in entries)


def read_sidecar(path: Path) -> Record | None:
    """Return the record in a sidecar; None if the file is missing, damaged, or not from medkit."""
    try:
        data = json.loads(path.read_bytes())
        record = record_from_json(data, path.parent)
    except (OSError, ValueError, RecursionError, MedkitError, KeyError, TypeError, AttributeError):
        return None
    return record if record.medkit else None


def record_of(path: Path) -> Record:
    """Return the record of a file: its sidecar's if that describes this file, else one made from its name."""
    sidecar = read_sidecar(sidecar_path(path))
    if sidecar is not None and sidecar.path == path:
        return sidecar
    return Record(path, kind_of_name(path))


def record_from_line(line: str) -> Record:
    """Return the record that a line of a pipe stands for: a JSON object, or the path of a file or DICOM folder.

    A JSON object without a `medkit` block is completed from the file's sidecar. Raises MedkitError.
    """
    if "\0" in line:
        raise MedkitError("expected one name per line, got names separated by NUL: use -0")
    if not line.startswith("{"):
        return record_of(absolute(line))
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MedkitError(
            f"expected a JSON record, as the line begins with a brace (write ./{{... for a file): {error}"
        ) from None
    record = record_from_json(data)
    known = record_of(record.path)
    if "medkit" in data or not known.medkit:
        return record if "kind" in data else replace(record, kind=known.kind)
    return replace(known, inputs=record.inputs, extra=record.extra, kind=data.get("kind", known.kind))


def lineage(record: Record) -> Iterator[Record]:
    """Yield the record and all it was made from, each file once, depth first, the case's own input before others."""
    visited: set[Path] = set()
    waiting = [record]
    while waiting:
        current = waiting.pop()
        if current.path not in visited:
            visited.add(current.path)
            yield current
            waiting.extend(record_of(p) for p in reversed(current.sources))


def find_kind(record: Record, kinds: Sequence[str]) -> Record:
    """Return the first file of one of `kinds` among the record and its sources.

    Raises InputError if there is none.
    """
    for candidate in lineage(record):
        if candidate.kind in kinds:
            return candidate
    wanted = " or ".join(f"{'an' if k[0] in 'aeiou' else 'a'} {k}" if k[-1] != "s" else k for k in kinds)
    origin = "none of its sources is one" if record.sources else "it names no source"
    raise InputError(f"expected {wanted}, got {record.kind} {record.path.name} and {origin}")


def refuse_stream(path: Path) -> None:
    """Raise InputError for a pipe, a device or another file that can be read once only, or never ends."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        kind = "a pipe" if path.is_fifo() else "a socket" if path.is_socket() else "a device"
        raise InputError(f"{path}: expected a file that can be read again, got {kind}; write it to a file first")


def sha256_of(path: Path) -> str:
    """Return the digest of a file; of a folder, the digest of its files' sorted digests. Raises OSError."""
    if path.is_dir():
        digests = sorted(sha256_of(p) for p in path.iterdir() if p.is_file())
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_programs(generated_by: Sequence[Mapping[str, str]]) -> str:
    """Return programs in words, such as `medkit 0.1.0 and medkit-threshold 2.0`."""
    names = [f"{g.get('Name', '?')} {g.get('Version', '')}".strip() for g in generated_by]
    return listed(names) if names else "an unnamed program"
