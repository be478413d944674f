"""Tables with a row for each case, and texts of cases: `--features` and `--text`."""

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
"""Columns that say which case a row is of; without one of them the first column does."""
SESSION = "session_id"
TEXTS = ("text", "report")
"""Columns that a table given as `--text` has the texts in."""
MISSING = {"", "n/a", "na", "nan", "none", "null"}


@dataclass(frozen=True)
class FactTable:
    """A table of cases."""

    path: Path
    rows: Mapping[str, Mapping[str, str]]
    """Case -> column -> text; cases are absolute paths, names of files or BIDS ids."""
    columns: tuple[str, ...]
    """Those that do not say which case a row is of."""

    def row(self, image: Path) -> Mapping[str, str]:
        """Of an image. Raises InputError where there is none."""
        for name in _names(image):
            if name in self.rows:
                return self.rows[name]
        raise InputError(
            f"{self.path}: no row for {image.name}; a row is found by the image's path, its file name or its BIDS id"
        )

    @functools.cached_property
    def numeric(self) -> tuple[str, ...]:
        """Columns that hold numbers, and gaps, alone."""
        return tuple(c for c in self.columns if all(_is_number(row[c]) for row in self.rows.values()))

    def features(self, image: Path) -> dict[str, float | None]:
        """The numbers in the row of an image. Raises InputError."""
        row = self.row(image)
        return {name: number(row[name], f"{self.path}: {image.name}: {name}") for name in self.numeric}


def read_table(path: Path) -> FactTable:
    """Reads a `.csv` or `.tsv`; kept while the file stays as it is. Raises InputError."""
    try:
        return _read_table(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a table: {error.strerror}") from None


@functools.lru_cache(maxsize=8)
def _read_table(path: Path, changed: int) -> FactTable:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", restval="")
            lines, header = list(reader), [str(name) for name in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from None
    if len(header) < 2 or not lines:
        raise InputError(f"{path}: expected a column that names cases and others, and rows, got {len(lines)} rows of "
                         f"{listed(header or ['none'])}")  # fmt: skip
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
    """By what a row may name an image, the most exact first."""
    yield from (str(image), image.name, stem(image), image.stem)
    if is_bids(image):
        entities = split_bids(image)[0]
        subject = f"sub-{entities['sub']}"
        if "ses" in entities:
            yield f"{subject}_ses-{entities['ses']}"
        yield subject


def number(value: Any, where: str) -> float | None:
    """A value as a number; None for what is missing. Raises InputError."""
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
    """Where the facts of cases are looked up."""

    table: Path | None = None
    texts: Path | None = None
    """A text of all cases, a folder with `<stem>.txt` for each, or a table with a column of texts."""
    column: str | None = None
    """The column of `table` that holds the texts."""

    @classmethod
    def of(cls, features: Path | None, text: str | Path | None) -> Sources:
        """From what was asked for; `text` is a file or folder, else a column. Raises UsageError."""
        if text is None:
            return cls(features)
        if (path := absolute(str(text))).exists():
            return cls(features, path)
        if features is None:
            raise UsageError(f"--text {text}: no such file or folder; a column needs a --features table to be in")
        return cls(features, None, str(text))

    def features(self, image: Path) -> dict[str, float | None]:
        """What the table says of an image. Raises InputError."""
        return read_table(self.table).features(image) if self.table else {}

    def text(self, image: Path) -> str | None:
        """The text of an image; None where no texts were given. Raises InputError where its own is missing."""
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
    if column not in table.columns:
        raise InputError(f"{table.path}: no column {column} with texts; there is {listed(list(table.columns))}")
    return table.row(image)[column]
