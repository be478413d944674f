"""`medkit transform`: apply, compose, invert, measure, convert and describe spatial transforms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medkit.errors import InputError, MedkitError, UsageError
from medkit.options import FILE_OF_CASE, IMAGE_PATH, RunOptions, option, task_options
from medkit.pipe.lines import guarded_stdout, input_lines
from medkit.pipe.names import kind_of_name
from medkit.pipe.records import record_from_line
from medkit.task import run_task

_FORMS = ("itk", "itk-mat", "itk-h5", "field", "flirt", "fsl-warp", "lta", "lta-voxels", "register-dat")
_KINDS = ("flirt", "ras-matrix", "fsl-warp", "ras-displacements", "ras-positions", "voxel-displacements")
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def transform() -> None:
    """Apply, compose, invert, measure, convert and describe spatial transforms.

    A transform maps points of the fixed image (the reference) to points of the moving one, as in ITK; with it the
    moving image is resampled onto the fixed one. Files: ITK's and ANTs' .tfm, .txt, .mat and .h5, displacement fields
    (.nii.gz, .mha, .nrrd), FreeSurfer's .lta, MINC's linear .xfm; FSL's and register.dat through `convert`.
    """


class _InOrder(click.Command):
    """A command that keeps the names of its options in `ctx.meta`, in the order in which they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order]
        return super().parse_args(ctx, args)


_ORDER = "medkit.order"


@transform.command(cls=_InOrder, short_help="Move images, labels and points.")
@click.option(
    "--reference",
    type=FILE_OF_CASE,
    help="The image whose grid the result lies on; not needed for points. {id} in the path of this and of transforms "
    "stands for the case.",
)
@click.option(
    "--transform",
    "forward",
    type=FILE_OF_CASE,
    multiple=True,
    metavar="FILE",
    help="A transform from the reference to the input; several in the order in which they move the input, the "
    "first one first. ANTs lists them in reverse.",
)
@click.option(
    "--inverse-transform",
    "inverse",
    type=FILE_OF_CASE,
    multiple=True,
    metavar="FILE",
    help="Like --transform, in one order with them, but the inverse is applied: ANTs' [FILE,1]. Exact for affine "
    "transforms, by iteration for displacement fields.",
)
@click.option(
    "--interpolation",
    type=click.Choice(["auto", "linear", "nearest", "label"]),
    default="auto",
    show_default=True,
    help="Applied once for the whole chain. label: the label with the largest weight nearby; auto: label for label "
    "images, else linear.",
)
@click.option(
    "--outside",
    type=float,
    metavar="VALUE",
    help="The value outside the input image.  [default: air for a CT, the minimum of other images with negative "
    "values, else 0]",
)
@click.option(
    "--points-from",
    type=click.Choice(["input", "reference"]),
    default="input",
    show_default=True,
    help="input: points of the input image, which move with it. reference: points of the reference, mapped to the "
    "input image, as antsApplyTransformsToPoints and ITK's TransformPoint do with the same files.",
)
@click.option(
    "--coordinates",
    type=click.Choice(["RAS", "LPS"]),
    default="RAS",
    show_default=True,
    help="Frame of points in tables, read and written (ANTs and ITK: LPS). Slicer's files name their frame.",
)
@task_options
@click.pass_context
def apply(
    ctx: click.Context,
    options: RunOptions,
    reference: Path | None,
    forward: tuple[Path, ...],
    inverse: tuple[Path, ...],
    **settings: Any,
) -> None:
    """Move images, label images and points (.csv, .tsv, .fcsv, .mrk.json) by one or more transforms.

    Images are resampled onto the reference's grid. A transform maps points of the reference to the input. Points of the
    input image, such as landmarks drawn on it, are therefore mapped by its inverse, and so move with the image;
    --points-from reference does the opposite.

    \b
    medkit transform apply scan.nii.gz scan_dseg.nii.gz drawn.fcsv --reference mni.nii.gz --transform x.tfm -o in_mni
    medkit transform apply labels/*.nii.gz --reference mni.nii.gz --transform 'aligned/{id}_transform.nii.gz' -o in_mni
    """  # fmt: skip
    from medkit.transform_tasks.apply import ApplySettings, application

    plain = [name for name in options.inputs if not name.startswith("{")]  # records may bring a reference
    if reference is None and any(kind_of_name(Path(name)) not in ("points", "table") for name in plain):
        raise UsageError("--reference is needed: the image whose grid the result lies on")
    remaining = {"forward": list(forward), "inverse": list(inverse)}
    order = [name for name in ctx.meta[_ORDER] if name in remaining]
    chain = [(remaining[name].pop(0), name == "inverse") for name in order]
    run_task(application(reference, chain, ApplySettings(**settings)), options)


@transform.command(short_help="Combine several transforms into one.")
@click.option("--reference", type=IMAGE_PATH, help="The fixed image, on whose grid a displacement field is written.")
@task_options
def compose(options: RunOptions, reference: Path | None) -> None:
    """Combine several transforms into one, in the order in which they move an image: the first one first.

    Affine transforms make an affine one; with a displacement field among them the result is one displacement field on
    the reference's grid (a .h5 file keeps them separate, as ANTs does). Transforms are refused if their grids are known
    and do not match.

    \b
    medkit transform compose to_template.tfm warp.nii.gz --reference mni.nii.gz -o both.nii.gz
    """
    from medkit.pipe.names import is_file_name
    from medkit.transform_tasks.compose import composition

    if options.output is None or not is_file_name(options.output):
        raise UsageError("--output is needed: the file to write, .tfm, .txt, .mat, .h5 or .nii.gz")
    run_task(composition(reference), options)


