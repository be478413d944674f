"""Files of landmarks: tables in RAS+ or LPS+ mm, and 3D Slicer's .fcsv and .mrk.json, which name their frame."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.pipe.lines import text_lines
from medkit.space import RAS_TO_LPS, apply_affine

POINT_SUFFIXES = (".csv", ".tsv", ".fcsv", ".mrk.json")
"""Endings of the files that `read_points` reads."""
SIZES = ("size_x", "size_y", "size_z")
"""Columns of tables with the extents of boxes, mm."""
_NAMES = ("name", "label", "id")
_FRAMES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
"""Slicer's words for its frames; older versions wrote a number."""


@dataclass(frozen=True, eq=False)
class Points:
    """Landmarks from a file."""

    positions: np.ndarray
    """(N, 3) float64, RAS+ mm."""
    names: tuple[str, ...]
    """(N,) names; the numbers from 1 to N if the file has no names or a name twice."""
    named: bool
    """Whether the file gives each point a different name."""
    path: Path
    """The file that was read."""
    stated: tuple[str, ...] = ()
    """(N,) names as the file has them, empty where it has none; several points may share one."""
    sizes: np.ndarray | None = None
    """(N, 3) mm: extents of boxes around the points along the axes of RAS+, if the table has them."""
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column -> (N,) texts that a new table has besides names and positions."""


def read_points(path: Path, frame: str = "RAS", *, none: bool = False) -> Points:
    """Read landmarks. Raises InputError, unless `none` also for a whole file without a point: nothing was found.

    `.csv` and `.tsv`: columns x, y, z (mm in `frame`, `RAS` or `LPS`) and optionally name, label or id; or three
    columns without a header. Columns `size_x`, `size_y` and `size_z` make boxes of them. `.fcsv` and `.mrk.json`: files
    of 3D Slicer, in the frame that they name.
    """
    sizes = None
    try:
        if path.name.endswith(".json"):
            rows = _markups(path)
        elif path.suffix == ".fcsv":
            rows = _fcsv(path)
        else:
            rows = _in_ras(_table(path), frame)
            sizes = _sizes(path)
        positions = np.array([row[:3] for row in rows], np.float64).reshape(-1, 3)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path}: expected points in a file that ends in {', '.join(POINT_SUFFIXES)}: {error}"
        ) from error
    if not np.isfinite(positions).all() or not (len(rows) or none):
        got = "others" if len(rows) else "none"
        raise InputError(f"{path}: expected one point or more with finite coordinates, got {got}")
    stated = tuple(str(row[3]) for row in rows)
    named = all(stated) and len(set(stated)) == len(stated)
    names = stated if named else tuple(str(n + 1) for n in range(len(rows)))
    return Points(positions, names, named, path, stated, sizes)


def write_points(path: Path, points: Points, frame: str = "RAS") -> None:
    """Write landmarks in the format of the name: tables in `frame` (`RAS` or `LPS`), Slicer's files in LPS, mm.

    If the points were read from a file of that format, everything else in it is kept: other columns, colours, the
    frame. Raises OutputError for another name.
    """
    same = path.suffix == points.path.suffix and path.name.endswith(POINT_SUFFIXES)
    if path.name.endswith(".mrk.json"):
        text = _markups_text(points, json.loads(points.path.read_bytes()) if same else _EMPTY_MARKUPS)
    elif path.suffix == ".fcsv":
        text = _fcsv_text(points, points.path.read_bytes().decode("utf-8-sig") if same else _EMPTY_FCSV)
    elif path.suffix in (".csv", ".tsv"):
        text = _table_text(points, frame, "\t" if path.suffix == ".tsv" else ",")
    else:
        raise OutputError(f"{path}: expected a name of points that ends in {', '.join(POINT_SUFFIXES)}")
    path.write_text(text, encoding="utf-8")


_EMPTY_FCSV = """# Markups fiducial file version = 5.0
# CoordinateSystem = LPS
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
"""
_EMPTY_MARKUPS = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": []}]}
_Row = tuple[float, float, float, str]


def _table(path: Path) -> list[_Row]:
    _, rows, (x, y, z), name = _cells(path)
    return [(float(r[x]), float(r[y]), float(r[z]), "" if name is None else r[name]) for r in rows]


def _sizes(path: Path) -> np.ndarray | None:
    """Return the extents of boxes (N, 3), mm; None if a table has none."""
    header, rows, _, _ = _cells(path)
    names = [cell.lower() for cell in header[0]] if header else []
    if not set(SIZES) <= set(names):
        return None
    return np.array([[float(row[names.index(size)]) for size in SIZES] for row in rows], np.float64).reshape(-1, 3)


def _cells(path: Path) -> tuple[list[list[str]], list[list[str]], list[int], int | None]:
    """Return a table's header (no row or one), its other rows, the indices of x, y and z, and that of the names."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if not {"x", "y", "z"} <= set(header):
        if not header:
            raise ValueError("an empty file, without a first line that names the columns x, y and z")
        if not all(_is_number(cell) for cell in header[:3]):
            raise ValueError(f"expected a first line that names the columns x, y and z, got {', '.join(rows[0])}")
        return [], rows, [0, 1, 2], None
    name = next((header.index(word) for word in _NAMES if word in header), None)
    columns = [header.index(axis) for axis in "xyz"]
    least = max([*columns, name or 0]) + 1
    for row in rows[1:]:  # more cells than columns: a comma within a number, and everything after it is displaced
        if len(row) < least or any(row[len(header) :]):
            raise ValueError(f"expected the columns {', '.join(rows[0])}, got {', '.join(row)}")
    return rows[:1], rows[1:], columns, name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fcsv(path: Path) -> list[_Row]:
    """Read Slicer's older table: `# CoordinateSystem = LPS`, and the columns id, x, y, z, ..., label (12th)."""
    comments, rows = _fcsv_parts(path.read_bytes().decode("utf-8-sig"))
    if not comments and not rows:
        raise ValueError("an empty file, without the lines that Slicer begins it with")
    found = [(float(r[1]), float(r[2]), float(r[3]), r[11] if len(r) > 11 else "") for r in rows]
    return _in_ras(found, _fcsv_frame(comments))


