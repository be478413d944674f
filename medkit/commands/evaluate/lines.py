"""What the forms of `medkit evaluate` share: results from lines, new files, sentences for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from medkit.errors import MedkitError, OutputError, UsageError
from medkit.pipe.records import Record, record_from_line


def inputs(files: tuple[str, ...], reference: str | None, listed: bool) -> tuple[tuple[str, ...], str]:
    """The results (none: those of stdin) apart from the reference. Raises UsageError."""
    if reference is not None:
        return files, reference
    if len(files) < 2 or listed:
        raise UsageError("expected RESULT REFERENCE, or results with --reference FILE, FOLDER or PATTERN")
    return files[:-1], files[-1]


def records(lines: Iterable[str]) -> tuple[list[Record], list[str]]:
    """What lines stand for, each file once, and a sentence for each line that stands for none or a failed case."""
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
    """A file that can be written when the scores are there. Raises OutputError."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already: use --overwrite, or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
    return path


def say(*sentences: str) -> None:
    """Sentences for people, a line each."""
    for sentence in sentences:
        click.echo(f"medkit: {sentence}", err=True)
