"""`medkit dicom`: list the series of DICOM studies, and convert them to NIfTI."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from medkit.options import absolute_path
from medkit.pipe.records import absolute
from medkit.terminal.tables import columns_of, draw

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
    elif columns := columns_of(sys.stdout):
        lines = iter([draw(as_table(found, identify=identify), columns, sys.stdout).rstrip("\n")])
    else:
        lines = as_text(found, identify=identify)
    for line in lines:
        click.echo(line)
    for error in found.errors:
        log.error("%s", error)
    return int(bool(found.errors))


@dicom.command(short_help="Convert series to NIfTI, with sidecars and gradients.")
@_places
@click.option(
    *("-o", "--output"), required=True, callback=absolute_path, type=click.Path(file_okay=False), metavar="DIR",
    help="Folder of the files.",
)  # fmt: skip
@click.option(
    "--name", "pattern", metavar="PATTERN", help="Names such as '{patient}/{series}_{modality}'.  [default: BIDS]"
)
@click.option("--patient", metavar="LABEL", help="The label of the only person.  [default: persons are numbered]")
@click.option("--all", "everything", is_flag=True, help="Also localizers and derived series.")
@click.option("--suv/--no-suv", "uptake", default=True, help="PET in SUV where the header allows it.  [default: on]")
@click.option("--identify", is_flag=True, help="Let --name use names, numbers and dates.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_records", is_flag=True, help="Print records (JSON, one per line) instead of paths.")
def convert(places: tuple[Path, ...], as_records: bool, **choices: Any) -> int:
    """Convert the series in folders, zips, DICOMDIRs and files to NIfTI, and print the path of each file.

    Series of several volumes become 4D; diffusion gets .bval and .bvec files as FSL has them. Sidecars have dcm2niix's
    keys and nothing that names a person.
    """
    from medkit.studies.converting import Conversion, ConvertChoices

    conversion, told = Conversion(ConvertChoices(**choices)), 0
    for record in conversion.files(places):
        for note in conversion.notes[told:]:
            log.warning("%s", note)
        told = len(conversion.notes)
        click.echo(record.line() if as_records else str(record.path))
    for note in conversion.notes[told:]:
        log.warning("%s", note)
    for error in conversion.errors:
        log.error("%s", error)
    return int(bool(conversion.errors))
