"""From what a user names to the records of results: files, folders, lines of a pipe, the files of `--records`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from medkit.errors import MedkitError
from medkit.pipe.lines import text_lines
from medkit.pipe.names import sidecar_path
from medkit.pipe.records import Record, absolute, read_sidecar, record_from_line, record_of

_RECORDS = ".jsonl"


@dataclass
class FoundResults:
    """The results among what was named, each once."""

    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    """(task, path) -> record; of a case that failed, the path is that of its input."""
    pictures: list[Path] = field(default_factory=list)
    """The PNG files in the folders, some of which may be pictures of `--qc`."""
    problems: list[str] = field(default_factory=list)
    """What was named but is no result, in sentences."""
    _folders: dict[Path, Mapping[str, Record]] = field(default_factory=dict)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Add what lines stand for, and note what is no result."""
        for line in lines:
            try:
                self._add_line(line)
            except MedkitError as error:
                self.problems.append(str(error))

    def without_superseded(self) -> list[Record]:
        """Return the records, without failures of cases that went well later, in the order in which they came."""
        done: dict[tuple[str, str], str] = {}
        for (task, _), record in self.records.items():
            if not record.failed:
                done |= {(task, str(path)): _finished(record) or _written(record) for path in record.sources[:1]}
        return [
            record
            for key, record in self.records.items()
            if not (record.failed and key in done and _finished(record) <= done[key])
        ]

    def _add_line(self, line: str) -> None:
        if line.startswith("{"):
            self._add_record(record_from_line(line))
            return
        path = absolute(line)
        if path.is_dir():
            self._add_folder(path)
        elif path.suffix == _RECORDS and path.is_file():
            self._add_records(path)
        elif not os.path.lexists(path):
            raise MedkitError(f"{path}: no such file")
        else:
            record = record_of(path)
            known = record if record.medkit else self._results_in(path.parent).get(str(path))
            if known is None:
                raise MedkitError(f"{path}: expected a result of medkit, got a file that no sidecar describes")
            self._add_record(known)

    def _add_record(self, record: Record) -> None:
        status = record.medkit.get("status")
        if status not in ("ok", "failed"):
            what = f"a record with the status {status}" if status else "a file that no sidecar describes"
            raise MedkitError(f"{record.path}: expected a finished result, got {what}")
        key = (str(record.medkit.get("task", "")), str(record.path))
        known = self.records.get(key)
        if known is None or _finished(record) > _finished(known):
            self.records[key] = record

    def _add_folder(self, folder: Path) -> None:
        found = 0
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = Path(place)
            for record in self._results_in(here).values():
                found += 1
                with contextlib.suppress(MedkitError):  # a result that is only planned, or a table that is being made
                    self._add_record(record)
            for name in sorted(files):
                if name.endswith(_RECORDS):
                    found += 1
                    self._add_records(here / name)
                elif name.lower().endswith(".png"):
                    found += 1
                    self.pictures.append(here / name)
        if not found:
            raise MedkitError(f"{folder}: expected results of medkit, found no sidecar and no records")

    def _add_records(self, path: Path) -> None:
        """Add the records of a file of `--records`; the end of a process that was killed may be cut off."""
        for line in text_lines(path.read_text(errors="surrogateescape")):
            with contextlib.suppress(MedkitError):
                record = record_from_line(line)
                current = record_of(record.path)
                if not record.failed and current.medkit.get("task") == record.medkit.get("task"):
                    block = {**current.medkit, "finished": _finished(record)}  # the file may have been made again since
                    record = replace(current, medkit=block)
                self._add_record(record)

    def _results_in(self, folder: Path) -> Mapping[str, Record]:
        """Return path -> record for the results in a folder, with their further files and sidecars."""
        if folder not in self._folders:
            self._folders[folder] = dict(_read_results(folder))
        return self._folders[folder]


def _read_results(folder: Path) -> Iterator[tuple[str, Record]]:
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names only: there may be very many
            sidecar = folder / name
            if not name.endswith(".json") or name.startswith("."):
                continue
            record = read_sidecar(sidecar)
            if record is not None and sidecar_path(record.path) == sidecar:
                files = [str(entry["path"]) for entry in record.medkit.get("outputs", {}).values()]
                yield from dict.fromkeys([str(record.path), str(sidecar), *files], record).items()


def _finished(record: Record) -> str:
    """Return when a record was written, in ISO's form, as `--records` keeps it; empty if the record does not say so."""
    return str(record.medkit.get("finished", ""))


def _written(record: Record) -> str:
    """Return when the sidecar of a result was written, in the same form; empty if there is none."""
    try:
        seconds = sidecar_path(record.path).stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
