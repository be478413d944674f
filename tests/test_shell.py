"""Pipes in a real bash, as a user types them; `medkit` is that of toy.py, in new processes."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import leftovers, wait_for

Shell = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]


# ---- chains


def test_three_stages(shell: Shell, scan: Make, tmp_path: Path) -> None:
    scan("a.nii.gz"), scan("b.nii.gz", seed=1)
    done = shell("ls *.nii.gz | medkit run double -o d | medkit run halves | medkit run measure -o m")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / f"m/{n}_double_dseg_class.tsv" for n in "ab"]
    assert "image\ta_double.nii.gz" in done.paths[0].read_text()


def test_find_and_null(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("in/new\nline.nii.gz"), blob("in/b c.nii.gz")
    done = shell("find in -name '*.gz' -print0 | medkit run pair -0 -o o | xargs -0 ls | cat")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "o").glob("*.gz")) == ["b c_copy.nii.gz", "new\nline_copy.nii.gz"]


def test_cat_and_list_and_dash(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz"), blob("b.nii.gz"), blob("c.nii.gz")
    done = shell(
        "ls a.nii.gz b.nii.gz > list; cat list | medkit run pair - c.nii.gz -o o; medkit run pair --list list -o p"
    )
    assert [p.name for p in done.paths] == [f"{n}_copy.nii.gz" for n in "abcab"]


def test_a_failure_anywhere_fails_the_pipe(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz"), blob("fail.nii.gz")
    for form, lines in (("", 1), ("--json", 2)):
        done = shell(f"ls *.nii.gz | medkit run fragile {form} -o o{form} | medkit run pair {form}")
        assert done.code == 1
        assert len(done.lines) == lines
    assert [r["medkit"]["status"] for r in done.records] == ["ok", "failed"]


def test_nothing_else_reaches_stdout(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz"), blob("b.nii.gz")
    for workers in (0, 2):
        done = shell(f"medkit run fragile --noise a.nii.gz b.nii.gz --json --overwrite -v --workers {workers} 2>log")
        assert [r["medkit"]["status"] for r in done.records] == ["ok", "ok"]
        assert shell("grep -c noise log").out == "8\n"


def test_a_plugin_that_prints_on_import(shell: Shell, blob: Make, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import os\nprint('loud')\nos.write(1, b'loud\\n')\nfrom medkit import hookimpl\n"
        "@hookimpl\ndef medkit_tasks():\n    print('loud')\n    return []\n"
    )
    source = blob("a.nii.gz")
    done = shell(f"PYTHONPATH={tmp_path}:$PYTHONPATH medkit run pair {source}", env={"TOY_PLUGINS": "loud"})
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "a_copy.nii.gz"]
    assert done.err.count("loud") == 3


HUNGRY = """
import os, subprocess, sys
import click
from medkit import hookimpl
from medkit.options import task_options
from medkit.run.outputs import Output
from medkit.run.task import Result, Task, Text
from medkit.specs import TaskSpec
from medkit.task import run_task

try:
    input("Licence accepted? ")
except EOFError:
    pass


@hookimpl
def medkit_tasks():
    return [TaskSpec("hungry", "Reads stdin.", "hungry:command")]


def work(case):
    found = subprocess.run("cat", stdout=subprocess.PIPE).stdout + os.read(0, 99)
    return Result({"table": Text(f"{sys.stdin.read()}{found}")})


