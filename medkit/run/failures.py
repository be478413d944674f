"""Cases that fail: the error as one line for people, and the record that travels on."""

from __future__ import annotations

import logging

from medkit.errors import CaseTimeout, InputError, MedkitError, no_room, reason_of
from medkit.options import RunOptions
from medkit.pipe.records import Record

log = logging.getLogger("medkit")


def failed_record(record: Record, task: str, message: str, error: BaseException) -> Record:
    """Return the record of a case that failed; its path is the input, so that it can be given again."""
    block = {
        "task": task,
        "status": "failed",
        "skipped": False,
        "look": False,
        "error": message,
        "refused": isinstance(error, InputError),
    }
    if no_room(error):
        block["no_room"] = True
    return Record(record.path, record.kind, record.sources, medkit=block, extra=record.extra)


def explain(error: BaseException, options: RunOptions) -> str:
    """Return an error as one line for people; the traceback of an unexpected error is logged for -v."""
    if isinstance(error, CaseTimeout):
        return f"took longer than {options.timeout_per_case:g} s (--timeout-per-case)"
    if isinstance(error, MedkitError):
        return str(error)
    log.debug("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        return f"not enough memory {error}".strip()
    if isinstance(error, OSError) and error.errno is not None:
        return reason_of(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def with_name(record: Record) -> str:
    """Return the message of a failed case, with the name of its file in front unless the message contains it.

    A newline in a name is escaped: the list of all failures has the first line of each message.
    """
    path, name = printable(str(record.path)), printable(record.path.name)
    message = str(record.medkit.get("error")).replace(str(record.path), path).replace(record.path.name, name)
    return printable(message if name in message else f"{path}: {message}", kept="\n")


def printable(text: str, kept: str = "") -> str:
    """Return a text with characters escaped that a terminal does not print, except those of `kept`.

    A carriage return would hide what comes before it.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)
