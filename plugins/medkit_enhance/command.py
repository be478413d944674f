"""The command `medkit run enhance`."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.dicom_objects import DerivedImages, DicomChoices, dicom_options, with_dicom
from medkit.inference import AUTO, BundleOptions, bundle_options
from medkit.options import IMAGE_PATH, RunOptions, task_options
from medkit.task import absolute, run_task
from medkit_enhance.methods import PURPOSES, WHATS, steps_of
from medkit_enhance.task import MODALITIES, EnhanceChoices, enhancement


@click.command()
@click.option(
    "--what",
    type=click.Choice(WHATS),
    default="auto",
    show_default=True,
    help="What to improve; auto: noise and bias field, where they matter.",
)
@click.option(
    "--method",
    type=click.Choice(list(PURPOSES)),
    help="How to do it.  [default: the network for noise in volumes of MR, else nlm; n4 and clahe]",
)
@click.option(
    "--modality",
    type=click.Choice(MODALITIES),
    default="auto",
    show_default=True,
    help="What the images are; auto: CT if there is air and water in Hounsfield units, else MR for volumes.",
)
@click.option(
    "--reference", type=IMAGE_PATH, help='The image as it should be: PSNR, SSIM, MSE (or "reference" in a record).'
)
@click.option("--difference", is_flag=True, help="Also write the result minus the input, as float32 NIfTI.")
@bundle_options()
@dicom_options("image")
@task_options
def enhance(
    options: RunOptions,
    chosen: BundleOptions,
    dicom: DicomChoices,
    what: str,
    method: str | None,
    modality: str,
    reference: Path | None,
    difference: bool,
) -> None:
    """Remove noise and bias fields from images, or strengthen their contrast.

    The noise is estimated first. An image with too little noise to matter is not denoised, and a weak bias field is not
    removed. Results have the input's grid, scale and type; a CT keeps its Hounsfield units.

    \b
    medkit run enhance *_T1w.nii.gz -o clean
    medkit run enhance --what contrast --method gamma xray.png
    medkit run enhance low.nii.gz --bundle lowfield_to_highfield
    """
    found = chosen.of_task("enhance")
    named = chosen.name != AUTO
    wanted = "network" if named and method is None and what in ("auto", *PURPOSES["network"]) else method
    steps = steps_of(what, wanted, network=all(b.has_weights for b in found))
    choices = EnhanceChoices(modality, absolute(reference) if reference else None, difference)
    task = enhancement(steps, choices, found, chosen.settings)
    run_task(with_dicom(task, dicom, DerivedImages()), options)