def _fcsv_parts(text: str) -> tuple[list[str], list[list[str]]]:
    """Return the comments at the start, and the rows; a name in quotes may hold a newline."""
    lines = text_lines(text)
    count = next((number for number, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    rows = csv.reader(io.StringIO("\n".join(lines[count:]), newline=""))
    return [line for line in lines[:count] if line.strip()], [row for row in rows if row and row[0][:1] != "#"]


def _fcsv_frame(comments: Sequence[str]) -> str:
    return next((line.split("=")[1].strip() for line in comments if "CoordinateSystem" in line), "RAS")


def _markups(path: Path) -> list[_Row]:
    """Read Slicer's markups: `{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"label", "position"}]}]}`."""
    markups = json.loads(path.read_bytes())["markups"]
    rows: list[_Row] = []
    for markup in markups:
        placed = [p for p in markup["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
        found = [(*map(float, p["position"]), str(p.get("label", ""))) for p in placed]
        rows += _in_ras(found, str(markup.get("coordinateSystem", "LPS")))  # type: ignore[arg-type]
    return rows


def _table_text(points: Points, frame: str, delimiter: str) -> str:
    moved = _numbers(points.positions, frame)
    if points.path.suffix in (".csv", ".tsv"):
        header, rows, columns, _ = _cells(points.path)
        for row, xyz in zip(rows, moved, strict=True):
            for column, value in zip(columns, xyz, strict=True):
                row[column] = value
        if points.sizes is not None:
            names = [cell.lower() for cell in header[0]]
            for row, sizes in zip(rows, points.sizes, strict=True):
                for size, value in zip(SIZES, sizes, strict=True):
                    row[names.index(size)] = f"{value:.6f}"
    else:
        header = [["name", "x", "y", "z", *points.more]]
        rows = [
            [name, *xyz, *more] for name, xyz, *more in zip(points.names, moved, *points.more.values(), strict=True)
        ]
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(header + rows)
    return stream.getvalue()


def _fcsv_text(points: Points, text: str) -> str:
    """Return the file's text with other positions; rows are made if it has none."""
    comments, rows = _fcsv_parts(text)
    rows = rows or [
        [str(number), "", "", "", *"0001110", name, "", ""] for number, name in enumerate(points.names, start=1)
    ]
    for row, xyz in zip(rows, _numbers(points.positions, _fcsv_frame(comments)), strict=True):
        row[1:4] = xyz
    stream = io.StringIO("\n".join([*comments, ""]))
    stream.seek(0, io.SEEK_END)
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _markups_text(points: Points, content: Any) -> str:
    """Return the file's JSON with other positions; control points are made if it has none."""
    places = iter(points.positions)
    markups = content["markups"]
    if not any(markup["controlPoints"] for markup in markups):
        made = [{"id": str(n), "label": name} for n, name in enumerate(points.names, start=1)]
        markups = [dict(markups[0]) | {"controlPoints": made}]
    for markup in markups:
        for point in markup["controlPoints"]:
            if point.get("positionStatus", "defined") == "defined":
                position = np.array([next(places)])
                frame = str(markup.get("coordinateSystem", "LPS"))
                point["position"] = [float(word) for word in next(_numbers(position, frame))]
    return json.dumps(content | {"markups": markups}, indent=1) + "\n"


def _numbers(positions: np.ndarray, frame: str) -> Iterator[list[str]]:
    """Return positions (N, 3) RAS+ mm as texts of mm in `frame`, to a nanometre."""
    if _FRAMES[frame.upper()] == "LPS":
        positions = apply_affine(RAS_TO_LPS, positions)
    return ([f"{value:.6f}" for value in row] for row in positions)


def _in_ras(rows: Sequence[_Row], frame: str) -> list[_Row]:
    if _FRAMES[frame.upper()] == "RAS":
        return list(rows)
    positions = apply_affine(RAS_TO_LPS, np.array([row[:3] for row in rows], np.float64).reshape(-1, 3))
    return [(*map(float, p), row[3]) for p, row in zip(positions, rows, strict=True)]  # type: ignore[misc]
