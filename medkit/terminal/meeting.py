"""Where the processes of one process group on one terminal meet: a small file with what each has to show.

The stages of a pipe are one process group. Each writes into the file how far it is, and one of them draws all bars.
Locks tell who is alive: every member holds one on a byte of its own, which the system frees however the process ends.
They are POSIX locks, which forked children do not inherit; but closing any descriptor of a file frees all locks that
the process has on it, so a process opens the file once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_CONTENT = 0
"""The byte whose lock is needed to read or write the file, or to write on the terminal."""
_MEMBERS = 1 << 32
"""Plus a process's id: the byte that it keeps locked."""
_PATIENCE = 1.0
"""Seconds to wait for the file: whoever has it may hang in native code, or be stopped by Ctrl-Z."""
_POLL = 0.005


@dataclass
class Shared:
    """What the file holds."""

    bars: dict[int, Any] = field(default_factory=dict)
    """Process id -> what its bar shows (see `medkit.terminal.progress`)."""
    drawer: int | None = None
    """The process that draws."""
    frame: str = ""
    """The bars as they stand on the screen; those of processes that have died as well, until somebody draws."""
    ended: dict[int, int] = field(default_factory=dict)
    """Pipe -> number of lines that a stage which has ended passed on through it."""


class Meeting:
    """The file of one process group on one terminal; it exists while one of them has a bar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_lock = threading.Lock()
        self._descriptor: int | None = None
        self._member: int | None = None
        """The id of this process if it has a bar: a forked child has another one."""
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._thread_lock = threading.Lock()
        self._descriptor = None

    @contextlib.contextmanager
    def held(self) -> Iterator[Shared | None]:
        """Yield what is shared, without processes that have died, and write it back; None if there is no meeting.

        Nobody else reads or writes it, nor writes on the terminal, within the block. Raises OSError, TimeoutError among
        them.
        """
        with self._thread_lock:
            descriptor = self._locked()
            if descriptor is None:
                yield None
                return
            try:
                before = _read(descriptor)
                shared = _alive(descriptor, before, self._member)
                yield shared
                if shared != before:
                    _write(descriptor, shared)
                if not shared.bars:
                    self._path.unlink(missing_ok=True)
            finally:
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _CONTENT)
                if self._member != os.getpid():
                    os.close(descriptor)
                    self._descriptor = None

    def join(self) -> None:
        """Be a member from the next `held` on: the file is created if it is missing."""
        self._member = os.getpid()

    def leave(self) -> None:
        """Be no member any more, from the end of the block of `held` on in which this is called."""
        self._member = None

    def _locked(self) -> int | None:
        """Return the file's descriptor with the content locked; None if there is none and this is no member."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            descriptor = self._descriptor if self._descriptor is not None else self._opened()
            if descriptor is None:
                return None
            self._descriptor = descriptor
            _lock(descriptor, _CONTENT, deadline)
            if self._is_there(descriptor):
                if self._member == os.getpid():
                    _lock(descriptor, _MEMBERS + os.getpid(), deadline)
                return descriptor
            os.close(descriptor)  # the last member removed it meanwhile
            self._descriptor = None

    def _opened(self) -> int | None:
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if self._member == os.getpid() else 0)
        try:
            return os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            return None

    def _is_there(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        return False


def meeting_on(terminal: int, environ: Mapping[str, str] = os.environ) -> Meeting | None:
    """Return where this process group meets on the terminal of a descriptor; None if there is no private folder."""
    folder = _private_folder(environ)
    if folder is None:
        return None
    name = f"{socket.gethostname()}-{os.fstat(terminal).st_rdev:x}-{os.getpgrp()}"
    return Meeting(folder / name)


def _private_folder(environ: Mapping[str, str]) -> Path | None:
    """Return a folder that only this user can write to, made when missing."""
    own = f"medkit-{os.getuid()}"
    for parent in (environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
        if not parent:
            continue
        folder = Path(parent) / own
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            if private and os.access(folder, os.W_OK):
                return folder
    return None


def _lock(descriptor: int, start: int, deadline: float) -> None:
    while not _try_lock(descriptor, start):
        if time.monotonic() > deadline:
            raise TimeoutError("another process keeps the terminal")
        time.sleep(_POLL)


def _try_lock(descriptor: int, start: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        return False
    return True


def _read(descriptor: int) -> Shared:
    """Return the content; nothing is shared if its writer was killed half-way."""
    try:
        content = json.loads(os.pread(descriptor, 1 << 20, 0))
        bars, ended = ({int(key): value for key, value in content[name].items()} for name in ("bars", "ended"))
        return Shared(bars, content["drawer"], content["frame"], ended)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Shared()


def _write(descriptor: int, shared: Shared) -> None:
    content = json.dumps(asdict(shared)).encode()
    os.ftruncate(descriptor, len(content))
    os.pwrite(descriptor, content, 0)


def _alive(descriptor: int, shared: Shared, member: int | None) -> Shared:
    """Return what living processes share; `member`: this process, which would not see its own lock."""
    bars = {pid: bar for pid, bar in shared.bars.items() if pid == member or _lives(descriptor, pid)}
    drawer = shared.drawer if shared.drawer in bars else None
    return Shared(bars, drawer, shared.frame, dict(shared.ended))


def _lives(descriptor: int, pid: int) -> bool:
    if not _try_lock(descriptor, _MEMBERS + pid):
        return True
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _MEMBERS + pid)
    return False
