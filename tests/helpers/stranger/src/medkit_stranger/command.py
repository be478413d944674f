"""The task and the command of the stranger."""

import click
import numpy as np

from medkit.options import task_options
from medkit.task import Output, Result, Task, run_task


def work(case):
    image = case.image()
    low, high = np.percentile(image.data, [1, 99])
    print("a library that prints to stdout")  # must not reach the pipe
    return Result({"image": image.with_data(np.clip((image.data - low) / (high - low), 0, 1).astype(np.float32))})


@click.command()
@task_options
def stretch(options):
    """Stretch the intensities to 0..1 between the 1st and the 99th percentile."""
    run_task(Task("stretch", (Output("image", "image", "stretched"),), process=work, uses_torch=False), options)


@click.command()
def greet():
    """Say hello."""
    click.echo("hello from a stranger")