@click.command()
@task_options
def command(options):
    run_task(Task("hungry", [Output("table", "table", "found", ".tsv")], process=work, uses_torch=False), options)
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_plugin_that_reads_stdin_gets_nothing(shell: Shell, blob: Make, tmp_path: Path, workers: str) -> None:
    """Neither when it is imported, nor by a child process, nor by Python: the lines are medkit's."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    for n in "abc":
        blob(f"{n}.nii.gz")
    line = f"for n in a b c; do echo $n.nii.gz; sleep 0.3; done | medkit run hungry --workers {workers} -o o"
    done = shell(line, env={"TOY_PLUGINS": "hungry"})
    assert done.code == 0, done.err
    assert [p.name for p in done.paths] == [f"{n}_found.tsv" for n in "abc"]
    assert [p.read_text() for p in done.paths] == ["b''"] * 3


def test_a_closed_stdin_is_a_usage_error(shell: Shell) -> None:
    done = shell("medkit run pair <&-")
    assert (done.code, done.out) == (2, "")
    assert "no inputs" in done.err


def test_the_reader_going_away_ends_quietly(shell: Shell, blob: Make, tmp_path: Path) -> None:
    for number in range(30):
        blob(f"{number:02}.nii.gz")
    for workers in (0, 2):
        done = shell(f"medkit run pair *.nii.gz --no-progress -o o{workers} --workers {workers} | head -n 1")
        assert (done.code, len(done.lines), done.err) == (0, 1, "")
    assert len(list((tmp_path / "o0").glob("*.json"))) < 30
    assert [p for p in tmp_path.rglob(".*") if p.is_file() or p.suffix == ".part"] == []


@pytest.mark.parametrize("words", ["--help", "bundle list", "bundle show chest_xray_classification", "run --help"])
def test_a_reader_that_is_gone_is_no_failure(shell_environment: dict[str, str], words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        command = [sys.executable, "-m", "medkit", *words.split()]
        done = subprocess.run(command, env=shell_environment, stdout=stdout, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_stdout_and_stderr(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("a.nii.gz")
    done = shell("medkit run pair a.nii.gz -o o >&-")
    assert (done.code, done.out) == (0, "")
    assert "o/a_copy.nii.gz" not in done.err
    assert "Traceback" not in done.err
    assert (tmp_path / "o/a_copy.nii.gz").exists()
    done = shell("medkit run pair a.nii.gz missing.nii.gz -o p 2>&-")
    assert (done.code, done.paths, done.err) == (1, [tmp_path / "p/a_copy.nii.gz"], "")
    assert shell("medkit run pair a.nii.gz -o q >&- 2>&-").code == 0
    assert shell("medkit run pair <&-").code == 2
    for command in ("--help", "plugins", "--version", "show o/a_copy.nii.gz"):
        assert shell(f"medkit {command} >&-").code == 0


def test_closed_streams_of_commands_that_are_no_tasks(shell: Shell, scan: Make) -> None:
    """A descriptor that was free became stdin's copy, and then that of stdout."""
    scan("a.nii.gz")
    for closed in (">&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"):
        done = shell(f"medkit evaluate a.nii.gz a.nii.gz {closed}")
        assert (done.code, done.out, "Bad file" in done.err) == (0, "", False), closed
    done = shell("medkit evaluate a.nii.gz a.nii.gz 2>&-")
    assert (done.code, done.lines[0].split()[0]) == (0, "case")


@pytest.mark.parametrize("before", ["unset PYTHONUNBUFFERED", "export PYTHONUNBUFFERED=1"])
def test_messages_that_cannot_be_written_cost_no_result(shell: Shell, scan: Make, before: str) -> None:
    scan("a.nii.gz")
    assert "use --kind labels" in shell("medkit evaluate a.nii.gz a.nii.gz").err
    done = shell(f"{before}; medkit evaluate a.nii.gz a.nii.gz 2> /dev/full")
    assert (done.code, done.lines[0].split()[0]) == (0, "case")
    assert shell(f"{before}; medkit evaluate a.nii.gz missing.nii.gz 2> /dev/full").code == 3


def test_a_full_disk_under_stdout_is_no_success(shell: Shell, scan: Make) -> None:
    scan("a.nii.gz")
    done = shell("medkit run pair a.nii.gz > /dev/full")
    assert done.code == 1
    assert done.err.endswith("medkit: the lines of results cannot be written to stdout: No space left on device\n")
    assert "Traceback" not in done.err
    for before in ("unset PYTHONUNBUFFERED", "export PYTHONUNBUFFERED=1"):
        for command in ("plugins", "--help", "evaluate a.nii.gz a.nii.gz"):
            done = shell(f"{before}; medkit {command} > /dev/full")
            assert (done.code, done.err.splitlines()[-1]) == (1, "medkit: stdout: No space left on device")


