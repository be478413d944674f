"""`--exclude`: the inputs that a reviewer failed are left out of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medkit.pipe.marks import Mark, read_marks
from medkit.pipe.names import stem
from medkit.pipe.records import Record, lineage, record_of
from medkit.run.existing import is_there
from medkit.run.failures import printable

log = logging.getLogger("medkit")
_SHOWN = 5
"""Names that a message lists."""


@dataclass(eq=False)
class Exclusion:
    """The cases that a reviewer failed, and which inputs of a run they are.

    An input is one if it is the failed result, was made from it, or is what the result was made from. Cases are known
    by path; if neither the result nor its scan is where the marks say, by their stems.
    """

    file: Path
    """The table of marks. Raises UsageError as `read_marks` does."""
    failed: list[Mark] = field(init=False)
    """The marks `fail`."""
    left_out: list[str] = field(default_factory=list)
    """The names of the inputs that were left out."""
    seen: int = 0
    """How many inputs were looked at."""
    found: set[int] = field(default_factory=set)
    """Which of `failed` fit an input."""

    def __post_init__(self) -> None:
        self.failed = [mark for mark in read_marks(self.file) if mark.mark == "fail"]
        self._results: dict[str, set[int]] = {}
        self._origins: dict[str, set[int]] = {}
        for number, mark in enumerate(self.failed):
            results, origins = _names(mark)
            for name in results:
                self._results.setdefault(name, set()).add(number)
            for name in origins:
                self._origins.setdefault(name, set()).add(number)

    def leaves_out(self, record: Record) -> bool:
        """Return whether a reviewer failed the case of an input, and count it."""
        self.seen += 1
        origins = set().union(*(self._origins.get(name, ()) for name in _names_of(record.path)))
        results = (self._results.get(name, ()) for made in lineage(record) for name in _names_of(made.path))
        numbers = origins.union(*results)
        self.found |= numbers
        if numbers:
            self.left_out.append(record.path.name)
        return bool(numbers)

    def say(self, task: str) -> None:
        """Say how many inputs were left out, and which failed marks fit none."""
        if self.left_out:
            count = len(self.left_out)
            what = f"all {count} inputs" if count == self.seen else f"{count} of {self.seen} inputs"
            log.warning("%s: %s left out, failed in %s: %s", task, what, self.file.name, _some(self.left_out))
        missed = [mark.name for number, mark in enumerate(self.failed) if number not in self.found]
        if missed:
            what = "1 failed mark fits no input" if len(missed) == 1 else f"{len(missed)} failed marks fit no input"
            log.warning("%s: %s: %s: %s", task, self.file.name, what, _some(missed))
        if not self.failed:
            log.warning("%s: %s: no case is marked as failed", task, self.file.name)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more


def _names(mark: Mark) -> tuple[set[str], set[str]]:
    """Return by which names results, and inputs that they were made from, are those of a mark: paths, else stems."""
    places = [path for path in (mark.path, mark.scan) if path]
    if any(map(is_there, places)):
        origins = set(map(str, places))
        if mark.path:
            origins |= {str(path) for path in _first_sources(record_of(mark.path))}
        return {str(mark.path or mark.scan)}, origins
    results = _stem_name(mark.path) if mark.path else f"stem {mark.stem}"
    return {results}, {results, f"stem {mark.stem}", *map(_stem_name, places)}


def _first_sources(record: Record) -> Iterator[Path]:
    """Yield what a result was made from, and that in turn: of several sources always the first, the case's own."""
    seen = {record.path}
    while record.sources and record.sources[0] not in seen:
        seen.add(record.sources[0])
        yield record.sources[0]
        record = record_of(record.sources[0])


def _names_of(path: Path) -> tuple[str, str]:
    return str(path), _stem_name(path)


def _stem_name(path: Path) -> str:
    """Return a stem as a name that no absolute path equals."""
    return f"stem {stem(path)}"
