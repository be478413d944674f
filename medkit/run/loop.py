"""One run over all cases: from lines of input to lines of output and an exit code."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from medkit.errors import INTERRUPTED, MedkitError, Stopped
from medkit.options import RunOptions
from medkit.pipe.lines import Emitter, ReaderGoneError
from medkit.pipe.records import Record, record_of
from medkit.pipe.signals import StopRequest
from medkit.run.arrivals import is_streaming
from medkit.run.dask_run import on_dask
from medkit.run.dry_run import dry_run
from medkit.run.existing import settings_of_run
from medkit.run.failures import explain, failed_record
from medkit.run.planning import Planner
from medkit.run.processes import in_children, in_this_process
from medkit.run.record_file import RecordFile
from medkit.run.report import RunReport
from medkit.run.stages import run_staged, runs_staged
from medkit.run.table import ResultTable, open_table
from medkit.run.task import CasePlan, Item, Task
from medkit.terminal.progress import Bar, progress_bar

log = logging.getLogger("medkit")


@dataclass
class TaskRun:
    """One call of `run_task`: plans the cases, has them worked on, and passes their records to report and output."""

    task: Task
    options: RunOptions
    emitter: Emitter
    stop: StopRequest
    table: ResultTable | None = None
    """The table that takes all results, if the task has one; open during `all`."""
    bar: Bar = field(init=False)
    """The bar on a terminal; there during `all`."""
    record_file: RecordFile = field(init=False)
    """Where the records go besides, with `--records`."""

    def __post_init__(self) -> None:
        self.record_file = RecordFile(self.task.name, self.options)

    @functools.cached_property
    def planner(self) -> Planner:
        """What turns lines of input into cases."""
        return Planner(self.task, self.options, self.emitter.check_name, self._known)

    @functools.cached_property
    def report(self) -> RunReport:
        """What people read on stderr, and the exit code."""
        return RunReport(self.task, self.options, lambda: self.planner.total)

    def _known(self, plan: CasePlan) -> Record | None:
        """Return the record of a case whose rows are in the table already."""
        return self.table.known(plan) if self.table else None

    def all(self) -> int:
        """Work on all cases and return the exit code."""
        try:
            with self._progress() as self.bar, self._open_table() as self.table:
                code = self._loop()
            if self.task.table and not (self.options.json or self.options.dry_run):
                self.emitter.emit(Record(self.task.table.path, "table"))
            return code
        except ReaderGoneError:
            return self.report.exit_code()
        except Stopped as stopped:
            return self.report.stopped(str(stopped))
        except KeyboardInterrupt:
            return self.report.stopped("Ctrl-C", INTERRUPTED)
        finally:
            self.report.close()

    def _open_table(self) -> AbstractContextManager[ResultTable | None]:
        return open_table(self.task, settings_of_run(self.task, self.options), self.options)

    def _progress(self) -> AbstractContextManager[Bar]:
        options = self.options
        return progress_bar(
            self.task.name,
            lambda: self.planner.total,
            wanted=options.progress and options.verbosity >= 0 and not options.dry_run,
            lines="all" if options.json else 1 if self.task.table else "done",
            follows=self.task.arity == "each" and is_streaming(options),
        )

    def _loop(self) -> int:
        items = self.planner.items()
        if self.options.dry_run:
            dry_run(items, self.task, self.options, self.report, self._foreseen)
        elif self._stopped_early(items):
            return self.report.stopped("a signal")
        if not self.planner.arrivals.arrived:
            log.error("%s: no input arrived", self.task.name)
            return 1
        return self.report.exit_code()

    def _stopped_early(self, items: Iterator[Item]) -> bool:
        """Work until no case is left or nobody wants more; return whether a signal ended it before that."""
        if runs_staged(self.task, self.options):
            with self.stop.working():
                return run_staged(items, self.task, self.options, self._finished, lambda: self.stop.received)
        for record in self._records(items):
            if not self._finished(record):
                return False
            if self.stop.received and not self.options.parallel and self._work_left(items):
                return True
        return self.stop.received and self.options.parallel  # the cases in work are finished, and no others begun

    def _records(self, items: Iterator[Item]) -> Iterator[Record]:
        """Yield the records of all cases as they are finished."""
        if self.options.parallel:
            work = on_dask if self.options.executor == "dask" else in_children
            with self.stop.working():
                yield from work(items, self.task, self.options, lambda: self.stop.received)
        else:
            items = self._while_working(items)
            yield from in_this_process(items, self.task, self.options, lambda: self.stop.received)

    def _while_working(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; `stop` counts the time on each as work, but not the time waiting for the next line."""
        for item in items:
            with self.stop.working():
                yield item

    def _work_left(self, items: Iterator[Item]) -> bool:
        """Return whether cases are left after a signal; a pipe that is still open may always send more."""
        if is_streaming(self.options):
            return True
        return next(items, None) is not None

    def _added(self, table: ResultTable, record: Record) -> Record:
        """Return the record of a case whose rows were added to the table, a failed one if they could not be."""
        try:
            table.add(record)
        except (MedkitError, OSError) as error:
            case = record_of(record.sources[0])
            return failed_record(case, self.task.name, explain(error, self.options), error)
        return record

    def _foreseen(self, record: Record) -> None:
        """Print the record of a case that was only planned; a path would be taken for that of a result."""
        if self.options.json:
            self.emitter.emit(record)

    def _finished(self, record: Record) -> bool:
        """Report a case and print its line; return whether anybody wants the next one."""
        if self.table and not (record.failed or record.medkit.get("skipped")):
            record = self._added(self.table, record)
        self.bar.count(failed=record.failed)
        earlier = id(record) in self.planner.arrivals.passed_on
        self.report.add(record, reported_before=earlier)
        if not earlier:  # an earlier stage of the pipe has kept the record of its failure
            self.record_file.add(record)
        if self.table is None or self.options.json:
            self.emitter.emit(record)
        if record.medkit.get("no_room") and not earlier:  # the others would be computed for nothing
            log.error("%s: nothing more can be written: the run ends", self.task.name)
            return False
        return not (self.options.fail_fast and record.failed) and not self.emitter.reader_gone()
