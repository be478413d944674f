"""`medkit run segment`: options and one call."""

from __future__ import annotations

import click

from medkit.inference import BundleOptions, bundle_options
from medkit.options import RunOptions, task_options
from medkit.task import run_task
from medkit_segment.task import ROLES, segmentation


def _roles(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    if unknown := [role for role in roles if role not in ROLES]:
        raise click.BadParameter(f"{unknown[0]}: expected {', '.join(ROLES)}")
    if not roles:
        raise click.BadParameter(f"expected some of {', '.join(ROLES)}")
    return roles


@click.command()
@click.option(
    "--outputs",
    "roles",
    default="labels",
    show_default=True,
    callback=_roles,
    metavar="ROLE,...",
    help=f"What to write, the main output first: {', '.join(ROLES)}. labels come with a table of the structures.",
)
@click.option("--tta", is_flag=True, help="Average over the image and its mirror image: slower, a little better.")
@click.option("--clean/--no-clean", default=True, show_default=True, help="Remove stray pieces of structures.")
@bundle_options()
@task_options
def segment(options: RunOptions, chosen: BundleOptions, roles: tuple[str, ...], tta: bool, clean: bool) -> None:
    """Label structures in images.

    Writes a label map on each image's own grid, and a table of its structures: index, name, colour, volume in mm3,
    confidence of the network, and what to look at. The brain bundle takes any MR contrast, whole heads or
    skull-stripped.

    \b
    medkit run segment *.nii.gz --outputs labels,mask,brain -o labelled
    """
    run_task(segmentation(chosen, roles, tta=tta, clean=clean), options)
