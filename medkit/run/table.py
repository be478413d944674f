"""One table for the results of all cases: one or more rows are added as each case finishes.

Rows are appended whole, those of a case in one write, so the file can be read at any moment and holds what was done
when the run is stopped or killed. Its sidecar states the settings with which all rows were made; each row holds the
digest of its input, which shows a later run whether the row is still valid.
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
from medkit.pipe.cells import cell_of, text_of
from medkit.pipe.records import Record, read_sidecar, sha256_of
from medkit.run.claims import Claim
from medkit.run.existing import file_digest, settings_of, through_json
from medkit.run.looks import need_a_look, plain
from medkit.run.outputs import Targets
from medkit.run.task import CasePlan, Table, Task

LOOK = "look"
"""The column that states why a person should look at the result, or `n/a`."""
FIRST_COLUMNS = ("image", "sha256", LOOK)
"""The columns that come first: the input's path relative to the table's folder, and its digest (for a case of several
inputs, the digest of their digests), and `LOOK`."""
_NONE = "n/a"


@contextlib.contextmanager
def open_table(task: Task, settings: Mapping[str, Any], options: RunOptions) -> Iterator[ResultTable | None]:
    """Hold the table of a run open for the block; None if the task has no table. Raises as `ResultTable` does."""
    if task.table is None or options.dry_run:
        yield None
        return
    table = ResultTable(task, settings, options)
    try:
        yield table
    finally:
        table.close()


class ResultTable:
    """The table of a run, open for rows; claims its name against other processes until it is closed.

    Raises OutputError if the file exists and neither `--overwrite` nor `--skip-existing` is given, or if it was made
    with other settings than those of this run.
    """

    def __init__(self, task: Task, settings: Mapping[str, Any], options: RunOptions) -> None:
        assert task.table is not None, "a task without a table has no rows"
        self.table: Table = task.table
        self.path = self.table.path
        self._role = task.role
        self._columns = (*FIRST_COLUMNS, *self.table.columns)
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
        """Image -> its rows from an earlier run."""
        self._looks: dict[str, bool] = {}
        """Image -> whether a person should look at its result, for all images of the table."""
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
            raise OutputError(f"{self.path}: exists already; --skip-existing adds to it, --overwrite replaces it")
        if exists and not options.overwrite:
            self._take_over()
        else:
            self._put(self.path, self._text([]))
        self._write_sidecar(self._head)
        self._append_to_file()

    def _take_over(self) -> None:
        """Read the rows of an earlier run. Raises OutputError if the table is not one that this run could add to."""
        self._check_origin()
        kept, _, torn = self.path.read_bytes().rpartition(b"\n")
        lines = io.StringIO(kept.decode(errors="surrogateescape"))
        cells = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
        there = tuple(cells.fieldnames or self._columns)
        if there != tuple(name for name in self._columns if name in there or name not in self.table.optional):
            raise OutputError(f"{self.path}: has other columns than this version of medkit writes; --overwrite it")
        rows = [{column: text_of(cell) for column, cell in row.items() if column} for row in cells]
        if torn and rows:  # the last write was cut short, so all rows of its case go
            rows = [row for row in rows if row["image"] != rows[-1]["image"]]
        for row in rows:
            self._rows.setdefault(row["image"], []).append(row)
            self._looks[row["image"]] = _needs_look(row)
        if torn or there != self._columns:
            self._put(self.path, self._text([row for kept_rows in self._rows.values() for row in kept_rows]))

    def _check_origin(self) -> None:
        """Raise OutputError unless medkit made the table, with these settings, and nobody changed it since."""
        record = read_sidecar(self._targets.sidecar)
        if record is None:
            raise OutputError(f"{self.path}: exists already and no sidecar states that medkit made it; --overwrite it")
        wanted, found = (through_json(settings_of(r)) for r in (self._head, record))
        if other := [key for key in wanted if wanted[key] != found.get(key)]:
            raise OutputError(f"{self.path}: was made with other settings ({', '.join(other)}); --overwrite it")
        stated = record.medkit.get("outputs", {}).get("table", {}).get("sha256")
        if stated and stated != sha256_of(self.path):
            raise OutputError(f"{self.path}: was changed since medkit wrote it; --overwrite it")

    def known(self, plan: CasePlan) -> Record | None:
        """Return the record of a case whose rows are there and still valid; None for one that is to be worked on."""
        rows = self._rows.get(self._name(plan.inputs[self._role]))
        if not rows:
            return None
        digests = {role: file_digest(path) for role, path in plan.inputs.items()}
        if rows[0]["sha256"] != _one_digest(digests):
            return None
        look = _needs_look(rows[0])
        block = {
            "task": self._head.medkit["task"],
            "status": "ok",
            "skipped": True,
            "look": look,
            "warnings": [rows[0][LOOK]] if look else [],
            "metrics": {"rows": rows},
        }
        return Record(self.path, "table", sources=(plan.record.path,), medkit=block, extra=plan.extra)

    def add(self, record: Record) -> None:
        """Append the rows of a finished case; outdated rows of an earlier run are removed."""
        inputs = record.medkit["inputs"]
        look = bool(record.medkit.get("look"))
        first = {
            "image": self._name(Path(inputs[self._role]["path"])),
            "sha256": _one_digest({role: entry["sha256"] for role, entry in inputs.items()}),
            LOOK: plain(record.medkit["warnings"][0]) if look else _NONE,
        }
        if self._rows.pop(first["image"], None):
            self._remove(first["image"])
        self._append(self._lines([dict(row) | first for row in self.table.rows(record)]))
        self._looks[first["image"]] = look

    def _append(self, content: bytes) -> None:
        """Write rows completely, or else none of them. Raises OutputError, for example if the disk is full."""
        descriptor = self._stream.fileno()
        try:
            if os.fstat(descriptor).st_size != self._size:
                os.ftruncate(descriptor, self._size)  # a part of a row that could not be removed when its write failed
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._stream.write(rest) :]
            self._size += len(content)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            if isinstance(error, OSError):
                raise OutputError(f"{self.path}: the rows of a case cannot be added: {error.strerror}") from None
            raise

    def close(self) -> Record:
        """Write the sidecar with the table's digest, release the name, and return the table's record."""
        os.fsync(self._stream.fileno())
        self._leave_out_unused()
        outputs = {"table": {"path": str(self.path), "sha256": sha256_of(self.path)}}
        names = [image for image, look in self._looks.items() if look]
        looks = {"look": bool(names), "warnings": [need_a_look(names, len(self._looks))] if names else []}
        record = Record(
            self.path,
            "table",
            description=self._head.description,
            generated_by=self._head.generated_by,
            medkit=dict(self._head.medkit) | {"status": "ok", "outputs": outputs, **looks},
        )
        self._write_sidecar(record)
        self._held.close()
        return record

    # ---- bytes

    def _leave_out_unused(self) -> None:
        """Rewrite the file without the optional columns that hold nothing."""
        head, *rows = [line.split(b"\t") for line in self.path.read_bytes().removesuffix(b"\n").split(b"\n")]
        optional, nothing = {name.encode() for name in self.table.optional}, _NONE.encode()
        used = [n for n, name in enumerate(head) if name not in optional or any(row[n] != nothing for row in rows)]
        if rows and len(used) < len(head):
            self._put(self.path, b"".join(b"\t".join(row[n] for n in used) + b"\n" for row in (head, *rows)))

    def _append_to_file(self) -> None:
        stream: BinaryIO = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open until the table is closed
        self._stream = self._held.enter_context(stream)
        self._size = os.fstat(self._stream.fileno()).st_size

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.path.parent)

    def _write_sidecar(self, record: Record) -> None:
        self._put(self._targets.sidecar, f"{json.dumps(record.to_json(self.path.parent), indent=1)}\n".encode())

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file completely or not at all, by way of the claim's folder."""
        part = self._claim.part / path.name
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _text(self, rows: Sequence[Mapping[str, str]]) -> bytes:
        return "\t".join(self._columns).encode() + b"\n" + self._lines(rows)

    def _lines(self, rows: Sequence[Mapping[str, str]]) -> bytes:
        cells = ([cell_of(row.get(column) or _NONE) for column in self._columns] for row in rows)
        return "".join("\t".join(line) + "\n" for line in cells).encode(errors="surrogateescape")

    def _remove(self, image: str) -> None:
        """Rewrite the file without the rows of an image, which is rarely needed."""
        head, *lines = self.path.read_bytes().removesuffix(b"\n").split(b"\n")
        name = cell_of(image).encode(errors="surrogateescape")
        kept = [head, *(line for line in lines if line.split(b"\t", 1)[0] != name)]
        self._put(self.path, b"".join(line + b"\n" for line in kept))
        self._append_to_file()  # the former stream writes to the replaced file


def _one_digest(digests: Mapping[str, str]) -> str:
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _needs_look(row: Mapping[str, str]) -> bool:
    return row[LOOK] not in ("", _NONE)
