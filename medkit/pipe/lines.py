"""Lines in, lines out: the pipe between two commands.

Names travel, never voxels. Both ends are kept from libraries and child processes at the level of file descriptors, so
that not even C++ code can break a pipe: what they print goes to stderr, and what they read from stdin is empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from medkit.errors import MedkitError, UsageError
from medkit.pipe.records import Record
from medkit.terminal.screen import binary_output

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""How a text in UTF-16 begins: its byte-order mark."""
_private_stdin: list[BinaryIO | None] = []
"""The real stdin within `private_stdin`, None if it is closed; empty outside."""


class ReaderGoneError(Exception):
    """The next command of the pipe has ended, so nobody reads what would be printed."""


def text_lines(text: str) -> list[str]:
    """Return the lines of a file's text without their ends, which are newlines, CR and newline, or in old files CR.

    `str.splitlines` also ends lines at form feeds, U+2028 and others, which may be in names and labels.

    >>> text_lines("a" + chr(12) + "b" + chr(10) + "c" + chr(10))
    ['a\\x0cb', 'c']
    """
    end = "\n" if "\n" in text else "\r"
    lines = text.removesuffix(end).split(end)
    return [line.removesuffix("\r") for line in lines] if text else []


def input_lines(arguments: Sequence[str], list_file: Path | None, null: bool) -> Iterator[str]:
    """Yield the lines to work on: the arguments, or the lines of `list_file`, or of stdin.

    Stdin is read if there are no arguments, or in place of an argument `-`; its lines are yielded as they arrive.
    `null`: lines end in NUL instead of newline. Raises UsageError if stdin is a terminal, which would wait forever.
    """
    if list_file is not None:
        if arguments:
            raise UsageError("give the inputs either as arguments or with --list, not both")
        with open(list_file, "rb") as file:
            yield from _split(file, null)
        return
    for argument in arguments or ["-"]:
        if argument == "-":
            yield from _stdin_lines(null)
        elif argument.strip():
            yield argument


def _stdin_lines(null: bool) -> Iterator[str]:
    stream = _private_stdin[-1] if _private_stdin else _bytes_of(sys.stdin)
    if stream is None or stream.isatty():
        raise UsageError("no inputs: name files as arguments, or pipe their names into this command (see --help)")
    yield from _split(stream, null)


def _bytes_of(stream: TextIO | None) -> BinaryIO | None:
    return None if stream is None else getattr(stream, "buffer", stream)  # type: ignore[arg-type]


def _split(stream: BinaryIO, null: bool) -> Iterator[str]:
    """Yield non-blank lines without their final newline (or NUL), decoded like names of the file system.

    Raises UsageError for UTF-16.
    """
    for number, raw in enumerate(_null_separated(stream) if null else stream):
        if number == 0 and not null and raw.startswith(_UTF16) and b"\0" in raw:
            raise UsageError("the list of inputs is UTF-16 text, as Windows writes it: save it as UTF-8")
        line = os.fsdecode(raw if null else raw.removesuffix(b"\n"))
        if line.strip():
            yield line


def _null_separated(stream: BinaryIO) -> Iterator[bytes]:
    pending = b""
    # read1 returns what has arrived; read would wait for a full block while the previous stage still works
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        *complete, pending = (pending + block).split(b"\0")
        yield from complete
    if pending:
        yield pending


