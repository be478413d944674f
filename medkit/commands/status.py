"""`medkit status`: what has become of each input of a job array."""

from __future__ import annotations

import json

import click

from medkit.cluster.folder import find_folder
from medkit.cluster.progress import progress_of
from medkit.cluster.report import as_json, lines


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--json", "json_", is_flag=True, help="Print as JSON.")
def status(folder: str, json_: bool) -> int:
    """Show what has become of each input in the folder of medkit submit, or in one with records of --records.

    The exit code is 0 if all is done, 75 if there is work left, and 1 if all has ended but something failed.
    """
    progress = progress_of(find_folder(folder))
    if json_:
        click.echo(json.dumps(as_json(progress), indent=1))
    else:
        for line in lines(progress):
            click.echo(line)
    return progress.exit_code
