"""Reading predicted classes: `_class.tsv` files of one case, and tables of many cases.

A table has a row for each case, or for each candidate in it. It has a column `probability_<class>` for each class, and
optionally `class` (the decision), `confidence` (calibrated) and `abstained`. In a table of many cases another column
names them (`path`, `image`, ...). The file of one case may instead have a row for each class, with the columns `class`
and `probability`, as `medkit run bundle` writes it. `n/a` stands for an unknown value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import InputError
from medkit.evaluation.matching import files_of, is_class_file
from medkit.pipe.names import stem
from medkit.pipe.records import absolute, record_of
from medkit.pipe.tables import CASE, column, read_table

CANDIDATE = "candidate"
"""Name of the column for one of several objects in an image, or aspects of it, that were classified."""
PROBABILITY = "probability_"
"""Start of the name of a class's column."""
_UNKNOWN = ("", "n/a")
"""Texts for an unknown value."""
_NOT = {*_UNKNOWN, "0", "no", "false", "none", "-"}
"""Texts that mean no, for example in `abstained`."""


@dataclass(frozen=True)
class Prediction:
    """The predicted class of one case."""

    case: Path
    """Identifies the case: the image it was made from if that is known, else the file or the row's name."""
    file: Path
    """The file that holds the prediction."""
    probabilities: Mapping[str, float]
    """Class -> probability, in the bundle's order; empty if there was no prediction."""
    chosen: str
    """The predicted class, also if the bundle abstained."""
    confidence: float
    """Confidence in `chosen`: calibrated if the file has one, else its probability."""
    abstained: bool = False
    """Whether the bundle abstained from a decision."""


def case_of(image: Path, candidate: str = "") -> Path:
    """Return the path that identifies a candidate in an image (`a/ct.nii.gz`, `3` -> `a/ct/3`), or the image's path."""
    return image if candidate in _UNKNOWN else image.parent / stem(image) / candidate


def hold_classes(results: Sequence[Path]) -> bool:
    """Return whether results, files or folders, are tables of classes, by their names or their first lines."""
    folders = [path for path in results if path.is_dir()]
    files = [file for path in results if path.exists() for file in files_of(path, "points")]
    return bool(files) and all(map(_holds_classes, files)) and not any(files_of(path, "images") for path in folders)


def _holds_classes(path: Path) -> bool:
    if is_class_file(path) or not path.name.lower().endswith((".tsv", ".csv")):
        return is_class_file(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return PROBABILITY in file.readline()
    except (OSError, UnicodeDecodeError):
        return False


def read_predictions(path: Path, aspect: str | None = None) -> list[Prediction]:
    """Return the predictions in a table of one case or of many. Raises InputError.

    If an image has several rows, one for each aspect, `aspect` is the value of `candidate` in the row that counts.
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
    if named is None and not is_class_file(path):
        raise InputError(f"{path}: no column that names the cases ({', '.join(CASE)}); there is {', '.join(columns)}")
    source = _source(path)
    if aspect is not None:
        known = dict.fromkeys(row.get(CANDIDATE, "") for row in rows)
        rows = [{**row, CANDIDATE: ""} for row in rows if row.get(CANDIDATE) == aspect]
        if not rows:
            raise InputError(f"{path}: has no row for {aspect}; expected one of {', '.join(known)}")
    return [
        _of_row(path, number, row, absolute(row[named], path.parent) if named else source, classes)
        for number, row in enumerate(rows, start=2)
    ]


def _source(path: Path) -> Path:
    """Return the image that a file of one case was made from, by its sidecar, or else the file itself."""
    sources = record_of(path).sources
    return sources[0] if sources else path


def _of_class_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Prediction:
    probabilities = {row["class"]: _probability(path, n, row["probability"]) for n, row in enumerate(rows, start=2)}
    if len(probabilities) < len(rows):
        raise InputError(f"{path}: expected every class once, got {', '.join(row['class'] for row in rows)}")
    return _prediction(path, 2, _source(path), probabilities, {})


def _of_row(path: Path, number: int, row: Mapping[str, str], image: Path, classes: Sequence[str]) -> Prediction:
    known = {name: row[PROBABILITY + name] for name in classes if row[PROBABILITY + name] not in _UNKNOWN}
    probabilities = {name: _probability(path, number, text) for name, text in known.items()}
    return _prediction(path, number, case_of(image, row.get(CANDIDATE, "")), probabilities, row)


def _prediction(
    path: Path, number: int, case: Path, probabilities: Mapping[str, float], facts: Mapping[str, str]
) -> Prediction:
    """Make a prediction; `facts`: `class`, `confidence` and `abstained`, if they are known."""
    if not probabilities:
        return Prediction(case, path, {}, "", 0.0, abstained=True)
    known = {key: facts[key] for key in ("class", "confidence") if facts.get(key, "") not in _UNKNOWN}
    chosen = known.get("class", max(probabilities, key=lambda name: probabilities[name]))
    if len(probabilities) > 1 and chosen not in probabilities:
        raise InputError(f"{path}: line {number}: expected one of {', '.join(probabilities)}, got {chosen}")
    stated = known.get("confidence")
    confidence = probabilities.get(chosen, 0.0) if stated is None else _probability(path, number, stated)
    return Prediction(case, path, probabilities, chosen, confidence, facts.get("abstained", "").lower() not in _NOT)


def _probability(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{path}: line {line}: expected a probability (0 to 1), got {text!r}")
    return value
