"""Reading files of contours: JSON, RTSTRUCT, and the table of a result in place of its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkit.errors import InputError
from medkit.task import Record, record_of, sha256_of
from medkit_contours.polygons import ContourSet, contours_from
from medkit_contours.rtstruct_reading import is_structure_set, read_structure_set

TASK = "contours"
POLYGONS = "polygons"
"""Role of the file of polygons among the outputs of the task."""


@dataclass(frozen=True, eq=False)
class Given:
    """Contours from a file."""

    contours: ContourSet
    notes: tuple[str, ...] = ()
    """What is unusual about the file."""
    doubts: Mapping[int, str] = field(default_factory=dict)
    """Structure's number -> what a person should look at."""


def read_contours(path: Path) -> Given:
    """Read contours: a JSON file, an RTSTRUCT (file or folder), or the table or sidecar that lies beside a JSON file.

    Raises InputError.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(path)
    if suffix == ".tsv":
        return Given(_beside(record_of(path), path))
    if path.is_dir() or is_structure_set(path):
        found = read_structure_set(path)
        return Given(found.contours, found.notes, found.doubts)
    raise InputError(f"{path}: expected contours (JSON of `medkit run contours`, or RTSTRUCT), got something else")


def is_contours(path: Path) -> bool:
    """Return whether a file is named or built as contours are."""
    return path.suffix.lower() in (".json", ".tsv") or is_structure_set(path)


def _from_json(path: Path) -> Given:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a contour file (JSON): {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("medkit"), Mapping):
        return Given(_beside(record_of(path.with_suffix(".tsv")), path))
    return Given(contours_from(content, path))


def _beside(record: Record, path: Path) -> ContourSet:
    """Return the contours that were written with a table. Raises InputError."""
    entry = record.medkit.get("outputs", {}).get(POLYGONS)
    if record.medkit.get("task") != TASK or entry is None:
        raise InputError(f"{path}: expected a result of `medkit run {TASK}`, got another file")
    polygons = Path(entry["path"])
    if not polygons.is_file():
        raise InputError(f"{path}: its polygons {polygons} are gone")
    if sha256_of(polygons) != entry.get("sha256"):
        raise InputError(f"{polygons}: has changed since {record.path.name} was written: give it instead of the table")
    return contours_from(json.loads(polygons.read_bytes()), polygons)
