"""Names that another process holds: an error, but under --skip-existing they are waited for."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import handles, leftovers, wait_for

Run = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]
WORKERS = pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])


@pytest.fixture
def holder(start: Start, blob: Make, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that works on a.nii.gz until a file `go` appears."""
    blob("a.nii.gz")
    process = start("run", "wait", "--marks", ".", "a.nii.gz", "-o", "o")
    wait_for(lambda: (tmp_path / "a.started").exists())
    return process


@WORKERS
def test_a_result_that_another_process_makes_is_waited_for_and_kept(
    holder: subprocess.Popen[str], start: Start, tmp_path: Path, workers: int
) -> None:
    second = start("run", "wait", "--marks", ".", "a.nii.gz", "-o", "o", "--skip-existing", "--workers", workers)
    time.sleep(1.5)
    assert second.poll() is None
    (tmp_path / "go").touch()
    out, err = second.communicate(timeout=30)
    assert (second.returncode, Path(out.strip()).name) == (0, "a_waited.nii.gz"), err
    assert "kept" in err
    assert holder.wait(30) == 0
    assert leftovers(tmp_path) == []


@WORKERS
def test_the_case_of_a_process_that_is_killed_is_done(
    holder: subprocess.Popen[str], start: Start, tmp_path: Path, workers: int
) -> None:
    second = start("run", "wait", "--marks", ".", "a.nii.gz", "-o", "o", "--skip-existing", "--workers", workers)
    time.sleep(1)
    holder.kill()
    (tmp_path / "go").touch()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert "kept" not in err
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_otherwise_it_is_an_error(holder: subprocess.Popen[str], toy: Run, tmp_path: Path, more: list[str]) -> None:
    done = toy("run", "wait", "--marks", tmp_path, tmp_path / "a.nii.gz", "-o", tmp_path / "o", *more)
    assert done.code == 1
    assert "another process is writing it" in done.err


@WORKERS
@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_wait(
    holder: subprocess.Popen[str], start: Start, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    second = start("run", "wait", "--marks", ".", "a.nii.gz", "-o", "o", "--skip-existing", "--workers", workers)
    wait_for(lambda: handles(second.pid, number))
    time.sleep(1.5)
    begin = time.monotonic()
    second.send_signal(number)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 75, err
    assert time.monotonic() - begin < 5
    assert "died" not in err


@pytest.mark.slow
def test_a_wait_is_not_counted_as_time_on_the_case(holder: subprocess.Popen[str], start: Start, tmp_path: Path) -> None:
    options = ("--skip-existing", "--workers", 1, "--timeout-per-case", 0.3)
    second = start("run", "wait", "--marks", ".", "a.nii.gz", "-o", "o", *options)
    time.sleep(1.5)
    (tmp_path / "go").touch()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 0, err


def test_two_equal_runs_share_the_work(start: Start, toy: Run, blob: Make, tmp_path: Path) -> None:
    """Both end with 0 and name all results; no result is made twice."""
    names = [blob(f"{n}.nii.gz").name for n in "abcdefghij"]
    (tmp_path / "go").touch()
    runs = [start("run", "wait", "--marks", ".", *names, "-o", "o", "--skip-existing", "--json") for _ in range(2)]
    texts: list[tuple[str, str]] = []
    threads = [threading.Thread(target=lambda r=run: texts.append(r.communicate(timeout=60))) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.returncode for run in runs] == [0, 0], texts
    assert [out.count('"skipped": false') for out, _ in texts] in ([n, 10 - n] for n in range(11))
    assert [out.count("\n") for out, _ in texts] == [10, 10]
