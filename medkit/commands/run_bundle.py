"""`medkit run bundle`: any MONAI bundle on images."""

from __future__ import annotations

from typing import Any

import click

from medkit import bundle as bundles
from medkit import plugins
from medkit.options import RunOptions, bytes_of, option, settings, task_options
from medkit.task import run_task


@click.command()
@click.option(
    "--bundle",
    "name",
    required=True,
    metavar="NAME|PATH",
    allow_from_autoenv=False,
    help="An installed bundle's name, or a bundle's folder.",
)
@click.option("--trust", is_flag=True, help="Run the code of a bundle that no installed plugin brings.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=settings,
    metavar="ID=VALUE",
    help="Change a value of the bundle's config; repeatable.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp16", "float32"]),
    default="auto",
    show_default=True,
    help="What to compute in; auto: what is fast on the device.",
)
@option(
    "--memory",
    callback=bytes_of,
    metavar="SIZE",
    help="What this process may take, such as 6G: larger images are computed in parts.  [default: what is free]",
)
@task_options
def bundle(
    options: RunOptions, name: str, trust: bool, overrides: dict[str, Any], precision: str, memory: int | None
) -> None:
    """Run any MONAI bundle on images.

    A bundle that segments gives label maps on the images' grids, one that classifies a table of probabilities, others
    images. Where it takes several images for a case, a record names them.

    \b
    medkit run bundle --bundle ./spleen_ct_segmentation --trust *.nii.gz -o spleens
    """
    from medkit.runner import RunSettings, bundle_task

    chosen = bundles.find(name, plugins.registry())
    bundles.require_trust(chosen, trust=trust)
    run_task(bundle_task("bundle", chosen, RunSettings(overrides, precision, memory)), options)
