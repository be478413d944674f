"""`medkit submit`: a pipe over many inputs as a job array."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from medkit.cluster.folder import JobFolder
from medkit.cluster.schedulers import SCHEDULERS
from medkit.cluster.stages import tasks_here
from medkit.cluster.submitting import prepare, prepare_again
from medkit.errors import UsageError
from medkit.options import absolute_path, bytes_of
from medkit.pipe.lines import input_lines


def _minutes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return minutes; callback of `--time`, given as minutes or H:MM:SS."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)(?::(\d\d):(\d\d))?", value)
    if not match:
        raise click.BadParameter(f"{value}: expected minutes, or hours as 2:30:00")
    return int(match[1]) if match[2] is None else 60 * int(match[1]) + int(match[2]) + bool(int(match[3]))


@click.command()
@click.argument("scheduler", type=click.Choice(sorted(SCHEDULERS)))
@click.argument("pipeline", nargs=-1, metavar="[-- COMMANDS]")
@click.option(
    "-o",
    "--output",
    callback=absolute_path,
    required=True,
    metavar="DIR",
    help="Folder for the list, the scripts, the records, and the results.",
)
@click.option(
    "--list",
    "list_",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read the inputs from FILE.  [default: stdin]",
)
@click.option("--shards", type=click.IntRange(min=1), metavar="N", help="Deal the inputs out to N jobs.")
@click.option("--max-running", type=click.IntRange(min=1), metavar="N", help="Let at most N jobs run at once.")
@click.option(
    "--only",
    type=click.Choice(["failed"]),
    help="Submit again the shards that have failed or were lost, and no others.",
)
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="Processors of a job.  [default: 1]")
@click.option("--mem", callback=bytes_of, metavar="SIZE", help="Memory of a job, such as 6G.")
@click.option("--time", "minutes", callback=_minutes, metavar="MIN|H:MM:SS", help="Time limit of a job.")
@click.option("--gpus", type=click.IntRange(min=0), metavar="N", help="GPUs of a job.  [default: 0]")
@click.option(
    "--job-arg",
    "arguments",
    multiple=True,
    metavar="ARG",
    help="A further argument for the scheduler, such as --partition=long; repeatable.",
)
@click.option(
    "--like",
    callback=absolute_path,
    metavar="DIR",
    help="A folder with records that tell how much memory and time is needed.  [default: that of -o]",
)
@click.option("--dry-run", is_flag=True, help="Print the scripts, and submit nothing.")
def submit(
    scheduler: str,
    pipeline: tuple[str, ...],
    output: Path,
    list_: Path | None,
    shards: int | None,
    max_running: int | None,
    only: str | None,
    like: Path | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """Run shell COMMANDS over a list of inputs, dealt out to the jobs of an array; prints the number of the job.

    \b
    ls scans/* | medkit submit slurm --shards 64 -o out -- 'medkit run register --fixed f.nii.gz | medkit run segment'

    COMMANDS get the inputs on stdin, one per line, and may be any. A job that is stopped goes back into the queue and
    continues. Without --mem and --time, records of earlier runs tell what to ask for, or else the cluster does.
    """
    folder = JobFolder(output)
    request = _request(**asked)
    records = JobFolder(like).records if like else folder.records
    if only:
        if pipeline or list_ or shards:
            raise UsageError("--only failed takes the list, the shards and the commands of the earlier submission")
        prepared = prepare_again(folder, scheduler, request, max_running, records)
    else:
        if shards is None:
            raise UsageError("--shards N is missing: into how many jobs should the inputs be dealt out?")
        commands = pipeline[0] if len(pipeline) == 1 else shlex.join(pipeline)
        inputs = list(input_lines((), list_, null=False))
        _check_tasks(commands)
        prepared = prepare(folder, scheduler, commands, inputs, shards, request, max_running, records)
    for note in prepared.notes:
        click.echo(f"medkit: {note}", err=True)
    if dry_run:
        click.echo(prepared.text(), nl=False)
    else:
        for job in prepared.submit():
            click.echo(job)


def _request(
    cpus: int | None, mem: int | None, minutes: int | None, gpus: int | None, arguments: tuple[str, ...]
) -> dict[str, Any]:
    """Return what was asked for, as keywords of `medkit.cluster.request.Request`."""
    given = {"cpus": cpus, "memory_mb": mem and mem // 2**20, "minutes": minutes, "gpus": gpus}
    return {name: value for name, value in given.items() if value is not None} | (
        {"arguments": arguments} if arguments else {}
    )


def _check_tasks(pipeline: str) -> None:
    """Raise UsageError for a task that is not installed: else every job would end with that, hours later."""
    from medkit.cli import run

    for task in tasks_here(pipeline):
        run.resolve_command(click.Context(run, info_name="medkit run"), [task])
