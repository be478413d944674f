"""What arrives as input: lines to records; folders are opened, and results that lie among their sources left out."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkit.errors import InputError, MedkitError
from medkit.options import RunOptions
from medkit.pipe.lines import in_shard, input_lines, take_shard
from medkit.pipe.names import is_bids, kind_of_name, split_bids
from medkit.pipe.records import Record, absolute, find_kind, read_sidecar, record_from_json, record_from_line
from medkit.run.exclusion import Exclusion
from medkit.run.failures import explain, failed_record
from medkit.run.folders import FolderContents, place_of
from medkit.run.task import Task

log = logging.getLogger("medkit")
_DERIVED = {"space", "desc", "from", "to", "label", "res", "den"}
"""BIDS entities that only derivatives have."""
_SHOWN = 3
"""Names of inputs that a warning lists."""


@dataclass(eq=False)
class Arrivals:
    """The inputs of one run, in the order of their lines."""

    task: Task
    options: RunOptions
    given: set[str] = field(default_factory=set)
    """The inputs known so far: all if they are arguments or a list, those that have arrived if they are piped in.
    Strings, which are small: a run may have very many cases."""
    arrived: bool = False
    """Whether there was any line of input."""
    passed_on: set[int] = field(default_factory=set)
    """`id` of the records that an earlier stage of the pipe failed on; they come back from the work as they are."""
    folders: list[Path] = field(default_factory=list)
    """The folders and zips among the inputs, absolute."""
    refused: dict[str, InputError] = field(default_factory=dict)
    """Those of them that hold no case -> the reason."""
    left_out: list[str] = field(default_factory=list)
    """Names of the inputs that are results made from other inputs of this run."""
    replaceable: set[str] = field(default_factory=set)
    """Paths of inputs that are results of this run's inputs, or may be: they may be made again."""

    known: list[str] = field(default_factory=list)
    """The lines that stand for `records`; empty if they arrive one by one."""
    taken: int = 0
    """How many lines were not left to other shards."""
    total: int | None = None
    """How many records there are in all; None while lines may still arrive."""

    @functools.cached_property
    def exclusion(self) -> Exclusion | None:
        """The cases that a reviewer failed (`--exclude`). Raises UsageError for a file that holds no marks."""
        return Exclusion(self.options.exclude) if self.options.exclude else None

    def records(self) -> Iterator[Record]:
        """Yield a record for each input to work on, a failed one for a line that stands for none."""
        lines = input_lines(self.options.inputs, self.options.list, self.options.null)
        if is_streaming(self.options):
            yield from self._as_they_come(self._opened(lines))
            self._say_excluded()
        else:
            listed = list(lines)
            kept = self._kept(list(self._opened(listed)), listed if self.options.list else [])
            self._say_excluded()
            yield from map(self._parsed, kept)
        if self.shard:
            name = "shard {}/{}".format(*self.shard)
            log.warning("%s: %s: %d of %d inputs", self.task.name, name, self.taken, len(self.given))
        if self.left_out:
            log.warning("%s: %s", self.task.name, self._left_out_text())

    def needs(self, path: Path) -> bool:
        """Return whether a file is an input of this run that no result may replace."""
        return str(path) in self.given and str(path) not in self.replaceable

    def folder_of(self, path: Path) -> Path | None:
        """Return the folder among the inputs in which an input lies; None for one that was named itself."""
        return next((folder for folder in self.folders if folder in path.parents), None)

    @property
    def shard(self) -> tuple[int, int] | None:
        """The part of the lines to take; groups of lines are dealt out as wholes, by the planner."""
        return None if self.task.arity == "all" else self.options.shard

    def _kept(self, lines: list[str], listed: list[str]) -> list[str]:
        """Return the lines of this shard, without results that the run would only make again; all lines are known."""
        self.given.update(map(_path_of, lines))
        if self.exclusion:  # before the shards are dealt out, so that each knows which marks fit no input
            lines = [line for line in lines if not self._excluded(line, self.exclusion)]
        if self.shard:
            lines = self._of_shard(lines, listed, self.shard)
        self.known = [line for line in lines if not self._leaves_out_line(line)]
        self.total = len(self.known)
        return self.known

    def _of_shard(self, lines: list[str], listed: list[str], shard: tuple[int, int]) -> list[str]:
        """Return the distinct lines of a shard: by position in a list, which stays the same; all others by digest.

        What lies in a folder changes while results appear, and so does a list that each shard makes for itself.
        """
        strided, fixed = set(take_shard(listed, shard)), set(listed)
        distinct = dict.fromkeys(lines)
        kept = [line for line in distinct if (line in strided if line in fixed else in_shard(_path_of(line), shard))]
        self.taken = len(kept)
        return kept

    def _as_they_come(self, lines: Iterable[str]) -> Iterator[Record]:
        """Yield the records of piped lines.

        A path to a result of this task waits until the last line, since its source may come after it (`find` lists in
        any order); a record in JSON comes from another stage, which has its own order.
        """
        waiting = []
        for line in lines:
            self.given.add(_path_of(line))
            if self.exclusion and self._excluded(line, self.exclusion):
                continue
            if self.shard and not in_shard(_path_of(line), self.shard):
                continue
            self.taken += 1
            record = self._parsed(line)
            if self._leaves_out(record):
                continue
            if not line.startswith("{") and self._sources(record) and self._is_own(record):
                waiting.append(record)
                self.replaceable.add(str(record.path))
            else:
                yield record
        yield from (record for record in waiting if not self._leaves_out(record))

    def _opened(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the lines, in place of a folder or zip one for each image and DICOM series in it."""
        for line in lines:
            self.arrived = True
            place = None if line.startswith("{") or "\0" in line else place_of(absolute(line))
            if place is None:
                yield line
                continue
            self.folders.append(place)
            try:
                yield from self._cases_in(place)
            except InputError as error:  # a zip that cannot be used
                self.refused[str(place)] = error
                yield str(place)

    def _cases_in(self, place: Path) -> Iterator[str]:
        """Yield the paths of the cases in a folder or zip, and say what is left out there. Raises InputError."""
        from medkit.studies.needs import SeriesNeeds

        task = self.task
        needs = SeriesNeeds(task.name, task.modalities, task.planes, self.options.frame is not None)
        apart = {path for path in (self.options.qc,) if path}
        found = FolderContents(place, task.takes, needs, self.options.series, apart)
        if found.refusal:
            self.refused[str(place)] = InputError(found.refusal)
        else:
            for note in found.notes:
                log.warning("%s: %s: %s", task.name, place, note)
        if text := found.summary():
            log.warning("%s: %s: %s", task.name, place, text)
        # a folder that holds nothing stands for itself, so that its case fails with the reason
        yield from map(str, found.taken or [place])

    def _parsed(self, line: str) -> Record:
        """Return the record that a line stands for, a failed one if it stands for none."""
        if error := self.refused.get(line):
            return failed_record(Record(Path(line)), self.task.name, explain(error, self.options), error)
        try:
            record = record_from_line(line)
        except MedkitError as error:
            shown = line if len(line) < 200 else line[:200] + "..."
            return failed_record(Record(Path(shown)), self.task.name, explain(error, self.options), error)
        if record.failed:
            self.passed_on.add(id(record))
        return record

    def _excluded(self, line: str, exclusion: Exclusion) -> bool:
        """Return whether a reviewer failed the case of a line; the failure of an earlier stage is passed on."""
        with contextlib.suppress(MedkitError):
            record = record_from_line(line)
            return not record.failed and exclusion.leaves_out(record)
        return False

    def _say_excluded(self) -> None:
        if self.exclusion and self.arrived:
            self.exclusion.say(self.task.name)

    # ---- results among their own sources

    def _leaves_out_line(self, line: str) -> bool:
        with contextlib.suppress(MedkitError):
            return self._leaves_out(record_from_line(line))
        return False

    def _leaves_out(self, record: Record) -> bool:
        """Return whether a record is a result that another input of this run would only lead to once more."""
        superfluous = any(str(source) in self.given for source in self._sources(record))
        if superfluous:
            self.left_out.append(record.path.name)
            self.replaceable.add(str(record.path))
        return superfluous

    def _is_own(self, record: Record) -> bool:
        return bool(record.medkit.get("task", self.task.name) == self.task.name)

    def _sources(self, record: Record) -> tuple[Path, ...]:
        """Return the files that make a record superfluous if one of them is an input as well; mostly none.

        They are the sources of a result of this task or of a result's further files, and the file that the task would
        work on in place of one whose kind it does not take.
        """
        if record.failed or record.inputs:  # who names inputs of a record means exactly this case
            return ()
        result = record if record.medkit else self._result_with(record.path)
        if result is not None and (result is not record or self._is_own(record)):
            return result.sources if self.task.arity == "all" else result.sources[:1]
        if record.kind in self.task.takes:
            return ()
        with contextlib.suppress(MedkitError):
            return (find_kind(record, self.task.takes).path,)
        return ()

    def _result_with(self, path: Path) -> Record | None:
        """Return the record of the result that a file without a record belongs to: a further output, or a sidecar."""
        return None if _is_raw_bids(path) else self._files_of_results(path.parent).get(str(path))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - lives as long as the run
    def _files_of_results(self, folder: Path) -> Mapping[str, Record]:
        """Return path -> record of the result it belongs to, for the sidecars and further outputs in a folder."""
        found: dict[str, Record] = {}
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names only: there may be very many
                sidecar = folder / name
                record = read_sidecar(sidecar) if name.endswith(".json") and _is_ours(sidecar) else None
                if record is not None:
                    files = [str(entry["path"]) for entry in record.medkit.get("outputs", {}).values()]
                    found |= dict.fromkeys([str(sidecar), *files], record)
        return found

    def _left_out_text(self) -> str:
        names = ", ".join(self.left_out[:_SHOWN]) + (", ..." if len(self.left_out) > _SHOWN else "")
        count = len(self.left_out)
        what = "input is a result" if count == 1 else "inputs are results"
        return f"{count} {what} made from another input, and left out: {names}"


def _is_raw_bids(path: Path) -> bool:
    """Return whether a name is that of a BIDS scan, and not of a derivative: its folder need not be looked through."""
    return is_bids(path) and kind_of_name(path) == "image" and not _DERIVED & set(split_bids(path)[0])


def _is_ours(sidecar: Path) -> bool:
    """Return whether a sidecar may be one of medkit's; a folder may hold thousands of others."""
    try:
        return b'"medkit"' in sidecar.read_bytes()
    except OSError:
        return False


def _path_of(line: str) -> str:
    """Return the path in a line, absolute; for a line that is no record, itself."""
    if not line.startswith("{"):
        return line if "\0" in line else str(absolute(line))
    try:
        return str(record_from_json(json.loads(line)).path)
    except (ValueError, RecursionError, MedkitError):
        return line


def is_streaming(options: RunOptions) -> bool:
    """Return whether inputs may arrive while others are worked on: from stdin, or from a `--list` that is a pipe."""
    if options.list is not None:
        return not options.list.is_file()
    return not options.inputs or "-" in options.inputs
