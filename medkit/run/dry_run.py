"""`--dry-run`: what would happen to each case, without any work on it."""

from __future__ import annotations

from collections.abc import Iterable

from medkit.errors import InputError
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.failures import with_name
from medkit.run.report import RunReport, say
from medkit.run.task import CasePlan, Item, Task
from medkit.run.worker import CaseWorker


def dry_run(items: Iterable[Item], task: Task, options: RunOptions, report: RunReport) -> None:
    """Print on stderr what would happen to each case; the voxels of the inputs are not checked.

    Failures that are certain already are counted in the report.
    """
    worker = CaseWorker(task, options)
    for item in items:
        found = item if isinstance(item, Record) else worker.foreseen(item)
        if found is not None and found.failed:
            report.failures.append(found)
            report.counts["refused" if found.medkit.get("refused") else "failed"] += 1
            say(f"would fail: {with_name(found)}")
        elif isinstance(item, CasePlan):
            report.counts["ok"] += 1
            outputs = ", ".join(map(str, item.targets.outputs.values())) or f"a row of {item.targets.main}"
            if found is not None:
                say(f"would keep {outputs}")
            else:
                say(f"would run {task.name} on {item.inputs[task.role]} -> {outputs}{_memory(item, task, options)}")


def _memory(plan: CasePlan, task: Task, options: RunOptions) -> str:
    """Return the memory that a case needs, in words; empty if the task does not know it."""
    if task.memory is None:
        return ""
    from medkit.images.image import read_grid

    try:
        grid = read_grid(plan.inputs[task.role], series=options.series)
    except InputError as error:
        return f"  ({error})"
    return f"  (about {task.memory(grid) / 2**20:.0f} MiB)"
