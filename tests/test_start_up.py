"""Signals from the first instruction on: a job that is stopped while it starts is queued again (exit code 75)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dicoms import write_series
from waiting import wait_for

BOTH = [signal.SIGTERM, signal.SIGUSR1]


def begin(environment: dict[str, str], folder: Path, code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start medkit with `code` run before its first import."""
    script = f"import sys\nsys.argv = ['medkit', *sys.argv[1:]]\n{code}\nfrom medkit.__main__ import main\nmain()\n"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, preexec_fn=heed_ctrl_c)


def heed_ctrl_c() -> None:
    """Undo what a process inherits that the background of a script runs: it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SLOW_IMPORT = """
import importlib.abc, os, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            open('here', 'w').close()
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""
"""Makes the import of a module take a minute, and writes a file `here` when it begins."""


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("module", ["medkit.cli", "click", "pluggy", "medkit_segment.command", "medkit.task"])
def test_while_modules_are_imported(
    shell_environment: dict[str, str], tmp_path: Path, number: signal.Signals, module: str
) -> None:
    process = begin(shell_environment, tmp_path, SLOW_IMPORT.format(name=module), "run", "segment", "a.nii.gz")
    wait_for(lambda: (tmp_path / "here").exists())
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, b"")
    assert number.name in err.decode()


@pytest.mark.parametrize("module", ["medkit.cli", "click"])
def test_ctrl_c_while_modules_are_imported(shell_environment: dict[str, str], tmp_path: Path, module: str) -> None:
    process = begin(shell_environment, tmp_path, SLOW_IMPORT.format(name=module), "bundle", "list")
    wait_for(lambda: (tmp_path / "here").exists())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"medkit: stopped by Ctrl-C\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["pack", "convert"])
def test_a_command_that_is_no_task_removes_what_it_has_begun(
    shell_environment: dict[str, str], tmp_path: Path, number: signal.Signals, code: int, command: str
) -> None:
    """The signal comes when the last file is written and has not got its name."""
    if command == "pack":
        moment, words = 1, ("bundle", "pack", "chest_xray_classification", "-o", "out/x.zip")
    else:  # the image has its name, its sidecar has not
        write_series(tmp_path / "series", 1)
        moment, words = 2, ("dicom", "convert", "series", "-o", "out")
    trouble = (
        "import os, signal\nsynced = []\n"
        "def sync(descriptor):\n    synced.append(descriptor)\n"
        f"    if len(synced) == {moment}: os.kill(os.getpid(), {int(number)})\n"
        "os.fsync = sync"
    )
    process = begin(shell_environment, tmp_path, trouble, *words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert b"Traceback" not in err
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_nothing_is_imported_before_the_handlers() -> None:
    """What runs before them ends with the signal's own code."""
    listing = "import sys; before = set(sys.modules); import medkit; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", listing], cwd=Path(__file__).parents[1], capture_output=True)
    assert done.stdout.split() == [b"medkit"]


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.6, 1.0])
def test_at_any_moment(
    shell_environment: dict[str, str], tmp_path: Path, scan: Callable[..., Path], number: signal.Signals, delay: float
) -> None:
    """The clock starts when the interpreter hands over to medkit."""
    inputs = [scan(f"{n}.nii.gz", seed=n) for n in range(2)]
    code = "import medkit.__main__; open('here', 'w').close()"
    command = ("run", "register", "--type", "rigid", "--fixed", inputs[0], *inputs, "-o", "out")
    process = begin(shell_environment, tmp_path, code, *command)
    wait_for(lambda: (tmp_path / "here").exists())
    time.sleep(delay + 0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (75, 0), err.decode()


@pytest.mark.parametrize("number", [*BOTH, signal.SIGINT])
def test_after_the_work_a_signal_changes_nothing(
    shell_environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """While Python ends, a handler would be gone already and the process would die of the signal."""
    code = f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))"
    process = begin(shell_environment, tmp_path, code, "--version")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err.decode()
