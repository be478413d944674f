"""What was said of cases: `_class.tsv` files of one case, and tables of all.

A table has a row for each case, or for each candidate in it: a column for each class called `probability_<class>`, and
perhaps `class`, what was decided, `confidence`, calibrated, and `abstained`. In a table of all cases another column
names them (`path`, `image`, ...). The file of one case may instead have a row for each class, with the columns `class`
and `probability`, as `medkit run bundle` writes it. `n/a` stands for what is not known.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError
from medkit.evaluation.matching import files_of, says_classes
from medkit.pipe.names import stem
from medkit.pipe.records import absolute, record_of

CASE = ("path", "case", "image", "file", "filename", "name", "id", "participant_id", "subject")
"""What a column is called that names cases, the first that is there."""
CANDIDATE = "candidate"
"""The column that names one of several things in an image that were asked about."""
CLASS = ("reference", "truth", "target", "class", "label", "diagnosis")
"""What a column is called that holds true classes, the first that is there."""
PROBABILITY = "probability_"
"""What the name of a class's column begins with."""
_UNKNOWN = ("", "n/a")
_NOT = {*_UNKNOWN, "0", "no", "false", "none", "-"}
"""What stands for no, such as in `abstained`."""


@dataclass(frozen=True)
class Prediction:
    """What was said of one case."""

    case: Path
    """What tells which case it is: the image it was made from where that is known, else the file or the row's name."""
    file: Path
    """Where it stands."""
    probabilities: Mapping[str, float]
    """Class -> probability, in the bundle's order; none where nothing was said at all."""
    chosen: str
    """The class that was decided on, or would have been."""
    confidence: float
    """That of `chosen`: calibrated where the file has one, else its probability."""
    abstained: bool = False
    """Whether the bundle would rather say nothing."""


def case_of(image: Path, candidate: str = "") -> Path:
    """What stands for a candidate in an image, `a/ct.nii.gz` and `3` -> `a/ct/3`, or for the image itself."""
    return image if candidate in _UNKNOWN else image.parent / stem(image) / candidate


def hold_classes(results: Sequence[Path]) -> bool:
    """Whether results, files or folders, are tables of classes, by their names or by their first lines."""
    folders = [path for path in results if path.is_dir()]
    files = [file for path in results if path.exists() for file in files_of(path, "points")]
    return bool(files) and all(map(_holds_classes, files)) and not any(files_of(path, "images") for path in folders)


def _holds_classes(path: Path) -> bool:
    if says_classes(path) or not path.name.lower().endswith((".tsv", ".csv")):
        return says_classes(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return PROBABILITY in file.readline()
    except (OSError, UnicodeDecodeError):
        return False


def read_predictions(path: Path, aspect: str | None = None) -> list[Prediction]:
    """The predictions of a table of one case or of all. Raises InputError.

    Where several things are said of an image, each in a row of its own, `aspect` is what `candidate` calls the one that
    counts.
    """
    rows = read_table(path)
    columns = list(rows[0])
    classes = [name.removeprefix(PROBABILITY) for name in columns if name.startswith(PROBABILITY)]
    if not classes and {"class", "probability"} <= set(columns):
        return [_of_class_rows(path, rows)]
    if not classes:
        raise InputError(
            f"{path}: expected the columns class and probability, or one called {PROBABILITY}... for each class; "
            f"got {', '.join(columns)}"
        )
    named = column(columns, CASE)
    if named is None and not says_classes(path):
        raise InputError(f"{path}: no column that names the cases ({', '.join(CASE)}); there is {', '.join(columns)}")
    alone = _source(path)
    if aspect is not None:
        said = dict.fromkeys(row.get(CANDIDATE, "") for row in rows)
        rows = [{**row, CANDIDATE: ""} for row in rows if row.get(CANDIDATE) == aspect]
        if not rows:
            raise InputError(f"{path}: nothing is said of {aspect}; expected one of {', '.join(said)}")
    return [
        _of_row(path, number, row, absolute(row[named], path.parent) if named else alone, classes)
        for number, row in enumerate(rows, start=2)
    ]


def _source(path: Path) -> Path:
    """The image that a file of one case was made from, by its sidecar, or the file itself."""
    sources = record_of(path).sources
    return sources[0] if sources else path


def _of_class_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Prediction:
    probabilities = {row["class"]: _probability(path, n, row["probability"]) for n, row in enumerate(rows, start=2)}
    if len(probabilities) < len(rows):
        raise InputError(f"{path}: expected every class once, got {', '.join(row['class'] for row in rows)}")
    return _prediction(path, 2, _source(path), probabilities, {})


def _of_row(path: Path, number: int, row: Mapping[str, str], image: Path, classes: Sequence[str]) -> Prediction:
    said = {name: row[PROBABILITY + name] for name in classes if row[PROBABILITY + name] not in _UNKNOWN}
    probabilities = {name: _probability(path, number, text) for name, text in said.items()}
    return _prediction(path, number, case_of(image, row.get(CANDIDATE, "")), probabilities, row)


def _prediction(
    path: Path, number: int, case: Path, probabilities: Mapping[str, float], facts: Mapping[str, str]
) -> Prediction:
    """`facts`: `class`, `confidence` and `abstained`, where they are known."""
    if not probabilities:
        return Prediction(case, path, {}, "", 0.0, abstained=True)
    known = {key: facts[key] for key in ("class", "confidence") if facts.get(key, "") not in _UNKNOWN}
    chosen = known.get("class", max(probabilities, key=lambda name: probabilities[name]))
    if len(probabilities) > 1 and chosen not in probabilities:
        raise InputError(f"{path}: line {number}: expected one of {', '.join(probabilities)}, got {chosen}")
    stated = known.get("confidence")
    confidence = probabilities.get(chosen, 0.0) if stated is None else _probability(path, number, stated)
    return Prediction(case, path, probabilities, chosen, confidence, facts.get("abstained", "").lower() not in _NOT)


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


def column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is a column, in any case of letters."""
    lower = {name.lower(): name for name in columns}
    return next((lower[name] for name in names if name in lower), None)


def _probability(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{path}: line {line}: expected a probability (0 to 1), got {text!r}")
    return value
