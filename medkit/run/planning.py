"""From records to cases that are ready: their inputs, and names for their results that nobody else has."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medkit.errors import InputError, MedkitError, OutputError, UsageError
from medkit.options import RunOptions
from medkit.pipe.lines import in_shard
from medkit.pipe.names import is_bids, is_file_name, join_bids, split_bids, suffix_of
from medkit.pipe.records import Record, absolute, find_kind, record_of, refuse_stream
from medkit.run.arrivals import Arrivals
from medkit.run.claims import check_lengths
from medkit.run.existing import is_there
from medkit.run.failures import explain, failed_record
from medkit.run.outputs import Targets, bids_folder, refuse_inputs, targets_of
from medkit.run.task import CasePlan, Item, Task, numbered

MANY_SLICES = 5
"""Single DICOM files from one folder after which a warning suggests the folder."""
log = logging.getLogger("medkit")


@dataclass
class Planner:
    """Plans the cases of one run; remembers which result names are taken."""

    task: Task
    options: RunOptions
    check_name: Callable[[Path], None]
    """Raises MedkitError for a name that a line of output cannot hold."""
    known: Callable[[CasePlan], Record | None]
    """Returns the record of a case that is finished already, or None."""
    claimed: dict[str, str] = field(default_factory=dict)
    """Final name -> the input it was claimed for; strings, which are small: a run may have very many cases."""
    grouped: int | None = None
    """How many cases the lines make together, with `arity="all"`."""
    slices: Counter[Path] = field(default_factory=Counter)
    """Folder -> single DICOM files that came from it."""

    # ---- records to cases

    @functools.cached_property
    def arrivals(self) -> Arrivals:
        """The inputs of the run."""
        return Arrivals(self.task, self.options)

    @property
    def total(self) -> int | None:
        """How many cases there are, failed ones included; None while lines may still arrive."""
        return self.arrivals.total if self.grouped is None else self.grouped

    def items(self) -> Iterator[Item]:
        """Yield the cases in the order of their lines: ready to be worked on, or the record of one that failed."""
        records = self.arrivals.records()
        if self.task.arity == "all":
            yield from self._groups(list(records))
            return
        first = next(records, None)
        twins = self._twins()
        for path, error in twins.items():  # before any work: the run may take days
            yield self._refused(record_of(Path(path)), error)
        for record in () if first is None else itertools.chain([first], records):
            if str(record.path) not in twins:
                yield record if record.failed else self._planned(record)

    def _twins(self) -> dict[str, OutputError]:
        """Return input -> error, for inputs whose result would have the name of another's; all inputs are known."""
        if self.task.table is not None:
            return {}
        owners: dict[str, str] = {}
        found: dict[str, OutputError] = {}
        lines = (line for line in self.arrivals.known if not line.startswith("{") and "\0" not in line)
        for path in map(str, map(absolute, lines)):
            with contextlib.suppress(MedkitError):  # that case fails for itself
                main = self._targets(Path(path)).main
                if (owner := owners.setdefault(str(main), path)) != path:
                    found[path] = self._taken(main, path, owner)
        return found

    def _groups(self, records: list[Record]) -> Iterator[Item]:
        """Yield all records as one case, or one case per `--group-by` group of BIDS names; pass on failed ones."""
        groups: dict[tuple[str, ...], list[Record]] = {}
        failed = [record for record in records if record.failed]
        yield from (record for record in failed if self._in_shard(str(record.path)))
        for record in records:
            if not record.failed and self._in_shard("\0".join(self._group_of(record))):
                groups.setdefault(self._group_of(record), []).append(record)
        self.grouped = len(failed) + len(groups)
        for values, members in sorted(groups.items()):
            if self.task.whole and failed:
                yield self._refused(
                    members[0], MedkitError(f"not made: {len(failed)} of its {len(records)} inputs failed")
                )
                continue
            yield self._planned(members[0], tuple(members), values)

    def _in_shard(self, name: str) -> bool:
        """Return whether a group, or a failed line among groups, belongs to this shard: groups stay whole."""
        return self.options.shard is None or in_shard(name, self.options.shard)

    def _group_of(self, record: Record) -> tuple[str, ...]:
        entities = split_bids(record.path)[0] if is_bids(record.path) else {}
        return tuple(entities.get(e, "") for e in self.options.group_by)

    # ---- one case

    def _planned(self, record: Record, members: tuple[Record, ...] = (), group: tuple[str, ...] = ()) -> Item:
        """Return a case ready to be worked on, or the failed record of one that cannot be."""
        try:
            return self._plan(record, members, group)
        except UsageError:  # true of every case
            raise
        except (MedkitError, OSError) as error:
            return self._refused(record, error)

    def _refused(self, record: Record, error: Exception) -> Record:
        return failed_record(record, self.task.name, explain(error, self.options), error)

    def _plan(self, record: Record, members: tuple[Record, ...], group: tuple[str, ...]) -> Item:
        own = record.inputs.get(self.task.role, record.path)
        if own != record.path:
            record = replace(record_of(own), inputs=record.inputs, extra=record.extra)
        self._require(own, record, f"{own}: no such file{_hint(own)}")
        inputs = self._inputs(record, members)
        targets = self._targets(own if not members else self._group_name(own, group))
        if members and self.task.members:
            targets = Targets({**targets.outputs, **self._member_targets(inputs, members, targets.main.parent)})
        for path in inputs.values():
            refuse_stream(path)
        check_lengths(targets)
        refuse_inputs(targets, list(inputs.values()))
        for path in targets.names:
            self.check_name(path)
        self._spare_inputs(targets.names, own)
        self._claim(targets.names, own)
        self._count_slices(own)
        plan = CasePlan(record, inputs, targets, members)
        return self.known(plan) or plan

    def _inputs(self, record: Record, members: tuple[Record, ...]) -> dict[str, Path]:
        """Return role -> file of a case, its own input first.

        Raises InputError for an unknown role, and if no source of an input has a kind that the task takes.
        """
        unknown = set(record.inputs) - {self.task.role, *self.task.accepts}
        if unknown:
            known = ", ".join([self.task.role, *self.task.accepts])
            raise InputError(
                f"{record.path}: unknown input {', '.join(sorted(unknown))}; {self.task.name} knows {known}"
            )
        found = find_kind(record, self.task.takes)
        self._require(
            found.path, record, f"{found.path}: no such file, though {record.path.name} names it as its source"
        )
        inputs = {} if found.path == record.path else {record.kind: record.path}
        inputs[self.task.role] = found.path
        for number, member in enumerate(members[1:], start=2):
            inputs[numbered(self.task.role, number)] = find_kind(member, self.task.takes).path
        named = {role: path for role, path in record.inputs.items() if role != self.task.role}
        own = dict(self.task.own(record.path)) if self.task.own else {}
        return inputs | named | own | {role: absolute(p) for role, p in self.task.shared.items()}

    def _require(self, path: Path, record: Record, message: str) -> None:
        """Raise InputError if a file is missing; `--dry-run` takes files that an earlier stage would make."""
        if not (is_there(path) or (record.planned and self.options.dry_run)):
            raise InputError(f"{message}; --dry-run only foresaw it" if record.planned else message)

    def _count_slices(self, path: Path) -> None:
        """Warn once if many single DICOM files come from one folder."""
        if suffix_of(path).lower() not in (".dcm", ".ima") or path.is_dir():
            return
        self.slices[path.parent] += 1
        if self.slices[path.parent] == MANY_SLICES:
            log.warning("many single DICOM slices from %s: give the folder to read them as one volume", path.parent)

    # ---- names of results

    def _targets(self, source: Path) -> Targets:
        """Return where the files of a case go. Raises OutputError for a case of a table that comes a second time."""
        if self.task.table is None:
            tree = self.options.keep_tree or bids_folder(source) or self.arrivals.folder_of(source)
            return targets_of(source, self.task.outputs, self.options.output, tree)
        if source == self.task.table.path:
            raise OutputError(f"{source}: is the table that the results go into")
        if str(source) in self.claimed:
            raise OutputError(f"{source}: comes a second time; its rows are in {self.task.table.path.name} once")
        self.claimed[str(source)] = str(source)
        return Targets({}, self.task.table.path)

    def _member_targets(self, inputs: Mapping[str, Path], members: tuple[Record, ...], folder: Path) -> dict[str, Path]:
        """Return role -> final path of what is made for every line, next to the main output."""
        return {
            numbered(output.role, number): folder / output.name(inputs[numbered(self.task.role, number)])
            for number in range(1, len(members) + 1)
            for output in self.task.members
        }

    def _group_name(self, first: Path, group: tuple[str, ...]) -> Path:
        """Return a name for a case of several files: the grouping entities of BIDS names, else the first file's."""
        if not any(group):
            return first
        entities = {k: v for k, v in zip(self.options.group_by, group, strict=True) if v}
        return first.with_name(join_bids(entities, split_bids(first)[1]) + suffix_of(first))

    def _spare_inputs(self, names: Iterable[Path], source: Path) -> None:
        """Raise OutputError if a result would replace another case's input."""
        self.arrivals.given.add(str(source))
        for path in names:
            if self.arrivals.needs(path):
                raise OutputError(
                    f"{source}: its result {path.name} would replace an input of this run; choose another -o"
                )

    def _taken(self, result: Path, source: Path | str, owner: str) -> OutputError:
        """Return the error of an input whose result would have the name of another's."""
        several = is_file_name(self.options.output) if self.options.output else False
        advice = "name a folder as --output" if several else "--keep-tree ROOT mirrors the inputs' folders"
        return OutputError(f"{source}: its result {result.name} would replace that of {owner}; {advice}")

    def _claim(self, names: Iterable[Path], source: Path) -> None:
        """Raise OutputError if another case of this run, finished or not, has one of the names."""
        names = list(names)
        for number, path in enumerate(names):
            if path in names[:number]:
                raise OutputError(f"{source}: two of its results would be called {path.name}")
            if (owner := self.claimed.get(str(path))) == str(source):
                raise OutputError(f"{source}: comes a second time; its result is made once")
            if owner is not None:
                raise self._taken(path, source, owner)
        self.claimed.update(dict.fromkeys(map(str, names), str(source)))


def _hint(path: Path) -> str:
    """Return what may be wrong with the list that names a file which does not exist; mostly nothing."""
    if path.name.endswith("\r"):
        return "; the name ends in a carriage return: the list has the line ends of Windows (dos2unix removes them)"
    if "\ufeff" in str(path):
        return "; the name holds a byte-order mark: save the list as UTF-8 without one"
    return ""
