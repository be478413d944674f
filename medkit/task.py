"""`run_task`: everything between a plugin's one function and the shell.

Records in -> cases -> work -> files -> records out. A plugin declares what is made for a case (`Task`); names, claims,
resuming, provenance, isolation of failures, shards, signals and exit codes are the same for all tasks.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from medkit.errors import UsageError, listed
from medkit.machine.threads import granted_threads
from medkit.options import RunOptions
from medkit.pipe.atomic import whole, write_atomically
from medkit.pipe.lines import Emitter, guarded_stdout
from medkit.pipe.names import TABLE_SUFFIXES, is_bids, shard_file, split_bids, stem
from medkit.pipe.records import Record, absolute, lineage, record_of, sha256_of
from medkit.pipe.signals import StopRequest
from medkit.run.looks import LOOK_AT_THIS
from medkit.run.loop import TaskRun
from medkit.run.outputs import Output, Targets
from medkit.run.task import Case, CasePlan, Result, Runtime, Stages, Table, Task, Text, Writable, numbered
from medkit.terminal.progress import counted, steps

__all__ = [
    "LOOK_AT_THIS",
    "TABLE_SUFFIXES",
    "Case",
    "CasePlan",
    "Output",
    "Record",
    "Result",
    "Runtime",
    "Stages",
    "Table",
    "Targets",
    "Task",
    "Text",
    "Writable",
    "absolute",
    "counted",
    "granted_threads",
    "is_bids",
    "lineage",
    "numbered",
    "record_of",
    "run_task",
    "sha256_of",
    "split_bids",
    "stem",
    "steps",
    "whole",
    "write_atomically",
]

log = logging.getLogger("medkit")


def run_task(task: Task, options: RunOptions) -> None:
    """Run a task over its inputs and print a line per finished case.

    Raises SystemExit with the exit code that docs/options.md lists, unless all cases went well, and UsageError for
    options that the task cannot follow.
    """
    if options.device != "auto" and options.device.partition(":")[0] not in task.devices:
        raise UsageError(f"--device {options.device}: {task.name} computes on {listed(task.devices)} only")
    if task.table and options.part:  # all parts at once cannot write the same file
        task = replace(task, table=replace(task.table, path=shard_file(task.table.path, options.part)))
    log.setLevel({1: logging.DEBUG, -1: logging.ERROR}.get(options.verbosity, logging.WARNING))
    with guarded_stdout() as stdout, StopRequest() as stop:
        emitter = Emitter(stdout, json=options.json, null=options.null)
        code = TaskRun(task, options, emitter, stop).all()
    if code:
        raise SystemExit(code)
