"""`medkit run sr`: options and one call."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.errors import UsageError
from medkit.inference import AUTO, BundleOptions, bundle_options
from medkit.options import RunOptions, group_by_option, task_options
from medkit.task import absolute, run_task
from medkit_sr.methods import METHODS, STYLES, ResolveChoices, with_style
from medkit_sr.target import AXES, SCALES, Target

_FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.option(
    "--spacing",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MM",
    help="Size of the voxels to make; axes that are as fine already stay.",
)
@click.option("--scale", type=click.Choice(SCALES), help="How many times finer to make the voxels.")
@click.option(
    "--axes",
    type=click.Choice(AXES),
    default="all",
    show_default=True,
    help="Which axes to make finer: all that --spacing or --scale are for; the one across the slices, the coarsest; or "
    "those of the plane, the first two.",
)
@click.option(
    "--style",
    type=click.Choice(STYLES),
    default="faithful",
    show_default=True,
    help="faithful: closest to what is there on average; sharp: detail that looks real, some of it made up.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How.  [default: the network where its weights are there, else backprojection]",
)
@click.option("--fuse", is_flag=True, help="Make one image of all scans (of each --group-by group): they are aligned.")
@click.option(
    "--sequence",
    is_flag=True,
    help="The input is planes one after the other (along the third axis, or over time): neighbours help each other.",
)
@click.option(
    "--guide", type=_FILE, help='Another contrast of the same person, finer along some axis (or "guide" in a record).'
)
@click.option(
    "--reference",
    type=_FILE,
    help='The image as it should be, on the fine grid: PSNR, SSIM, MSE (or "reference" in a record).',
)
@bundle_options()
@group_by_option
@task_options
def sr(
    options: RunOptions,
    chosen: BundleOptions,
    spacing: float | None,
    scale: str | None,
    axes: str,
    style: str,
    method: str | None,
    fuse: bool,
    sequence: bool,
    **files: Path | None,
) -> None:
    """Make scans sharper: thick slices thin, voxels smaller.

    The result covers the same part of the body, in the input's type and units; scanned again as coarsely as the input,
    it gives the input but for its noise (the sidecar has how closely). The size of the voxels is taken for the
    thickness of the slices.

    \b
    medkit run sr thick_slices.nii.gz --spacing 1
    medkit run sr *_T2w.nii.gz --scale 2 --axes slices -o sharp
    medkit run sr ax.nii.gz cor.nii.gz sag.nii.gz --fuse
    medkit run sr flair.nii.gz --spacing 1 --guide t1.nii.gz
    medkit run sr xray.png --scale 2
    medkit run sr cine.nii.gz --scale 2 --sequence
    """
    from medkit_sr.task import superresolution

    if fuse and scale is not None:
        raise UsageError("--fuse: takes --spacing MM, or the finest spacing of the scans")
    if not fuse and (spacing is None) == (scale is None):
        raise UsageError("give --spacing MM or --scale 2|4, one of them")
    if fuse and sequence:
        raise UsageError("--fuse and --sequence contradict each other")
    settings, found = with_style(chosen.settings, style, chosen.of_task("sr"))
    named = method or ("network" if chosen.name != AUTO or style != "faithful" else None)
    shared = {role: absolute(path) for role, path in files.items() if path}
    target = Target(spacing, int(scale) if scale else None, "plane" if sequence else axes)
    run_task(superresolution(ResolveChoices(target, named, style, shared, fuse, sequence), found, settings), options)
