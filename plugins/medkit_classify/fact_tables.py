"""Tables with a row for each case, and texts of cases: the options `--features` and `--text`."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.errors import InputError, UsageError, listed
from medkit.task import TABLE_SUFFIXES, absolute, is_bids, split_bids, stem

NAMED = ("image", "path", "file", "filename", "case", "participant_id", "subject", "id")
"""Names of columns that identify the case of a row; without one of them the first column does."""
SESSION = "session_id"
"""Column of the BIDS session, which identifies the case together with the participant."""
TEXTS = ("text", "report")
"""Names of the column with the texts, in a table given as `--text`."""
MISSING = {"", "n/a", "na", "nan", "none", "null"}
"""Cells without a value, in small letters."""


@dataclass(frozen=True)
class FactTable:
    """A table with a row for each case."""

    path: Path
    rows: Mapping[str, Mapping[str, str]]
    """Case -> column -> cell; a case is named by an absolute path, a file name or a BIDS id."""
    columns: tuple[str, ...]
    """Names of the columns that do not identify the case."""

    def row(self, image: Path) -> Mapping[str, str]:
        """Return the row of an image. Raises InputError if there is none."""
        for name in _names(image):
            if name in self.rows:
                return self.rows[name]
        raise InputError(
            f"{self.path}: no row for {image.name}; a row is found by the image's path, its file name or its BIDS id"
        )

    @functools.cached_property
    def numeric(self) -> tuple[str, ...]:
        """Names of the columns that hold only numbers and empty cells."""
        return tuple(c for c in self.columns if all(_is_number(row[c]) for row in self.rows.values()))

    def features(self, image: Path) -> dict[str, float | None]:
        """Return the numbers in the row of an image; None for an empty cell. Raises InputError if there is no row."""
        row = self.row(image)
        return {name: number(row[name], f"{self.path}: {image.name}: {name}") for name in self.numeric}


def read_table(path: Path) -> FactTable:
    """Read a `.csv` or `.tsv`; it is kept in memory until the file changes. Raises InputError."""
    try:
        return _read_table(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a table: {error.strerror}") from None


@functools.lru_cache(maxsize=8)
def _read_table(path: Path, changed: int) -> FactTable:
    """Read a table; `changed`, the time of its last change, is for the cache only."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", restval="")
            lines, header = list(reader), [str(name) for name in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from None
    if len(header) < 2 or not lines:
        raise InputError(f"{path}: expected a column that names cases, other columns, and rows; got {len(lines)} rows "
                         f"with the columns {listed(header or ['none'])}")  # fmt: skip
    key = next((name for name in header if name.lower() in NAMED), header[0])
    rows: dict[str, Mapping[str, str]] = {}
    for line in lines:
        name = line[key].strip()
        if line.get(SESSION):
            name = f"{name}_{line[SESSION].strip()}"
        name = str(absolute(path.parent / name)) if "/" in name else name
        if name in rows:
            raise InputError(f"{path}: two rows for {name}")
        rows[name] = line
    return FactTable(path, rows, tuple(name for name in header if name not in (key, SESSION)))


def _names(image: Path) -> Iterator[str]:
    """Yield the names by which a row may identify an image, the most exact one first."""
    yield from (str(image), image.name, stem(image), image.stem)
    if is_bids(image):
        entities = split_bids(image)[0]
        subject = f"sub-{entities['sub']}"
        if "ses" in entities:
            yield f"{subject}_ses-{entities['ses']}"
        yield subject


def number(value: Any, where: str) -> float | None:
    """Return a value as a number; None if it is missing. Raises InputError, which starts with `where`."""
    if value is None or str(value).strip().lower() in MISSING:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected a number or nothing, got {str(value)[:40]!r}") from None
    if not math.isfinite(found):
        raise InputError(f"{where}: expected a finite number or nothing, got {value!r}")
    return found


def _is_number(text: str) -> bool:
    try:
        number(text, "")
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class Sources:
    """The files that hold the facts of cases."""

    table: Path | None = None
    """A table of features."""
    texts: Path | None = None
    """A text for all cases, a folder with `<stem>.txt` for each, or a table with a column of texts."""
    column: str | None = None
    """The column of `table` that holds the texts."""

    @classmethod
    def of(cls, features: Path | None, text: str | Path | None) -> Sources:
        """Make it from the options; `text` is a file, a folder, or else a column. Raises UsageError."""
        if text is None:
            return cls(features)
        if (path := absolute(str(text))).exists():
            return cls(features, path)
        if features is None:
            raise UsageError(f"--text {text}: no such file or folder; a column needs a table, --features")
        return cls(features, None, str(text))

    def features(self, image: Path) -> dict[str, float | None]:
        """Return the features of an image from the table; empty without a table. Raises InputError."""
        return read_table(self.table).features(image) if self.table else {}

    def text(self, image: Path) -> str | None:
        """Return the text of an image; None without texts. Raises InputError if the text of this image is missing."""
        if self.column is not None and self.table is not None:
            return _cell(read_table(self.table), image, self.column)
        if self.texts is None:
            return None
        if self.texts.name.lower().endswith(TABLE_SUFFIXES):
            table = read_table(self.texts)
            return _cell(table, image, next((c for c in table.columns if c.lower() in TEXTS), TEXTS[0]))
        path = self.texts
        if path.is_dir():
            path = next((p for name in _names(image) if (p := self.texts / f"{Path(name).name}.txt").is_file()),
                        self.texts / f"{stem(image)}.txt")  # fmt: skip
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"{path}: the text of {image.name} cannot be read: {error.strerror}") from None


def _cell(table: FactTable, image: Path, column: str) -> str:
    """Return a cell in the row of an image. Raises InputError if there is no such column or row."""
    if column not in table.columns:
        raise InputError(f"{table.path}: no column {column} with texts; there is {listed(table.columns)}")
    return table.row(image)[column]
