"""Results that a person should look at: why, and which cases of a run they are.

This is the one place that decides it. A task states what is doubtful about a result in `Result.warnings`; the worker
sets `look` in the record, and the progress line, the picture, the last line on stderr and `--strict` follow from that.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkit.pipe.names import stem
from medkit.pipe.records import Record
from medkit.run.failures import printable

NAMED = 10
"""Cases that the last line names; the others are counted."""
LOOK_AT_THIS = "look at this one: "
"""What a reason to look begins with in a sidecar and in a picture, where other warnings may stand next to it."""
SHORT = 100
"""Characters of a reason on a progress line."""


def reason_to_look(record: Record) -> str | None:
    """Return the first warning about a result, short, and how many others there are; None if there is none."""
    if not record.medkit.get("look"):
        return None
    first = str(next(iter(record.medkit.get("warnings") or ()), "no reason is stated"))
    others = int(record.medkit.get("reasons", 1)) - 1
    more = f" (and {others} more)" if others > 0 else ""
    return textwrap.shorten(printable(plain(first)), SHORT, placeholder=" ...") + more


def plain(warning: str) -> str:
    """Return a warning without the words that say no more than that it is one."""
    return warning.removeprefix(LOOK_AT_THIS)


def need_a_look(names: Sequence[str], total: int) -> str:
    """Return how many of `total` cases need a look, and which.

    >>> need_a_look(["a", "b"], 10)
    '2 of 10 need a look: a, b'
    """
    shown = ", ".join(names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} of {total} need a look: {shown}{more}"


@dataclass
class CasesToLookAt:
    """The cases of a run that need a look; cases of equal names are told apart by their paths."""

    sources: list[Path] = field(default_factory=list)
    """Their own inputs."""
    _stems: Counter[str] = field(default_factory=Counter)
    """Of all cases."""

    def add(self, record: Record) -> None:
        """Note a finished case."""
        source = record.sources[0] if record.sources else record.path
        self._stems[stem(source)] += 1
        if record.medkit.get("look"):
            self.sources.append(source)

    @property
    def names(self) -> list[str]:
        """The stems of their inputs; whole paths where several cases of the run have the same stem."""
        return [printable(stem(path) if self._stems[stem(path)] == 1 else str(path)) for path in self.sources]
