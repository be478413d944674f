"""The table of all cases: whole rows on a disk that is full for a moment, names with odd characters."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medkit.errors import OutputError
from medkit.options import RunOptions
from medkit.pipe.lines import Emitter
from medkit.pipe.records import Record, sha256_of
from medkit.pipe.signals import StopRequest
from medkit.run.existing import settings_of_run
from medkit.run.loop import TaskRun
from medkit.run.outputs import Targets
from medkit.run.table import ResultTable
from medkit.run.task import Case, CasePlan, Result, Table, Task

ODD = ["a\tb", "a\nb", "a\rb", "a\u2028b", "a\x85b", "a\x0cb", "a\\tb", "a b"]


def task(path: Path) -> Task:
    """A task whose rows hold the file's content."""
    rows = Table(path, ["text"], lambda record: [{"text": record.medkit["metrics"]["text"]}])
    return Task("note", [], process=_note, table=rows, uses_torch=False)


def _note(case: Case) -> Result:
    return Result({}, metrics={"text": case.path.read_bytes().decode()})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Run the task over files; return the exit code and the records."""

    def run(paths: list[Path], **options: Any) -> tuple[int, list[dict[str, Any]]]:
        stream = io.BytesIO()
        given = RunOptions(inputs=tuple(map(str, paths)), json=True, progress=False, **options)
        with StopRequest() as stop:
            emitter = Emitter(stream, json=True, null=True)
            code = TaskRun(task(tmp_path / "t.tsv"), given, emitter, stop).all()
        return code, [json.loads(line) for line in stream.getvalue().split(b"\0") if line]

    return run


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Set the largest size that a file may reach, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def record_of_case(path: Path, text: str) -> Record:
    """The record of a case that is done."""
    inputs = {"image": {"path": str(path), "sha256": sha256_of(path)}}
    return Record(path, sources=(path,), medkit={"inputs": inputs, "metrics": {"text": text}})


def test_a_row_is_added_whole_or_not_at_all(tmp_path: Path, limit: Callable[[int], None]) -> None:
    made = task(tmp_path / "t.tsv")
    options = RunOptions()
    table = ResultTable(made, settings_of_run(made, options), options)
    cases = [tmp_path / name for name in "abc"]
    for case in cases:
        case.write_text(case.name)
    table.add(record_of_case(cases[0], "1"))
    size = table.path.stat().st_size
    limit(size + 20)
    with pytest.raises(OutputError, match=r"t\.tsv: the rows of a case cannot be added: File too large"):
        table.add(record_of_case(cases[1], "2"))
    assert table.path.stat().st_size == size
    limit(10**6)
    table.add(record_of_case(cases[2], "3"))
    table.close()
    rows = [line.split("\t") for line in table.path.read_text().split("\n")]
    assert [(row[0], row[-1]) for row in rows] == [("image", "text"), ("a", "1"), ("c", "3"), ("", "")]


def test_a_row_that_cannot_be_added_fails_its_case_only(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
    add = ResultTable.add

    def full(self: ResultTable, record: Record) -> None:
        if record.sources[0].name == "b":
            raise OutputError("t.tsv: disk full")
        add(self, record)

    monkeypatch.setattr(ResultTable, "add", full)
    code, records = run(files)
    assert code == 1
    assert [(Path(r["path"]).name, r["medkit"]["status"]) for r in records] == [
        ("t.tsv", "ok"), ("b", "failed"), ("t.tsv", "ok"),
    ]  # fmt: skip
    assert "disk full" in records[1]["medkit"]["error"]
    monkeypatch.undo()
    code, records = run(files, skip_existing=True)
    assert (code, [r["medkit"]["skipped"] for r in records]) == (0, [True, False, True])


def test_odd_names_are_resumed(tmp_path: Path, run: Callable[..., Any]) -> None:
    files = [tmp_path / name for name in ODD]
    for file in files:
        file.write_text(file.name)
    assert run(files)[0] == 0
    first = (tmp_path / "t.tsv").read_bytes()
    assert first.count(b"\n") == 1 + len(ODD)
    code, records = run(files, skip_existing=True)
    assert (code, [r["medkit"]["skipped"] for r in records]) == (0, [True] * len(ODD))
    assert [r["medkit"]["metrics"]["rows"][0]["text"] for r in records] == ODD
    for file in files:
        file.write_text("changed")
    assert run(files, skip_existing=True)[0] == 0
    rows = [line.split(b"\t") for line in (tmp_path / "t.tsv").read_bytes().split(b"\n")]
    assert sorted(row[0] for row in rows[1:-1]) == sorted(line.split(b"\t")[0] for line in first.split(b"\n")[1:-1])
    assert {row[-1] for row in rows[1:-1]} == {b"changed"}
    known = ResultTable(task(tmp_path / "t.tsv"), settings_of_run(task(tmp_path / "t.tsv"), RunOptions()),
                        RunOptions(skip_existing=True))  # fmt: skip
    plan = CasePlan(Record(files[0]), {"image": files[0]}, Targets({}, known.path))
    assert known.known(plan) is not None
    known.close()