@pytest.mark.parametrize(
    "line", ["medkit run pair a.nii.gz --failed nowhere/f", "MEDKIT_FAILED=nowhere/f medkit run pair a.nii.gz"]
)
def test_the_file_for_failures_is_looked_at_before_the_work(
    shell: Shell, blob: Make, tmp_path: Path, line: str
) -> None:
    blob("a.nii.gz")
    done = shell(line)
    assert done.code == 2
    assert f"--failed {tmp_path}/nowhere/f: there is no folder {tmp_path}/nowhere that can be written" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_working_directory_that_is_gone(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("a.nii.gz")
    enter = "mkdir gone; cd gone; rmdir ../gone;"
    # a script, since `python -m` itself needs the working directory
    (tmp_path / "run.py").write_text("import toy\ntoy.main()\n")
    run = f"{sys.executable} {tmp_path}/run.py run pair"
    done = shell(f"{enter} {run} {tmp_path}/a.nii.gz -o {tmp_path}/o")
    assert (done.code, done.out) == (0, f"{tmp_path}/o/a_copy.nii.gz\n"), done.err
    done = shell(f"{enter} {run} {tmp_path}/a.nii.gz -o p")
    assert (done.code, done.err) == (
        2,
        "medkit: p: the working directory is gone; give absolute paths, or change to a folder\n",
    )


def test_no_folder_for_temporary_files(shell: Shell, blob: Make, tmp_path: Path) -> None:
    blob("temporary.nii.gz")
    code = "import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/proc/none']\nimport toy\ntoy.main()\n"
    (tmp_path / "run.py").write_text(code)
    done = shell(f"{sys.executable} run.py run fragile temporary.nii.gz")
    assert done.code == 1
    assert "temporary.nii.gz: No usable temporary directory found in ['/proc/none']; set TMPDIR to a folder" in done.err
    assert "Errno" not in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a.nii.gz\r\na.nii.gz\r\n", r"a.nii.gz\r: no such file; the name ends in a carriage return"),
        (b"\xef\xbb\xbfa.nii.gz\nb.nii.gz\n", r"\ufeffa.nii.gz: no such file; the name holds a byte-order mark"),
        ("\ufeffa.nii.gz\n".encode("utf-16-le"), "the list of inputs is UTF-16 text"),
        ("\ufeffa.nii.gz\n".encode("utf-16-be"), "the list of inputs is UTF-16 text"),
    ],
)
def test_lists_of_windows(shell: Shell, blob: Make, tmp_path: Path, content: bytes, reason: str) -> None:
    blob("a.nii.gz")
    (tmp_path / "list").write_bytes(content)
    for given in ("--list list", "< list"):
        done = shell(f"medkit run pair -o o {given}")
        assert done.code != 0
        assert reason in done.err


def test_a_terminal_is_not_waited_for(shell_environment: dict[str, str], tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    try:
        for arguments in (["run", "pair"], ["run", "pair", "--json"], ["run", "pair", "-"]):
            command = [sys.executable, "-m", "toy", *arguments]
            done = subprocess.run(
                command, stdin=terminal, capture_output=True, env=shell_environment, cwd=tmp_path, timeout=60, text=True
            )
            assert done.returncode == 2
            assert "pipe their names into this command" in done.stderr
    finally:
        os.close(master), os.close(terminal)


def test_the_form_of_the_lines_does_not_depend_on_a_terminal(
    shell_environment: dict[str, str], blob: Make, tmp_path: Path
) -> None:
    master, terminal = pty.openpty()
    try:
        command = [sys.executable, "-m", "toy", "run", "pair", str(blob("a.nii.gz"))]
        subprocess.run(
            command, stdout=terminal, stderr=subprocess.DEVNULL, env=shell_environment, timeout=60, check=True
        )
        assert os.read(master, 4096).decode().splitlines() == [str(tmp_path / "a_copy.nii.gz")]
    finally:
        os.close(master), os.close(terminal)


@pytest.mark.parametrize("null", [False, True])
def test_a_line_comes_out_before_the_next_goes_in(start: Start, blob: Make, tmp_path: Path, null: bool) -> None:
    end = "\0" if null else "\n"
    process = start("run", "pair", *(["-0"] if null else []))
    assert process.stdin
    assert process.stdout
    for name in "abc":
        process.stdin.write(f"{blob(f'{name}.nii.gz')}{end}")
        process.stdin.flush()
        expected = f"{tmp_path}/{name}_copy.nii.gz{end}"
        assert process.stdout.read(len(expected)) == expected
    process.stdin.close()
    assert process.wait(30) == 0


def test_stages_overlap(shell_environment: dict[str, str], blob: Make, tmp_path: Path) -> None:
    """The second stage has worked on the first case while the first stage still works on the second."""
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks/a.go").touch()
    blob("a.nii.gz"), blob("b.nii.gz")
    line = "medkit run wait --marks marks a.nii.gz b.nii.gz | medkit run pair -o o"
    process = subprocess.Popen(
        ["bash", "-c", line], cwd=tmp_path, env=shell_environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_for((tmp_path / "o/a_waited_copy.json").exists)
    assert not (tmp_path / "b_waited.nii.gz").exists()
    (tmp_path / "marks/go").touch()
    assert process.wait(30) == 0
    assert (tmp_path / "o/b_waited_copy.json").exists()


# ---- signals


@pytest.fixture
def waiting(start: Start, blob: Make, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `run wait` over files and returns when the first one is being worked on."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def begin(*names: str, stdin: bool = False, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        files = [blob(f"{n}.nii.gz") for n in names]
        process = start("run", "wait", "--marks", marks, *more, *([] if stdin else files))
        if stdin:
            assert process.stdin
            process.stdin.writelines(f"{f}\n" for f in files)
            process.stdin.flush()
        wait_for((marks / f"{names[0]}.started").exists)
        return process

    return begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("stdin", [False, True])
def test_a_polite_stop_ends_after_the_case_at_hand(
    waiting: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, stdin: bool
) -> None:
    process = waiting("a", "b", stdin=stdin)
    process.send_signal(number)
    (tmp_path / "marks/go").touch()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out.splitlines() == [str(tmp_path / "a_waited.nii.gz")]
    assert "run again with --skip-existing" in err
    assert not (tmp_path / "marks/b.started").exists()
    assert leftovers(tmp_path) == []


def test_a_stop_during_the_last_case_leaves_no_work(
    waiting: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = waiting("a")
    process.send_signal(signal.SIGTERM)
    (tmp_path / "marks/go").touch()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(out.splitlines()) == 1


def test_a_second_signal_drops_the_case(waiting: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = waiting("a", "b")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, "")
    assert not (tmp_path / "a_waited.nii.gz").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0005, 0.002, 0.01])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_any_number_of_signals_ends_in_one_way(
    waiting: Callable[..., subprocess.Popen[str]], tmp_path: Path, gap: float, workers: str
) -> None:
    process = waiting("a", "b", more=("--workers", workers))
    for number in itertools.cycle([signal.SIGTERM, signal.SIGUSR1]):
        if process.poll() is not None:
            break
        process.send_signal(number)
        time.sleep(gap)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, ""), err
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_while_waiting_for_input(start: Start, blob: Make, number: int, workers: str) -> None:
    process = start("run", "pair", "--workers", workers)
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{blob('a.nii.gz')}\n")
    process.stdin.flush()
    assert process.stdout.readline().endswith("a_copy.nii.gz\n")
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(30) == 75
    assert process.stderr
    assert "Fatal" not in process.stderr.read()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c(waiting: Callable[..., subprocess.Popen[str]], tmp_path: Path, workers: str) -> None:
    process = waiting("a", "b", "c", more=("--workers", workers, "--failed", str(tmp_path / "failed")))
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the job
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "wait: stopped by Ctrl-C after 0 cases; run again with --skip-existing" in err
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "a_waited.nii.gz").exists()


