"""Lines in and out, shards, the guard of stdout."""

from __future__ import annotations

import io
import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medkit.errors import MedkitError, UsageError
from medkit.pipe.lines import (
    Emitter,
    ReaderGoneError,
    guarded_stdout,
    in_shard,
    input_lines,
    shard_of,
    take_shard,
    text_lines,
)
from medkit.pipe.records import Record


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))


def test_arguments_come_first_and_stdin_where_the_dash_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"b\nc\n")
    assert list(input_lines(["a", "-", "d"], None, False)) == ["a", "b", "c", "d"]


def test_blank_lines_are_skipped_and_only_the_newline_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"\n a \n\n  \nb\t\r\nlast")
    assert list(input_lines([], None, False)) == [" a ", "b\t\r", "last"]


def test_blank_arguments_are_skipped_like_blank_lines() -> None:
    assert list(input_lines(["", "a"], None, False)) == ["a"]


def test_null_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"a\nb\0\0c\n\0d")
    assert list(input_lines([], None, True)) == ["a\nb", "c\n", "d"]


def test_names_that_are_not_utf8_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"\xff.nii\n")
    (line,) = input_lines([], None, False)
    assert os.fsencode(line) == b"\xff.nii"


@pytest.mark.parametrize(("null", "content"), [(False, b"a\nb\n"), (True, b"a\0b\0")])
def test_a_list_reads_like_stdin(tmp_path: Path, null: bool, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    assert list(input_lines([], tmp_path / "list", null)) == ["a", "b"]
    with pytest.raises(UsageError, match="--list"):
        list(input_lines(["c"], tmp_path / "list", null))


@pytest.mark.parametrize("stream", [None, SimpleNamespace(isatty=lambda: True)])
@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_no_input_to_wait_for_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, stream: object, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(UsageError, match="no inputs"):
        list(input_lines(arguments, None, False))


# ---- shards


@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shards_cover_all_and_share_none(count: int, n: int) -> None:
    lines = [f"case-{i}" for i in range(count)]
    parts = [take_shard(reversed(lines), (k, n)) for k in range(1, n + 1)]
    assert sorted(itertools.chain(*parts)) == sorted(lines)
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_shards_by_digest_cover_all_and_share_none() -> None:
    names = [f"/data/case-{n}.nii.gz" for n in range(300)]
    shards = [[name for name in names if in_shard(name, (k, 7))] for k in range(1, 8)]
    assert sorted(itertools.chain(*shards)) == sorted(names)
    assert min(map(len, shards)) > 20


def test_shards_are_strided_over_the_sorted_list() -> None:
    assert take_shard(["d", "b", "a", "c", "e"], (2, 2)) == ["b", "d"]


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "-1/2", "a/b", "1/2/3", "1/0", "first"])
def test_impossible_shards(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        shard_of(text)


def slurm(task: int, first: int, last: int, count: int) -> dict[str, str]:
    names = ("TASK_ID", "TASK_MIN", "TASK_MAX", "TASK_COUNT")
    return {f"SLURM_ARRAY_{n}": str(v) for n, v in zip(names, (task, first, last, count), strict=True)}


def sge(task: str, first: str, last: str, step: str) -> dict[str, str]:
    return {"SGE_TASK_ID": task, "SGE_TASK_FIRST": first, "SGE_TASK_LAST": last, "SGE_TASK_STEPSIZE": step}


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        (slurm(1, 1, 4, 4), (1, 4)),
        (slurm(0, 0, 7, 8), (1, 8)),
        (slurm(7, 0, 7, 8), (8, 8)),
        (sge("3", "1", "5", "1"), (3, 5)),
        ({"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "6"}, (2, 6)),
        ({"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "6", "LSB_JOBINDEX_STEP": "1"}, (2, 6)),
    ],
)
def test_ranks_within_a_job_array(environ: dict[str, str], shard: tuple[int, int]) -> None:
    assert shard_of("auto", environ) == shard


@pytest.mark.parametrize(
    "environ",
    [
        slurm(1, 1, 9, 5),  # --array=1-9:2
        slurm(3, 1, 4, 3),  # --array=1,3,4
        {"SLURM_ARRAY_TASK_ID": "3"},
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "4", "SLURM_ARRAY_TASK_COUNT": "4"},
        sge("3", "1", "5", "2"),
        sge("3", "undefined", "undefined", "undefined"),
        {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "5", "LSB_JOBINDEX_STEP": "2"},
        {"LSB_JOBINDEX": "3"},
        slurm(3, 3, 3, 1),  # --array=3, the rerun of a task
        slurm(1, 1, 1, 1),
        slurm(0, 0, 0, 1),
        slurm(3, 3, 4, 2),  # --array=3-4
        slurm(12, 10, 14, 5),
        sge("12", "11", "15", "1"),
        sge("3", "3", "3", "1"),
        {"LSB_JOBINDEX": "1", "LSB_JOBINDEX_END": "1"},
    ],
)
def test_arrays_with_holes_or_parts_of_arrays_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="holes or an unknown size"):
        shard_of("auto", environ)


@pytest.mark.parametrize("environ", [{"PBS_ARRAY_INDEX": "3"}, {"PBS_ARRAYID": "3"}])
def test_pbs_does_not_say_how_many(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="PBS"):
        shard_of("auto", environ)
    assert shard_of("auto/8", environ) == (3, 8)


@pytest.mark.parametrize(
    "environ", [slurm(3, 3, 3, 1), slurm(3, 1, 9, 5), sge("3", "3", "9", "3"), {"LSB_JOBINDEX": "3"}]
)
def test_a_task_of_any_array_knows_its_number_of_n(environ: dict[str, str]) -> None:
    assert shard_of("auto/3", environ) == (3, 3)
    with pytest.raises(UsageError, match="should have the numbers 1-2"):
        shard_of("auto/2", environ)


@pytest.mark.parametrize("text", ["auto/", "auto/x", "auto/0", "auto/-1", "auto/2/3"])
def test_auto_of_an_impossible_number(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        shard_of(text, slurm(1, 1, 4, 4))


def test_task_zero_has_no_number() -> None:
    with pytest.raises(UsageError, match="1-4"):
        shard_of("auto/4", slurm(0, 0, 3, 4))


@pytest.mark.parametrize(
    "environ", [{}, sge("undefined", "undefined", "undefined", "undefined"), {"LSB_JOBINDEX": "0"}]
)
def test_outside_an_array(environ: dict[str, str]) -> None:
    for text in ("auto", "auto/3"):
        with pytest.raises(UsageError, match="no job array"):
            shard_of(text, environ)


# ---- out

OK = Record(Path("/d/a b.nii.gz"))
FAILED = Record(Path("/d/bad.nii.gz"), medkit={"status": "failed"})


@pytest.mark.parametrize(
    ("json", "null", "expected"),
    [
        (False, False, b"/d/a b.nii.gz\n"),
        (False, True, b"/d/a b.nii.gz\0"),
        (True, False, b'{"path": "/d/a b.nii.gz", "kind": "image"}\n'),
        (True, True, b'{"path": "/d/a b.nii.gz", "kind": "image"}\0'),
    ],
)
def test_forms_of_a_line(json: bool, null: bool, expected: bytes) -> None:
    stream = io.BytesIO()
    Emitter(stream, json=json, null=null).emit(OK)
    assert stream.getvalue() == expected


@pytest.mark.parametrize("json", [False, True])
def test_failed_cases_have_a_line_only_as_json(json: bool) -> None:
    stream = io.BytesIO()
    Emitter(stream, json=json, null=False).emit(FAILED)
    assert bool(stream.getvalue()) is json


def test_a_newline_in_a_name_needs_null_or_json() -> None:
    path = Path("/d/new\nline.nii.gz")
    with pytest.raises(MedkitError, match="-0"):
        Emitter(io.BytesIO(), json=False, null=False).check_name(path)
    Emitter(io.BytesIO(), json=False, null=True).check_name(path)
    Emitter(io.BytesIO(), json=True, null=False).check_name(path)


def test_a_reader_that_is_gone_is_noticed() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as stream:
        emitter = Emitter(stream, json=False, null=False)
        assert not emitter.reader_gone()
        os.close(read)
        assert emitter.reader_gone()
        with pytest.raises(ReaderGoneError):
            emitter.emit(OK)


class Trickle(io.BytesIO):
    """A stream that takes three bytes at a time."""

    def write(self, data: object) -> int:
        return super().write(bytes(data)[:3])  # type: ignore[call-overload]


def test_long_lines_are_written_whole() -> None:
    stream = Trickle()
    Emitter(stream, json=False, null=False).emit(OK)
    assert stream.getvalue() == b"/d/a b.nii.gz\n"


def test_the_guard_keeps_prints_and_descriptor_writes_from_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as outside pytest, whose own stdout is not descriptor 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        with guarded_stdout() as real:
            print("python")
            os.write(1, b"descriptor\n")
            with guarded_stdout():
                os.write(1, b"nested\n")
            real.write(b"line\n")
        print("after", flush=True)
    out, err = capfd.readouterr()
    assert out == "line\nafter\n"
    assert {"descriptor", "nested"} <= set(err.split())
    assert "python" not in out


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\t", " "])
def test_only_newlines_end_a_line_of_a_file(odd: str) -> None:
    assert text_lines(f"a{odd}b\n\nc\n") == [f"a{odd}b", "", "c"]
    assert text_lines(f"a{odd}b\r\nc") == [f"a{odd}b", "c"]
    assert text_lines(f"a{odd}b\rc\r") == [f"a{odd}b", "c"]  # as old files have them
    assert text_lines(f"a{odd}\rb\nc") == [f"a{odd}\rb", "c"]
    assert text_lines("") == []
