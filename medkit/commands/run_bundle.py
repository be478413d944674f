"""`medkit run bundle`: run any MONAI bundle on images."""

from __future__ import annotations

from dataclasses import replace

import click

from medkit.bundles.bundle import INFERENCE
from medkit.inference.options import BundleOptions, bundle_options
from medkit.options import RunOptions, task_options
from medkit.task import run_task


@click.command()
@bundle_options(named=True)
@click.option(
    "--config",
    "configs",
    default=INFERENCE,
    show_default=True,
    metavar="NAME[,NAME]",
    help="The bundle's config to run; ids of a further one replace the first one's.",
)
@click.option(
    "--probabilities", is_flag=True, help="Also write the probabilities that a segmentation's labels come from."
)
@task_options
def bundle(options: RunOptions, chosen: BundleOptions, configs: str, probabilities: bool) -> None:
    """Run any MONAI bundle on images.

    A bundle for segmentation makes label maps on the images' grids, one for classification a table of probabilities,
    others images. If it takes several images for a case, a record names them.

    \b
    medkit run bundle --bundle ./spleen_ct_segmentation --trust *.nii.gz -o spleens
    """
    from medkit.inference.runner import bundle_task

    found = replace(chosen.any(), configs=tuple(name.strip() for name in configs.split(",")))
    run_task(bundle_task("bundle", [found], replace(chosen.settings, probabilities=probabilities)), options)
