"""What the page shows of each case, from its record; nothing else of a record reaches the page."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.pipe.cells import text_of
from medkit.pipe.marks import Mark
from medkit.pipe.names import is_bids, split_bids, stem
from medkit.pipe.records import Record, record_of
from medkit.review.metrics import numbers_in, outliers
from medkit.run.looks import plain
from medkit.run.table import FIRST_COLUMNS

_NONE = "n/a"


@dataclass
class ReviewCase:
    """A result of a task, or a case on which it failed."""

    record: Record
    path: Path
    """The main result; of a case that failed, its input; of a row of a table, the image."""
    scan: Path
    """The first file that it goes back to."""
    subject: str
    """What people call it: the BIDS subject and session, or the stem of the scan."""
    task: str
    error: str = ""
    """Why it failed, or empty."""
    look: bool = False
    """Whether a person should look at it."""
    warnings: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    """Name of a metric -> number."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Name of a metric -> text, such as the class that was found."""
    outliers: tuple[str, ...] = ()
    """The metrics in which it is far from the other cases of its group."""
    mark: str = ""
    """What a reviewer said of it before."""
    comment: str = ""

    @property
    def row_of(self) -> str:
        """The task whose table has it as a row; empty if it has files of its own."""
        return "" if self.path == self.record.path else self.task

    @property
    def state(self) -> str:
        """`failed`, `look` or `ok`."""
        return "failed" if self.error else "look" if self.look else "ok"

    @property
    def group(self) -> str:
        """What made it, by whose other results its metrics are judged: the task, and the bundle if there is one."""
        name = bundle_of(self.record).get("name")
        return f"{self.task}, {name}" if name else self.task

    @property
    def stem(self) -> str:
        """The stem of the scan, by which marks know the case if its files are elsewhere."""
        return stem(self.scan)

    @property
    def key(self) -> str:
        """A text by which the page knows it."""
        return f"{self.task}\n{self.path}"


def cases_of(records: Sequence[Record]) -> list[ReviewCase]:
    """Return the cases of records: those that failed first, then those to look at, then by subject."""
    cases = [case for record in records for case in _cases(record)]
    _find_outliers(cases)
    order = {"failed": 0, "look": 1, "ok": 2}
    return sorted(cases, key=lambda case: (order[case.state], natural(case.subject), case.task, str(case.path)))


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in texts by their size: `a2` comes before `a10`."""
    return [(int(word), "") if word.isdecimal() else (-1, word.lower()) for word in re.split(r"(\d+)", text)]


def take_over(cases: Sequence[ReviewCase], marks: Sequence[Mark]) -> list[str]:
    """Give cases the marks of an earlier review; return the names of marks that fit none.

    A mark fits by the path of the case, else by that of its scan, else by its stem; and by the task if it names one.
    """
    missed = []
    for mark in marks:
        same = [case for case in cases if mark.task in ("", case.task)]
        found = (
            [case for case in same if case.path == mark.path]
            or [case for case in same if mark.scan and case.scan == mark.scan]
            or [case for case in same if case.stem == mark.stem or stem(case.path) == mark.stem]
        )
        for case in found:
            case.mark, case.comment = mark.mark, mark.comment
        if not found:
            missed.append(mark.name)
    return missed


def digest_of(cases: Sequence[ReviewCase]) -> str:
    """Return a digest of what is shown: marks in the browser belong to exactly these results and earlier marks."""
    facts = [
        [case.key, case.error, case.mark, case.comment, case.record.medkit.get("outputs", {})]
        for case in sorted(cases, key=lambda case: case.key)
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _cases(record: Record) -> Iterator[ReviewCase]:
    block = record.medkit
    rows = list(_rows_by_image(record))
    task = str(block.get("task", ""))
    for image, of_image in rows:
        reason = of_image[0][FIRST_COLUMNS[2]]
        look = reason not in ("", _NONE)
        origin = first_source(record_of(image))
        yield ReviewCase(
            *(record, image, origin, _subject(origin), task),
            look=look,
            warnings=(reason,) if look else (),
            values=_values_in(of_image),
        )
    if rows:
        return
    origin = record.path if _is_group(record) else first_source(record)
    metrics = block.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    yield ReviewCase(
        *(record, record.path, origin, _subject(origin), task),
        error=str(block.get("error") or "no reason is stated") if record.failed else "",
        look=bool(block.get("look")),
        warnings=tuple(plain(str(text)) for text in block.get("warnings") or ()),
        values=numbers_in(metrics),
        answers={str(name): value for name, value in metrics.items() if isinstance(value, str)},
    )


def bundle_of(record: Record) -> Mapping[str, Any]:
    """Return what a record states of its bundle, of the one that `--bundle auto` chose; empty if there is none."""
    stated = [record.medkit.get(key) for key in ("choice", "bundle")]
    return next((block for block in stated if isinstance(block, Mapping) and isinstance(block.get("name"), str)), {})


def _is_group(record: Record) -> bool:
    """Return whether a result was made from several cases together: its inputs are numbered."""
    roles = record.medkit.get("inputs", {})
    return any(f"{role}_2" in roles for role in roles)


def first_source(record: Record) -> Path:
    """Return the first file that a result goes back to: of several sources always the first one, the case's own."""
    seen = {record.path}
    while record.sources and record.sources[0] not in seen:
        seen.add(record.sources[0])
        record = record_of(record.sources[0])
    return record.path


def _subject(path: Path) -> str:
    if not is_bids(path):
        return stem(path)
    entities, _ = split_bids(path)
    return " ".join(f"{name}-{entities[name]}" for name in ("sub", "ses") if name in entities)


def _find_outliers(cases: Sequence[ReviewCase]) -> None:
    groups: dict[tuple[str, str], list[ReviewCase]] = {}
    for case in cases:
        for name in case.values:
            groups.setdefault((case.group, name), []).append(case)
    for (_, name), members in groups.items():
        for position in outliers([case.values[name] for case in members]):
            members[position].outliers += (name,)


# ---- one table for all cases


def _rows_by_image(record: Record) -> Iterator[tuple[Path, list[Mapping[str, str]]]]:
    """Yield image -> rows of a table that a task made for all of its cases; nothing for another result."""
    if record.failed or list(record.medkit.get("outputs", {})) != ["table"] or record.kind != "table":
        return
    try:
        text = record.path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    cells = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    if tuple(cells.fieldnames or ())[: len(FIRST_COLUMNS)] != FIRST_COLUMNS:
        return
    found: dict[Path, list[Mapping[str, str]]] = {}
    for row in cells:
        texts = {column: text_of(cell) for column, cell in row.items() if column}
        found.setdefault(record.path.parent / texts["image"], []).append(texts)
    for image, rows in found.items():
        yield Path(str(image)).resolve() if ".." in image.parts else image, rows


def _values_in(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return the numbers in rows; if there are several, they are named by the rows' own names as well."""
    found: dict[str, Any] = {}
    for number, row in enumerate(rows, start=1):
        own = row.get("name") or row.get("candidate") or str(number)
        for column, cell in row.items():
            if column not in (*FIRST_COLUMNS, "index"):
                try:
                    value = float(cell)
                except ValueError:
                    continue
                found[column if len(rows) == 1 else f"{column}.{own}"] = value
    return numbers_in(found)
