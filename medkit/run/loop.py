"""One run over all cases: work, progress lines, the list of failures, the exit code."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from medkit.errors import InputError, Stopped
from medkit.options import RunOptions
from medkit.pipe import lines as pipe
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import Record
from medkit.pipe.signals import StopRequest
from medkit.run import processes as executor
from medkit.run import stages as overlap
from medkit.run import table as rows
from medkit.run.planning import Planner
from medkit.run.task import CasePlan, Task
from medkit.run.worker import CaseWorker, settings_of_run

log = logging.getLogger("medkit")


@dataclass
class TaskRun:
    """One call of `run_task`: what has been claimed, what has failed so far."""

    task: Task
    options: RunOptions
    emitter: pipe.Emitter
    stop: StopRequest
    failures: list[Record] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: rows.ResultTable | None = None
    """The table that takes all results, where the task has one."""

    @functools.cached_property
    def planner(self) -> Planner:
        """What turns lines of input into cases."""
        return Planner(self.task, self.options, self.emitter.check_name, self._known)

    def _known(self, plan: CasePlan) -> Record | None:
        """The record of a case whose rows are in the table already."""
        return self.rows.known(plan) if self.rows else None

    def all(self) -> int:
        """Works on all cases and gives the exit code."""
        try:
            with rows.opened(self.task, settings_of_run(self.task, self.options), self.options) as self.rows:
                code = self._loop()
            if self.task.table and not (self.options.json or self.options.dry_run):
                self.emitter.emit(Record(self.task.table.path, "table"))
            return code
        except pipe.ReaderGoneError:
            return self._exit_code()
        except Stopped as stopped:
            return self._stopped(str(stopped))
        finally:
            self._report()

    def _loop(self) -> int:
        items = self.planner.items()
        if self.options.dry_run:
            self._dry_run(items)
        elif self._stopped_early(items):
            return self._stopped("a signal")
        if not self.planner.arrived:
            log.error("%s: no input arrived", self.task.name)
            return 1
        return self._exit_code()

    def _stopped_early(self, items: Iterator[executor.Item]) -> bool:
        """Works until nothing is left or nobody wants more; whether a signal ended it before that."""
        if overlap.possible(self.task, self.options):
            with self.stop.working():
                return overlap.run(items, self.task, self.options, self._finished, lambda: self.stop.received)
        for record in self._executed(items):
            if not self._finished(record):
                return False
            if self.stop.received and not self.options.workers and self._work_left(items):
                return True
        return self.stop.received and self.options.workers > 0  # they finish the cases at hand and begin no other

    def _executed(self, items: Iterator[executor.Item]) -> Iterator[Record]:
        if self.options.workers:
            with self.stop.working():
                yield from executor.in_workers(items, self.task, self.options, lambda: self.stop.received)
        else:
            yield from executor.serial(self._waiting(items), self.task, self.options)

    def _waiting(self, items: Iterator[executor.Item]) -> Iterator[executor.Item]:
        """The items, each while `stop` knows that a case is worked on; waiting for the next one is no work."""
        for item in items:
            with self.stop.working():
                yield item

    def _work_left(self, items: Iterator[executor.Item]) -> bool:
        """Whether cases are left after a signal; of a pipe that may yet send some, yes."""
        streaming = not self.options.shard and (not self.options.inputs or "-" in self.options.inputs)
        if streaming and not self.options.list:
            return True
        return next(items, None) is not None

    def _finished(self, record: Record) -> bool:
        """Reports a case and prints its line; whether anybody wants the next one."""
        self._finish(record)
        return not (self.options.fail_fast and record.failed) and not self.emitter.reader_gone()

    def _finish(self, record: Record) -> None:
        status = "skipped" if record.medkit.get("skipped") else str(record.medkit.get("status"))
        if record.failed:
            self.failures.append(record)
            if id(record) not in self.planner.passed_on:  # else an earlier stage has said so already
                status = "refused" if record.medkit.get("refused") else status
                log.error("%s: %s", self.task.name, _with_name(record))
        elif self.rows and status != "skipped":
            self.rows.add(record)
        self.counts[status] += 1
        if self.options.progress and self.options.verbosity >= 0 and not record.failed:
            done = sum(self.counts.values())
            what = "kept" if status == "skipped" else f"{record.medkit.get('seconds', 0):.1f} s"
            more = self.task.summary(record) if self.task.summary else ""
            _say(f"{self.task.name} [{done}] {record.path.name}  {what}  {more}".rstrip())
        if self.rows is None or self.options.json:
            self.emitter.emit(record)

    def _exit_code(self) -> int:
        if not self.failures:
            return 0
        return InputError.exit_code if self.counts["refused"] == self.counts.total() else 1

    def _stopped(self, reason: str) -> int:
        done = self.counts.total()
        log.error("%s: stopped by %s after %d cases; run again with --skip-existing", self.task.name, reason, done)
        return Stopped.exit_code

    def _report(self) -> None:
        """The failures once more in one place, for people and for a rerun."""
        if self.failures and self.counts.total() > 1:
            _say(f"medkit: {self.task.name}: {len(self.failures)} of {self.counts.total()} failed:")
            for record in self.failures:
                _say(f"  {_with_name(record).splitlines()[0]}")
        if self.options.failed and not self.options.dry_run:
            end = b"\0" if self.options.null else b"\n"
            write_atomically(self.options.failed, b"".join(os.fsencode(r.path) + end for r in self.failures))

    def _dry_run(self, items: Iterable[executor.Item]) -> None:
        """Says what would happen to each case; the sanity check of its voxels is not part of it."""
        worker = CaseWorker(self.task, self.options)
        for item in items:
            found = item if isinstance(item, Record) else worker.foreseen(item)
            if found is not None and found.failed:
                self.failures.append(found)
                self.counts["refused" if found.medkit.get("refused") else "failed"] += 1
                _say(f"would fail: {_with_name(found)}")
            elif isinstance(item, CasePlan):
                self.counts["ok"] += 1
                outputs = ", ".join(map(str, item.targets.outputs.values())) or f"a row of {item.targets.main}"
                if found is not None:
                    _say(f"would keep {outputs}")
                    continue
                _say(f"would run {self.task.name} on {item.inputs[self.task.role]} -> {outputs}{self._memory(item)}")

    def _memory(self, plan: CasePlan) -> str:
        if self.task.memory is None:
            return ""
        from medkit.images.image import read_grid

        try:
            grid = read_grid(plan.inputs[self.task.role], series=self.options.series)
        except InputError as error:
            return f"  ({error})"
        return f"  (about {self.task.memory(grid) / 2**20:.0f} MiB)"


def _with_name(record: Record) -> str:
    """A failure's message, with the file's name in front unless the message has it."""
    message = str(record.medkit.get("error"))
    return message if record.path.name in message else f"{record.path}: {message}"


def _say(text: str) -> None:
    """A line for people; stderr may be closed, and that must not stop the work."""
    with contextlib.suppress(OSError, AttributeError):
        print(text, file=sys.stderr, flush=True)
