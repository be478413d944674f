"""What was changed in files, in words that name nobody: counts of kinds of change and names of fields."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_NAME_OF_A_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_ ()<>/.,-]{0,63}")


@dataclass
class Changes:
    """The changes of one file, or of many."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(What was done, name of the field) -> how often."""
    identifying: Counter[str] = field(default_factory=Counter)
    """Name of the field -> how often; only what might identify somebody."""

    def add(self, what: str, name: str, *, identifies: bool = True) -> None:
        """Count a change; `name` comes from a standard or from this program, never from a file."""
        assert _NAME_OF_A_FIELD.fullmatch(name), name
        self.counts[what, name] += 1
        if identifies:
            self.identifying[name] += 1

    def update(self, other: Changes) -> None:
        """Count the changes of another file as well."""
        self.counts.update(other.counts)
        self.identifying.update(other.identifying)

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return what was done -> field -> how often, in alphabetical order."""
        out: dict[str, dict[str, int]] = {}
        for (what, name), count in sorted(self.counts.items()):
            out.setdefault(what, {})[name] = count
        return out

    def summary(self) -> str:
        """Return how many values were removed, replaced and so on, in words."""
        totals: Counter[str] = Counter()
        for (what, _), count in self.counts.items():
            totals[what] += count
        return ", ".join(f"{count} {what}" for what, count in sorted(totals.items())) or "nothing to change"


def report_of(changes: Changes, **facts: Any) -> dict[str, Any]:
    """Return the report as JSON: facts about the run, such as how many files there were, and the changes."""
    return facts | {"changes": changes.to_json()}
