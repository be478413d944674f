"""Small files that are written completely or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def sync(path: Path) -> None:
    """Make sure that a file or folder is on disk, not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a small file completely or not at all; text as UTF-8, in which names of files keep their bytes."""
    with whole(path) as file:
        file.write(text.encode(errors="surrogateescape") if isinstance(text, str) else text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under `path` only if the block ends without an error, and then complete."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make a folder, and those that lead to it; if the block fails, remove again what was made and is empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:  # a signal as well
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def append(path: Path, content: bytes) -> None:
    """Add to a file completely or not at all; no other process may write it. Raises OSError, as on a full disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[os.write(descriptor, rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, mode: int = 0o600) -> Iterator[None]:
    """Hold the exclusive lock on a file for the block; the file is created with `mode` if it is missing, and stays.

    The system releases the lock when the process ends, however it ends. Raises BlockingIOError if another process
    holds the lock and `wait` is False, and another OSError where the file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        lock(descriptor, wait=wait)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> None:
    """Take the exclusive lock on an open file, for as long as the descriptor is open. Raises as `locked` does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # some systems answer EACCES where others answer EWOULDBLOCK
        raise BlockingIOError(*error.args) from None
