"""`run_task`: everything between a plugin's one function and the shell.

Records in -> cases -> executor -> files -> records out. A plugin says what a case gives (`Task`); naming, claiming,
resuming, provenance, isolation of failures, sharding, signals and exit codes are the same for all tasks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medkit import executor, overlap, pipe, rows
from medkit.case import (
    Case,
    CaseWorker,
    Plan,
    Result,
    Runtime,
    Stages,
    Table,
    Task,
    Text,
    explain,
    failed_record,
    numbered,
    settings_of_run,
)
from medkit.errors import InputError, MedkitError, OutputError, Stopped, UsageError, listed
from medkit.files import Output, Targets, is_file_name, refuse_inputs, targets_of, write_atomically
from medkit.names import is_bids, join_bids, split_bids, suffix_of
from medkit.options import RunOptions
from medkit.records import Record, absolute, find_kind, record_from_line, record_of
from medkit.signals import StopRequest

__all__ = ["Case", "Output", "Result", "Runtime", "Stages", "Table", "Task", "Text", "run_task"]

log = logging.getLogger("medkit")


def run_task(task: Task, options: RunOptions) -> None:
    """Runs a task over its inputs and prints a line per finished case.

    Ends the process with PROTOCOL's exit code (by SystemExit) unless all went well.
    """
    if options.device != "auto" and options.device.partition(":")[0] not in task.devices:
        raise UsageError(f"--device {options.device}: {task.name} computes on {listed(task.devices)} only")
    log.setLevel({1: logging.DEBUG, -1: logging.ERROR}.get(options.verbosity, logging.WARNING))
    with pipe.guarded_stdout() as stdout, StopRequest() as stop:
        emitter = pipe.Emitter(stdout, json=options.json, null=options.null)
        code = _Run(task, options, emitter, stop).all()
    if code:
        raise SystemExit(code)


@dataclass
class _Run:
    """One call of `run_task`: what has been claimed, what has failed so far."""

    task: Task
    options: RunOptions
    emitter: pipe.Emitter
    stop: StopRequest
    given: set[str] = field(default_factory=set)
    """The inputs known so far: all where they are arguments, those that have arrived where they are piped in."""
    claimed: dict[str, str] = field(default_factory=dict)
    """Final name -> the input it was claimed for; strings, which are small: a run may have very many cases."""
    failures: list[Record] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    arrived: bool = False
    """Whether there was any line of input."""
    passed_on: set[int] = field(default_factory=set)
    """`id` of the records that an earlier stage failed on; an executor hands them back as they are."""
    slices: Counter[Path] = field(default_factory=Counter)
    """Folder -> single DICOM files that came from it."""
    rows: rows.RowFile | None = None
    """The table that takes all results, where the task has one."""

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
        items = self._items()
        if self.options.dry_run:
            self._dry_run(items)
        elif self._stopped_early(items):
            return self._stopped("a signal")
        if not self.arrived:
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

    # ---- cases in

    def _items(self) -> Iterator[executor.Item]:
        lines = self._arriving(pipe.input_lines(self.options.inputs, self.options.list, self.options.null))
        if self.options.shard:
            lines = iter(pipe.take_shard(lines, self.options.shard))
        if self.task.arity == "all":
            yield from self._groups([self._parsed(line) for line in lines])
            return
        for record in map(self._parsed, lines):
            yield record if record.failed else self._planned(record)

    def _arriving(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.arrived = True
            yield line

    def _parsed(self, line: str) -> Record:
        try:
            record = record_from_line(line)
        except MedkitError as error:
            shown = line if len(line) < 200 else line[:200] + "..."
            return self._refused(Record(Path(shown)), error)
        if record.failed:
            self.passed_on.add(id(record))
        return record

    def _groups(self, records: list[Record]) -> Iterator[executor.Item]:
        """All records as one case, or one case per `--group-by` group of BIDS names; failed ones are passed on."""
        groups: dict[tuple[str, ...], list[Record]] = {}
        for record in records:
            if record.failed:
                yield record
            else:
                groups.setdefault(self._group_of(record), []).append(record)
        failed = sum(record.failed for record in records)
        for values, members in sorted(groups.items()):
            if self.task.whole and failed:
                yield self._refused(members[0], MedkitError(f"not made: {failed} of its {len(records)} inputs failed"))
                continue
            yield self._planned(members[0], tuple(members), values)

    def _group_of(self, record: Record) -> tuple[str, ...]:
        entities = split_bids(record.path)[0] if is_bids(record.path) else {}
        return tuple(entities.get(e, "") for e in self.options.group_by)

    def _planned(self, record: Record, members: tuple[Record, ...] = (), group: tuple[str, ...] = ()) -> executor.Item:
        """A case ready to be worked on, or the failed record of one that cannot be."""
        try:
            return self._plan(record, members, group)
        except UsageError:  # true of every case
            raise
        except (MedkitError, OSError) as error:
            return self._refused(record, error)

    def _refused(self, record: Record, error: Exception) -> Record:
        return failed_record(record, self.task.name, explain(error, self.options), error)

    def _plan(self, record: Record, members: tuple[Record, ...], group: tuple[str, ...]) -> executor.Item:
        own = record.inputs.get(self.task.role, record.path)
        if own != record.path:
            record = replace(record_of(own), inputs=record.inputs, extra=record.extra)
        if not own.exists():
            raise InputError(f"{own}: no such file")
        inputs = self._inputs(record, members)
        targets = self._targets(own if not members else self._group_name(own, group))
        if members and self.task.members:
            targets = Targets({**targets.outputs, **self._member_targets(inputs, members, targets.main.parent)})
        refuse_inputs(targets, list(inputs.values()))
        for path in targets.names:
            self.emitter.check_name(path)
        self._spare_inputs(targets.names, own)
        self._claim(targets.names, own)
        self._count_slices(own)
        plan = Plan(record, inputs, targets, members)
        return (self.rows.known(plan) if self.rows else None) or plan

    def _targets(self, source: Path) -> Targets:
        """Where the files of a case go. Raises OutputError for a case whose rows are in the table, or will be."""
        if self.task.table is None:
            return targets_of(source, self.task.outputs, self.options.output, self.options.keep_tree)
        if source == self.task.table.path:
            raise OutputError(f"{source}: is the table that the results go into")
        if str(source) in self.claimed:
            raise OutputError(f"{source}: comes a second time; its rows are in {self.task.table.path.name} once")
        self.claimed[str(source)] = str(source)
        return Targets({}, self.task.table.path)

    def _member_targets(self, inputs: Mapping[str, Path], members: tuple[Record, ...], folder: Path) -> dict[str, Path]:
        """Role -> final path of what is made for every line, beside the main output."""
        return {
            numbered(output.role, number): folder / output.name(inputs[numbered(self.task.role, number)])
            for number in range(1, len(members) + 1)
            for output in self.task.members
        }

    def _inputs(self, record: Record, members: tuple[Record, ...]) -> dict[str, Path]:
        unknown = set(record.inputs) - {self.task.role, *self.task.accepts}
        if unknown:
            known = ", ".join([self.task.role, *self.task.accepts])
            raise InputError(
                f"{record.path}: unknown input {', '.join(sorted(unknown))}; {self.task.name} knows {known}"
            )
        found = find_kind(record, self.task.takes)
        if not found.path.exists():
            raise InputError(f"{found.path}: no such file, though {record.path.name} names it as its source")
        inputs = {} if found.path == record.path else {record.kind: record.path}
        inputs[self.task.role] = found.path
        for number, member in enumerate(members[1:], start=2):
            inputs[numbered(self.task.role, number)] = find_kind(member, self.task.takes).path
        named = {role: path for role, path in record.inputs.items() if role != self.task.role}
        return inputs | named | {role: absolute(p) for role, p in self.task.shared.items()}

    def _group_name(self, first: Path, group: tuple[str, ...]) -> Path:
        """A name for a case of several files: the grouping entities of BIDS names, else the first file's."""
        if not any(group):
            return first
        entities = {k: v for k, v in zip(self.options.group_by, group, strict=True) if v}
        return first.with_name(join_bids(entities, split_bids(first)[1]) + suffix_of(first))

    def _spare_inputs(self, names: Iterable[Path], source: Path) -> None:
        """Raises OutputError where a result would replace another case's input."""
        if not self.given:
            self.given.update(str(absolute(line)) for line in self.options.inputs)
        self.given.add(str(source))
        for path in names:
            if str(path) in self.given:
                raise OutputError(
                    f"{source}: its result {path.name} would replace an input of this run; choose another -o"
                )

    def _claim(self, names: Iterable[Path], source: Path) -> None:
        """Raises OutputError for a name that another case of this run has, finished or not."""
        names = list(names)
        for number, path in enumerate(names):
            if path in names[:number]:
                raise OutputError(f"{source}: two of its results would be called {path.name}")
            if str(path) in self.claimed:
                several = is_file_name(self.options.output) if self.options.output else False
                advice = "name a folder as --output" if several else "--keep-tree ROOT mirrors the inputs' folders"
                raise OutputError(
                    f"{source}: its result {path.name} would replace that of {self.claimed[str(path)]}; {advice}"
                )
        self.claimed.update(dict.fromkeys(map(str, names), str(source)))

    def _count_slices(self, path: Path) -> None:
        if suffix_of(path).lower() not in (".dcm", ".ima") or path.is_dir():
            return
        self.slices[path.parent] += 1
        if self.slices[path.parent] == _MANY_SLICES:
            log.warning("many single DICOM slices from %s: give the folder to read them as one volume", path.parent)

    # ---- cases out

    def _finished(self, record: Record) -> bool:
        """Reports a case and prints its line; whether anybody wants the next one."""
        self._finish(record)
        return not (self.options.fail_fast and record.failed) and not self.emitter.reader_gone()

    def _finish(self, record: Record) -> None:
        status = "skipped" if record.medkit.get("skipped") else str(record.medkit.get("status"))
        if record.failed:
            self.failures.append(record)
            if id(record) not in self.passed_on:  # else an earlier stage has said so already
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
            elif isinstance(item, Plan):
                self.counts["ok"] += 1
                outputs = ", ".join(map(str, item.targets.outputs.values())) or f"a row of {item.targets.main}"
                if found is not None:
                    _say(f"would keep {outputs}")
                    continue
                _say(f"would run {self.task.name} on {item.inputs[self.task.role]} -> {outputs}{self._memory(item)}")

    def _memory(self, plan: Plan) -> str:
        if self.task.memory is None:
            return ""
        from medkit.images import read_grid

        try:
            grid = read_grid(plan.inputs[self.task.role], series=self.options.series)
        except InputError as error:
            return f"  ({error})"
        return f"  (about {self.task.memory(grid) / 2**20:.0f} MiB)"


_MANY_SLICES = 5


def _with_name(record: Record) -> str:
    """A failure's message, with the file's name in front unless the message has it."""
    message = str(record.medkit.get("error"))
    return message if record.path.name in message else f"{record.path}: {message}"


def _say(text: str) -> None:
    """A line for people; stderr may be closed, and that must not stop the work."""
    with contextlib.suppress(OSError, AttributeError):
        print(text, file=sys.stderr, flush=True)
