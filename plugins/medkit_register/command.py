"""`medkit run register`: options and one call."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.options import RunOptions, task_options
from medkit.records import absolute
from medkit.task import run_task
from medkit_register.task import registration

_FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--fixed", type=_FILE, required=True, help="The image to align with (a file or a DICOM folder).")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["rigid", "affine"]),
    default="affine",
    show_default=True,
    help="What the transform may do: turn and shift, or scale and shear as well.",
)
@click.option(
    "--metric",
    type=click.Choice(["auto", "lncc", "mi", "mse"]),
    default="auto",
    show_default=True,
    help="What is to become alike: auto picks by how alike the contrasts are.",
)
@click.option(
    "--init",
    default="auto",
    show_default=True,
    metavar="auto|moments|centre|header|FILE",
    help="Where to start: header takes the scans' own world coordinates, FILE is an affine transform.",
)
@click.option("--fixed-mask", type=_FILE, help="Where the metric looks in the fixed image.")
@click.option("--moving-mask", type=_FILE, help='Where it looks in the moving image (or "moving_mask" in a record).')
@task_options
def register(
    options: RunOptions,
    fixed: Path,
    kind: str,
    metric: str,
    init: str,
    fixed_mask: Path | None,
    moving_mask: Path | None,
) -> None:
    """Align images with a fixed image.

    Each INPUT is a moving image. Gives the image on the fixed one's grid, the transform that resamples it there (it
    maps fixed points to moving points, as in ITK), and the inverse transform.

    \b
    medkit run register --fixed mni.nii.gz sub-*_T1w.nii.gz -o aligned
    """
    masks = {"fixed_mask": fixed_mask, "moving_mask": moving_mask}
    shared = {"fixed": absolute(fixed)} | {role: absolute(path) for role, path in masks.items() if path}
    run_task(registration(shared, kind=kind, metric=metric, init=init), options)
