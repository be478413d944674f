"""Helpers of all kinds of `medkit evaluate`: results from lines, new files, sentences for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from medkit.errors import MedkitError, OutputError, UsageError
from medkit.pipe.records import Record, record_from_line


def inputs(files: tuple[str, ...], reference: str | None, listed: bool) -> tuple[tuple[str, ...], str]:
    """Return the arguments that name results (none: stdin names them), and the reference. Raises UsageError."""
    if reference is not None:
        return files, reference
    if len(files) < 2 or listed:
        raise UsageError("expected RESULT REFERENCE, or results with --reference FILE, FOLDER or PATTERN")
    return files[:-1], files[-1]


def records(lines: Iterable[str]) -> tuple[list[Record], list[str]]:
    """Return the records that lines stand for, each file once, and a sentence for each line without a usable record.

    Raises MedkitError if there are no lines.
    """
    found: dict[Path, Record] = {}
    bad = []
    for line in lines:
        try:
            record = record_from_line(line)
        except MedkitError as error:
            bad.append(f"{line}: {error}")
            continue
        if record.failed:
            bad.append(f"{record.path}: an earlier command failed on it")
        else:
            found.setdefault(record.path, record)
    if not found and not bad:
        raise MedkitError("no input arrived")
    return list(found.values()), bad


def new_file(path: Path, overwrite: bool) -> Path:
    """Return the path, checked before the work: it can be written afterwards. Raises OutputError."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already: use --overwrite, or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
    return path


def say(*sentences: str) -> None:
    """Print sentences for people on stderr, one per line."""
    for sentence in sentences:
        click.echo(f"medkit: {sentence}", err=True)
