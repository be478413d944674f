"""`medkit dicom`: list the series of DICOM studies, and convert them to NIfTI."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from medkit.pipe.records import absolute

log = logging.getLogger("medkit")


def _absolute(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(absolute(value) for value in values)


def _places(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument for folders, zips, DICOMDIRs, files, and series in these."""
    return click.argument("places", nargs=-1, required=True, callback=_absolute, metavar="PATH...")(function)


@click.group()
def dicom() -> None:
    """List the series of DICOM studies, or convert them to NIfTI.

    \b
    medkit dicom list study/
    medkit dicom convert study.zip -o nifti
    """


@dicom.command(name="list", short_help="List the series, and what medkit makes of them.")
@_places
@click.option("--json", "as_records", is_flag=True, help="Print records (JSON, one per line), as tasks take them.")
@click.option("--identify", is_flag=True, help="Also print names, numbers, dates and descriptions.")
def list_(places: tuple[Path, ...], as_records: bool, identify: bool) -> int:
    """List the series in folders, zips, DICOMDIRs and files, and which of them a task takes.

    Only headers are read. On a terminal it is a table, in a pipe lines with tabs.
    """
    from medkit.studies.table import as_json, as_table, as_text, list_series

    found = list_series(places, identify=identify)
    for note in found.notes:
        log.warning("%s", note)
    if as_records:
        lines = as_json(found)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(as_table(found, identify=identify))
        lines = iter(())
    else:
        lines = as_text(found, identify=identify)
    for line in lines:
        click.echo(line)
    for error in found.errors:
        log.error("%s", error)
    return int(bool(found.errors))
