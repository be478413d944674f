"""Cases that overlap: read ahead, written behind, in order, apart from each other, stopped politely."""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from outcome import Outcome
from waiting import leftovers, wait_for

from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run import stages
from medkit.run.outputs import Output, Targets
from medkit.run.task import Case, CasePlan, Result, Stages, Task, Text

Run = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def test_results_come_in_order(toy: Run, blob: Make, marks: Path, tmp_path: Path) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdef"]
    done = toy("run", "staged", "--marks", marks, *inputs, tmp_path / "missing.nii.gz", "--json")
    assert done.code == 1
    assert [Path(r["path"]).name for r in done.records] == [f"{n}_copy.nii.gz" for n in "abcdef"] + ["missing.nii.gz"]
    assert all(r["medkit"]["metrics"]["stages"] == ["prepare", "compute", "finish"] for r in done.records[:-1])
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("stage", ["prepare", "compute", "finish"])
def test_a_failure_in_any_stage_is_that_of_its_case(
    toy: Run, blob: Make, marks: Path, tmp_path: Path, stage: str
) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcd"]
    done = toy("run", "staged", "--marks", marks, *inputs, "--fail", f"b.{stage}")
    assert done.code == 1
    assert [p.name for p in done.paths] == ["a_copy.nii.gz", "c_copy.nii.gz", "d_copy.nii.gz"]
    assert f"told to fail in {stage}" in done.err
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("hold", "meanwhile"), [("a.compute", "b.prepare"), ("a.finish", "b.compute"), ("a.finish", "c.prepare")]
)
def test_stages_of_different_cases_overlap(
    start: Start, blob: Make, marks: Path, tmp_path: Path, hold: str, meanwhile: str
) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abc"]
    process = start("run", "staged", "--marks", marks, *inputs, "--hold", hold)
    wait_for(lambda: (marks / hold).exists() and (marks / meanwhile).exists())
    (marks / "go").touch()
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, len(out.splitlines())) == (0, 3)


def test_no_more_than_two_cases_are_read_ahead(start: Start, blob: Make, marks: Path) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdefgh"]
    process = start("run", "staged", "--marks", marks, *inputs, "--hold", "a.compute")
    wait_for(lambda: (marks / "c.prepare").exists())
    with pytest.raises(AssertionError):
        wait_for(lambda: (marks / "d.prepare").exists(), seconds=0.7)
    (marks / "go").touch()
    assert len(process.communicate(timeout=30)[0].splitlines()) == 8


def test_a_result_is_printed_while_the_next_case_is_computed(start: Start, blob: Make, marks: Path) -> None:
    process = start("run", "staged", "--marks", marks, blob("a.nii.gz"), blob("b.nii.gz"), "--hold", "b.compute")
    assert process.stdout
    assert process.stdout.readline().endswith("a_copy.nii.gz\n")
    wait_for(lambda: (marks / "b.compute").exists())
    (marks / "go").touch()
    assert process.communicate(timeout=30)[0].endswith("b_copy.nii.gz\n")


def test_a_result_is_printed_while_stdin_is_silent(start: Start, blob: Make, marks: Path) -> None:
    process = start("run", "staged", "--marks", marks)
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{blob('a.nii.gz')}\n")
    assert process.stdout.readline().endswith("a_copy.nii.gz\n")
    process.stdin.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_polite_stop_finishes_the_case_that_is_computed(
    start: Start, blob: Make, marks: Path, tmp_path: Path, number: int
) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdef"]
    process = start("run", "staged", "--marks", marks, *inputs, "--hold", "b.compute")
    wait_for(lambda: (marks / "b.compute").exists())
    process.send_signal(number)
    (marks / "go").touch()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert [Path(line).name for line in out.splitlines()] == ["a_copy.nii.gz", "b_copy.nii.gz"]
    assert "stopped by a signal after 2 cases" in err
    assert leftovers(tmp_path) == []


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("no /proc here")
    caught = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_polite_stop_while_stdin_is_silent(start: Start, marks: Path) -> None:
    process = start("run", "staged", "--marks", marks)
    wait_for(lambda: handles(process.pid, signal.SIGTERM))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75


