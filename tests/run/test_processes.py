"""Child processes: results in any order, deaths, limits, no child without `--workers`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import leftovers, wait_for

from medkit.run import processes

Shell = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("no /proc here")
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def working(pid: int) -> list[int]:
    """The children that work, multiprocessing's resource tracker left out."""
    return [c for c in children(pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_workers_do_what_one_process_does(shell: Shell, blob: Make, tmp_path: Path) -> None:
    for n in "abcdef":
        blob(f"{n}.nii.gz")
    blob("fail.nii.gz")
    done = shell("medkit run fragile *.nii.gz missing.nii.gz --workers 2 --json -o o --failed failed")
    assert done.code == 1
    ok = [r for r in done.records if r["medkit"]["status"] == "ok"]
    assert sorted(Path(r["path"]).name for r in ok) == [f"{n}_copy.nii.gz" for n in "abcdef"]
    failed = {Path(r["path"]).name: r["medkit"]["error"] for r in done.records if r["medkit"]["status"] == "failed"}
    assert failed["fail.nii.gz"] == "ValueError: told to fail"
    assert failed["missing.nii.gz"].endswith("no such file")
    assert sorted((tmp_path / "failed").read_text().split()) == [
        str(tmp_path / n) for n in ("fail.nii.gz", "missing.nii.gz")
    ]
    assert len({r["medkit"]["metrics"]["pid"] for r in ok}) <= 2
    again = shell("medkit run fragile [a-f].nii.gz --workers 2 --json -o o --skip-existing")
    assert [r["medkit"]["skipped"] for r in again.records] == [True] * 6


@pytest.mark.parametrize(("name", "reason"), [("die", "SIGKILL"), ("exit", "SystemExit: 7"), ("odd", "told to be odd")])
def test_a_death_fails_its_own_case_alone(shell: Shell, blob: Make, tmp_path: Path, name: str, reason: str) -> None:
    inputs = [f"{n}.nii.gz" for n in ("a", f"{name}1", "b", f"{name}2", "c", "d")]
    for n in inputs:
        blob(n)
    done = shell(f"medkit run fragile {' '.join(inputs)} --workers 1 --json")
    assert done.code == 1
    by_name = {Path(r["path"]).name: r["medkit"] for r in done.records}
    assert len(by_name) == 6
    for number in (1, 2):
        assert reason in by_name[f"{name}{number}.nii.gz"]["error"]
    assert all(by_name[f"{n}_copy.nii.gz"]["status"] == "ok" for n in "abcd")
    assert shell(f"medkit run pair {name}1.nii.gz").code == 0


def test_children_do_not_run_modules_of_the_working_directory(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("a.nii.gz")
    (tmp_path / "program").mkdir()
    # run by its path, as the installed script is: `python -m` itself looks in the working directory
    (tmp_path / "program" / "run.py").write_text("import toy\nif __name__ == '__main__':\n    toy.main()\n")
    for module in ("copyreg", "types", "signal"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = shell(f"{sys.executable} program/run.py run fragile a.nii.gz --workers 1")
    assert done.code == 0, done.err
    assert not (tmp_path / "ran").exists()


def test_no_child_without_workers(start: Start, blob: Make, tmp_path: Path) -> None:
    for workers, expected in (("0", 0), ("2", 2)):
        marks = tmp_path / workers
        marks.mkdir()
        files = [blob(f"{workers}{n}.nii.gz") for n in "ab"]
        process = start("run", "wait", "--marks", marks, *files, "--workers", workers)
        wait_for(lambda expected=expected, marks=marks: len(list(marks.glob("*.started"))) >= max(1, expected))
        assert len(working(process.pid)) == expected
        assert expected or children(process.pid) == []
        (marks / "go").touch()
        assert len(process.communicate(timeout=30)[0].splitlines()) == 2


def test_records_come_as_they_are_finished(start: Start, blob: Make, tmp_path: Path) -> None:
    process = start("run", "wait", "--marks", tmp_path, blob("a.nii.gz"), blob("b.nii.gz"), "--workers", 2)
    assert process.stdout
    (tmp_path / "b.go").touch()
    assert process.stdout.readline().endswith("b_waited.nii.gz\n")
    (tmp_path / "a.go").touch()
    assert process.stdout.readline().endswith("a_waited.nii.gz\n")
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_polite_stop_lets_all_children_finish_their_cases(
    start: Start, blob: Make, tmp_path: Path, number: int
) -> None:
    inputs = [blob(f"{n}.nii.gz") for n in "abcdefghij"]
    process = start("run", "wait", "--marks", tmp_path, *inputs, "--workers", 2)
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    os.killpg(process.pid, number)  # a scheduler sends it to all processes of the job
    first, second = sorted(p.name[0] for p in tmp_path.glob("*.started"))
    time.sleep(0.5)
    (tmp_path / f"{first}.go").touch()
    time.sleep(0.5)
    (tmp_path / f"{second}.go").touch()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert sorted(Path(line).name[0] for line in out.splitlines()) == [first, second]
    assert len(list(tmp_path.glob("*.started"))) == 2
    assert leftovers(tmp_path) == []


def test_a_second_signal_drops_the_childrens_cases(start: Start, blob: Make, tmp_path: Path) -> None:
    process = start("run", "wait", "--marks", tmp_path, *[blob(f"{n}.nii.gz") for n in "abc"], "--workers", 2)
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    started = working(process.pid)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, "")
    assert leftovers(tmp_path) == []
    wait_for(lambda: not any(Path(f"/proc/{c}").exists() for c in started))


def test_fail_fast_ends_the_children(shell: Shell, blob: Make, tmp_path: Path) -> None:
    files = " ".join(str(blob(f"hang{n}.nii.gz")) for n in range(4))
    begin = time.monotonic()
    done = shell(f"medkit run fragile missing.nii.gz {files} --workers 3 --fail-fast")
    assert done.code in (1, 3)
    assert time.monotonic() - begin < 30  # each would hang for 60 s
    assert leftovers(tmp_path) == []


def test_time_limit_in_workers(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("hang.nii.gz"), blob("b.nii.gz")
    done = shell("medkit run fragile hang.nii.gz b.nii.gz --workers 1 --timeout-per-case 0.3")
    assert done.code == 1
    assert done.paths == [tmp_path / "b_copy.nii.gz"]
    assert "took longer than 0.3 s" in done.err
    assert leftovers(tmp_path) == []


def test_missing_weights_in_workers_are_exit_4(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz"), blob("b.nii.gz")
    done = shell("medkit run unready a.nii.gz b.nii.gz --workers 2")
    assert done.code == 4
    assert done.err.count("toy weights") == 1


def test_a_child_that_has_just_ended_is_dismissed_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    ended = context.Process(target=os.getpid)
    ended.start()
    ended.join()
    monkeypatch.setattr(ended, "is_alive", lambda: True)  # what was seen a moment before
    child = processes.ChildProcess.__new__(processes.ChildProcess)
    child._process = ended
    child.dismiss()


def test_usage_errors_and_failed_records_in_workers(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz")
    assert shell("medkit run pair a.nii.gz -o r.tfm --workers 2").code == 2
    assert shell("medkit run pair --workers 2").code == 1
    failed = '{"path": "/x.nii.gz", "medkit": {"status": "failed", "task": "pair"}}'
    done = shell(f"echo '{failed}' | medkit run pair --workers 2 --json")
    assert (done.code, done.records[0]["medkit"]["status"]) == (1, "failed")
    assert "x.nii.gz" not in done.err.split("failed:")[0]


def test_threads_are_shared_among_workers(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz")
    granted = min(2, len(os.sched_getaffinity(0)))
    for more, threads in (("--workers 2", 1), ("", granted), ("--threads 4 --workers 2", 4)):
        done = shell(f"medkit run pair a.nii.gz --json --overwrite {more}", env={"SLURM_CPUS_PER_TASK": "2"})
        assert done.records[0]["medkit"]["threads"] == threads


def test_a_killed_parent_takes_its_children_with_it(start: Start, blob: Make, tmp_path: Path) -> None:
    process = start("run", "wait", "--marks", tmp_path, *[blob(f"{n}.nii.gz") for n in "abc"], "--workers", 2)
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    started = working(process.pid)
    os.kill(process.pid, signal.SIGKILL)  # while they compute: their cases are dropped
    wait_for(lambda: not any(Path(f"/proc/{c}").exists() for c in started))
    assert len(list(tmp_path.glob("*.started"))) == 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("end", ["", "import os; os.kill(os.getpid(), 9)"])
def test_no_child_outlives_or_holds_up_a_program_that_ends(
    shell_environment: dict[str, str], blob: Make, tmp_path: Path, end: str
) -> None:
    """A child at work ignores SIGTERM, which multiprocessing sends to its processes before it waits for them."""
    blob("a.nii.gz")
    (tmp_path / "program.py").write_text(f"""
import functools, threading, time
from pathlib import Path
import toy
from medkit.options import RunOptions
from medkit.pipe.records import record_of
from medkit.run.outputs import Output, Targets
from medkit.run.processes import ChildProcess
from medkit.run.task import CasePlan, Task

if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    work = functools.partial(toy._wait, marks=folder)
    task = Task("wait", [Output("image", "image", "waited")], process=work, uses_torch=False)
    image, made = folder / "a.nii.gz", folder / "x.nii.gz"
    plan = CasePlan(record_of(image), {{"image": image}}, Targets({{"image": made}}))
    child = ChildProcess(task, RunOptions())
    threading.Thread(target=child.work, args=(plan,), daemon=True).start()
    while not (folder / "a.started").exists():
        time.sleep(0.05)
    {end}
""")
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=shell_environment, timeout=30)
    assert done.returncode == (-9 if end else 0)
    worker = int((tmp_path / "a.started").read_text())
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), 8)
    assert leftovers(tmp_path) == []
