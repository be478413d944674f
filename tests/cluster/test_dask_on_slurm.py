"""Dask workers in jobs of a real Slurm, and what may happen to them.

After each fault every case has one result or one named failure; no job and no process is left (`on_slurm` checks that).
"""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm import finished, queue
from waiting import leftovers, processes_in, wait_for

from medkit.run import dask_run

pytestmark = pytest.mark.slow

Run = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]
ON_DASK = ["--executor", "dask", "--cluster", "jobs.yaml"]


@pytest.fixture(autouse=True)
def settings(tmp_path: Path) -> Callable[..., None]:
    """Write `jobs.yaml`, with further settings of the jobs and of Dask: settings({"cores": 4}, scheduler={...})."""
    for package in ("distributed", "dask_jobqueue"):
        pytest.importorskip(package, reason=f"{package} is not installed (medkit[hpc])")

    def write(more: dict[str, Any] | None = None, **distributed: Any) -> None:
        jobs = {"memory": "500MB", "interface": "lo", "log-directory": str(tmp_path / "logs")}
        jobs["job-script-prologue"] = ["unset PYTHONWARNINGS"]
        content = {"jobqueue": {"slurm": jobs | (more or {})}, "distributed": distributed}
        (tmp_path / "jobs.yaml").write_text(json.dumps(content))

    write()
    return write


@pytest.fixture
def waits(on_slurm: Run, start: Start, blob: Make, tmp_path: Path) -> Callable[[int], subprocess.Popen[str]]:
    """Start a run of so many cases that wait for a file `go`, in two jobs; returns once two of them were begun."""

    def begin(cases: int) -> subprocess.Popen[str]:
        inputs = [blob(f"{'abcdefgh'[n]}.nii.gz") for n in range(cases)]
        run = start("run", "wait", "--marks", tmp_path, *inputs, "-o", tmp_path / "out", *ON_DASK, "--jobs", 2)
        wait_for(lambda: len(started(tmp_path)) == 2, 60)
        return run

    return begin


def started(folder: Path) -> list[Path]:
    """The marks of the cases that were begun."""
    return sorted(mark for mark in folder.glob("*.started") if mark.stat().st_size)


def jobs() -> list[str]:
    """The numbers of the jobs in the queue."""
    return subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True).stdout.split()


def control(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=False, capture_output=True)


def ends_well(run: subprocess.Popen[str], cases: int, folder: Path) -> None:
    """Let the cases finish, and check that each has one result."""
    (folder / "go").touch()
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0, err
    assert sorted(Path(line).name[0] for line in out.splitlines()) == list("abcdefgh"[:cases])
    assert err.count("a_waited") <= 1
    assert leftovers(folder) == []
    finished(30)


FAULTS: dict[str, Callable[[Path], Any]] = {
    "job killed": lambda folder: subprocess.run(["scancel", "--signal=KILL", "--full", jobs()[0]]),
    "job cancelled": lambda folder: subprocess.run(["scancel", jobs()[0]]),
    "all jobs cancelled": lambda folder: subprocess.run(["scancel", *jobs()]),
    "job gives way": lambda folder: subprocess.run(
        ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    ),
    "node fails": lambda folder: control("update", "nodename=n1", "state=down", "reason=test"),
    "child killed": lambda folder: os.kill(int(started(folder)[0].read_text()), signal.SIGKILL),
}


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "child killed"])
def test_lost_jobs_are_replaced(waits: Callable[..., Any], tmp_path: Path, fault: str) -> None:
    run = waits(5)
    before = set(jobs())
    FAULTS[fault](tmp_path)
    try:
        if fault != "node fails":  # Slurm may take its time
            wait_for(lambda: set(jobs()) - before, 60)
        ends_well(run, 5, tmp_path)
    finally:
        control("update", "nodename=n1", "state=resume")


def test_a_child_that_dies_fails_its_case(waits: Callable[..., Any], tmp_path: Path) -> None:
    run = waits(4)
    FAULTS["child killed"](tmp_path)
    (tmp_path / "go").touch()
    out, err = run.communicate(timeout=60)
    assert (run.returncode, len(out.splitlines())) == (1, 3)
    assert "its worker process died (SIGKILL" in err
    assert "1 of 4 failed" in err
    finished(30)


def test_a_run_that_is_killed_leaves_no_job_and_no_process(waits: Callable[..., Any], tmp_path: Path) -> None:
    run = waits(4)
    run.kill()
    run.communicate()
    finished(15)
    wait_for(lambda: not processes_in(tmp_path), 15)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("signals", [1, 2])
def test_a_run_that_is_stopped(waits: Callable[..., Any], tmp_path: Path, signals: int) -> None:
    """The first signal lets the two cases in work finish; a second one drops them."""
    run = waits(5)
    for _ in range(signals):
        run.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    (tmp_path / "go").touch()
    out, err = run.communicate(timeout=60)
    assert run.returncode == 75, err
    assert len(out.splitlines()) == (2 if signals == 1 else 0)
    assert len(started(tmp_path)) == 2
    finished(15)
    assert leftovers(tmp_path) == []


def test_a_case_that_takes_too_much_memory(on_slurm: Run, blob: Make) -> None:
    for name in ("a", "b", "c", "hungry", "x", "y", "z"):
        blob(f"{name}.nii.gz")
    done = on_slurm(f"medkit run fragile *.nii.gz -o out {' '.join(ON_DASK)} --jobs 2")
    assert (done.code, sorted(path.name[0] for path in done.paths)) == (1, list("abcxyz"))
    assert "hungry.nii.gz: its workers were lost" in done.err
    assert "1 of 7 failed" in done.err


