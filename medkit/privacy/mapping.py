"""The user's own table of who is who; it is the only file that has both the old and the new names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from medkit.privacy.private_files import write_private
from medkit.privacy.run import Treated

_HEAD = ("kind", "original", "replacement", "days")


def write_mapping(path: Path, treated: Iterable[Treated], output: Path) -> None:
    """Add the people and files of a run to a table (TSV) with mode 600; rows that are there already stay once."""
    rows = dict.fromkeys(_rows_of(path))
    for one in treated:
        if one.person is not None:
            identity, pseudonym, days = one.person
            rows["person", identity, pseudonym, str(days)] = None
        rows["file", str(one.source.path), str(output / one.path), ""] = None
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([_HEAD, *rows])
    write_private(path, text.getvalue(), replace=True)


def _rows_of(path: Path) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [tuple(row) for row in csv.reader(file, delimiter="\t")][1:]
