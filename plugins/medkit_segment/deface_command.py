"""`medkit run deface`: options and one call."""

from __future__ import annotations

from dataclasses import replace

import click

from medkit.inference import BundleOptions, bundle_options
from medkit.options import RunOptions, task_options
from medkit.task import run_task

BUNDLE = "brain_mri_segmentation"


@click.command()
@click.option("--mask", is_flag=True, help="Also write the mask of what was removed.")
@bundle_options(optional=True)
@task_options
def deface(options: RunOptions, chosen: BundleOptions, mask: bool) -> None:
    """Remove face and ears from MR and CT of heads.

    Brain and skull base stay, and every voxel that stays has the value it had. The bundle of the brain
    (brain_mri_segmentation, or the one named by --bundle) finds how the head lies. Look at the pictures of --qc.

    \b
    medkit run deface heads/*.nii.gz -o shared --qc pictures
    medkit run deface ct/ | medkit run segment
    """
    from medkit_segment.defacing import defacing

    run_task(defacing(replace(chosen, name=chosen.name or BUNDLE), mask=mask), options)
