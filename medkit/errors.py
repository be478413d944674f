"""The errors that medkit shows to users, each with its exit code, and words for messages.

A message names the file, what was expected and what came. Errors are caught once per case (the other cases continue)
and once at the top (`medkit.cli`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

__all__ = [
    "BundleError",
    "CaseTimeout",
    "InputError",
    "MedkitError",
    "OutputError",
    "PluginError",
    "Stopped",
    "TrainingError",
    "UsageError",
    "WeightsMissingError",
    "did_you_mean",
    "listed",
    "size_text",
]


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""


class MedkitError(Exception):
    """An error that a user can act on; shown as one line, without a traceback."""

    exit_code = 1


class UsageError(MedkitError):
    """The options contradict each other or cannot be used together."""

    exit_code = 2


class InputError(MedkitError):
    """An input was refused by the checks that come before any work on it."""

    exit_code = 3


class OutputError(MedkitError):
    """A result cannot, or must not, be written under its name."""


class BundleError(MedkitError):
    """A folder is not a bundle, or the config of a bundle cannot be used."""


class TrainingError(MedkitError):
    """A training cannot start or continue."""


class WeightsMissingError(MedkitError):
    """The weights of a bundle are not where its config expects them."""

    exit_code = 4


class PluginError(MedkitError):
    """A plugin cannot be imported, was written for another hook version, or shares a name with another plugin."""

    exit_code = 5


class Stopped(BaseException):
    """The scheduler asked this run to stop, by SIGTERM or SIGUSR1."""

    exit_code = 75


class CaseTimeout(BaseException):
    """A case took longer than --timeout-per-case."""


RUN_ENDS = (Stopped, KeyboardInterrupt)
"""What ends a run; everything else that is raised, also by `exit()` in a library, ends one case."""


def reason_of(error: OSError) -> str:
    """Return what the system says, with the name of the file and without the number of the error.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    """
    if error.errno is None and isinstance(error.__cause__, OSError):  # a library has put it into a text of its own
        error = error.__cause__
    reason = error.strerror or str(error)
    if "temporary directory" in reason:
        reason += "; set TMPDIR to a folder that can be written"
    return reason if error.filename is None else f"{error.filename}: {reason}"


def no_room(error: BaseException | None) -> bool:
    """Return whether an error comes from a disk that is full or read-only, which is true of all further cases."""
    return _caused_by(error, _NO_ROOM)


def not_taken(error: BaseException | None) -> bool:
    """Return whether the place of the results is meant where an error names none: no room, or a limit on files."""
    return _caused_by(error, (*_NO_ROOM, errno.EFBIG))


def _caused_by(error: BaseException | None, numbers: Sequence[int]) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def listed(names: Sequence[str], word: str = "and") -> str:
    """Return names as a list in words, for messages.

    >>> listed(["a", "b", "c"]), listed(["a", "b"], "or")
    ('a, b and c', 'a or b')
    """
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` if one of `names` is like `name`, else an empty string; for messages.

    >>> did_you_mean("brain_mri_segmentatoin", ["brain_mri_segmentation", "lung_ct"])
    '; did you mean brain_mri_segmentation?'
    """
    import difflib

    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def size_text(sizes: Iterable[object], form: str = "") -> str:
    """Return sizes along axes as text, for messages: a shape, or with `form` a spacing.

    >>> size_text((160, 197, 164)), size_text((1.0, 0.94, 1.21), ".1f")
    ('160 x 197 x 164', '1.0 x 0.9 x 1.2')
    """
    return " x ".join(format(size, form) for size in sizes)
