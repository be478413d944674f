"""Tables that people and programs hand to medkit: a header and rows, and which column is which."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from medkit.errors import InputError
from medkit.pipe.cells import text_of

CASE = ("path", "case", "image", "file", "filename", "name", "id", "participant_id", "subject")
"""Names of the column that names cases; the first that exists is used."""
CLASS = ("reference", "truth", "target", "class", "label", "diagnosis")
"""Names of the column that holds true classes; the first that exists is used."""
SUBJECT = ("subject", "subject_id", "participant_id", "patient", "patient_id", "patientid", "person")
"""Names of the column that says which images are of one person; the first that exists is used."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table with a header, `.tsv` or `.csv`. Raises InputError if there are none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = next((mark for mark in "\t;," if mark in first), "\t")
            reader = csv.DictReader(file, delimiter=separator, restval="", restkey="")
            if separator == "\t":  # as medkit writes them
                reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="", restkey="")
            rows = [{str(name).strip(): str(value).strip() for name, value in row.items()} for row in reader]
            if separator == "\t" and rows and {"image", "sha256"} <= set(rows[0]):  # the rows of `--table`
                rows = [{name: text_of(value) for name, value in row.items()} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table, .tsv or .csv: {getattr(error, 'strerror', '') or error}") from None
    if not rows:
        raise InputError(
            f"{path}: expected a table with a header and rows, got {'only a header' if first else 'an empty file'}"
        )
    return rows


def column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the first of `names` that is a column, ignoring upper and lower case; None if there is none."""
    lower = {name.lower(): name for name in columns}
    return next((lower[name] for name in names if name in lower), None)
