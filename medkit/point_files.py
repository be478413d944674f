"""Files of landmarks: tables in RAS+ mm, and 3D Slicer's .fcsv and .mrk.json in the frame that they name."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.space import RAS_TO_LPS, apply_affine

POINT_SUFFIXES = (".csv", ".tsv", ".fcsv", ".mrk.json")
"""What `read_points` takes."""
_NAMES = ("name", "label", "id")
_FRAMES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
"""What Slicer writes for its frames; older versions wrote a number."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points with names."""

    positions: np.ndarray
    """(N, 3) float64, RAS+ mm."""
    names: tuple[str, ...]
    """(N,); their numbers from 1 on where the file has no names."""
    named: bool
    """Whether the file has names, each its own."""
    path: Path
    """The file."""


def read_points(path: Path) -> Points:
    """Read landmarks.

    `.csv` and `.tsv`: columns x, y, z in RAS+ mm and perhaps name (or label, or id), or three columns without a header.
    `.fcsv` and `.mrk.json`: as 3D Slicer writes them, in the frame they name. Raises InputError.
    """
    try:
        if path.name.endswith(".json"):
            rows = _markups(path)
        elif path.suffix == ".fcsv":
            rows = _fcsv(path)
        else:
            rows = _table(path)
        positions = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path}: expected points in a file that ends in {', '.join(POINT_SUFFIXES)}: {error}"
        ) from error
    if not len(rows) or not np.isfinite(positions).all():
        raise InputError(f"{path}: expected one point or more with finite coordinates")
    names = tuple(str(row[3]) for row in rows)
    named = all(names) and len(set(names)) == len(names)
    return Points(positions, names if named else tuple(str(n + 1) for n in range(len(rows))), named, path)


_Row = tuple[float, float, float, str]


def _table(path: Path) -> list[_Row]:
    text = path.read_text(encoding="utf-8-sig")
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if not {"x", "y", "z"} <= set(header):
        if header and not all(_is_number(cell) for cell in header[:3]):
            raise ValueError(f"its first line should name the columns x, y and z, and is {', '.join(rows[0])}")
        return [(float(row[0]), float(row[1]), float(row[2]), "") for row in rows]
    x, y, z = (header.index(axis) for axis in "xyz")
    name = next((header.index(word) for word in _NAMES if word in header), None)
    return [(float(r[x]), float(r[y]), float(r[z]), "" if name is None else r[name]) for r in rows[1:]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fcsv(path: Path) -> list[_Row]:
    """Slicer's older table: `# CoordinateSystem = LPS`, and the columns id, x, y, z, ..., label (12th)."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    frame = next((line.split("=")[1].strip() for line in comments if "CoordinateSystem" in line), "RAS")
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    found = [(float(r[1]), float(r[2]), float(r[3]), r[11] if len(r) > 11 else "") for r in rows]
    return _in_ras(found, frame)


def _markups(path: Path) -> list[_Row]:
    """Slicer's markups: `{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"label", "position"}]}]}`."""
    markups = json.loads(path.read_bytes())["markups"]
    rows: list[_Row] = []
    for markup in markups:
        placed = [p for p in markup["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
        found = [(*map(float, p["position"]), str(p.get("label", ""))) for p in placed]
        rows += _in_ras(found, str(markup.get("coordinateSystem", "LPS")))  # type: ignore[arg-type]
    return rows


def _in_ras(rows: Sequence[_Row], frame: str) -> list[_Row]:
    if _FRAMES[frame.upper()] == "RAS":
        return list(rows)
    positions = apply_affine(RAS_TO_LPS, np.array([row[:3] for row in rows], np.float64).reshape(-1, 3))
    return [(*map(float, p), row[3]) for p, row in zip(positions, rows, strict=True)]  # type: ignore[misc]
