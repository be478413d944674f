"""`medkit run contours`: options and one call."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.dicom_objects import DicomChoices, dicom_options
from medkit.errors import UsageError
from medkit.options import IMAGE_PATH, RunOptions, absolute_path, task_options, words
from medkit.task import run_task

_PLANES = ("auto", "axial", "coronal", "sagittal")
_FITS = ("auto", "ellipse", "line")
_MESHES = ("ply", "stl")


@click.command()
@click.option("--labels", callback=words, metavar="NAME|NUMBER,...", help="Only these structures.  [default: all]")
@click.option(
    "--plane",
    type=click.Choice(_PLANES),
    default="auto",
    show_default=True,
    help="Slices to outline on; auto: those of the largest spacing, else axial ones.",
)
@click.option(
    "--fit",
    type=click.Choice(_FITS),
    default="auto",
    show_default=True,
    help="Curve fitted to each contour; auto: a line to straight strips of up to two voxels, else an ellipse.",
)
@click.option("--rtstruct", is_flag=True, help="Also write an RTSTRUCT for the DICOM series that the labels come from.")
@click.option("--mesh", is_flag=True, help="Also write the surfaces of the structures, with their area and volume.")
@click.option("--mesh-format", type=click.Choice(_MESHES), help="Format of the surfaces; means --mesh.  [default: ply]")
@click.option(
    "--align",
    type=IMAGE_PATH,
    callback=absolute_path,
    metavar="OTHER",
    help="Also fit the contours to a label map, mask or contours by a rigid transform.",
)
@click.option("--to-labels", is_flag=True, help="The other way round: make label maps from polygons or RTSTRUCT.")
@click.option(
    "--reference",
    type=IMAGE_PATH,
    callback=absolute_path,
    metavar="IMAGE",
    help="With --to-labels: the image or DICOM folder whose grid the label maps get. With --rtstruct: the "
    "folder of the DICOM series.  [default: what the sidecars lead to]",
)
@dicom_options("rtstruct")
@task_options
def contours(
    options: RunOptions,
    dicom: DicomChoices,
    labels: tuple[str, ...],
    plane: str,
    fit: str,
    rtstruct: bool,
    mesh: bool,
    mesh_format: str | None,
    align: Path | None,
    to_labels: bool,
    reference: Path | None,
) -> None:
    """Outline structures as polygons, RTSTRUCT and meshes, or make label maps from these.

    Takes label maps and masks. Writes closed polygons in RAS+ mm for every structure and slice (JSON) and a table with
    the area, perimeter, centroid and fitted curve of each. The polygons follow the edges of the voxels: made into a
    label map again, they give the same voxels.

    \b
    medkit run contours *_dseg.nii.gz -o contours
    medkit run segment scans/anna | medkit run contours --rtstruct --mesh
    medkit run contours later_dseg.nii.gz --align first_dseg.nii.gz
    medkit run contours --to-labels --reference ct.nii.gz RS.dcm
    """
    rtstruct = rtstruct or bool(dicom.kinds)
    if dicom.source and not rtstruct:
        raise UsageError("--dicom-source needs --dicom")
    if dicom.source and reference:
        raise UsageError("--reference and --dicom-source: name the series once")
    reference = reference or dicom.source
    if to_labels:
        forward = {"--rtstruct": rtstruct, "--mesh": mesh, "--mesh-format": mesh_format, "--align": align}
        forward |= {"--plane": plane != "auto", "--fit": fit != "auto"}
        if given := [name for name, value in forward.items() if value]:
            raise UsageError(f"--to-labels and {given[0]} contradict each other")
        from medkit_contours.labels_task import labelling

        run_task(labelling(labels, reference, options.series), options)
        return
    if reference and not rtstruct:
        raise UsageError("--reference goes with --to-labels or --rtstruct")
    if rtstruct and plane != "auto":
        raise UsageError(f"--plane {plane}: an RTSTRUCT has the slices of its series")
    from medkit_contours.task import ContourChoices, contouring

    choices = ContourChoices(
        labels,
        plane,
        fit,
        mesh=mesh_format or ("ply" if mesh else None),
        rtstruct=rtstruct,
        reference=reference,
        series=options.series,
        align=align,
    )
    run_task(contouring(choices), options)
