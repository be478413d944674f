"""The command `medkit run template`."""

from __future__ import annotations

import click

from medkit.options import RunOptions, group_by_option, task_options
from medkit.task import run_task
from medkit_register.choices import TemplateChoices
from medkit_register.template import template_task


@click.command()
@click.option(
    "--type",
    "kind",
    type=click.Choice(["rigid", "affine", "deformable"]),
    default="deformable",
    show_default=True,
    help="What the transforms to the scans may do. The first round is rigid; an affine one precedes deformable ones.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Rounds of that type: all scans are registered to the average, and the average is recomputed.",
)
@click.option(
    "--quality",
    type=click.Choice(["fast", "default", "best"]),
    default="default",
    show_default=True,
    help="Quality of the last deformable round; the rounds before it are fast.",
)
@click.option("--sharpen", is_flag=True, help="Sharpen the average after every round (unsharp mask).")
@group_by_option
@task_options
def template(options: RunOptions, kind: str, iterations: int, quality: str, sharpen: bool) -> None:
    """Make one template of all images: their unbiased average.

    All INPUTs (of each --group-by group) are one case. Writes the average and, for every image, the transform that
    resamples it there (it maps template points to the image's points, as in ITK) and its inverse. No image is favoured:
    the transforms are the identity on average.

    \b
    medkit run template sub-*_T1w.nii.gz -o template.nii.gz
    """
    run_task(template_task(TemplateChoices(kind, iterations, quality, sharpen)), options)
