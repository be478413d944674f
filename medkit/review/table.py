"""All metrics of a group as one wide table: a row for each case, a column for each metric, such as a volume."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from medkit.errors import UsageError
from medkit.pipe.cells import cell_of
from medkit.review.cases import ReviewCase

FIRST = ("subject", "task", "state", "mark", "comment", "warnings", "path", "scan")
"""The columns before the metrics."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def separator_of(path: Path) -> str:
    """Return what separates the cells of a table with this name. Raises UsageError for another suffix."""
    if path.suffix.lower() not in _SEPARATORS:
        raise UsageError(f"{path}: expected a name that ends in .csv or .tsv")
    return _SEPARATORS[path.suffix.lower()]


def wide_table(cases: Sequence[ReviewCase], separator: str) -> bytes:
    """Return the table, in UTF-8; volumes are in mm3, what a case does not have is `n/a`."""
    metrics = list(dict.fromkeys(name for case in cases for name in case.values))
    rows = [[*FIRST, *metrics], *(_row(case, metrics) for case in cases)]
    if separator == "\t":
        text = "".join("\t".join(map(cell_of, row)) + "\n" for row in rows)
    else:
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerows(rows)
        text = out.getvalue()
    return text.encode(errors="surrogateescape")


def _row(case: ReviewCase, metrics: Sequence[str]) -> list[str]:
    warnings = "; ".join([case.error] if case.error else case.warnings)
    first = [case.subject, case.task, case.state, case.mark, case.comment, warnings, str(case.path), str(case.scan)]
    return [*first, *(f"{case.values[name]:.10g}" if name in case.values else "n/a" for name in metrics)]
