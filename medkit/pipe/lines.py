"""Lines in, lines out: the pipe between two commands.

Names travel, never voxels. Everything else that a library prints is kept away from stdout at the level of file
descriptors, so that not even C++ code can break a pipe.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from medkit.errors import MedkitError, UsageError
from medkit.pipe.records import Record


class ReaderGoneError(Exception):
    """The next command of the pipe has ended; nobody reads what we would print."""


def input_lines(arguments: Sequence[str], list_file: Path | None, null: bool) -> Iterator[str]:
    """The lines to work on: the arguments, `--list`'s file, or standard input where there are none or one is `-`.

    Lines of stdin are yielded as they arrive. Raises UsageError for a terminal on stdin: it would wait for ever.
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
    stream = sys.stdin
    if stream is None:
        raise UsageError("no inputs: name files as arguments, or pipe their names into this command")
    if stream.isatty():
        raise UsageError("no inputs: name files as arguments, or pipe their names into this command (see --help)")
    yield from _split(stream.buffer, null)


def _split(stream: BinaryIO, null: bool) -> Iterator[str]:
    """Non-blank lines without their final newline (or NUL), decoded as the file system's names are."""
    for raw in _null_separated(stream) if null else stream:
        line = os.fsdecode(raw if null else raw.removesuffix(b"\n"))
        if line.strip():
            yield line


def _null_separated(stream: BinaryIO) -> Iterator[bytes]:
    pending = b""
    # read1 hands over what has arrived; read would wait for a full block while the stage before us still works
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        *whole, pending = (pending + block).split(b"\0")
        yield from whole
    if pending:
        yield pending


def shard_of(text: str, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """`K/N` or `auto` as (K, N), 1-based. Raises UsageError."""
    if text == "auto":
        return _scheduler_shard(environ)
    try:
        k, n = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--shard {text}: expected K/N, such as 3/8, or auto") from None
    if not 1 <= k <= n:
        raise UsageError(f"--shard {text}: expected 1 <= K <= N")
    return k, n


def _scheduler_shard(environ: Mapping[str, str]) -> tuple[int, int]:
    """The rank of this process in its scheduler's job array. Raises UsageError where it is not known for certain."""
    arrays = (  # task, first, last, count or step
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"),
        ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", None),
        ("LSB_JOBINDEX", None, "LSB_JOBINDEX_END", None),
    )
    for task, first, last, count in arrays:
        # outside an array SGE says "undefined" and LSF 0, which is an ordinary rank for SLURM
        if not environ.get(task, "").isdigit() or (task == "LSB_JOBINDEX" and environ[task] == "0"):
            continue
        lowest = _number(environ, first) if first else 1
        highest = _number(environ, last)
        size = 0 if lowest is None or highest is None else highest - lowest + 1
        holes = count is not None and environ.get(count) != str(size)
        stepped = any(environ.get(v, "1") not in ("1", "") for v in ("SGE_TASK_STEPSIZE", "LSB_JOBINDEX_STEP"))
        if lowest is None or size < 1 or holes or stepped:
            raise UsageError(
                f"--shard auto: the job array ({task}={environ[task]}) has holes or an unknown size, so its ranks "
                f'would not cover all inputs; use an array 1-N and --shard "${task}/N"'
            )
        return int(environ[task]) - lowest + 1, size
    for task in ("PBS_ARRAY_INDEX", "PBS_ARRAYID"):
        if environ.get(task):
            raise UsageError(f'--shard auto: PBS does not tell the array\'s size; use --shard "${task}/N"')
    raise UsageError("--shard auto: no job array found (SLURM, SGE and LSF set one); use --shard K/N")


def _number(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    return int(value) if value.isdigit() else None


def take_shard(lines: Iterable[str], shard: tuple[int, int]) -> list[str]:
    """Every N-th of the sorted, distinct lines, from the K-th on: the shards 1..N cover all and share none."""
    k, n = shard
    return sorted(set(lines), key=os.fsencode)[k - 1 :: n]


class Emitter:
    """Writes the lines of finished cases, each flushed at once."""

    def __init__(self, stream: BinaryIO, *, json: bool, null: bool) -> None:
        self._stream = stream
        self._json = json
        self._end = b"\0" if null else b"\n"

    def check_name(self, path: Path) -> None:
        """Raises MedkitError for a name that would fall apart into two lines."""
        if self._end == b"\n" and not self._json and "\n" in str(path):
            raise MedkitError(f"{str(path)!r}: the name holds a newline; use -0 on both sides of the pipe, or --json")

    def emit(self, record: Record) -> None:
        """Prints a record's line; a failed case has one only as JSON. Raises ReaderGoneError."""
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

    def reader_gone(self) -> bool:
        """Whether the reader of the pipe has already left, so that more work would be in vain."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            return False
        poll = select.poll()
        poll.register(descriptor, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def guarded_stdout() -> Iterator[BinaryIO]:
    """Gives the real stdout, and sends all else that is printed meanwhile, by Python or C++, to stderr.

    MONAI logs to stdout, and so do some readers and plugins; in a pipe that would be taken for a case.
    """
    stream, fallback = sys.stdout, sys.stderr or io.StringIO()
    if stream is not None and not _is_descriptor_one(stream):  # click's test runner, an embedding program
        with contextlib.redirect_stdout(fallback):
            yield stream.buffer
        return
    if stream is not None:
        stream.flush()
    real = _duplicate(1)
    _point_at_stderr(1)
    try:
        # unbuffered: a broken pipe must be seen at the write, not again when the stream is closed
        with contextlib.redirect_stdout(fallback), os.fdopen(real, "wb", buffering=0, closefd=False) as output:
            yield output
    finally:
        os.dup2(real, 1)
        os.close(real)


def _is_descriptor_one(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _duplicate(descriptor: int) -> int:
    try:
        return os.dup(descriptor)
    except OSError:  # started with a closed stdout (`>&-`): the lines go nowhere
        nowhere = os.open(os.devnull, os.O_RDWR)
        while nowhere <= 2:  # fills the standard descriptors, so that no file of ours is taken for one of them
            nowhere = os.dup(nowhere)
        return nowhere


def _point_at_stderr(descriptor: int) -> None:
    source = _duplicate(2)
    os.dup2(source, descriptor)
    os.close(source)
