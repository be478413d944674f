"""Bars of several stages on one terminal, as a person sees them: an interactive bash on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from screens import Terminal
from waiting import wait_for

Make = Callable[..., Path]
Open = Callable[..., Terminal]
SLOW = pytest.mark.slow
STAGES = ("align", "label", "measure")
PIPE = " | ".join(f"medkit run wait --called {name} --marks {name} -o out-{name}" for name in STAGES)


@pytest.fixture
def terminal(shell_environment: dict[str, str], tmp_path: Path) -> Iterator[Open]:
    """Open a terminal in `tmp_path`: terminal(columns=60, NO_COLOR="1")."""
    opened: list[Terminal] = []

    def begin(columns: int = 100, rows: int = 30, **environment: str) -> Terminal:
        opened.append(Terminal(shell_environment | environment, tmp_path, columns, rows))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


@pytest.fixture
def pipe(terminal: Open, blob: Make, tmp_path: Path) -> Open:
    """Begin a pipe of three stages over a, b and c, in which each case waits for its mark; return once it is drawn."""
    for name in "abc":
        blob(f"{name}.nii.gz")
    for stage in STAGES:
        (tmp_path / stage).mkdir()

    def begin(after: str = "", **settings: str | int) -> Terminal:
        found = terminal(**settings)
        found.run(f"ls ?.nii.gz | {PIPE} {after}")
        found.wait(lambda: names(found) == [*STAGES] and "computing a.nii.gz" in found.bars[0])
        return found

    return begin


def names(terminal: Terminal) -> list[str]:
    return [line.split()[0] for line in terminal.bars]


def process_of(stage: str, folder: Path, case: str = "a") -> int:
    """The process that works on a case of a stage."""
    started = folder / stage / f"{case}.started"
    wait_for(lambda: started.exists() and started.read_text())
    return int(started.read_text())


def is_clean(terminal: Terminal) -> bool:
    """Whether nothing is left of the bars, and the shell has the terminal as it was."""
    return not terminal.bars and terminal.prompted and not terminal.screen.cursor.hidden


def go(folder: Path, *stages: str) -> None:
    """Let the stages do all their cases."""
    for stage in stages:
        (folder / stage / "go").touch()


def test_three_stages(pipe: Open, tmp_path: Path) -> None:
    seen = pipe(columns=160)
    (tmp_path / "align/a.go").touch()
    seen.wait(lambda: "computing a_waited.nii.gz" in seen.bars[1])
    assert names(seen) == [*STAGES]
    go(tmp_path, *STAGES)
    seen.wait(lambda: is_clean(seen))
    text = "\n".join(seen.lines)
    for stage in STAGES:
        assert text.count(f"{stage} [") == 3, text
    assert [line for line in seen.lines if line.startswith("/")] == [
        str(tmp_path / f"out-measure/{name}_waited_waited_waited.nii.gz") for name in "abc"
    ]
    assert len(seen.lines) == 3 * 4 + 1, text
    assert not list(tmp_path.glob("medkit-*/*"))


@pytest.mark.parametrize("columns", [60, pytest.param(100, marks=SLOW)])
def test_ctrl_c(pipe: Open, tmp_path: Path, columns: int) -> None:
    seen = pipe(columns=columns)
    seen.type("\x03")
    seen.wait(lambda: is_clean(seen))
    text = "\n".join(seen.lines)
    assert text.count("stopped by Ctrl-C") == 3, text
    assert "Traceback" not in text
    assert not list(tmp_path.glob("medkit-*/*"))


@pytest.mark.parametrize("killed", ["align", pytest.param("label", marks=SLOW), pytest.param("measure", marks=SLOW)])
def test_a_stage_is_killed(pipe: Open, tmp_path: Path, killed: str) -> None:
    """Whichever it is, one of the three draws: its successor clears what it has left."""
    seen = pipe(columns=160)
    at_work = {"align": "c", "label": "b_waited", "measure": "a_waited_waited"}
    for mark in ("align/a.go", "align/b.go", "label/a_waited.go"):
        (tmp_path / mark).touch()
    pids = {stage: process_of(stage, tmp_path, case) for stage, case in at_work.items()}
    seen.wait(lambda: all(f"{case}.nii.gz" in bar for case, bar in zip(at_work.values(), seen.bars, strict=True)))
    os.kill(pids[killed], signal.SIGKILL)
    left = [stage for stage in STAGES if stage != killed]
    seen.wait(lambda: names(seen) == left)
    go(tmp_path, *left)
    seen.wait(lambda: is_clean(seen))
    assert not list(tmp_path.glob("medkit-*/*"))


@SLOW
def test_many_lines_come_whole_and_above(terminal: Open, blob: Make, tmp_path: Path) -> None:
    for name in ("a", "doubt", *(f"n{n}" for n in range(30))):
        blob(f"{name}.nii.gz")
    (tmp_path / "align").mkdir()
    seen = terminal(columns=120, rows=60)
    seen.run("medkit run wait --called align --marks align *.nii.gz -o o | medkit run fragile -o p")
    seen.wait(lambda: names(seen) == ["align", "fragile"])
    (tmp_path / "align" / "a.go").touch()
    seen.wait(lambda: any(line.startswith("fragile [1") for line in seen.lines))
    go(tmp_path, "align")
    seen.wait(lambda: is_clean(seen))
    lines = [*seen.history, *seen.lines]
    assert not [line for line in lines if "━" in line]
    for stage in ("align", "fragile"):
        numbers = [line.split("[")[1].split("]")[0].split("/")[0] for line in lines if line.startswith(f"{stage} [")]
        assert numbers == [str(n) for n in range(1, 33)]
    assert len([line for line in lines if line.startswith("/") and line.endswith("_copy.nii.gz")]) == 32
    assert len([line for line in lines if "needs a look" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [("--no-progress", {}), ("-q", {}), ("", {"MEDKIT_NO_PROGRESS": "1"}), ("", {"TERM": "dumb"}), ("2>err", {})],
    ids=["no-progress", "quiet", "variable", "dumb", "file"],
)
def test_where_there_are_no_bars(
    terminal: Open, blob: Make, tmp_path: Path, arguments: str, environment: dict[str, str]
) -> None:
    """The case takes longer than it takes until a bar appears."""
    blob("slow.nii.gz")
    seen = terminal(columns=160)
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    seen.run(f"{variables} medkit run fragile slow.nii.gz {arguments}")
    before = len(seen.raw)
    seen.wait(lambda: is_clean(seen))
    printed = seen.raw[before:].decode()
    assert "━" not in printed
    assert "\x1b[J" not in printed
    assert str(tmp_path / "slow_copy.nii.gz") in seen.lines
    line = "fragile [1/1] slow.nii.gz  1."
    assert (line in printed) == ("TERM" in environment)
    if arguments == "2>err":
        assert re.fullmatch(r"fragile \[1/1\] slow.nii.gz  1.\d s\n", (tmp_path / "err").read_text())


def test_no_color(pipe: Open, tmp_path: Path) -> None:
    seen = pipe(NO_COLOR="1")
    assert not re.search(rb"\x1b\[[349]\d", seen.raw[seen.raw.index("━".encode()) - 40 :])
    go(tmp_path, *STAGES)
    seen.wait(lambda: is_clean(seen))


@SLOW
def test_stopped_and_continued(pipe: Open, tmp_path: Path) -> None:
    """Ctrl-Z and fg: what the shell has printed meanwhile stays, with what it has not overwritten of the bars."""
    seen = pipe(columns=160)
    seen.type("\x1a")
    seen.wait(lambda: any("Stopped" in line for line in seen.lines))
    seen.type("echo between\n")
    seen.wait(lambda: "between" in seen.lines)
    seen.type("fg\n")
    seen.wait(lambda: names(seen)[-3:] == [*STAGES] and seen.lines[-4] == "")
    go(tmp_path, *STAGES)
    seen.wait(lambda: seen.prompted)
    assert "between" in "\n".join(seen.lines)
    assert "\n".join(seen.lines).count("measure [") == 3


@SLOW
def test_no_bars_in_the_background(terminal: Open, blob: Make, tmp_path: Path) -> None:
    blob("slow.nii.gz")
    seen = terminal(columns=160)
    seen.type("medkit run fragile slow.nii.gz &\n")
    seen.wait(lambda: "fragile [1/1]" in "\n".join(seen.lines))
    assert b"\x1b[J" not in seen.raw
