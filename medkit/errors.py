"""The errors that medkit shows to users, each with the exit code it ends a run with.

A message names the file, what was expected and what came. Errors are caught once per case (the other cases go on) and
once at the top (`medkit.cli`).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    "listed",
]


class MedkitError(Exception):
    """Something a user can act on; shown as one line, without a traceback."""

    exit_code = 1


class UsageError(MedkitError):
    """The options contradict each other or cannot be used together."""

    exit_code = 2


class InputError(MedkitError):
    """An input was refused by the sanity check, before any work on it."""

    exit_code = 3


class OutputError(MedkitError):
    """A result could not be written under its name, or must not be."""


class BundleError(MedkitError):
    """A folder is no bundle, or a bundle's config cannot be used."""


class TrainingError(MedkitError):
    """A training cannot begin or go on."""


class WeightsMissingError(MedkitError):
    """A bundle's weights are not where the bundle says."""

    exit_code = 4


class PluginError(MedkitError):
    """A plugin could not be imported, speaks another hook version, or shares a name with another plugin."""

    exit_code = 5


class Stopped(BaseException):
    """The scheduler asked this run to stop (SIGTERM, SIGUSR1)."""

    exit_code = 75


class CaseTimeout(BaseException):
    """A case took longer than --timeout-per-case."""


def listed(names: Sequence[str]) -> str:
    """`a, b and c`, for messages.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
