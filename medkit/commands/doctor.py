"""`medkit doctor`: what medkit finds on this machine, for a bug report."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(as_json: bool) -> int:
    """Show what medkit finds on this machine: versions, devices, threads, plugins, bundles, disks, and what is broken.

    The text is made for bug reports: it names no people, no machines, and no places outside medkit. The exit code is 1
    if something should be mended.
    """
    from medkit.diagnosis.findings import diagnose
    from medkit.diagnosis.lines import diagnosis_lines

    found = diagnose()
    if as_json:
        click.echo(json.dumps({"problems": list(found.problems), **found.facts}, indent=1))
    else:
        for line in diagnosis_lines(found):
            click.echo(line)
    return int(bool(found.problems))
