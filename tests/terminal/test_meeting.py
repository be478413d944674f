"""The file at which processes meet: who may write there, what a killed or silent one leaves, and what is imported."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from medkit.terminal import meeting
from medkit.terminal.meeting import Meeting, meeting_on
from medkit.terminal.screen import Screen


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: what is read of it, and what programs write on."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def member(path: Path) -> Meeting:
    """This process as a member with a bar."""
    found = Meeting(path)
    found.join()
    with found.held() as shared:
        assert shared is not None
        shared.bars[os.getpid()] = {"name": "x"}
        shared.frame = "\nbars"
    return found


def test_only_a_private_folder_is_used(
    terminal: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who could write there could write on this terminal."""
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    run.mkdir(), temporary.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    own = f"medkit-{os.getuid()}"

    def folder() -> Path | None:
        found = meeting_on(terminal[1], {"XDG_RUNTIME_DIR": str(run)})
        return found and found._path.parent

    assert folder() == run / own
    assert (run / own).stat().st_mode & 0o777 == 0o700
    (run / own).chmod(0o770)
    assert folder() == temporary / own
    (temporary / own).rmdir()
    (temporary / own).symlink_to(run)
    assert folder() is None


def test_the_file_goes_with_the_last_member(tmp_path: Path) -> None:
    found = member(tmp_path / "m")
    with found.held() as shared:
        assert shared is not None
        shared.bars.clear()
        found.leave()
    assert not (tmp_path / "m").exists()
    with found.held() as shared:
        assert shared is None


@pytest.mark.parametrize("content", [b"", b'{"bars": {"1', b"[]", b'{"bars": 3, "ended": {}, "drawer": null}'])
def test_a_torn_file_holds_nothing(tmp_path: Path, content: bytes) -> None:
    found = member(tmp_path / "m")
    (tmp_path / "m").write_bytes(content)
    with found.held() as shared:
        assert shared == meeting.Shared()


def test_what_dead_processes_report_is_left_out(tmp_path: Path) -> None:
    """Also if another process has got the id of a dead one: it holds no lock."""
    found = member(tmp_path / "m")
    with found.held() as shared:
        assert shared is not None
        shared.bars[os.getppid()] = {"name": "dead"}
        shared.drawer = os.getppid()
    with found.held() as shared:
        assert shared is not None
        assert list(shared.bars) == [os.getpid()]
        assert (shared.drawer, shared.frame) == (None, "\nbars"), "its bars still stand on the screen"


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
print("held", flush=True)
sys.stdin.read()
"""


def test_text_does_not_wait_for_a_process_that_hangs(
    terminal: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be stopped, or be in native code, while it keeps the file."""
    monkeypatch.setattr(meeting, "_PATIENCE", 0.05)
    found = member(tmp_path / "m")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "m")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError), found.held():
            pass
        Screen(terminal[1], found).write(b"a line\n")
        assert os.read(terminal[0], 100) == b"a line\r\n"
        holder.stdin.close()


def test_rich_is_imported_only_where_something_is_drawn() -> None:
    listing = "import sys, medkit.cli, medkit.task, medkit.commands.show, medkit.commands.evaluate.command\n"
    listing += "print([m for m in sys.modules if m.split('.')[0] == 'rich'])"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