@pytest.mark.parametrize(("numbers", "code"), [((signal.SIGTERM, signal.SIGTERM), 75), ((signal.SIGINT,), 130)])
def test_a_hard_stop_drops_all_cases(
    start: Start, blob: Make, marks: Path, tmp_path: Path, numbers: tuple[int, ...], code: int
) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdef"]
    process = start("run", "staged", "--marks", marks, *inputs, "--hold", "b.compute")
    wait_for(lambda: (marks / "c.prepare").exists() and (marks / "b.compute").exists())
    assert process.stdout
    assert process.stdout.readline().endswith("a_copy.nii.gz\n")
    first, *more = numbers
    process.send_signal(first)
    for number in more:
        with pytest.raises(subprocess.TimeoutExpired):  # two at once would be one: the first has to be taken
            process.wait(2)
        process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_second_signal_while_threads_are_waited_for_leaves_nothing(
    start: Start, blob: Make, marks: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = start("run", "staged", "--marks", marks, blob("a.nii.gz"), blob("b.nii.gz"), "--hold", "a.prepare")
    wait_for(lambda: (marks / "a.prepare").exists())
    for _ in range(2):
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    (marks / "go").touch()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []


def test_fail_fast(toy: Run, blob: Make, marks: Path, tmp_path: Path) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdefgh"]
    done = toy("run", "staged", "--marks", marks, *inputs, "--fail", "b.compute", "--fail-fast")
    assert done.code == 1
    assert [p.name for p in done.paths] == ["a_copy.nii.gz"]
    assert not (marks / "h.prepare").exists()
    assert leftovers(tmp_path) == []


def test_a_line_that_comes_when_all_is_over_is_left_alone() -> None:
    """Nobody would wait for its case: its claim would stay."""

    def items() -> Iterator[Any]:
        work._over.set()
        yield "a case"

    work = stages._StagedRun(items(), None, lambda record: True, lambda: False)  # type: ignore[arg-type]
    assert list(work._lines()) == []


def test_a_failed_set_up_ends_the_run(toy: Run, blob: Make, marks: Path, tmp_path: Path) -> None:
    done = toy("run", "staged", "--marks", marks, blob("a.nii.gz"), blob("b.nii.gz"), "--no-set-up")
    assert (done.code, done.out) == (4, "")
    assert leftovers(tmp_path) == []


def test_results_that_are_kept_need_no_set_up(toy: Run, blob: Make, marks: Path) -> None:
    source = blob("a.nii.gz")
    assert toy("run", "staged", "--marks", marks, source).code == 0
    done = toy("run", "staged", "--marks", marks, source, "--skip-existing", "--no-set-up", "--json")
    assert done.code == 0
    assert done.records[0]["medkit"]["skipped"]


@pytest.mark.parametrize("option", [("--timeout-per-case", 20), ("--workers", 1)])
def test_other_ways_of_running_do_the_stages_in_turn(
    start: Start, blob: Make, marks: Path, option: tuple[str, int]
) -> None:
    process = start("run", "staged", "--marks", marks, blob("a.nii.gz"), blob("b.nii.gz"), *option)
    assert len(process.communicate(timeout=60)[0].splitlines()) == 2
    stages = [f"{n}.{stage}" for n in "ab" for stage in ("prepare", "compute", "finish")]
    assert (marks / "order").read_text().split() == stages


def test_a_reader_that_leaves_ends_the_run(shell: Run, blob: Make, marks: Path, tmp_path: Path) -> None:
    for n in range(30):
        blob(f"{n:02}.nii.gz")
    done = shell(f"set +o pipefail; medkit run staged --marks {marks} *.nii.gz | head -1")
    assert (done.code, done.lines) == (0, [str(tmp_path / "00_copy.nii.gz")])
    assert not (marks / "29.finish").exists()
    assert leftovers(tmp_path) == []


def test_small_cases_are_computed_together_and_blamed_alone(blob: Make, tmp_path: Path) -> None:
    """While the first one is computed others come; one of them spoils the batch, and only itself."""
    paths = [blob(f"{name}.nii.gz") for name in ("a", "b", "bad", "c", "d")]
    computing, waiting, sizes = threading.Event(), threading.Event(), []

    def one_then_the_others() -> Iterator[CasePlan]:
        first, *others = plans
        yield first
        assert computing.wait(timeout=30)
        yield from others
        waiting.set()

    def compute(case: Case, value: str) -> str:
        if value == "a.nii.gz":
            computing.set()
            assert waiting.wait(timeout=30)
        if value == "bad.nii.gz":
            raise ValueError("bad")
        return value

    def together(cases: Sequence[Case], values: Sequence[str]) -> Sequence[str]:
        sizes.append(len(cases))
        return [compute(case, value) for case, value in zip(cases, values, strict=True)]

    parts = Stages(lambda case: case.path.name, compute, lambda case, value: Result({"text": Text(value)}), together)
    task = Task("t", (Output("text", "table", "t", ".tsv"),), setup=lambda _: parts, staged=True, uses_torch=False)
    plans = [
        CasePlan(Record(path), {"image": path}, Targets({"text": path.with_name(f"{path.name}.tsv")})) for path in paths
    ]
    records: list[Record] = []
    stages.run_staged(
        one_then_the_others(), task, RunOptions(), lambda record: records.append(record) is None, lambda: False
    )
    assert sizes == [4]
    assert [record.failed for record in records] == [False, False, True, False, False]
    assert [record.path.name for record in records if not record.failed] == [f"{n}.nii.gz.tsv" for n in "abcd"]


def test_large_cases_do_not_wait_for_each_other() -> None:
    waiting = stages._Prepared()
    waiting.several = True

    def job(size: int) -> stages._Job:
        case = SimpleNamespace(held=size)
        return stages._Job(SimpleNamespace(case=case))  # type: ignore[arg-type]

    for size in (stages.ROOM // 2, stages.ROOM // 2):
        waiting.put_nowait(job(size))
    with pytest.raises(queue.Full):
        waiting.put_nowait(job(1))
    assert waiting.next_job() is not None
    waiting.put_nowait(job(1))
    waiting.get_nowait(), waiting.get_nowait()
    assert waiting.next_job() is None