@transform.command(short_help="Invert transforms.")
@click.option("--reference", type=IMAGE_PATH, help="The moving image, on whose grid the inverse of a field is written.")
@task_options
def invert(options: RunOptions, reference: Path | None) -> None:
    """Invert transforms: affine ones exactly, displacement fields by iteration on the grid of the moving image.

    The remaining error, |forward(inverse(p)) - p| in mm, is on stderr and in the sidecar, with a warning if the field
    folds.

    \b
    medkit transform invert warp.nii.gz --reference moving.nii.gz -o back.nii.gz
    """
    from medkit.transform_tasks.compose import inversion

    run_task(inversion(reference), options)


@transform.command(short_help="Write how much transforms grow and shrink.")
@click.option("--reference", type=IMAGE_PATH, help="Where to measure.  [default: the grid of the displacement field]")
@click.option("--mask", type=IMAGE_PATH, help="The region in which minimum, maximum and folding are counted.")
@click.option(
    "--labels",
    type=IMAGE_PATH,
    help="Structures of the fixed image: a table (.tsv) of their volumes there and in the moving image, to which they "
    "change.",
)
@click.option("--log", is_flag=True, help="Write the natural logarithm: below 0 where the moving anatomy grows.")
@task_options
def jacobian(options: RunOptions, reference: Path | None, mask: Path | None, labels: Path | None, log: bool) -> None:
    """Write the Jacobian determinant of transforms: of the whole map, affine parts included.

    Minimum, maximum, mean and the fraction of voxels that fold (0 or less) are on stderr and in the sidecar.

    \b
    medkit transform jacobian warp.nii.gz --mask brain.nii.gz
    medkit transform jacobian warp.nii.gz --labels visit1_dseg.nii.gz --qc pictures -o growth.nii.gz
    """
    from medkit.transform_tasks.jacobian import measurement

    run_task(measurement(reference, mask, labels, log), options)


_from_option = click.option(
    "--from",
    "kind",
    type=click.Choice(_KINDS),
    help="What a file holds that does not say it: a matrix as text, a warp of three frames.",
)


@transform.command(short_help="Convert between ITK, FSL and FreeSurfer.")
@click.option("--to", "form", type=click.Choice(_FORMS), help="The format.  [default: from the name of --output]")
@click.option("--fixed", type=IMAGE_PATH, help="The image the transform leads from: FSL's -ref, FreeSurfer's dst.")
@click.option("--moving", type=IMAGE_PATH, help="The image the transform leads to: FSL's -in, FreeSurfer's src.")
@_from_option
@task_options
def convert(options: RunOptions, form: str | None, fixed: Path | None, moving: Path | None, kind: str | None) -> None:
    """Convert transforms between ITK and ANTs, FSL (FLIRT matrix, warp) and FreeSurfer (LTA, register.dat).

    FSL's files and register.dat have a meaning only with their two images, which must be named. Matrices of greedy and
    c3d, and warps of SynthMorph, MRtrix and VoxelMorph, are read with --from.

    \b
    medkit transform convert flirt.mat --fixed mni.nii.gz --moving scan.nii.gz -o x.tfm
    medkit transform convert x.tfm --fixed mni.nii.gz --moving scan.nii.gz --to flirt -o flirt.mat
    """
    from medkit.transform_tasks.convert import conversion

    run_task(conversion(form, options.output, fixed, moving, kind), options)


@transform.command(short_help="Describe transforms.")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--fixed", type=IMAGE_PATH, help="The fixed image, for files of FSL and register.dat.")
@click.option("--moving", type=IMAGE_PATH, help="The moving image, for files of FSL and register.dat.")
@_from_option
@option("--json", "as_json", is_flag=True, help="Print a JSON object per file.")
@option("-0", "--null", is_flag=True, help="Lines in end in NUL instead of newline.")
def show(
    files: tuple[str, ...], fixed: Path | None, moving: Path | None, kind: str | None, as_json: bool, null: bool
) -> int:
    """Describe transforms: kind, grids, rotation, translation, scale and shear; displacements, Jacobian range.

    \b
    medkit transform show x.tfm
    """
    with guarded_stdout() as stdout:
        count = refused = 0
        for line in input_lines(files, None, null):
            count += 1
            try:
                text = _description(line, fixed, moving, kind, as_json)
            except MedkitError as error:
                refused += 1
                click.echo(f"medkit: {error}", err=True)
                continue
            stdout.write(os.fsencode(text))
            stdout.flush()
    if not count:
        raise MedkitError("no input arrived")
    return InputError.exit_code if refused == count else int(refused > 0)


def _description(line: str, fixed: Path | None, moving: Path | None, kind: str | None, as_json: bool) -> str:
    from medkit.images.image import read_grid
    from medkit.transform_tasks.convert import read_any
    from medkit.transform_tasks.describe import describe, in_words
    from medkit.transforms.freesurfer import FreeSurferVolume

    path = record_from_line(line).path
    first, second = (None if image is None else FreeSurferVolume(image, read_grid(image)) for image in (fixed, moving))
    facts = describe(path, read_any(path, first, second, kind))
    return (json.dumps(facts) if as_json else "\n".join(in_words(facts))) + "\n"
