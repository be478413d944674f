"""The command `medkit run register`."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.dicom_objects import DerivedImages, DicomChoices, dicom_options, with_dicom
from medkit.errors import UsageError
from medkit.inference import NONE, bundle_or_none
from medkit.options import FILE_OF_CASE, IMAGE_PATH, RunOptions, some_of, task_options, words
from medkit.task import absolute, run_task
from medkit_register.choices import BENDING, JOINT_ROLES, MIDPOINT_ROLES, ROLES, RegisterChoices
from medkit_register.task import register_task


@click.command()
@click.option("--fixed", type=IMAGE_PATH, required=True, help="The image to align with (a file or a DICOM folder).")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["rigid", "affine", "deformable", "joint"]),
    default="deformable",
    show_default=True,
    help="What the transform may do: rotate and shift; also scale and shear; or also bend. joint bends too, after a "
    "rigid and an affine map, and writes these two next to the transform, which holds all three.",
)
@click.option(
    "--quality",
    type=click.Choice(["fast", "default", "best"]),
    default="default",
    show_default=True,
    help="How closely a deformable (or joint) registration follows the images, and how long it takes.",
)
@click.option(
    "--metric",
    type=click.Choice(["auto", "lncc", "mi", "mse", "mind"]),
    default="auto",
    show_default=True,
    help="Measure of similarity: auto chooses by how similar the contrasts are. mind is for warps only: their affine "
    "part and the types rigid and affine use mi.",
)
@click.option(
    "--init",
    default="auto",
    show_default=True,
    metavar="auto|moments|centre|header|FILE",
    help="Where to start: header uses the world coordinates of the scans, FILE is an affine transform.",
)
@click.option(
    "--midpoint",
    is_flag=True,
    help="Bring both images to a space half-way between them, where neither is favoured: for time points.",
)
@click.option(
    "--outputs",
    callback=words,
    shell_complete=some_of((*ROLES, *JOINT_ROLES, *MIDPOINT_ROLES)),
    metavar="ROLE,...",
    help="What to write, the main output first: image, transform, inverse_transform; for joint also rigid_transform "
    "and affine_transform, for --midpoint fixed_image, fixed_transform and fixed_inverse_transform.  [default: all]",
)
@click.option(
    "--field-spacing",
    type=click.Choice(["image", "warp"]),
    default="image",
    show_default=True,
    help="Where displacement fields have values: at the image's voxels, or at the points of the warp, which are fewer "
    "(2 mm for scans of 1 mm). Both are the same map; the second makes small files.",
)
@click.option(
    "--bundle",
    metavar="NAME|PATH|auto|none",
    default=NONE,
    show_default=True,
    allow_from_autoenv=False,
    help="The bundle whose network starts a warp between heads, if that lowers the cost; auto: the bundle that comes "
    "with medkit.",
)
@click.option("--trust", is_flag=True, help="Run the code of a bundle that no installed plugin brings.")
@click.option("--fixed-mask", type=IMAGE_PATH, help="Mask of what is compared in the fixed image.")
@click.option(
    "--moving-mask",
    type=FILE_OF_CASE,
    help='Mask of what is compared in the moving image (or "moving_mask" in a record). {id} in the path of this and of '
    "the next files of the moving image stands for the case.",
)
@click.option(
    "--lesion-mask",
    type=FILE_OF_CASE,
    help="Lesions of the moving image, which are not compared, since the fixed image has no such thing (or "
    '"lesion_mask" in a record).',
)
@click.option("--fixed-lesion-mask", type=IMAGE_PATH, help="Lesions of the fixed image, which are not compared.")
@click.option("--fixed-labels", type=IMAGE_PATH, help="Labels of the fixed image: Dice goes into the sidecar.")
@click.option("--moving-labels", type=FILE_OF_CASE, help='Labels of the moving image (or "moving_labels" in a record).')
@click.option(
    "--fixed-landmarks", type=IMAGE_PATH, help="Points of the fixed image (csv, fcsv, json): TRE in the sidecar."
)
@click.option(
    "--moving-landmarks", type=FILE_OF_CASE, help='The same points of the moving image (or "moving_landmarks").'
)
@dicom_options("image")
@task_options
def register(
    options: RunOptions,
    dicom: DicomChoices,
    fixed: Path,
    kind: str,
    quality: str,
    metric: str,
    init: str,
    midpoint: bool,
    outputs: tuple[str, ...],
    field_spacing: str,
    bundle: str,
    trust: bool,
    **files: Path | None,
) -> None:
    """Align images with a fixed image.

    Each INPUT is a moving image. Writes the image on the grid of the fixed one, the transform that resamples it there
    (it maps fixed points to moving points, as in ITK), and the inverse transform: displacement fields, or text files
    for the types rigid and affine.

    \b
    medkit run register --fixed mni.nii.gz sub-*_T1w.nii.gz -o aligned
    medkit run register --fixed mni.nii.gz sub-*_T1w.nii.gz --lesion-mask 'lesions/{id}_lesion.nii.gz' -o aligned
    """
    bends = kind in BENDING
    if bundle != NONE and not bends:
        raise UsageError(f"--bundle: takes --type {' or '.join(BENDING)}, not {kind}")
    network = bundle_or_none(bundle, "register", trust=trust) if bends else None
    shared = {"fixed": absolute(fixed)} | {role: absolute(path) for role, path in files.items() if path}
    choices = RegisterChoices(kind, metric, init, quality, midpoint, network, outputs, field_spacing)
    run_task(with_dicom(register_task(shared, choices), dicom, DerivedImages(moved=True)), options)