def test_a_native_call_that_holds_the_interpreter(on_slurm: Run, blob: Make, settings: Callable[..., None]) -> None:
    """The case is not taken for lost, although nothing answers for longer than Dask waits for a worker."""
    settings(scheduler={"worker-ttl": "2s"})
    blob("native.nii.gz"), blob("b.nii.gz")
    done = on_slurm(f"medkit run fragile *.nii.gz -o out {' '.join(ON_DASK)} --records records")
    assert (done.code, len(done.paths)) == (0, 2), done.err
    assert "lost" not in done.err


def test_jobs_that_stay_in_the_queue(waits: Callable[..., Any]) -> None:
    """While they wait, the run waits; a signal ends it."""
    run = waits(4)
    control("update", "partitionname=batch", "state=down")
    try:
        before = jobs()
        subprocess.run(["scancel", *before], check=True)
        wait_for(lambda: set(jobs()) - set(before) and "PENDING" in str(queue()), 60)
        run.terminate()
        out, err = run.communicate(timeout=10)
        assert (run.returncode, out) == (75, ""), err
        finished(15)
    finally:
        control("update", "partitionname=batch", "state=up")


def test_a_scheduler_that_takes_no_jobs_for_a_while(waits: Callable[..., Any], tmp_path: Path) -> None:
    run = waits(4)
    control("update", "partitionname=batch", "state=inactive")
    try:
        subprocess.run(["scancel", *jobs()], check=True)
        finished(15)
        time.sleep(8)
        assert run.poll() is None
    finally:
        control("update", "partitionname=batch", "state=up")
    ends_well(run, 4, tmp_path)


@pytest.fixture
def in_this_process(
    on_slurm: Run, toy: Run, shell_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Run]:
    """Run a task on Dask in this process, with Dask's settings as they were before at the end."""
    import dask
    import dask_jobqueue  # noqa: F401 - so that its defaults are there before they are copied

    monkeypatch.setattr(dask.config, "config", copy.deepcopy(dask.config.config))
    monkeypatch.setattr(dask.config.get, "__defaults__", (dask.config.no_default, dask.config.config, None))
    monkeypatch.setenv("PYTHONPATH", shell_environment["PYTHONPATH"])
    monkeypatch.chdir(tmp_path)
    yield lambda *words: toy("run", *words, *ON_DASK)
    gc.collect()  # so that a cluster that was not closed is noticed here, and not in another test


def test_a_scheduler_that_takes_no_jobs_any_more(
    in_this_process: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that was done stays done, the others are named."""
    monkeypatch.setattr(dask_run, "PATIENCE", 20.0)

    def fault() -> None:
        wait_for(lambda: started(tmp_path), 60)  # of the cases that wait for a worker, any one may be the first
        started(tmp_path)[0].with_suffix(".go").touch()
        wait_for(lambda: len(started(tmp_path)) == 2, 60)
        control("update", "partitionname=batch", "state=inactive")
        subprocess.run(["scancel", *jobs()], check=False)

    thread = threading.Thread(target=fault)
    thread.start()
    try:
        inputs = [blob(f"{name}.nii.gz") for name in "abc"]
        done = in_this_process("wait", "--marks", tmp_path, *inputs, "-o", tmp_path / "out")
    finally:
        thread.join()
        control("update", "partitionname=batch", "state=up")
    assert (done.code, len(done.lines)) == (1, 1), done.err
    first = Path(done.lines[0]).name[0]
    for name in set("abc") - {first}:
        assert (
            f"{name}.nii.gz: not done: no Dask worker for 20 s (the scheduler refuses the job: sbatch: error"
            in done.err
        )
    assert "2 of 3 failed" in done.err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"job-extra-directives": ["--gres=gpu:9"]}, "the scheduler refuses the job: sbatch: error"),
        ({"queue": "nowhere"}, "the scheduler refuses the job: sbatch: error: invalid partition"),
        ({"job-script-prologue": ["exit 1"]}, "jobs have ended, and no case was done; see their logs"),
    ],
)
def test_jobs_that_cannot_be(
    on_slurm: Run,
    blob: Make,
    settings: Callable[..., None],
    more: dict[str, Any],
    reason: str,
) -> None:
    settings(more)
    blob("a.nii.gz")
    done = on_slurm(f"medkit run pair a.nii.gz {' '.join(ON_DASK)}")
    assert (done.code, done.out) == (1, "")
    assert "a.nii.gz: not done: " in done.err
    assert reason in done.err


def test_jobs_end_while_no_case_arrives(on_slurm: Run, start: Start, blob: Make, tmp_path: Path) -> None:
    run = start("run", "pair", "-o", tmp_path / "out", *ON_DASK, "--jobs", 2)
    for name in "abcd":
        print(blob(f"{name}.nii.gz"), file=run.stdin, flush=True)
    wait_for(lambda: len(list((tmp_path / "out").glob("*_copy.nii.gz"))) == 4, 60)
    finished(30)
    print(blob("e.nii.gz"), file=run.stdin, flush=True)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, len(out.splitlines())) == (0, 5), err


def test_threads_are_the_cores_of_a_job(on_slurm: Run, blob: Make, settings: Callable[..., None]) -> None:
    """Also where the scheduler does not tell its jobs."""
    settings({"cores": 4, "job-script-prologue": ["unset PYTHONWARNINGS ${!SLURM_@}"]})
    blob("a.nii.gz")
    done = on_slurm(f"medkit run pair a.nii.gz --json {' '.join(ON_DASK)}")
    assert done.code == 0, done.err
    assert done.records[0]["medkit"]["threads"] == 4
