"""`medkit run sr`: options and one call."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.dicom_objects import DerivedImages, DicomChoices, dicom_options, with_dicom
from medkit.errors import UsageError
from medkit.inference import AUTO, BundleOptions, bundle_options
from medkit.options import IMAGE_PATH, RunOptions, group_by_option, task_options
from medkit.task import absolute, run_task
from medkit_sr.methods import METHODS, STYLES, ResolveChoices, with_style
from medkit_sr.target import AXES, SCALES, Target


@click.command()
@click.option(
    "--spacing",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MM",
    help="Size of the voxels to make; axes that are already as fine stay as they are.",
)
@click.option("--scale", type=click.Choice(SCALES), help="How many times finer to make the voxels.")
@click.option(
    "--axes",
    type=click.Choice(AXES),
    default="all",
    show_default=True,
    help="Which axes to make finer: all; slices, only the coarsest axis, across the slices; or plane, only the first "
    "two axes.",
)
@click.option(
    "--style",
    type=click.Choice(STYLES),
    default="faithful",
    show_default=True,
    help="faithful: smallest error on average; sharp: detail that looks real, but is partly invented.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="Method.  [default: network if its weights are installed, else backprojection]",
)
@click.option("--fuse", is_flag=True, help="Align all scans (of each --group-by group) and make one image of them.")
@click.option(
    "--sequence",
    is_flag=True,
    help="The input is a sequence of planes, along the third axis or over time; each uses its neighbours.",
)
@click.option(
    "--guide",
    type=IMAGE_PATH,
    help='Another contrast of the same person, finer along some axis (or "guide" in a record).',
)
@click.option(
    "--reference",
    type=IMAGE_PATH,
    help='The true image on the fine grid, to measure PSNR, SSIM and MSE (or "reference" in a record).',
)
@bundle_options()
@group_by_option
@dicom_options("image")
@task_options
def sr(
    options: RunOptions,
    chosen: BundleOptions,
    dicom: DicomChoices,
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

    The result covers the same part of the body, in the input's type and units. Scanned again as coarsely as the input,
    it agrees with the input except for noise; the sidecar states how closely. The voxel size is taken as the slice
    thickness.

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
        raise UsageError("--fuse: expected --spacing MM or, for the finest spacing of the scans, nothing; got --scale")
    if not fuse and (spacing is None) == (scale is None):
        raise UsageError("give either --spacing MM or --scale 2|4")
    if fuse and sequence:
        raise UsageError("--fuse and --sequence contradict each other")
    settings, bundles = with_style(chosen.settings, style, chosen.of_task("sr"))
    method = method or ("network" if chosen.name != AUTO or style != "faithful" else None)
    shared = {role: absolute(path) for role, path in files.items() if path}
    target = Target(spacing, int(scale) if scale else None, "plane" if sequence else axes)
    task = superresolution(ResolveChoices(target, method, style, shared, fuse, sequence), bundles, settings)
    run_task(with_dicom(task, dicom, DerivedImages(), parts=["guide"]), options)
