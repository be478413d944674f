"""`medkit run bundle`: run any MONAI bundle on images."""

from __future__ import annotations

import click

from medkit.inference.options import BundleOptions, bundle_options
from medkit.options import RunOptions, task_options
from medkit.task import run_task


@click.command()
@bundle_options(named=True)
@task_options
def bundle(options: RunOptions, chosen: BundleOptions) -> None:
    """Run any MONAI bundle on images.

    A bundle for segmentation makes label maps on the images' grids, one for classification a table of probabilities,
    others images. If it takes several images for a case, a record names them.

    \b
    medkit run bundle --bundle ./spleen_ct_segmentation --trust *.nii.gz -o spleens
    """
    from medkit.inference.runner import bundle_task

    run_task(bundle_task("bundle", [chosen.any()], chosen.settings), options)
