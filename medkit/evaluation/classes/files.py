"""What was said of cases: `_class.tsv` files of one case, and tables with a row for each case.

A file of one case has a row for each class, with the columns `class` and `probability`. A table has one row for each
case: a column that names it (`path`, `case`, ...), a column for each class called `probability_<class>`, and perhaps
`class`, what was decided. Both may hold `confidence`, calibrated, and `abstained`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError
from medkit.records import absolute, record_of

CASE = ("path", "case", "image", "file", "filename", "name", "id", "participant_id", "subject")
"""What a column is called that names cases, the first that is there."""
CLASS = ("reference", "truth", "target", "class", "label", "diagnosis")
"""What a column is called that holds true classes, the first that is there."""
PROBABILITY = "probability_"
"""What the name of a class's column begins with."""
_NOT = {"", "0", "no", "false", "none", "n/a", "-"}
"""What stands for no, such as in `abstained`."""


@dataclass(frozen=True)
class Prediction:
    """What was said of one case."""

    case: Path
    """What tells which case it is: the image it was made from where that is known, else the file or the row's name."""
    file: Path
    """Where it stands."""
    probabilities: Mapping[str, float]
    """Class -> probability, in the bundle's order."""
    chosen: str
    """The class that was decided on."""
    confidence: float
    """That of `chosen`: calibrated where the file has one, else its probability."""
    abstained: bool = False
    """Whether the bundle would rather say nothing."""


def read_predictions(path: Path) -> list[Prediction]:
    """The prediction of a `_class.tsv` file, or those of a table. Raises InputError."""
    rows = read_table(path)
    columns = rows[0].keys()
    if {"class", "probability"} <= columns:
        return [_of_one_case(path, rows)]
    case = column(path, columns, CASE, "names the cases")
    classes = [name.removeprefix(PROBABILITY) for name in columns if name.startswith(PROBABILITY)]
    if not classes:
        raise InputError(
            f"{path}: expected the columns class and probability, or one called {PROBABILITY}... for each class; "
            f"got {', '.join(columns)}"
        )
    return [_of_row(path, number, row, case, classes) for number, row in enumerate(rows, start=2)]


def _of_one_case(path: Path, rows: Sequence[Mapping[str, str]]) -> Prediction:
    probabilities = {row["class"]: _number(path, n, row["probability"]) for n, row in enumerate(rows, start=2)}
    if len(probabilities) < len(rows):
        raise InputError(f"{path}: expected every class once, got {', '.join(row['class'] for row in rows)}")
    record = record_of(path)
    found = record.medkit.get("metrics")
    metrics = found if isinstance(found, Mapping) else {}
    stated = {key: str(metrics[key]) for key in ("class", "confidence", "abstained") if metrics.get(key) is not None}
    chosen = next((row for row in rows if row["class"] == stated.get("class")), rows[0])
    facts = {key: chosen[key] for key in ("confidence", "abstained") if key in chosen}
    return _prediction(path, 2, record.sources[0] if record.sources else path, probabilities, facts | stated)


def _of_row(path: Path, number: int, row: Mapping[str, str], case: str, classes: Sequence[str]) -> Prediction:
    probabilities = {name: _number(path, number, row[PROBABILITY + name]) for name in classes}
    return _prediction(path, number, absolute(row[case], path.parent), probabilities, row)


def _prediction(
    path: Path, number: int, case: Path, probabilities: Mapping[str, float], facts: Mapping[str, str]
) -> Prediction:
    """`facts`: `class`, `confidence` and `abstained`, where they are known."""
    likeliest = max(probabilities, key=lambda name: probabilities[name])
    chosen = facts.get("class") or likeliest
    if len(probabilities) > 1 and chosen not in probabilities:
        raise InputError(f"{path}: line {number}: expected one of {', '.join(probabilities)}, got {chosen}")
    stated = facts.get("confidence", "").strip()
    confidence = probabilities.get(chosen, 0.0) if stated in ("", "n/a") else _number(path, number, stated)
    abstained = facts.get("abstained", "").strip().lower() not in _NOT
    return Prediction(case, path, probabilities, chosen, confidence, abstained)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header, `.tsv` or `.csv`. Raises InputError where there is none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = next((mark for mark in "\t;," if mark in first), "\t")
            reader = csv.DictReader(file, delimiter=separator, restval="", restkey="")
            if separator == "\t":  # as medkit writes them
                reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="", restkey="")
            rows = [{str(name).strip(): str(value).strip() for name, value in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table, .tsv or .csv: {getattr(error, 'strerror', '') or error}") from None
    if not rows:
        raise InputError(
            f"{path}: expected a table with a header and rows, got {'a header alone' if first else 'none'}"
        )
    return rows


def column(path: Path, columns: Iterable[str], names: Sequence[str], what: str) -> str:
    """The first of `names` that is a column, in any case of letters. Raises InputError."""
    lower = {name.lower(): name for name in columns}
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        raise InputError(f"{path}: no column that {what} ({', '.join(names)}); there is {', '.join(columns)}")
    return found


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{path}: line {line}: expected a probability (0 to 1), got {text!r}")
    return value
