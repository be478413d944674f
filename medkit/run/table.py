"""One table for the results of all cases: a row, or several, as each case finishes.

Rows are appended whole, those of a case in one write, so the file can be read at any moment and holds what was done
when the run is stopped or killed. Its sidecar says with which settings all rows were made; beside each input's name
stands its digest, by which a later run knows that a row is still true.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from medkit.errors import OutputError
from medkit.options import RunOptions
from medkit.pipe.records import Record, read_sidecar, sha256_of
from medkit.run.claims import Claim, settings_of
from medkit.run.outputs import Targets
from medkit.run.task import CasePlan, Table, Task
from medkit.run.worker import file_digest

NAMED = ("image", "sha256")
"""The columns that come first: the input's path relative to the table's folder, and its digest; where a case has
several inputs, the digest of theirs."""


class ResultTable:
    """The table of a run, open for rows; holds its name against other processes until it is closed.

    Raises OutputError where the file exists and neither `--overwrite` nor `--skip-existing` says what to do with it, or
    was made with other settings than those it should go on with.
    """

    def __init__(self, task: Task, settings: Mapping[str, Any], options: RunOptions) -> None:
        assert task.table is not None, "a task without a table has no rows"
        self.table: Table = task.table
        self.path = self.table.path
        self._role = task.role
        self._columns = (*NAMED, *self.table.columns)
        self._targets = Targets({"table": self.path})
        self._head = Record(
            self.path,
            "table",
            description=f"Results of medkit run {task.name}, a row for each case",
            generated_by=tuple(settings["programs"]),
            medkit={
                "task": task.name,
                "status": "running",
                **{k: settings[k] for k in ("arguments", "bundle", "seed")},
            },
        )
        self._rows: dict[str, list[dict[str, str]]] = {}
        """Image -> its rows, of an earlier run."""
        self._held = contextlib.ExitStack()
        self._claim = self._held.enter_context(Claim(self._targets))
        try:
            self._open(options)
        except BaseException:
            self._held.close()
            raise

    def _open(self, options: RunOptions) -> None:
        exists = os.path.lexists(self.path)
        if exists and not (options.overwrite or options.skip_existing):
            raise OutputError(f"{self.path}: exists already; --skip-existing goes on with it, --overwrite replaces it")
        if exists and not options.overwrite:
            self._go_on()
        else:
            self._put(self.path, self._text([]))
        self._write_sidecar(self._head)
        self._stream = self._held.enter_context(self._appending())

    def _go_on(self) -> None:
        """Takes over the rows of an earlier run. Raises OutputError."""
        record = read_sidecar(self._targets.sidecar)
        if record is None:
            raise OutputError(f"{self.path}: exists already and no sidecar says that medkit made it; --overwrite it")
        wanted, found = (json.loads(json.dumps(settings_of(r))) for r in (self._head, record))
        if other := [key for key in wanted if wanted[key] != found.get(key)]:
            raise OutputError(f"{self.path}: was made with other settings ({', '.join(other)}); --overwrite it")
        stated = record.medkit.get("outputs", {}).get("table", {}).get("sha256")
        if stated and stated != sha256_of(self.path):
            raise OutputError(f"{self.path}: was changed since medkit wrote it; --overwrite it")
        content = self.path.read_bytes()
        kept, _, torn = content.rpartition(b"\n")
        rows = list(
            csv.DictReader(io.StringIO(kept.decode(errors="surrogateescape")), delimiter="\t", quoting=csv.QUOTE_NONE)
        )
        if torn and rows:  # the end of a write that did not end
            rows = [row for row in rows if row["image"] != rows[-1]["image"]]
        for row in rows:
            self._rows.setdefault(row["image"], []).append(row)
        if torn:
            self._rewrite()

    def known(self, plan: CasePlan) -> Record | None:
        """The record of a case whose rows are there and still true; None of one that is to be worked on."""
        rows = self._rows.get(self._name(plan.inputs[self._role]))
        if not rows:
            return None
        digests = {role: file_digest(path) for role, path in plan.inputs.items()}
        if rows[0]["sha256"] != _one_digest(digests):
            return None
        block = {"task": self._head.medkit["task"], "status": "ok", "skipped": True, "metrics": {"rows": rows}}
        return Record(self.path, "table", sources=(plan.record.path,), medkit=block)

    def add(self, record: Record) -> None:
        """Appends the rows of a finished case; those of an earlier run that are outdated go."""
        inputs = record.medkit["inputs"]
        named = {
            "image": self._name(Path(inputs[self._role]["path"])),
            "sha256": _one_digest({role: entry["sha256"] for role, entry in inputs.items()}),
        }
        if self._rows.pop(named["image"], None):
            self._rewrite(without=named["image"])
        rows = [named | dict(row) for row in self.table.rows(record)]
        self._stream.write(self._lines(rows))

    def close(self) -> Record:
        """Writes the sidecar with the table's digest; the table's record."""
        os.fsync(self._stream.fileno())
        outputs = {"table": {"path": str(self.path), "sha256": sha256_of(self.path)}}
        record = Record(
            self.path,
            "table",
            description=self._head.description,
            generated_by=self._head.generated_by,
            medkit=dict(self._head.medkit) | {"status": "ok", "outputs": outputs},
        )
        self._write_sidecar(record)
        self._held.close()
        return record

    # ---- bytes

    def _appending(self) -> BinaryIO:
        return open(self.path, "ab", buffering=0)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.path.parent)

    def _write_sidecar(self, record: Record) -> None:
        self._put(self._targets.sidecar, f"{json.dumps(record.to_json(self.path.parent), indent=1)}\n".encode())

    def _put(self, path: Path, content: bytes) -> None:
        """Writes a file whole or not at all."""
        part = self._claim.part / path.name
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _text(self, rows: Sequence[Mapping[str, str]]) -> bytes:
        return "\t".join(self._columns).encode() + b"\n" + self._lines(rows)

    def _lines(self, rows: Sequence[Mapping[str, str]]) -> bytes:
        cells = ([_cell(row.get(column) or "n/a") for column in self._columns] for row in rows)
        return "".join("\t".join(line) + "\n" for line in cells).encode(errors="surrogateescape")

    def _rewrite(self, without: str | None = None) -> None:
        """Writes the file anew, whole or not at all, for the rare rows that have to go."""
        with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            head, *lines = file.read().splitlines()
        if without is None:
            content = self._text([row for rows in self._rows.values() for row in rows])
        else:
            kept = [head, *(line for line in lines if line.split("\t", 1)[0] != _cell(without))]
            content = "".join(f"{line}\n" for line in kept).encode(errors="surrogateescape")
        self._put(self.path, content)
        if without is not None:
            self._stream = self._held.enter_context(self._appending())  # the old file is no longer the one of that name


def _cell(text: str) -> str:
    """A text without what would break a line or a column."""
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def _one_digest(digests: Mapping[str, str]) -> str:
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def opened(task: Task, settings: Mapping[str, Any], options: RunOptions) -> Iterator[ResultTable | None]:
    """The table of a run for the block, None where the task has none; see `ResultTable`."""
    if task.table is None or options.dry_run:
        yield None
        return
    rows = ResultTable(task, settings, options)
    try:
        yield rows
    finally:
        rows.close()