def test_ctrl_c_in_the_middle_of_putting_files_in_place(shell: Shell, blob: Make, tmp_path: Path) -> None:
    """Four renames: an old sidecar goes first, then come two outputs and the new sidecar."""
    blob("a.nii.gz")
    for at in (1, 2, 3, 4):
        done = shell(f"medkit run pair a.nii.gz -o o{at} --interrupt-at {at}; echo $?")
        assert done.out == "130\n"
        done = shell(f"medkit run pair a.nii.gz -o o{at} --skip-existing")
        assert done.code == 0, done.err
    for at in (1, 2, 3, 4):
        shell(
            f"medkit run pair a.nii.gz -o p{at} && "
            f"medkit run pair a.nii.gz -o p{at} --overwrite --value 2 --interrupt-at {at}"
        )
        done = shell(f"medkit run pair a.nii.gz -o p{at} --skip-existing --value 2")
        assert done.code == 0, done.err
    assert leftovers(tmp_path) == []


# ---- one run at a time per name


def test_two_runs_never_write_one_name_at_once(
    waiting: Callable[..., subprocess.Popen[str]], shell: Shell, tmp_path: Path
) -> None:
    process = waiting("a")
    other = shell("medkit run wait --marks marks a.nii.gz --overwrite")
    assert other.code == 1
    assert "another process is writing it" in other.err
    (tmp_path / "marks/go").touch()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(out.splitlines()) == 1


def test_python_m_medkit(shell: Shell) -> None:
    done = shell(f"{sys.executable} -m medkit --version")
    assert done.code == 0
    assert done.out.startswith("medkit ")


def test_json_is_what_another_program_reads(shell: Shell, blob: Make) -> None:
    blob("a.nii.gz")
    script = "import sys, json; print([json.loads(line)['kind'] for line in sys.stdin])"
    assert shell(f'medkit run pair a.nii.gz --json 2>/dev/null | {sys.executable} -c "{script}"').out == "['image']\n"
    assert json.loads(shell("medkit show a_copy.nii.gz --json").out)["Sources"][0]["kind"] == "image"
