"""Files that are written completely or not at all, and locks."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from medkit.pipe.atomic import append, locked, made_folder, write_atomically

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_small_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", os.fsdecode(b"caf\xe9,\xc3\xa9"))
    assert (tmp_path / "a").read_bytes() == b"caf\xe9,\xc3\xa9"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_new_folders_go_again_with_what_was_to_be_in_them(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()

    def fail_in(folder: str, made: str = "") -> None:
        with made_folder(tmp_path / folder):
            assert (tmp_path / folder).is_dir()
            if made:
                (tmp_path / made).touch()
            raise error

    for words in (["old"], ["new/a/b"], ["other/c"], ["kept/d", "kept/file"]):
        with pytest.raises(error):
            fail_in(*words)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["kept", "kept/file", "old", "other", "other/file"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not grow takes a part of a line, as a disk that is nearly full does."""
    path = tmp_path / "log"
    append(path, b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        with pytest.raises(OSError, match="File too large"):
            append(path, b"second line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


def test_one_process_holds_a_lock(tmp_path: Path) -> None:
    """A lock belongs to an open file, so two descriptors of one process exclude each other as two processes do."""
    path = tmp_path / "lock"
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pytest.fail("it is held")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with locked(path, wait=False):
        pass
    assert path.exists()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []

    def second() -> None:
        with locked(path):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="not supported"), locked(tmp_path / "lock"):
        pytest.fail("there is no lock")


def test_refused_access_to_a_lock_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems answer EACCES where others answer EWOULDBLOCK."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pytest.fail("it is held")
