"""Marks that a reviewer gave to cases: the CSV that the page of `medkit report` exports.

Columns: `path` (the main result, or the input of a case that failed), `scan` (the first file it goes back to), `stem`
(of that file), `task`, `mark`, `comment`. A file that somebody wrote needs `mark` and one of `path` and `stem`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import UsageError
from medkit.pipe.names import stem
from medkit.pipe.records import absolute

MARKS = ("pass", "fail", "artefact")
"""What a reviewer may say of a case."""
COLUMNS = ("path", "scan", "stem", "task", "mark", "comment")
_SEPARATORS = ",;\t"
"""What spreadsheets write between cells."""


@dataclass(frozen=True)
class Mark:
    """What a reviewer said of one case."""

    path: Path | None
    """The main result, or the input of a case that failed, absolute; None: only the stem is known."""
    scan: Path | None
    """The first file that the result goes back to, absolute."""
    stem: str
    """The stem of that file, by which a case is known if its files are not where they were."""
    task: str
    mark: str
    """One of `MARKS`; empty if there is only a comment."""
    comment: str

    @property
    def name(self) -> str:
        """What messages call the case."""
        return str(self.path) if self.path else self.stem


def read_marks(file: Path) -> list[Mark]:
    """Return the marks in a table, separated by commas, semicolons or tabs; paths are relative to its folder.

    Raises UsageError if the file cannot be read, lacks a column, or holds a mark that is not one of `MARKS`.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: expected a table of marks (CSV in UTF-8): {error}") from None
    head = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval="")
    columns = [str(name).strip() for name in rows.fieldnames or ()]
    if "mark" not in columns or not {"path", "stem"} & set(columns):
        raise UsageError(
            f"{file}: expected the column mark, and path or stem, got {', '.join(columns) or 'no columns'}"
        )
    rows.fieldnames = columns
    return [_mark(row, file, number) for number, row in enumerate(rows, start=2) if any(row.values())]


def _mark(row: Mapping[str, str | Sequence[str]], file: Path, number: int) -> Mark:
    cells = {column: value for column in COLUMNS if isinstance(value := row.get(column, ""), str)}
    path, scan = (absolute(cells[c], file.parent) if cells.get(c) else None for c in ("path", "scan"))
    mark = cells.get("mark", "").strip().lower()
    if mark not in ("", *MARKS):
        raise UsageError(f"{file}: row {number}: expected a mark of {', '.join(MARKS)}, got {mark}")
    first = scan or path
    name = cells.get("stem") or (stem(first) if first else "")
    if not name:
        raise UsageError(f"{file}: row {number}: expected a path or a stem, got neither")
    return Mark(path, scan, name, cells.get("task", ""), mark, cells.get("comment", ""))
