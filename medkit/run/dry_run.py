"""`--dry-run`: what would happen to each case, without any work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from medkit.errors import InputError
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.failures import with_name
from medkit.run.report import RunReport, say
from medkit.run.task import CasePlan, Item, Task
from medkit.run.worker import CaseWorker


def dry_run(
    items: Iterable[Item], task: Task, options: RunOptions, report: RunReport, emit: Callable[[Record], None]
) -> None:
    """Say on stderr what would happen to each case, and hand its record to `emit`; voxels are not checked.

    The status in the records is `planned`, `kept` or `failed`. Failures that are certain already are counted in the
    report.
    """
    worker = CaseWorker(task, options)
    for item in items:
        found = item if isinstance(item, Record) else worker.foreseen(item)
        if found is not None and found.failed:
            report.failures.append(found)
            report.counts["refused" if found.medkit.get("refused") else "failed"] += 1
            say(f"would fail: {with_name(found)}")
            emit(found)
        elif isinstance(item, CasePlan):
            report.counts["ok"] += 1
            outputs = ", ".join(map(str, item.targets.outputs.values())) or f"a row of {item.targets.main}"
            if found is not None:
                say(f"would keep {outputs}")
                emit(replace(found, medkit=dict(found.medkit) | {"status": "kept"}))
            else:
                memory, words = _memory(item, task, options)
                say(f"would run {task.name} on {item.inputs[task.role]} -> {outputs}{words}")
                emit(_planned(item, task, memory))


def _planned(plan: CasePlan, task: Task, memory: int | None) -> Record:
    """Return what the record of a case will state, as far as it is known before the work."""
    outputs = {role: {"path": str(path)} for role, path in plan.targets.outputs.items()}
    block = {"task": task.name, "status": "planned", "skipped": False, "error": None, "outputs": outputs}
    return Record(
        path=plan.targets.main,
        kind=task.outputs[0].kind if task.outputs else "table",
        sources=tuple(dict.fromkeys([plan.record.path, *plan.inputs.values()])),
        medkit=block if memory is None else block | {"memory_mb": memory},
        extra=plan.extra,
    )


def _memory(plan: CasePlan, task: Task, options: RunOptions) -> tuple[int | None, str]:
    """Return the MiB that a case needs, and that in words; None and no words if the task does not know it."""
    path = plan.inputs[task.role]
    if task.memory is None or (plan.record.planned and not path.exists()):
        return None, ""
    from medkit.images.image import read_grid

    try:
        grid = read_grid(path, series=options.series)
    except InputError as error:
        return None, f"  ({error})"
    mebibytes = round(task.memory(grid) / 2**20)
    return mebibytes, f"  (about {mebibytes} MiB)"
