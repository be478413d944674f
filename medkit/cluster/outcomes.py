"""What records say: for every case and task, the latest outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("medkit")


@dataclass(frozen=True)
class CaseOutcome:
    """A case that one task has finished, well or not."""

    task: str
    """The name of the task."""
    sources: tuple[str, ...]
    """The files that the task was given as lines, absolute: one, or all of a group."""
    path: str
    """The main result; of a failed case, its input."""
    error: str | None
    """Why the case failed; None if it went well."""
    skipped: bool
    """Whether the result was there already."""
    seconds: float
    """The time of the work."""
    peak_rss_mb: float
    """The largest memory of the process that did it, MiB; 0 if unknown."""
    finished: datetime
    """When the record was written."""


def read_outcomes(folder: Path) -> list[CaseOutcome]:
    """Return all outcomes in a folder of records, the earliest first; a line that was cut off is left out."""
    found = [outcome for path in sorted(folder.glob("*.jsonl")) for outcome in _of_file(path)]
    return sorted(found, key=lambda outcome: outcome.finished)


def _of_file(path: Path) -> Iterator[CaseOutcome]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _outcome(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s: line %d is not a whole record, and left out", path, number)


def _outcome(record: Mapping[str, Any]) -> CaseOutcome:
    block = record["medkit"]
    failed = block["status"] == "failed"
    return CaseOutcome(
        task=str(block["task"]),
        sources=(record["path"],) if failed else _lines_of(record),
        path=str(record["path"]),
        error=str(block["error"]) if failed else None,
        skipped=bool(block.get("skipped")),
        seconds=float(block.get("seconds") or 0),
        peak_rss_mb=float(block.get("peak_rss_mb") or 0),
        finished=datetime.fromisoformat(block["finished"]),
    )


def _lines_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the lines that a result was made from: the first source, and the numbered inputs of a group."""
    inputs = record["medkit"].get("inputs", {})
    role = next(iter(inputs), "")
    group = [entry["path"] for name, entry in inputs.items() if name.removeprefix(f"{role}_").isdecimal()]
    return tuple(dict.fromkeys([*record.get("Sources", [])[:1], *group]))


def latest(outcomes: list[CaseOutcome]) -> dict[tuple[str, str], CaseOutcome]:
    """Return (task, input) -> its latest outcome."""
    return {(outcome.task, source): outcome for outcome in outcomes for source in outcome.sources}
