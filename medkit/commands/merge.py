"""`medkit merge`: one file from the files of all shards."""

from __future__ import annotations

import click

from medkit.cluster.folder import JobFolder
from medkit.cluster.merging import merge as merge_files
from medkit.errors import UsageError
from medkit.pipe.records import absolute


@click.command()
@click.argument("folder", metavar="DIR")
def merge(folder: str) -> None:
    """Merge what shards have written side by side below DIR, and print the files that are made.

    The records become records.jsonl, with the latest of each case and task; X.K-of-N.tsv become X.tsv, lists of
    --failed become one list. The parts stay.
    """
    root = absolute(folder)
    if not root.is_dir():
        raise UsageError(f"{folder}: no such folder")
    for path in merge_files(JobFolder(root)):
        click.echo(path)