def shard_of(text: str, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return `K/N`, `auto` or `auto/N` as (K, N), 1-based. Raises UsageError.

    `auto` is the rank of this task in its whole job array, `auto/N` the task's number of N.
    """
    if text == "auto":
        return _scheduler_shard(environ)
    first, _, last = text.partition("/")
    try:
        n = int(last)
        k = _task_number(text, environ) if first == "auto" else int(first)
    except ValueError:
        raise UsageError(f"--shard {text}: expected K/N, such as 3/8, or auto, or auto/N") from None
    if not 1 <= k <= n:
        whose = f", got task {k} of an array that should have the numbers 1-{n}" if first == "auto" else ""
        raise UsageError(f"--shard {text}: expected 1 <= K <= N{whose}")
    return k, n


_ARRAYS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"),
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", None),
    ("LSB_JOBINDEX", None, "LSB_JOBINDEX_END", None),
    ("PBS_ARRAY_INDEX", None, None, None),
    ("PBS_ARRAYID", None, None, None),
)
"""Variables of job arrays: task, first, last, count; None where a scheduler does not tell."""


def _array_of(environ: Mapping[str, str]) -> tuple[str, str | None, str | None, str | None] | None:
    """Return the variables of the job array that this process is in."""
    for names in _ARRAYS:
        # outside an array Grid Engine sets "undefined" and LSF 0, which is an ordinary number for Slurm
        task = environ.get(names[0], "")
        if task.isdecimal() and not (names[0] == "LSB_JOBINDEX" and task == "0"):
            return names
    return None


def _task_number(text: str, environ: Mapping[str, str]) -> int:
    names = _array_of(environ)
    if names is None:
        raise UsageError(f"--shard {text}: no job array found (Slurm, SGE, LSF and PBS set one); use --shard K/N")
    return int(environ[names[0]])


def _scheduler_shard(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the rank of this process in its job array, and the array's size. Raises UsageError if either is unsure.

    A part of an array (a rerun of some tasks) looks like a whole one that does not begin at 0 or 1, or like one task.
    """
    names = _array_of(environ)
    if names is None:
        raise UsageError("--shard auto: no job array found (Slurm, SGE and LSF set one); use --shard K/N")
    task, first, last, count = names
    if task.startswith("PBS"):
        raise UsageError(f"--shard auto: PBS does not tell the array's size; use --shard auto/N ({task} of N)")
    lowest, highest = _number(environ, first) if first else 1, _number(environ, last)
    size = 0 if lowest is None or highest is None else highest - lowest + 1
    holes = count is not None and environ.get(count) != str(size)
    stepped = any(environ.get(v, "1") not in ("1", "") for v in ("SGE_TASK_STEPSIZE", "LSB_JOBINDEX_STEP"))
    number = int(environ[task])
    if lowest not in (0, 1) or size < 2 or holes or stepped or not lowest <= number <= lowest + size - 1:
        raise UsageError(
            f"--shard auto: the job array ({task}={environ[task]}) has holes or an unknown size, is a part of another "
            f"one or a single task, so its ranks might not cover all inputs; use an array 1-N and --shard auto/N"
        )
    return number - lowest + 1, size


def _number(environ: Mapping[str, str], name: str | None) -> int | None:
    value = environ.get(name, "") if name else ""
    return int(value) if value.isdecimal() else None


def take_shard(lines: Iterable[str], shard: tuple[int, int]) -> list[str]:
    """Return every N-th of the sorted, distinct lines from the K-th on: each line is in exactly one of N shards.

    That holds only if all shards see the same lines; where each lists for itself, see `in_shard`.
    """
    k, n = shard
    return sorted(set(lines), key=os.fsencode)[k - 1 :: n]


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Return whether a name belongs to the K-th of N shards: this depends on nothing but the name."""
    k, n = shard
    digest = hashlib.sha1(os.fsencode(name), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") % n == k - 1


class Emitter:
    """Writes the lines of finished cases, each flushed immediately."""

    def __init__(self, stream: BinaryIO, *, json: bool, null: bool) -> None:
        self._stream = stream
        self._json = json
        self._end = b"\0" if null else b"\n"

    def check_name(self, path: Path) -> None:
        """Raise MedkitError for a name that the next stage would read as two lines."""
        if self._end == b"\n" and not self._json and "\n" in str(path):
            raise MedkitError(f"{str(path)!r}: the name holds a newline; use -0 on both sides of the pipe, or --json")

    def emit(self, record: Record) -> None:
        """Print a record's line; a failed case has one only with `--json`. Raises ReaderGoneError."""
        if record.failed and not self._json:
            return
        line = record.line().encode() if self._json else os.fsencode(record.path)
        rest = memoryview(line + self._end)
        try:
            while rest:  # an unbuffered stream may take a long line in parts
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
        except BrokenPipeError:
            raise ReaderGoneError from None
        except OSError as error:
            raise MedkitError(f"the lines of results cannot be written to stdout: {error.strerror}") from None

    def reader_gone(self) -> bool:
        """Return whether the reader of the pipe has ended, so that more work would be useless."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            return False
        return nobody_reads(descriptor)


def nobody_reads(descriptor: int) -> bool:
    """Return whether the reader of a pipe, by its file descriptor, has ended."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def private_stdin() -> Iterator[None]:
    """Within the block, only `input_lines` reads the real stdin; for all else, child processes included, it is empty.

    A plugin that starts a program which reads stdin (ffmpeg, ssh) would otherwise swallow the cases piped in.
    """
    stream = sys.stdin
    if stream is not None and not _is_descriptor(stream, 0):  # click's test runner, an embedding program
        sys.stdin = io.StringIO()
        try:
            with _as_private_stdin(_bytes_of(stream)):
                yield
        finally:
            sys.stdin = stream
        return
    real = _duplicate(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    # closefd: a thread may still wait in this stream for a line when the run is over
    lines = None if stream is None else open(real, "rb", closefd=False)  # noqa: SIM115
    try:
        with _as_private_stdin(lines):
            yield
    finally:
        os.dup2(real, 0)
        os.close(real)


@contextlib.contextmanager
def _as_private_stdin(stream: BinaryIO | None) -> Iterator[None]:
    _private_stdin.append(stream)
    try:
        yield
    finally:
        _private_stdin.pop()


@contextlib.contextmanager
def guarded_stdout() -> Iterator[BinaryIO]:
    """Yield the real stdout; within the block, all else that Python or C++ prints to stdout goes to stderr.

    MONAI logs to stdout, and so do some readers and plugins; in a pipe that would be taken for a case.
    """
    stream, fallback = sys.stdout, sys.stderr or io.StringIO()
    if stream is not None and not _is_descriptor(stream, 1):  # click's test runner, an embedding program
        with contextlib.redirect_stdout(fallback):
            yield stream.buffer
        return
    if stream is not None:
        stream.flush()
    real = _duplicate(1)
    _point_at_stderr(1)
    try:
        # unbuffered: a broken pipe must raise at the write, and not once more when the stream is closed
        with contextlib.redirect_stdout(fallback), binary_output(real) as output:
            yield output
    finally:
        os.dup2(real, 1)
        os.close(real)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


def _duplicate(descriptor: int) -> int:
    try:
        return os.dup(descriptor)
    except OSError:  # started with a closed stdin or stdout (`>&-`): lines come from and go nowhere
        nowhere = os.open(os.devnull, os.O_RDWR)
        while nowhere <= 2:  # occupies the standard descriptors, so that no file opened later gets one of them
            nowhere = os.dup(nowhere)
        return nowhere


def _point_at_stderr(descriptor: int) -> None:
    source = _duplicate(2)
    os.dup2(source, descriptor)
    os.close(source)
