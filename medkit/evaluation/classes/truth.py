"""The true classes of cases: from tables and datalists, or from a file for each case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.errors import InputError
from medkit.evaluation.classes.predictions import CANDIDATE, case_of, read_predictions
from medkit.evaluation.matching import match, match_names
from medkit.pipe.lines import text_lines
from medkit.pipe.records import absolute
from medkit.pipe.tables import CASE, CLASS, column, read_table

_PATHS = ("image", "path")
"""Keys of a datalist's items that name the file; the first that exists is used."""


@dataclass(frozen=True)
class Truth:
    """The true classes of cases."""

    found: Mapping[Path, str]
    """Case -> its class: a name, or a number as text."""
    missing: Mapping[Path, str] = field(default_factory=dict)
    """Case without a class -> the reason."""
    unused: tuple[str, ...] = ()
    """References without a case; in a datalist, only those in a list to which some case belongs."""


@dataclass(frozen=True)
class _Entry:
    """The class of a case, as a table or datalist states it."""

    case: Path
    value: str
    part: str = ""
    """The list of the datalist that contains it."""


def find_truth(cases: Sequence[Path], where: str, aspect: str | None = None) -> Truth:
    """Find the class of each case: `where` is a table, a datalist (`.json`), a folder or a pattern with `{id}`.

    A table has a column that names the cases, by their paths (relative to its folder) or by names that identify them,
    a column of classes, which has the name of the `aspect` if one is given, and optionally one of candidates. A folder
    in which the images themselves lie, in a folder for each class, states the classes too. In another folder, and with
    a pattern, every case has a file: a `_class.tsv`, of which the chosen class counts, or a text file
    that holds only the class. Raises InputError.
    """
    place = absolute(where)
    if place.is_dir() and (named := _class_folders(cases, place)):
        return Truth(named)
    if "{id}" in where or place.is_dir():
        matches = match(cases, where, "classes")
        found = {case: _class_in(file) for case, file in matches.found.items()}
        return Truth(found, matches.missing, tuple(map(str, matches.unused)))
    if not place.is_file():
        raise InputError(f"{place}: no such file or folder")
    stated = _stated(place, aspect)
    matches = match_names(cases, list(stated))
    parts = {stated[reference].part for reference in matches.found.values()}
    unused = [str(path) for path in matches.unused if stated[path].part in parts]
    return Truth({c: stated[r].value for c, r in matches.found.items()}, matches.missing, tuple(unused))


def _class_folders(cases: Sequence[Path], place: Path) -> dict[Path, str]:
    """Return case -> the folder below `place` that its image lies in; empty unless all images lie in such folders.

    Folders of parts, such as `test`, are no classes: `place` is the folder that holds those of the classes.
    """
    if not all(case.is_relative_to(place) and len(case.relative_to(place).parts) > 1 for case in cases):
        return {}
    found = {case: case.relative_to(place).parts[0] for case in cases}
    return found if all(case.exists() for case in cases) else {}


def _stated(place: Path, aspect: str | None) -> dict[Path, _Entry]:
    """Return case -> its entry in a table or datalist. Raises InputError for a case that is listed twice."""
    out: dict[Path, _Entry] = {}
    for entry in _of_datalist(place) if place.suffix == ".json" else _of_table(place, aspect):
        if entry.case in out:
            raise InputError(f"{place}: {entry.case} is listed twice")
        out[entry.case] = entry
    return out


def _of_table(place: Path, aspect: str | None) -> Iterator[_Entry]:
    rows = read_table(place)
    columns = list(rows[0])
    case = column(columns, CASE)
    wanted = (aspect.lower(), *CLASS) if aspect else CLASS
    value = column([name for name in columns if name != case], wanted)
    for found, what, names in ((case, "names the cases", CASE), (value, "holds their classes", wanted)):
        if found is None:
            raise InputError(f"{place}: no column that {what} ({', '.join(names)}); there is {', '.join(columns)}")
    for row in rows:
        yield _Entry(case_of(absolute(row[str(case)], place.parent), row.get(CANDIDATE, "")), row[str(value)])


def _of_datalist(place: Path) -> Iterator[_Entry]:
    """Return the items of a datalist, in the form that `medkit train` takes, that have a file and a class."""
    try:
        content = json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: expected a datalist: {error}") from None
    parts: Mapping[str, Any] = content if isinstance(content, dict) else {"": content}
    found = [
        _Entry(absolute(str(item[key]), place.parent), str(item["label"]), part)
        for part, items in parts.items()
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict) and "label" in item and (key := next((k for k in _PATHS if k in item), None))
    ]
    if not found:
        raise InputError(f'{place}: expected a datalist with items such as {{"image": "a.png", "label": 1}}')
    return iter(found)


def _class_in(file: Path) -> str:
    try:
        lines = [line.strip() for line in text_lines(file.read_bytes().decode("utf-8-sig")) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a class: {error}") from None
    if len(lines) == 1:
        return lines[0]
    predictions = read_predictions(file)
    if len(predictions) != 1:
        raise InputError(f"{file}: expected the class of one case, got {len(predictions)} cases")
    return predictions[0].chosen


def class_number(value: str, classes: Sequence[str]) -> int:
    """Return the number of a class, given by its name or else by its number. Raises InputError."""
    if value in classes:
        return classes.index(value)
    try:
        number = float(value)  # tables with missing values hold 1.0 for 1
    except ValueError:
        number = -1
    if number not in range(len(classes)):
        raise InputError(f"class {value!r}: expected one of {', '.join(classes)}, or its number from 0 on")
    return int(number)
