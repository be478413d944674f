"""The command that makes a result again, for the record of the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medkit.pipe.records import Record
from medkit.run.task import CasePlan, Task


def command_of(plan: CasePlan, task: Task, given: Sequence[str | Path]) -> list[Any]:
    """Return the words after `medkit` that make a case's result again; empty if no command was given.

    A word is a text, or an object with the `path` of a file, which a sidecar states relative to its own folder. The
    object of an input also has the `inputs` that its record brought, and the values that the task read of it.
    """
    if not given:
        return []
    first, last = _with_places_last(given)
    inputs = [_input(record, task) for record in plan.members or (plan.record,)]
    return [*map(_word, first), *inputs, *map(_word, last)]


def _with_places_last(given: Sequence[str | Path]) -> tuple[list[str | Path], list[str | Path]]:
    """Return the command, and the options that say where results go, which are written after the inputs."""
    first, last = list(given), list[str | Path]()
    for name in ("--output", "--keep-tree"):
        for at in range(len(first) - 1):
            if first[at] == name and isinstance(first[at + 1], Path):
                last += first[at : at + 2]
                del first[at : at + 2]
                break
    return first, last


def _word(word: str | Path) -> Any:
    return {"path": str(word)} if isinstance(word, Path) else word


def _input(record: Record, task: Task) -> dict[str, Any]:
    brought = {"inputs": {role: str(path) for role, path in record.inputs.items()}} if record.inputs else {}
    return {"path": str(record.path), **brought, **(task.reads(record) if task.reads is not None else {})}
